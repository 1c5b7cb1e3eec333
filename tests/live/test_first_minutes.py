"""What a stranger sees in the first ten minutes: what is typed, what is shown, what is refused."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from contracts import fake_run
from contracts.watched import Run
from torch import nn

import sparsitywatch as sw
from sparsitywatch.cli import main
from sparsitywatch.patterns import PATTERNS
from sparsitywatch.patterns.pattern import as_pattern
from sparsitywatch.records import DecayProjection, Event, Forecast, MaskOverlap
from sparsitywatch.redact import html_table
from sparsitywatch.verification import BitDifference
from sparsitywatch.weights.scope import Scope


def layers(num: int = 40) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Linear(8, 8) for _ in range(num)))


def value(model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
    return model(batch).square().mean(dim=1)


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """One of everything that the public functions give back, of a model with many layers."""
    folder = tmp_path_factory.mktemp("watched")
    model, sink = layers(), sw.sinks.MemorySink()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    proxy = sw.Proxy([torch.randn(4, 8)], value, name="a mean square " * 20)
    with sw.watch(model, optimizer, proxy=proxy, every=1, logdir=None, sinks=[sink],
                  max_overhead=None, on_event=[]) as watcher:  # fmt: skip
        for step in range(1, 4):
            optimizer.zero_grad()
            model(torch.randn(4, 8)).square().mean().backward()
            optimizer.step()
            torch.save(model.state_dict(), folder / f"checkpoint-{step}.pt")
    (folder / "checkpoint-4.pt").write_bytes(b"")
    names = tuple(f"{'a.very.long.name.' * 20}{i}\x1b[2J" for i in range(9))
    found = {"series": "x" * 500, "direction": "up", "baseline": 0.1, "value": 0.2}
    event = Event(onset_step=1, detected_step=2, layers=names, related=names, **found)
    curve = watcher.records[-1].curve
    replayed = sw.replay(folder, logdir=None)
    forecast = fake_run.looks(range(0, 2001, 100))[-1][0].forecast
    assert isinstance(forecast, Forecast)
    numbers = tuple(i / 1000 for i in range(1000))
    paired = sw.Difference.paired(np.eye(3), np.zeros((3, 3)))
    comparison = sw.Comparison(*names[:2], paired)
    return {
        "paired": paired, "comparison": comparison, "conclusion": sw.verdicts([comparison])[0],
        "watcher": watcher, "record": watcher.records[-1], "sink": sink, "run": sink.runs[0],
        "ledger": sink.runs[0].ledger[0], "detail": sink.details[0], "event": event,
        "histogram": next(iter(sink.details[0].histograms.values())), "proxy": proxy,
        "curve": curve, "estimate": sw.essential_sparsity(curve), "forecast": forecast,
        "projection": DecayProjection(advance=numbers, dormant=numbers, entering=numbers),
        "masks": MaskOverlap(level=numbers, overlap=numbers, num_sampled=5, since_step=1),
        "share": watcher.records[-1].layers[0], "replayed": replayed,
        "failure": replayed.failures[0], "audit": sw.audit(folder), "scope": Scope.of(model),
        "spectrum": sw.MagnitudeSpectrum.of(dict(model.named_parameters())),
        "difference": BitDifference(names[0], 3, "all of it"),
        "detector": sw.detectors.AbruptChange(),
        "rise": sw.detectors.DormantRise(), "measured": sw.detectors.MeasuredChange(),
        "value": sw.detectors.ValueChange(),
        "schedule": sw.adaptive(5),
        "racing": sw.sweeps.Racing(),
        "settings": sw.Settings(tolerance=0.02, levels=[i / 1000 for i in range(1000)]),
        "jsonl": sw.sinks.JsonlSink(folder), "tensorboard": sw.sinks.TensorBoardSink(folder),
        "mirror": sw.sinks.Mirror(print),
        "loaded": sw.Run(watcher.records, [event], name="x" * 900 + "\x1b[2J"),
        **{name: as_pattern(name) for name in PATTERNS},
        "combination": sw.patterns.Pattern("sparsegpt", "2:4", damping=0.1),
        "finetuned": sw.FinetunedCurve(numbers, numbers, seeds=(0,), by_seed=(numbers,)),
        "similarity": sw.mask_similarity({"w": torch.ones(3)}, {"w": torch.ones(3)}),
        "point": sw.sweeps.Point(1 / 3, 1 / 3, 1 / 3, 1 / 3, 7),
        "weights": sw.patterns.Weights.of({name: torch.ones(1) for name in names}),
        "grid": sw.sweeps.Grid([0.5]), "halving": sw.sweeps.Bisection([0.5]),
        "invalid": watcher.records[-1].__class__(
            **{**vars(watcher.records[-1]), "valid": False, "reason": "\x1b[2J no\n" * 500}
        ),
    }  # fmt: skip


def test_whatever_is_public_has_a_repr_of_one_short_line(watched: dict[str, Any]) -> None:
    lengths = {name: len(repr(one)) for name, one in watched.items()}
    assert {name: length for name, length in lengths.items() if length > 220} == {}
    for one in watched.values():
        assert repr(one).isprintable()
    faces = (sw, sw.detectors, sw.patterns, sw.schedules, sw.sinks, sw.sweeps)
    public = {getattr(face, n) for face in faces for n in face.__all__ if n[:1].isupper()}
    bases = {sw.detectors.Detector, sw.schedules.Schedule}
    public = {one for one in public - bases if not inspect.isabstract(one)}
    shown = {type(one) for one in watched.values()}
    assert {t.__name__ for t in public - shown if not issubclass(t, Exception)} == set()


def test_the_repr_of_a_record_says_what_is_asked_first(watched: dict[str, Any]) -> None:
    told = repr(watched["record"])
    assert told.startswith("<Record of step 3: near zero (initial_0.1) ")
    assert "essential sparsity" in told
    assert told.endswith("valid yes>")
    assert "valid no: \\x1b[2J no" in repr(watched["invalid"])
    assert repr(watched["replayed"]) == (
        "<Replayed 4 records of steps 1 to 4, 0 events, 1 failures>"
    )
    assert repr(watched["watcher"]) == "<Watcher at step 3, 3 records, 0 events, closed>"


@pytest.mark.parametrize("name", ["record", "replayed", "watcher", "invalid"])
def test_a_notebook_shows_a_small_table_that_needs_nothing_else(
    watched: dict[str, Any], name: str
) -> None:
    page = watched[name]._repr_html_()
    assert page.startswith("<table>")
    assert page.endswith("</table>")
    assert len(page) < 3000
    assert "essential sparsity" in page
    assert "://" not in page
    assert "\x1b" not in page


def test_a_table_for_a_notebook_is_escaped() -> None:
    page = html_table([("<script>alert(1)</script>", "\x1b[2J https://u:p@h/x?sig=s")], "<b>")
    assert page == (
        "<table><caption>&lt;b&gt;</caption><tr><td>&lt;script&gt;alert(1)&lt;/script&gt;</td>"
        "<td>\\x1b[2J https://h/x?...</td></tr></table>"
    )


# ------------------------------------------------------------------ the first number


def steps_and_evaluated(watcher: sw.Watcher) -> list[tuple[int, bool]]:
    return [(record.step, record.curve is not None) for record in watcher.records]


@pytest.mark.parametrize("has_proxy", [True, False])
@pytest.mark.parametrize("every", [2, 50, 500, sw.adaptive(50), lambda step: step % 50 == 0])
def test_a_training_that_pays_for_nothing_has_its_first_and_its_last_number(
    every: Any, has_proxy: bool
) -> None:
    run = Run()
    proxy = {} if has_proxy else {"proxy": None}
    with run.watch(None, every=every, max_overhead=1e-6, **proxy) as watcher:
        run.train(120)
        assert steps_and_evaluated(watcher) == [(1, has_proxy)]
    assert steps_and_evaluated(watcher) == [(1, has_proxy), (120, has_proxy)]


def test_the_first_look_is_after_the_first_step_that_is_seen(tmp_path: Path) -> None:
    run = Run()
    run.train(7)
    with run.watch(tmp_path, every=500, max_overhead=1e-6) as watcher:
        run.train(2)
        saved = run.checkpoint(watcher)
    assert steps_and_evaluated(watcher)[0] == (8, True)
    for state in (saved["watch"], {}):  # a log that is gone on with has its first number
        resumed = Run.resumed(saved)
        with resumed.watch(tmp_path, every=500, max_overhead=1e-6) as watcher:
            if state:
                watcher.load_state_dict(state)
            resumed.train(1)
        assert [record.step for record in watcher.records if record.step > 9] == []


def test_a_loop_that_says_its_steps_has_a_first_look() -> None:
    run = Run()
    with run.watch(None, every=500, optimizer=None, max_overhead=1e-6) as watcher:
        for _ in range(3):
            with torch.no_grad():
                run.model[0].weight.mul_(0.9)
            watcher.step()
    assert steps_and_evaluated(watcher) == [(1, True), (3, True)]


def test_without_a_limit_snapshots_come_as_asked_for() -> None:
    run = Run()
    with run.watch(None, every=5, max_overhead=None) as watcher:
        run.train(11)
    assert [record.step for record in watcher.records] == [5, 10]


# ------------------------------------------------------------------ patterns by name


def test_the_settings_the_help_and_the_manual_say_what_each_pattern_removes(capsys) -> None:
    manual = (Path(__file__).parents[2] / "docs" / "patterns.md").read_text()
    with pytest.raises(SystemExit):
        main(["measure", "--help"])
    told = " ".join(capsys.readouterr().out.split())
    for name, (_, kind, words) in PATTERNS.items():
        assert f'"{name}"' in sw.Settings.__doc__
        assert f"{name}: {words}" in told
        (row,) = (line for line in manual.splitlines() if line.startswith(f"| `{name}`"))
        assert f"`sw.patterns.{kind}" in row
        assert f"| {words.replace('|', chr(92) + '|')}" in row


def test_every_pattern_has_a_name_and_a_public_class(tmp_path: Path) -> None:
    for name in PATTERNS:
        assert as_pattern(name).name == name
        assert type(as_pattern(name)).__name__ in sw.patterns.__all__
    model = layers(2)
    with sw.watch(
        model, None, logdir=None, pattern="global", every=1, max_overhead=None
    ) as watcher:
        watcher.step()
    assert watcher.records[0].provenance.pattern == "global"
    torch.save(model.state_dict(), tmp_path / "checkpoint-1.pt")
    (record,) = sw.replay(tmp_path, logdir=None, pattern="global").records
    assert record.provenance.pattern == "global"


@pytest.mark.parametrize("pattern", ["Global", "nonsense", "", 3, object(), ["global"]])
def test_a_pattern_that_there_is_not_is_refused_with_those_that_there_are(pattern: object) -> None:
    for call in (
        lambda: sw.watch(layers(2), None, logdir=None, pattern=pattern),
        lambda: sw.replay("nowhere", logdir=None, pattern=pattern),
    ):
        with pytest.raises(sw.ConfigurationError, match="Expected `pattern` to be one of 'global'"):
            call()


# ------------------------------------------------------------------ wrong arguments

WRONG = (
    None, 0, -1, 1.5, math.nan, math.inf, "nonsense", b"x", [], [None], ["x", 1], (1, 2), {},
    {"a": 1}, object(), True, lambda: None, int, torch.zeros(3), np.array([0.5, 2.0]),
)  # fmt: skip


def detect(step: Any, value: Any, context: Any = None) -> object:
    return sw.detectors.AbruptChange().update(step, value, context)


def make_training() -> tuple[nn.Module, torch.optim.Optimizer, Callable[[], None]]:
    model = layers(3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def step() -> None:
        optimizer.zero_grad()
        model(torch.ones(4, 8)).square().mean().backward()
        optimizer.step()

    return model, optimizer, step


def calls(folder: Path) -> dict[str, tuple[Callable[..., object], dict[str, Any]]]:
    """Functions of the public face, each with arguments that are right."""
    model = layers(3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    torch.save(model.state_dict(), folder / "checkpoint-1.pt")
    spectrum = sw.MagnitudeSpectrum.of(dict(model.named_parameters()))
    curve = {"sparsity": [0.0, 0.5, 1.0], "value": [1.0, 0.9, 0.1]}
    return {
        "watch": (sw.watch, {"model": model, "optimizer": optimizer, "logdir": None}),
        "measure": (sw.measure, {"model": model}),
        "Settings": (sw.Settings, {}),
        "Proxy": (sw.Proxy, {"batches": [torch.randn(4, 8)], "value": value}),
        "replay": (sw.replay, {"urls": folder / "checkpoint-1.pt", "logdir": None}),
        "verify": (sw.verify, {"make_training": make_training, "steps": 1, "every": 1}),
        "essential_sparsity": (sw.essential_sparsity, {"curve": sw.SparsityCurve(**curve)}),
        "SparsityCurve": (sw.SparsityCurve, curve),
        "of": (sw.MagnitudeSpectrum.of, {"tensors": {"a": torch.ones(3)}}),
        "thresholds": (spectrum.thresholds, {"levels": [0.5]}),
        "sparsity_at": (spectrum.sparsity_at, {}),
        "near_zero": (spectrum.near_zero, {}),
        "AbruptChange": (sw.detectors.AbruptChange, {}),
        "update": (detect, {"step": 1, "value": 0.5}),
        "DormantRise": (sw.detectors.DormantRise, {}),
        "Grid": (sw.sweeps.Grid, {"levels": [0.5]}),
        "Bisection": (sw.sweeps.Bisection, {"levels": [0.5]}),
        "Racing": (sw.sweeps.Racing, {}),
        "every": (sw.schedules.every, {}),
        "at": (sw.schedules.at, {}),
        "geometric": (sw.schedules.geometric, {}),
        "adaptive": (sw.adaptive, {"interval": 5}),
    }


NAMES = (
    "watch", "measure", "Settings", "Proxy", "replay", "verify",
    "essential_sparsity", "SparsityCurve", "of",
    "thresholds", "sparsity_at", "near_zero", "AbruptChange", "update", "DormantRise", "Grid",
    "Bisection", "Racing", "every", "at", "geometric", "adaptive",
)  # fmt: skip
#: Arguments that only belong to others, or whose refusal speaks of what is meant.
NAMED_OTHERWISE = {"urls": "Cannot list", "levels": "`level", "reference": "`initial`"}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", NAMES)
def test_a_wrong_argument_is_refused_by_its_name_and_never_an_error_from_inside(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    function, right = calls(tmp_path)[name]
    arguments = inspect.signature(function).parameters.keys() - {"follow", "watch_arguments"}
    if "fields" in arguments:
        arguments = (arguments - {"fields"}) | sw.Settings.names()
    told = [refusal(function, right, name, wrong) for name in arguments for wrong in WRONG]
    assert sum(map(bool, told)) > 5


def refusal(
    function: Callable[..., object], right: dict[str, Any], argument: str, wrong: object
) -> str:
    """What one wrong argument is refused with; empty if it is taken."""
    try:
        given = function(**{**right, argument: wrong})
    except sw.SparsityWatchError as error:
        told = str(error)
        assert argument in told or NAMED_OTHERWISE.get(argument, argument) in told, (
            argument,
            wrong,
        )
        assert len(told) < 500
        return told
    except Exception as error:
        raise AssertionError(f"{argument}={wrong!r}") from error
    if isinstance(given, sw.Watcher):
        given.close()
    return ""
