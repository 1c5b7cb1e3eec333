"""Which weights count: presets, filters, and the ledger of what is in, what is out, and why."""

from __future__ import annotations

import fnmatch
import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from torch import nn

from sparsitywatch.errors import ScopeError
from sparsitywatch.records import LedgerEntry, ScopeSummary
from sparsitywatch.weights.blocks import Owner, is_linear, output_layer, owners_of
from sparsitywatch.weights.entries import Entry
from sparsitywatch.weights.layout import Decider, Layout
from sparsitywatch.weights.names import clean_name

__all__ = ["PRESETS", "Scope", "ScopeLike"]

#: A preset's name, patterns of parameter names (``*`` matches dots too), or a predicate.
ScopeLike = str | Sequence[str] | Callable[[str, nn.Parameter], bool]

PRESETS = {
    "blocks": "weights of linear layers inside the transformer blocks; in a model without "
    "blocks, of all linear layers but the output layer",
    "paper": "nn.Linear weights inside the transformer blocks only "
    "(Jaiswal et al. 2023, as their code does it)",
    "layers": "weights of linear layers anywhere, heads included",
    "matrices": "every floating-point parameter with two or more dimensions, embeddings too",
}

_NORM = re.compile(r"norm", re.IGNORECASE)


@dataclass(frozen=True)
class Scope:
    """The in-scope weights of one model, by name.

    Args:
        ledger: one entry per storage, in the model's order, in or out.

    Names carry no wrapper prefixes. Tied parameters share a storage and stand in the
    ledger once, under their first name. Parameters are looked up again at every call of
    ``tensors``, since ``load_state_dict(assign=True)`` replaces them.
    """

    ledger: tuple[LedgerEntry, ...]

    @classmethod
    def of(cls, model: nn.Module, scope: ScopeLike = "blocks") -> Scope:
        """Decide for every parameter of ``model`` whether it counts.

        Raises:
            ScopeError: the preset is unknown, a pattern matches nothing, the scope is
                empty, or an in-scope parameter cannot be read (sharded, meta, not
                floating point).
        """
        owners = owners_of(model)
        decide = _decider(owners, scope, lambda preset: _preset_decider(model, owners, preset))

        def checked(name: str, parameter: nn.Parameter, names: Sequence[str]) -> tuple[bool, str]:
            in_scope, reason = decide(name, parameter, names)
            if in_scope:
                _check_readable(name, parameter)
            return in_scope, reason

        return cls._decided(
            [(name, p, _storage_key(p)) for name, p in _named_parameters(model)], checked, scope
        )

    @classmethod
    def of_entries(cls, entries: Sequence[Entry], scope: ScopeLike = "blocks") -> Scope:
        """The same decision without a model, from names and shapes of stored tensors.

        Args:
            entries: every tensor of a checkpoint, buffers too.
            scope: as for a model; a predicate is given parameters without data, on the meta
                device.

        Raises:
            ScopeError: the preset is unknown, a pattern matches nothing, or the scope is
                empty.
        """
        layout = Layout(entries)
        named = [(e.name, e.placeholder(), e.storage or e.name) for e in entries]
        decide = _decider([e.name for e in entries], scope, layout.decider)
        return cls._decided(named, decide, scope)

    @classmethod
    def _decided(
        cls, named: Sequence[tuple[str, nn.Parameter, object]], decide: Decider, scope: ScopeLike
    ) -> Scope:
        by_storage: dict[object, tuple[str, nn.Parameter, list[str]]] = {}
        for name, parameter, storage in named:
            by_storage.setdefault(storage, (name, parameter, []))[2].append(name)
        entries = []
        for name, parameter, names in by_storage.values():
            in_scope, reason = decide(name, parameter, names)
            entries.append(
                LedgerEntry(
                    name=name,
                    shape=tuple(parameter.shape),
                    num_weights=parameter.numel(),
                    in_scope=in_scope,
                    reason=reason,
                    aliases=tuple(names[1:]),
                )
            )
        result = cls(tuple(entries))
        if result.summary.num_weights == 0:
            raise ScopeError(_nothing_matched(scope, result.ledger))
        return result

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the in-scope tensors, in the model's order."""
        return tuple(entry.name for entry in self.ledger if entry.in_scope)

    @property
    def summary(self) -> ScopeSummary:
        """How many tensors and weights are in scope."""
        counted = [entry.num_weights for entry in self.ledger if entry.in_scope]
        return ScopeSummary(num_tensors=len(counted), num_weights=sum(counted))

    @property
    def hash(self) -> str:
        """Identity of the in-scope set: names and shapes, 16 hexadecimal digits.

        The order does not count: some formats of checkpoints do not keep it.
        """
        text = "\n".join(sorted(f"{e.name} {e.shape}" for e in self.ledger if e.in_scope))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def parameters(self, model: nn.Module) -> dict[str, nn.Parameter]:
        """The in-scope parameters of ``model`` as they are now, by name.

        Raises:
            ScopeError: a parameter that was in scope is gone or has another shape.
        """
        found = dict(_named_parameters(model))
        result = {}
        for entry in self.ledger:
            if not entry.in_scope:
                continue
            parameter = found.get(entry.name)
            if parameter is None or tuple(parameter.shape) != entry.shape:
                came = "nothing" if parameter is None else f"shape {tuple(parameter.shape)}"
                raise ScopeError(
                    f"Expected parameter {entry.name!r} of shape {entry.shape} as at attach, "
                    f"got {came}. Attach a new watch after changing the model."
                )
            result[entry.name] = parameter
        return result


