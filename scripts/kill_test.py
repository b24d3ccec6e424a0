"""`kill -9` at random moments, then the same command again, until it ends by itself: are the bytes those of an unbroken run?

    python scripts/kill_test.py --kills 10 --out DIR -- encode-corpus INPUT --encoder minilm --out @
    python scripts/kill_test.py --kills 10 --out DIR --compare final -- pretrain --corpus CORPUS --out @ --config FILE
    python scripts/kill_test.py --kills 10 --aimed 3 --out DIR --codes      # a corpus with verified residual codes, ends with its text

`@` stands for the folder that the verb writes. The unbroken run comes first and gives the time within which the kills fall; `--aimed`
kills fall the moment that something half-written (*.partial) is on disk. After every kill each finished unit (a folder with its marker)
must already have the bytes of the unbroken run. Exit code 0 = equal.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

CODES = (
    "encode-corpus {} --out @ --encoder wordllama --residual superposition --residual-dims 64 --verify-codes --shard-rows 40 --workers 1"
)
SAMPLES = Path(__file__).resolve().parent.parent / "corpora" / "samples"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--aimed", type=int, default=0, help="further kills, while something half-written is on disk")
    parser.add_argument("--out", type=Path, required=True, help="folder for both runs (made; must be empty)")
    parser.add_argument("--compare", nargs="*", default=["."], help="what must be equal, relative to the folder written (default: all)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--codes", action="store_true", help="the command is encode-corpus with verified residual codes, on the samples")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="-- VERB …, with @ where the folder goes")
    options = parser.parse_args()
    command = [word for word in options.command if word != "--"]
    options.out.mkdir(parents=True, exist_ok=True)
    if any(options.out.iterdir()):
        parser.error(f"{options.out} is not empty")
    documents = options.out / "documents.jsonl"
    if options.codes:
        command = [*CODES.format(documents).split(), *command]
    if "@" not in " ".join(command):
        parser.error("the command must hold @ where its output folder goes")
    texts = write_documents(documents) if options.codes else ""

    unbroken, broken = options.out / "unbroken", options.out / "broken"
    start, start_wall = time.monotonic(), time.time()
    log = (options.out / "log.txt").open("wb")
    status = launch(command, unbroken, log).wait()
    whole_seconds = time.monotonic() - start
    if status:
        print(f"the unbroken run failed with exit code {status}; see {log.name}")
        return 1
    written = [marker.stat().st_mtime - start_wall for marker in unbroken.rglob("done.json")]
    first_seconds = min([max(0.0, moment) for moment in written], default=0.0)
    print(f"unbroken run: {whole_seconds:.1f} s, first finished unit after {first_seconds:.1f} s")
    if options.codes and (missing := [name for name in ("residual.npy", "residual-more.npy") if not holds_rows(unbroken, name)]):
        print(f"the unbroken run has no rows in {', '.join(missing)}: nothing would be compared")
        return 1

    generator = random.Random(options.seed)
    kills, attempts, wanted = [], 0, options.kills + options.aimed
    while len(kills) < wanted:
        # A run that has come to its end cannot be killed any more: begin a new one and go on.
        attempts += 1
        aimed = len(kills) >= options.kills
        begin = time.monotonic()
        process = launch(command, broken, log)
        # Every other kill falls after the time that the unbroken run needs to its first unit: starting takes long, writing does not.
        moment = generator.uniform(first_seconds if aimed or len(kills) % 2 else 0.0, whole_seconds)
        if wait(process, moment, half_written=broken if aimed else None):
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
            kills.append(time.monotonic() - begin)
            n_files, n_units = sum(file.is_file() for file in broken.rglob("*")), len(finished_units(broken))
            half = ", ".join(partials(broken)) or "nothing"
            print(f"kill {len(kills)}: after {kills[-1]:.2f} s, {n_files} files, {n_units} finished units, {half} half-written", flush=True)
            if torn := [name for name in finished_units(broken) if not same_unit(unbroken / name, broken / name)]:
                print(f"finished units that differ from the unbroken run: {', '.join(torn)}")
                return 1
        else:
            different = compare(unbroken, broken, options.compare)
            if process.returncode or different:
                return verdict(process.returncode, different, len(kills), wanted)
            shutil.rmtree(broken)
    status = launch(command, broken, log).wait()
    print(f"{attempts} starts, kills after " + ", ".join(f"{moment:.2f}" for moment in kills) + " s; then run to the end")
    if options.codes and not status and (fault := wrong_text(broken, texts)):
        print(fault)
        return 1
    return verdict(status, compare(unbroken, broken, options.compare), len(kills), wanted)


def write_documents(path: Path) -> str:
    """Every paragraph of the samples as a document, three times over, each under a number of its own; all their text."""
    paragraphs = [part for file in sorted(SAMPLES.glob("*.txt")) for part in file.read_text(encoding="utf-8").split("\n") if part.strip()]
    texts = [f"No. {number}: {part}\n" for number, part in enumerate(paragraphs * 3)]
    path.write_text("".join(json.dumps({"id": str(number), "text": text}) + "\n" for number, text in enumerate(texts)), encoding="utf-8")
    return "".join(texts)


def wrong_text(corpus: Path, texts: str) -> str | None:
    """What is wrong with the documents that the residual codes alone give, or with the corpus; None when they are those that went in."""
    for option, expected in (("--text", texts), ("--verify", None)):
        inspect = [sys.executable, "-m", "lsm", "inspect", str(corpus), option, "--quiet"]
        finished = subprocess.run(inspect, capture_output=True, text=True, check=False)
        if finished.returncode or (expected is not None and finished.stdout != expected):
            return f"inspect {option} ended with {finished.returncode}; {finished.stderr.strip() or 'another text than went in'}"
    print(f"inspect --verify: whole; inspect --text: {len(texts):,} characters, word for word")
    return None


def wait(process: subprocess.Popen, seconds: float, *, half_written: Path | None) -> bool:
    """Wait until it is time to kill: after `seconds`, then until there is a *.partial in `half_written`; False when it has ended before."""
    try:
        process.wait(timeout=seconds)
        return False
    except subprocess.TimeoutExpired:
        pass
    while half_written is not None and not partials(half_written):
        if process.poll() is not None:
            return False
        time.sleep(0.001)
    return True


def partials(folder: Path) -> list[str]:
    """Names of what is half-written under `folder`, which may change meanwhile."""
    return sorted(name for _, folders, files in os.walk(folder) for name in (*folders, *files) if name.endswith(".partial"))


def finished_units(folder: Path) -> list[str]:
    """Folders under `folder` that have their marker."""
    return sorted(marker.parent.relative_to(folder).as_posix() for marker in folder.rglob("done.json") if ".partial" not in str(marker))


def same_unit(one: Path, other: Path) -> bool:
    """Whether a finished unit has the bytes of the unbroken run's; one that this has deleted since (an old checkpoint) cannot tell."""
    return not one.is_dir() or not compare(one, other, ["."])


