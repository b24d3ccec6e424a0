"""One thread for the latent runs."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """Matrices this small are slower on two threads."""
    torch.set_num_threads(1)
