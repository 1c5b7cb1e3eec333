"""The built wheel, installed alone: what people get who never see the repository."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]
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
    """A copy of what a wheel is made of, links kept, without anything built before."""
    target.mkdir()
    for name in ("LICENSE", "README.md", "pyproject.toml"):
        shutil.copy(ROOT / name, target)
    ignore = shutil.ignore_patterns("__pycache__")
    for name in ("integrations", "sparsitywatch"):
        shutil.copytree(ROOT / name, target / name, symlinks=True, ignore=ignore)
    return target


def build_wheel(sources: Path) -> Path:
    backend = "from setuptools.build_meta import build_wheel; build_wheel('dist')"
    run(sys.executable, "-c", backend, cwd=sources)
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
    assert (ROOT / LINK).readlink() == Path("..", "integrations")


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


@pytest.mark.slow
def test_wheel_without_links_is_the_same(wheel: Path, tmp_path: Path) -> None:
    sources = copy_sources(tmp_path / "sources")
    (sources / LINK).unlink()
    (sources / LINK).write_text("../integrations")  # what git writes where it cannot link
    with zipfile.ZipFile(wheel) as one, zipfile.ZipFile(build_wheel(sources)) as other:
        assert sorted(one.namelist()) == sorted(other.namelist())


@pytest.mark.slow
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
