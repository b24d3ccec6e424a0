"""Options of the verbs that let a latent transformer with a sampling head draw vectors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lsm.config import CommonOptions

if TYPE_CHECKING:
    from lsm.latent.heads import VectorSampling
    from lsm.latent.transformer import LatentTransformer


@dataclass(kw_only=True)
class SamplingOptions(CommonOptions):
    """What `generate` and `evaluate` share, for models with a sampling head; refused for others."""

    temperature: float = 1.0
    """Scale of the noise that drawn vectors start from; 0 = one vector always, 1 = the distribution that was learned."""
    guidance: float = 1.0
    """How far beyond what it would say without context a flow or diffusion head goes; 1 = no guidance."""
    sampling_steps: int = 40
    """Steps from noise to a vector (flow, diffusion)."""

    def sampling(self, model: LatentTransformer) -> VectorSampling | None:
        """How the model draws; None where it has no head to draw with.

        Raises:
            UserError: a value out of range.
        """
        from lsm.errors import UserError
        from lsm.latent.heads import VectorSampling

        if not self.temperature >= 0:
            raise UserError(f"--temperature {self.temperature}: must not be negative")
        if not self.guidance >= 0:
            raise UserError(f"--guidance {self.guidance}: must not be negative")
        if self.sampling_steps < 1:
            raise UserError(f"--sampling-steps {self.sampling_steps}: must be at least 1")
        kind = model.config.model.sampler
        of_steps = ("guidance", "sampling_steps") if kind == "energy" else ()
        ignored = ("temperature", "guidance", "sampling_steps") if model.sampler is None else of_steps
        chosen = [f"--{name.replace('_', '-')}" for name in ignored if getattr(self, name) != getattr(SamplingOptions, name)]
        if chosen:
            why = (
                "has no sampling head to draw with"
                if model.sampler is None
                else "draws by an energy head, in one step and without guidance"
            )
            raise UserError(f"{', '.join(chosen)}: the model {why}; leave them out")
        if self.guidance != 1 and not model.config.guidable:
            raise UserError(f"--guidance {self.guidance}: the model never learned to do without context (objectives.hide_state 0)")
        if model.sampler is None:
            return None
        return VectorSampling(temperature=self.temperature, guidance=self.guidance, steps=self.sampling_steps, seed=self.seed)