def holds_rows(corpus: Path, name: str) -> bool:
    """Whether some shard's array of this name has rows."""
    return any(len(np.load(file, mmap_mode="r")) for file in corpus.rglob(name))


def launch(command: list[str], folder: Path, log) -> subprocess.Popen:
    """Start the verb in its own process; what it prints goes to the log."""
    words = [word.replace("@", str(folder)) for word in command]
    return subprocess.Popen([sys.executable, "-m", "lsm", *words], stdout=log, stderr=log)


def compare(one: Path, other: Path, names: list[str]) -> list[str]:
    """Files that differ or are on one side only."""
    left, right = hashes(one, names), hashes(other, names)
    return sorted(name for name in left.keys() | right.keys() if left.get(name) != right.get(name))


def hashes(folder: Path, names: list[str]) -> dict[str, str]:
    """sha256 by relative name of every file under `folder`/name for the given names; wall-clock logs do not count."""
    found = {}
    for name in names:
        root = folder / name
        for file in [root] if root.is_file() else root.rglob("*"):
            relative = file.relative_to(folder)
            if file.is_file() and not {"tensorboard", "timing.jsonl", "loss.png", ".lock"} & set(relative.parts):
                found[relative.as_posix()] = hashlib.sha256(file.read_bytes()).hexdigest()
    return found


def verdict(status: int, different: list[str], n_kills: int, wanted: int) -> int:
    """Print what came of it; 0 when equal."""
    if status:
        print(f"the resumed run failed with exit code {status} after {n_kills} of {wanted} kills")
        return 1
    result = {"kills": n_kills, "byte_identical": not different, "different": different[:20]}
    print(json.dumps(result))
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
