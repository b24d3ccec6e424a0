"""`kill -9` at random moments, then the same command again, until it ends by itself: are the bytes those of an unbroken run?

    python scripts/kill_test.py --kills 10 --out DIR -- encode-corpus INPUT --encoder minilm --out @
    python scripts/kill_test.py --kills 10 --out DIR --compare final -- pretrain --corpus CORPUS --out @ --config FILE

`@` stands for the folder that the verb writes. The unbroken run comes first and gives the time within which the kills fall.
Exit code 0 = equal.
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


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--out", type=Path, required=True, help="folder for both runs (made; must be empty)")
    parser.add_argument("--compare", nargs="*", default=["."], help="what must be equal, relative to the folder written (default: all)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("command", nargs=argparse.REMAINDER, help="-- VERB …, with @ where the folder goes")
    options = parser.parse_args()
    command = [word for word in options.command if word != "--"]
    if "@" not in " ".join(command):
        parser.error("the command must hold @ where its output folder goes")
    options.out.mkdir(parents=True, exist_ok=True)
    if any(options.out.iterdir()):
        parser.error(f"{options.out} is not empty")

    unbroken, broken = options.out / "unbroken", options.out / "broken"
    start = time.monotonic()
    log = (options.out / "log.txt").open("wb")
    status = launch(command, unbroken, log).wait()
    whole_seconds = time.monotonic() - start
    if status:
        print(f"the unbroken run failed with exit code {status}; see {log.name}")
        return 1
    print(f"unbroken run: {whole_seconds:.1f} s")

    generator = random.Random(options.seed)
    kills, attempts = [], 0
    while len(kills) < options.kills:
        # A run that has come to its end cannot be killed any more: begin a new one and go on.
        attempts += 1
        process = launch(command, broken, log)
        moment = generator.uniform(0.0, whole_seconds * (1.0 if len(kills) % 2 else 0.5))
        try:
            status = process.wait(timeout=moment)
            different = compare(unbroken, broken, options.compare)
            if status or different:
                return verdict(status, different, len(kills), options.kills)
            shutil.rmtree(broken)
        except subprocess.TimeoutExpired:
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
            kills.append(moment)
            print(f"kill {len(kills)}: after {moment:.2f} s, {sum(file.is_file() for file in broken.rglob('*'))} files on disk", flush=True)
    status = launch(command, broken, log).wait()
    print(f"{attempts} starts, kills after " + ", ".join(f"{moment:.2f}" for moment in kills) + " s; then run to the end")
    return verdict(status, compare(unbroken, broken, options.compare), len(kills), options.kills)


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
