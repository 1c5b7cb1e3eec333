"""Weights spread over several files, with an index in JSON that says which is where."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from sparsitywatch.checkpoints.base import StoredTensor, reading, refused
from sparsitywatch.checkpoints.json_file import read_json
from sparsitywatch.checkpoints.storage import Folder, Source
from sparsitywatch.errors import IncompleteCheckpointError

__all__ = ["read_sharded"]


def read_sharded(
    folder: Folder, index: str, read: Callable[[Source], dict[str, StoredTensor]]
) -> tuple[dict[str, StoredTensor], list[Source]]:
    """The tensors of all shards by name, in the order of the index, and the open files.

    Args:
        folder: where the shards and their index lie.
        index: the name of the index, such as "model.safetensors.index.json".
        read: reads one shard.

    Raises:
        IncompleteCheckpointError: a shard is missing, or cut off.
        CheckpointError: index and shards contradict each other.
    """
    content, _ = read_json(folder, index)
    places = content.get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(p, str) for p in places.values()):
        raise refused(f"{folder.url}/{index}", "expected a weight_map from names to files")
    sources: list[Source] = []
    found: dict[str, StoredTensor] = {}
    for file in dict.fromkeys(places.values()):
        sources.append(folder.open(file))
        with reading(sources[-1].url):
            shard = read(sources[-1])
        found |= {name: shard[name] for name in shard if places.get(name) == file}
    _check_all_there(folder, index, places, found)
    return {name: found[name] for name in places}, sources


def _check_all_there(
    folder: Folder, index: str, places: Mapping[str, str], found: Mapping[str, StoredTensor]
) -> None:
    missing = next((name for name in places if name not in found), None)
    if missing is not None:
        raise IncompleteCheckpointError(
            f"Cannot read {folder.url}/{places[missing][:120]}, tensor {missing[:120]!r}: {index} "
            "places it there, but the file has none of this name. It may be of another save."
        )
