"""The compiled counter: the plain counter's integers, and no harm where it does not work."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import logging
import subprocess
import sys
import types
from pathlib import Path
from unittest import mock

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from contracts.families import whole
from hypothesis import given, settings

from sparsitywatch.weights.spectrum import MagnitudeSpectrum, counting, kernel
from sparsitywatch.weights.spectrum.histogram import STORAGES

ROOT = Path(__file__).resolve().parents[2]
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
needs_numba = pytest.mark.skipif(
    importlib.util.find_spec("numba") is None,
    reason="numba is not installed: pip install sparsitywatch[fast]",
)


@pytest.fixture(autouse=True)
def nothing_loaded():
    """Each test loads anew, and leaves nothing that it has faked behind."""
    cached = kernel.load, kernel._numba  # a test may put others in their place for longer
    for function in cached:
        function.cache_clear()
    yield
    for function in cached:
        function.cache_clear()


@pytest.fixture
def fake_numba(monkeypatch):
    """Puts a module in numba's place that has no more than what the test gives it."""

    def install(njit=None, disabled=False):
        fake = types.ModuleType("numba")
        fake.__spec__ = importlib.machinery.ModuleSpec("numba", None)
        fake.config = types.SimpleNamespace(DISABLE_JIT=disabled)
        fake.njit = njit
        monkeypatch.setitem(sys.modules, "numba", fake)
        monkeypatch.setattr(kernel, "_give_prefetch_a_body", lambda: None)

    return install


@pytest.fixture
def always_compiled(monkeypatch):
    monkeypatch.setattr(counting, "MIN_COMPILED", 0)


