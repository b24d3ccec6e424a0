"""The folder that the cases of crash_test.py share, and what is said of each of them."""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bad_input import environment, hashes, lsm, words

N_DOCUMENTS, SHARD_ROWS, PAGE_KIB = 400, 400, 4
WHOLE, INPUT = "whole", "documents.jsonl"
OPTIONS = f"--encoder stub-slow --shard-rows {SHARD_ROWS} --workers 1"
LONG = "long.jsonl"
SMALL = f"{INPUT} --limit-documents 100 --encoder stub --shard-rows {SHARD_ROWS} --workers 1"


@dataclass
class Row:
    """One case: what was done, what the person saw, and what came of it."""

    case: str
    done: str
    exit_code: int | str
    line: str
    verify: str
    again: str
    faults: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class World:
    """The folder that all cases share, with the unbroken corpora to compare with."""

    folder: Path
    options: argparse.Namespace
    whole: dict[str, str]
    small: dict[str, str]
    long: dict[str, str]

    def encode(self, out: str, *, what: str = INPUT, more: str = "") -> str:
        return f"encode-corpus {what} --out {out} {OPTIONS} {more}"

    def copy(self, name: str, source: str = WHOLE) -> Path:
        return Path(shutil.copytree(self.folder / source, self.folder / name))

    def interrupted(self, name: str, *, shards: int = 3) -> Path:
        """A corpus whose making was killed when so many shards were there."""
        process = start(self.encode(name), self.folder)
        wait_for(self.folder / name / "shards" / f"{shards - 1:05d}" / "done.json", process)
        process.kill()
        process.wait()
        return self.folder / name


def prepared(folder: Path, options: argparse.Namespace) -> World:
    """The input, and the corpora that an unbroken run makes of it."""
    write_documents(folder / INPUT, N_DOCUMENTS)
    write_documents(folder / LONG, 1000, characters=400)
    world = World(folder, options, {}, {}, {})
    commands = {WHOLE: world.encode(WHOLE), "small": f"encode-corpus {SMALL} --out small", "long": world.encode("long", what=LONG)}
    for name, command in commands.items():
        if (finished := lsm(command, folder)).returncode:
            raise SystemExit(f"the unbroken run failed: {finished.stderr}")
        getattr(world, name).update(hashes(folder / name))
    return world


