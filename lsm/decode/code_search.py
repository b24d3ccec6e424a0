"""One search through superposition codes: hypotheses grow token by token, the likelihood of the rest of the code weighed against a prior.

Letters: B texts, A hypotheses being read, W beam width, V symbols that may come next, T tokens, k entries of a code.

What is left of a code after the tokens read so far is correlated with every symbol's signs (Joseph & Barron 2012, adaptive successive
decoding; the beam is its list decoding).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from lsm.codes.spec import BYTE_SYMBOLS, amplitudes
from lsm.codes.superposition import IN_BYTES, SALTS, Codes, SuperpositionEncoder, pieces
from lsm.decode.code_prior import Session


@dataclasses.dataclass(frozen=True)
class Rung:
    """One way to read; a ladder of them goes from the fastest to the widest."""

    beam: int
    prior: bool
    """Ask the prior; without it every token is as likely as any other."""
    gap: float = 30.0
    """Hypotheses so many nats behind their text's best are dropped."""

    @property
    def name(self) -> str:
        return ("prior" if self.prior else "plain") + ("" if self.beam == 1 else f", beam {self.beam}")


class Signs:
    """The signs of every symbol of one code spec, on the device that reads."""

    def __init__(self, encoder: SuperpositionEncoder, device: torch.device) -> None:
        self.encoder, self.device = encoder, device

    @cached_property
    def of_tokens_VK(self) -> Tensor:
        return self._codebook_VK[: self.encoder.alphabet.size]

    @cached_property
    def of_bytes_VK(self) -> Tensor:
        size = self.encoder.alphabet.size
        return self._codebook_VK[size : size + BYTE_SYMBOLS]

    @cached_property
    def special(self) -> Tensor:
        """Tokens that no text has."""
        return torch.tensor(self.encoder.alphabet.tokens.special_ids(), dtype=torch.int64, device=self.device)

    @cached_property
    def _codebook_VK(self) -> Tensor:
        return torch.from_numpy(self.encoder.codebook_VK).to(self.device, torch.float32)


@dataclasses.dataclass(frozen=True)
class Query:
    """What symbols' signs are compared with: whole numbers so small that no order of adding them rounds.

    The products of a code's rest with ±1 signs are then exact, so that a text reads the same alone and in any company.
    """

    whole_AK: Tensor
    factor_A1: Tensor
    """What a match is multiplied by to be in nats."""

    @classmethod
    def of(cls, rest_AK: Tensor, factor_A1: Tensor) -> Query:
        """From the rest of each code, its entries rounded to a grid of which the largest sum takes 2²³ steps: far below the quantiser's."""
        largest_A1 = rest_AK.abs().amax(1, keepdim=True) * rest_AK.shape[1]
        step_A1 = torch.ldexp(torch.ones_like(largest_A1), torch.frexp(largest_A1).exponent - 23)
        return cls((rest_AK / step_A1).round(), step_A1 * factor_A1)

    @classmethod
    def join(cls, some: Sequence[Query]) -> Query:
        return cls(torch.cat([one.whole_AK for one in some]), torch.cat([one.factor_A1 for one in some]))

    def rows(self, which: Tensor | slice) -> Query:
        return Query(self.whole_AK[which], self.factor_A1[which])

    def match(self, signs_VK: Tensor) -> Tensor:
        """By how much each symbol [A, V] agrees, in nats and up to what is the same for all of them."""
        return (self.whole_AK @ signs_VK.T) * self.factor_A1


