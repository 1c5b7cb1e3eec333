"""``sparsitywatch export``: masks as torch has them, pruned checkpoints, whole or not at all."""

from __future__ import annotations

import json
import weakref
from pathlib import Path

import pytest
import torch
from contracts.live_runs import held_out, tiny_bert, train
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.utils import prune

import sparsitywatch as sw
from sparsitywatch.checkpoints.base import Checkpoint
from sparsitywatch.checkpoints.formats import open_checkpoint
from sparsitywatch.cli import main
from sparsitywatch.errors import CheckpointError
from sparsitywatch.offline.export import _keep_mask
from sparsitywatch.patterns.pattern import as_pattern

SCOPE = ["--scope", "*.query.weight", "--scope", "*.intermediate.dense.weight"]


def in_scope(model: nn.Module) -> dict[str, nn.Module]:
    ends = ("query", "intermediate.dense")
    return {name: one for name, one in model.named_modules() if name.endswith(ends)}


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    torch.save(tiny_bert().state_dict(), tmp_path / "step-5.pt")
    return tmp_path / "step-5.pt"


def exported(checkpoint: Path, *options: str, status: int = 0) -> Path:
    output = checkpoint.parent / "out" / "made.safetensors"
    argv = ["export", str(checkpoint), "--at", "0.6", *SCOPE, "-o", str(output), *options]
    assert main(argv) == status
    return output


def torch_masks(pattern: str, level: float) -> dict[str, torch.Tensor]:
    model = tiny_bert()
    modules = in_scope(model)
    if pattern == "global":
        places = [(one, "weight") for one in modules.values()]
        prune.global_unstructured(places, prune.L1Unstructured, amount=level)
    else:
        for one in modules.values():
            prune.l1_unstructured(one, "weight", level)
    return {f"{name}.weight_mask": one.weight_mask for name, one in modules.items()}


@pytest.mark.parametrize("pattern", ["global", "layerwise"])
def test_masks_are_those_of_torch_to_the_bit(checkpoint: Path, pattern: str) -> None:
    found = load_file(exported(checkpoint, "--what", "masks", "--pattern", pattern))
    expected = torch_masks(pattern, 0.6)
    assert found.keys() == expected.keys()
    for name, mask in expected.items():
        assert found[name].dtype is torch.bool
        assert torch.equal(found[name].to(mask.dtype), mask)


def test_masks_load_into_a_model_of_torch_prune(checkpoint: Path) -> None:
    model = tiny_bert()
    for one in in_scope(model).values():
        prune.identity(one, "weight")
    masks = load_file(exported(checkpoint, "--what", "masks"))
    assert not model.load_state_dict(masks, strict=False).unexpected_keys
    for name, one in in_scope(model).items():
        assert torch.equal(one.weight_mask, torch_masks("global", 0.6)[f"{name}.weight_mask"])


def test_a_pruned_checkpoint_is_the_model_without_what_went(checkpoint: Path) -> None:
    output = exported(checkpoint, "--what", "pruned")
    masks, dense = torch_masks("global", 0.6), tiny_bert().state_dict()
    pruned = load_file(output)
    assert pruned.keys() == dense.keys()
    for name, weights in dense.items():
        mask = masks.get(f"{name}_mask", torch.ones(()))
        assert torch.equal(pruned[name], weights * mask)  # a weight that goes is +0
        kept = torch.where(mask == 0, 0.0, weights) if f"{name}_mask" in masks else weights
        assert torch.equal(pruned[name].view(torch.uint8), kept.view(torch.uint8))
    tiny_bert().load_state_dict(pruned)
    with open_checkpoint(output) as again:
        assert again.format == "safetensors"


