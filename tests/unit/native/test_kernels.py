"""Kernels by problem: chosen when a problem first comes, once, and by the setting for its kind."""

import torch

from wan_core.native.kernels import AttentionKernels
from wan_core.profiles import preset
from wan_core.report import Decision


def test_bound_once_for_each_problem(machine) -> None:
    told: list[Decision] = []
    profile = preset("auto").with_settings({"attention.backend": "sdpa", "attention.cross": "math"})
    kernels = AttentionKernels(profile, lambda: machine("cpu"), told.append)
    queries = (1, 8, 2, 4)
    attend = kernels.attend(queries, 8, torch.float32)
    assert kernels.attend(queries, 8, torch.float32) is attend
    kernels.attend(queries, 3, torch.float32)
    assert [(each.topic, each.chosen) for each in told] == [("self attention", "sdpa"), ("cross attention", "math")]
    assert attend(*(torch.randn(queries) for _ in range(3))).shape == queries
