"""Cases of crash_test.py in which the making of a corpus is broken off: killed, signalled, a disk full or read-only."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from bad_input import environment, lsm, mounted, words
from crash_world import (
    INPUT,
    LONG,
    PAGE_KIB,
    SMALL,
    Row,
    World,
    children,
    ended,
    faulted,
    finished_row,
    grouped,
    name_of_file,
    one_line,
    refusal_faults,
    repeated,
    shards,
    skipped,
    start,
    verified,
    wait_for,
)

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
