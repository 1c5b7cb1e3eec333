"""What a level means: which weights one-shot pruning removes at a sparsity.

A pattern makes cuts, a cut removes weights. A pattern combines a score (what a weight is worth),
a structure (among which weights those of the lowest score go) and an allocation (which share each
tensor loses). ``criteria.py`` has scores and shares; ``thresholds.py`` cuts whole tensors,
``selections.py`` rows and groups of M, ``sparsegpt.py`` makes up for what goes.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch

from sparsitywatch.errors import (
    ConfigurationError,
    expect,
    expect_mapping,
    expect_number,
    expect_whole,
)
from sparsitywatch.patterns import PATTERNS, criteria
from sparsitywatch.patterns.cuts import Combination, Cut, Scores, Shares, Weights
from sparsitywatch.patterns.selections import group_cuts, row_cuts
from sparsitywatch.patterns.sparsegpt import updating_cuts
from sparsitywatch.patterns.thresholds import global_cuts, layer_cuts, normalised_cuts
from sparsitywatch.redact import printable

_Needs = Literal["", "squares", "products"]  # of what comes into the layers
_Cuts = Callable[[Combination, Weights, Sequence[float], Shares], list[Cut]]


class _Score(NamedTuple):
    """A row of the table of scores."""

    structures: Sequence[str]  # its authors' first
    cuts: _Cuts
    inputs: _Needs = ""
    arguments: Sequence[str] = ()
    is_nested: bool = True


class _Allocation(NamedTuple):
    """A row of the table of allocations."""

    shares: Callable[[Combination, Weights, Sequence[float]], Shares]
    inputs: _Needs = ""
    arguments: Sequence[str] = ()


def _lowest(scores: Callable[[Combination, Weights], Scores]) -> _Cuts:
    """Cuts of the lowest scores within the structure."""

    def cuts(
        pattern: Combination, weights: Weights, levels: Sequence[float], shares: Shares
    ) -> list[Cut]:
        within = _STRUCTURES[_kind(pattern.structure)]
        return within(pattern, weights, levels, shares, scores(pattern, weights))

    return cuts


_STRUCTURES: Mapping[str, Callable[..., list[Cut]]] = {
    "global": global_cuts, "layer": layer_cuts, "row": row_cuts, "N:M": group_cuts
}  # fmt: skip
_SCORES = {
    "magnitude": _Score(("global", "layer", "row", "N:M"), _lowest(criteria.magnitude)),
    "normalised": _Score(("global",), normalised_cuts),
    "wanda": _Score(("row", "global", "layer", "N:M"), _lowest(criteria.wanda), "squares"),
    "ria": _Score(
        ("layer", "global", "row", "N:M"), _lowest(criteria.ria), "squares", ("exponent",)
    ),
    "sparsegpt": _Score(
        ("layer", "N:M"), updating_cuts, "products", ("block", "damping", "memory_gb"), False
    ),
    "random": _Score(("global", "layer", "row", "N:M"), _lowest(criteria.at_random)),
}
#: Those that have a name.
_ALLOCATIONS = {
    "uniform": _Allocation(criteria.uniform),
    "erk": _Allocation(criteria.erk),
    "owl": _Allocation(criteria.owl, "squares", ("outlier", "spread")),
}
_USUAL = {
    "exponent": 0.5, "block": 128, "damping": 0.01, "memory_gb": 8.0, "outlier": 5.0, "spread": 0.08
}  # fmt: skip


class Pattern:
    """A rule that turns levels into cuts: a score, a structure and an allocation.

    Of each tensor the allocation's share goes: within the structure, the weights of lowest score. A
    pattern of one's own derives from this class and has ``cuts``; it needs none of these arguments,
    and class attributes say what else there is to know of it. docs/patterns.md has examples.

    Args:
        score: what a weight is worth: "magnitude", "normalised" (over the root mean square of its
            tensor), "wanda", "ria", "sparsegpt" (kept weights make up for what goes), "random".
        structure: "global", "layer" (each tensor), "row" (each output), "2:4" (2 of 4 along the
            inputs are kept; with an allocation on average, a whole number in each tensor), or
            "n:8": a curve over N. None: that of the score's authors.
        allocation: "uniform", "erk", "owl", or sparsities by name of the tensor: exactly these at
            the level that they come to, elsewhere all of them higher or lower by the same.
        name: what it is called in the provenance; by default what it is, such as "wanda:2:4".
        exponent: of the norms of the inputs, in RIA.
        block: input features that SparseGPT decides on together.
        damping: added to the diagonal of SparseGPT's moments, as a share of its mean.
        memory_gb: of the products of inputs, in SparseGPT, held at a time, in 1e9 bytes. Where all
            take more, each mask takes a pass of the dense model for each group; masks are the same.
        outlier: OWL's M: an outlier scores more than so many times the mean of its block.
        spread: OWL's lambda: densities differ by at most twice this.

    Attributes:
        name: what it is called in the provenance.
        is_nested: whether what a level removes is removed at every higher one, too.
        needs_inputs: "squares" or "products" of what comes into the layers; "" for neither.
        levels: the only ones between 0 and 1 that it has; None if it has all.
        ranks: where it can be used: "shards", also where every rank holds a part of the weights;
            "replicas", where every rank holds all; "alone", where one process measures.

    Raises:
        ConfigurationError: there is no such score, structure or allocation, or they make no sense
            together; a class says something of itself that no pattern is asked for.

    References: Sun et al. 2023, arXiv:2306.11695 (Wanda); Zhang et al. 2024, ICLR (RIA); Frantar
    and Alistarh 2023, arXiv:2301.00774 (SparseGPT); Evci et al. 2020, arXiv:1911.11134 (ERK); Yin
    et al. 2024, arXiv:2310.05175 (OWL).

    >>> Pattern("wanda", "2:4"), Pattern("magnitude", allocation="owl"), Pattern()
    (Pattern('wanda:2:4'), Pattern('magnitude:layer:owl'), Pattern('global'))
    """

    name: str = ""
    is_nested = True
    needs_inputs: Literal["", "squares", "products"] = ""
    levels: Sequence[float] | None = None
    ranks: Literal["shards", "replicas", "alone"] = "replicas"
    memory_gb = 8.0

    def __init__(
        self,
        score: str = "magnitude",
        structure: str | None = None,
        allocation: str | Mapping[str, float] = "uniform",
        *,
        name: str | None = None,
        exponent: float = 0.5,
        block: int = 128,
        damping: float = 0.01,
        memory_gb: float = 8.0,
        outlier: float = 5.0,
        spread: float = 0.08,
    ) -> None:
        if type(self).cuts is not Pattern.cuts:  # one's own says what it is by itself
            self.name = name or self.name
            return
        given = {"exponent": exponent, "block": block, "damping": damping}
        given |= {"memory_gb": memory_gb, "outlier": outlier, "spread": spread}
        self.score, self.structure = score, _checked(score, structure, allocation)
        self.allocation = allocation if isinstance(allocation, str) else dict(allocation)
        self.exponent, self.block, self.damping = exponent, block, damping
        self.memory_gb, self.outlier, self.spread = memory_gb, outlier, spread
        self.spec = _spec(score, self.structure, self.allocation, given)
        keep, _, of = self.structure.partition(":")
        by_magnitude = re.sub(r"magnitude:(\d+):(\d+)$", r"keep_\1_of_\2", self.spec)
        self.name = name or _NAMES.get(self.spec, by_magnitude)
        named = _ALLOCATIONS[allocation] if isinstance(allocation, str) else None
        self.needs_inputs = _SCORES[score].inputs or (named.inputs if named else "")
        self.is_nested = _SCORES[score].is_nested
        if of:
            kept = range(int(of) - 1, 0, -1) if keep == "n" else [int(keep)]
            self.levels = tuple(1.0 - number / int(of) for number in kept)
        if self.needs_inputs:
            self.ranks = "alone"
        elif score in ("magnitude", "normalised") and keep in ("global", "layer"):
            self.ranks = "replicas" if allocation == "erk" else "shards"

    def __init_subclass__(cls) -> None:
        known = {name for name in vars(Pattern) if not name.startswith("_")}
        for name, value in vars(cls).items():
            is_field = name in inspect.get_annotations(cls)
            is_said = not (name.startswith("_") or callable(value) or hasattr(value, "__get__"))
            if not is_said or is_field or name in known:
                continue
            raise ConfigurationError(
                f"Expected the pattern {cls.__name__} to say of itself "
                f"{', '.join(sorted(known))}, got {name!r}."
            )
        if cls.cuts is Pattern.cuts and cls.__init__ is Pattern.__init__:
            raise ConfigurationError(
                f"Expected the pattern {cls.__name__} to have `cuts(weights, levels)`, or an "
                "`__init__` that says which combination it is, got neither."
            )

    def __repr__(self) -> str:
        spec = vars(self).get("spec", self.name)
        own = "" if self.name in (spec, _NAMES.get(spec)) else f", name={self.name!r}"
        return f"{type(self).__name__}({spec if own else self.name!r}{own})"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Pattern):
            return NotImplemented
        return type(self).cuts is type(other).cuts and vars(self) == vars(other)

    def __hash__(self) -> int:
        return hash((type(self).cuts, self.name))

    def cuts(self, weights: Weights, levels: Sequence[float]) -> list[Cut]:
        """One cut per level, in the order of ``levels``, each in [0, 1]."""
        if self.needs_inputs and weights.inputs is None:
            raise ConfigurationError(
                f"Expected the inputs of the layers for the pattern {self.name!r}, got none. Give "
                "a proxy: they are those of its batches."
            )
        at = levels if self.levels is None else [self.levels[0]] * len(levels)
        return _SCORES[self.score].cuts(self, weights, levels, self._shares(weights, at))

    def _shares(self, weights: Weights, levels: Sequence[float]) -> Shares:
        """For each level the share of each tensor's weights that goes, rising with the level."""
        if isinstance(self.allocation, str):
            return _ALLOCATIONS[self.allocation].shares(self, weights, levels)
        return criteria.by_name(self, weights, levels)


