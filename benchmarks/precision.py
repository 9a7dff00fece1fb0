"""What bfloat16 costs: our transformer and the reference's arithmetic against float32, same weights, same inputs.

    python -m benchmarks.precision --wan22 DIR [--device cuda --dim 5120 --ffn-dim 13824 --heads 40 --tokens 8192]

DIR is a checkout of the reference implementation (Wan-Video/Wan2.2); without it only our rows are printed. Its
`wan/modules/model.py` is imported from there by path, and runs unchanged but for two things it is given:

- `flash_attention` is replaced by the same scaled_dot_product_attention that our rows use, fed as the original feeds
  its kernel: what is not half precision is rounded to bfloat16, and the answer is given back in the dtype of q. So the
  rows differ in arithmetic, not in kernels.
- On the CPU `torch.autocast("cuda")` does nothing, so autocast is emulated. The outer one becomes a bfloat16 autocast
  of the CPU; the inner ones, which ask for float32 (or for nothing), switch that one off. For an inner one to be what
  it is on CUDA, parameters rounded to bfloat16 are held in float32: the outer autocast rounds them again, exactly, and
  the inner ones find float32. One thing would then differ from real bfloat16 parameters: the product of a normed q or
  k with its weight must come out in bfloat16, so those weights alone are held in bfloat16. On CUDA nothing is emulated.

The reference has two rows: parameters converted to bfloat16 (`--convert_model_dtype`) and parameters left in float32
under autocast (its default). All weights are random and rounded to bfloat16 beforehand, so that the error is that of
arithmetic alone. The error is the relative Frobenius norm over two samples at timesteps 950 and 300. The yardstick is
our float32 forward; how far the reference's own float32 forward is from it is printed first.

The exit status is 1 where our rows with a float32 residual stream are worse than the reference's converted one.
"""

import argparse
import importlib.util
import sys
import types
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import torch
from torch import Tensor, nn

from wan_core.attention.backends import BACKENDS
from wan_core.models.transformer import WanTransformer, wants_float32
from wan_core.specs import TransformerSpec

TIMESTEPS = (950.0, 300.0)
FRAMES = 4
TEXT_TOKENS = 64

# PyTorch's own choice of kernel, for every row alike.
attend = {backend.name: backend for backend in BACKENDS}["sdpa"].load()


@dataclass(frozen=True)
class Case:
    """One set of weights and inputs, all on the device and in float32."""

    spec: TransformerSpec
    weights: dict[str, Tensor]
    latent: Tensor
    timestep: Tensor
    context: Tensor

    @property
    def device(self) -> torch.device:
        return self.latent.device

    @property
    def num_tokens(self) -> int:
        return self.spec.num_tokens(tuple(self.latent.shape[2:]))


def make_case(spec: TransformerSpec, tokens: int, seed: int, device: torch.device) -> Case:
    generator = torch.Generator(device=device).manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=device)

    with torch.device("meta"):
        shapes = WanTransformer(spec, attend=attend, cross_attend=attend).state_dict()
    side = 2 * max(1, round((tokens / FRAMES) ** 0.5))
    return Case(
        spec=spec,
        weights={name: draw_weight(name, like.shape, draw) for name, like in shapes.items()},
        latent=draw(len(TIMESTEPS), spec.in_dim, FRAMES, side, side),
        timestep=torch.tensor(TIMESTEPS, device=device),
        context=draw(len(TIMESTEPS), TEXT_TOKENS, spec.text_dim),
    )


def draw_weight(name: str, shape: torch.Size, draw: Callable[..., Tensor]) -> Tensor:
    """Unit-gain products, norm weights around 1, gates of order one half: every block moves the residual stream."""
    if "norm" in name and name.endswith("weight"):
        weight = 1 + 0.1 * draw(*shape)
    elif "modulation" in name:
        weight = 0.5 * draw(*shape)
    elif name.endswith("bias"):
        weight = 0.1 * draw(*shape)
    else:
        weight = draw(*shape) * shape[1:].numel() ** -0.5
    return weight.bfloat16().float()


def run_ours(case: Case, dtype: torch.dtype, residual: torch.dtype | None) -> Tensor:
    with torch.device("meta"):
        model = WanTransformer(case.spec, attend=attend, cross_attend=attend, residual=residual)
    placed = {name: w if wants_float32(name) else w.to(dtype) for name, w in case.weights.items()}
    model.load_state_dict(placed, assign=True)
    return model(case.latent, case.timestep, model.prepare_text(case.context))


def run_reference(case: Case, wan22: Path, parameters: torch.dtype, *, autocast: bool) -> Tensor:
    """The reference's forward: in float32 throughout, or under autocast with parameters of the given dtype."""
    device_type = case.device.type
    inner = cpu_autocast if device_type == "cpu" else torch.amp.autocast
    attention_dtype = torch.bfloat16 if autocast else torch.float32
    # Its own expansion of the timestep over the tokens works for a batch of one only.
    timestep = case.timestep[:, None].expand(-1, case.num_tokens)
    with patch.object(torch.amp, "autocast", inner), reference_model(case, wan22, attention_dtype) as model:
        convert_parameters(model, parameters)
        with torch.autocast(device_type, dtype=torch.bfloat16, enabled=autocast):
            velocity = model(list(case.latent), timestep, list(case.context), case.num_tokens)
    return torch.stack(velocity)


