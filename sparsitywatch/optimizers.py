"""What can be asked of an optimizer, whatever wraps it."""

from __future__ import annotations

import torch

from sparsitywatch.errors import ConfigurationError

__all__ = ["step_was_skipped", "steps_done", "unwrap_optimizer"]


def unwrap_optimizer(optimizer: object) -> torch.optim.Optimizer:
    """The optimizer that takes the steps, inside wrappers such as Accelerate's.

    Raises:
        ConfigurationError: there is none.
    """
    inner = optimizer
    while not (
        isinstance(inner, torch.optim.Optimizer) and "_optimizer_step_post_hooks" in vars(inner)
    ):
        inner = getattr(inner, "optimizer", None)
        if inner is None:
            raise ConfigurationError(
                "Expected `optimizer` to be a torch.optim.Optimizer or a wrapper that holds one as "
                f"`.optimizer`, got {type(optimizer).__name__}. Pass optimizer=None and call "
                "watcher.step() after each step instead."
            )
    return inner


def step_was_skipped(optimizer: torch.optim.Optimizer) -> bool:
    """Whether a gradient scaler skipped this update inside a fused optimizer.

    Other optimizers are not called at all for a skipped step. The flag exists only while
    ``GradScaler.step`` runs, so it costs nothing elsewhere.
    """
    found_inf = getattr(optimizer, "found_inf", None)
    return found_inf is not None and float(found_inf) > 0.0


def steps_done(optimizer: torch.optim.Optimizer) -> int:
    """How many steps the optimizer itself has counted; 0 if it does not count.

    The Adam family counts per parameter and keeps the count in its state, so that it is
    there again after ``load_state_dict``.
    """
    counts = [
        float(state["step"]) for state in list(optimizer.state.values())[:1] if "step" in state
    ]
    return int(max(counts, default=0.0))