def _kind(structure: str) -> str:
    return "N:M" if ":" in structure else structure


def _checked(score: str, structure: str | None, allocation: Any) -> str:
    """The structure of a combination that makes sense; a ConfigurationError of any other."""
    expect(isinstance(score, str) and score in _SCORES, "score", _or(_SCORES), score)
    by_name = not (isinstance(allocation, str) and allocation in _ALLOCATIONS)
    if by_name:
        what = f"{_or(_ALLOCATIONS)}, or sparsities by name of the tensor"
        expect(isinstance(allocation, Mapping) and allocation, "allocation", what, allocation)
        expect_mapping("allocation", allocation, what)
        for name, share in allocation.items():
            expect_number(f"allocation[{name!r}]", share, lambda s: 0.0 <= s <= 1.0, "in [0, 1]")
    possible = _SCORES[score].structures
    if structure is None:
        structure = possible[0] if allocation == "uniform" or possible[0] != "global" else "layer"
    groups = re.fullmatch(r"(\d+|n):(\d+)", structure) if isinstance(structure, str) else None
    is_groups = groups and 1 < int(groups[2]) > int(groups[1].replace("n", "0"))
    what = "'global', 'layer', 'row', '2:4' (2 of 4 are kept) or the like, or 'n:8'"
    is_named = isinstance(structure, str) and structure in {*_STRUCTURES} - {"N:M"}
    expect(is_groups or is_named, "structure", what, structure)
    kind = _kind(structure)
    if kind not in possible:
        why = "within a tensor that is the order of |w|: choose score='magnitude'"
        if score == "sparsegpt":
            why = "which decides block by block of the inputs: choose 'layer', or N:M"
        raise ConfigurationError(
            f"Expected another `structure` than {structure!r} with the score {score!r}, {why}."
        )
    if allocation != "uniform" and (kind == "global" or structure.startswith("n:")):
        does = "has one threshold for all" if kind == "global" else "is a curve over one N for all"
        raise ConfigurationError(
            f"Expected no `allocation` with the structure {structure!r}, which {does}, got "
            f"{'sparsities by name' if by_name else allocation!r}. Choose 'layer', 'row' or '2:4'."
        )
    return structure


