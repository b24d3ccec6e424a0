"""One measurement of `lsm bench cost` in a process of its own (`python -m lsm.bench.cost_cell JOB`): time and peak memory.

Shape letters: B rows, S sentences, D vector width, T tokens.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lsm.bench import flops
from lsm.bench.apart import OUT_OF_MEMORY, end_with_parent
from lsm.bench.cost_text import Text
from lsm.bench.peak_memory import PeakMemory
from lsm.bench.token_transformer import TokenTransformer
from lsm.decode.load import DecoderSource
from lsm.encode.encoder import SentenceEncoder, load_encoder
from lsm.errors import UserError
from lsm.files import read_json, write_json
from lsm.latent import objectives
from lsm.latent.settings import ModelSettings, ObjectiveSettings
from lsm.latent.transformer import LatentConfig, LatentTransformer
from lsm.provenance import fast_dtype
from lsm.training.optimizer import make_optimizer
from lsm.training.settings import OptimizerSettings

WARM_UP_TOKENS = 1000


@dataclass(kw_only=True)
class Job:
    """What one cell measures, as the process is told it."""

    asked: dict[str, Any]
    """Everything that the numbers depend on: kept with them."""
    system: str
    training: bool
    length: int
    """Tokens asked for."""
    document: str
    """File of the text."""
    result: str
    """File to write."""
    model: dict[str, Any]
    """Fields of `ModelSettings`, equal for both transformers."""
    vocabulary: int
    window: int
    dim: int
    """Width of the encoder's vectors."""
    encoder: str
    adapter: str | None
    lm: str | None
    decode_sentences: int
    device: str
    threads: int
    repeats: int
    limit_seconds: float
    """No further repeat begins once it would end after this."""
    seed: int

    def save(self, path: Path) -> None:
        """Write the job for its process."""
        write_json(path, asdict(self))

    @classmethod
    def load(cls, path: Path) -> Job:
        """Read what `save` wrote."""
        return cls(**read_json(path))


Run = Callable[[Text], dict[str, float]]
"""Does the work once; seconds of each part."""
Count = Callable[[Text], float]
"""Floating-point operations of the work."""


def measure(job: Job) -> dict[str, Any]:
    """Build the system, warm up on a short beginning, run it up to `repeats` times; the numbers of one row."""
    torch.set_num_threads(job.threads)
    torch.manual_seed(job.seed)
    device = torch.device(job.device)
    text = Text.load(Path(job.document)).cut(job.length)
    _import_libraries(job)
    peak = PeakMemory(device)
    run, count = _systems()[job.system](job, device)
    run(text.cut(min(job.length, WARM_UP_TOKENS)))
    seconds: list[dict[str, float]] = []
    began = time.perf_counter()
    while len(seconds) < job.repeats:
        seconds.append(run(text))
        spent = time.perf_counter() - began
        if spent + spent / len(seconds) > job.limit_seconds:
            break
    totals = [sum(parts.values()) for parts in seconds]
    low, middle, high = np.percentile(totals, (25, 50, 75))
    return {
        "tokens": text.n_tokens,
        "sentences": len(text.sentences),
        "seconds": float(middle),
        "intervals": {"seconds": [float(low), float(high)]},
        "parts": {name: float(np.median([parts[name] for parts in seconds])) for name in seconds[0]},
        "repeats": len(seconds),
        "decoded_sentences": min(job.decode_sentences, len(text.sentences)) if "decoding" in seconds[0] else None,
        "peak_mebibytes": peak.mebibytes(),
        "gflop": count(text) / 1e9,
        "dtype": str(fast_dtype(device)[0]).removeprefix("torch."),
    }


def _systems() -> dict[str, Callable[[Job, torch.device], tuple[Run, Count]]]:
    return {
        "token-full": lambda job, device: _token(job, device, None),
        "token-window": lambda job, device: _token(job, device, job.window),
        "latent": _latent,
        "latent-encoding": _latent_encoding,
        "latent-encoding-decoding": _latent_encoding_decoding,
    }


def _token(job: Job, device: torch.device, window: int | None) -> tuple[Run, Count]:
    """A training step tells the output layer, with its gradients, from the blocks: a large vocabulary weighs more than they do."""
    model = TokenTransformer(ModelSettings(**job.model), job.vocabulary, window).to(device)
    step = _stepper(model, device, job.training)

    def run(text: Text) -> dict[str, float]:
        ids_BT = torch.tensor([[token for row in text.ids for token in row]], device=device)
        output = [0.0]

        def loss() -> Tensor:
            hidden_BTH = model(ids_BT)
            losses: list[Tensor] = []
            output[0] = _timed(device, lambda: losses.append(model.loss(hidden_BTH, ids_BT)))
            return losses[0]

        total = _timed(device, lambda: step(loss, lambda: model.read(ids_BT)))
        return {"blocks": total - output[0]} | ({"output layer": output[0]} if job.training else {})

    return run, lambda text: flops.token_flops(model, text.n_tokens, training=job.training, window=window)


def _latent(job: Job, device: torch.device) -> tuple[Run, Count]:
    """On random vectors: what it costs depends on their number and width alone."""
    model, pass_over = _latent_pass(job, device)

    def run(text: Text) -> dict[str, float]:
        z_BSD = nn.functional.normalize(torch.randn(1, len(text.sentences), job.dim, device=device), dim=-1)
        return {"latent": _timed(device, lambda: pass_over(z_BSD))}

    return run, lambda text: flops.latent_flops(model, len(text.sentences), training=job.training)