def cpu_autocast(device_type: str, dtype: torch.dtype | None = None, enabled: bool = True) -> AbstractContextManager:  # noqa: FBT001, FBT002
    """Stands for the reference's inner `torch.amp.autocast('cuda', ...)` on the CPU: back to float32."""
    assert device_type == "cuda" and (not enabled or dtype is torch.float32), "an inner region that is not float32"
    return torch.autocast("cpu", enabled=False)


@contextmanager
def reference_model(case: Case, wan22: Path, attention_dtype: torch.dtype) -> Iterator[nn.Module]:
    """The reference's model with the case's weights; its module and our stand-in leave `sys.modules` again."""
    package, attention = types.ModuleType("wan22_reference"), types.ModuleType("wan22_reference.attention")
    package.__path__ = [str(wan22 / "wan" / "modules")]
    spec = importlib.util.spec_from_file_location("wan22_reference.model", wan22 / "wan" / "modules" / "model.py")
    module = importlib.util.module_from_spec(spec)

    def flash_attention(q: Tensor, k: Tensor, v: Tensor, k_lens: object = None, window_size: object = None) -> Tensor:
        rounded = (tensor.to(attention_dtype) for tensor in (q, k, v))
        return attend(*rounded).to(q.dtype)

    attention.flash_attention = flash_attention
    with patch.dict(sys.modules, {package.__name__: package, attention.__name__: attention, spec.name: module}):
        spec.loader.exec_module(module)
        size = case.spec
        with case.device:
            model = module.WanModel(
                model_type="t2v", in_dim=size.in_dim, out_dim=size.out_dim, dim=size.dim, ffn_dim=size.ffn_dim,
                num_heads=size.num_heads, num_layers=size.num_layers, text_dim=size.text_dim,
            )  # fmt: skip
        model.load_state_dict(case.weights, assign=True)
        yield model


def convert_parameters(model: nn.Module, dtype: torch.dtype) -> None:
    """`model.to(dtype)`; on the CPU only where float32 would not give the same numbers (see the module's docstring)."""
    for name, parameter in model.named_parameters():
        if parameter.device.type != "cpu" or ".norm_q." in name or ".norm_k." in name:
            parameter.data = parameter.data.to(dtype)


def relative_error(got: Tensor, expected: Tensor) -> float:
    return float((got.double() - expected.double()).norm() / expected.double().norm())


def measure(case: Case, wan22: Path | None) -> dict[str, float]:
    """Relative Frobenius error of the velocity by row."""
    exact = run_ours(case, torch.float32, torch.float32)
    errors = {}
    if wan22:
        reference = run_reference(case, wan22, torch.float32, autocast=False)
        errors["reference, all float32"] = relative_error(reference, exact)
        for dtype in (torch.bfloat16, torch.float32):
            row = f"reference, autocast, {str(dtype).removeprefix('torch.')} parameters"
            errors[row] = relative_error(run_reference(case, wan22, dtype, autocast=True), exact)
    errors["ours, float32 residual"] = relative_error(run_ours(case, torch.bfloat16, torch.float32), exact)
    errors["ours, bfloat16 residual"] = relative_error(run_ours(case, torch.bfloat16, None), exact)
    return errors


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--wan22", type=Path, help="checkout of the reference implementation")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dim", type=int, default=1280)
    parser.add_argument("--ffn-dim", type=int, default=3456)
    parser.add_argument("--heads", type=int, default=10)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--tokens", type=int, default=256, help="about so many tokens per sample")
    parser.add_argument("--seeds", type=int, default=1, help="weights and inputs are drawn so often; the mean is shown")
    return parser.parse_args()


@torch.inference_mode()
def main() -> int:
    arguments = parse_arguments()
    # A reference in float32 must be one: cuDNN would run its convolution in TF32 by default.
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    spec = TransformerSpec(
        dim=arguments.dim, ffn_dim=arguments.ffn_dim, num_heads=arguments.heads, num_layers=arguments.layers,
        in_dim=16, out_dim=16, text_dim=4096,
    )  # fmt: skip
    runs = []
    for seed in range(arguments.seeds):
        case = make_case(spec, arguments.tokens, seed, torch.device(arguments.device))
        runs.append(measure(case, arguments.wan22))
    name = torch.cuda.get_device_name(case.device) if case.device.type == "cuda" else "CPU"
    print(
        f"velocity, relative Frobenius error against float32: dim {spec.dim}, {spec.num_layers} layers, "
        f"{case.num_tokens} tokens, {len(runs)} draw(s), torch {torch.__version__}, {name}"
    )
    mean = {row: sum(run[row] for run in runs) / len(runs) for row in runs[0]}
    for row, error in mean.items():
        print(f"  {row:<46}{error:.3e}")
    allowed = mean.get("reference, autocast, bfloat16 parameters", float("inf"))
    return int(mean["ours, float32 residual"] > allowed)


if __name__ == "__main__":
    sys.exit(main())
