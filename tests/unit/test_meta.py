"""Modules of shapes alone: what PyTorch says of them, without what PyTorch imports to say it."""

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_iter

from wan_core import meta
from wan_core.models.t5 import Umt5Encoder
from wan_core.models.transformer import TextContext, WanTransformer
from wan_core.models.vae21 import WanVae
from wan_core.specs import T2V_A14B_TRANSFORMER, UMT5_XXL, WAN21_VAE, TransformerSpec

SMALL = TransformerSpec(dim=64, ffn_dim=96, num_heads=2, num_layers=2, in_dim=4, out_dim=4, text_dim=32)


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.empty_like(q)


def transformer(spec: TransformerSpec = SMALL) -> WanTransformer:
    return WanTransformer(spec, attend=attend, cross_attend=attend)


@pytest.mark.parametrize(
    "make",
    [
        lambda: transformer(T2V_A14B_TRANSFORMER),
        lambda: Umt5Encoder(UMT5_XXL),
        lambda: WanVae(WAN21_VAE),
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.Embedding(5, 6, padding_idx=0), nn.BatchNorm1d(7)),
    ],
)
def test_a_module_has_the_tensors_that_it_has_on_the_meta_device(make):
    with torch.device("meta"):
        expected = make()
    with meta.without_numbers():
        got = make()
    assert [facts(*item) for item in got.state_dict().items()] == [
        facts(*item) for item in expected.state_dict().items()
    ]
    assert all(isinstance(each, nn.Parameter) and each.is_meta for each in got.parameters())


def facts(name: str, tensor: Tensor) -> tuple:
    return name, tensor.shape, tensor.dtype, tensor.device, tensor.requires_grad


class Compared(meta.OutsideCompiler):
    """Every answer beside PyTorch's own."""

    def __init__(self) -> None:
        super().__init__()
        self.own: set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        expected, got = func(*args, **(kwargs or {})), meta.answer(func, args, dict(kwargs or {}))
        pairs = zip(tree_iter(expected), tree_iter(got), strict=True)
        for theirs, ours in ((a, b) for a, b in pairs if isinstance(a, Tensor)):
            assert facts(str(func), ours) == facts(str(func), theirs)
        self.own.add(str(func))
        return got


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("times", [(2,), (2, 24)])
def test_a_forward_has_the_shapes_that_pytorch_says(dtype, times):
    with torch.device("meta"):
        model = transformer().to(dtype)
        latent, timestep, context = torch.empty(2, 4, 2, 8, 6), torch.empty(times), torch.empty(2, 7, 32, dtype=dtype)
        with torch.inference_mode(), Compared() as compared:
            text: TextContext = model.prepare_text(context)
            assert model(latent, timestep, text).shape == latent.shape
    assert {"aten.mul.Tensor", "aten.linear.default", "aten.cat.default", "aten._to_copy.default"} <= compared.own


@pytest.mark.parametrize(
    "work",
    [
        lambda x, y: x * y,
        lambda x, y: x + 1.5,
        lambda x, y: x.bfloat16() + y.half(),
        lambda x, y: x.long() / 2,
        lambda x, y: x < y,
        lambda x, y: x * torch.tensor(2.0, dtype=torch.float64, device="meta"),
        lambda x, y: torch.where(x > 0, x, y),
        lambda x, y: x.add_(y),
        lambda x, y: x.bfloat16().mul_(y),
        lambda x, y: torch.mul(x, y, out=x),
        lambda x, y: torch.stack((x, x), dim=-1),
        lambda x, y: torch.cat((x, x[:, :1].half()), dim=-2),
        lambda x, y: torch.arange(2, 9, device="meta"),
        lambda x, y: nn.functional.rms_norm(x, (4,)),
        lambda x, y: x.to(torch.float64, copy=True),
        lambda x, y: x @ x.transpose(1, 2),
        lambda x, y: x.view(torch.int32).sum(dim=1, keepdim=True),
    ],
)
def test_an_operator_answers_as_pytorch_does(work):
    x, y = torch.empty(2, 3, 4, device="meta"), torch.empty(1, 4, device="meta")
    with Compared():
        work(x, y)


def test_what_is_not_on_the_meta_device_is_computed():
    x = torch.tensor([1.0, 2.0])
    assert meta.answer(torch.ops.aten.mul.Tensor, (x, x), {}).tolist() == [1.0, 4.0]
    assert meta.answer(torch.ops.aten.normal_.default, (torch.zeros(8),), {}).abs().sum() > 0
