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

import sparsitywatch

#: Where those of the repository lie, a folder for each experiment.
FOLDER = Path(__file__).parent / "kept"
MAX_BYTES = 30_000


def keep(path: Path, data: Mapping[str, Any]) -> None:
    """Write numbers, texts, lists and dicts of them, with commit and version of the detector."""
    git = ["git", "-C", str(FOLDER.parent), "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()  # noqa: S603
    told = {"commit": commit or "unknown", "detector": version_of_detector(), **data}
    content = gzip.compress(json.dumps(told).encode(), mtime=0)
    if len(content) > MAX_BYTES:
        raise SystemExit(f"Expected at most {MAX_BYTES:,} bytes for {path}, got {len(content):,}.")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def kept(folder: Path) -> dict[str, dict[str, Any]]:
    """What was kept in a folder, by the names of its files."""
    files = {file.name.removesuffix(".json.gz"): file for file in sorted(folder.glob("*.json.gz"))}
    return {name: json.loads(gzip.decompress(file.read_bytes())) for name, file in files.items()}


def version_of_detector() -> str:
    """Twelve digits of the hash of its sources."""
    analysis = Path(sparsitywatch.__file__).parent / "analysis"
    files = sorted([*(analysis / "detect").glob("*.py"), analysis / "emergence.py"])
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:12]
