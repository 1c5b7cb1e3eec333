"""What an audit says of the optimizers beside the weights, with torch's own as the oracle."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import torch.distributed.checkpoint as dcp
from contracts.clean_series import RECIPES, Recipe, trained
from contracts.families import some_of, whole
from torch import nn

import sparsitywatch as sw
from sparsitywatch.checkpoints.base import OptimizerState, Tree, optimizers_in
from sparsitywatch.checkpoints.formats import open_checkpoint
from sparsitywatch.checkpoints.series import unlike_others
from sparsitywatch.weights.layout import Entry

State = dict[str, Any]


class InMemory(Tree):
    """Dictionaries whose ends are torch's tensors."""

    def look(self, node: object) -> tuple[tuple[int, ...], bool] | None:
        return (tuple(node.shape), True) if isinstance(node, torch.Tensor) else None

    def whole(self, node: Any) -> int:
        return int(node)


def looked_at(state: State, weights: State) -> dict[str, OptimizerState]:
    entries = [Entry(name=n, shape=tuple(v.shape), dtype=v.dtype) for n, v in weights.items()]
    return optimizers_in(InMemory({"optimizer": state}), entries)


@pytest.mark.parametrize(
    "recipe",
    [
        name if name in ("momentum, cosine", "a new optimizer", "frozen at first")
        else pytest.param(name, marks=whole)
        for name in RECIPES
        if name not in ("long", "converged", "converged whole batches")  # longer, but as others
    ],
)  # fmt: skip
def test_the_optimizers_of_clean_series_are_of_their_weights(recipe: str) -> None:
    states = {
        step: looked_at(optimizer.state_dict(), net.state_dict())
        for step, net, optimizer in trained(RECIPES[recipe], 310)
    }
    assert unlike_others(states) == {}
    assert all(one["optimizer"].misfit == "" for one in states.values())


def counted(counts: dict[int, int]) -> dict[int, dict[str, OptimizerState]]:
    return {step: {"optimizer": OptimizerState("", num)} for step, num in counts.items()}


EVEN = {step: step for step in range(100, 1100, 100)}


