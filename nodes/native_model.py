"""ComfyUI's own Wan model, accelerated in place: what there is to be accelerated, and a clone that is.

Everything hangs on the clone: a DIFFUSION_MODEL wrapper and an attention override in its transformer options. The
wrapper works on the blocks of whatever instance it is called for, since a clone may come to stand for another one
(TorchCompileModel loads the model anew, several GPUs hold one each), and it puts their own forward back before it
returns: a model that is not running is as it was.
"""

from collections.abc import Callable
from weakref import WeakKeyDictionary

import comfy.ldm.wan.model as wan
import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrapperExecutor, WrappersMP
from torch import Tensor, nn

from ..wan_core.errors import InputError
from ..wan_core.kernels.block import BlockKernels
from ..wan_core.native.facts import NativeModel
from ..wan_core.native.kernels import AttentionKernels
from ..wan_core.native.override import AttentionOverride, without_ours
from .native_blocks import candidates, fused, is_same, left_alone, trial_error

_KEY = "wan_velocity"
_COMPILE_KEY = "torch.compile"  # the host's own, of the wrapper with which it compiles whole models
_OVERRIDE = "optimized_attention_override"


def read(model: ModelPatcher) -> NativeModel:
    """What there is to be accelerated; raises `InputError` for a model that is no Wan."""
    transformer = model.get_model_object("diffusion_model")
    if not isinstance(transformer, wan.WanModel):
        raise InputError(
            f"the model is a {type(model.model).__name__}, expected a Wan 2.1 or 2.2 model, such as Load Diffusion "
            "Model gives for a Wan file"
        )
    left = map(left_alone, candidates(transformer))
    options = model.model_options["transformer_options"]
    return NativeModel(
        name=type(model.model).__name__,
        num_blocks=len(transformer.blocks),
        num_heads=transformer.num_heads,
        head_dim=transformer.dim // transformer.num_heads,
        dtype=str(model.model.manual_cast_dtype or model.model.get_dtype()).removeprefix("torch."),
        left=tuple(reason for reason in left if reason is not None),
        compiled_whole=bool(model.get_wrappers(WrappersMP.APPLY_MODEL, _COMPILE_KEY)),
        has_override=without_ours(options.get(_OVERRIDE)) is not None,
    )


def accelerated(
    model: ModelPatcher, kernels: AttentionKernels, work: BlockKernels | None, say: Callable[[str], None]
) -> ModelPatcher:
    """A clone whose attention runs on `kernels` and, unless it is `None`, whose blocks do their work by `work`.

    What an earlier application of this left on the model is replaced. say: told where the blocks are left after all.
    """
    clone = model.clone()
    clone.remove_wrappers_with_key(WrappersMP.DIFFUSION_MODEL, _KEY)
    if work is not None:
        clone.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, _KEY, _FusedBlocks(work, say))
    options = clone.model_options["transformer_options"]
    options[_OVERRIDE] = AttentionOverride(kernels, clone.load_device, without_ours(options.get(_OVERRIDE)))
    return clone


class _FusedBlocks:
    """The wrapper. Each instance of the model that it meets is tried once, on its own weights."""

    def __init__(self, work: BlockKernels, say: Callable[[str], None]) -> None:
        self._work = work
        self._say = say
        self._is_ours: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()

    def __call__(self, executor: WrapperExecutor, *args: object, **kwargs: object) -> Tensor:
        # Where somebody compiles the model whole, the compiler fuses the same work.
        if torch.compiler.is_compiling() or not self._try(executor.class_obj, args[0]):
            return executor(*args, **kwargs)
        with fused(executor.class_obj, self._work):
            return executor(*args, **kwargs)

    def _try(self, transformer: nn.Module, latent: Tensor) -> bool:
        if transformer not in self._is_ours:
            error = trial_error(transformer, self._work, latent)
            if error is None:
                # Not to be remembered: another clone of the same model may run without what stands there now.
                self._say("block work: off (another node has put something else in place of every block)")
                return False
            self._is_ours[transformer] = is_same(error, latent.dtype)
            if not self._is_ours[transformer]:
                self._say(f"block work: off (on a trial this ComfyUI's own differs from ours by {error:.1e})")
        return self._is_ours[transformer]
