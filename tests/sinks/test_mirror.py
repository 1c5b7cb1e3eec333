"""The mirror in a function, and in loggers that people have, read back from their files."""

from __future__ import annotations

import json
import math
import os
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from contracts import fake_run
from contracts.families import whole
from contracts.sink_contract import SinkContract
from contracts.watched import Run, sees_step_6

from sparsitywatch.errors import ConfigurationError
from sparsitywatch.pipeline.pipeline import Pipeline
from sparsitywatch.records import Detail, WatchState
from sparsitywatch.series import LEADING
from sparsitywatch.sinks import Mirror

ROOT = Path(__file__).resolve().parents[2]
OWN = ["sparsity/step", "sparsity/num_events", "sparsity/is_on"]


class Logger:
    """What a logger may look like that is a function and a place for texts."""

    def __init__(self) -> None:
        self.rows: list[tuple[int, dict[str, float]]] = []
        self.alerts: list[tuple[str, str]] = []

    def log(self, numbers: dict[str, float], step: int) -> None:
        assert type(step) is int
        self.rows.append((step, numbers))

    def alert(self, title: str, text: str) -> None:
        self.alerts.append((title, text))

    def column(self, name: str) -> list[float]:
        return [numbers[f"sparsity/{name}"] for _, numbers in self.rows]


class TestMirror(SinkContract):
    """A logger takes nothing back, so only what holds for any sink."""

    def make(self, directory: Path) -> Mirror:
        self.logger = Logger()
        return Mirror(self.logger.log, alert=self.logger.alert)

    def steps(self, sink: Mirror, directory: Path) -> list[int]:
        steps = [step for step, _ in self.logger.rows]
        assert steps == self.logger.column("step")
        return steps

    def events(self, sink: Mirror, directory: Path) -> list[tuple[str, int]]:
        """As counts and sentences: where the count rises is the step of the next sentence."""
        series = {"Reliance": "value/reliance", "Near-zero": "near_zero/initial_0.1"}
        rises, before = [], 0.0
        for step, numbers in self.logger.rows:
            rises += [step] * int(numbers["sparsity/num_events"] - before)
            before = numbers["sparsity/num_events"]
        titles = [title.split()[0] for title, _ in self.logger.alerts]
        return [(series[title], step) for title, step in zip(titles, rises, strict=True)]


def mirrored(*steps: int) -> tuple[Mirror, Logger]:
    logger = Logger()
    mirror = Mirror(logger.log, alert=logger.alert)
    mirror.open(fake_run.run_info())
    for step in steps:
        mirror.write(*fake_run.look(step))
        mirror.deliver()
    return mirror, logger


def test_the_leading_series_as_the_record_has_them() -> None:
    _, logger = mirrored(900)
    series = fake_run.look(900)[0].series()
    names = [name.format(rule="initial_0.1") for name in LEADING]
    assert logger.rows == [
        (900, {f"sparsity/{name}": series[name] for name in names}
         | dict(zip(OWN, (900, 0, 1.0), strict=True)))
    ]  # fmt: skip


def test_numbers_that_are_none_are_left_out() -> None:
    mirror, logger = mirrored()
    bare = fake_run.without(fake_run.look(25)[0], "curve", "essential_sparsity", "reliance")
    mirror.write(replace(bare, decay_clock=math.nan, lr=math.inf), Detail())
    mirror.deliver()
    assert [*logger.rows[0][1]] == [
        "sparsity/near_zero/initial_0.1", "sparsity/motion/dormant",
        "sparsity/forecast/near_zero_in_1", "sparsity/motion/update_to_weight", *OWN,
    ]  # fmt: skip


def test_an_event_is_told_once_and_not_when_it_is_revised() -> None:
    mirror, logger = mirrored(25)
    event = replace(fake_run.events()[0], detected_step=50)
    mirror.write(*fake_run.look(50))
    mirror.event(event)
    mirror.deliver()
    mirror.write(*fake_run.look(75))
    mirror.event(fake_run.fallen(event, 75))
    mirror.close()
    assert logger.alerts == [(event.headline[:63], event.report())]
    assert logger.column("num_events") == [0, 1, 1]


