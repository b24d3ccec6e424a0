"""`lsm bench encode`: encoding systems on the same distinct sentences, turn by turn, each in a process of its own.

Letters: B texts, D vector width, R rounds.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from lsm.bench import encode_child
from lsm.bench.encode_settings import BACKENDS, REFERENCE, SYSTEMS
from lsm.decode.vectors import unit
from lsm.encode.settings import EncodeSettings
from lsm.errors import UserError
from lsm.progress import Progress, say
from lsm.text.readers import iter_documents
from lsm.text.segment import segment

CALIBRATION_TEXTS = 256
_SENTENCES_A_DOCUMENT = 200
_END_SECONDS = 20.0
_ROOFLINE_TRIES = 20
"""What slows a machine for a moment is no limit of its own."""


@dataclass
class Domain:
    """One input and its distinct sentences."""

    name: str
    texts: list[str]


@dataclass
class Pairs:
    """Sentence pairs with people's scores."""

    name: str
    texts: list[str]
    """First sentences, then second ones."""
    scores: list[float]


@dataclass
class Measured:
    """What one system did."""

    system: str
    versions: dict[str, str] = field(default_factory=dict)
    seconds_R: dict[str, list[float]] = field(default_factory=dict)
    """Of each round, by domain."""
    vectors_BD: dict[str, np.ndarray] = field(default_factory=dict)
    """By domain and by name of pairs."""
    failed: str = ""


def read_domains(inputs: Sequence[str], sentences: int, fits: Any) -> tuple[list[Domain], list[str]]:
    """An equal share of distinct sentences of every input, cut as encode-corpus cuts them and spread over documents; and others, for
    calibration.

    Raises:
        UserError: an input with too few of them.
    """
    share = sentences // len(inputs)
    seen: set[str] = set()
    calibration: list[str] = []
    domains: list[Domain] = []
    for name in inputs:
        texts: list[str] = []
        rest = -(-CALIBRATION_TEXTS // len(inputs))
        for document in iter_documents([name]):
            found = segment(document.text, cap_characters=EncodeSettings.cap_characters, fits=fits)[1]
            new = [text for text in dict.fromkeys(sentence.text for sentence in islice(found, _SENTENCES_A_DOCUMENT)) if text not in seen]
            seen.update(new)
            texts += new
            if len(texts) >= share + rest:
                break
        if len(texts) < share + min(rest, 8):
            raise UserError(f"INPUT {name} holds only {len(texts):,} distinct sentences; {share:,} and some to calibrate on are needed")
        domains.append(Domain(_unlike(Path(name).name, [domain.name for domain in domains]), texts[:share]))
        calibration += texts[share : share + rest]
    return domains, calibration


def _unlike(name: str, taken: Sequence[str]) -> str:
    """`name`, with a number where another has it already."""
    return next(one for one in (name, *(f"{name} ({number})" for number in range(2, len(taken) + 2))) if one not in taken)


def read_pairs(path: Path, taken: Sequence[str] = ()) -> Pairs:
    """Pairs of a .jsonl file: `sentence1`, `sentence2`, `score` in every line.

    Args:
        taken: names of domains and of other pairs, which this one must not have.

    Raises:
        UserError: no such file, or a line that is no pair; it is named.
    """
    firsts, seconds, scores = [], [], []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--sts {path}: cannot be read ({error})") from error
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            first, second, score = row["sentence1"], row["sentence2"], float(row["score"])
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"--sts {path}, line {number}: sentence1, sentence2 and score are needed ({error})") from error
        firsts.append(str(first))
        seconds.append(str(second))
        scores.append(score)
    if len(scores) < 3:
        raise UserError(f"--sts {path} holds {len(scores)} pairs; at least 3 are needed")
    return Pairs(_unlike(path.stem, taken), firsts + seconds, scores)


