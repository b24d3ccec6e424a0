"""The decoder `vec2text`: published checkpoints of Morris et al. (2023, arXiv 2310.06816) as hypothesis and iterative corrector.

Unlike other decoders it reads the length of a vector too, and in the very convention of its training: the checkpoints for GTR invert the
plain mean over the T5 encoder's token states (config `embedder_model_name: gtr_base`), which is neither what sentence-transformers'
gtr-t5-base gives (a dense layer and a normalisation follow) nor any multiple of it. Therefore loading makes a round trip, and hypotheses
keep their vectors as the encoder gives them (`lsm.decode.budget` would keep directions only).
Shape letters: B vectors, D vector width, T tokens, K candidates, A vectors still being corrected.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lsm.assets import local_path, offline, resolve
from lsm.assets.sources import fetch_hub
from lsm.decode.vec2text_checkpoint import Checkpoint, CorrectorModel, HypothesisModel
from lsm.decode.vectors import Encode, check_vectors, unit
from lsm.errors import UserError
from lsm.lm.tokens import pad_ids
from lsm.progress import say

LICENCE = (
    "vec2text checkpoints: weights of Morris et al. (2023), under the terms of their model cards. The vec2text package itself has the "
    "Software for Open Models licence (models made or run with it must be published openly); lsm reads the format with its own code."
)
CHECK_SENTENCES = (
    "The capital of France is Paris.",
    "Water boils at one hundred degrees.",
    "She plays the piano every evening.",
    "The company reported a large profit this year.",
)
_ROWS_AT_ONCE = 32
_LENGTH_SLACK = 1.25
_MARGIN = 0.25
"""Share of the way from another sentence to the own one (in cosine) that a hypothesis must have gone."""
_notice_given = False


@dataclass
class _Search:
    """What is known of one vector's texts."""

    cosines: dict[str, float] = field(default_factory=dict)
    beam: list[tuple[list[int], np.ndarray]] = field(default_factory=list)
    """Token ids and vector of the texts that are corrected next."""
    calls: int = 0

    @property
    def best(self) -> float:
        return max(self.cosines.values())


