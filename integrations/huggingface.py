"""The watch on a ``transformers.Trainer``, in one line.

::

    trainer = Trainer(..., callbacks=[SparsityWatchCallback(proxy, every=500)])

On several ranks (torchrun; DDP or FSDP2) the callback of each of them watches, and the first one
writes.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import distributed
from typing_extensions import Unpack

from sparsitywatch.actions import SaveNow
from sparsitywatch.errors import MissingExtraError
from sparsitywatch.integrations.attached import OnEvent, Watching
from sparsitywatch.live.watch import WatchOptions
from sparsitywatch.proxy.batches import save_whole

try:
    from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
except ImportError as error:
    raise MissingExtraError("transformers", "huggingface", "SparsityWatchCallback") from error

__all__ = ["SparsityWatchCallback"]

_STATE_FILE = "sparsitywatch.pt"


class SparsityWatchCallback(Watching, TrainerCallback):
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

    @classmethod
    def from_eval(
        cls, trainer: Any, examples: int = 128, *, logdir: str | None = None,
        on_event: OnEvent = ("log",), **options: Unpack[WatchOptions],
    ) -> SparsityWatchCallback:  # fmt: skip
        """Watch with the loss on some rows of the Trainer's own ``eval_dataset`` and collator.

        ``trainer.add_callback(SparsityWatchCallback.from_eval(trainer, every=500))``. The rows are
        spread evenly, masked once, always the same way; padding does not count. The rest is as
        of the callback.
        """
        from sparsitywatch.integrations.language_models import eval_proxy

        return cls(eval_proxy(trainer, examples), logdir=logdir, on_event=on_event, **options)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, *_: Any, **trainer: Any
    ) -> None:
        """Attach to the Trainer's model and optimizer."""
        logdir = self._logdir or os.environ.get("TENSORBOARD_LOGGING_DIR")
        logdir = logdir or str(_output(args) / "runs")
        if self._attached.begin(
            trainer["model"], trainer["optimizer"], logdir=logdir, step=state.global_step
        ):
            saved = _checkpoint(args, state) / _STATE_FILE
            self._attached.restore(
                lambda: torch.load(saved, weights_only=True) if saved.exists() else None,
                saved,
                is_first=state.is_world_process_zero,
            )

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> TrainerControl:
        """Pass on to the Trainer what the events since the last step ask for."""
        is_last = state.global_step >= state.max_steps or control.should_training_stop
        requests = self._attached.requests(is_last=is_last)
        wanted = _agreed([is_wanted for _, is_wanted in requests], args) if requests else []
        for (request, _own), is_wanted in zip(requests, wanted, strict=True):
            if isinstance(request, SaveNow):
                control.should_save |= is_wanted
            else:
                control.should_training_stop |= is_wanted
        return control

    def on_log(self, *given: Any, **trainer: Any) -> None:
        """Report the loss; to find where its spikes began log it every ten steps, or more often."""
        state = given[1]
        self._attached.log_loss((trainer.get("logs") or {}).get("loss"), state.global_step)

    def on_save(self, args: TrainingArguments, state: TrainerState, *_: Any, **__: Any) -> None:
        """Put the watch's state beside the checkpoint that was just saved."""
        with self._attached.contained("saving the watch's state"):
            folder = _checkpoint(args, state)
            watch_state = self._attached.state() if folder.is_dir() else {}
            if watch_state and state.is_world_process_zero:
                save_whole(watch_state, folder / _STATE_FILE)

    def on_train_end(self, *_: Any, **__: Any) -> None:
        """Detach."""
        self._attached.end()


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
