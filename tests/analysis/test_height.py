"""Levels of near-zero weights: what needs no quiet stretch, of all weights and of one tensor."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import NormalDist

import numpy as np
import pytest
import torch
from contracts import fake_run
from contracts.made_records import counted, made_record
from contracts.risen import MIDDLE, NUM, SHAPES, SIZES, doubled, run_of, told, weights
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import sparsitywatch as sw
from sparsitywatch.analysis.height import Heights, dense_share, high_from
from sparsitywatch.analysis.run import Run
from sparsitywatch.analysis.verdict import verdict
from sparsitywatch.pipeline.pipeline import History
from sparsitywatch.records import Began, Event, LayerShare, Record
from sparsitywatch.settings import Settings, default_detectors

#: Kinds that say that weights came to be near zero.
RISES = ("abrupt", "steady", "level", "sparser", "sparse")
EVERYWHERE, ONE, SMALL = tuple(SIZES), ("third.weight",), ("small.weight",)


def rises(events: list[Event]) -> list[Event]:
    return [e for e in events if e.kind in RISES and e.direction != "down"]


# ------------------------------------------------------------------ what is high


@given(limit=st.floats(0.0, 5.0), rms=st.floats(1e-3, 10.0))
def test_a_dense_tensor_has_what_a_normal_distribution_has(limit: float, rms: float) -> None:
    own = NormalDist(0.0, rms)
    assert dense_share(limit, rms) == pytest.approx(own.cdf(limit) - own.cdf(-limit), abs=1e-9)


def test_a_tensor_of_zeros_is_all_near_zero_and_what_is_not_known_is_not() -> None:
    assert dense_share(0.1, 0.0) == 1.0
    assert dense_share(0.0, 0.0) == dense_share(math.nan, math.nan) == 0.0


@given(
    began=st.floats(0.0, 1.0), dense=st.floats(0.0, 1.0), times=st.sampled_from([1.5, 2.0]),
    size=st.integers(1, 10**9),
)  # fmt: skip
def test_what_is_high_is_above_both(began: float, dense: float, times: float, size: int) -> None:
    (high,) = high_from(np.array([began]), np.array([dense]), times, np.array([float(size)]))
    assert high >= max(began, dense) - 1e-12
    if size == 10**9 and began <= 1 / 3 and dense == 0.0:
        assert high == pytest.approx(2.0 * began, abs=1e-6)
    if began >= 1 / 3:  # half of the weights that were left
        assert high >= (1.0 + began) / 2.0 - 1e-12


def judged(shares: list[float], *, rule: str = "initial_0.1", size: int = 10**6) -> list[Event]:
    """What is told of a run of one tensor whose first share is that of its beginning."""
    history = History(default_detectors(Settings(near_zero=[rule])))
    history.initial_rms = {"w": 1.0}
    history.began = Began(step=0, near_zero={rule: {"w": shares[0]}})
    found = []
    for i, share in enumerate(shares[1:], start=1):
        found += history.add(one_tensor(10 * i, share, rule, size)).new
    return found


def one_tensor(step: int, share: float, rule: str, size: int) -> Record:
    layer = LayerShare(name="w", num_weights=size, rms=1.0, near_zero={rule: share})
    return made_record(step, {rule: share}, layers=(layer,), num_weights=size)


@pytest.mark.parametrize(
    ("began", "share", "rule", "is_told"),
    [
        (0.08, 0.158, "initial_0.1", False),  # twice what it began with
        (0.08, 0.162, "initial_0.1", True),
        (0.05, 0.118, "initial_0.1", False),  # 1.5 times what a dense tensor has, .0797
        (0.05, 0.121, "initial_0.1", True),
        (0.06, 0.158, "rms_0.1", False),  # a rule that moves with the weights: twice that
        (0.06, 0.161, "rms_0.1", True),
        (0.8, 0.895, "initial_0.1", False),  # half of the weights that were left
        (0.8, 0.905, "initial_0.1", True),
        (0.0, 0.009, "zero", False),  # a point of all weights
        (0.0, 0.011, "zero", True),
    ],
)
def test_a_share_is_high_from_there_on(
    began: float, share: float, rule: str, *, is_told: bool
) -> None:
    found = [event for event in judged([began, share, share], rule=rule) if event.kind == "level"]
    assert bool(found) == is_told
    for event in found:
        assert (event.baseline, event.value, event.onset_low) == (began, share, 0)


@pytest.mark.parametrize(("share", "is_told"), [(0.147, False), (0.154, True)])
def test_of_few_weights_more_is_asked(share: float, *, is_told: bool) -> None:
    """.0797 of 300 are 24, give or take 4.7: 45 are more than 4.5 times that above."""
    found = judged([0.05, share, share], size=300)
    assert any(event.kind == "level" for event in found) == is_told


def test_one_snapshot_is_no_level() -> None:
    assert not rises(judged([0.08, 0.5, 0.08, 0.5, 0.08, 0.08]))


# ------------------------------------------------------------------ near zero times three


def _late(shape: str, begin: int, where: tuple[str, ...], *, is_uniform: bool) -> int:
    """Snapshots from when it doubled until it was told; negative: before."""
    records = list(run_of(shape, begin, where, is_uniform=is_uniform))
    events, _ = told(records)
    steps = [record.step for record in records]
    seen = [steps.index(event.detected_step) for event in rises(events)]
    assert seen, (shape, begin, where)
    assert min(seen) > begin
    return min(seen) - doubled(records, where[0] if len(where) == 1 else "")


CASES = list(itertools.product(SHAPES, (0, MIDDLE), (EVERYWHERE, ONE)))


@pytest.mark.parametrize(("shape", "begin", "where"), CASES[::5])
def test_what_triples_is_told(shape: str, begin: int, where: tuple[str, ...]) -> None:
    assert _late(shape, begin, where, is_uniform=False) <= 10


@pytest.mark.whole
@pytest.mark.parametrize("is_uniform", [False, True])
@pytest.mark.parametrize(("shape", "begin", "where"), CASES)
def test_what_triples_is_told_in_every_way(
    shape: str, begin: int, where: tuple[str, ...], *, is_uniform: bool
) -> None:
    assert _late(shape, begin, where, is_uniform=is_uniform) <= 10


@pytest.mark.parametrize("begin", [0, MIDDLE])
def test_nine_tenths_of_a_tensor_of_two_hundredths_is_told(begin: int) -> None:
    """The rules pool all tensors: they see 1.8 points at most, however it comes about."""
    share = 0.9 / 0.08
    records = list(run_of("line", begin, SMALL, times=share))
    events, _ = told(records)
    (event,) = [event for event in events if event.kind == "sparse"]
    assert event.layers == SMALL
    assert event.severity == "look"
    assert "small.weight rose from" in event.describe()
    (sparser,) = [event for event in events if event.kind == "sparser"]
    assert sparser.detected_step < event.detected_step
    assert verdict(records[1:], events).state == "look"


def test_a_level_says_where_and_between_which_steps() -> None:
    records = list(run_of("line", MIDDLE, ONE, times=8.0))
    history = History(default_detectors(Settings()))
    history.initial_rms = {layer.name: layer.rms for layer in records[0].layers}
    judge = Heights(Began.of(records[0]), history.initial_rms, Settings().near_zero)
    seen = [e for i, r in enumerate(records) for e in judge.events(r, records[:i], ())]
    event = next(event for event in seen if event.kind == "level")
    assert event.onset_low <= 25 * MIDDLE <= event.onset_high
    assert event.value >= 2.0 * event.baseline


def test_a_scale_that_shrinks_by_half_is_told_as_such() -> None:
    first = weights({})
    initial = {n: float(np.sqrt(np.mean(w**2))) for n, w in first.items()}
    records = [
        counted(25 * i, {n: w * math.exp(-0.03 * i) for n, w in first.items()}, initial)
        for i in range(NUM)
    ]
    event = rises(told(records)[0])[0]
    assert event.change == "scale"
    assert event.detected_step <= 25 * 34  # at exp(-0.03 * 23) half of it is left


def of_zeros(step: int, share: float) -> Record:
    """A tenth of all weights is of a tensor of which so many are zero; no other is."""
    layers = tuple(
        LayerShare(name=name, num_weights=size, rms=1.0, near_zero={"zero": own})
        for name, size, own in (("small", 10_000, share), ("rest", 90_000, 0.0))
    )
    return made_record(step, {"zero": 0.1 * share}, layers=layers, num_weights=100_000)


@pytest.mark.parametrize(
    ("shares", "is_told"),
    [
        ((0.02, 0.02), True),
        ((0.02, 0.028), True),  # eight snapshots on .92 % of all weights, where 1 % are an event
        ((0.02, 0.030), False),
        ((0.05, 0.06, 0.06), True),  # it waited, and the rise has ended
        ((0.06, 0.05), True),
    ],
)
def test_a_note_on_tensors_waits_where_all_weights_are_soon_an_event(
    shares: tuple[float, ...], is_told: bool
) -> None:
    records = [of_zeros(10 * i, share) for i, share in enumerate((0.0, *shares))]
    *earlier, now = records
    # a watch that goes on after it was killed knows the layers of one record
    resumed = [replace(record, layers=()) for record in earlier[:-1]] + earlier[-1:]
    for known in (earlier, resumed):
        judge = Heights(Began.of(records[0]), {}, ["zero"])
        found = judge.events(now, known, ())
        assert [(e.kind, e.layers) for e in found] == [("sparser", ("small",))] * is_told


def test_a_note_on_tensors_is_one_that_is_revised_as_more_become_sparser() -> None:
    def record(step: int, *own: float) -> Record:
        layers = tuple(
            LayerShare(name=f"{place}", num_weights=size, rms=1.0, near_zero={"zero": share})
            for place, (size, share) in enumerate(((1000, own[0]), (1000, own[1]), (10**6, 0.0)))
        )
        return made_record(step, {"zero": sum(own) / 1002}, layers=layers, num_weights=1_002_000)

    history = History(default_detectors(Settings(near_zero=["zero"])))
    shares = [(0.0, 0.0), (0.2, 0.0), (0.2, 0.0), (0.2, 0.2), (0.2, 0.2), (0.2, 0.2)]
    told = [history.add(record(10 * i, *own)) for i, own in enumerate(shares)]
    assert [(len(one.new), len(one.revised)) for one in told] == [
        (0, 0), (0, 0), (1, 0), (0, 0), (0, 1), (0, 0)
    ]  # fmt: skip
    (event,) = history.events
    assert (event.kind, event.value, set(event.layers)) == ("sparser", 2.0, {"0", "1"})
    assert (event.detected_step, event.revised_step, event.course) == (20, 40, "settled")


# ------------------------------------------------------------------ healthy, and sparse before


@pytest.mark.parametrize("is_uniform", [False, True])
def test_tails_that_a_training_grows_are_no_level(*, is_uniform: bool) -> None:
    """Heavier tails leave more small weights, as GELU under strong decay: 1.6 times as many."""
    first = weights({}, is_uniform=is_uniform)
    initial = {n: float(np.sqrt(np.mean(w**2))) for n, w in first.items()}
    records = []
    for i in range(NUM):
        power = 1.0 + 0.2 * i / NUM
        own = {n: np.sign(w) * (np.abs(w) / initial[n]) ** power for n, w in first.items()}
        own = {n: w * initial[n] / np.sqrt(np.mean(w**2)) for n, w in own.items()}
        records.append(counted(25 * i, own, initial))
    kinds = {event.kind for event in told(records)[0]}
    assert not kinds & {"level", "sparse"}


def test_what_is_sparse_from_the_start_is_a_note_once_and_no_more() -> None:
    pruned = {n: w * (np.arange(w.size) % 5 == 0) for n, w in weights({}).items()}
    initial = {n: float(np.sqrt(np.mean(w**2))) for n, w in pruned.items()}
    records = [counted(25 * i, pruned, initial) for i in range(20)]
    events, history = told(records)
    (event,) = events
    assert (event.kind, event.severity, event.value) == ("began_sparse", "note", 4.0)
    assert "% of all weights were near zero" in event.describe()
    assert verdict(history.records, events).state == "healthy"


def test_weights_that_begin_at_zero_and_leave_it_are_well() -> None:
    """As one half of an adapter."""
    draw = np.random.default_rng(0)
    own = {"lora_A": draw.normal(size=400), "lora_B": np.zeros(400)}
    initial = {n: float(np.sqrt(np.mean(w**2))) for n, w in own.items()}
    records = [
        counted(25 * i, {**own, "lora_B": 1e-3 * min(i, 1) * draw.standard_t(3, 400)}, initial)
        for i in range(20)
    ]
    assert told(records)[0] == []


# ------------------------------------------------------------------ logs


def _net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(24, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 4)
    )


MAKERS: dict[str, Callable] = {
    "AdamW": lambda p: torch.optim.AdamW(p, lr=1e-3),
    "Adam": lambda p: torch.optim.Adam(p, lr=1e-3, weight_decay=0.1),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=1e-3, weight_decay=0.1),
}


def _train(logdir: Path | None, maker: str, steps: int, *, penalty: float = 0.0, **options):
    model = _net()
    optimizer = MAKERS[maker](model.parameters())
    draw = torch.Generator().manual_seed(1)
    target = torch.randn(24, 4, generator=draw)
    options = {"every": 5, "on_event": (), "max_overhead": None, "scope": "layers", **options}
    saved = {}
    with sw.watch(model, optimizer, logdir=logdir, strict=True, background=False,
                  **options) as watcher:  # fmt: skip
        for step in range(1, steps + 1):
            inputs = torch.randn(32, 24, generator=draw)
            optimizer.zero_grad()
            loss = (model(inputs) - (inputs @ target).tanh()).square().mean()
            loss = loss + penalty * sum(p.abs().sum() for p in model.parameters() if p.dim() > 1)
            loss.backward()
            optimizer.step()
            if step % 5 == 0:
                saved[step] = {n: p.detach().clone() for n, p in model.state_dict().items()}
    return watcher, saved


@pytest.mark.part(2)
@pytest.mark.parametrize(("maker", "penalty"), [("AdamW", 0.01), ("Adam", 0.0), ("RMSprop", 0.0)])
def test_live_replay_and_emergence_tell_of_one_rise(
    maker: str, penalty: float, tmp_path: Path
) -> None:
    watcher, saved = _train(tmp_path / "live", maker, 100, penalty=penalty)
    (tmp_path / "saved").mkdir()
    for step, state in saved.items():
        torch.save(state, tmp_path / "saved" / f"checkpoint-{step}.pt")
    replayed = sw.replay(
        tmp_path / "saved" / "checkpoint-*.pt", logdir=tmp_path / "again", scope="layers",
        on_event=[],
    )  # fmt: skip
    for events, log in ((watcher.events, "live"), (replayed.events, "again")):
        assert rises(list(events)), log
        run = sw.load(tmp_path / log)
        assert run.verdict.state == "look"
        first = run.emergence().conclusions[0]
        assert "abrupt turn to sparse, the largest" in first or "The watch told of" in first
        if maker != "AdamW":  # a decay that is divided by the gradient's size is no law
            assert not any(event.explained_by_decay for event in events)
            assert "weight decay explains" not in run.verdict.cause


def test_a_resumed_watch_knows_what_the_run_began_with(tmp_path: Path) -> None:
    _train(tmp_path, "AdamW", 10)
    began = sw.load(tmp_path).info.began
    assert began.step == 0
    draw = torch.Generator().manual_seed(0)
    model = _net()
    with torch.no_grad():  # half of it is gone while nobody watched
        for p in model.parameters():
            p *= torch.rand(p.shape, generator=draw) < 0.5
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    options = {"scope": "layers", "on_event": (), "background": False, "max_overhead": None}
    with sw.watch(
        model, optimizer, logdir=tmp_path, every=1, initial_step=10, strict=True, **options
    ) as watcher:
        for _ in range(3):
            optimizer.step()
    assert sw.load(tmp_path).info.began == began
    assert [event.kind for event in watcher.events if event.kind == "level"]


def test_a_state_keeps_what_the_run_began_with() -> None:
    records = list(run_of("line", 0, EVERYWHERE))
    _, history = told(records[:4])
    later = History(default_detectors(Settings()))
    later.load_state_dict(history.state_dict())
    assert later.began == history.began == Began.of(records[0])


def test_detectors_of_nothing_near_zero_judge_no_level() -> None:
    records = list(run_of("jump", 0, EVERYWHERE))
    history = History({})
    history.began = Began.of(records[0])
    assert not [e for record in records[1:] for e in history.add(record).new]


def test_a_turn_that_no_rule_shows_is_told_apart() -> None:
    """Weights far below every rule's threshold come to be tiny: only small thresholds see them."""
    draw = np.random.default_rng(0)
    own = draw.normal(size=20_000) / 50
    small = np.abs(own) < 1e-3
    records, spectra, initial = [], {}, {"w": float(np.sqrt(np.mean(own**2)))}
    for i in range(40):
        now = np.where(small & (i >= 25), own * 1e-2, own) * (1.0 + 1e-3 * draw.normal())
        records.append(counted(25 * i, {"w": now}, initial))
        spectra[25 * i] = sw.MagnitudeSpectrum.of({"w": torch.tensor(now)}).to_arrays()
    events, _ = told(records)
    assert not rises(events)
    run = Run(
        records, events, replace(fake_run.run_info(), initial_rms=initial), spectra.__getitem__
    )
    found = run.emergence()
    assert {turn.kind for turn in found.turns if turn.direction == "up"} <= {"by itself", "gradual"}
    assert found.conclusions[0].startswith("No threshold makes an abrupt turn to sparse. By ")
    assert found.conclusions[0].endswith("no rule of the watch shows that.")
