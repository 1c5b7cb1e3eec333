"""Checkpoints of a training run: written in one piece or not at all, and never mixed up.

A run killed at any instant leaves the last complete checkpoint, and the same command goes
on from there, bit for bit as if nothing had happened.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

__all__ = ["differences", "load", "move_aside", "save"]

_FORMAT = 1


def save(path: Path, state: Mapping[str, Any]) -> None:
    """Write ``state`` (tensors, numbers, strings, containers of these) to ``path``.

    The file appears under its name only when it is complete and on the disk.
    """
    temporary = path.with_name(f".{path.name}.part")
    with temporary.open("wb") as file:
        torch.save({**state, "format": _FORMAT}, file)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def load(path: Path) -> dict[str, Any] | None:
    """What ``save`` wrote, or None where there is nothing. No pickled code is executed.

    Raises:
        ValueError: the file is not one of ours.
    """
    if not path.exists():
        return None
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        found = state["format"]
    except Exception as error:
        raise ValueError(
            f"Expected a checkpoint of this example in {path}, got something else "
            f"({type(error).__name__}). Pass another `--logdir`, or `--fresh` to move it aside."
        ) from error
    if found != _FORMAT:
        raise ValueError(
            f"Expected a checkpoint of format {_FORMAT} in {path}, got {found}. Pass `--fresh` "
            "to move it aside and start again."
        )
    return dict(state)


def differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """How the arguments of two runs differ, one readable line each.

    >>> differences({"steps": 100, "seed": 0}, {"steps": 200, "seed": 0})
    ['--steps 100 then, 200 now']
    """
    names = sorted(set(then) | set(now))
    return [
        f"--{name.replace('_', '-')} {then.get(name)} then, {now.get(name)} now"
        for name in names
        if then.get(name) != now.get(name)
    ]


def move_aside(paths: Sequence[Path], beside: str) -> list[Path]:
    """Rename files of an earlier run, all with the same number; returns their new names.

    Args:
        paths: files of one folder, there or not.
        beside: a name in that folder that others number in the same way; a number that is
            taken there is left out.
    """
    number = 1
    while any(_numbered(p, number).exists() for p in [*paths, paths[0].with_name(beside)]):
        number += 1
    moved = [path for path in paths if path.exists()]
    for path in moved:
        path.replace(_numbered(path, number))
    return [_numbered(path, number) for path in moved]


def _numbered(path: Path, number: int) -> Path:
    return path.with_name(f"{path.stem}-earlier-{number}{path.suffix}")
