"""What the pieces of all ranks add up to, bit for bit what one process would say of the whole."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from contracts.boxes import Spreading, bits_of, spreadings, whole_of
from contracts.thread_ranks import ThreadRanks, on_ranks
from hypothesis import assume, given
from hypothesis import strategies as st

from sparsitywatch.ranks.reading import marks_of
from sparsitywatch.records import Replicas
from sparsitywatch.weights.snapshot import Sampler, Snapshot
from sparsitywatch.weights.spectrum import MagnitudeSpectrum


@pytest.mark.slow
@given(spreadings())
def test_the_spectrum_of_all_ranks_is_that_of_the_whole_model(made: Spreading) -> None:
    def act(ranks: ThreadRanks) -> MagnitudeSpectrum:
        own = MagnitudeSpectrum.of(made.of_rank(ranks.rank).tensors, num_threads=1)
        return made.reader(ranks).summed(own)

    expected = MagnitudeSpectrum.of(made.tensors, num_threads=1)
    for found in on_ranks(made.size, act):
        assert found == expected
        assert found.names == expected.names
        assert found.digest() == expected.digest()


@pytest.mark.slow
@given(spreadings(), st.sampled_from([None, 1, 5, 40]), st.integers(0, 9))
def test_the_sample_of_all_ranks_is_that_of_the_whole_model(
    made: Spreading, num_samples: int | None, seed: int
) -> None:
    sampler = Sampler(num_samples, seed)

    def act(ranks: ThreadRanks) -> dict[str, torch.Tensor]:
        return made.reader(ranks).sample(sampler, made.of_rank(ranks.rank))

    expected = sampler.take(made.whole)
    for found in on_ranks(made.size, act):
        assert list(found) == list(expected)
        for name, some in expected.items():
            assert (found[name].dtype, found[name].shape) == (some.dtype, some.shape)
            assert bits_of(found[name]) == bits_of(some)


# ------------------------------------------------------------------ whether replicas agree


def replicas_of(made: Spreading, held: list[Snapshot]) -> list[Replicas | None]:
    """What each rank says of the weights that they hold."""

    def act(ranks: ThreadRanks) -> Replicas | None:
        return made.reader(ranks).counted(held[ranks.rank])[1]

    return on_ranks(made.size, act)


def flipped(tensor: torch.Tensor, bit: int) -> None:
    words = tensor.reshape(-1).view(torch.uint8)
    words[bit // 8] ^= 1 << bit % 8


@pytest.mark.slow
@given(spreadings())
def test_replicas_agree_as_long_as_no_bit_has_flipped(made: Spreading) -> None:
    found = replicas_of(made, [made.of_rank(rank) for rank in range(made.size)])
    if made.shards(0).has_replicas:
        assert found == [Replicas(num_ranks=made.size)] * made.size
    else:
        assert found == [None] * made.size


@pytest.mark.slow
@given(spreadings(sizes=(2, 3, 4)), st.data())
def test_a_flipped_bit_is_found_and_its_rank_and_tensor_named(
    made: Spreading, data: st.DataObject
) -> None:
    held = [made.of_rank(rank) for rank in range(made.size)]
    name = data.draw(st.sampled_from([*made.tensors]))
    rank = data.draw(st.integers(0, made.size - 1))
    own = held[rank].tensors[name]
    assume(own.numel() > 0)
    flipped(own, data.draw(st.integers(0, 8 * own.nbytes - 1)))

    like = [r for r, p in enumerate(made.spread[name]) if p == made.spread[name][rank]]
    has_replicas = made.shards(0).has_replicas
    if len(like) == 1:  # nobody can know
        expected = Replicas(num_ranks=made.size) if has_replicas else None
    else:
        odd = like if len(like) == 2 else [rank]
        expected = Replicas(num_ranks=made.size, ranks=tuple(odd), tensors=(name,))
    assert replicas_of(made, held) == [expected] * made.size


def test_of_three_ranks_the_odd_ones_are_named_in_each_tensor() -> None:
    made = Spreading(
        3,
        {"a": torch.ones(3, 4), "b": torch.ones(5), "c": torch.ones(2, 2)},
        {"a": [whole_of((3, 4))] * 3, "b": [whole_of((5,))] * 3, "c": [whole_of((2, 2))] * 3},
    )
    held = [made.of_rank(rank) for rank in range(3)]
    flipped(held[2].tensors["a"], 31)  # a sign
    flipped(held[0].tensors["c"], 0)  # a last bit
    expected = Replicas(num_ranks=3, ranks=(0, 2), tensors=("a", "c"))
    assert replicas_of(made, held) == [expected] * 3
    for rank in range(3):  # three that differ from each other: none is most
        held[rank].tensors["b"].fill_(rank)
    assert replicas_of(made, held)[0] == dataclasses.replace(
        expected, ranks=(0, 1, 2), tensors=("a", "b", "c")
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_mark_of_a_tensor_depends_on_each_of_its_bits(dtype: torch.dtype) -> None:
    made = Spreading(1, {"w": torch.linspace(-1, 1, 5).to(dtype)}, {"w": [whole_of((5,))]})
    own = made.whole

    def mark() -> int:
        return marks_of(MagnitudeSpectrum.of(own.tensors, num_threads=1), own)["w"]

    marks = [mark()]
    for bit in range(8 * own.tensors["w"].nbytes):
        flipped(own.tensors["w"], bit)
        marks.append(mark())
        flipped(own.tensors["w"], bit)
    assert marks[0] not in marks[1:]
    assert mark() == marks[0]
    assert min(marks) > 0
