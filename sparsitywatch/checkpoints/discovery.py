"""Which checkpoints there are: found by their names, put in the order of their steps."""

from __future__ import annotations

import fnmatch
import os
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import quote

import fsspec

from sparsitywatch.checkpoints.addresses import (
    Part,
    is_temporary,
    part_of,
    step_of_name,
    without_temporary,
)
from sparsitywatch.checkpoints.base import Checkpoint
from sparsitywatch.checkpoints.formats import (
    FSDP_FOLDER,
    INSIDE,
    foreign,
    format_of,
    open_checkpoint,
)
from sparsitywatch.checkpoints.series import (
    ListedCheckpoint,
    are_same,
    in_one_unit,
    is_guess,
    one_of_each_step,
)
from sparsitywatch.checkpoints.storage import Location, NoAccessError, Options, Url, asked, one_line
from sparsitywatch.errors import CheckpointError, IncompleteCheckpointError, ScopeError
from sparsitywatch.records import LedgerEntry
from sparsitywatch.weights.layout import Entry, natural_order
from sparsitywatch.weights.scope import Scope, ScopeLike

_MAX_DEPTH = 6
_WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".pth.tar")
#: Shards, and files that training, and a watch, write beside the weights.
_BESIDE = re.compile(
    r"^(optimizer|optim|opt(?=[\d._-])|scheduler|scaler|random_states|rng_state|training_args|trainer_state"
    r"|sampler|dataloader|sparsitywatch)[\w.-]*$|_(model|optim)_states\.pt$|-\d+-of-\d+\."
)
#: Folders in which FSDP keeps what it has sharded of an optimizer.
_OPTIMIZER = re.compile(r"optimizer(_\d+)?")


#: Where checkpoints are looked for, or which there are, by step.
Places = Url | Iterable[Url] | Mapping[int, Url]


def discover(
    urls: Places,
    storage_options: Options = None,
    known: Mapping[str, ListedCheckpoint] | None = None,  # by URL, as of an earlier call
    key: str | None = None,
    *,
    keep: bool = False,  # let each have itself, to be read without its description
) -> list[ListedCheckpoint]:
    """Every checkpoint under some places, by step; those without a step come last."""
    # nothing is left out in silence: what is unfinished, refused or a duplicate says so. Only
    # descriptions are read, and where several are of one step some bytes of their weights. What is
    # known is neither listed nor opened again where its name states a step: others may be written
    # to again and again. On the Hub a pattern may stand for branches and for repositories.
    probe = _Probe(storage_options, key, keep)
    if isinstance(urls, Mapping):
        at = {step: Location.of(url, storage_options) for step, url in sorted(urls.items())}
        known = known or {}
        return [known.get(place.url) or _given(step, place, probe) for step, place in at.items()]
    known = {url: one for url, one in (known or {}).items() if step_of_name(url) is not None}
    places: dict[str, Location] = {}
    for url in [urls] if isinstance(urls, str | os.PathLike) else urls:
        for place in _expanded(Location.of(url, storage_options), known):
            places[place.url] = place
    found = [known.get(url) or probe.at(place) for url, place in places.items()]
    return one_of_each_step(in_one_unit(found), known, probe.is_same)


def _given(step: int, place: Location, probe: _Probe) -> ListedCheckpoint:
    """The checkpoint that somebody says is of a step, whatever it says itself."""
    found = probe.at(place, is_part=False)
    return replace(found, step=step, step_from="given", unit="step", note="")


# ------------------------------------------------------------------ listing


def _expanded(origin: Location, known: Mapping[str, ListedCheckpoint]) -> list[Location]:
    """What a URL stands for, as the storage has it now."""
    what = f"Cannot list {origin.shown}"
    origin.fs.invalidate_cache()  # a live run has written since
    pattern = asked(what, _pattern_of, origin.fs, origin.path)
    paths = [origin.path] if pattern is None else asked(what, _matching, origin.fs, pattern)
    places: list[Location] = []
    for path in sorted(paths, key=natural_order):
        places += asked(what, _places_under, origin.at(path), known, len(paths) > 1)
    if not places:
        others: list[str] = []
        if pattern is not None and not paths:
            _check_access(origin)
        elif (first := origin.at(min(paths))).is_folder():
            _, others = asked(what, checkpoints_below, first)
        what_to_do = foreign(others) or (
            "Name a checkpoint, a folder of them, or a pattern such as 'runs/bert/checkpoint-*'."
        )
        raise IncompleteCheckpointError(f"{what}: expected checkpoints, found none. {what_to_do}")
    return places


