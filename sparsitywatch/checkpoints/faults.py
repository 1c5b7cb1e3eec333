"""What goes wrong with files and storages: what is said of it, and what is asked again."""

from __future__ import annotations

import errno
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import ParamSpec, TypeVar

from sparsitywatch.errors import CheckpointError, IncompleteCheckpointError
from sparsitywatch.redact import redacted_error


def one_line(error: BaseException) -> str:
    """The kind and the first words of another library's error."""
    return redacted_error(error)[:240]


# ------------------------------------------------------------------ of a storage

#: Before each further try, in seconds: what passes has mostly passed after a few.
_PAUSES_S = (0.5, 1.0, 2.0, 4.0)
#: Why a storage gives no answer, where it may give one a moment later: by the answers of servers,
#: the numbers of the system's errors, and the classes that are raised.
_OUT_OF_ORDER = "The storage is out of order, or out of reach; try again later."
_PASSING: dict[object, str] = {
    429: "The storage limits how often it is asked (429); log in, or try again later.",
    **dict.fromkeys((408, 425, 500, 502, 503, 504), _OUT_OF_ORDER),
    **dict.fromkeys(("EAGAIN", "EBUSY", "ESTALE", "ETIMEDOUT", "ENETUNREACH", "EHOSTUNREACH"),
                    _OUT_OF_ORDER),
    **dict.fromkeys(("TimeoutError", "ConnectionError"), _OUT_OF_ORDER),
}  # fmt: skip
_LOG_IN = "log in with `hf auth login`, or set HF_TOKEN"
_NO_SUCH = (
    "there is no repository of this name, or it is private or gated. Check the name; if it is "
    f"right, {_LOG_IN} of an account that may read it"
)
#: The same where waiting helps nothing, with what to do.
_REFUSALS: dict[object, str] = {
    "GatedRepoError": f"the repository is gated. Accept its terms on its page, and {_LOG_IN}",
    "DisabledRepoError": "the hub has disabled the repository. Use a copy of it",
    "RepositoryNotFoundError": _NO_SUCH,
    "BucketNotFoundError": _NO_SUCH,
    "OfflineModeIsEnabled": "the hub is not asked, as HF_HUB_OFFLINE is set. Unset it",
    "PermissionError": "permission denied ({error}). Give read access to it",
    401: "the server asks who you are (401). Log in, or give credentials as `storage_options`",
    403: "permission denied (403). Give these credentials read access, or check the name: some "
    "servers answer so where there is nothing",
}
#: Errors of clients that need not be installed, by words in their names.
_CLIENTS = ("aiohttp", "botocore", "httpcore", "httpx", "httpx2", "requests", "urllib3")
_PASSING_NAME = re.compile(
    r"Timeout|TimedOut|Disconnected|Connect(?:ion|or|Error)|Protocol(?:Error)?$|ReadError|Payload"
    r"|IncompleteRead|ChunkedEncoding"
)

_Asked = ParamSpec("_Asked")
_Answer = TypeVar("_Answer")


class NoAccessError(CheckpointError):
    """A storage that refuses: waiting alone helps nothing."""


def _signs(error: BaseException) -> Iterator[object]:
    """What the tables know an error by, and then what has caused it: the closest first."""
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        yield from (kind.__name__ for kind in type(cause).__mro__)
        status = _status(cause)
        if status is not None:
            yield status
        elif isinstance(cause, OSError):
            yield errno.errorcode.get(cause.errno or 0)
        kind = type(cause)
        if kind.__module__.split(".")[0] in _CLIENTS and _PASSING_NAME.search(kind.__name__):
            yield "ConnectionError"
        cause = cause.__cause__ or cause.__context__


def _status(error: BaseException) -> int | None:
    """The answer of a server by its number, wherever a client's error keeps it."""
    response = getattr(error, "response", None)
    if isinstance(response, Mapping):  # botocore's
        status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    else:
        status = getattr(response, "status_code", getattr(error, "status", None))
    return status if isinstance(status, int) and status > 0 else None


