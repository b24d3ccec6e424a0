"""Promises of planning spaces: parts on one scale, one corpus for all spaces, semantic ranks that compare, and clear refusals."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from lsm.bench import drift, evaluation
from lsm.bench.judged import choose_documents
from lsm.config import settings_from
from lsm.corpus.reader import Corpus
from lsm.corpus.writer import SegmentedDocument, text_sha256, write_manifest, write_shard
from lsm.errors import UserError
from lsm.files import write_json
from lsm.latent.objectives import contrast_logits
from lsm.latent.pretrain import Pretraining
from lsm.latent.settings import PretrainSettings
from lsm.latent.space import Part, SpaceDocuments, beside, parts_of, require_space, slices
from lsm.latent.transformer import LatentTransformer

DIM, CODE_DIMS = 12, 8
CODE = {"kind": "learned", "dims": CODE_DIMS, "whole_dims": CODE_DIMS, "bits": 8, "scale": 4 / 127, "sha256": "a" * 64, "max_tokens": 24}


def write(path: Path, *, residual: dict | None = CODE, n_documents: int = 20) -> Path:
    """Documents whose vectors and codes drift slowly, each around a place of its own."""
    generator = np.random.default_rng(0)
    documents, vectors, codes = [], [], []
    for number in range(n_documents):
        n = 8 + number % 5
        sentences = [SimpleNamespace(text="x", char_start=2 * k, char_end=2 * k + 1, gap=" ", section=k // 3, part=0) for k in range(n)]
        documents.append(SegmentedDocument(f"doc {number}", "test", "", text_sha256(str(number)), 2 * n, "", sentences))
        vectors.append(generator.standard_normal(DIM) + 0.5 * generator.standard_normal((n, DIM)))
        codes.append(0.8 * generator.standard_normal(CODE_DIMS) + 0.6 * generator.standard_normal((n, CODE_DIMS)))
    z_SD = np.concatenate(vectors)
    z_SD /= np.linalg.norm(z_SD, axis=1, keepdims=True)
    n = len(z_SD)
    arrays = None
    if residual is not None:
        stored = np.clip(np.rint(np.concatenate(codes)[:, : residual["dims"]] / residual["scale"]), -127, 127).astype(np.int8)
        arrays = {"residual": stored, "code_tokens": np.ones(n, np.uint16)}
    write_shard(path, 0, documents, z_SD, np.zeros(n, np.int32), np.zeros(n, bool), residual=arrays)
    write_manifest(path, 1, {"name": "stub", "dim": DIM}, {}, residual=residual)
    return path


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("coded") / "corpus")


def task(corpus: Path, **data: object) -> Pretraining:
    raw = {
        "steps": 10, "threads": 1, "precision": "float32", "optimizer": {"warmup_steps": 5},
        "model": {"context": 8, "hidden": 32, "layers": 1, "heads": 2, "dropout": 0.0},
        "data": {"batch_sentences": 64, "held_out_fraction": 0.3} | data,
    }  # fmt: skip
    return Pretraining.on_corpus(corpus, settings_from(PretrainSettings, raw, origin="test"), seed=0, device=torch.device("cpu"))


def test_parts_stand_side_by_side_on_one_scale(corpus: Path) -> None:
    opened = Corpus.open(corpus)
    parts = parts_of(opened, "semantic+residual")
    assert slices(parts) == {"semantic": slice(0, 12), "residual": slice(12, 20)}
    z_SD = np.concatenate([SpaceDocuments(opened, parts).vectors(doc) for doc in range(20)]).astype(np.float32)
    assert np.array_equal(z_SD[:, :12], np.concatenate([opened.vectors(doc) for doc in range(20)]))
    np.testing.assert_allclose(z_SD[:, 12:] * 8**0.5, np.concatenate([opened.vectors(doc, "residual") for doc in range(20)]), atol=2e-3)
    assert np.square(z_SD[:, 12:]).sum(1).mean() == pytest.approx(np.square(z_SD[:, :12]).sum(1).mean(), rel=0.15)
    (alone,) = parts_of(opened, "residual", 5)
    assert np.array_equal(SpaceDocuments(opened, [alone]).vectors(0), beside([opened.vectors(0, "residual")], [alone]))
    assert alone == Part(name="residual", dim=5, scale=5**-0.5)


def test_infonce_sees_the_mean_of_both_cosines(corpus: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    unit = torch.nn.functional.normalize
    parts = [
        (unit(torch.randn(5, 12, generator=generator), dim=-1), unit(torch.randn(5, 8, generator=generator), dim=-1)) for _ in range(2)
    ]
    cosine = contrast_logits(torch.cat(parts[0], -1), torch.cat(parts[1], -1), torch.zeros(()), temperature_min=0.01)
    torch.testing.assert_close(cosine, (parts[0][0] @ parts[1][0].T + parts[0][1] @ parts[1][1].T) / 2)


@pytest.mark.parametrize(("space", "dim"), [("semantic+residual", 20), ("residual", 8)])
def test_pretraining_reads_and_saves_the_space(corpus: Path, tmp_path: Path, space: str, dim: int) -> None:
    trained = task(corpus, space=space)
    assert trained.batch(0).z_BSD.shape[-1] == dim
    trained.save_final(tmp_path)
    model = LatentTransformer.from_pretrained(tmp_path)
    assert model.config == trained.model.config and model.config.residual == CODE and model.config.parts[-1].name == "residual"
    assert "residual 8" in (tmp_path / "README.md").read_text()
    z_BSD = torch.from_numpy(trained.sampler.batch(0).z_BSD)
    predicted = model.predict(z_BSD)
    for place in slices(model.config.parts).values():
        torch.testing.assert_close(predicted[..., place].norm(dim=-1), torch.ones(predicted.shape[:2]))


def test_semantic_runs_know_nothing_of_parts(corpus: Path) -> None:
    assert task(corpus).model.config.parts == [] and task(corpus).model.config.residual is None
    semantic, both = task(corpus).evaluate(), task(corpus, space="semantic+residual").evaluate()
    for name in ("control_recall_10", "control_median_rank"):
        assert semantic[name] == both[name]  # ranks are by the semantic part


def test_scoreboards_of_different_spaces_compare(corpus: Path, tmp_path: Path, run_cli: Callable) -> None:
    rows = {}
    for space in ("semantic", "semantic+residual", "residual"):
        trained, run = task(corpus, space=space), tmp_path / space
        (run / "final").mkdir(parents=True)
        trained.save_final(run / "final")
        write_json(
            run / "run.json", {"inputs": {"corpus": Corpus.open(corpus).fingerprint}, "settings": {"data": {"held_out_fraction": 0.3}}}
        )
        judged = choose_documents(run, trained.model, Corpus.open(corpus), None, limit=None)
        board = evaluation.evaluate(trained.model, judged, shuffled_positions=5)
        rows[space] = {row["predictor"]: row for row in board.rows(resamples=0)}
        by_part = evaluation.part_rows(trained.model, judged, resamples=0)
        assert list(by_part) == (["residual", "all parts"] if space == "semantic+residual" else [])
        if by_part:
            both = {name: {row["predictor"]: row for row in part} for name, part in by_part.items()}
            assert both["residual"]["last vector"]["mrr"] != rows[space]["last vector"]["mrr"]
        found = drift.measure(drift.roll_out(trained.model, judged.held_out, read=3, n=4), resamples=0)
        assert all(abs(row["cosine_truth"]) <= 1 + 1e-6 for row in found)
    controls = [name for name in rows["semantic"] if not name.startswith("model")]
    assert "ridge" in controls
    for name in controls:
        assert rows["semantic"][name] == rows["semantic+residual"][name]
    assert rows["residual"]["last vector"]["mrr"] == both["residual"]["last vector"]["mrr"]
    asked = ["evaluate", tmp_path / "semantic+residual", "--corpus", corpus, "--resamples", 0]
    outcome = run_cli(*asked, "--context-lengths", "4", "--context-curve", "2", "--shuffled-positions", 4)
    assert outcome.code == 0 and "judged by: residual" in outcome.stdout, outcome.stderr
    outcome = run_cli(*asked, "--cloze", "stories.jsonl")
    assert outcome.code == 2 and "leave them out" in outcome.stderr


def test_what_is_no_space_to_plan_in_is_refused(corpus: Path, tmp_path: Path) -> None:
    opened, plain = Corpus.open(corpus), Corpus.open(write(tmp_path / "plain", residual=None))
    with pytest.raises(UserError, match="has no residual part"):
        parts_of(plain, "semantic+residual")
    with pytest.raises(UserError, match=r"residual_dims 9: corpus .* of 8 dims"):
        parts_of(opened, "residual", 9)
    with pytest.raises(UserError, match=r"belongs to a data\.space with residual"):
        task(corpus, residual_dims=3)
    parts = parts_of(opened, "semantic+residual")
    require_space(opened, parts, CODE)
    require_space(plain, [], None)
    with pytest.raises(UserError, match="has no residual part"):
        require_space(plain, parts, CODE)
    with pytest.raises(UserError, match="another learned code"):
        require_space(opened, parts, CODE | {"sha256": "b" * 64})
    short = Corpus.open(write(tmp_path / "short", residual=CODE | {"dims": 4}))
    require_space(short, parts_of(short, "semantic+residual"), CODE)
    with pytest.raises(UserError, match="of 4 dims, the model reads 8"):
        require_space(short, parts, CODE)
    superposed = Corpus(opened.path, opened.manifest | {"parts": [opened.parts()[0], opened.parts()[1] | {"scale": "code_steps"}]})
    with pytest.raises(UserError, match="superposition codes, which are no space to plan in"):
        parts_of(superposed, "semantic+residual")
