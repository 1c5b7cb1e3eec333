"""Which weights count: presets, filters, and the ledger of what is in, what is out, and why."""

from __future__ import annotations

import fnmatch
import hashlib
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial

import torch
from torch import nn

from sparsitywatch.errors import (
    ConfigurationError,
    ScopeError,
    expect,
    listed,
)
from sparsitywatch.records import LedgerEntry, ScopeSummary
from sparsitywatch.records.event import some_of
from sparsitywatch.redact import redacted_error
from sparsitywatch.series import percent
from sparsitywatch.weights.layout import REPARAMETRIZED, Decider, Entry, Layout, Place, clean_name
from sparsitywatch.weights.sharded import (
    Modules,
    address_of,
    decoded,
    flat_parameters,
    is_encoded,
    is_sharded,
    modules_of,
)

#: A preset's name, patterns of parameter names (``*`` matches dots too), or a predicate.
ScopeLike = str | Sequence[str] | Callable[[str, nn.Parameter], bool]

PRESETS = {
    "blocks": "weights of linear layers inside the transformer blocks; in a model without "
    "blocks, of all linear and recurrent layers but the output layers; of a model in training "
    "where most of these are frozen, those that are trained",
    "paper": "nn.Linear weights inside the transformer blocks only "
    "(Jaiswal et al. 2023, as their code does it)",
    "layers": "weights of linear and recurrent layers anywhere, heads included",
    "matrices": "every floating-point parameter with two or more dimensions, embeddings too",
    "all": "the weights of `blocks`, frozen or not",
}

#: A share of the default scope that is less than most of it.
_MOST = 0.5
_DEFAULT = "the default scope"
#: How the reason ends of what is left out since nothing trains it.
LEFT_OUT = (", frozen", ", in no optimizer")

#: What is added to the reason of a parameter that nobody can look at.
_UNREAD = "; its values cannot be read, so it is not watched"


class ModelChangedError(ScopeError):
    """The model has other parameters than when the watch was attached."""


