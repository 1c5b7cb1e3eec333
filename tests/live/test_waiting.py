"""A training on a device does not wait for the watch's sake, but at known places, which say so."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from contracts.fake_device import FakeDevice, OnDevice, Wait, to_device
from torch import nn

import sparsitywatch as sw

PACKAGE = Path(sw.__file__).parent
#: Files in which a snapshot waits, and for what: of the weights, and of an evaluation beside.
OF_WEIGHTS = {
    ("weights/snapshot.py", "copy to the device"),  # which weights are sampled
    ("weights/snapshot.py", "cpu"),  # the sampled weights
    ("weights/spectrum/counting.py", "cpu"),  # the counts of all tensors
    ("vital/reading.py", "tolist"),  # which gradients are all zero
    ("vital/gradients.py", "cpu"),  # norms and zeros of all gradients
    ("live/ring.py", "cpu"),  # how far each block moved at each step
}
OF_STEPS = {("vital/one_step.py", "cpu")}  # some weights around the steps after the first snapshot
OF_EVALUATION = {
    ("proxy/batches.py", "copy to the device"),  # a batch
    ("proxy/proxy.py", "cpu"),  # its values
    ("patterns/thresholds.py", "index"),  # the weights in the bin of a threshold
    ("patterns/thresholds.py", "cpu"),
}


class OnFakeDevice:
    """A small training of a model that says that it is on a device."""

    def __init__(self, **options) -> None:
        torch.manual_seed(0)
        self.model = to_device(nn.Sequential(nn.Linear(6, 800), nn.ReLU(), nn.Linear(800, 2)))
        self.optimizer = torch.optim.AdamW(self.model.parameters(), **{"lr": 0.01, **options})
        self.inputs = torch.randn(20, 6).as_subclass(OnDevice)
        self.targets = torch.randn(20, 2).as_subclass(OnDevice)

    def train(self, steps: int) -> None:
        for _ in range(steps):
            self.optimizer.zero_grad()
            (self.model(self.inputs) - self.targets).square().mean().backward()
            self.optimizer.step()

    def watch(self, *, with_proxy: bool) -> sw.Watcher:
        batches = [[torch.randn(10, 6), torch.randn(10, 2)]]
        proxy = sw.Proxy(batches, lambda model, b: (model(b[0]) - b[1]).square().mean(dim=1))
        return sw.watch(
            self.model, self.optimizer, logdir=None, proxy=proxy if with_proxy else None, every=4,
            max_overhead=None, ring=True, strict=True, scope="layers", dormant_samples=1000,
        )  # fmt: skip


def places(waits: list[Wait]) -> set[tuple[str, str]]:
    """Where something waits, and for what; each place says so in its line, or in one above."""
    for wait in set(waits):
        lines = (PACKAGE / wait.file).read_text().splitlines()
        assert any("waits for the device" in x for x in lines[wait.line - 4 : wait.line]), wait
    return {(wait.file, wait.what) for wait in waits}


def test_what_waits_is_seen() -> None:
    """The fake device tells each way to wait, and waits for nothing else."""
    ways = {
        "_local_scalar_dense": [torch.Tensor.item, bool, float, lambda x: x in [2.0]],
        "allclose": [lambda x: torch.allclose(x, x)],
        "cpu": [lambda x: x.cpu(), lambda x: x.to("cpu"), lambda x: x.to("cpu", torch.float64)],
        "tolist": [lambda x: x.tolist()],
        "nonzero": [lambda x: (x > 0).nonzero()],
        "index": [lambda x: x[x > 0]],
        "index_put_": [lambda x: x.__setitem__(x > 0, 0.0)],
        "equal": [lambda x: torch.equal(x, x)],
        "copy to the device": [lambda x: torch.ones(1).to(x.device)],
    }
    with FakeDevice() as device, pytest.MonkeyPatch.context() as patch:
        patch.setattr("contracts.fake_device.PACKAGE", str(Path(__file__).parent))
        for what, calls in ways.items():
            for call in calls:
                call(torch.ones(1).as_subclass(OnDevice))
                assert what in {wait.what for wait in device.waits()}, what
        made = torch.zeros(3, device=torch.ones(1).as_subclass(OnDevice).device)
        (made + 1).masked_fill_(made > 0, 1.0).sum().square_()
        assert isinstance(made, OnDevice)
        assert device.waits() == []


@pytest.mark.parametrize("with_proxy", [False, True])
def test_a_training_on_a_device_waits_at_snapshots_only(with_proxy: bool) -> None:
    with FakeDevice() as device:
        run = OnFakeDevice()
        with run.watch(with_proxy=with_proxy) as watcher:
            device.waits()
            for num_before, others in ((3, set()), (2, OF_STEPS)):
                run.train(num_before)
                assert device.waits() == []
                run.train(2)  # a snapshot, and a look at what was written before the next forward
                known = OF_WEIGHTS | others | (OF_EVALUATION if with_proxy else set())
                assert places(device.waits()) == known
        assert [record.valid for record in watcher.records] == [True, True]


def test_what_an_optimizer_keeps_on_the_device_is_read_at_each_step() -> None:
    with FakeDevice() as device:
        run = OnFakeDevice(lr=torch.tensor(0.01).as_subclass(OnDevice))
        with run.watch(with_proxy=False):
            run.train(1)
            found_inf = torch.zeros(1).as_subclass(OnDevice)  # as a scaler sets it for fused ones
            run.optimizer.register_step_post_hook(
                lambda one, *_: vars(one).update(found_inf=found_inf)
            )
            device.waits()
            run.train(1)
            waits = device.waits()
    where = {
        ("weights/clock.py", "_local_scalar_dense"),
        ("live/watcher.py", "_local_scalar_dense"),
    }
    assert places(waits) == where
    assert len(waits) == 2  # once each
