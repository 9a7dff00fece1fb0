"""The choice among backends: reasons in words, ceilings, fallbacks that are said, nothing hidden."""

from collections.abc import Callable
from dataclasses import replace
from threading import current_thread

import pytest
import torch
from torch import Tensor

from wan_core.attention.interface import AttentionBackend, AttentionProblem, bind, import_ahead, survivors
from wan_core.errors import InputError, UnsupportedError
from wan_core.profiles import Quality

PROBLEM = AttentionProblem(batch=2, q_len=96, kv_len=80, num_heads=2, head_dim=8, dtype="float32")


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = torch.einsum("blnd,bknd->bnlk", q, k) * q.shape[-1] ** -0.5
    return torch.einsum("bnlk,bknd->blnd", scores.softmax(-1), v)


def backend(
    name: str, *, quality: Quality = "exact", reason: str | None = None, load: Callable[[], object] = lambda: attend
) -> AttentionBackend:
    return AttentionBackend(name=name, quality=quality, rejects=lambda problem, hardware: reason, load=load)


def failing(error: Exception) -> Callable[[], object]:
    def load() -> object:
        raise error

    return load


def choose(asked: str, backends: list[AttentionBackend], hardware, ceiling: Quality = "exact"):
    return survivors("self attention", asked, PROBLEM, hardware, backends, ceiling=ceiling)


def test_auto_takes_the_first_that_accepts_and_says_why_not_the_others(machine):
    backends = [backend("vendor", reason="needs wings"), backend("plain"), backend("late", reason="never asked")]
    choice = choose("auto", backends, machine("cpu"))
    assert choice.names == ("plain",)
    assert str(choice.decision) == "self attention: plain; not vendor: needs wings"
    assert choice.decision.degraded is False


def test_a_named_backend_goes_first_and_needs_no_excuses(machine):
    choice = choose("plain", [backend("vendor", reason="needs wings"), backend("plain")], machine("cpu"))
    assert str(choice.decision) == "self attention: plain"


def test_a_named_backend_that_cannot_run_falls_back_and_is_marked(machine):
    choice = choose("vendor", [backend("fast"), backend("vendor", reason="needs wings")], machine("cpu"))
    assert choice.decision.degraded is True
    assert str(choice.decision) == "self attention: fast instead of vendor; not vendor: needs wings"


def test_auto_never_crosses_the_ceiling_and_says_so(machine):
    backends = [backend("int8", quality="near"), backend("sparse", quality="lossy"), backend("plain")]
    choice = choose("auto", backends, machine("cpu"))
    assert choice.names == ("plain",)
    assert [item.reason for item in choice.rejected] == [
        "near, above the profile's ceiling 'exact'",
        "lossy, above the profile's ceiling 'exact'",
    ]
    assert choose("auto", backends, machine("cpu"), "near").names == ("int8", "plain")
    assert choose("auto", backends, machine("cpu"), "lossy").names == ("int8", "sparse", "plain")


def test_a_name_may_cross_the_ceiling_but_its_fallbacks_may_not(machine):
    backends = [backend("int8", quality="near"), backend("sparse", quality="lossy"), backend("plain")]
    choice = choose("sparse", backends, machine("cpu"))
    assert choice.names == ("sparse", "plain")
    assert choice.decision.quality == "lossy"


def test_an_unknown_name_gets_the_nearest(machine):
    with pytest.raises(InputError, match="self attention backend is 'flsh'.*did you mean 'flash'"):
        choose("flsh", [backend("flash"), backend("plain")], machine("cpu"))


def test_selecting_loads_nothing(machine):
    choose("auto", [backend("vendor", load=failing(AssertionError("loaded")))], machine("cpu"))


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ImportError("No module named 'vendor'"), "ImportError: No module named 'vendor'"),
        (OSError("undefined symbol: _ZN3c10\nlong dump"), "OSError: undefined symbol: _ZN3c10"),
        (RuntimeError("CUDA error: no kernel image"), "RuntimeError: CUDA error: no kernel image"),
    ],
)
def test_a_backend_that_does_not_load_is_passed_over_with_its_reason(machine, error, reason):
    backends = [backend("vendor", load=failing(error)), backend("plain")]
    chosen, decision = bind(choose("auto", backends, machine("cpu")), machine("cpu"))
    assert chosen is attend
    assert (decision.chosen, decision.degraded) == ("plain", False)
    assert [(item.name, item.reason) for item in decision.rejected] == [("vendor", reason)]


