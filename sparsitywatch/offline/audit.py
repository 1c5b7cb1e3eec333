"""Are these checkpoints what their names say? The few bytes that tell it are read here."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from sparsitywatch.analysis.contents import Looker
from sparsitywatch.checkpoints.base import Checkpoint, OptimizerState
from sparsitywatch.checkpoints.discovery import Places, discover
from sparsitywatch.checkpoints.series import (
    begin_of,
    expect_one_series,
    select,
    spread,
    unlike_others,
)
from sparsitywatch.errors import CheckpointError, expect, expect_functions
from sparsitywatch.lab.audit import (
    Audit,
    AuditFinding,
    Facts,
    Layout,
    judge,
    missing_steps,
    usual_layout,
)
from sparsitywatch.offline.replay import checked_places
from sparsitywatch.series import count
from sparsitywatch.weights.layout import Entry


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
    a sample that is spread over the tensors is read once for all copies. A checkpoint that is
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
        ConfigurationError: an argument cannot be used, or the checkpoints are those of several
            runs, which are listed.
        CheckpointError: there are no checkpoints at all.
    """
    expect(isinstance(full, bool), "full", "True or False", full)
    expect_functions("on_begin", on_begin)
    expect_functions("on_progress", on_progress)
    places = checked_places(urls, storage_options, key)
    listed = discover(places, storage_options, key=key, keep=True)
    expect_one_series(listed, done="audited", each="")
    pending, others = select(listed)
    unit = next((one.unit for one in pending.values()), "step")
    kept = {step: one.checkpoint for step, one in pending.items() if one.checkpoint is not None}
    sizes = {
        (n, e.storage or e.name): e.num_bytes for n, one in kept.items() for e in one.entries()
    }
    num_weight_bytes = sum(sizes.values())
    for begin in on_begin:
        begin(len(listed), sum(one.num_bytes_read for one in kept.values()), num_weight_bytes)
    facts = [Facts(step=n, problem=one.reason) for n, one in pending.items() if n not in kept]
    with ThreadPoolExecutor(8, "sparsitywatch-audit") as threads:
        states = dict(zip(kept, threads.map(_optimizers, kept.values()), strict=True))
        facts += _read_all(kept, threads.map, on_progress, num_weight_bytes, full=full)
    rows = judge(facts, unit)
    sound = {n: one for n, one in states.items() if not any(row.covers(n) for row in rows)}
    rows += _judged_optimizers(sound, unit)
    rows += [AuditFinding.of(None, "unreadable", o.reason) for o in others if o.error is not None]
    rows += [AuditFinding.of(one.step, "step", one.note) for one in listed if one.note]
    rows += missing_steps(list(pending), unit)
    return Audit(
        findings=tuple(sorted(rows, key=lambda row: -1 if row.step is None else row.step)),
        steps=tuple(pending),
        unit=unit,
        num_checkpoints=len(listed),
        num_audited=sum(not one.problem for one in facts),
        num_without_step=sum(one.step is None and one.state == "complete" for one in others),
        num_weight_bytes=num_weight_bytes,
        num_bytes_read=sum(one.num_bytes_read for one in kept.values()),
        is_full=full,
    )


# ------------------------------------------------------------------ reading

_Map = Callable[..., Iterator[Any]]
_OnProgress = Sequence[Callable[[int, int], object]]
#: Share of the weights' bytes that is read where nobody asks for all, descriptions included, so
#: that it stays below a two hundredth; of a series of fewer bytes than the first so many.
_SHARE, _SMALL_BYTES, _FEW_BYTES = 0.0044, 10**8, 8 * 10**6
#: Bytes of one checkpoint, at most and at least.
_MOST_BYTES, _LEAST_BYTES = 2 * 10**6, 2**12
#: Pieces of one tensor, at most.
_MAX_PIECES = 64
#: Which weights are read: by the name of a tensor rising places, and how many from each on.
_Places = Mapping[str, tuple[np.ndarray, int]]


