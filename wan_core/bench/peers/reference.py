"""The reference implementation (Wan-Video/Wan2.2) as it ships: two passes, eager, float32 weights under autocast.

Its files are imported one by one: the packages around them import all of its models. Attention is its own wherever it
finds FlashAttention 2 or 3; else PyTorch's FlashAttention 2 kernel stands in, fed as the original feeds its kernel. The
timestep is expanded over the tokens by its own code, and text is embedded in every forward, as in its own loop.

Option `bf16`: weights converted to bfloat16 (its `--convert_model_dtype`), and a bfloat16 VAE, which it does not offer.
"""

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from ...checkpoint.keys import TEXT_ENCODER_OFFICIAL, TRANSFORMER_OFFICIAL, VAE_OFFICIAL
from ...errors import UnsupportedError
from ..breakdown import place
from ..operations import GUIDANCE
from ..prompts import prompt_ids
from ..random_weights import fill_module
from ..task import PARTS, Facts, Part, Prepared, Task, dtype_name
from .checkout import check_checkout, commit_of, import_file, importing

WHAT = "the reference implementation (Wan-Video/Wan2.2)"
MARKER = "wan/modules/model.py"
OPTIONS = ("bf16",)

_PACKAGE = "wan22_reference"
_TEXT_LENGTH = 512


class ReferenceCandidate:
    """The reference from the checkout `root`; raises `InputError` for a folder that is none."""

    is_peer = True
    parts = PARTS

    def __init__(self, name: str, root: Path, options: frozenset[str]) -> None:
        self.name = name
        self._root = check_checkout(root, MARKER, WHAT)
        self._is_bf16 = "bf16" in options

    def prepare(self, part: Part, task: Task) -> Prepared:
        if self._is_bf16 and not task.device.startswith("cuda"):
            raise UnsupportedError(f"{self.name} needs an NVIDIA GPU: its autocast knows no other device")
        with importing(WHAT):
            return {"step": self._step, "vae": self._vae, "text": self._text}[part](task)

    def _step(self, task: Task) -> Prepared:
        code, spec, is_cuda = _import_model(self._root), task.transformer, task.device.startswith("cuda")
        with torch.device(task.device):
            model = code.model.WanModel(
                model_type="t2v", patch_size=spec.patch, text_len=spec.text_len, in_dim=spec.in_dim, dim=spec.dim,
                ffn_dim=spec.ffn_dim, freq_dim=spec.freq_dim, text_dim=spec.text_dim, out_dim=spec.out_dim,
                num_heads=spec.num_heads, num_layers=spec.num_layers, eps=spec.eps,
            )  # fmt: skip
        fill_module(model, TRANSFORMER_OFFICIAL.to_official)
        if self._is_bf16:
            model.to(torch.bfloat16)
        latent, contexts = task.latent()[0], task.contexts()
        timestep = torch.tensor([int(task.timestep)], device=task.device)

        def run() -> Tensor:
            with _autocast(is_cuda), torch.no_grad(), place(GUIDANCE):
                cond, uncond = (
                    model([latent], t=timestep, context=[context], seq_len=task.num_tokens)[0] for context in contexts
                )
                return (uncond + task.guidance * (cond - uncond)).unsqueeze(0)

        weights = "bfloat16 weights" if self._is_bf16 else "float32 weights"
        weights += " under bfloat16 autocast" if is_cuda else ""
        products = "bfloat16" if is_cuda else "float32"
        return Prepared(
            run=run,
            module=model,
            facts=self._facts(f"{weights}, {code.attention}, two passes, eager", products),
        )

    def _vae(self, task: Task) -> Prepared:
        code, spec = _import_file(self._root, "vae2_1"), task.vae
        with torch.device(task.device):
            vae = code.WanVAE_(
                dim=spec.dim, z_dim=spec.latent_channels, dim_mult=list(spec.dim_multipliers),
                num_res_blocks=spec.num_res_blocks, attn_scales=[], temperal_downsample=list(spec.temporal_downsample),
                dropout=0.0,
            )  # fmt: skip
        dtype = torch.bfloat16 if self._is_bf16 else torch.float32
        fill_module(vae, VAE_OFFICIAL.to_official)
        vae.to(dtype)
        latent = task.latent().to(dtype)
        # The latent is in raw VAE space already.
        mean, factor = (torch.full((spec.latent_channels,), value, device=task.device).to(dtype) for value in (0, 1))

        def run() -> Tensor:
            with torch.no_grad():
                return vae.decode(latent, [mean, factor]).clamp_(-1, 1)

        name = dtype_name(dtype)
        return Prepared(run=run, module=vae, facts=self._facts(f"{name}, whole frames", name))

    def _text(self, task: Task) -> Prepared:
        with _importable_t5():
            code = _import_file(self._root, "t5")
        spec = task.text
        dtype = torch.bfloat16 if task.device.startswith("cuda") else torch.float32
        with torch.device(task.device):
            encoder = code.T5Encoder(
                vocab=spec.vocab_size, dim=spec.dim, dim_attn=spec.attention_dim, dim_ffn=spec.ffn_dim,
                num_heads=spec.num_heads, num_layers=spec.num_layers, num_buckets=spec.num_buckets, shared_pos=False,
            )  # fmt: skip
        encoder.to(dtype)
        fill_module(encoder, TEXT_ENCODER_OFFICIAL.to_official)
        padded = [list(ids) + [0] * (_TEXT_LENGTH - len(ids)) for ids in prompt_ids()]

        def run() -> Tensor:
            embeddings = []
            for row in padded:
                ids = torch.tensor([row], device=task.device)
                mask = ids.ne(0).long()
                with torch.no_grad():
                    embeddings.append(encoder(ids, mask).float() * mask[..., None])
            return torch.cat(embeddings)

        name = dtype_name(dtype)
        return Prepared(
            run=run, module=encoder, facts=self._facts(f"{name}, prompts one by one, padded to {_TEXT_LENGTH}", name)
        )

    def _facts(self, summary: str, dtype: str) -> Facts:
        return Facts(summary=f"{summary}; {commit_of(self._root)}", dtype=dtype)


