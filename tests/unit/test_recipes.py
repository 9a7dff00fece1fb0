"""Recipes and requests: the official numbers, the refusals with the nearest valid value, the warnings."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wan_core.errors import InputError
from wan_core.recipes import RECIPES, SampleRequest, VideoSize, disagreements, recipe
from wan_core.specs import T2V_A14B, Expert


def test_official_recipe_is_that_of_the_family():
    official = recipe("official")
    for field in ("num_steps", "shift", "boundary", "guidance_high", "guidance_low"):
        assert getattr(official, field) == getattr(T2V_A14B, field), field
    assert official.solver == "unipc"
    assert (official.guidance(Expert.HIGH), official.guidance(Expert.LOW)) == (4.0, 3.0)


def test_recipes_say_where_they_come_from_and_agree_with_themselves():
    for name, entry in RECIPES.items():
        assert entry.name == name
        assert entry.provenance
        assert disagreements(entry) == []


def test_unknown_recipe_names_the_nearest():
    with pytest.raises(InputError, match="did you mean 'lightning-4'"):
        recipe("lightning")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"num_steps": 0}, "steps is 0, expected at least 1"),
        ({"boundary": 1.2}, "the nearest is 1"),
        ({"boundary": -0.1}, "the nearest is 0"),
        ({"boundary": math.nan}, "boundary is nan, expected a fraction from 0 to 1"),
        ({"shift": 0.0}, "shift is 0.0, expected a number above 0"),
        ({"shift": math.inf}, "shift is inf"),
        ({"guidance_low": math.nan}, "low-noise guidance is nan"),
        ({"solver": "dpm"}, "did you mean 'dpm++'"),
    ],
)
def test_bad_values_are_refused(change, sentence):
    with pytest.raises(InputError) as caught:
        recipe("official").with_changes(**change)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_changes_keep_what_is_not_given():
    official = recipe("official")
    assert official.with_changes(num_steps=None, shift=12.0) is official
    changed = official.with_changes(num_steps=20, shift=None)
    assert (changed.num_steps, changed.shift, changed.name) == (20, 12.0, "official (changed)")
    assert changed.with_changes(shift=5.0).name == "official (changed)"


@pytest.mark.parametrize(
    ("changes", "warning"),
    [
        ({"num_steps": 4, "shift": 5.0}, "few steps need a distilled LoRA"),
        ({"num_steps": 4, "guidance_high": 1.0, "guidance_low": 1.0}, "the 4-step LoRAs expect shift 5"),
        ({"guidance_high": 1.0, "guidance_low": 1.0}, "ignore the negative prompt"),
    ],
)
def test_what_does_not_fit_together_is_said(changes, warning):
    (note,) = disagreements(recipe("official").with_changes(**changes))
    assert warning in note


@pytest.mark.parametrize(
    ("size", "sentence"),
    [
        ((1280, 719, 81), "height is 719, expected a multiple of 16 up to 8192; the nearest is 720"),
        ((0, 720, 81), "width is 0, expected a multiple of 16 up to 8192; the nearest is 16"),
        ((9000, 720, 81), "the nearest is 8192"),
        ((1280, 720, 80), "frames is 80, expected 4n + 1; the nearest is 81"),
        ((1280, 720, 0), "the nearest is 1"),
        ((1280, 720, -7), "the nearest is 1"),
    ],
)
def test_bad_sizes_name_the_nearest_valid_one(size, sentence):
    width, height, num_frames = size
    with pytest.raises(InputError) as caught:
        VideoSize(width=width, height=height, num_frames=num_frames)
    assert sentence in str(caught.value)


@given(st.integers(-20, 9000), st.integers(-20, 500))
def test_the_nearest_valid_value_is_valid_and_none_is_nearer(width, num_frames):
    for name, value, step, offset in (("width", width, 16, 0), ("num_frames", num_frames, 4, 1)):
        sizes = {"width": 16, "height": 16, "num_frames": 1, name: value}
        try:
            VideoSize(**sizes)
        except InputError as error:
            near = int(str(error).rsplit(" ", 1)[1])
            VideoSize(**{**sizes, name: near})
            if offset < value < 8192:
                assert abs(near - value) <= step / 2 or near == 16


def test_latent_size_follows_the_strides_of_the_vae():
    assert VideoSize(width=1280, height=720, num_frames=81).latent_size == (21, 90, 160)
    assert VideoSize(width=16, height=32, num_frames=1).latent_size == (1, 4, 2)
    assert str(VideoSize(width=832, height=480, num_frames=81)) == "832x480x81"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"denoise": 0.0}, "denoise is 0.0"),
        ({"denoise": math.nan}, "denoise is nan"),
        ({"seed": -1}, "seed is -1, expected 0 to 18446744073709551615"),
        ({"seed": 2**64}, "seed is 18446744073709551616"),
        ({"start_step": 5, "end_step": 5}, "steps 5 to 5 are an empty range"),
        ({"start_step": -1}, "expected 0 <= start step"),
        ({"noise_device": "gpu"}, "expected one of 'device', 'cpu'"),
        ({"sigmas": (1.0,)}, "sigmas is (1), expected two or more"),
        ({"sigmas": (0.5, 0.5, 0.0)}, "sigmas is (0.5, 0.5, 0)"),
        ({"sigmas": (1.5, 0.0)}, "sigmas is (1.5, 0)"),
        ({"sigmas": (1.0, math.nan, 0.0)}, "sigmas is (1, nan, 0)"),
        ({"sigmas": tuple(range(20))}, "7, ...)"),
    ],
)
def test_bad_requests_are_refused(change, sentence):
    with pytest.raises(InputError) as caught:
        SampleRequest(recipe=recipe("official"), **change)
    assert sentence in str(caught.value)


def test_a_request_is_a_value():
    assert SampleRequest(recipe=recipe("official"), seed=3) == SampleRequest(recipe=recipe("official"), seed=3)
    assert len({SampleRequest(recipe=recipe("draft")), SampleRequest(recipe=recipe("draft"))}) == 1
