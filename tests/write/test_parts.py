"""Promises of plans in several parts: each decoder gets its part at its own length, and texts are read back as a corpus keeps them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from lsm.decode.in_context import ReadsText
from lsm.decode.learned_code import BOUND
from lsm.encode.encoder import load_encoder
from lsm.latent.settings import ModelSettings
from lsm.latent.space import Part
from lsm.latent.transformer import LatentConfig, LatentTransformer
from lsm.write.continuation import continue_document
from lsm.write.parts import PlannedCode, SemanticPart, encode_parts, snap_semantic

PARTS = [Part(name="semantic", dim=4), Part(name="residual", dim=9, scale=1 / 3)]


class Codec:
    """Stands for a learned codec of 16 dims: remembers what it is asked."""

    encoder: dict[str, Any] = {}  # noqa: RUF012

    def __init__(self) -> None:
        self.asked: list[tuple[np.ndarray, np.ndarray | None]] = []

    def encode(self, texts: list[str]) -> SimpleNamespace:
        return SimpleNamespace(codes_BK=np.linspace(-1, 1, 16)[None].repeat(len(texts), 0).astype(np.float32))

    def decode(self, codes_BK: np.ndarray, z_BD: np.ndarray | None = None) -> SimpleNamespace:
        self.asked.append((codes_BK, z_BD))
        return SimpleNamespace(texts=[f"Said {code_K[0]:.3f}." for code_K in codes_BK])


class Speaker:
    """A decoder of four dims."""

    name, encoder, encoder_calls_per_sentence = "speaker", {}, 1.0

    def decode(self, z_BD: np.ndarray, *, seed: int = 0) -> list[str]:
        assert z_BD.shape[1] == 4
        np.testing.assert_allclose(np.linalg.norm(z_BD, axis=1), 1, rtol=1e-5)
        return [f"Place {np.argmax(z_D)}, {np.abs(z_D).min():.4f}." for z_D in z_BD]

    def candidates(self, z_BD: np.ndarray, k: int, *, seed: int = 0) -> list[list[str]]:
        return [[text] for text in self.decode(z_BD)]


def test_each_decoder_gets_its_part_at_its_length() -> None:
    codec, plans_BD = Codec(), np.random.default_rng(0).standard_normal((3, 13)).astype(np.float32)
    PlannedCode(codec, PARTS).decode(plans_BD)  # type: ignore
    codes_BK, z_BD = codec.asked[0]
    assert codes_BK.shape == (3, 9) and np.abs(codes_BK).max() <= BOUND
    np.testing.assert_allclose(np.linalg.norm(codes_BK, axis=1), 3, rtol=1e-5)  # √9: unit variance in each dim
    np.testing.assert_allclose(np.linalg.norm(z_BD, axis=1), 1, rtol=1e-5)
    PlannedCode(codec, PARTS[1:]).decode(plans_BD[:, 4:])  # type: ignore
    assert np.array_equal(codec.asked[1][0], codes_BK) and codec.asked[1][1] is None
    attempts = PlannedCode(codec, PARTS).candidates(plans_BD, 4, seed=1)  # type: ignore
    assert all(len(texts) == 4 for texts in attempts) and attempts == PlannedCode(codec, PARTS).candidates(plans_BD, 4, seed=1)  # type: ignore
    assert [texts[0] for texts in attempts] == PlannedCode(codec, PARTS).decode(plans_BD)  # type: ignore
    assert len(SemanticPart(Speaker(), PARTS).decode(plans_BD)) == 3


def test_texts_are_read_as_a_corpus_keeps_them() -> None:
    z_BD = encode_parts(["a", "b"], lambda texts: np.full((len(texts), 4), 0.5, np.float32), Codec(), PARTS)  # type: ignore
    assert z_BD.shape == (2, 13) and z_BD.dtype == np.float32 and (z_BD[:, :4] == 0.5).all()
    np.testing.assert_allclose(z_BD[0, 4:] * 3, np.linspace(-1, 1, 16)[:9], atol=BOUND / 127)


def test_a_decoder_that_reads_the_text_so_far_is_told_it() -> None:
    class Reader:
        name = "reader"
        encoder_calls_per_sentence = 0.0

        def __init__(self) -> None:
            self.encoder: dict[str, Any] = {}
            self.seen: list[str] = []

        def read(self, texts: Sequence[str]) -> None:
            self.seen = list(texts)

        def decode(self, z_BD: np.ndarray, *, seed: int = 0) -> list[str]:
            return ["."] * len(z_BD)

        def candidates(self, z_BD: np.ndarray, k: int, *, seed: int = 0) -> list[list[str]]:
            return [["."]] * len(z_BD)

    reader = Reader()
    wrapped = SemanticPart(reader, PARTS)
    assert isinstance(wrapped, ReadsText)
    wrapped.read(["One.", "Two."])
    assert reader.seen == ["One.", "Two."]


def test_a_plan_is_snapped_in_its_semantic_part() -> None:
    plan_D = torch.arange(13.0)
    snapped_D = snap_semantic(lambda z_D, read_SD: -z_D + read_SD.sum(), PARTS)(plan_D, torch.zeros(2, 13))
    assert torch.equal(snapped_D[:4], -plan_D[:4]) and torch.equal(snapped_D[4:], plan_D[4:]) and plan_D[1] == 1


def test_plans_keep_the_length_of_their_parts_where_they_are_turned_away() -> None:
    model = LatentTransformer(
        LatentConfig(dim=13, model=ModelSettings(context=4, hidden=16, layers=1, heads=2, anchor="last"), parts=PARTS)
    )
    z_SD = np.tile(np.array([[1.0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1.0]]), (2, 1))
    written = continue_document(model, z_SD, SemanticPart(Speaker(), PARTS), 3)
    assert written.n_turned >= 1 and written.planned_ND is not None
    np.testing.assert_allclose(np.linalg.norm(written.planned_ND, axis=1), 2**0.5, rtol=1e-4)


def test_runs_without_a_code_are_refused(run_cli: Callable, tmp_path: Path) -> None:
    encoder = load_encoder("stub")
    settings = ModelSettings(context=4, hidden=16, layers=1, heads=2)
    (tmp_path / "prompt.txt").write_text("The fox sleeps. It wakes.")
    LatentTransformer(LatentConfig(dim=encoder.dim, model=settings, encoder=encoder.fingerprint())).save_pretrained(tmp_path / "plain")
    outcome = run_cli("generate", tmp_path / "plain", "--prompt", tmp_path / "prompt.txt", "--decoder", "learned")
    assert outcome.code == 2 and "plans semantic vectors alone" in outcome.stderr
    config = LatentConfig(dim=9, model=settings, encoder=encoder.fingerprint(), parts=PARTS[1:], residual={"sha256": "a" * 64})
    LatentTransformer(config).save_pretrained(tmp_path / "code")
    outcome = run_cli("generate", tmp_path / "code", "--prompt", tmp_path / "prompt.txt", "--decoder", "prefix")
    assert outcome.code == 2 and "plans learned codes alone; give --decoder learned" in outcome.stderr
    outcome = run_cli("generate", tmp_path / "code", "--prompt", tmp_path / "prompt.txt", "--decoder", "learned")
    assert outcome.code == 2 and "no shipped learned code goes with vectors of stub" in outcome.stderr
