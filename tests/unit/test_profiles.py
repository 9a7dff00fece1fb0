"""Profiles: valid by construction, values not code paths, one-sentence refusals."""

from dataclasses import FrozenInstanceError, fields

import pytest

from wan_core.errors import InputError
from wan_core.profiles import (
    PRESETS,
    AttentionSpec,
    CompileSpec,
    OptimizationProfile,
    preset,
    setting_choices,
    setting_names,
)
from wan_core.recipes import Recipe, SampleRequest


def test_presets_carry_their_own_names_and_are_hashable_values():
    assert [name for name, profile in PRESETS.items() if profile.name != name] == []
    assert len(set(PRESETS.values())) == len(PRESETS)


def test_reference_is_the_yardstick():
    reference = preset("reference")
    assert (reference.attention.backend, reference.attention.cross) == ("math", "math")
    assert (reference.precision.weights, reference.precision.residual) == ("float32", "float32")
    assert (reference.precision.tf32, reference.compile.mode) == ("off", "off")
    assert (reference.guidance.execution, reference.vae.tiling) == ("sequential", "off")
    assert reference.on_unsupported == "error"


@pytest.mark.parametrize("name", PRESETS)
def test_no_preset_allows_more_than_exact(name):
    assert preset(name).quality == "exact"


def test_unknown_preset_names_the_nearest():
    with pytest.raises(InputError, match=r"'referense'.*did you mean 'reference'\?"):
        preset("referense")


def test_profiles_are_frozen():
    with pytest.raises(FrozenInstanceError):
        preset("auto").quality = "lossy"


@pytest.mark.parametrize(
    ("key", "value", "hint"),
    [
        ("compile.mode", "defualt", "did you mean 'default'"),
        ("offload.policy", "expert", "did you mean 'experts'"),
        ("quality", "near-lossless", "'exact', 'near', 'lossy'"),
        ("on_unsupported", "ignore", "'fallback', 'error'"),
        ("atention.backend", "flash", "did you mean 'attention.backend'"),
        ("attention", "flash", "did you mean 'attention"),
        ("name", "mine", "expected one of"),
    ],
)
def test_bad_settings_are_refused_with_what_is_valid(key, value, hint):
    with pytest.raises(InputError) as caught:
        preset("auto").with_settings({key: value})
    assert hint in str(caught.value)
    assert "\n" not in str(caught.value)


def test_settings_change_a_copy_and_its_name():
    auto = preset("auto")
    changed = auto.with_settings({"attention.backend": "flash", "quality": "near"})
    assert changed.attention == AttentionSpec(backend="flash", cross="auto")
    assert (changed.quality, changed.name) == ("near", "auto (changed)")
    assert (auto.attention.backend, auto.quality, auto.name) == ("auto", "exact", "auto")
    assert changed.with_settings({"compile.mode": "default"}).name == "auto (changed)"


def test_settings_that_change_nothing_keep_the_name():
    assert preset("auto").with_settings({"compile.mode": "off"}) == preset("auto")


def test_every_listed_setting_can_be_set_to_each_of_its_choices():
    assert "name" not in setting_names()
    for name in setting_names():
        for choice in setting_choices(name):
            part, _, leaf = name.partition(".")
            changed = preset("auto").with_settings({name: choice})
            assert getattr(getattr(changed, part), leaf) == choice if leaf else getattr(changed, part) == choice


def test_open_settings_have_no_choices():
    assert setting_choices("attention.backend") == ()
    assert setting_choices("compile.mode")[:2] == ("off", "default")


def test_a_part_is_checked_when_it_is_created():
    with pytest.raises(InputError, match="CompileSpec.mode is 'max'"):
        CompileSpec(mode="max")


def test_profiles_and_recipes_share_no_field():
    how = {leaf.split(".")[-1] for leaf in setting_names()}
    what = {entry.name for kind in (Recipe, SampleRequest) for entry in fields(kind)}
    assert how & what == set()
    assert {entry.name for entry in fields(OptimizationProfile)} & what == {"name"}
