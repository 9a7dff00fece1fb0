"""Imports beside other work, and the collector while they last."""

import gc
import subprocess
import sys
import weakref
from pathlib import Path
from threading import current_thread

import pytest

from wan_core.importing import collector_paused, in_thread

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def collecting():
    """What the tests count on, and leave behind."""
    assert gc.isenabled()
    yield
    gc.enable()


class Ring:
    """Garbage that only the collector finds."""

    def __init__(self) -> None:
        self.itself = self


def collections() -> int:
    return sum(generation["collections"] for generation in gc.get_stats())


def test_nothing_is_collected_while_it_is_paused():
    before = collections()
    with collector_paused():
        kept = [[number] for number in range(100_000)]
        assert collections() == before
    assert gc.isenabled() and len(kept) == 100_000


def test_what_was_made_meanwhile_is_not_looked_through_by_small_collections():
    """In a process of its own: in this one what was imported for the tests is frozen."""
    code = """
import gc
from wan_core.importing import collector_paused
with collector_paused():
    kept = [[number] for number in range(10)]
oldest = {id(each) for each in gc.get_objects(generation=2)}
assert {id(each) for each in kept} <= oldest
assert gc.isenabled() and not gc.get_freeze_count()
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_garbage_is_found_afterwards():
    with collector_paused():
        ring = weakref.ref(Ring())
    assert ring() is not None
    gc.collect()
    assert ring() is None


def test_an_error_ends_the_pause():
    with pytest.raises(ImportError), collector_paused():
        raise ImportError("no module")
    assert gc.isenabled()


def test_who_does_not_collect_is_left_alone():
    gc.disable()
    with collector_paused():
        assert not gc.isenabled()
    assert not gc.isenabled()


def test_what_somebody_has_frozen_stays_frozen():
    assert gc.get_freeze_count(), "tests/conftest.py has"
    with collector_paused():
        pass
    assert gc.get_freeze_count() and gc.isenabled()


def test_pauses_that_overlap_leave_the_collector_on():
    first, second = collector_paused(), collector_paused()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    second.__exit__(None, None, None)
    assert gc.isenabled()


@pytest.mark.parametrize("error", [None, ImportError("no module"), AttributeError("another version")])
def test_a_thread_imports_and_keeps_its_failures_to_itself(error, recwarn):
    importers = []

    def imports() -> None:
        importers.append(current_thread())
        if error:
            raise error

    thread = in_thread(imports)
    thread.join(10)
    assert importers == [thread]
    assert not recwarn.list  # a thread that ends in a traceback is a warning
