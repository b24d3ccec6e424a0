"""Codes come back word for word, batched as one by one, and no wrong text is ever certified."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from lsm.codes.alphabet import Alphabet
from lsm.codes.superposition import SALTS, Codes, SuperpositionEncoder
from lsm.commands.roundtrip_codes import noisy
from lsm.corpus.reader import Corpus
from lsm.decode.code_prior import LMPrior, Session, Weighed, previous_prior
from lsm.decode.code_reader import GREEDY, LADDER, LADDER_WITHOUT_PRIOR, PLAIN, CodeReader
from lsm.decode.code_search import Rung
from lsm.decode.verified import encode_verified
from lsm.errors import UserError
from lsm.lm.frozen import FrozenLM
from lsm.lm.generation import Bias
from lsm.lm.tokens import pad_ids

TEXTS = [
    "A fox waits.", "", "b", "the harvest was good, and the granaries are full", "日本語 and emoji 👩‍👩‍👧‍👦",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaa",     "No. 17 cost $3,499.00!", " white  space ",
]  # fmt: skip


@pytest.fixture(scope="module")
def lm() -> FrozenLM:
    return FrozenLM.load("stub")


def reader(lm: FrozenLM, dims: int = 256, seed: int = 0, noise: float = 0.0) -> CodeReader:
    alphabet = Alphabet(lm.tokens)
    return CodeReader(SuperpositionEncoder(alphabet.spec(dims=dims, seed=seed, noise=noise), alphabet))


@pytest.mark.parametrize("ladder", [PLAIN, GREEDY, (Rung(4, prior=True),), LADDER])
def test_every_text_comes_back_and_is_certified(lm: FrozenLM, ladder: tuple[Rung, ...]) -> None:
    it = reader(lm)
    reading = it.read(it.encoder.encode(TEXTS), ladder, LMPrior(lm))
    assert reading.texts == TEXTS and reading.certified_B.all()


@pytest.mark.parametrize("rung", [Rung(1, prior=False), Rung(1, prior=True), Rung(6, prior=True)])
def test_batched_is_one_by_one(lm: FrozenLM, rung: Rung) -> None:
    it = reader(lm, dims=24)  # small enough to go wrong often
    codes = it.encoder.encode(TEXTS, n_codes=[1] * len(TEXTS))
    together = it.read(codes, [rung], LMPrior(lm))
    alone = [it.read(codes.select([b]), [rung], LMPrior(lm)) for b in range(len(TEXTS))]
    assert together.texts == [one.texts[0] for one in alone] and together.texts != TEXTS
    assert together.certified_B.tolist() == [bool(one.certified_B[0]) for one in alone]
    for b, one in enumerate(alone):
        assert np.isclose(together.log_probability_B[b], one.log_probability_B[0], equal_nan=True, rtol=1e-4)


def some_prior(lm: FrozenLM, kind: str, n: int) -> LMPrior:
    """One of each way to open."""
    if kind == "contexts":
        return LMPrior(lm, contexts=[[5] * (text % 3) for text in range(n)])
    if kind == "start":
        return LMPrior(lm)
    mix_HH = torch.randn(lm.width, lm.width, generator=torch.Generator().manual_seed(1))

    def prefix(texts_A: np.ndarray) -> tuple[torch.Tensor, Bias]:
        inputs_APH = torch.stack([torch.randn(3, lm.width, generator=torch.Generator().manual_seed(int(text))) for text in texts_A])
        return inputs_APH, lambda spoken_AH, n_tokens, rows_A: 0.1 * (spoken_AH @ mix_HH + inputs_APH[rows_A, 0] * n_tokens)

    return LMPrior(lm, prefix=prefix)


@pytest.mark.parametrize(("dims", "kind"), [(24, "contexts"), (64, "prefix"), (256, "contexts"), (256, "prefix"), (256, "start")])
def test_drafted_is_token_by_token(lm: FrozenLM, dims: int, kind: str) -> None:
    it, texts = reader(lm, dims=dims), [*TEXTS, *(f"Row {n} was read at {n * n * 7919}." for n in range(40))]
    codes = it.encoder.encode(texts, n_codes=[1] * len(texts))
    found = []
    for least in (np.inf, -np.inf):
        found.append(CodeReader(it.encoder, draft_margin=least).read(codes, GREEDY, some_prior(lm, kind, len(texts))))
    plain, drafted = found
    assert drafted.texts == plain.texts and drafted.certified_B.tolist() == plain.certified_B.tolist()
    assert np.allclose(drafted.log_probability_B, plain.log_probability_B, rtol=1e-4, equal_nan=True)
    assert dims < 256 or it.read(codes, PLAIN).texts == plain.texts  # all of them were drafted well; of small codes, hardly any


def test_few_contested_texts_are_drafted_until_the_prior_agrees(lm: FrozenLM) -> None:
    texts, found = [f"Row {n} was read at {n * n * 7919}." for n in range(4)], []
    it = reader(lm, dims=32)
    codes = it.encoder.encode(texts, n_codes=[1] * len(texts))

    class Watched(LMPrior):
        """The LM's, which also says how often it weighed and how many texts it read token by token."""

        weighed, begun = 0, 0

        def weigh(self, texts_A: np.ndarray, drafts: Sequence[Sequence[int]]) -> Iterator[tuple[int, Weighed]]:
            self.weighed += 1
            return super().weigh(texts_A, drafts)

        def begin(self, texts_A: np.ndarray) -> Session:
            self.begun += len(texts_A)
            return super().begin(texts_A)

    for least in (np.inf, -np.inf):
        prior = Watched(lm)
        found.append(CodeReader(it.encoder, draft_margin=least).read(codes, GREEDY, prior))
    assert found[0].texts == found[1].texts
    assert it.read(codes, PLAIN).texts != found[1].texts, "no draft was contested: the test tests nothing"
    assert prior.weighed > 1 and prior.begun < len(texts)


