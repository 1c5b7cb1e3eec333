"""What CONTRIBUTING says of additions is true: right ones are measured, wrong ones refused."""

from __future__ import annotations

import copy
import dataclasses
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from contracts import event_readers
from safetensors.numpy import save_file

import sparsitywatch as sw
from sparsitywatch.checkpoints import formats
from sparsitywatch.errors import Seam
from sparsitywatch.integrations.attached import Watching
from sparsitywatch.pipeline.measure import Examiner
from sparsitywatch.pipeline.pipeline import Reviewer
from sparsitywatch.sinks import MemorySink

#: The seams whose methods are called by name.
SEAMS = (sw.sinks.Sink, sw.detectors.Detector, Reviewer, Examiner, sw.actions.Action)


def watched(*, spoilt: bool = False, **given: Any) -> list[sw.Record]:
    """Two snapshots of a tiny training; of weights that are spoilt in the end."""
    torch.manual_seed(0)
    model = torch.nn.Linear(8, 8)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    options = {"scope": "matrices", "every": 1, "logdir": None, "max_overhead": None}
    with sw.watch(model, optimizer, strict=True, **options | given) as watch:
        for step in range(2):
            model(torch.ones(1, 8)).sum().backward()
            if step and spoilt:
                model.weight.data[0, 0] = torch.nan
            optimizer.step()
    return watch.records


def slips(name: str) -> list[str]:
    """A letter twice, one left out, two turned, a plural, no underscore, "on" before it."""
    middle = len(name) // 2
    turned = name[: middle - 1] + name[middle] + name[middle - 1] + name[middle + 1 :]
    made = {name + name[-1], name + "s", turned, name.replace("_", ""), f"on_{name}"}
    made |= {name[:middle] + name[middle + 1 :]} if len(name) > 4 else set()
    return sorted(made - {name})


@pytest.mark.parametrize("seam", SEAMS, ids=lambda seam: str(seam.__name__))
def test_a_near_miss_of_a_method_is_refused(seam: type) -> None:
    names = [name for name in vars(seam) if not name.startswith("_")]
    for name in names:
        for slip in {*slips(name)} - {*names}:
            with pytest.raises(sw.ConfigurationError, match=f"no '{slip}', nearly '"):
                type("Slip", (seam,), {slip: lambda self: None})


def test_the_seams_are_those_of_the_package() -> None:
    assert {*SEAMS} == {*Seam.__subclasses__()}


def test_a_sink_is_a_dataclass_and_has_helpers() -> None:
    @dataclasses.dataclass
    class Kept(MemorySink):
        events: list[Any] = dataclasses.field(default_factory=list)
        start: int = 0
        steps: list[int] = dataclasses.field(default_factory=list)

        def __post_init__(self) -> None:
            super().__init__()

        def write(self, record: sw.Record, detail: Any) -> None:
            self.write_row(record.step)

        def write_row(self, step: int) -> None:
            self.steps.append(step)

        def writes(self) -> int:
            return len(self.steps)

        def flush(self) -> None: ...
        def render(self) -> None: ...
        def stage(self) -> None: ...

    sink = Kept(start=1)
    records = watched(sinks=[sink])
    assert sink.steps == [record.step for record in records] != []


@pytest.mark.parametrize(
    ("series", "near"),
    [
        ("motion/dormantt", "motion/dormant"),
        ("near_zero/initial_0.7", "near_zero/initial_0.1"),
        ("essential_sparsity", "essential_sparsity/"),
        ("", "'"),
    ],
)
def test_a_detector_of_a_series_that_is_not_there_is_refused(series: str, near: str) -> None:
    with pytest.raises(sw.ConfigurationError, match=f"`detectors` to be of series .* as '?{near}"):
        watched(detectors={series: sw.detectors.AbruptChange()})


