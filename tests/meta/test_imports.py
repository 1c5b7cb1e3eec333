"""What is imported: only what is declared, and torch only where it is needed."""

from __future__ import annotations

import ast
import graphlib
import importlib.metadata
import json
import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]
CONFIG = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = CONFIG["project"]
EXTRAS = PROJECT["optional-dependencies"]
GROUPS = CONFIG["dependency-groups"]
DISTRIBUTIONS = importlib.metadata.packages_distributions()


def names_of(requirements: Iterable[str | dict[str, str]]) -> set[str]:
    """Names of distributions, without versions and markers; extras and groups followed."""
    names = set()
    for requirement in requirements:
        if isinstance(requirement, dict):
            names |= names_of(GROUPS[requirement["include-group"]])
            continue
        own = re.match(r"sparsitywatch\[(.*)\]", requirement)
        if own:
            names |= names_of(r for extra in own[1].split(",") for r in EXTRAS[extra.strip()])
        else:
            names.add(re.match(r"[\w.-]+", requirement)[0].lower().replace("-", "_"))
    return names


def third_party(source: str) -> set[str]:
    """Top-level names of the modules that ``source`` imports from other distributions."""
    modules = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            modules.add(node.module)
    tops = {module.partition(".")[0] for module in modules}
    return tops - sys.stdlib_module_names - {"sparsitywatch", "tomllib"}


def files_in(folder: str) -> list[Path]:
    """Python files of a top-level folder; the link to integrations/ is not followed."""
    link = ROOT / "sparsitywatch" / "integrations"
    return [path for path in ROOT.glob(f"{folder}/**/*.py") if link not in path.parents]


def imported(folder: str) -> set[str]:
    """Distributions that the files of a top-level folder import; of several, a declared one."""
    tops = set().union(*(third_party(path.read_text()) for path in files_in(folder)))
    neighbours = (
        path
        for name in {folder, "examples", "examples/paper", "benchmarks"} - {"integrations"}
        for path in (ROOT / name).iterdir()  # whose own names are those of libraries
    )
    tops -= {path.stem for path in neighbours}
    declared = names_of([*PROJECT["dependencies"], *GROUPS["dev"]])
    found = ([n.lower().replace("-", "_") for n in DISTRIBUTIONS.get(top, [top])] for top in tops)
    return {next(filter(declared.__contains__, names), names[0]) for names in found}


def test_the_scan_sees_imports_inside_functions() -> None:
    source = "import os\nimport numpy.linalg\ndef f():\n    from torch import nn\n"
    assert third_party(source) == {"numpy", "torch"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("folder", "also"),
    [
        ("sparsitywatch", ["sparsitywatch[fast,hub,pandas,plots,torchmetrics]"]),
        ("integrations", ["sparsitywatch[huggingface,lightning,pytest,torchmetrics]"]),
        ("examples", GROUPS["paper"]),
        ("benchmarks", GROUPS["dev"]),
        ("tests", GROUPS["dev"]),
    ],
)
def test_what_is_imported_is_declared(folder: str, also: list[str | dict[str, str]]) -> None:
    assert files_in(folder)
    assert imported(folder) <= names_of([*PROJECT["dependencies"], *also])


@pytest.mark.slow
def test_what_is_declared_is_imported() -> None:
    assert names_of(PROJECT["dependencies"]) <= imported("sparsitywatch")
    assert names_of(["sparsitywatch[fast]"]) <= imported("sparsitywatch")
    # the Trainer of transformers cannot run without accelerate
    assert names_of(EXTRAS["huggingface"]) - {"accelerate"} <= imported("integrations")
    assert names_of(EXTRAS["lightning"]) <= imported("integrations")
    assert names_of(EXTRAS["pytest"]) <= imported("integrations")
    assert names_of(GROUPS["demo"]) <= imported("examples")


@pytest.mark.slow
def test_a_public_name_loads_what_it_needs_and_no_more() -> None:
    loaded = modules_after("import sparsitywatch as sw; sw.load, sw.sinks, sw.errors, dir(sw)")
    assert "sparsitywatch.page.render" in loaded
    assert loaded.isdisjoint({"torch", "tensorboard"})
    assert "torch" in modules_after("import sparsitywatch as sw; sw.patterns.Wanda()")


def modules_after(code: str) -> set[str]:
    """Names of all loaded modules after running ``code`` in a fresh interpreter."""
    probe = f"{code}\nimport json, sys\nprint(json.dumps(sorted(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", probe], check=True, capture_output=True, text=True, cwd=ROOT
    )
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.slow
def test_rooms_without_torch() -> None:
    """All in one process: what none of them loads together, none loads alone."""
    rooms = (
        "analysis", "cli", "errors", "page.server", "page.tab", "pipeline.rundir", "plots",
        "records", "sinks.jsonl",
    )  # fmt: skip
    loaded = modules_after("\n".join(f"import sparsitywatch.{room}" for room in rooms))
    assert {f"sparsitywatch.{room}" for room in rooms} <= loaded
    assert "torch" not in loaded


@pytest.mark.slow
def test_optional_packages_wait_until_they_are_needed() -> None:
    loaded = modules_after("import sparsitywatch as sw; sw.watch; sw.Proxy; sw.Watcher")
    assert "sparsitywatch.live.watcher" in loaded
    assert loaded.isdisjoint({"accelerate", "lightning", "numba", "transformers"})


def test_modules_import_each_other_in_no_circle() -> None:
    # those under TYPE_CHECKING and in functions count, too
    paths = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for path in (ROOT / "sparsitywatch").rglob("*.py")
        if "integrations" not in path.parts
    }
    graph: dict[str, set[str]] = {name: set() for name in paths}
    for name, path in paths.items():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module:
                inner = {f"{node.module}.{alias.name}" for alias in node.names} & paths.keys()
                graph[name] |= (inner or {node.module} & paths.keys()) - {name}
    assert len(graph) > 100
    assert any(graph.values())
    graphlib.TopologicalSorter(graph).prepare()  # a CycleError names one
