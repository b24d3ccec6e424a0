"""`lsm reason train|eval|generate|interpolate|map`: a text becomes one idea vector, a small model thinks in it, a frozen LM says it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from lsm.commands.values import refuse_below, refuse_foreign
from lsm.config import CommonOptions
from lsm.errors import UserError
from lsm.reason.settings import ReasonSettings

if TYPE_CHECKING:
    from lsm.reason.stack import Stack
    from lsm.text.pairs import PairFields

_LEAST_FOR_A_MAP = 8


@dataclass(kw_only=True)
class Options(CommonOptions):
    """Options of `lsm reason`; those of the settings go with train and override the entries of `--config`."""

    action: tyro.conf.Positional[Literal["train", "eval", "generate", "interpolate", "map"]]
    """train INPUT... --out RUN; eval RUN INPUT...: what it writes beside its controls; generate RUN [INPUT...]: texts of inputs;
    interpolate RUN A B: texts between two inputs; map RUN INPUT... --out DIR: PCA, t-SNE and clusters of idea vectors."""
    arguments: tyro.conf.Positional[tuple[str, ...]] = ()
    """INPUT: rows with an input and a target, in JSONL (also .gz .zst), or hf:DATASET[:SPLIT]; for generate any documents.
    A, B: a text, or a file that holds one."""
    out: Path | None = None
    """train: folder of the run; eval: folder for the table and all texts; map: folder for the picture and its data."""
    config: Path | None = None
    """train: YAML file with the settings, such as configs/reason.yaml."""
    resume: Literal["auto", "never", "must"] = "auto"
    """train: auto goes on with the run in --out or starts one; never refuses a folder that holds a run; must one that does not."""
    start_from: str | None = None
    """train: prefix adapter (folder or shipped name) whose weights the expansion starts with; it must have its shape."""
    encoder_at: str | None = None
    """All but train: where the run's encoder lies, when it is not the asset of its name."""
    lm_at: str | None = None
    """All but train: where the run's LM lies, when it is not the asset of its name."""
    load_in: Literal["4bit"] | None = None
    """All but train: the LM's linear layers as NF4, on CUDA."""
    max_new_tokens: int = 64
    """All but train: longest text written."""
    limit: int | None = None
    """eval, generate, map: read this many rows of INPUT."""
    text: str | None = None
    """generate: an input, in place of INPUT."""
    points: int = 7
    """interpolate: ideas from A to B, both included."""
    clusters: int = 8
    """map: clusters whose centres are worded."""
    beside: Path | None = None
    """eval: a run with the identity as its middle, to stand beside."""
    full_text: int = 0
    """eval: also let the LM itself read so many of the inputs whole (slow: the rows are read one by one)."""
    nats: int | None = None
    """eval: count the nats of this many references only (they cost a pass of the LM for each line); default: all."""
    resamples: int = 1000
    """eval: bootstrap resamples of documents behind each 95 % interval."""
    settings: Annotated[ReasonSettings, tyro.conf.OmitArgPrefixes] = field(default_factory=ReasonSettings)
    """train: everything that shapes the result."""


_OF_ACTION = {
    "train": ("out", "config", "resume", "start_from"),
    "eval": ("out", "encoder_at", "lm_at", "load_in", "max_new_tokens", "limit", "beside", "full_text", "nats", "resamples"),
    "generate": ("encoder_at", "lm_at", "load_in", "max_new_tokens", "limit", "text"),
    "interpolate": ("encoder_at", "lm_at", "load_in", "max_new_tokens", "points"),
    "map": ("out", "encoder_at", "lm_at", "load_in", "max_new_tokens", "limit", "clusters"),
}


def run(options: Options) -> dict[str, Any]:
    """Do what is asked."""
    _check(options)
    if options.action == "train":
        return _train(options)
    if options.action == "eval":
        from lsm.commands.reason_eval import evaluate

        return evaluate(options)
    return {"generate": _generate, "interpolate": _interpolate, "map": _map}[options.action](options)


