"""Every argument of the pretraining example, with the set-up of the demo as default."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch

__all__ = ["identity", "parser"]

#: Arguments that change nothing about the training or the records of its watch.
_IMMATERIAL = frozenset({"checkpoint_every", "fresh", "logdir", "max_overhead", "quiet", "resume"})


def parser() -> argparse.ArgumentParser:
    """The parser; its defaults are the small BERT of the demo."""
    out = argparse.ArgumentParser(
        description="Pretrain a BERT from scratch under watch.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    data = out.add_argument_group("text")
    data.add_argument("--text", help="file, folder or fsspec URL (Python's documentation)")
    data.add_argument("--fraction", type=float, default=1.0, help="share of the text to train on")
    data.add_argument("--vocab", type=_count, default=0, help="subword tokens; 0 for characters")
    data.add_argument("--sequence", type=_positive, default=32, help="length in tokens")
    data.add_argument("--held-out", type=_positive, default=192, help="held-out sequences")
    model = out.add_argument_group("model")
    model.add_argument("--layers", type=_positive, default=2)
    model.add_argument("--hidden", type=_positive, default=64)
    model.add_argument("--heads", type=_positive, default=4)
    model.add_argument("--ffn", type=_positive, default=256, help="feed-forward width")
    model.add_argument("--activation", choices=("relu", "gelu", "gelu_new", "silu"), default="relu")
    model.add_argument("--dropout", type=float, default=0.0)
    training = out.add_argument_group("training")
    training.add_argument("--steps", type=_positive, default=2000)
    training.add_argument("--batch", type=_positive, default=64, help="sequences per step")
    training.add_argument("--lr", type=float, default=3e-3, help="peak learning rate")
    training.add_argument("--betas", type=float, nargs=2, default=(0.9, 0.98), help="of AdamW")
    training.add_argument("--decay", type=float, default=1.0, help="weight decay, matrices only")
    training.add_argument("--clip", type=float, default=1.0, help="largest norm of the gradient")
    training.add_argument(
        "--schedule", choices=("constant", "linear", "cosine", "wsd"), default="constant"
    )
    training.add_argument("--warmup", type=_count, default=100, help="steps of warm-up")
    training.add_argument("--seed", type=int, default=0)
    training.add_argument("--device", type=_device, default="cpu")
    training.add_argument("--threads", type=_positive, default=1, help="torch threads")
    run = out.add_argument_group("watch and run")
    run.add_argument("--every", type=_positive, default=25, help="steps between two looks")
    run.add_argument(
        "--max-overhead",
        type=_share,
        metavar="SHARE",
        help="largest share of the wall time that the watch may take (no limit)",
    )
    run.add_argument("--logdir", type=_folder, default=Path("runs/demo"))
    run.add_argument("--no-watch", action="store_true", help="only train")
    run.add_argument(
        "--checkpoint-every", type=_positive, default=4, metavar="LOOKS", help="in looks"
    )
    again = run.add_mutually_exclusive_group()
    again.add_argument("--fresh", action="store_true", help="move an earlier run aside and start")
    again.add_argument("--resume", action="store_true", help="go on from a checkpoint or fail")
    run.add_argument("--quiet", action="store_true", help="no progress bar")
    return out


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, got {value}")
    return value


def _count(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 0, got {value}")
    return value


def _share(text: str) -> float:
    value = float(text)
    if not 0.0 < value <= 1.0:
        raise argparse.ArgumentTypeError(f"expected a share in (0, 1], got {value}")
    return value


def _device(text: str) -> str:
    try:
        torch.zeros(1, device=text)
    except (RuntimeError, AssertionError) as error:
        raise argparse.ArgumentTypeError(f"{text!r} cannot be used here: {error}") from error
    return text


def _folder(text: str) -> Path:
    if "://" in text:
        raise argparse.ArgumentTypeError(f"expected a local folder, got {text!r}")
    return Path(text)


def identity(args: argparse.Namespace) -> dict[str, Any]:
    """The arguments that must be equal for a checkpoint to be continued."""
    out = {name: value for name, value in vars(args).items() if name not in _IMMATERIAL}
    return {**out, "betas": list(args.betas)}
