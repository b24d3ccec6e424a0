"""What the training loop asks of the thing it trains."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from lsm.training.distributed import ALONE, Ranks

if TYPE_CHECKING:
    from torch import Tensor, nn


class Task(Protocol):
    """Something to train. Inherit from it explicitly: `ranks` and the methods after `save_final` then have defaults.

    The loop never looks into a batch. All randomness must come from the batch's index (see `step_generator`) or from torch's global
    generator, which the loop seeds before each batch; so a resumed run repeats an unbroken one bit for bit.
    """

    name: str
    """A word for titles, such as `latent transformer`."""

    module: nn.Module
    """Holds every trained parameter, on its device; frozen parameters in it are neither saved nor averaged."""

    ranks: Ranks = ALONE
    """The processes that share each batch: where there are several, `loss` is this one's part of it, scaled so that the mean over the
    processes is the loss of the whole batch."""

    def batch(self, index: int) -> Any:
        """Batch number `index` (0-based; `accumulate` of them make one step): a pure function of the index, on the module's device."""
        ...

    def loss(self, batch: Any) -> tuple[Tensor, dict[str, Any]]:
        """The loss (a float32 scalar with gradient) and further scalars for the log. Runs under autocast."""
        ...

    def evaluate(self) -> dict[str, float]:
        """Scores on held-out data. The module is in eval mode, without gradients, holding the averaged weights."""
        ...

    def save_final(self, folder: Path) -> None:
        """Write what a user loads later into the folder `folder`; the module holds the averaged weights. Equal runs, equal bytes."""
        ...

    def fingerprint(self) -> dict[str, Any]:
        """What the result depends on beside the settings and the seed: corpus, encoder, frozen LM. A resume with another one is refused."""
        return {}

    def prepare(self, folder: Path, *, quiet: bool) -> None:
        """Long work before the first step: results kept in `folder` (within the run's) are found again when it is resumed."""
        return

    def plan(self) -> list[str]:
        """Lines of the printed plan: data, FLOPs, whatever a person should see before the work starts."""
        return []

    def describe_batch(self, batch: Any) -> str:
        """Ids of what is in a batch, printed when its loss is not finite."""
        return "not described"

    def units(self, batch: Any) -> dict[str, float]:
        """How much is in a batch (of all processes), for the throughput: a number for each unit."""
        return {"batches": 1}

    def flops_per_step(self) -> float:
        """Arithmetic of one optimizer step over all processes, for the share of the hardware's rate that is used; 0 = not known."""
        return 0.0

    def layers(self) -> Sequence[nn.Module]:
        """The modules that make up most of the arithmetic: each is sharded, compiled and computed again as one."""
        return ()
