"""A corpus with learned codes: what a shard holds is what the codec makes of its sentences, and other codes' options are refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lsm.corpus.reader import Corpus
from lsm.corpus.verify import verify
from lsm.decode.learned_code import LearnedCode
from lsm.decode.learned_code_codec import LearnedCodec, from_int8, to_int8
from lsm.decode.shipped import find_learned_code
from lsm.encode.encoder import load_encoder
from lsm.errors import UserError
from lsm.lm.frozen import FrozenLM

TALE = """The fox slept at the edge of the wood. At night it went down to the river and drank.

Nobody in the village had ever seen it, although the miller's daughter said that once, in the winter when the river froze from bank to \
bank and the wheel stood still, it had looked at her through the window. Her father laughed."""


@pytest.fixture(scope="module")
def codec() -> LearnedCodec:
    encoder = load_encoder("minilm", device="cpu")
    code = LearnedCode.from_pretrained(find_learned_code(encoder.fingerprint()))
    return LearnedCodec(FrozenLM.load(code.home.adapter.lm["name"]), code, encoder.token_states)


def test_learned_codes_of_a_corpus_are_the_codecs(run_cli, codec: LearnedCodec, tmp_path: Path) -> None:
    (tmp_path / "tale.txt").write_text(TALE, encoding="utf-8")
    out = tmp_path / "corpus"
    done = run_cli("encode-corpus", tmp_path / "tale.txt", "--out", out, "--residual", "learned", "--residual-dims", 128, "--workers", 1)
    assert done.code == 0 and "cut by the learned code: 1 sentences" in done.stdout
    corpus = Corpus.open(out)
    verify(corpus)
    assert corpus.residual is not None and corpus.residual["sha256"] == codec.fingerprint()["sha256"]
    expected = codec.encode(corpus.texts(0))
    stored_SK = corpus.vectors(0, "residual")
    assert stored_SK.shape == (corpus.n_sentences, 128) and corpus.residual is not None and corpus.residual["whole_dims"] == 256
    # float16 of a step; and other batches, of other lengths, may leave a dim on the other side of one.
    difference = stored_SK.astype(np.float32) - from_int8(to_int8(expected.codes_BK[:, :128]))
    assert np.abs(difference).max() < 0.04 and (np.abs(difference) > 0.002).mean() < 0.05
    assert np.array_equal(corpus.column("code_tokens"), expected.n_tokens_B)
    assert np.array_equal(corpus.vector_at([1, 0], "residual"), stored_SK[[1, 0]])
    text = codec.decode(stored_SK[:1].astype(np.float32), corpus.vectors(0)[:1].astype(np.float32)).texts[0]
    assert "fox" in text and text.endswith(".")
    rebuilt = run_cli("inspect", out, "--text", "--quiet")
    assert rebuilt.code == 0 and TALE in rebuilt.stdout


def test_superposition_codes_are_no_vectors(run_cli, tmp_path: Path) -> None:
    (tmp_path / "tale.txt").write_text(TALE, encoding="utf-8")
    out = tmp_path / "corpus"
    assert run_cli("encode-corpus", tmp_path / "tale.txt", "--out", out, "--encoder", "stub", "--residual", "superposition").code == 0
    corpus = Corpus.open(out)
    with pytest.raises(UserError, match="no space to plan in"):
        corpus.vectors(0, "residual")
    assert run_cli("encode-corpus", tmp_path / "tale.txt", "--out", tmp_path / "plain", "--encoder", "stub").code == 0
    with pytest.raises(UserError, match="has no residual part"):
        Corpus.open(tmp_path / "plain").vectors(0, "residual")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--residual", "learned", "--residual-bits", 4], "--residual-bits belongs to superposition codes"),
        (["--residual", "learned", "--verify-codes"], "--verify-codes belongs to superposition codes"),
        (["--residual", "learned", "--residual-dims", 512], "--residual-dims 512: the learned code"),
        (["--residual", "learned", "--verify-codes", "--drop-text"], "--drop-text"),
        (["--residual", "learned", "--encoder", "stub"], "no shipped learned code goes with vectors of stub"),
        (["--learned-code", "somewhere"], "needs --residual learned"),
        (["--residual", "learned", "--learned-code", "somewhere"], "somewhere is no folder"),
    ],
)
def test_what_does_not_go_together_is_refused(run_cli, tmp_path: Path, options: list, message: str) -> None:
    (tmp_path / "tale.txt").write_text(TALE, encoding="utf-8")
    done = run_cli("encode-corpus", tmp_path / "tale.txt", "--out", tmp_path / "corpus", *options)
    assert done.code == 2 and message in done.stderr and not (tmp_path / "corpus").exists()
