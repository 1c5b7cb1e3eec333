"""What moved since the last look, and what follows from it."""

from __future__ import annotations

import math
from dataclasses import dataclass

__all__ = ["Dormant", "Forecast", "MaskOverlap", "Movement", "Outlook"]

_NAN = float("nan")


@dataclass(frozen=True, kw_only=True)
class Outlook:
    """How far the decay clock must advance until dormant weights are near zero.

    Args:
        advance: of the decay clock (mean over the in-scope weights), rising from 0.
        dormant: share of the sampled weights that is dormant now and near zero at that
            advance, those left out that pass as dormant by chance.
        entering: the same for weights that may go dormant next, as a share of these: living
            weights, those of a tensor counted in proportion to its dormant ones.
    """

    advance: tuple[float, ...]
    dormant: tuple[float, ...]
    entering: tuple[float, ...]

    def __repr__(self) -> str:
        return f"<Outlook over {len(self.advance)} advances of the decay clock>"


@dataclass(frozen=True, kw_only=True)
class Dormant:
    """Weights whose change since the last look is explained by weight decay alone.

    Args:
        fraction: of the sampled in-scope weights; NaN when it could not be measured.
        num_sampled: size of the fixed random sample.
        since_step: step of the earlier look; -1 if there was none.
        reason: why ``fraction`` is NaN; empty otherwise.
        chance: share of living weights that passes by chance over this interval; NaN if not
            known. It grows with the distance of the looks.
        estimated: the shrink by decay and the size of updates were estimated from the weights
            themselves, as nothing was known of the optimizer.
        outlook: None if the decay clock stands still or is not known.
    """

    fraction: float
    num_sampled: int
    since_step: int
    reason: str = ""
    chance: float = _NAN
    estimated: bool = False
    outlook: Outlook | None = None


@dataclass(frozen=True, kw_only=True)
class Movement:
    """How far the weights went since the last look; known for every optimizer.

    Args:
        update_to_weight: root mean square of the change that decoupled decay does not explain,
            over that of the weights before; NaN if there was no earlier look.
        sign_flips: fraction of the sampled weights that changed their sign; NaN likewise.
        num_sampled: size of the fixed random sample.
        since_step: step of the earlier look; -1 if there was none.
    """

    update_to_weight: float
    sign_flips: float
    num_sampled: int
    since_step: int


@dataclass(frozen=True, kw_only=True)
class MaskOverlap:
    """Whether pruning would remove the same weights as at the look before.

    Args:
        level: sparsities that are compared, rising.
        overlap: of the sampled weights that a level would have removed then, the fraction that
            it removes now; about the level itself if the two had nothing in common. NaN if
            there was no earlier look, or nothing to remove.
        num_sampled: size of the fixed random sample.
        since_step: step of the earlier look; -1 if there was none.
    """

    level: tuple[float, ...]
    overlap: tuple[float, ...]
    num_sampled: int
    since_step: int

    def __repr__(self) -> str:
        return f"<MaskOverlap at {len(self.level)} levels since step {self.since_step}>"

    @property
    def scalars(self) -> dict[str, float]:
        """Each overlap by the last part of the name of its series."""
        pairs = zip(self.level, self.overlap, strict=True)
        return {f"mask_overlap_{level:g}": overlap for level, overlap in pairs}


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """The near-zero fraction to come, while the decay clock advances by one unit.

    Args:
        rule: the near-zero rule that is foreseen.
        advance: of the decay clock from now on, rising from 0.
        fraction: near-zero fraction of the in-scope weights at each advance; NaN where it is
            farther ahead, in steps, than twice the age of the run.
        low, high: the band around it, nominally of nine in ten.
        clock_per_step: present rate of the decay clock.
        doubling_step: when the fraction is twice its running floor, at the present rate; NaN if
            that cannot be foreseen, or has happened.
    """

    rule: str
    advance: tuple[float, ...]
    fraction: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    clock_per_step: float
    doubling_step: float = _NAN

    def __repr__(self) -> str:
        return f"<Forecast of {self.rule}: {self.at(1.0)[0]:.3g} when the clock advanced by 1>"

    def at(self, advance: float) -> tuple[float, float, float]:
        """Fraction, low and high at an advance of the clock; NaN if it is not told."""
        for x, *told in zip(self.advance, self.fraction, self.low, self.high, strict=True):
            if math.isclose(x, advance):
                return told[0], told[1], told[2]
        return _NAN, _NAN, _NAN

    @property
    def scalars(self) -> dict[str, float]:
        """What is foreseen, by the last part of the name of its series."""
        middle, (whole, low, high) = self.at(0.5)[0], self.at(1.0)
        return {
            "near_zero_in_0.5": middle,
            "near_zero_in_1": whole,
            "near_zero_in_1_low": low,
            "near_zero_in_1_high": high,
        }
