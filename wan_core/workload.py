"""What is to be computed, as far as a plan has to know it."""

from dataclasses import dataclass

from .checkpoint.lora_pair import LoraChoice
from .errors import InputError
from .recipes import SampleRequest
from .specs import Expert
from .storage import NOTHING_STORED, StoredLayers


def check_sides(latent_size: tuple[int, int, int]) -> None:
    """Raise `InputError` for a latent (T, H, W) that the patches of a transformer do not cover."""
    _, height, width = latent_size
    if height % 2 or width % 2:
        raise InputError(f"latent is {width}x{height}, expected even sides (a video size in multiples of 16)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """What is to be computed: the latent (T, H, W), the number of videos in the batch, the request, and the LoRAs.

    stored: layers of the experts that can stay as their files store them.
    """

    request: SampleRequest
    latent_size: tuple[int, int, int]
    batch: int = 1
    loras: tuple[LoraChoice, ...] = ()
    stored: StoredLayers = NOTHING_STORED

    def __post_init__(self) -> None:
        check_sides(self.latent_size)

    @property
    def is_guided(self) -> bool:
        """Whether any step needs an unconditional pass."""
        return any(self.request.recipe.guidance(expert) != 1.0 for expert in Expert)
