"""Watches on what a script trains that knows of none, from an optimizer's first step on."""

from __future__ import annotations

import gc
import weakref
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from torch import nn

from sparsitywatch.errors import (
    ConfigurationError,
    ProxyError,
    SparsityWatchError,
    contain_faults,
)
from sparsitywatch.live.schedule import with_first_looks
from sparsitywatch.live.trace import Optimizer, Step, StepHook
from sparsitywatch.live.watch import watch
from sparsitywatch.live.watcher import Watcher
from sparsitywatch.pipeline.rundir import Claim
from sparsitywatch.proxy.proxy import Proxy
from sparsitywatch.ranks.protocol import ALONE
from sparsitywatch.redact import redacted_error

#: Optimizers that are looked at in a process: some scripts make one for each inner loop.
_MOST = 32


class OfTrainer(Protocol):
    """What is known of the trainer that an optimizer belongs to, if it has one."""

    def model(self, optimizer: Optimizer, /) -> nn.Module | None:
        """What it trains."""

    def proxy(self, optimizer: Optimizer, /) -> Proxy | None:
        """How well that does."""


class Unedited:
    """Watches the module of each optimizer, into a folder by its class; options as of ``watch``."""

    def __init__(
        self,
        logdir: Path,
        tell: Callable[[str], object],
        of_trainer: OfTrainer | None = None,
        *,
        every: int,
        **options: Any,
    ) -> None:
        self._logdir, self._tell = logdir, tell
        self._options = {**options, "every": with_first_looks(every)}
        self._of_trainer = of_trainer
        self._looked_at: weakref.WeakSet[Optimizer] = weakref.WeakSet()
        self._num_of: Counter[str] = Counter()  # modules by class
        self._told: set[str] = set()
        self.num_looked_at = 0
        self.claims: dict[str, Claim] = {}  # of the logs that this process writes, by their names
        self._hook = StepHook(self._before, self._after)

    def _before(self, optimizer: Optimizer) -> None:
        kind = type(optimizer).__name__
        with contain_faults(lambda e: self._say(f"{kind} is not watched: {redacted_error(e)}")):
            if optimizer not in self._looked_at:
                self._looked_at.add(optimizer)
                self.num_looked_at += 1
                self._look_at(optimizer)
        if self.num_looked_at == _MOST:
            self._hook.remove()
            self._say(f"no more is watched: it has looked at {_MOST} optimizers")

    def _after(self, _: Step) -> None:
        """Nothing: what it has attached sees the step."""

    def _say(self, words: str) -> None:
        """Tell it once, on one of several ranks."""
        if words not in self._told and not ALONE.why_another_watches():
            self._tell(words)
        self._told.add(words)

    def _look_at(self, optimizer: Optimizer) -> None:
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        ids, kind = set(map(id, parameters)), type(optimizer).__name__
        for watcher in [*Watcher._all]:  # the script's own, or one of an earlier optimizer
            if not watcher.closed and ids <= held_by(watcher._taker.model.module)[0].keys():
                watcher._hook.tie_to(optimizer)
                return
        is_part = len(ids) == 1 and not hasattr(parameters[0], "_is_flat_param")
        of_trainer = self._of_trainer
        module = None if is_part or of_trainer is None else of_trainer.model(optimizer)
        if not is_part and (module := module or module_of(ids)) is not None:
            self._attach(module, optimizer)
            return
        why = "a single tensor's step is part of one" if is_part else "no module was found for it"
        self._say(f"{kind} is not watched: {why}. Use `sw.watch` and `watcher.step()` instead")

    def _attach(self, module: nn.Module, optimizer: Optimizer) -> None:
        name = type(module).__name__
        self._num_of[name] += 1
        name += f"-{self._num_of[name]}" if self._num_of[name] > 1 else ""
        attach = partial(watch, module, logdir=self._logdir / name, **self._options)
        words = ""
        try:
            try:
                found = None if self._of_trainer is None else self._of_trainer.proxy(optimizer)
                watcher = attach(proxy=found)
            except (ProxyError, ConfigurationError) as error:
                watcher, words = attach(), f". No evaluation: {redacted_error(error)}"
            if not (why := watcher.off) and watcher._trace.steps_done == 0:
                watcher.snapshot()  # as it begins: the first step is not waited for
            if watcher._pipeline.claim.directory is not None:
                self.claims[name] = watcher._pipeline.claim
        except SparsityWatchError as error:
            why = redacted_error(error)
        where = f"is watched, and logs into {self._logdir / name}{words}"
        self._say(f"{name} {f'is not watched: {why}' if why else where}")


def module_of(parameters: set[int]) -> nn.Module | None:
    """The module that is trained where these parameters are, by their ids; None if none is.

    That is the smallest one that holds them, and what else it uses and nobody trains: an adapter's
    is the model that it is in.
    """

    def size(one: nn.Module) -> tuple[bool | int, ...]:
        # FSDP1's wrapper knows what the module inside it has. Of those that hold the same the class
        # of a script says more than torch's own
        held, modules = held_by(one)
        num_frozen = sum(not held[key] for key in held.keys() - parameters)
        is_list = issubclass(type(one), nn.ModuleList | nn.ModuleDict)  # which cannot be called
        origins = {kind.__module__.partition(".")[0] for kind in type(one).__mro__}
        is_of_torch = origins <= {"torch", "abc", "typing", "builtins"}
        size = len(held) - num_frozen, is_list, -num_frozen, is_of_torch, len(modules)
        return "_handle" not in vars(one), *size

    modules = [one for one in gc.get_objects() if issubclass(type(one), nn.Module)]
    found = [one for one in modules if parameters and parameters <= held_by(one)[0].keys()]
    return min(found, key=size, default=None)


def held_by(module: nn.Module) -> tuple[dict[int, bool], set[int]]:
    """Whether each parameter in a module is trained, by its id, and the ids of the modules in it.

    No method of theirs is called.
    """
    parameters, modules, waiting = dict[int, bool](), {id(module)}, [module]
    while waiting:
        inside = vars(waiting.pop())
        every = inside.get("_parameters", {}).values()
        parameters.update((id(one), one.requires_grad) for one in every if one is not None)
        every = inside.get("_modules", {}).values()
        new = [one for one in every if one is not None and id(one) not in modules]
        modules.update(map(id, new))
        waiting += new
    return parameters, modules
