"""Which operation a kernel belongs to: by the module names of several implementations, by kernel names of an H200."""

import pytest
import torch
from torch import nn

from wan_core.attention.backends import BACKENDS
from wan_core.bench import operations
from wan_core.bench.operations import PREFIX, by_kernel, by_place, place_of, without_places
from wan_core.bench.task import TINY_TRANSFORMER
from wan_core.models.transformer import WanTransformer

ATTEND = {backend.name: backend for backend in BACKENDS}["math"].load()


def ours() -> nn.Module:
    with torch.device("meta"):
        return WanTransformer(TINY_TRANSFORMER, attend=ATTEND, cross_attend=ATTEND)


def diffusers() -> nn.Module:
    spec = TINY_TRANSFORMER
    with torch.device("meta"):
        return pytest.importorskip("diffusers").WanTransformer3DModel(
            num_attention_heads=spec.num_heads, attention_head_dim=spec.head_dim, ffn_dim=spec.ffn_dim,
            num_layers=spec.num_layers, text_dim=spec.text_dim,
        )  # fmt: skip


@pytest.mark.parametrize("model", [ours, diffusers])
def test_every_linear_layer_and_norm_of_a_block_is_a_place(model):
    block = {name: module for name, module in model().named_modules() if name.startswith("blocks.0.")}
    linear = [place_of(name) for name, module in block.items() if isinstance(module, nn.Linear)]
    assert len(linear) == 10
    assert set(linear) == {"linear"}
    norms = [place_of(name) for name in block if "norm" in name]
    assert len(norms) == 7
    assert set(norms) == {operations.NORM}


def test_places_outside_the_blocks_belong_to_the_model():
    outside = ("patch_embedding", "text_embedding.0", "head.head", "head.norm", "proj_out", "norm_out", "blocks")
    assert [place_of(name) for name in outside] == [None] * len(outside)
    assert place_of("") == operations.OUTSIDE
    assert place_of("blocks.11") == "block"


@pytest.mark.parametrize(
    ("around", "operation"),
    [
        (("aten::_flash_attention_forward", "aten::scaled_dot_product_attention", "self"), operations.SELF_ATTENTION),
        (("aten::copy_", "wan_velocity::sdpa_cudnn", "self", "block"), operations.SELF_ATTENTION),
        (("wan_velocity::flash_attention_4", "cross"), operations.CROSS_ATTENTION),
        (("aten::baddbmm", "self"), operations.SELF_ATTENTION),
        (("aten::mul", "self"), operations.ROPE),
        (("aten::copy_", "aten::to", "self"), operations.ROPE),
        (("aten::addmm", "aten::linear", "linear", "self"), operations.LINEAR),
        (("some::fp8_product", "linear", "self"), operations.LINEAR),
        (("aten::copy_", "aten::_to_copy", "aten::to", "linear"), operations.CASTS),
        (("aten::native_layer_norm", "aten::layer_norm", operations.NORM, "block"), operations.NORM),
        (("aten::addcmul", "block"), operations.NORM),
        (("aten::mul", "cross", "block"), operations.NORM),
        (("aten::gelu", operations.ACTIVATION, "block"), operations.ACTIVATION),
        (("aten::addmm", "aten::linear", operations.ACTIVATION, "block"), operations.LINEAR),
        (("aten::addmm", "aten::linear", operations.OUTSIDE, operations.GUIDANCE), operations.OUTSIDE),
        (("aten::sub", operations.GUIDANCE, operations.SOLVER), operations.GUIDANCE),
        (("aten::mul", operations.SOLVER), operations.SOLVER),
        (("aten::mul",), operations.OTHER),
    ],
)
def test_by_place(around, operation):
    named = tuple(name if "::" in name else PREFIX + name for name in around)
    assert by_place(named, "some kernel") == operation


def test_a_kernel_that_no_operator_launched_goes_by_its_name():
    assert by_place((), "kernel_cutlass_flash_attncuteflash_fwd_sm90") == operations.ANY_ATTENTION
    assert by_place((), "fused_rms_norm") == operations.FUSED
    assert by_place((), "nvjet_tst_128x256") == operations.OTHER


@pytest.mark.parametrize(
    ("kernel", "operation"),
    [
        ("cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16_knob_31_128x128x128", operations.ANY_ATTENTION),
        ("void pytorch_flash::flash_fwd_kernel<pytorch_flash::Flash_fwd_kernel_traits<128>>", operations.ANY_ATTENTION),
        ("kernel_cutlass_kernel_flash_attncuteflash_fwd_sm90FlashAttentionForwardSm90", operations.ANY_ATTENTION),
        ("nvjet_tst_256x128_64x4_2x1_v_bz_coopA_bias_TNN", operations.LINEAR),
        ("void cutlass::device_kernel<at::cuda::detail::enable_3x_kernel_for_sm9x<...>>", operations.LINEAR),
        ("sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n_tilesize128x256x64", operations.LINEAR),
        ("triton_tem_fused_addmm_3", operations.LINEAR),
        ("triton_red_fused__to_copy_add_mul_native_layer_norm_0", operations.FUSED),
        ("cpp_fused_gelu_2", operations.FUSED),
        (
            "void at::native::vectorized_elementwise_kernel<4, at::native::CUDAFunctor_add<float>>",
            operations.ELEMENTWISE,
        ),
        ("Memcpy DtoD (Device -> Device)", operations.ELEMENTWISE),
        ("something new", operations.OTHER),
    ],
)
def test_by_kernel(kernel, operation):
    assert by_kernel(kernel) == operation
    assert without_places((PREFIX + operations.GUIDANCE, PREFIX + operations.SOLVER), kernel) == operation


def test_the_solver_is_known_by_its_range_even_where_modules_are_compiled():
    assert without_places(("aten::mul", PREFIX + operations.SOLVER), "elementwise_kernel") == operations.SOLVER


def test_every_operation_has_a_row():
    constants = {name: value for name, value in vars(operations).items() if name.isupper() and name[0] != "_"}
    names = [value for name, value in constants.items() if name not in ("PREFIX", "ORDER")]
    assert sorted(names) == sorted(operations.ORDER)
