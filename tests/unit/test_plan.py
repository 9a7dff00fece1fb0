"""Plans on machines that are not here: every choice, its reason, and what happens when nothing fits."""

from dataclasses import replace

import pytest

from wan_core.attention.verdicts import Calibration, Timing, Verdict
from wan_core.component_plan import resolve_decode, resolve_text
from wan_core.errors import InputError, OutOfMemoryError, UnsupportedError
from wan_core.hardware import Hardware
from wan_core.plan import ExecutionPlan, Workload, resolve
from wan_core.profiles import OptimizationProfile, preset
from wan_core.recipes import SampleRequest, VideoSize, recipe
from wan_core.specs import T2V_A14B_TRANSFORMER, UMT5_XXL, WAN21_VAE, Expert

GIB = 2**30
COMPILED = preset("auto").with_settings({"compile.mode": "default"})
H200 = Hardware(
    device="cuda:0",
    name="NVIDIA H200",
    capability=(9, 0),
    total_memory=140 * GIB,
    free_memory=138 * GIB,
    host_memory=128 * GIB,
    host_free_memory=120 * GIB,
    torch_version="2.11.0",
    cuda_version="13.0",
    libraries=(("triton", "3.6.0"),),
    tflops=(("bfloat16", 788.0), ("float32", 50.0)),
)
A100_40GB = replace(H200, name="A100", capability=(8, 0), total_memory=40 * GIB, free_memory=39 * GIB)
RTX_2080_TI = replace(H200, name="RTX 2080 Ti", capability=(7, 5), total_memory=11 * GIB, free_memory=10 * GIB)
CPU = Hardware(
    device="cpu",
    name="cpu",
    capability=None,
    total_memory=24 * GIB,
    free_memory=20 * GIB,
    host_memory=24 * GIB,
    host_free_memory=20 * GIB,
    torch_version="2.13.0",
    cuda_version=None,
    tflops=(("float32", 0.1),),
)
HD = VideoSize(width=1280, height=720, num_frames=81)
SMALL = VideoSize(width=832, height=480, num_frames=81)
MINIATURE = replace(T2V_A14B_TRANSFORMER, dim=256, ffn_dim=768, num_heads=2, num_layers=7, text_dim=256)


def workload(size: VideoSize = HD, **request: object) -> Workload:
    return Workload(request=SampleRequest(recipe=recipe("official"), **request), latent_size=size.latent_size)


def planned(profile: OptimizationProfile | str, hardware: Hardware, size: VideoSize = HD) -> ExecutionPlan:
    profile = preset(profile) if isinstance(profile, str) else profile
    return resolve(profile, hardware, T2V_A14B_TRANSFORMER, workload(size))


def decision(plan: ExecutionPlan, topic: str):
    return next(item for item in plan.decisions if item.topic == topic)


def test_h200_keeps_both_experts_and_prefers_cudnn():
    plan = planned("auto", H200)
    assert (plan.binding.dtype, plan.binding.residual) == ("bfloat16", "float32")
    assert plan.binding.attention.names[0] == "cudnn"
    assert plan.binding.placement.policy == "resident"
    assert plan.guidance == "sequential"
    assert plan.split.count(Expert.HIGH) == 26 and plan.split.count(Expert.LOW) == 14
    assert "26 high + 14 low" in plan.to_text()


def test_predicted_weights_match_the_checkpoint():
    # 28.6 GB per expert in bfloat16, and a little more for what stays in float32.
    assert 57.1e9 < planned("auto", H200).weight_bytes < 58.5e9


def test_step_flops_are_those_of_the_table():
    plan = planned("auto", H200)
    assert dict(plan.step_flops)[Expert.HIGH] == pytest.approx(13.04e15, rel=2e-3)


def test_guidance_one_halves_the_step():
    chosen = recipe("lightning-4")
    plan = resolve(
        preset("auto"),
        H200,
        T2V_A14B_TRANSFORMER,
        Workload(request=SampleRequest(recipe=chosen), latent_size=HD.latent_size),
    )
    assert dict(plan.step_flops)[Expert.HIGH] == pytest.approx(6.52e15, rel=2e-3)


def test_smaller_card_swaps_experts_and_says_why():
    plan = planned("auto", A100_40GB, SMALL)
    assert plan.binding.placement.policy == "experts"
    assert plan.binding.attention.names[0] == "flash"
    placement = decision(plan, "placement")
    assert placement.rejected[0].name == "resident" and "short" in placement.rejected[0].reason
    assert "9.0" in str(decision(plan, "self attention"))  # why cuDNN was passed over


def test_old_card_computes_in_float16():
    plan = resolve(preset("auto"), RTX_2080_TI, MINIATURE, workload(SMALL))
    assert plan.binding.dtype == "float16"
    assert plan.binding.attention.names[0] == "efficient"