def _pattern_of(fs: fsspec.AbstractFileSystem, path: str) -> str | None:
    """A path as a pattern, unless it is that of what is there: ``run [v2]/`` may be a folder."""
    names = path.split("/")
    literal: list[str] = []
    for at, name in enumerate(names):
        if fsspec.core.has_magic(name):
            # neither a repository of the Hub nor a branch can have such a name
            can_be = "hf" not in fs.protocol or at > 1
            if not can_be or not fs.exists("/".join(names[: at + 1])):
                return "/".join([*literal, *names[at:]])
            name = re.sub(r"[*?[]", r"[\g<0>]", name)
        literal.append(name)
    return None


def _check_access(pattern: Location) -> None:
    """Raise if the folder before a pattern cannot be listed: a search passes that over."""
    # over http a question mark begins the query, which may be what gives access
    magic = r"[*[]" if "http" in pattern.fs.protocol else r"[*?[]"
    before, *is_pattern = re.split(magic, pattern.path, maxsplit=1)
    is_of_repositories = "hf" in pattern.fs.protocol and "/" not in before.rpartition("/")[0]
    if not is_pattern or is_of_repositories:  # an organization cannot be listed as a folder
        return
    try:
        pattern.at(before.rpartition("/")[0] or "/").names()
    except NoAccessError:
        raise
    except CheckpointError:
        return  # the search has said it: nothing is there


def _matching(fs: fsspec.AbstractFileSystem, pattern: str) -> list[str]:
    """The paths that a pattern stands for; on the Hub also repositories and branches."""
    if "hf" not in fs.protocol:
        return list(fs.glob(pattern))
    repository, at, rest = pattern.partition("@")
    if not at:
        repository, rest = "/".join(pattern.split("/")[:2]), "/".join(pattern.split("/")[2:])
    from huggingface_hub import HfApi

    hub = HfApi(endpoint=fs.endpoint, token=fs.token)
    roots = [repository]
    if fsspec.core.has_magic(repository):
        organization, _, name = repository.partition("/")
        start = re.split(r"[*?[]", name, maxsplit=1)[0]
        models = hub.list_models(author=organization, search=start or None)
        roots = sorted(m.id for m in models if fnmatch.fnmatchcase(m.id, repository))
    if at:
        revision, _, rest = rest.partition("/")
        roots = [f"{n}@{branch}" for n in roots for branch in _branches(hub, n, revision)]
    if fsspec.core.has_magic(rest):
        return [path for root in roots for path in fs.glob(f"{root}/{rest}")]
    return [f"{root}/{rest}" if rest else root for root in roots]


def _branches(hub: Any, repository: str, pattern: str) -> list[str]:
    if not fsspec.core.has_magic(pattern):
        return [pattern]
    refs = hub.list_repo_refs(repository)
    names = [ref.name for ref in (*refs.branches, *refs.tags)]
    return [quote(name, safe="") for name in names if fnmatch.fnmatchcase(name, pattern)]


def _places_under(root: Location, known: Collection[str], is_listed: bool) -> list[Location]:
    if root.url in known and is_listed:
        return [root]
    kind = root.kind()
    if root.url in known or kind != "directory":
        return [root] if kind else []
    names, _ = checkpoints_below(root, known)
    return [root.at(root.prefix + name) if name else root for name in names]