def bits_of(num_bytes, seed=0, size=3000):
    drawn = np.random.default_rng(seed).integers(0, 1 << 63, size, dtype=np.uint64)
    bits = (drawn * np.uint64(2) >> np.uint64(64 - 8 * num_bytes)).astype(f"u{num_bytes}")
    bits[size // 3 :] &= np.array(7, bits.dtype)  # many ties
    return bits


def storage_of(num_bytes):
    return next(s for s in STORAGES.values() if s.num_bytes == num_bytes)


def expected_counts(bits):
    table = counting.PlainTable(storage_of(bits.itemsize))
    table.add(bits)
    return table.drain()


@pytest.mark.slow
@pytest.mark.parametrize("num_bytes", [2, 4, 8])
def test_what_is_compiled_counts_right_before_it_is_compiled(num_bytes, monkeypatch):
    # the same functions, run by the interpreter: tested without numba, too
    interpreted = kernel.Kernel(kernel._COUNT[num_bytes], kernel.drain)
    table = kernel.Table(interpreted, storage_of(num_bytes))
    # up to two are counted in one lane, more in all
    monkeypatch.setattr(kernel, "FEW", 2)
    for seed, size in enumerate((0, 1, 2, 3, 15, 16, 17, 500)):
        bits = bits_of(num_bytes, seed, size)
        table.add(bits)
        keys, counts = table.drain()
        assert (keys.dtype, counts.dtype) == (np.int32, np.int64)
        assert all(map(np.array_equal, (keys, counts), expected_counts(bits)))
    assert not any(map(len, table.drain()))
    kernel._check(interpreted, num_bytes)


@needs_numba
@pytest.mark.parametrize("num_bytes", [2, 4, 8])
@settings(deadline=None, max_examples=60)
@given(
    start=st.integers(0, 40),
    sizes=st.lists(st.integers(0, 200), max_size=3),
    seed=st.integers(0, 99),
)
def test_any_start_and_length_is_counted(num_bytes, start, sizes, seed):
    # packs of eight bytes start where the address allows it; the rest, and few, are counted singly
    bits, table = (
        bits_of(num_bytes, seed),
        kernel.Table(kernel.load(num_bytes), storage_of(num_bytes)),
    )
    added = [bits[start : start + size] for size in sizes]
    with mock.patch.object(kernel, "FEW", 100):
        for some in added:
            table.add(some)
        assert all(
            map(np.array_equal, table.drain(), expected_counts(np.concatenate([bits[:0], *added])))
        )
        assert not any(map(len, table.drain()))


@needs_numba
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_spectrum_is_the_same_without_it(dtype, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    sizes = {"large": 2_500_001, "small": 77, "one": 1, "none": 0}
    tensors = {n: torch.randn(k, generator=generator).to(dtype) for n, k in sizes.items()}
    tensors["special"] = torch.tensor([0.0, -0.0, torch.nan, torch.inf, -torch.inf]).to(dtype)
    calls = []
    monkeypatch.setattr(kernel, "load", lambda n, load=kernel.load: calls.append(n) or load(n))
    compiled = MagnitudeSpectrum.of(tensors, num_threads=3)
    assert calls == [dtype.itemsize]
    monkeypatch.setattr(kernel, "load", lambda num_bytes: None)
    assert compiled == MagnitudeSpectrum.of(tensors, num_threads=2)


@needs_numba
def test_weights_at_odd_addresses_are_counted(always_compiled):
    # mapped files need not keep floats at multiples of their size
    raw = bytearray(4 * 1000 + 1)
    raw[1:] = np.random.default_rng(0).standard_normal(1000).astype(np.float32).tobytes()
    odd = torch.frombuffer(raw, dtype=torch.float32, offset=1, count=1000)
    assert odd.data_ptr() % 4 != 0
    assert MagnitudeSpectrum.of({"w": odd}) == MagnitudeSpectrum.of({"w": odd.clone()})


def test_few_weights_load_nothing(monkeypatch):
    monkeypatch.setattr(kernel, "load", lambda num_bytes: pytest.fail("loaded"))
    MagnitudeSpectrum.of({"w": torch.ones(1000)})


def test_float8_has_no_kernel():
    assert kernel.load(1) is None


def test_without_numba_nothing_is_said(monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "numba", None)
    with caplog.at_level(logging.INFO, "sparsitywatch"):
        assert kernel.load(4) is None
    assert not caplog.records


def counts_as_ever(caplog):
    tensor = torch.randn(500, generator=torch.Generator().manual_seed(0))
    with caplog.at_level(logging.INFO, "sparsitywatch"):
        first, second = (MagnitudeSpectrum.of({"w": tensor}) for _ in range(2))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernel, "load", lambda num_bytes: None)
        return first == second == MagnitudeSpectrum.of({"w": tensor})


def test_a_numba_that_cannot_be_imported_is_reported_once(
    monkeypatch, caplog, tmp_path, always_compiled
):
    (tmp_path / "numba.py").write_text("raise ImportError('Numba needs NumPy 2.3 or less')")
    monkeypatch.delitem(sys.modules, "numba", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    assert counts_as_ever(caplog)
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert "numba is installed and cannot be used" in record.message
    assert "Numba needs NumPy 2.3 or less" in caplog.text


def test_a_numba_that_cannot_compile_is_reported_once(fake_numba, caplog, always_compiled):
    def njit(*args, **options):
        raise OSError("no LLVM")

    fake_numba(njit)
    assert counts_as_ever(caplog)
    (warning,) = (r for r in caplog.records if r.levelname == "WARNING")
    assert "failed on the counter of 4-byte weights" in warning.message
    assert "no LLVM" in caplog.text


def test_a_numba_that_compiles_wrong_code_is_not_used(fake_numba, caplog, always_compiled):
    def njit(*args, **options):
        return lambda function: lambda *arrays: 0

    fake_numba(njit)
    assert counts_as_ever(caplog)
    assert "Expected the counts that numpy finds" in caplog.text


def test_where_nothing_can_be_kept_on_disk_it_compiles_anyway(fake_numba, caplog):
    def njit(*args, cache=False, **options):
        if cache:
            raise RuntimeError("cannot cache function: no locator available")
        return lambda function: function

    fake_numba(njit)
    with caplog.at_level(logging.INFO, "sparsitywatch"):
        assert kernel.load(4) is not None
    assert "not kept on disk" in caplog.text
    assert all(record.levelname == "INFO" for record in caplog.records)


def test_a_numba_that_does_not_compile_is_not_used(fake_numba, caplog):
    # NUMBA_DISABLE_JIT=1, set to debug something else, would make counting last forever
    fake_numba(disabled=True)
    with caplog.at_level(logging.INFO, "sparsitywatch"):
        assert kernel.load(4) is None
    assert "NUMBA_DISABLE_JIT" in caplog.text


PROBE = """
import logging, sys, torch
logging.basicConfig(level=logging.INFO)
from sparsitywatch.weights.spectrum import MagnitudeSpectrum, kernel
assert "numba" not in sys.modules
torch.set_num_threads(2)
before = torch.get_rng_state()
MagnitudeSpectrum.of({"w": torch.ones(1 << 19)})
assert torch.equal(before, torch.get_rng_state())
(compiled,) = [kernel.load(4).count]
print("compiled before the first count:", len(compiled.signatures) == 1)
print("kept:", sum(compiled.stats.cache_misses.values()), sum(compiled.stats.cache_hits.values()))
"""


@whole
@needs_numba
def test_compiled_once_and_kept_on_disk(tmp_path):
    found = [run_probe(tmp_path) for _ in range(2)]
    assert [lines[0] for lines in found] == ["compiled before the first count: True"] * 2
    assert [lines[1] for lines in found] == ["kept: 1 0", "kept: 0 1"]


def run_probe(cache_dir):
    done = subprocess.run(
        [sys.executable, "-c", PROBE],
        check=True,
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={"NUMBA_CACHE_DIR": str(cache_dir), "PYTHONPATH": ":".join([str(ROOT), *sys.path])},
    )
    return done.stdout.splitlines()
