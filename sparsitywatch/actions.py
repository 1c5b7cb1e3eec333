"""What is done when an event is seen: functions of the event, for ``on_event``.

::

    sw.watch(..., on_event=[
        sw.actions.log_event,                          # the default
        sw.actions.Webhook("https://example.com/hook"),
        sw.actions.SaveCheckpoint(lambda event: save(model, f"at-{event.detected_step}.pt")),
    ])

Actions run in the training's thread, one after the other. One that raises is logged and
the training goes on; one that has ``close`` is closed with the watch. An event that a
resumed run knows from its log, or that is only added to, calls no action again.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from sparsitywatch.errors import ConfigurationError
from sparsitywatch.records import Event
from sparsitywatch.webhook import Webhook

__all__ = ["SaveCheckpoint", "SaveNow", "StopTraining", "Webhook", "log_event"]

_logger = logging.getLogger("sparsitywatch")


def log_event(event: Event) -> None:
    """The default action: a warning through the logger "sparsitywatch"."""
    _logger.warning("sparsitywatch: %s", event.describe())


class SaveCheckpoint:
    """Calls a function that saves what the user wants saved, a limited number of times.

    Args:
        save: called with the event, in the training's thread, at most once for each. It
            may raise: the failure is logged, and does not count.
        max_saves: how often at most, in this process; disks are finite.
        meaning: only for events of this meaning, "sparsifying" or "densifying"; by
            default for all.

    Raises:
        ConfigurationError: an argument cannot be used.

    >>> saved = []
    >>> action = SaveCheckpoint(lambda event: saved.append(event.detected_step), max_saves=1)
    >>> for step in (5, 9):
    ...     action(Event(series="s", direction="up", onset_step=step - 1, detected_step=step,
    ...                  baseline=0.0, value=1.0))
    >>> saved
    [5]
    """

    def __init__(
        self, save: Callable[[Event], object], *, max_saves: int = 3, meaning: str = ""
    ) -> None:
        if not callable(save):
            raise ConfigurationError(
                f"Expected `save` to be a function that takes the event, got {save!r}."
            )
        if isinstance(max_saves, bool) or not isinstance(max_saves, int) or max_saves < 1:
            raise ConfigurationError(f"Expected `max_saves` >= 1, got {max_saves!r}.")
        if meaning not in ("", "sparsifying", "densifying"):
            raise ConfigurationError(
                f"Expected `meaning` to be 'sparsifying', 'densifying' or '', got {meaning!r}."
            )
        self._save, self._max_saves, self._meaning = save, max_saves, meaning
        self._seen: set[str] = set()
        self._num_saves = 0

    def __call__(self, event: Event) -> None:
        """Save for this event, unless that was done or enough was saved."""
        if event.id in self._seen or (self._meaning and event.meaning != self._meaning):
            return
        self._seen.add(event.id)
        if self._num_saves >= self._max_saves:
            _logger.warning(
                "sparsitywatch: nothing saved at %s: max_saves=%d were", event.id, self._max_saves
            )
            return
        self._save(event)
        self._num_saves += 1


class _Request:
    """An action that only remembers that something is wanted, for the loop to do.

    ``SparsityWatchCallback`` passes it on to a Trainer. Any other loop asks itself.
    """

    def __init__(self) -> None:
        self._event: Event | None = None

    def __call__(self, event: Event) -> None:
        """Remember the event; the first one that nobody has answered counts."""
        if self._event is None:
            self._event = event

    @property
    def is_requested(self) -> bool:
        """Whether an event was seen since the last ``take``."""
        return self._event is not None

    def take(self) -> Event | None:
        """The event that asks, once; None if there is none."""
        event, self._event = self._event, None
        return event


class SaveNow(_Request):
    """Asks for a checkpoint at the end of the step.

    In ``SparsityWatchCallback(on_event=["save"])`` the Trainer saves, with its optimizer
    and the state of the watch. In a loop of one's own::

        save = sw.actions.SaveNow()      # on_event=[save]
        if save.take(): torch.save(...)
    """


class StopTraining(_Request):
    """Asks for the end of the training after this step.

    In ``SparsityWatchCallback(on_event=["stop"])`` the Trainer ends. In a loop of one's
    own, ``if stop.is_requested: break``.
    """
