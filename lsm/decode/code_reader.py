"""Superposition codes back to text: from the loudest token to the faintest, wider where that fails, certified at the end.

Letters: B texts, T tokens, V symbols that may come next, k entries of a code.

A code is the sum of signed token codes with falling amplitude plus the error of its quantiser (docs/codes.md). A ladder of searches reads
it. Greedy reading with an LM begins with drafts, read without the LM: where the LM would have read the same, one pass over all tokens tells
so, instead of T small steps (speculative decoding, Leviathan et al. 2023, with the code as the draft model).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch

from lsm.codes.alphabet import checksum
from lsm.codes.superposition import IN_BYTES, SALTS, Codes, SuperpositionEncoder
from lsm.decode.code_prior import Prior
from lsm.decode.code_search import Rung, Search, Signs

ROWS_AT_ONCE = {True: 64, False: 256}
"""Hypotheses read side by side, with and without a prior: their scores are [64, V] or [256, V]."""
_DEVIATIONS = 6.0
"""Standard deviations by which the distance between a noisy code and its text's may exceed what is expected."""
_ROUNDING = 0.01
"""Nats that a draft's lead may be wrong by."""
_DRAFTS, _FEW = 8, 4
"""Most drafts of a text before it is read token by token, and the texts that may have so many whatever comes of them."""
DRAFT_MARGIN = 20.0
"""Below so many nats a token too few drafts would be right."""

PLAIN = (Rung(1, prior=False),)
GREEDY = (Rung(1, prior=True),)
LADDER = (*PLAIN, *GREEDY, Rung(8, prior=True), Rung(48, prior=True, gap=60.0))
"""Retry: what one rung does not certify goes to the next."""
LADDER_WITHOUT_PRIOR = (*PLAIN, Rung(8, prior=False), Rung(48, prior=False, gap=60.0))

Found = tuple[str, bool, float]
"""Text, whether it is certified, and its log probability."""


@dataclasses.dataclass(frozen=True)
class Reading:
    """What came back from B codes."""

    texts: list[str]
    certified_B: np.ndarray
    """bool: the text's re-encoded code, quantised, and its checksum are those that were read (with noise: see `CodeReader.read`)."""
    log_probability_B: np.ndarray
    """log p of the text under the prior, in nats, float64; NaN where none was asked."""
    rung_B: np.ndarray
    """Number of the ladder's rung that gave the text."""


