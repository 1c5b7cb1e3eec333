"""Which tensors are the model's: the same answer for the same dictionaries in every format."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import safetensors.torch
import torch
import torch.distributed.checkpoint as dcp
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import sparsitywatch as sw
from sparsitywatch.checkpoints import base
from sparsitywatch.checkpoints.discovery import describe, discover
from sparsitywatch.checkpoints.formats import open_checkpoint
from sparsitywatch.cli import main
from sparsitywatch.errors import CheckpointError

Tree = Mapping[str, object]


class InMemory(base.Tree):
    """Dictionaries whose ends are torch's tensors."""

    def look(self, node: object) -> tuple[tuple[int, ...], bool] | None:
        return (tuple(node.shape), True) if isinstance(node, torch.Tensor) else None


def weights(seed: int = 0, scale: int = 1) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        **{
            f"layers.{i}.fc.weight": torch.randn(4 * scale, 3, generator=generator)
            for i in range(2)
        },
        "norm.weight": torch.ones(3 * scale),
    }


def optimizer_state() -> dict[str, object]:
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    return optimizer.state_dict()


def flat(tree: Tree, before: str = "") -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            found |= flat(value, f"{before}{key}.")
        elif isinstance(value, torch.Tensor):
            found[f"{before}{key}"] = value
    return found


def as_torch(tree: Tree, folder: Path) -> Path:
    torch.save(dict(tree), folder / "w.pt")
    return folder / "w.pt"


def as_safetensors(tree: Tree, folder: Path) -> Path:
    tensors = {name: tensor.contiguous() for name, tensor in flat(tree).items()}
    safetensors.torch.save_file(tensors, folder / "w.safetensors")
    return folder / "w.safetensors"


def as_dcp(tree: Tree, folder: Path) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch says that it is one process
        dcp.save(dict(tree), checkpoint_id=str(folder / "dcp"), no_dist=True)
    return folder / "dcp"


def as_shards(tree: Tree, folder: Path) -> Path:
    """An index of two files, in the way of transformers."""
    tensors = flat(tree)
    names = sorted(tensors)
    places = {}
    target = folder / "sharded"
    target.mkdir()
    for number in (0, 1):
        file = f"model-0000{number + 1}-of-00002.safetensors"
        mine = {name: tensors[name].contiguous() for name in names[number::2]}
        safetensors.torch.save_file(mine, target / file)
        places |= dict.fromkeys(mine, file)
    (target / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    return target


FORMATS: dict[str, Callable[[Tree, Path], Path]] = {
    "torch": as_torch,
    "safetensors": as_safetensors,
    "dcp": as_dcp,
    "index": as_shards,
}


def read(path: Path, key: str | None = None) -> dict[str, torch.Tensor]:
    with open_checkpoint(path, key=key) as checkpoint:
        return dict(checkpoint.tensors())


def assert_same(found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("beside", ["optimizer", "optim", "g_optim", "optimizer_0"])
def test_beside_an_optimizer_the_model_is_alone(kind: str, beside: str, tmp_path: Path) -> None:
    moments = {"exp_avg": weights(5), "exp_avg_sq": weights(6)}
    path = FORMATS[kind]({"model": weights(1), beside: moments}, tmp_path)
    assert_same(read(path), weights(1))


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize(
    ("one", "other"),
    [("model", "ema"), ("model", "model_ema"), ("student", "teacher"), ("net", "ema_model")],
)
def test_beside_an_average_the_choice_is_listed(
    kind: str, one: str, other: str, tmp_path: Path
) -> None:
    path = FORMATS[kind]({one: weights(1), other: weights(2)}, tmp_path)
    with pytest.raises(CheckpointError) as caught:
        read(path)
    assert f"'{one}' (3 tensors)" in str(caught.value)
    assert f"'{other}' (3 tensors)" in str(caught.value)
    assert re.search(r"--key \w+", str(caught.value))
    assert_same(read(path, key=one), weights(1))
    assert_same(read(path, key=other), weights(2))


@pytest.mark.parametrize("kind", ["torch", "dcp"])
@pytest.mark.parametrize(
    "keys",
    [("params",), ("weights",), ("network",), ("student",), ("agent", "policy"), ("a", "b", "c")],
)
def test_one_dictionary_is_taken_whatever_it_is_called(
    kind: str, keys: tuple[str, ...], tmp_path: Path
) -> None:
    tree: object = weights(1)
    for key in reversed(keys):
        tree = {key: tree}
    path = FORMATS[kind]({**tree, "optimizer": {"m": weights(2)}}, tmp_path)
    assert_same(read(path), weights(1))
    assert_same(read(path, key=".".join(keys)), weights(1))
    with open_checkpoint(path) as checkpoint:
        assert (checkpoint.key, checkpoint.among) == (".".join(keys), {".".join(keys): 3})


@settings(max_examples=60, deadline=None, derandomize=True, database=None,
          suppress_health_check=list(HealthCheck))  # fmt: skip
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["model", "ema", "net", "student", "teacher", "swa", "w", "g_ema"]),
            st.integers(1, 4),
        ),
        min_size=1, max_size=4, unique_by=lambda one: one[0],
    ),
    st.booleans(),
)  # fmt: skip
def test_several_are_never_one(dictionaries: list[tuple[str, int]], is_nested: bool) -> None:
    """A pickle's dictionaries, out of memory: the only one is taken, of several none."""
    inner = {name: {"l.weight": torch.ones(scale, 2)} for name, scale in dictionaries}
    tree = {"state": inner, "optimizer": {"m": torch.ones(3, 3)}} if is_nested else inner
    before = "state." if is_nested else ""

    if len(inner) == 1:
        choice = base.choose(InMemory(tree))
        assert choice is not None
        assert choice.key == before + dictionaries[0][0]
    else:
        with pytest.raises(Exception, match="expected one dictionary of weights, got several"):
            base.choose(InMemory(tree))
    for name, scale in dictionaries:
        choice = base.choose(InMemory(tree), before + name)
        assert [tuple(t.shape) for t in choice.tensors.values()] == [(scale, 2)]


