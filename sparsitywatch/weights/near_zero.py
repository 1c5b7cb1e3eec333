"""Near-zero rules: which threshold makes a weight count as near zero, by name."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sparsitywatch.errors import ConfigurationError, expect, listed
from sparsitywatch.weights.spectrum import MagnitudeSpectrum

__all__ = ["DEFAULT_RULES", "NearZeroRule"]

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
        expect(isinstance(name, str), "near_zero", "names of rules such as 'initial_0.1'", name)
        if name == "zero":
            return cls("zero", 0.0)
        kind, _, number = name.partition("_")
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

    def fraction(self, spectrum: MagnitudeSpectrum, initial_rms: Mapping[str, float]) -> float:
        """Fraction of the spectrum's weights that are near zero by this rule.

        Args:
            spectrum: of one or more tensors.
            initial_rms: root mean square of each tensor when the watch first saw it.
        """
        if self.kind == "initial":
            return spectrum.near_zero(initial=self.factor, reference=initial_rms)
        if self.kind == "rms":
            return spectrum.near_zero(rms=self.factor)
        return spectrum.near_zero(abs=self.factor)

    def fixed_thresholds(self, initial_rms: Mapping[str, float]) -> dict[str, float] | None:
        """Below which a weight is near zero, by tensor; None where that is not fixed, or 0.

        >>> NearZeroRule.parse("abs_0.001").fixed_thresholds({"weight": 0.02})
        {'weight': 0.001}
        """
        if self.kind == "initial":
            return {name: self.factor * rms for name, rms in initial_rms.items()}
        return dict.fromkeys(initial_rms, self.factor) if self.kind == "abs" else None


def near_zero_rules(rules: Sequence[str]) -> tuple[str, ...]:
    """The names of some rules, checked.

    Raises:
        ConfigurationError: they are no list of such names.
    """
    names = tuple(listed("near_zero", rules, "a list of rules such as 'initial_0.1'"))
    for name in names:
        NearZeroRule.parse(name)
    return names
