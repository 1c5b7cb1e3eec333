"""A family of cases of which `make test` runs a part, and `--whole`, as before a release, all."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

#: What a cheaper test holds too, on fewer cases.
whole = pytest.mark.whole


def some_of(values: Iterable[Any], every: int) -> list[Any]:
    """Parameters for a test; all but each so many-th wait for ``--whole``."""
    return [pytest.param(v, marks=whole) if i % every else v for i, v in enumerate(values)]
