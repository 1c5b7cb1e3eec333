"""Every sentence about the recorded trainings, read again and held against their numbers.

``python tests/benchmarks/test_sentences.py`` prints what is wrong, and how often. The sentences are
parsed as a person reads them; what is true is worked out here from all of the run, also from what
came later, and from what was done to it.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # tests get it from conftest.py
    sys.path[:0] = [str(Path(__file__).parents[2] / "benchmarks"), str(Path(__file__).parents[1])]

import numpy as np
import pytest
from contracts.families import whole
from contracts.made_records import made_record
from recording.catalog import load

from sparsitywatch.pipeline.pipeline import History
from sparsitywatch.records import Dormant, Event, Record
from sparsitywatch.settings import Settings, default_detectors

RUNS = load()
RULES = ("initial_0.1", "rms_0.1", "abs_0.001")
#: What made near-zero weights rise where it was not decay.
NOT_DECAY = re.compile(r"-l1-|prune|spike")
NUMBER = r"([\d.,]+(?:e[+-]\d+)?) ?(%?)"
HEADLINE = re.compile(
    rf"^(?P<subject>.+?) (?P<verb>jumped|dropped|began to rise|began to fall|rose steadily|fell "
    rf"steadily) from {NUMBER} to {NUMBER}(?: \((?:about {NUMBER} ×|{NUMBER} times the noise)\))? "
    rf"(?:after step (?P<at>[\d,]+)|between steps (?P<low>[\d,]+) and (?P<high>[\d,]+))"
    rf"(?:, and is back at {NUMBER})?$"
)


def records_of(run: dict[str, Any], every: int) -> list[Record]:
    """Every so many snapshots of a recorded run, as records."""
    series = {name: np.array(values, float) for name, values in run["series"].items()}
    found = []
    for i in range(0, len(run["steps"]), every):
        near_zero = {rule: float(series[f"near_zero/{rule}"][i]) for rule in RULES}
        clock = float(series["motion/decay_clock"][i])
        record = made_record(int(run["steps"][i]), near_zero, clock=clock,
                             num_weights=run["num_weights"])  # fmt: skip
        dormant = None
        if every == 1:  # of snapshots farther apart it is another number
            fraction, chance = (float(series[f"motion/{name}"][i])
                                for name in ("dormant", "dormant_by_chance"))  # fmt: skip
            dormant = Dormant(fraction=fraction, chance=chance, num_sampled=98_304, since_step=0)
        rates = {"lr": float(series["lr"][i]), "lr_clock": float(series["lr_sum"][i])}
        found.append(replace(record, dormant=dormant, **rates))
    return found


def events_of(records: list[Record]) -> list[Event]:
    history = History(default_detectors(Settings(near_zero=RULES)))
    return [event for record in records for event in history.add(record).new]


def number(text: str, sign: str) -> float:
    return float(text.replace(",", "")) * (0.01 if sign else 1.0)


def is_near(said: float, true: float) -> bool:
    """Whether a number is what three digits make of it; two of a multiple."""
    return abs(said - true) <= 0.006 * max(abs(true), abs(said)) + 5e-5


def wrong(event: Event, records: list[Record], name: str) -> Iterator[str]:
    """What is not true of what an event says."""
    read = HEADLINE.match(event.headline)
    if read is None:
        yield f"cannot be read: {event.headline}"
        return
    groups = read.groups()
    was, is_now = number(*groups[2:4]), number(*groups[4:6])
    steps = np.array([record.step for record in records])
    values = np.array([record.series().get(event.series, np.nan) for record in records])
    seen = int(np.flatnonzero(steps == event.detected_step)[0])
    true = values[seen] if math.isnan(event.peak) else event.peak
    back = groups[-2:]
    if not is_near(is_now, true) or (back[0] and not is_near(number(*back), values[seen])):
        yield f"{is_now} is said, {values[seen]} is so"
    low, high = (number(read[k] or read["at"], "") for k in ("low", "high"))
    around = values[(steps <= high) & (steps > steps[seen] - 2 * (steps[seen] - low) - 300)]
    if not np.nanmin(around) * 0.97 - 5e-4 <= was <= np.nanmax(around) * 1.03 + 5e-4:
        yield f"it was never {was} before"
    if groups[6] and abs(number(groups[6], "") / (is_now / was) - 1.0) > 0.06:
        yield f"{groups[6]} times is said, {is_now / was:.3g} is so"
    sign = 1.0 if is_now > was else -1.0
    if (sign > 0) != (read["verb"] in ("jumped", "began to rise", "rose steadily")):
        yield f"{read['verb']} from {was} to {is_now}"
    start = int(np.flatnonzero(steps <= event.onset_step)[-1])
    yield from wrong_verb(read["verb"], sign * values[start : seen + 3])
    if event.series.startswith("near_zero/") and sign > 0:
        is_other = NOT_DECAY.search(name) is not None
        if event.explained_by_decay is is_other:
            yield f"by decay: {event.explained_by_decay}; something else was done: {is_other}"


def wrong_verb(verb: str, way: np.ndarray) -> Iterator[str]:
    """Whether it came as its verb says, seen from two snapshots later."""
    at_once = max(np.diff(way).max(), (way[2:] - way[:-2]).max())
    whole = way.max() - way[0]
    if verb in ("jumped", "dropped") and at_once < 0.5 * whole - 1e-9:
        yield f"{verb}, and {at_once:.3g} of {whole:.3g} came at once"
    if "steadily" in verb and at_once > 0.5 * whole:
        yield f"{verb}, and {at_once:.3g} of {whole:.3g} came at once"


def read_all(every: int, names: Iterable[str] = RUNS) -> tuple[int, int, list[str]]:
    """Snapshots, sentences, and what is wrong with any."""
    num_snapshots = num_events = 0
    found = []
    for name in names:
        run = RUNS[name]
        records = records_of(run, every)
        num_snapshots += len(records)
        for event in events_of(records):
            num_events += 1
            said = f"{name}, every {every}: {event.describe()}"
            found += [f"{said}: {why}" for why in wrong(event, records, name)]
    return num_snapshots, num_events, found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("every", "names"),
    [pytest.param(1, [*RUNS][::2], marks=whole), (2, [*RUNS][1::2]), (4, [*RUNS])],
    ids=["each snapshot of half of them", "each second of the others", "each fourth of all"],
)
def test_what_is_said_of_recorded_trainings_is_so(every: int, names: list[str]) -> None:
    num_snapshots, num_events, found = read_all(every, names)
    assert num_events > 15
    assert 1000 * len(found) / num_snapshots <= 0.2, "\n".join(found)


def test_a_false_sentence_is_found() -> None:
    run = RUNS["bert-relu-wd1-s0"]
    records = records_of(run, 1)
    event = next(e for e in events_of(records) if e.series.startswith("near_zero/"))
    assert list(wrong(event, records, "bert-relu-wd1-s0")) == []
    false = {
        "value": 1.2 * event.value, "baseline": 0.5 * event.baseline, "jumped": True,
        "explained_by_decay": False, "direction": "down",
    }  # fmt: skip
    for field, value in false.items():
        assert list(wrong(replace(event, **{field: value}), records, "bert-relu-wd1-s0")), field


if __name__ == "__main__":
    for cadence in (1, 2, 4):
        snapshots, sentences, odd = read_all(cadence)
        print(f"every {cadence}: {snapshots} snapshots, {sentences} events, {len(odd)} wrong")
        print("\n".join(odd))
