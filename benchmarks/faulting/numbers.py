"""Numbers that are about other weights than they say, or about nothing."""

from __future__ import annotations

import copy
import logging
import math
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import save_model
from torch import nn
from torch.nn.utils import parametrizations, prune

import sparsitywatch as sw
from faulting.case import Case
from sparsitywatch.checkpoints.formats import open_checkpoint
from sparsitywatch.errors import ProxyError, ScopeError
from sparsitywatch.sinks.jsonl import read_records
from sparsitywatch.weights.scope import Scope

__all__ = ["CASES", "chain_of_layers", "stored_scopes", "tree_of_modules"]

#: Names that layers have in the wild, heads' names among them, which say nothing of the place.
NAMES = (
    "linear", "fc", "output", "decoder", "classifier", "head", "proj", "encoder", "hidden", "first",
    "last", "out", "embed", "emb", "norm", "ln_1", "conv1", "layer1", "layer2", "gate", "module",
    "attn", "mlp", "0", "7", "10", "weight_net", "experts", "shared", "query",
)  # fmt: skip


# ------------------------------------------------------------------ generated models


class _Attention(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.query = nn.Linear(width, width)
        self.out = nn.Linear(width, width, bias=False)


class _Block(nn.Module):
    def __init__(self, width: int, attention: str) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.add_module(attention, _Attention(width))
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)


