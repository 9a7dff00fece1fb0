"""Operators live as long as the process: those of a fake must not stand for a real kernel in another test."""

import itertools

import pytest

from wan_core.attention.backends import opaque

_numbers = itertools.count()


@pytest.fixture(autouse=True)
def own_namespace(monkeypatch):
    """A namespace of operators for each test."""
    monkeypatch.setattr(opaque, "NAMESPACE", f"wan_velocity_test_{next(_numbers)}")