def checkpoints_below(root: Location, known: Collection[str] = ()) -> tuple[list[str], list[str]]:
    """Checkpoints in a folder ("" for itself), unless known by URL; and the files beside them."""
    before = root.at(f"{root.prefix}x").url[:-1]
    found: list[str] = []
    beside: list[str] = []
    waiting: list[tuple[str, tuple[str, ...]]] = [("", (os.path.realpath(root.path),))]
    while waiting:
        inside, reals = waiting.pop()
        folder = inside.removesuffix("/")
        try:
            children = _children(root.at(root.prefix + folder) if folder else root, reals)
        except (FileNotFoundError, PermissionError):  # nobody may list it now
            if not folder:
                raise
            # one of a step is reported when it is opened
            found += [folder] if step_of_name(folder) is not None else []
            continue
        folders = {name: real for name, real in children.items() if real is not None}
        is_part = folder == FSDP_FOLDER or bool(_OPTIMIZER.fullmatch(folder.rpartition("/")[2]))
        kind = None if is_part else format_of(children)
        # of DeepSpeed's and of a run's own folder the checkpoints lie inside
        is_checkpoint = kind is not None and not (kind == "deepspeed" and folders)
        if is_checkpoint:
            found.append(folder)
            if folder or kind == "nanotron":  # all below is a part of it
                continue
        files = [name for name in children if name not in folders]
        beside += [inside + name for name in files]
        if not is_part and (not is_checkpoint or kind == "huggingface"):
            found += [inside + name for name in files if _is_weights(name)]
        for name, real in folders.items():
            if before + inside + name in known:
                found.append(inside + name)
            elif len(reals) < _MAX_DEPTH:
                waiting.append((f"{inside}{name}/", (*reals, real)))
    return sorted(found, key=natural_order), beside


def _children(folder: Location, reals: tuple[str, ...]) -> dict[str, str | None]:
    """Names in a folder, of folders with where they really are."""
    found: dict[str, str | None] = {}
    for name, is_folder, is_link in folder.children():
        real = f"{reals[-1]}/{name}"
        if is_folder and is_link:
            real = os.path.realpath(f"{folder.prefix}{name}")
            # what lies below the place that was named is found there, by its own name; what lies
            # around a folder on the way here are its neighbours
            is_around = any(f"{on_way}/".startswith(f"{real}/") for on_way in reals)
            if f"{real}/".startswith(f"{reals[0]}/") or is_around:
                continue
        found[name] = real if is_folder else None
    return found


def _is_weights(name: str) -> bool:
    is_one = without_temporary(name).endswith(_WEIGHT_SUFFIXES) and not INSIDE.fullmatch(name)
    return is_one and not _BESIDE.search(name)


# ------------------------------------------------------------------ opening


@dataclass
class _Probe:
    """What a storage has answered so far; nothing is asked twice."""

    storage_options: Options
    key: str | None
    keep: bool
    groups: dict[tuple[str, ...], str] = field(default_factory=dict)  # why they are no whole model
    listed: dict[str, list[str]] = field(default_factory=dict)
    entries: tuple[Entry, ...] = ()  # the same object as long as they are the same

    def at(self, place: Location, *, is_part: bool = True) -> ListedCheckpoint:
        """What a place holds; one of a rank counts only if the others are the same."""
        named = step_of_name(place.url)
        step_from = "" if named is None else "name"
        unread = ListedCheckpoint(url=place.url, step=named, step_from=step_from)
        if is_temporary(place.url):
            reason = f"Cannot read {place.shown} yet: it has a temporary name."
            return replace(unread, reason=reason)
        try:
            if is_part:
                self._check_whole(place)
            with open_checkpoint(place.url, self.storage_options, self.key) as checkpoint:
                return self._read(unread, checkpoint)
        except Exception as error:  # noqa: BLE001 one file must not end the list of the others
            is_told = isinstance(error, CheckpointError)
            reason = str(error) if is_told else f"Cannot read {place.shown}: {one_line(error)}."
            state = "incomplete" if isinstance(error, IncompleteCheckpointError) else "refused"
            return replace(unread, state=state, reason=reason)

    def _read(self, unread: ListedCheckpoint, checkpoint: Checkpoint) -> ListedCheckpoint:
        """The same with what its contents say."""
        if checkpoint.entries() != self.entries:
            self.entries = checkpoint.entries()
        whole = replace(
            unread,
            state="complete",
            format=checkpoint.format,
            entries=self.entries,
            epoch=checkpoint.epoch,
            key=checkpoint.key,
            version=checkpoint.version,
            checkpoint=checkpoint if self.keep else None,
        )
        step, named = checkpoint.step, unread.step
        if step is None:
            is_save = checkpoint.counts_saves and is_guess(whole)
            return replace(whole, unit="save") if is_save else whole
        if named not in (None, step) and not is_guess(unread):
            said = f"is taken for step {step}, as its contents say; its name says step {named}."
            whole = replace(whole, note=f"{unread.shown} {said}")
        # folders of transformers have no other place for it than the Trainer's file
        step_from = "trainer state" if whole.format.startswith("huggingface") else "contents"
        return replace(whole, step=step, step_from=step_from)

    def _check_whole(self, place: Location) -> None:
        """Raise if the name says that this is one of several, and it is not one of copies."""
        part = part_of(place.url)
        if part is None:
            return
        group = tuple(sorted([place.url, *self._others(place, part)], key=natural_order))
        if group not in self.groups:
            found = ""
            if len(group) == 1 and part.is_one_of_several:
                found = "others are missing"
            elif not all(self.is_same(group[0], other) for other in group[1:]):
                found = f"there are {len(group)}, and they do not hold the same weights"
            self.groups[group] = found
        if self.groups[group]:
            raise CheckpointError(
                f"Cannot read {place.shown}: expected a whole model, got one of several parts: "
                f"{self.groups[group]}. Make the model whole with what saved it, such as "
                "Megatron's tools/checkpoint/convert.py or a full state dict of FSDP, or name the "
                "folder that has an index of its shards."
            )

    def is_same(self, one: str, other: str) -> bool:
        """Whether two checkpoints hold the same weights, by their URLs."""
        return are_same(one, other, self.storage_options, self.key)

    def _others(self, place: Location, part: Part) -> list[str]:
        """The places whose names say to be of other ranks, or other files."""
        parts = place.path.rstrip("/").split("/")
        at = len(parts) - 1 - part.depth
        folder, inside = "/".join(parts[:at]), "".join(f"/{part}" for part in parts[at + 1 :])
        if folder not in self.listed:
            self.listed[folder] = place.at(folder).names()
        paths = [
            f"{folder}/{name}{inside}"
            for name in self.listed[folder]
            if name != parts[at] and part.others.fullmatch(name)
        ]
        if inside:
            what = f"Cannot list {place.shown}"
            paths = asked(what, lambda: [path for path in paths if place.fs.exists(path)])
        return [place.at(path).url for path in paths]


