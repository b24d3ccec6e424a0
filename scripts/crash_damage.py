"""Cases of crash_test.py in which bits rot, two write at once, or input and settings change."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from bad_input import cut, flip, hashes, lsm, other_encoder
from crash_world import (
    INPUT,
    LONG,
    SHARD_ROWS,
    WHOLE,
    Row,
    World,
    ended,
    faulted,
    one_line,
    refusal_faults,
    repaired,
    repeated,
    replaced,
    shards,
    start,
    verified,
    wait_for,
)


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
