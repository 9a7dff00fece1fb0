"""Which run this is: the facts that decide whether a saved state belongs to it, and the name that its file has.

Nothing of a path counts: a model or a LoRA may have been moved in between. A file of weights is known by its size and
by samples of its bytes, spread over the whole file; weights into which something was merged differ in all of them.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path

from torch import Tensor

from ..checkpoint.experts import ExpertPair
from ..checkpoint.read import Checkpoint
from ..errors import InputError
from ..plan import ExecutionPlan
from ..profiles import OptimizationProfile
from ..sampling.noise import is_empty
from ..specs import Expert
from .state import Facts, RunState

_SAMPLES = 16
_SAMPLE_BYTES = 4096
# Facts that are long and say nothing to people; where one differs it is named alone.
_OPAQUE = frozenset({"model", "prompts", "starting latent", "noise levels"})


def facts_of(
    pair: ExpertPair,
    plan: ExecutionPlan,
    prompts: Mapping[str, Tensor],
    latent: Tensor | None,
    *,
    environment: Mapping[str, str],
    driver: Mapping[str, object] | None = None,
) -> Facts:
    """The facts of a run before it begins. latent: in raw VAE space; `None` or zeros are pure noise."""
    workload, request = plan.workload, plan.workload.request
    recipe = {each.name: getattr(request.recipe, each.name) for each in fields(request.recipe)}
    rest = {each.name: getattr(request, each.name) for each in fields(request) if each.name != "recipe"}
    del recipe["name"], recipe["provenance"]
    what = {
        "model": _hash(*(_fingerprint(pair[expert]) for expert in Expert)),
        "LoRAs": _loras(pair),
        "latent size": "x".join(map(str, workload.latent_size)),
        "videos": str(workload.batch),
        **{name: str(value) for name, value in (recipe | rest).items()},
        "noise levels": _hash(plan.schedule.sigmas),
        "prompts": _hash(*(_digest(prompts[name]) for name in sorted(prompts))),
        "starting latent": "noise" if latent is None or is_empty(latent) else _digest(latent),
    }
    how = {
        "precision": plan.binding.dtype,
        "residual": plan.binding.residual,
        "self attention": plan.binding.attention.names[0],
        "cross attention": plan.binding.cross_attention.names[0],
        "compile": plan.binding.compile_mode,
        "guidance passes": plan.guidance,
        "TF32": plan.tf32,
        "LoRA": plan.binding.lora,
        **environment,
    }
    return Facts(what=what, how=how, driver=driver or {})


def refuse_another(saved: RunState, mine: Facts) -> None:
    """Raise `InputError` in one sentence unless the saved run is one of this model, request and size."""
    theirs = saved.facts.what
    for name in (*mine.what, *theirs):
        there, here = theirs.get(name), mine.what.get(name)
        if there != here:
            detail = (
                f"not the same {name}" if name in _OPAQUE else f"{name.replace('_', ' ')} {there} there, {here} here"
            )
            raise InputError(f"the saved run is another one: {detail}; give the values of that run, or start a new one")


def other_ways(saved: RunState, mine: Facts) -> str | None:
    """How a run that goes on differs from the way it began, in one sentence; `None` where it does not."""
    names = sorted(mine.how.keys() | saved.facts.how.keys())
    pairs = [(name, saved.facts.how.get(name), mine.how.get(name)) for name in names]
    differing = [f"{name} {here} instead of {there}" for name, there, here in pairs if here != there]
    if not differing:
        return None
    return f"the run goes on in another way than it began, so its last bits may differ: {', '.join(differing)}"


def run_key(facts: Facts, profile: OptimizationProfile) -> str:
    """Equal for runs that give the same latent: what is made, the profile's settings and the machine.

    Where weights are placed is no part of it, since that follows from the memory that happens to be free.
    """
    asked = [
        (each.name, getattr(profile, each.name)) for each in fields(profile) if each.name not in ("name", "offload")
    ]
    return _hash(sorted(facts.what.items()), asked, sorted(facts.how.items()))


def _fingerprint(checkpoint: Checkpoint) -> str:
    """Size and sampled bytes of every file, in the order of their names."""
    return _hash(*(_sampled(path) for path in sorted(checkpoint.stamps, key=lambda path: path.name)))


def _sampled(path: Path) -> str:
    digest, size = hashlib.sha256(), path.stat().st_size
    digest.update(str(size).encode())
    with path.open("rb") as file:
        for sample in range(_SAMPLES):
            file.seek(max(size - _SAMPLE_BYTES, 0) * sample // (_SAMPLES - 1))
            digest.update(file.read(_SAMPLE_BYTES))
    return digest.hexdigest()


def _loras(pair: ExpertPair) -> str:
    found = []
    for choice in pair.loras:
        for expert in Expert:
            if lora := choice[expert]:
                names = "+".join(path.name for path in lora.checkpoint.stamps)
                found.append(f"{names} {choice.strength(expert):g} ({expert.value})")
    return ", ".join(found) or "none"


def _digest(tensor: Tensor) -> str:
    values = tensor.detach().float().cpu().contiguous()
    return _hash(tuple(values.shape), hashlib.sha256(values.numpy().tobytes()).hexdigest())


def _hash(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]
