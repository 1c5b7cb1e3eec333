"""Are these checkpoints what their names say? The few bytes that tell it are read here."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from sparsitywatch.analysis.audit import (
    Audit,
    AuditFinding,
    Facts,
    judge,
    missing_steps,
    usual_layout,
)
from sparsitywatch.checkpoints.base import Checkpoint, OptimizerState
from sparsitywatch.checkpoints.discovery import Places, discover
from sparsitywatch.checkpoints.series import (
    COMPARED_BYTES,
    begin_of,
    expect_one_series,
    select,
    spread,
    unlike_others,
)
from sparsitywatch.errors import CheckpointError, expect, expect_functions
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
        facts += _read_all(kept, threads.map, on_progress, full=full)
        rows = judge(facts, unit)
        wrong = {row.step for row in rows}
        sound = {step: one for step, one in kept.items() if step not in wrong}
        rows += _judged_optimizers(sound, threads.map, unit)
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


def _read_all(
    kept: Mapping[int, Checkpoint], run: _Map, on_progress: _OnProgress, *, full: bool
) -> list[Facts]:
    """What is known of each; what is the same by its hash is read once."""
    described = {step: _described(step, checkpoint) for step, checkpoint in kept.items()}
    usual = usual_layout(described.values())
    names = next((_sampled(kept[n]) for n, one in described.items() if one.layout == usual), [])
    first: dict[object, int] = {}
    of = {step: first.setdefault(one.hashes or step, step) for step, one in described.items()}
    own = [described[step] for step in first.values()]
    length = None if full else 0
    read: dict[int, Facts] = {}
    for one in run(lambda one: _read(one, kept[one.step], names, length), own):
        read[one.step] = one
        for progress in on_progress:
            progress(len(read), len(own))
    # what is alike in the sample is read at the beginning of every tensor
    times = Counter(one.digest for one in read.values())
    doubtful = [one for one in read.values() if times[one.digest] > 1 and not (full or one.problem)]
    again = run(lambda one: _read(one, kept[one.step], (), COMPARED_BYTES), doubtful)
    read.update((one.step, one) for one in again)
    return [replace(read[own], step=step) for step, own in of.items()]


def _judged_optimizers(kept: Mapping[int, Checkpoint], run: _Map, unit: str) -> list[AuditFinding]:
    """What is wrong with the state of optimizers beside weights that are right."""
    rows, states = list[AuditFinding](), dict[int, Mapping[str, OptimizerState]]()
    for step, one in zip(kept, run(_optimizers, kept.values()), strict=True):
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


def _is_read(entry: Entry) -> bool:
    return entry.dtype.is_floating_point and not entry.problem and entry.num_weights > 0


def _sampled(checkpoint: Checkpoint) -> list[str]:
    """Names of the tensors that a sample is of: as of ``spread``, and one of each file."""
    there = [entry for entry in checkpoint.entries() if _is_read(entry)]
    names = spread(there)
    for _, held in checkpoint.files().values():
        if held.isdisjoint(names):
            names += spread([entry for entry in there if entry.name in held])[:1]
    return names


def _read(one: Facts, checkpoint: Checkpoint, names: Sequence[str], length: int | None) -> Facts:
    """The same with a sample of tensors, and a digest of it or of so many bytes of each tensor."""
    try:
        with checkpoint:
            there = {e.name: e for e in checkpoint.entries() if _is_read(e)}
            sample = {n: _begin(checkpoint, there[n]) for n in names if n in there}
            digests, bad = ({}, []) if length == 0 else _digests(checkpoint, there, length)
            checkpoint.check_unchanged()
    except CheckpointError as error:
        return replace(one, problem=str(error))
    bad += [name for name, values in sample.items() if not np.isfinite(values).all()]
    extents = {0: f"in the sample of {len(sample)} tensors", None: "in every byte"}
    return replace(
        one,
        sample={**one.sample, **sample},
        digest=_sha(digests or {name: values.tobytes() for name, values in sample.items()}),
        extent=extents.get(length, f"at the beginning of each of {count(len(there), 'tensor')}"),
        not_finite=tuple(dict.fromkeys((*one.not_finite, *bad))),
    )


def _begin(checkpoint: Checkpoint, entry: Entry) -> np.ndarray:
    """The first weights of a tensor, as floats that hold them exactly."""
    num = min(COMPARED_BYTES // 4, entry.num_weights)  # as many whatever the dtype
    data = bytearray(begin_of(checkpoint, entry.name, num * entry.dtype.itemsize))
    kind = torch.promote_types(entry.dtype, torch.float32)
    return torch.frombuffer(data, dtype=entry.dtype).to(kind).numpy()


def _digests(
    checkpoint: Checkpoint, there: Mapping[str, Entry], length: int | None
) -> tuple[dict[str, bytes], list[str]]:
    """Digests of tensors by name, and the names of those that hold NaN or infinite weights."""
    buffer = memoryview(bytearray(length or checkpoint.chunk_bytes))
    digests: dict[str, bytes] = {}
    bad: list[str] = []
    for name in there if length else checkpoint.in_byte_order(there):
        digest, is_finite = hashlib.sha256(), True
        for chunk in checkpoint.chunks(name, buffer):
            part = chunk[:length]  # some come whole
            digest.update(part)
            weights = torch.frombuffer(part, dtype=there[name].dtype)
            is_finite &= bool(weights.to(torch.float32).isfinite().all())
            if length:
                break
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
