"""What a weight is worth to a pattern, and which share each tensor loses, so that a level goes.

Some scores ask what comes into each layer: the inputs of the dense model on the proxy's batches, at
every position that counts.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from sparsitywatch.errors import ConfigurationError, MeasurementError
from sparsitywatch.patterns.cuts import Combination, Grams, Inputs, Score, Scores, Shares, Weights
from sparsitywatch.patterns.selections import to_output_rows
from sparsitywatch.proxy.batches import Runnable
from sparsitywatch.proxy.proxy import Proxy
from sparsitywatch.records.run import block_of
from sparsitywatch.redact import printable
from sparsitywatch.weights.layout import clean_name


def input_axes(model: nn.Module, names: Sequence[str]) -> dict[str, int]:
    """The axis of each tensor that runs over inputs, where its layer says so."""
    layers = _layers(model, names)
    return {name: axis for name, (own, *_) in layers.items() if (axis := axis_of(own)) is not None}


def axis_of(layer: nn.Module) -> int | None:
    """The axis of a layer's weight that runs over inputs; None of a layer of another kind."""
    kinds = {kind.__name__ for kind in type(layer).__mro__}
    if "Conv1D" in kinds or "_ConvTransposeNd" in kinds:  # transformers' linear layer
        return 0
    return 1 if isinstance(layer, nn.Linear) or "_ConvNd" in kinds else None


def _layers(model: nn.Module, names: Sequence[str]) -> dict[str, list[nn.Module]]:
    """The module that holds each parameter, and others that hold it, tied, along the same axis."""
    modules = {clean_name(path): module for path, module in model.named_modules()}
    found = {}
    for name in names:
        path, _, attribute = name.rpartition(".")
        own = modules.get(path, model)
        memory = _memory_of(getattr(own, attribute, None))
        others = (
            module for module in modules.values()
            if module is not own and axis_of(module) == axis_of(own) is not None
            and memory == _memory_of(getattr(module, attribute, None))
        )  # fmt: skip
        found[name] = [own, *(others if memory else ())]
    return found


def _memory_of(tensor: Any) -> tuple[Any, ...]:
    """Where the weights of a tensor lie; empty if it is none."""
    if not isinstance(tensor, torch.Tensor) or tensor.is_meta or not tensor.numel():
        return ()
    return tensor.data_ptr(), tensor.dtype, tensor.device, tuple(tensor.shape), tensor.stride()


def _counted(name: str, inputs: torch.Tensor, masks: Sequence[torch.Tensor]) -> torch.Tensor:
    """Of what comes into a layer, [..., inputs], the vectors that count, [positions, inputs]."""
    # a mask is of the layers whose inputs have its positions: [N, L], [L, N], or in one row. Where
    # padding is gone already, or an example is one vector, all count
    shape, vectors = tuple(inputs.shape[:-1]), inputs.reshape(-1, inputs.shape[-1])
    if not masks:
        return vectors
    mask = matching(masks, shape)
    if mask is not None:
        return vectors[mask.to(vectors.device)]
    if any(len(vectors) in (len(mask), int(mask.sum())) for mask in masks):
        return vectors
    raise MeasurementError(
        f"Expected the inputs of {printable(name)!r} at the positions of a mask, "
        f"{', '.join(str(tuple(mask.shape)) for mask in masks)}, got {shape}. Say which of them "
        "count, by sw.Proxy(..., positions=function): a function of the batch that gives a mask "
        "for each shape, or None, if all count."
    )


def matching(masks: Sequence[torch.Tensor], shape: tuple[int, ...]) -> torch.Tensor | None:
    """The mask of positions that lie in this shape, in one row; None if there is none."""
    for mask in masks:
        for turned in (mask, mask.transpose(0, -1)):
            if shape in (tuple(turned.shape), (turned.numel(),)):
                return turned.reshape(-1)
    return None


class _Added:
    """What one input adds, which several layers may get, such as query, key and value."""

    def __init__(self, inputs: Any, version: int, added: torch.Tensor) -> None:
        self._inputs, self._version, self._added = inputs, version, added
        self._sums: list[tuple[torch.Tensor | None, torch.Tensor]] = []  # before and after

    def is_of(self, layer: nn.Module, inputs: Any) -> bool:
        """Whether a layer gets that very input."""
        return inputs is self._inputs and 0 <= self._version == _version_of(layer, inputs)

    def added_to(self, before: torch.Tensor | None) -> torch.Tensor:
        """A sum with this; layers whose sum was one tensor have one again."""
        for earlier, now in self._sums:
            if earlier is before:
                return now
        now = self._added if before is None else before + self._added
        self._sums.append((before, now))
        return now


