"""What every framework's callback does: attach, restore a state, pass on requests, detach."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

from typing_extensions import Unpack

from sparsitywatch.actions import SaveNow, StopTraining, log_event
from sparsitywatch.errors import ConfigurationError, contain_faults, expect, reraise_foreign
from sparsitywatch.live.watch import WatchOptions, watch
from sparsitywatch.live.watcher import Watcher
from sparsitywatch.proxy.proxy import Proxy
from sparsitywatch.records import Event
from sparsitywatch.redact import logger, redacted_error

#: The ``on_event`` of a callback: functions, and words for some of ``sw.actions``.
OnEvent = Sequence[Callable[[Event], object] | str]


class Watching:
    """What the callbacks of all frameworks begin with."""

    _is_asked = False  # whether only the environment asks for it

    def __init__(
        self,
        proxy: Proxy | None = None,
        *,
        logdir: str | None = None,
        on_event: OnEvent = ("log",),
        **watch_options: Unpack[WatchOptions],
    ) -> None:
        self._attached = Attached(proxy, on_event, watch_options, is_asked=self._is_asked)
        self._logdir = logdir

    @property
    def watcher(self) -> Watcher | None:
        """The watch on the latest training; None before the first one."""
        return self._attached.watcher


class Attached:
    """The watch of a callback. What goes wrong in it is logged, and the training goes on.

    Args:
        proxy, on_event, options: as of ``SparsityWatchCallback``; ConfigurationError if unknown.
        is_asked: log mistakes, too, since nobody has written the call.
    """

    def __init__(
        self, proxy: Proxy | None, on_event: OnEvent, options: WatchOptions, *, is_asked: bool
    ) -> None:
        known = WatchOptions.__annotations__.keys()
        unknown = sorted(options.keys() - known)
        expect(not unknown, "watch_options", f"of sparsitywatch.watch: {sorted(known)}", unknown)
        is_proxy = proxy is None or isinstance(proxy, Proxy)
        expect(is_proxy, "proxy", "a sw.Proxy(batches, value) or None", proxy)
        self._proxy, self._options, self._is_asked = proxy, options, is_asked
        self._on_event = _as_actions(on_event)
        self._is_strict = options.get("strict", False)
        self.watcher: Watcher | None = None

    def begin(self, model: Any, optimizer: Any, *, logdir: str | None, step: int | None) -> bool:
        """Attach after so many steps, if that is known; whether there is a state to restore."""
        self.end()
        self.watcher, is_resumed = None, step != 0
        try:
            self.watcher = watch(
                model, optimizer, logdir=logdir, proxy=self._proxy, on_event=self._on_event,
                initial_step=step, **self._options,
            )  # fmt: skip
        except BaseException as error:
            # at the first launch also a disk that is full is one; later nobody may be there
            is_mistake = isinstance(error, ConfigurationError) and not (
                is_resumed and isinstance(error.__cause__, OSError)
            )
            reraise_foreign(error, strict=self._is_strict or (is_mistake and not self._is_asked))
            logger.exception("attaching failed; training goes on unwatched")
            return False
        return is_resumed and not self.watcher.why_idle

    def restore(
        self, read: Callable[[], Mapping[str, Any] | None], where: object, *, is_first: bool
    ) -> None:
        """Go on from a saved state, or without it; only the first rank warns."""

        def say(error: BaseException) -> None:
            # others are told by the first one what it took up, and may not see its folder
            level = logging.WARNING if is_first else logging.INFO
            words = (
                "%s cannot be taken up (%s). The decay clock and the motion since the last "
                "snapshot are lost. The watch goes on from the log, or begins a new one if numbers "
                "could not be compared with those in it."
            )
            logger.log(level, words, where, redacted_error(error))

        with contain_faults(say, strict=self._is_strict):
            state = read()
            if state is None:
                say(FileNotFoundError("it is not there"))
            elif self.watcher is not None:
                self.watcher.load_state_dict(state)

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps of the watch; empty if none is on."""
        return {} if self.watcher is None or self.watcher.why_idle else self.watcher.state_dict()

    def log_loss(self, value: Any, step: int | None) -> None:
        """Report the loss of the training, if the framework gives one."""
        if self.watcher is not None and value is not None:
            with self.contained("reporting the loss"):
                self.watcher.log_loss(value, step)

    def requests(self, *, is_last: bool) -> list[tuple[SaveNow | StopTraining, bool]]:
        """Each action that asks something of the trainer, and whether it does so now."""
        wanted = [a for a in self._on_event if isinstance(a, SaveNow | StopTraining)]
        if is_last and self.watcher is not None:
            # a snapshot that is on its way may ask for something, and loggers end before the watch
            with self.contained("waiting for the last snapshot"):
                _events = self.watcher.events
        return [(request, request.take() is not None) for request in wanted]

    def end(self, error: BaseException | None = None) -> None:
        """Detach; ``error`` is what has ended the training."""
        if self.watcher is not None:
            with self.contained("closing the watch"):
                self.watcher.__exit__(type(error), error)

    def contained(self, what: str) -> AbstractContextManager[None]:
        """Around everything that is done for the watch: what fails in it is logged."""

        def say(_: BaseException) -> None:
            logger.exception("%s failed; training goes on", what)

        return contain_faults(say, strict=self._is_strict)


def _as_actions(on_event: Any) -> list[Callable[[Event], object]]:
    words: Mapping[str, Callable[[], Any]]
    words = {"log": lambda: log_event, "save": SaveNow, "stop": StopTraining}
    is_list = isinstance(on_event, Sequence) and not isinstance(on_event, str)
    is_good = is_list and all(callable(action) or action in words for action in on_event)
    expect(is_good, "on_event", f"a list of functions and of the words {sorted(words)}", on_event)
    return [words[action]() if isinstance(action, str) else action for action in on_event]