# ------------------------------------------------------------------ what one says of itself


def describe(
    listed: ListedCheckpoint,
    scope: ScopeLike = "blocks",
    storage_options: Options = None,
    key: str | None = None,
) -> dict[str, Any]:
    """What a checkpoint that was discovered holds, as plain data; no weight is read."""
    # tensors has each storage once, under its first name and with its aliases; total and in_scope
    # count them. If the scope cannot be decided, or selects nothing, scope_problem says so, and
    # in_scope is None, of each tensor too: the names are needed most then.
    if listed.error is not None:
        raise listed.error
    with open_checkpoint(listed.url, storage_options, key) as checkpoint:
        entries = checkpoint.entries()
    by_storage: dict[object, list[Entry]] = {}
    for entry in entries:
        by_storage.setdefault(entry.storage or entry.name, []).append(entry)
    decided, problem = None, ""
    try:
        decided = Scope.of_entries(entries, scope)
    except ScopeError as error:
        problem = str(error)
    lines = {line.name: line for line in decided.ledger} if decided else {}
    tensors = [_described(tied, lines) for tied in by_storage.values()]
    return {
        "url": listed.shown,
        "format": listed.format,
        "step": listed.step,
        "step_from": listed.step_from,
        "unit": listed.unit,
        "key": checkpoint.key,
        "candidates": dict(checkpoint.among),
        "num_bytes_read": checkpoint.num_bytes_read,
        "total": _total(tensors),
        "in_scope": _total([t for t in tensors if t["in_scope"]]) if decided else None,
        "scope_hash": decided.hash if decided else "",
        "scope_problem": problem,
        "tensors": tensors,
    }


def _described(tied: Sequence[Entry], lines: Mapping[str, LedgerEntry]) -> dict[str, Any]:
    """What is said of the tensors of one storage."""
    entry, *others = sorted(tied, key=lambda entry: entry.name)  # as in a ledger
    line = lines.get(entry.name)
    return {
        "name": entry.name,
        "shape": entry.shape,
        "dtype": entry.stored_as or str(entry.dtype).removeprefix("torch."),
        "num_weights": entry.num_weights,
        "num_bytes": entry.num_bytes,
        "in_scope": line.in_scope if line else None,
        "reason": "; ".join(filter(None, (line.reason if line else "", entry.problem))),
        "aliases": [other.name for other in others],
    }


def _total(tensors: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    totals = {key: sum(t[key] for t in tensors) for key in ("num_weights", "num_bytes")}
    return {"num_tensors": len(tensors), **totals}