class _Packed(nn.Module):
    """Weights that no layer holds: a table, a stack of experts, and a buffer like one."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(3, width))
        self.stack = nn.ParameterList([nn.Parameter(torch.randn(2, 3, width)) for _ in range(2)])
        self.register_buffer("weight", torch.randn(4, width))


def chain_of_layers(draw: random.Random) -> tuple[nn.Module, str]:
    """A model without blocks, its layers named at random, and the path of its last layer."""
    num = draw.randint(2, 4)
    names = draw.sample([name for name in NAMES if name.isidentifier()], num)
    widths = [draw.choice((4, 6, 8)), *draw.sample((5, 7, 9, 11, 13), num)]
    model = nn.Module()
    for name, inputs, outputs in zip(names, widths, widths[1:], strict=False):
        model.add_module(name, nn.Linear(inputs, outputs))
    return model, names[-1]


def tree_of_modules(draw: random.Random, depth: int = 3) -> nn.Module:
    """Modules of all kinds, nested and named at random, some of their weights tied."""
    model = nn.Module()
    for name in draw.sample(NAMES, draw.randint(1, 4)):
        model.add_module(name, _part(draw, depth))
    model.add_module(draw.choice(("z", "head", "linear")), nn.Linear(8, draw.choice((3, 8))))
    matrices = [
        module
        for module in model.modules()
        if type(module) in (nn.Linear, nn.Embedding) and module.weight.shape == (8, 8)
    ]
    if len(matrices) > 1 and draw.random() < 0.5:
        first, second = draw.sample(matrices, 2)
        second.weight = first.weight
    return model


def _part(draw: random.Random, depth: int) -> nn.Module:
    makers: list[Callable[[], nn.Module]] = [
        lambda: nn.Linear(8, 8, bias=draw.random() < 0.5),
        lambda: nn.Conv2d(8, 8, 3, groups=draw.choice((1, 8))),
        lambda: nn.ConvTranspose1d(8, 6, 3),
        lambda: nn.Embedding(8, 8),
        lambda: nn.LayerNorm(draw.choice(((8,), (2, 8)))),
        lambda: nn.BatchNorm1d(8),
        lambda: nn.MultiheadAttention(8, 2),
        lambda: nn.Bilinear(2, 3, 4),
        lambda: nn.GRU(8, 8),
        lambda: _Packed(8),
        lambda: _weight_norm(nn.Linear(8, 8)),
        lambda: nn.ModuleList([_Block(8, draw.choice(("attn", "sa"))) for _ in range(2)]),
        lambda: nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8)),
    ]
    if depth > 1:
        makers += [lambda: tree_of_modules(draw, depth - 1)] * 4
    return draw.choice(makers)()


def _weight_norm(layer: nn.Module) -> nn.Module:
    normed: nn.Module = parametrizations.weight_norm(layer)
    return normed


def stored_scopes(
    model: nn.Module, folder: Path, preset: str = "blocks"
) -> dict[str, Scope | None]:
    """What a replay of each format takes for the scope; None where it selects nothing."""
    # in another order than the model's, as some formats have it
    torch.save(model.state_dict(), folder / "saved.pt")
    save_model(model, str(folder / "saved.safetensors"))
    found: dict[str, Scope | None] = {}
    for name in ("saved.pt", "saved.safetensors"):
        with open_checkpoint(str(folder / name)) as checkpoint:
            try:
                found[name] = Scope.of_entries(checkpoint.entries(), preset)
            except ScopeError:
                found[name] = None
    return found


def _live(model: nn.Module) -> Scope | None:
    try:
        return Scope.of(model)
    except ScopeError:
        return None


def _chains(folder: Path) -> str:
    differ = wrong = 0
    for seed in range(32):
        model, last = chain_of_layers(random.Random(seed))  # noqa: S311
        live = Scope.of(model)
        wrong += f"{last}.weight" in live.names or len(live.names) + 1 != len(
            list(model.children())
        )
        stored = stored_scopes(model, folder)
        differ += any(scope is None or scope.hash != live.hash for scope in stored.values())
    return f"{differ} of 32 differ, {wrong} without the last layer"


def _trees(folder: Path) -> str:
    silent = 0
    for seed in range(60):
        model = tree_of_modules(random.Random(seed))  # noqa: S311
        live = _live(model)
        if live is None:  # an error is not silent
            continue
        for scope in stored_scopes(model, folder).values():
            found = set() if scope is None else set(scope.names)
            silent += not (found ^ set(live.names)) <= set(live.unlike_stored)
    return f"{silent} of 60 differ in silence"


# ------------------------------------------------------------------ reparametrized layers


def _reparametrized(how: Callable[[nn.Module], nn.Module]) -> Callable[[Path], str]:
    def run(folder: Path) -> str:
        block = _Block(8, "attn")
        block.add_module("up", how(block.up))
        model = nn.ModuleDict({"h": nn.ModuleList([_Block(8, "attn"), block])})
        live, stored = Scope.of(model), _read_scope(model, folder)
        reasons = {
            entry.reason.partition(":")[0]
            for scope in (live, stored)
            for entry in scope.ledger
            if entry.name.startswith("h.1.up.") and len(entry.shape) > 1
            if not entry.name.endswith("_mask")  # a buffer, in no live ledger
        }
        with _logged() as lines:
            sw.watch(model, None, logdir=None).close()
        said = any("128 weights in 1 layers are left out" in line for line in lines)
        return (
            f"{len(live.names)} in scope, alike {live.hash == stored.hash}, {reasons}, said {said}"
        )

    return run


def _read_scope(model: nn.Module, folder: Path) -> Scope:
    torch.save(model.state_dict(), folder / "saved.pt")
    with open_checkpoint(str(folder / "saved.pt")) as checkpoint:
        return Scope.of_entries(checkpoint.entries())


def _masked(layer: nn.Module) -> nn.Module:
    prune.l1_unstructured(layer, "weight", amount=0.5)  # type: ignore[no-untyped-call]
    return layer


_HOWS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "parametrizations.weight_norm": parametrizations.weight_norm,
    "parametrizations.orthogonal": parametrizations.orthogonal,
    "parametrizations.spectral_norm": parametrizations.spectral_norm,
    "nn.utils.weight_norm": nn.utils.weight_norm,
    "nn.utils.spectral_norm": nn.utils.spectral_norm,
    "nn.utils.prune": _masked,
}


# ------------------------------------------------------------------ the same weights again


@contextmanager
def _logged() -> Iterator[list[str]]:
    """Lines that the library logs meanwhile."""
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("sparsitywatch")
    logger.addHandler(handler)
    try:
        yield lines
    finally:
        logger.removeHandler(handler)


def _layers() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 7), nn.Linear(7, 2))


def _moved(model: nn.Module) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.01)


def _wrong_branch(folder: Path) -> str:
    """A series in which two branches hold the checkpoint of a third."""
    model = _layers()
    for step in (1000, 2000, 3000, 4000, 5000):
        if step not in (3000, 4000):  # published again as they were at 2000
            _moved(model)
        torch.save(model.state_dict(), folder / f"step-{step}.pt")
    with _logged() as lines:
        records = sw.replay(folder, logdir=None).records
    same = {record.step: record.same_weights_as for record in records if record.same_weights_as}
    said = [line for line in lines if "the same as at step 2000" in line]
    return f"{same}, valid {all(record.valid for record in records)}, {len(said)} line"


def _rolled_back(folder: Path) -> str:
    """A live watch over a training that goes back to where it was, in two processes' turns."""
    model = _layers()
    early = copy.deepcopy(model.state_dict())
    watcher = sw.watch(model, None, logdir=folder, initial_step=0, every=10**6)
    watcher.step()
    watcher.snapshot()
    watcher.close()
    again = sw.watch(model, None, logdir=folder, initial_step=1, every=10**6)
    for back in (False, True, False):
        model.load_state_dict(early) if back else _moved(model)
        again.step()
        again.snapshot()
    again.close()
    return str([record.same_weights_as for record in read_records(folder / "sparsitywatch")])


def _warm_up(folder: Path) -> str:
    """A learning rate that begins at 0: step 1 is step 0, and that is no fault."""
    model = _layers()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with sw.watch(model, optimizer, logdir=folder, every=1, max_overhead=None) as watcher:
        watcher.snapshot()
        for lr in (0.0, 0.1):
            optimizer.param_groups[0]["lr"] = lr
            model(torch.ones(1, 8)).sum().backward()
            optimizer.step()
    records = read_records(folder / "sparsitywatch")
    valid = all(record.valid for record in records)
    return f"{[record.same_weights_as for record in records]}, valid {valid}"


