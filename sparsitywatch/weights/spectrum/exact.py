"""A second pass over the weights, inside the boundary bins only: thresholds as a sort's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from sparsitywatch.errors import ConfigurationError
from sparsitywatch.weights.spectrum.bins import STORAGES, Storage
from sparsitywatch.weights.spectrum.distribution import Distribution
from sparsitywatch.weights.spectrum.histogram import Histogram
from sparsitywatch.weights.spectrum.keys import CHUNK, chunks, raw_keys, raw_keys_on_device
from sparsitywatch.weights.spectrum.reading import MAX_PIECE, map_pieces, pieces, words_of

__all__ = ["exact_thresholds"]


def exact_thresholds(
    distribution: Distribution,
    histograms: Mapping[str, Histogram],
    tensors: Mapping[str, torch.Tensor],
    ranks: Sequence[int],
) -> list[float]:
    """The ``rank``-th smallest magnitude for each rank, as a sort of all weights gives it.

    Args:
        distribution: of ``histograms``.
        histograms: of the tensors, by name.
        tensors: the very tensors that were counted, by name.
        ranks: each from 1 to the number of finite weights.

    Raises:
        ConfigurationError: ``tensors`` are not the ones that were counted.
    """
    _check_same(histograms, tensors)
    magnitudes, cumulative = distribution.steps
    step_of = [distribution.step_reaching(rank) for rank in ranks]
    steps = sorted(set(step_of))
    if distribution.is_exact:
        return [float(magnitudes[step]) for step in step_of]
    found = _magnitudes_in_steps(tensors, magnitudes, steps)
    for step in steps:
        expected = int(cumulative[step] - (cumulative[step - 1] if step else 0))
        if len(found[step]) != expected:
            raise ConfigurationError(
                f"Expected `exact` to be the weights that were counted, with {expected} "
                f"magnitudes up to {magnitudes[step]:.6g} in the boundary bin, got "
                f"{len(found[step])}. Take the spectrum and its exact thresholds of the same "
                "weights, without an update between."
            )
        found[step].sort()
    return [
        float(found[step][rank - 1 - (int(cumulative[step - 1]) if step else 0)])
        for rank, step in zip(ranks, step_of, strict=True)
    ]


def _check_same(histograms: Mapping[str, Histogram], tensors: Mapping[str, torch.Tensor]) -> None:
    if set(histograms) != set(tensors):
        differing = sorted(set(histograms) ^ set(tensors))
        raise ConfigurationError(
            f"Expected `exact` to hold the tensors that were counted, got other names: "
            f"{differing[:5]} are in one only. Pass the very mapping given to `of`."
        )
    for name, histogram in histograms.items():
        came = tensors[name].dtype, tensors[name].numel()
        if came != (histogram.dtype, histogram.num_weights):
            raise ConfigurationError(
                f"Expected `exact[{name!r}]` of {histogram.num_weights} weights of "
                f"{histogram.dtype}, as counted, got {came[1]} of {came[0]}."
            )


def _magnitudes_in_steps(
    tensors: Mapping[str, torch.Tensor], magnitudes: np.ndarray, steps: Sequence[int]
) -> dict[int, np.ndarray]:
    """Magnitudes of the weights that make up each of ``steps``, unsorted."""
    words = {name: words_of(name, tensor) for name, tensor in tensors.items()}
    dtypes = {name: tensor.dtype for name, tensor in tensors.items()}
    groups = {
        dtype: _group_of_raw(STORAGES[dtype], magnitudes, steps) for dtype in set(dtypes.values())
    }
    on_cpu = {name: w for name, w in words.items() if w.device.type == "cpu"}
    parts = [
        part
        for _, part in map_pieces(
            lambda piece, storage: _select(piece, storage, groups[storage.dtype]),
            on_cpu,
            dtypes,
            None,
        )
    ]
    for name in words.keys() - on_cpu.keys():
        storage = STORAGES[dtypes[name]]
        parts += [
            _select_on_device(piece, storage, groups[storage.dtype])
            for piece in pieces(words[name], MAX_PIECE)
        ]
    return {
        step: np.concatenate([values[group == i] for values, group in parts])
        for i, step in enumerate(steps)
    }


def _group_of_raw(storage: Storage, magnitudes: np.ndarray, steps: Sequence[int]) -> np.ndarray:
    """Position in ``steps`` of each raw key, int16; -1 where its weights are not wanted."""
    groups = np.full(storage.bins.inf_key + 2, -1, np.int16)
    ends = storage.bins.edges.searchsorted(magnitudes, side="right")
    for i, step in enumerate(steps):
        groups[(ends[step - 1] if step else 0) : ends[step]] = i
    group_of_raw: np.ndarray = groups[storage.key_of_raw]
    return group_of_raw


def _select(
    piece: np.ndarray, storage: Storage, group_of_raw: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(|w|, group) of the finite weights of a piece that are in a group."""
    keys = np.empty(min(piece.size, CHUNK), np.uint64 if storage.num_bytes == 8 else np.uint32)
    parts = []
    for chunk in chunks(piece):
        raw_keys(chunk, storage, keys[: len(chunk)])
        group = group_of_raw[keys[: len(chunk)]]
        wanted = np.flatnonzero(group >= 0)
        parts.append(_finite(storage.magnitudes(chunk[wanted]), group[wanted]))
    values, groups = zip(*parts, strict=True)
    return np.concatenate(values), np.concatenate(groups)


def _select_on_device(
    piece: torch.Tensor, storage: Storage, group_of_raw: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    flat = piece.reshape(-1)
    group = torch.from_numpy(group_of_raw).to(flat.device)[raw_keys_on_device(flat, storage).long()]
    wanted = (group >= 0).nonzero().squeeze(1)
    words = flat[wanted].cpu().numpy().view(f"u{storage.num_bytes}")
    return _finite(storage.magnitudes(words), group[wanted].cpu().numpy())


def _finite(values: np.ndarray, group: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    # the last bin of float32 and float64 also holds infinities
    is_finite = np.isfinite(values)
    return values[is_finite], group[is_finite]
