"""WeightWatcher on the same weights: another tool that needs no data, with other questions.

It is in no extra: with pandas and scikit-learn it takes 140 MB, and transformers imports the
latter wherever it finds it. Licence: Apache-2.0.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import io
import logging
import warnings
from pathlib import Path

import safetensors
import torch
from reporting import timed
from torch import nn

__all__ = ["analysis_s", "is_installed"]


def is_installed() -> bool:
    """Whether there is a WeightWatcher to compare with."""
    return importlib.util.find_spec("weightwatcher") is not None


def analysis_s(path: Path, names: frozenset[str]) -> float:
    """Seconds that ``analyze()`` takes on these matrices of a file, once they are in memory."""
    layers = nn.ModuleDict()
    with safetensors.safe_open(path, "pt") as file:
        for name in sorted(names):
            weight = file.get_tensor(name)
            layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
            layer.weight = nn.Parameter(weight, requires_grad=False)
            layers[name.replace(".", "/")] = layer
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            watcher = importlib.import_module("weightwatcher").WeightWatcher(model=layers)
            with torch.no_grad():
                return timed(watcher.analyze)
    finally:
        logging.disable(logging.NOTSET)
