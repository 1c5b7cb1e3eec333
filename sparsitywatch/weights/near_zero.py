"""Near-zero rules: which threshold makes a weight count as near zero, by name."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from sparsitywatch.errors import ConfigurationError, expect_number, listed

__all__ = ["DEFAULT_RULES", "NearZeroRule", "near_zero_rules", "thresholds_of"]

#: The first one is what detectors watch by default.
DEFAULT_RULES = ("initial_0.1", "rms_0.1", "abs_0.001", "zero")


@dataclass(frozen=True)
class NearZeroRule:
    """``|w| <= threshold``, where the threshold is relative to something, or absolute.

    Args:
        kind: "initial": relative to the tensor's root mean square when the watch first
            saw it; "rms": to its root mean square now; "abs": absolute; "zero": exactly
            zero.
        factor: what it is multiplied with; 0 for "zero".
    """

    kind: str
    factor: float

    @classmethod
    def parse(cls, name: str) -> NearZeroRule:
        """A rule from its name: "initial_0.1", "rms_0.1", "abs_0.001", "zero".

        Raises:
            ConfigurationError: the name is none of these.

        >>> NearZeroRule.parse("rms_0.1")
        NearZeroRule(kind='rms', factor=0.1)
        """
        if name == "zero":
            return cls("zero", 0.0)
        kind, _, number = name.partition("_") if isinstance(name, str) else ("", "", "")
        try:
            factor = float(number)
        except ValueError:
            factor = math.nan
        if kind not in ("initial", "rms", "abs") or not 0.0 < factor < math.inf:
            raise ConfigurationError(
                "Expected `near_zero` rules such as 'initial_0.1', 'rms_0.1', 'abs_0.001' or "
                f"'zero', got {name!r}."
            )
        return cls(kind, factor)

    @classmethod
    def only(cls, **factors: float | None) -> NearZeroRule:
        """The rule of the one kind whose factor is not None.

        Raises:
            ConfigurationError: not exactly one, or a factor that is negative or not finite.

        >>> NearZeroRule.only(abs=0.001, rms=None)
        NearZeroRule(kind='abs', factor=0.001)
        """
        given = [(kind, factor) for kind, factor in factors.items() if factor is not None]
        if len(given) != 1:
            raise ConfigurationError(
                f"Expected exactly one of `abs`, `rms` and `initial`, got {sorted(dict(given))}."
            )
        ((kind, factor),) = given
        expect_number(kind, factor, lambda f: 0.0 <= f < math.inf, "a finite number >= 0")
        return cls(kind, float(factor))

    def fixed_thresholds(self, initial_rms: Mapping[str, float]) -> dict[str, float] | None:
        """Below which a weight is near zero, by tensor; None where that is not fixed, or 0.

        >>> NearZeroRule.parse("abs_0.001").fixed_thresholds({"weight": 0.02})
        {'weight': 0.001}
        """
        if self.kind == "initial":
            return {name: self.factor * rms for name, rms in initial_rms.items()}
        return dict.fromkeys(initial_rms, self.factor) if self.kind == "abs" else None


def near_zero_rules(rules: Sequence[str]) -> dict[str, NearZeroRule]:
    """Rules by their names.

    Raises:
        ConfigurationError: they are no list of such names.
    """
    names = listed("near_zero", rules, "a list of rules such as 'initial_0.1'")
    return {name: NearZeroRule.parse(name) for name in names}


def thresholds_of(
    rules: Sequence[NearZeroRule],
    names: Sequence[str],
    rms: np.ndarray,
    initial_rms: Mapping[str, float] | None,
) -> np.ndarray:
    """The threshold in each of T tensors by each of R rules, float64 [T, R].

    Args:
        rules: what is asked.
        names: of the tensors.
        rms: root mean square of each tensor, float64 [T].
        initial_rms: of each when it was first seen, by name; may be None where no rule asks.

    Raises:
        ConfigurationError: a rule asks for an initial scale that a tensor does not have.
    """
    found = np.empty((len(names), len(rules)))
    for i, rule in enumerate(rules):
        found[:, i] = rule.factor
        if rule.kind == "rms":
            found[:, i] *= rms
        elif rule.kind == "initial":
            missing = set(names).difference(initial_rms or ())
            if initial_rms is None or missing:
                first = min(missing, key=names.index, default="")
                came = "none" if initial_rms is None else f"no entry for {first!r}"
                raise ConfigurationError(
                    "Expected `reference` with the initial scale of each tensor for `initial`, "
                    f"got {came}."
                )
            found[:, i] *= list(map(initial_rms.__getitem__, names))
    # a tensor without a scale has no finite weights, so none near zero
    return np.where(np.isnan(found), -1.0, found)