@pytest.mark.parametrize(
    "counts",
    [
        EVEN,
        {step: step // 8 for step in EVEN},  # a step is a micro-batch
        {step: step + 70_000 for step in EVEN},  # fine-tuned, with the optimizer of before
        {step: step if step < 600 else step - 550 for step in EVEN},  # begun anew
        {step: min(step, 500) for step in EVEN},  # frozen later
        {step: max(0, step - 500) for step in EVEN},  # frozen at first
        {step: step - step // 250 for step in EVEN},  # updates that were skipped
        {step // 100: 390 * step // 100 for step in EVEN},  # a name counts epochs
        {step: step + (7, -9, 12)[step // 100 % 3] for step in EVEN},  # saved a little later
        {step: step if step < 600 else step * 9 for step in EVEN},  # nobody knows which are wrong
        {100: 900, 200: 100},
        {},
    ],
)
def test_counts_that_trainings_give_are_no_finding(counts: dict[int, int]) -> None:
    assert unlike_others(counted(counts)) == {}


@pytest.mark.parametrize(
    ("wrong", "expected"),
    [
        ({500: 300}, {500}),
        ({500: 400}, {500}),
        ({500: 900}, {500}),
        ({500: 100}, {500}),
        ({100: 800}, {100}),
        ({1000: 300}, {1000}),
        ({1000: 5000}, {1000}),
        ({300: 700, 700: 300}, {300, 700}),
        ({500: 600, 600: 500}, {500, 600}),
    ],
)
def test_a_count_that_no_training_gives_is_named(wrong: dict[int, int], expected: set[int]) -> None:
    found = unlike_others(counted(EVEN | wrong))
    assert found.keys() == expected
    step = next(iter(wrong))
    assert f"it has made {wrong[step]:,} updates, beside " in found[step]


def test_an_optimizer_that_never_has_the_shapes_of_the_weights_is_none_of_ours() -> None:
    flat = {step: {"optimizer": OptimizerState("flat", step)} for step in EVEN}
    assert unlike_others(flat) == {}
    most = flat | {step: counted(EVEN)[step] for step in (100, 200, 300, 400, 500)}
    assert unlike_others(most) == {}
    most[600] = counted(EVEN)[600]
    assert unlike_others(most).keys() == {700, 800, 900, 1000}


# ------------------------------------------------------------------ as files

Save = Callable[[Path, int, State, Any], None]


def save_torch(folder: Path, step: int, weights: State, optimizer: State) -> None:
    torch.save({"model": weights, "optimizer": optimizer, "step": step}, folder / f"step-{step}.pt")


def save_lightning(folder: Path, step: int, weights: State, optimizer: State) -> None:
    states = {"state_dict": weights, "optimizer_states": [optimizer], "global_step": step,
              "pytorch-lightning_version": "2.4"}  # fmt: skip
    torch.save(states, folder / f"step={step}.ckpt")


def save_trainer(folder: Path, step: int, weights: State, optimizer: State) -> None:
    place = folder / f"checkpoint-{step}"
    place.mkdir()
    safetensors.torch.save_file(weights, place / "model.safetensors")
    torch.save(optimizer, place / "optimizer.pt")


def save_distributed(folder: Path, step: int, weights: State, optimizer: State) -> None:
    names = [name for name, value in weights.items() if value.is_floating_point()]
    state = {"state": {names[i]: one for i, one in optimizer["state"].items()}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.save({"model": weights, "optimizer": state}, checkpoint_id=str(folder / f"step-{step}"),
                 no_dist=True)  # fmt: skip


WIDER = nn.Sequential(nn.Linear(96, 480), nn.Linear(480, 10))


def save_series(folder: Path, save: Save, wrong: dict[int, Any]) -> None:
    """Eight checkpoints of AdamW; some with the optimizer of another step, or of another model."""
    found = {
        step: copy.deepcopy((net.state_dict(), optimizer.state_dict()))
        for step, net, optimizer in trained(Recipe(schedule="linear"), 311)
    }
    other = torch.optim.AdamW(WIDER.parameters())
    sum(p.sum() for p in WIDER.parameters()).backward()
    other.step()
    for step in sorted(found)[1:9]:
        source = wrong.get(step, step)
        optimizer = other.state_dict() if source == "another model" else found[source][1]
        save(folder, step, found[step][0], optimizer)


#: All ways to save, one of them by default.
SAVES = some_of([save_torch, save_lightning, save_trainer, save_distributed], 4)


@pytest.mark.parametrize("save", SAVES)
def test_an_optimizer_that_is_not_of_its_weights_is_named(save: Save, tmp_path: Path) -> None:
    (clean := tmp_path / "clean").mkdir()
    save_series(clean, save, {})
    assert sw.audit(clean).findings == ()
    (mixed := tmp_path / "mixed").mkdir()
    save_series(mixed, save, {40: 70, 60: "another model"})
    found = {row.step: row for row in sw.audit(mixed).findings}
    assert {step: row.finding for step, row in found.items()} == {40: "optimizer", 60: "optimizer"}
    assert "it has made 70 updates, beside 30 at step 30 and 50 at step 50" in found[40].evidence
    assert "of shape 480 x 96" in found[60].evidence
    assert "Do not go on training from it" in found[40].action


@pytest.mark.parametrize("save", SAVES)
def test_its_number_of_updates_is_that_of_torch(save: Save, tmp_path: Path) -> None:
    save_series(tmp_path, save, {})
    place = next(path for path in sorted(tmp_path.iterdir()) if "30" in path.name)
    with open_checkpoint(place) as checkpoint:
        (state,) = checkpoint.optimizers().values()
    assert state == OptimizerState("", 30)


def test_a_file_of_the_optimizer_that_is_cut_off_is_told(tmp_path: Path) -> None:
    save_series(tmp_path, save_trainer, {})
    file = tmp_path / "checkpoint-50" / "optimizer.pt"
    file.write_bytes(file.read_bytes()[:-1000])
    (row,) = sw.audit(tmp_path).findings
    assert (row.step, row.finding) == (50, "unreadable")
    assert "checkpoint-50/optimizer.pt" in row.evidence


def test_weights_that_are_wrong_have_one_finding(tmp_path: Path) -> None:
    save_series(tmp_path, save_torch, {})
    (tmp_path / "step-40.pt").write_bytes((tmp_path / "step-70.pt").read_bytes())
    found = [(row.step, row.finding) for row in sw.audit({
        int(path.stem[5:]): path for path in tmp_path.iterdir()}).findings]  # fmt: skip
    assert found == [(40, "copy")]
