"""A forward that leaves something behind."""

from __future__ import annotations

import itertools
import random
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import nn

import sparsitywatch as sw

WIDTH = 6
Forward = Callable[[Any, torch.Tensor], Any]


# ------------------------------------------------------------------ what a forward leaves behind


class Remembering(nn.Module):
    """Two layers whose forward also does what it is given; ``make`` sets it up."""

    def __init__(self, make: Callable[[Any], object], act: Forward) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 2)
        make(self)
        self.act: Forward = act

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """What is remembered goes into the output, so that the training depends on it."""
        out: torch.Tensor = self.second(self.act(self, torch.relu(self.first(x))))
        return out


def _set(**attributes: Callable[[], Any]) -> Callable[[Any], None]:
    def make(model: Any) -> None:
        for name, value in attributes.items():
            setattr(model, name, value())

    return make


def _buffer(name: str, value: torch.Tensor) -> Callable[[Any], None]:
    return lambda model: model.register_buffer(name, value.clone())


def _reassigned(m: Any, h: torch.Tensor) -> Any:
    m.mean = 0.9 * m.mean + 0.1 * h.detach().mean(0)
    return h - m.mean


def _counted(m: Any, h: torch.Tensor) -> Any:
    m.count += 1
    return h / m.count


def _recurrent(m: Any, h: torch.Tensor) -> Any:
    if m.state is None or m.state.shape != h.shape:
        m.state = torch.zeros_like(h)
    m.state = 0.5 * m.state.detach() + h
    return m.state


def _drawn(m: Any, h: torch.Tensor) -> Any:
    return h + torch.rand(h.shape, generator=m.generator)


def _python_drawn(m: Any, h: torch.Tensor) -> Any:
    return h * (1 + m.python.random() + m.numpy.random() + m.old.random_sample())


def _metric(m: Any, h: torch.Tensor) -> Any:
    m.metric.update(h.detach())
    return h - m.metric.compute()


def _cached(m: Any, h: torch.Tensor) -> Any:
    m.cache.setdefault("keys", []).append(h.detach().mean())
    m.last.append(float(h.detach().mean()))
    return h + torch.stack(m.cache["keys"]).mean() + sum(m.last)


def _nested(m: Any, h: torch.Tensor) -> Any:
    m.inner.stats.calls += 1
    m.inner.totals += h.detach().numpy().mean()
    return h / m.inner.stats.calls + float(m.inner.totals[0])


def _lazy(m: Any, h: torch.Tensor) -> Any:
    if not hasattr(m, "scale"):
        m.scale = h.detach().std()
    return h / m.scale


def _swapped(m: Any, h: torch.Tensor) -> Any:
    m.mean.data = m.mean.data * 0.5 + h.detach().mean(0)
    return h - m.mean


def _replaced(m: Any, h: torch.Tensor) -> Any:
    m.gain = nn.Parameter(m.gain.detach() * 0.9, requires_grad=False)
    return h * m.gain


def _written(m: Any, h: torch.Tensor) -> Any:
    m.plain.mul_(0.5).add_(h.detach().mean(0))
    return h - m.plain


def _thawed(m: Any, h: torch.Tensor) -> Any:
    m.first.bias.requires_grad_(not m.first.bias.requires_grad)
    return h


def _of_class(m: Any, h: torch.Tensor) -> Any:
    m.inner.tick()
    return h / Stats.ticks


_calls = 0


class Stats:
    """Counts in an attribute, in the class and in a global."""

    ticks = 0

    def __init__(self) -> None:
        self.calls = 0

    def tick(self) -> None:
        """Count one more."""
        global _calls
        _calls += 1
        Stats.ticks += 1


class Inner:
    """A plain object that holds another."""

    def __init__(self) -> None:
        self.stats, self.totals = Stats(), np.zeros(1)


class Slotted:
    """Without a __dict__."""

    __slots__ = ("calls",)

    def __init__(self) -> None:
        self.calls = 0


def _slotted(m: Any, h: torch.Tensor) -> Any:
    m.inner.calls += 1
    return h / m.inner.calls


def _closure(m: Any) -> None:
    calls = 0

    def hook(_: nn.Module, __: object, out: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return out / calls

    m.first.register_forward_hook(hook)


def _metric_of() -> Any:
    import torchmetrics

    return torchmetrics.MeanMetric()


def _old_norm(kind: str) -> Callable[[Any], None]:
    def make(model: Any) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they are deprecated, and in use
            model.norm = getattr(nn.utils, kind)(nn.Linear(WIDTH, WIDTH))

    return make


def _normed(m: Any, h: torch.Tensor) -> Any:
    stale = m.norm.weight.detach().mean()  # as the forward before left it
    return m.norm(h) + stale


def _observed(model: Any) -> None:
    from torch.ao.quantization import FakeQuantize

    model.observer = FakeQuantize()  # type: ignore[no-untyped-call]


def _gradient(m: Any, h: torch.Tensor) -> Any:
    m.first.bias.grad = None
    return h


def _rnn(model: Any) -> None:
    model.rnn = nn.LSTM(WIDTH, WIDTH, batch_first=True)
    model.state = None


def _rnn_forward(m: Any, h: torch.Tensor) -> Any:
    start = m.state
    if start is not None and start[0].shape[1] != len(h):
        start = None  # another batch size
    out, (a, b) = m.rnn(h[:, None], start)
    m.state = (a.detach(), b.detach())
    return out[:, 0]


def _rope(model: Any) -> None:
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    scaling = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10_000.0}
    model.rope = LlamaRotaryEmbedding(
        LlamaConfig(
            hidden_size=2 * WIDTH,
            num_attention_heads=2,
            max_position_embeddings=4,
            rope_parameters=scaling,
        )
    )


