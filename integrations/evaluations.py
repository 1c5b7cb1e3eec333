"""What a script trains that nobody edits, and its proxy: as named, or of its trainer's own rows."""

from __future__ import annotations

import gc
import importlib
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

from sparsitywatch.errors import ConfigurationError, ProxyError
from sparsitywatch.live.trace import unwrap_optimizers
from sparsitywatch.proxy.apart import others
from sparsitywatch.proxy.batches import preserve_rng
from sparsitywatch.proxy.proxy import Proxy

__all__ = ["Found"]

#: Held-out rows of transformers' Trainer that are evaluated, and batches of Lightning's.
_EXAMPLES, _BATCHES = 128, 16
#: Trainers by the module that has them, with what they call the model and their optimizers.
_TRAINERS = {
    "transformers.trainer": ("model", "optimizer"),
    "lightning.pytorch.trainer.trainer": ("lightning_module", "optimizers"),
    "pytorch_lightning.trainer.trainer": ("lightning_module", "optimizers"),
}


class Found:
    """Finds the model and the proxy of an optimizer's trainer, in the middle of a script.

    Args:
        name: "module:function" of a proxy, or of what returns one; None for the trainer's own.
        mains: names by which the script itself is meant.
    """

    def __init__(self, name: str | None, mains: Sequence[str]) -> None:
        self._name, self._mains = name, mains

    def model(self, optimizer: torch.optim.Optimizer) -> nn.Module | None:
        """What the trainer trains; None without one."""
        return next((model for _, model in _trainers_of(optimizer)), None)

    def proxy(self, optimizer: torch.optim.Optimizer) -> Proxy | None:
        """The proxy; None if there is none. ConfigurationError, ProxyError: it cannot be made."""
        trainers = [trainer for trainer, _ in _trainers_of(optimizer)]
        if (names := others()) and (self._name is not None or trainers):
            raise ProxyError(
                f"Expected no other thread that may draw while the proxy is made, got {names[0]}: "
                "what it drew would be drawn again. Begin it after the first step."
            )
        with preserve_rng():  # what makes it may draw, and the script goes on as if it had not
            if self._name is not None:
                return self._named(self._name)
            made = map(_held_out, trainers)
            return next((proxy for proxy in made if proxy is not None), None)

    def _named(self, name: str) -> Proxy:
        module, _, attribute = name.partition(":")
        sys.path.append("")  # last: the script finds its own modules before
        try:
            found: Any = importlib.import_module("__main__" if module in self._mains else module)
            for part in attribute.split("."):
                found = getattr(found, part)
            proxy = found if isinstance(found, Proxy) else found()
        except Exception as error:
            raise ConfigurationError(
                f"Expected `--proxy` to be module:function, and the function to return a sw.Proxy, "
                f"got {type(error).__name__} from {name!r}: {error}"
            ) from error
        finally:
            sys.path.remove("")
        if not isinstance(proxy, Proxy):
            raise ConfigurationError(
                f"Expected {name!r} of `--proxy` to return a sw.Proxy, got {type(proxy).__name__}."
            )
        return proxy


def _trainers_of(optimizer: torch.optim.Optimizer) -> Iterator[tuple[Any, nn.Module]]:
    """Trainers that train with an optimizer, and what each trains."""
    kinds = {
        sys.modules[name].Trainer: own for name, own in _TRAINERS.items() if name in sys.modules
    }
    for one in gc.get_objects() if kinds else ():
        if issubclass(type(one), tuple(kinds)):
            (model, held), *_ = (own for kind, own in kinds.items() if isinstance(one, kind))
            found, optimizers = getattr(one, model, None), getattr(one, held, None)
            if isinstance(found, nn.Module) and optimizer in _unwrapped(optimizers):
                yield one, found


def _unwrapped(optimizers: Any) -> tuple[torch.optim.Optimizer, ...]:
    try:
        return unwrap_optimizers(optimizers or None)
    except ConfigurationError:  # a placeholder, until there are some
        return ()


def _held_out(trainer: Any) -> Proxy | None:
    """The proxy of a trainer's own rows to evaluate; None if it has none."""
    if not hasattr(trainer, "fit_loop"):
        from sparsitywatch.integrations.language_models import eval_proxy

        return None if trainer.eval_dataset is None else eval_proxy(trainer, _EXAMPLES)
    source = trainer.fit_loop.epoch_loop.val_loop._data_source
    if source.instance is None or not source.is_defined():
        return None
    loaders = source.dataloader()
    while isinstance(loaders, list | tuple | dict):
        loaders = next(iter(loaders.values() if isinstance(loaders, dict) else loaders))
    return Proxy(loaders, _validated, name="held-out validation loss", max_batches=_BATCHES)


def _validated(model: nn.Module, batch: Any) -> torch.Tensor:
    """The loss that a LightningModule returns from ``validation_step``, or logs there."""
    logged: dict[str, Any] = {}
    step: Any = model.validation_step
    own = {"log": lambda name, value, *_, **__: logged.setdefault(name, value),
           "log_dict": lambda values, *_, **__: logged.update(values)}  # fmt: skip
    vars(model).update(own)  # a trainer's own results are of its training
    try:
        found = step(batch, 0) if step.__code__.co_argcount > 2 else step(batch)
    finally:
        for name in own:
            del vars(model)[name]
    if isinstance(found, torch.Tensor):
        return found.reshape(-1)
    told = {**(found if isinstance(found, dict) else {}), **logged}
    losses = [value for name, value in told.items() if "loss" in name.lower()]
    if not losses or not isinstance(losses[0], torch.Tensor):
        raise ConfigurationError(
            "Expected `validation_step` to return a loss, or to log one under a name with 'loss' "
            f"in it, got {sorted(told)}. Name a proxy: --proxy module:function."
        )
    return losses[0].reshape(-1)