def _or(names: Mapping[str, object]) -> str:
    return f"one of {', '.join(map(repr, names))}"


def _spec(score: str, structure: str, allocation: Any, given: Mapping[str, Any]) -> str:
    """Everything that a combination is, in one word; arguments that are not its own are refused."""
    own = {score: _SCORES[score].arguments}
    if isinstance(allocation, str):
        own[allocation] = _ALLOCATIONS[allocation].arguments
    for name, value in given.items():
        if name == "block":
            expect_whole(name, value, 1)
        else:
            expect_number(name, value, lambda x: 0.0 < x < math.inf, "a number > 0")
        is_owned = value == _USUAL[name] or any(name in names for names in own.values())
        expect(is_owned, name, f"left out with the score {score!r} and its allocation", value)
    words, usual = {}, _USUAL | {"memory_gb": given["memory_gb"]}  # which changes no mask
    for word, names in own.items():
        changed = [f"{name}={given[name]:g}" for name in names if given[name] != usual[name]]
        words[word] = f"{word}({','.join(changed)})" if changed else word
    if not isinstance(allocation, str):
        text = json.dumps(allocation, sort_keys=True)
        words["last"] = f"budgets-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
    first, *last = (words[word] for word in words if word != "uniform")
    return ":".join([first, structure, *last])