class Vec2TextDecoder:
    """Hypothesis, then corrections: each step rewrites the `beam` best texts of a vector `beam` times, re-embeds what is new and keeps the
    nearest (the paper's sequence beam). The best text of all steps is what comes out. Neither model draws, so `seed` changes nothing."""

    name = "vec2text"

    def __init__(
        self, hypothesis: HypothesisModel, corrector: CorrectorModel | None, tokenizer: Any, encode: Encode, encoder: dict[str, Any], *,
        steps: int = 20, beam: int = 1, stop_gain: float = 1e-3, length_range: tuple[float, float] = (0.0, np.inf),
    ) -> None:  # fmt: skip
        """Args:
        tokenizer: a `tokenizers.Tokenizer`.
        encoder: fingerprint of the encoder behind `encode`.
        steps: most corrections of a vector; 0 gives the hypothesis.
        stop_gain: a vector whose best cosine gains less in a step is done.
        length_range: vectors shorter or longer than any of this encoder are brought to it.
        """
        assert steps >= 0 and beam >= 1
        self.hypothesis, self.corrector, self.tokenizer, self.encode, self.encoder = hypothesis, corrector, tokenizer, encode, encoder
        self.steps, self.beam, self.stop_gain, self.length_range = steps if corrector else 0, beam, stop_gain, length_range
        self.encoder_calls_per_sentence = float(_most_calls(self.steps, beam))
        """The budget, never passed; once something was decoded, the mean of what its last call really took."""

    def decode(self, z_BD: np.ndarray, *, seed: int = 0) -> list[str]:
        return [texts[0] for texts in self.candidates(z_BD, 1, seed=seed)]

    def candidates(self, z_BD: np.ndarray, k: int, *, seed: int = 0) -> list[list[str]]:
        """The k texts of all steps whose re-embedding is nearest, best first."""
        check_vectors(z_BD, self.hypothesis.dim, self.encoder)
        e_BD = self._in_range(np.asarray(z_BD, dtype=np.float32))
        searches = [search for start in range(0, len(e_BD), _ROWS_AT_ONCE) for search in self._run(e_BD[start : start + _ROWS_AT_ONCE])]
        if searches:
            self.encoder_calls_per_sentence = float(np.mean([search.calls for search in searches]))
        return [sorted(search.cosines, key=lambda text, s=search: -s.cosines[text])[:k] for search in searches]

    def _run(self, e_BD: np.ndarray) -> list[_Search]:
        device = next(self.hypothesis.parameters()).device
        searches = [_Search() for _ in e_BD]
        self._judge(searches, e_BD, self.hypothesis.write(torch.from_numpy(e_BD).to(device)), list(range(len(e_BD))))
        going_A = list(range(len(e_BD)))
        for _ in range(self.steps):
            if not going_A or self.corrector is None:
                break
            before_A = [searches[b].best for b in going_A]
            owners = [b for b in going_A for _ in searches[b].beam]
            rows, vectors = zip(*[pair for b in going_A for pair in searches[b].beam], strict=True)
            ids_BT = pad_ids(rows, self.corrector.encoder_decoder.config.pad_token_id)[0].to(device)
            target_BD, found_BD = (torch.from_numpy(part).to(device) for part in (e_BD[owners], np.stack(vectors)))
            written = self.corrector.write(target_BD, found_BD, ids_BT, self.beam)
            self._judge(searches, e_BD, written, [b for b in owners for _ in range(self.beam)])
            going_A = [b for b, before in zip(going_A, before_A, strict=True) if searches[b].best - before >= self.stop_gain]
        return searches

    def _judge(self, searches: list[_Search], e_BD: np.ndarray, ids_BT: Tensor, owners: Sequence[int]) -> None:
        """Re-embed in one batch the texts that are new to their vector; the nearest of this step become its next beam."""
        rows = [_unpadded(row, self.hypothesis.encoder_decoder.config) for row in ids_BT.tolist()]
        texts = [text.strip() for text in self.tokenizer.decode_batch(rows, skip_special_tokens=True)]
        new: dict[tuple[int, str], list[int]] = {}  # a text seen before was corrected before, with the same outcome
        for owner, text, row in zip(owners, texts, rows, strict=True):
            if text not in searches[owner].cosines:
                new.setdefault((owner, text), row)
        if not new:
            return
        found_KD = np.asarray(self.encode([text or "." for _, text in new]), dtype=np.float32)
        cosine_K = (unit(found_KD) * unit(e_BD)[[owner for owner, _ in new]]).sum(1)
        entries: dict[int, list[tuple[float, list[int], np.ndarray]]] = {}
        for ((owner, text), row), found_D, cosine in zip(new.items(), found_KD, cosine_K.tolist(), strict=True):
            searches[owner].cosines[text] = cosine
            searches[owner].calls += 1
            entries.setdefault(owner, []).append((cosine, row, found_D))
        for owner, of_owner in entries.items():
            searches[owner].beam = [(row, found_D) for _, row, found_D in sorted(of_owner, key=lambda entry: -entry[0])[: self.beam]]

    def _in_range(self, z_BD: np.ndarray) -> np.ndarray:
        length_B1 = np.linalg.norm(z_BD, axis=1, keepdims=True)
        return z_BD * (np.clip(length_B1, *self.length_range) / np.maximum(length_B1, 1e-12)).astype(np.float32)


def within(encoder_calls: int, beam: int) -> tuple[int, int]:
    """Most steps, and the beam, that encode no more than `encoder_calls` texts for a vector; a beam that is too wide is narrowed."""
    beam = min(beam, max(1, encoder_calls - 1))
    steps = 1 + (encoder_calls - _most_calls(1, beam)) // beam**2 if encoder_calls > 1 else 0
    return steps, beam


def _most_calls(steps: int, beam: int) -> int:
    """Texts that are encoded for a vector when each is new: the hypothesis, then beam × beam a step, from one text in the first."""
    return 1 + (beam + (steps - 1) * beam**2 if steps else 0)


