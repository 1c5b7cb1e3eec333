"""Where faults of the watch end, and what is not one.

=====================================  ===========================================================
exception                              where it goes
=====================================  ===========================================================
``Exception``                          ends here: logged, the record is invalid or the watch off
``SystemExit``                         ends here: a value function or a sink ends no training
raised by a handler of a signal        to the training, whatever its class: the user asked for it
``KeyboardInterrupt``                  to the training
any other ``BaseException``            to the training: made to pass ``except Exception``, such as
                                       ``GeneratorExit``, ``CancelledError``, a test's ``fail``
=====================================  ===========================================================

What goes to the training leaves by every ``finally`` on its way: the weights, flags, buffers and
generators are as they were before it arrives.
"""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Callable, Iterator
from types import CodeType, FrameType
from typing import Any

__all__ = ["boundary", "let_out", "note_signal_handlers"]

_SIGNALS = tuple(int(number) for number in signal.valid_signals())
#: Of handlers that were seen. One may put another in its place, and raise then.
_handlers: set[CodeType] = set()


@contextlib.contextmanager
def boundary(
    on_fault: Callable[[BaseException], object], *, strict: bool = False
) -> Iterator[None]:
    """Gives faults to ``on_fault``; what is none goes on, and with ``strict`` so do faults."""
    try:
        yield
    except BaseException as error:  # noqa: BLE001 sorted by let_out
        let_out(error, strict=strict)
        on_fault(error)


def let_out(error: BaseException, *, strict: bool = False) -> None:
    """Raise what is not a fault of the watch; call it where ``error`` was caught.

    Args:
        error: what was caught.
        strict: raise faults, too.
    """
    note_signal_handlers()
    for raised in _chain(error):
        if _is_of_signal(raised):
            raise raised
    if strict or not isinstance(error, (Exception, SystemExit)):
        raise error


def note_signal_handlers() -> None:
    """Remember what handles signals now, to know its exceptions later."""
    for number in _SIGNALS:
        code = _code(signal.getsignal(number))
        if code is not None:
            _handlers.add(code)


def _code(handler: Any) -> CodeType | None:
    """Of the function that runs first; None for the system's handlers and those not in Python."""
    if handler is signal.default_int_handler or not callable(handler):
        return None
    while hasattr(handler, "func") and not hasattr(handler, "__code__"):
        handler = handler.func  # of a functools.partial
    if not hasattr(handler, "__code__"):
        handler = type(handler).__call__
    code: CodeType | None = getattr(handler, "__code__", None)
    return code


def _is_of_signal(error: BaseException) -> bool:
    """Whether a handler of a signal was running when it was raised."""
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code in _handlers:
            return True
        trace = trace.tb_next
    return False


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The exception and those that led to it, but none that the training handles already."""
    handled_by = set(_callers())
    waiting: list[BaseException | None] = [error]
    seen: set[int] = set()
    while waiting:
        one = waiting.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        trace = one.__traceback__
        if one is error or (trace is not None and trace.tb_frame not in handled_by):
            yield one
            waiting += [one.__context__, one.__cause__]


def _callers() -> Iterator[FrameType]:
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        yield frame
        frame = frame.f_back
