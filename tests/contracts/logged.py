"""What a log says of each snapshot, as plain objects of JSON; read without the package."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest


def records(directory: Path) -> list[dict[str, Any]]:
    """The lines of ``records.jsonl``, with the layers that they point to in their place."""
    found = [json.loads(line) for line in (directory / "records.jsonl").read_text().splitlines()]
    for record in found:
        record["layers"] = _layers(directory / "layers.npys", record["layers"])
    return found


def _layers(path: Path, places: dict[str, list[int]] | None) -> list[dict[str, Any]]:
    if places is None:
        return []
    with path.open("rb") as file:
        file.seek(places["names"][0])
        names = json.loads(np.load(file).tobytes())
        file.seek(places["numbers"][0])
        numbers = np.load(file)
    return [
        {
            "name": name,
            "num_weights": int(numbers["num_weights"][i]),
            "rms": _or_null(numbers["rms"][i]),
            "near_zero": {
                rule: _or_null(fractions[i])
                for rule, fractions in zip(names["rules"], numbers["near_zero"], strict=True)
            },
            "removed": [_or_null(level[i]) for level in numbers["removed"]],
            "dormant": _or_null(numbers["dormant"][i]),
        }
        for i, name in enumerate(names["tensors"])
    ]


def _or_null(number: float) -> float | None:
    return None if math.isnan(number) else float(number)


#: What ranks add up in parts, so that its last digits may differ: sizes of gradients, and updates
#: beside the weights. In JSON, in a text of it, or at a path.
_IN_PARTS = re.compile(
    r"((?:norm|change|gradient|gradient_change|update_to_weight)(?=\\*\")|/gradients/\d+/[\w.]+)"
    r'(\\*"?: ?)([-+.e0-9]+)'
)


def assert_same(found: Any, expected: Any, rel: float = 1e-6, **of: float) -> None:
    """What ranks have told is what one process has; in parts to ``rel``, or that ``of`` a name."""
    ours, theirs = json.dumps(found), json.dumps(expected)
    assert _IN_PARTS.sub(r"\1\2", ours) == _IN_PARTS.sub(r"\1\2", theirs)
    pairs = zip(_IN_PARTS.findall(ours), _IN_PARTS.findall(theirs), strict=True)
    for (name, _, one), (_, _, other) in pairs:
        assert float(one) == pytest.approx(float(other), rel=of.get(name, rel)), name
