"""The attention override: who computes what in a chain, and what is passed on untouched."""

import pytest
import torch
from torch import Tensor

from tests.unit.attention.fakes import attend
from wan_core.native.override import AttentionOverride, without_ours

CPU = torch.device("cpu")
HEADS = 2


class Kernels:
    """In place of `AttentionKernels`: counts, and remembers the problems."""

    def __init__(self) -> None:
        self.problems: list[tuple[object, ...]] = []

    def attend(self, *problem: object):
        self.problems.append(problem)
        return attend


class Host:
    """The host's function: remembers how it was called."""

    def __init__(self) -> None:
        self.calls: list[tuple[tuple[object, ...], dict[str, object]]] = []

    def __call__(self, *args: object, **options: object) -> str:
        self.calls.append((args, options))
        return "the host's"


@pytest.fixture
def kernels() -> Kernels:
    return Kernels()


@pytest.fixture
def host() -> Host:
    return Host()


def tensors(q_len: int = 5, kv_len: int = 3, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(1, n, HEADS * 4, generator=generator).to(dtype) for n in (q_len, kv_len, kv_len))


NEUTRAL = {"mask": None, "attn_precision": None, "transformer_options": {"a": 1}, "_inside_attn_wrapper": True}


def test_plain_attention_is_ours(kernels: Kernels, host: Host) -> None:
    q, k, v = tensors()
    out = AttentionOverride(kernels, CPU)(host, q, k, v, HEADS, **NEUTRAL)
    q4, k4, v4 = (tensor.unflatten(-1, (HEADS, 4)) for tensor in (q, k, v))
    assert torch.equal(out, attend(q4, k4, v4).flatten(2))
    assert kernels.problems == [((1, 5, HEADS, 4), 3, torch.float32)] and not host.calls


@pytest.mark.parametrize(
    "options",
    [
        {"mask": torch.ones(1)},
        {"scale": 0.1},
        {"skip_reshape": True},
        {"skip_output_reshape": True},
        {"enable_gqa": True},
        {"attn_precision": torch.float32},
        {"low_precision_attention": False},
        {"preferred_attention": "something"},
        {"an_option_of_tomorrow": None},
    ],
    ids=lambda options: next(iter(options)),
)
def test_what_we_do_not_do_goes_on_with_every_option(kernels: Kernels, host: Host, options: dict[str, object]) -> None:
    q, k, v = tensors()
    options = NEUTRAL | options
    assert AttentionOverride(kernels, CPU)(host, q, k, v, HEADS, **options) == "the host's"
    assert host.calls == [((q, k, v, HEADS), options)] and not kernels.problems


def test_a_mask_by_position_goes_on(kernels: Kernels, host: Host) -> None:
    q, k, v = tensors()
    mask = torch.ones(1)
    AttentionOverride(kernels, CPU)(host, q, k, v, HEADS, mask)
    assert host.calls[0][0] == (q, k, v, HEADS, mask)


@pytest.mark.parametrize(
    "odd",
    [
        lambda q, k, v: (q.double(), k.double(), v.double()),
        lambda q, k, v: (q, k.bfloat16(), v),
        lambda q, k, v: (q, k[..., :4], v[..., :4]),
        lambda q, k, v: (q.unsqueeze(1), k, v),
        lambda q, k, v: (q.to("meta"), k.to("meta"), v.to("meta")),
        lambda q, k, v: (q.requires_grad_(), k, v),
    ],
    ids=["float64", "mixed", "grouped", "split", "elsewhere", "trained"],
)
def test_tensors_that_are_not_for_us_go_on(kernels: Kernels, host: Host, odd) -> None:
    assert AttentionOverride(kernels, CPU)(host, *odd(*tensors()), HEADS) == "the host's"


def test_an_earlier_override_stays_in_front(kernels: Kernels, host: Host) -> None:
    """It keeps what it keeps, and what it passes on, changed or not, is computed by us."""
    seen = []

    def earlier(function, q, k, v, heads, **options):
        seen.append(options)
        return "the earlier's" if k.shape[1] == 3 else function(2 * q, k, v, heads, **options)

    override = AttentionOverride(kernels, CPU, earlier)
    assert override(host, *tensors(), HEADS, **NEUTRAL) == "the earlier's"
    q, k, v = tensors(5, 5)
    alone = AttentionOverride(Kernels(), CPU)(host, 2 * q, k, v, HEADS)
    assert torch.equal(override(host, q, k, v, HEADS, **NEUTRAL), alone)
    assert seen == [NEUTRAL, NEUTRAL] and len(kernels.problems) == 1 and not host.calls


def test_what_an_earlier_override_asks_beyond_us_reaches_the_host(kernels: Kernels, host: Host) -> None:
    def earlier(function, *args, **options):
        return function(*args, **options, scale=0.5)

    AttentionOverride(kernels, CPU, earlier)(host, *tensors(), HEADS)
    assert host.calls[0][1] == {"scale": 0.5}


def test_ours_is_found_and_taken_off_again(kernels: Kernels) -> None:
    def earlier(function, *args, **options):
        return function(*args, **options)

    ours = AttentionOverride(kernels, CPU, earlier)
    assert without_ours(AttentionOverride(kernels, CPU, ours)) is earlier
    assert without_ours(AttentionOverride(kernels, CPU)) is None
    assert without_ours(earlier) is earlier
    assert without_ours(None) is None
