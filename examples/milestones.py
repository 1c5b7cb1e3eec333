"""What happened in a run, read off its records: plateau, breakthrough, take-off; and in words."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from sparsitywatch.records import Event, Record

__all__ = ["NEAR_ZERO", "Breakthrough", "find_breakthrough", "find_takeoff", "summary"]

#: The rule of near-zero weights that is watched, and its plain companion.
NEAR_ZERO = "initial_0.1"
_NEAR_ZERO_ABS = "abs_0.001"
#: A breakthrough is this many nats below the plateau ...
_DROP = 0.15
#: ... and the plateau is this part of the run, if the loss stays within _DROP there.
_PLATEAU = (0.1, 0.3)
_MIN_PLATEAU_LOOKS = 4
#: Columns of the table: the middle of the plateau, and this part of the run after it ended.
_BEFORE = 0.2
_AFTER = 0.1


@dataclass(frozen=True)
class Breakthrough:
    """The held-out loss left its plateau: at ``step`` first 0.15 nats below ``plateau``.

    ``reliance_before`` is the median reliance on the plateau, ``reliance`` that at ``step``.
    """

    step: int
    plateau: float
    reliance_before: float
    reliance: float

    def describe(self) -> str:
        """One sentence for a person."""
        return (
            f"at step {self.step} the held-out loss was {_DROP} below its plateau of "
            f"{self.plateau:.3f}, reliance {self.reliance:.2f} against {self.reliance_before:.2f} "
            "on the plateau"
        )


@dataclass(frozen=True)
class Takeoff:
    """Near-zero weights: the lowest fraction, and when twice that was first exceeded after it.

    ``doubling_step`` and ``decay_clock`` (at that step) are None where it never was.
    """

    floor: float
    floor_step: int
    doubling_step: int | None
    decay_clock: float | None


def find_breakthrough(records: Sequence[Record], steps: int) -> Breakthrough | None:
    """When the held-out loss left its plateau; None without a plateau, or if it did not yet.

    The plateau is the median held-out loss between 10 and 30 % of the run, if there are at
    least four looks and the loss stays within 0.15 nats there: a loss that falls all the
    time has no plateau to break through.

    Args:
        records: in the order of their steps.
        steps: length of the whole run.
    """
    first, last = (share * steps for share in _PLATEAU)
    looks = [r for r in records if math.isfinite(_dense(r))]
    before = [r for r in looks if first <= r.step <= last]
    losses = [_dense(r) for r in before]
    if len(losses) < _MIN_PLATEAU_LOOKS or max(losses) - min(losses) > _DROP:
        return None
    plateau = statistics.median(losses)
    for record in looks:
        if record.step > last and _dense(record) < plateau - _DROP:
            reliance = statistics.median(r.reliance for r in before)
            return Breakthrough(record.step, plateau, reliance, record.reliance)
    return None


def find_takeoff(records: Sequence[Record], rule: str = NEAR_ZERO) -> Takeoff | None:
    """The floor of the near-zero fraction and its doubling; None without records."""
    seen = [r for r in records if rule in r.near_zero]
    if not seen:
        return None
    low = min(seen, key=lambda r: r.near_zero[rule])
    floor = low.near_zero[rule]
    for record in seen:
        if record.step > low.step and record.near_zero[rule] > 2 * floor:
            return Takeoff(floor, low.step, record.step, record.decay_clock)
    return Takeoff(floor, low.step, None, None)


def summary(
    records: Sequence[Record], events: Sequence[Event], *, steps: int, wall_s: float
) -> str:
    """The whole run as a plain-text table, with what was seen in words below it."""
    if not records:
        return f"{steps} steps in {wall_s:.0f} s, not watched."
    breakthrough = find_breakthrough(records, steps)
    lines = [_table(_columns(records, steps, breakthrough)), ""]
    lines.append(_breakthrough_in_words(breakthrough))
    lines.append(_takeoff_in_words(records, NEAR_ZERO, "0.1 x its initial scale"))
    lines.append(_takeoff_in_words(records, _NEAR_ZERO_ABS, "0.001"))
    lines += [f"Event: {event.describe()}." for event in events] or ["Events: none detected."]
    failed = [r.step for r in records if not r.valid]
    if failed:
        lines.append(f"Looks that failed: {len(failed)}, the first at step {failed[0]}.")
    watch_s = sum(r.cost.stall_s + r.cost.publish_s for r in records)
    lines.append(
        f"Time: {wall_s:.0f} s, of which the watch took {watch_s:.0f} s ({watch_s / wall_s:.0%}) "
        f"for {len(records)} looks."
    )
    return "\n".join(lines)


def _columns(
    records: Sequence[Record], steps: int, breakthrough: Breakthrough | None
) -> dict[str, Record]:
    if breakthrough is None:
        chosen = {"early": 0.1 * steps, "middle": 0.5 * steps, "end": float(steps)}
    else:
        at = float(breakthrough.step)
        chosen = {"before": _BEFORE * steps, "breakthrough": at, "after": at + _AFTER * steps}
        chosen["end"] = float(steps)
    return {
        name: min(records, key=lambda r, step=step: abs(r.step - step))  # type: ignore[misc]
        for name, step in chosen.items()
    }


def _table(columns: dict[str, Record]) -> str:
    rows: dict[str, list[str]] = {
        "": list(columns),
        "step": [str(r.step) for r in columns.values()],
        "held-out loss": [_number(_dense(r), 3) for r in columns.values()],
        "reliance (loss without the weights, minus loss)": [
            _number(r.reliance, 3) for r in columns.values()
        ],
        "essential sparsity (1 %, zero-shot)": [_essential(r) for r in columns.values()],
        "near zero: |w| <= 0.1 x initial scale": [
            _number(r.near_zero.get(NEAR_ZERO, math.nan), 4) for r in columns.values()
        ],
        "near zero: |w| <= 0.001": [
            _number(r.near_zero.get(_NEAR_ZERO_ABS, math.nan), 4) for r in columns.values()
        ],
        "dormant since the look before": [
            _number(r.dormant.fraction if r.dormant else math.nan, 3) for r in columns.values()
        ],
        "decay clock": [_number(r.decay_clock, 2) for r in columns.values()],
    }
    head = max(len(name) for name in rows)
    width = 2 + max(len(cell) for cells in rows.values() for cell in cells)
    return "\n".join(
        f"{name:<{head}}" + "".join(f"{cell:>{width}}" for cell in cells)
        for name, cells in rows.items()
    )


def _breakthrough_in_words(breakthrough: Breakthrough | None) -> str:
    if breakthrough is None:
        return (
            f"Breakthrough: none seen. The held-out loss had no plateau between {_PLATEAU[0]:.0%} "
            f"and {_PLATEAU[1]:.0%} of the run, or did not fall {_DROP} below it."
        )
    return (
        f"Breakthrough: {breakthrough.describe()}. Before that a high essential sparsity says "
        "little: the watched weights are hardly used."
    )


def _takeoff_in_words(records: Sequence[Record], rule: str, threshold: str) -> str:
    takeoff = find_takeoff(records, rule)
    if takeoff is None:
        return f"Near zero, |w| <= {threshold}: not measured."
    last = next(r for r in reversed(records) if rule in r.near_zero)
    told = (
        f"Near zero, |w| <= {threshold}: floor {takeoff.floor:.4f} at step {takeoff.floor_step}, "
        f"{last.near_zero[rule]:.4f} at the end; "
    )
    if takeoff.doubling_step is None:
        return told + "never twice the floor."
    return told + (
        f"twice the floor at step {takeoff.doubling_step}, decay clock {takeoff.decay_clock:.2f}."
    )


def _dense(record: Record) -> float:
    return record.series().get("value/dense", math.nan)


def _essential(record: Record) -> str:
    estimate = record.essential_sparsity
    if estimate is None:
        return "-"
    if not estimate.informative:
        return "not used yet"
    if math.isnan(estimate.low):
        return f"{estimate.value:.2f}"
    return f"{estimate.value:.2f} [{estimate.low:.2f}-{estimate.high:.2f}]"


def _number(value: float, digits: int) -> str:
    return "-" if math.isnan(value) else f"{value:.{digits}f}"
