"""The combinations of a score, a structure and an allocation that have a name of their own."""

from __future__ import annotations

from sparsitywatch.errors import ConfigurationError
from sparsitywatch.pruning import PATTERNS
from sparsitywatch.pruning.patterns import Pattern, as_parts


def _named(name: str) -> type[Pattern]:
    """The class of a combination that has a name, with the name as its only argument."""
    spec, kind, words = PATTERNS[name]

    def __init__(self: Pattern, name: str = name) -> None:  # noqa: N807 that of the class
        Pattern.__init__(self, *(as_parts(spec) or ()), name=name)

    doc = f"Removes {words}.\n\n    Args:\n        name: what it is called in the provenance.\n    "
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

    Raises:
        ConfigurationError: ``block`` is less than 1 or ``damping`` not above 0.
    """

    def __init__(self, block: int = 128, damping: float = 0.01, name: str | None = None) -> None:
        super().__init__("sparsegpt", "layer", name=name, block=block, damping=damping)
