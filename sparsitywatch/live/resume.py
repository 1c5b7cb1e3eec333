"""How a run's log begins: anew, or where an earlier process left it."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal
from zipfile import BadZipFile

from sparsitywatch.errors import LogTakenError, ProxyError, StateError
from sparsitywatch.live.snapshots import SnapshotTaker
from sparsitywatch.pipeline.measure import RunContext
from sparsitywatch.pipeline.pipeline import LAYERS_KEPT
from sparsitywatch.pipeline.rundir import Claim
from sparsitywatch.proxy.proxy import Proxy
from sparsitywatch.records import Detail, Provenance, Record
from sparsitywatch.redact import logger
from sparsitywatch.sinks.jsonl import JsonlReader, read_manifest, read_records, read_spectrum
from sparsitywatch.weights.spectrum import MagnitudeSpectrum

_STATE_KEYS = (
    "step", "scope_hash", "proxy_hash", "initial_rms", "optimizer", "pipeline", "schedule",
)  # fmt: skip
#: Batches of a proxy that are larger than this are not kept with the run.
_MOST_KEPT_BYTES = 256 * 2**20


def check_state(state: Mapping[str, Any], provenance: Provenance) -> None:
    """Raise StateError for the saved state of another watch, before anything is changed."""
    missing = [key for key in _STATE_KEYS if key not in state]
    if missing:
        raise StateError(f"Expected the keys {missing} in the watch's state, got {list(state)}.")
    for key in ("scope_hash", "proxy_hash"):
        expected = getattr(provenance, key)
        if state[key] != expected:
            raise StateError(
                f"Expected a state with {key} {expected!r}, got {state[key]!r}: it belongs to "
                "another model or to other held-out batches. Start a new logdir."
            )


def restore_proxy(directory: Path | None, run: RunContext, wanted: str) -> RunContext:
    """The run with the batches that the log kept, if they have the hash that is wanted."""
    proxy = run.proxy
    if directory is None or proxy is None or wanted == proxy.hash:
        return run
    file = _kept_batches(directory, wanted)
    # each of several ranks has batches of its own, of which the log kept one rank's
    if not proxy.ranks.is_alone or not file.is_file():
        return run
    try:
        kept = proxy.with_kept(file)
    except ProxyError as error:
        logger.warning("%s", error)
        return run
    if kept.hash != wanted:  # it is another value, or the file is not what was written
        return run
    logger.info("going on with the proxy's batches of %s", file)
    return replace(run, proxy=kept)


def step_in_log(taker: SnapshotTaker) -> int:
    """The step of the log's last record of the weights as they are; 0 if there is none."""
    run, directory = taker.run, taker.pipeline.claim.directory
    try:
        manifest = None if directory is None else read_manifest(directory)
        if directory is None or manifest is None or manifest.replayed_from:
            return 0
        then = manifest.initial_rms
        # what has not moved since, as under a learning rate of 0, may begin a new run as well
        if not any(abs(rms - then.get(name, 0.0)) > 0 for name, rms in run.initial_rms.items()):
            return 0
        steps = [r.step for r in read_records(directory) if r.fingerprint == run.fingerprint]
    except StateError as error:
        logger.warning("not known whether this run goes on from a log: %s", error)
        return 0
    if not steps:
        return 0
    logger.info("the weights are those of step %d in %s; going on from there", steps[-1], directory)
    return steps[-1]


def open_log(
    taker: SnapshotTaker, initial_step: int, others: Literal["", "ended", "beside"]
) -> None:
    """Claim the log, go on from what it holds, and open the sinks."""
    # a log that this run cannot go on from is renamed, but where a living process writes to it: the
    # run then writes beside it. ``others`` of this process have logged there, or still do
    claim = taker.pipeline.claim
    if claim.directory is not None:
        why = "which this one does not go on from"
        if others == "beside":
            where = f"another watch of this process writes to {str(claim.directory)!r}"
            initial_step = _moved_beside(claim, where)
        if _claimed(claim, initial_step):
            why = _resume_from_log(taker, claim.directory, initial_step)
        if why:
            claim.set_aside(why, is_expected=others == "ended")
    run = taker.run
    taker.pipeline.open(
        taker.info(initial_step), lambda record: _detail(claim.directory, record.step)
    )
    if claim.directory is not None and run.proxy is not None:
        _keep_batches(claim, run.proxy)