class CodeReader:
    """Reads the codes of one spec."""

    def __init__(self, encoder: SuperpositionEncoder, *, device: torch.device | str = "cpu", draft_margin: float = DRAFT_MARGIN) -> None:
        """
        Args:
            draft_margin: nats a token from which a code's text is drafted without the prior; infinity reads all token by token.
        """
        self.encoder, self._signs, self._draft_margin = encoder, Signs(encoder, torch.device(device)), draft_margin

    def read(self, codes: Codes, ladder: Sequence[Rung], prior: Prior | None = None, *, noise: float = 0.0) -> Reading:
        """Texts of `codes`, each by the first rung that certifies it, else by the last.

        Args:
            noise: standard deviation of noise that the entries are known to carry beside the quantiser's, relative to their
                root mean square. Codes are then certified by checksum, header and a distance that the noise explains: one wrong text
                in 2³² of those that are tried has the checksum.

        A decoder's budget is fixed by the codes: T steps of at most `beam` hypotheses a text and rung.

        Raises:
            UserError: the codes are of another spec.
        """
        assert ladder and (prior is not None or not any(rung.prior for rung in ladder)), "a rung asks for a prior"
        self.encoder.require(codes.spec)
        texts = [""] * len(codes)
        certified_B, rung_B = np.zeros(len(codes), bool), np.zeros(len(codes), np.int64)
        log_probability_B = np.full(len(codes), np.nan)
        for b in np.flatnonzero(codes.n_tokens_B == 0):
            _, certified_B[b], log_probability_B[b] = self._judged(codes, int(b), [([], 0.0)], prior is not None, noise)
        for number, rung in enumerate(ladder):
            open_B = np.flatnonzero(~certified_B)
            settled: dict[int, Found] = {}
            if number == 0 and rung.prior and rung.beam == 1 and prior is not None:
                for batch in self._batches(codes, self._worth_drafting(codes, open_B), PLAIN[0], prior):
                    settled |= self._agreed(codes, batch, prior, noise)
            for batch in self._batches(codes, np.setdiff1d(open_B, list(settled)), rung, prior):
                settled |= self._read_batch(codes, batch, rung, prior, noise)
            for b, found in settled.items():
                texts[b], certified_B[b], log_probability_B[b], rung_B[b] = *found, number
        return Reading(texts, certified_B, log_probability_B, rung_B)

    def _batches(self, codes: Codes, open_B: np.ndarray, rung: Rung, prior: Prior | None) -> list[np.ndarray]:
        """Texts that are read together: of one alphabet and one group of the prior, about equally long."""
        in_bytes_B = codes.variant_B & IN_BYTES
        keys = [
            (int(in_bytes_B[b]), prior.group(b) if prior and rung.prior else 0, int(codes.n_tokens_B[b]), b)
            for b in open_B.tolist()
            if codes.n_tokens_B[b]
        ]
        keys.sort(reverse=True)
        size = max(1, ROWS_AT_ONCE[rung.prior] // rung.beam)
        batches: list[list[int]] = []
        for before, key in zip([None, *keys], keys, strict=False):
            if before is None or before[:2] != key[:2] or len(batches[-1]) == size:
                batches.append([])
            batches[-1].append(key[-1])
        return [np.array(batch) for batch in batches]

    def _read_batch(self, codes: Codes, batch: np.ndarray, rung: Rung, prior: Prior | None, noise: float) -> dict[int, Found]:
        """What comes back from texts that are read side by side."""
        some = codes.select(batch)
        in_bytes = bool(some.variant_B[0] & IN_BYTES)
        session = prior.begin(batch) if prior is not None and rung.prior and not in_bytes else None
        found = Search(self._signs, some, rung, session, noise).run()
        return {int(b): self._judged(some, n, found[n], session is not None, noise) for n, b in enumerate(batch)}

    def _worth_drafting(self, codes: Codes, open_B: np.ndarray) -> np.ndarray:
        """Texts in tokens whose codes stand far enough off their noise to be read without a prior."""
        most_B = -(-codes.n_tokens_B.astype(np.int64) // np.maximum(codes.n_codes_B, 1))
        margin_B = np.array([codes.spec.margin(max(1, n)) for n in most_B.tolist()])
        return open_B[((codes.variant_B & IN_BYTES == 0) & (margin_B >= self._draft_margin))[open_B]]

    def _agreed(self, codes: Codes, batch: np.ndarray, prior: Prior, noise: float) -> dict[int, Found]:
        """What comes back from texts of `batch` by drafts without the prior: where it would have read another token, the next draft begins
        with that one. What reading token by token gives; left out is what is still contested when drafts no longer pay."""
        settled: dict[int, Found] = {}
        begun: list[list[int]] = [[] for _ in batch]
        for _ in range(_DRAFTS):
            open_N, before = np.array([n for n, b in enumerate(batch.tolist()) if b not in settled]), len(settled)
            if not len(open_N):
                break
            some = codes.select(batch[open_N])
            search = Search(self._signs, some, PLAIN[0], None, noise)
            drafts = [hypotheses[0][0] for hypotheses in search.run([begun[n] for n in open_N.tolist()])]
            for a, weighed in prior.weigh(batch[open_N], drafts):
                n, draft = int(open_N[a]), drafts[a]
                # No token can gain more by the prior than the most probable one does.
                doubtful_T = np.array(search.leads[a]) <= weighed.best_T - weighed.drafted_T + _ROUNDING
                doubtful_T[: len(begun[n])] = False
                places_M = torch.tensor(np.flatnonzero(doubtful_T), device=prior.device)
                chosen_M = search.choices(a, places_M, weighed.everything_TV[places_M]).tolist() if len(places_M) else []
                changed = [(t, symbol) for t, symbol in zip(places_M.tolist(), chosen_M, strict=True) if symbol != draft[t]]
                if changed:
                    t, symbol = changed[0]
                    begun[n] = [*draft[:t], symbol]
                else:
                    settled[int(batch[n])] = self._judged(some, a, [(draft, float(weighed.drafted_T.sum()))], True, noise)
                del weighed  # its logits, before the next ones are made
            # A draft costs the LM a pass over all tokens: where many stay contested, reading them token by token costs no more.
            if len(open_N) > _FEW and len(settled) - before < len(open_N) / 4:
                break
        return settled

    def _judged(self, some: Codes, b: int, hypotheses: list[tuple[list[int], float]], has_prior: bool, noise: float) -> Found:
        """The first hypothesis that is certified, else the first."""
        texts = [self.encoder.alphabet.text(symbols) for symbols, _ in hypotheses]
        for text, (_, log_probability) in zip(texts, hypotheses, strict=True):
            if checksum(text) == some.checksum_B[b] and self.certifies(some.select([b]), text, noise):
                return text, True, log_probability if has_prior else float("nan")
        return texts[0], False, hypotheses[0][1] if has_prior else float("nan")

    def certifies(self, code: Codes, text: str, noise: float = 0.0) -> bool:
        """Whether `text`, encoded again in the way of `code` (one text's), gives the same code, header and checksum; with `noise`, a code
        as near as the noise explains."""
        again = self.encoder.encode([text], salts=[int(code.variant_B[0]) & (SALTS - 1)], n_codes=[int(code.n_codes_B[0])])
        if noise == 0:
            return bool(code.same_as(again)[0])
        if not dataclasses.replace(code, q_CK=again.q_CK).same_as(again)[0]:
            return False
        clean_CK, off_CK = again.q_CK.astype(np.float64), code.q_CK.astype(np.float64) - again.q_CK
        expected = noise**2 * np.mean(clean_CK**2) + 1 / 12  # rounding back to the levels
        return bool(np.mean(off_CK**2) <= expected * (1 + _DEVIATIONS * np.sqrt(2 / off_CK.size)))
