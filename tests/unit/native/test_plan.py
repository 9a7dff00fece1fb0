"""What becomes of a native model on invented machines, and which words are found for it."""

from dataclasses import replace

import pytest

from wan_core.attention.verdicts import NOTHING_MEASURED
from wan_core.errors import UnsupportedError
from wan_core.native.facts import NativeModel
from wan_core.native.plan import NativePlan, resolve_native
from wan_core.profiles import preset
from wan_core.report import Rejection

WAN = NativeModel(name="WAN21", num_blocks=40, num_heads=40, head_dim=128, dtype="bfloat16")
TRITON = (("triton", "3.6.0"),)


def planned(machine, name: str = "h200", model: NativeModel = WAN, libraries=TRITON, **settings: str) -> NativePlan:
    profile = preset("auto").with_settings({key.replace("__", "."): value for key, value in settings.items()})
    return resolve_native(profile, machine(name, libraries=libraries), model, NOTHING_MEASURED)


def test_everything_on_a_card_with_triton(machine) -> None:
    plan = planned(machine)
    assert str(plan.work) == "block work of WAN21: triton (40 blocks)"
    assert [(each.topic, each.chosen) for each in plan.attention] == [
        ("self attention", "cudnn"), ("cross attention", "cudnn")
    ]  # fmt: skip
    assert plan.warnings == () and "!" not in plan.to_text()


def test_without_triton_the_blocks_stay_as_they_are(machine) -> None:
    plan = planned(machine, libraries=())
    assert str(plan.work) == "block work of WAN21: off (Triton is not installed)"


def test_switched_off_by_the_profile(machine) -> None:
    for name in ("h200", "cpu"):
        plan = planned(machine, name, replace(WAN, dtype="float32"), fusion__kernels="off")
        assert str(plan.work) == "block work of WAN21: off" and plan.warnings == ()


def test_on_a_cpu_in_plain_functions(machine) -> None:
    assert planned(machine, "cpu", replace(WAN, dtype="float32")).work.chosen == "torch"


def test_a_model_that_another_node_compiles_keeps_its_blocks(machine) -> None:
    plan = planned(machine, model=replace(WAN, compiled_whole=True))
    assert str(plan.work) == "block work of WAN21: off (another node compiles the model)"
    assert plan.to_text().startswith("! another node compiles the model")


def test_what_is_left_out_is_named_with_its_reason(machine) -> None:
    left = (Rejection(name="WanAttentionBlock", reason="replaced by another node"),)
    plan = planned(machine, model=replace(WAN, left=left))
    assert plan.work.chosen == "triton"
    assert str(plan.work).endswith("not WanAttentionBlock: replaced by another node")
    all_left = planned(machine, model=replace(WAN, left=left * 80))
    assert all_left.work.chosen == "off"
    assert str(all_left.work).endswith("not WanAttentionBlock: replaced by another node")


def test_another_override_is_named(machine) -> None:
    (warning,) = planned(machine, model=replace(WAN, has_override=True)).warnings
    assert warning == "another node's attention comes first; our kernels compute what it passes on"


def test_settings_that_have_no_meaning_here_are_named(machine) -> None:
    (warning,) = planned(machine, precision__weights="float16", offload__policy="experts").warnings
    assert warning.endswith(": precision.weights, offload.policy")


def test_a_strict_profile_stops(machine) -> None:
    with pytest.raises(UnsupportedError, match="flash-attn-4"):
        planned(machine, attention__backend="flash-attn-4", on_unsupported="error")