def _read_all(
    kept: Mapping[int, Checkpoint],
    run: _Map,
    on_progress: _OnProgress,
    num_weight_bytes: int,
    *,
    full: bool,
) -> list[Facts]:
    """What is known of each; what is the same by its hash is read once."""
    described = {step: _described(step, checkpoint) for step, checkpoint in kept.items()}
    first: dict[object, int] = {}
    of = {step: first.setdefault(one.hashes or step, step) for step, one in described.items()}
    own = [described[step] for step in first.values()]
    is_small = num_weight_bytes < _SMALL_BYTES
    left = _FEW_BYTES if is_small else int(_SHARE * num_weight_bytes)
    left -= sum(one.num_bytes_read for one in kept.values())
    usual = usual_layout(described.values())
    sizes = _smallest(usual, described.values())
    alike = (kept[n] for n, one in described.items() if one.layout == usual)
    places: _Places = next((_placed(one, sizes, left // len(own)) for one in alike), {})
    limits = sizes if full else None
    read: dict[int, Facts] = {}
    for one in run(lambda one: _read(one, kept[one.step], places, limits), own):
        read[one.step] = one
        for progress in on_progress:
            progress(len(read), len(own))
    # what is alike in the sample is read at the beginning of every other tensor
    times = Counter(one.digest for one in read.values())
    doubtful = [one for one in read.values() if times[one.digest] > 1 and not (full or one.problem)]
    again = run(lambda one: _read_on(one, kept[one.step]), doubtful)
    read.update((one.step, one) for one in again)
    return [replace(read[own], step=step) for step, own in of.items()]


def _smallest(usual: Layout, facts: Iterable[Facts]) -> dict[str, int]:
    """How many weights of each tensor every checkpoint has, also before rows were appended."""
    sizes = {name: [math.prod(shape)] for name, (shape, *_) in usual.items()}
    for one in facts:
        for name, (shape, *_) in one.layout.items():
            num, most = math.prod(shape), math.prod(usual.get(name, ((), "", ""))[0])
            if name in sizes and shape[1:] == usual[name][0][1:] and 2 * num > most:
                sizes[name].append(num)
    return {name: min(own) for name, own in sizes.items()}


def _placed(checkpoint: Checkpoint, sizes: Mapping[str, int], budget: int) -> _Places:
    """Pieces spread over every tensor, as far as so many bytes go; of matrices most."""
    budget = min(max(budget, _LEAST_BYTES), _MOST_BYTES)
    piece, there = checkpoint.piece_bytes, list(_read_once(checkpoint).values())
    num = min(budget // (piece + checkpoint.around_bytes), checkpoint.max_pieces)
    names = spread(there, num)
    for _, held in checkpoint.files().values():
        if held.isdisjoint(names):
            names += spread([entry for entry in there if entry.name in held])[:1]
    chosen = [entry for entry in there if entry.name in names]
    large = {e.name for e in chosen if len(e.shape) > 1} or set(names)
    left = budget - checkpoint.around_bytes * len(names) - piece * (len(names) - len(large))
    count = max(1, min(num // max(len(large), 1), _MAX_PIECES))
    found: dict[str, tuple[np.ndarray, int]] = {}
    for entry in chosen:
        is_large, size = entry.name in large, sizes[entry.name]
        num_bytes = max(left // len(large) // count if is_large else 0, piece)
        length = min(num_bytes // entry.dtype.itemsize, size)
        pieces = min(count if is_large else 1, -(-size // length))
        # one piece lies at the end, where a file that was cut off shows it
        at = np.linspace(0.0, 1.0, pieces) if pieces > 1 else np.ones(1)
        found[entry.name] = np.floor(at * (size - length)).astype(int), length
    return found


def _judged_optimizers(
    found: Mapping[int, Mapping[str, OptimizerState] | CheckpointError], unit: str
) -> list[AuditFinding]:
    """What is wrong with the state of optimizers beside weights that are right."""
    rows, states = list[AuditFinding](), dict[int, Mapping[str, OptimizerState]]()
    for step, one in found.items():
        if isinstance(one, CheckpointError):
            rows.append(AuditFinding.of(step, "unreadable", str(one)))
        else:
            states[step] = one
    unlike = unlike_others(states, unit)
    return rows + [AuditFinding.of(step, "optimizer", words) for step, words in unlike.items()]


def _optimizers(checkpoint: Checkpoint) -> Mapping[str, OptimizerState] | CheckpointError:
    try:
        with checkpoint:
            return checkpoint.optimizers()
    except CheckpointError as error:
        return error


def _described(step: int, checkpoint: Checkpoint) -> Facts:
    """What a checkpoint says of itself."""
    first: dict[object, str] = {}
    for entry in sorted(checkpoint.entries(), key=lambda entry: entry.name):
        first.setdefault(entry.storage or entry.name, entry.name)
    layout = {}
    for entry in checkpoint.entries():
        dtype = entry.stored_as or str(entry.dtype).removeprefix("torch.")
        layout[entry.name] = (entry.shape, dtype, first[entry.storage or entry.name])
    return Facts(step=step, layout=layout, files=checkpoint.files())


def _read_once(checkpoint: Checkpoint) -> dict[str, Entry]:
    """The tensors of floats by name, tied ones once."""
    first: dict[object, Entry] = {}
    for entry in sorted(checkpoint.entries(), key=lambda entry: entry.name):
        if entry.dtype.is_floating_point and not entry.problem and entry.num_weights > 0:
            first.setdefault(entry.storage or entry.name, entry)
    return {entry.name: entry for entry in first.values()}


def _read(
    one: Facts, checkpoint: Checkpoint, places: _Places, sizes: Mapping[str, int] | None
) -> Facts:
    """The same with a sample of tensors; with sizes every byte is read, and so many looked at."""
    looker, sample = Looker(), dict[str, np.ndarray]()
    digests, bad = dict[str, bytes](), list[str]()
    try:
        with checkpoint:
            there = _read_once(checkpoint)
            for name in [name for name in there if name in places]:
                look = looker if sizes is None else None
                sample[name] = _sampled(checkpoint, there[name], *places[name], look)
            if sizes is not None:
                digests, bad = _every_byte(checkpoint, there, sizes, looker)
            checkpoint.check_unchanged()
    except CheckpointError as error:
        return replace(one, problem=str(error))
    bad += [name for name, values in sample.items() if not np.isfinite(values).all()]
    return replace(
        one,
        sample=sample,
        digest=_sha(digests or {name: values.tobytes() for name, values in sample.items()}),
        extent="in every byte" if digests else f"in a sample of {count(len(sample), 'tensor')}",
        not_finite=tuple(dict.fromkeys(bad)),
        contents=looker.contents({name: one.layout[name][1] for name in there}),
    )


def _read_on(one: Facts, checkpoint: Checkpoint) -> Facts:
    """The same with the beginning of every tensor that the sample has nothing of."""
    try:
        with checkpoint:
            names = _read_once(checkpoint).keys() - one.sample.keys()
            begins = {name: begin_of(checkpoint, name) for name in names}
            checkpoint.check_unchanged()
    except CheckpointError as error:
        return replace(one, problem=str(error))
    num = len(names) + len(one.sample)
    extent = f"in a sample of {count(num, 'tensor')}"
    return replace(one, digest=one.digest + _sha(begins), extent=extent)


def _sampled(
    checkpoint: Checkpoint, entry: Entry, starts: np.ndarray, num: int, looker: Looker | None
) -> np.ndarray:
    """Pieces of a tensor, as floats that hold them exactly; all are looked at."""
    size = entry.dtype.itemsize
    data = bytearray(checkpoint.pieces_at(entry.name, (starts * size).tolist(), num * size))
    if looker is not None:
        for at, start in enumerate(starts.tolist()):
            piece = memoryview(data)[at * num * size : (at + 1) * num * size]
            looker.see(entry.name, start, np.frombuffer(piece, f"u{size}"))
    kind = torch.promote_types(entry.dtype, torch.float32)
    return torch.frombuffer(data, dtype=entry.dtype).to(kind).numpy()


def _every_byte(
    checkpoint: Checkpoint, there: Mapping[str, Entry], sizes: Mapping[str, int], looker: Looker
) -> tuple[dict[str, bytes], list[str]]:
    """Digests of tensors by name, and the names of those that hold NaN or infinite weights."""
    buffer = memoryview(bytearray(checkpoint.chunk_bytes))
    digests: dict[str, bytes] = {}
    bad: list[str] = []
    for name in checkpoint.in_byte_order(there):
        digest, is_finite, first = hashlib.sha256(), True, 0
        for chunk in checkpoint.chunks(name, buffer):
            digest.update(chunk)
            weights = torch.frombuffer(chunk, dtype=there[name].dtype)
            is_finite &= bool(weights.to(torch.float32).isfinite().all())
            left = max(0, sizes.get(name, 0) - first)  # others may have no more rows
            looker.see(name, first, np.frombuffer(chunk, f"u{weights.itemsize}")[:left])
            first += len(weights)
        digests[name] = digest.digest()
        bad += [] if is_finite else [name]
    return digests, bad


def _sha(parts: Mapping[str, bytes]) -> str:
    """A digest of what there is by name; of nothing none."""
    digest = hashlib.sha256()
    for name in sorted(parts):
        digest.update(f"{name}\0".encode())
        digest.update(parts[name])
    return digest.hexdigest() if parts else ""