def test_a_resumed_run_goes_on_counting_its_events() -> None:
    mirror, logger = mirrored()
    mirror.catch_up([fake_run.look(25)[0]], fake_run.events(), lambda _: Detail())
    mirror.write(*fake_run.look(50))
    mirror.deliver()
    assert logger.column("num_events") == [2]
    assert logger.alerts == []


def test_a_watch_that_switches_itself_off_says_so() -> None:
    mirror, logger = mirrored(25)
    state = WatchState(status="on", step=30, wall_time=0.0)
    mirror.state(state)
    mirror.state(replace(state, status="off", reason="it failed"))
    mirror.close()
    assert logger.column("is_on") == [1.0, 0.0]
    assert logger.rows[-1][0] == 30
    assert [title for title, _ in logger.alerts] == ["sparsitywatch is off"]
    assert "it failed" in logger.alerts[0][1]


def test_what_another_watch_has_taken_over_is_not_delivered() -> None:
    mirror, logger = mirrored()
    mirror.write(*fake_run.look(25))
    mirror.abandon()
    mirror.close()
    assert logger.rows == []


def test_what_failed_is_tried_again_after_pauses_that_grow(caplog, monkeypatch) -> None:
    calls, now = [], [0.0]
    monkeypatch.setattr("sparsitywatch.pipeline.outlets.time.monotonic", lambda: now[0])

    def log(numbers: dict[str, float], step: int) -> None:
        calls.append(step)
        if len(calls) in (1, 3, 4, 5):
            raise RuntimeError("the server is away")

    pipeline = Pipeline(sinks=[Mirror(log)])
    pipeline.open(fake_run.run_info())
    for step in range(0, 201, 25):
        pipeline.act(*pipeline.take(*fake_run.look(step)))
        now[0] += 0.06
    pipeline.close()
    # the first comes with the second; then there are pauses; what waits comes at the end
    assert calls == [0, 0, 25, 25, 25, *range(25, 201, 25)]
    assert caplog.text.count("Mirror failed and is tried again") == 1


@pytest.mark.parametrize("arguments", [(None,), (print, "alert")])
def test_what_is_no_function_is_refused(arguments) -> None:
    with pytest.raises(ConfigurationError, match=r"Expected `(log|alert)` to be a function"):
        Mirror(arguments[0], alert=arguments[1] if len(arguments) > 1 else None)


@pytest.mark.parametrize("background", [False, True])
def test_a_watch_calls_it_in_the_thread_of_the_training(tmp_path: Path, background: bool) -> None:
    logger, threads = Logger(), set()

    def log(numbers: dict[str, float], step: int) -> None:
        threads.add(threading.get_ident())
        logger.log(numbers, step)

    run, mirror = Run(), Mirror(log, alert=logger.alert)
    options = {"background": background, "on_event": [], "sinks": [mirror], **sees_step_6()}
    with run.watch(tmp_path, **options) as watcher:
        run.train(12)
    assert threads == {threading.get_ident()}
    assert [step for step, _ in logger.rows] == [record.step for record in watcher.records]
    assert logger.column("num_events") == [0, 1, 1, 1]
    assert len(logger.alerts) == 1
    for (_, numbers), record in zip(logger.rows, watcher.records, strict=True):
        series = record.series()
        for name in LEADING:
            name = name.format(rule="initial_0.1")
            assert numbers.get(f"sparsity/{name}", math.nan) == pytest.approx(
                series.get(name, math.nan), nan_ok=True
            )


# ------------------------------------------------------------------ loggers that people have

#: Begins each program: a training of 30 steps, watched at every third.
TRAINING = """
import torch
from contracts.watched import Run, sees_step_6
import sparsitywatch as sw

def watched(mirror, logdir=None):
    global training
    training = Run()
    options = sees_step_6() | {"on_event": [], "sinks": [mirror] if mirror else []}
    return training.watch(logdir, background=True, **options)

def is_unchanged():
    alone = Run()
    alone.train(30)
    pairs = zip(alone.model.parameters(), training.model.parameters())
    return all(torch.equal(*pair) for pair in pairs)
"""
STEPS = [*range(3, 31, 3)]


