"""The shipped latent transformer: found by its name, small enough, at home in MiniLM's vectors, with all its heads."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

import lsm
from lsm.encode.encoder import load_encoder
from lsm.latent.heads import VectorSampling
from lsm.latent.saved import meant
from lsm.latent.trained_on import read_trained_on
from lsm.latent.transformer import LatentTransformer
from lsm.lm.frozen import FrozenLM
from lsm.lm.tokens import log_odds

NAME = "minilm-4m"
STORIES = [
    "The harbour lay still before dawn. Two boats came in with the tide. Their nets were full of herring. The crew took them up the quay.",
    "The committee met on Monday. It voted to raise the tax on land. The farmers of the valley protested. A new election was called.",
]


def test_all_shipped_weights_together_stay_within_40_mb() -> None:
    assert sum(path.stat().st_size for path in Path(lsm.__file__).parent.rglob("*.safetensors")) <= 40_000_000


def test_it_expects_what_comes_next_and_knows_what_it_read() -> None:
    model, encoder = LatentTransformer.from_pretrained(NAME), load_encoder("minilm")
    assert model.config.encoder["sha256"] == encoder.fingerprint()["sha256"]
    assert len(read_trained_on(meant(Path(NAME))) or ()) > 1000
    z_BSD = torch.from_numpy(
        np.stack([encoder.encode([f"{text}." for text in story.rstrip(".").split(". ")]).vectors for story in STORIES])
    )
    expected_BSD, drawn_BSD = model.predict(z_BSD), model.predict(z_BSD, sampling=VectorSampling(seed=1))
    assert not torch.allclose(expected_BSD, drawn_BSD, atol=1e-2)
    own, other = (float((expected_BSD[:, :-1] * z_BSD.roll(shift, 0)[:, 1:]).sum(-1).mean()) for shift in (0, 1))
    assert own > other + 0.1
    lm = FrozenLM.load("smollm2-135m-instruct")
    assert model.lexical is not None
    model.lexical.attach(lm)
    odds_BV = log_odds(model.lexical.shares(model.forecast(z_BSD)[:, -1]), model.lexical.share_V)
    (sea,), (vote,) = lm.tokens.encode([" sea"]), lm.tokens.encode([" vote"])
    lead_BV = odds_BV[0] - odds_BV[1]
    assert lead_BV[sea] > 0 > lead_BV[vote]
