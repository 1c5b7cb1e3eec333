"""Every number that one live run and its replays tell, as it was decided that they should be.

A refactoring changes none of them. Who changes a number or the name of a field on purpose records
them anew,

    .venv/bin/python tests/test_record_reference.py "why they change"

which prints what differs, and reviews the difference of ``record_reference.json``: a line for each
field of the JSON form and each tag of TensorBoard, and each change of the file with its reason.

The weights' trajectory is arithmetic: steps from a seeded generator, no backward pass, and no sum
or product of two roundings in one operation. So they are the same bits on every processor. What
the proxy evaluates is computed in float64. Numbers are compared to a millionth of themselves:
1e-16 from the order of a processor's sums, 6e-8 from the float32 of TensorBoard. What is farther
off was computed in another way.
"""

from __future__ import annotations

import json
import math
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # tests get it from pyproject.toml
    sys.path.insert(0, str(Path(__file__).parent))

import numpy as np
import pytest
import torch
from contracts import logged
from contracts.event_readers import plugin_accumulator
from tensorboard.util import tensor_util
from torch import nn

import sparsitywatch as sw

REFERENCE = Path(__file__).with_name("record_reference.json")
STEPS, EVERY = 150, 5
TOLERANCE = 0.05  # above the noise of sixteen examples
DYING = {50: 0.3, 80: 0.6}  # from a step on, that share of the units gets no gradient
PAUSE = range(30, 35)  # with a learning rate of 0
NOT_FINITE = 150  # at this step a weight becomes NaN
RELATIVE, ABSOLUTE, DIGITS = 1e-6, 1e-12, 9
SHORT = 40  # numbers of an array that are told one by one
ABSENT = "(absent)"
#: Differ from run to run, from machine to machine and from version to version.
VOLATILE = re.compile(
    r"wall_time|source\.address|cost\.\w+_s|cost\.overhead|provenance\.(sparsitywatch|torch)"
    r"|scalars .*watch/(\w+_s|overhead)|.*_at"
)
#: Of a field: its path in the reference and as it is now. A renaming is shown to change nothing
#: else with an entry here; the reference is then recorded anew and the entry goes.
RENAMED: dict[str, str] = {}

Table = dict[str, list[Any]]


class PlannedAdamW(torch.optim.AdamW):
    """Decoupled decay as AdamW's, and a step of the learning rate times the gradient given.

    Separate operations, none of which a processor may fuse.
    """

    # a class of which the watch knows that decay is decoupled and steps are of the size of lr
    __module__, __qualname__ = "lion_pytorch.lion_pytorch", "Lion"

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:
        for group in self.param_groups:
            for weight in group["params"]:
                weight.mul_(1.0 - group["lr"] * group["weight_decay"])
                weight.sub_(weight.grad * group["lr"])


class Net(nn.Sequential):
    """Three matrices in scope and one for the output, which is not."""

    def __init__(self, draw: np.random.Generator) -> None:
        sizes = [(12, 24), (24, 24), (24, 16), (16, 4)]
        super().__init__(*(nn.Linear(*size) for size in sizes))
        with torch.no_grad():
            for layer in self:
                layer.weight.copy_(bell(draw, layer.weight.shape, 0.05))
                layer.bias.copy_(bell(draw, layer.bias.shape, 0.002))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.double()
        for layer in self:
            x = nn.functional.linear(x.relu(), layer.weight.double(), layer.bias.double()) * 5.0
        return x


def bell(draw: np.random.Generator, shape: tuple[int, ...], deviation: float) -> torch.Tensor:
    """Sums of uniform numbers: a logarithm may be rounded in more than one way."""
    uniform = draw.random((3, *shape), dtype=np.float32)
    total = (uniform[0] + uniform[1]) + uniform[2] - np.float32(1.5)
    return torch.from_numpy(total * np.float32(2.0 * deviation))


