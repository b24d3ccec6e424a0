"""One thread for the latent runs, and a workshop: everything that writing needs, made of a toy text."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """Matrices this small are slower on two threads."""
    torch.set_num_threads(1)


DEEDS = [f"{deed} {place}" for deed in ("sleeps", "sings") for place in ("at home", "by the sea")]
TEXT = " ".join(f"The {animal} {deed}." for animal in ("fox", "crow", "hare", "wolf") for deed in DEEDS)


@pytest.fixture(scope="session")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a text, its stub corpus, index, latent run and adapter, all made through the command line."""
    from lsm.cli import main

    folder = tmp_path_factory.mktemp("workshop")
    docs = folder / "docs"
    docs.mkdir()
    words = TEXT.split(". ")
    for number in range(12):
        (docs / f"{number:02d}.txt").write_text(". ".join(words[number:] + words[:number]).replace("..", ".") + "\n")
    latent = folder / "latent.yaml"
    latent.write_text(
        "steps: 2\nthreads: 1\neval_every: 2\nsave_every: 2\noptimizer: {warmup_steps: 1}\n"
        "model: {hidden: 32, layers: 1, heads: 2, context: 16}\n"
    )
    commands: list[list[object]] = [
        ["encode-corpus", docs, "--out", folder / "corpus", "--encoder", "stub", "--workers", 1, "--quiet"],
        ["build-index", "--corpus", folder / "corpus", "--out", folder / "store", "--quiet"],
        ["pretrain", "--corpus", folder / "corpus", "--out", folder / "run", "--config", latent, "--quiet"],
        [
            "train-decoder", "--corpus", folder / "corpus", "--out", folder / "adapter", "--quiet", "--threads", 1, "--steps", 10,
            "--config", Path(__file__).parents[2] / "configs" / "decoder-tiny.yaml",
        ],
    ]  # fmt: skip
    for command in commands:
        assert main([str(part) for part in command]) == 0, command
    return folder
