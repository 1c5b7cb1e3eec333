"""The sharded example: two processes log what one does, and one goes on where two stopped."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pretrain_fsdp
import pytest
import torch
from contracts import logged
from contracts.forked import WATCHED_BERT, forked
from contracts.logged import assert_same
from contracts.once import once

ARGUMENTS = [
    "--layers", "2", "--hidden", "32", "--sequence", "16", "--batch", "8", "--steps", "8",
    "--every", "2", "--save-every", "4", "--lr", "0.01",
]  # fmt: skip

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")  # one process


@pytest.fixture(scope="module", autouse=True)
def _threads() -> Iterator[None]:
    """The example sets them."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run on two ranks."""

    def train(folder: Path) -> None:
        logdir = str(folder / "run")
        script = Path(pretrain_fsdp.__file__)
        status, output = forked(script, *ARGUMENTS, "--logdir", logdir, imports=WATCHED_BERT)
        assert status == 0, output

    return once(tmp_path_factory, "pretrain-fsdp", train) / "run"


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same in one process."""
    logdir = tmp_path_factory.mktemp("alone") / "run"
    assert pretrain_fsdp.main([*ARGUMENTS, "--logdir", str(logdir)]) == 0
    return logdir


def _records(logdir: Path) -> list[dict[str, Any]]:
    """All that the log says, but for what a clock does, and for layers, which have no shards."""
    records = logged.records(logdir / "sparsitywatch")
    for record in records:
        del record["cost"], record["wall_time"], record["xray"]
    return records


@pytest.mark.slow
def test_two_ranks_write_the_records_of_one_process(two: Path, alone: Path) -> None:
    found = _records(two)
    assert [record["step"] for record in found] == [2, 4, 6, 8]
    assert all(record["curve"] and record["valid"] for record in found)
    assert_same(found, _records(alone))
    shards = list((two / "checkpoints" / "step-000008").glob("__*_0.distcp"))
    assert [shard.name[:4] for shard in sorted(shards)] == ["__0_", "__1_"]  # so it was sharded


@pytest.mark.slow
def test_one_process_goes_on_where_two_were_killed(
    two: Path, alone: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(two, tmp_path / "run")
    # killed while the last checkpoint was written
    (tmp_path / "run" / "checkpoints" / "step-000008" / ".metadata").unlink()
    assert pretrain_fsdp.main([*ARGUMENTS, "--logdir", str(tmp_path / "run")]) == 0
    assert [line.split()[1] for line in capsys.readouterr().out.splitlines()] == ["6", "8"]
    assert_same(_records(tmp_path / "run"), _records(alone))
    # and a run that is finished is left as it is
    assert pretrain_fsdp.main([*ARGUMENTS, "--logdir", str(tmp_path / "run")]) == 0
    assert capsys.readouterr().out == ""


def test_batches_of_its_own_on_each_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    class Ranks:
        is_initialized = staticmethod(lambda: True)
        get_world_size = staticmethod(lambda: 2)
        rank = 0

        @classmethod
        def get_rank(cls) -> int:
            return cls.rank

    monkeypatch.setattr(pretrain_fsdp, "dist", Ranks)
    text, held_out, _ = pretrain_fsdp.read_text(16)
    assert held_out.shape == (pretrain_fsdp.HELD_OUT, 16)
    for is_own in (False, True):
        args = pretrain_fsdp.argparse.Namespace(batch=4, sequence=16, own_batches=is_own)
        seen = set()
        for step in (1, 2, 3):
            for Ranks.rank in (0, 1):
                tokens = pretrain_fsdp.next_batch(text, step, args)["input_ids"]
                seen.add(str(tokens.tolist()))
        assert len(seen) == (6 if is_own else 3)