@dataclass(frozen=True, slots=True)
class _Model:
    """Its transformer's module, and which attention it was given."""

    model: ModuleType
    attention: str


@cache
def _import_model(root: Path) -> _Model:
    own = _import_file(root, "attention")
    model = _import_file(root, "model")
    # FlashAttention 4 is a package `flash_attn` too, and holds nothing of version 2.
    has_version_2 = own.FLASH_ATTN_2_AVAILABLE and hasattr(own.flash_attn, "flash_attn_varlen_func")
    if own.FLASH_ATTN_3_AVAILABLE or has_version_2:
        return _Model(model, f"its own FlashAttention {3 if own.FLASH_ATTN_3_AVAILABLE else 2}")
    model.flash_attention = _flash_attention
    return _Model(model, "torch's FlashAttention 2 for its own")


@cache
def _import_file(root: Path, stem: str) -> ModuleType:
    package = sys.modules.setdefault(_PACKAGE, ModuleType(_PACKAGE))
    modules = root / "wan" / "modules"
    package.__path__ = [str(modules)]
    return import_file(modules / f"{stem}.py", f"{_PACKAGE}.{stem}")


@contextmanager
def _autocast(is_cuda: bool) -> Iterator[None]:  # noqa: FBT001
    """Its outer autocast; on a CPU there is none, and the inner ones warn of that in every forward."""
    with torch.amp.autocast("cuda", dtype=torch.bfloat16, enabled=is_cuda), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="CUDA is not available")
        yield


def _flash_attention(
    q: Tensor, k: Tensor, v: Tensor, k_lens: Tensor | None = None, window_size: tuple[int, int] = (-1, -1)
) -> Tensor:
    """Stands in for its `flash_attention`: q, k, v (B, L, N, D), half precision inside, answered in the dtype of q.

    Lengths and window are those of one sample without padding, so they say nothing. On a CPU nothing is rounded.
    """
    tensors = (tensor.transpose(1, 2) for tensor in (q, k, v))
    if not q.is_cuda:
        return F.scaled_dot_product_attention(*tensors).transpose(1, 2).contiguous()
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        half = F.scaled_dot_product_attention(*(tensor.to(torch.bfloat16) for tensor in tensors))
    return half.transpose(1, 2).contiguous().to(q.dtype)


@contextmanager
def _importable_t5() -> Iterator[None]:
    """Its `t5.py` imports a tokenizer with packages of its own, and asks for the current CUDA device as it is read."""
    tokenizers = ModuleType(f"{_PACKAGE}.tokenizers")
    tokenizers.HuggingfaceTokenizer = None
    sys.modules[tokenizers.__name__] = tokenizers
    current_device = torch.cuda.current_device
    if not torch.cuda.is_available():
        torch.cuda.current_device = lambda: "cpu"
    try:
        yield
    finally:
        torch.cuda.current_device = current_device