class Search:
    """Beam search over one batch of texts of one alphabet; hypotheses of a text stand together, best first."""

    def __init__(self, signs: Signs, codes: Codes, rung: Rung, session: Session | None, noise: float) -> None:
        self.codes, self.rung, self.session, device = codes, rung, session, signs.device
        self.leads: list[list[float]] = [[] for _ in range(len(codes))]
        """Of each draft: nats by which each token was ahead of the next best one; infinity where it was known."""
        self.queries: list[list[Query]] = [[] for _ in range(len(codes))]
        """What was compared with every symbol's signs for it."""
        in_bytes = bool(codes.variant_B[0] & IN_BYTES)
        self.offset = signs.encoder.alphabet.size if in_bytes else 0
        self.codebook_VK = signs.of_bytes_VK if in_bytes else signs.of_tokens_VK
        self.special = None if in_bytes else signs.special
        n_tokens = codes.n_tokens_B.astype(np.int64)
        longest = int(n_tokens.max(initial=0))
        self.n_tokens_B = torch.from_numpy(n_tokens).to(device)
        salts = codes.variant_B & (SALTS - 1)
        tables = {int(salt): torch.from_numpy(signs.encoder.positions(int(salt), longest)) for salt in np.unique(salts)}
        self.sign_BTK = torch.stack([tables[int(salt)] for salt in salts]).to(device, torch.float32)
        # Of every token: its amplitude, the noise in an entry once it is taken off, and the code that it stands in, when it is its first.
        unit = 2.0**-14
        self.amplitude_BT, self.noise_BT = torch.zeros(len(codes), longest), torch.ones(len(codes), longest)
        self.opens_BT = torch.full((len(codes), longest), -1, dtype=torch.int64)
        for b in range(len(codes)):
            for number, (begin, end) in enumerate(pieces(int(n_tokens[b]), int(codes.n_codes_B[b]))):
                if end == begin:
                    continue
                code = int(codes.first_B[b]) + number
                amplitude = torch.from_numpy(amplitudes(end - begin, codes.spec.fall_half_bits).astype(np.float64)) * unit
                after = amplitude.square().flip(0).cumsum(0).flip(0) - amplitude.square()
                self.amplitude_BT[b, begin:end] = amplitude.float()
                step = float(codes.step_C[code]) * unit
                spread = noise * step * float(np.sqrt(np.mean(codes.q_CK[code].astype(np.float64) ** 2)))
                self.noise_BT[b, begin:end] = (after + step**2 / 12 + spread**2).float()
                self.opens_BT[b, begin] = code
        values = codes.q_CK.astype(np.float32) * (codes.step_C[:, None].astype(np.float32) * unit)
        self.values_CK = torch.from_numpy(values).to(device)
        self.amplitude_BT, self.noise_BT, self.opens_BT = (x.to(device) for x in (self.amplitude_BT, self.noise_BT, self.opens_BT))

    @torch.inference_mode()
    def run(self, begun: Sequence[Sequence[int]] | None = None) -> list[list[tuple[list[int], float]]]:
        """Hypotheses of each text, best first: symbols and their log probability under the prior.

        Args:
            begun: makes drafts, greedily and without a prior, and keeps what they were chosen by: the tokens that each text is known to
                begin with.
        """
        assert begun is None or (self.rung.beam == 1 and self.session is None)
        n_texts, device = len(self.codes), self.values_CK.device
        known_BT = torch.full_like(self.opens_BT, -1)
        for b, symbols in enumerate(begun or ()):
            known_BT[b, : len(symbols)] = torch.tensor(symbols, device=device)
        found: list[list[tuple[list[int], float]]] = [[] for _ in range(n_texts)]
        text_A = torch.arange(n_texts, device=device)
        history_AT = torch.zeros(n_texts, 0, dtype=torch.int64, device=device)
        logp_A, done_A = torch.zeros(n_texts, device=device), torch.zeros(n_texts, device=device)
        rest_AK = torch.zeros(n_texts, self.codes.spec.dims, device=device)
        rows_A: Tensor | None = None
        for t in range(self.opens_BT.shape[1] + 1):
            ends_A = self.n_tokens_B[text_A] == t
            if ends_A.any():
                for a in ends_A.nonzero().squeeze(1).tolist():
                    found[int(text_A[a])].append((history_AT[a].tolist(), float(logp_A[a])))
                kept = (~ends_A).nonzero().squeeze(1)
                text_A, history_AT, logp_A, done_A, rest_AK = (x[kept] for x in (text_A, history_AT, logp_A, done_A, rest_AK))
                rows_A = kept if rows_A is None else rows_A[kept]
            if not len(text_A):
                break
            opens_A = self.opens_BT[text_A, t]
            if (fresh := (opens_A >= 0).nonzero().squeeze(1)).numel():
                if t:
                    done_A[fresh] -= _power(rest_AK[fresh]) / (2 * self.noise_BT[text_A[fresh], t - 1])
                rest_AK[fresh] = self.values_CK[opens_A[fresh]]
            sign_AK = self.sign_BTK[text_A, t]
            amplitude_A1, noise_A1 = self.amplitude_BT[text_A, t, None], self.noise_BT[text_A, t, None]
            query = Query.of(rest_AK * sign_AK, amplitude_A1 / noise_A1)
            match_AV = None if begun is not None else query.match(self.codebook_VK)
            prior_AV = None
            if match_AV is None:
                parent_A, symbol_A = torch.arange(len(text_A), device=device), self._drafted(query, known_BT[text_A, t], text_A)
            else:
                if self.session is not None:
                    first = t == 0
                    prior_AV = self.session.step(None if first else rows_A, None if first else history_AT[:, -1])[:, : match_AV.shape[1]]
                    match_AV += prior_AV
                elif self.special is not None:
                    match_AV[:, self.special] = -torch.inf
                parent_A, symbol_A = self._best(match_AV, logp_A + done_A - _power(rest_AK) / (2 * noise_A1[:, 0]), text_A)
            logp_A = logp_A[parent_A] + (prior_AV[parent_A, symbol_A] if prior_AV is not None else 0.0)
            rest_AK = rest_AK[parent_A] - amplitude_A1[parent_A] * sign_AK[parent_A] * self.codebook_VK[symbol_A]
            text_A, done_A = text_A[parent_A], done_A[parent_A]
            history_AT = torch.cat([history_AT[parent_A], symbol_A[:, None]], dim=1)
            rows_A = parent_A
        if self.offset:
            found = [[([symbol + self.offset for symbol in symbols], logp) for symbols, logp in some] for some in found]
        return found

    def choices(self, text: int, places_N: Tensor, prior_NV: Tensor) -> Tensor:
        """The symbols [N] that a prior would have chosen at some places of a draft."""
        match_NV = Query.join([self.queries[text][t] for t in places_N.tolist()]).match(self.codebook_VK)
        return (match_NV + prior_NV[:, : match_NV.shape[1]]).argmax(1)

    def _drafted(self, query: Query, known_A: Tensor, text_A: Tensor) -> Tensor:
        """The next symbol of each draft: the known one, else the best."""
        symbol_A, lead_A = known_A.clone(), torch.full(known_A.shape, torch.inf, device=known_A.device)
        asked_M = (known_A < 0).nonzero().squeeze(1)
        if asked_M.numel():
            match_MV = query.rows(asked_M).match(self.codebook_VK)
            if self.special is not None:
                match_MV[:, self.special] = -torch.inf
            top_M2, best_M2 = match_MV.topk(2, dim=1)
            symbol_A[asked_M], lead_A[asked_M] = best_M2[:, 0], top_M2[:, 0] - top_M2[:, 1]
        for row, (text, lead) in enumerate(zip(text_A.tolist(), lead_A.tolist(), strict=True)):
            self.leads[text].append(lead)
            self.queries[text].append(query.rows(slice(row, row + 1)))
        return symbol_A

    def _best(self, match_AV: Tensor, base_A: Tensor, text_A: Tensor) -> tuple[Tensor, Tensor]:
        """The next hypotheses, as (row they come from, symbol): the `beam` best of each text within `gap` of its best."""
        if self.rung.beam == 1:
            return torch.arange(len(match_AV), device=match_AV.device), match_AV.argmax(1)
        top_AW, symbol_AW = match_AV.topk(min(self.rung.beam, match_AV.shape[1]), dim=1)
        score_AW = base_A[:, None] + top_AW
        parents, symbols = [], []
        _, counts = text_A.unique_consecutive(return_counts=True)
        width, first = score_AW.shape[1], 0
        for count in counts.tolist():
            scores = score_AW[first : first + count].flatten()
            best, place = scores.topk(min(self.rung.beam, len(scores)))
            place = place[best >= best[0] - self.rung.gap]
            parents.append(first + place // width)
            symbols.append(symbol_AW[first : first + count].flatten()[place])
            first += count
        return torch.cat(parents), torch.cat(symbols)


def _power(rest_AK: Tensor) -> Tensor:
    """Sum of squares of each row, added in float64, whose rounding hardly ever shows in float32."""
    return rest_AK.double().square().sum(1).float()