def run(program: str, folder: Path) -> str:
    """What a program prints that logs in a folder; without a network."""
    paths = [str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        [sys.executable, "-c", TRAINING + program],
        cwd=folder, capture_output=True, text=True, timeout=600, check=False,
        env=os.environ | {
            "PYTHONPATH": os.pathsep.join(filter(None, paths)), "HOME": str(folder),
            "WANDB_MODE": "offline", "WANDB_SILENT": "true", "MLFLOW_DISABLE_TELEMETRY": "true",
            "TRACKIO_DIR": str(folder / "trackio"), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1",
        },
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


WANDB = """
import os
import wandb
from torch.utils.tensorboard import SummaryWriter

try:
    sw.sinks.Mirror(wandb.log)
except sw.ConfigurationError as error:
    print(error)

def loop(how, run, step):
    if how == "explicit" or how == "twice":
        run.log({"loss": step}, step=step)
    elif how == "without":
        run.log({"loss": step})
    elif how == "epochs" and step % 10 == 9:
        run.log({"loss": step}, step=step // 10)

for how in ["explicit", "twice", "without", "epochs", "never"]:
    os.mkdir(how)
    with wandb.init(project="sparsity", dir=how) as run, watched(sw.sinks.Mirror(wandb.log)):
        for step in range(30):
            if how == "twice":  # before the step of the optimizer, and after it
                run.log({"lr": step}, step=step)
            training.train(1)
            loop(how, run, step)
    assert is_unchanged()

os.mkdir("tensorboard")
with wandb.init(project="sparsity", dir="tensorboard", sync_tensorboard=True) as run:
    with SummaryWriter("runs/bert") as writer, watched(sw.sinks.Mirror(run.log), "runs/bert"):
        for step in range(30):
            training.train(1)
            writer.add_scalar("loss", step, step)
"""


@pytest.fixture(scope="module")
def wandb_runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Runs by how the loop logs, and what was printed."""
    pytest.importorskip("wandb", reason="W&B is read back")
    folder = tmp_path_factory.mktemp("wandb")
    return folder, run(WANDB, folder)


def of_wandb(folder: Path) -> tuple[list[dict[str, float]], list[Any]]:
    """Rows of a W&B run that was offline, and all else that it holds."""
    from wandb.proto import wandb_internal_pb2

    (file,) = folder.glob("wandb/offline-run-*/*.wandb")
    rows, others = [], []
    for block in blocks(file.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(block)
        if record.WhichOneof("record_type") == "history":
            items = {
                item.key or "/".join(item.nested_key): json.loads(item.value_json)
                for item in record.history.item
            }
            rows.append({"row": record.history.step.num, **items})
        else:
            others.append(record)
    return rows, others


def blocks(content: bytes) -> Iterator[bytes]:
    """The records of a file in the form of LevelDB's log, after the seven bytes of its head."""
    place, whole = 7, b""
    while place + 7 <= len(content):
        if (left := 32768 - place % 32768) < 7:
            place += left
            continue
        length, kind = struct.unpack_from("<HB", content, place + 4)
        whole += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part of one
            yield whole
            whole = b""


@whole
@pytest.mark.slow
@pytest.mark.parametrize("how", ["explicit", "twice", "without", "epochs", "never"])
def test_wandb_loses_no_point_and_no_row_of_the_loop(wandb_runs, how: str) -> None:
    rows, others = of_wandb(wandb_runs[0] / how)
    loss = {row["row"]: row["loss"] for row in rows if "loss" in row}
    its = {"epochs": [9, 19, 29], "never": []}.get(how, [*range(30)])
    assert loss == dict(enumerate(its))
    if how == "twice":
        assert {row["row"]: row["lr"] for row in rows if "lr" in row} == loss
    ours = [row for row in rows if "sparsity/is_on" in row]
    assert [row["sparsity/step"] for row in ours] == STEPS
    assert [row["sparsity/num_events"] for row in ours] == [0, *[1] * 9]
    assert all(0 <= row["sparsity/near_zero/initial_0.1"] <= 1 for row in ours)
    (alert,) = [other.alert for other in others if other.HasField("alert")]
    assert alert.title.startswith("Near-zero weights")
    assert "step 6" in alert.text
    (glob,) = [o.metric for o in others if o.HasField("metric") and o.metric.glob_name]
    assert (glob.glob_name, glob.step_metric) == ("sparsity/*", "sparsity/step")


@whole
@pytest.mark.slow
def test_wandb_sees_the_folder_of_the_watch_beside_a_writers(wandb_runs) -> None:
    """With ``sync_tensorboard=True``; the mirror's rows arrive, too."""
    rows, _ = of_wandb(wandb_runs[0] / "tensorboard")
    assert [row["loss"] for row in rows if "loss" in row] == [*range(30)]
    tag = "0_sparsity/1_near_zero/initial_0.1"
    seen = [(row["global_step"], row[tag]) for row in rows if tag in row]
    assert [step for step, _ in seen] == STEPS
    ours = [row for row in rows if "sparsity/is_on" in row]
    own = [(row["sparsity/step"], row["sparsity/near_zero/initial_0.1"]) for row in ours]
    assert seen == [(step, pytest.approx(number)) for step, number in own]


@whole
@pytest.mark.slow
def test_wandb_without_a_run_is_refused(wandb_runs) -> None:
    assert "call wandb.init() first" in wandb_runs[1]


MLFLOW = """
import json, mlflow
mlflow.set_tracking_uri("sqlite:///runs.db")
mlflow.set_experiment("sparsity")
with mlflow.start_run() as run:
    mirror = sw.sinks.Mirror(
        mlflow.log_metrics, alert=lambda title, text: mlflow.set_tag("sparsity", text)
    )
    with watched(mirror):
        for step in range(30):
            training.train(1)
            mlflow.log_metrics({"loss": step}, step)
assert is_unchanged()
client = mlflow.MlflowClient()
names = ["loss", "sparsity/near_zero/initial_0.1", "sparsity/num_events"]
found = {
    name: [(one.step, one.value) for one in client.get_metric_history(run.info.run_id, name)]
    for name in names
}
print(json.dumps([found, client.get_run(run.info.run_id).data.tags["sparsity"]]))
print(len(client.search_runs(["0", "1"])))
"""


@whole
def test_mlflow_has_every_point_in_the_run_of_the_training(tmp_path: Path) -> None:
    pytest.importorskip("mlflow", reason="MLflow is read back")
    pytest.importorskip("sqlalchemy", reason="so is its store")
    *_, told, num_runs = run(MLFLOW, tmp_path).splitlines()
    found, sentence = json.loads(told)
    assert sorted(found["loss"]) == [[step, step] for step in range(30)]
    assert [step for step, _ in sorted(found["sparsity/near_zero/initial_0.1"])] == STEPS
    counts = [count for _, count in sorted(found["sparsity/num_events"])]
    assert counts == [0, *[1] * 9]
    assert "Near-zero weights" in sentence
    assert num_runs == "1"  # a call in another thread would have begun one of its own


TRACKIO = """
import trackio
for how in ["explicit", "without"]:
    trackio.init(project="sparsity", name=how, embed=False)
    with watched(sw.sinks.Mirror(trackio.log)):
        for step in range(30):
            training.train(1)
            trackio.log({"loss": step}, step=step if how == "explicit" else None)
    trackio.finish()
    assert is_unchanged()

import json
from trackio.sqlite_storage import SQLiteStorage
logs = {how: SQLiteStorage.get_logs("sparsity", how) for how in ["explicit", "without"]}
print(json.dumps([logs, SQLiteStorage.get_alerts("sparsity")]))
"""


@whole
def test_trackio_has_every_point_and_the_loops_own_in_order(tmp_path: Path) -> None:
    pytest.importorskip("trackio", reason="Trackio is read back")
    logs, alerts = json.loads(run(TRACKIO, tmp_path).splitlines()[-1])
    for how, rows in logs.items():
        ours = [row for row in rows if "sparsity/is_on" in row]
        assert [row["sparsity/step"] for row in ours] == STEPS
        assert [row["sparsity/num_events"] for row in ours] == [0, *[1] * 9]
        loop = [(row["step"], row["loss"]) for row in rows if "loss" in row]
        assert [loss for _, loss in loop] == [*range(30)]
        # without steps it counts rows, ours too
        own = [*range(30)] if how == "explicit" else [row["step"] for row in rows if "loss" in row]
        assert [step for step, _ in loop] == sorted(own)
    assert len(alerts) == 2
    assert all(alert["title"].startswith("Near-zero weights") for alert in alerts)
