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
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

from crash_damage import (
    appended_corpus_damaged,
    bits_flipped,
    bits_flipped_at_random,
    bits_flipped_before_the_end,
    input_changed,
    input_changes_while_read,
    plan_damaged,
    settings_changed,
    two_writers,
)
from crash_stops import (
    crashed_before_every_step,
    disk_filled,
    file_size_limited,
    folder_read_only,
    killed_at_random,
    signalled,
    worker_lost,
)
from crash_world import (
    HEAD,
    Row,
    prepared,
    shown,
)

from lsm.files import write_json

CASES = {case.__name__: case for case in (
    killed_at_random, crashed_before_every_step, signalled, worker_lost, disk_filled, file_size_limited, folder_read_only,
    bits_flipped, bits_flipped_before_the_end, bits_flipped_at_random, plan_damaged, appended_corpus_damaged, two_writers,
    input_changed, settings_changed, input_changes_while_read,
)}  # fmt: skip


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


if __name__ == "__main__":
    sys.exit(main())