def load_vec2text(
    folder: str | Path, corrector_folder: str | Path | None, encode: Encode, encoder_fingerprint: dict[str, Any], *,
    tokenizer: Path | None = None, device: torch.device | str = "cpu", steps: int = 20, beam: int = 1, floor: float = 0.8,
    quiet: bool = False,
) -> Vec2TextDecoder:  # fmt: skip
    """Load a hypothesis checkpoint and its corrector, and check by a round trip that they invert this encoder.

    Args:
        folder: local folder or hub id, such as `jxm/gtr__nq__32`.
        corrector_folder: such as `jxm/gtr__nq__32__correct`; None leaves the hypothesis as it is.
        encode: the encoder whose vectors are decoded.
        encoder_fingerprint: its fingerprint.
        tokenizer: T5's `tokenizer.json`; None looks into `folder`, then on the hub for the model that the config names.
        floor: mean cosine that the check sentences' hypotheses must reach.

    Raises:
        UserError: a part is missing, damaged or not the other's, or encoder and checkpoint have different conventions.
    """
    checkpoint = _read(folder)
    hypothesis = HypothesisModel(checkpoint).to(device)
    _require_width(hypothesis.dim, checkpoint, encoder_fingerprint)
    corrector = None
    if corrector_folder is not None:
        correction = _read(corrector_folder)
        corrector = CorrectorModel(correction).to(device)
        _require_width(corrector.dim, correction, encoder_fingerprint)
    tokens = _tokenizer(tokenizer, checkpoint)
    global _notice_given
    if not (_notice_given or quiet):
        _notice_given = True
        say(LICENCE)
    own_BD = np.asarray(encode(CHECK_SENTENCES), dtype=np.float32)
    lengths_B = np.linalg.norm(own_BD, axis=1)
    lengths = float(lengths_B.min() / _LENGTH_SLACK), float(lengths_B.max() * _LENGTH_SLACK)
    _check_conventions(Vec2TextDecoder(hypothesis, None, tokens, encode, encoder_fingerprint), own_BD, floor, checkpoint)
    return Vec2TextDecoder(hypothesis, corrector, tokens, encode, encoder_fingerprint, steps=steps, beam=beam, length_range=lengths)


def _require_width(dim: int, checkpoint: Checkpoint, encoder: dict[str, Any]) -> None:
    if dim != encoder.get("dim"):
        raise UserError(
            f"vec2text checkpoint {checkpoint.name} inverts vectors of {dim} dims, encoder {_name(encoder)} has {encoder.get('dim')}; "
            f"give the --encoder it was trained on ({_trained_on(checkpoint)}), or the --vec2text checkpoint of this one"
        )


def _check_conventions(decoder: Vec2TextDecoder, own_BD: np.ndarray, floor: float, checkpoint: Checkpoint) -> None:
    """The hypotheses must come near their own sentences, and nearer than to the other ones: some encoders' vectors are all alike."""
    cosine_BB = unit(decoder.encode([text or "." for text in decoder.decode(own_BD)])) @ unit(own_BD).T
    own = float(np.diag(cosine_BB).mean())
    other = float((cosine_BB.sum() - np.trace(cosine_BB)) / (cosine_BB.size - len(cosine_BB)))
    if not (own >= floor and own - other >= max(_MARGIN * (1 - other), 1e-3)):
        raise UserError(
            f"vec2text checkpoint {checkpoint.name} does not invert encoder {_name(decoder.encoder)}: on {len(own_BD)} sentences its "
            f"hypotheses' mean cosine is {own:.2f} (floor {floor:.2f}; to the other sentences {other:.2f}); it was trained on vectors of "
            f"{_trained_on(checkpoint)}: use that model with the same pooling and normalisation "
            "(gtr_base: mean of the T5 encoder's states, no dense layer, not normalised)"
        )


def _read(folder: str | Path) -> Checkpoint:
    path, name = local_path(str(folder)), str(folder)
    if path is None:
        path = resolve(name).path
    else:
        name = path.resolve().name
    if not path.is_dir():
        raise UserError(f"vec2text checkpoint {name} is a file; name the folder with config.json and model.safetensors")
    return Checkpoint.read(path, name)


def _tokenizer(file: Path | None, checkpoint: Checkpoint) -> Any:
    from tokenizers import Tokenizer

    if file is None and (checkpoint.folder / "tokenizer.json").is_file():
        file = checkpoint.folder / "tokenizer.json"
    if file is None:
        model = str(checkpoint.config.get("model_name_or_path") or "t5-base")
        repository = model if "/" in model else f"google-t5/{model}"
        try:
            file = fetch_hub(repository, None, ("tokenizer.json",), local_only=offline())[0] / "tokenizer.json"
        except UserError as error:
            raise UserError(
                f"vec2text checkpoint {checkpoint.name}: {error}; put the tokenizer.json of {repository} into its folder"
            ) from error
    try:
        return Tokenizer.from_file(str(file))
    except Exception as error:  # tokenizers raises bare Exceptions
        raise UserError(f"vec2text: {file} is no tokenizer.json ({error})") from error


def _unpadded(row: list[int], config: Any) -> list[int]:
    """Start token, text and end token, as the corrector was trained to read a hypothesis."""
    return row[: row.index(config.eos_token_id) + 1] if config.eos_token_id in row else row


def _trained_on(checkpoint: Checkpoint) -> str:
    return str(checkpoint.config.get("embedder_model_name") or "an unnamed encoder")


def _name(encoder: dict[str, Any]) -> str:
    return f"{encoder.get('name')} ({encoder.get('pooling')} pooling, {'' if encoder.get('normalised') else 'not '}normalised)"
