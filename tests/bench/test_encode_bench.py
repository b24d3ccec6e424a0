"""`lsm bench encode`: what its rows say of made-up measurements, what it refuses, and a small run of the real thing."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lsm.bench.encode import Domain, Measured, Pairs, System, choose_systems, measure, read_domains, read_pairs, rows
from lsm.errors import UserError

SAMPLES = Path(__file__).parents[2] / "corpora" / "samples"


def test_rows_of_known_times_and_vectors() -> None:
    domains = [Domain("a", ["x"] * 4), Domain("b", ["y"] * 6)]
    pairs = [Pairs("sts", ["p", "q", "r", "s", "t", "u"], [1.0, 2.0, 3.0])]
    east, north = np.array([1.0, 0.0]), np.array([0.0, 1.0])
    steps = np.array([0.1, 0.5, 0.9])
    seconds = np.stack([np.sqrt(1 - steps**2), steps], axis=1)  # cosines with north rise with the scores
    kept = {"a": np.tile(east, (4, 1)), "b": np.tile(north, (6, 1)), "sts": np.concatenate([np.tile(north, (3, 1)), seconds])}
    other = kept | {"a": np.array([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])}
    slow = Measured("st", seconds_R={"a": [2.0, 4.0, 2.0], "b": [3.0, 1.0, 3.0]}, vectors_BD=kept)
    fast = Measured("lsm", seconds_R={"a": [1.0, 1.0, 1.0], "b": [1.5, 1.5, 1.5]}, vectors_BD=other)
    lost = Measured("st-onnx", failed="no such package")

    found = rows([slow, fast, lost], domains, pairs, limit={"a": 10.0, "b": 10.0, "all": 8.0})

    whole = {row["system"]: row for row in found if row["domain"] == "all"}
    assert whole["st"]["sentences_per_second"] == 2.0 and whole["st"]["ratio"] == 1.0 and whole["st"]["roofline_share"] == 0.25
    assert whole["lsm"]["sentences_per_second"] == 4.0 and whole["lsm"]["ratio"] == 2.0
    assert whole["lsm"]["cosine_min"] == 0.0 and whole["lsm"]["cosine_mean"] == pytest.approx(0.9)
    assert whole["lsm"]["sts_sts"] == pytest.approx(100)
    assert whole["st-onnx"]["note"] == "no such package" and "ratio" not in whole["st-onnx"]
    assert {(row["system"], row["ratio"]) for row in found if row["domain"] == "b"} == {("st", 1.0), ("lsm", 2.0)}


def test_domains_are_distinct_and_calibration_is_apart(tmp_path: Path) -> None:
    names = [str(path) for path in sorted(SAMPLES.glob("*.txt"))[:2]]
    domains, calibration = read_domains(names, 20, None)
    texts = [text for domain in domains for text in domain.texts]
    assert [len(domain.texts) for domain in domains] == [10, 10] and len(set(texts)) == 20
    for folder, name in zip(("a", "b"), names, strict=True):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x.txt").write_text(Path(name).read_text())
    alike = read_domains([str(tmp_path / folder / "x.txt") for folder in "ab"], 20, None)[0]
    assert [domain.name for domain in alike] == ["x.txt", "x.txt (2)"] and [one.texts for one in alike] == [one.texts for one in domains]
    assert calibration and not set(calibration) & set(texts)
    with pytest.raises(UserError, match="distinct sentences"):
        read_domains(names, 10**6, None)


def test_faults_are_named(tmp_path: Path) -> None:
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text('{"sentence1": "a", "sentence2": "b", "score": 1}\n{"sentence1": "a"}\n')
    with pytest.raises(UserError, match=r"pairs\.jsonl, line 2"):
        read_pairs(pairs)
    with pytest.raises(UserError, match="choose from"):
        choose_systems(["st", "st-tpu"], None)
    with pytest.raises(UserError, match="add st"):
        choose_systems(["lsm"], None)
    with pytest.raises(UserError, match="no such Python"):
        choose_systems(["st"], str(tmp_path / "python"))
    assert list(choose_systems(["st", "st-onnx"], None)) == ["st"]


_CHILD = """#!{python}
import json, sys
import numpy as np
print(json.dumps({{"versions": {{}}}}), flush=True)
for number, line in enumerate(sys.stdin):
    if number == {lasts}:
        print(json.dumps({{"failed": "MemoryError: too much"}}), flush=True)
        break
    np.save(json.loads(line)["vectors"], np.eye(2, dtype=np.float32))
    print(json.dumps({{"seconds": 1.0}}), flush=True)
"""


def _system(folder: Path, name: str, *, lasts: int) -> System:
    child = folder / f"child-{name}"
    child.write_text(_CHILD.format(python=sys.executable, lasts=lasts))
    child.chmod(0o755)
    return System(name, python=str(child), model="", threads=1, calibration=folder / "none", folder=folder)


def test_a_system_that_fails_leaves_a_row_that_says_why(tmp_path: Path) -> None:
    domains, pairs = [Domain("a", ["x", "y"])], [Pairs("p", ["x", "y"], [1.0])]
    with _system(tmp_path, "st", lasts=9) as st, _system(tmp_path, "st-onnx", lasts=1) as lost:
        measure([st, lost], domains, [], tmp_path, rounds=3)
        found = rows([st.measured, lost.measured], domains, [])
    assert [(row["system"], row.get("note")) for row in found if row["domain"] == "all"] == [
        ("st", None),
        ("st-onnx", "MemoryError: too much"),
    ]
    assert len(found[0]["rounds"]) == 3
    with _system(tmp_path, "st", lasts=1) as st, pytest.raises(UserError, match="too much"):
        measure([st], domains, pairs, tmp_path, rounds=1)


@pytest.mark.slow
@pytest.mark.real
def test_a_small_run(tmp_path: Path, run_cli: Callable[..., Any]) -> None:
    sample = sorted(SAMPLES.glob("*.txt"))[0]
    pairs = tmp_path / "pairs.jsonl"
    lines = [("a cat sleeps", "a cat is sleeping", 5), ("a cat sleeps", "a dog barks", 2), ("a cat sleeps", "taxes rise", 0)]
    pairs.write_text("".join(json.dumps({"sentence1": a, "sentence2": b, "score": score}) + "\n" for a, b, score in lines))
    out, settings = tmp_path / "out", ("--sentences", 16, "--repeats", 1, "--threads", 1, "--sts", pairs)
    assert run_cli("bench", "encode", sample, "--out", out, "--systems", "st,lsm-float32", *settings).code == 0
    results = json.loads((out / "results.json").read_text())["results"]
    assert {row["system"] for row in results["rows"]} == {"st", "lsm-float32"} and set(results["ratio_to_default"]) == {"st", "lsm-float32"}
    ours = next(row for row in results["rows"] if row["system"] == "lsm-float32")
    assert ours["cosine_min"] > 0.99999 and ours["sts_pairs"] == pytest.approx(100) and 0 < ours["roofline_share"] < 2
    assert "roofline" in (out / "encode.md").read_text() and not list(out.glob("tmp*"))
    refused = run_cli("bench", "encode", sample, "--out", out, "--window", 5)
    assert refused.code == 2 and "--window" in refused.stderr
