"""The built wheel, installed alone: what people get who never see the repository."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest
from contracts.families import whole

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]
VENDORED = ROOT / "sparsitywatch" / "page" / "web" / "vendor" / "uPlot.iife.min.js"
LINK = Path("sparsitywatch", "integrations")


def run(*command: str | Path, cwd: Path, expect: int = 0) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, env=environment, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == expect, f"{command}\n{done.stdout}\n{done.stderr}"
    return done


def copy_sources(target: Path) -> Path:
    """A copy of what Dockerfile makes a wheel of, links kept, without anything built before."""
    target.mkdir()
    ignore = shutil.ignore_patterns("__pycache__")
    for line in re.findall(r"^COPY (.+) \S+$", (ROOT / "Dockerfile").read_text(), re.M):
        for name in line.split():
            if (ROOT / name).is_dir():
                shutil.copytree(ROOT / name, target / name, symlinks=True, ignore=ignore)
            else:
                shutil.copy(ROOT / name, target)
    return target


def build_wheel(sources: Path) -> Path:
    backend = "from setuptools.build_meta import build_wheel; build_wheel('dist')"
    done = run(sys.executable, "-c", backend, cwd=sources)
    said = [line for line in (done.stdout + done.stderr).splitlines() if "arning" in line]
    # it is not for the package to say whether Python compiles what it imports
    assert [line for line in said if "byte-compiling" not in line] == []
    (wheel,) = (sources / "dist").glob("*.whl")
    return wheel


def package_files() -> set[str]:
    """Every Python file of the package under the name that it has when installed."""
    own = {
        path.relative_to(ROOT).as_posix()
        for path in ROOT.glob("sparsitywatch/**/*.py")
        if ROOT / LINK not in path.parents
    }
    adapters = {
        f"sparsitywatch/{p.relative_to(ROOT).as_posix()}" for p in ROOT.glob("integrations/**/*.py")
    }
    return own | adapters


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_wheel(copy_sources(tmp_path_factory.mktemp("wheel") / "sources"))


@pytest.fixture(scope="module")
def clean_python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Python of an environment with the wheel in it, which sees torch and the like.

    They are seen through a path file, not installed once more. Path files in there are not
    followed, so that an editable install of the checkout stays unseen.
    """
    home = tmp_path_factory.mktemp("clean") / "env"
    venv.create(home, with_pip=False)
    python = home / "bin" / "python"
    run(
        *(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps"),
        *("--no-index", "--disable-pip-version-check", wheel),
        cwd=home,
    )
    (site,) = home.glob("lib/python*/site-packages")
    paths = sysconfig.get_paths()
    (site / "dependencies.pth").write_text(f"{paths['purelib']}\n{paths['platlib']}\n")
    return python


def test_packages_are_listed() -> None:
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    folders = {Path(name).parent.as_posix().replace("/", ".") for name in package_files()}
    assert listed == sorted(folders)


def test_the_link_is_a_link() -> None:
    if (ROOT / ".git").exists():
        assert (ROOT / LINK).readlink() == Path("..", "integrations")
    else:  # in a source distribution
        files = sorted(path.name for path in (ROOT / "integrations").glob("*.py"))
        assert sorted(path.name for path in (ROOT / LINK).glob("*.py")) == files


def data_files() -> set[str]:
    """What is installed and is no Python."""
    web = (path for path in ROOT.glob("sparsitywatch/page/web/**/*") if path.is_file())
    return {"sparsitywatch/__init__.pyi", "sparsitywatch/py.typed"} | {
        p.relative_to(ROOT).as_posix() for p in web
    }


@pytest.mark.slow
def test_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    info = {name for name in names if name.startswith("sparsitywatch-")}
    assert names - info == package_files() | data_files()
    assert any(name.endswith("licenses/LICENSE") for name in info)


#: Beside the rooms; tests read most of them.
ALONE = {
    ".ci/run", ".gitignore", ".pre-commit-config.yaml", "CHANGELOG.md", "CITATION.cff",
    "CONTRIBUTING.md", "Dockerfile", "LICENSE", "MANIFEST.in", "Makefile", "README.md",
    "SECURITY.md", "mkdocs.yml", "pyproject.toml", "setup.py",
}  # fmt: skip


def repository_files(root: Path) -> set[str]:
    """What is there of ``ALONE``, and in every room; what the link leads to counts once."""
    rooms = ("benchmarks", "docs", "examples", "integrations", "sparsitywatch", "tests")
    files = {
        path.relative_to(root).as_posix()
        for room in rooms
        for path in (root / room).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    alone = {name for name in ALONE if (root / name).is_file()}
    return {name for name in files if not name.startswith(LINK.as_posix())} | alone


@pytest.mark.slow
def test_the_source_distribution_has_everything_and_its_tests_run(tmp_path: Path) -> None:
    sources = tmp_path / "sources"
    ignore = shutil.ignore_patterns(
        "__pycache__", ".git", ".venv", ".*_cache", ".hypothesis", "build", "dist", "runs",
        "*.egg-info",
    )  # fmt: skip
    shutil.copytree(ROOT, sources, symlinks=True, ignore=ignore)
    backend = "from setuptools.build_meta import build_sdist; build_sdist('dist')"
    run(sys.executable, "-c", backend, cwd=sources)
    (archive,) = (sources / "dist").glob("*.tar.gz")
    shutil.unpack_archive(archive, tmp_path, filter="data")
    unpacked = tmp_path / archive.name.removesuffix(".tar.gz")
    shutil.rmtree(sources / "dist")
    assert repository_files(unpacked) == repository_files(sources)
    assert repository_files(unpacked) >= ALONE
    done = run(
        *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"),
        *("tests/records/test_alarms_page.py", "tests/records/test_curve.py"),
        f"{Path(__file__).relative_to(ROOT)}::test_the_link_is_a_link",
        cwd=unpacked,
    )
    assert " passed" in done.stdout
    assert "skipped" not in done.stdout
    with zipfile.ZipFile(build_wheel(unpacked)) as wheel:
        assert package_files() | data_files() <= set(wheel.namelist())


@pytest.mark.slow
def test_wheel_without_links_is_the_same(wheel: Path, tmp_path: Path) -> None:
    sources = copy_sources(tmp_path / "sources")
    if not (sources / LINK).is_symlink():
        pytest.skip("a source distribution has no links")
    (sources / LINK).unlink()
    (sources / LINK).write_text("../integrations")  # what git writes where it cannot link
    with zipfile.ZipFile(wheel) as one, zipfile.ZipFile(build_wheel(sources)) as other:
        assert sorted(one.namelist()) == sorted(other.namelist())


def test_the_citation_is_of_this_version() -> None:
    yaml = pytest.importorskip("yaml")  # of the group docs
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert {"cff-version", "message", "title", "type"} <= cited.keys()
    assert [cited[key] for key in ("version", "license", "authors")] == [
        project[key] for key in ("version", "license", "authors")
    ]
    assert cited["references"][0]["url"] in (ROOT / "README.md").read_text()


@pytest.mark.slow
def test_an_index_shows_readme_without_the_files_beside_it(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith("/METADATA"))
        shown = archive.read(name).decode().partition("\n\n")[2]
    readme = (ROOT / "README.md").read_text()
    links = re.findall(r"\]\(([^)\s]+)\)", readme)
    kept = [target for target in links if target.startswith(("https://", "#"))]
    assert re.findall(r"\]\(([^)\s]+)\)", shown) == kept
    assert kept != links
    plain = re.sub(r"!\[.*\]\(.*\)|\]\(.*?\)|\[", "", readme)
    assert re.sub(r"\]\(.*?\)|\[", "", shown).split() == plain.split()


def test_addresses_are_absolute_as_soon_as_the_repository_has_one() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    source = project["urls"].get("Source")
    targets = re.findall(r"\]\(([^)\s]+)\)", (ROOT / "README.md").read_text())
    beside = [target for target in targets if not target.startswith(("https://", "#"))]
    if source:
        assert beside == []
    assert all((ROOT / target.partition("#")[0]).is_file() for target in beside)
    assert all(address.startswith("https://") for address in project["urls"].values())


def test_the_parts_are_what_the_package_needs_and_ships() -> None:
    done = run(sys.executable, ".ci/parts.py", cwd=ROOT)
    told = json.loads(done.stdout)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = {re.match(r"[\w-]+", one)[0].replace("_", "-") for one in project["dependencies"]}
    names = {part["name"]: part for part in told["components"]}
    assert names.keys() >= needed | {"uplot", "sympy"}  # torch needs that
    assert "pytest" not in names
    assert f"(v{names['uplot']['version']})" in VENDORED.read_text(encoding="utf-8")
    assert told["metadata"]["component"]["version"] == project["version"]
    assert all(part["licenses"][0]["license"]["name"] != "not said" for part in names.values())


@whole
def test_wheel_imports_alone(clean_python: Path, tmp_path: Path) -> None:
    probe = """
import importlib, json, pkgutil, sparsitywatch as sw
for name in sw.__all__:
    getattr(sw, name)
modules = [m.name for m in pkgutil.walk_packages(sw.__path__, "sparsitywatch.")]
files = [importlib.import_module(name).__file__ for name in modules]
print(json.dumps([sw.__version__, modules, files]))
"""
    done = run(clean_python, "-I", "-c", probe, cwd=tmp_path)
    version, modules, files = json.loads(done.stdout.splitlines()[-1])
    assert version == tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert {"sparsitywatch.integrations.huggingface", "sparsitywatch.live.watcher"} <= set(modules)
    home = clean_python.parents[1]
    assert all(home in Path(file).parents for file in files)


@pytest.mark.slow
def test_integrations_are_not_importable_by_their_folder(
    clean_python: Path, tmp_path: Path
) -> None:
    done = run(clean_python, "-I", "-c", "import integrations", cwd=tmp_path, expect=1)
    assert "ModuleNotFoundError" in done.stderr
    # from the top of a checkout it is there, and refused
    done = run(clean_python, "-c", "import integrations", cwd=ROOT, expect=1)
    assert "Expected this package to be imported as `sparsitywatch.integrations`" in done.stderr


@pytest.mark.slow
def test_console_script(clean_python: Path, tmp_path: Path) -> None:
    script = clean_python.parent / "sparsitywatch"
    assert run(script, "--version", cwd=tmp_path).stdout.startswith("sparsitywatch ")
    done = run(script, "summary", "nowhere", cwd=tmp_path, expect=2)
    assert "nowhere" in done.stderr