def test_cpu_computes_in_float32_and_batches_a_small_video():
    tiny = VideoSize(width=128, height=128, num_frames=17)
    plan = resolve(preset("auto"), CPU, MINIATURE, workload(tiny))
    assert (plan.binding.dtype, plan.binding.attention.names[0], plan.guidance) == ("float32", "flash", "batched")


def test_too_little_memory_names_the_shortage_and_the_profile_that_fits():
    asked = preset("auto").with_settings({"offload.policy": "resident"})
    small = replace(H200, free_memory=60 * GIB)
    with pytest.raises(OutOfMemoryError, match=r"GiB more than the 60.0 GiB free; the profile '\w+' fits"):
        planned(asked, small)


def test_too_little_memory_names_a_shorter_video_where_no_profile_fits():
    with pytest.raises(OutOfMemoryError, match=r"\d+ frames of this size fit"):
        planned("auto", replace(H200, free_memory=8 * GIB))


def test_too_little_memory_for_anything():
    with pytest.raises(OutOfMemoryError, match="no profile fits, not even one frame"):
        planned("auto", replace(H200, free_memory=3 * GIB))


def test_a_named_backend_that_cannot_run_falls_back_with_its_reason():
    plan = planned(preset("auto").with_settings({"attention.backend": "cudnn"}), A100_40GB, SMALL)
    chosen = decision(plan, "self attention")
    assert chosen.degraded and chosen.chosen == "flash"
    assert chosen.rejected[0].name == "cudnn"


def test_a_strict_profile_stops_instead():
    strict = preset("auto").with_settings({"attention.backend": "cudnn", "on_unsupported": "error"})
    with pytest.raises(UnsupportedError, match="needs compute capability 9.0"):
        planned(strict, A100_40GB, SMALL)


def test_compile_needs_a_gpu_and_says_so():
    plan = resolve(COMPILED, CPU, MINIATURE, workload(VideoSize(width=128, height=128, num_frames=17)))
    assert plan.binding.compile_mode == "off"
    assert "GPU" in decision(plan, "compile").reason
    assert planned(COMPILED, H200).binding.compile_mode == "default"


def test_fused_kernels_stand_in_for_the_compiler():
    with_triton = replace(H200, libraries=(*H200.libraries, ("triton", "3.6.0")))
    eager, compiled = planned("auto", with_triton), planned(COMPILED, with_triton)
    assert (eager.binding.compile_mode, eager.binding.block_kernels) == ("off", "triton")
    assert (compiled.binding.compile_mode, compiled.binding.block_kernels) == ("default", "off")
    assert "compiler" in decision(compiled, "fused kernels").reason
    unfused = preset("auto").with_settings({"fusion.kernels": "off"})
    assert planned(unfused, with_triton).binding.block_kernels == "off"
    bare = planned("auto", replace(H200, libraries=()))
    assert (bare.binding.block_kernels, decision(bare, "fused kernels").reason) == ("off", "Triton is not installed")
    strict = COMPILED.with_settings({"fusion.kernels": "triton", "on_unsupported": "error"})
    with pytest.raises(UnsupportedError, match="fused by its compiler; use 'off'"):
        planned(strict, with_triton)


def test_other_kernels_are_another_build_of_the_same_weights():
    auto, exact = planned("auto", H200).binding, planned(COMPILED, H200).binding
    assert auto.key != exact.key and auto.weights_key == exact.weights_key
    wide = preset("auto").with_settings({"precision.weights": "float16"})
    assert planned(wide, H200).binding.weights_key != auto.weights_key


def test_the_key_depends_on_what_is_bound_and_not_on_the_size():
    assert planned("auto", H200).key == planned("auto", H200, SMALL).key
    assert planned("auto", H200).key != planned(COMPILED, H200).key


def test_the_plan_is_pure():
    assert planned("auto", H200) == planned("auto", H200)


def test_a_recipe_that_disagrees_with_itself_warns():
    odd = recipe("official").with_changes(num_steps=4)
    plan = resolve(
        preset("auto"),
        H200,
        T2V_A14B_TRANSFORMER,
        Workload(request=SampleRequest(recipe=odd), latent_size=SMALL.latent_size),
    )
    assert any("lightning-4" in warning for warning in plan.warnings)


def test_start_step_past_the_end_is_a_sentence():
    with pytest.raises(InputError, match="start step is 40"):
        resolve(preset("auto"), H200, T2V_A14B_TRANSFORMER, workload(start_step=40))


def test_text_encoder_streams_and_then_goes_to_the_host_where_the_device_is_full():
    whole = resolve_text(preset("auto"), H200, UMT5_XXL)
    assert (whole.device, whole.streamed_blocks) == ("cuda:0", 0)
    tight = resolve_text(preset("auto"), replace(H200, free_memory=6 * GIB), UMT5_XXL)
    assert tight.device == "cuda:0" and tight.peak_bytes <= 6 * GIB
    assert 2 < tight.streamed_blocks < UMT5_XXL.num_layers
    assert f"{tight.streamed_blocks} of 24 blocks pass through two buffers" in tight.to_text()
    full = resolve_text(preset("auto"), replace(H200, free_memory=3 * GIB), UMT5_XXL)
    assert (full.device, full.streamed_blocks) == ("cpu", 0) and "do not fit" in full.to_text()