def load_stack(options: Options, folder: Path) -> Stack:
    """The stack of a run, its encoder and its LM."""
    from lsm.reason.stack import Stack

    return Stack.load(
        folder, device=options.device, encoder=options.encoder_at, lm=options.lm_at, quantise=options.load_in,
        max_new_tokens=options.max_new_tokens,
    )  # fmt: skip


def pair_fields(stack: Stack, *, target: bool = True) -> PairFields:
    """The fields that the stack's training read."""
    from lsm.text.pairs import PairFields

    notes = stack.model.notes
    return PairFields(inputs=notes["inputs"], target=notes["target"] if target else None, document=notes["document"])


def _check(options: Options) -> None:
    refuse_foreign(options, _OF_ACTION, verb="reason")
    if options.action != "train" and options.settings != ReasonSettings():
        raise UserError(f"settings of the training are no options of lsm reason {options.action}; leave them out")
    usage = {"train": "INPUT... --out RUN", "eval": "RUN INPUT...", "generate": "RUN INPUT... (or --text TEXT)", "interpolate": "RUN A B",
             "map": "RUN INPUT... --out DIR"}[options.action]  # fmt: skip
    n, least = len(options.arguments), {"train": 1, "eval": 2, "generate": 1, "interpolate": 3, "map": 2}[options.action]
    too_many = options.action == "interpolate" and n > 3
    unclear = options.action == "generate" and (n > 1) == (options.text is not None)
    if n < least or too_many or unclear or (options.action in ("train", "map") and options.out is None):
        raise UserError(f"write: lsm reason {options.action} {usage}")
    refuse_below(options, {"points": 2, "clusters": 1, "max_new_tokens": 1, "limit": 1, "full_text": 0, "nats": 1, "resamples": 0})


def _train(options: Options) -> dict[str, Any]:
    import torch

    from lsm.decode.adapter import PrefixAdapter
    from lsm.decode.shipped import find_adapter
    from lsm.encode.encoder import load_encoder
    from lsm.lm.frozen import FrozenLM
    from lsm.provenance import choose_device
    from lsm.reason.training import ReasonTask
    from lsm.text.pairs import PairFields, read_pairs
    from lsm.training.loop import Trainer

    settings, out = options.settings, options.out
    assert out is not None
    data = settings.data
    torch.set_num_threads(settings.threads)
    pairs = read_pairs(options.arguments, PairFields(inputs=data.inputs, target=data.target, document=data.document), limit=data.max_rows)
    encoder = load_encoder(settings.encoder, device=options.device)
    lm = FrozenLM.load(settings.lm, device=choose_device(options.device)[0], quantise=settings.quantise)
    start = None
    if options.start_from:
        start = PrefixAdapter.from_pretrained(find_adapter(options.start_from, encoder=encoder.fingerprint()))
    task = ReasonTask(pairs, encoder, lm, settings, seed=options.seed, start_from=start)
    results = Trainer(task, settings, out, seed=options.seed, resume=options.resume, quiet=options.quiet).train()
    scores = results["evaluation"]
    print(f"{task.name} in {out / 'final'}")
    print(
        f"held out, nats per token: {scores['loss']:.3f} (another input's idea {scores['loss_shuffled_vector']:.3f}, "
        f"zeros {scores['loss_zero_vector']:.3f}); ideas' mean pairwise cosine {scores['pairwise_cosine']:.3f}"
    )
    return results


def _generate(options: Options) -> dict[str, Any]:
    from lsm.text.readers import iter_documents

    stack = load_stack(options, Path(options.arguments[0]))
    if options.text is not None:
        texts = [options.text]
    else:
        texts = [document.text for document in iter_documents(options.arguments[1:], limit=options.limit)]
    written = stack.write(stack.ideas(texts))
    for text in written:
        print(text)
    return {"texts": written, "idea_bytes": 2 * stack.model.settings.latent_dim}