def test_a_detector_of_ones_own_sees_its_series() -> None:
    class Above(sw.detectors.Detector):
        seen: list[float] = []  # noqa: RUF012 of the test

        def update(
            self, step: int, value: float, context: Mapping[str, float] | None = None
        ) -> None:
            self.seen.append(value)

        def state_dict(self) -> dict[str, Any]:
            return {}

    records = watched(detectors={"weights/largest": Above()})
    assert Above.seen == [record.largest for record in records]


def test_a_reviewer_stands_where_the_drivers_list_theirs(monkeypatch: pytest.MonkeyPatch) -> None:
    class Own(Reviewer):
        def events(self, record: sw.Record, earlier: Any, told: Any) -> list[sw.Event]:
            if not earlier:
                return []
            before = earlier[-1]
            return [
                sw.Event(
                    series="weights/largest", direction="up", onset_step=before.step,
                    before_step=before.step, detected_step=record.step, baseline=before.largest,
                    value=record.largest,
                )
            ]  # fmt: skip

    for driver in ("live.watch", "offline.replay"):
        module = importlib.import_module(f"sparsitywatch.{driver}")
        monkeypatch.setattr(module, "XRayReviewer", Own)
    kept = MemorySink()
    first, second = watched(sinks=[kept])
    (event,) = kept.events
    assert (event.baseline, event.value) == (first.largest, second.largest)


def test_an_action_is_called_with_what_was_seen_and_closed() -> None:
    class Kept(sw.actions.Action):
        def __init__(self) -> None:
            self.seen: list[sw.Event] = []
            self.num_closed = 0

        def __call__(self, event: sw.Event, /) -> None:
            self.seen.append(event)

        def close(self) -> None:
            self.num_closed += 1

    action, plain = Kept(), list[sw.Event]()
    watched(on_event=[action, plain.append], spoilt=True)
    assert {event.kind for event in action.seen} == {"not_finite"}
    assert action.seen == plain
    assert action.num_closed == 1


