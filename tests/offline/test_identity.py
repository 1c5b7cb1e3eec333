"""A series is one run: so its addresses say, its log, its model, and its numbers."""

from __future__ import annotations

import json
import logging
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch
from contracts.series_names import ARRANGED, CLEAN, MIXED, STEPS, series, two_runs

import sparsitywatch as sw
from sparsitywatch.checkpoints.discovery import discover
from sparsitywatch.cli import main
from sparsitywatch.errors import ConfigurationError
from sparsitywatch.records import Record
from sparsitywatch.sinks.jsonl import read_records

SHAPES = {"layers.0.mlp.weight": (64, 32), "layers.1.mlp.weight": (32, 64)}
STRANGE = ("another_run", "unlike")


def weights(run: int, step: int, scale: float = 0.05) -> dict[str, torch.Tensor]:
    """Of a run, which moves by ``scale`` of the weights from hundred to hundred steps."""
    found = {}
    for number, (name, shape) in enumerate(SHAPES.items()):
        draw = torch.Generator().manual_seed(1000 * run + number)
        tensor = torch.randn(shape, generator=draw)
        for _ in range(step // 100):
            tensor = tensor + scale * torch.randn(shape, generator=draw)
        found[name] = tensor
    return found | {"layers.0.norm.weight": torch.ones(32), "head.weight": torch.ones(3, 32)}


def save(path: Path, tensors: Mapping[str, torch.Tensor], **beside: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".safetensors":
        safetensors.torch.save_file(dict(tensors), str(path))
    else:
        torch.save({"model": dict(tensors), **beside}, path)


def save_run(
    folder: Path, pattern: str = "step-{}.pt", run: int = 0, steps=(100, 200, 300)
) -> Path:
    for step in steps:
        save(folder / pattern.format(step), weights(run, step))
    return folder


def snapshot_of(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != ".writer")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


# ------------------------------------------------------------------ several runs


def test_several_series_are_listed_and_nothing_is_written(tmp_path: Path) -> None:
    for run in (0, 1):
        save_run(tmp_path / "sweep" / f"seed{run}", run=run, steps=(100, 200, 300)[run:])
    with pytest.raises(ConfigurationError) as error:
        sw.replay(tmp_path / "sweep", logdir=tmp_path / "log")
    lines = str(error.value).splitlines()
    assert lines[0].endswith("got 2 series:")
    assert lines[1] == f"  {tmp_path}/sweep/seed0/step-{{step}}.pt: 3, steps 100 to 300"
    assert lines[2] == f"  {tmp_path}/sweep/seed1/step-{{step}}.pt: 2, steps 200 to 300"
    assert "`--each` (each=True)" in lines[3]
    assert not (tmp_path / "log").exists()
    one = sw.replay(tmp_path / "sweep" / "seed1", logdir=None)
    assert [record.step for record in one.records] == [200, 300]


def test_each_series_has_a_log_that_is_the_one_of_its_own_replay(tmp_path: Path, capsys) -> None:
    sweep, logs = tmp_path / "sweep", tmp_path / "logs"
    for run in (0, 1):
        save_run(sweep / f"seed{run}", run=run)
    (sweep / "seed1" / "step-400.pt").write_bytes(b"no checkpoint")
    (sweep / "other" / "step-1.pt").parent.mkdir()
    (sweep / "other" / "step-1.pt").write_bytes(b"nor this")
    told = []
    replayed = sw.replay(sweep, logdir=logs, each=True, on_failure=[told.append])
    assert list(replayed.each) == ["seed0", "seed1"]
    assert (replayed.records, replayed.num_snapshots, replayed.directory) == ([], 7, logs)
    assert sorted(Path(f.url).parent.name for f in replayed.failures) == ["other", "seed1"]
    assert told == replayed.failures
    for name, one in replayed.each.items():
        alone = sw.replay(sweep / name, logdir=None)
        assert [facts(r) for r in one.records] == [facts(r) for r in alone.records]
        assert one.directory == logs / name / "sparsitywatch"
    again = sw.replay(sweep, logdir=logs, each=True)
    assert again.num_snapshots == 0
    assert main(["compare", str(logs / "seed0"), str(logs / "seed1")]) == 0
    capsys.readouterr()
    assert main(["replay", str(sweep), "--logdir", str(logs), "--each"]) == 2
    output = capsys.readouterr().out
    assert "seed0: 0 checkpoints measured, 3 in the log already" in output
    assert f"sparsitywatch compare {logs / 'seed0'} {logs / 'seed1'}" in output
    assert main(["replay", str(sweep), "--logdir", str(logs), "--each", "--json"]) == 2
    ends = [json.loads(line) for line in capsys.readouterr().out.splitlines()[-2:]]
    assert [(end["series"], end["num_records"]) for end in ends] == [("seed0", 3), ("seed1", 4)]


def test_every_line_of_a_sweep_says_which_run_it_is_of(tmp_path: Path, capsys) -> None:
    sweep, logs = tmp_path / "a sweep", tmp_path / "logs"
    for run in (0, 1, 2):
        save_run(sweep / f"seed{run}", run=run, steps=range(100, 1300, 100))
        for step in (1000, 1100, 1200):  # an event of each
            tensors = weights(run, step)
            tensors["layers.0.mlp.weight"][:40] *= 1e-4
            save(sweep / f"seed{run}" / f"step-{step}.pt", tensors)
    names = ["seed0", "seed1", "seed2"]
    begun: list[str] = []
    replayed = sw.replay(sweep, logdir=logs / "python", each=True, on_series=[begun.append])
    assert begun == list(replayed.each) == names
    command = ["replay", str(sweep), "--logdir", str(logs / "of it"), "--each"]
    assert main(command) == 0  # all is measured, and nothing failed
    output = capsys.readouterr().out
    for name in names:
        assert f"{name}: Near-zero weights (|w| ≤ 0.1 × first rms) jumped from" in output
        assert f"{name}: 12 checkpoints measured, 1 event.\n  sparsitywatch summary '" in output
    (tensorboard,) = (line for line in output.splitlines() if "tensorboard" in line)
    assert tensorboard == f"  tensorboard --logdir '{logs / 'of it'}'"
    assert "All 3 runs:\n" in output
    assert main(command) == 0  # a complete log asked again
    assert main([*command[:3], str(logs / "json"), "--each", "--json"]) == 0
    printed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
    lines = [json.loads(line) for line in printed]
    for kind, num in {"record": 12, "progress": 12, "event": 2}.items():
        runs = [line["run"] for line in lines if line["kind"] == kind]
        assert runs == [name for name in names for _ in range(num)]
    assert [line["series"] for line in lines if line["kind"] == "end"] == names


def test_an_error_in_a_sweep_names_the_series(tmp_path: Path) -> None:
    sweep, logs = tmp_path / "sweep", tmp_path / "logs"
    for run in (0, 1):
        save_run(sweep / f"seed{run}", run=run)
    sw.replay(sweep / "seed1", logdir=logs / "seed1", tolerance=0.5)
    with pytest.raises(ConfigurationError, match=r"^In the series seed1: Expected `logdir` to be"):
        sw.replay(sweep, logdir=logs, each=True)


def facts(record: Record) -> Record:
    return replace(record, wall_time=0.0, cost=None)


def test_each_takes_neither_a_sidecar_nor_sinks(tmp_path: Path) -> None:
    save_run(tmp_path)
    for options in ({"follow": True}, {"sinks": [sw.sinks.MemorySink()]}):
        with pytest.raises(ConfigurationError, match="each"):
            sw.replay(tmp_path, logdir=None, each=True, **options)


def test_a_detector_of_each_series_is_its_own(tmp_path: Path) -> None:
    for run in (0, 1):
        save_run(tmp_path / f"seed{run}", run=run)
    given = {"near_zero/rms_0.1": sw.detectors.AbruptChange(0.05)}
    before = given["near_zero/rms_0.1"].state_dict()
    sw.replay(tmp_path, logdir=None, each=True, detectors=given)
    assert given["near_zero/rms_0.1"].state_dict() == before


def file_of(address: Path) -> Path:
    """A checkpoint that is a folder has a file in it."""
    return address if address.suffix else address / "weights.pt"


@pytest.mark.parametrize(
    ("pattern", "x", "y"),
    [
        pytest.param(*way, id=name)
        for name, way in MIXED.items()
        if "://" not in way[0] and name != "averages"
    ],  # these are left out, and told
)
def test_no_way_of_mixing_two_runs_passes_in_silence(pattern: str, x, y, tmp_path: Path) -> None:
    for steps in ARRANGED.values():
        place = tmp_path / str(len(list(tmp_path.iterdir())))
        for run, addresses in enumerate(two_runs(pattern, x, y, steps)):
            for address, step in addresses.items():
                save(file_of(place / address), weights(run, step), step=step)
        with pytest.raises(ConfigurationError, match="got 2 series"):
            sw.replay(place, logdir=tmp_path / "log")
    assert not (tmp_path / "log").exists()


@pytest.mark.parametrize(
    "pattern",
    [pytest.param(way, id=name) for name, way in CLEAN.items() if "://" not in way],
)
def test_no_convention_of_a_series_is_refused(pattern: str, tmp_path: Path) -> None:
    for address, step in series(pattern).items():
        save(
            tmp_path / address / ("" if Path(address).suffix else "w.pt"),
            weights(0, step),
            step=step,
        )
    replayed = sw.replay(tmp_path, logdir=None)
    assert [(r.step, r.valid) for r in replayed.records] == [(step, True) for step in STEPS]
    assert (replayed.failures, strange(replayed)) == ([], [])


def test_copies_under_other_names_are_copies(tmp_path: Path) -> None:
    save_run(tmp_path)
    for step in (100, 300):
        shutil.copy(tmp_path / f"step-{step}.pt", tmp_path / f"copy-step{step}.pt")
    replayed = sw.replay(tmp_path, logdir=None)
    assert [record.step for record in replayed.records] == [100, 200, 300]
    assert sorted(Path(one.url).name for one in replayed.left_out) == [
        "copy-step100.pt", "copy-step300.pt",
    ]  # fmt: skip


@pytest.mark.parametrize("up", ["..", "../..", "../../.."])
def test_a_link_to_a_parent_brings_in_no_neighbours(up: str, tmp_path: Path) -> None:
    run = save_run(tmp_path / "x" / "a")
    save_run(tmp_path / "x" / "b", run=1)
    (run / "deep").mkdir()
    (run / "deep" / "link").symlink_to(up)
    assert {Path(one.url).parent for one in discover(run)} == {run}
    (run / "deep" / "other").symlink_to("../../b")  # one that is not around it is followed
    assert {Path(one.url).parent for one in discover(run)} == {run, run / "deep" / "other"}


def test_a_sidecar_leaves_what_comes_of_another_run(tmp_path: Path) -> None:
    place = save_run(tmp_path / "run")
    rounds = iter([False, False, True])

    def until() -> bool:
        is_over = next(rounds)
        if (tmp_path / "log").exists():
            save_run(place, "seed1_step-{}.pt", run=1, steps=(400, 500))
        return is_over

    replayed = sw.replay(place, logdir=tmp_path / "log", follow=True, poll_s=1e-3, until=until)
    assert [record.step for record in replayed.records] == [100, 200, 300]
    assert {Path(f.url).name for f in replayed.failures} == {
        "seed1_step-400.pt", "seed1_step-500.pt",
    }  # fmt: skip
    assert all("It is of another run" in failure.reason for failure in replayed.failures)


# ------------------------------------------------------------------ a log is of one run


def test_a_record_says_what_it_is_of(tmp_path: Path) -> None:
    place = save_run(tmp_path / "run")
    (place / "step-200.pt").write_bytes(b"no checkpoint")
    sw.replay(place, logdir=tmp_path / "log")
    sources = [record.source for record in read_records(tmp_path / "log" / "sparsitywatch")]
    assert [source.address for source in sources] == [
        str(place / f"step-{step}.pt") for step in (100, 200, 300)
    ]
    assert [len(source.mark) for source in sources] == [16, 0, 16]
    assert sources[0].mark != sources[2].mark


def retrained(place: Path) -> Path:
    return save_run(place, run=1)


def retrained_in_part(place: Path) -> Path:
    return save_run(place, run=1, steps=(200,))


def another_run(place: Path) -> Path:
    return save_run(place.with_name("other"), run=1)


def another_run_later(place: Path) -> Path:
    return save_run(place.with_name("other"), run=1, steps=(400, 500))


@pytest.mark.parametrize("change", [retrained, retrained_in_part, another_run, another_run_later])
def test_other_weights_are_a_new_log_beside_the_old_one(
    change: Callable[[Path], Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    place, log = save_run(tmp_path / "run"), tmp_path / "log"
    sw.replay(place, logdir=log)
    before = snapshot_of(log / "sparsitywatch")
    now = change(place)
    with caplog.at_level(logging.WARNING, "sparsitywatch"):
        replayed = sw.replay(now, logdir=log)
    assert "held an earlier run" in caplog.text
    assert "sparsitywatch-earlier-1" in replayed.set_aside
    assert snapshot_of(log / "sparsitywatch-earlier-1") == before
    fresh = sw.replay(now, logdir=None)
    assert list(map(facts, replayed.records)) == list(map(facts, fresh.records))
    assert sw.replay(now, logdir=log).num_snapshots == 0


def test_the_command_line_says_so(tmp_path: Path, capsys) -> None:
    place, log = save_run(tmp_path / "run"), tmp_path / "log"
    sw.replay(place, logdir=log)
    assert main(["replay", str(retrained(place)), "--logdir", str(log)]) == 0
    errors = capsys.readouterr().err
    assert f"is now {log / 'sparsitywatch-earlier-1'}: other weights of step 100" in errors


def moved(place: Path) -> Path:
    return place.rename(place.with_name("archive"))


def grown(place: Path) -> Path:
    return save_run(place, steps=(400,))


def shrunk(place: Path) -> Path:
    (place / "step-100.pt").unlink()
    return save_run(place, steps=(400,))


def all_later(place: Path) -> Path:
    shutil.rmtree(place)
    return save_run(place, steps=(400, 500))


@pytest.mark.parametrize("change", [moved, grown, shrunk, all_later])
def test_the_same_run_goes_on_in_its_log(change: Callable[[Path], Path], tmp_path: Path) -> None:
    place, log = save_run(tmp_path / "run"), tmp_path / "log"
    sw.replay(place, logdir=log)
    replayed = sw.replay(change(place), logdir=log)
    assert replayed.set_aside == ""
    assert [record.step for record in replayed.records][:3] == [100, 200, 300]
    assert not (log / "sparsitywatch-earlier-1").exists()


def test_a_log_from_before_there_were_addresses_is_gone_on_with(tmp_path: Path) -> None:
    place, log = save_run(tmp_path / "run"), tmp_path / "log"
    sw.replay(place, logdir=log)
    file = log / "sparsitywatch" / "records.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    file.write_text("".join(f"{json.dumps({**line, 'source': None})}\n" for line in lines))
    assert sw.replay(grown(place), logdir=log).num_snapshots == 1


# ------------------------------------------------------------------ a model is one


def larger(tensors: dict[str, torch.Tensor]) -> str:
    tensors["layers.2.mlp.weight"] = torch.randn(64, 32)
    return r"step-100\.pt, got layers\.2\.mlp\.weight as well"


def smaller(tensors: dict[str, torch.Tensor]) -> str:
    del tensors["layers.1.mlp.weight"]
    return r"tensor 'layers\.1\.mlp\.weight': it is not there"


def wider(tensors: dict[str, torch.Tensor]) -> str:
    tensors["layers.1.mlp.weight"] = torch.randn(32, 96)
    return r"tensor 'layers\.1\.mlp\.weight': expected shape \(32, 64\), got \(32, 96\)"


def renamed(tensors: dict[str, torch.Tensor]) -> str:
    tensors["layers.1.ffn.weight"] = tensors.pop("layers.1.mlp.weight")
    return r"step-100\.pt, got layers\.1\.ffn\.weight as well"


@pytest.mark.parametrize("change", [larger, smaller, wider, renamed])
@pytest.mark.parametrize("goes_on", [False, True])
def test_another_model_is_a_failure_with_the_names(
    change: Callable[[dict[str, torch.Tensor]], str], goes_on: bool, tmp_path: Path
) -> None:
    place = save_run(tmp_path / "run")
    if goes_on:
        sw.replay(place, logdir=tmp_path / "log")
    tensors = weights(0, 400)
    words = change(tensors)
    save(place / "step-400.pt", tensors)
    save_run(place, steps=(500,))
    replayed = sw.replay(place, logdir=tmp_path / "log")
    (failure,) = replayed.failures
    assert re.search(words, failure.reason)
    assert [(r.step, r.valid) for r in replayed.records][-2:] == [(400, False), (500, True)]
    assert replayed.records[-2].num_nan == -1


# ------------------------------------------------------------------ numbers are the last guard


def strange(replayed) -> list[str]:
    return [event.kind for event in replayed.events if event.kind in STRANGE]


def mixed_in(folder: Path, runs: str, **options: object):
    """Checkpoints under names of one series, each of the run that a letter says."""
    for number, run in enumerate(runs, 1):
        save(folder / f"step-{100 * number}.pt", weights(ord(run), 100 * number))
    return sw.replay(folder, logdir=folder / "log", **options)


@pytest.mark.parametrize("runs", ["aaab", "aaabbb", "aabaa", "aababab"])
def test_a_jump_among_neighbours_is_no_training(runs: str, tmp_path: Path) -> None:
    replayed = mixed_in(tmp_path, runs)
    (event,) = (event for event in replayed.events if event.kind in STRANGE)
    number = runs.index("b") + 1
    assert event.kind == "another_run"
    assert (
        event.headline
        == f"Steps {100 * (number - 1)} and {100 * number} are not weights of one run"
    )
    assert (event.severity, event.value > 0.45) == ("act", True)
    found = sw.load(tmp_path / "log").verdict
    assert (found.state, found.headline) == ("broken", event.headline)
    assert sw.replay(tmp_path, logdir=tmp_path / "log").events == replayed.events


@pytest.mark.parametrize("runs", ["ab", "abab", "abcd"])
def test_neighbours_with_nothing_in_common(runs: str, tmp_path: Path) -> None:
    """Without the decay they may be of one run that lie far apart; with it they are not."""
    replayed = mixed_in(tmp_path, runs)
    assert strange(replayed) == ["unlike"]
    assert sw.load(tmp_path / "log").verdict.state == "look"
    shutil.rmtree(tmp_path / "log")
    assert strange(mixed_in(tmp_path, runs, lr=1e-4, weight_decay=0.1)) == ["another_run"]


def walked(kept: float, num: int = 5, growth: float = 1.0) -> Iterator[dict[str, torch.Tensor]]:
    """Weights of which a part is kept from one checkpoint to the next, and the rest is new."""
    draw = torch.Generator().manual_seed(7)
    now = {name: torch.randn(shape, generator=draw) for name, shape in SHAPES.items()}
    for _ in range(num):
        yield now
        now = {
            name: kept * w + growth * (1 - kept**2) ** 0.5 * torch.randn(w.shape, generator=draw)
            for name, w in now.items()
        }


@pytest.mark.parametrize(
    ("kept", "growth", "options", "expected"),
    [
        (0.999, 1.0, {}, []),
        (0.7, 1.0, {}, []),  # a quarter of the signs differ
        (0.1, 1.0, {"lr": 0.02, "weight_decay": 1.0}, []),  # the clock comes to 2 in between
        (0.1, 1.0, {}, ["unlike"]),
        (1.0, 0.0, {}, []),
    ],
)
def test_what_training_can_do_is_no_other_run(kept, growth, options, expected, tmp_path) -> None:
    for number, tensors in enumerate(walked(kept, growth=growth), 1):
        save(tmp_path / f"step-{100 * number}.pt", tensors)
    assert strange(sw.replay(tmp_path, logdir=None, **options)) == expected


def test_weights_that_grow_far_beyond_their_start_are_of_one_run(tmp_path: Path) -> None:
    draw = torch.Generator().manual_seed(0)
    first = {name: 0.02 * torch.randn(shape, generator=draw) for name, shape in SHAPES.items()}
    grown = {name: w + 0.2 * torch.randn(w.shape, generator=draw) for name, w in first.items()}
    for step, tensors in ((0, first), (1000, grown)):
        save(tmp_path / f"step-{step}.pt", tensors)
    replayed = sw.replay(tmp_path, logdir=None)
    assert replayed.records[1].movement.sign_flips > 0.4
    assert strange(replayed) == []


def test_signs_that_flip_under_the_same_masks_are_no_other_run(tmp_path: Path) -> None:
    """Half of the units with their signs turned compute the same; only these are compared."""
    for number, sign in enumerate((1, 1, -1), 1):
        tensors = {name: sign * w for name, w in weights(0, 100).items()}
        save(tmp_path / f"step-{100 * number}.pt", tensors)
    replayed = sw.replay(tmp_path, logdir=None)
    assert replayed.records[2].movement.sign_flips == 1.0
    assert strange(replayed) == []


def test_tensors_of_unlike_scales_do_not_hide_another_run(tmp_path: Path) -> None:
    """Their masks agree far above chance: most of what goes is in the same tensors."""
    for number, run in enumerate((0, 0, 0, 1), 1):
        tensors = weights(run, 100 * number)
        tensors["layers.0.mlp.weight"] *= 0.05
        save(tmp_path / f"step-{100 * number}.pt", tensors)
    replayed = sw.replay(tmp_path, logdir=None)
    assert replayed.records[-1].masks.overlap[0] > 0.8
    assert strange(replayed) == ["another_run"]
