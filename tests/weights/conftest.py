"""Shared by the tests of the spectrum."""

from __future__ import annotations

import importlib.util

import pytest

from sparsitywatch.weights.spectrum import counting, kernel


@pytest.fixture(scope="module", params=["plain", "compiled"])
def counted_by(request: pytest.FixtureRequest):
    """Counting with and without the compiled counter, however few the weights."""
    if request.param == "compiled" and importlib.util.find_spec("numba") is None:
        pytest.skip("numba is not installed: pip install sparsitywatch[fast]")
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "plain":
            patch.setattr(kernel, "load", lambda num_bytes: None)
        else:
            assert all(kernel.load(num_bytes) for num_bytes in (2, 4, 8))
            patch.setattr(counting, "MIN_COMPILED", 0)
        yield request.param
