"""What becomes of a corpus when its making is broken off, a disk fills, bits rot or its input changes: every case by real processes.

    python scripts/crash_test.py --out DIR                  # crash.md and crash.json in DIR; exit code 1 when a case breaks the promise
    python scripts/crash_test.py --out DIR --only flipped   # some cases
    python scripts/crash_test.py --out DIR --kills 3 --flips 5 --every 10    # fewer kills, flips and places to crash at

The promise: nothing lost, nothing silently wrong, one line on stderr and exit code 2 (130 after Ctrl-C, 143 after SIGTERM), and the way
out that the line names works: then the corpus is bitwise the unbroken one, and what was whole has not been encoded again. The stub
encoder makes everything, in DIR; cases on a full disk and a read-only one mount a small tmpfs and are skipped, with a reason, where
that is not allowed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path

from bad_input import cut, environment, flip, hashes, lsm, mounted, other_encoder, words

from lsm.files import write_json

N_DOCUMENTS, SHARD_ROWS, PAGE_KIB = 400, 400, 4
WHOLE, INPUT = "whole", "documents.jsonl"
OPTIONS = f"--encoder stub-slow --shard-rows {SHARD_ROWS} --workers 1"
LONG = "long.jsonl"
SMALL = f"{INPUT} --limit-documents 100 --encoder stub --shard-rows {SHARD_ROWS} --workers 1"
CRASHING = """
import os, signal, sys
limit, folder, seen = int(sys.argv[1]), os.path.realpath(sys.argv[2]), 0
def step(what):
    global seen
    seen += 1
    if seen == limit:
        print(what, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
def hook(event, arguments):
    if event == "open":
        if arguments[2] & (os.O_WRONLY | os.O_RDWR) and os.path.realpath(str(arguments[0])).startswith(folder):
            step(f"open {os.path.basename(str(arguments[0]))}")
    elif event in ("os.rename", "os.mkdir", "os.remove", "os.rmdir"):
        if os.path.realpath(str(arguments[0])).startswith(folder) or arguments[-1] not in (-1, None):
            step(f"{event[3:]} {os.path.basename(str(arguments[0]))}")
fsync = os.fsync
def before_fsync(descriptor):
    step(f"fsync {os.path.basename(os.readlink(f'/proc/self/fd/{descriptor}'))}")
    fsync(descriptor)
os.fsync = before_fsync
sys.addaudithook(hook)
from lsm.cli import main
code = main(sys.argv[3:])
print(seen)
sys.exit(code)
"""
"""Runs lsm and kills it (SIGKILL) before the n-th step that touches the disk below a folder; for n = 0 it prints how many there are."""


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


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for everything (made; must be empty)")
    parser.add_argument("--only", default="", help="only cases whose function's name holds this")
    parser.add_argument("--kills", type=int, default=50, help="kill -9 at random moments")
    parser.add_argument("--aimed", type=int, default=10, help="kill -9 while something half-written is on disk")
    parser.add_argument("--flips", type=int, default=40, help="flips of a random bit in a random file")
    parser.add_argument("--every", type=int, default=1, help="crash before every n-th step that touches the disk, fill every n-th page")
    parser.add_argument("--jobs", type=int, default=2, help="cases at a time")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    folder = options.out.resolve()
    if any(folder.iterdir()):
        parser.error(f"{folder} is not empty")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that mounts go
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it, and so would all processes from here
    world = prepared(folder, options)
    begin = time.monotonic()
    chosen = [case for name, case in CASES.items() if options.only in name]
    rows: list[Row] = []
    print(HEAD, flush=True)
    with ThreadPoolExecutor(options.jobs) as threads:
        for some in threads.map(lambda case: case(world), chosen):
            rows += some
            print("\n".join(map(shown, some)), flush=True)
    faults = [f"{row.case} ({row.done}): {fault}" for row in rows for fault in row.faults]
    end = [f"{len(rows)} cases in {time.monotonic() - begin:.0f} s; {len(faults)} faults", *(f"- {fault}" for fault in faults)]
    print("\n" + "\n".join(end))
    (folder / "crash.md").write_text("\n".join([HEAD, *map(shown, rows), "", *end]) + "\n", encoding="utf-8")
    write_json(folder / "crash.json", {"rows": [asdict(row) for row in rows], "faults": faults})
    return 1 if faults else 0


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


# ── broken off ────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def killed_at_random(world: World) -> list[Row]:
    """Left to kill_test.py, which compares every finished shard after every kill."""
    kills, aimed = world.options.kills, world.options.aimed
    script = [sys.executable, str(Path(__file__).with_name("kill_test.py")), "--kills", str(kills), "--aimed", str(aimed)]
    command = [*script, "--out", str(world.folder / "kills"), "--", *world.encode("@", what=str(world.folder / INPUT)).split()]
    finished = subprocess.run(command, capture_output=True, text=True, check=False, env=environment({}))
    last = (finished.stdout.strip().splitlines() or [finished.stderr.strip()])[-1]
    verify = verified(world.folder / "kills" / "broken")
    row = Row("kill -9 at random", f"{kills} at random, {aimed} while a *.partial existed, one after the other", -9, "", verify, last)
    return [faulted(row, *([] if finished.returncode == 0 and verify == "whole" else ["not the unbroken corpus"]))]


def crashed_before_every_step(world: World) -> list[Row]:
    """kill -9 before each open, mkdir, fsync, rename and remove: as many runs as there are steps."""

    def command(limit: int, name: str) -> list[str]:
        return [sys.executable, "-c", CRASHING, str(limit), str(world.folder / name), *words(f"encode-corpus {SMALL} --out {name}")[3:]]

    def crash(limit: int) -> tuple[str, list[str]]:
        name = f"crash-{limit}"
        killed = subprocess.run(command(limit, name), cwd=world.folder, capture_output=True, text=True, check=False, env=environment({}))
        place = killed.stdout.strip().splitlines()[-1] if killed.stdout else "nothing"
        faults = [f"before step {limit} ({place}): exit code {killed.returncode}, not killed"] if killed.returncode != -9 else []
        again, wrong = repeated(world, f"encode-corpus {SMALL} --out {name}", name, world.small)
        verify = verified(world.folder / name) if wrong else "whole"
        shutil.rmtree(world.folder / name, ignore_errors=True)
        return place, faults + [f"before step {limit} ({place}): {fault}; {again}; {verify}" for fault in wrong]

    counted = subprocess.run(command(0, "crash"), cwd=world.folder, capture_output=True, text=True, check=False, env=environment({}))
    n_steps = int(counted.stdout.strip().splitlines()[-1])
    limits = list(range(1, n_steps + 1, world.options.every))
    with ThreadPoolExecutor(2) as threads:
        found = list(threads.map(crash, limits))
    faults = [fault for _, some in found for fault in some]
    kinds = sorted({place.split()[0] for place, _ in found})
    names = sorted({place.split()[-1] for place, _ in found if ".partial" in place})
    done = f"before {len(limits)} of the {n_steps} steps that touch the disk ({', '.join(kinds)} of, among others, {', '.join(names)})"
    good = f"bitwise in {len(limits) - len(faults)} of {len(limits)}"
    row = Row("kill -9 before every step", done, -9, "", "", good)
    return [faulted(row, *faults)]


def signalled(world: World) -> list[Row]:
    rows = []
    for name, number, code in (("SIGTERM", signal.SIGTERM, 143), ("Ctrl-C", signal.SIGINT, 130)):
        out = f"signal-{code}"
        command = world.encode(out, what=LONG)
        process = start(command, world.folder)
        wait_for(world.folder / out / "shards" / "00001" / "done.json", process)
        process.send_signal(number)
        row, before = ended(process, world.folder / out, name, "mid-way, two shards finished"), shards(world.folder / out)
        faults = [] if row.exit_code == code else [f"exit code {row.exit_code}, not {code}"]
        faults += ["leaves .lock"] if (world.folder / out / ".lock").exists() else []
        faults += ["leaves *.partial"] if list((world.folder / out).rglob("*.partial")) else []
        rows.append(finished_row(world, row, command, out, faults, kept=before))
    return rows


def worker_lost(world: World) -> list[Row]:
    """A worker is killed, as the kernel does it when memory is out; or its own memory limit is reached, which it can still say."""

    def kill(pid: int) -> None:
        os.kill(pid, signal.SIGKILL)

    def limit(pid: int) -> None:
        used = int(Path(f"/proc/{pid}/statm").read_text().split()[0]) * resource.getpagesize()
        resource.prlimit(pid, resource.RLIMIT_AS, (used, used))

    rows = []
    for case, done, do in (
        ("worker killed", "kill -9 of one of two workers, mid-way (what the OOM killer does)", kill),
        ("worker out of memory", "both workers' address space is limited to what they have, mid-way", limit),
    ):
        out = case.replace(" ", "-")
        command = world.encode(out, what=LONG).replace("--workers 1", "--workers 2")
        process = start(command, world.folder)
        wait_for(world.folder / out / "shards" / "00001" / "done.json", process)
        for pid in children(process.pid)[-1 if do is kill else -2 :]:
            do(pid)
        row, before = ended(process, world.folder / out, case, done), shards(world.folder / out)
        faults = [] if row.exit_code == 2 else [f"exit code {row.exit_code}, not 2"]
        rows.append(finished_row(world, row, command, out, faults, kept=before))
    return rows


# ── the disk ──────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def disk_filled(world: World) -> list[Row]:
    """A tmpfs of every size from one page up to the first that is large enough: the disk is full at every page of every file."""
    pages = sum(-(-(world.folder / "small" / name).stat().st_size // (PAGE_KIB * 1024)) for name in world.small)

    def fill(n_pages: int) -> Row:
        name = f"disk-{n_pages}"
        command = f"encode-corpus {SMALL} --out {name}/corpus"
        with mounted(world.folder / name, f"size={n_pages * PAGE_KIB}k") as disk:
            finished = lsm(command, world.folder)
            line, before = one_line(finished.stderr), shards(disk / "corpus")
            row = Row("full disk", f"tmpfs of {n_pages * PAGE_KIB} KiB", finished.returncode, line, verified(disk / "corpus"), "")
            if finished.returncode == 0:
                return row
            faults = refusal_faults(finished.returncode, finished.stderr, "disk full")
            faults += ["leaves *.partial"] if list(disk.rglob("*.partial")) else []
            subprocess.run(["mount", "-o", "remount,size=16m", str(disk)], check=True)
            row.again, wrong = repeated(world, command, f"{name}/corpus", world.small, kept=before)
            return faulted(row, *faults, *wrong)

    try:
        with ThreadPoolExecutor(2) as threads:
            rows = [row for row in threads.map(fill, range(1, pages + 4, world.options.every)) if row.exit_code != 0]
    except PermissionError as error:
        return [skipped("full disk", f"{error}; run as root to mount a small tmpfs")]
    return grouped(rows, lambda row: name_of_file(row.line), "given room, the same command")


def file_size_limited(world: World) -> list[Row]:
    """`ulimit -f`: no file may be larger, which needs no root; only the first of a corpus' files that is too large can be met."""
    rows = []
    for limit in (100, 2000, 20_000):
        name = f"limited-{limit}"
        command = f"encode-corpus {SMALL} --out {name}"
        finished = subprocess.run(
            words(command), cwd=world.folder, env=environment({}), capture_output=True, text=True, check=False,
            preexec_fn=lambda limit=limit: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
        )  # fmt: skip
        line, verify = one_line(finished.stderr), verified(world.folder / name)
        row = Row(f"file size limit, {limit} B", "ulimit -f", finished.returncode, line, verify, "")
        faults = refusal_faults(finished.returncode, finished.stderr, name)
        row.again, wrong = repeated(world, command, name, world.small)
        rows.append(faulted(row, *faults, *wrong))
    return rows


def folder_read_only(world: World) -> list[Row]:
    """A read-only mount for root, permissions for others: a new corpus, and one that was interrupted."""
    disk = world.folder / "read-only"
    rows = []

    def tried(name: str, done: str, command: str) -> Row:
        finished = lsm(command, world.folder)
        row = Row("read-only folder", done, finished.returncode, one_line(finished.stderr), verified(disk / name), "")
        return faulted(row, *refusal_faults(finished.returncode, finished.stderr, "read-only"))

    new, begun = "a new corpus", "an interrupted one"
    if os.geteuid():
        disk.mkdir()
        world.interrupted("read-only/begun")
        for folder in (disk, disk / "begun"):
            folder.chmod(0o555)
        rows = [tried("new", new, world.encode("read-only/new")), tried("begun", begun, world.encode("read-only/begun"))]
        for folder in (disk, disk / "begun"):
            folder.chmod(0o755)
        rows[1].again, wrong = repeated(world, world.encode("read-only/begun"), "read-only/begun", world.whole)
        return [rows[0], faulted(rows[1], *wrong)]
    try:
        with mounted(disk, "size=16m"):
            world.interrupted("read-only/begun")
            subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
            rows = [tried("new", new, world.encode("read-only/new")), tried("begun", begun, world.encode("read-only/begun"))]
            subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
            rows[1].again, wrong = repeated(world, world.encode("read-only/begun"), "read-only/begun", world.whole)
            return [rows[0], faulted(rows[1], *wrong)]
    except PermissionError as error:
        return [skipped("read-only folder", f"{error}; root may write anywhere, so run as another user or where mounts are allowed")]


# ── bits rot ──────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def bits_flipped(world: World) -> list[Row]:
    """Named damages: `inspect --verify` must name every broken piece, the same command must bring the corpus back."""
    shard = "shards/00001"
    damages: list[tuple[str, str, Callable[[Path], None]]] = [
        *((f"a bit flipped in {file}", f"{shard}/{file}", flip) for file in ("semantic.npy", "sentences.parquet", "documents.parquet")),
        ("done.json: another count", f"{shard}/done.json", replaced(rb'"n_tokens": (\d)', rb'"n_tokens": 9\1')),
        ("done.json: another hash", f"{shard}/done.json", replaced(rb'"content_sha256": "..', b'"content_sha256": "zz')),
        ("done.json: not JSON", f"{shard}/done.json", replaced(rb"\{", b"[")),
        ("a bit flipped in documents.parquet", "documents.parquet", flip),
        ("documents.parquet deleted", "documents.parquet", Path.unlink),
        ("manifest.json: another count", "manifest.json", replaced(rb'"n_tokens": (\d)', rb'"n_tokens": 9\1')),
        ("manifest.json: another hash", "manifest.json", replaced(rb'"semantic.npy": "..', b'"semantic.npy": "zz')),
        ("manifest.json: another encoder", "manifest.json", replaced(rb'"pooling": "sum"', b'"pooling": "rum"')),
        ("manifest.json: other keys", "manifest.json", replaced(rb'"shards"', b'"shardz"')),
        ("manifest.json: not JSON", "manifest.json", replaced(rb"\{", b"[")),
        ("manifest.json deleted", "manifest.json", Path.unlink),
        ("semantic.npy truncated", f"{shard}/semantic.npy", cut),
        ("sentences.parquet deleted", f"{shard}/sentences.parquet", Path.unlink),
        ("done.json deleted", f"{shard}/done.json", Path.unlink),
        ("a shard deleted", shard, shutil.rmtree),
        ("the last shard deleted", "shards/00005", shutil.rmtree),
    ]  # fmt: skip
    rows = []
    for number, (case, file, do) in enumerate(damages):
        folder = world.copy(f"damage-{number}")
        do(folder / file)
        named = "unfinished" if case == "manifest.json deleted" else file.split("/")[1] if file.startswith("shards/") else file
        rows.append(repaired(world, case, file, folder, names=[named]))
    folder = world.copy("damage-three")
    for file in ("shards/00000/semantic.npy", "shards/00003/sentences.parquet", "shards/00004/semantic.npy", "documents.parquet"):
        flip(folder / file)
    rows.append(repaired(world, "four files at once", "in three shards and documents.parquet", folder, names=["00000", "00003", "00004"]))
    return rows


def bits_flipped_before_the_end(world: World) -> list[Row]:
    """A shard of an interrupted run rots before the run goes on: its marker must not make it pass."""
    rows = []
    for file in ("semantic.npy", "sentences.parquet", "documents.parquet", "done.json"):
        folder = world.interrupted(f"rot-{file.partition('.')[0]}")
        flip(folder / "shards" / "00001" / file)
        row = Row("bit flipped, then resumed", f"interrupted run, shards/00001/{file}", "", "", verified(folder), "")
        row.again, faults = repeated(world, world.encode(folder.name), folder.name, world.whole)
        rows.append(faulted(row, *faults))
    return rows


def bits_flipped_at_random(world: World) -> list[Row]:
    """One random bit of one random file (any but plan.json, for which see `plan_damaged`), then verify, then the same command."""
    generator = random.Random(0)
    sizes = {name: (world.folder / WHOLE / name).stat().st_size for name in sorted(world.whole) if name != "plan.json"}
    names = generator.choices(list(sizes), k=world.options.flips)
    places = [(name, generator.randrange(8 * sizes[name])) for name in names]

    def one(number: int) -> tuple[str, str]:
        name, bit = places[number]
        folder = world.copy(f"flip-{number}")
        data = bytearray((folder / name).read_bytes())
        data[bit // 8] ^= 1 << bit % 8
        (folder / name).write_bytes(data)
        verify = verified(folder)
        again, faults = repeated(world, world.encode(folder.name), folder.name, world.whole)
        shutil.rmtree(folder)
        if verify == "whole":
            faults = [*faults, "verify finds nothing"]
        return verify, f"{name}, bit {bit}: {'; '.join(faults)} ({again})" if faults else ""

    with ThreadPoolExecutor(2) as threads:
        found = list(threads.map(one, range(len(places))))
    faults = [fault for _, fault in found if fault]
    n_found = sum(verify != "whole" for verify, _ in found)
    done = f"{len(places)} times one bit, in {len({name for name, _ in places})} files"
    n_good = len(places) - len(faults)
    row = Row("random bit flipped", done, "", "", f"found {n_found} of {len(places)}", f"bitwise in {n_good} of {len(places)}")
    return [faulted(row, *faults)]


def plan_damaged(world: World) -> list[Row]:
    """What decided the bytes cannot be told from them: a damaged plan.json is refused, and another --out is the way out."""
    rows = []
    for case, do in (
        ("plan.json: not JSON", replaced(rb"\{", b"[")),
        ("plan.json: another setting", replaced(rb"sentencex", b"sdntencex")),
        ("plan.json deleted", Path.unlink),
    ):
        folder = world.copy(f"plan-{len(rows)}")
        do(folder / "plan.json")
        finished = lsm(world.encode(folder.name), world.folder)
        row = Row(case, "", finished.returncode, one_line(finished.stderr), verified(folder), "")
        elsewhere, wrong = repeated(world, world.encode(f"{folder.name}-other"), f"{folder.name}-other", world.whole)
        row.again = f"another --out: {elsewhere}"
        rows.append(faulted(row, *refusal_faults(finished.returncode, finished.stderr, "--out"), *wrong))
    return rows


def appended_corpus_damaged(world: World) -> list[Row]:
    """A corpus of two calls: a shard of each is damaged, and each call mends its own."""
    lines = (world.folder / INPUT).read_text().splitlines(keepends=True)
    for name, some in (("first.jsonl", lines[:200]), ("second.jsonl", lines[200:])):
        (world.folder / name).write_text("".join(some))
    first, second = (world.encode("two-calls", what=what) for what in ("first.jsonl", "second.jsonl --append"))
    for command in (first, second):
        assert lsm(command, world.folder).returncode == 0
    expected = hashes(world.folder / "two-calls")
    rows = []
    damages = {"first call's shard": ["00001"], "second call's shard": ["00004"], "a shard of each call": ["00001", "00004"]}
    for case, files in damages.items():
        name = f"two-calls-{'-'.join(files)}"
        folder = world.copy(name, "two-calls")
        for file in files:
            flip(folder / "shards" / file / "semantic.npy")
        verify = verified(folder)
        row = Row(case, f"bit flipped in semantic.npy of {', '.join(files)}", "", "", verify, "")
        needed = [call.replace("two-calls", name) for call, file in ((first, "00001"), (second, "00004")) if file in files]
        codes = [lsm(command, world.folder) for command in needed]
        same = hashes(folder) == expected
        row.again = f"{' then '.join('with --append' if '--append' in command else 'the first call' for command in needed)}: "
        row.again += f"exit {', '.join(str(call.returncode) for call in codes)}; {'bitwise' if same else 'DIFFERS'}"
        row.line = one_line("".join(call.stderr for call in codes))
        faults = [] if same and verified(folder) == "whole" else ["not the unbroken corpus"]
        faults += [f"verify does not name shard {file}" for file in files if file not in verify]
        rows.append(faulted(row, *faults))
    return rows


# ── others at work, other input ───────────────────────────────────────────────────────────────────────────────────────────────────────


def two_writers(world: World) -> list[Row]:
    command = world.encode("twice", what=LONG)
    process = start(command, world.folder)
    wait_for(world.folder / "twice" / "shards" / "00000" / "done.json", process)
    second = lsm(command, world.folder)
    verify = verified(world.folder / "twice")
    process.communicate()
    row = Row("two writers", "the second starts when the first has one shard", second.returncode, one_line(second.stderr), verify, "")
    same = hashes(world.folder / "twice") == world.long
    row.again = f"the first ended with {process.returncode}, {'bitwise' if same else 'DIFFERS'}"
    faults = refusal_faults(second.returncode, second.stderr, "another process")
    rows = [faulted(row, *faults, *([] if same and process.returncode == 0 else ["the first was disturbed"]))]
    both = [start(world.encode("at-once", what=LONG), world.folder) for _ in range(2)]
    lines = [one.communicate()[1] for one in both]
    codes = sorted(one.returncode for one in both)
    row = Row("two writers", "both start at once", str(codes), one_line("".join(lines)), verified(world.folder / "at-once"), "")
    same = hashes(world.folder / "at-once") == world.long
    row.again = "bitwise" if same else "DIFFERS"
    return [*rows, faulted(row, *([] if same and codes == [0, 2] else ["not one refused and one whole"]))]


def input_changed(world: World) -> list[Row]:
    """Between two runs, of a finished corpus and of an interrupted one; the input is restored afterwards, or --append given."""
    lines = (world.folder / INPUT).read_text().splitlines(keepends=True)
    middle, early = json.dumps({"id": "d200", "text": "Changed."}) + "\n", json.dumps({"id": "d20", "text": "Changed."}) + "\n"
    more = json.dumps({"id": "new", "text": "One more document. It has two sentences."}) + "\n"
    changes = {
        "one document changed in the middle": [*lines[:200], middle, *lines[201:]],
        "one document changed near the start": [*lines[:20], early, *lines[21:]],
        "one appended": [*lines, more],
        "order changed": [lines[1], lines[0], *lines[2:]],
        "the last one gone": lines[:-1],
    }
    rows = []
    for number, (change, changed) in enumerate(changes.items()):
        for state in ("finished", "interrupted"):
            name, source = f"changed-{number}-{state}", f"input-{number}-{state}/{INPUT}"
            (world.folder / source).parent.mkdir()
            (world.folder / source).write_text("".join(lines))
            folder = world.copy(name) if state == "finished" else world.interrupted(name)
            before = hashes(folder)
            (world.folder / source).write_text("".join(changed))
            finished = lsm(world.encode(name, what=source), world.folder)
            row = Row(f"input: {change}", f"{state} corpus", finished.returncode, one_line(finished.stderr), verified(folder), "")
            faults = []
            if finished.returncode == 0:
                # Documents that no finished shard holds yet may change: then the corpus is that of the changed input.
                lsm(world.encode(f"{name}-unbroken", what=source), world.folder)
                same = hashes(folder) == hashes(world.folder / f"{name}-unbroken")
                row.again = f"the unbroken corpus of the changed input: {'bitwise' if same else 'DIFFERS'}"
                faults = [] if same and state == "interrupted" else ["silently accepted"]
            else:
                faults += refusal_faults(finished.returncode, finished.stderr, name)
                if state == "finished" and hashes(folder) != before:
                    faults.append("the finished corpus was changed")
                if "--append" in finished.stderr and change == "one appended":
                    appended = lsm(world.encode(name, what=source, more="--append"), world.folder)
                    row.again = f"with --append: exit {appended.returncode}, verify: {verified(folder)}"
                    faults += [] if appended.returncode == 0 and verified(folder) == "whole" else ["--append did not help"]
                else:
                    (world.folder / source).write_text("".join(lines))
                    again, wrong = repeated(world, world.encode(name, what=source), name, world.whole)
                    row.again, faults = f"input restored: {again}", faults + wrong
            rows.append(faulted(row, *faults))
    return rows


def settings_changed(world: World) -> list[Row]:
    other_encoder(world.folder / "other-encoder")
    rows = []
    for case, old, new in (
        ("another encoder", "--encoder stub-slow", "--encoder other-encoder"),
        ("another setting", f"--shard-rows {SHARD_ROWS}", f"--shard-rows {SHARD_ROWS + 1}"),
        ("another setting", "--workers 1", "--workers 1 --cap-characters 300"),
    ):
        for state in ("finished", "interrupted"):
            name = f"settings-{len(rows)}"
            folder = world.copy(name) if state == "finished" else world.interrupted(name)
            finished = lsm(world.encode(name).replace(old, new), world.folder)
            row = Row(case, f"{new} now, {state} corpus", finished.returncode, one_line(finished.stderr), verified(folder), "")
            faults = refusal_faults(finished.returncode, finished.stderr, name)
            row.again, wrong = repeated(world, world.encode(name), name, world.whole)
            rows.append(faulted(row, *faults, *wrong))
    return rows


def input_changes_while_read(world: World) -> list[Row]:
    """The file changes when the first shard is there and most of it has not been read."""
    original = (world.folder / LONG).read_bytes()

    def rewritten(file: Path) -> None:
        with open(file, "r+b") as handle:
            handle.seek(original.index(b"document 950 stands"))
            handle.write(b"document 950 STANDS")

    def grown(file: Path) -> None:
        with open(file, "ab") as handle:
            handle.write(json.dumps({"id": "new", "text": "One more."}).encode() + b"\n")

    def renamed(file: Path) -> None:
        file.with_suffix(".new").write_bytes(original.replace(b"document 950 stands", b"document 950 STANDS"))
        file.with_suffix(".new").replace(file)

    rows = []
    changes = {"a document rewritten": rewritten, "cut": cut, "appended to": grown, "replaced by rename": renamed}
    for number, (case, do) in enumerate(changes.items()):
        source, name = world.folder / f"live-{number}" / LONG, f"live-{number}/corpus"
        source.parent.mkdir()
        source.write_bytes(original)
        command = world.encode(name, what=f"live-{number}/{LONG}")
        process = start(command, world.folder)
        wait_for(world.folder / name / "shards" / "00000" / "done.json", process)
        do(source)
        row, before = ended(process, world.folder / name, "input changes while it is read", case), shards(world.folder / name)
        faults = [] if row.exit_code == 2 else [f"exit code {row.exit_code}: silently accepted"]
        source.write_bytes(original)
        again, wrong = repeated(world, command, name, world.long, kept=before)
        row.again = f"input restored: {again}"
        rows.append(faulted(row, *faults, *wrong))
    return rows


CASES = {case.__name__: case for case in (
    killed_at_random, crashed_before_every_step, signalled, worker_lost, disk_filled, file_size_limited, folder_read_only,
    bits_flipped, bits_flipped_before_the_end, bits_flipped_at_random, plan_damaged, appended_corpus_damaged, two_writers,
    input_changed, settings_changed, input_changes_while_read,
)}  # fmt: skip


# ── shared ────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


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


if __name__ == "__main__":
    sys.exit(main())
