"""Series of twelve checkpoints in files: forty faults planted into four models, twelve clean kinds.

What a fault hits is named by its places in the series; files are in safetensors.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch
from torch import nn

Weights = dict[str, torch.Tensor]
NUM, EVERY = 12, 10
#: Steps of the twelve checkpoints.
STEPS = [EVERY * (place + 1) for place in range(NUM)]
_WORDS, _CLASSES, _LONG = 60, 10, 8


# ------------------------------------------------------------------ models


def _dense() -> nn.Module:
    return nn.Sequential(
        nn.Embedding(_WORDS, 24), nn.Flatten(1), nn.Linear(24 * _LONG, 48), nn.GELU(),
        nn.LayerNorm(48), nn.Linear(48, 48), nn.GELU(), nn.Linear(48, _CLASSES),
    )  # fmt: skip


class _Convolutions(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(
            nn.Embedding(_WORDS, 32), nn.Conv1d(_LONG, 32, 5, padding=2), nn.BatchNorm1d(32),
            nn.ReLU(), nn.Conv1d(32, 48, 3, padding=1), nn.BatchNorm1d(48), nn.ReLU(),
            nn.AvgPool1d(32), nn.Flatten(1), nn.Linear(48, _CLASSES),
        )  # fmt: skip


class _Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(_WORDS, 32), nn.Parameter(torch.randn(_LONG, 32))
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True) for _ in range(2)
        )
        self.head = nn.Linear(32, _CLASSES, bias=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        seen = self.words(tokens) + self.places
        for layer in self.layers:
            seen = layer(seen)
        return self.head(seen.mean(1))


class _Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words, self.cells = nn.Embedding(_WORDS, 32), nn.GRU(32, 40, batch_first=True)
        self.head = nn.Linear(40, _CLASSES)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(self.cells(self.words(tokens))[0][:, -1])


MODELS: Mapping[str, Callable[[], nn.Module]] = {
    "dense": _dense,
    "convolutions": _Convolutions,
    "attention": _Attention,
    "recurrent": _Recurrent,
}

# ------------------------------------------------------------------ trainings


@dataclass(frozen=True, kw_only=True)
class Training:
    """One way to train, and what the checkpoints are made of."""

    rate: Callable[[int], float] = lambda step: 1.0
    optimizer: Callable[[list[nn.Parameter]], torch.optim.Optimizer] = lambda p: torch.optim.AdamW(
        p, 3e-3, weight_decay=0.1
    )
    resumed: int = -1  # a step at which the optimizer begins anew, on other data
    back: tuple[int, int] = (-1, -1)  # from the first step training goes on from the second
    frozen: tuple[int, int] = (0, 0)  # between these steps the first matrix rests
    average: float = 0.0  # what stays of the average at each step
    kind: torch.dtype = torch.float32
    change: Callable[[nn.Module], None] = lambda model: None
    begin: int = 1  # the place of the first checkpoint: 0 for the untrained weights
    after: Callable[[int, Weights], Weights] = lambda place, weights: weights


def train(model: str, seed: int, how: Training | None = None) -> list[Weights]:
    """The weights of twelve checkpoints."""
    how = how or Training()
    torch.manual_seed(seed)
    net = MODELS[model]()
    how.change(net)
    inputs, classes = torch.randint(_WORDS, (512, _LONG)), torch.randint(_CLASSES, (512,))
    parameters = [p for p in net.parameters() if p.requires_grad]
    optimizer, made, average = how.optimizer(parameters), list[Weights](), Weights()
    rate = optimizer.param_groups[0]["lr"]
    kept: dict[int, Weights] = {}
    matrix = next(p for p in parameters if p.ndim > 1)
    for step in range(EVERY * (NUM - 1 + how.begin) + 1):
        if step == how.resumed:
            optimizer = how.optimizer(parameters)
            classes = torch.randint(_CLASSES, (512,))
        if step == how.back[0]:
            net.load_state_dict(kept[how.back[1]])
        weights = {name: value.clone() for name, value in net.state_dict().items()}
        average = {
            name: value.lerp(average.get(name, value), how.average) if value.is_floating_point()
            else value for name, value in weights.items()
        }  # fmt: skip
        kept[step] = weights
        if step % EVERY == 0 and step >= EVERY * how.begin:
            made.append(how.after(len(made), {
                name: value.to(how.kind, copy=True) if value.is_floating_point() else value
                for name, value in (average if how.average else weights).items()
            }))  # fmt: skip
        for group in optimizer.param_groups:
            group["lr"] = rate * how.rate(step)
        matrix.requires_grad_(not how.frozen[0] <= step < how.frozen[1])
        chosen = torch.randperm(512)[:32]
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(inputs[chosen]), classes[chosen]).backward()
        optimizer.step()
    return made


class _Adapted(nn.Module):
    """A matrix at rest and a product of two small ones beside it, as LoRA has them."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base_layer = base.requires_grad_(False)
        self.lora_A = nn.Parameter(torch.randn(8, base.in_features) / 8)
        self.lora_B = nn.Parameter(torch.zeros(base.out_features, 8))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.base_layer(inputs) + inputs @ self.lora_A.T @ self.lora_B.T


