"""What goes wrong: the exceptions, the checks of arguments, and where a fault of the watch ends.

docs/errors.md has the tree of exceptions, and where each fault of a watch that is attached goes.
What goes to the training leaves by every ``finally`` on its way: the weights, flags, buffers and
generators are as they were before it arrives. Logins, signatures and control characters are left
out of every message (``redact.py``), whoever wrote it.
"""

from __future__ import annotations

import contextlib
import difflib
import numbers
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import CodeType
from typing import Any

from sparsitywatch.redact import redacted

__all__ = [
    "CheckpointError", "ConfigurationError", "IncompleteCheckpointError", "LogTakenError",
    "MeasurementError", "MissingExtraError", "ProxyError", "RanksError", "ScopeError",
    "SparsityWatchError", "StateError", "TrainingError",
]  # fmt: skip


def __dir__() -> list[str]:
    return __all__


class SparsityWatchError(Exception):
    """Base of everything this library raises on purpose."""

    def __init__(self, *args: object) -> None:
        super().__init__(*(redacted(arg) if isinstance(arg, str) else arg for arg in args))


class ConfigurationError(SparsityWatchError, ValueError):
    """A call that cannot mean anything: raised before anything is touched or written."""


class ScopeError(ConfigurationError):
    """The selection of in-scope weights is empty or cannot be understood."""


class ProxyError(ConfigurationError):
    """The proxy's batches or its value function cannot be used."""


class StateError(SparsityWatchError, ValueError):
    """Saved state that lacks a key, or belongs to another model, proxy or schema."""


class LogTakenError(SparsityWatchError, RuntimeError):
    """A log that another watch has taken over: what comes late is not written into it."""


class CheckpointError(SparsityWatchError, ValueError):
    """A checkpoint that cannot be read, or whose own description of itself is not true.

    Nothing of it has been executed, and no memory was taken on its word.
    """


class IncompleteCheckpointError(CheckpointError):
    """A checkpoint that is not all there, or out of reach for now: it may be worth a wait."""


class MeasurementError(SparsityWatchError, RuntimeError):
    """A measurement that failed or contradicts itself; its record is marked invalid."""


class TrainingChangedError(MeasurementError):
    """An evaluation has changed what the training goes on from; the watch ends."""


class TrainingError(SparsityWatchError, AssertionError):
    """A training that does not pass ``sw.assert_trains``; ``tensors`` names those that do not."""

    def __init__(self, message: str, tensors: Iterable[str] = ()) -> None:
        super().__init__(message)
        self.tensors = tuple(dict.fromkeys(tensors))


class RanksError(SparsityWatchError, RuntimeError):
    """Ranks that watch together are at different places, or one does not answer any more."""


class MissingExtraError(SparsityWatchError, ImportError):
    """An optional dependency is needed and missing; the message names the extra."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(
            f"Expected the package {package!r} for {purpose}, but it is not installed. "
            f"Install the extra: pip install 'sparsitywatch[{extra}]'"
        )


_SIGNALS = tuple(int(number) for number in signal.valid_signals())
#: Of handlers that were seen. One may put another in its place, and raise then.
_handlers: set[CodeType | None] = set()


@contextlib.contextmanager
def contain_faults(
    on_fault: Callable[[BaseException], object], *, strict: bool = False
) -> Iterator[None]:
    """Gives faults to ``on_fault``; what is none goes on, and with ``strict`` so do faults."""
    try:
        yield
    except BaseException as error:  # noqa: BLE001 sorted by reraise_foreign
        reraise_foreign(error, strict=strict)
        on_fault(error)


def reraise_foreign(error: BaseException, *, strict: bool = False) -> None:
    """Raise what is not a fault of the watch, with ``strict`` faults, too; call it on catching."""
    note_signal_handlers()
    for raised in _chain(error):
        frames = traceback.walk_tb(raised.__traceback__)
        if any(frame.f_code in _handlers for frame, _ in frames):
            raise raised
    if strict or not isinstance(error, (Exception, SystemExit)):
        raise error


def note_signal_handlers() -> None:
    """Remember what handles signals now, to know its exceptions later."""
    for handler in filter(callable, map(signal.getsignal, _SIGNALS)):
        if handler is not signal.default_int_handler:
            first: Any = handler  # the function that runs first; of some not in Python
            while hasattr(first, "func") and not hasattr(first, "__code__"):
                first = first.func  # of a functools.partial
            if not hasattr(first, "__code__"):
                first = type(first).__call__
            _handlers.add(getattr(first, "__code__", None))


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The exception and those that led to it, but none that the training handles already."""
    handled_by = {frame for frame, _ in traceback.walk_stack(sys._getframe(1))}
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


