"""``sw.verify``: the same training with and without a watch, and which bits differ.

``sw.assert_trains`` asks beside that whether all of it trains. The file is not called verify.py,
for then ``sparsitywatch.verify`` would be the module or the function, depending on which of them
was imported last.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import os
import queue
import random
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from sparsitywatch.analysis.causes import folded
from sparsitywatch.errors import (
    ConfigurationError,
    MeasurementError,
    TrainingError,
    expect,
    expect_whole,
)
from sparsitywatch.evaluation.model_copy import plain_state
from sparsitywatch.live.schedule import Schedule
from sparsitywatch.live.watch import option_names, watch
from sparsitywatch.live.watcher import Watcher
from sparsitywatch.proxy.apart import why_no_fork
from sparsitywatch.proxy.batches import preserve_rng
from sparsitywatch.proxy.proxy import Proxy
from sparsitywatch.ranks.protocol import ALONE
from sparsitywatch.records import Event, Record
from sparsitywatch.redact import logger, printable
from sparsitywatch.vital import AT_REST, VitalReviewer
from sparsitywatch.weights.layout import clean_name

_PLAIN = (str, bytes, bool, int, float, complex, type(None), torch.dtype, torch.device)
_MAX_LINES = 20  # differences that a text names
#: What names of Python's own state begin with: attributes, closures, globals, generators held.
STATE = "state"


class Leaf(NamedTuple):
    """One thing that is compared: a tensor as its bytes, anything else as a text."""

    text: str
    data: bytes = b""
    itemsize: int = 0


def leaves(name: str, value: Any) -> Iterator[tuple[str, Leaf]]:
    """What is in dicts, lists and tuples in each other, by name."""
    # bits, not values: NaN equals the same NaN, 0.0 is not -0.0. Of an object that is none of
    # torch, numpy or plain python only the type counts.
    if isinstance(value, (list, tuple)) and value:
        value = dict(enumerate(value))
    if isinstance(value, Mapping) and value:
        for key, item in value.items():
            yield from leaves(f"{name} {key}" if name else str(key), item)
    elif isinstance(value, (Mapping, list, tuple)):
        yield name, Leaf(f"empty {type(value).__name__}")
    elif isinstance(value, torch.Tensor):
        value = value.detach()
        value = value.to_local() if hasattr(value, "to_local") else value  # a DTensor's shard
        value = value if value.layout is torch.strided else value.to_dense()
        value = value.resolve_conj().resolve_neg().cpu().contiguous()
        text = f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
        data = value.reshape(-1).view(torch.uint8).numpy().tobytes()
        yield name, Leaf(text, data, value.element_size())
    elif isinstance(value, (np.ndarray, np.generic)):
        yield name, Leaf(f"{value.dtype} {list(value.shape)}", value.tobytes(), value.itemsize)
    else:
        yield name, Leaf(repr(value) if isinstance(value, _PLAIN) else type(value).__qualname__)


def detail(expected: Leaf | None, got: Leaf | None) -> str:
    """How two leaves of one name differ; None where there is no such leaf."""
    if expected == got:
        return "equal at the end"
    if expected and got and expected.itemsize and expected.text == got.text:
        one, other = (np.frombuffer(side.data, f"V{side.itemsize}") for side in (expected, got))
        differs = one != other
        return f"{differs.sum()} of {differs.size} elements differ"
    texts = [side.text if side else "nothing" for side in (expected, got)]
    if not (expected and got) or sum(map(len, texts)) < 80:
        return f"expected {texts[0]}, got {texts[1]}"
    odd = sorted(set(texts[0].split()) ^ set(texts[1].split()))
    return f"only in one of the two: {' '.join(odd)}" if odd else "in another order"


@dataclass(frozen=True)
class BuiltTraining:
    """A training that has been built and not begun, as ``verify`` describes it."""

    model: nn.Module
    optimizer: Any
    step: Callable[[], Any]
    others: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, made: object) -> BuiltTraining:
        """What ``make_training()`` returned; a ConfigurationError says which part it cannot be."""
        if isinstance(made, cls):
            return made
        if not isinstance(made, tuple) or len(made) not in (3, 4):
            came = f"{len(made)} of them" if isinstance(made, tuple) else type(made).__name__
            raise ConfigurationError(
                "Expected `make_training()` to return (model, optimizer, step) or (model, "
                f"optimizer, step, others), got {came}."
            )
        model, optimizer, step, others = (*made, {})[:4]
        has_state = optimizer is None or _has_state(optimizer)
        parts = [
            (isinstance(model, nn.Module), "`model`", "be a torch.nn.Module", model),
            (has_state, "`optimizer`", "be an optimizer or None", optimizer),
            (callable(step), "`step`", "be a function without arguments", step),
            (isinstance(others, Mapping), "`others`", "be a dict by name", others),
        ]
        for name, other in others.items() if isinstance(others, Mapping) else ():
            parts.append((_has_state(other), f"others[{name!r}]", "have a state_dict()", other))
        for is_right, part, what, came in parts:
            if not is_right:
                raise ConfigurationError(
                    f"Expected {part} from `make_training()` to {what}, got {type(came).__name__}."
                )
        return cls(*made)


def _has_state(thing: Any) -> bool:
    return callable(getattr(thing, "state_dict", None))


@dataclass(frozen=True)
class Trace:
    """What a training was, bit by bit, by name."""

    #: A hash of everything, before the first step and after each; the last ones are taken after
    #: the watch, if any, was closed.
    digests: tuple[Mapping[str, int], ...] = field(repr=False)
    #: Everything itself, at the end.
    last: Mapping[str, Leaf] = field(repr=False)
    seed: int = 0

    @property
    def steps(self) -> int:
        """Steps of training."""
        return len(self.digests) - 1


@dataclass(frozen=True)
class BitDifference:
    """One thing that two trainings do not share."""

    name: str  # what it is, such as "parameter encoder.0.weight" or "torch generator"
    first_step: int  # the step after which it was first seen; 0 is before the first step
    detail: str  # how much of it differs at the end

    def __repr__(self) -> str:
        return f"<BitDifference in {str(self)[:180]}>"

    def __str__(self) -> str:
        when = f"at step {self.first_step}" if self.first_step else "before the first step"
        return f"{printable(self.name)}: {self.detail}, first {when}"


class OtherThread:
    """A thread that draws from each global generator once a step, in an evaluation if there is."""

    def __init__(self) -> None:
        self.drawn: list[float] = []
        self._asked, self._done = queue.SimpleQueue[bool](), threading.Semaphore(0)
        self._thread: threading.Thread | None = None
        self._pid, self._is_due = os.getpid(), False  # it draws until half of the steps are done

    def begin(self, model: nn.Module) -> None:
        """Start, if evaluations can run beside it."""
        if not why_no_fork(model, ALONE):
            self._thread = threading.Thread(target=self._work, name="draws beside the training")
            self._thread.start()
            self._is_due = True

    def _work(self) -> None:
        while self._asked.get():
            numpys = np.random.random()  # noqa: NPY002 what user code draws from
            pythons = random.random()  # noqa: S311 the same
            self.drawn += [float(torch.rand(())), float(numpys), pythons]
            self._done.release()

    def draw(self, *, again: bool = False) -> None:
        """Have it draw, if it has not yet in this step; ``again``: then the next one begins."""
        if self._thread is not None and self._is_due and os.getpid() == self._pid:
            self._asked.put(True)
            self._done.acquire()
            self._is_due = again

    def within(self, proxy: Proxy) -> Proxy:
        """The proxy, in whose evaluations it draws."""
        inside = copy.copy(proxy)
        inside.value = functools.partial(self._beside, proxy.value)
        return inside

    def _beside(self, value: Callable[..., Any], *given: Any) -> Any:
        self.draw()
        return value(*given)

    def end(self) -> None:
        """Wait for its end."""
        if self._thread is not None:
            self._asked.put(False)
            self._thread.join()
            self._thread = None


def trace(
    make_training: Callable[[], Any],
    steps: int,
    seed: int = 0,
    attach: Callable[[BuiltTraining], AbstractContextManager[Any]] | None = None,
    other: OtherThread | None = None,
) -> Trace:
    """Train from the seed on, watched by what ``attach`` opens, and keep what it was by step."""
    with preserve_rng(), contextlib.ExitStack() as stack:
        torch.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002 what user code draws from
        random.seed(seed)
        training = BuiltTraining.of(make_training())
        thread = OtherThread() if other is None else other
        if other is not None:
            thread.begin(training.model)
        stack.callback(thread.end)
        with contextlib.nullcontext() if attach is None else attach(training) as watcher:
            thread.draw(again=True)
            returned, digests = None, []
            for number in range(steps):
                found = _leaves(training, returned, thread)
                digests.append({name: hash(bits) for name, bits in found.items()})
                if number == steps // 2:
                    thread.end()
                returned = training.step()
                if training.optimizer is None and watcher is not None:
                    watcher.step()
                thread.draw(again=True)
        last = _leaves(training, returned, thread)
    digests.append({name: hash(bits) for name, bits in last.items()})
    return Trace(tuple(digests), last, seed)


def compare(expected: Trace, got: Trace) -> tuple[BitDifference, ...]:
    """What differs between two traces, at the end or in between, in the order of appearance."""
    first_steps: dict[str, int] = {}
    for step, (one, other) in enumerate(zip(expected.digests, got.digests, strict=True)):
        for name in {**one, **other}:
            if one.get(name) != other.get(name):
                first_steps.setdefault(name, step)
    return tuple(
        BitDifference(name, step, detail(expected.last.get(name), got.last.get(name)))
        for name, step in first_steps.items()
    )


def _leaves(training: BuiltTraining, returned: Any, thread: OtherThread) -> dict[str, Leaf]:
    """Everything that a watch could disturb, by name."""
    model = training.model
    names, optimizer_state = _parameters_and_state(model, training.optimizer)
    modules = {name or "of the model": module for name, module in model.named_modules()}
    state = model.state_dict()
    _, numpy_words, *numpy_place = np.random.get_state()  # noqa: NPY002 what user code draws from
    _, python_words, python_gauss = random.getstate()
    everything = {
        "parameter": names,
        "gradient": {name: parameter.grad for name, parameter in names.items()},
        "requires_grad": {name: parameter.requires_grad for name, parameter in names.items()},
        "buffer": {clean_name(name): buffer for name, buffer in model.named_buffers()},
        "train/eval flag": {name: module.training for name, module in modules.items()},
        "attributes": {name: " ".join(sorted(vars(one))) for name, one in modules.items()},
        "state_dict keys": " ".join(state),
        "state_dict": {k: v for k, v in state.items() if not isinstance(v, torch.Tensor)},
        "optimizer": optimizer_state,
        **{name: other.state_dict() for name, other in training.others.items()},
        "returned by step()": returned,
        STATE: dict(plain_state(model)),
        "grad mode": torch.is_grad_enabled(),
        "torch generator": torch.get_rng_state(),
        "CUDA generator": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else None,
        "numpy generator": numpy_words,
        "numpy generator's position": repr(numpy_place),
        "python generator": np.array(python_words),
        "python generator's next gauss": python_gauss,
        "drawn by another thread": thread.drawn,
    }
    return dict(leaves("", everything))


def _parameters_and_state(
    model: nn.Module, optimizer: Any
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Parameters by name, also those that only the optimizer has; its state, by these names."""
    named: dict[str, torch.Tensor] = {clean_name(n): p for n, p in model.named_parameters()}
    name_of = {id(parameter): name for name, parameter in named.items()}
    by_number: dict[Any, str] = {}  # in the order of the numbers in the optimizer's state dict
    for group in getattr(optimizer, "param_groups", []):  # None has none
        for parameter in group["params"]:
            number = len(by_number)
            name = name_of.setdefault(id(parameter), f"{number} of the optimizer")
            named[name] = parameter
            by_number[number] = name
    state = {} if optimizer is None else dict(optimizer.state_dict())
    if isinstance(state.get("state"), Mapping):
        state["state"] = {by_number.get(key, key): v for key, v in state["state"].items()}
    return named, state


