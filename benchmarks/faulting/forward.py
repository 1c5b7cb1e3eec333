"""A forward that communicates, that leaves something behind, or runs on one rank of many."""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import socket
import subprocess
import sys
import textwrap
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import sparsitywatch as sw
from faulting.case import Case

__all__ = [
    "CASES",
    "LEFTOVERS",
    "RANKED",
    "REFUSED",
    "came_of",
    "make_training",
    "mean_square",
    "refused",
    "run_ranked",
    "script_of",
    "verified",
]

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
            python=lambda: random.Random(3),  # noqa: S311
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
    except sw.ProxyError as error:
        same = all(torch.equal(before[key], value) for key, value in model.state_dict().items())
        said = f"changed {name}" in str(error)
        return "refused by name" if said and same else f"{error} (weights as before: {same})"
    return "not refused"


# ------------------------------------------------------------------ two ranks

_HEAD = '''
import datetime, os, sys, threading, warnings
from pathlib import Path
import torch
import torch.distributed as dist
from torch import nn
import sparsitywatch as sw
warnings.simplefilter("ignore")
torch.manual_seed(0)
folder, rank = Path(sys.argv[1]), int(os.environ["RANK"])

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6))
        self.head = nn.Linear(6, 2)
        self.extra = lambda x: x
    def forward(self, x):
        return self.head(self.extra(self.body(x)))

def value(model, batch):
    return model(batch).square().mean(1)

proxy = sw.Proxy([torch.linspace(-1, 1, 24).reshape(4, 6)], value)

def init():
    dist.init_process_group("gloo", timeout=datetime.timedelta(seconds=20))

def train(model, steps=3, proxy=proxy, before=None, **options):
    """Attaches, trains; prints what came of it, on rank 0."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    arguments = dict(every=1, logdir=folder, scope="layers", max_overhead=None, levels=[0.5])
    try:
        watcher = sw.watch(model, optimizer, proxy=proxy, **(arguments | options))
    except sw.ConfigurationError as error:
        report("refused: " + str(error))
        watcher = None
    if dist.is_initialized():
        dist.barrier()
    for step in range(steps):
        if before:
            before(step)
        optimizer.zero_grad()
        model(torch.randn(4, 6)).square().mean().backward()
        for p in model.parameters():
            if dist.is_initialized() and type(model) is Net and type(p.grad) is torch.Tensor:
                dist.all_reduce(p.grad)
        optimizer.step()
    if watcher is not None:
        watcher.close()
        report("records: " + "; ".join(r.reason or "valid" for r in watcher.records))
        report("off: " + watcher.off)
    report("trained")
    return watcher

scenario = ""

def report(text):
    line = f"[{rank}] {scenario}| {text}".replace(chr(10), " ")
    os.write(1, (line + chr(10)).encode())  # in one piece beside the other rank's

def gather(x):
    parts = [torch.empty_like(x) for _ in range(2)]
    dist.all_gather(parts, x.detach())
    return x + 0 * sum(parts)

alive = []  # torch 2.13 at times hangs when it lets go of a DDP

def with_extra(extra):
    model = Net()
    model.extra = extra
    alive.append(nn.parallel.DistributedDataParallel(model))
    return alive[-1]
'''

_END = """
if dist.is_initialized():
    dist.barrier()
sys.stdout.flush()
os._exit(0)  # torch 2.13 at times hangs when it lets go of a DDP
"""


def run_ranked(script: str, folder: Path, num: int = 2, limit_s: float = 60.0) -> list[str]:
    """Run a script on ranks, in the environment of torchrun; the lines that they print, sorted.

    What a rank does not say within the time is missing.
    """
    path, said = folder / "script.py", folder / "said.txt"
    path.write_text(_HEAD + textwrap.dedent(script) + _END)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    together = {"WORLD_SIZE": num, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    with said.open("ab") as file, contextlib.ExitStack() as stack:
        processes = []
        for rank in range(num):
            own = {**together, "RANK": rank, "LOCAL_RANK": rank, "OMP_NUM_THREADS": 1}
            process = subprocess.Popen(  # noqa: S603
                [sys.executable, str(path), str(folder / "logs")],
                stdout=file,
                stderr=subprocess.STDOUT,
                env=os.environ | {name: str(value) for name, value in own.items()},
            )
            stack.callback(process.wait)
            stack.callback(process.kill)
            processes.append(process)
        ends = time.monotonic() + limit_s
        for process in processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=max(ends - time.monotonic(), 0.0))
    output = said.read_text(errors="replace")
    lines = sorted(line for line in output.splitlines() if line[:1] == "[" and line[2:4] == "] ")
    return lines or [output[-2000:]]


