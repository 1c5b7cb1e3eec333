"""What a claim of docs/reports/paper.md rests on, kept as small files that say where they are from.

``tests/contracts/claims.py`` reads them back and computes the claims anew.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

import sparsitywatch as sw

#: Where those of the repository lie, a folder for each experiment.
FOLDER = Path(__file__).parent / "kept"
MAX_BYTES = 30_000
#: What is kept of an event of emergence.
TURN = ("series", "direction", "kind", "onset_step", "onset_low", "onset_high", "baseline", "value")


def keep(path: Path, data: Mapping[str, Any]) -> None:
    """Write numbers, texts, lists and dicts of them, with commit and version of the detector."""
    git = ["git", "-C", str(FOLDER.parent), "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()  # noqa: S603
    told = {"commit": commit or "unknown", "detector": version_of_detector(), **data}
    content = content_of(told)
    if len(content) > MAX_BYTES:
        raise SystemExit(f"Expected at most {MAX_BYTES:,} bytes for {path}, got {len(content):,}.")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def content_of(data: Mapping[str, Any]) -> bytes:
    """The bytes of a file."""
    return gzip.compress(json.dumps(data).encode(), mtime=0)


def counted(run: sw.Run, parts: int | None = None) -> dict[str, Any]:
    """The counts below every threshold, and the turns; counts in so many parts of all weights."""
    found, last = run.emergence(), run.records[-1]
    parts = last.scope.num_weights if parts is None else parts
    return {
        "date": str(np.datetime64(int(last.wall_time), "s")),
        "num_weights": last.scope.num_weights,
        "parts": parts,
        "steps": found.steps.tolist(),
        "thresholds": found.thresholds,
        "count_changes": np.diff(np.rint(found.shares * parts).astype(int), prepend=0).tolist(),
        "turns": [{name: getattr(turn, name) for name in TURN} for turn in found.turns],
    }


def kept(folder: Path) -> dict[str, dict[str, Any]]:
    """What was kept in a folder, by the names of its files."""
    files = {file.name.removesuffix(".json.gz"): file for file in sorted(folder.glob("*.json.gz"))}
    return {name: json.loads(gzip.decompress(file.read_bytes())) for name, file in files.items()}


def version_of_detector() -> str:
    """Twelve digits of the hash of its sources."""
    analysis = Path(sw.__file__).parent / "analysis"
    files = sorted([*(analysis / "detect").glob("*.py"), analysis / "emergence.py"])
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:12]
