"""The watch on a ``transformers.Trainer``, in one line.

::

    trainer = Trainer(..., callbacks=[SparsityWatchCallback(proxy, every=500)])

With ``on_event=["log", "save"]`` the Trainer saves a checkpoint when an event is seen.

On several ranks (torchrun; DDP or FSDP2) the callback of each of them watches, and the first one
writes.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import distributed

from sparsitywatch.actions import SaveNow, StopTraining, log_event
from sparsitywatch.errors import (
    ConfigurationError,
    MissingExtraError,
    contain_faults,
    reraise_foreign,
)
from sparsitywatch.live.watch import option_names, watch
from sparsitywatch.live.watcher import Watcher
from sparsitywatch.pruning.batches import save_whole
from sparsitywatch.pruning.proxy import Proxy
from sparsitywatch.records import Event
from sparsitywatch.redact import logger, redacted_error

try:
    from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
except ImportError as error:
    raise MissingExtraError("transformers", "huggingface", "SparsityWatchCallback") from error

__all__ = ["SparsityWatchCallback"]

_STATE_FILE = "sparsitywatch.pt"


class SparsityWatchCallback(TrainerCallback):
    """Watches the model that a Trainer trains, from its first step to its last.

    The log goes to ``<logdir>/sparsitywatch``, a TensorBoard run beside the Trainer's own.
    The watch's state is saved into each checkpoint folder and taken up again when the
    Trainer resumes from it, be it on another number of ranks.

    Args:
        proxy: what to evaluate, or None to measure the weights only.
        logdir: by default the environment variable ``TENSORBOARD_LOGGING_DIR``, else
            ``<output_dir>/runs``; the same for every launch of a run, so that a resumed
            one goes on in it.
        on_event: called with each event, as of ``sparsitywatch.watch``. The words "log",
            "save" and "stop" log a warning and ask the Trainer, through its control object,
            to save a checkpoint and to stop, at the end of the step at which the event is
            delivered. So do ``actions.SaveNow()`` and ``actions.StopTraining()``.
        watch_options: as of ``sparsitywatch.watch``: every, scope, levels, ...

    Raises:
        ConfigurationError: an option that ``sparsitywatch.watch`` does not know, or a word
            in ``on_event`` that is not one of these.
    """

    def __init__(
        self,
        proxy: Proxy | None = None,
        *,
        logdir: str | None = None,
        on_event: Sequence[Callable[[Event], object] | str] = ("log",),
        **watch_options: Any,
    ) -> None:
        known = option_names() - {"initial_step"}
        unknown = sorted(watch_options.keys() - known)
        if unknown:
            raise ConfigurationError(
                f"Expected options of sparsitywatch.watch, one of {sorted(known)}, got {unknown}."
            )
        self._proxy = proxy
        self._logdir = logdir
        self._options = watch_options
        self._on_event = _as_actions(on_event)
        self.watcher: Watcher | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, *_: Any, **trainer: Any
    ) -> None:
        """Attach to the Trainer's model and optimizer."""
        self.on_train_end()
        self.watcher = None
        is_resumed = state.global_step > 0
        logdir = self._logdir or os.environ.get("TENSORBOARD_LOGGING_DIR")
        try:
            self.watcher = watch(
                trainer["model"],
                trainer["optimizer"],
                proxy=self._proxy,
                logdir=logdir or str(_output(args) / "runs"),
                initial_step=state.global_step,
                on_event=self._on_event,
                **self._options,
            )
        except BaseException as error:
            # at the first launch also a disk that is full is one; later nobody may be there
            is_mistake = isinstance(error, ConfigurationError) and not (
                is_resumed and isinstance(error.__cause__, OSError)
            )
            reraise_foreign(error, strict=is_mistake or self._is_strict)
            logger.exception("attaching failed; training goes on unwatched")
            return
        if is_resumed and not self.watcher.off:
            saved = _checkpoint(args, state) / _STATE_FILE
            self._restore(self.watcher, saved, is_first=state.is_world_process_zero)

    def _restore(self, watcher: Watcher, saved: Path, *, is_first: bool) -> None:
        """Go on from the state in a checkpoint, or without it; as the first rank can."""

        def say(error: BaseException) -> None:
            # others are told by the first one what it took up, and may not see its folder
            level = logging.WARNING if is_first else logging.INFO
            words = (
                "%s cannot be taken up (%s). The decay clock and the motion since the last "
                "snapshot are lost. The watch goes on from the log, or begins a new one if numbers "
                "could not be compared with those in it."
            )
            logger.log(level, words, saved, redacted_error(error))

        with contain_faults(say, strict=self._is_strict):
            if not saved.exists():
                say(FileNotFoundError("it is not there"))
                return
            watcher.load_state_dict(torch.load(saved, weights_only=True))

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> TrainerControl:
        """Pass on to the Trainer what the events since the last step ask for."""
        requests = [a for a in self._on_event if isinstance(a, (SaveNow, StopTraining))]
        if not requests:
            return control
        if self.watcher is not None and state.global_step >= state.max_steps:
            # the last chance: a snapshot that is on its way may ask for something
            with self._contained("waiting for the last snapshot"):
                _events = self.watcher.events
        wanted = [request.take() is not None for request in requests]
        for request, is_wanted in zip(requests, _agreed(wanted, args), strict=True):
            if isinstance(request, SaveNow):
                control.should_save |= is_wanted
            else:
                control.should_training_stop |= is_wanted
        return control

    def on_save(self, args: TrainingArguments, state: TrainerState, *_: Any, **__: Any) -> None:
        """Put the watch's state beside the checkpoint that was just saved."""
        with self._contained("saving the watch's state"):
            folder = _checkpoint(args, state)
            if self.watcher is None or self.watcher.off or not folder.is_dir():
                return
            watch_state = self.watcher.state_dict()
            if watch_state and state.is_world_process_zero:
                save_whole(watch_state, folder / _STATE_FILE)

    def on_train_end(self, *_: Any, **__: Any) -> None:
        """Detach."""
        if self.watcher is not None:
            with self._contained("closing the watch"):
                self.watcher.close()

    @property
    def _is_strict(self) -> bool:
        return bool(self._options.get("strict", False))

    def _contained(self, what: str) -> AbstractContextManager[None]:
        """Around everything that is done for the watch: what fails in it is logged."""

        def say(_: BaseException) -> None:
            logger.exception("%s failed; training goes on", what)

        return contain_faults(say, strict=self._is_strict)