def write_documents(path: Path, n: int, *, characters: int = 0) -> None:
    """Documents of 1 to 11 sentences, each sentence with its number and filled up to about `characters`."""
    filler = "and so it went on " * (characters // 18)
    texts = ("".join(f"Sentence {k} of document {i} stands here {filler}. " for k in range(1 + i % 11)) for i in range(n))
    path.write_text("".join(json.dumps({"id": f"d{i}", "text": text}) + "\n" for i, text in enumerate(texts)), encoding="utf-8")


def repaired(world: World, case: str, done: str, folder: Path, *, names: Sequence[str]) -> Row:
    """Damage was done to a finished corpus: what verify says, and what the same command makes of it."""
    verify, before = verified(folder), shards(folder)
    faults = [f"verify does not name {name}" for name in names if name not in verify]
    again, wrong = repeated(world, world.encode(folder.name), folder.name, world.whole)
    untouched = [name for name, when in shards(folder).items() if when == before.get(name)]
    expected = [name for name in sorted({name.split("/")[1] for name in world.whole if "shards" in name}) if name not in verify]
    if touched := sorted(set(expected) - set(untouched)):
        wrong.append(f"whole shards were made again: {', '.join(touched)}")
    return faulted(Row(case, done, "", "", verify, again), *faults, *wrong)


def finished_row(world: World, row: Row, command: str, out: str, faults: Sequence[str], *, kept: dict[str, int]) -> Row:
    row.again, wrong = repeated(world, command, out, world.long, kept=kept)
    return faulted(row, *faults, *wrong)


def repeated(
    world: World, command: str, out: str, expected: dict[str, str], *, kept: dict[str, int] | None = None
) -> tuple[str, list[str]]:
    """The same command again: exit code, sentences encoded, and whether the bytes are the unbroken run's; and what is wrong with it.

    Args:
        kept: shards by name and time of their markers, which must still stand.
    """
    report = world.folder / f"{out.replace('/', '-')}.report.json"
    finished = lsm(f"{command} --json {report}", world.folder)
    if finished.returncode:
        return f"exit {finished.returncode}: {one_line(finished.stderr)}", [f"the same command ends with {finished.returncode}"]
    results = json.loads(report.read_text())["results"]
    here = hashes(world.folder / out)
    different = sorted(name for name in here.keys() | expected.keys() if here.get(name) != expected.get(name))
    faults = [f"differs from the unbroken corpus: {', '.join(different[:6])}"] if different else []
    lost = [name for name, when in (kept or {}).items() if shards(world.folder / out).get(name) != when]
    faults += [f"finished shards made again: {', '.join(lost)}"] if lost else []
    same = "DIFFERS" if different else "bitwise"
    return f"exit 0, {same}, {results['n_sentences_written']:,} of {results['n_sentences']:,} sentences encoded", faults


def verified(folder: Path) -> str:
    """What `lsm inspect --verify` says: `whole`, or its line."""
    finished = lsm(f"inspect {folder.name} --verify", folder.parent)
    return "whole" if finished.returncode == 0 else f"exit {finished.returncode}: {one_line(finished.stderr)}"


def refusal_faults(code: int, stderr: str, name: str) -> list[str]:
    """What about a refusal breaks the promise."""
    faults = [] if code == 2 else [f"exit code {code}, not 2"]
    faults += ["not one line on stderr"] if len(stderr.strip().splitlines()) != 1 else []
    return faults + ([] if name in stderr.lower() else [f"the line does not name {name}"])


def shards(corpus: Path) -> dict[str, int]:
    """When each finished shard was made, by name."""
    markers = [marker for marker in corpus.glob("shards/*/done.json") if marker.parent.suffix != ".partial"]
    return {marker.parent.name: marker.stat().st_mtime_ns for marker in markers}


def start(command: str, folder: Path) -> subprocess.Popen[str]:
    none = subprocess.DEVNULL
    return subprocess.Popen(words(command), cwd=folder, env=environment({}), stdin=none, stdout=none, stderr=subprocess.PIPE, text=True)


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    while not path.exists():
        if process.poll() is not None:
            raise SystemExit(f"{path} was never made: {process.communicate()[1]}")
        time.sleep(0.002)


def ended(process: subprocess.Popen[str], corpus: Path, case: str, done: str) -> Row:
    """Wait for a process that was disturbed."""
    _, errors = process.communicate(timeout=120)
    row = Row(case, done, process.returncode, one_line(errors), verified(corpus), "")
    return faulted(row, *([] if len(errors.strip().splitlines()) == 1 else ["not one line on stderr"]))


def children(parent: int) -> list[int]:
    """Encoding workers of a run, in the order in which they were started (the resource tracker comes first)."""
    found = []
    for task in Path(f"/proc/{parent}/task").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found += [int(pid) for pid in (task / "children").read_text().split()]
    return sorted(found)


def replaced(pattern: bytes, by: bytes) -> Callable[[Path], None]:
    """Replace the last match in a file."""

    def do(file: Path) -> None:
        data = file.read_bytes()
        match = list(re.finditer(pattern, data))[-1]
        file.write_bytes(data[: match.start()] + match.expand(by) + data[match.end() :])

    return do


def grouped(rows: Sequence[Row], key: Callable[[Row], str], how: str) -> list[Row]:
    """One row for each key: the first one's line, all their faults."""
    found = []
    for name in dict.fromkeys(map(key, rows)):
        some = [row for row in rows if key(row) == name]
        good = sum("bitwise" in row.again for row in some)
        kept = f"{how}: bitwise in {good} of {len(some)}"
        first = some[0]
        row = Row(f"{first.case} at {name}", f"{len(some)} sizes, first {first.done}", first.exit_code, first.line, first.verify, kept)
        found.append(faulted(row, *(f"{one.done}: {fault}" for one in some for fault in one.faults)))
    return found


def name_of_file(line: str) -> str:
    """The file that a line on a full disk names, below the corpus."""
    found = re.search(r"while writing (\S+?);", line)
    return Path(found[1]).name if found else line[:40]


def one_line(stderr: str) -> str:
    lines = stderr.strip().splitlines()
    return " ⏎ ".join([lines[0], lines[-1]] if len(lines) > 2 else lines)


def skipped(case: str, why: str) -> Row:
    return Row(case, f"SKIPPED: {why}", "", "", "", "")


def faulted(row: Row, *faults: str) -> Row:
    row.faults += faults
    return row


HEAD = "| case | what was done | exit code | the line | inspect --verify, before | then the same command again |\n|---|---|---|---|---|---|"


def shown(row: Row) -> str:
    mark = " ✗" if row.faults else ""
    cells = [row.case, row.done, f"{row.exit_code}{mark}", row.line, row.verify, row.again]
    return "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |"
