"""Runs under a live watch."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="module", autouse=True)
def _no_pictures(no_pictures: None) -> None:
    """None of these tests looks at what is drawn; those of ``sinks`` and ``examples`` do."""
