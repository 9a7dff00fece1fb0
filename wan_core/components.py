"""The built parts of a pipeline: experts, text encoder and VAE, each with its weights, its place and its decisions.

They hold no profile and no request. What is specific to a run (conditioning, schedule, hooks) is passed in and dies
with the run, so that a component can be used again after an interrupt or an error without a reset.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .adaptation import ExpertLoras
from .compilation import Region
from .errors import InputError, Interrupted
from .hooks import RunHooks
from .models.t5 import Umt5Encoder, encode_prompts
from .models.tokenizer import Tokenizer
from .models.transformer import WanTransformer
from .models.vae21 import WanVae
from .models.vae_tiling import Tile, decode_tiled_chunks, encode_tiled
from .offload.residency import KeepResident, Residency, TakeTurns
from .offload.weights import Place, Weights
from .pacing import Pacer
from .placement import Placement
from .report import Decision
from .specs import Expert, TransformerSpec, latent_frames

_CACHED_PROMPTS = 32
_TEXT = "text encoder"


@dataclass(frozen=True, slots=True, kw_only=True)
class Experts:
    """Both transformers, built from one plan. `residency.activate(expert)` brings one to the device.

    region: the compiled blocks of both, which may fall back to another mode in a run.
    loras: what follows the strengths of each run; `wanted` is set before an expert is activated, `settle` called after.
    """

    spec: TransformerSpec
    transformers: Mapping[Expert, WanTransformer]
    loras: Mapping[Expert, ExpertLoras]
    weights: Mapping[Expert, Weights]
    residency: Residency
    placement: Placement
    decisions: tuple[Decision, ...]
    key: str
    weights_key: str
    region: Region

    @property
    def places(self) -> dict[Expert, Place]:
        """Where the weights of each expert are now."""
        return {expert: weights.place for expert, weights in self.weights.items()}


class TextEncoder:
    """Prompts to embeddings (B, 512, D), float32 on the host; positions past a prompt's end are zero."""

    def __init__(self, weights: Weights, tokenizer: Tokenizer, decisions: Sequence[Decision]) -> None:
        self.weights = weights
        self.tokenizer = tokenizer
        self._residency = TakeTurns({_TEXT: weights}) if weights.streamed else KeepResident({_TEXT: weights})
        self.decisions = tuple(decisions)
        self._cache: OrderedDict[str, Tensor] = OrderedDict()

    @property
    def dim(self) -> int:
        return self._encoder.spec.dim

    @property
    def _encoder(self) -> Umt5Encoder:
        return self.weights.module

    def is_cached(self, prompts: Sequence[str]) -> bool:
        """Whether encoding these prompts needs no weights."""
        return all(prompt in self._cache for prompt in prompts)

    def notes(self, prompts: Mapping[str, str]) -> list[str]:
        """What a user should know about their prompts, by the name of each: empty, or too long."""
        notes = []
        for name, prompt in prompts.items():
            tokens = self.tokenizer.encode(prompt)
            if not prompt.strip():
                notes.append(f"the {name} is empty; the embedding of an empty text is used")
            elif tokens.num_dropped:
                notes.append(
                    f"the {name} is {len(tokens.ids) + tokens.num_dropped} tokens long; the last "
                    f"{tokens.num_dropped} are not used, the model takes {len(tokens.ids)}"
                )
        return notes

    def encode(self, prompts: Sequence[str], hooks: RunHooks) -> Tensor:
        """Embeddings of the prompts, in their order; equal prompts are encoded once."""
        missing = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._cache]
        if missing:
            try:
                self._residency.activate(_TEXT, hooks.on_load)
                with torch.inference_mode(), Pacer(self._encoder.blocks, hooks.should_stop):
                    encoded = encode_prompts(self._encoder, self.tokenizer, missing)
            finally:
                self._residency.release()
            # A copy made outside inference mode is an ordinary tensor that the host may do anything with.
            self._cache.update(zip(missing, encoded.float().cpu().clone(), strict=True))
        result = torch.stack([self._cache[prompt] for prompt in prompts])
        for prompt in prompts:
            self._cache.move_to_end(prompt)
        while len(self._cache) > _CACHED_PROMPTS:
            self._cache.popitem(last=False)
        return result


class Vae:
    """Latents in raw VAE space (B, 16, T, H, W) to video (B, 3, F, 8H, 8W) in [-1, 1], and back."""

    def __init__(self, weights: Weights, decisions: Sequence[Decision]) -> None:
        self.weights = weights
        self.decisions = tuple(decisions)

    @property
    def _vae(self) -> WanVae:
        return self.weights.module

    def decode_chunks(self, latent: Tensor, tile: Tile | None, hooks: RunHooks) -> Iterator[Tensor]:
        """Frames as they are decoded: one, then four for every further latent frame, on the device.

        In tiles, all frames come when the last tile is done; the hooks see every tile's chunks.
        """
        self._load(hooks)
        latent = latent.to(self.weights.device)
        if tile is None:
            return _watched(self._vae.decode_chunks(latent), latent.shape[2], hooks)
        return decode_tiled_chunks(self._vae, latent, tile, on_progress=_progress(hooks))

    def encode_chunks(self, video: Tensor, tile: Tile | None, hooks: RunHooks) -> Iterator[Tensor]:
        """Latent frames (B, 16, 1, H, W) as they are encoded, on the device; in tiles, all come when the last is done.

        The video may wait on the host: it is taken to the device chunk by chunk.
        """
        if video.shape[-1] % 16 or video.shape[-2] % 16:
            raise InputError(
                f"video is {video.shape[-1]}x{video.shape[-2]}, expected multiples of 16; the nearest is "
                f"{max(video.shape[-1] // 16, 1) * 16}x{max(video.shape[-2] // 16, 1) * 16}"
            )
        self._load(hooks)
        if tile is None:
            return _watched(self._vae.encode_chunks(video), latent_frames(video.shape[2]), hooks)
        return iter(encode_tiled(self._vae, video, tile, on_progress=_progress(hooks)).split(1, dim=2))

    def _load(self, hooks: RunHooks) -> None:
        self.weights.to_device(lambda done, total: hooks.on_load("VAE", done, total))


def _watched(chunks: Iterator[Tensor], total: int, hooks: RunHooks) -> Iterator[Tensor]:
    """The chunks of a VAE run with its hooks asked and told between them."""
    progress = _progress(hooks)
    for done, chunk in enumerate(chunks, start=1):
        yield chunk
        progress(done, total)


def _progress(hooks: RunHooks) -> Callable[[int, int], None]:
    def progress(done: int, total: int) -> None:
        hooks.on_chunk(done, total)
        if hooks.should_stop():
            raise Interrupted("stopped between two chunks of the VAE")

    return progress
