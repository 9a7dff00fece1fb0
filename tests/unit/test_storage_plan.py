"""Plans for experts whose files store 8 bits: decoded where they stay on the device, as stored where they move."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from tests.unit.test_memory_plan import SPECS, card
from tests.unit.test_plan import CPU, H200, HD, SMALL
from wan_core.activations import ForwardShape, forward_bytes
from wan_core.attention.verdicts import NOTHING_MEASURED
from wan_core.checkpoint.codes import Coding
from wan_core.checkpoint.lora_file import block_linears
from wan_core.choices import storable_layers
from wan_core.errors import UnsupportedError
from wan_core.estimate import Knowledge, sampling_parts
from wan_core.footprint import allocated, expert_sizes
from wan_core.hardware import Hardware
from wan_core.history import History
from wan_core.models.transformer import WanTransformer, wants_float32
from wan_core.offload.layout import units_of
from wan_core.placement import Placement
from wan_core.plan import ExecutionPlan, resolve
from wan_core.profiles import OptimizationProfile, preset
from wan_core.recipes import SampleRequest, VideoSize, recipe
from wan_core.recovery.ladder import Ladder
from wan_core.run_plan import resolve_run
from wan_core.specs import T2V_A14B_TRANSFORMER, Expert
from wan_core.storage import NOTHING_STORED, StoredLayers, keep_as_stored
from wan_core.workload import Workload

GIB = 2**30
A14B = T2V_A14B_TRANSFORMER
LAYERS = block_linears(A14B)


def stored_as(coding_of: Callable[[str], Coding | None]) -> StoredLayers:
    found = ((layer, coding_of(layer)) for layer in LAYERS)
    return StoredLayers(codings=tuple(each for each in found if each[1]), num_linears=len(LAYERS) + 6)


FP8 = stored_as(lambda layer: Coding(dtype="float8_e4m3fn", scale=()))
INT8_ROWS = stored_as(lambda layer: Coding(dtype="int8", scale=((13824 if "ffn.0" in layer else 5120), 1)))
# As in the Q4_K_M files: what matters more has more bits, and not in every block.
MIXED = stored_as(
    lambda layer: Coding(dtype="Q6_K" if "attn.v" in layer and int(layer.split(".")[1]) % 3 == 0 else "Q4_K")
)
STORED = {"fp8": FP8, "int8 by row": INT8_ROWS, "mixed blocks": MIXED}


def workload(stored: StoredLayers = FP8, size: VideoSize = HD) -> Workload:
    request = SampleRequest(recipe=recipe("official"))
    return Workload(request=request, latent_size=size.latent_size, stored=stored)


def planned(
    profile: OptimizationProfile | str,
    hardware: Hardware = H200,
    stored: StoredLayers = FP8,
    size: VideoSize = HD,
    current: Placement | None = None,
) -> ExecutionPlan:
    profile = preset(profile) if isinstance(profile, str) else profile
    return resolve(profile, hardware, A14B, workload(stored, size), current=current)


def asking(storage: str, name: str = "auto", **settings: str) -> OptimizationProfile:
    return preset(name).with_settings({"precision.storage": storage, **settings})


def told(plan: ExecutionPlan) -> str:
    return next((str(each) for each in plan.decisions if each.topic == "weight storage"), "")


@pytest.mark.parametrize("name", STORED)
def test_the_plan_counts_what_the_module_holds(name):
    """To the allocator's rounding, which the sizes have and the units do not."""
    with torch.device("meta"):
        transformer = WanTransformer(A14B, attend=None, cross_attend=None)
    for parameter_name, parameter in transformer.named_parameters():
        if not wants_float32(parameter_name):
            parameter.data = parameter.data.to(torch.bfloat16)
    keep_as_stored(transformer, dict(STORED[name].codings), torch.bfloat16)
    rest, *blocks = (allocated(unit.nbytes) for unit in units_of(transformer, lambda name: False))
    sizes = expert_sizes(A14B, "bfloat16", STORED[name])
    assert (sizes.rest, sizes.blocks) == (rest, tuple(blocks))
    assert sizes.total < 0.56 * expert_sizes(A14B, "bfloat16").total


def test_uneven_blocks_stream_through_the_largest_of_them():
    sizes = expert_sizes(A14B, "bfloat16", MIXED)
    assert len(set(sizes.blocks)) == 2
    largest = max(sizes.blocks)
    assert sizes.buffers(1) == sizes.blocks[39] == largest and sizes.buffers(2) == 2 * largest
    assert sizes.on_device(2) == sizes.total - sizes.blocks[38] - sizes.blocks[39] + 2 * largest
    assert sizes.streamed(40) == sum(sizes.blocks)


def test_what_stays_on_the_device_is_decoded():
    plan = planned("auto")
    assert plan.binding.placement == Placement(policy="resident") and not plan.binding.stored
    assert "weight storage: compute (decoded weights stay on the device; float8_e4m3fn in 400 of 406" in told(plan)


def test_the_memory_of_a_cpu_counts_as_well():
    """Both experts in float32 want 106 GiB of it."""
    placements = [
        planned("cpu", replace(CPU, free_memory=free * GIB), size=SMALL).binding.placement for free in (256, 64)
    ]
    assert placements == [Placement(policy="resident"), Placement(policy="resident", storage="file")]


@pytest.mark.parametrize(
    ("name", "policy", "streamed"), [("80gb", "resident", 0), ("40gb", "resident", 0), ("24gb", "stream", 3)]
)
def test_eight_bits_move_up_the_ladder(name, policy, streamed):
    plan, plain = planned(name), planned(name, stored=NOTHING_STORED)
    placement = plan.binding.placement
    assert (placement.policy, placement.streamed_blocks) == (policy, streamed)
    assert placement.storage == ("compute" if plain.binding.placement.policy == "resident" else "file")
    assert plan.phases[0].host_bytes <= 0.56 * plain.phases[0].host_bytes