# ------------------------------------------------------------------ by name

_NAMES = {spec: name for name, (spec, *_) in PATTERNS.items()}
_COMBINATION = re.compile(
    rf"({'|'.join(_SCORES)})(?::({'|'.join(_STRUCTURES)}|(?:\d+|n):\d+))?(?::({'|'.join(_ALLOCATIONS)}))?"
)


def _parts(name: str) -> tuple[str, str | None, str] | None:
    """Score, structure and allocation of a combination's name; None where it is none."""
    words = _COMBINATION.fullmatch(name)
    return (words[1], words[2], words[3] or "uniform") if words else None


def _named(name: str) -> type[Pattern]:
    """The class of a combination that has a name, with the name as its only argument."""
    spec, kind, words = PATTERNS[name]

    def __init__(self: Pattern, name: str = name) -> None:  # noqa: N807 that of the class
        Pattern.__init__(self, *(_parts(spec) or ()), name=name)

    doc = f"""Removes {words}.

    Args:
        name: what it is called in the provenance.

    Reference: that of its score in ``Pattern``.
    """
    return type(kind, (Pattern,), {"__init__": __init__, "__doc__": doc, "__module__": __name__})


GlobalMagnitude = _named("global")
GlobalNormalised = _named("global_normalised")
Layerwise = _named("layerwise")
PerRow = _named("per_row")
Random = _named("random")
RandomERK = _named("erk")
Wanda = _named("wanda")


class KeepNM(Pattern):
    """Of each M weights in a row along the inputs, the N largest are kept.

    The paper's 2:4 keeps two of four; its text and its code differ on what 1:4 is, so the name says
    what is kept. A rest of fewer than M inputs is left whole. It is one point, not a curve:
    ``Pattern("magnitude", "n:4")`` is the curve.

    Args:
        keep: N, at least 0.
        of: M, more than N.

    Reference: Jaiswal et al. 2023, arXiv:2306.03805, section 4 (N:M sparsity).

    Raises:
        ConfigurationError: not 0 <= N < M.

    >>> KeepNM(2, 4).name
    'keep_2_of_4'
    """

    def __init__(self, keep: int, of: int) -> None:
        if not (type(keep) is int and type(of) is int and 0 <= keep < of):
            raise ConfigurationError(
                "Expected `keep` and `of` to be whole numbers, 0 <= keep < of, got "
                f"{keep!r} and {of!r}. KeepNM(2, 4) keeps two of four."
            )
        super().__init__("magnitude", f"{keep}:{of}")


class SparseGPT(Pattern):
    """Weights go block by block, and those that follow make up for it.

    Kept weights change, in the masked model only, so masks of rising levels are not nested.

    Args:
        block: input features that are decided on together.
        damping: added to the diagonal of the moments, as a share of its mean.
        name: what it is called in the provenance; by default with what is not as usual.
        memory_gb: as of ``Pattern``.

    Raises:
        ConfigurationError: ``block`` is less than 1, ``damping`` or ``memory_gb`` not above 0.
    """

    def __init__(
        self, block: int = 128, damping: float = 0.01, name: str | None = None,
        memory_gb: float = 8.0,
    ) -> None:  # fmt: skip
        super().__init__(
            "sparsegpt", "layer", name=name, block=block, damping=damping, memory_gb=memory_gb
        )


def as_pattern(pattern: str | Pattern | None, argument: str = "pattern") -> Pattern:
    """A pattern by its name or as it is; None is "global". ``argument`` is for the error."""
    if pattern is None or isinstance(pattern, str):
        name = "global" if pattern is None else pattern
        numbers = re.fullmatch(r"keep_(\d+)_of_(\d+)", name)
        name = "keep_2_of_4" if numbers else name
        if name in PATTERNS:
            kind = globals()[PATTERNS[name][1]]
            made: Pattern = kind(*map(int, numbers.groups() if numbers else ()))
            return made
        if parts := _parts(name):
            return Pattern(*parts)
    elif isinstance(pattern, Pattern):
        return pattern
    raise ConfigurationError(
        f"Expected `{argument}` to be one of {', '.join(map(repr, PATTERNS))}, a combination such "
        "as 'wanda:2:4' or 'magnitude:layer:owl', or a pattern such as "
        f"sw.patterns.Pattern('wanda', '2:4'), got {pattern!r:.80}."
    )


