"""The host's own forms of data, as tensors that the core takes: LATENT and CONDITIONING, checked on the way in.

What a native sampler would apply and ours does not is refused with a sentence rather than ignored.
"""

from torch import Tensor

from ..wan_core.errors import InputError
from ..wan_core.specs import T2V_A14B

LATENT_CHANNELS = T2V_A14B.latent_channels


def latent_samples(latent: dict[str, Tensor]) -> Tensor:
    """The tensor (B, 16, T, H, W) of a LATENT; raises `InputError` for any other latent."""
    samples = latent["samples"]
    if samples.ndim != 5 or samples.shape[1] != LATENT_CHANNELS:
        hint = "; 48 channels are a latent of the Wan 2.2 VAE, for the 5B model" if samples.shape[1] == 48 else ""
        raise InputError(
            f"the latent has shape {tuple(samples.shape)}, expected a video latent (batch, {LATENT_CHANNELS}, frames, "
            f"height / 8, width / 8), such as Wan Empty Latent gives{hint}"
        )
    return samples


def refuse_noise_mask(latent: dict[str, Tensor]) -> None:
    """Raise `InputError` for a LATENT with a mask."""
    if latent.get("noise_mask") is not None:
        raise InputError("the latent carries a noise mask, which the Wan sampler does not apply; remove the mask")


def embeddings(name: str, conditioning: list[tuple[Tensor, dict[str, object]]]) -> Tensor:
    """The text embedding (B, L, D) of a CONDITIONING; `InputError` for areas, masks, ranges and combinations."""
    if len(conditioning) != 1:
        raise InputError(
            f"{name} conditioning has {len(conditioning)} entries, expected one: a prompt in one text encode node, or "
            "conditionings joined by averaging"
        )
    tensor, options = conditioning[0]
    extra = sorted(key for key, value in options.items() if key != "pooled_output" and value is not None)
    if extra:
        raise InputError(
            f"{name} conditioning carries {', '.join(map(repr, extra))}, which the Wan sampler does not apply; connect "
            "the text encoder without the node that adds it"
        )
    return tensor


def conditioning(embedding: Tensor) -> list[list[object]]:
    """CONDITIONING of one text embedding; T5 has no pooled output, and the native encoder says so in this way."""
    return [[embedding, {"pooled_output": None}]]
