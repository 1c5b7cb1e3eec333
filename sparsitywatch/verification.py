"""``verify``: the same training with and without a watch, and which bits differ.

The file is not called verify.py, for then ``sparsitywatch.verify`` would be the module or
the function, depending on which of them was imported last.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from sparsitywatch.attach import watch
from sparsitywatch.errors import ConfigurationError, MeasurementError
from sparsitywatch.records import Record
from sparsitywatch.schedule import Schedule
from sparsitywatch.training import STATE, Difference, Trace, Training, compare, trace
from sparsitywatch.watcher import Watcher

__all__ = ["Verification", "verify"]

_MAX_LINES = 20  # differences that a text names


@dataclass(frozen=True)
class Verification:
    """Which bits of a training differ with a watch on it; print it to read it.

    Args:
        differences: between the training with a watch and without, in the order in which
            they appeared; empty if there is none.
        unstable: the same between two runs without any watch. If there is one, the training
            is not deterministic by itself and ``differences`` say nothing about the watch.
        records: what the watch saw.
        baseline: the training without a watch.
        by_itself: names of Python's state that differs between any two runs, such as a time
            that a module remembers; left out of both.
    """

    differences: tuple[Difference, ...]
    unstable: tuple[Difference, ...]
    records: tuple[Record, ...] = field(repr=False)
    baseline: Trace = field(repr=False)
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
        looks = f"{len(self.records)} looks" + (
            f", {len(invalid)} of them invalid: {invalid[0].reason}" if invalid else ""
        )
        if self.unstable:
            return _listing(
                "This training is not deterministic by itself: two runs without a watch differ, so "
                f"nothing can be said about the watch ({extent}). Seed every generator inside "
                "`make_training`; torch.use_deterministic_algorithms(True) names operations.",
                self.unstable,
            )
        if self.differences:
            return _listing(
                f"The watch disturbs this training ({extent}, {looks}):", self.differences
            )
        return f"Bit for bit the same with and without a watch: {extent}, {looks}."

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
    by itself, then with one. Each step is hashed on the CPU, so a small model answers sooner.

    Args:
        make_training: builds everything from scratch and returns
            ``(model, optimizer, step)`` or ``(model, optimizer, step, others)``: ``step()``
            does one whole training step, the optimizer's included; ``others`` is a dict of
            what else has a ``state_dict()``, such as a scaler or a scheduler. The optimizer
            may be None: ``watcher.step()`` is then called after each step.
        steps: how many steps to train, at least 1.
        seed: for the generators of torch, numpy and python before each run. The caller's
            generators are put back afterwards.
        every: look every so many optimizer steps, or a function step -> bool.
        baseline: an earlier answer about the same ``make_training``, ``steps`` and ``seed``
            whose runs without a watch are used again.
        watch_arguments: further arguments of ``sw.watch``, such as ``proxy``. Unless they
            are among them, nothing is written (``logdir``), and no look that is due is left
            out (``max_overhead``).

    Returns:
        A report with ``equal``, ``differences`` and ``deterministic``; print it to read it,
        or call ``raise_if_different()``.

    Raises:
        ConfigurationError: an argument, or what ``make_training`` returned, cannot be used.
        MeasurementError: the watch never looked, so nothing has been verified.

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
        first = trace(make_training, steps, seed)
        plain = trace(make_training, steps, seed)
        unstable = compare(first, plain)
    else:
        plain, unstable = baseline.baseline, baseline.unstable
    # a time or a count of runs that an object remembers says nothing about the watch
    by_itself = {d.name for d in unstable if d.name.startswith(f"{STATE} ")}
    by_itself |= set() if baseline is None else baseline.by_itself
    unstable = tuple(d for d in unstable if d.name not in by_itself)
    watchers: list[Watcher] = []

    @contextlib.contextmanager
    def attach(training: Training) -> Iterator[Watcher]:
        arguments = {"logdir": None, "max_overhead": None, **watch_arguments}
        with watch(training.model, training.optimizer, every=every, **arguments) as watcher:
            watchers.append(watcher)
            yield watcher

    watched = trace(make_training, steps, seed, attach)
    (watcher,) = watchers
    if not watcher.records:
        raise MeasurementError(
            "Expected the watch to look at least once, so that there is something to verify, but "
            f"it saw {watcher.step_count} optimizer steps and none was one to look at"
            f"{f' (it is off: {watcher.off})' if watcher.off else ''}. Lower `every` or raise "
            f"`steps` (now {steps})."
        )
    differences = tuple(d for d in compare(plain, watched) if d.name not in by_itself)
    return Verification(differences, unstable, tuple(watcher.records), plain, frozenset(by_itself))


def _check(
    make_training: object,
    steps: object,
    seed: object,
    baseline: Verification | None,
    watch_arguments: dict[str, Any],
) -> None:
    """Refuse what could not be used before anything is trained."""
    if not callable(make_training):
        raise ConfigurationError(
            "Expected `make_training` to be a function that builds a training, "
            f"got {type(make_training).__name__}."
        )
    for name, number, lowest in (("steps", steps, 1), ("seed", seed, 0)):
        is_whole = isinstance(number, int) and not isinstance(number, bool)
        if not is_whole or not lowest <= number < 2**32:  # type: ignore[operator]
            raise ConfigurationError(
                f"Expected `{name}` to be a whole number of at least {lowest}, got {number!r}."
            )
    known = set(inspect.signature(watch).parameters) - {"model", "optimizer"}
    unknown = sorted(set(watch_arguments) - known)
    if unknown:
        raise ConfigurationError(
            f"Expected arguments of sw.watch beside model and optimizer, got `{unknown[0]}`."
        )
    if baseline is None:
        return
    if not isinstance(baseline, Verification):
        raise ConfigurationError(
            f"Expected `baseline` to be what verify returned, got {type(baseline).__name__}."
        )
    was = baseline.baseline.steps, baseline.baseline.seed
    if was != (steps, seed):
        raise ConfigurationError(
            f"Expected `baseline` to be of {steps} steps from seed {seed}, "
            f"got one of {was[0]} steps from seed {was[1]}."
        )


def _listing(head: str, differences: tuple[Difference, ...]) -> str:
    lines = [f"  {difference}" for difference in differences[:_MAX_LINES]]
    if len(differences) > _MAX_LINES:
        lines.append(f"  and {len(differences) - _MAX_LINES} more")
    return "\n".join([head, *lines])