def from_budget(path: str | Path) -> Pattern:
    """The pattern in which each tensor loses what ``sparsitywatch export`` wrote to ``path``.

    Raises:
        ConfigurationError: there is no such file, or it holds no budget.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp(), "budget.json")
    >>> size = path.write_text('{"sparsities": {"a.weight": 0.5, "b.weight": 0.75}}')
    >>> from_budget(path).allocation
    {'a.weight': 0.5, 'b.weight': 0.75}
    """
    try:
        return Pattern(allocation=json.loads(Path(path).read_bytes())["sparsities"])
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise ConfigurationError(
            f"Expected {str(path)!r} to be a budget of `sparsitywatch export`: {error}."
        ) from error


# ------------------------------------------------------------------ how alike two masks are


@dataclass(frozen=True, kw_only=True)
class MaskSimilarity:
    """How alike two masks of the same weights are.

    Args:
        cosine: of the two masks as vectors of ones (kept) and zeros; NaN if one keeps nothing.
        cosine_by_chance: expected of two random masks of the same sparsities. At a sparsity of
            0.1 that is 0.9 already.
        overlap: of the weights that go under the mask that removes fewer, the share that goes under
            the other one too; NaN if it removes nothing.
        overlap_by_chance: expected of two random masks of the same sparsities.
        num_weights: under either mask.
        layers: the same of each tensor, by name; empty for one of these.
    """

    cosine: float
    cosine_by_chance: float
    overlap: float
    overlap_by_chance: float
    num_weights: int
    layers: Mapping[str, MaskSimilarity] = field(default_factory=dict)

    def __repr__(self) -> str:
        cosine = f"cosine {self.cosine:.3f} (by chance {self.cosine_by_chance:.3f})"
        overlap = f"overlap {self.overlap:.3f} ({self.overlap_by_chance:.3f})"
        return f"<MaskSimilarity of {self.num_weights:,} weights: {cosine}, {overlap}>"


def mask_similarity(a: Mapping[str, torch.Tensor], b: Mapping[str, torch.Tensor]) -> MaskSimilarity:
    """Compare two masks of the same weights.

    Args:
        a, b: by name of the tensor: bool, True where a weight is kept; or weights, of which those
            that are not zero are kept. Any shape, the same in both.

    Returns:
        Of all weights together, and of each tensor.

    Raises:
        ConfigurationError: names or shapes differ, or there is nothing.

    Reference: Jaiswal et al. 2023, arXiv:2306.03805, figure 10 (cosine of the masks of one-shot
    pruning and of lottery tickets), which has no value by chance.

    >>> half = {"w": torch.tensor([True, True, False, False])}
    >>> mask_similarity(half, {"w": torch.tensor([True, False, True, False])})
    <MaskSimilarity of 4 weights: cosine 0.500 (by chance 0.500), overlap 0.500 (0.500)>
    """
    for name, given in (("a", a), ("b", b)):
        expect_mapping(name, given, "masks by name of the tensor")
    if not a or a.keys() != b.keys():
        unlike = sorted(a.keys() ^ b.keys())[:3]
        raise ConfigurationError(
            f"Expected `a` and `b` to have masks of the same tensors, got {len(a)} and {len(b)}"
            f"{f', unlike in {unlike}' if unlike else ''}."
        )
    counts = {}
    for name, first in a.items():
        if first.shape != b[name].shape:
            raise ConfigurationError(
                f"Expected masks of the same shape of {printable(name)!r}, got "
                f"{tuple(first.shape)} and {tuple(b[name].shape)}."
            )
        kept = [mask if mask.dtype is torch.bool else mask != 0 for mask in (first, b[name])]
        both = int((kept[0] & kept[1].to(kept[0].device)).sum())
        counts[name] = first.numel(), int(kept[0].sum()), int(kept[1].sum()), both
    layers = {name: _similarity(*count, {}) for name, count in counts.items()}
    num, kept_a, kept_b, both = (sum(column) for column in zip(*counts.values(), strict=True))
    return _similarity(num, kept_a, kept_b, both, layers)


def _similarity(
    num: int, kept_a: int, kept_b: int, both: int, layers: Mapping[str, MaskSimilarity]
) -> MaskSimilarity:
    """From how many weights there are, and how many each mask, and both together, keep."""
    removed = sorted((num - kept_a, num - kept_b))
    neither = num - kept_a - kept_b + both
    return MaskSimilarity(
        cosine=both / math.sqrt(kept_a * kept_b) if kept_a and kept_b else math.nan,
        cosine_by_chance=math.sqrt(kept_a * kept_b) / num if num else math.nan,
        overlap=neither / removed[0] if removed[0] else math.nan,
        overlap_by_chance=removed[1] / num if num else math.nan,
        num_weights=num,
        layers=layers,
    )