@dataclass(frozen=True)
class Verification:
    """Which bits of a training differ with a watch on it; print it to read it."""

    differences: tuple[BitDifference, ...]  # with a watch and without, in the order of appearance
    #: The same between two runs without any watch. If there is one, the training is not
    #: deterministic by itself, and ``differences`` say nothing about the watch.
    unstable: tuple[BitDifference, ...]
    records: tuple[Record, ...] = field(repr=False)  # what the watch saw
    baseline: Trace = field(repr=False)  # the training without a watch
    #: Names of Python's state that differs between any two runs, such as a time that a module
    #: remembers; left out of both.
    by_itself: frozenset[str] = field(default=frozenset(), repr=False)

    def __repr__(self) -> str:
        return (
            f"<Verification of {len(self.records)} records: {len(self.differences)} differences, "
            f"{len(self.unstable)} without a watch>"
        )

    @property
    def equal(self) -> bool:
        """Whether every bit is the same with and without the watch."""
        return not self.differences

    @property
    def deterministic(self) -> bool:
        """Whether every bit is the same in two runs without a watch."""
        return not self.unstable

    def __str__(self) -> str:
        extent = f"{len(self.baseline.last)} things after each of {self.baseline.steps} steps"
        invalid = [record for record in self.records if not record.valid]
        told = f", {len(invalid)} of them invalid: {invalid[0].reason}" if invalid else ""
        snapshots = f"{len(self.records)} snapshots{told}"
        if self.unstable:
            return _listing(
                "This training is not deterministic by itself: two runs without a watch differ, so "
                f"nothing can be said about the watch ({extent}). Seed every generator inside "
                "`make_training`; torch.use_deterministic_algorithms(True) names operations.",
                self.unstable,
            )
        if self.differences:
            head = f"The watch disturbs this training ({extent}, {snapshots}):"
            return _listing(head, self.differences)
        return f"Bit for bit the same with and without a watch: {extent}, {snapshots}."

    def raise_if_different(self) -> None:
        """Raise what ``str`` says if any bit differs.

        Raises:
            MeasurementError: the watch disturbs the training, or the training differs by
                itself.
        """
        if self.differences or self.unstable:
            raise MeasurementError(str(self))