def test_a_reader_is_a_function_its_row_and_how_its_folder_is_known(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    draw = np.random.default_rng(0)
    weights = {step: draw.normal(size=(8, 8)).astype(np.float32) for step in (100, 200)}
    for step, values in weights.items():
        values[: step // 100] = 0.0
        (tmp_path / f"step-{step}").mkdir()
        save_file({"layer.weight": values}, tmp_path / f"step-{step}" / "tensors.strange")
    with pytest.raises(sw.SparsityWatchError, match="xpected"):
        sw.replay(tmp_path, scope="matrices", logdir=None)
    reader = lambda place, _: formats.read_safetensors(place.at(f"{place.path}/tensors.strange"))  # noqa: E731
    monkeypatch.setitem(formats._READERS, "strange", reader)
    row = ("strange", (re.compile(r"tensors\.strange"),))
    monkeypatch.setattr(formats, "_FOLDERS", (row, *formats._FOLDERS))
    records = sw.replay(tmp_path, scope="matrices", logdir=None).records
    assert {r.step: r.num_zero for r in records} == {
        step: int((values == 0).sum()) for step, values in weights.items()
    }


def test_every_format_that_a_folder_is_known_by_has_its_reader() -> None:
    refused = {"nanotron"}  # with a sentence of its own
    assert {kind for kind, _ in formats._FOLDERS} - refused == {*formats._READERS}


# ------------------------------------------------------------------ an adapter


class Loop:
    """A framework that is made up: a loop with callbacks, checkpoints and a stop."""

    def __init__(self, *callbacks: Any) -> None:
        self.callbacks, self.step, self.should_stop = callbacks, 0, False
        torch.manual_seed(0)
        self.model = torch.nn.Linear(8, 8)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1)
        self.saved: dict[str, Any] = {}

    def tell(self, what: str, *given: Any) -> None:
        for one in self.callbacks:
            getattr(one, what)(self, *given)

    def fit(self, num_steps: int, spoilt_at: int = -1) -> None:
        self.tell("begin")
        while self.step < num_steps and not self.should_stop:
            self.step += 1
            self.optimizer.zero_grad()
            loss = self.model(torch.ones(1, 8) * self.step).square().sum()
            loss.backward()
            if self.step == spoilt_at:
                self.model.weight.data[0, 0] = torch.nan
            self.optimizer.step()
            self.tell("step_end", loss.item())
        self.tell("end")

    def save(self) -> dict[str, Any]:
        parts = {"model": self.model, "optimizer": self.optimizer}
        self.saved = {name: copy.deepcopy(one.state_dict()) for name, one in parts.items()}
        self.saved["step"] = self.step
        self.tell("save")
        return self.saved

    def load(self, saved: dict[str, Any]) -> None:
        self.saved, self.step = saved, saved["step"]
        self.model.load_state_dict(saved["model"])
        self.optimizer.load_state_dict(saved["optimizer"])


class OfLoop(Watching):
    """As the recipe says: it only translates."""

    def begin(self, loop: Loop) -> None:
        own = {"logdir": self._logdir, "step": loop.step}
        if self._attached.begin(loop.model, loop.optimizer, **own):
            self._attached.restore(lambda: loop.saved.get("watch"), "its state", is_first=True)

    def step_end(self, loop: Loop, loss: float) -> None:
        self._attached.log_loss(loss, loop.step)
        for request, is_wanted in self._attached.requests(is_last=False):
            loop.should_stop |= is_wanted and isinstance(request, sw.actions.StopTraining)

    def save(self, loop: Loop) -> None:
        loop.saved["watch"] = self._attached.state()

    def end(self, _: Loop) -> None:
        self._attached.end()


OF_LOOP: dict[str, Any] = {"scope": "matrices", "every": 2, "max_overhead": None, "strict": True}


def test_an_adapter_translates_what_its_framework_says(tmp_path: Path) -> None:
    """It goes on from a checkpoint; the weights are those of a loop that nobody watches."""
    bare, whole = Loop(), Loop(OfLoop(logdir=str(tmp_path / "whole"), **OF_LOOP))
    first, second = (Loop(OfLoop(logdir=str(tmp_path / "two"), **OF_LOOP)) for _ in range(2))
    for loop, num_steps in ((bare, 8), (whole, 8), (first, 4)):
        loop.fit(num_steps)
    second.load(first.save())
    second.fit(8)
    for loop in (whole, second):
        assert torch.equal(loop.model.weight, bare.model.weight)
    runs = [sw.load(tmp_path / name) for name in ("whole", "two")]
    for name in ("weights/largest", "motion/lr_clock", "motion/update_to_weight", "motion/trained"):
        values = [run.series(name)[1] for run in runs]
        assert len(values[0]) > 3
        np.testing.assert_array_equal(*values)
    np.testing.assert_allclose(runs[0].series("motion/lr_clock")[1], 0.1 * runs[0].steps)
    np.testing.assert_array_equal(*[run.steps for run in runs])


def test_an_adapter_stops_its_framework() -> None:
    loop = Loop(OfLoop(on_event=["stop"], **OF_LOOP))
    loop.fit(20_000, spoilt_at=3)  # it hears of it some steps later
    assert 3 <= loop.step < 20_000


# ------------------------------------------------------------------ a number, in a copy

ROOT = Path(__file__).parents[2]
#: What the recipes add: file, what stands there, and what is put behind it.
NUMBER = (
    ("records/record.py", "    largest: float = _NAN\n", "    zeros: float = _NAN\n"),
    (
        "pipeline/measure.py",
        "            num_zero=spectrum.num_zero,\n",
        "            zeros=spectrum.num_zero / spectrum.num_weights,\n",
    ),
)
OF_TENSOR = (
    (
        "records/record.py",
        "    gradient_zeros: float = _NAN\n",
        "    nulls: float = _NAN\n",
    ),
    (
        "pipeline/measure.py",
        '"dormant": {}, **seen.tensors}\n',
        """    known["nulls"] = {
        name: float(one.counts[one.keys == 0].sum()) / one.num_weights
        for name, one in spectrum.histograms.items()
    }
""",
    ),
    ("series.py", "OF_TENSORS = {\n", '    "nulls": "exactly zero",\n'),
)
OF_TRAINING = (
    (
        "weights/clock.py",
        "    lr: float = math.nan  # as it stands\n",
        "    top_lr: float = math.nan\n",
    ),
    (
        "weights/clock.py",
        "        lr=mean_over(sizes, {name: one.lr for name, one in trainers.items()}),\n",
        "        top_lr=max((one.lr for one in trainers.values()), default=math.nan),\n",
    ),
    ("records/record.py", "    lr: float = _NAN\n", "    top_lr: float = _NAN\n"),
    (
        "series.py",
        "    # motion\n",
        '    Series("motion/top_lr", "top_lr", "as lr", "top", "Rate.", beside="motion/lr"),\n',
    ),
)
ROW = (
    '    Series("weights/zeros", "{}", "fraction", "zeros", "Share.", '
    'beside="near_zero/{{rule}}"),\n'
)
USE = """
import json, sys
import torch
import sparsitywatch as sw
from sparsitywatch.cli import main
from sparsitywatch.page.data import details_of, page_data
from sparsitywatch.page.render import overview_svg
from sparsitywatch.plots import overview_figure
from sparsitywatch.records import to_json
from sparsitywatch.sinks.tensorboard import TensorBoardSink, _layout

model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Linear(8, 8))
with torch.no_grad():
    for layer, divisor in zip(model, (3, 5)):
        layer.weight.copy_(torch.arange(64).reshape(8, 8) % divisor)
groups = [{"params": layer.parameters(), "lr": lr} for layer, lr in zip(model, (0.0, 0.25))]
optimizer = torch.optim.SGD(groups)
rows = []
log = lambda numbers, step: rows.append(numbers)
options = {"scope": "matrices", "every": 1, "max_overhead": None, "sinks": [sw.sinks.Mirror(log)]}
with sw.watch(model, optimizer, logdir="run", strict=True, **options) as watch:
    for _ in range(2):
        (model(torch.ones(1, 8)).sum() * 0.0).backward()
        optimizer.step()
run = sw.load("run")
page = page_data(run)
axes = overview_figure(run).axes
drawn = [line for axis in axes for line in axis.lines if line.get_label() == "zeros"]
found = {
    "record": [record.zeros for record in watch.records],
    "series": run.series("weights/zeros")[1].tolist(),
    "mirror": [row["sparsity/weights/zeros"] for row in rows],
    "plot": [line.get_ydata().tolist() for line in drawn],
    "page": page["series"]["weights/zeros"],
    "log": [json.loads(line)["zeros"] for line in open("run/sparsitywatch/records.jsonl")],
}
by_tensor = {
    "record": [[layer.nulls for layer in record.layers] for record in watch.records],
    "log": [[layer.nulls for layer in record.layers] for record in run.records],
    "columns": [record.layers.columns.numbers["nulls"].tolist() for record in run.records],
    "json": [[one["nulls"] for one in json.loads(to_json(r))["layers"]] for r in run.records],
}
rates = {
    "record": [record.top_lr for record in watch.records],
    "series": run.series("motion/top_lr")[1].tolist(),
    "mirror": [row["sparsity/motion/top_lr"] for row in rows],
    "page": page["series"]["motion/top_lr"],
}
maps = details_of(run, for_file=True)["maps"]
old = [one.nulls != one.nulls for record in sw.load("old").records for one in record.layers]
chart = str(_layout(run.records[-1].provenance))
words = {"print": "purple: zeros" in overview_svg(page), "chart": chart}
told = {"found": found, "words": words, "page": page, "by_tensor": by_tensor, "rates": rates}
json.dump(told | {"maps": maps, "old": old}, open("found.json", "w"))
main(["summary", "run"])
"""


def copied(tmp_path: Path, row: str) -> dict[str, str]:
    """The package with the numbers in it, in a folder of its own; the surroundings to run it in."""
    shutil.copytree(ROOT / "sparsitywatch", tmp_path / "sparsitywatch")
    package = tmp_path / "sparsitywatch"
    edits = (*NUMBER, ("series.py", "    # motion\n", row), *OF_TENSOR, *OF_TRAINING)
    for name, before, added in edits:
        text = (package / name).read_text()
        assert text.count(before) == 1
        (package / name).write_text(text.replace(before, before + added))
    return {**os.environ, "PYTHONPATH": str(tmp_path), "MPLBACKEND": "Agg"}


@pytest.mark.slow
def test_a_number_is_a_field_its_computation_and_a_row(tmp_path: Path) -> None:
    """Then it is wherever its neighbour is shown; against numpy. So is one of each tensor."""
    watched(logdir=tmp_path / "old")  # by the package without the numbers
    surroundings = copied(tmp_path, ROW.format("zeros"))
    options = {"cwd": tmp_path, "env": surroundings, "text": True, "check": True}
    out = subprocess.run([sys.executable, "-c", USE], capture_output=True, **options).stdout
    told = json.loads((tmp_path / "found.json").read_text())
    shares = [float((np.arange(64) % divisor == 0).mean()) for divisor in (3, 5)]
    expected = float(np.mean(shares))
    for values in told["found"].values():
        values = np.ravel(values)
        assert len(values) == len(told["page"]["steps"]) > 1
        assert np.allclose(values, expected, rtol=1e-6)
    for values in told["by_tensor"].values():
        np.testing.assert_allclose(values, [shares, shares])
    assert np.cumsum(told["maps"]["rows"]["nulls"], axis=-1).tolist() == [
        [round(1000 * share)] * 2 for share in shares
    ]
    assert told["maps"]["labels"]["nulls"] == "exactly zero"
    assert told["old"] == [True, True]  # not known
    assert {*map(tuple, told["rates"].values())} == {(0.25, 0.25)}
    for record in sw.load(tmp_path / "run").records:  # by the package that knows none of them
        assert [layer.num_weights for layer in record.layers] == [64, 64]
    assert told["words"]["print"]
    assert "z_sparsity/weights/zeros$" in told["words"]["chart"]
    assert re.search(r"weights/zeros +27\.3 % +27\.3 %", out)
    scalars = event_readers.scalars_of_plugin_accumulator(tmp_path / "run" / "sparsitywatch")
    assert [x for _, x in scalars["z_sparsity/weights/zeros"]] == [pytest.approx(expected)] * 2
    if shutil.which("node"):
        charts = tmp_path / "sparsitywatch" / "page" / "web" / "charts.js"
        code = f"""
            import {{ panelsOf }} from "{charts.as_uri()}";
            import fs from "node:fs";
            const {{ page }} = JSON.parse(fs.readFileSync("found.json"));
            const [panel] = panelsOf(page, `near_zero/${{page.rule}}`, "");
            console.log(panel.lines.map((line) => line.series).join(" "));"""
        command = ["node", "--input-type=module", "-e", code]
        lines = subprocess.run(command, capture_output=True, **options).stdout
        assert "weights/zeros" in lines.split()


@pytest.mark.slow
def test_a_row_without_its_field_is_refused(tmp_path: Path) -> None:
    surroundings = copied(tmp_path, ROW.format("zeroes"))
    command = [sys.executable, "-c", "import sparsitywatch.records"]
    out = subprocess.run(
        command, capture_output=True, text=True, cwd=tmp_path, env=surroundings, check=False
    )
    assert "Expected the row 'weights/zeros' of series.py to say where a record has" in out.stderr