def _version_of(layer: nn.Module, inputs: torch.Tensor) -> int:
    """How often an input was written to; -1 where that, or what a layer makes of it, is its own."""
    return -1 if isinstance(layer, nn.Conv2d) or inputs.is_inference() else inputs._version


def inputs_of(
    model: nn.Module,
    names: Sequence[str],
    run: Callable[[], object],
    *,
    products: bool = False,
    limit: float = math.inf,  # bytes of products, above which there are none
    masks: Sequence[torch.Tensor] = (),  # of positions, as they are when a layer runs
) -> Inputs:
    """What comes into the layers of some tensors while ``run`` runs the model."""
    # a MeasurementError where a layer is of another kind than it says, or nothing came into it
    num = dict.fromkeys(names, 0)
    squares: dict[str, torch.Tensor] = {}
    found: dict[str, torch.Tensor] = {}
    last = [_Added(None, -1, torch.empty(0))]

    def note(name: str, layer: nn.Module, args: Any) -> None:
        vectors = _counted(name, _vectors(layer, args[0]), masks)
        vectors = vectors.to(widest(vectors.device))
        num[name] += len(vectors)
        nonlocal last, products
        if not last[0].is_of(layer, args[0]):
            added = vectors.square().sum(0), *((vectors.T @ vectors,) if products else ())
            last = [_Added(args[0], _version_of(layer, args[0]), one) for one in added]
        is_more = products and name not in found
        for one, sums in zip(last, (squares, found), strict=False):
            sums[name] = one.added_to(sums.get(name))
        if is_more and sum({id(one): one.nbytes for one in found.values()}.values()) > limit:
            products = False
            found.clear()
            del last[1:]

    with contextlib.ExitStack() as stack, torch.no_grad():
        for name, layer in ((n, one) for n, held in _layers(model, names).items() for one in held):
            if axis_of(layer) is None or (isinstance(layer, nn.Conv2d) and layer.groups > 1):
                raise MeasurementError(
                    f"Expected {printable(name)!r} to be the weight of a linear layer or of an "
                    f"nn.Conv2d without groups, got one of {type(layer).__name__}. Leave it out of "
                    "`scope`, or choose a pattern that does not ask for inputs."
                )

            stack.callback(layer.register_forward_pre_hook(partial(note, name)).remove)
        run()
    missing = [name for name, count in num.items() if count == 0]
    if missing:
        raise MeasurementError(
            f"Expected inputs of every in-scope layer, got none of {printable(missing[0])!r}"
            f"{f' and {len(missing) - 1} others' if len(missing) > 1 else ''}: the value function "
            "does not call these modules. Leave them out of `scope`."
        )
    return Inputs(num, squares, found)


def inputs_on(
    proxy: Proxy, copied: Runnable, names: Sequence[str], pattern: Combination,
    again: Callable[[], Runnable] | None = None,  # the same model, as no forward has left it
) -> tuple[Inputs, np.ndarray]:  # fmt: skip
    """What a pattern needs of the inputs on a proxy's batches; and the values of the examples."""
    once_more, limit = again or (lambda: copied), round(pattern.memory_gb * 1e9)

    def passed(copied: Runnable, names: Sequence[str], **how: Any) -> tuple[Inputs, np.ndarray]:
        masks, values = list[torch.Tensor](), list[np.ndarray]()

        def value(model: nn.Module, batch: Any) -> torch.Tensor:
            masks[:] = proxy.counted(batch)
            return copied.value(model, batch)

        run = partial(proxy.values, copied.module, value)
        found = inputs_of(copied.module, names, lambda: values.append(run()), masks=masks, **how)
        return found, values[0]

    if pattern.needs_inputs != "products":
        return passed(copied, names)
    inputs, values = passed(copied, names, products=True, limit=limit)

    def gather(group: Sequence[str]) -> Mapping[str, torch.Tensor]:
        return passed(once_more(), group, products=True)[0].products

    groups = _groups(names, inputs.squares, limit)
    held = inputs.products if len(groups) == 1 else {}
    return replace(inputs, products=Grams(groups, gather, held)), values