def verify(
    make_training: Callable[[], Any],
    steps: int = 50,
    *,
    seed: int = 0,
    every: int | Schedule = 5,
    baseline: Verification | None = None,
    **watch_arguments: Any,
) -> Verification:
    """Train with and without a watch from the same seed, and say which bits differ.

    Compared after each step are parameters, buffers, gradients, the state of the optimizer and of
    ``others``, the generators of torch (all CUDA devices, too), numpy and python, requires_grad
    and the train/eval flag, the attributes of each module and what containers, plain objects,
    generators and closures in them hold, the keys of the state dict, and what ``step()`` returned.
    The training runs three times: twice without a watch, which shows whether it is deterministic
    by itself, then with one. On a CPU of Linux another thread draws from these generators during
    half of the steps. Each step is hashed on the CPU, so a small model answers sooner.

    Args:
        make_training: builds everything from scratch and returns
            ``(model, optimizer, step)`` or ``(model, optimizer, step, others)``: ``step()``
            does one whole training step, the optimizer's included; ``others`` is a dict of
            what else has a ``state_dict()``, such as a scaler or a scheduler. The optimizer
            may be None: ``watcher.step()`` is then called after each step.
        steps: how many steps to train, at least 1.
        seed: for the generators of torch, numpy and python before each run. The caller's
            generators are put back afterwards.
        every: a snapshot every so many optimizer steps, or a function step -> bool.
        baseline: an earlier answer about the same ``make_training``, ``steps`` and ``seed``
            whose runs without a watch are used again.
        watch_arguments: further arguments of ``sw.watch``, such as ``proxy``. Unless they
            are among them, nothing is written (``logdir``), and no snapshot that is due is left
            out (``max_overhead``).

    Returns:
        A report with ``equal``, ``differences`` and ``deterministic``; print it to read it,
        or call ``raise_if_different()``.

    Raises:
        ConfigurationError: an argument, or what ``make_training`` returned, cannot be used.
        MeasurementError: the watch took no snapshot, so nothing has been verified.

    >>> import torch
    >>> def make_training():
    ...     model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 1))
    ...     optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    ...     def step():
    ...         optimizer.zero_grad()
    ...         model(torch.randn(8, 4)).square().mean().backward()
    ...         optimizer.step()
    ...     return model, optimizer, step
    >>> report = verify(make_training, steps=4, every=2)
    >>> report.equal, report.deterministic, [record.step for record in report.records]
    (True, True, [2, 4])
    """
    _check(make_training, steps, seed, baseline, watch_arguments)
    if baseline is None:
        plain = trace(make_training, steps, seed, other=OtherThread())
        odd = compare(plain, trace(make_training, steps, seed, other=OtherThread()))
        # a time or a count of runs that an object remembers says nothing about the watch
        by_itself = frozenset(d.name for d in odd if d.name.startswith(f"{STATE} "))
        unstable = tuple(d for d in odd if d.name not in by_itself)
    else:
        plain = baseline.baseline
        unstable = baseline.unstable
        by_itself = baseline.by_itself
    watchers: list[Watcher] = []
    thread = OtherThread()

    def attach(training: BuiltTraining) -> Watcher:
        arguments = {"logdir": None, "max_overhead": None, **watch_arguments}
        proxy = arguments.get("proxy")
        if isinstance(proxy, Proxy) and arguments.get("threads_draw", True):
            arguments["proxy"] = thread.within(proxy)
        watchers.append(watch(training.model, training.optimizer, every=every, **arguments))
        return watchers[-1]

    watched = trace(make_training, steps, seed, attach, thread)
    (watcher,) = watchers
    if not watcher.records:
        raise MeasurementError(
            "Expected the watch to take at least one snapshot to verify, but "
            f"it saw {watcher.step_count} optimizer steps and none was due"
            f"{f' (it is off: {watcher.off})' if watcher.off else ''}. Lower `every` or raise "
            f"`steps` (now {steps})."
        )
    differences = tuple(d for d in compare(plain, watched) if d.name not in by_itself)
    return Verification(differences, unstable, tuple(watcher.records), plain, by_itself)


