"""The directory of a watched run: checked, and set aside for a new run."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path

from sparsitywatch.errors import ConfigurationError

__all__ = ["Claim", "place", "prepare", "set_aside"]

_logger = logging.getLogger("sparsitywatch")


def place(logdir: str | os.PathLike[str]) -> Path:
    """The directory ``<logdir>/sparsitywatch``; nothing is made yet.

    Raises:
        ConfigurationError: it is not local.
    """
    text = os.fspath(logdir)
    if "://" in text:
        raise ConfigurationError(
            f"Expected `logdir` to be a local directory, got {text!r}. Log locally and sync."
        )
    return Path(text) / "sparsitywatch"


def prepare(directory: Path) -> None:
    """Make the directory and know that it can be written to.

    Raises:
        ConfigurationError: it cannot be made or written to.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        probe = directory / f".probe-{os.getpid()}"
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise ConfigurationError(
            "Expected `logdir` to be a directory that can be written to, got "
            f"{str(directory.parent)!r}: {error}."
        ) from error


def set_aside(directory: Path) -> None:
    """Rename the directory of an earlier run, so that a new one loses nothing of it."""
    if not (directory / "records.jsonl").exists() and not (directory / "run.json").exists():
        return
    number = 1
    while (target := directory.with_name(f"{directory.name}-earlier-{number}")).exists():
        number += 1
    directory.rename(target)
    directory.mkdir()
    _logger.warning(
        "sparsitywatch: %s held an earlier run, which this one does not go on from; the earlier "
        "one is now %s",
        directory,
        target,
    )


class Claim:
    """The right to write into a directory, for one process at a time.

    It ends with the process, however that ends, and leaves no file behind.

    Args:
        directory: of a log; None claims nothing.
    """

    def __init__(self, directory: Path | None) -> None:
        self._directory = directory
        self._descriptor: int | None = None

    def take(self) -> None:
        """Claim the directory, if there is one and it is not claimed yet.

        Raises:
            ConfigurationError: somebody else has claimed it.
        """
        if sys.platform == "win32":
            return  # has no such locks
        import fcntl

        directory = self._directory
        if directory is None or self._descriptor is not None or not directory.is_dir():
            return
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(descriptor)
            raise ConfigurationError(
                f"Expected `logdir` for this replay alone, but another one writes to "
                f"{str(directory)!r}. Wait for its end, or give another one."
            ) from error
        except OSError:  # some network file systems have no locks
            os.close(descriptor)
            return
        self._descriptor = descriptor

    def release(self) -> None:
        """Let go; calling it again does nothing."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