def test_sixteen_gigabytes_stream_fewer_blocks_of_half_the_size():
    plan, plain = planned("16gb"), planned("16gb", stored=NOTHING_STORED)
    assert plan.binding.stored == FP8 and plan.binding.placement.storage == "file"
    assert plan.binding.placement.streamed_blocks < 0.8 * plain.binding.placement.streamed_blocks
    assert "weight storage: file (float8_e4m3fn in 400 of 406 linear layers, decoded before each product; " in told(
        plan
    )
    assert "13.9 GiB an expert instead of 27.0 GiB" in told(plan)


def test_one_decoded_layer_is_counted_beside_the_codes():
    """At a size where nothing else is large; at the usual ones a part of it is in the shadow of activations."""
    (layout,) = FP8.layouts
    shape = ForwardShape(latent_size=(1, 4, 4), batch=1, dtype="bfloat16", residual="float32")
    stored = replace(shape, stored=tuple(layout.items()))
    more = forward_bytes(A14B, stored) - forward_bytes(A14B, shape)
    weight = 13824 * 5120 * 2
    assert more == pytest.approx(weight, rel=0.01), "nothing wider stands in between"
    compiled = [forward_bytes(A14B, replace(each, is_compiled=True)) for each in (shape, stored)]
    assert compiled[1] - compiled[0] == pytest.approx(weight, rel=0.01)


def test_the_setting_is_kept_to():
    assert planned(asking("file")).binding.placement == Placement(policy="resident", storage="file")
    plan = planned(asking("compute", "24gb"))
    assert plan.binding == planned("24gb", stored=NOTHING_STORED).binding
    assert told(plan) == ""
    assert planned(asking("file"), stored=NOTHING_STORED).binding == planned("auto", stored=NOTHING_STORED).binding
    assert "compute instead of file (the files of these experts hold no linear layers" in told(
        planned(asking("file"), stored=NOTHING_STORED)
    )
    assert told(planned("auto", stored=NOTHING_STORED)) == ""


def test_a_strict_profile_stops_where_nothing_can_stay():
    strict = asking("file", on_unsupported="error")
    with pytest.raises(UnsupportedError, match="weight storage 'file' cannot be kept to here: the files of these"):
        planned(strict, stored=NOTHING_STORED)
    assert planned(strict).binding.stored == FP8


def test_a_merged_lora_has_its_layers_decoded():
    """The rule of storage beside LoRAs: codes cannot be added to."""
    changed = set(LAYERS[:10])
    kept = storable_layers(preset("auto"), FP8, changed)
    assert len(kept.codings) == 390 and kept.left == ("10 layers changed by a merged LoRA",)
    assert storable_layers(preset("auto"), FP8, ()) == FP8
    with pytest.raises(UnsupportedError, match="10 layers changed by a merged LoRA; use 'auto'"):
        storable_layers(asking("file", on_unsupported="error"), FP8, changed)
    plan = planned("24gb", stored=kept)
    assert "; 10 layers changed by a merged LoRA" in told(plan)


def test_what_is_built_as_stored_and_stays_is_not_read_again():
    """Free memory is never twice the same; decoded weights that just fit now are no reason to read the files anew."""
    at_once = planned("auto").peak_bytes / GIB
    short = card(at_once - 2)
    built = planned("auto", short).binding.placement
    assert built == Placement(policy="resident", storage="file")
    assert planned("auto", card(at_once + 4), current=built).binding.placement == built
    assert planned("auto", card(at_once + 4)).binding.placement == Placement(policy="resident")
    moving = planned("auto", card(20)).binding.placement
    assert moving.storage == "file" and moving.policy != "resident"
    assert planned("auto", H200, current=moving).binding.placement == Placement(policy="resident")


def test_other_storage_is_another_build_and_another_speed():
    here, there = planned(asking("compute")).binding, planned(asking("file")).binding
    assert here.key != there.key and here.weights_key != there.weights_key
    assert here.key_without_loras != there.key_without_loras


def test_the_ladder_goes_on_with_what_is_stored():
    profile, plans = preset("auto"), [planned("auto")]
    ladder = Ladder(profile=profile, hardware=lambda: H200, spec=A14B)
    while (lower := ladder.below(plans[-1])) is not None:
        plans.append(lower)
    placements = [plan.binding.placement for plan in plans]
    assert placements[0].storage == "compute" and placements[-1].policy == "stream"
    first = next(index for index, placement in enumerate(placements) if placement.storage == "file")
    assert all(placement.storage == "file" for placement in placements[first:])
    assert placements[first].policy == "resident"


def test_loading_and_moving_take_half_the_time():
    known = Knowledge(hardware=H200, history=History(), calibration=NOTHING_MEASURED)
    seconds = [
        next(part.seconds for part in sampling_parts(plan, A14B, known) if part.name == "load")
        for plan in (planned("24gb"), planned("24gb", stored=NOTHING_STORED))
    ]
    assert 0.5 <= seconds[0] / seconds[1] <= 0.56


@pytest.mark.parametrize("name", ["80gb", "40gb", "24gb", "16gb"])
def test_presets_stay_within_their_budgets(name):
    profile = preset(name)
    for stored in STORED.values():
        plan = resolve_run(profile, H200, SPECS, workload(stored))
        assert all(each.peak_bytes <= profile.offload.budget_bytes for each in plan.phases)
        assert {Expert.HIGH, Expert.LOW} == set(plan.experts.split)
