"""An audit of folders, and of 154 branches of a hub on this machine."""

from __future__ import annotations

import functools
import json
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from contracts.clean_series import RECIPES, train
from contracts.families import whole
from contracts.hub_server import Hub, MadeFile, hub_server

import sparsitywatch as sw
from sparsitywatch.checkpoints import formats
from sparsitywatch.cli import main


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    for step, weights in train(RECIPES["momentum, cosine"], 200):
        safetensors.torch.save_file(weights, folder / f"step_{step}.safetensors")
    return folder


@pytest.fixture
def folder(trained: Path, tmp_path: Path) -> Path:
    """Thirty checkpoints, which a test may change."""
    return shutil.copytree(trained, tmp_path, dirs_exist_ok=True)


def rows(audit: sw.Audit) -> list[tuple[str, int | None]]:
    return [(row.finding, row.step) for row in audit.findings]


def test_a_folder_that_is_right(folder: Path, capsys: pytest.CaptureFixture) -> None:
    audit = sw.audit(folder)
    assert (audit.findings, audit.status, audit.num_audited) == ((), 0, 30)
    weights = safetensors.torch.load_file(folder / "step_0.safetensors").values()
    assert audit.num_weight_bytes == 30 * sum(w.numel() * w.element_size() for w in weights)
    assert main(["audit", str(folder)]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("0 findings in 30 checkpoints; ")
    assert err.startswith("30 checkpoints, headers ")
    assert err.rstrip().endswith(", of which it reads samples")


def test_findings_are_a_table_or_lines_of_json(folder: Path, capsys) -> None:
    copied, cut = folder / "step_50.safetensors", folder / "step_120.safetensors"
    copied.write_bytes((folder / "step_290.safetensors").read_bytes())
    cut.write_bytes(cut.read_bytes()[:-100])
    assert main(["audit", str(folder), "--json"]) == 1
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(row["step"], row["finding"]) for row in found] == [(50, "copy"), (120, "unreadable")]
    assert set(found[0]) == {"step", "last_step", "finding", "evidence", "action"}
    assert (found[0]["last_step"], found[1]["last_step"]) == (50, 120)
    assert "step 290" in found[0]["evidence"]
    assert "in a sample of 9 tensors" in found[0]["evidence"]
    assert "truncated" in found[1]["evidence"]
    assert main(["audit", str(folder)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["step", "finding", "evidence"]
    assert lines[1].split()[:2] == ["50", "copy"]
    assert any(line.startswith("copy: Do not use it.") for line in lines)


def test_nothing_that_could_be_audited_is_2(tmp_path: Path, capsys) -> None:
    (tmp_path / "step_5.safetensors").write_bytes(b"\0" * 100)
    assert main(["audit", str(tmp_path)]) == 2
    assert sw.audit(tmp_path).status == 2
    assert main(["audit", str(tmp_path / "none")]) == 2
    assert "sparsitywatch: " in capsys.readouterr().err


def test_of_a_large_series_one_nan_is_found_by_a_full_audit_alone(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = folder / "step_70.safetensors"
    weights = safetensors.torch.load_file(file)
    weights["2.weight"].view(-1)[1500] = float("nan")
    safetensors.torch.save_file(weights, file)
    assert rows(sw.audit(folder)) == [("not finite", 70)]  # all of a small one is in the sample
    monkeypatch.setattr("sparsitywatch.offline.audit._SMALL_BYTES", 0)
    assert rows(sw.audit(folder)) == []
    audit = sw.audit(folder, full=True)
    assert rows(audit) == [("not finite", 70)]
    assert audit.num_bytes_read > audit.num_weight_bytes > sw.audit(folder).num_bytes_read


def test_weights_that_differ_beyond_the_sample_are_no_copies(folder: Path) -> None:
    """Of 40 layers only one moves, and it is not in the sample."""
    still = {f"{i}.weight": torch.randn(8, 8) for i in range(100)}
    other = folder / "other"
    other.mkdir()
    for step in (1, 2, 3):
        still["51.weight"] = still["51.weight"] + 1
        safetensors.torch.save_file(still, other / f"step_{step}.safetensors")
    assert rows(sw.audit(other)) == []


def test_a_name_that_says_another_step_than_the_file(tmp_path: Path) -> None:
    for step, weights in train(RECIPES["few"], 201):
        torch.save({"model": weights, "step": step}, tmp_path / f"step_{step + (step == 100)}.pt")
    audit = sw.audit(tmp_path)
    assert rows(audit) == [("step", 100)]
    assert "its name says step 101" in audit.findings[0].evidence


def test_two_runs_in_a_folder_are_listed_and_nothing_is_audited(folder: Path, capsys) -> None:
    for step, weights in train(RECIPES["few"], 202):
        safetensors.torch.save_file(weights, folder / f"seed1_step_{step}.safetensors")
    with pytest.raises(sw.ConfigurationError, match="got 2 series") as error:
        sw.audit(folder)
    lines = str(error.value).splitlines()
    assert lines[1].endswith("/step_{step}.safetensors: 30, steps 0 to 290")
    assert lines[2].endswith("/seed1_step_{step}.safetensors: 4, steps 0 to 150")
    assert lines[3].startswith("Nothing was audited. Name the checkpoints of one of them, or give")
    assert main(["audit", str(folder)]) == 2
    assert "got 2 series" in capsys.readouterr().err


def test_each_header_is_read_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parsed, parse = [], formats._parse
    monkeypatch.setattr(formats, "_parse", lambda data: parsed.append(data) or parse(data))
    copied = folder / "step_50.safetensors"
    copied.write_bytes((folder / "step_290.safetensors").read_bytes())  # is read a second time
    assert rows(sw.audit(folder)) == [("copy", 50)]
    assert len(parsed) == 30


def test_a_file_that_changes_in_between_is_told(folder: Path) -> None:
    def change(*_: int) -> None:
        file = folder / "step_80.safetensors"
        weights = safetensors.torch.load_file(file)
        safetensors.torch.save_file({**weights, "more": torch.ones(3)}, file)

    (row,) = sw.audit(folder, on_begin=[change]).findings
    assert (row.step, row.finding) == (80, "unreadable")
    assert "written meanwhile" in row.evidence


def test_no_file_stays_open(folder: Path) -> None:
    descriptors = Path("/proc/self/fd")
    if not descriptors.exists():
        pytest.skip("there is no list of open files")
    before = len(list(descriptors.iterdir()))
    sw.audit(folder)
    assert len(list(descriptors.iterdir())) <= before


@pytest.mark.parametrize(
    "wrong", [{"on_begin": 3}, {"on_progress": [3]}, {"storage_options": 3}, {"key": 3}]
)
def test_what_cannot_be_used_is_refused(folder: Path, wrong: dict) -> None:
    with pytest.raises(sw.ConfigurationError, match=next(iter(wrong))):
        sw.audit(folder, **wrong)


# ------------------------------------------------------------------ 154 branches

STEPS = [0, *(2**n for n in range(10)), *range(1000, 144_000, 1000)]
SHAPES = {"embed.weight": (100_000, 512)} | {
    f"layers.{i}.{name}.weight": shape
    for i in range(6)
    for name, shape in {
        "qkv": (1536, 512), "dense": (512, 512), "up": (2048, 512), "down": (512, 2048)
    }.items()
}  # fmt: skip
SHARDS = [list(SHAPES)[:13], list(SHAPES)[13:]]
NUM_MADE = 2048
#: With the last one 86 of 154.
LATE = [*STEPS[:64], *range(60_000, 142_000, 4_000)]


@functools.cache
def ends_of(name: str, seed: int) -> np.ndarray:
    """Two sets of weights that a tensor turns between."""
    return np.random.default_rng([seed, *name.encode()]).standard_normal((2, NUM_MADE)) * 0.02


def begin_of(name: str, step: int, seed: int) -> np.ndarray:
    """The first weights of a tensor: on a way that never comes back."""
    start, target = ends_of(name, seed)
    angle = step / 143_000
    return start * np.cos(angle) + target * np.sin(angle)


def shard(number: int, step: int, *, seed: int = 0, dtype: str = "F32", head: bool = False,
          nan: bool = False, cut: int = 0) -> MadeFile:  # fmt: skip
    kind = {"F32": np.float32, "F16": np.float16}[dtype]
    header: dict[str, object] = {}
    parts: dict[int, bytes] = {}
    at = 0
    names = [*SHARDS[number], *(["head.weight"] if head else [])]
    for name in names:
        shape = SHAPES.get(name, SHAPES["embed.weight"])
        end = at + shape[0] * shape[1] * np.dtype(kind).itemsize
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, end]}
        values = begin_of(name, step, seed).astype(kind)
        values[5] = np.nan if nan and name == names[0] else values[5]
        parts[at] = values.tobytes()
        at = end
    text = json.dumps(header).encode()
    made = {8 + len(text) + place: data for place, data in parts.items()}
    made[0] = struct.pack("<Q", len(text)) + text
    spec = repr((number, step, seed, dtype, head, nan))
    return MadeFile(8 + len(text) + at - cut, made, sha256(spec.encode()).hexdigest())


def branch(step: int, first: int | None = None, **how: object) -> dict[str, bytes | MadeFile]:
    """The files of a branch; ``first``: the step of the first shard."""
    files = [f"model-0000{number + 1}-of-00002.safetensors" for number in (0, 1)]
    places = {name: file for file, names in zip(files, SHARDS, strict=True) for name in names}
    if how.get("head"):
        places["head.weight"] = files[0]
    one = shard(0, step if first is None else first, **how)
    other = shard(1, step, **{k: v for k, v in how.items() if k in ("seed", "dtype")})
    return {
        "config.json": b"{}",
        "model.safetensors.index.json": json.dumps({"weight_map": places}).encode(),
        files[0]: one,
        files[1]: other,
    }


def planted() -> dict[str, dict[str, dict[str, bytes | MadeFile]]]:
    right = {f"step{step}": branch(step) for step in STEPS}
    alike = {f"step{step}": branch(0) for step in STEPS[:17]}  # steps 0 to 6,000
    late = {f"step{step}": branch(143_000) for step in LATE}
    mixed = {
        "step20000": branch(110_000), "step70000": branch(110_000),  # and the right one
        "step30000": branch(31_000), "step31000": branch(30_000),
        "step50000": branch(50_000, first=143_000), "step58000": branch(58_000, first=143_000),
        "step80000": branch(80_000, cut=10), "step85000": branch(85_000, nan=True),
        "step90000": branch(90_000, dtype="F16"), "step95000": branch(95_000, head=True),
        "step100000": branch(100_000, seed=7),
    }  # fmt: skip
    del right["step128000"]
    return {
        "org/late": right | late,
        "org/mixed": right | alike | mixed | {"main": branch(143_000)},
    }


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    with hub_server(planted()) as hub:
        yield hub


CLIENT = """
import json, sys
import sparsitywatch as sw
for name in sys.argv[1:]:
    found = sw.audit(f"hf://org/{name}@*")
    rows = [
        (step, row.finding, row.evidence)
        for row in found.findings for step in {row.step, *found.steps} if row.covers(step)
    ]
    print(json.dumps([rows, found.num_audited, found.num_weight_bytes, found.num_bytes_read]))
"""


@whole
def test_planted_faults_of_154_branches_are_named_for_a_fraction_of_the_bytes(
    hub: Hub, tmp_path: Path
) -> None:
    names = ["late", "mixed"]
    done = subprocess.run(
        [sys.executable, "-c", CLIENT, *names],
        capture_output=True, text=True, timeout=500, env=hub.environment(tmp_path), check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    answers = dict(zip(names, map(json.loads, done.stdout.splitlines()), strict=True))
    found = {
        name: {(step, kind): words for step, kind, words in answers[name][0]} for name in names
    }
    gap = {(128_000, "missing")}
    assert len(LATE) == 85
    assert found["late"].keys() == {(step, "copy") for step in LATE}
    assert "by the hash" in found["late"][0, "copy"]
    alike = {(step, "identical") for step in STEPS[:17]}
    assert found["mixed"].keys() == gap | alike | {
        (20_000, "copy"), (70_000, "copy"), (30_000, "swapped"), (31_000, "swapped"),
        (50_000, "shard"), (58_000, "shard"), (80_000, "unreadable"), (85_000, "not finite"),
        (90_000, "dtype"), (95_000, "tie"), (100_000, "not of this run"),
    }  # fmt: skip
    assert "step 110,000" in found["mixed"][20_000, "copy"]
    assert "model-00001-of-00002.safetensors" in found["mixed"][50_000, "shard"]
    for name in names:
        _, num_audited, num_weight_bytes, num_bytes_read = answers[name]
        assert num_audited >= 152
        assert num_weight_bytes > 152 * 4 * 70e6
        sent = sum(size for repository, _, size in hub.sent if repository == f"org/{name}")
        assert num_bytes_read <= sent <= 0.005 * num_weight_bytes


@pytest.mark.parametrize("layers", [1, 60])
def test_of_a_series_above_100_mb_a_two_hundredth_is_read(tmp_path: Path, layers: int) -> None:
    generator = torch.Generator().manual_seed(0)
    size = 2_000_000 // layers
    for step in range(14):
        weights = {f"layers.{i}.fc.weight": torch.randn(size // 100, 100, generator=generator)
                   for i in range(layers)}  # fmt: skip
        safetensors.torch.save_file(weights, tmp_path / f"step_{step}.safetensors")
    audit = sw.audit(tmp_path)
    assert audit.num_weight_bytes > 100e6
    assert audit.num_bytes_read <= 0.005 * audit.num_weight_bytes
