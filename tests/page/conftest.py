"""Pages of made-up runs, and the lines of JSON that they were made from."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from contracts import fake_run, logged
from contracts.page import Element, inside_of, parse

from sparsitywatch.cli import main
from sparsitywatch.records import Detail, Event, Record

WEB = Path(__file__).resolve().parents[2] / "sparsitywatch" / "page" / "web"
NODE = shutil.which("node")
needs_node = pytest.mark.skipif(NODE is None, reason="Node is not installed")
STEPS = range(0, 2001, 50)
SCRIPT = "<script>document.title = 'owned'</script>"
EVIL = f"{SCRIPT}.$\\frac{{1}}$.weight"
STRANGE = '层.0\x00\ud800\x1b "quoted" & <b>bold</b>.weight'


@dataclass(frozen=True)
class Page:
    """A page, and what a program reads in the log: JSON, with null for what is not there."""

    html: str
    root: Element
    data: dict
    details: dict
    records: list[dict]
    events: list[dict]
    path: Path

    def series(self, name: str) -> list[float]:
        """A series out of the raw lines, by its name: the independent reading of the log."""
        return [_value(record, name) for record in self.records]

    @property
    def steps(self) -> list[int]:
        return [record["step"] for record in self.records]


#: Where a record has a series.
_PATHS = {
    "motion/dormant": ("dormant", "fraction"),
    "motion/dormant_by_chance": ("dormant", "chance"),
    "motion/update_to_weight": ("movement", "update_to_weight"),
    "motion/sign_flips": ("movement", "sign_flips"),
    "motion/mask_overlap_0.5": ("masks", "overlap", 0),
    "motion/mask_overlap_0.9": ("masks", "overlap", -1),
    "motion/decay_clock": ("decay_clock",),
    "motion/lr": ("lr",),
    "value/reliance": ("reliance",),
}


def _value(record: dict, name: str) -> float:
    room, _, rest = name.partition("/")
    is_of_weights = room in ("near_zero", "motion") and len(_PATHS.get(name, (0, 0))) > 1
    if is_of_weights and max(record["num_nan"], 0) + max(record["num_inf"], 0) > 0:
        return math.nan
    curve, estimate = record["curve"], record["essential_sparsity"]
    if room == "essential_sparsity":
        value = estimate[rest] if estimate and estimate["informative"] else None
    elif room == "near_zero":
        value = record["near_zero"].get(rest)
    elif name in ("value/dense", "value/all_removed"):
        ends = dict(zip(curve["sparsity"], curve["value"], strict=True)) if curve else {}
        value = ends.get(0.0 if rest == "dense" else 1.0)
    else:
        value = record
        for key in _PATHS[name]:
            value = None if value is None else value[key]
    return value if isinstance(value, (int, float)) else math.nan


Make = Callable[..., Page]


@pytest.fixture(scope="session")
def make_page(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Write a run, report it from the command line, read both back."""

    def make(
        looks: Iterable[tuple[Record, Detail]], events: Iterable[Event] = (), name: str = "run"
    ) -> Page:
        logdir = tmp_path_factory.mktemp("runs") / name
        fake_run.write_run(logdir, looks, events)
        path = logdir.parent / "report.html"
        assert main(["report", str(logdir), "-o", str(path)]) == 0
        html = path.read_text(encoding="utf-8")
        log, file = logdir / "sparsitywatch", logdir / "sparsitywatch" / "events.jsonl"
        lines = file.read_text().splitlines() if file.exists() else []
        told, inside = [json.loads(line) for line in lines], inside_of(html)
        records = logged.records(log)
        return Page(html, parse(html), inside["page"], inside["details"], records, told, path)

    return make


@pytest.fixture(scope="session")
def page(make_page: Make) -> Page:
    """A run with everything in it."""
    return make_page(fake_run.looks(STEPS), fake_run.events())


def without_proxy(look: tuple[Record, Detail]) -> tuple[Record, Detail]:
    record, detail = look
    record = fake_run.without(record, "curve", "essential_sparsity", "reliance", "forecast")
    record = fake_run.without(record, "reliance_low", "reliance_high", "xray")
    layers = tuple(replace(layer, removed=()) for layer in record.layers)
    provenance = replace(record.provenance, proxy_hash="")
    return replace(record, layers=layers, provenance=provenance), detail


@pytest.fixture(scope="session")
def weights_page(make_page: Make) -> Page:
    """A run without a proxy and without events."""
    return make_page(map(without_proxy, fake_run.looks(STEPS)))


@pytest.fixture(scope="session")
def troubled_page(make_page: Make) -> Page:
    """A run in which everything that can be wrong is, and every text tries to be a script."""
    looks = []
    for i, (record, detail) in enumerate(fake_run.looks(STEPS)):
        cost = replace(record.cost, stall_s=0.1 + 0.001 * i**2, spectrum_s=0.01 * (i % 4))
        record = replace(record, cost=cost)
        layers = list(record.layers)
        layers[0] = replace(layers[0], name=EVIL)
        layers[1] = replace(layers[1], name=STRANGE)
        if i % 7 == 3:
            unknown = dict.fromkeys(layers[2].near_zero, math.nan)
            layers[2] = replace(layers[2], near_zero=unknown, dormant=math.nan)
        record = replace(record, layers=tuple(layers))
        if i in (5, 6, 20):
            record = fake_run.without(record, "curve", "essential_sparsity", "reliance")
            record = replace(
                record, valid=False, reason=f"{SCRIPT} the value is NaN", num_nan=1000 + i,
                near_zero={}, layers=(),
            )  # fmt: skip
        if i == 30:
            curve = replace(record.curve, value=[math.nan] * len(fake_run.LEVELS))
            record = replace(
                record, curve=curve, reliance=math.nan, essential_sparsity=None, dormant=None
            )
        if i == 31:
            value = [*record.curve.value[:6], math.inf, math.nan, *record.curve.value[8:]]
            record = replace(record, curve=replace(record.curve, value=value))
        if i > 35:
            provenance = replace(record.provenance, torch=SCRIPT, scope_hash="0ther")
            record = replace(record, provenance=provenance)
        looks.append((record, detail))
    first, second = fake_run.events()
    second = replace(second, layers=(EVIL, STRANGE), reverted_step=1600, revised_step=1650)
    third = replace(
        second, id=f"x@{SCRIPT}", series=f"new/{SCRIPT}", direction="down", trend="",
        onset_step=1300, onset_low=1250, onset_high=1350, detected_step=1350,
        explained_by_decay=None, change="", layers=(), preceded_by=second.id,
        reverted_step=-1, revised_step=-1,
        decay_clock=math.nan, noise=0.0,
    )  # fmt: skip
    return make_page(looks, [first, second, third], "a <i>run & 'more'")


def in_node(code: str) -> str:
    """What a program that imports modules of the page prints."""
    done = subprocess.run(
        [NODE, "--input-type=module", "-e", code],
        capture_output=True, text=True, check=True, cwd=WEB,
    )  # fmt: skip
    return done.stdout.strip()