def test_a_named_backend_that_does_not_load_is_degraded(machine):
    backends = [backend("plain"), backend("vendor", load=failing(ImportError("gone")))]
    _, decision = bind(choose("vendor", backends, machine("cpu")), machine("cpu"))
    assert str(decision) == "self attention: plain instead of vendor; not vendor: ImportError: gone"
    assert decision.degraded is True


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        (lambda q, k, v: q[:, :1], "smoke test gave shape"),
        (lambda q, k, v: q * float("nan"), "non-finite value"),
    ],
)
def test_a_backend_that_fails_its_smoke_test_is_passed_over(machine, wrong, reason):
    backends = [backend("broken", load=lambda: wrong), backend("plain")]
    _, decision = bind(choose("auto", backends, machine("cpu")), machine("cpu"))
    assert decision.chosen == "plain"
    assert reason in decision.rejected[0].reason


def test_a_defect_of_ours_is_not_swallowed(machine):
    backends = [backend("ours", load=failing(KeyError("typo"))), backend("plain")]
    with pytest.raises(KeyError, match="typo"):
        bind(choose("auto", backends, machine("cpu")), machine("cpu"))


@pytest.mark.parametrize(
    ("vendor", "reason"),
    [
        (backend("vendor", reason="needs wings"), "vendor: needs wings"),
        (backend("vendor", load=failing(OSError("gone"))), "vendor: OSError: gone"),
    ],
)
def test_strict_wants_what_was_named_or_stops_with_the_reason(machine, vendor, reason):
    choice = choose("vendor", [backend("fast"), vendor, backend("plain")], machine("cpu"))
    with pytest.raises(UnsupportedError) as caught:
        bind(choice, machine("cpu"), strict=True)
    assert str(caught.value) == f"self attention 'vendor' cannot run on a CPU: {reason}"


def test_strict_lets_auto_choose(machine):
    backends = [backend("vendor", load=failing(OSError("gone"))), backend("plain")]
    _, decision = bind(choose("auto", backends, machine("cpu")), machine("cpu"), strict=True)
    assert decision.chosen == "plain"


def test_smoke_tensors_are_small_and_of_the_problem_dtype():
    q, k, v = AttentionProblem(batch=1, q_len=75_600, kv_len=512, num_heads=40, head_dim=128, dtype="bfloat16").tensors(
        "cpu"
    )
    assert (q.shape, k.shape, v.shape) == ((1, 64, 40, 128), (1, 64, 40, 128), (1, 64, 40, 128))
    assert {q.dtype, k.dtype, v.dtype} == {torch.bfloat16}
    short, keys, _ = PROBLEM.tensors("cpu", max_len=90)
    assert (short.shape[1], keys.shape[1]) == (90, 80)


def test_the_first_that_accepts_is_imported_beside_other_work(machine):
    importers = []

    def imports() -> None:
        importers.append(current_thread())

    backends = [replace(backend(name), imports=imports) for name in ("first", "second")]
    thread = import_ahead(choose("auto", backends, machine("cpu")))
    thread.join(10)
    assert importers == [thread]
    assert import_ahead(choose("auto", [backend("plain"), *backends], machine("cpu"))) is None


@pytest.mark.parametrize("error", [ImportError("no module"), OSError("undefined symbol"), RuntimeError("asserted")])
def test_an_import_that_fails_ahead_is_said_when_the_kernel_is_bound(machine, error, recwarn):
    broken = replace(backend("broken", load=failing(error)), imports=failing(error))
    choice = choose("auto", [broken, backend("plain")], machine("cpu"))
    import_ahead(choice).join(10)
    assert not recwarn.list  # nor is it a thread that ended in a traceback
    _, decision = bind(choice, machine("cpu"))
    assert (decision.chosen, [item.name for item in decision.rejected]) == ("plain", ["broken"])
