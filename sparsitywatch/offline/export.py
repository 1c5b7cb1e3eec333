"""From a number to an artefact: masks, a pruned checkpoint, or a budget for each tensor."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from sparsitywatch.checkpoints.base import Checkpoint, load_into, stored_snapshot
from sparsitywatch.checkpoints.discovery import Places, discover
from sparsitywatch.checkpoints.formats import DTYPES, open_checkpoint
from sparsitywatch.checkpoints.storage import Location
from sparsitywatch.errors import CheckpointError, ConfigurationError, MeasurementError, expect
from sparsitywatch.evaluation.checks import check_proxy, seen_scope
from sparsitywatch.evaluation.masked import undisturbed
from sparsitywatch.offline.jobs import expect_written
from sparsitywatch.patterns.criteria import input_axes
from sparsitywatch.patterns.cuts import Cut, Weights
from sparsitywatch.patterns.pattern import Pattern
from sparsitywatch.patterns.selections import keep_bits
from sparsitywatch.pipeline.measure import measure
from sparsitywatch.pipeline.rundir import log_of
from sparsitywatch.proxy.proxy import Proxy
from sparsitywatch.ranks.reading import WHOLE_MODEL
from sparsitywatch.records import Layers, to_json
from sparsitywatch.records.curve import t_quantile
from sparsitywatch.records.run import __version__
from sparsitywatch.redact import logger, printable, redacted_url
from sparsitywatch.series import percent
from sparsitywatch.settings import Settings
from sparsitywatch.sinks.jsonl import JsonlReader, replace_file
from sparsitywatch.weights.layout import unwrap_model
from sparsitywatch.weights.scope import Scope
from sparsitywatch.weights.sharded import Tensors

#: What follows the name of a tensor in that of its mask, as in torch.nn.utils.prune.
_MASK = "_mask"
#: Of safetensors: the key of what a file says of itself, and names of dtypes.
_ABOUT = "__metadata__"
_KINDS = {dtype: kind for kind, dtype in DTYPES.items()}
#: What an artefact is called in a folder, and what goes there with weights.
_IN_FOLDER = {"pruned": "model.safetensors", "budget": "budget.json"}
_HANDED_OVER = re.compile(
    r"(?:(?:generation_|(?:pre)?processor_)?config|special_tokens_map|added_tokens|chat_template"
    r"|vocab|merges|spiece|tokenizer\w*)\.(?:json|txt|model|jinja)"
)
#: Of the interval that is foretold; fewer examples tell none.
_CONFIDENCE, _MIN_EXAMPLES = 0.95, 5


@dataclass(frozen=True, kw_only=True)
class Foretold:
    """The value of the pruned model on the proxy, and where it lies on as many other examples."""

    value: float
    low: float  # NaN of fewer than 5 examples
    high: float
    dense: float  # before anything went, on the proxy
    num_examples: int  # batches, where values are of tokens
    confidence: float = _CONFIDENCE

    @classmethod
    def of(cls, values: np.ndarray, dense: np.ndarray) -> Foretold:
        """From the values of the examples, float64 [N]: the mean of other N is as uncertain."""
        num, mean, margin = len(values), float(values.mean()), math.nan
        if num >= _MIN_EXAMPLES and math.isfinite(mean):
            error = float(values.std(ddof=1)) * math.sqrt(2.0 / num)
            margin = t_quantile(0.5 + _CONFIDENCE / 2, num - 1) * error
        ends = {"low": mean - margin, "high": mean + margin}
        return cls(value=mean, **ends, dense=float(dense.mean()), num_examples=num)


@dataclass(frozen=True, kw_only=True)
class Card:
    """What went, of what, and what it costs; a budget is this alone."""

    what: str  # "masks", "pruned" or "budget"
    source: str  # where the checkpoint or the run lies
    step: int | None
    pattern: str
    level: float  # that was asked for
    sparsities: Mapping[str, float]  # counted, of each tensor in scope: ties go together
    num_removed: int
    num_weights: int  # in scope
    scope_hash: str
    foretold: Foretold | None = None  # None without a model, or examples that chose nothing
    sparsitywatch: str = __version__

    def lines(self) -> list[str]:
        """The card in Markdown."""
        told, share = self.foretold, percent(self.num_removed / self.num_weights)
        words = "what it costs: not measured, as that needs a model and examples that chose nothing"
        if told is not None and math.isfinite(told.low):
            words = (
                f"value {told.value:.5g}, dense {told.dense:.5g}; on {told.num_examples} other "
                f"{told.low:.5g} to {told.high:.5g} ({told.confidence:.0%})"
            )
        return [
            f"# {self.what}: {share} of the weights in scope",
            f"- from {printable(self.source)}, step {self.step}, pattern {printable(self.pattern)}",
            f"- {self.num_removed:,} of {self.num_weights:,} weights go; asked for {self.level:g}",
            f"- {words}",
            *(f"- {printable(name)}: {own:.2%}" for name, own in self.sparsities.items()),
        ]


def export(
    place: Places,
    output: str | Path,  # with a slash at its end a folder, which transformers can load
    *,
    what: str,
    at: float | str,  # a sparsity, or "essential"
    each: bool = False,
    model: Callable[[], nn.Module] | None = None,
    proxy: Proxy | None = None,
    settings: Settings | None = None,
    **reading: Any,  # as of ``discover``
) -> Card:
    """Write what pruning one checkpoint gives; nothing is written unless all of it can be."""
    is_level = at == "essential" or (isinstance(at, float) and 0.0 < at < 1.0)
    expect(is_level, "--at", "a sparsity in (0, 1), such as 0.6, or 'essential'", at)
    is_folder = str(output).endswith(("/", os.sep)) or Path(output).is_dir()
    output = Path(output, _IN_FOLDER.get(what, f"{what}.safetensors") if is_folder else "")
    is_taken = output.exists() or (is_folder and any(output.parent.glob("*")))
    expect(not is_taken, "--output", "a new file, or an empty folder", str(output))
    if isinstance(place, list) and len(place) == 1 and (log := log_of(Path(place[0]))):
        words = "budget, and no `--each`: a run has no weights. Or name one of its checkpoints"
        expect(what == "budget" and not each, "--what", words, what)
        return _write(output, _of_run(log, at))
    found = discover(place, **reading)
    expect(len(found) == 1, "CHECKPOINT", "one checkpoint", [one.shown for one in found])
    if found[0].error is not None:
        raise found[0].error
    beside = _beside(found[0].url, reading) if is_folder and what == "pruned" else {}
    with torch.no_grad(), open_checkpoint(found[0].url, **reading) as checkpoint:
        loaded, scope = _loaded(model, proxy, checkpoint, Settings.of(settings))
        choosing, telling = _shared_out(proxy) if each or at == "essential" else (proxy, proxy)
        level, pattern = _measured(at, each, loaded, choosing, Settings.of(settings))
        stored, cut = _cut(checkpoint, scope, pattern, level, loaded)
        card = Card(
            what=what,
            source=redacted_url(found[0].url),
            step=found[0].step,
            pattern=pattern.name,
            level=level,
            sparsities=dict(cut.shares),
            num_removed=sum(round(cut.shares[name] * size) for name, size in scope.sizes),
            num_weights=scope.summary.num_weights,
            scope_hash=scope.hash,
            foretold=_foretold(loaded, telling, scope, stored, cut) if loaded and telling else None,
        )
        expect_written(checkpoint)
        content = () if what == "budget" else _artefact(card, checkpoint, scope, cut)
        _write(output, card, content)
    for name, data in beside.items():
        replace_file(output.with_name(name), data)
    return card


def _shared_out(proxy: Proxy | None) -> tuple[Proxy | None, Proxy | None]:
    """Half of the examples to choose by, half to foretell by: what chose cannot foretell."""
    halves = proxy.subsets((0.5, 1.0)) if proxy is not None else ()
    is_enough = halves and min(len(half.places) for half in halves) >= _MIN_EXAMPLES
    return (halves[0].proxy, halves[1].proxy) if is_enough else (proxy, None)


def _beside(url: str, reading: Mapping[str, Any]) -> dict[str, bytes]:
    """What transformers keeps beside weights, to load and to use them, by name."""
    place = Location.of(url, reading.get("storage_options"))
    folder = place if place.is_folder() else place.at(place.path.rpartition("/")[0])
    found = {}
    for name in filter(_HANDED_OVER.fullmatch, folder.names()):
        with closing(folder.inside(name).source()) as source:
            found[name] = source.read(0, source.size)
    return found


def _of_run(log: Path, at: float | str) -> Card:
    """What each tensor of a run loses at a sparsity: of its latest snapshot that says it."""
    for record in reversed(JsonlReader(log).records()):
        curve, estimate = record.curve, record.essential_sparsity
        if curve is None or estimate is None or (at == "essential" and not estimate.informative):
            continue
        level = estimate.value if at == "essential" else float(at)
        layers = Layers.of(record.layers).columns
        shares = np.array([np.interp(level, curve.sparsity, own) for own in layers.removed.T])
        return Card(
            what="budget",
            source=redacted_url(str(log)),
            step=record.step,
            pattern=record.provenance.pattern,
            level=level,
            sparsities=dict(zip(layers.names, shares.tolist(), strict=True)),
            num_removed=round(float(layers.num_weights @ shares)),
            num_weights=record.scope.num_weights,
            scope_hash=record.provenance.scope_hash,
        )
    raise ConfigurationError(
        f"Expected a snapshot in {str(log)!r} that was evaluated, and with `--at essential` an "
        "essential sparsity, found none. Name a checkpoint instead."
    )


# ------------------------------------------------------------------ what goes


def _loaded(
    model: Callable[[], nn.Module] | None, proxy: Proxy | None, checkpoint: Checkpoint, of: Settings
) -> tuple[nn.Module | None, Scope]:
    """The model with the weights of the checkpoint, if there is one; and which weights count."""
    if model is None:
        return None, Scope.of_entries(checkpoint.entries(), of.scope)
    made = unwrap_model(model())
    load_into(made, checkpoint)
    scope = Scope.of(made, of.scope)
    if proxy is not None:
        check_proxy(proxy, made)
        scope = seen_scope(scope, of.scope, made, proxy)
    return made, scope


def _measured(
    at: float | str, each: bool, model: nn.Module | None, proxy: Proxy | None, settings: Settings
) -> tuple[float, Pattern]:
    """How much goes, and by which pattern."""
    if at != "essential" and not each:
        return float(at), settings.pattern
    if model is None or proxy is None:
        raise ConfigurationError(
            "Expected a model and a proxy (`--model`, and `--text` or `--proxy`) to measure what "
            "is essential, got none. Give them, or a sparsity such as `--at 0.6` without `--each`."
        )
    is_own = not each or settings.pattern.name in ("global", "layerwise")
    expect(is_own, "pattern", "left out with `--each`, which is by magnitude", settings.pattern)
    record = measure(model, proxy, settings=settings, each=each)
    whole, alone = record.essential_sparsity, record.alone
    known = {name: one.value for name, one in alone.items() if one.informative}
    if whole is None or not whole.informative or (each and not known):
        reasons = [one.reason for one in (whole, *alone.values()) if one and one.reason]
        raise MeasurementError(f"Cannot tell what is essential: {reasons[0]}. Give `--at 0.6`.")
    if not each:
        return whole.value, settings.pattern
    # where that of a tensor cannot be told, it loses what the whole model may
    budget = {name: known.get(name, whole.value) for name in alone}
    removed = sum(budget[layer.name] * layer.num_weights for layer in record.layers)
    pattern = Pattern(allocation=budget, name="magnitude:layer:essential-each")
    if at != "essential":
        return float(at), pattern
    logger.warning(
        "each tensor loses what it may lose alone; see in the card what all cost together"
    )
    return removed / record.scope.num_weights, pattern


def _cut(
    checkpoint: Checkpoint, scope: Scope, pattern: Pattern, level: float, model: nn.Module | None
) -> tuple[Tensors, Cut]:
    """The stored weights and what of them goes, found in one tensor after another."""
    if pattern.needs_inputs or (model is None and pattern.ranks != "shards"):
        why = "looks at inputs" if pattern.needs_inputs else "asks for the layers: give `--model`"
        raise ConfigurationError(
            f"Expected a pattern that weights alone decide, got {pattern.name!r}, which {why}."
        )
    known = (level,) if pattern.levels is None else pattern.levels
    is_known = any(math.isclose(level, x) for x in known)
    expect(is_known, "at", f"a sparsity that {pattern.name!r} has, one of {known}", level)
    snapshot = stored_snapshot(checkpoint, scope, 0)
    spectrum, _ = WHOLE_MODEL.counted(snapshot)
    if spectrum.num_nan or spectrum.num_inf:
        raise CheckpointError(
            f"Cannot export {checkpoint.url}: {spectrum.num_nan} in-scope weights are NaN and "
            f"{spectrum.num_inf} infinite. Name a checkpoint from before."
        )
    shapes = {line.name: line.shape for line in scope.ledger if line.in_scope}
    axes = {} if model is None else input_axes(model, scope.names)
    weights = Weights(spectrum, shapes, axes, tensors=snapshot.tensors)
    return snapshot.tensors, pattern.cuts(weights, [level])[0]


def _foretold(model: nn.Module, proxy: Proxy, scope: Scope, stored: Tensors, cut: Cut) -> Foretold:
    """What the value will be; the model is ours, so that what goes is written into it."""
    for module in model.modules():
        module.training = False
    with undisturbed(proxy.ranks):
        dense = proxy.evaluate(model)
        for name, parameter in scope.parameters(model).items():
            parameter.copy_(_pruned(cut, name, stored[name]))
        return Foretold.of(proxy.evaluate(model), dense)


def _keep_mask(cut: Cut, name: str, weights: torch.Tensor) -> torch.Tensor:
    """Which weights of a tensor stay, bool."""
    wide = weights.float() if weights.itemsize < 4 else weights  # some float8 have no -0
    # what goes becomes +0: so zeros that stay are told from it by their sign
    wide = torch.where(wide == 0.0, -0.0, wide).contiguous()
    pruned = torch.empty_like(wide)
    cut.prune(name, wide, out=pruned)
    return (pruned != 0.0).logical_or_(pruned.signbit())


def _pruned(cut: Cut, name: str, weights: torch.Tensor) -> torch.Tensor:
    pruned = torch.empty_like(weights)
    keep_bits(weights, _keep_mask(cut, name, weights), pruned)
    return pruned


# ------------------------------------------------------------------ what is written


def _write(output: Path, card: Card, content: Iterable[bytes | memoryview] = ()) -> Card:
    output.parent.mkdir(parents=True, exist_ok=True)
    replace_file(output, content or f"{to_json(card)}\n".encode())
    return card


def _artefact(
    card: Card, checkpoint: Checkpoint, scope: Scope, cut: Cut
) -> Iterator[bytes | memoryview]:
    """Masks, or all of the checkpoint, in safetensors; the file has the card in it."""
    ours = [line for line in scope.ledger if line.in_scope]
    own = {name: line.name for line in ours for name in (line.name, *line.aliases)}
    is_mask = card.what == "masks"
    stored = {e.name: e for e in checkpoint.entries() if not is_mask or e.name in own}
    entries = [stored[name] for name in checkpoint.in_byte_order(stored)]
    entries.sort(key=lambda entry: -entry.dtype.itemsize)  # so that each is aligned
    header: dict[str, object] = {_ABOUT: {"format": "pt", "sparsitywatch": to_json(card)}}
    end = 0
    for entry in entries:
        dtype = torch.bool if is_mask else entry.dtype
        if dtype not in _KINDS or entry.name in header:
            raise CheckpointError(
                f"Cannot write {printable(entry.name)[:120]!r} as safetensors, which has no "
                f"{dtype}, or not by this name. Convert it first."
            )
        begin, end = end, end + math.prod(entry.shape) * dtype.itemsize
        described = {"dtype": _KINDS[dtype], "shape": entry.shape, "data_offsets": [begin, end]}
        header[entry.name + _MASK * is_mask] = described
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little") + text
    made = _keep_mask if is_mask else _pruned
    for name in [entry.name for entry in entries]:
        tensor = checkpoint.read(name).contiguous()
        tensor = made(cut, own[name], tensor) if name in own else tensor
        yield tensor.reshape(-1).view(torch.uint8).numpy().data
        del tensor  # before the next is read
    checkpoint.check_unchanged()