#: Two ranks that have a process group, by what is unusual: a script, and what has to come.
RANKED: dict[str, tuple[str, str]] = {
    "DDP, nothing unusual": ("train(with_extra(lambda x: x))", "3 valid, on both ranks"),
    "SyncBatchNorm": (
        """
        model = Net()
        norm = nn.SyncBatchNorm(6)
        model.body.append(norm)  # in training it runs on GPUs only
        norm.forward = lambda x: x if norm.training else nn.SyncBatchNorm.forward(norm, x)
        train(model)
        """,
        "3 valid, on both ranks",
    ),
    "a collective of a group of one": (
        """
        groups = [dist.new_group([0]), dist.new_group([1])]
        def alone(x):
            dist.all_reduce(x.detach(), group=groups[rank])
            return x
        train(with_extra(alone))
        """,
        "3 valid, on both ranks",
    ),
    "all_gather in forward": ("train(with_extra(gather))", "3 valid, on both ranks"),
    "all_gather of torch.distributed.nn": (
        """
        import torch.distributed.nn
        train(with_extra(lambda x: x + 0 * sum(dist.nn.all_gather(x))))
        """,
        "3 valid, on both ranks",
    ),
    "a functional collective": (
        """
        import torch.distributed._functional_collectives as funcol
        group = dist.group.WORLD
        train(with_extra(lambda x: x + 0 * funcol.all_reduce(x.detach(), "sum", group)))
        """,
        "3 valid, on both ranks",
    ),
    "a collective inside torch.compile": (
        """
        import torch.distributed._functional_collectives as funcol
        group = dist.group.WORLD
        compiled = torch.compile(
            lambda x: x + 0 * funcol.all_reduce(x.detach(), "sum", group), backend="aot_eager"
        )
        train(with_extra(compiled), steps=1)
        """,
        "1 valid, on both ranks",
    ),
    "a collective in a thread of the forward": (
        """
        def in_thread(x):
            thread = threading.Thread(target=dist.all_reduce, args=(x.detach().clone(),))
            thread.start()
            thread.join()
            return x
        train(with_extra(in_thread))
        """,
        "3 valid, on both ranks",
    ),
    "a collective whose error the forward catches": (
        """
        def careful(x):
            try:
                dist.all_reduce(x.detach().clone())
            except RuntimeError:
                pass
            return x
        train(with_extra(careful))
        """,
        "3 valid, on both ranks",
    ),
    "send and recv in forward": (
        """
        def swap(x):
            other = x.detach().clone()
            dist.send(other, 1) if rank == 0 else dist.recv(other, 0)
            return x
        train(with_extra(swap))
        """,
        "3 valid, on both ranks",
    ),
    "a DDP inside, with buffers to broadcast": (
        """
        model = Net()
        model.body.append(nn.BatchNorm1d(6))
        model.body = nn.parallel.DistributedDataParallel(model.body)
        alive.append(model)
        train(model)
        """,
        "3 valid, on both ranks",
    ),
    "a barrier in forward": (
        "train(with_extra(lambda x: (dist.barrier(), x)[1]))",
        "3 valid, on both ranks",
    ),
    "a group made in forward": (
        "train(with_extra(lambda x: (dist.new_group([0, 1]), x)[1]))",
        "3 valid, on both ranks",
    ),
    "collectives only from the second step on": (
        """
        late = []
        model = with_extra(lambda x: gather(x) if late else x)
        train(model, before=lambda step: step == 1 and late.append(1))
        """,
        "3 valid, on both ranks",
    ),
    "FSDP2, only the head": (
        """
        from torch.distributed.fsdp import fully_shard
        model = Net()
        fully_shard(model.head)
        train(model, scope=["body.*.weight"])
        """,
        "3 valid, on both ranks",
    ),
    "FSDP2, only the head, no proxy": (
        """
        from torch.distributed.fsdp import fully_shard
        model = Net()
        fully_shard(model.head)
        train(model, scope=["body.*.weight"], proxy=None)
        """,
        "3 valid, on both ranks",
    ),
    "FSDP1, one root wrapper": (
        """
        from torch.distributed.fsdp import FullyShardedDataParallel as FSDP
        train(FSDP(Net(), device_id=torch.device("cpu")), proxy=None)
        """,
        "3 valid, on both ranks",
    ),
    "FSDP1, nested, use_orig_params, a predicate": (
        """
        from torch.distributed.fsdp import FullyShardedDataParallel as FSDP
        model = Net()
        model.body = FSDP(model.body, use_orig_params=True, device_id=torch.device("cpu"))
        train(model, scope=lambda name, p: "head.weight" in name)
        """,
        "refused: without FSDP1",
    ),
    "a DTensor, out of scope": (
        """
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.tensor import Shard, distribute_tensor
        model = Net()
        mesh = init_device_mesh("cpu", (2,))
        model.table = nn.Parameter(distribute_tensor(torch.ones(4, 4), mesh, [Shard(0)]))
        model.table.grad = torch.zeros_like(model.table)
        train(model, scope=["body.*.weight"])
        """,
        "3 valid, on both ranks",
    ),
    "ZeRO-3": (
        """
        model = Net()
        model.head.bias.ds_id = 3
        train(model)
        """,
        "refused: ZeRO-3",
    ),
    "Megatron's column-parallel layer": (
        """
        model = Net()
        model.head.output_size, model.head.output_size_per_partition = 4, 2
        train(model, proxy=None)
        """,
        "refused: split",
    ),
    "sharded after the attach": (
        """
        from torch.distributed.fsdp import fully_shard
        model = Net()
        train(model, before=lambda step: step == 1 and fully_shard(model.head))
        """,
        "1 valid, 2 sharded, on both ranks",
    ),
    "a pipeline whose ranks hold other parts": (
        "train(Net().body if rank else Net().head, proxy=None)",
        "refused: of other names or shapes",
    ),
    "a PipelineStage, attached by rank 0 alone": (
        """
        from torch.distributed.pipelining import PipelineStage
        model = Net().body
        stage = PipelineStage(model, rank, 2, torch.device("cpu"))
        train(model, proxy=None)
        """,
        "refused: stage 0 of 2",
    ),
}

