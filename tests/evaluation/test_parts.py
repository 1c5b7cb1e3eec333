"""Parts of the examples: every example once, in an order that is always the same."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from contracts.thread_ranks import ThreadRanks, on_ranks
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from sparsitywatch.proxy.proxy import Proxy

SHARES = (0.1, 0.25, 0.5, 1.0)


def number(model: nn.Module, batch: dict) -> torch.Tensor:
    """Each example's own number, so that every one is known again."""
    return batch["x"][:, 0].double() + batch["scale"][0]


def proxy_of(sizes: list[tuple[int, int]], **more: object) -> Proxy:
    """Batches of so many examples and columns, numbered from 0."""
    batches, first = [], 0
    for num, width in sizes:
        x = torch.arange(first, first + num).reshape(-1, 1).repeat(1, width)
        batches.append({"x": x, "y": (x.numpy() * 2, "text"), "scale": [0.0], **more})
        first += num
    return Proxy(batches, number)


sizes = st.lists(st.tuples(st.integers(8, 30), st.sampled_from([2, 3])), min_size=1, max_size=6)


@pytest.mark.slow
@given(sizes)
def test_every_example_is_in_one_part_and_stands_where_it_is_among_all(of_batches) -> None:
    proxy = proxy_of(of_batches)
    everything = proxy.evaluate(nn.Linear(1, 1))
    parts = proxy.subsets(SHARES)
    places = np.concatenate([part.places for part in parts])
    assert sorted(places) == list(range(len(everything)))
    for part in parts:
        assert part.proxy.evaluate(nn.Linear(1, 1)).tolist() == everything[part.places].tolist()
    widest = max(num for num, _ in of_batches)
    assert all(max(b.sizes()) <= widest for part in parts for b in part.proxy._batches)


def test_subsets_have_their_share_and_are_drawn_alike_each_time() -> None:
    one, other = (proxy_of([(40, 2), (40, 2), (20, 2)]).subsets(SHARES) for _ in range(2))
    assert [len(part.places) for part in one] == [10, 15, 25, 50]
    for a, b in zip(one, other, strict=True):
        assert a.places.tolist() == b.places.tolist()
    first = np.sort(one[0].places)
    assert first.tolist() != list(range(10))
    assert (np.diff(first) > 1).sum() >= 5  # spread over the batches


def test_batches_of_other_shapes_are_strata() -> None:
    parts = proxy_of([(40, 2), (60, 3)]).subsets(SHARES)
    assert [int((part.places < 40).sum()) for part in parts] == [4, 6, 10, 20]


def test_a_sample_is_fair() -> None:
    """Over many strata the examples of the first part are no earlier or later ones: 4 errors."""
    (part, *_) = proxy_of([(100, width) for width in range(1, 81)]).subsets(SHARES)
    within = part.places % 100
    assert len(within) == 800
    error = np.sqrt((100**2 - 1) / 12 / len(within) * (1 - 10 / 100))
    assert abs(within.mean() - 99 / 2) < 4.0 * error
    assert 0.8 < within.std() / np.sqrt((100**2 - 1) / 12) < 1.2


def test_what_cannot_be_told_apart_gives_no_subsets() -> None:
    assert proxy_of([(2, 2)]).subsets(SHARES) == ()
    assert proxy_of([(40, 2)], odd=torch.ones(3)).subsets(SHARES) == ()
    assert Proxy([{"x": torch.tensor(1.0)}], number).subsets(SHARES) == ()


def test_halves_give_the_same_subsets_in_smaller_batches() -> None:
    proxy = proxy_of([(40, 2), (40, 2)])
    before = [part.places.tolist() for part in proxy.subsets(SHARES)]
    assert proxy.halve()
    parts = proxy.subsets(SHARES)
    assert [sorted(part.places) for part in parts] == [sorted(places) for places in before]
    assert max(max(b.sizes()) for part in parts for b in part.proxy._batches) <= 20


@pytest.mark.parametrize("is_same", [True, False])
def test_ranks_evaluate_the_same_subsets_together(is_same: bool) -> None:
    def on_rank(ranks: ThreadRanks) -> list[tuple[list[int], list[float], list[float]]]:
        first = 0 if is_same else 1000 * ranks.rank
        own = Proxy(
            [{"x": torch.arange(first + i, first + i + 20)[:, None], "scale": [0.0]}
             for i in (0, 20, 40)],
            number,
        )  # fmt: skip
        model = nn.Linear(1, 1)
        shared = own.shared(ranks)
        everything = shared.evaluate(model)
        return [
            (part.places.tolist(), part.proxy.evaluate(model).tolist(),
             everything[part.places].tolist())
            for part in shared.subsets(SHARES)
        ]  # fmt: skip

    one, other = on_ranks(2, on_rank)
    assert one == other
    assert len(one) == len(SHARES)
    for _, values, expected in one:
        assert values == expected
    if is_same:
        alone = proxy_of([(20, 1), (20, 1), (20, 1)]).subsets(SHARES)
        assert [places for places, *_ in one] == [part.places.tolist() for part in alone]
    else:
        assert sorted(place for places, *_ in one for place in places) == list(range(120))


def test_ranks_of_which_one_cannot_divide_have_no_subsets() -> None:
    def on_rank(ranks: ThreadRanks) -> int:
        size = 2 if ranks.rank else 40
        own = Proxy([{"x": torch.arange(size)[:, None], "scale": [0.0]}], number)
        return len(own.shared(ranks).subsets(SHARES))

    assert on_ranks(2, on_rank) == [0, 0]


def test_a_proxy_of_other_batches_draws_anew(tmp_path) -> None:
    proxy, longer = proxy_of([(40, 2)]), proxy_of([(60, 2)])
    longer.keep(tmp_path / "kept.pt")
    assert proxy.subsets(SHARES)
    (first, *_) = proxy.with_kept(tmp_path / "kept.pt").subsets(SHARES)
    (expected, *_) = longer.subsets(SHARES)
    assert first.places.tolist() == expected.places.tolist()