def _claimed(claim: Claim, initial_step: int) -> bool:
    """Claim a directory to write into; returns whether this run may go on from what it holds."""
    assert claim.directory is not None  # noqa: S101 for the type checker
    goes_on = initial_step > 0
    with contextlib.suppress(StateError):  # reported by _resume_from_log
        manifest = read_manifest(claim.directory)
        goes_on &= manifest is None or not manifest.replayed_from
    try:
        # the process that this one follows may be dying still, and must not write any more
        claim.acquire(over="all" if goes_on else "own")
    except LogTakenError as error:
        return _claimed(claim, _moved_beside(claim, error))
    return goes_on


def _moved_beside(claim: Claim, why: object) -> int:
    """Claim a directory beside it next; returns the step that a run goes on from there, none."""
    claim.use_sibling()
    words = "%s; this run is logged into %s. Give each run a `logdir` of its own."
    logger.warning(words, why, claim.directory)
    return 0


def _resume_from_log(taker: SnapshotTaker, directory: Path, initial_step: int) -> str:
    """Go on from what ``directory`` holds; returns why the run cannot, empty if it can."""
    # the log knows better the tensors' first sizes, and the proxy's batches
    try:
        manifest = read_manifest(directory)
        records = read_records(directory, max_step=initial_step)
        events = JsonlReader(directory).versions(max_step=initial_step)
    except StateError as error:
        return f"which cannot be gone on from: {error}"
    if manifest is not None:
        run = taker.run = restore_proxy(directory, taker.run, manifest.provenance.proxy_hash)
        then, now = manifest.provenance.settings(), run.provenance.settings()
        changed = [f"{k} {then[k]!r}, now {now[k]!r}" for k in now if now[k] != then[k]]
        if changed:
            return f"whose numbers cannot be compared with those that come ({'; '.join(changed)})"
        if set(manifest.initial_rms) == set(run.initial_rms):
            rms = dict(manifest.initial_rms)
            taker.run = replace(run, initial_rms=rms, began=manifest.began)
    recent = [_with_layers(record) for record in records[-LAYERS_KEPT:]]
    before = [*records[:-LAYERS_KEPT], *recent]
    taker.pipeline.history.restore(before, events, taker.run.initial_rms, taker.run.began)
    is_last = bool(records) and records[-1].step == initial_step
    clocks = (records[-1].decay_clock, records[-1].lr_clock) if is_last else (math.nan, math.nan)
    taker.trace.continue_from(*clocks)
    return ""


def _with_layers(record: Record) -> Record:
    """The record with its layers read, which nothing may fail in later; without, if it must be."""
    try:
        len(record.layers)
    except StateError as error:
        logger.warning("going on without the layers of a record: %s", error)
        return replace(record, layers=())
    return record


def _detail(directory: Path | None, step: int) -> Detail:
    """What the spectrum of a logged record still says."""
    try:
        spectrum = MagnitudeSpectrum.from_arrays(read_spectrum(directory or "", step))
    except (StateError, OSError, ValueError, LookupError, BadZipFile) as error:
        logger.info("no histograms for step %d: %s", step, error)
        return Detail()
    return Detail(make_histograms=spectrum.log10_histograms)


def _kept_batches(directory: Path, proxy_hash: str) -> Path:
    # files of this name are no checkpoints to a replay of the folder around the log
    return directory / f"sparsitywatch-proxy-{proxy_hash}.pt"


def _keep_batches(claim: Claim, proxy: Proxy) -> None:
    """Write the batches beside the log, once, for a resume whose source gives others."""
    assert claim.directory is not None  # noqa: S101 for the type checker
    file = _kept_batches(claim.directory, proxy.hash)
    if file.exists():
        return
    if proxy.num_bytes > _MOST_KEPT_BYTES:
        mebibytes = proxy.num_bytes / 2**20
        logger.info("the proxy's batches are not kept with the run: %.0f MiB", mebibytes)
        return
    try:
        with claim.writing():
            proxy.keep(file)
    except (OSError, RuntimeError, ValueError) as error:  # torch says so of a full disk
        logger.warning(
            "the proxy's batches could not be kept in %s: %s. A resumed run whose source gives "
            "others will begin a new log.", file, error,
        )  # fmt: skip
