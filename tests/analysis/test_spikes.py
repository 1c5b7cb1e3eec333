"""Where a spike began: planted ones are found with their blocks, noise has next to none."""

from __future__ import annotations

import math

import numpy as np
import pytest

from sparsitywatch.analysis.spikes import Moves, find_spikes

_T, _B = 2000, 12
_BLOCKS = np.array([f"h.{block}" for block in range(_B)])
_FIRST = tuple(_BLOCKS[:4].tolist())


def planted(
    seed: int,
    *,
    at: tuple[int, ...] = (1213,),
    rise: float = 2.0,
    noise: str = "normal",
    lr: np.ndarray | float = 1.0,
) -> Moves:
    """A training whose updates rise in the first four blocks 15 steps before the loss does."""
    rng = np.random.default_rng(seed)
    draw = _NOISE[noise]
    loss = 2.5 + 3.0 * np.exp(-np.arange(_T) / 400.0) + 0.03 * draw(rng, (_T,))
    update = 1e-3 * np.exp(0.1 * draw(rng, (_T, _B))) * np.reshape(lr, (-1, 1))
    for step in at:
        loss[step:] += 1.5 * np.exp(-np.arange(_T - step) / 60.0)
        update[step - 15 : step + 40, :4] *= rise
        update[step - 4 : step + 40] *= rise  # then the others
    unknown, weight = np.full((_T, _B), np.nan), np.full((_T, _B), 0.02)
    steps = np.arange(40_001, 40_001 + _T)
    return Moves(
        blocks=_BLOCKS, steps=steps, loss=loss, update=update, weight=weight, gradient=unknown
    )


def waves(rng: np.random.Generator, size: tuple[int, ...], share: float = 0.9) -> np.ndarray:
    """Noise that is correlated over some tens of steps."""
    values = rng.standard_normal(size)
    for t in range(1, size[0]):
        values[t] = share * values[t - 1] + math.sqrt(1 - share**2) * values[t]
    return values


def bursts(rng: np.random.Generator, size: tuple[int, ...]) -> np.ndarray:
    """Noise whose size is a slow random walk, up to ten times the usual."""
    return 0.8 * np.exp(0.7 * waves(rng, size, 0.98)) * rng.standard_normal(size)


_NOISE = {
    "normal": lambda rng, size: rng.standard_normal(size),
    "heavy": lambda rng, size: rng.standard_t(3, size),
    "waves": waves,
    "bursts": bursts,
}


def onsets(moves: Moves, **options: int) -> list[tuple]:
    return [(e.onset_low, e.onset_high, e.layers) for e in find_spikes(moves, **options)]


@pytest.mark.parametrize(("noise", "most"), [("normal", 0), ("heavy", 1), ("waves", 1)])
def test_a_planted_spike_is_told_with_its_first_blocks_and_their_step(noise, most):
    wrong = []
    for seed in range(6):
        [(began, step, blocks)] = onsets(planted(seed, noise=noise))
        assert abs(step - 41_214) <= 1
        if blocks != _FIRST or abs(began - 41_199) > 3:
            wrong.append((seed, began, blocks))
    assert len(wrong) <= most, wrong


@pytest.mark.parametrize("noise", _NOISE)
def test_no_block_is_blamed_where_noise_alone_moves_them(noise):
    blamed = [
        (seed, event.reason)
        for seed in range(8)
        for event in find_spikes(planted(seed, rise=1.0, noise=noise))
        if event.layers
    ]
    assert not blamed


@pytest.mark.parametrize("noise", ["normal", "heavy", "waves"])
def test_noise_has_next_to_no_spikes(noise):
    found = [find_spikes(planted(seed, at=(), noise=noise)) for seed in range(10)]
    assert not any(found)


def test_its_words_say_where_it_began():
    [event] = find_spikes(planted(0))
    words = event.describe()
    assert words.startswith("Spike of the loss at step 41,21")
    assert "; it began in h.0, h.1, h.2 and 1 more at step 41,19" in words
    assert words.endswith("-fold")
    [event] = find_spikes(planted(1, rise=1.0))
    assert event.reason.endswith("; no block is known to have moved first")
    assert event.onset_low == event.onset_high


def test_a_rise_that_was_over_long_before_has_nothing_to_do_with_it():
    moves = planted(2, rise=1.0)
    moves.update[1213 - 50 : 1213 - 30, :2] *= 3.0
    assert find_spikes(moves)[0].layers == ()


def test_an_earlier_spike_does_not_hide_a_later_one():
    found = onsets(planted(3, at=(700, 1100, 1700)))
    assert [blocks for _, _, blocks in found] == [_FIRST] * 3
    found = onsets(planted(3, at=(300, 510)))
    assert [step for _, step, _ in found] == [40_301, 40_511]  # too little is known of the second


def test_without_a_loss_the_updates_own_jump_is_told():
    moves = planted(3, rise=4.0)
    moves.loss[:] = np.nan
    [event] = find_spikes(moves)
    assert event.series == "spike/updates"
    assert abs(event.onset_high - 41_199) <= 3
    assert event.layers == _FIRST


@pytest.mark.parametrize("row", [1500, _T - 1])
def test_a_loss_that_becomes_infinite_is_a_spike_at_once(row):
    moves = planted(4, at=())
    moves.loss[row:] = np.inf
    assert [event.onset_high for event in find_spikes(moves)] == [40_001 + row]