@pytest.mark.parametrize("text", ["a", "ab", "A fox waits by the sea."])
def test_log_probability_is_the_priors(lm: FrozenLM, text: str) -> None:
    it = reader(lm, dims=1024)
    prior = LMPrior(lm)
    found = it.read(it.encoder.encode([text]), GREEDY, prior).log_probability_B[0]
    ids, mask = pad_ids(lm.tokens.encode([text]), lm.tokens.end_id)
    start = lm.embed(torch.tensor(prior._start))[None]
    logits = [lm.step(torch.cat([start, lm.embed(ids[:, :t])], dim=1))[0] for t in range(mask.sum())]
    expected = 0.0
    for t, logit in enumerate(logits):
        logit[:, lm.tokens.special_ids()] = -torch.inf
        expected += float(logit.log_softmax(-1)[0, ids[0, t]])
    assert found == pytest.approx(expected, rel=1e-4)


def test_nothing_wrong_is_certified(lm: FrozenLM) -> None:
    texts = [f"Line {n} of a document, {n * n * 7919}." for n in range(120)]
    for dims in (8, 16, 24):
        it = reader(lm, dims=dims)
        reading = it.read(it.encoder.encode(texts, n_codes=[1] * len(texts)), [Rung(2, prior=False)])
        wrong = np.array([one != other for one, other in zip(reading.texts, texts, strict=True)])
        assert wrong.any() and not (reading.certified_B & wrong).any()


def test_the_certificate_sees_a_changed_last_token_entry_step_and_checksum(lm: FrozenLM) -> None:
    it, text = reader(lm), "a" * 60 + "b"
    codes = it.encoder.encode([text])
    assert it.certifies(codes, text) and not it.certifies(codes, text[:-1] + "c") and not it.certifies(codes, text[:-1])
    changed = codes.q_CK.copy()
    changed[0, 5] += 1 if changed[0, 5] < 127 else -1
    for one in (
        dataclasses.replace(codes, q_CK=changed),
        dataclasses.replace(codes, step_C=codes.step_C + 1),
        dataclasses.replace(codes, checksum_B=codes.checksum_B ^ 1),
    ):
        reading = it.read(one, LADDER_WITHOUT_PRIOR)
        assert not reading.certified_B[0] and reading.texts == [text]


def test_codes_of_another_seed_are_refused(lm: FrozenLM) -> None:
    codes = reader(lm, seed=1).encoder.encode(["x"])
    with pytest.raises(UserError, match=r"seed 1\).*seed 0\)"):
        reader(lm).read(codes, LADDER_WITHOUT_PRIOR)