def _turned(m: Any, h: torch.Tensor) -> Any:
    cos, sin = m.rope(h[None], torch.arange(6 if m.training else 9)[None])
    return h * (cos[0, 1] + sin[0, 1])


_ZEROS = torch.zeros(WIDTH)

#: By what is left behind: what sets a model up, and what its forward does.
LEFTOVERS: dict[str, tuple[Callable[[Any], object], Forward]] = {
    "a buffer assigned anew": (_buffer("mean", _ZEROS), _reassigned),
    "a Python counter": (_set(count=lambda: 0), _counted),
    "an RNN's self.state": (_set(state=lambda: None), _recurrent),
    "an LSTM's state in a tuple": (_rnn, _rnn_forward),
    "a torch.Generator": (_set(generator=lambda: torch.Generator().manual_seed(3)), _drawn),
    "generators of python and numpy": (
        _set(
            python=lambda: random.Random(3),
            numpy=lambda: np.random.default_rng(3),
            old=lambda: np.random.RandomState(3),
        ),
        _python_drawn,
    ),
    "a torchmetrics metric": (_set(metric=_metric_of), _metric),
    "weight_norm, the old one": (_old_norm("weight_norm"), _normed),
    "spectral_norm, the old one": (_old_norm("spectral_norm"), _normed),
    "a cache in a dict, a deque": (_set(cache=dict, last=lambda: deque(maxlen=3)), _cached),
    "a counter in a plain object, an array": (_set(inner=Inner), _nested),
    "a counter in slots": (_set(inner=Slotted), _slotted),
    "a counter of a class, a global": (_set(inner=Stats), _of_class),
    "a counter in a hook's closure": (_closure, lambda _, h: h),
    "an attribute made by the first forward": (_set(), _lazy),
    "a buffer whose .data is swapped": (_buffer("mean", _ZEROS), _swapped),
    "a plain tensor written to": (_set(plain=_ZEROS.clone), _written),
    "a parameter assigned anew": (
        _set(gain=lambda: nn.Parameter(torch.ones(()), requires_grad=False)),
        _replaced,
    ),
    "requires_grad toggled": (_set(), _thawed),
    "a rope that grows with the sequence (transformers)": (_rope, _turned),
    "an observer for quantization": (_observed, lambda m, h: m.observer(h)),
    "a gradient taken away": (_set(), _gradient),
}


def _clipped(m: Any, h: torch.Tensor) -> Any:
    m.first.weight.data.mul_(0.99)
    return h


def _renormed(m: Any, h: torch.Tensor) -> Any:
    return h + m.table(torch.arange(len(h)) % 3)


def _moved_on(m: Any, h: torch.Tensor) -> Any:
    return h / next(m.ticks)


def _ticks() -> Iterator[int]:
    number = 1
    while True:
        yield number
        number += 1


#: What cannot be put back: what sets up and acts as above, and the name that has to be said.
REFUSED: dict[str, tuple[Callable[[Any], object], Forward, str]] = {
    "weights clipped through .data": (_set(), _clipped, "first.weight"),
    "an embedding with max_norm": (
        _set(table=lambda: nn.Embedding(3, WIDTH, max_norm=0.1)),
        _renormed,
        "table.weight",
    ),
    "an itertools.count": (_set(ticks=lambda: itertools.count(1)), _moved_on, "ticks"),
    "a Python generator": (_set(ticks=_ticks), _moved_on, "ticks"),
}


def mean_square(model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
    """A value per example."""
    values: torch.Tensor = model(batch).square().mean(1)
    return values


def make_training(make: Callable[[Any], object], act: Forward) -> Callable[[], tuple[Any, ...]]:
    """What ``sw.verify`` trains: a model that remembers."""

    def made() -> tuple[Any, ...]:
        Stats.ticks = 0
        model = Remembering(make, act)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

        def step() -> float:
            optimizer.zero_grad()
            loss = model(torch.randn(5, WIDTH)).square().mean()
            loss.backward()
            optimizer.step()
            return float(loss.detach())

        return model, optimizer, step

    return made


def _proxy() -> sw.Proxy:
    return sw.Proxy([torch.linspace(-1, 1, 4 * WIDTH).reshape(4, WIDTH)], mean_square)


def verified(make: Callable[[Any], object], act: Forward) -> str:
    """Whether a training is the same under a watch, and the watch worked."""
    report = sw.verify(
        make_training(make, act), steps=4, every=1, proxy=_proxy(), scope="layers", levels=[0.5]
    )
    if not report.equal or not report.deterministic:
        return str(report).splitlines()[1].strip()
    invalid = [record.reason for record in report.records if not record.valid]
    return f"invalid: {invalid[0]}" if invalid else "the same bits"


def refused(make: Callable[[Any], object], act: Forward, name: str) -> str:
    """Whether the attach refuses and names the culprit, and the model is as it was."""
    torch.manual_seed(0)
    model = Remembering(make, act)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    try:
        sw.watch(model, None, logdir=None, proxy=_proxy(), scope="layers")
    except sw.errors.ProxyError as error:
        same = all(torch.equal(before[key], value) for key, value in model.state_dict().items())
        said = f"changed {name}" in str(error)
        return "refused by name" if said and same else f"{error} (weights as before: {same})"
    return "not refused"
