"""Quantiles of Student's t, against those of scipy."""

from __future__ import annotations

import pytest

from sparsitywatch.records.curve import t_quantile

#: Degrees of freedom, and the quantiles at 0.6, 0.95 and 0.9975 by scipy.stats.t.ppf.
QUANTILES = (
    (1, 0.32492, 6.31375, 127.32134),
    (2, 0.28868, 2.91999, 14.08905),
    (3, 0.27667, 2.35336, 7.45332),
    (6, 0.26483, 1.94318, 4.31683),
    (7, 0.26317, 1.89458, 4.02934),
    (30, 0.25561, 1.69726, 3.0298),
    (199, 0.25369, 1.65255, 2.83867),
    (200, 0.25368, 1.65251, 2.83851),
    (201, 0.25368, 1.65247, 2.83836),
    (5000, 0.25336, 1.64516, 2.80828),
)


@pytest.mark.parametrize(("freedom", "middle", "high", "highest"), QUANTILES)
def test_quantiles_are_those_of_students_t(freedom, middle, high, highest) -> None:
    found = [t_quantile(probability, freedom) for probability in (0.6, 0.95, 0.9975)]
    assert found == pytest.approx([middle, high, highest], rel=1e-4)
