"""Where a call of encode-corpus goes on: what is on disk, can it be trusted, and which of the corpus' calls is this one."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lsm.corpus import format as layout
from lsm.corpus.standing import ShardState, readable_manifest, shard_states
from lsm.encode.cut import Cutter, Segment, finished_documents
from lsm.encode.plan import Resume, RunPlan, Stage
from lsm.errors import UserError
from lsm.files import TEMPORARY_SUFFIX, remove_leftovers
from lsm.lock import LOCK
from lsm.progress import say


@dataclass(frozen=True, kw_only=True)
class Opened:
    """A corpus as it is found, compared with what is wanted."""

    plan: RunPlan
    states: list[ShardState]
    manifest: dict[str, Any] | None
    """None when the corpus is unfinished, or its manifest damaged."""

    @property
    def n_finished(self) -> int:
        """Shards that the manifest names."""
        return len(self.manifest["shards"]) if self.manifest else 0

    @property
    def damaged(self) -> list[int]:
        """Shards that were there, or should be, and are to be made again."""
        return [index for index, state in enumerate(self.states) if state.problem]

    def shards_of(self, stage: int) -> tuple[int, int | None]:
        """First shard of a stage, and the one after its last; None while more may come."""
        firsts = [one.first_shard for one in self.plan.stages]
        if stage + 1 < len(firsts):
            return firsts[stage], firsts[stage + 1]
        return firsts[stage], self.n_finished if self.n_finished > firsts[stage] else None

    def lacking(self) -> list[int]:
        """Stages that are unfinished, or have a shard that is missing or damaged."""
        found = []
        for number in range(len(self.plan.stages)):
            first, stop = self.shards_of(number)
            if stop is None or len(self.states) < stop or any(state.done is None for state in self.states[first:stop]):
                found.append(number)
        return found


def open_corpus(out: Path, wanted: RunPlan, *, resume: Resume, append: bool, threads: int, quiet: bool) -> Opened:
    """Compare the plan on disk with the one wanted, clear away what is half-written, and check every finished shard.

    Raises:
        UserError: the folder holds something else or was begun with other settings, or `resume` forbids it.
    """
    if (out / layout.PULL).exists():
        raise UserError(
            f"--out {out} was pulled from the hub, and lsm corpus pull mends it; encode into another folder, and put the two together: "
            "lsm corpus merge"
        )
    on_disk = RunPlan.load(out)
    if on_disk is None:
        strangers = [path.name for path in out.iterdir() if path.name != LOCK and not path.name.endswith(TEMPORARY_SUFFIX)]
        if layout.DERIVED in strangers:
            raise UserError(f"--out {out} was made by lsm corpus; encode into another folder, and put the two together: lsm corpus merge")
        if layout.MANIFEST in strangers or layout.SHARDS in strangers:
            raise UserError(
                f"--out {out} has lost its {layout.PLAN}, without which nothing can be added to it or mended; restore that file, or choose "
                "another --out (what is there can still be read: lsm inspect --verify)"
            )
        if strangers:
            raise UserError(f"--out {out} is neither empty nor a corpus (it holds {strangers[0]}); choose another folder")
    require_resume(out, resume, append=append, begun=on_disk is not None)
    if on_disk is not None:
        on_disk.require_same(wanted, out)
    remove_half_written(out)
    states = shard_states(out, threads=threads)
    for index, state in enumerate(states):
        if state.problem:
            say(f"shard {layout.shard_name(index)} of {out}: {state.problem}; it is to be encoded again", quiet=quiet)
    manifest = readable_manifest(out)
    if manifest and isinstance(version := manifest.get("format_version"), int) and version > layout.FORMAT_VERSION:
        raise UserError(
            f"corpus {out} has format version {version}, this lsm writes {layout.FORMAT_VERSION}; update lsm (or delete "
            f"{out / layout.MANIFEST} if it is damaged, and run again)"
        )
    return Opened(plan=on_disk or wanted, states=states, manifest=manifest)


def reopened(out: Path, *, suspects: Collection[int], threads: int) -> Opened | None:
    """The same later in the same call, when only its own tasks have written: their shards are taken as they are, and of those that
    `open_corpus` found only `suspects` (what was damaged then) are read again. None when there is no plan (any more)."""
    plan = RunPlan.load(out)
    if plan is None:
        return None
    return Opened(plan=plan, states=shard_states(out, threads=threads, suspects=suspects), manifest=readable_manifest(out))


def require_resume(out: Path, resume: Resume, *, append: bool, begun: bool) -> None:
    """Raise `UserError` where `--resume` forbids to go on with what lies there, or asks for something to go on with."""
    if not begun and resume == "must":
        raise UserError(f"--resume must: {out} holds no run to go on with; use --resume auto")
    if begun and resume == "never" and not append:
        raise UserError(f"--resume never: {out} holds a corpus already; use --resume auto, or choose another --out")


def remove_half_written(out: Path) -> None:
    """Delete what killed processes left; only for whoever is alone with the folder."""
    for folder in (out, out / layout.SHARDS):
        if folder.is_dir():
            remove_leftovers(folder)


def cutter_of(opened: Opened, out: Path, segment: Segment, inputs: Sequence[str], *, append: bool) -> Cutter:
    """The cutter of the stage that this call belongs to: a new one, one that was interrupted or damaged, or a finished one to check.

    Raises:
        UserError: another stage must be finished or mended first.
    """
    plan, lacking = opened.plan, opened.lacking()
    first, stop = 0, None
    if plan.stages:
        number = 0
        if append:
            number = next((one for one in lacking if plan.stages[one].inputs == inputs), len(plan.stages))
        if lacking and number not in lacking:
            raise UserError(unfinished(opened, out, lacking[0]))
        first, stop = opened.shards_of(number) if number < len(plan.stages) else (opened.n_finished, None)
    return cutter_between(opened, out, segment, first, stop, append=append)


def cutter_between(opened: Opened, out: Path, segment: Segment, first: int, stop: int | None, *, append: bool) -> Cutter:
    """The cutter of the stage from shard `first` to shard `stop`."""
    known = _known(opened, out, first, stop) if append and opened.plan.stages else {}
    return Cutter(out, segment, opened.plan.shard_rows, opened.states, first, stop, known)


def unfinished(opened: Opened, out: Path, stage: int) -> str:
    """The line that sends a person to another call first."""
    first, stop = opened.shards_of(stage)
    damaged = [
        layout.shard_name(index) for index, state in enumerate(opened.states) if state.problem and first <= index < (stop or index + 1)
    ]
    what = f"is unfinished{' and has damaged shards' if damaged and stop is None else ''}"
    if stop is not None:
        what = f"has lost {len(damaged)} shards ({', '.join(damaged[:8])})" if damaged else "has lost shards"
    how = " (with --append)" if stage else ""
    call = f"an earlier call with {', '.join(opened.plan.stages[stage].inputs)}{how}"
    return f"{out}: {call} {what}; run that command again first, then this one"


def _known(opened: Opened, out: Path, first: int, stop: int | None) -> dict[str, str]:
    """text_sha256 by doc_id of the documents in all shards but those from `first` to `stop`."""
    known: dict[str, str] = {}
    for index, state in enumerate(opened.states):
        if first <= index < (stop or index + 1):
            continue
        if state.done is None and state.documents is None:
            stage = max(number for number, one in enumerate(opened.plan.stages) if one.first_shard <= index)
            raise UserError(unfinished(opened, out, stage))
        known.update(finished_documents(out, index) if state.done is not None else state.documents or [])
    return known


def new_stage(opened: Opened, stage: Stage, first_shard: int, out: Path) -> None:
    """Record the stage before its first shard is written."""
    if not any(one.first_shard == first_shard for one in opened.plan.stages):
        opened.plan.stages.append(Stage(stage.inputs, stage.limit_documents, first_shard))
        opened.plan.save(out)
