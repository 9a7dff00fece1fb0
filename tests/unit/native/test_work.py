"""The functions of the block work are tried before they are used."""

import sys
from dataclasses import replace
from types import ModuleType

import pytest
import torch

from wan_core.kernels.block import TORCH
from wan_core.native.work import TRITON, load_work
from wan_core.report import Decision

FUSED = Decision(topic="block work", asked="auto", chosen=TRITON)
CPU = torch.device("cpu")


def install(monkeypatch: pytest.MonkeyPatch, kernels: object) -> None:
    module = ModuleType("triton_block")
    module.TRITON = kernels
    monkeypatch.setitem(sys.modules, "wan_core.kernels.triton_block", module)


def test_kernels_that_compute_the_same_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    good = replace(TORCH, name="good")
    install(monkeypatch, good)
    assert load_work(FUSED, CPU) == (good, FUSED)


def failing(*arguments: object) -> None:
    raise AttributeError("no compiler was found\nand more")


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        ({"add": failing}, "RuntimeError: AttributeError: no compiler was found"),
        ({"add": lambda x, y, gate: x + y}, "gave a relative error of"),
        ({"norm": lambda x, *_: x * float("nan")}, "gave a relative error of nan"),
    ],
    ids=["fails", "wrong", "nan"],
)
def test_kernels_that_fail_or_are_wrong_leave_the_blocks_as_they_are(monkeypatch, broken, reason) -> None:
    install(monkeypatch, replace(TORCH, **broken))
    kernels, decision = load_work(FUSED, CPU)
    assert kernels is None and decision.chosen == "as it is" and reason in str(decision)


def test_nothing_is_imported_for_other_choices(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, None)
    assert load_work(replace(FUSED, chosen="plain functions"), CPU)[0] is TORCH
    assert load_work(replace(FUSED, chosen="as it is"), CPU)[0] is None
