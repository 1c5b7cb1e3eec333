"""The watch on a ``transformers.Trainer``, in one line.

::

    trainer = Trainer(..., callbacks=[SparsityWatchCallback(proxy, every=500)])
"""

from __future__ import annotations

import inspect
import logging
import os
from pathlib import Path
from typing import Any

import torch

from sparsitywatch.attach import watch
from sparsitywatch.errors import ConfigurationError, MissingExtraError
from sparsitywatch.pruning.proxy import Proxy
from sparsitywatch.watcher import Watcher

try:
    from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
except ImportError as error:
    raise MissingExtraError("transformers", "huggingface", "SparsityWatchCallback") from error

__all__ = ["SparsityWatchCallback"]

_logger = logging.getLogger("sparsitywatch")
_STATE_FILE = "sparsitywatch.pt"


class SparsityWatchCallback(TrainerCallback):
    """Watches the model that a Trainer trains, from its first step to its last.

    The log goes to ``<logdir>/sparsitywatch``, a TensorBoard run beside the Trainer's own.
    The watch's state is saved into each checkpoint folder and taken up again when the
    Trainer resumes from it.

    Args:
        proxy: what to evaluate, or None to look at the weights only.
        logdir: by default the environment variable ``TENSORBOARD_LOGGING_DIR``, else
            ``<output_dir>/runs``; the same for every launch of a run, so that a resumed
            one goes on in it.
        watch_options: as of ``sparsitywatch.watch``: every, scope, levels, on_event, ...

    Raises:
        ConfigurationError: an option that ``sparsitywatch.watch`` does not know.
    """

    def __init__(
        self, proxy: Proxy | None = None, *, logdir: str | None = None, **watch_options: Any
    ) -> None:
        known = set(inspect.signature(watch).parameters) - {"model", "optimizer", "initial_step"}
        unknown = sorted(set(watch_options) - known)
        if unknown:
            raise ConfigurationError(
                f"Expected options of sparsitywatch.watch, one of {sorted(known)}, got {unknown}."
            )
        self._proxy, self._logdir, self._options = proxy, logdir, watch_options
        self.watcher: Watcher | None = None

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,  # noqa: ARG002 the Trainer passes it by position
        **trainer: Any,
    ) -> None:
        """Attach to the Trainer's model and optimizer."""
        if self.watcher is not None:
            self.watcher.close()
        self.watcher = watch(
            trainer["model"],
            trainer["optimizer"],
            proxy=self._proxy,
            logdir=self._logdir or _default_logdir(args),
            initial_step=state.global_step,
            **self._options,
        )
        saved = _checkpoint(args, state) / _STATE_FILE
        if state.global_step > 0 and not self.watcher.off:
            if saved.exists():
                self.watcher.load_state_dict(torch.load(saved, weights_only=True))
            else:
                _logger.warning(
                    "sparsitywatch: no %s; going on from the log alone, without the decay clock "
                    "and the motion since the last look",
                    saved,
                )

    def on_save(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,  # noqa: ARG002 the Trainer passes it by position
        **_: Any,
    ) -> None:
        """Put the watch's state beside the checkpoint that was just saved."""
        folder = _checkpoint(args, state)
        if self.watcher is None or self.watcher.off or not folder.is_dir():
            return
        temporary = folder / f"{_STATE_FILE}.tmp"
        try:
            torch.save(self.watcher.state_dict(), temporary)
            temporary.replace(folder / _STATE_FILE)
        except OSError:
            _logger.exception("sparsitywatch: the watch's state was not saved; training goes on")

    def on_train_end(
        self,
        args: TrainingArguments,  # noqa: ARG002 the Trainer passes it by position
        state: TrainerState,  # noqa: ARG002 the Trainer passes it by position
        control: TrainerControl,  # noqa: ARG002 the Trainer passes it by position
        **_: Any,
    ) -> None:
        """Detach."""
        if self.watcher is not None:
            self.watcher.close()


def _default_logdir(args: TrainingArguments) -> str:
    return os.environ.get("TENSORBOARD_LOGGING_DIR") or str(_output(args) / "runs")


def _checkpoint(args: TrainingArguments, state: TrainerState) -> Path:
    return _output(args) / f"checkpoint-{state.global_step}"


def _output(args: TrainingArguments) -> Path:
    return Path(args.output_dir or "trainer_output")  # the Trainer's own default
