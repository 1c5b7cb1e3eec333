"""A model that changes in mid-run: the watch goes on, with a new segment that says what changed."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from contracts.watched import Run, steps_of
from torch import nn
from torch.nn.utils import parametrizations, prune

import sparsitywatch as sw

whole = pytest.mark.whole


class Adapted(nn.Module):
    """A layer beside which a low-rank one is trained, as peft makes it."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base_layer = base.requires_grad_(False)
        self.lora_A = nn.Linear(base.in_features, 2, bias=False)
        self.lora_B = nn.Linear(2, base.out_features, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base_layer(x) + self.lora_B(self.lora_A(x))


def anew(run: Run) -> None:
    run.optimizer = type(run.optimizer)(run.model.parameters(), lr=0.01)


def widened(run: Run) -> None:
    run.model[0], run.model[2] = nn.Linear(6, 32), nn.Linear(32, 2)
    anew(run)


def grown(run: Run) -> None:
    run.model.append(nn.Linear(2, 2))
    anew(run)


def added_to(run: Run) -> None:
    run.model.append(layer := nn.Linear(2, 2))
    run.optimizer.add_param_group({"params": list(layer.parameters())})


def cut(run: Run) -> None:
    run.model[0], run.model[2] = nn.Linear(6, 2), nn.Identity()
    anew(run)


def pruned(run: Run) -> None:
    prune.l1_unstructured(run.model[0], "weight", amount=0.5)


def all_pruned(run: Run) -> None:
    for i in (0, 2):
        prune.random_unstructured(run.model[i], "weight", amount=0.5)


def parametrized(run: Run) -> None:
    parametrizations.weight_norm(run.model[0])
    anew(run)


def adapted(run: Run) -> None:
    run.model[0] = Adapted(run.model[0])
    anew(run)


def renamed(run: Run) -> None:
    run.model[2] = nn.Sequential(run.model[2])


CHANGES = [widened, adapted, all_pruned, grown, added_to, cut, pruned, parametrized, renamed]
FIRST = 3  # of these are always run


def cases() -> list[object]:
    every = [(c, given, background) for c in CHANGES for given in (1, 0) for background in (0, 1)]
    often = [(c, i % 2, i // 2 % 2) for i, c in enumerate(CHANGES[:FIRST])]
    return [pytest.param(*case, marks=[] if case in often else whole) for case in every]


@pytest.mark.parametrize(("change", "is_given", "background"), cases())
def test_a_watch_goes_on_with_a_changed_model(
    change: Callable[[Run], None], is_given: int, background: int, tmp_path: Path
) -> None:
    run, plain = Run(), Run()
    torch.manual_seed(3)
    plain.train(5), change(plain), plain.train(7)
    torch.manual_seed(3)
    watcher = run.watch(
        tmp_path, every=2, background=bool(background), scope="layers",
        optimizer=run.optimizer if is_given else None,
    )  # fmt: skip
    run.train(5)
    names = set(dict(run.model.named_parameters()))
    change(run)
    changed = names ^ set(dict(run.model.named_parameters()))
    run.train(7)
    watcher.close()
    for own, other in zip(run.model.parameters(), plain.model.parameters(), strict=True):
        assert torch.equal(own, other)
    assert watcher.off == ""
    assert steps_of(watcher.records) == [2, 4, 6, 8, 10, 12]
    assert all(record.valid and record.curve is not None for record in watcher.records)
    # what the last record says is counted from the weights as they are
    last, weights = watcher.records[-1], dict(run.model.named_parameters())
    layers = last.layers
    assert last.scope.num_weights == sum(weights[layer.name].numel() for layer in layers)
    for layer in layers:
        values = weights[layer.name].detach().double().numpy()
        assert layer.rms == pytest.approx(np.sqrt(np.square(values).mean()), rel=1e-3)  # of bins
    (event,) = watcher.events
    assert (event.kind, event.before_step, event.detected_step) == ("changed", 4, 6)
    if change not in (widened, cut):
        assert changed & set(event.layers)
    assert "between steps 4 and 6" in event.describe()
    # clocks go on: lr .01 and decay .01 at each step
    assert [r.lr_clock for r in watcher.records] == pytest.approx(
        [r * 0.01 for r in range(2, 13, 2)]
    )
    loaded = sw.load(tmp_path)
    ledger = {entry.name: entry.shape for entry in loaded.info.ledger if entry.in_scope}
    assert ledger == {layer.name: tuple(weights[layer.name].shape) for layer in layers}
    assert loaded.info.initial_rms.keys() == ledger.keys()
    assert loaded.emergence().steps.tolist() == [6, 8, 10, 12]
    loaded.report(tmp_path / "report.html")


def test_numbers_of_two_models_are_never_compared(tmp_path: Path) -> None:
    """A layer with a hundred times the near-zero weights is no abrupt rise."""
    run = Run()
    watcher = run.watch(None, every=1, scope="layers", proxy=None)
    run.train(30)
    before = watcher.records[-1]
    run.model[2] = nn.Linear(16, 2)
    run.model.append(wide := nn.Linear(2, 400))
    with torch.no_grad():
        wide.weight[20:] = 0.0
    run.targets = torch.randn(20, 400)
    anew(run)
    run.train(1)
    now = watcher.records[-1]
    run.train(29)
    assert now.near_zero["rms_0.1"] > before.near_zero["rms_0.1"] + 0.3
    kinds = [event.kind for event in watcher.events if event.detected_step > 30]
    assert kinds == ["changed", "began_sparse"]  # a note: the new layer begins with its zeros
    watcher.close()


def test_what_changes_out_of_scope_begins_nothing_anew() -> None:
    run = Run()
    run.model.append(nn.LayerNorm(2))
    anew(run)
    watcher = run.watch(None, every=2, scope="layers")
    run.train(5)
    run.model[3] = nn.LayerNorm(2, bias=False)
    anew(run)
    run.train(7)
    assert [r.valid for r in watcher.records] == [True] * 6
    assert watcher.events == []
    watcher.close()


def test_a_model_that_changes_before_the_first_step_is_that_of_the_run(tmp_path: Path) -> None:
    run = Run()
    watcher = run.watch(tmp_path, every=2, scope="layers", optimizer=None)
    widened(run)
    run.train(6)
    assert [record.scope.num_weights for record in watcher.records] == [6 * 32 + 32 * 2] * 3
    assert watcher.events == []
    assert watcher.records[0].dormant.since_step == 0
    watcher.close()


def test_what_fails_where_it_begins_anew_is_read_again_at_the_next_snapshot(monkeypatch) -> None:
    run = Run()
    watcher = run.watch(None, every=2, scope="layers", strict=False, background=False, proxy=None)
    run.train(5)
    pruned(run)
    with monkeypatch.context() as patch:
        patch.setattr("sparsitywatch.live.snapshots.counted", lambda *_: 1 / 0)
        run.train(1)
    run.train(1)
    first = run.model[2].weight.detach().clone()
    run.train(1)
    known = watcher._taker.run.initial_rms
    with torch.no_grad():
        run.model[2].weight *= 0.01
    run.train(2)
    watcher.close()  # a loop that writes to its weights may write to those of the last step
    assert [record.valid for record in watcher.records] == [True, True, False, True, True]
    assert known.keys() == {"2.weight"}
    assert known["2.weight"] == pytest.approx(first.square().mean().sqrt().item(), rel=0.05)
    assert watcher._taker.run.initial_rms == known


def test_a_scope_that_selects_nothing_any_more_is_said(caplog: pytest.LogCaptureFixture) -> None:
    run = Run()
    watcher = run.watch(None, every=2, scope="layers", proxy=None)
    run.train(3), all_pruned(run), run.train(3)
    assert "all matrices of the changed model are watched" in caplog.text
    assert watcher.records[-1].scope.num_weights == 128
    watcher.close()


def test_a_run_that_has_changed_is_resumed(tmp_path: Path) -> None:
    run = Run()
    watcher = run.watch(tmp_path, every=2, scope="layers", optimizer=None)
    run.train(5), grown(run), run.train(5)
    state = copy.deepcopy((run.model, run.optimizer.state_dict(), watcher.state_dict()))
    run.train(2)
    watcher.close()
    straight = sw.load(tmp_path)
    other = Run()
    other.model = state[0]
    anew(other)
    other.optimizer.load_state_dict(state[1])
    watcher = other.watch(tmp_path, every=2, scope="layers")
    watcher.load_state_dict(state[2])
    other.train(2)
    watcher.close()
    resumed = sw.load(tmp_path)
    assert steps_of(resumed.records) == steps_of(straight.records) == [2, 4, 6, 8, 10, 12]
    assert resumed.records[-1].near_zero == straight.records[-1].near_zero
    assert resumed.records[-1].lr_clock == pytest.approx(0.12)
    assert [event.id for event in resumed.events] == [event.id for event in straight.events]
    assert resumed.info.initial_rms == straight.info.initial_rms


def test_a_proxy_that_no_longer_fits_is_left_out_with_its_reason() -> None:
    run = Run()
    watcher = run.watch(None, every=2, scope="layers", optimizer=None)
    run.train(5)
    run.model[0] = nn.Linear(7, 16)
    anew(run)
    run.inputs = torch.randn(20, 7)
    run.train(5)
    assert [record.curve is not None for record in watcher.records] == [True, True, *[False] * 3]
    assert "mat1 and mat2 shapes" in watcher.records[-1].not_evaluated
    assert watcher.off == ""
    watcher.close()


def test_the_ring_follows_the_blocks_of_the_changed_model() -> None:
    run = Run()
    watcher = run.watch(None, every=2, scope="layers", optimizer=None, ring=True, proxy=None)
    run.train(5)
    run.model.extend([nn.Linear(2, 64), nn.Linear(64, 2)])
    anew(run)
    run.train(4)
    assert watcher._ring._blocks.tolist() == ["0", "2", "3", "4"]
    watcher.close()