def _groups(
    names: Sequence[str], squares: Mapping[str, torch.Tensor], limit: float
) -> list[list[str]]:
    """Layers in their order, in groups whose products take up no more bytes than the limit."""
    groups, held = list[list[str]](), dict[int, int]()
    for name in names:
        own = squares[name]  # one tensor of layers that share their products
        size = own.itemsize * len(own) ** 2
        if size > limit:
            raise MeasurementError(
                f"Expected `memory_gb` to hold the products of one layer at least, got "
                f"{limit / 1e9:g}: those of {printable(name)!r} take {size / 1e9:.4g} GB. Give the "
                "pattern so much, or leave the layer out of `scope`."
            )
        held[id(own)] = size
        if not groups or sum(held.values()) > limit:
            groups.append([])
            held = {id(own): size}
        groups[-1].append(name)
    return groups


def widest(device: torch.device) -> torch.dtype:
    """The dtype that sums of a device are in, so that their order makes no difference."""
    return torch.float32 if device.type == "mps" else torch.float64


def _vectors(layer: nn.Module, inputs: torch.Tensor) -> torch.Tensor:
    """What each output position is made of, [..., inputs]."""
    if not isinstance(layer, nn.Conv2d):
        return inputs.detach()
    padding: Any = layer.padding
    if padding == "same":
        padding = [d * (k - 1) // 2 for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
    elif padding == "valid":
        padding = 0
    patches = nn.functional.unfold(
        inputs.detach(), layer.kernel_size, layer.dilation, padding, layer.stride
    )
    return patches.transpose(1, 2)


# ------------------------------------------------------------------ what a weight is worth


def magnitude(_: Combination, __: Weights) -> Scores:
    """``|w|``."""
    return None


def scored(weights: Weights, name: str, scores: Callable[[str], Score]) -> torch.Tensor:
    """The scores of a whole tensor, [rows, inputs]."""
    rows = to_output_rows(weights.tensors[name], weights.input_axis(name))
    return scores(name)(rows, slice(None))


def _norms(weights: Weights, name: str) -> torch.Tensor:
    inputs = cast("Inputs", weights.inputs)  # ``Pattern.cuts`` has seen to it
    return inputs.squares[name].sqrt().float().to(weights.tensors[name].device)


def wanda(_: Combination, weights: Weights) -> Callable[[str], Score]:
    """``|w|`` times the norm of the input."""

    def score(name: str) -> Score:
        norms = _norms(weights, name)
        return lambda rows, _: rows.float().abs() * norms

    return score


def ria(pattern: Combination, weights: Weights) -> Callable[[str], Score]:
    """``|w|`` over the sums of its row and of its column, times a power of that norm."""

    @cache
    def sums(name: str) -> list[torch.Tensor]:
        """One over the sum of each column, [inputs], and of each row, [rows, 1]."""
        rows = to_output_rows(weights.tensors[name], weights.input_axis(name))
        sizes = rows.to(widest(rows.device)).abs()
        of_all = sizes.sum(0), sizes.sum(1, keepdim=True)
        # zeros alone are worth nothing
        return [torch.where(total > 0, 1.0 / total, 0.0).float() for total in of_all]

    def score(name: str) -> Score:
        by_column, by_row = sums(name)
        powers = _norms(weights, name) ** pattern.exponent
        return lambda rows, at: rows.float().abs() * (by_column + by_row[at]) * powers

    return score


def at_random(_: Combination, weights: Weights) -> Callable[[str], Score]:
    """Uniform numbers in [0, 1) by the seed and the tensor's name, in the order of its memory."""

    def score(name: str) -> Score:
        shape = weights.shapes[name]
        key = hashlib.blake2b(f"{weights.seed} {name}".encode(), digest_size=8).digest()
        generator = np.random.Generator(np.random.PCG64(int.from_bytes(key, "little")))
        drawn = torch.from_numpy(generator.random(math.prod(shape), dtype=np.float32))
        rows = to_output_rows(drawn.view(shape), weights.input_axis(name))
        return lambda given, at: rows[at].to(given.device)

    return score


# ------------------------------------------------------------------ which share each tensor loses


def uniform(_: Combination, weights: Weights, levels: Sequence[float]) -> Shares:
    """The same share of each."""
    return [dict.fromkeys(weights.spectrum.histograms, level) for level in levels]


def erk(_: Combination, weights: Weights, levels: Sequence[float]) -> Shares:
    """Erdős-Rényi kernels: densities in proportion to the sum of dimensions over their product."""
    shapes = weights.shapes
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    raw = {name: sum(shape) / max(sizes[name], 1) for name, shape in shapes.items()}

    def lost(level: float) -> dict[str, float]:
        # no density is above 1; what that leaves over is shared out among the others
        full: set[str] = set()  # tensors that keep everything
        while True:
            left = (1.0 - level) * sum(sizes.values()) - sum(sizes[name] for name in full)
            rest = sum(raw[name] * sizes[name] for name in shapes.keys() - full)
            scale = max(left, 0.0) / rest if rest else 0.0
            over = {name for name in shapes.keys() - full if scale * raw[name] > 1.0}
            if not over:
                return {name: 0.0 if name in full else 1.0 - scale * raw[name] for name in shapes}
            full |= over

    return [*map(lost, levels)]


def owl(pattern: Combination, weights: Weights, levels: Sequence[float]) -> Shares:
    """More of those whose block has fewer outliers."""
    # an outlier's ``|w|`` times the norm of its input is more than ``outlier`` times the mean of
    # its block; the densities of blocks are up to twice ``spread`` apart
    sizes = {name: own.num_weights for name, own in weights.spectrum.histograms.items()}
    blocks = {name: block_of(name) for name in sizes}
    sums = dict.fromkeys(blocks.values(), 0.0)
    nums = dict.fromkeys(blocks.values(), 0)
    score = wanda(pattern, weights)
    for name, block in blocks.items():
        worth = scored(weights, name, score)
        sums[block] += float(worth.sum(dtype=widest(worth.device)))
        nums[block] += sizes[name]
    counts = dict.fromkeys(nums, 0)
    for name, block in blocks.items():
        mean = sums[block] / max(nums[block], 1)
        counts[block] += int((scored(weights, name, score) > pattern.outlier * mean).sum())
    ratios = {block: counts[block] / max(nums[block], 1) for block in nums}
    low, high = min(ratios.values()), max(ratios.values())
    apart = 2.0 * pattern.spread / (high - low) if high > low else 0.0
    kept = {name: (ratios[block] - low) * apart for name, block in blocks.items()}
    return _shifted(kept, sizes, levels)


def by_name(pattern: Combination, weights: Weights, levels: Sequence[float]) -> Shares:
    """The sparsities that were given, elsewhere all of them higher or lower by the same."""
    sizes = {name: own.num_weights for name, own in weights.spectrum.histograms.items()}
    given = cast("Mapping[str, float]", pattern.allocation)
    if given.keys() != sizes.keys():
        missing, unknown = sorted(sizes.keys() - given.keys()), sorted(given.keys() - sizes.keys())
        came = f"none for {printable(missing[0])!r}" if missing else ""
        came += " and " if missing and unknown else ""
        came += f"one for {printable(unknown[0])!r}, which is not in scope" if unknown else ""
        raise ConfigurationError(
            f"Expected `allocation` with a sparsity for each of the {len(sizes)} tensors in scope, "
            f"got {came}. `sparsitywatch scope` prints their names."
        )
    return _shifted({name: 1.0 - given[name] for name in sizes}, sizes, levels)


def _shifted(
    kept: Mapping[str, float], sizes: Mapping[str, int], levels: Sequence[float]
) -> Shares:
    """What each tensor loses where all densities, in [0, 1], go up or down by the same."""
    density, size = np.array(list(kept.values())), np.array(list(sizes.values()), np.float64)
    # what is kept is a straight line between those shifts at which a tensor is empty or full
    shifts = np.unique(np.concatenate([-density, 1.0 - density]))
    of_all = (np.clip(density + shifts[:, None], 0.0, 1.0) * size).sum(1) / max(size.sum(), 1.0)
    found = []
    for level in levels:
        shift = np.interp(1.0 - level, of_all, shifts)
        lost = 1.0 - np.clip(density + shift, 0.0, 1.0)
        found.append(dict(zip(kept, lost.tolist(), strict=True)))
    return found
