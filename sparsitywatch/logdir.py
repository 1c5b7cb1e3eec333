"""The directory of a watched run: checked, and set aside for a new run."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from sparsitywatch.errors import ConfigurationError

__all__ = ["place", "prepare", "set_aside"]

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
        "sparsitywatch: %s held an earlier run and this one starts at step 0; the earlier one "
        "is now %s",
        directory,
        target,
    )
