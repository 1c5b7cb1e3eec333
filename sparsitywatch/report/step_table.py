"""The numbers behind a chart over the steps."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sparsitywatch.report.chart import Table
from sparsitywatch.report.numbers import Number, count, number_of
from sparsitywatch.report.runlog import RunLog
from sparsitywatch.series import describe

__all__ = ["chosen_looks", "step_table"]

#: More rows than this are for a program to read, and are all in records.jsonl.
_MAX_ROWS = 120


def step_table(run: RunLog, series: Sequence[str], title: str) -> Table:
    """Every look, or of very many some, with several series."""
    chosen = chosen_looks(run, _MAX_ROWS)
    columns = [run.series(name) for name in series]
    rows: list[Sequence[Number | str]] = [
        [count(run.steps[i]), *(
            number_of(name, column[i]) for name, column in zip(series, columns, strict=True)
        )]
        for i in chosen
    ]  # fmt: skip
    caption = f"{title}, by step"
    if len(chosen) < len(run.records):
        caption += (
            f": {len(chosen)} of {len(run.records):,} looks, evenly chosen, and those with an "
            "event; records.jsonl has all"
        )
    header = [("step", "step"), *((describe(name).label, name) for name in series)]
    return Table(caption=caption, header=header, rows=rows)


def chosen_looks(run: RunLog, most: int) -> list[int]:
    """Indices of looks to tell of: evenly spread, the ends and those with an event in them.

    Args:
        run: whose looks.
        most: how many are spread evenly.
    """
    number = len(run.records)
    if number <= most:
        return list(range(number))
    spread = np.linspace(0, number - 1, most).round().astype(int)
    seen = {event.detected_step for event in run.events}
    marked = [i for i, step in enumerate(run.steps) if int(step) in seen]
    return sorted({*spread.tolist(), *marked})
