"""Encoders: the stub is cheap and stable, batches of one length lose nothing, the fast path equals sentence-transformers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lsm.encode.encoder import encoder_info, find_model, load_encoder
from lsm.encode.model_folder import ModelFolder
from lsm.encode.plan import RunPlan, windows
from lsm.encode.settings import EncodeSettings
from lsm.encode.static_encoders import StubEncoder
from lsm.encode.transformer_encoder import length_batches
from lsm.errors import UserError
from lsm.files import write_json

SENTENCES = [
    "Four score and seven years ago our fathers brought forth on this continent a new nation.",
    "Ich bin ein Berliner, sagte er.",
    "A short one.",
    "A short one.",
    "The war came, and with it a long train of evils that no one had foreseen; and yet the house did not fall.",
    "日本語の文です。",
    "x",
]


@given(st.lists(st.text(max_size=600), max_size=8))
def test_stub_vectors_are_unit_and_independent_of_the_batch(texts: list[str]) -> None:
    encoder = StubEncoder()
    batch = encoder.encode(texts)
    assert batch.vectors.shape == (len(texts), 64) and batch.vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(batch.vectors, axis=1), 1, rtol=1e-6)
    for row, text in enumerate(texts):
        alone = encoder.encode([text])
        np.testing.assert_array_equal(alone.vectors[0], batch.vectors[row])
        assert bool(batch.truncated[row]) == (not encoder.fits(text)) and batch.n_tokens[row] <= encoder.max_tokens


def test_stub_vectors_never_change() -> None:
    vector = StubEncoder().encode(["The state of the union is strong."]).vectors[0]
    assert np.flatnonzero(vector)[:6].tolist() == STUB_PLACES and round(float(vector[STUB_PLACES[0]]), 6) == STUB_FIRST
    near, far = StubEncoder().encode(["The state of the union is sound.", "Quick brown foxes jump."]).vectors
    assert near @ vector > far @ vector + 0.2


STUB_PLACES = [1, 4, 5, 10, 14, 18]
STUB_FIRST = -0.162221


@given(st.lists(st.integers(1, 300), max_size=400), st.integers(1, 2048))
def test_length_batches_hold_every_row_once_within_the_budget(lengths: list[int], budget: int) -> None:
    batches = list(length_batches(lengths, budget))
    assert sorted(row for batch in batches for row in batch) == list(range(len(lengths)))
    for batch in batches:
        longest = max(lengths[row] for row in batch)
        assert len(batch) == 1 or len(batch) * longest <= budget


@given(st.integers(0, 10_000), st.integers(1, 3000))
def test_windows_cover_a_shard_evenly(n_rows: int, window_rows: int) -> None:
    pieces = windows(n_rows, window_rows)
    sizes = [piece.stop - piece.start for piece in pieces]
    assert sum(sizes) == n_rows and all(0 < size <= window_rows for size in sizes) and (not sizes or max(sizes) - min(sizes) <= 1)


def folder(path: Path, *, modules: list[str], **pooling: bool) -> Path:
    (path / "1_Pooling").mkdir()
    paths = {"Transformer": "", "Pooling": "1_Pooling"}
    write_json(path / "modules.json", [{"idx": i, "path": paths.get(kind, kind), "type": f"x.y.{kind}"} for i, kind in enumerate(modules)])
    write_json(path / "config.json", {"model_type": "bert", "hidden_size": 32, "max_position_embeddings": 512, "pad_token_id": 0})
    write_json(path / "tokenizer.json", {})
    write_json(path / "sentence_bert_config.json", {"max_seq_length": 128, "do_lower_case": False})
    write_json(path / "1_Pooling" / "config.json", pooling or {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False})
    return path


def test_what_a_model_folder_says(tmp_path: Path) -> None:
    model = ModelFolder.read(folder(tmp_path, modules=["Transformer", "Pooling", "Normalize"]), "m")
    assert (model.why_not_fast, model.pooling, model.normalised, model.dim, model.max_tokens) == (None, "mean", True, 32, 128)
    before = model.sha256
    (tmp_path / "README.md").write_text("A card does not make another encoder.")
    assert ModelFolder.read(tmp_path, "m").sha256 == before
    write_json(tmp_path / "1_Pooling" / "config.json", {"pooling_mode_cls_token": True})
    changed = ModelFolder.read(tmp_path, "m")
    assert changed.pooling == "cls" and changed.why_not_fast is None and changed.sha256 != before


def test_odd_models_go_through_sentence_transformers(tmp_path: Path) -> None:
    model = ModelFolder.read(folder(tmp_path, modules=["Transformer", "Pooling", "Dense"], pooling_mode_max_tokens=True), "m")
    assert model.why_not_fast is not None and "Dense" in model.why_not_fast and "max pooling" in model.why_not_fast


def test_a_registered_name_wins_over_a_folder_of_that_name(tmp_path: Path, empty_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("minilm").mkdir()
    assert find_model("./minilm") == (Path("minilm"), "minilm")
    with pytest.raises(UserError, match="minilm is not in the cache"):
        find_model("minilm")


def test_what_is_no_encoder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no config\.json"):
        load_encoder(str(tmp_path))
    (tmp_path / "file.txt").write_text("x")
    with pytest.raises(UserError, match="is a file"):
        load_encoder(str(tmp_path / "file.txt"))


def test_bad_settings_name_every_problem() -> None:
    with pytest.raises(UserError, match=r"--cap-characters 3: .*; --shard-rows 0: "):
        EncodeSettings(cap_characters=3, shard_rows=0)
    assert RunPlan.of({"name": "a", "dim": 1}, EncodeSettings()).settings_fingerprint() == (
        RunPlan.of({"name": "b", "dim": 1}, EncodeSettings()).settings_fingerprint()
    )


@pytest.mark.real
def test_fast_path_equals_sentence_transformers() -> None:
    from sentence_transformers import SentenceTransformer

    info = encoder_info("minilm", device="cpu", precision="float32")
    encoder = load_encoder("minilm", device="cpu", precision="float32")
    assert info.fingerprint == encoder.fingerprint() and (encoder.dim, encoder.max_tokens) == (384, 256)
    texts = [*SENTENCES, "word " * 400]
    batch = encoder.encode(texts)
    from lsm.assets import resolve

    reference = SentenceTransformer(str(resolve("minilm").path), device="cpu").encode(texts, show_progress_bar=False)
    np.testing.assert_allclose(batch.vectors, reference, atol=2e-6)
    assert batch.truncated.tolist() == [False] * len(SENTENCES) + [True] and batch.n_tokens[-1] == 256
    np.testing.assert_array_equal(batch.vectors[2], batch.vectors[3])
    assert info.fits is not None
    assert info.fits(SENTENCES[0]) and not info.fits(texts[-1])


@pytest.mark.real
def test_bf16_keeps_the_direction() -> None:
    exact = load_encoder("minilm", device="cpu", precision="float32").encode(SENTENCES).vectors
    fast = load_encoder("minilm", device="cpu", precision="bfloat16").encode(SENTENCES).vectors
    assert (exact * fast).sum(axis=1).mean() > 0.9995


@pytest.mark.real
def test_wordllama_is_a_mean_of_token_vectors() -> None:
    encoder = load_encoder("wordllama")
    batch = encoder.encode([*SENTENCES, ""])
    np.testing.assert_allclose(np.linalg.norm(batch.vectors, axis=1), 1, rtol=1e-5)
    near = encoder.encode(["The dog chased the cat.", "A cat was chased by a dog.", "Interest rates rose again."]).vectors
    assert near[0] @ near[1] > near[0] @ near[2] + 0.2
