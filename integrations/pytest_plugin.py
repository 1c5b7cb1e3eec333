"""The gate for pytest: ``assert_trains`` as a fixture, and as a marker of tests.

A marked test returns what ``make_training`` does; the marker takes the other arguments.
"""

from __future__ import annotations

from functools import partial
from typing import Any
from unittest import TestCase

import pytest

import sparsitywatch as sw  # loads torch when a name of it is first used


def pytest_configure(config: pytest.Config) -> None:
    """Make the marker known."""
    words = "assert_trains(steps=20, **arguments): sw.assert_trains of the training that it returns"
    config.addinivalue_line("markers", words)


@pytest.fixture
def assert_trains() -> Any:
    """``sw.assert_trains``."""
    return sw.assert_trains


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Refuse the marker where nobody would look at what a test returns."""
    kind = item.cls if isinstance(item, pytest.Function) else object
    if item.get_closest_marker("assert_trains") and issubclass(kind or object, TestCase):
        pytest.fail("Expected a function for the marker assert_trains, got a unittest.TestCase.")


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Hold a marked test to what it returns."""
    __tracebackhide__ = True
    marker = pyfuncitem.get_closest_marker("assert_trains")
    if marker is None:
        return None
    given = {name: pyfuncitem.funcargs[name] for name in pyfuncitem._fixtureinfo.argnames}
    sw.assert_trains(partial(pyfuncitem.obj, **given), *marker.args, **marker.kwargs)
    return True