@dataclass(frozen=True)
class Scope:
    """The in-scope weights of one model, by name.

    Names carry no wrapper prefixes. Tied parameters share a storage and stand in the
    ledger once, under the first of their names in alphabetical order. Parameters are looked
    up again at every call of ``lookup``, since ``load_state_dict(assign=True)`` replaces them.
    """

    ledger: tuple[LedgerEntry, ...]  # one entry per storage, in the model's order, in or out
    unlike_stored: tuple[str, ...] = ()  # a live model's names that a checkpoint may not select
    #: Paths of a live model's layers, where it matters which of them make the output.
    layers: tuple[str, ...] = ()
    held: Collection[str] | None = None  # by the optimizers; None if that is not known
    which: str = ""  # as in ``ScopeSummary``
    untrained: Collection[str] = ()  # names of parameters that are frozen or in no optimizer

    @classmethod
    def of(
        cls,
        model: nn.Module,
        scope: ScopeLike = "blocks",
        outputs: Collection[str] = (),
        held: Collection[str] | None = None,
    ) -> Scope:
        """Decide which parameters count, given the output layers, if seen; a ScopeError if none.

        ``held`` are the parameters that optimizers have, None if that is not known.
        """
        if isinstance(scope, str):
            _refuse_packed(model)
        named = named_parameters(model)
        entries = [_entry(name, p, _storage_key(p)) for name, p in named]
        # parents come first: what a wrapper holds replaces it
        every = modules_of(model)
        modules = {clean_name(path): type(module) for path, module in every}
        layout = Layout(entries, modules, outputs)
        untrained = _untrained(named, held)
        ledger, which = _decided(layout, entries, dict(named), scope, untrained)
        decided = cls(ledger, held=held, which=which, untrained=untrained)
        if callable(scope):  # it may ask for what only a live parameter has
            return decided
        buffers = [
            _entry(clean_name(f"{path}.{name}".lstrip(".")), buffer, None)
            for path, module in every
            for name, buffer in module.named_buffers(recurse=False, remove_duplicate=False)
            if name not in module._non_persistent_buffers_set  # these no checkpoint holds
        ]
        return replace(
            decided,
            unlike_stored=_unlike_stored(decided, entries, buffers, scope),
            layers=tuple(layout.layers(scope)) if isinstance(scope, str) else (),
        )

    @classmethod
    def of_entries(cls, entries: Sequence[Entry], scope: ScopeLike = "blocks") -> Scope:
        """The same from names and shapes of all tensors of a checkpoint, buffers too."""
        shown = {entry.name: entry.placeholder() for entry in entries} if callable(scope) else {}
        return cls(_decided(Layout(entries), entries, shown, scope, {})[0])

    def __repr__(self) -> str:
        summary = self.summary
        return (
            f"<Scope of {summary.num_tensors} out of {len(self.ledger)} tensors, "
            f"{summary.num_weights:,} weights>"
        )

    @cached_property
    def sizes(self) -> tuple[tuple[str, int], ...]:
        """Names of the in-scope tensors and numbers of their weights, in the model's order."""
        return tuple((entry.name, entry.num_weights) for entry in self.ledger if entry.in_scope)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Names of the in-scope tensors, in the model's order."""
        return tuple(name for name, _ in self.sizes)

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of every parameter, in scope or not, by each of its names."""
        return {name: e.shape for e in self.ledger for name in (e.name, *e.aliases)}

    @cached_property
    def summary(self) -> ScopeSummary:
        """How many tensors and weights are in scope."""
        num = sum(size for _, size in self.sizes)
        return ScopeSummary(
            num_tensors=len(self.sizes),
            num_weights=num,
            which=self.which,
            num_untrained=sum(size for name, size in self.sizes if name in self.untrained),
        )

    @cached_property
    def hash(self) -> str:
        """Identity of the in-scope set: names and shapes in any order, 16 hexadecimal digits."""
        text = "\n".join(sorted(f"{e.name} {e.shape}" for e in self.ledger if e.in_scope))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def note_on_reparametrized(self) -> str:
        """What is left out since it is not the weight itself; empty if nothing."""
        raw: dict[str, int] = {}
        for entry in self.ledger:
            if entry.reason == REPARAMETRIZED and Place.of(entry.name).is_original:
                layer = Place.of(entry.name).module
                raw[layer] = max(raw.get(layer, 0), entry.num_weights)
        if not raw:
            return ""
        return (
            f"{sum(raw.values()):,} weights in {len(raw)} layers are left out, such as those of "
            f"{next(iter(raw)) or 'the model'}: these layers are reparametrized (weight norm, "
            "spectral norm, orthogonal, pruning masks), so that what is stored is not the weight "
            "that they use. Name the parameters in `scope` to watch them as they are stored."
        )

    @property
    def note_on_trained(self) -> str:
        """Which weights the numbers are about, where some are not trained; empty if all are."""
        if not (self.which or self.summary.num_untrained):
            return ""
        others = ' Choose scope="all" for what is frozen or in no optimizer, too.'
        return f"the numbers are about {self.summary.describe()}.{others if self.which else ''}"

    @property
    def note_on_stored(self) -> str:
        """What a replay may decide otherwise about; empty if nothing."""
        if not self.unlike_stored:
            return ""
        others = " and others" if len(self.unlike_stored) > 3 else ""
        return (
            "a replay without the model, from names and shapes alone, may decide otherwise about "
            f"{', '.join(self.unlike_stored[:3])}{others}. Give it the model, and the proxy if "
            "this watch has one, or name the weights in `scope`."
            + " It takes those of this run from its log, as `initial_rms`."
            * bool(self.which)
        )

    def parameters(self, model: nn.Module) -> dict[str, nn.Parameter]:
        """The in-scope parameters of ``model`` as they are now, by name."""
        return self.lookup(model)[0]

    def lookup(
        self, model: nn.Module, modules: Modules | None = None, *, is_whole: bool = False
    ) -> tuple[dict[str, nn.Parameter], dict[str, nn.Parameter]]:
        """The in-scope parameters of ``model`` as they are now, by name; and every one.

        A ModelChangedError if it has others in scope; ``is_whole``: also if any is new, or changed.
        """
        found = dict(named_parameters(model, modules))
        shapes = {name: tuple(one.shape) for name, one in found.items()} if is_whole else {}
        if is_whole and shapes != self.shapes:
            odd = sorted({name for name, _ in shapes.items() ^ self.shapes.items()})
            raise ModelChangedError(
                f"Expected the parameters as at attach, got others: {some_of(odd, len(odd))}. "
                "Attach a new watch after changing the model."
            )
        chosen, every = {}, {}
        for entry in self.ledger:
            parameter = found.get(entry.name)
            if parameter is not None and parameter.shape == entry.shape:
                if not entry.reason.endswith(_UNREAD):
                    every[entry.name] = parameter
                if entry.in_scope:
                    chosen[entry.name] = parameter
            elif entry.in_scope:
                came = "nothing" if parameter is None else f"shape {tuple(parameter.shape)}"
                raise ModelChangedError(
                    f"Expected parameter {entry.name!r} of shape {entry.shape} as at attach, "
                    f"got {came}. Attach a new watch after changing the model."
                )
        return chosen, every


def named_parameters(
    model: nn.Module, modules: Modules | None = None
) -> list[tuple[str, nn.Parameter]]:
    """The parameters by the names that their user wrote, tied ones by each; with whole shapes."""
    named = [*model.named_parameters(remove_duplicate=False)]
    if flat := flat_parameters(modules or modules_of(model)):
        whole = dict(flat)
        parts = (".flat_param", "._flat_param")
        others = [(n, p) for n, p in named if n not in whole and not f".{n}".endswith(parts)]
        named = [*flat, *others]
    return [(clean_name(name), parameter) for name, parameter in named]


def _entry(name: str, tensor: torch.Tensor, storage: Hashable) -> Entry:
    return Entry(name=name, shape=tuple(tensor.shape), dtype=tensor.dtype, storage=storage)


def _unlike_stored(
    live: Scope, parameters: Sequence[Entry], buffers: Sequence[Entry], scope: ScopeLike
) -> tuple[str, ...]:
    """Names that checkpoints of the model would decide otherwise about."""
    first = {entry.name for entry in live.ledger}
    # formats keep of tied weights that they are, one of the names, or each as a tensor of its own
    kept = (
        [*parameters, *buffers],
        [*(entry for entry in parameters if entry.name in first), *buffers],
        [replace(entry, storage=None) for entry in (*parameters, *buffers)],
    )
    unlike: set[str] = set()
    for entries in kept:
        try:
            stored = Scope.of_entries(entries, scope)
        except ScopeError:  # it selects nothing there
            return live.names
        unlike |= set(stored.names) ^ set(live.names)
    return tuple(sorted(unlike))


def _storage_key(parameter: nn.Parameter) -> Hashable:
    # Empty and meta tensors all share address 0 without being tied, and so do empty shards and
    # subclasses around other tensors.
    if is_sharded(parameter) or address_of(parameter) is None:
        return id(parameter)
    return (parameter.device, parameter.data_ptr(), tuple(parameter.shape), parameter.stride())


def _check_readable(name: str, parameter: nn.Parameter) -> None:
    problem = None
    if parameter.is_meta and not is_sharded(parameter):
        problem = "a meta tensor without data; attach after the weights are materialised"
    elif hasattr(parameter, "ds_id"):
        problem = "one that is partitioned by DeepSpeed ZeRO-3"
    elif isinstance(parameter, nn.parameter.UninitializedParameter):
        problem = "an uninitialised lazy parameter; run one forward before attaching"
    elif _is_sealed(parameter):
        problem = f"{_class_of(parameter)}, whose dequantize() gives no floats of its shape"
    elif not (parameter.is_floating_point() or is_encoded(parameter)):
        problem = f"{_class_of(parameter)} of {parameter.dtype}, which has no dequantize()"
    if problem:
        raise ScopeError(
            f"Expected a dense floating-point tensor for parameter {name!r}, got {problem}. To "
            "watch the others, name them in `scope`."
        )


def _is_sealed(parameter: nn.Parameter) -> bool:
    """Whether a parameter is kept in another form than its values, and does not give them."""
    if parameter.is_meta or is_sharded(parameter) or not is_encoded(parameter):
        return False
    return decoded(parameter) is None


def _class_of(thing: object) -> str:
    return f"{type(thing).__module__}.{type(thing).__qualname__}"


#: Where the classes of torch's quantised layers are.
_QUANTISED = "torch.ao.nn.quantized."


def _refuse_packed(model: nn.Module) -> None:
    """Refuse layers whose weights are no parameters, which nothing else would ever name."""
    for path, module in model.named_modules():
        kind = type(module)
        is_quantised = any(one.__module__.startswith(_QUANTISED) for one in kind.__mro__)
        if is_quantised and (hasattr(kind, "weight") or hasattr(kind, "get_weight")):
            raise ScopeError(
                f"Expected layers whose weights are parameters, but {path or 'the model'!r} is a "
                f"{_class_of(module)}, which packs its quantised weight. Watch the model as it was "
                "before the conversion, or name the weights that are left in `scope`."
            )


def _untrained(
    named: Sequence[tuple[str, nn.Parameter]], held: Collection[str] | None
) -> dict[str, str]:
    """Why parameters are not trained, by name; empty where none is, as of a model at rest."""
    why = {
        name: LEFT_OUT[one.requires_grad]
        for name, one in named
        if not one.requires_grad or (held is not None and name not in held)
    }
    # codes of weights cannot be trained, whatever becomes of the model
    at_rest = {name for name, one in named if is_encoded(one) or not one.is_floating_point()}
    return {} if len(why) == len(named) or (held is None and why.keys() <= at_rest) else why


def _of_trained(
    lines: Sequence[LedgerEntry], untrained: Mapping[str, str], *, narrows: bool
) -> tuple[list[LedgerEntry], str]:
    """The ledger without what nothing trains, if that is most of it; and which weights are left."""

    def size(of: Iterable[LedgerEntry]) -> int:
        return sum(line.num_weights for line in of)

    inside = [one for one in lines if one.in_scope]
    trained = [one for one in lines if one.name not in untrained]
    own = [one for one in trained if one.in_scope]
    total, num = size(inside), size(own)
    is_small = num < _MOST * total or (not total and size(trained) < _MOST * size(lines))
    if not (narrows and is_small):
        return [*lines], ""
    which = f"the trained {percent(num / total)} of {_DEFAULT}"
    if not own:
        which = f"all that is trained, none of it in {_DEFAULT}"
    names = {one.name for one in own or trained}
    found = []
    for line in lines:
        reason = f"{line.reason}, {untrained.get(line.name, 'trained')}"
        is_told = line.in_scope or line.name in names
        found.append(
            replace(line, in_scope=line.name in names, reason=reason if is_told else line.reason)
        )
    return found, which


def _decided(
    layout: Layout,
    entries: Sequence[Entry],
    parameters: Mapping[str, nn.Parameter],
    scope: ScopeLike,
    untrained: Mapping[str, str],
) -> tuple[tuple[LedgerEntry, ...], str]:
    """The ledger of a live model where its modules are known, else of stored tensors; and which."""
    if layout.modules is not None and not entries:
        raise ScopeError("Expected a model with parameters, got one that has none. Build it first.")
    decide = _decider(layout, parameters, scope)
    by_storage: dict[object, dict[str, Entry]] = {}
    for entry in entries:
        by_storage.setdefault(entry.storage or entry.name, {})[entry.name] = entry
    lines = []
    for tied in by_storage.values():
        names = tuple(sorted(tied))  # a file may have them in another order
        in_scope, reason = decide(names)
        first = tied[names[0]]
        lines.append(
            LedgerEntry(
                name=names[0],
                shape=first.shape,
                num_weights=first.num_weights,
                in_scope=in_scope,
                reason=reason,
                aliases=names[1:],
            )
        )
    lines, which = _of_trained(lines, untrained, narrows=scope == "blocks")
    for i, line in enumerate(lines if layout.modules is not None else ()):
        if line.in_scope:
            _check_readable(line.name, parameters[line.name])
        elif _is_sealed(parameters[line.name]):
            lines[i] = replace(line, reason=line.reason + _UNREAD)
    if not any(line.num_weights for line in lines if line.in_scope):
        raise ScopeError(_nothing_matched(layout, scope, lines))
    return tuple(lines), which


def _decider(layout: Layout, parameters: Mapping[str, nn.Parameter], scope: ScopeLike) -> Decider:
    if isinstance(scope, str):
        if scope not in PRESETS:
            raise ScopeError(
                f"Expected `scope` to be one of {sorted(PRESETS)}, a list of name patterns or a "
                f"predicate (name, parameter) -> bool, got {scope!r}."
            )
        return layout.decider("blocks" if scope == "all" else scope)
    # a live model has no buffers among its parameters
    is_live = layout.modules is not None
    known = {name for name, kind in layout.kinds.items() if is_live or kind != "buffer"}
    if callable(scope) and not isinstance(scope, type):
        chosen = partial(_chosen, scope, parameters)
    else:
        chosen = partial(_matched, _patterns(scope, sorted(known)))

    def decide(names: Sequence[str]) -> tuple[bool, str]:
        return chosen(names) if names[0] in known else (False, "buffer")

    return decide


def _patterns(scope: object, known: Sequence[str]) -> list[str]:
    """Those of names, each of which matches some."""
    what = f"one of {sorted(PRESETS)}, a list of name patterns or a function (name, parameter)"
    try:
        patterns = listed("scope", scope, what)
        for index, pattern in enumerate(patterns):
            expect(isinstance(pattern, str), f"scope[{index}]", "a pattern of names", pattern)
    except ConfigurationError as error:
        raise ScopeError(str(error)) from None
    for pattern in patterns:
        if not any(fnmatch.fnmatchcase(name, pattern) for name in known):
            raise ScopeError(
                f"Expected every pattern of `scope` to match a parameter, but {pattern!r} matches "
                f"none of {len(known)}, such as {known[:3]}."
            )
    return patterns


def _chosen(
    chooses: Callable[[str, nn.Parameter], bool],
    parameters: Mapping[str, nn.Parameter],
    names: Sequence[str],
) -> tuple[bool, str]:
    try:
        is_chosen = bool(chooses(names[0], parameters[names[0]]))
    except Exception as error:
        raise ScopeError(
            "Expected `scope` to be a function (name, parameter) -> bool, but it raised "
            f"{redacted_error(error)} for {names[0]!r}."
        ) from error
    return is_chosen, "chosen by the filter" if is_chosen else "refused by the filter"


def _matched(patterns: Sequence[str], names: Sequence[str]) -> tuple[bool, str]:
    for pattern in patterns:
        if any(fnmatch.fnmatchcase(name, pattern) for name in names):
            return True, f"matches {pattern!r}"
    return False, "matches no pattern"


def _nothing_matched(layout: Layout, scope: ScopeLike, ledger: Sequence[LedgerEntry]) -> str:
    """Why nothing is in scope, and the preset that selects most weights, with its share."""
    reasons = sorted({f"{entry.name}: {entry.reason}" for entry in ledger})[:5]
    what = repr(scope) if isinstance(scope, str | list | tuple) else "the predicate"
    weights = [entry for entry in ledger if layout.kinds[entry.name] != "buffer"]
    num = sum(entry.num_weights for entry in weights)
    advice, most = "No preset selects any of them: give name patterns or a predicate.", 0
    for preset in PRESETS:
        decide = layout.decider(preset)
        chosen = sum(e.num_weights for e in weights if decide((e.name, *e.aliases))[0])
        if chosen > most:
            most = chosen
            advice = (
                f"Choose scope={preset!r}, which selects {chosen:,} of {num:,} weights "
                f"({chosen / num:.0%}), name patterns or a predicate."
            )
    if chosen := sum(e.num_weights for e in weights if e.name.endswith("/kernel")):
        advice = (
            f'Choose scope=["*kernel"], which selects {chosen:,} of {num:,} weights, as Keras '
            "names them."
        )
    return (
        f"Expected `scope` to select at least one weight, but {what} selects none of "
        f"{len(ledger)} parameters ({'; '.join(reasons) or 'the model has none'}). {advice}"
    )
