"""The functions of the block work are tried before they are used."""

from dataclasses import replace

import pytest

from wan_core.kernels.block import TORCH
from wan_core.native import work
from wan_core.native.work import bind_work
from wan_core.report import Decision, Rejection

FUSED = Decision(topic="block work", asked="auto", chosen="triton", reason="40 blocks")


def test_kernels_that_work_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    good = replace(TORCH, name="good")
    monkeypatch.setattr(work, "bind_kernels", lambda name, device: (good, None))
    assert bind_work(FUSED, "cpu") == (good, FUSED)


def test_kernels_that_do_not_leave_the_blocks_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not in plain PyTorch, which the binding offers in their place: on a card that costs more than it gains."""
    monkeypatch.setattr(work, "bind_kernels", lambda name, device: (TORCH, "no compiler was found"))
    kernels, decision = bind_work(FUSED, "cuda")
    assert kernels is None
    assert (decision.chosen, decision.rejected) == ("off", (Rejection(name="triton", reason="no compiler was found"),))


def test_nothing_is_tried_for_other_choices() -> None:
    assert bind_work(replace(FUSED, chosen="torch"), "cpu")[0] is TORCH
    assert bind_work(replace(FUSED, chosen="off"), "cuda")[0] is None
