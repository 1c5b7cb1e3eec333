"""The parts of an installation, as CycloneDX: the package, what it ships, and all it needs."""

from __future__ import annotations

import json
import re
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

VENDOR = Path(__file__).resolve().parents[1] / "sparsitywatch" / "page" / "web" / "vendor"


def installed(name: str) -> dict[str, Distribution]:
    """A distribution and all that it needs, by plain name; what is not installed is left out."""
    found: dict[str, Distribution] = {}
    waiting = [name]
    while waiting:
        name = re.sub(r"[-_.]+", "-", re.match(r"[\w.-]+", waiting.pop())[0]).lower()
        if name in found:
            continue
        try:
            found[name] = distribution(name)
        except PackageNotFoundError:  # of another system, or another Python
            continue
        waiting += [one for one in found[name].requires or () if "extra ==" not in one]
    return found


def part(name: str, one: Distribution) -> dict[str, Any]:
    """One of them, as CycloneDX has it."""
    said = one.metadata
    known = [kind for kind in said.get_all("Classifier") or () if kind.startswith("License ::")]
    words = said["License-Expression"] or "; ".join(kind.split(" :: ")[-1] for kind in known)
    licence = words or (said["License"] or "not said").split("\n")[0]
    return {
        "type": "library", "name": name, "version": one.version,
        "purl": f"pkg:pypi/{name}@{one.version}", "licenses": [{"license": {"name": licence}}],
    }  # fmt: skip


def shipped() -> dict[str, Any]:
    """The one part of others that lies in the wheel."""
    head = (VENDOR / "uPlot.iife.min.js").read_text(encoding="utf-8")
    version = re.search(r"\(v([\d.]+)\)", head)[1]
    return {
        "type": "library", "name": "uplot", "version": version,
        "purl": f"pkg:npm/uplot@{version}", "licenses": [{"license": {"name": "MIT"}}],
    }  # fmt: skip


def parts() -> dict[str, Any]:
    """The whole document."""
    own, *others = (part(*one) for one in installed("sparsitywatch").items())
    others = [shipped(), *sorted(others, key=lambda one: one["name"])]
    return {
        "bomFormat": "CycloneDX", "specVersion": "1.6", "version": 1,
        "metadata": {"component": own}, "components": others,
    }  # fmt: skip


if __name__ == "__main__":
    print(json.dumps(parts(), indent=2))
