"""Choosing an ending: known answers, the LM's own likelihood, and files that hold no stories."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from lsm.bench import cloze
from lsm.errors import UserError
from lsm.lm.frozen import FrozenLM

AXES = {"north": 0, "south": 1, "east": 2}
STORIES = [
    cloze.Story(["north", "south"], ["east", "south"], 1),
    cloze.Story(["south", "north", "north"], ["north", "south"], 0),
    cloze.Story(["east"], ["south", "east"], 0),
]


def encode(texts: Sequence[str]) -> np.ndarray:
    return np.stack([(2 + AXES[text]) * np.eye(3, dtype=np.float32)[AXES[text]] for text in texts])


def test_the_nearer_ending_is_chosen() -> None:
    read: list[np.ndarray] = []

    def one_turn_on(z_BSD: np.ndarray) -> np.ndarray:
        read.append(z_BSD)
        return np.roll(z_BSD, 1, axis=-1)

    leads = cloze.leads_by_vectors(STORIES, encode, one_turn_on)
    # After south comes east, after north south, after east north (neither ending: a tie of the wrong kind).
    np.testing.assert_allclose(leads["model"], [-1, -1, 0])
    assert sorted(np.unique(read[0])) == [0, 2, 3, 4]  # what is read is as the encoder gives it
    np.testing.assert_allclose(leads["last vector"], [1, 1, -1])
    assert read[0].shape == (3, 3, 3) and not read[0][2, 1:].any()  # endings are not read
    rows = {row["predictor"]: row for row in cloze.score(leads, resamples=100)}
    assert rows["model"]["accuracy"] == pytest.approx(1 / 6) and rows["last vector"]["accuracy"] == pytest.approx(2 / 3)
    assert rows["last vector"]["lead_accuracy"] == pytest.approx(-1 / 2) and rows[cloze.CHANCE]["accuracy"] == 0.5
    assert rows["model"]["intervals"]["lead_accuracy"] == [0, 0]


def test_likelihood_is_the_lms() -> None:
    lm = FrozenLM.load("stub")
    story = cloze.Story(["It rained.", "We ran."], ["We got wet.", "No."], 0)
    leads = cloze.leads_by_likelihood([story], lm)

    def log_p(text: str, read: int) -> tuple[float, int]:
        ids = torch.tensor(lm.tokens.encode([text]))
        log_TV = lm.logits(lm.final_hidden(lm.embed(ids))).log_softmax(-1)[0]
        return float(log_TV[read - 1 : -1].gather(1, ids[0, read:, None]).sum()), ids.shape[1] - read

    read = len("It rained. We ran.")
    (right, n_right), (wrong, n_wrong) = (log_p(f"It rained. We ran. {ending}", read) for ending in story.endings)
    assert leads["LM stub, likelihood"][0] == pytest.approx(right - wrong, abs=1e-3)
    assert leads["LM stub, likelihood a token"][0] == pytest.approx(right / n_right - wrong / n_wrong, abs=1e-4)


def write(path: Path, *rows: object) -> Path:
    path.write_bytes(gzip.compress(b"".join((row if isinstance(row, bytes) else json.dumps(row).encode()) + b"\n" for row in rows)))
    return path


GOOD = {"sentences": ["a"], "endings": ["b", "c"], "right": 2}


def test_stories_are_read_up_to_the_limit(tmp_path: Path) -> None:
    path = write(tmp_path / "stories.jsonl.gz", GOOD, GOOD, b"never read")
    assert cloze.read_stories(path, limit=2) == [cloze.Story(["a"], ["b", "c"], 1)] * 2


WRONG = [
    {"right": 3}, {"right": 1.0}, {"right": float("inf")}, {"endings": ["b"]}, {"endings": "bc"},
    {"sentences": []}, {"sentences": [1]}, {"sentences": [" "]}, {"sentences": "a b"}, {"sentences": ["\ud800"]},
]  # fmt: skip
BAD = [b"{", b"[]", b"\xff\xfe", {}, b"[" * 100_000, *(GOOD | wrong for wrong in WRONG)]


@pytest.mark.parametrize("row", BAD)
def test_what_is_no_story_is_named(tmp_path: Path, row: object) -> None:
    with pytest.raises(UserError, match=r"stories\.jsonl\.gz"):
        cloze.read_stories(write(tmp_path / "stories.jsonl.gz", GOOD, row))


def test_a_missing_empty_or_cut_file_is_named(tmp_path: Path) -> None:
    cut = write(tmp_path / "cut.jsonl.gz", *[GOOD | {"sentences": [str(n)]} for n in range(500)])
    cut.write_bytes(cut.read_bytes()[:-40])
    (tmp_path / "empty.jsonl").touch()
    flipped = bytearray(write(tmp_path / "flipped.jsonl.gz", GOOD, GOOD, GOOD).read_bytes())
    flipped[20:30] = bytes(255 - byte for byte in flipped[20:30])
    (tmp_path / "flipped.jsonl.gz").write_bytes(flipped)
    for name in ("nowhere.jsonl", "empty.jsonl", "cut.jsonl.gz", "flipped.jsonl.gz"):
        with pytest.raises(UserError, match=name):
            cloze.read_stories(tmp_path / name)


def test_evaluate_chooses_endings(run_cli: Callable, model_folder: Path, held_out_corpus: Path, tmp_path: Path) -> None:
    story = {"sentences": ["The law was old.", "The union wrote a new law."], "endings": ["It rained.", "The law held."], "right": 2}
    stories = write(tmp_path / "stories.jsonl.gz", story, story, story)
    where = tmp_path / "scores.json"
    asked = ["evaluate", model_folder, "--corpus", held_out_corpus, "--resamples", 0, "--shuffled-positions", 0]
    outcome = run_cli(*asked, "--cloze", stories, "--cloze-stories", 2, "--cloze-lm", "stub", "--json", where)
    assert outcome.code == 0, outcome.stderr
    rows = json.loads(where.read_text())["results"]["cloze"]
    assert {"model", "last vector", "chance", "LM stub, likelihood"} < {row["predictor"] for row in rows} and rows[0]["n"] == 2
    assert run_cli(*asked, "--cloze-lm", "stub").code == 2
    refused = run_cli(*asked, "--cloze", stories, "--encoder", "wordllama")
    assert refused.code == 2 and "the model reads those of" in refused.stderr
    for wrong in (["--cloze", tmp_path / "nowhere.jsonl"], ["--rollout", 400], ["--context-curve", 900]):
        early = run_cli(*asked, *wrong)
        assert early.code == 2 and "scoring" not in early.stderr