def _interpolate(options: Options) -> dict[str, Any]:
    import numpy as np

    from lsm.bench.idea_space import between

    folder, *ends = options.arguments
    stack = load_stack(options, Path(folder))
    a_D, b_D = stack.ideas([_text_of(value) for value in ends])
    ideas_PD = between(a_D, b_D, options.points)
    texts = stack.write(ideas_PD)
    rows = []
    for share, text in zip(np.linspace(0, 1, options.points).tolist(), texts, strict=True):
        print(f"{share:.2f}  {text}")
        rows.append({"share": round(share, 4), "text": text})
    return {"rows": rows, "cosine_of_ends": float(a_D @ b_D), "different_texts": len(set(texts))}


def _map(options: Options) -> dict[str, Any]:
    import numpy as np

    from lsm.bench.idea_space import agreement, map_ideas, pairwise_cosine
    from lsm.files import make_folder, write_json
    from lsm.report.idea_map import plot_idea_map
    from lsm.text.pairs import read_pairs

    out = options.out
    assert out is not None
    stack = load_stack(options, Path(options.arguments[0]))
    pairs = read_pairs(options.arguments[1:], pair_fields(stack, target=False), limit=options.limit)
    if len(pairs) < max(_LEAST_FOR_A_MAP, options.clusters):
        raise UserError(
            f"a map wants {max(_LEAST_FOR_A_MAP, options.clusters)} inputs or more, not {len(pairs)}; name more, or fewer --clusters"
        )
    make_folder(out)
    texts = [pair.text for pair in pairs]
    ideas_ND = stack.ideas(texts)
    thoughts_ND = stack.think(ideas_ND)
    found = map_ideas(ideas_ND, clusters=options.clusters, seed=options.seed)
    centres = stack.write(found.centres_KD)
    vectors_NE = stack.encoder.encode(texts).vectors
    sizes = np.bincount(found.cluster_N, minlength=options.clusters).tolist()
    moved_N = (ideas_ND * thoughts_ND).sum(1) / np.linalg.norm(ideas_ND, axis=1)
    results: dict[str, Any] = {
        "n": len(texts),
        "clusters": [{"size": size, "says": text} for size, text in zip(sizes, centres, strict=True)],
        "silhouette": found.silhouette,
        "pca_explained": found.pca_explained,
        "spearman_encoder_ideas": agreement(vectors_NE, ideas_ND),
        "spearman_encoder_thoughts": agreement(vectors_NE, thoughts_ND),
        "pairwise_cosine_encoder": pairwise_cosine(vectors_NE),
        "pairwise_cosine_ideas": pairwise_cosine(ideas_ND),
        "pairwise_cosine_thoughts": pairwise_cosine(thoughts_ND),
        "cosine_idea_thought": float(moved_N.mean()),
        "middle": stack.model.settings.middle.kind,
    }
    points = [
        {"document": pair.document, "cluster": int(cluster), "pca": pca.tolist(), "tsne": tsne.tolist()}
        for pair, cluster, pca, tsne in zip(pairs, found.cluster_N, found.pca_N2, found.tsne_N2, strict=True)
    ]
    write_json(out / "map.json", results | {"points": points})
    image = plot_idea_map(found.pca_N2, found.tsne_N2, found.cluster_N, centres, out / "map.png", explained=found.pca_explained)
    for number, cluster in enumerate(results["clusters"]):
        print(f"cluster {number} ({cluster['size']}): {cluster['says']}")
    print(
        f"similar inputs, similar ideas: Spearman {results['spearman_encoder_ideas']:.3f} of pairwise cosines, encoder against ideas; "
        f"the middle ({results['middle']}) moves ideas by a cosine of {results['cosine_idea_thought']:.3f}"
    )
    print(f"map in {image}")
    return results


def _text_of(value: str) -> str:
    try:
        path = Path(value)
        return path.read_text(encoding="utf-8") if path.is_file() else value
    except OSError:  # a text that is too long for a file's name
        return value
