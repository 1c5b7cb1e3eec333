"""DeepSpeed's folders: known by their names, and answered with what to do."""

from __future__ import annotations

from collections.abc import Collection

from sparsitywatch.errors import CheckpointError

__all__ = ["is_deepspeed", "not_supported"]


def is_deepspeed(names: Collection[str]) -> bool:
    """Whether a folder with these files and folders was written by DeepSpeed."""
    if any(name.endswith(("_model_states.pt", "_optim_states.pt")) for name in names):
        return True
    tags = [name for name in names if name.startswith("global_step")]
    return bool(tags) and ("latest" in names or "zero_to_fp32.py" in names)


def not_supported(url: str) -> CheckpointError:
    """What to do about such a folder."""
    return CheckpointError(
        f"Cannot read {url}: expected whole tensors, got the partitions of DeepSpeed ZeRO. Make "
        "them whole: run `python zero_to_fp32.py . consolidated --safe_serialization` in that "
        "folder and read `consolidated`, or train with stage3_gather_16bit_weights_on_model_save."
    )