def _adapt(model: nn.Module) -> None:
    """LoRA at the last layer, beside what rests; the embedding is trained on."""
    name, layer = [(n, m) for n, m in model.named_modules() if isinstance(m, nn.Linear)][-1]
    outer, _, own = name.rpartition(".")
    setattr(model.get_submodule(outer), own, _Adapted(layer))


def _empty_branch(model: nn.Module) -> None:
    """The last layer begins at zero, and its bias, as those of branches do."""
    last = [m for m in model.modules() if isinstance(m, nn.Linear)][-1]
    for parameter in last.parameters():
        nn.init.zeros_(parameter)


def _grown(place: int, weights: Weights) -> Weights:
    """Rows appended to the vocabulary at one step, and kept."""
    name = next(n for n, v in weights.items() if len(v) == _WORDS and v.ndim == 2)
    rows = torch.randn(4, weights[name].shape[1], generator=torch.Generator().manual_seed(1))
    return {**weights, name: torch.cat([weights[name], rows])} if place >= 6 else weights


def _pruned(place: int, weights: Weights) -> Weights:
    """Half of each matrix cut away from one step on, by its magnitude."""
    return {
        n: torch.where(v.abs() > v.abs().median(), v, 0.0) if v.ndim > 1 and place >= 5 else v
        for n, v in weights.items()
    }


#: Ways to train that are right, by name.
CLEAN: Mapping[str, Training] = {
    "plain": Training(),
    "from the untrained weights": Training(begin=0),
    "warm-up": Training(rate=lambda step: min(1.0, step / 60), begin=0),
    "restarts": Training(rate=lambda step: 1.0 - step % 40 / 40),
    "resumed": Training(resumed=62),
    "bfloat16": Training(kind=torch.bfloat16),
    "averages": Training(average=0.95),
    "LoRA": Training(change=_adapt, begin=0),
    "an empty branch": Training(change=_empty_branch, begin=0),
    "a frozen part": Training(frozen=(30, 80)),
    "a grown vocabulary": Training(after=_grown),
    "pruned on the way": Training(after=_pruned),
}


# ------------------------------------------------------------------ faults


@dataclass(frozen=True)
class Given:
    """The weights of a training, of another seed, and of one that went back."""

    own: Sequence[Weights]
    other: Sequence[Weights]
    back: Sequence[Weights]


@dataclass(frozen=True)
class Fault:
    """What is planted at which places."""

    name: str
    places: tuple[int, ...]  # of the checkpoints that are at fault
    plant: Callable[[Given, list[Weights]], None] | None = None
    spoil: Callable[[Path], None] | None = None  # the same for the file of each place


def _largest(weights: Weights, at: int = 0) -> str:
    order = sorted((n for n in weights if weights[n].ndim > 1), key=lambda n: -weights[n].numel())
    return order[at]


def _each(change: Callable[[Weights], Weights], *places: int) -> Callable:
    def plant(given: Given, made: list[Weights]) -> None:
        for place in places:
            made[place] = change({n: v.clone() for n, v in made[place].items()})

    return plant


def _moved(*pairs: tuple[int, int]) -> Callable:
    """Each place gets the weights that belong to another one."""

    def plant(given: Given, made: list[Weights]) -> None:
        for place, source in pairs:
            made[place] = given.own[source]

    return plant


def _of_other(*places: int, part: Callable[[Weights], list[str]] = list) -> Callable:
    def plant(given: Given, made: list[Weights]) -> None:
        for place in places:
            made[place] = made[place] | {n: given.other[place][n] for n in part(made[place])}

    return plant


def _layer_of(source: int, place: int) -> Callable:
    def plant(given: Given, made: list[Weights]) -> None:
        name = _largest(made[place])
        made[place] = made[place] | {name: given.own[source][name]}

    return plant


def _went_back(given: Given, made: list[Weights]) -> None:
    made[:] = given.back


def _empty(weights: Weights) -> Weights:
    return weights | {_largest(weights): torch.zeros_like(weights[_largest(weights)])}


def _empty_behind(weights: Weights) -> Weights:
    weights[_largest(weights)].view(-1)[1024:] = 0.0
    return weights


def _hole(weights: Weights) -> Weights:
    weights[_largest(weights)].view(-1)[128:640] = 0.0
    return weights


def _constant(weights: Weights) -> Weights:
    weights[_largest(weights, 1)].fill_(0.125)
    return weights


