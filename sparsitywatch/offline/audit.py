"""Are these checkpoints what their names say? The few bytes that tell it are read here."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch

from sparsitywatch.analysis.one_run import (
    Facts,
    Finding,
    finding,
    judge,
    layout_key,
    missing_steps,
    most_common,
)
from sparsitywatch.checkpoints.base import Checkpoint
from sparsitywatch.checkpoints.discovery import Places, discover
from sparsitywatch.checkpoints.formats import open_checkpoint
from sparsitywatch.checkpoints.series import (
    COMPARED_BYTES,
    ListedCheckpoint,
    begin_of,
    select,
    spread,
)
from sparsitywatch.errors import CheckpointError, expect, expect_functions, expect_mapping
from sparsitywatch.series import count
from sparsitywatch.weights.layout import Entry


@dataclass(frozen=True, kw_only=True)
class Audit:
    """What an audit of a series found.

    Args:
        findings: by step; a checkpoint without a finding has none.
        num_checkpoints: how many there are.
        num_audited: of these, the ones that could be opened.
        num_without_step: of these, the ones that nothing gives a step to, such as a branch
            "main"; they are not audited.
        num_weight_bytes: size of the weights of all.
        num_bytes_read: bytes of their files that were read, headers included.
    """

    findings: tuple[Finding, ...]
    num_checkpoints: int
    num_audited: int
    num_without_step: int
    num_weight_bytes: int
    num_bytes_read: int

    def __repr__(self) -> str:
        return (
            f"<Audit of {count(self.num_checkpoints, 'checkpoint')}: "
            f"{count(len(self.findings), 'finding')}>"
        )

    @property
    def status(self) -> Literal[0, 1, 2]:
        """0: nothing was found; 1: there are findings; 2: nothing could be audited."""
        if self.num_audited == 0:
            return 2
        return 1 if self.findings else 0


# ------------------------------------------------------------------ reading


def audit(
    urls: Places,
    *,
    full: bool = False,
    key: str | None = None,
    storage_options: Mapping[str, Any] | None = None,
    on_begin: Sequence[Callable[[int, int, int], object]] = (),
    on_progress: Sequence[Callable[[int, int], object]] = (),
) -> Audit:
    """Whether the checkpoints of a series are what their names say.

    Headers are read, hashes that a storage has are compared (sha256 of the Hub, ETags of s3), and
    4 kB of up to 32 tensors and of each shard are read once for all copies. A checkpoint that is
    identical to another in these, and has no hash, is read at the beginning of every tensor.

    Args:
        urls: checkpoints, folders and patterns of one series, or addresses by step.
        full: read every weight: identical is then every byte, and a single NaN is found.
        key: what leads to the model in files that hold more than one, as for ``replay``.
        storage_options: passed on to fsspec.
        on_begin: called before any weight is read, with the number of checkpoints, the bytes of
            their headers, and of their weights.
        on_progress: called with the number of checkpoints whose sample was read, and of all.

    Returns:
        The findings, and what they rest on.

    Raises:
        ConfigurationError: an argument cannot be used.
        CheckpointError: there are no checkpoints at all.
    """
    expect(isinstance(full, bool), "full", "True or False", full)
    expect_functions("on_begin", on_begin)
    expect_functions("on_progress", on_progress)
    expect_mapping("storage_options", storage_options or {}, "options of the storage by name")
    listed = discover(urls, storage_options, key=key)
    pending, others = select(listed)
    reader = _Reader(storage_options, key, full=full)
    with ThreadPoolExecutor(8, "sparsitywatch-audit") as threads:
        run = threads.map
        read: dict[int, Any] = dict(zip(pending, run(reader.header, pending.values()), strict=True))
        headers = {step: one for step, one in read.items() if isinstance(one, _Header)}
        num_weight_bytes = sum(header.num_weight_bytes for header in headers.values())
        for begin in on_begin:
            begin(len(listed), reader.num_bytes_read, num_weight_bytes)
        for done, (step, one) in enumerate(reader.facts(headers, run), 1):
            read[step] = one
            for progress in on_progress:
                progress(done, len(headers))
        read.update(reader.in_doubt(read, headers, run))
    facts = [one for one in read.values() if isinstance(one, Facts)]
    failed = {step: str(one) for step, one in read.items() if isinstance(one, CheckpointError)}
    rows = [finding(step, "unreadable", reason) for step, reason in failed.items()]
    rows += [finding(o.step, "unreadable", o.reason) for o in others if o.error is not None]
    rows += [finding(one.step, "step", one.note) for one in listed if one.note]
    rows += [*judge(facts), *missing_steps(list(pending))]
    return Audit(
        findings=tuple(sorted(rows, key=lambda row: -1 if row.step is None else row.step)),
        num_checkpoints=len(listed),
        num_audited=len(facts),
        num_without_step=sum(one.step is None and one.state == "complete" for one in others),
        num_weight_bytes=num_weight_bytes,
        num_bytes_read=reader.num_bytes_read,
    )


@dataclass(frozen=True, kw_only=True)
class _Header:
    url: str
    entries: tuple[Entry, ...]
    files: Mapping[str, tuple[str, frozenset[str]]]

    @property
    def num_weight_bytes(self) -> int:
        sizes: dict[object, int] = {e.storage or e.name: e.num_bytes for e in self.entries}
        return sum(sizes.values())

    @property
    def hashes(self) -> tuple[str, ...]:
        """Those of all files, if the storage has all of them."""
        stated = sorted(one for one, _ in self.files.values())
        return tuple(stated) if all(stated) else ()

    @property
    def layout(self) -> dict[str, tuple[tuple[int, ...], str, str]]:
        first: dict[object, str] = {}
        for entry in sorted(self.entries, key=lambda entry: entry.name):
            first.setdefault(entry.storage or entry.name, entry.name)
        return {
            entry.name: (
                entry.shape,
                entry.stored_as or str(entry.dtype).removeprefix("torch."),
                first[entry.storage or entry.name],
            )
            for entry in self.entries
        }


class _Reader:
    """Reads headers and samples, and counts the bytes."""

    def __init__(
        self, storage_options: Mapping[str, Any] | None, key: str | None, *, full: bool
    ) -> None:
        self._storage_options, self._key = storage_options, key
        self._full = full
        self._counts: list[int] = []

    @property
    def num_bytes_read(self) -> int:
        return sum(self._counts)

    def header(self, one: ListedCheckpoint) -> _Header | CheckpointError:
        """What a checkpoint says of itself."""
        if one.error is not None:
            return one.error
        try:
            with open_checkpoint(one.url, self._storage_options, self._key) as checkpoint:
                self._counts.append(checkpoint.num_bytes_read)
                return _Header(url=one.url, entries=checkpoint.entries(), files=checkpoint.files())
        except CheckpointError as error:
            return error

    def facts(self, headers: Mapping[int, _Header], run: _Map) -> Iterator[tuple[int, Any]]:
        """What is known of each checkpoint, or why it cannot be read; copies are read once."""
        layouts = {step: layout_key(header.layout) for step, header in headers.items()}
        usual = most_common(layouts.values())
        names = next((_sampled(h) for step, h in headers.items() if layouts[step] == usual), [])
        first: dict[tuple[str, ...], int] = {}
        for step, header in headers.items():
            first.setdefault(header.hashes or (str(step),), step)
        own = list(first.values())
        coming = run(lambda step: self._facts(step, headers[step], names), own)
        read: dict[int, Facts | CheckpointError] = {}
        for step, header in headers.items():
            of = first[header.hashes or (str(step),)]
            if of == step:
                read[step] = next(coming)
            one = read[of]
            yield step, replace(one, step=step) if isinstance(one, Facts) else one

    def _facts(self, step: int, header: _Header, names: Sequence[str]) -> Facts | CheckpointError:
        try:
            with open_checkpoint(header.url, self._storage_options, self._key) as checkpoint:
                there = {e.name: e for e in checkpoint.entries() if _is_read(e)}
                sample = {n: _begin(checkpoint, there[n]) for n in names if n in there}
                digests, bad = _whole(checkpoint, there) if self._full else ({}, [])
                checkpoint.check_unchanged()
                self._counts.append(checkpoint.num_bytes_read)
        except CheckpointError as error:
            return error
        bad = bad or [n for n, values in sample.items() if not np.isfinite(values).all()]
        return Facts(
            step=step,
            layout=header.layout,
            files=header.files,
            hashes=header.hashes,
            sample=sample,
            digest=_sha(digests),
            extent="in every byte" if self._full else f"in the sample of {len(names)} tensors",
            not_finite=tuple(bad),
        )

    def in_doubt(
        self, read: Mapping[int, Any], headers: Mapping[int, _Header], run: _Map
    ) -> dict[int, Facts | CheckpointError]:
        """Those that are alike in their sample, and by no hash, compared in every tensor."""
        alike: dict[str, list[Facts]] = {}
        for one in read.values():
            if isinstance(one, Facts) and not one.digest:
                alike.setdefault(_sha(one.sample), []).append(one)
        groups = [group for group in alike.values() if len(group) > 1]
        doubtful = [
            one
            for group in groups
            if len({one.hashes for one in group}) > 1 or not group[0].hashes
            for one in group
        ]
        again = run(lambda one: self._in_every_tensor(one, headers[one.step]), doubtful)
        return {one.step: found for one, found in zip(doubtful, again, strict=True)}

    def _in_every_tensor(self, one: Facts, header: _Header) -> Facts | CheckpointError:
        try:
            with open_checkpoint(header.url, self._storage_options, self._key) as checkpoint:
                begins = {
                    e.name: _begin(checkpoint, e) for e in checkpoint.entries() if _is_read(e)
                }
                self._counts.append(checkpoint.num_bytes_read)
        except CheckpointError as error:
            return error
        extent = f"at the beginning of each of {count(len(begins), 'tensor')}"
        return replace(one, digest=_sha(begins), extent=extent)


_Map = Callable[..., Iterator[Any]]


def _is_read(entry: Entry) -> bool:
    return entry.dtype.is_floating_point and not entry.problem and entry.num_weights > 0


def _sampled(header: _Header) -> list[str]:
    """Names of the tensors that a sample is of: as of ``spread``, and one of each file."""
    there = [entry for entry in header.entries if _is_read(entry)]
    names = spread(there)
    for _, held in header.files.values():
        if held.isdisjoint(names):
            names += spread([entry for entry in there if entry.name in held])[:1]
    return names


def _begin(checkpoint: Checkpoint, entry: Entry) -> np.ndarray:
    """The first weights of a tensor, as floats that hold them exactly."""
    num = min(COMPARED_BYTES // 4, entry.num_weights)  # as many whatever the dtype
    data = bytearray(begin_of(checkpoint, entry.name, num * entry.dtype.itemsize))
    kind = torch.promote_types(entry.dtype, torch.float32)
    return torch.frombuffer(data, dtype=entry.dtype).to(kind).numpy()


def _whole(
    checkpoint: Checkpoint, there: Mapping[str, Entry]
) -> tuple[dict[str, np.ndarray], list[str]]:
    """A digest of each tensor, and the names of those that hold NaN or infinite weights."""
    buffer = memoryview(bytearray(checkpoint.chunk_bytes))
    digests: dict[str, np.ndarray] = {}
    bad: list[str] = []
    for name in checkpoint.in_byte_order(there):
        digest, is_finite = hashlib.sha256(), True
        for chunk in checkpoint.chunks(name, buffer):
            digest.update(chunk)
            weights = torch.frombuffer(chunk, dtype=there[name].dtype)
            is_finite &= bool(weights.to(torch.float32).isfinite().all())
        digests[name] = np.frombuffer(digest.digest(), np.uint8)
        bad += [] if is_finite else [name]
    return digests, bad


def _sha(arrays: Mapping[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for name in sorted(arrays):
        digest.update(f"{name}\0{arrays[name].dtype}\0".encode())
        digest.update(np.ascontiguousarray(arrays[name]).data)
    return digest.hexdigest() if arrays else ""