class System:
    """A system's process; a context manager that ends it."""

    def __init__(self, name: str, *, python: str, model: str, threads: int, calibration: Path, folder: Path) -> None:
        self.measured = Measured(name)
        self._vectors = folder / f"{name}.npy"
        environment = os.environ | {"TOKENIZERS_PARALLELISM": "false", "TRANSFORMERS_VERBOSITY": "error", "HF_HUB_OFFLINE": "1"}
        if name.startswith("lsm"):
            environment |= {"PYTHONPATH": os.pathsep.join(filter(None, [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]))}
        elif python != sys.executable:
            environment.pop("PYTHONPATH", None)
        with (folder / f"{name}.log").open("wb") as log:
            self._process = subprocess.Popen(
                [python, str(Path(encode_child.__file__)), name, model, str(threads), str(calibration)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, env=environment,
            )  # fmt: skip
        answer = self._answer()
        self.measured.versions, self.measured.failed = answer.get("versions", {}), answer.get("failed", "")

    def __enter__(self) -> System:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()  # it ends by itself, and with it what it has started
        try:
            self._process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def encode(self, texts: Path) -> tuple[float, np.ndarray]:
        """Seconds, and vectors float32 [B, D], of the texts in a JSON file.

        Raises:
            UserError: it could not, or its process has ended; `measured.failed` says why.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"texts": str(texts), "vectors": str(self._vectors)}) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # it has died, which the answer says
        answer = self._answer()
        if "seconds" not in answer:
            self.measured.failed = answer["failed"]
            raise UserError(f"{SYSTEMS[self.measured.system]}: {answer['failed']}; leave it out with --systems")
        return answer["seconds"], np.load(self._vectors)

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        return json.loads(line) if line else {"failed": "its process ended (out of memory?); see its log"}


def measure(systems: Sequence[System], domains: Sequence[Domain], pairs: Sequence[Pairs], folder: Path, *, rounds: int) -> None:
    """Let every system encode everything, `rounds` times in turn (pairs once); what comes of it stands in their `measured`.

    A system that fails is left out from then on.

    Raises:
        UserError: the one that the others are compared with failed.
    """
    files = {}
    for part in (*domains, *pairs):
        files[part.name] = folder / f"texts-{len(files)}.json"
        files[part.name].write_text(json.dumps(part.texts), encoding="utf-8")
    with Progress("encode", rounds * len(systems), "rounds of a system") as progress:
        for number in range(rounds):
            for system in systems:
                if not system.measured.failed:
                    try:
                        _round(system, files, domains, pairs if number == 0 else ())
                    except UserError as error:
                        if system.measured.system == REFERENCE:
                            raise
                        say(f"left out from round {number + 1} on: {error}")
                progress.advance(1, system.measured.system)


def _round(system: System, files: dict[str, Path], domains: Sequence[Domain], pairs: Sequence[Pairs]) -> None:
    for domain in domains:
        seconds, vectors_BD = system.encode(files[domain.name])
        system.measured.seconds_R.setdefault(domain.name, []).append(seconds)
        system.measured.vectors_BD[domain.name] = vectors_BD
    for some in pairs:
        system.measured.vectors_BD[some.name] = system.encode(files[some.name])[1]


def rows(
    measured: Sequence[Measured], domains: Sequence[Domain], pairs: Sequence[Pairs], *, limit: dict[str, float] | None = None
) -> list[dict[str, Any]]:
    """One row a system and domain, `all` of them first: sentences a second (median of the rounds and their range), ratio to the default,
    cosine to its vectors, rank correlation with the pairs' scores, and the share of the roofline.

    Args:
        limit: sentences a second, by domain and `all`, if only the network's matrix products took time, at their measured float32 rate.
    """
    reference = next((one for one in measured if one.system == REFERENCE and not one.failed), None)
    found = []
    for domain in ("all", *(domain.name for domain in domains)):
        names = [one.name for one in domains] if domain == "all" else [domain]
        n = sum(len(one.texts) for one in domains if one.name in names)
        base = _median_seconds(reference, names) if reference else None
        for one in measured:
            row: dict[str, Any] = {"system": one.system, "label": SYSTEMS[one.system], "domain": domain, "sentences": n}
            if one.failed:
                if domain == "all":
                    found.append(row | {"note": one.failed})
                continue
            rates_R = n / np.sum([one.seconds_R[name] for name in names], axis=0)
            row |= {"sentences_per_second": float(np.median(rates_R)), "rounds": rates_R.tolist(), "versions": one.versions}
            row["intervals"] = {"sentences_per_second": [float(rates_R.min()), float(rates_R.max())]}
            if reference and base:
                row["ratio"] = base / _median_seconds(one, names)
                cosine_B = np.concatenate([_cosine(one.vectors_BD[name], reference.vectors_BD[name]) for name in names])
                row |= {"cosine_mean": float(cosine_B.mean()), "cosine_min": float(cosine_B.min())}
            if domain == "all":
                row |= {f"sts_{some.name}": 100 * _spearman(one.vectors_BD[some.name], some.scores) for some in pairs}
            if limit:
                row["roofline_share"] = row["sentences_per_second"] / limit[domain]
            found.append(row)
    return found


def roofline(model: str, domains: Sequence[Domain], threads: int) -> tuple[dict[str, float], float]:
    """`limit` of `rows` for one float32 product a thread at a time, and the measured FLOP a second of them all.

    The products of the network's layers and its attention are counted without padding; look-ups, norms and tokenisation are not.
    """
    import torch

    from lsm.bench.flops import encoder_flops
    from lsm.encode.encoder import load_encoder
    from lsm.training.throughput import matmul_rate

    encoder = load_encoder(model, device="cpu", precision="float32")
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    rate = max(matmul_rate(torch.device("cpu"), torch.float32) for _ in range(_ROOFLINE_TRIES))
    torch.set_num_threads(before)
    flops = {domain.name: encoder_flops(encoder, encoder.encode(domain.texts).n_tokens.tolist()) for domain in domains}
    limit = {domain.name: len(domain.texts) * rate / max(flops[domain.name], 1.0) for domain in domains}
    return limit | {"all": sum(len(domain.texts) for domain in domains) * rate / max(sum(flops.values()), 1.0)}, rate


def choose_systems(wanted: Sequence[str], backends: str | None) -> dict[str, str]:
    """System → the Python that runs it; those that need `backends` are left out without it, and that is said.

    Raises:
        UserError: an unknown system, no reference, or a Python that is not there.
    """
    if unknown := [name for name in wanted if name not in SYSTEMS]:
        raise UserError(f"--systems {','.join(unknown)}: choose from {', '.join(SYSTEMS)}")
    if REFERENCE not in wanted:
        raise UserError(f"--systems {','.join(wanted)}: add {REFERENCE}, which the others are compared with")
    if backends is not None and not os.access(backends, os.X_OK):
        raise UserError(
            f"--backends {backends}: no such Python; give the python of an environment with sentence-transformers[onnx,openvino]"
        )
    if backends is None and (without := [name for name in wanted if name in BACKENDS]):
        say(f"left out for want of --backends PYTHON (an environment with sentence-transformers[onnx,openvino]): {', '.join(without)}")
    wanted = [REFERENCE, *(name for name in wanted if name != REFERENCE)]
    chosen = {name: backends if name in BACKENDS else sys.executable for name in wanted}
    return {name: python for name, python in chosen.items() if python is not None}


def _median_seconds(one: Measured | None, names: Sequence[str]) -> float:
    assert one is not None
    return float(np.median(np.sum([one.seconds_R[name] for name in names], axis=0)))


def _cosine(a_BD: np.ndarray, b_BD: np.ndarray) -> np.ndarray:
    return np.einsum("bd,bd->b", unit(a_BD), unit(b_BD))


def _spearman(vectors_BD: np.ndarray, scores: Sequence[float]) -> float:
    from scipy.stats import spearmanr

    first_BD, second_BD = np.split(vectors_BD, 2)
    return float(spearmanr(_cosine(first_BD, second_BD), scores).statistic)