def test_noise_is_survived_as_far_as_it_goes(lm: FrozenLM) -> None:
    it = reader(lm, dims=512)
    texts = [text for text in TEXTS if len(text.encode()) < 30]
    clean = it.encoder.encode(texts)
    share = []
    for sigma in (0.002, 0.1, 1.0):
        reading = it.read(noisy(clean, sigma, 0), PLAIN, noise=sigma)
        share.append(np.mean([one == other for one, other in zip(reading.texts, texts, strict=True)]))
    assert share[0] == 1 and share[0] >= share[1] >= share[2] and share[2] < 0.5


def test_a_code_made_for_noise_is_read_and_certified_where_another_is_not(lm: FrozenLM) -> None:
    texts = [f"Row {n} was read at {n * n * 7919}." for n in range(30)]
    certified, exact = [], []
    for made_for in (0.0, 0.1):
        it = reader(lm, dims=256, noise=made_for)
        reading = it.read(noisy(it.encoder.encode(texts), 0.1, 0), PLAIN, noise=0.1)
        exact.append([one == other for one, other in zip(reading.texts, texts, strict=True)])
        certified.append(reading.certified_B.tolist())
    assert certified == exact and np.mean(exact[0]) < 0.5 and np.mean(exact[1]) > 0.9
    it = reader(lm, dims=256, noise=0.1)
    louder = noisy(it.encoder.encode(texts), 0.2, 0)
    assert not it.read(louder, PLAIN, noise=0.1).certified_B.any(), "more noise than there should be is no certificate"


def test_a_prior_that_has_read_what_stands_before_goes_in_groups(lm: FrozenLM) -> None:
    it = reader(lm)
    prior = previous_prior(lm, ["", "short", "much longer than the others", "abcde", "", "", "", ""])
    assert [prior.group(b) for b in (1, 2, 3)] == [5, 27, 5] and prior.group(0) == prior.group(4)
    assert it.read(it.encoder.encode(TEXTS), GREEDY, prior).texts == TEXTS