def _named_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    for name, parameter in model.named_parameters(remove_duplicate=False):
        yield clean_name(name), parameter


def _storage_key(parameter: nn.Parameter) -> object:
    # Empty and meta tensors all share address 0 without being tied.
    if parameter.numel() == 0 or parameter.is_meta:
        return id(parameter)
    return (parameter.device, parameter.data_ptr(), tuple(parameter.shape), parameter.stride())


def _check_readable(name: str, parameter: nn.Parameter) -> None:
    problem = None
    if not parameter.is_floating_point():
        problem = f"dtype {parameter.dtype}"
    elif parameter.is_meta:
        problem = "a meta tensor without data; attach after the weights are materialised"
    elif hasattr(parameter, "ds_id") or type(parameter).__name__ == "DTensor":
        problem = "a sharded parameter (FSDP2 or ZeRO-3), which is not supported yet"
    elif isinstance(parameter, nn.parameter.UninitializedParameter):
        problem = "an uninitialised lazy parameter; run one forward before attaching"
    if problem:
        raise ScopeError(
            f"Expected a dense floating-point tensor for parameter {name!r}, got {problem}."
        )


# ------------------------------------------------------------------ deciding


def _decider(
    names: Iterable[str], scope: ScopeLike, preset_decider: Callable[[str], Decider]
) -> Decider:
    if callable(scope):
        return _filter_decider(scope)
    if isinstance(scope, str):
        if scope not in PRESETS:
            raise ScopeError(
                f"Expected `scope` to be one of {sorted(PRESETS)}, a list of name patterns or a "
                f"predicate (name, parameter) -> bool, got {scope!r}."
            )
        return preset_decider(scope)
    return _pattern_decider(list(names), list(scope))


def _filter_decider(chooses: Callable[[str, nn.Parameter], bool]) -> Decider:
    def decide(name: str, parameter: nn.Parameter, _: Sequence[str]) -> tuple[bool, str]:
        if chooses(name, parameter):
            return True, "chosen by the filter"
        return False, "refused by the filter"

    return decide


def _pattern_decider(known: list[str], patterns: list[str]) -> Decider:
    for pattern in patterns:
        if not any(fnmatch.fnmatchcase(name, pattern) for name in known):
            raise ScopeError(
                f"Expected every pattern of `scope` to match a parameter, but {pattern!r} matches "
                f"none of {len(known)}, such as {known[:3]}."
            )

    def decide(_: str, __: nn.Parameter, names: Sequence[str]) -> tuple[bool, str]:
        for pattern in patterns:
            if any(fnmatch.fnmatchcase(alias, pattern) for alias in names):
                return True, f"matches {pattern!r}"
        return False, "matches no pattern"

    return decide


def _preset_decider(model: nn.Module, owners: dict[str, Owner], preset: str) -> Decider:
    has_blocks = any(owner.in_block for owner in owners.values())
    output = None if has_blocks else output_layer(model, owners)

    def decide(name: str, parameter: nn.Parameter, names: Sequence[str]) -> tuple[bool, str]:
        kind = _kind(parameter, [owners[alias] for alias in names])
        inside = any(owners[alias].in_block for alias in names)
        if preset == "matrices":
            is_matrix = parameter.ndim >= 2 and parameter.is_floating_point()
            return is_matrix, "two or more dimensions" if is_matrix else "fewer than two dimensions"
        if kind not in ("linear", "packed"):
            return False, kind
        if preset == "layers":
            return True, "weight of a layer"
        if has_blocks and not inside:
            return False, "outside the blocks (head, pooler or input layer)"
        if output is not None and any(owners[alias].module is output for alias in names):
            return False, "output layer"
        if preset == "paper" and not isinstance(owners[name].module, nn.Linear):
            return False, "not an nn.Linear"
        return True, "weight inside a block" if has_blocks else "weight of a layer"

    return decide


def _kind(parameter: nn.Parameter, holders: Sequence[Owner]) -> str:
    """Either "linear" or "packed" for weights that may count, else why they do not."""
    modules = [owner.module for owner in holders]
    if any(isinstance(m, nn.Embedding | nn.EmbeddingBag) for m in modules):
        return "embedding"  # also a head that is tied to one
    if any(_NORM.search(type(m).__name__) for m in modules):
        return "norm"
    if not parameter.is_floating_point():
        return f"dtype {parameter.dtype}"
    if parameter.ndim < 2:
        return "bias" if "bias" in holders[0].attribute else "fewer than two dimensions"
    if any(is_linear(m) for m in modules):
        return "linear"
    if parameter.ndim >= 3 and holders[0].in_block and "bias" not in holders[0].attribute:
        return "packed"  # experts of a mixture kept as one tensor
    return f"parameter of {type(modules[0]).__name__}, not of a linear layer"


def _nothing_matched(scope: ScopeLike, ledger: Sequence[LedgerEntry]) -> str:
    reasons = sorted({f"{entry.name}: {entry.reason}" for entry in ledger})[:5]
    what = repr(scope) if isinstance(scope, str | list | tuple) else "the predicate"
    return (
        f"Expected `scope` to select at least one weight, but {what} selects none of "
        f"{len(ledger)} parameters ({'; '.join(reasons) or 'the model has none'}). "
        "Choose scope='layers' (heads included), name patterns or a predicate."
    )