#: What torch's CPU allocators say in a plain RuntimeError.
_CPU_MESSAGES = ("can't allocate memory", "not enough memory")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory was missing, on whatever device."""
    kinds = {kind.__name__ for kind in type(error).__mro__}
    if kinds & {"MemoryError", "OutOfMemoryError"}:  # torch's, not imported here
        return True
    return isinstance(error, RuntimeError) and any(m in str(error) for m in _CPU_MESSAGES)


# ------------------------------------------------------------------ checks of arguments

#: Longest repr of what came that a message repeats.
_LONGEST = 80


def expect(is_good: object, name: str, what: str, came: object) -> None:
    """Refuse an argument unless it is good.

    >>> expect(False, "steps", "at least 1", 0)
    Traceback (most recent call last):
    ...
    sparsitywatch.errors.ConfigurationError: Expected `steps` to be at least 1, got 0.
    """
    if not is_good:
        raise _refused(name, what, came)


def _refused(name: str, what: str, came: object) -> ConfigurationError:
    shown = repr(came)
    if len(shown) > _LONGEST:
        shown = f"{shown[:_LONGEST]}... ({type(came).__name__})"
    return ConfigurationError(f"Expected `{name}` to be {what}, got {shown}.")


def is_number(value: object) -> bool:
    """Whether it is a real number; True and False are none."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def expect_number(name: str, value: Any, is_good: Callable[[float], bool], what: str) -> None:
    """Refuse what is no number, or not one for which ``is_good`` holds."""
    expect(is_number(value) and is_good(value), name, what, value)


def expect_whole(name: str, value: Any, lowest: int) -> None:
    """Refuse what is no whole number, or below ``lowest``."""
    is_whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    expect(is_whole and value >= lowest, name, f"a whole number >= {lowest}", value)


def listed(name: str, values: Any, what: str) -> list[Any]:
    """The members of a list, a tuple or the like; a text is none of them."""
    try:
        if not isinstance(values, str | bytes | type):
            return list(values)
    except TypeError:  # such as a number, or an array without dimensions
        pass
    raise _refused(name, what, values)


def expect_numbers(name: str, values: Any, what: str) -> tuple[float, ...]:
    """Numbers as floats, out of a list, an array or a tensor."""
    if type(values) is tuple and set(map(type, values)) <= {float}:
        return values  # as read from a log, thousands of times
    found = []
    for index, value in enumerate(listed(name, values, what)):
        expect(not isinstance(value, str | bytes), f"{name}[{index}]", "a number", value)
        try:
            found.append(float(value))
        except (TypeError, ValueError, RuntimeError, OverflowError):
            raise _refused(f"{name}[{index}]", "a number", value) from None
    return tuple(found)


def expect_functions(name: str, functions: Any) -> None:
    """Refuse what is no sequence of functions."""
    what = "a sequence of functions"
    if callable(functions):
        raise _refused(name, f"{what}; put a single function in a list", functions)
    expect(all(map(callable, listed(name, functions, what))), name, what, functions)


def expect_mapping(name: str, value: Any, what: str) -> None:
    """Refuse what is no mapping from texts."""
    is_good = isinstance(value, Mapping) and all(isinstance(key, str) for key in value)
    expect(is_good, name, what, value)


def expect_path(name: str, value: Any, what: str) -> None:
    """Refuse what is neither text nor a path."""
    expect(isinstance(value, str | os.PathLike) and value != "", name, what, value)


class Seam:
    """What classes of one's own extend: a method that is called nearly as one of it is refused."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        seam = next(base for base in cls.__mro__ if Seam in base.__bases__)
        names = {_plain(name): name for name in vars(seam) if not name.startswith("_")}
        for name, value in vars(cls).items():
            near = difflib.get_close_matches(_plain(name), names, 1, 0.85)
            near += [plain for plain in names if sorted(plain) == sorted(_plain(name))]
            if name.startswith("_") or not near:
                continue
            meant = names[near[0]]  # beside it, the name is of a helper
            is_method = callable(vars(seam)[meant]) <= (
                callable(value) or isinstance(value, staticmethod | classmethod)
            )
            if is_method and meant not in vars(cls) and not hasattr(seam, name):
                raise ConfigurationError(
                    f"Expected the {seam.__name__.lower()} {cls.__name__} to have no {name!r}, "
                    f"nearly {meant!r} and never called. Write that, or choose another name."
                )


def _plain(name: str) -> str:
    """A name of a method as a slip may spell it."""
    return name.removeprefix("on_").replace("_", "").lower()