def test_verified_codes_always_read_back(lm: FrozenLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lsm.codes.spec.LEAST_MARGIN", 4.0)  # codes so full that many fail at first
    it = reader(lm, dims=16)
    texts = [*TEXTS, *(f"Line {n} of a document, {n * n * 7919}." for n in range(60))]
    verified = encode_verified(it.encoder, it, texts, PLAIN)
    assert it.read(verified.codes, PLAIN).texts == texts
    assert verified.n_again >= verified.n_more_codes > 0 and (verified.codes.variant_B > 0).any()
    assert (verified.codes.variant_B < SALTS).all()


def test_a_code_too_small_for_one_token_is_refused(lm: FrozenLM, monkeypatch: pytest.MonkeyPatch) -> None:
    it = reader(lm, dims=8)  # 2^8 sign patterns cannot tell 257 tokens apart
    with pytest.raises(UserError, match="--residual-dims"):
        encode_verified(it.encoder, it, ["".join(map(chr, range(32, 127)))], PLAIN)


def test_a_corpus_gives_its_documents_back_without_their_text(run_cli: Callable, tmp_path: Path) -> None:
    """encode-corpus --verify-codes --drop-text, then inspect --text: the text, from vectors and gaps alone."""
    text = "First one.  Second, a bit longer one!\n\nThird: 日本語.\n" + "word " * 60 + "\n"
    (tmp_path / "a.txt").write_text(text)
    residual = ("--residual", "superposition", "--residual-lm", "stub", "--residual-dims", 64, "--verify-codes", "--drop-text")
    corpora = []
    for workers in (1, 2):
        corpora.append(tmp_path / str(workers))
        outcome = run_cli("encode-corpus", tmp_path / "a.txt", "--out", corpora[-1], "--encoder", "stub", "--workers", workers, *residual)
        assert outcome.code == 0, outcome.stderr
    files = [{path.relative_to(corpus): path.read_bytes() for path in corpus.rglob("*") if path.is_file()} for corpus in corpora]
    assert files[0] == files[1] and text.encode()[:9] not in b"".join(files[0].values())
    where = tmp_path / "inspect.json"
    outcome = run_cli("inspect", corpora[0], "--text", "--json", where)
    assert outcome.code == 0 and outcome.stdout == text
    assert json.loads(where.read_text())["results"]["n_uncertified"] == 0
    assert "every hash" in run_cli("inspect", corpora[0], "--verify").stdout
    refused = run_cli("build-index", "--corpus", corpora[0], "--out", tmp_path / "x")
    assert refused.code == 2 and "residual codes only" in refused.stderr
    with pytest.raises(UserError, match="residual codes only"):
        Corpus.open(corpora[0]).texts(0)


def test_codes_read_with_another_seed_are_refused_by_name(run_cli: Callable, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("One sentence. Another one.")
    command = ("encode-corpus", tmp_path / "a.txt", "--out", tmp_path / "c", "--encoder", "stub", "--workers", 1, "--residual-lm", "stub")
    assert run_cli(*command, "--residual", "superposition", "--residual-dims", 64, "--verify-codes").code == 0
    manifest, plan = tmp_path / "c" / "manifest.json", tmp_path / "c" / "plan.json"
    manifest.write_text(manifest.read_text().replace('"seed": 0', '"seed": 1'))
    for option in ("--text", "--verify"):
        outcome = run_cli("inspect", tmp_path / "c", option)
        assert outcome.code == 2 and "manifest.json names another residual code than plan.json (seed 1 for 0)" in outcome.stderr
    plan.write_text(plan.read_text().replace('"seed": 0', '"seed": 1'))
    outcome = run_cli("inspect", tmp_path / "c", "--text")
    assert outcome.code == 2 and "do not read back" in outcome.stderr and "seed" in outcome.stderr


@pytest.mark.parametrize("verified", [True, False])
def test_a_changed_code_is_refused_by_its_file_before_an_lm_is_loaded(
    run_cli: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verified: bool
) -> None:
    (tmp_path / "a.txt").write_text("One sentence. Another one.")
    command = ("encode-corpus", tmp_path / "a.txt", "--out", tmp_path / "c", "--encoder", "stub", "--workers", 1, "--residual-lm", "stub")
    more = ("--verify-codes",) if verified else ()
    assert run_cli(*command, "--residual", "superposition", "--residual-dims", 64, *more).code == 0
    (residual,) = (tmp_path / "c").rglob("residual.npy")
    stored = bytearray(residual.read_bytes())
    stored[-1] ^= 1
    residual.write_bytes(stored)
    monkeypatch.setattr(FrozenLM, "load", lambda *_, **__: pytest.fail("an LM was loaded"))
    outcome = run_cli("inspect", tmp_path / "c", "--text")
    assert outcome.code == 2 and "residual.npy differs from its hash" in outcome.stderr and not outcome.stdout


def test_a_corpus_with_codes_resumes_only_with_the_same_code(run_cli: Callable, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("One sentence. Another one.")
    command = ("encode-corpus", tmp_path / "a.txt", "--out", tmp_path / "c", "--encoder", "stub", "--workers", 1, "--residual-lm", "stub")
    assert run_cli(*command, "--residual", "superposition", "--residual-dims", 64).code == 0
    assert "nothing to do" in run_cli(*command, "--residual", "superposition", "--residual-dims", 64).stderr
    for change in (("--residual", "superposition", "--residual-dims", 72), ()):
        outcome = run_cli(*command, *change)
        assert outcome.code == 2 and "residual" in outcome.stderr
    assert run_cli(*command, "--drop-text").code == 2
    text = run_cli("inspect", tmp_path / "c", "--text")
    assert text.stdout == "One sentence. Another one."
    (residual,) = (tmp_path / "c").rglob("residual.npy")
    residual.write_bytes(residual.read_bytes()[:-5])
    broken = run_cli("inspect", tmp_path / "c", "--text")
    assert broken.code == 2 and "residual.npy is damaged" in broken.stderr


def test_joined_and_selected_codes_keep_their_rows(lm: FrozenLM) -> None:
    it = reader(lm, dims=32)
    codes = it.encoder.encode(TEXTS, n_codes=[1, 1, 1, 5, 7, 3, 2, 1])
    assert Codes.join([codes.select([b]) for b in range(len(TEXTS))]).same_as(codes).all()
