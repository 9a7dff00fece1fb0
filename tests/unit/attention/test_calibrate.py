"""Kernels timed and checked: the right fast one wins, a wrong one never, and nothing that goes wrong is an error."""

import time
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tests.unit.attention.fakes import attend, backend, failing
from wan_core.attention import calibrate as module
from wan_core.attention import verdict_store
from wan_core.attention.backends import sdpa
from wan_core.attention.calibrate import NotMeasured, calibrate, is_measurable, measure
from wan_core.attention.interface import AttentionBackend, AttentionProblem, KernelChoice, bind, survivors
from wan_core.attention.probe import Probe, queries_within
from wan_core.attention.verdicts import NOTHING_MEASURED, problem_class
from wan_core.profiles import Quality

PROBLEM = AttentionProblem(batch=1, q_len=200, kv_len=200, num_heads=2, head_dim=16, dtype="float32")
REAL = AttentionProblem(batch=1, q_len=75_600, kv_len=75_600, num_heads=40, head_dim=128, dtype="bfloat16")


def slower(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    time.sleep(0.006)
    return attend(q, k, v)


def without_the_last_keys(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return attend(q, k[:, :-8], v[:, :-8])


def choose(*backends: AttentionBackend, asked: str = "auto", ceiling: Quality = "exact", hardware=None) -> KernelChoice:
    return survivors("self attention", asked, PROBLEM, hardware, backends, ceiling=ceiling)


@pytest.fixture
def on_any_device(monkeypatch, tmp_path):
    """Measure on this CPU as if it were a card, and keep the verdicts in a folder of the test's own."""
    monkeypatch.setattr(module, "is_measurable", lambda choice, hardware: choice.asked == "auto")
    monkeypatch.setenv("WAN_VELOCITY_CACHE", str(tmp_path / "cache"))


def rates(monkeypatch, milliseconds: dict) -> list[str]:
    """Let kernels take invented times; returns the list to which each timing adds its kernel."""
    timed = []

    def seconds(self: Probe, run) -> float:
        timed.append(run)
        return milliseconds[run] / 1e3

    monkeypatch.setattr(Probe, "seconds", seconds)
    return timed


def copies(number: int) -> list:
    """The same kernel under several identities."""
    return [lambda q, k, v: attend(q, k, v) for _ in range(number)]


def test_the_faster_of_two_right_kernels_wins_whatever_was_preferred(machine):
    verdict = measure(choose(backend("slow", slower), backend("fast")), machine("cpu"))
    assert [timing.name for timing in verdict.timings] == ["fast", "slow"]
    assert verdict.timings[0].tflops > 2 * verdict.timings[1].tflops
    assert all(timing.error < 1e-6 for timing in verdict.timings)
    assert (verdict.failed, verdict.untimed) == ((), ())


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        (
            lambda q, k, v: torch.zeros_like(q),
            "its error of 1.0e+00 is over the 1.0e-05 that exact kernels are allowed",
        ),
        (lambda q, k, v: q * float("nan"), "its error of nan is over"),
        (without_the_last_keys, "its error of"),
        (
            lambda q, k, v: attend(q, k, v)[:, :10],
            "RuntimeError: gave shape (1, 10, 2, 16) for queries (1, 200, 2, 16)",
        ),
        (failing(RuntimeError("CUDA error: no kernel image\nand more")), "RuntimeError: CUDA error: no kernel image"),
    ],
)
def test_a_fast_wrong_kernel_does_not_win(machine, wrong, reason):
    choice = choose(backend("wrong", wrong), backend("slow", slower))
    verdict = measure(choice, machine("cpu"))
    assert [timing.name for timing in verdict.timings] == ["slow"]
    (rejection,) = verdict.failed
    assert rejection.name == "wrong" and rejection.reason.startswith(reason)
    ordered = verdict.order(choice)
    assert (ordered.names, ordered.rejected) == (("slow",), (rejection,))


def test_a_kernel_that_does_not_load_is_passed_over(machine):
    broken = backend("broken", load=failing(OSError("undefined symbol: _ZN3c10\npage")))
    verdict = measure(choose(broken, backend("plain")), machine("cpu"))
    assert [(item.name, item.reason) for item in verdict.failed] == [("broken", "OSError: undefined symbol: _ZN3c10")]


