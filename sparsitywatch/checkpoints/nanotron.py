"""Folders of nanotron: one safetensors file for each tensor, its name is the path."""

from __future__ import annotations

import re
from collections.abc import Collection

from sparsitywatch.checkpoints.base import StoredTensor, TensorTable, as_step, reading, refused
from sparsitywatch.checkpoints.json_file import read_json
from sparsitywatch.checkpoints.safetensors import read_safetensors
from sparsitywatch.checkpoints.storage import Folder, Source
from sparsitywatch.errors import CheckpointError, IncompleteCheckpointError

__all__ = ["is_nanotron", "open_nanotron"]

_METADATA = "checkpoint_metadata.json"
_FILE = re.compile(
    r"model_(?P<attribute>[^/]+?)"
    r"(?:_pp-rank-\d+-of-\d+_tp-rank-\d+-of-(?P<tensor>\d+)(?P<expert>_exp-rank-[\w-]+)?)?"
    r"\.safetensors"
)


def is_nanotron(names: Collection[str]) -> bool:
    """Whether a folder with these files and folders was written by nanotron."""
    return _METADATA in names and "model" in names


def open_nanotron(folder: Folder) -> TensorTable:
    """A folder of nanotron as a checkpoint, of any number of pipeline stages.

    Raises:
        IncompleteCheckpointError: no tensor has been written yet.
        CheckpointError: tensors are split between ranks.
    """
    content, _ = read_json(folder, _METADATA)
    metas = content.get("metas")
    step = as_step(metas.get("last_train_step")) if isinstance(metas, dict) else None
    stored: dict[str, StoredTensor] = {}
    sources: list[Source] = []
    for path in folder.sub("model").all_names():
        *modules, file = path.split("/")
        named = _FILE.fullmatch(file)
        if named is None:
            continue
        if int(named["tensor"] or 1) > 1 or named["expert"]:
            raise CheckpointError(
                f"Cannot read {folder.url}: expected whole tensors, got those of nanotron's tensor "
                "or expert parallelism in parts. Convert them with nanotron's "
                "examples/llama/convert_nanotron_to_hf.py and read the result."
            )
        name = ".".join((*modules, named["attribute"]))
        if name in stored:
            raise refused(folder.url, "two of its files are the same tensor", name)
        sources.append(folder.open(f"model/{path}"))
        with reading(sources[-1].url):
            stored[name] = read_safetensors(sources[-1])["data"]
    if not stored:
        raise IncompleteCheckpointError(
            f"Cannot read {folder.url}/model: expected files of nanotron such as "
            "model_weight.safetensors, found none. They may not be written yet."
        )
    return TensorTable(folder.url, "nanotron", stored, sources, step)
