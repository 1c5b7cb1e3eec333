"""``Settings``: what is measured and how; shared by every way to measure a model."""

from __future__ import annotations

import difflib
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, TypedDict

from typing_extensions import Unpack

from sparsitywatch.analysis import detect
from sparsitywatch.analysis.estimate import allowed_harm
from sparsitywatch.errors import (
    ConfigurationError,
    expect,
    expect_mapping,
    expect_number,
    expect_whole,
    listed,
)
from sparsitywatch.patterns import PATTERNS
from sparsitywatch.patterns.pattern import Pattern, as_pattern
from sparsitywatch.series import SERIES, describe
from sparsitywatch.sweeps import Grid, Racing, Sweep
from sparsitywatch.weights.scope import ScopeLike
from sparsitywatch.weights.spectrum.magnitude import DEFAULT_RULES, NearZeroRule, near_zero_rules


class SettingsFields(TypedDict, total=False):
    """The fields of ``Settings`` as keyword arguments."""

    scope: ScopeLike
    levels: Sequence[float] | None
    sweep: Sweep | None
    pattern: str | Pattern | None
    controls: Sequence[str | Pattern]
    tolerance: float
    tolerance_mode: str | None
    confidence: float
    near_zero: Sequence[str]
    dormant_samples: int | None
    threads_draw: bool


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What is measured of a model, and how: the same for a live watch, a replay and one model.

    Args:
        scope: which weights count: a preset ("blocks", "all", "paper", "layers", "matrices"), name
            patterns, or a predicate (name, parameter) -> bool.
        levels: sparsities in [0, 1) to evaluate in every snapshot, on all examples; None to let
            ``sweep`` choose.
        sweep: what chooses the levels, such as ``sw.sweeps.Bisection``. None: that is ``Racing()``,
            a grid on a share of the examples, and all of them where the tolerance is crossed and at
            both ends of the interval.
        pattern: which weights a level removes; by default "global", one magnitude threshold over
            all tensors. A combination of score, structure and allocation such as "wanda:2:4", an
            object such as ``sw.patterns.Pattern("magnitude", allocation="owl")``, or a name:
            {names}
        controls: patterns that are measured beside it at the same levels, such as ("random",):
            what a criterion has to beat to mean something.
        tolerance: the epsilon of essential sparsity, a fraction.
        tolerance_mode: "relative" to the dense value, "absolute", or None: relative for
            losses, absolute for scores.
        confidence: nominal coverage of the interval of essential sparsity, in (0, 1).
        near_zero: rules that count near-zero weights, such as "initial_0.1", "rms_0.1",
            "abs_0.001" and "zero"; detectors watch them as one family.
        dormant_samples: how many weights are compared from snapshot to snapshot, a fixed random
            sample; None for all of them, 0 for none.
        threads_draw: whether other threads may draw from the global generators of torch, numpy and
            python, or use what ``value`` changes. Beside such threads a watch, and ``measure``,
            evaluate in a fork, or not at all. False: you say that none does. A replay does not ask.

    Raises:
        ConfigurationError: a value cannot be used; the field is named.

    >>> Settings(tolerance=0.02).near_zero
    ('initial_0.1', 'rms_0.1', 'abs_0.001', 'zero')
    """

    scope: ScopeLike = "blocks"
    levels: Sequence[float] | None = None
    sweep: Sweep | None = None
    pattern: Pattern = None  # type: ignore[assignment]  # a name, too: made one when it is set
    controls: tuple[Pattern, ...] = ()
    tolerance: float = 0.01
    tolerance_mode: str | None = None
    confidence: float = 0.9
    near_zero: tuple[str, ...] = DEFAULT_RULES
    dormant_samples: int | None = 1_000_000
    threads_draw: bool = True
    effective_sweep: Sweep = field(init=False, repr=False, compare=False)
    rules: Mapping[str, NearZeroRule] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        mode = self.tolerance_mode
        is_mode = mode is None or (isinstance(mode, str) and mode in ("relative", "absolute"))
        expect(is_mode, "tolerance_mode", "'relative', 'absolute' or None", mode)
        allowed_harm(1.0, self.tolerance, self.mode(higher_is_better=False))  # refuses bad values
        expect_number("confidence", self.confidence, lambda c: 0.0 < c < 1.0, "in (0, 1)")
        if self.dormant_samples is not None:
            expect_whole("dormant_samples", self.dormant_samples, 0)
        expect(
            isinstance(self.threads_draw, bool), "threads_draw", "True or False", self.threads_draw
        )
        rules = near_zero_rules(self.near_zero)
        if not rules:
            raise ConfigurationError("Expected `near_zero` with at least one rule, got none.")
        pattern = as_pattern(self.pattern)
        controls = listed("controls", self.controls, "a list of patterns such as ['random']")
        vars(self).update(  # frozen
            pattern=pattern,
            controls=tuple(as_pattern(c, f"controls[{i}]") for i, c in enumerate(controls)),
            near_zero=tuple(rules),
            rules=rules,
            effective_sweep=_effective_sweep(self.levels, self.sweep, pattern, self.confidence),
        )

    def __repr__(self) -> str:
        usual, own = vars(Settings()), vars(self)
        names = [n for n in sorted(self.names()) if repr(own[n]) != repr(usual[n])]
        return f"Settings({', '.join(f'{name}={own[name]!r:.60}' for name in names)})"

    def mode(self, *, higher_is_better: bool) -> str:
        """The tolerance mode that applies to a value of this direction."""
        if self.tolerance_mode is not None:
            return self.tolerance_mode
        return "absolute" if higher_is_better else "relative"

    @classmethod
    def of(cls, settings: Settings | None, **changes: Unpack[SettingsFields]) -> Settings:
        """``settings`` (None: the defaults) with ``changes`` of some fields.

        Raises:
            ConfigurationError: a value cannot be used; the field is named.
            TypeError: there is no such field; says which one is like it.
        """
        is_settings = settings is None or isinstance(settings, cls)
        expect(is_settings, "settings", "a sw.Settings or None", settings)
        for name in changes.keys() - cls.names():
            like = difflib.get_close_matches(name, cls.names(), 1)
            hint = f" Did you mean {like[0]!r}?" if like else ""
            raise TypeError(f"got an unexpected keyword argument {name!r}.{hint}")
        return cls(**changes) if settings is None else replace(settings, **changes)  # type: ignore[arg-type]

    @classmethod
    def names(cls) -> frozenset[str]:
        """Names of the fields that can be set."""
        return frozenset(one.name for one in fields(cls) if one.init)


_NAMES = ", ".join(f'"{name}"' for name in PATTERNS)
Settings.__doc__ = (Settings.__doc__ or "").replace(
    "{names}", textwrap.fill(f"{_NAMES}.", 84, subsequent_indent=" " * 12)
)


def default_detectors(settings: Settings) -> dict[str, detect.Detector]:
    """What is watched by default, by name of the series; near-zero rules are one family."""
    rules, number = settings.near_zero, len(settings.near_zero)
    return {
        "motion/dormant": detect.DormantRise(),
        **{f"near_zero/{rule}": detect.AbruptChange(family=number) for rule in rules},
        "essential_sparsity/value": detect.MeasuredChange(),
        "value/reliance": detect.MeasuredChange(0.0, ratio=2.5),
        "value/dense": detect.ValueChange(),
    }


def checked_detectors(given: Any, settings: Settings) -> dict[str, detect.Detector]:
    """Those by default for None; a ConfigurationError of a series that such a run has not."""
    if given is None:
        return default_detectors(settings)
    example = "{'motion/dormant': sw.detectors.DormantRise()}"
    expect_mapping("detectors", given, f"detectors by name of the series, such as {example}")
    rules = [f"near_zero/{rule}" for rule in settings.near_zero]
    names = [*rules, *(row.name for row in SERIES if not row.name.startswith("near_zero/"))]
    for name, detector in given.items():
        what = "a detector, derived from sw.detectors.Detector"
        expect(isinstance(detector, detect.Detector), f"detectors[{name!r}]", what, detector)
        is_rule = name.startswith("near_zero/")
        near = difflib.get_close_matches(name, names, 1, 0.0)[0]
        what = f"of series that a run has, such as {near!r} (docs/tags.md lists them)"
        is_there = name in rules if is_rule else describe(name).source
        expect(is_there, "detectors", what, name)
    return dict(given)


def _effective_sweep(levels: Any, sweep: Any, pattern: Pattern, confidence: float) -> Sweep:
    """What chooses the levels; what is given is checked."""
    if sweep is not None:
        expect(isinstance(sweep, Sweep), "sweep", "a sweep such as sw.sweeps.Racing()", sweep)
        expect(levels is None, "levels", "None with a `sweep`, which chooses the levels", levels)
    only, given = pattern.levels, levels if sweep is None else sweep
    if only is not None and given is not None:
        raise ConfigurationError(
            f"Expected no `levels` with the pattern {pattern.name!r}, which has the sparsities "
            f"{', '.join(f'{level:g}' for level in only)} only, got {given!r}."
        )
    if only is not None:
        return Grid(tuple(only))
    if isinstance(sweep, Sweep):
        return sweep
    if levels is None:
        return Racing(risk=1.0 - confidence)
    if isinstance(levels, Sweep):
        raise ConfigurationError(
            f"Expected `levels` to be sparsities in [0, 1), got {levels!r}. A sweep is given as "
            "`sweep`."
        )
    return Grid(tuple(listed("levels", levels, "a list of sparsities in [0, 1)")))