def _as_actions(on_event: object) -> list[Callable[[Event], object]]:
    words: dict[str, Callable[[], Callable[[Event], object]]] = {
        "log": lambda: log_event,
        "save": SaveNow,
        "stop": StopTraining,
    }
    given = on_event if isinstance(on_event, Sequence) else ()
    is_list = isinstance(on_event, Sequence) and not isinstance(on_event, str)
    if not is_list or not all(callable(action) or action in words for action in given):
        raise ConfigurationError(
            f"Expected `on_event` to be a list of functions and of the words {sorted(words)}, "
            f"got {on_event!r}."
        )
    return [words[action]() if isinstance(action, str) else action for action in given]


def _agreed(wanted: list[bool], args: TrainingArguments) -> list[bool]:
    """What rank 0 wants, on every rank: a Trainer that saves or stops alone hangs."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return wanted
    flags = torch.tensor(wanted, dtype=torch.int32, device=args.device)
    distributed.broadcast(flags, src=0)
    return [bool(flag) for flag in flags.tolist()]


def _checkpoint(args: TrainingArguments, state: TrainerState) -> Path:
    return _output(args) / f"checkpoint-{state.global_step}"


def _output(args: TrainingArguments) -> Path:
    return Path(args.output_dir or "trainer_output")  # the Trainer's own default
