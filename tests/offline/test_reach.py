"""What an audit and a replay find of forty faults in files, and in twelve kinds that are right.

The thresholds were chosen on seeds below 200; the tests use others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path

import pytest
import torch
from contracts.families import whole
from contracts.once import once
from contracts.reach import CLEAN, FAULTS, MODELS, STEPS, Fault, Given, given, plant, train, write

import sparsitywatch as sw

SEED = 310
Trained = Callable[[str], Given]


def pairs(rows: Iterable[tuple[object, str]], every: int) -> pytest.MarkDecorator:
    """Each row with each model; all but each so many-th wait for ``--whole``."""
    both = [(row, name, model) for row, name in rows for model in MODELS]
    return pytest.mark.parametrize(("one", "model"), [
        pytest.param(row, model, id=f"{name}, {model}", marks=whole if at % every else ())
        for at, (row, name, model) in enumerate(both)
    ])  # fmt: skip


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Each model is trained once, whichever process of tests asks first."""

    @cache
    def weights(model: str) -> Given:
        def make(at: Path) -> None:
            made = given(model, SEED)
            torch.save([made.own, made.other, made.back], at / "weights.pt")

        return Given(*torch.load(once(tmp_path_factory, f"reach-{model}", make) / "weights.pt"))

    return weights


@pairs([(fault, fault.name) for fault in FAULTS], 26)
def test_an_audit_finds_a_fault_and_names_its_checkpoints(
    one: Fault, model: str, trained: Trained, tmp_path: Path
) -> None:
    plant(tmp_path, one, trained(model))
    findings = sw.audit(str(tmp_path)).findings
    found = {p for p, step in enumerate(STEPS) if any(row.covers(step) for row in findings)}
    assert found == set(one.places), findings
    full = sw.audit(str(tmp_path), full=True).findings
    assert {row.step for row in full} == {row.step for row in findings}


#: Faults that the bytes of a checkpoint show by themselves, and all weights are numbers.
OF_CONTENT = FAULTS[: next(at for at, one in enumerate(FAULTS) if one.name.startswith("NaN"))]


@pairs([(fault, fault.name) for fault in OF_CONTENT], 13)
def test_a_replay_tells_odd_contents_at_their_steps(
    one: Fault, model: str, trained: Trained, tmp_path: Path
) -> None:
    plant(tmp_path, one, trained(model))
    told = [
        e
        for e in sw.replay(str(tmp_path), logdir=None, scope="matrices").events
        if e.kind == "contents"
    ]
    at = {(e.onset_low, e.onset_high) for e in told}
    assert at == {(STEPS[one.places[0]], STEPS[one.places[-1]])}, told


@pairs([(how, name) for name, how in CLEAN.items()], 26)
def test_of_a_clean_series_nothing_is_told(one: object, model: str, tmp_path: Path) -> None:
    write(tmp_path, train(model, SEED, one))
    assert sw.audit(str(tmp_path)).findings == ()
    kinds = {event.kind for event in sw.replay(str(tmp_path), logdir=None).events}
    assert kinds.isdisjoint({"contents", "another_run", "unlike", "returned", "not_finite"})