def cause_of(error: BaseException) -> tuple[str, bool]:
    """Why a storage gives nothing, if that is known, and whether it may pass."""
    for sign in _signs(error):
        if sign in _PASSING:
            return _PASSING[sign], True
        if sign in _REFUSALS:
            return _REFUSALS[sign].format(error=one_line(error)), False
        if isinstance(sign, int):  # a server has answered
            break
    return "", False


def may_pass(error: BaseException) -> bool:
    """Whether asking again may help: no answer, or a server that is out of order."""
    return cause_of(error)[1]


def asked(
    what: str, ask: Callable[_Asked, _Answer], *args: _Asked.args, **kwargs: _Asked.kwargs
) -> _Answer:
    """What a storage answers, asked again a few times where the fault may pass.

    Every other error becomes one of ours, which begins with ``what``: "Cannot read s3://b/a.pt".
    """
    for pause_s in (*_PAUSES_S, None):
        try:
            return ask(*args, **kwargs)
        except CheckpointError:  # noqa: PERF203 asking again is what this is for
            raise
        except Exception as error:  # whatever a storage raises, such as botocore's own
            if pause_s is None or not may_pass(error):
                raise _explained(what, error) from error
            time.sleep(pause_s)
    raise AssertionError  # the last pause is None


def _explained(what: str, error: Exception) -> CheckpointError:
    why, is_passing = cause_of(error)
    is_missing = isinstance(error, FileNotFoundError)
    if is_passing:
        # what a storage made of a fault says less than the fault
        first = (error.__cause__ if is_missing else None) or error
        tries = f"{one_line(first)}, also when asked {len(_PAUSES_S)} more times"
        return IncompleteCheckpointError(f"{what}: {tries}. {why}")
    if why:
        return NoAccessError(f"{what}: {why}.")
    if is_missing:
        return IncompleteCheckpointError(
            f"{what}: expected a file, found none. It may not be written yet, or may have been "
            "removed."
        )
    return CheckpointError(f"{what}: {one_line(error)}.")


# ------------------------------------------------------------------ of what a file holds


class ReadingError(Exception):
    """Why something cannot be read, and what to do; ``reading`` completes it with the file."""

    error: type[CheckpointError] = CheckpointError
    form = "Cannot read {where}: {cause}"

    def __init__(self, cause: str, tensor: str | None = None) -> None:
        super().__init__(cause)
        self.tensor = tensor

    def at(self, url: str, tensor: str | None = None) -> CheckpointError:
        """The error with the file, and the tensor where there is one."""
        name = self.tensor or tensor
        where = url if name is None else f"{url}, tensor {name[:120]!r}"
        return self.error(self.form.format(where=where, cause=self))


class UnfinishedError(ReadingError):
    """The same of what may be there later."""

    error = IncompleteCheckpointError


class RefusedError(ReadingError):
    """What a checkpoint says of itself and is not true."""

    form = "Refused {where}: {cause}. The file is damaged or forged; save it again."


@contextmanager
def reading(url: str, tensor: str | None = None) -> Iterator[None]:
    """The boundary around the bytes of one file: whatever they bring about is one line about it.

    Readers say what they know to be wrong. No list of what else bytes can raise is long enough:
    ``RecursionError``, ``OverflowError``, ``struct.error``. Ctrl-C and an exit pass.
    """
    try:
        yield
    except CheckpointError:
        raise
    except ReadingError as error:
        raise error.at(url, tensor) from error
    except MemoryError as error:
        cause = (
            "expected that memory holds what it describes, it does not. Give more memory, or save "
            "it again if it is a small one."
        )
        raise ReadingError(cause).at(url, tensor) from error
    except Exception as error:
        cause = "The file is damaged, or of a kind that is not known here; save it again."
        raise ReadingError(f"{one_line(error)}. {cause}").at(url, tensor) from error


def cut_off(name: str, end: int, size: int) -> UnfinishedError:
    """A tensor that ends behind the end of its file."""
    return UnfinishedError(
        f"expected it to end at byte {end}, but the file ends at {size}. It may be half-written, "
        "or truncated.",
        name,
    )
