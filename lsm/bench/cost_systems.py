"""The systems that `lsm bench cost` measures, each built once and run on texts; which parts of a run are timed is decided here.

Shape letters: B rows, S sentences, D vector width, T tokens, N positions.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from lsm.bench import flops
from lsm.bench.cost_text import Text
from lsm.bench.token_transformer import TokenTransformer
from lsm.decode.load import DecoderSource
from lsm.encode.encoder import SentenceEncoder, load_encoder
from lsm.latent import objectives
from lsm.latent.settings import ModelSettings, ObjectiveSettings
from lsm.latent.transformer import LatentConfig, LatentTransformer
from lsm.provenance import fast_dtype
from lsm.training.optimizer import make_optimizer
from lsm.training.settings import OptimizerSettings

if TYPE_CHECKING:
    from lsm.bench.cost_cell import Job

Run = Callable[[Text], dict[str, float]]
"""Does the work once; seconds of each part."""
Count = Callable[[Text], float]
"""Floating-point operations of the work."""
Work = Callable[[], Tensor]
"""A loss or a forward pass."""


def _token(job: Job, device: torch.device, window: int | None) -> tuple[Run, Count]:
    """A training step tells the output layer, with its gradients, from the rest: a large vocabulary weighs more than the blocks."""
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
        writing = flops.writing_flops(decoder.lm, prefix, lengths) + flops.adapter_flops(decoder.adapter, decoder.lm, lengths)
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
        mse = objectives.mse(prediction_BSD[0, source_N], z_BSD[0, source_N + 1], model.normaliser.scale)
        logits_NN = objectives.contrast_logits(
            prediction_BSD[0, :-1], z_BSD[0, 1:], model.log_temperature, temperature_min=goals.temperature_min
        )
        # Those already read are no negatives, as in lsm pretrain.
        blocked_NN = source_N[None] < source_N[:, None]
        return goals.mse * mse + goals.infonce * objectives.infonce(logits_NN, blocked_NN, focus=goals.focus)

    return model, lambda z_BSD: step(lambda: loss(z_BSD), lambda: model(z_BSD))


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


SYSTEMS: dict[str, Callable[[Job, torch.device], tuple[Run, Count]]] = {
    "token-full": lambda job, device: _token(job, device, None),
    "token-window": lambda job, device: _token(job, device, job.window),
    "latent": _latent,
    "latent-encoding": _latent_encoding,
    "latent-encoding-decoding": _latent_encoding_decoding,
}
"""How each is built: its run, and its count."""
