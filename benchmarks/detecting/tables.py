"""The benchmark's tables, in Markdown."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence

from detecting.early import Early
from detecting.recorded import EVERY, RULES, Verdict
from detecting.scoring import Score
from detecting.work import DETECTORS, OURS, SUITES, Results

__all__ = [
    "calibration_rows", "early_rows", "family_rows", "made_rows", "onset_rows", "real_rows",
    "run_rows", "spread_of", "spreads", "table", "takeoffs",
]  # fmt: skip

SPLITS = ("design", "report")


def table(head: Sequence[str], rows: Iterable[Sequence[str]], left: int = 1) -> list[str]:
    """Lines of a table; the first ``left`` columns are text."""
    rule = f"|{'---|' * left}{'---:|' * (len(head) - left)}"
    return [f"| {' | '.join(head)} |", rule, *(f"| {' | '.join(row)} |" for row in rows)]


def made_rows(results: Results, suite: str) -> list[str]:
    """All detectors on one suite, with 90 % intervals; ours also with the learning rate told."""
    head = ["detector", "seeds", "F1", "recall", "precision", "delay, median / 90 %"]
    head += ["false alarms per 1000", "time a snapshot, x ours"]
    own = results.seconds(OURS)
    rows = []
    for name in DETECTORS:
        of = {
            job: x for job, x in results.made.items() if (job.detector, job.suite) == (name, suite)
        }
        for job, (found, seconds) in of.items():
            if not job.rate_is_told:
                rows.append([*_cells(name, job.seeds, found), f"{seconds / own:.2g}"])
        if any(job.rate_is_told for job in of):
            seeds = [seed for job in of if job.rate_is_told for seed in job.seeds]
            found = results.merged(name, suite, rate_is_told=True)
            rows.append([*_cells(f"{name}, the rate told", seeds, found), ""])
    return table(head, rows)


def _cells(name: str, seeds: Sequence[int], found: Score) -> list[str]:
    def shown(name: str, digits: int = 3) -> str:
        low, high = found.intervals[name]
        value = getattr(found, name)
        return f"{value:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"

    delays = [found.delay(percentile) for percentile in (50, 90)]
    return [
        name,
        f"{min(seeds)} to {max(seeds)}",
        shown("f1"),
        shown("recall"),
        shown("precision"),
        "-" if math.isnan(delays[0]) else f"{delays[0]:.0f} / {delays[1]:.0f}",
        shown("false_per_1000", 2),
    ]


def family_rows(results: Results) -> list[str]:
    """Where ours misses or alarms falsely: one line a suite."""
    lines = []
    known = {(job.suite, job.rate_is_told) for job in results.made}
    for suite, is_told in sorted(known, key=lambda x: (SUITES.index(x[0]), x[1])):
        found = results.merged(OURS, suite, rate_is_told=is_told)
        missed, false = [], []
        for family in dict.fromkeys(o.family for o in found.outcomes):
            of = found.of(family).outcomes
            num_missed = sum(o.changes and o.delay is None for o in of)
            num_false = sum(o.num_false for o in of)
            name = family.partition("_")[2] if family.startswith("change") else family
            missed += [(num_missed, f"{name} {num_missed} of {len(of)}")] * (num_missed > 0)
            false += [(num_false, f"{family} {num_false}")] * (num_false > 0)
        told = [", ".join(text for _, text in sorted(x, reverse=True)) for x in (missed, false)]
        title = f"{suite}, the rate told" if is_told else suite
        lines.append(f"- {title}: misses {told[0] or 'none'}; false {told[1] or 'none'}.")
    return lines


def onset_rows(results: Results) -> list[str]:
    """How often the onset interval of ours holds the true onset of what was caught."""
    head = ["suite", "caught", "interval holds the onset"]
    rows = []
    for suite in SUITES:
        found = results.merged(OURS, suite)
        held, number = found.held()
        rows.append([suite, str(number), f"{held} ({held / number:.1%})" if number else "-"])
    return table(head, rows)


def takeoffs(verdicts: Iterable[Verdict], **of: object) -> list[Verdict]:
    """The verdicts on take-offs whose case has these attributes."""
    return [v for v in verdicts if v.case.truth.kind == "take-off" and _is(v, of)]


def _is(verdict: Verdict, of: dict[str, object]) -> bool:
    return all(getattr(verdict.case, key) == value for key, value in of.items())


def real_rows(real: Mapping[str, Sequence[Verdict]]) -> list[str]:
    """Detectors on the recorded runs, by name: caught at each cadence, and false alarms."""
    head = ["detector", "runs", *(f"caught at {every}" for every in EVERY)]
    head += ["snapshots late, median", "false on controls", "too early"]
    rows = []
    for name, verdicts in real.items():
        for split in SPLITS:
            of = [v for v in verdicts if v.case.split == split]
            late = [v.looks_late for v in takeoffs(of) if v.caught]
            controls = [v for v in of if v.case.truth.kind == "control"]
            looks = sum(len(v.case.steps) for v in controls)
            rows.append(
                [
                    name,
                    split,
                    *(_share(takeoffs(of, every=every)) for every in EVERY),
                    f"{statistics.median(late):.0f}" if late else "-",
                    f"{sum(v.num_false for v in controls)} in {looks} snapshots",
                    str(sum(v.num_false for v in takeoffs(of))),
                ]
            )
    return table(head, rows, left=2)


def _share(verdicts: Sequence[Verdict]) -> str:
    caught = sum(v.caught is not None for v in verdicts)
    return f"{caught} of {len(verdicts)}"


def run_rows(verdicts: Sequence[Verdict]) -> list[str]:
    """Every take-off at every cadence: alarm, onset, caught from how many first snapshots."""
    head = ["run", "split", "rule", "begins", "visible", "2 x", "2.5 x"]
    head += [f"every {every}" for every in EVERY]
    rows = []
    names = dict.fromkeys(v.case.name for v in verdicts)
    for name in names:
        for rule in RULES:
            of = takeoffs(verdicts, name=name, rule=rule)
            if not of:
                continue
            truth = of[0].case.truth
            limit = "-" if math.isinf(truth.limit) else f"{truth.limit:.0f}"
            steps = [truth.began, truth.visible, truth.doubled]
            cells = [_run_cell([v for v in of if v.case.every == every]) for every in EVERY]
            rows.append([name, of[0].case.split, rule, *map(str, steps), limit, *cells])
    return table(head, rows, left=3)


def _run_cell(verdicts: Sequence[Verdict]) -> str:
    """Medians over first snapshots."""
    share = f"{sum(v.caught is not None for v in verdicts)}/{len(verdicts)}"
    caught = [v.caught for v in verdicts if v.caught]
    if not caught:
        later = [v.alarms[0].step for v in verdicts if v.alarms]
        return f"{share}, late at {statistics.median(later):.0f}" if later else f"{share}, silent"
    onsets = [a.onset for a in caught if a.onset is not None]
    onset = f" (from {statistics.median(onsets):.0f})" if onsets else ""
    return f"{share} at {statistics.median(a.step for a in caught):.0f}{onset}"


def spread_of(verdicts: Sequence[Verdict]) -> float:
    """How far the alarms of one take-off at the cadences are apart: NaN if one has none.

    At each cadence the median over first snapshots counts; the largest minus the smallest, in parts
    of their median.
    """
    medians = []
    for every in EVERY:
        steps = [v.caught.step for v in verdicts if v.case.every == every and v.caught]
        if not steps:
            return math.nan
        medians.append(statistics.median(steps))
    return (max(medians) - min(medians)) / statistics.median(medians)


def spreads(verdicts: Sequence[Verdict]) -> list[float]:
    """``spread_of`` each take-off that is caught at every cadence."""
    found = takeoffs(verdicts)
    keys = dict.fromkeys((v.case.name, v.case.rule) for v in found)
    each = [spread_of(takeoffs(found, name=name, rule=rule)) for name, rule in keys]
    return [x for x in each if not math.isnan(x)]


def early_rows(signals: Sequence[Early]) -> list[str]:
    """The lead of dormant weights on each run at each cadence."""
    head = ["run", "split", "group", "2 x", *(f"every {every}" for every in EVERY)]
    rows = []
    for name in dict.fromkeys(e.name for e in signals):
        of = [e for e in signals if e.name == name]
        doubled = "-" if of[0].doubled is None else str(of[0].doubled)
        cells = []
        for e in of:
            lead = "" if math.isnan(e.lead) else f" ({e.lead:+.0f})"
            cells.append("-" if e.alarm is None else f"{e.alarm}{lead}")
        rows.append([name, of[0].split, of[0].group, doubled, *cells])
    return table(head, rows, left=3)


def calibration_rows(results: Results) -> list[str]:
    """False alarms asked for and told."""
    head = [
        "asked for, per 1000 snapshots",
        "on",
        "told",
        "90 % interval",
        "counted",
        "within a factor of two",
    ]
    said = {True: "yes", False: "no", None: "too few snapshots to say"}
    rows = [
        [f"{t.asked:g}", t.where, f"{t.told:.3g}", f"{t.low:.3g} to {t.high:.3g}",
         f"{t.num_false} in {t.num_snapshots}", said[t.is_within_factor_two]]
        for t in sorted(results.told, key=lambda t: (t.where, t.asked))
    ]  # fmt: skip
    return table(head, rows, left=0)