def assert_trains(
    make_training: Callable[[], Any],
    steps: int = 20,
    *,
    allow: Sequence[str] = (),
    **arguments: Any,
) -> Verification:
    """Train some steps and raise if a tensor does not train: a gate for CI.

    Args:
        make_training: as of ``verify``.
        steps: how many steps to train, at least 8.
        allow: patterns of names, such as "experts.*", that nothing is asked of: an event that is
            about these alone passes.
        arguments: further ones of ``verify``; unless ``every`` is one, there are five snapshots.

    Returns:
        What ``verify`` returns.

    Raises:
        TrainingError: a tensor that requires grad is not trained, is reached by no gradient, loses
            its updates in rounding, does not decay as stated, is not finite, was overwritten, or
            differs between ranks; or a watch changes bits. ``error.tensors`` has the names.
        MeasurementError: the parameters could not be compared, so nothing is known.
    """
    __tracebackhide__ = True  # pytest shows the line of the test
    expect_whole("steps", steps, 8)  # after which a gradient is known to be missing
    is_list = isinstance(allow, Sequence) and not isinstance(allow, str)
    is_right = is_list and all(isinstance(one, str) for one in allow)
    expect(is_right, "allow", 'patterns of names, such as ["experts.*"]', allow)
    given = {"scope": lambda _, p: p.requires_grad, "detectors": {}, "on_event": (), "strict": True}
    report = verify(make_training, steps, **{"every": max(steps // 5, 1), **given, **arguments})
    events: list[Event] = []
    for place, record in enumerate(report.records):
        unread = "no vital sign was read" if record.vital is None else record.vital.reason
        if why := record.reason or unread:
            raise MeasurementError(f"Expected parameters that can be compared, but {why}")
        events += VitalReviewer(patience=0).events(record, report.records[:place], events)
    # what is written is so on purpose, as masks are; a rate that begins at 0 may have risen
    vital = report.records[-1].vital
    last = () if vital is None else vital.findings
    passes = {"written", *AT_REST} - {finding.reason for finding in last}
    events = [event for event in events if passes.isdisjoint((event.kind, event.reason))]
    events = [one for e in events if (one := _without(allow, e)) is not None]
    if events:
        told = ["Expected a training in which every tensor trains."]
        told += [event.report() for event in folded(events)]
        raise TrainingError("\n  ".join(told), [name for e in events for name in e.layers])
    if report.unstable:
        logger.warning("%s", report)
    elif report.differences:
        raise TrainingError(str(report), [d.name.partition(" ")[2] for d in report.differences])
    return report


def _without(allow: Sequence[str], event: Event) -> Event | None:
    """The event without the tensors that are allowed for; None where it is of no other."""
    kept = tuple(n for n in event.layers if not any(fnmatchcase(n, one) for one in allow))
    if kept == event.layers:
        return event
    value = event.value - len(event.layers) + len(kept)
    return replace(event, layers=kept, value=value) if kept else None


def _check(
    make_training: object, steps: int, seed: int, baseline: Any, watch_arguments: dict[str, Any]
) -> None:
    """Refuse what could not be used before anything is trained."""
    what = "a function that builds a training"
    expect(callable(make_training), "make_training", what, make_training)
    expect_whole("steps", steps, 1)
    expect_whole("seed", seed, 0)
    expect(seed < 2**32, "seed", "below 2**32", seed)
    unknown = sorted(watch_arguments.keys() - option_names())
    if unknown:
        raise ConfigurationError(
            f"Expected arguments of sw.watch beside model and optimizer, got `{unknown[0]}`."
        )
    if baseline is None:
        return
    expect(isinstance(baseline, Verification), "baseline", "what verify returned", baseline)
    was = baseline.baseline
    if (was.steps, was.seed) != (steps, seed):
        raise ConfigurationError(
            f"Expected `baseline` to be of {steps} steps from seed {seed}, "
            f"got one of {was.steps} steps from seed {was.seed}."
        )


def _listing(head: str, differences: tuple[BitDifference, ...]) -> str:
    lines = [f"  {difference}" for difference in differences[:_MAX_LINES]]
    if len(differences) > _MAX_LINES:
        lines.append(f"  and {len(differences) - _MAX_LINES} more")
    return "\n".join([head, *lines])
