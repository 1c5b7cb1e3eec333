"""Which checkpoints there are: found by their names, put in the order of their steps."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import fsspec

from sparsitywatch.checkpoints.huggingface import WEIGHT_FILES
from sparsitywatch.checkpoints.opening import format_of, open_checkpoint
from sparsitywatch.checkpoints.storage import filesystem, one_line
from sparsitywatch.errors import CheckpointError, IncompleteCheckpointError
from sparsitywatch.shown import shown_url
from sparsitywatch.weights.names import natural_order

__all__ = ["Found", "discover", "places_in", "step_of_name"]

_MAX_DEPTH = 6
_WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".pth.tar")
#: Files that training writes beside the weights, and shards that an index names.
_BESIDE = re.compile(
    r"^(optimizer|optim|scheduler|scaler|random_states|rng_state|training_args|trainer_state|ema"
    r"|sampler|dataloader)[\w.-]*$|-\d+-of-\d+\.|_(model|optim)_states\.pt$"
)
#: Names that writers use until they are done.
_TEMPORARY = re.compile(
    r"^[._]*tmp[._-]|\.(tmp|part|partial|incomplete|saving)([._-]\w*)?$|~$", re.IGNORECASE
)
_NAMED_STEP = re.compile(
    r"(?:global[_-]?step|checkpoint|ckpt|iteration|iter|step|model)[_=-]?(\d+)", re.IGNORECASE
)
_NUMBER = re.compile(r"\d+")


@dataclass(frozen=True, kw_only=True)
class Found:
    """One checkpoint that is there, or is about to be.

    Args:
        url: where it lies; what ``open_checkpoint`` takes.
        step: optimizer steps done; None if nothing says so.
        step_from: "contents" (trainer state or the file itself), "name", or "" without a step.
        format: how it is stored; empty while that cannot be told.
        state: "complete"; "incomplete": not yet all there, worth a wait; "refused": it will
            not become readable; "duplicate": another one of the same step is better.
        reason: why the state is not "complete", in one line.
    """

    url: str
    step: int | None
    step_from: str
    format: str
    state: str
    reason: str = ""


def discover(
    urls: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    storage_options: Mapping[str, Any] | None = None,
    known: Mapping[str, Found] | None = None,
) -> list[Found]:
    """Every checkpoint under some places, by step; those without a step come last.

    Nothing is left out in silence: what is unfinished, refused or a duplicate is in the list
    and says so. Only descriptions are read.

    Args:
        urls: files, folders and patterns with ``*`` on any storage that fsspec knows.
        storage_options: passed on to fsspec.
        known: by URL, what an earlier call found complete; taken as it is and not opened again
            where the name tells a step. Other names may be written to again and again.

    Raises:
        CheckpointError: a place is not there at all, or a pattern matches nothing.
    """
    known = known or {}
    if isinstance(urls, str | os.PathLike):
        urls = [urls]
    found: dict[str, Found] = {}
    for url in urls:
        fs, path = filesystem(url, storage_options)
        for place in _expanded(fs, path, os.fspath(url)):
            full = place if "file" in _protocols(fs) else str(fs.unstrip_protocol(place))
            if full in known and step_of_name(full) is not None:
                found[full] = known[full]
            elif full not in found:
                found[full] = _look(full, storage_options)
    ordered = sorted(found.values(), key=lambda one: (*_by_step(one), natural_order(one.url)))
    return _without_duplicates(ordered)


def _protocols(fs: fsspec.AbstractFileSystem) -> tuple[str, ...]:
    return (fs.protocol,) if isinstance(fs.protocol, str) else tuple(fs.protocol)


def _by_step(one: Found) -> tuple[bool, int]:
    return one.step is None, one.step or 0


def _expanded(fs: fsspec.AbstractFileSystem, path: str, url: str) -> list[str]:
    try:
        fs.invalidate_cache()  # a live run has written since
        paths = fs.glob(path) if fsspec.core.has_magic(path) else [path]
        listings = [(p, _listing(fs, p)) for p in sorted(paths, key=natural_order)]
    except Exception as error:  # whatever a storage raises
        raise CheckpointError(f"Cannot list {shown_url(url)}: {one_line(error)}.") from error
    places = [place for p, names in listings for place in _placed(p, names)]
    if not places:
        raise CheckpointError(
            f"Cannot list {shown_url(url)}: expected checkpoints, found none. Name a checkpoint, "
            "a folder of them, or a pattern such as 'runs/bert/checkpoint-*'."
        )
    return places


def _listing(fs: fsspec.AbstractFileSystem, path: str) -> list[str] | None:
    """Names of the files below a folder; None if it is no folder."""
    if not fs.isdir(path):
        return None if fs.exists(path) else []
    root = path.rstrip("/") + "/"
    names = fs.find(path, maxdepth=_MAX_DEPTH)
    return [name.removeprefix(root) for name in names if name.startswith(root)]


def _placed(path: str, names: list[str] | None) -> list[str]:
    if names is None:
        return [path]
    root = path.rstrip("/")
    return [f"{root}/{place}" if place else root for place in places_in(names)]


def places_in(files: Iterable[str]) -> list[str]:
    """Files and folders that are checkpoints, out of the names of all files below a folder.

    Returns:
        Their names relative to that folder, "" for the folder itself.

    >>> places_in(["checkpoint-2/model.safetensors", "checkpoint-2/optimizer.pt", "a.ckpt"])
    ['a.ckpt', 'checkpoint-2']
    """
    children: dict[str, set[str]] = {}
    for file in files:
        parts = file.split("/")
        for depth in range(len(parts)):
            children.setdefault("/".join(parts[:depth]), set()).add(parts[depth])
    found: list[str] = []
    for folder in sorted(children, key=lambda name: (name.count("/"), natural_order(name))):
        if any(folder == f or folder.startswith(f"{f}/") for f in found if f):
            continue
        names = children[folder]
        inside = f"{folder}/" if folder else ""
        kind = format_of(names)
        # of DeepSpeed's and of a run's own folder the checkpoints lie inside
        has_parts = kind == "deepspeed" and any(f"{inside}{name}" in children for name in names)
        if kind and not has_parts:
            found.append(folder)
            if folder or kind != "huggingface":
                continue
        found += [
            f"{inside}{name}"
            for name in sorted(names, key=natural_order)
            if f"{inside}{name}" not in children and _is_weights(name)
        ]
    return sorted(found, key=natural_order)


def _is_weights(name: str) -> bool:
    stem = _TEMPORARY.sub(".", name).rstrip(".~")
    is_one = stem.endswith(_WEIGHT_SUFFIXES) and name not in WEIGHT_FILES
    return is_one and not _BESIDE.search(name)


def _look(url: str, storage_options: Mapping[str, Any] | None) -> Found:
    named = step_of_name(url)
    unread = Found(
        url=url,
        step=named,
        step_from="" if named is None else "name",
        format="",
        state="incomplete",
    )
    if any(_TEMPORARY.search(part) for part in url.rstrip("/").split("/")[-2:]):
        return _with(unread, reason=f"Cannot read {shown_url(url)} yet: it has a temporary name.")
    try:
        with open_checkpoint(url, storage_options) as checkpoint:
            step, kind = checkpoint.step, checkpoint.format
    except IncompleteCheckpointError as error:
        return _with(unread, reason=str(error))
    except CheckpointError as error:
        return _with(unread, state="refused", reason=str(error))
    if step is None:
        return _with(unread, format=kind, state="complete")
    return _with(unread, step=step, step_from="contents", format=kind, state="complete")


def _with(one: Found, **changes: Any) -> Found:
    return Found(**{**vars(one), **changes})


def step_of_name(url: str) -> int | None:
    """The step that the name of a checkpoint states, or that of the folder around it.

    >>> [step_of_name(n) for n in ("run2/checkpoint-500", "a/step=7.ckpt", "a/000120.pt", "b/w.pt")]
    [500, 7, 120, None]
    """
    parts = url.rstrip("/").split("/")[-2:]
    for part in reversed(parts):
        stem = _SUFFIX.sub("", part)
        named = _NAMED_STEP.findall(stem)
        if named:
            return int(named[-1][:18])
        numbers = _NUMBER.findall(stem)
        if len(numbers) == 1 and stem.isdigit():
            return int(numbers[0][:18])
    return None


_SUFFIX = re.compile(r"(\.(safetensors|bin|pt|pth|ckpt|tar|tmp|part))+$")


def _without_duplicates(ordered: Sequence[Found]) -> list[Found]:
    """Of complete checkpoints of one step the first stays: a whole folder before a file."""
    best: dict[int, Found] = {}
    for one in ordered:
        if one.step is not None and one.state == "complete":
            held = best.setdefault(one.step, one)
            if held.step_from != "name" and one.step_from == "name":
                continue
            if held.step_from == "name" and one.step_from != "name":
                best[one.step] = one
    return [
        one
        if one.state != "complete" or one.step is None or best[one.step] is one
        else _with(
            one,
            state="duplicate",
            reason=f"{shown_url(best[one.step].url)} is of step {one.step} as well and is taken.",
        )
        for one in ordered
    ]