def test_two_encoders_that_are_both_trained_are_one_model(tmp_path: Path) -> None:
    """As in DPR: the same names and shapes twice, and no word says that one is a copy."""
    tree = {"question_encoder": weights(1), "ctx_encoder": weights(2)}
    assert_same(read(as_safetensors(tree, tmp_path)), flat(tree))


def test_a_target_of_other_shapes_is_a_part_of_the_model(tmp_path: Path) -> None:
    tree = {"encoder": weights(1), "target_embedding": {"weight": torch.ones(7, 5)}}
    assert_same(read(as_safetensors(tree, tmp_path)), flat(tree))


def test_an_average_without_dots_in_its_names(tmp_path: Path) -> None:
    """As latent diffusion keeps it: all weights of ``model``, their names run together."""
    average = {name.replace(".", ""): tensor for name, tensor in weights(2).items()}
    tree = {"model": weights(1), "first_stage": weights(3, scale=2), "model_ema": average}
    path = as_torch({"state_dict": flat(tree), "global_step": 9}, tmp_path)
    with pytest.raises(CheckpointError, match=r"'state_dict.model_ema' \(3 tensors\)"):
        read(path)
    assert_same(read(path, key="state_dict.model_ema"), average)
    assert_same(read(path, key="state_dict.model"), weights(1))


@pytest.mark.parametrize("kind", FORMATS)
def test_a_prefix_leads_to_a_part_in_every_format(kind: str, tmp_path: Path) -> None:
    tree = {"model": {"encoder": weights(1), "head": weights(2)}}
    path = FORMATS[kind](tree, tmp_path)
    for key in ("model.encoder", "model.encoder."):
        assert_same(read(path, key=key), weights(1))
    assert_same(read(path, key=""), flat(tree))
    with pytest.raises(CheckpointError, match=r"under the key 'model\.enc', found none"):
        read(path, key="model.enc")


@pytest.mark.parametrize(
    ("kind", "where"),
    [*((kind, "step") for kind in FORMATS), ("torch", "trainer"), ("dcp", "trainer")],
)
def test_a_step_that_is_a_tensor_is_read_in_every_format(kind, where, tmp_path: Path) -> None:
    number = torch.tensor(70) if where == "step" else {"step": torch.tensor([70.0])}
    path = FORMATS[kind]({"model": weights(1), where: number, "epoch": torch.tensor(3)}, tmp_path)
    with open_checkpoint(path, key="model") as checkpoint:
        assert (checkpoint.step, checkpoint.epoch) == (70, 3)


def test_a_key_with_dots_of_its_own(tmp_path: Path) -> None:
    path = as_torch({"a.b": {"c": weights(1)}, "a": {"b": weights(2)}}, tmp_path)
    assert_same(read(path, key="a.b.c"), weights(1))


def test_weights_that_two_keys_share_are_one(tmp_path: Path) -> None:
    shared = weights(1)
    assert_same(read(as_torch({"model": shared, "state_dict": shared}, tmp_path)), shared)


def test_the_key_goes_all_the_way(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for step in (1, 2):
        tree = {"model": weights(step), "ema": weights(10 + step), "step": step}
        torch.save(tree, tmp_path / f"step-{step}.pt")
    refused = sw.replay(tmp_path, logdir=None)
    assert (len(refused.failures), refused.records) == (2, [])
    for key, shift in (("model", 0), ("ema", 10)):
        replayed = sw.replay(tmp_path, logdir=None, key=key, near_zero=("abs_0.5",), scope=["*fc*"])
        assert [record.step for record in replayed.records] == [1, 2]
        for record in replayed.records:
            every = torch.cat(
                [w.flatten() for n, w in weights(shift + record.step).items() if "fc" in n]
            )
            expected = float((every.abs() <= 0.5).double().mean())
            assert record.near_zero["abs_0.5"] == pytest.approx(expected, abs=1e-12)
    (listed,) = discover(tmp_path / "step-1.pt", key="ema")
    told = describe(listed, "layers", key="ema")
    assert (told["key"], told["candidates"]) == ("ema", {"model": 3, "ema": 3})
    assert main(["inspect", str(tmp_path / "step-1.pt"), "--key", "ema"]) == 0
    assert "lies under 'ema'; beside it 'model' (3 tensors)" in capsys.readouterr().out
    assert main(["inspect", str(tmp_path / "step-1.pt")]) == 2
    assert "'ema' (3 tensors)" in capsys.readouterr().err
    assert main(["measure", str(tmp_path / "step-1.pt"), "--key", "ema"]) == 0


def test_thousands_of_heads_take_time_in_proportion() -> None:
    """Found before a release: each head was compared with all of them, for hours."""
    tensors = {f"ema_{i}.w": torch.empty(1, i) for i in range(20_000)}
    choice = base.choose(InMemory(tensors))
    assert choice is not None
    assert len(choice.tensors) == 20_000
