"""Running somebody's model in the middle of training and leaving no trace."""

from __future__ import annotations

import contextlib
import random
import sys
from collections.abc import Iterator

import numpy as np
import torch
from torch import nn

from sparsitywatch.errors import MeasurementError
from sparsitywatch.pruning.collectives import without_collectives
from sparsitywatch.pruning.kept import Kept

__all__ = ["preserved_rng", "undisturbed"]


@contextlib.contextmanager
def preserved_rng() -> Iterator[None]:
    """Put the global generators of torch (all devices), numpy and python back afterwards.

    Iterating a DataLoader draws from torch's generator even where nothing is shuffled.
    """
    cuda = torch.cuda.is_available()
    torch_state = torch.get_rng_state()
    cuda_states = torch.cuda.get_rng_state_all() if cuda else []
    # numpy's global generator is what user code draws from, whether we like it or not
    numpy_state = np.random.get_state()  # noqa: NPY002
    python_state = random.getstate()
    try:
        yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)  # noqa: NPY002
        torch.set_rng_state(torch_state)
        if cuda:
            torch.cuda.set_rng_state_all(cuda_states)


@contextlib.contextmanager
def undisturbed(
    model: nn.Module, value: object = None, *, copies_parameters: bool = False
) -> Iterator[Kept]:
    """Evaluation mode, without gradients, eagerly; everything is as before afterwards.

    Put back are the global generators, the train/eval flag of every module, and all that
    ``Kept`` knows of the model and of the value function. Weights that autocast has cast and
    cached are dropped before and after, and none are cached meanwhile: a cached cast would
    hide the masks. Compiled code runs eagerly. Forward hooks of the user fire as in any forward. No
    collective may begin where other processes would have to take part.

    Args:
        model: what runs.
        value: a function that runs it, and may keep something itself.
        copies_parameters: put back the contents of parameters, too; else a change is an error.

    Raises:
        MeasurementError: something was left behind that cannot be put back, or a collective
            was about to begin; the rest is as before.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(preserved_rng())
        stack.enter_context(_preserved_flags(model))
        stack.enter_context(_uncached_autocast())
        if "torch._dynamo" in sys.modules:  # else nothing can have been compiled
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        stack.enter_context(torch.no_grad())
        for module in model.modules():
            # Not model.eval(): a user's own train() may freeze, merge or print.
            module.training = False
        kept = Kept(model, value, copies_parameters=copies_parameters)
        try:
            with without_collectives():
                yield kept
        except Exception:
            _put_back(kept)
            _refuse_lost(kept)  # it may be the cause
            raise
        finally:
            _put_back(kept)
        _refuse_lost(kept)


def _refuse_lost(kept: Kept) -> None:
    if lost := kept.lost():
        raise MeasurementError(
            "Expected a forward that leaves nothing behind which cannot be put back, since the "
            f"training goes on from it, but it changed {', '.join(lost[:5])}"
            f"{f' and {len(lost) - 5} more' if len(lost) > 5 else ''}. Let the module do so "
            "only `if self.training`, or leave `proxy` out."
        )


def _put_back(kept: Kept) -> None:
    try:
        kept.put_back()
    except BaseException:  # a second Ctrl-C in the middle: finish first, then let it out
        kept.put_back()
        raise


@contextlib.contextmanager
def _preserved_flags(model: nn.Module) -> Iterator[None]:
    flags = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, flag in flags:
            module.training = flag


@contextlib.contextmanager
def _uncached_autocast() -> Iterator[None]:
    enabled = torch.is_autocast_cache_enabled()
    torch.clear_autocast_cache()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(enabled)
        torch.clear_autocast_cache()