def _latent_encoding(job: Job, device: torch.device, encoder: SentenceEncoder | None = None) -> tuple[Run, Count]:
    encoder = encoder or load_encoder(job.encoder, device=job.device)
    model, pass_over = _latent_pass(job, device)

    def run(text: Text) -> dict[str, float]:
        z_BSD: list[Tensor] = []
        encoding = _timed(device, lambda: z_BSD.append(torch.from_numpy(encoder.encode(text.sentences).vectors)[None].to(device)))
        return {"encoding": encoding, "latent": _timed(device, lambda: pass_over(z_BSD[0]))}

    def count(text: Text) -> float:
        read = flops.encoder_flops(encoder, encoder.encode(text.sentences).n_tokens.tolist())
        return read + flops.latent_flops(model, len(text.sentences), training=job.training)

    return run, count


def _latent_encoding_decoding(job: Job, device: torch.device) -> tuple[Run, Count]:
    """The document's own vectors are worded, so that texts come out as long as sentences are; the latent transformer is untrained."""
    encoder = load_encoder(job.encoder, device=job.device)
    before, count_before = _latent_encoding(job, device, encoder)
    source = DecoderSource(encoder=encoder.fingerprint(), device=device, adapter=job.adapter, lm=job.lm, quiet=True)
    decoder = source.prefix()
    written: list[str] = []

    def run(text: Text) -> dict[str, float]:
        parts = before(text)
        S = len(text.sentences)
        chosen = np.linspace(0, S - 1, min(S, job.decode_sentences)).round().astype(int)
        z_BD = encoder.encode([text.sentences[s] for s in chosen]).vectors
        sample = _timed(device, lambda: written.__setitem__(slice(None), decoder.decode(z_BD)))
        return parts | {"decoding": sample * S / len(chosen)}

    def count(text: Text) -> float:
        lengths = [len(ids) + 1 for ids in decoder.lm.tokens.encode(written)]
        prefix = decoder.conditions(encoder.encode(text.sentences[:1]).vectors)[0].shape[1]
        writing = flops.writing_flops(decoder.lm, prefix, lengths)
        return count_before(text) + writing * len(text.sentences) / len(lengths)

    return run, count


def _latent_pass(job: Job, device: torch.device) -> tuple[LatentTransformer, Callable[[Tensor], None]]:
    """The latent transformer, and one causal pass or training step over all sentences of a document."""
    goals = ObjectiveSettings()
    model = LatentTransformer(LatentConfig(dim=job.dim, model=ModelSettings(**job.model), temperature=goals.temperature)).to(device)
    model.restoration.requires_grad_(False)
    model.mask_vector.requires_grad_(False)
    step = _stepper(model, device, job.training)

    def loss(z_BSD: Tensor) -> Tensor:
        source_N = torch.arange(z_BSD.shape[1] - 1, device=device)
        prediction_BSD = model(z_BSD)
        mse = objectives.mse(prediction_BSD, z_BSD, source_N, source_N + 1, model.normaliser.scale)
        logits_NN = objectives.contrast_logits(
            prediction_BSD[0, :-1], z_BSD[0, 1:], model.log_temperature, temperature_min=goals.temperature_min
        )
        # Those already read are no negatives, as in lsm pretrain.
        blocked_NN = source_N[None] < source_N[:, None]
        return goals.mse * mse + goals.infonce * objectives.infonce(logits_NN, blocked_NN, focus=goals.focus)

    return model, lambda z_BSD: step(lambda: loss(z_BSD), lambda: model(z_BSD))


Work = Callable[[], Tensor]


def _stepper(model: nn.Module, device: torch.device, training: bool) -> Callable[[Work, Work], None]:
    """step(loss, forward): an AdamW step on the loss when `training`, else the forward pass without gradients."""
    dtype = fast_dtype(device)[0]
    optimizer = make_optimizer(model, OptimizerSettings()) if training else None
    model.train(training)

    def step(loss: Work, forward: Work) -> None:
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            if optimizer is None:
                with torch.inference_mode():
                    forward()
                return
            value = loss()
        value.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def _timed(device: torch.device, work: Callable[[], Any]) -> float:
    _synchronise(device)
    start = time.perf_counter()
    work()
    _synchronise(device)
    return time.perf_counter() - start


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def _import_libraries(job: Job) -> None:
    """Code is not the system's memory: what will be imported is imported before the baseline is taken."""
    from importlib import import_module

    names = [] if job.system in ("token-full", "token-window", "latent") else ["lsm.encode.transformer_encoder", "transformers.models.bert"]
    if job.system == "latent-encoding-decoding":
        names += ["lsm.decode.decoders", "transformers.models.llama.modeling_llama"]
    for name in names:
        import_module(name)
    nn.Linear(8, 8).to(job.device)(torch.zeros(1, 8, device=job.device)).sum().backward()


def perform(job: Job) -> None:
    """Measure and write the result; too little memory is a result too."""
    try:
        found = measure(job)
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError | torch.OutOfMemoryError) and "allocate memory" not in str(error):
            raise
        found = {"skipped": OUT_OF_MEMORY, "limit_seconds": job.limit_seconds}
    write_json(Path(job.result), {"results": {"asked": job.asked} | found})


def main(path: str) -> int:
    """The process: 0, or 2 with a line on stderr for what the user can mend."""
    end_with_parent()
    try:
        perform(Job.load(Path(path)))
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