def test_decode_is_tiled_only_where_whole_frames_do_not_fit():
    whole = resolve_decode(preset("auto"), H200, WAN21_VAE, HD.latent_size)
    assert whole.tile is None and whole.concessions == ()
    tight = resolve_decode(preset("auto"), replace(H200, free_memory=5 * GIB), WAN21_VAE, HD.latent_size)
    assert tight.tile is not None and tight.peak_bytes <= 5 * GIB
    (said,) = map(str, tight.concessions)
    size = f"{8 * tight.tile.width}x{8 * tight.tile.height}"
    assert said.startswith(f"VAE tiling: tiles of {size} pixels [near] (whole frames need ") and "5.0 GiB are" in said
    asked = resolve_decode(preset("auto").with_settings({"vae.tiling": "on"}), H200, WAN21_VAE, HD.latent_size)
    assert str(asked.concessions[0]) == "VAE tiling: tiles of 512x512 pixels [near] (asked for)"


def test_the_vaes_kernels_follow_the_profile_and_the_machine():
    def kernels(profile: OptimizationProfile | str, hardware: Hardware) -> tuple[str, str]:
        profile = preset(profile) if isinstance(profile, str) else profile
        plan = resolve_decode(profile, hardware, WAN21_VAE, HD.latent_size)
        (decision,) = (each for each in plan.decisions if each.topic == "VAE fused kernels")
        assert decision.chosen == plan.kernels
        return plan.kernels, decision.reason

    with_triton = replace(H200, libraries=(("triton", "3.6.0"),))
    assert kernels("auto", with_triton) == ("triton", "")
    assert kernels(COMPILED, with_triton) == ("triton", "")  # compiles the blocks, never the VAE
    assert kernels("reference", with_triton)[0] == "off"
    assert kernels("auto", replace(H200, libraries=())) == ("off", "Triton is not installed")
    assert kernels("auto", CPU) == ("off", "need an NVIDIA GPU")


def verdict(*names: str) -> Verdict:
    timings = tuple(Timing(name=name, tflops=600.0 - index, error=2e-3) for index, name in enumerate(names))
    return Verdict(date="2026-11-21", timings=timings)


def test_before_the_first_run_the_plan_says_that_nothing_was_timed():
    plan = planned("auto", H200)
    for topic in ("self attention", "cross attention"):
        assert decision(plan, topic).chosen == "cudnn"
        assert decision(plan, topic).reason == "in order of preference, not timed on this machine yet"
    assert decision(planned("auto", A100_40GB, SMALL), "self attention").reason != ""
    named = preset("auto").with_settings({"attention.backend": "flash"})
    assert decision(planned(named, H200), "self attention").reason == ""


def test_a_plan_takes_the_measured_order_for_self_and_cross_attention_apart():
    order = {
        "bfloat16 65536x65536x40x128": verdict("flash", "cudnn", "efficient", "sdpa"),
        "bfloat16 65536x512x40x128": verdict("efficient", "cudnn", "flash", "math", "sdpa"),
    }
    known = Calibration(verdicts=order, notes=("a note",))
    plan = resolve(preset("auto"), H200, T2V_A14B_TRANSFORMER, workload(), known)
    assert plan.binding.attention.names == ("flash", "cudnn", "efficient", "sdpa")
    assert plan.binding.cross_attention.names[0] == "efficient"
    assert (
        decision(plan, "self attention").reason
        == "flash 600, cudnn 599, efficient 598, sdpa 597 TFLOP/s, measured 2026-11-21"
    )
    assert plan.warnings == ("a note",)
    assert plan.with_calibration(known) == plan
    assert planned("auto", H200).with_calibration(known) == plan
    assert plan.key != planned("auto", H200).key
    # Nothing is known of another size, and nothing changes what was asked for by name.
    assert (
        resolve(preset("auto"), H200, T2V_A14B_TRANSFORMER, workload(SMALL), known).binding.attention.names[0]
        == "cudnn"
    )
    named = preset("auto").with_settings({"attention.backend": "cudnn"})
    assert resolve(named, H200, T2V_A14B_TRANSFORMER, workload(), known).binding.attention.names[0] == "cudnn"


def test_another_order_behind_the_same_first_kernel_needs_no_new_build():
    sizes = ("bfloat16 65536x65536x40x128", "bfloat16 32768x32768x40x128")
    orders = (verdict("cudnn", "flash", "efficient", "sdpa"), verdict("cudnn", "efficient", "flash", "sdpa"))
    known = Calibration(verdicts=dict(zip(sizes, orders, strict=True)))
    large, small = (resolve(preset("auto"), H200, T2V_A14B_TRANSFORMER, workload(size), known) for size in (HD, SMALL))
    assert large.binding.attention.names != small.binding.attention.names
    assert large.key == small.key