def _half_constant(weights: Weights) -> Weights:
    flat = weights[_largest(weights)].view(-1)
    flat[len(flat) // 2 :] = -0.3
    return weights


def _rounded(kind: torch.dtype) -> Callable[[Weights], Weights]:
    return lambda weights: {
        n: v.to(kind).to(v.dtype) if v.is_floating_point() else v for n, v in weights.items()
    }


def _nan(weights: Weights) -> Weights:
    weights[_largest(weights)].view(-1)[700] = torch.nan
    return weights


def _wider(weights: Weights) -> Weights:
    name = _largest(weights)
    return weights | {name: torch.cat([weights[name], weights[name][:2]])}


def _cast(weights: Weights) -> Weights:
    return {n: v.half() if v.is_floating_point() else v for n, v in weights.items()}


def _without(weights: Weights) -> Weights:
    return {n: v for n, v in weights.items() if n != _largest(weights, 1)}


def _zero_tail(share: float) -> Callable[[Path], None]:
    """The last part of the tensors is zero bytes, as a full disk leaves them."""

    def spoil(file: Path) -> None:
        data = file.read_bytes()
        start = 8 + struct.unpack("<Q", data[:8])[0]
        assert "__metadata__" not in json.loads(data[8:start])
        kept = start + int((1.0 - share) * (len(data) - start))
        file.write_bytes(data[:kept] + bytes(len(data) - kept))

    return spoil


def _cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def _head(weights: Weights) -> list[str]:
    return [[n for n in weights if weights[n].ndim > 1][-1]]


_BF16, _FP16 = _rounded(torch.bfloat16), _rounded(torch.float16)
FAULTS: Sequence[Fault] = (
    # content
    Fault("a zero tail at first", (0,), spoil=_zero_tail(0.35)),
    Fault("a zero tail", (6,), spoil=_zero_tail(0.35)),
    Fault("a zero tail at last", (11,), spoil=_zero_tail(0.35)),
    Fault("a short zero tail", (7,), spoil=_zero_tail(0.1)),
    Fault("zero tails of two", (5, 6), spoil=_zero_tail(0.5)),
    Fault("an empty matrix", (6,), _each(_empty, 6)),
    Fault("an empty matrix at last", (11,), _each(_empty, 11)),
    Fault("zeros behind the beginning", (4,), _each(_empty_behind, 4)),
    Fault("zeros inside", (8,), _each(_hole, 8)),
    Fault("one value at first", (0,), _each(_constant, 0)),
    Fault("one value", (6,), _each(_constant, 6)),
    Fault("half one value at last", (11,), _each(_half_constant, 11)),
    Fault("rounded to bfloat16 at first", (0,), _each(_BF16, 0)),
    Fault("rounded to bfloat16", (6,), _each(_BF16, 6)),
    Fault("rounded to bfloat16 at last", (11,), _each(_BF16, 11)),
    Fault("rounded to float16", (3,), _each(_FP16, 3)),
    Fault("three rounded", (5, 6, 7), _each(_BF16, 5, 6, 7)),
    Fault("NaN at first", (0,), _each(_nan, 0)),
    Fault("NaN at last", (11,), _each(_nan, 11)),
    Fault("cut off", (6,), spoil=_cut),
    # order
    Fault("neighbours swapped", (5, 6), _moved((5, 6), (6, 5))),
    Fault("the last two swapped", (10, 11), _moved((10, 11), (11, 10))),
    Fault("the first two swapped", (0, 1), _moved((0, 1), (1, 0))),
    Fault("two far apart swapped", (2, 9), _moved((2, 9), (9, 2))),
    Fault("a copy of an earlier one", (6,), _moved((6, 2))),
    Fault("a copy at last", (11,), _moved((11, 3))),
    Fault("a copy at first", (0,), _moved((0, 9))),
    Fault("went back", (8,), _went_back),
    # identity
    Fault("another seed at first", (0,), _of_other(0)),
    Fault("another seed", (6,), _of_other(6)),
    Fault("another seed at last", (11,), _of_other(11)),
    Fault("another seed in the first two", (0, 1), _of_other(0, 1)),
    Fault("another seed in two", (5, 6), _of_other(5, 6)),
    Fault("another seed in the last three", (9, 10, 11), _of_other(9, 10, 11)),
    Fault("the head of another seed", (6,), _of_other(6, part=_head)),
    Fault("a layer of another step", (7,), _layer_of(0, 7)),
    Fault("a layer of another step at last", (11,), _layer_of(1, 11)),
    Fault("another shape", (6,), _each(_wider, 6)),
    Fault("another dtype", (6,), _each(_cast, 6)),
    Fault("a tensor missing at last", (11,), _each(_without, 11)),
)


def given(model: str, seed: int) -> Given:
    """What faults are planted into, of one model."""
    # the eighth checkpoint goes on from the fourth
    back = Training(back=(STEPS[7] + 1, STEPS[3]))
    return Given(train(model, seed), train(model, seed + 1), train(model, seed, back))


def write(folder: Path, weights: Sequence[Weights]) -> None:
    """A file for each of them."""
    for place, one in enumerate(weights):
        safetensors.torch.save_file(one, path(folder, place))


def path(folder: Path, place: int) -> Path:
    return folder / f"step_{STEPS[place]}.safetensors"


def plant(folder: Path, fault: Fault, into: Given) -> None:
    """A series with one fault."""
    made = list(into.own)
    if fault.plant is not None:
        fault.plant(into, made)
    write(folder, made)
    for place in fault.places if fault.spoil is not None else ():
        fault.spoil(path(folder, place))
