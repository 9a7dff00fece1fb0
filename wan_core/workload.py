"""What is to be computed, as far as a plan has to know it."""

from dataclasses import dataclass

from .checkpoint.lora_pair import LoraChoice
from .recipes import SampleRequest
from .specs import Expert


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """What is to be computed: the latent (T, H, W), the number of videos in the batch, the request, and the LoRAs."""

    request: SampleRequest
    latent_size: tuple[int, int, int]
    batch: int = 1
    loras: tuple[LoraChoice, ...] = ()

    @property
    def is_guided(self) -> bool:
        """Whether any step needs an unconditional pass."""
        return any(self.request.recipe.guidance(expert) != 1.0 for expert in Expert)
