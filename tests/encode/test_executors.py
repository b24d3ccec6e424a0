"""Many tasks make the corpus of one process, bit for bit, whoever runs them; what was killed goes on, what differs is refused."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from lsm.commands.encode_corpus import Options, prepared
from lsm.corpus.standing import shard_states
from lsm.encode.run import EncodeJob, encode_corpus
from lsm.encode.tasks import Team, begin, finish, run_task
from lsm.errors import UserError
from lsm.lock import only_writer, writer_of_job

needs_datatrove = pytest.mark.skipif(find_spec("datatrove") is None, reason="datatrove is not installed (lsm[datatrove])")
needs_ray = pytest.mark.skipif(find_spec("ray") is None or find_spec("datatrove") is None, reason="ray is not installed (lsm[ray])")


@pytest.fixture
def documents(tmp_path: Path) -> Path:
    """A file of 40 documents, 153 sentences: nine shards of at most 20."""
    return write_documents(tmp_path / "documents.jsonl", 40)


def write_documents(path: Path, n: int, first: int = 0) -> Path:
    generator = np.random.default_rng(first)
    lengths = {i: 1 + i % 7 for i in range(first, first + n)}
    texts = [" ".join(f"Sentence {k} of document {i} says {generator.integers(10**9)}." for k in range(n)) for i, n in lengths.items()]
    path.write_text("".join(json.dumps({"id": f"d{first + i}", "text": text}) + "\n" for i, text in enumerate(texts)))
    return path


def job_of(out: Path, documents: Path, **options: object) -> tuple[EncodeJob, Iterator]:
    arguments = {"encoder": "stub", "shard_rows": 20, "workers": 1, "quiet": True, **options}
    return prepared(Options(inputs=(str(documents),), out=out, **arguments))  # type: ignore[arg-type,return-value]


def run(team: Team, rank: int, out: Path, documents: Path, **options: object) -> None:
    run_task(*job_of(out, documents, **options), team, rank)


def whole(out: Path, documents: Path, n_tasks: int, **options: object) -> dict:
    """A job from begin to end, its tasks one after another, the last first."""
    team = Team.new(out, n_tasks)
    for rank in reversed(range(n_tasks)):
        run(team, rank, out, documents, **options)
    return finish(out, team)


def bytes_of(folder: Path) -> dict[str, str]:
    files = (file for file in folder.rglob("*") if file.is_file())
    return {file.relative_to(folder).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) * 2 // 3] ^= 1
    file.write_bytes(data)


@pytest.fixture
def one(tmp_path: Path, documents: Path) -> dict[str, str]:
    """The bytes that one process writes."""
    encode_corpus(*job_of(tmp_path / "one", documents))
    return bytes_of(tmp_path / "one")


def test_any_number_of_tasks_makes_the_corpus_of_one_process(tmp_path: Path, documents: Path, one: dict[str, str]) -> None:
    results = whole(tmp_path / "three", documents, 3)
    assert bytes_of(tmp_path / "three") == one
    assert results["n_documents"] == 40 and results["n_sentences_written"] == results["n_sentences"]
    n_shards = results["n_shards"]
    assert whole(tmp_path / "many", documents, n_shards + 1)["n_shards"] == n_shards  # one has nothing to do
    assert bytes_of(tmp_path / "many") == one


def test_what_one_number_of_tasks_left_another_goes_on_with(tmp_path: Path, documents: Path, one: dict[str, str]) -> None:
    out, team = tmp_path / "c", Team.new(tmp_path / "c", 3)
    run(team, 1, out, documents)
    done = {path: path.stat().st_mtime_ns for path in out.glob("shards/*/done.json")}
    assert 0 < len(done) < len([name for name in one if name.endswith("done.json")])
    with pytest.raises(UserError, match=r"tasks 0, 2 of 3 ended without an answer .* run the same command again"):
        finish(out, team)
    assert not (out / "manifest.json").exists()
    whole(out, documents, 2)
    assert bytes_of(out) == one
    assert {path: path.stat().st_mtime_ns for path in done} == done
    assert encode_corpus(*job_of(out, documents))["n_sentences_written"] == 0
    assert bytes_of(out) == one


def test_a_shard_that_went_after_its_task_ended_is_missed_and_made_again(tmp_path: Path, documents: Path, one: dict[str, str]) -> None:
    out, team = tmp_path / "c", Team.new(tmp_path / "c", 2)
    for rank in (0, 1):
        run(team, rank, out, documents)
    shutil.rmtree(out / "shards" / "00003")
    with pytest.raises(
        UserError, match=r"1 of 9 shards are missing or damaged \(the first: 00003, of task 1\).* run the same command again"
    ):
        finish(out, team)
    whole(out, documents, 2)
    assert bytes_of(out) == one


def test_tasks_that_read_different_input_get_no_manifest(tmp_path: Path, documents: Path) -> None:
    out, team = tmp_path / "c", Team.new(tmp_path / "c", 2)
    run(team, 0, out, documents)
    lines = documents.read_text().splitlines(keepends=True)
    documents.write_text("".join([*lines[:-1], json.dumps({"id": "d39", "text": "Another text."}) + "\n"]))
    with contextlib.suppress(UserError):  # where the last shard was task 0's, task 1 finds it out itself
        run(team, 1, out, documents)
    with pytest.raises(UserError, match=r"read different input|without an answer"):
        finish(out, team)
    assert not (out / "manifest.json").exists()


def test_shards_of_other_input_get_no_manifest(tmp_path: Path, documents: Path) -> None:
    """Two jobs on a file system whose locks keep nobody apart: the content of the shards still does."""
    out, team = tmp_path / "c", Team.new(tmp_path / "c", 2)
    for rank in (0, 1):
        run(team, rank, out, documents)
    encode_corpus(*job_of(tmp_path / "other", write_documents(tmp_path / "other.jsonl", 40, first=100)))
    shutil.rmtree(out / "shards" / "00002")
    shutil.copytree(tmp_path / "other" / "shards" / "00002", out / "shards" / "00002")
    with pytest.raises(UserError, match="its shards were made of other input"):
        finish(out, team)


def test_changed_input_and_settings_are_refused(tmp_path: Path, documents: Path) -> None:
    out = tmp_path / "c"
    whole(out, documents, 2)
    before = bytes_of(out)
    with pytest.raises(UserError, match="differs from what shard 00000"):
        whole(out, write_documents(tmp_path / "other.jsonl", 40, first=100), 2)
    with pytest.raises(UserError, match=r"other settings \[[0-9a-f]{16}\] than now"):
        whole(out, documents, 2, shard_rows=30)
    assert bytes_of(out) == before


def test_append_by_tasks(tmp_path: Path, documents: Path) -> None:
    more = write_documents(tmp_path / "more.jsonl", 20, first=40)
    for name in ("one", "two"):
        encode_corpus(*job_of(tmp_path / name, documents))
    encode_corpus(*job_of(tmp_path / "one", more, append=True))
    whole(tmp_path / "two", more, 2, append=True)
    assert bytes_of(tmp_path / "two") == bytes_of(tmp_path / "one")
    assert whole(tmp_path / "two", more, 2, append=True)["n_documents_present_before"] == 20  # and no empty stage stays in the plan
    assert bytes_of(tmp_path / "two") == bytes_of(tmp_path / "one")


def test_tasks_share_the_folder_and_nobody_else_may_enter(tmp_path: Path) -> None:
    begun: list[str] = []

    def enter(job: str) -> contextlib.AbstractContextManager[None]:
        return writer_of_job(tmp_path, job, lambda: begun.append(job), patience_seconds=0.1)

    with enter("a"), enter("a"):
        with pytest.raises(UserError, match="another process"), enter("b"):
            pass
        with pytest.raises(UserError, match="another process"), only_writer(tmp_path):
            pass
    assert begun == ["a"] and not (tmp_path / ".lock").exists()
    with only_writer(tmp_path), pytest.raises(UserError, match="another process"), enter("a"):
        pass
    with enter("b"):
        assert begun == ["a", "b"]


def test_a_lock_dies_with_its_task(tmp_path: Path) -> None:
    script = "import sys, time; from pathlib import Path; from lsm.lock import writer_of_job\n"
    script += "with writer_of_job(Path(sys.argv[1]), 'a', lambda: None, patience_seconds=1): print('in', flush=True); time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "in\n"
    with pytest.raises(UserError, match="another process"), writer_of_job(tmp_path, "b", lambda: None, patience_seconds=0):
        pass
    process.kill()
    process.communicate()
    assert (tmp_path / ".lock").exists()
    with writer_of_job(tmp_path, "b", lambda: None, patience_seconds=0):
        pass


def test_no_locks_in_the_file_system_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(descriptor: int, kind: int) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr("lsm.lock.fcntl.flock", refuse)
    with pytest.raises(UserError, match=r"no file locks \(Function not implemented\)"), only_writer(tmp_path):
        pass


def test_half_written_shards_of_others_stay_while_the_job_lives(tmp_path: Path, documents: Path, one: dict[str, str]) -> None:
    out, team = tmp_path / "c", Team.new(tmp_path / "c", 2)
    job, _ = job_of(out, documents)
    with writer_of_job(out, team.job, lambda: begin(job, team), patience_seconds=1):  # task 1 is at work
        half = out / "shards" / "00001.1-abc.partial"
        half.mkdir(parents=True)
        run(team, 0, out, documents)
        assert half.exists()
    whole(out, documents, 2)
    assert bytes_of(out) == one


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--tasks", 4], "--tasks 4 needs --executor"),
        (["--executor", "slurm"], "--executor slurm needs --partition"),
        (["--executor", "ray", "--partition", "cpu"], "--partition belongs to --executor slurm"),
        (["--executor", "slurm", "--partition", "a", "--sbatch", "long"], "write KEY=VALUE"),
    ],
)
def test_options_that_do_not_fit(run_cli: Callable, tmp_path: Path, documents: Path, options: list, message: str) -> None:
    code, _, errors = run_cli("encode-corpus", documents, "--out", tmp_path / "c", *options)
    assert code == 2 and message in errors, errors
    assert not (tmp_path / "c").exists()


def command(out: Path, documents: Path, *options: object) -> list[str]:
    words = ["encode-corpus", documents, "--out", out, "--encoder", "stub", "--shard-rows", 20, "--workers", 1, *options]
    return [str(word) for word in words]


def test_a_task_says_the_same_of_the_input_however_it_finds_the_shards(tmp_path: Path, documents: Path, one: dict[str, str]) -> None:
    """Task 0 sees shards 1, 2 and 4 broken or missing; task 1, which comes later, sees 2 and 4 as they are made."""
    out, team = tmp_path / "c", Team.new(tmp_path / "c", 2)
    encode_corpus(*job_of(out, documents))
    for name in ("manifest.json", "documents.parquet"):
        (out / name).unlink()
    flip(out / "shards" / "00001" / "sentences.parquet")
    flip(out / "shards" / "00002" / "documents.parquet")
    shutil.rmtree(out / "shards" / "00004")
    for rank in (0, 1):
        run(team, rank, out, documents)
        assert [index for index, state in enumerate(shard_states(out)) if not state.done] == ([1] if rank == 0 else [])
    assert finish(out, team)["n_sentences_written"] > 0
    assert bytes_of(out) == one


def test_a_shard_that_stays_damaged_gets_no_manifest(tmp_path: Path, documents: Path, one: dict[str, str]) -> None:
    out, team = tmp_path / "c", Team.new(tmp_path / "c", 2)
    encode_corpus(*job_of(out, documents))
    flip(out / "shards" / "00001" / "semantic.npy")
    run(team, 0, out, documents)
    shutil.copy(team.report(0), team.report(1))
    with pytest.raises(UserError, match=r"1 of 9 shards are missing or damaged \(the first: 00001, of task 1\)"):
        finish(out, team)
    run(team, 1, out, documents)
    finish(out, team)
    assert bytes_of(out) == one


def test_each_call_by_tasks_mends_its_own_shards(tmp_path: Path, documents: Path) -> None:
    out, more = tmp_path / "c", write_documents(tmp_path / "more.jsonl", 20, first=40)
    encode_corpus(*job_of(out, documents))
    encode_corpus(*job_of(out, more, append=True))
    before = bytes_of(out)
    last = sorted((out / "shards").iterdir())[-1]
    for shard in (out / "shards" / "00001", last):
        flip(shard / "documents.parquet")
    with pytest.raises(UserError, match=rf"more\.jsonl \(with --append\) has lost 1 shards \({last.name}\)"):
        whole(out, documents, 2)
    whole(out, more, 2, append=True)
    assert bytes_of(out) == before


def test_a_manifest_that_is_what_it_must_be_is_not_written_again(
    tmp_path: Path, documents: Path, one: dict[str, str], capsys: pytest.CaptureFixture
) -> None:
    out = Path(shutil.copytree(tmp_path / "one", tmp_path / "c"))
    kept = (out / "manifest.json").stat().st_ino
    assert whole(out, documents, 2)["n_sentences_written"] == 0 and "nothing to do" in capsys.readouterr().err
    assert (out / "manifest.json").stat().st_ino == kept
    (out / "documents.parquet").unlink()
    whole(out, documents, 2)
    assert bytes_of(out) == one


def test_tasks_wait_for_the_first_however_long_it_begins(tmp_path: Path) -> None:
    script = "import sys, time; from pathlib import Path; from lsm.lock import writer_of_job\n"
    script += "def begin(): print('in', flush=True); time.sleep(1)\n"
    script += "with writer_of_job(Path(sys.argv[1]), 'a', begin, patience_seconds=0): pass"
    first = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert first.stdout is not None and first.stdout.readline() == "in\n"
    with pytest.raises(UserError, match="another process"), writer_of_job(tmp_path, "b", lambda: None, patience_seconds=0):
        pass
    with writer_of_job(tmp_path, "a", lambda: None, patience_seconds=0.5):
        pass
    assert first.wait() == 0


@needs_datatrove
def test_four_processes_by_datatrove(run_cli: Callable, tmp_path: Path, documents: Path, one: dict[str, str]) -> None:
    out = tmp_path / "four"
    code, printed, errors = run_cli(*command(out, documents, "--executor", "datatrove-local", "--tasks", 4))
    assert code == 0 and "40 documents" in printed, errors
    assert bytes_of(out) == one and not (tmp_path / "four.tasks").exists()
    assert run_cli("inspect", out, "--verify").code == 0
    code, _, errors = run_cli(
        *command(out, write_documents(documents, 40, first=100), "--executor", "datatrove-local", "--tasks", 2, "--quiet")
    )
    assert code == 2 and "differs from what shard 00000" in errors and len(errors.splitlines()) == 1
    assert bytes_of(out) == one and not (tmp_path / "four.tasks").exists()


@needs_datatrove
def test_a_flipped_byte_is_mended_by_another_number_of_tasks(
    run_cli: Callable, tmp_path: Path, documents: Path, one: dict[str, str]
) -> None:
    out = tmp_path / "c"
    assert run_cli(*command(out, documents, "--executor", "datatrove-local", "--tasks", 3, "--quiet")).code == 0
    flip(out / "shards" / "00004" / "semantic.npy")
    kept = {path: path.stat().st_ino for path in out.glob("shards/*/done.json") if path.parent.name != "00004"}
    code, _, errors = run_cli(*command(out, documents, "--executor", "datatrove-local", "--tasks", 2))
    assert code == 0 and "shard 00004 of" in errors and "semantic.npy differs from its hash" in errors, errors
    assert bytes_of(out) == one
    assert {path: path.stat().st_ino for path in kept} == kept


@needs_datatrove
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow)])
def test_signals_end_the_tasks_and_leave_a_corpus_to_go_on_with(tmp_path: Path, number: int, code: int) -> None:
    documents, out = write_documents(tmp_path / "many.jsonl", 2000), tmp_path / "c"
    words = command(out, documents, "--encoder", "stub-slow", "--executor", "datatrove-local", "--tasks", 2, "--quiet")
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)  # where it is ignored, a child would ignore it too
    process = subprocess.Popen([sys.executable, "-m", "lsm", *words], stderr=subprocess.PIPE, text=True, start_new_session=True)
    signal.signal(signal.SIGINT, handler)
    while {int(done.parent.name) % 2 for done in out.glob("shards/?????/done.json")} != {0, 1}:
        assert process.poll() is None
        time.sleep(0.01)
    os.killpg(process.pid, number)  # as a terminal does
    _, errors = process.communicate(timeout=60)
    assert process.returncode == code
    assert len(errors.splitlines()) == 1 and "what was finished is kept: resume with the same command" in errors
    assert not (out / ".lock").exists() and not list(out.rglob("*.partial")) and not (tmp_path / "c.tasks").exists()
    assert not [state.problem for state in shard_states(out) if state.problem]


@needs_datatrove
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("victim", ["task", pytest.param("coordinator", marks=pytest.mark.slow)])
def test_kill_9_and_the_same_command_again(tmp_path: Path, documents: Path, victim: str) -> None:
    encode_corpus(*job_of(tmp_path / "slow-one", documents, encoder="stub-slow"))
    out = tmp_path / "c"
    words = command(out, documents, "--encoder", "stub-slow", "--executor", "datatrove-local", "--tasks", 2)
    process = subprocess.Popen([sys.executable, "-m", "lsm", *words], stderr=subprocess.PIPE, text=True)
    while len(list(out.glob("shards/*/done.json"))) < 2:
        assert process.poll() is None
        time.sleep(0.01)
    tasks = _children(process.pid)
    os.kill(process.pid if victim == "coordinator" else tasks[-1], signal.SIGKILL)
    _, errors = process.communicate(timeout=60)
    assert not (out / "manifest.json").exists()
    if victim == "task":
        assert process.returncode == 2 and "of 2 ended without an answer (killed" in errors
    deadline = time.monotonic() + 5
    while any(map(_alive, tasks)) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not any(map(_alive, tasks))
    again = subprocess.run([sys.executable, "-m", "lsm", *words], capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    assert bytes_of(out) == bytes_of(tmp_path / "slow-one")


SBATCH = """#!/bin/bash
# A Slurm of one machine: an array's tasks run at once, side by side, before the job's number is printed.
echo "$@" >> "$FAKE_SLURM/calls"
script="${@: -1}"
last=$(sed -n 's/^#SBATCH --array=0-\\([0-9]*\\).*/\\1/p' "$script")
name=$(sed -n 's/^#SBATCH --job-name=//p' "$script")
for i in $(seq 0 $last); do
    [[ "$name-$i" == "$FAKE_SLURM_LOSES" ]] && continue
    SLURM_ARRAY_TASK_ID=$i SLURM_JOB_ID=7 SLURM_NODELIST=here RUN_OFFSET=0 bash "$script" >> "$FAKE_SLURM/$name-$i.out" 2>&1 &
