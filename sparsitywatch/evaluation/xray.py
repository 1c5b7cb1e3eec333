"""What the dense forward shows beside the value: dead units, signs, massive outputs, experts.

Hooks on the layers of the copy that is evaluated, on its dense pass alone, count what comes in and
look for the largest number that comes out. They change nothing, and are gone after the pass. A unit
is an input of a layer: a ReLU, a gated product and a latent are all seen where they are read.
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Any, TypeGuard

import numpy as np
import torch
from torch import nn

from sparsitywatch.errors import is_out_of_memory
from sparsitywatch.patterns.criteria import axis_of, matching
from sparsitywatch.proxy.batches import Runnable
from sparsitywatch.proxy.proxy import Proxy
from sparsitywatch.records.xray import XRay, XRayLayers
from sparsitywatch.redact import redacted_error
from sparsitywatch.weights.layout import clean_name

#: A unit is dead where it stays below this share of the root mean square of its layer's inputs.
DEAD = 1e-3
#: An output is massive from so many times the median of its position on (Sun et al. 2024,
#: arXiv 2402.17762), where the layer has so many outputs at least. The weight that makes this share
#: of it by itself is a super weight (Yu et al. 2024, arXiv 2411.07191).
MASSIVE, _FEWEST_OUTPUTS, _MOST = 1000.0, 16, 0.5
#: Signs are counted at so many positions of a batch at least, drawn at random from a fixed seed.
_POSITIONS = 256
#: Of a convolution's inputs so many that lie side by side, as a line of the cache has them.
_RUN = 8
#: A unit that exceeds this share of the rms at one of them lives; else all positions are looked at.
_QUIET = 0.1
#: Names of tensors that are kept.
_MAX_NAMES = 100
#: They run without their parts, and in another way where these have hooks: the bits would differ.
_FAST_PATHS = (nn.TransformerEncoderLayer, nn.MultiheadAttention)
#: Of a call: positions where signs are counted, norm and least of the inputs there; and of its peak
#: the largest output, how many times the median of its position it is, row and column of the weight
#: that makes most of it, and its share of it.
_Call = tuple[int, torch.Tensor, torch.Tensor, torch.Tensor | None]
#: How many positions a sample has, which positions count, and the index of the sample.
_Places = tuple[int, torch.Tensor | None, tuple[Any, ...]]
_LAST_NUMBER = re.compile(r"\.\d+\.(?!.*\.\d+\.)")
#: A list of experts, and the number of one in it.
_EXPERT = re.compile(r"(.*expert[^.]*)\.(\d+)\.")


@dataclass(eq=False)
class _Layer:
    """One layer, and what was seen of it so far."""

    module: nn.Module
    axis: int  # of its weight, along the inputs
    channels: int  # axis of its units in its inputs, from the end
    has_outputs: bool  # that are looked at
    positive: torch.Tensor  # positions at which a unit is above zero, int64 [units]
    largest: torch.Tensor  # magnitude of each unit, float32 [units]
    least: float = 0.0  # of these; what a unit proves for one batch it proves for others
    calls: list[tuple[int, _Call]] = field(default_factory=list)  # by place of its batch
    load: np.ndarray = field(default_factory=lambda: np.zeros(1, np.int64))  # positions that count


class Lens:
    """Looks at the layers of a model during one pass over a proxy's batches."""

    def __init__(self, proxy: Proxy, copied: Runnable, in_scope: list[str], reason: str) -> None:
        self._proxy, self._copied, self._in_scope = proxy, copied, in_scope
        self._batch: Any = None  # that runs
        self._chosen: dict[Any, _Places] = {}  # by shape; of one batch where it has masks
        self._places = iter(proxy.places)
        self._masks: list[torch.Tensor] | None = None  # of it; None: not asked for yet
        self._place: int | None = None  # of the batch that runs; None: another rank counts it
        self._reason = reason  # why nothing is known; empty if something is
        self._layers = {} if reason else _layers(copied.module, set(in_scope))

    @contextlib.contextmanager
    def on(self) -> Iterator[Runnable]:
        """What is to be run in the place of the model, once, on all batches."""
        with contextlib.ExitStack() as stack:
            for layer in self._layers.values():
                hook = partial(self._look, layer)
                stack.callback(layer.module.register_forward_hook(hook).remove)
            yield Runnable(self._copied.module, self._value)

    def _value(self, model: nn.Module, batch: Any) -> Any:
        """The value function, which is called once for each turn, in their order."""
        if self._masks:  # of the batch before
            self._chosen = {}
        self._place, self._batch, self._masks = next(self._places, None), batch, None
        return self._copied.value(model, batch)

    # ------------------------------------------------------------------ in a hook

    def _look(self, layer: _Layer, _: nn.Module, args: Any, out: Any) -> None:
        """What goes through a layer in one call; whatever is no plain tensor is not looked at."""
        if self._place is None or self._reason or not args or not _is_plain(args[0]):
            return
        try:
            numbers = self._seen(layer, args[0].detach(), out, args[1] if len(args) > 1 else None)
        except Exception as error:
            if is_out_of_memory(error):
                raise
            self._reason = redacted_error(error)  # the evaluation goes on without
            return
        if numbers is not None:
            layer.calls.append((self._place, numbers))

    def _seen(self, layer: _Layer, inputs: torch.Tensor, out: Any, routes: Any) -> _Call | None:
        """The numbers of a call; None where no position counts."""
        # after a layer has run each operation is slow, whatever its size: few of them
        units, axis = len(layer.positive), layer.channels
        given = inputs if inputs.ndim > -axis else inputs[None]
        if given.shape[axis] != units:
            return None
        count, rows, sample = self._counting(given, axis)
        if not count:
            return None
        layer.load += _load(routes, rows, given.numel() // units, len(layer.load))
        some = given[sample].float()
        norm = torch.linalg.vector_norm(some)
        # of most units a sample proves that they live, once; elsewhere to ask would be to wait
        limit = (float(norm) if given.is_cpu else norm) * (_QUIET / math.sqrt(count * units))
        if not given.is_cpu or not layer.least > limit:
            largest = some.abs().amax(0)
            largest = torch.maximum(largest, layer.largest) if layer.calls else largest
            layer.least = float(largest.amin()) if given.is_cpu else 0.0
            if not given.is_cpu or not layer.least > limit:
                which: Any = (largest <= limit).nonzero()[:, 0] if given.is_cpu else slice(None)
                every = given.movedim(axis, -1)[..., which].flatten(0, -2)
                most = (every if rows is None else every[rows]).abs().amax(0).float()
                largest[which] = torch.maximum(largest[which], most)
                layer.least = float(largest.amin()) if given.is_cpu else 0.0
            layer.largest = largest
        peak = None
        if layer.has_outputs and _is_plain(out) and out.shape[:-1] == inputs.shape[:-1]:
            vectors, outputs = given.flatten(0, -2), out.detach().reshape(-1, out.shape[-1])
            peak = _peak(layer, vectors, outputs, rows)
        least = some.amin()
        # in its own place: a comparison that makes booleans takes five times as long
        positive = some.gt_(0).sum(0).long()
        layer.positive = positive.add_(layer.positive) if layer.calls else positive
        return count, norm, least, peak

    def _counting(self, given: torch.Tensor, axis: int) -> _Places:
        """Which positions count, None: all, also where no mask fits; and a sample of them."""
        if self._masks is None:
            self._masks = self._proxy.counted(self._batch)
        shape, device = given.shape, given.device
        key = shape, axis, device
        if key not in self._chosen:
            positions = shape[:axis] + shape[axis:][1:]
            mask = matching(self._masks, tuple(positions))
            rows = None if mask is None or mask.all() else mask.nonzero()[:, 0].to(device)
            size, run = positions.numel() if rows is None else len(rows), 1 if axis == -1 else _RUN
            every = sampled(size, run)
            every = every if rows is None else rows.cpu().numpy()[every]
            places = np.unravel_index(every, positions)
            at: list[Any] = [torch.from_numpy(one).to(device) for one in places]  # copies no inputs
            at.insert(len(shape) + axis, slice(None))
            self._chosen[key] = len(every), rows, tuple(at)
        return self._chosen[key]

    # ------------------------------------------------------------------ what it amounts to

    def developed(self) -> XRay:
        """What was seen, on all ranks together; every rank calls it."""
        ranks, layers = self._proxy.ranks, list(self._layers.values())
        own: dict[int, list[list[float]]] = {}
        for i, layer in enumerate(layers):
            for place, (num, norm, least, most) in layer.calls:
                numbers = [i, num, float(norm), float(least)]
                numbers += [] if most is None else most.tolist()
                own.setdefault(place, []).append(numbers + [math.nan] * (9 - len(numbers)))
        every = ranks.merged(own)
        reason = next(filter(None, ranks.gather(self._reason)), "")
        if reason or not every:
            reason = reason or "the forward calls no linear or convolutional layer"
            return XRay(reason=reason, unseen=tuple(self._in_scope[:_MAX_NAMES]))
        ends = np.cumsum([len(layer.positive) for layer in layers])[:-1]
        # the bits of numbers that are not negative rise with them
        bits = torch.cat([layer.largest.cpu() for layer in layers]).view(torch.int32).numpy()
        largest = ranks.highest(bits.astype(np.int64)).astype(np.int32).view(np.float32)
        positive = ranks.sum(torch.cat([layer.positive.cpu() for layer in layers]).numpy())
        calls = np.array([row for place in sorted(every) for row in every[place]]).reshape(-1, 9)
        of_units = zip(np.split(positive, ends), np.split(largest, ends), strict=True)
        found, super_weights = self._of_layers(calls, of_units)
        # layers that did not run beside others that did and differ in their last number alone
        beside = {_LAST_NUMBER.sub(".*.", name) for name in found.names}
        idle = [name for name in self._layers if name not in set(found.names)]
        unreached = [name for name in idle if _LAST_NUMBER.sub(".*.", name) in beside]
        load = ranks.sum(np.concatenate([layer.load for layer in layers]))
        loads = np.split(load, np.cumsum([len(layer.load) for layer in layers])[:-1])
        of_layers = dict(zip(self._layers, loads, strict=True))
        for name, load in of_layers.items():  # where no router says it, none is told
            left = np.flatnonzero(load == 0).tolist() if load.any() else []
            unreached += [f"{name}[{expert}]" for expert in left]
        experts = _by_expert(of_layers)
        known = {*found.names, *unreached}
        return XRay(
            **_summed(found, experts),
            num_super_weights=float(len(super_weights)),
            num_unreached=float(len(unreached)),
            super_weights=super_weights,
            unreached=tuple(unreached[:_MAX_NAMES]),
            unseen=tuple(name for name in self._in_scope if name not in known)[:_MAX_NAMES],
            expert_load=dict(islice(experts.items(), _MAX_NAMES)),
            layers=found,
        )

    def _of_layers(
        self, calls: np.ndarray, of_units: Iterable[tuple[np.ndarray, np.ndarray]]
    ) -> tuple[XRayLayers, tuple[str, ...]]:
        """The numbers of each layer that ran, and the super weights, the largest output first."""
        columns: dict[str, list[Any]] = {name: [] for name in vars(XRayLayers())}
        weights: list[tuple[float, str]] = []
        for i, (name, (count, peak)) in enumerate(zip(self._layers, of_units, strict=True)):
            of_layer = calls[calls[:, 0] == i, 1:]
            if not len(of_layer):
                continue
            row = {"names": name, "num_units": len(count), **_numbers(of_layer, count, peak)}
            for key, value in row.items():
                columns[key].append(value)
            is_one = (of_layer[:, 4] >= MASSIVE) & (of_layer[:, 7] >= _MOST)
            weights += [(c[4], f"{name}[{c[5]:.0f}, {c[6]:.0f}]") for c in of_layer[is_one]]
        found = XRayLayers(**{key: tuple(values) for key, values in columns.items()})
        super_weights = dict.fromkeys(name for _, name in sorted(weights, reverse=True))
        return found, tuple(super_weights)


def sampled(size: int, run: int) -> np.ndarray:
    """Which of so many positions are counted, in runs; by these two numbers alone."""
    # at random: a stride that goes into the length of a text would see its first token alone
    num_runs = -(-size // run)
    num = -(-num_runs // max(1, size // _POSITIONS))
    chosen = np.random.default_rng(size).choice(num_runs, num, replace=False)
    every = np.add.outer(run * np.sort(chosen), np.arange(run)).ravel()
    return np.asarray(every[every < size])


def _layers(model: nn.Module, in_scope: set[str]) -> dict[str, _Layer]:
    """The linear and convolutional layers by the names of their weights."""
    fast = [path for path, one in model.named_modules() if isinstance(one, _FAST_PATHS)]
    found: dict[str, _Layer] = {}
    for path, module in model.named_modules():
        axis, weight = axis_of(module), getattr(module, "weight", None)
        if any(path.startswith(f"{outer}." if outer else "") for outer in fast):
            continue
        found |= _packed(path, module, in_scope)
        if axis is None or not _is_plain(weight) or weight.ndim < 2:
            continue
        name = clean_name(f"{path}.weight" if path else "weight")
        # the weight of a transposed convolution has the inputs of all its groups
        units = weight.shape[axis] * (getattr(module, "groups", 1) if axis else 1)
        positive, has_outputs = torch.zeros(units, dtype=torch.int64), weight.ndim == 2
        channels = -1 - len(getattr(module, "kernel_size", ()))
        has_outputs = has_outputs and name in in_scope
        found[name] = _Layer(module, axis, channels, has_outputs, positive, torch.zeros(units))
    return found


def _packed(path: str, module: nn.Module, in_scope: set[str]) -> dict[str, _Layer]:
    """Experts that one module keeps as tensors, all but the last, which reads what these give."""
    own = {clean_name(f"{path}.{n}"): p for n, p in module.named_parameters(recurse=False)}
    stacks = {n: p for n, p in own.items() if n in in_scope and _is_plain(p) and p.ndim == 3}
    axis = 1 if getattr(module, "is_transposed", False) else 2
    found = {}
    for name, stack in list(stacks.items())[: max(1, len(stacks) - 1)]:
        units = stack.shape[axis]
        empty = torch.zeros(units, dtype=torch.int64), torch.zeros(units)
        load = np.zeros(len(stack), np.int64)
        found[name] = _Layer(module, axis, -1, False, *empty, load=load)
    return found


def _load(
    routes: Any, rows: torch.Tensor | None, num_positions: int, num_experts: int
) -> np.ndarray:
    """Positions that count, by expert; zeros of a stack that gets no router's choice with them."""
    if num_experts == 1:
        return np.array([num_positions if rows is None else len(rows)])
    is_choice = isinstance(routes, torch.Tensor) and routes.dtype in (torch.int64, torch.int32)
    if not is_choice or routes.ndim < 2 or routes.shape[:-1].numel() != num_positions:
        return np.zeros(num_experts, np.int64)
    chosen = routes.flatten(0, -2)
    every = (chosen if rows is None else chosen[rows]).cpu().numpy().ravel()
    known = every[(every >= 0) & (every < num_experts)]  # others are of other ranks
    return np.bincount(known, minlength=num_experts)


def _by_expert(loads: Mapping[str, np.ndarray]) -> dict[str, tuple[int, ...]]:
    """What each expert got, by its stack or list; of those to which anything came."""
    found: dict[str, dict[int, int]] = {}
    for name, load in loads.items():
        listed = _EXPERT.match(name)
        if len(load) > 1:
            found[name.rpartition(".")[0]] = dict(enumerate(load.tolist()))
        elif listed:
            own, number = found.setdefault(listed[1], {}), int(listed[2])
            own[number] = max(own.get(number, 0), int(load[0]))
    return {path: tuple(own.values()) for path, own in found.items() if sum(own.values())}


def _is_plain(tensor: Any) -> TypeGuard[torch.Tensor]:
    is_whole = type(tensor) in (torch.Tensor, nn.Parameter) and tensor.layout is torch.strided
    return is_whole and tensor.is_floating_point() and tensor.ndim > 0


def _peak(
    layer: _Layer, vectors: torch.Tensor, outputs: torch.Tensor, rows: torch.Tensor | None
) -> torch.Tensor | None:
    """The largest output, also beside the median of its position, and what makes it, [5] or [2]."""
    if outputs.shape[-1] < _FEWEST_OUTPUTS:
        return None
    sizes = torch.maximum(outputs.amax(1), -outputs.amin(1))  # without a copy of its size
    position = (sizes if rows is None else sizes[rows]).argmax().reshape(1)
    position = position if rows is None else rows.index_select(0, position)
    row = outputs.index_select(0, position)[0].float()
    place = row.abs().argmax().reshape(1)
    peak, median = row.index_select(0, place), row.abs().median()
    sizes = torch.cat([peak.abs(), peak.abs() / median])
    if sizes.device.type == "cpu" and not sizes[1] >= MASSIVE:  # elsewhere to ask would be to wait
        return sizes
    weight: Any = layer.module.weight
    weights = weight.detach().index_select(1 - layer.axis, place).reshape(-1).float()
    parts = vectors.index_select(0, position)[0].float() * weights / peak
    most = parts.argmax().reshape(1)
    at = [place, most] if layer.axis == 1 else [most, place]
    return torch.cat([sizes, *(one.to(sizes) for one in at), parts.index_select(0, most)])


def _numbers(calls: np.ndarray, positive: np.ndarray, largest: np.ndarray) -> dict[str, float]:
    """The numbers of one layer."""
    num_sampled = calls[:, 0].sum()
    rms = math.sqrt(float(calls[:, 1] @ calls[:, 1]) / (num_sampled * len(positive)))
    peaks = calls[np.isfinite(calls[:, 4])]
    share = positive / num_sampled
    low, middle, high = np.interp((0.05, 0.5, 0.95), np.linspace(0, 1, len(share)), np.sort(share))
    inside = share[(share > 0.0) & (share < 1.0)]
    entropy = -(inside * np.log2(inside) + (1.0 - inside) * np.log2(1.0 - inside))
    found = {
        "dead": (largest <= DEAD * rms).mean(),
        "active_low": low,
        "active": middle,
        "active_high": high,
        # what a ReLU gives has but one sign
        "sign_diversity": entropy.sum() / len(share) if calls[:, 2].min() < 0.0 else math.nan,
        "massive": peaks[peaks[:, 3].argmax(), 4] if len(peaks) else math.nan,
    }
    is_known = math.isfinite(rms)  # of what is not finite signs mean nothing
    return {name: _short(x if is_known else math.nan) for name, x in found.items()}


def _short(x: float) -> float:
    """Nine digits of a number; unknown is always the same NaN, so that equal records are equal."""
    return math.nan if math.isnan(x) else float(f"{x:.9g}")


def _summed(layers: XRayLayers, experts: Mapping[str, Sequence[int]]) -> dict[str, Any]:
    """What stands for all layers: means, and the layer where it is worst."""
    dead = [(x, n) for x, n in zip(layers.dead, layers.num_units, strict=True) if x == x]
    signs = [x for x in layers.sign_diversity if x == x]
    above = (max(load) * len(load) / sum(load) - 1.0 for load in experts.values())
    found = {
        "dead": sum(x * n for x, n in dead) / sum(n for _, n in dead) if dead else math.nan,
        "dead_units": max((x for x, _ in dead), default=math.nan),
        "sign_diversity": sum(signs) / len(signs) if signs else math.nan,
        "massive": max((x for x in layers.massive if x == x), default=math.nan),
        "max_violation": max(above, default=math.nan),
    }
    return {name: _short(x) for name, x in found.items()}