# ------------------------------------------------------------------ numbers that are none


def _nan_weights(folder: Path) -> str:
    model = _layers()
    with _logged() as lines:
        watcher = sw.watch(model, None, logdir=folder, every=10**6, initial_step=0)
        for step in range(40):
            _moved(model)
            if step == 30:
                with torch.no_grad():
                    model.get_parameter("0.weight").fill_(math.nan)
            watcher.step()
            watcher.snapshot()
        watcher.close()
    said = sum("64 in-scope weights are NaN" in line for line in lines)
    falls = [event for event in watcher.events if event.detected_step > 30]
    return f"{len(falls)} events, {said} line about NaN"


def _value(model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
    values: torch.Tensor = model(batch).square().mean(1)
    return values


def _nan_proxy(broken: float) -> Callable[[Path], str]:
    def run(folder: Path) -> str:
        batches = [torch.randn(4, 8) for _ in range(3)]
        batches[1][2, 0] = broken
        try:
            sw.watch(_layers(), None, logdir=folder, proxy=sw.Proxy(batches, _value))
        except ProxyError as error:
            return "refused: example 2 of batch 1" * ("example 2 of batch 1" in str(error))
        return "taken"

    return run


def _nan_proxy_later(folder: Path) -> str:
    model = _layers()
    proxy = sw.Proxy([torch.randn(4, 8)], _value)
    with _logged() as lines:
        watcher = sw.watch(model, None, logdir=folder, proxy=proxy, every=10**6, initial_step=0)
        with torch.no_grad():
            model.get_parameter("3.bias").fill_(math.nan)  # no in-scope weight
        watcher.step()
        record = watcher.snapshot()
        watcher.close()
    estimate = None if record is None else record.essential_sparsity
    reason = "" if estimate is None else estimate.reason
    said = any("value of the dense model is not finite" in line for line in lines)
    return f"{reason}, said {said}"


def _no_masked_token(_: Path) -> str:
    from sparsitywatch.integrations.language_models import masked_loss

    class Outputs(dict[str, torch.Tensor]):
        logits = torch.randn(3, 5, 7)

    def model(input_ids: torch.Tensor) -> Outputs:
        del input_ids
        return Outputs(logits=Outputs.logits)

    labels = torch.full((3, 5), -100)
    labels[0, 1], labels[2, 3] = 4, 6
    batch = {"input_ids": torch.zeros(3, 5, dtype=torch.long), "labels": labels}
    losses = masked_loss(model, batch)  # type: ignore[arg-type]
    return f"{len(losses)} losses of 3, finite {bool(losses.isfinite().all())}"


def _tiny_loss(_: Path) -> str:
    curve = sw.SparsityCurve(
        sparsity=[0, 0.2, 0.5, 1], value=[1e-6, 2e-6, 1e-2, 4.0], higher_is_better=False
    )
    reason = sw.essential_sparsity(curve).reason
    return (
        "names mode='absolute'" if "near zero" in reason and "mode='absolute'" in reason else reason
    )


CASES = (
    Case(
        point="scope",
        what="32 models without blocks, layers named linear, fc, output, decoder, ...",
        expected="0 of 32 differ, 0 without the last layer",
        run=_chains,
    ),
    Case(
        point="scope",
        what="60 trees of modules of all kinds, nested, named awkwardly, some tied",
        expected="0 of 60 differ in silence",
        run=_trees,
    ),
    *(
        Case(
            point="reparametrized",
            what=how,
            expected="7 in scope, alike True, {'reparametrized'}, said True",
            run=_reparametrized(make),
        )
        for how, make in _HOWS.items()
    ),
    Case(
        point="same weights",
        what="two branches of a series hold the checkpoint of a third",
        expected="{3000: 2000, 4000: 2000}, valid True, 1 line",
        run=_wrong_branch,
    ),
    Case(
        point="same weights",
        what="a training that is rolled back, after a resume",
        expected="[None, None, 1, None]",
        run=_rolled_back,
    ),
    Case(
        point="same weights",
        what="a warm-up from a learning rate of 0",
        expected="[None, 0, None], valid True",
        run=_warm_up,
    ),
    Case(
        point="not a number",
        what="a matrix turns NaN during training",
        expected="0 events, 1 line about NaN",
        run=_nan_weights,
    ),
    *(
        Case(
            point="not a number",
            what=f"an example of the proxy is {broken}",
            expected="refused: example 2 of batch 1",
            run=_nan_proxy(broken),
        )
        for broken in (math.nan, math.inf)
    ),
    Case(
        point="not a number",
        what="the value turns NaN during training, the in-scope weights do not",
        expected="the value of the dense model is not finite, said True",
        run=_nan_proxy_later,
    ),
    Case(
        point="not a number",
        what="masked_loss of a window without a masked token",
        expected="2 losses of 3, finite True",
        run=_no_masked_token,
    ),
    Case(
        point="not a number",
        what="a relative tolerance of a loss near zero",
        expected="names mode='absolute'",
        run=_tiny_loss,
    ),
)