#: The same without a process group at the attach.
UNRANKED: dict[str, tuple[str, str]] = {
    "attach before init_process_group": (
        """
        train_later = Net()
        train(train_later, before=lambda step: step == 0 and init())
        """,
        "3 valid",
    ),
    "attach before init_process_group, ranks not in the environment": (
        """
        environment = {name: os.environ.pop(name) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
        def begin(step):
            if step == 0:
                os.environ.update(environment)
                init()
                os.environ.update({name: "" for name in environment})
        train(Net(), before=begin)
        """,
        "3 valid",
    ),
}


def came_of(lines: list[str], scenario: str = "") -> str:
    """What the ranks printed, in a few words."""
    of = [line.replace(f" {scenario}|", "", 1) for line in lines if f"] {scenario}|" in line]
    said = next((line for line in of if line[3:].startswith(" refused")), "")
    watched = next((line for line in of if line.startswith("[0] records: ")), "")
    if not {"[0] trained", "[1] trained"} <= {*of}:
        return f"not trained: {of or lines}"
    if said and "valid" not in watched:  # of two that differ the second one refuses
        words = (
            "it began",
            "sharded over",
            "without FSDP1",
            "DTensor",
            "ZeRO-3",
            "split",
            "of other names or shapes",
        )
        found = [word for word in (*words, "stage 0 of 2") if word in said]
        return f"refused: {found[0]}" if found else said
    other = next((line for line in of if line.startswith("[1] records: ")), "")
    reasons = watched.split(": ", 1)[1]
    counted = [
        f"{number} {what}"
        for what, word in (
            ("valid", "valid"),
            ("communicate", "a forward without communication"),
            ("sharded", "as at attach"),
        )
        if (number := sum(word in reason for reason in reasons.split("; ")))
    ]
    also = "" if other == "[1] records: " else ", on both ranks"
    return ", ".join(counted or [reasons]) + also


def script_of(names: Sequence[str]) -> str:
    """One script that does several of ``RANKED``, one after the other."""
    parts = ["init()"]
    for name in names:
        body = textwrap.indent(textwrap.dedent(RANKED[name][0]), "    ")
        parts.append(
            f"def one():\n{body}\n"
            f"scenario = {name!r}\nfolder = Path(sys.argv[1]) / str({len(parts)})\n"
            "try:\n    one()\nexcept Exception as error:\n    report(repr(error))\ndist.barrier()\n"
        )
    return "\n".join(parts)


def _verified(make: Callable[[Any], object], act: Forward) -> Callable[[Path], str]:
    return lambda _: verified(make, act)


def _refused(make: Callable[[Any], object], act: Forward, name: str) -> Callable[[Path], str]:
    return lambda _: refused(make, act, name)


def _ranked(name: str) -> Callable[[Path], str]:
    return lambda folder: came_of(run_ranked(script_of([name]), folder), name)


def _unranked(name: str) -> Callable[[Path], str]:
    return lambda folder: came_of(run_ranked(UNRANKED[name][0], folder))


def _meta_default(_: Path) -> str:
    return _under_default_device("meta")


def _under_default_device(device: str) -> str:
    make, act = LEFTOVERS["a Python counter"]
    model, optimizer, _step = make_training(make, act)()
    x = torch.randn(5, WIDTH)
    proxy = _proxy()
    torch.set_default_device(device)
    try:
        with sw.watch(
            model, optimizer, logdir=None, proxy=proxy, every=1, scope="layers", max_overhead=None
        ) as watcher:
            for _ in range(3):
                model(x).square().mean().backward()
                optimizer.step()
    finally:
        torch.set_default_device(None)
    reasons = {record.reason for record in watcher.records if not record.valid}
    return f"{len(watcher.records)} valid" if not reasons else f"{sorted(reasons)}"


CASES = (
    *(
        Case(
            point="what a forward leaves",
            what=what,
            expected="the same bits",
            run=_verified(*pair),
        )
        for what, pair in LEFTOVERS.items()
    ),
    *(
        Case(
            point="what a forward leaves",
            what=what,
            expected="refused by name",
            run=_refused(*three),
        )
        for what, three in REFUSED.items()
    ),
    *(
        Case(point="ranks", what=what, expected=pair[1], run=_ranked(what))
        for what, pair in RANKED.items()
    ),
    *(
        Case(point="ranks", what=what, expected=pair[1], run=_unranked(what))
        for what, pair in UNRANKED.items()
    ),
    Case(
        point="device",
        what="set_default_device('meta'), the model on the CPU",
        expected="3 valid",
        run=_meta_default,
    ),
)
