"""Plan-then-write: as many sentences as asked for, none twice, plans turned away from what was read, re-encoded text enters the plan."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from lsm.latent.lexical import LexicalSpace
from lsm.latent.settings import ModelSettings
from lsm.latent.transformer import LatentConfig, LatentTransformer
from lsm.lm.frozen import FrozenLM
from lsm.write.continuation import RepetitionRules, continue_document, turn_away
from lsm.write.forecast import Forecasts

DIM = 8


class LastVector:
    """A latent transformer that predicts the last vector, turned a little each time."""

    context = 16
    config = SimpleNamespace(dim=DIM, parts=[])
    mask_vector = torch.zeros(DIM)

    def __init__(self, turn: float) -> None:
        self.turn = turn
        self.seen: list[torch.Tensor] = []

    def predict_next(self, z_BSD: torch.Tensor, *, section_BS: torch.Tensor, sampling: None = None) -> torch.Tensor:
        last_BD = z_BSD[:, -1]
        self.seen.append(last_BD[0].clone())
        return torch.nn.functional.normalize(last_BD + self.turn * torch.roll(last_BD, 1, dims=-1), dim=-1)


class Speaker:
    """Words a vector by the place of its largest entry."""

    name = "speaker"
    encoder: dict[str, Any] = {}  # noqa: RUF012
    encoder_calls_per_sentence = 0.0

    def __init__(self) -> None:
        self.batches: list[int] = []

    def decode(self, z_BD: np.ndarray, *, seed: int = 0) -> list[str]:
        self.batches.append(len(z_BD))
        return [f"Word {int(z.argmax())}." for z in z_BD]

    def candidates(self, z_BD: np.ndarray, k: int, *, seed: int = 0) -> list[list[str]]:
        return [[f"Word {int(place)}." for place in np.argsort(-z)[:k]] for z in z_BD]


def start() -> np.ndarray:
    return np.eye(DIM, dtype=np.float32)[:1]


def test_all_sentences_are_worded_in_one_batch_and_none_twice() -> None:
    speaker = Speaker()
    heard: list[str] = []
    written = continue_document(LastVector(0.5), start(), speaker, 5, read=["Word 0!"], on_sentence=heard.append)
    assert speaker.batches == [5] and written.planned_ND is not None and written.planned_ND.shape == (5, DIM)
    assert len(written.texts) == 5 == len(set(written.texts)) and heard == written.texts
    assert "Word 0." not in written.texts and written.n_reworded > 0
    np.testing.assert_allclose(np.linalg.norm(written.planned_ND, axis=1), 1, rtol=1e-5)


def test_text_ends_when_nothing_new_can_be_said() -> None:
    written = continue_document(
        LastVector(0.0), start(), Speaker(), 30, rules=RepetitionRules(attempts=2, stop_after=3, largest_cosine=1.1), seed=1
    )
    assert len(written.texts) == DIM and written.n_left_out == 3 and written.plan_of_text == list(range(DIM))


def test_re_encoded_text_is_what_is_read_next() -> None:
    model, speaker = LastVector(0.5), Speaker()

    def encode(texts: Sequence[str]) -> np.ndarray:
        return np.eye(DIM, dtype=np.float32)[[int(text.split()[1][:-1]) for text in texts]]

    written = continue_document(model, start(), speaker, 4, encode=encode)
    assert speaker.batches == [1, 1, 1, 1]
    for vector, text in zip(model.seen[1:], written.texts, strict=False):
        np.testing.assert_array_equal(vector.numpy(), encode([text])[0])


class Reader(Speaker):
    """Also keeps what it was given to read before each batch."""

    def __init__(self) -> None:
        super().__init__()
        self.before: list[list[str]] = []

    def read(self, texts: Sequence[str]) -> None:
        self.before.append(list(texts))


def test_blocks_read_what_was_written_before_them() -> None:
    reader = Reader()
    written = continue_document(LastVector(0.5), start(), reader, 5, read=["Before."], block=2)
    assert reader.batches == [2, 2, 1]
    assert reader.before == [["Before.", *written.texts[:n]] for n in (0, 2, 4)]
    assert written.texts == continue_document(LastVector(0.5), start(), Speaker(), 5, read=["Before."]).texts


def test_snaps_see_what_was_read_and_what_they_give_is_read_on() -> None:
    seen: list[int] = []

    def snap(plan_D: torch.Tensor, read_SD: torch.Tensor) -> torch.Tensor:
        seen.append(len(read_SD))
        return torch.roll(plan_D, 1)

    written = continue_document(LastVector(0.0), start(), Speaker(), 4, snap=snap)
    assert written.texts == ["Word 1.", "Word 2.", "Word 3.", "Word 4."] and seen == [1, 2, 3, 4]


def test_an_ending_ends_the_plan() -> None:
    written = continue_document(LastVector(0.5), start(), Speaker(), 9, ending=lambda z_D: bool(z_D.argmax() == 2))
    assert written.planned_ND is not None and 1 < len(written.planned_ND) < 9 and written.ended
    assert written.planned_ND[-1].argmax() == 2 and all(z_D.argmax() != 2 for z_D in written.planned_ND[:-1])


def test_said_sentences_are_worded_anew_together() -> None:
    """Five equal plans: the first keeps its wording, the others get theirs in one call for each round."""

    class Counting(Speaker):
        asked: list[int] = []  # noqa: RUF012

        def candidates(self, z_BD: np.ndarray, k: int, *, seed: int = 0) -> list[list[str]]:
            self.asked.append(len(z_BD))
            return super().candidates(z_BD, k, seed=seed)

    rules = RepetitionRules(largest_cosine=1.1, attempts=DIM, stop_after=9)
    written = continue_document(LastVector(0.0), start(), Counting(), 5, rules=rules)
    assert Counting.asked == [4] and len(set(written.texts)) == 5 and written.n_reworded == 4


def test_turning_away_keeps_the_largest_cosine() -> None:
    recent = [torch.eye(DIM)[0], torch.eye(DIM)[1]]
    near = torch.nn.functional.normalize(torch.eye(DIM)[0] + 0.05 * torch.eye(DIM)[3], dim=0)
    turned = turn_away(near, recent, 0.9, seed=0)
    assert turned is not None
    assert float(turned @ recent[0]) == pytest.approx(0.9, abs=1e-5) and float(turned[3]) > 0.4
    same = turn_away(recent[0], recent, 0.9, seed=0)
    assert same is not None and float(same @ recent[0]) == pytest.approx(0.9, abs=1e-5)
    assert turn_away(torch.eye(DIM)[5], recent, 0.9, seed=0) is None and turn_away(near, [], 0.9, seed=0) is None


@pytest.mark.parametrize("decoder", ["retrieval", "prefix", "inversion"])
def test_generate_continues_a_file(workshop: Path, run_cli: Callable[..., Any], tmp_path: Path, decoder: str) -> None:
    out, report = tmp_path / "out.txt", tmp_path / "report.json"
    prompt = workshop / "docs" / "03.txt"
    result = run_cli(
        "generate", workshop / "run", "--prompt", prompt, "--sentences", 3, "--decoder", decoder, "--index", workshop / "store",
        "--adapter", workshop / "adapter", "--prompt-sentences", 4, "--out", out, "--json", report,
    )  # fmt: skip
    assert result.code == 0, result.stderr
    assert out.read_text().startswith(prompt.read_text()[:40])
    if decoder == "retrieval":
        said = result.stdout.splitlines()
        assert len(said) == 3 == len(set(said)) and all(text in (workshop / "docs" / "00.txt").read_text() for text in said)
    assert '"n_prompt_sentences": 4' in report.read_text()


@pytest.mark.parametrize("snap_to", ["none", "denoiser", "words"])
def test_generate_snaps_and_reads_the_text_so_far(workshop: Path, run_cli: Callable[..., Any], tmp_path: Path, snap_to: str) -> None:
    report = tmp_path / "report.json"
    result = run_cli(
        "generate", workshop / "run", "--prompt", workshop / "docs" / "03.txt", "--prompt-sentences", 4, "--sentences", 2, "--json", report,
        "--adapter", workshop / "adapter", "--index", workshop / "store", "--snap-to", snap_to, "--context-weight", 0.3, "--lift", 0.5,
        "--block", 1,
    )  # fmt: skip
    assert result.code == 0, result.stderr
    assert f'"snap_to": "{snap_to}"' in report.read_text() and len(result.stdout.splitlines()) > 0


def test_generate_lifts_the_words_that_the_run_forecasts(workshop: Path, run_cli: Callable[..., Any], tmp_path: Path) -> None:
    pretrained = run_cli(
        "pretrain", "--corpus", workshop / "corpus", "--out", tmp_path / "run", "--config", workshop / "latent.yaml",
        "--objectives.lexical", 1, "--lexical-lm", "stub",
    )  # fmt: skip
    assert pretrained.code == 0, pretrained.stderr
    common = ("generate", tmp_path / "run", "--prompt", workshop / "docs" / "03.txt", "--sentences", 2, "--adapter", workshop / "adapter")
    plain, none, lifted = (run_cli(*common, "--forecast", weight) for weight in (0, 1e-9, 50))
    assert plain.code == lifted.code == 0, lifted.stderr
    assert plain.stdout == none.stdout != lifted.stdout


def test_forecasts_belong_to_their_plans() -> None:
    lm = FrozenLM.load("stub")
    settings = ModelSettings(context=4, hidden=8, layers=0, heads=2)
    model = LatentTransformer(LatentConfig(dim=DIM, model=settings, lexical=LexicalSpace.of(lm)))
    assert model.lexical is not None
    model.lexical.fit(lm, ["ab", "ac", "ad", "ae"])
    forecasts = Forecasts(model)
    plans = np.eye(DIM, dtype=np.float32)[:3]
    for plan_D, bag_K in zip(plans, model.lexical.bags(lm.tokens.encode(["b", "c"])), strict=False):
        forecasts.keep(plan_D, bag_K)
    odds_BV = forecasts(plans)
    assert odds_BV.argmax(1).tolist()[:2] == [*b"bc"] and not odds_BV[2].any(), "nothing was forecast with the third"
    forecasts.foresee(plans[2], torch.eye(DIM)[:2], torch.zeros(2, dtype=torch.int64))
    torch.testing.assert_close(forecasts._bags[2], model.forecast(torch.eye(DIM)[None, :2])[0, -1])
    assert torch.equal(forecasts(3 * plans[:2]), odds_BV[:2]), "a plan's length does not matter"


def test_generate_refuses_options_that_would_do_nothing(workshop: Path, run_cli: Callable[..., Any]) -> None:
    for arguments, message in (
        (("--snap-to", "neighbours"), "needs stored sentences"),
        (("--snap", 0), "--snap-to none"),
        (("--context-weight", 0.3, "--decoder", "retrieval"), "is for --decoder prefix"),
        (("--word-temperature", -1), "must be 0 or more"),
        (("--word-temperature", 0, "--decoder", "retrieval"), "is for --decoder prefix"),
        (("--lift", 1), "needs stored sentences"),
        (("--forecast", 1), "forecasts no words"),
        (("--end",), "needs stored sentences"),
        (("--end", "--index", workshop / "store"), "too few to learn how they end"),
        (("--block", 0), "at least 1"),
    ):
        common = ("generate", workshop / "run", "--prompt", workshop / "docs" / "03.txt", "--adapter", workshop / "adapter")
        result = run_cli(*common, *arguments)
        assert result.code == 2 and message in result.stderr and len(result.stderr.splitlines()) == 1, result.stderr


def test_generate_re_encodes_and_repeats_with_its_seed(workshop: Path, run_cli: Callable[..., Any]) -> None:
    arguments = ("generate", workshop / "run", "--prompt", workshop / "docs" / "05.txt", "--prompt-sentences", 3, "--sentences", 4)
    texts = [
        run_cli(*arguments, "--decoder", "retrieval", "--corpus", workshop / "corpus", "--re-encode", "--quiet").stdout for _ in range(2)
    ]
    assert texts[0] == texts[1] and len(texts[0].splitlines()) == 4


def test_words_are_drawn_by_the_seed(workshop: Path, run_cli: Callable[..., Any]) -> None:
    def written(temperature: float, seed: int) -> str:
        outcome = run_cli(
            "generate", workshop / "run", "--prompt", workshop / "docs" / "05.txt", "--prompt-sentences", 3, "--sentences", 3,
            "--adapter", workshop / "adapter", "--word-temperature", temperature, "--seed", seed,
        )  # fmt: skip
        assert outcome.code == 0, outcome.stderr
        return outcome.stdout

    assert written(0.7, 0) == written(0.7, 0) != written(0.7, 1)
    assert written(0, 0) != written(0.7, 0)


def test_invert_words_a_text_and_a_file(workshop: Path, run_cli: Callable[..., Any], tmp_path: Path) -> None:
    common = ("--encoder", "stub", "--index", workshop / "store", "--adapter", workshop / "adapter")
    result = run_cli("invert", "--text", "The crow sings by the sea.", "--decoder", "retrieval", *common)
    assert (result.code, result.stdout.strip()) == (0, "The crow sings by the sea."), result.stderr
    from lsm.corpus.reader import Corpus

    vectors = np.asarray(Corpus.open(workshop / "corpus").vectors(0))
    np.save(tmp_path / "vectors.npy", vectors)
    result = run_cli("invert", tmp_path / "vectors.npy", "--decoder", "prefix", "--limit", 3, *common)
    assert result.code == 0 and len(result.stdout.split("\n")) == 4, result.stderr


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((2, 64), np.float32), "vector 0 holds zeros only"),
        (np.full((2, 64), np.nan, np.float32), "vector 0 holds NaN"),
        (np.ones((2, 5), np.float32), r"shape \[2, 5\]"),
        (np.ones((2, 64), np.int64), "floats of shape"),
    ],
)
def test_invert_refuses_what_it_cannot_read(run_cli: Callable[..., Any], tmp_path: Path, array: np.ndarray, message: str) -> None:
    np.save(tmp_path / "bad.npy", array)
    result = run_cli("invert", tmp_path / "bad.npy", "--encoder", "stub", "--adapter", "none")
    assert result.code == 2 and len(result.stderr.splitlines()) == 1
    import re

    assert re.search(message, result.stderr), result.stderr


def test_invert_and_generate_name_their_faults(workshop: Path, run_cli: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "pickled.npy").write_bytes(b"\x80\x04K\x01.")
    for arguments, message in (
        (("invert", "--encoder", "stub"), "either a .npy FILE or --text"),
        (("invert", tmp_path / "nothing.npy", "--encoder", "stub"), "does not exist"),
        (("invert", tmp_path / "pickled.npy", "--encoder", "stub"), "not a .npy file"),
        (("generate", tmp_path, "--prompt", "-"), "holds no latent transformer"),
        (("generate", workshop / "run", "--prompt", tmp_path / "nothing.txt"), "nothing.txt"),
        (("build-index", "--corpus", tmp_path / "nothing", "--out", tmp_path / "x"), "does not exist"),
        (("train-decoder", "--corpus", workshop / "corpus", "--out", tmp_path / "x", "--lm", "no-such-lm"), "no-such-lm"),
    ):
        result = run_cli(*arguments)
        assert result.code == 2 and message in result.stderr and len(result.stderr.splitlines()) == 1, result.stderr
