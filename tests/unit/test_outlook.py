"""What a choice means before anything runs, as plain data."""

import json

from wan_core.attention.verdicts import NOTHING_MEASURED
from wan_core.estimate import Knowledge
from wan_core.hardware import Hardware
from wan_core.history import NOTHING_KNOWN
from wan_core.outlook import plan_facts, profile_outlook, recipe_outlook
from wan_core.plan import Workload, resolve
from wan_core.profiles import preset
from wan_core.recipes import SampleRequest, VideoSize, recipe
from wan_core.specs import T2V_A14B_TRANSFORMER

COMPILED = preset("auto").with_settings({"compile.mode": "default"})
OFFICIAL = SampleRequest(recipe=recipe("official"))
WORKLOAD = Workload(request=OFFICIAL, latent_size=VideoSize(width=1280, height=720, num_frames=81).latent_size)


def known(hardware: Hardware) -> Knowledge:
    return Knowledge(hardware=hardware, history=NOTHING_KNOWN, calibration=NOTHING_MEASURED)


def test_a_recipe_gives_its_curve_and_its_experts() -> None:
    facts = recipe_outlook(OFFICIAL)
    assert facts["split"] == ["high"] * 26 + ["low"] * 14
    assert len(facts["sigmas"]) == 41 and facts["sigmas"][-1] == 0.0
    assert (facts["boundary"], facts["num_steps"], facts["warnings"]) == (0.875, 40, [])


def test_a_part_of_a_schedule_is_told_from_all_of_it() -> None:
    facts = recipe_outlook(SampleRequest(recipe=recipe("official"), end_step=10))
    assert len(facts["split"]) == 10 and facts["num_steps"] == 40


def test_a_recipe_that_disagrees_with_itself_says_so() -> None:
    few = recipe("official").with_changes(num_steps=4)
    assert "few steps need" in recipe_outlook(SampleRequest(recipe=few))["warnings"][0]


def test_a_profile_says_what_it_replaces(machine) -> None:
    facts = profile_outlook(COMPILED, known(machine("h200")), T2V_A14B_TRANSFORMER, WORKLOAD)
    (compiled,) = (each for each in facts["plan"]["decisions"] if each["topic"] == "compile")
    assert compiled["degraded"] and compiled["reason"] == "Triton is not installed"
    assert facts["problem"] is None and facts["estimate"]["seconds"] > 0


def test_short_memory_is_a_sentence_and_the_rest_is_still_told(machine) -> None:
    facts = profile_outlook(COMPILED, known(machine("2080ti")), T2V_A14B_TRANSFORMER, WORKLOAD)
    assert "this run needs" in facts["problem"]
    assert any(each["topic"] == "compile" and each["degraded"] for each in facts["plan"]["decisions"])


def test_what_cannot_be_kept_is_a_sentence_and_no_exception(machine) -> None:
    strict = COMPILED.with_settings({"on_unsupported": "error"})
    facts = profile_outlook(strict, known(machine("2080ti")), T2V_A14B_TRANSFORMER, WORKLOAD)
    assert facts["plan"] is None and "cannot run here" in facts["problem"]


def test_all_of_it_is_json(machine) -> None:
    plan = resolve(preset("auto"), machine("h200"), T2V_A14B_TRANSFORMER, WORKLOAD)
    json.dumps(plan_facts(plan), allow_nan=False)
