"""Whether what pyproject.toml asks for goes together: the lowest and the highest of everything.

Resolves the package with all extras for each Python, by uv, from wheels alone; nothing is
installed. On the oldest Python the lowest ones are the floors as they are declared.
"""

from __future__ import annotations

import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PROJECT = Path(__file__).resolve().parents[1] / "pyproject.toml"
CONFIG = tomllib.loads(PROJECT.read_text(encoding="utf-8"))["project"]


def floors() -> dict[str, str]:
    """The lowest version of each requirement, by its name."""
    extras = CONFIG["optional-dependencies"].values()
    found = {}
    for requirement in [*CONFIG["dependencies"], *(one for extra in extras for one in extra)]:
        name, floor = re.fullmatch(r"([\w-]+)(?:\[.*\])?>=([\d.]+)", requirement).groups()
        found[_plain(name)] = _without_zeros(floor)
    return found


def resolved(python: str, resolution: str) -> dict[str, str]:
    """The version of each package that uv takes; an error where there are none."""
    command = [
        sys.executable,
        "-m",
        "uv",
        "pip",
        "compile",
        "--quiet",
        "--no-header",
        "--no-annotate",
    ]
    command += ["--only-binary=:all:", "--all-extras", f"--python-version={python}"]
    done = subprocess.run(
        [*command, f"--resolution={resolution}", str(PROJECT)], stdout=subprocess.PIPE, text=True
    )
    if done.returncode:
        raise SystemExit(
            f"Expected what goes together on Python {python}, {resolution}: found none"
        )
    pairs = (line.split(" ;")[0].split("==") for line in done.stdout.splitlines() if "==" in line)
    return {_plain(name): _without_zeros(version) for name, version in pairs}


def _plain(name: str) -> str:
    return name.lower().replace("_", "-")


def _without_zeros(version: str) -> str:
    return re.sub(r"(\.0)+$", "", version)


def main() -> None:
    """Say what was found; ends with an error where something does not go together."""
    pythons = [kind[-4:] for kind in CONFIG["classifiers"] if re.search(r":: 3\.\d+$", kind)]
    cases = [(python, way) for python in pythons for way in ("lowest-direct", "highest")]
    with ThreadPoolExecutor(4) as pool:  # most of it is waiting for the registry
        found = dict(zip(cases, pool.map(lambda case: resolved(*case), cases), strict=True))
    for (python, way), versions in found.items():
        print(f"Python {python}, {way}: {len(versions)} packages, torch {versions['torch']}")
    taken = found[pythons[0], "lowest-direct"]
    wrong = {name: (floor, taken[name]) for name, floor in floors().items() if taken[name] != floor}
    if wrong:
        sys.exit(f"Expected floors that are taken, got (declared, taken): {wrong}")


if __name__ == "__main__":
    main()
