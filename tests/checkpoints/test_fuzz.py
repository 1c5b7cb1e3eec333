"""Bytes that nobody meant: they are read, or refused in one line, and nothing else happens."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import tempfile
import time
from pathlib import Path

import pytest
from contracts.families import some_of
from contracts.hostile_files import HOSTILE
from contracts.mutated_files import LIMIT_S, Tally, attempt
from contracts.sound_files import KINDS, sound
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sparsitywatch.checkpoints.formats import DTYPES, open_checkpoint
from sparsitywatch.checkpoints.inert_pickle import read_inert
from sparsitywatch.errors import CheckpointError

FOLDER = tempfile.TemporaryDirectory()
RELAXED = {
    "deadline": None,
    "derandomize": True,
    "database": None,
    "suppress_health_check": list(HealthCheck),
}


def read_or_refuse(name: str, data: bytes) -> None:
    """Everything that can be said about any bytes at all."""
    path = Path(FOLDER.name) / name
    path.write_bytes(data)
    refusal = ""
    try:
        with open_checkpoint(path) as checkpoint:
            entries = checkpoint.entries()
            # nothing larger than the file itself is ever made on its word
            assert all(entry.num_bytes <= len(data) for entry in entries)
            for entry in entries:
                tensor = checkpoint.read(entry.name)
                assert (tuple(tensor.shape), tensor.dtype) == (entry.shape, entry.dtype)
    except CheckpointError as error:
        refusal = str(error)
    assert "\n" not in refusal
    assert not refusal or str(path) in refusal


SIZES = st.one_of(st.integers(0, 12), st.integers(), st.sampled_from([2**31, 2**63, 2**64, -1]))
DESCRIPTIONS = st.fixed_dictionaries(
    {},
    optional={
        "dtype": st.one_of(st.sampled_from(list(DTYPES)), st.text(max_size=4), st.none()),
        "shape": st.one_of(st.lists(SIZES, max_size=3), st.text(max_size=2), SIZES),
        "data_offsets": st.one_of(st.lists(SIZES, max_size=3), st.none()),
    },
)
HEADERS = st.dictionaries(
    st.text(max_size=3), st.one_of(DESCRIPTIONS, st.none(), st.text(max_size=2)), max_size=4
)


@pytest.mark.slow
@settings(max_examples=300, **RELAXED)
@given(HEADERS, st.binary(max_size=40), st.integers(-3, 3))
def test_headers_of_safetensors(header: dict, data: bytes, shift: int) -> None:
    text = json.dumps(header).encode()
    length = max(0, len(text) + shift * (shift % 2))
    read_or_refuse("w.safetensors", length.to_bytes(8, "little") + text + data)


@pytest.mark.slow
@settings(max_examples=400, **RELAXED)
@given(st.binary(max_size=60))
def test_bytes_that_are_no_pickle(data: bytes) -> None:
    with contextlib.suppress(ValueError):
        read_inert(data)


@pytest.mark.slow
def test_mutated_files_of_every_format_are_read_or_refused(tmp_path: Path) -> None:
    tally = Tally()
    tally.run(tmp_path, 300, seed=1)
    assert tally.num_crashed == 0, tally.worst
    assert tally.outcomes.keys() == {"read", "refused"}
    # in lines of Python: on any machine the same
    assert tally.most_lines < 40


@pytest.mark.part(2)
@pytest.mark.slow
@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_costs_no_more_than_its_bytes(name: str, tmp_path: Path) -> None:
    path = HOSTILE[name](tmp_path)
    started_s = time.process_time()
    assert attempt(path) == "refused"
    assert time.process_time() - started_s < LIMIT_S


def num_open() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


@pytest.mark.part(2)
@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts them as Linux lists them")
@pytest.mark.parametrize("kind", some_of(KINDS, 2))
def test_no_prefix_of_any_file_leaves_a_file_open(kind: str, tmp_path: Path) -> None:
    """Found in a sidecar: a trainer_state.json that was half-written held the weights open."""
    whole = sound(kind)
    path = whole.write(tmp_path)
    gc.collect()  # what earlier tests have left; some of it may still be closed in between
    num_before = num_open()
    num_bytes = sum(len(whole.files[name]) for name in whole.read)
    for name in whole.read:
        data = whole.files[name]
        step = 1 if name.endswith(".json") else 1 + num_bytes // 3000
        for size in range(len(data) - 1, -1, -step):
            os.truncate(tmp_path / name, size)
            try:
                open_checkpoint(path).close()
            except CheckpointError:
                # here, while the error still holds every frame, nobody else closes them
                assert num_open() <= num_before, (name, size)
        (tmp_path / name).write_bytes(data)
    assert num_open() <= num_before
