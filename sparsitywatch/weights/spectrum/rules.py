"""Which rule for near zero was asked for: the checks of ``MagnitudeSpectrum.near_zero``."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from sparsitywatch.errors import ConfigurationError, expect_mapping, expect_number

__all__ = ["chosen", "scales_of"]


def chosen(**rules: float | None) -> tuple[str, float]:
    """The name and the factor of the one rule that is not None.

    Raises:
        ConfigurationError: not exactly one, or a factor that is negative or not finite.
    """
    given = {name: factor for name, factor in rules.items() if factor is not None}
    if len(given) != 1:
        raise ConfigurationError(
            f"Expected exactly one of `abs`, `rms` and `initial`, got {sorted(given)}."
        )
    ((rule, factor),) = given.items()
    expect_number(rule, factor, lambda f: 0.0 <= f < math.inf, "a finite number >= 0")
    return rule, float(factor)


def scales_of(names: Sequence[str], reference: Mapping[str, float] | None) -> list[float]:
    """The scale in ``reference`` of each tensor.

    Raises:
        ConfigurationError: a tensor has no entry.
    """
    if reference is not None:
        expect_mapping("reference", reference, "scales by name")
    missing = [name for name in names if name not in (reference or {})]
    if reference is None or missing:
        raise ConfigurationError(
            "Expected `reference` with the initial scale of each tensor for `initial`, got "
            f"{'none' if reference is None else f'no entry for {missing[0]!r}'}."
        )
    return [reference[name] for name in names]
