"""Contestants by their names on the command line.

exact                                a profile
auto:attention.backend=cudnn         a profile with settings, several divided by commas
reference=DIR, reference+bf16=DIR    the reference implementation
comfyui=DIR, comfyui+cudnn+compile=DIR
diffusers, diffusers+compile         as it is installed
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from ..errors import InputError
from ..profiles import PRESETS, OptimizationProfile, check_choice, preset
from .ours import ProfileCandidate
from .peers import comfyui, diffusers_model, reference
from .task import Candidate

# (name, folder of the checkout or `None`, options) -> contestant
MakePeer = Callable[[str, Path | None, frozenset[str]], Candidate]


@dataclass(frozen=True, slots=True)
class Peer:
    """Somebody else's code. title: its name in a result. wants_folder: whether a checkout has to be named."""

    title: str
    options: tuple[str, ...]
    make: MakePeer
    wants_folder: bool = True


PEERS: Mapping[str, Peer] = MappingProxyType(
    {
        "reference": Peer("Wan 2.2 reference", reference.OPTIONS, reference.ReferenceCandidate),
        "comfyui": Peer("ComfyUI", comfyui.OPTIONS, comfyui.ComfyUiCandidate),
        "diffusers": Peer("diffusers", diffusers_model.OPTIONS, diffusers_model.DiffusersCandidate, wants_folder=False),
    }
)


def own(profile: OptimizationProfile, settings: Sequence[str]) -> Candidate:
    """A profile of ours, by its preset's name and the settings that were changed."""
    name = profile.name.removesuffix(" (changed)")
    return ProfileCandidate(f"{name}:{','.join(settings)}" if settings else name, profile)


def contestant(text: str) -> Candidate:
    """The contestant that an argument names; raises `InputError` in one sentence for anything else."""
    name, divider, rest = re.match(r"([^:=]*)([:=]?)(.*)", text, re.DOTALL).groups()
    peer, *options = name.split("+")
    # "reference" is a profile of ours too: with a folder it is the peer.
    if peer not in PEERS or (name in PRESETS and divider != "="):
        if divider == "=":
            check_choice("the peer", peer, tuple(PEERS))
        return _profile(text, name, rest)
    known = PEERS[peer]
    for option in options:
        check_choice(f"the option of {peer}", option, known.options)
    if known.wants_folder and not (divider == "=" and rest):
        raise InputError(f"{text!r} names no checkout, expected {name}=DIR")
    if divider and not known.wants_folder:
        raise InputError(f"{text!r} names a folder, expected {name} alone: the installed one is measured")
    title = "+".join((known.title, *options))
    return known.make(title, Path(rest) if rest else None, frozenset(options))


def check_names(candidates: Sequence[Candidate]) -> None:
    """Raise `InputError` where one is named twice: a row would not say whose it is."""
    names = [candidate.name for candidate in candidates]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"{name!r} takes part twice, expected each contestant once")


def _profile(text: str, name: str, rest: str) -> Candidate:
    settings = {}
    for entry in filter(None, rest.split(",")):
        key, equals, value = entry.partition("=")
        if not equals:
            raise InputError(f"{entry!r} in {text!r} has no value, expected PROFILE:KEY=VALUE,...")
        settings[key] = value
    return ProfileCandidate(text, preset(name).with_settings(settings))
