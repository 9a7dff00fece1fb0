"""Contestants by name: profiles of ours, peers with their checkouts and options, and every way to get it wrong."""

from pathlib import Path

import pytest

from wan_core.bench.choose import PEERS, check_names, contestant, own
from wan_core.bench.ours import ProfileCandidate
from wan_core.bench.peers.diffusers_model import DiffusersCandidate
from wan_core.errors import InputError
from wan_core.profiles import preset


@pytest.fixture
def checkouts(tmp_path: Path) -> Path:
    for marker in ("wan22/wan/modules/model.py", "comfy/comfy/ldm/wan/model.py"):
        (tmp_path / marker).parent.mkdir(parents=True)
        (tmp_path / marker).touch()
    return tmp_path


@pytest.mark.parametrize(
    "text", ["auto", "reference", "exact", "auto:attention.backend=cudnn,guidance.execution=batched"]
)
def test_profiles_are_called_what_they_were_asked_for_by(text):
    found = contestant(text)
    assert isinstance(found, ProfileCandidate)
    assert (found.name, found.is_peer) == (text, False)


def test_the_first_contestant_is_a_preset_with_its_changes():
    assert own(preset("exact"), []).name == "exact"
    changed = preset("auto").with_settings({"attention.backend": "cudnn"})
    assert own(changed, ["attention.backend=cudnn"]).name == "auto:attention.backend=cudnn"


@pytest.mark.parametrize(
    ("text", "name", "parts"),
    [
        ("reference={}/wan22", "Wan 2.2 reference", 3),
        ("reference+bf16={}/wan22", "Wan 2.2 reference+bf16", 3),
        ("comfyui={}/comfy", "ComfyUI", 3),
        ("comfyui+cudnn+compile={}/comfy", "ComfyUI+cudnn+compile", 1),
        ("diffusers", "diffusers", 1),
        ("diffusers+compile", "diffusers+compile", 1),
    ],
)
def test_peers(checkouts, text, name, parts):
    found = contestant(text.format(checkouts))
    assert (found.name, found.is_peer, len(found.parts)) == (name, True, parts)


def test_a_folder_may_have_any_name(checkouts):
    odd = checkouts / "a=b:c+d"
    (checkouts / "wan22").rename(odd)
    assert contestant(f"reference={odd}").name == "Wan 2.2 reference"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("reference={}/comfy", "is no checkout of the reference implementation"),
        ("comfyui={}/nowhere", "is no checkout of ComfyUI, expected the folder that holds comfy/ldm/wan/model.py"),
        ("comfyui", "'comfyui' names no checkout, expected comfyui=DIR"),
        ("comfyui=", "'comfyui=' names no checkout"),
        ("reference+bf16", "'reference+bf16' names no checkout, expected reference+bf16=DIR"),
        ("diffusers={}", "names a folder, expected diffusers alone"),
        ("comfyui+cudn={}/comfy", "did you mean 'cudnn'?"),
        ("comfy={}/comfy", "did you mean 'comfyui'?"),
        ("exakt", "did you mean 'exact'?"),
        ("auto:attention.backend", "'attention.backend' in 'auto:attention.backend' has no value"),
        ("auto:attention.backnd=cudnn", "did you mean 'attention.backend'?"),
        ("", "profile is ''"),
    ],
)
def test_mistakes_are_one_sentence(checkouts, text, sentence):
    with pytest.raises(InputError) as raised:
        contestant(text.format(checkouts))
    assert sentence in str(raised.value)


def test_nobody_takes_part_twice():
    with pytest.raises(InputError, match="'diffusers' takes part twice"):
        check_names([contestant("auto"), DiffusersCandidate("diffusers", None, frozenset()), contestant("diffusers")])


def test_every_peer_is_in_the_help():
    from argparse import ArgumentParser

    from wan_core.cli import bench

    parser = ArgumentParser()
    bench.add_arguments(parser)
    text = parser.format_help()
    assert [name for name in PEERS if name not in text] == []
    assert [option for peer in PEERS.values() for option in peer.options if f"+{option}]" not in text] == []