def test_a_spike_is_told_once_however_often_the_ring_is_read():
    moves = planted(5)
    [event] = find_spikes(moves)
    assert find_spikes(moves, after=event.onset_high) == []
    assert len(find_spikes(moves, after=event.onset_high - 1)) == 1


def test_a_falling_learning_rate_is_no_rise_a_frozen_block_no_fault_a_skipped_step_no_gap():
    moves = planted(6, lr=np.linspace(1.0, 0.1, _T))
    moves.update[:, 11] = 0.0  # frozen
    moves.update[1205] = np.nan
    [(_, _, blocks)] = onsets(moves)
    assert blocks == _FIRST


def test_a_loss_that_is_known_of_every_tenth_step_is_enough():
    moves = planted(7, at=(1603,))
    moves.loss[np.arange(_T) % 10 != 9] = np.nan
    [(began, step, blocks)] = onsets(moves)
    assert (step, blocks) == (41_610, _FIRST)
    assert abs(began - 41_589) <= 3


@pytest.mark.parametrize("num", [0, 1, 10, 60, 140])
def test_few_steps_have_no_spike(num):
    moves = vars(planted(7))
    short = {name: array[:num] for name, array in moves.items() if name != "blocks"}
    assert find_spikes(Moves(blocks=_BLOCKS, **short)) == []


def jumped(
    seed: int,
    row: int = 600,
    length: int = 1,
    *,
    times: float = 30.0,
    later: int = 0,
    block: int = 5,
) -> Moves:
    """Quiet steps, but one block's updates and gradients jump, and then the loss does."""
    rng = np.random.default_rng(seed)
    loss = 2.5 + 0.05 * rng.standard_normal(_T)
    update, gradient = np.exp(0.1 * rng.standard_normal((2, _T, _B)))
    for values in (update, gradient):
        values[row : row + length, block] *= times
    loss[row + later : row + later + length] += 2.0
    steps, weight = np.arange(1, _T + 1), np.full((_T, _B), 20.0)
    return Moves(_BLOCKS, steps, loss, update, weight, gradient)


@pytest.mark.part(3)
@pytest.mark.parametrize("length", [1, 2, 3, 20])
@pytest.mark.parametrize(("row", "later"), [(70, 1), (100, 0), (250, 1), (600, 15), (1970, 1)])
def test_a_jump_of_few_steps_names_its_block(length, row, later):
    for seed in range(3):
        [found] = onsets(jumped(seed, row, length, later=later))
        assert found == (row + 1, row + 1 + later, ("h.5",))


@pytest.mark.parametrize(("times", "is_found"), [(1.3, False), (3.0, True)])
def test_a_small_jump_ahead_of_a_spike_is_noise(times, is_found):
    for seed in range(5):
        [event] = find_spikes(jumped(seed, times=times, later=1))
        assert event.layers == (("h.5",) if is_found else ())


@pytest.mark.parametrize(("times", "is_found"), [(3.0, False), (6.0, True)])
def test_a_block_that_jumps_is_told_though_the_loss_does_not(times, is_found):
    for seed in range(5):
        moves = jumped(seed, times=times)
        moves.loss[:] = 2.5 + 0.05 * np.random.default_rng(seed).standard_normal(_T)
        found = onsets(moves)
        assert found == ([(601, 601, ("h.5",))] if is_found else [])


def test_where_all_blocks_jump_together_none_is_named():
    for seed in range(5):
        moves = jumped(seed, times=1.0)
        moves.update[600] *= 30.0
        moves.gradient[600] *= 30.0
        [event] = find_spikes(moves)
        assert event.layers == ()
        assert event.reason.endswith("; no block is known to have moved first")


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (35, "; its blocks are not yet judged: too few steps before it are known"),
        (43, "; no block is known to have moved first; slower rises are not yet judged: "),
        (259, "; no block is known to have moved first; slower rises are not yet judged: "),
        (260, "; no block is known to have moved first"),
    ],
)
def test_what_could_not_be_judged_is_said_to_be_so(row, words):
    moves = jumped(0, row, times=1.0)
    [event] = find_spikes(moves)
    assert event.onset_high == row + 1
    assert words in event.reason
    assert ("not yet judged" in event.reason) == ("not yet judged" in words)


def test_a_block_whose_numbers_are_none_is_named_several_at_once_are_not():
    for bad in (np.nan, np.inf):
        moves = jumped(1, times=1.0)
        moves.update[600, 7] = moves.weight[600:, 7] = bad
        [event] = find_spikes(moves)
        assert event.layers == ("h.7",)
        assert "beyond all numbers" in event.reason
        moves.update[600, 8] = bad
        [event] = find_spikes(moves)
        assert event.layers == ()
        assert "several blocks at once" in event.reason


def test_a_step_that_was_skipped_for_its_infinite_gradients_is_no_spike():
    moves = jumped(2, times=1.0)
    moves.loss[:] = 2.5
    moves.update[[500, 900]] = 0.0
    moves.gradient[[500, 900], 3] = np.inf
    assert find_spikes(moves) == []


@pytest.mark.parametrize("gap", [199, 200])
def test_jumps_within_200_steps_are_one(gap):
    moves = jumped(3, 600)
    moves.update[600 + gap, 2] *= 30.0
    found = [(600, ("h.5",))] + [(600 + gap, ("h.2",))] * (gap == 200)
    assert [(high - 1, layers) for _, high, layers in onsets(moves)] == found


def test_without_steps_or_blocks_there_is_none():
    none = np.zeros((0, 0))
    assert find_spikes(Moves(np.array([], str), np.zeros(0, int), np.zeros(0), *[none] * 3)) == []
