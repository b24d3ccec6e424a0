"""A trained compressor at hand, and the rows that its scoreboard prints together: its soft tokens and all that costs no training."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from lsm.bench.compression import Way
    from lsm.compress.prompts import Prompts
    from lsm.compress.settings import CompressSettings
    from lsm.connector.compressor import Compressor
    from lsm.lm.frozen import FrozenLM
    from lsm.text.questions import Question

    Sent = dict[str, tuple[Tensor, str]]

_OF_A_TEXT = 5


@dataclass
class Loaded:
    """A trained compressor with all that it needs."""

    lm: FrozenLM
    compressor: Compressor
    settings: CompressSettings
    prompts: Prompts
    sha256: str

    def silent(self) -> AbstractContextManager[Any]:
        """While open the LM answers without the encoder's LoRA."""
        return self.compressor.silent(self.lm)

    @property
    def cue(self) -> int:
        return self.settings.encoder.cue


def load(run: Path, *, device: str) -> Loaded:
    """The compressor of a run beside its LM."""
    from lsm.compress.prompts import Prompts
    from lsm.compress.saved import load_compressor
    from lsm.training.pretrained import weights_sha256

    compressor, settings, lm = load_compressor(run, device=device)
    return Loaded(lm, compressor, settings, Prompts(lm.tokens, settings.data.shots), weights_sha256(run))


def spread(questions: list[Question], n: int) -> list[Question]:
    """`n` questions, evenly over articles, in each over its texts, in each text over its questions (which come in their answers' order)."""
    by_article: dict[str, dict[str, list[Question]]] = {}
    for one in questions:
        by_article.setdefault(one.article, {}).setdefault(one.text, []).append(one)
    # Whole groups of evenly spaced texts: a text is read once for all its questions.
    chosen: list[Question] = []
    share = max(1, n // len(by_article))
    for texts in by_article.values():
        groups = [_evenly(own, min(_OF_A_TEXT, len(own))) for own in texts.values()]
        wanted = max(1, -(-share // max(1, round(sum(map(len, groups)) / len(groups)))))
        step = max(1, len(groups) // wanted)
        chosen += [one for group in groups[::step] for one in group][:share]
    return chosen[:n]


def _evenly(questions: list[Question], n: int) -> list[Question]:
    return [questions[(2 * k + 1) * len(questions) // (2 * n)] for k in range(n)]


def shared_ways(loaded: Loaded) -> list[Way]:
    """Rows that no ratio changes."""
    import torch

    from lsm.bench.compression import Way
    from lsm.bench.compression_controls import each, text_vectors, through_untrained

    lm = loaded.lm
    whole = each(lambda one: text_vectors(lm, one.text))
    ways = [
        Way("full text", whole),
        Way("replayed embeddings, raw", whole, anchor=""),
        Way('replayed embeddings, anchor "Answer: "', whole, anchor="Answer: "),
        Way("replayed embeddings, untrained adapter", each(lambda one: through_untrained(lm, one.text))),
        Way("no text", each(lambda one: torch.zeros(0, lm.width, device=lm.device))),
    ]
    if loaded.compressor.cue is not None:
        cue = loaded.compressor.cue
        cued = each(lambda one: torch.cat([text_vectors(lm, one.text), cue]))
        ways.append(Way("full text, learned cue", cued, uncounted=loaded.cue, made_from=loaded.sha256))
    return [replace(way, around=loaded.silent) for way in ways]


def send(loaded: Loaded, questions: list[Question], ratio: int) -> Sent:
    """Codes [P, D] of each text, and what of it goes as text."""
    made = {text: loaded.compressor.send([text], loaded.lm, ratio) for text in dict.fromkeys(one.text for one in questions)}
    return {text: (codes[0], heads[0]) for text, (codes, heads) in made.items()}


def ways_at(
    loaded: Loaded, questions: list[Question], ratio: int, sent: Sent, *, sentence_encoder: Any = None,
    wire_bits: tuple[int, ...] = (), group: int = 64,
) -> list[Way]:  # fmt: skip
    """Rows at one ratio; the best sentences only where there is an encoder to pick them."""
    import torch

    from lsm.bench import compression_controls as controls
    from lsm.bench.compression import Way
    from lsm.codes import soft_file
    from lsm.config import to_dict
    from lsm.text.questions import others

    lm, compressor = loaded.lm, loaded.compressor
    n_soft = {text: len(codes) + len(lm.tokens.encode([head])[0]) for text, (codes, head) in sent.items()}
    n_bytes = {text: soft_file.payload_bytes(*codes.shape, 8, group, head) for text, (codes, head) in sent.items()}
    other, counts = others(questions), list(n_soft.values())
    trained = [loaded.sha256, to_dict(loaded.settings), group]

    def learned(pick: Callable[[str], str], bits: int | None = None) -> Callable[[list[Question]], Any]:
        def contexts(asked: list[Question]) -> Any:
            chosen = [pick(one.text) for one in asked]
            codes, heads = [sent[text][0] for text in chosen], [sent[text][1] for text in chosen]
            if bits:
                wire = soft_file.Wire(bits, group, ratio, "", "", [code.cpu().numpy() for code in codes], heads)
                back = soft_file.unpack(soft_file.pack(wire), origin="memory")
                codes = [torch.from_numpy(code).to(lm.device) for code in back.codes]
            soft = compressor.receive(codes, heads, lm)
            return soft.contexts, soft.placed(lm)

        return contexts

    def first_tokens(one: Question) -> Tensor:
        return controls.text_vectors(lm, one.text)[: n_soft[one.text]]

    def principal(one: Question) -> Tensor:
        return controls.principal_components(lm, one.text, n_soft[one.text])

    ways = [
        Way("truncated, same tokens", controls.each(first_tokens), made_from=counts),
        Way(
            "truncated, same bytes (int8)",
            controls.each(lambda one: controls.first_bytes(lm, one.text, n_bytes[one.text])),
            equals="full text" if all(len(text.encode()) <= n_bytes[text] for text in sent) else None,
            made_from=list(n_bytes.values()),
        ),
        Way("PCA, same vectors", controls.each(principal), made_from=counts),
        *([Way("shuffled", learned(other.__getitem__), uncounted=loaded.cue, made_from=trained)] if other else []),
        Way("learned", learned(str), uncounted=loaded.cue, made_from=trained),
        *(Way(f"learned, int{bits}", learned(str, bits), uncounted=loaded.cue, made_from=trained) for bits in wire_bits),
    ]
    if sentence_encoder is not None:
        picked = controls.each(
            lambda one: controls.best_sentences(lm, one, n_soft[one.text], lambda texts: sentence_encoder.encode(texts).vectors)
        )
        known = [counts, sentence_encoder.fingerprint()]
        ways.append(Way("best sentences (sees the question)", picked, per_question=True, made_from=known))
    if compressor.cue is not None:
        cue = compressor.cue
        cued = controls.each(lambda one: torch.cat([first_tokens(one), cue]))
        ways.append(Way("truncated, learned cue", cued, uncounted=loaded.cue, made_from=trained))
    return [replace(way, ratio=ratio, around=loaded.silent) for way in ways]