def test_a_defect_of_ours_is_not_swallowed(machine):
    with pytest.raises(KeyError, match="typo"):
        measure(choose(backend("ours", load=failing(KeyError("typo"))), backend("plain")), machine("cpu"))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_the_limit_follows_what_the_dtype_loses(machine, dtype):
    plain = sdpa.ANY.load()

    def rounded_more(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return (plain(q, k, v).float() * (1 + 8 * torch.finfo(q.dtype).eps)).to(q.dtype)

    choice = replace(
        choose(backend("more", rounded_more), backend("plain", plain)), problem=replace(PROBLEM, dtype=dtype)
    )
    verdict = measure(choice, machine("cpu"))
    accepted = {timing.name for timing in verdict.timings}
    # In float32 that much is still rounding, in half precision it is more than twice what PyTorch loses.
    assert accepted == ({"more", "plain"} if dtype == "float32" else {"plain"})


def test_near_kernels_have_a_bound_of_their_own(machine):
    def eight_bit(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attend(q, k, v) * 1.02

    near, broken = backend("near", eight_bit, quality="near"), backend("broken", lambda q, k, v: 0 * q, quality="near")
    verdict = measure(choose(near, broken, backend("plain"), ceiling="near"), machine("cpu"))
    assert {timing.name for timing in verdict.timings} == {"near", "plain"}
    assert "over the 1.0e-01 that near kernels are allowed" in verdict.failed[0].reason


def test_what_differs_by_less_than_the_noise_stays_in_order_of_preference(machine, monkeypatch):
    first, second, third, fourth = copies(4)
    rates(monkeypatch, {first: 10.2, second: 10.0, third: 9.0, fourth: 30.0})
    backends = [backend(name, run) for name, run in zip("abcd", (first, second, third, fourth), strict=True)]
    verdict = measure(choose(*backends), machine("cpu"))
    assert [timing.name for timing in verdict.timings] == ["c", "a", "b", "d"]
    assert verdict.timings[0].tflops == pytest.approx(4 * 200 * 200 * 2 * 16 / 9e-3 / 1e12)


def test_a_hopeless_kernel_is_timed_once(machine, monkeypatch):
    fast, slow = copies(2)
    timed = rates(monkeypatch, {fast: 10.0, slow: 100.0})
    measure(choose(backend("slow", slow), backend("fast", fast)), machine("cpu"))
    assert timed == [slow, fast, fast, fast]


def test_when_the_time_is_up_the_rest_stands_behind_untimed(machine, monkeypatch):
    first, second, third = copies(3)
    rates(monkeypatch, {first: 20.0, second: 1.0, third: 1.0})
    choice = choose(backend("a", first), backend("b", second), backend("c", third))
    verdict = measure(choice, machine("cpu"), seconds=0.0)
    assert ([timing.name for timing in verdict.timings], verdict.untimed) == (["a"], ("b", "c"))
    assert verdict.order(choice).names == ("a", "b", "c")
    assert verdict.covers(choice)


def test_a_kernel_without_memory_is_no_failure(machine):
    def greedy(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    verdict = measure(choose(backend("greedy", greedy), backend("plain")), machine("cpu"))
    assert (verdict.failed, verdict.untimed) == ((), ("greedy",))
    with pytest.raises(NotMeasured, match="there is no memory for any"):
        measure(choose(backend("greedy", greedy)), machine("cpu"))
    with pytest.raises(NotMeasured, match="^broken: OSError: gone$"):
        measure(choose(backend("broken", load=failing(OSError("gone")))), machine("cpu"))


def test_a_problem_that_does_not_fit_is_not_measured(machine):
    never = backend("never", load=failing(AssertionError("loaded")))
    with pytest.raises(NotMeasured, match=r"that needs \d\.\d GiB, 1\.0 GiB are free"):
        measure(replace(choose(never), problem=REAL), machine("h200", free_gib=1))


def test_queries_are_cut_to_whole_blocks_and_the_ragged_one():
    full = 4.0 * 75_600 * 75_600 * 5120
    assert queries_within(REAL, full) == queries_within(REAL, 10 * full) == 75_600
    part = queries_within(REAL, full / 4)
    assert part < 75_600 / 3.9
    assert part % 128 == 75_600 % 128
    assert queries_within(REAL, 0.0) == 128 + 75_600 % 128
    assert queries_within(replace(REAL, q_len=100), 0.0) == 100


def test_a_probe_has_all_keys_and_some_queries():
    seen = {}

    def spy(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        seen.update(q=q.shape, k=k.shape, v=v.shape, dtype=q.dtype)
        return attend(q, k, v)

    probe = Probe(replace(PROBLEM, dtype="bfloat16", batch=3), "cpu", num_queries=72)
    error = probe.error(spy)
    assert seen == {"q": (1, 72, 2, 16), "k": (1, 200, 2, 16), "v": (1, 200, 2, 16), "dtype": torch.bfloat16}
    assert 1e-4 < error < 1e-2 and 1e-4 < probe.own_error < 1e-2
    assert probe.flops == 4 * 72 * 200 * 2 * 16
    assert probe.seconds(spy) > 0


@pytest.mark.parametrize("row", [0, 71])
def test_an_error_in_the_first_or_last_row_is_seen(row):
    def wrong_row(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = attend(q, k, v)
        out[:, row] = 0
        return out

    probe = Probe(replace(PROBLEM, q_len=500), "cpu", num_queries=72)
    assert probe.error(wrong_row) > 0.05 > probe.error(attend)


def test_only_auto_with_a_choice_on_a_card_is_measured(machine):
    two = choose(backend("a"), backend("b"))
    assert is_measurable(two, machine("h200"))
    assert not is_measurable(two, machine("cpu"))
    assert not is_measurable(choose(backend("a"), backend("b"), asked="a"), machine("h200"))
    assert not is_measurable(choose(backend("a")), machine("h200"))


@pytest.mark.usefixtures("on_any_device")
def test_a_verdict_is_measured_once_and_found_again(machine, monkeypatch):
    hardware, choice = machine("cpu"), choose(backend("slow", slower), backend("fast"))
    found = calibrate([choice], hardware, verdict_store.read(hardware))
    assert found.order(choice).names == ("fast", "slow")
    monkeypatch.setattr(module, "measure", failing(AssertionError("measured twice")))
    again = calibrate([choice], hardware, verdict_store.read(hardware))
    assert again == found and again.notes == ()
    # Another size of the same class, and another way to ask for the same.
    near = replace(choice, problem=replace(PROBLEM, q_len=230, kv_len=230, batch=2))
    assert calibrate([near], hardware, again).order(near).names == ("fast", "slow")
    assert again.order(replace(choice, asked="slow")).names == ("slow", "fast")


@pytest.mark.usefixtures("on_any_device")
@pytest.mark.parametrize(
    "changed",
    [
        {"torch_version": "2.14.0"},
        {"cuda_version": "13.1"},
        {"cudnn_version": "92000"},
        {"libraries": (("flash-attn-4", "4.0.0b36"),)},
        {"name": "another CPU"},
    ],
)
def test_another_version_or_card_is_measured_anew(machine, monkeypatch, changed):
    hardware, choice = machine("cpu"), choose(backend("a"), backend("b"))
    calibrate([choice], hardware, NOTHING_MEASURED)
    other = replace(hardware, **changed)
    assert verdict_store.read(other) == NOTHING_MEASURED
    calibrate([choice], other, verdict_store.read(other))
    assert verdict_store.read(other).covers(choice) and verdict_store.read(hardware).covers(choice)


@pytest.mark.usefixtures("on_any_device")
def test_a_kernel_that_was_not_looked_at_makes_it_measure_again(machine):
    hardware = machine("cpu")
    exact = choose(backend("a"), backend("b"))
    near = choose(backend("near", quality="near"), backend("a"), backend("b"), ceiling="near")
    known = calibrate([exact], hardware, NOTHING_MEASURED)
    assert known.covers(exact) and not known.covers(near)
    assert known.order(near) == near
    both = calibrate([near], hardware, known)
    assert both.covers(near) and both.covers(exact)
    assert set(both.order(exact).names) == {"a", "b"}


@pytest.mark.usefixtures("on_any_device")
def test_self_and_cross_attention_are_measured_apart(machine):
    own = choose(backend("slow", slower), backend("fast"))
    cross = replace(own, topic="cross attention", problem=replace(PROBLEM, q_len=2000, kv_len=512))
    found = calibrate([own, cross], machine("cpu"), NOTHING_MEASURED)
    assert set(found.verdicts) == {problem_class(own.problem), problem_class(cross.problem)}
    assert problem_class(replace(REAL, kv_len=512)) == "bfloat16 65536x512x40x128"
    assert problem_class(REAL) == "bfloat16 65536x65536x40x128"
    assert problem_class(replace(REAL, q_len=32_760, kv_len=32_760)) == "bfloat16 32768x32768x40x128"


@pytest.mark.usefixtures("on_any_device")
def test_what_was_kept_for_other_problems_stays(machine):
    hardware, choice = machine("cpu"), choose(backend("a"), backend("b"))
    other = replace(choice, problem=replace(PROBLEM, kv_len=512))
    for each in (choice, other):  # as two processes that know nothing of each other
        calibrate([each], hardware, NOTHING_MEASURED)
    kept = verdict_store.read(hardware)
    assert kept.covers(choice) and kept.covers(other)


@pytest.mark.usefixtures("on_any_device")
def test_too_little_memory_is_a_note_and_the_order_of_preference(machine):
    choice = choose(backend("slow", slower), backend("fast"))
    found = calibrate([choice], replace(machine("cpu"), free_memory=1000), NOTHING_MEASURED)
    assert found.notes == ("kernels for self attention were not timed: that needs 0.0 GiB, 0.0 GiB are free",)
    assert found.order(choice) == choice


@pytest.mark.usefixtures("on_any_device")
@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "\0\udc80",
        '{"machines": 3}',
        '{"machines": {"KEY": 3}}',
        '{"machines": {"KEY": {"CLASS": {}}}}',
        '{"machines": {"KEY": {"CLASS": {"date": "", "timings": [RATE], "failed": [], "untimed": []}}}}',
    ],
)
def test_a_damaged_file_is_a_note_and_written_anew(machine, content):
    hardware, choice = machine("cpu"), choose(backend("a"), backend("b"))
    content = content.replace("KEY", verdict_store.FILE.key(hardware)).replace("CLASS", "float32 1x1x1x1")
    content = content.replace("RATE", '{"name": "a", "tflops": "fast", "error": 0}')
    verdict_store.FILE.path.parent.mkdir(parents=True)
    verdict_store.FILE.path.write_bytes(content.encode("utf-8", "surrogateescape"))
    known = verdict_store.read(hardware)
    assert known.verdicts == {}
    assert known.notes == ("attention.json in the cache folder cannot be read and is ignored",)
    assert calibrate([choice], hardware, known).notes == ()
    assert verdict_store.read(hardware).covers(choice) and verdict_store.read(hardware).notes == ()


@pytest.mark.usefixtures("on_any_device")
def test_a_folder_that_cannot_be_written_is_a_note(machine, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("WAN_VELOCITY_CACHE", str(tmp_path / "file" / "cache"))
    hardware, choice = machine("cpu"), choose(backend("slow", slower), backend("fast"))
    found = calibrate([choice], hardware, verdict_store.read(hardware))
    assert found.order(choice).names == ("fast", "slow")
    (note,) = found.notes
    assert note.startswith("the times of attention kernels are not kept: ")
    assert note.endswith("WAN_VELOCITY_CACHE may name another folder")


def test_a_measured_choice_explains_itself_and_can_be_bound(machine, monkeypatch):
    first, second = copies(2)
    rates(monkeypatch, {first: 10.0, second: 4.0})
    choice = choose(backend("a", first), backend("b", second), backend("c", lambda q, k, v: 0 * q))
    verdict = replace(measure(choice, machine("cpu")), date="2026-11-21")
    ordered = verdict.order(choice)
    assert str(ordered.decision) == (
        "self attention: b (b 0.00128, a 0.000512 TFLOP/s, measured 2026-11-21); "
        "not c: its error of 1.0e+00 is over the 1.0e-05 that exact kernels are allowed"
    )
    assert verdict.order(ordered) == ordered
    run, decision = bind(ordered, machine("cpu"))
    assert (run, decision) == (second, ordered.decision)