def weakness(model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
    """A loss that is 1 if the model does not answer at all."""
    return 1.0 / (1.0 + 4.0 * model(batch).square().sum(1))


def proxy() -> sw.Proxy:
    draw = np.random.Generator(np.random.PCG64(1))
    batches = [bell(draw, (8, 12), 1.0) for _ in range(2)]
    return sw.Proxy(batches, weakness)


def net() -> Net:
    return Net(np.random.Generator(np.random.PCG64(0)))


def lr_at(step: int) -> float:
    """Of the first one: a warm-up over 20 steps, then a slow fall with a pause."""
    return 0.0 if step in PAUSE else min(1.0, (step + 1) / 20) * (1.0 - step / 400)


def give_gradients(model: Net, step: int, draw: np.random.Generator) -> None:
    dying = max((share for begin, share in DYING.items() if step >= begin), default=0.0)
    for layer in model:
        layer.weight.grad = bell(draw, layer.weight.shape, 1.0)
        layer.bias.grad = torch.zeros_like(layer.bias)
    for earlier, later in ((model[0], model[1]), (model[1], model[2])):
        dead = int(dying * earlier.out_features)
        earlier.weight.grad[:dead] = 0.0
        later.weight.grad[:, :dead] = 0.0


def train(logdir: Path, checkpoints: Path) -> None:
    """The live run; it saves what each snapshot sees."""
    model, draw = net(), np.random.Generator(np.random.PCG64(2))
    matrices = [p for p in model.parameters() if p.ndim == 2]
    biases = [p for p in model.parameters() if p.ndim == 1]
    groups = [{"params": matrices}, {"params": biases, "weight_decay": 0.0}]
    optimizer = PlannedAdamW(groups, lr=0.01, weight_decay=3.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lr_at)
    checkpoints.mkdir()

    def save(step: int) -> None:
        torch.save({"model": model.state_dict(), "step": step}, checkpoints / f"ckpt-{step}.pt")

    with sw.watch(
        model,
        optimizer,
        logdir=logdir,
        proxy=proxy(),
        every=EVERY,
        tolerance=TOLERANCE,
        max_overhead=None,
        background=False,
        strict=True,
        on_event=[],
    ) as watcher:
        watcher.snapshot()
        save(0)
        for step in range(1, STEPS + 1):
            give_gradients(model, step, draw)
            if step == NOT_FINITE:
                model[1].weight.grad[-1, -1] = math.nan
            optimizer.step()
            schedule.step()
            if step % EVERY == 0:
                save(step)


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """What a JSON value holds, by path; a list without objects is one leaf."""
    if isinstance(value, list) and any(isinstance(x, dict) for x in value):
        value = {str(index): item for index, item in enumerate(value)}
    if not isinstance(value, dict):
        yield path, value
        return
    for key, item in value.items():
        yield from leaves(item, f"{path}.{key}" if path else key)


def table(rows: list[dict[str, Any]]) -> Table:
    """By path, the values of all rows."""
    told = [dict(leaves(row)) for row in rows]
    paths = dict.fromkeys(path for row in told for path in row)
    return {p: [row.get(p, ABSENT) for row in told] for p in paths if not VOLATILE.fullmatch(p)}


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def event_file(directory: Path) -> Table:
    """By plugin and tag: the steps, then the values; of pictures and texts only the steps.

    Of long arrays, such as histograms, two sums that any change of one number changes.
    """
    reader, found = plugin_accumulator(directory), {}
    for plugin in sorted(reader.ActivePlugins()):
        for tag in sorted(reader.PluginTagToContent(plugin)):
            events = reader.Tensors(tag)
            arrays = [tensor_util.make_ndarray(event.tensor_proto) for event in events]
            numbers = [in_short(a) for a in arrays if a.dtype.kind in "fiub"]
            found[f"{plugin} {tag}"] = [[event.step for event in events], numbers]
    return {name: column for name, column in found.items() if not VOLATILE.fullmatch(name)}


def in_short(array: np.ndarray) -> Any:
    if array.size <= SHORT:
        return array.tolist()
    sizes = np.abs(array.ravel().astype(np.float64))
    return [*array.shape, float(sizes.sum()), float(sizes @ np.arange(1.0, array.size + 1.0))]


def told_by(log: Path) -> dict[str, Table]:
    directory = log / "sparsitywatch"
    manifest = json.loads((directory / "run.json").read_text())
    kept = {key: manifest[key] for key in ("initial_rms", "ledger") if key in manifest}
    return {
        "records": table(logged.records(directory)),
        "events": table(lines(directory / "events.jsonl")),
        "manifest": table([kept]),
        "event file": event_file(directory),
    }


def measured() -> dict[str, dict[str, Table]]:
    """Of the live run and of its replays: a table for each file of the log."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with tempfile.TemporaryDirectory() as folder:
            place = Path(folder)
            checkpoints = place / "checkpoints"
            train(place / "live", checkpoints)
            sw.replay(checkpoints, logdir=place / "weights", on_event=[])
            some = [checkpoints / f"ckpt-{step}.pt" for step in range(0, STEPS + 1, 3 * EVERY)]
            sw.replay(
                some,
                logdir=place / "model",
                model=net(),
                proxy=proxy(),
                tolerance=TOLERANCE,
                on_event=[],
            )
            runs = {"live": "live", "replay": "weights", "replay with model and proxy": "model"}
            found = {name: told_by(place / log) for name, log in runs.items()}
    finally:
        torch.set_num_threads(threads)
    return json.loads(written(found))


def written(found: Any) -> str:
    """As JSON, with numbers to ``DIGITS`` digits and NaN as null; a line for each row."""

    def short(value: Any) -> Any:
        if isinstance(value, float):
            return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None
        if isinstance(value, list):
            return [short(item) for item in value]
        return value

    def text(value: Any, depth: int) -> str:
        if not isinstance(value, dict):
            return json.dumps(short(value), separators=(",", ":"), allow_nan=False)
        pad = " " * depth
        rows = (f"{pad} {json.dumps(k)}: {text(v, depth + 1)}" for k, v in value.items())
        return "{\n" + ",\n".join(rows) + f"\n{pad}}}"

    return text(found, 0)


def differs(came: Any, expected: Any) -> bool:
    """Floats to the tolerance, everything else exactly."""
    if isinstance(came, list) and isinstance(expected, list):
        pairs = zip(came, expected, strict=False)
        return len(came) != len(expected) or any(differs(*pair) for pair in pairs)
    if isinstance(came, float) and isinstance(expected, float):
        return not math.isclose(came, expected, rel_tol=RELATIVE, abs_tol=ABSOLUTE)
    return type(came) is not type(expected) or came != expected


def differences(came: dict[str, Any], expected: dict[str, Any]) -> list[str]:
    """Each path that differs, with the first values that do."""
    found = []
    for run, file, path in _paths(came, expected):
        one = came.get(run, {}).get(file, {}).get(path)
        other = expected.get(run, {}).get(file, {}).get(path)
        if one is None or other is None:
            found.append(f"{run}, {file}: {path} is {'missing' if one is None else 'new'}")
        elif differs(one, other):
            pairs = enumerate(zip(one, other, strict=False))
            first = next(((i, p) for i, p in pairs if differs(*p)), (0, (len(one), len(other))))
            found.append(f"{run}, {file}: {path}[{first[0]}] is {first[1][0]}, was {first[1][1]}")
    return found


def _paths(*tables: dict[str, Any]) -> list[tuple[str, str, str]]:
    found: dict[tuple[str, str, str], None] = {}
    for of in tables:
        for run, files in of.items():
            for file, rows in files.items():
                found.update(dict.fromkeys((run, file, path) for path in rows))
    return list(found)


def reference() -> tuple[list[str], dict[str, Any]]:
    """The reasons, and the tables with the names of now."""
    read = json.loads(REFERENCE.read_text())
    reasons = read.pop("reasons")
    for files in read.values():
        for file, rows in files.items():
            files[file] = {RENAMED.get(path, path): column for path, column in rows.items()}
    return reasons, read


@pytest.fixture(scope="module")
def came() -> dict[str, Any]:
    return measured()


@pytest.mark.slow
def test_every_number_is_the_one_decided_on(came: dict[str, Any]) -> None:
    _, expected = reference()
    told = differences(came, expected)
    assert not told, f"{len(told)} paths differ:\n" + "\n".join(told[:40])


@pytest.mark.slow
def test_the_run_has_something_of_everything(came: dict[str, Any]) -> None:
    records, events = came["live"]["records"], came["live"]["events"]
    moving = ("near_zero.initial_0.1", "dormant.fraction", "movement.sign_flips", "masks.overlap")
    for path in (*moving, "decay_clock", "lr", "essential_sparsity.value", "curve.value"):
        values = [json.dumps(x) for x in records[path]]
        assert len(set(values)) > len(values) // 3, path
    assert any(isinstance(x, list) for x in records["forecast.fraction"])
    assert {"motion/dormant", "near_zero/initial_0.1", "value/dense"} <= set(events["series"])
    assert records["num_nan"][-1] == 1
    assert records["same_weights_as"][PAUSE.stop // EVERY] == PAUSE.start


@pytest.mark.slow
def test_a_small_change_of_one_number_is_named(came: dict[str, Any]) -> None:
    changed = json.loads(json.dumps(came))
    column = changed["replay"]["records"]["near_zero.initial_0.1"]
    column[3] *= 1.0 + 10 * RELATIVE
    (told,) = differences(changed, came)
    assert told.startswith("replay, records: near_zero.initial_0.1[3] is")


def test_every_record_of_the_reference_has_its_reason() -> None:
    reasons, _ = reference()
    assert reasons
    assert all(len(reason) > 20 for reason in reasons)


def record(reason: str) -> None:
    """Write what comes now, with why it differs from what was there."""
    came, reasons = measured(), []
    if REFERENCE.exists():
        reasons, expected = reference()
        print("\n".join(differences(came, expected)) or "nothing differs")
    REFERENCE.write_text(written({"reasons": [*reasons, reason], **came}) + "\n")


if __name__ == "__main__":
    record(sys.argv[1])
