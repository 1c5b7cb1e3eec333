"""DeepSpeed's folders: what one file holds as a whole is read, partitions are told."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import closing

from sparsitywatch.checkpoints.base import TensorTable, as_step, reading
from sparsitywatch.checkpoints.storage import Folder
from sparsitywatch.checkpoints.torch_file import read_torch, step_in
from sparsitywatch.errors import CheckpointError

__all__ = ["is_deepspeed", "open_deepspeed"]

_STATES = "_model_states.pt"
#: All weights of a model, where it is neither sharded (ZeRO-3) nor split between ranks.
_WHOLE = "mp_rank_00_model_states.pt"
_LATEST = "latest"
_MAX_TAG_BYTES = 256


def is_deepspeed(names: Collection[str]) -> bool:
    """Whether a folder with these files and folders was written by DeepSpeed."""
    if any(name.endswith((_STATES, "_optim_states.pt")) for name in names):
        return True
    tags = [name for name in names if name.startswith("global_step")]
    return bool(tags) and (_LATEST in names or "zero_to_fp32.py" in names)


def open_deepspeed(folder: Folder, names: Collection[str]) -> TensorTable:
    """A folder of DeepSpeed, or the one inside that its ``latest`` names, as a checkpoint.

    The weights are in the precision that the training computes in; what ZeRO keeps in single
    precision beside them is in partitions.

    Raises:
        CheckpointError: the weights are in partitions.
    """
    states = [name for name in names if name.endswith(_STATES)]
    if not states and _LATEST in names:
        with closing(folder.open(_LATEST)) as latest:
            tag = latest.read(0, min(latest.size, _MAX_TAG_BYTES)).decode(errors="replace").strip()
        if tag in names:
            inside = folder.sub(tag)
            return open_deepspeed(inside, [name for name in inside.names() if name != _LATEST])
    if states != [_WHOLE]:
        raise _in_partitions(folder.url)
    source = folder.open(_WHOLE)
    with reading(source.url):
        stored, tree = read_torch(source)
    is_split = isinstance(tree, dict) and (as_step(tree.get("mp_world_size")) or 1) > 1
    if is_split:
        raise _in_partitions(folder.url)
    return TensorTable(folder.url, "deepspeed", stored, [source], step_in(tree))


def _in_partitions(url: str) -> CheckpointError:
    """What to do about such a folder."""
    return CheckpointError(
        f"Cannot read {url}: expected whole tensors, got the partitions of DeepSpeed ZeRO. Make "
        "them whole: run `python zero_to_fp32.py . consolidated --safe_serialization` in that "
        "folder and read `consolidated`, or train with stage3_gather_16bit_weights_on_model_save."
    )
