"""The watch on a Lightning ``Trainer``, in one line.

::

    trainer = Trainer(..., callbacks=[SparsityWatch(proxy, every=500)])

Lightning's own checkpoints keep the watch's state. On several ranks (DDP; FSDP2 by
``ModelParallelStrategy``) the callback of each of them watches, and the first one writes.

With the environment variable ``SPARSITYWATCH_LIGHTNING=1`` every Trainer has this callback without
an edit: Lightning finds it by its entry point.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from sparsitywatch.actions import SaveNow
from sparsitywatch.errors import MissingExtraError
from sparsitywatch.integrations.attached import Watching

if TYPE_CHECKING:
    from lightning.pytorch import Callback, LightningModule, Trainer
elif "pytorch_lightning" in sys.modules and "lightning.pytorch" not in sys.modules:
    Callback = sys.modules["pytorch_lightning"].Callback  # the other name of the same library
else:
    try:
        from lightning.pytorch import Callback
    except ImportError as error:
        raise MissingExtraError("lightning", "lightning", "SparsityWatch") from error

__all__ = ["SparsityWatch"]

_KEY = "sparsitywatch"  # of a checkpoint


class SparsityWatch(Watching, Callback):
    """Watches the module that a Lightning Trainer trains, from its first step to its last.

    With several optimizers a step is one of that which holds most of the weights in scope, while
    Lightning's ``global_step`` counts each.

    Args:
        proxy: what to evaluate, or None to measure the weights only. Its value function gets the
            LightningModule.
        logdir: by default the folder that holds the versions of a logger (``lightning_logs``), else
            ``default_root_dir``; the same for every launch of a run, so that a resumed one goes on
            in it. The log goes to ``<logdir>/sparsitywatch``. A ``fast_dev_run`` writes none.
        on_event: called with each event, as of ``sparsitywatch.watch``. The words "log", "save" and
            "stop" log a warning, save a checkpoint into ``<logdir>/sparsitywatch-saved`` and stop
            the Trainer, after the batch at which the event is delivered. So do
            ``actions.SaveNow()`` and ``actions.StopTraining()``.
        watch_options: as of ``sparsitywatch.watch``: every, scope, levels, ...

    Raises:
        ConfigurationError: an option or a word in ``on_event`` is not known.
    """

    _saved: Mapping[str, Any] = MappingProxyType({})  # of the checkpoint that training goes on from

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Attach: by now there are optimizers, parts of the model, and what a checkpoint holds."""
        if self not in _watching(trainer):
            return
        saved = self._saved or self._attached.state()  # else of an earlier fit
        # Lightning makes one up where it knows of none
        real = [x for x in trainer.optimizers if type(x).__name__ != "_MockOptimizer"]
        optimizer, step, self._saved = real[0] if len(real) == 1 else None, trainer.global_step, {}
        known = step if step == 0 or optimizer is not None else None
        logdir = None if trainer.fast_dev_run else self._folder(trainer)  # type: ignore[attr-defined]
        if self._attached.begin(pl_module, optimizer, logdir=logdir, step=known):
            words = "the checkpoint's state of the watch"
            self._attached.restore(lambda: saved or None, words, is_first=trainer.is_global_zero)

    def on_train_batch_end(self, trainer: Trainer, *given: Any, **_: Any) -> None:
        """Report the loss; save and stop, if the events since the last batch ask for it."""
        outputs = given[1] if given[1:] else None  # of the training step, after the module
        loss = outputs.get("loss") if isinstance(outputs, dict) else None
        self._attached.log_loss(loss, trainer.global_step)
        self._answer(trainer)

    def on_save_checkpoint(self, trainer: Trainer, _: Any, checkpoint: dict[str, Any]) -> None:
        """Put the watch's state into Lightning's checkpoint; called on every rank."""
        if self in _watching(trainer):  # before a training: what it is about to restore
            state = self._saved or self._attached.state()
            checkpoint.setdefault(_KEY, []).append(state)

    def on_load_checkpoint(self, trainer: Trainer, _: Any, checkpoint: dict[str, Any]) -> None:
        """Keep the state until training starts, if the checkpoint is not loaded to test it."""
        if trainer.state.fn != "fit":
            return
        states = dict(zip(_watching(trainer), checkpoint.get(_KEY, []), strict=False))
        self._saved = states.get(self, {})

    def on_exception(self, _: Any, __: Any, exception: BaseException) -> None:
        """Detach, and log what has ended the training."""
        self._attached.end(exception)

    def on_train_end(self, trainer: Trainer, *_: Any) -> None:
        """Save for what the last snapshot saw, and detach."""
        self._answer(trainer, is_last=True)
        self._attached.end()

    def _answer(self, trainer: Trainer, *, is_last: bool = False) -> None:
        if not (requests := self._attached.requests(is_last=is_last)):
            return
        # what the first one wants, on every rank: who saves or stops alone waits for the others
        wanted = trainer.strategy.broadcast([is_wanted for _, is_wanted in requests], src=0)
        for (request, _), is_wanted in zip(requests, wanted, strict=True):
            if is_wanted and isinstance(request, SaveNow):
                name = f"step={trainer.global_step}.ckpt"
                # what fails on one of several ranks cannot be kept from the others
                is_alone = trainer.world_size == 1
                with self._attached.contained("saving") if is_alone else nullcontext():
                    trainer.save_checkpoint(Path(self._folder(trainer), f"{_KEY}-saved", name))
            elif is_wanted:
                trainer.should_stop = True

    def _folder(self, trainer: Trainer) -> str:
        found = getattr(trainer.logger, "root_dir", None)  # each launch has a version inside it
        is_path = isinstance(found, str | os.PathLike)  # a DummyLogger has any attribute
        return self._logdir or str(found if is_path else trainer.default_root_dir)


class AskedFor(SparsityWatch):
    """The one that the environment asks for. Mistakes are logged; where you gave one, it rests."""

    _is_asked = True


def _watching(trainer: Trainer) -> list[SparsityWatch]:
    """Those of the Trainer's callbacks that watch."""
    found = [one for one in trainer.callbacks if isinstance(one, SparsityWatch)]  # type: ignore[attr-defined]
    return [one for one in found if not one._is_asked] or found
