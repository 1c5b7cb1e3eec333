"""What every module offers, and what the package offers."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil

import pytest

import sparsitywatch

#: The public face. A name is added here on purpose, and taken away only with a deprecation.
PUBLIC = {
    "AbruptChange",
    "Bisection",
    "CheckpointError",
    "ConfigurationError",
    "Detector",
    "DormantRise",
    "EssentialSparsity",
    "Event",
    "Failure",
    "FinetunedCurve",
    "GlobalMagnitude",
    "GlobalNormalised",
    "Grid",
    "IncompleteCheckpointError",
    "JsonlSink",
    "KeepNM",
    "Layerwise",
    "MagnitudeSpectrum",
    "MaskSimilarity",
    "MeasuredChange",
    "MeasurementError",
    "MemorySink",
    "MissingExtraError",
    "Pattern",
    "PerRow",
    "Proxy",
    "ProxyError",
    "Racing",
    "Random",
    "RandomERK",
    "Record",
    "Replayed",
    "Run",
    "Schedule",
    "Scope",
    "ScopeError",
    "Settings",
    "Sink",
    "SparseGPT",
    "SparsityCurve",
    "SparsityWatchError",
    "StateError",
    "TensorBoardSink",
    "Tracking",
    "Wanda",
    "Watcher",
    "__version__",
    "actions",
    "adaptive",
    "at",
    "essential_sparsity",
    "every",
    "finetuned_curve",
    "geometric",
    "load",
    "mask_similarity",
    "measure",
    "replay",
    "verify",
    "watch",
}

MODULES = sorted(
    module.name for module in pkgutil.walk_packages(sparsitywatch.__path__, "sparsitywatch.")
)


def isort_order(name: str) -> tuple[int, str]:
    """CONSTANTS, Classes, functions: the order that ruff keeps."""
    stripped = name.lstrip("_")
    return 0 if stripped.isupper() else 1 if stripped[:1].isupper() else 2, name


def test_the_walk_finds_the_rooms() -> None:
    assert {
        "sparsitywatch.analysis",
        "sparsitywatch.cli",
        "sparsitywatch.integrations",
        "sparsitywatch.records.record",
    } <= set(MODULES)


@pytest.mark.parametrize("name", ["sparsitywatch", *MODULES])
def test_all_is_there_sorted_and_true(name: str) -> None:
    module = importlib.import_module(name)
    is_docstring_only = all(
        isinstance(node, ast.Expr) for node in ast.parse(inspect.getsource(module)).body
    )
    if is_docstring_only:
        return
    assert list(module.__all__) == sorted(set(module.__all__), key=isort_order)
    for exported in module.__all__:
        assert getattr(module, exported, None) is not None, f"{name} has no {exported}"


def test_public_face() -> None:
    assert set(sparsitywatch.__all__) == PUBLIC
    assert set(dir(sparsitywatch)) >= PUBLIC


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no_such_name"):
        sparsitywatch.no_such_name  # noqa: B018


@pytest.mark.parametrize("name", sorted(PUBLIC - {"__version__", "actions"}))
def test_public_names_say_what_they_are_and_what_they_take(name: str) -> None:
    thing = getattr(sparsitywatch, name)
    doc = thing.__doc__ or ""
    assert doc.strip(), f"{name} has no docstring"
    if inspect.isclass(thing) and issubclass(thing, BaseException):
        return
    if hasattr(thing, "of"):  # the way to make one
        thing, doc = thing.of, thing.of.__doc__
    if getattr(thing, "_is_protocol", False):  # what it asks for says what it takes
        return
    parameters = set(inspect.signature(thing).parameters) - {"schema"}
    undocumented = {parameter for parameter in parameters if parameter not in doc}
    assert undocumented == set()


@pytest.mark.parametrize("name", MODULES)
def test_public_things_of_modules_have_docstrings(name: str) -> None:
    module = importlib.import_module(name)
    assert module.__doc__, f"{name} does not say what it is for"
    for exported in getattr(module, "__all__", ()):
        thing = getattr(module, exported)
        if inspect.isfunction(thing) or (inspect.isclass(thing) and thing.__module__ == name):
            # a dataclass without a docstring gets its signature as one
            assert (thing.__doc__ or f"{exported}(").partition("(")[0] != exported, exported