def test_the_card_says_what_went(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = exported(checkpoint, "--what", "pruned", "--json")
    card = json.loads(capsys.readouterr().out)
    with safe_open(output, "pt") as file:
        about = file.metadata()
    assert about["format"] == "pt"
    assert json.loads(about["sparsitywatch"]) == card
    zeros = {name: int((weights == 0).sum()) for name, weights in load_file(output).items()}
    removed = sum(zeros[name] for name in card["sparsities"])
    assert (card["num_removed"], card["step"]) == (removed, 5)
    assert removed / card["num_weights"] == pytest.approx(0.6, abs=1e-3)


def test_the_card_for_people(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = exported(checkpoint, "--what", "masks")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "# masks: 60 % of the weights in scope"
    assert lines[2] == "- 922 of 1,536 weights go; asked for 0.6"
    assert len([line for line in lines if ".weight: " in line]) == 4
    assert lines[-1] == str(output)


def test_ties_go_together_and_zeros_that_stay_are_in_the_mask(tmp_path: Path) -> None:
    weights = {"a.weight": torch.tensor([[0.0, 1.0, 1.0, 1.0]]), "b.weight": torch.zeros(2, 2)}
    weights["b.weight"] += 5.0
    torch.save(weights, tmp_path / "w-1.pt")
    argv = ["export", str(tmp_path / "w-1.pt"), "--scope", "matrices", "--what", "masks"]
    assert main([*argv, "--at", "0.25", "-o", str(tmp_path / "a.safetensors")]) == 0
    masks = load_file(tmp_path / "a.safetensors")
    assert not masks["a.weight_mask"].any()
    assert masks["b.weight_mask"].all()
    assert main([*argv, "--at", "0.05", "-o", str(tmp_path / "b.safetensors")]) == 0
    assert all(mask.all() for mask in load_file(tmp_path / "b.safetensors").values())


FLOATS = [torch.bfloat16, torch.float16, torch.float64, torch.float8_e4m3fn, torch.float8_e5m2]
FLOATS += [torch.float8_e4m3fnuz, torch.float8_e5m2fnuz]  # which have no -0


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("pattern", ["global", "per_row", "keep_2_of_4", "random"])
def test_masks_of_narrow_floats_are_those_of_wide_ones(dtype: torch.dtype, pattern: str) -> None:
    weight = torch.randn(16, 8, generator=torch.Generator().manual_seed(0))
    weight[:4] = 0
    made = []
    for one in (weight.to(dtype), weight.to(dtype).double()):
        known = sw.patterns.Weights.of({"a": one})
        (cut,) = as_pattern(pattern).cuts(known, [0.5])
        made.append(_keep_mask(cut, "a", one))
    assert torch.equal(*made)
    assert round(128 * (1 - cut.sparsity)) == int(made[0].sum())
    assert bool(made[0][:4].any()) == (pattern != "global")  # zeros that stay


@pytest.mark.parametrize("dtype", FLOATS)
def test_dtypes_and_tied_tensors_stay_what_they_are(tmp_path: Path, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    weight = torch.randn(8, 6).to(dtype)
    whole = {"a.weight": weight, "b.weight": weight, "c.bias": torch.arange(3), "d": torch.ones(())}
    torch.save(whole, tmp_path / "w-1.pt")
    argv = ["export", str(tmp_path / "w-1.pt"), "--scope", "a.weight", "--what", "pruned"]
    assert main([*argv, "--at", "0.5", "-o", str(tmp_path / "p.safetensors")]) == 0
    found = load_file(tmp_path / "p.safetensors")
    assert {n: (t.dtype, t.shape) for n, t in found.items()} == {
        n: (t.dtype, t.shape) for n, t in whole.items()
    }
    assert torch.equal(found["a.weight"].float(), found["b.weight"].float())
    assert int((found["a.weight"].float() == 0).sum()) >= 24
    assert torch.equal(found["c.bias"], whole["c.bias"])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--at", "1.5"], "a sparsity in (0, 1)"),
        (["--at", "essential"], "Expected a model and a proxy"),
        (["--pattern", "wanda"], "looks at inputs"),
        (["--pattern", "per_row"], "give `--model`"),
        (["--scope", "nothing.*"], "scope"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(
    checkpoint: Path, capsys: pytest.CaptureFixture[str], options: list[str], words: str
) -> None:
    output = exported(checkpoint, "--what", "pruned", *options, status=2)
    assert words in capsys.readouterr().err
    assert not output.parent.exists()


def test_a_broken_model_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = tiny_bert().state_dict()
    state["bert.encoder.layer.0.attention.self.query.weight"][0, 0] = torch.nan
    torch.save(state, tmp_path / "step-5.pt")
    assert not exported(tmp_path / "step-5.pt", "--what", "masks", status=2).parent.exists()
    assert "1 in-scope weights are NaN" in capsys.readouterr().err


def test_nothing_is_written_over(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = exported(checkpoint, "--what", "masks")
    before = output.read_bytes()
    assert exported(checkpoint, "--what", "pruned", status=2).read_bytes() == before
    assert "Expected `--output` to be a new file" in capsys.readouterr().err


def test_a_file_may_have_any_name(checkpoint: Path) -> None:
    output = checkpoint.with_name("made.tmp")
    exported(checkpoint, "--what", "masks", "-o", str(output))
    assert len(load_file(output)) == 4


def test_a_budget_is_what_the_masks_remove(checkpoint: Path) -> None:
    """A pattern of the budget of one threshold removes the same weights, tensor by tensor."""
    path = exported(checkpoint, "--what", "budget")
    pattern = sw.patterns.from_budget(path)
    budget = json.loads(path.read_text())
    assert pattern.allocation == budget["sparsities"]
    tensors = {f"{name}.weight": one.weight for name, one in in_scope(tiny_bert()).items()}
    level = budget["num_removed"] / budget["num_weights"]
    (cut,) = pattern.cuts(sw.patterns.Weights.of(tensors), [level])
    assert cut.shares == budget["sparsities"]
    for name, mask in torch_masks("global", 0.6).items():
        weights = tensors[name.removesuffix("_mask")].detach()
        out = torch.empty_like(weights)
        cut.prune(name.removesuffix("_mask"), weights, out)
        assert torch.equal(out, weights * mask)


def test_the_budget_of_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = train(tmp_path / "run", lambda *_: None, proxy=held_out(), steps=1, tolerance=0.001)[
        -1
    ]
    argv = ["export", str(tmp_path / "run"), "--what", "budget", "--at"]
    assert main([*argv, "0.55", "-o", str(tmp_path / "a.json")]) == 0
    budget = json.loads((tmp_path / "a.json").read_text())
    assert budget["num_removed"] / budget["num_weights"] == pytest.approx(0.55, abs=1e-3)
    assert budget["scope_hash"] == record.provenance.scope_hash
    below, above = (
        {one.name: one.removed[record.curve.level.index(level)] for one in record.layers}
        for level in (0.5, 0.6)
    )
    for name, share in budget["sparsities"].items():
        assert below[name] <= share <= above[name]
    assert sw.patterns.from_budget(tmp_path / "a.json").levels is None
    assert main(["export", str(tmp_path / "run"), "--what", "masks", "--at", "0.5"]) == 2
    assert "a run has no weights" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"sparsities": {"a": 2}}'])
def test_what_is_no_budget_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "budget.json").write_text(text)
    with pytest.raises(sw.ConfigurationError):
        sw.patterns.from_budget(tmp_path / "budget.json")
    with pytest.raises(sw.ConfigurationError, match="nowhere"):
        sw.patterns.from_budget(tmp_path / "nowhere.json")


@pytest.mark.parametrize("what", ["masks", "pruned"])
def test_a_file_that_cannot_be_finished_is_not_there(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    read, names = Checkpoint.read, []

    def full(self: Checkpoint, name: str) -> torch.Tensor:
        names.append(name)
        if len(names) == 6:  # four to find what goes, and one was written
            raise OSError(28, "No space left on device")
        return read(self, name)

    monkeypatch.setattr(Checkpoint, "read", full)
    output = exported(checkpoint, "--what", what, status=2)
    assert len(names) == 6
    assert list(output.parent.iterdir()) == []


@pytest.mark.parametrize("what", ["masks", "pruned"])
def test_one_tensor_after_another_is_in_memory(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    read, seen, together = Checkpoint.read, [], []

    def noted(self: Checkpoint, name: str) -> torch.Tensor:
        together.append(sum(one() is not None for one in seen))
        tensor = read(self, name)
        seen.append(weakref.ref(tensor.untyped_storage()))
        return tensor

    monkeypatch.setattr(Checkpoint, "read", noted)
    exported(checkpoint, "--what", what)
    num_written = 4 if what == "masks" else len(tiny_bert().state_dict())
    assert len(together) == 4 + num_written  # what is in scope is read first to find what goes
    assert max(together) == 0


def test_a_checkpoint_that_changes_meanwhile_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_file({"a.weight": torch.randn(4, 4)}, tmp_path / "w-1.safetensors")

    def changed(self: Checkpoint) -> None:
        raise CheckpointError("it was written since")

    monkeypatch.setattr(Checkpoint, "check_unchanged", changed)
    argv = ["export", str(tmp_path / "w-1.safetensors"), "--scope", "matrices", "--at", "0.5"]
    assert main([*argv, "--what", "pruned", "-o", str(tmp_path / "out.safetensors")]) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["w-1.safetensors"]
