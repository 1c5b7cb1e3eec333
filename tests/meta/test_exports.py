"""What every module offers, and what the package offers."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import re
from pathlib import Path
from types import ModuleType

import pytest

import sparsitywatch

#: The public face. A name is added here on purpose, and taken away only with a deprecation.
PUBLIC = {
    "Audit", "CheckpointError", "Comparison", "Conclusion", "ConfigurationError", "Difference",
    "EssentialSparsity", "Event",
    "FinetunedCurve", "MagnitudeSpectrum", "MeasurementError", "Proxy", "Record", "Run", "Settings",
    "SparsityCurve", "SparsityWatchError", "StateError", "Watcher", "__version__", "actions",
    "adaptive", "assert_trains", "audit", "detectors", "errors", "essential_sparsity",
    "finetuned_curve", "load", "mask_similarity", "measure", "patterns", "replay", "schedules",
    "sinks", "sweeps", "until_told", "verdicts", "verify", "watch",
}  # fmt: skip
#: What one level down is for users, too.
FACES = {
    "detectors": {"AbruptChange", "Detector", "DormantRise", "MeasuredChange", "ValueChange"},
    "patterns": {
        "Cut", "GlobalMagnitude", "GlobalNormalised", "KeepNM", "Layerwise", "MaskSimilarity",
        "Pattern", "PerRow", "Random", "RandomERK", "SparseGPT", "Wanda", "Weights",
        "from_budget", "mask_similarity",
    },
    "schedules": {"Schedule", "adaptive", "at", "every", "geometric"},
    "sinks": {"JsonlSink", "MemorySink", "Mirror", "Sink", "TensorBoardSink"},
    "sweeps": {"Bisection", "Grid", "Point", "Racing", "Sweep"},
}  # fmt: skip
NAMES = [
    *((sparsitywatch, name) for name in sorted(PUBLIC)),
    *((getattr(sparsitywatch, face), name) for face in FACES for name in sorted(FACES[face])),
]

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
def test_what_a_module_offers_is_there_sorted_and_documented(name: str) -> None:
    module = importlib.import_module(name)
    assert module.__doc__, f"{name} does not say what it is for"
    exported = getattr(module, "__all__", ())
    assert list(exported) == sorted(set(exported), key=isort_order)
    for one in exported:
        thing = getattr(module, one, None)
        assert thing is not None, f"{name} has no {one}"
        if inspect.isfunction(thing) or (inspect.isclass(thing) and thing.__module__ == name):
            # a dataclass without a docstring gets its signature as one
            assert (thing.__doc__ or f"{one}(").partition("(")[0] != one, one


def test_public_face() -> None:
    assert set(sparsitywatch.__all__) == PUBLIC
    assert set(dir(sparsitywatch)) >= PUBLIC
    for face, names in FACES.items():
        assert set(getattr(sparsitywatch, face).__all__) == names


def test_type_checkers_read_the_same_names_from_the_same_modules() -> None:
    stub = Path(sparsitywatch.__file__).with_suffix(".pyi").read_text()
    imports = [node for node in ast.parse(stub).body if isinstance(node, ast.ImportFrom)]
    assert len(imports) == len(PUBLIC)
    assert {one.names[0].asname: one.module or "" for one in imports} == sparsitywatch._HOME


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no_such_name"):
        sparsitywatch.no_such_name  # noqa: B018


def test_every_public_name_has_an_example_that_is_run() -> None:
    """In the manual's blocks, or in a docstring: other tests run both."""
    root = Path(__file__).resolve().parents[2]
    pages = [path.read_text() for path in (root / "README.md", *root.glob("docs/*.md"))]
    blocks = (
        block for page in pages for block in re.findall(r"```python.*?\n(.*?)```", page, re.S)
    )
    sources = [*pages, *(path.read_text() for path in root.glob("sparsitywatch/**/*.py"))]
    lines = (line for text in sources for line in re.findall(r"^ +(?:>>>|\.\.\.) (.*)", text, re.M))
    words = set(re.findall(r"\w+", "\n".join([*blocks, *lines])))
    assert [f"{face.__name__}.{name}" for face, name in NAMES if name not in words] == []


def test_tab_completion_offers_what_is_public() -> None:
    faces = [
        sparsitywatch,
        *(getattr(sparsitywatch, name) for name in (*FACES, "actions", "errors")),
    ]
    for face in faces:
        # pytest writes the asserts anew of a package with a plugin for it, with names such as @py
        assert {n for n in dir(face) if n[0] not in "_@"} == {*face.__all__} - {"__version__"}
    assert {"verdict", "report", "plot", "frame", "series"} <= set(dir(sparsitywatch.Run))


@pytest.mark.parametrize(("face", "name"), NAMES, ids=lambda one: getattr(one, "__name__", one))
def test_public_names_say_what_they_are_and_what_they_take(face: ModuleType, name: str) -> None:
    thing = getattr(face, name)
    if isinstance(thing, str):  # the version
        return
    doc = thing.__doc__ or ""
    assert doc.strip(), f"{name} has no docstring"
    if inspect.ismodule(thing) or (inspect.isclass(thing) and issubclass(thing, Exception)):
        return
    if hasattr(thing, "of"):  # the way to make one
        thing, doc = thing.of, thing.of.__doc__
    if getattr(thing, "_is_protocol", False):  # what it asks for says what it takes
        return
    parameters = set(inspect.signature(thing).parameters) - {"schema"}
    undocumented = {parameter for parameter in parameters if parameter not in doc}
    assert undocumented == set()
