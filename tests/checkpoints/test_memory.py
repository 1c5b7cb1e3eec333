"""The memory promise: counting the weights takes at most four times the largest tensor."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
import torch.distributed.checkpoint as dcp
from contracts.families import some_of

from sparsitywatch.checkpoints.base import stored_snapshot
from sparsitywatch.checkpoints.formats import open_checkpoint
from sparsitywatch.weights.scope import Scope
from sparsitywatch.weights.snapshot import LazyTensors
from sparsitywatch.weights.spectrum import MagnitudeSpectrum, counting

#: Tensors so large that no allocator keeps them when they are freed.
SIDE, NUM_TENSORS, NUM_THREADS = 3072, 7, 8
LARGEST_BYTES = 4 * SIDE * SIDE
#: What a thread reads into and counts into, and what is left of all else.
BYTES_A_THREAD, BYTES_BESIDE = 4 << 20, 8 << 20


def weights(tensor: torch.Tensor) -> dict[str, torch.Tensor]:
    return {f"layers.{at}.weight": tensor.clone() for at in range(NUM_TENSORS)}


def safetensors_file(folder: Path) -> Path:
    safetensors.torch.save_file(weights(torch.ones(SIDE, SIDE)), folder / "w.safetensors")
    return folder / "w.safetensors"


def transposed(folder: Path) -> Path:
    found = weights(torch.ones(SIDE, SIDE))
    torch.save({name: tensor.t() for name, tensor in found.items()}, folder / "w.pt")
    return folder / "w.pt"


def distributed(folder: Path) -> Path:
    dcp.save({"model": weights(torch.ones(SIDE, SIDE))}, checkpoint_id=folder / "w", no_dist=True)
    return folder / "w"


def peak_bytes(run: Callable[[], object]) -> int:
    """The most resident bytes while a function runs, above those before."""

    def status(field: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        (line,) = (line for line in lines if line.startswith(field))
        return int(line.split()[1]) * 1024

    Path("/proc/self/clear_refs").write_text("5")
    before = status("VmRSS")
    run()
    return status("VmHWM") - before


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # torch's own, that no process group is there
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's own peak")
@pytest.mark.parametrize("save", some_of([safetensors_file, transposed, distributed], 3))
def test_at_most_four_times_the_largest_tensor(
    save: Callable[[Path], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(counting, "MIN_COMPILED", 1 << 40)  # what numba takes is not the weights'
    path = save(tmp_path)

    def count() -> None:
        with open_checkpoint(path) as checkpoint:
            scope = Scope.of_entries(checkpoint.entries(), "matrices")
            snapshot = stored_snapshot(checkpoint, scope, 1)
            spectrum = MagnitudeSpectrum.of(snapshot.tensors, num_threads=NUM_THREADS)
            assert spectrum.num_weights == NUM_TENSORS * SIDE * SIDE

    allowed = 4 * LARGEST_BYTES + NUM_THREADS * BYTES_A_THREAD + BYTES_BESIDE
    assert peak_bytes(count) <= allowed < NUM_TENSORS * LARGEST_BYTES


def test_who_fails_at_a_whole_tensor_lets_others_read_theirs(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(counting, "MIN_PIECE", 1)
    begun: list[str] = []
    both_hold = threading.Event()

    def fail(name: str, *_: object) -> None:
        begun.append(name)
        if len(begun) == 2:
            both_hold.set()  # and a third one waits to read its own
        both_hold.wait(60)
        raise ZeroDivisionError

    torch.save({f"layers.{at}.weight": torch.ones(3, 2).t() for at in range(3)}, tmp_path / "w.pt")
    with open_checkpoint(tmp_path / "w.pt") as checkpoint:
        scope = Scope.of_entries(checkpoint.entries(), "matrices")
        tensors = stored_snapshot(checkpoint, scope, 1).tensors
        assert isinstance(tensors, LazyTensors)
        failed: list[BaseException] = []

        def count() -> None:
            try:
                MagnitudeSpectrum.of(tensors.observed(fail), num_threads=3)
            except ZeroDivisionError as error:
                failed.append(error)

        thread = threading.Thread(target=count, daemon=True)
        thread.start()
        thread.join(60)
    assert len(failed) == 1