done
wait
echo "Submitted batch job 7"
"""
SRUN = """#!/bin/bash
while [[ "$1" == -* ]]; do [[ "$1" == -n ]] && shift; shift; done
exec "$@"
"""


@pytest.fixture
def fake_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Commands of Slurm's names that run the scripts on this machine."""
    folder = tmp_path / "slurm"
    folder.mkdir()
    for name, text in {"sbatch": SBATCH, "srun": SRUN, "scontrol": '#!/bin/bash\necho "here"\n'}.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setenv("FAKE_SLURM", str(folder))
    monkeypatch.setenv("FAKE_SLURM_LOSES", "")
    return folder


@pytest.mark.slow
@needs_datatrove
def test_slurm_scripts_do_their_work(
    run_cli: Callable, tmp_path: Path, documents: Path, one: dict[str, str], fake_slurm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No cluster: the scripts, pickles and environment variables that datatrove hands to Slurm, run by a stand-in for sbatch."""
    out = tmp_path / "c"
    monkeypatch.chdir(tmp_path)
    words = command(out, Path("documents.jsonl"), "--executor", "slurm", "--tasks", 2, "--partition", "cpu", "--sbatch", "account=abc")
    code, printed, errors = run_cli(*words, "--dry-run")
    assert code == 0 and "nothing was submitted" in printed and not out.exists() and not (fake_slurm / "calls").exists(), errors
    (script,) = (tmp_path / "c.tasks").glob("*/encode/launch_script.slurm")
    text = script.read_text()
    for line in ("array=0-1", "partition=cpu", "account=abc", "time=24:00:00", "cpus-per-task=1", "mem-per-cpu=2G"):
        assert f"#SBATCH --{line}\n" in text
    assert "qos" not in text and f"export PATH={Path(sys.executable).parent}" in text

    monkeypatch.setenv("FAKE_SLURM_LOSES", "lsm-encode-1")
    assert run_cli(*words).code == 0
    assert "task 1 of 2 ended without an answer" in (fake_slurm / "lsm-finish-0.out").read_text()
    assert not (out / "manifest.json").exists() and list(out.glob("shards/*/done.json"))

    monkeypatch.setenv("FAKE_SLURM_LOSES", "")
    assert run_cli(*words).code == 0
    assert "40 documents" in (fake_slurm / "lsm-finish-0.out").read_text()
    assert bytes_of(out) == one
    assert sum("--dependency=afterany:7" in call for call in (fake_slurm / "calls").read_text().splitlines()) == 2


@pytest.mark.slow
@needs_ray
def test_two_tasks_on_ray(run_cli: Callable, tmp_path: Path, documents: Path, one: dict[str, str]) -> None:
    code, _, errors = run_cli(*command(tmp_path / "ray", documents, "--executor", "ray", "--tasks", 2, "--memory-gb", 1))
    assert code == 0, errors
    assert bytes_of(tmp_path / "ray") == one


def _children(parent: int) -> list[int]:
    """Processes that `parent` encodes with: not the helper that multiprocessing itself starts first."""
    found = [int(pid) for task in Path(f"/proc/{parent}/task").iterdir() for pid in (task / "children").read_text().split()]
    return [pid for pid in found if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
