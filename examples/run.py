"""One run of the pretraining example: what it is made of, and how it goes on after a kill."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import checkpoint
import torch
from arguments import identity
from corpus import Corpus, split, text_blocks
from masking import TextSampler
from training import Training, bert
from vocabulary import CharacterVocabulary, SubwordVocabulary, Vocabulary

import sparsitywatch as sw

__all__ = ["Run", "prepare", "take_up"]

#: Folder of the watch in the logdir; it moves its own aside, under the same number.
_WATCHED = "sparsitywatch"


@dataclass
class Run:
    """Everything about one run that its checkpoint has to know.

    ``losses`` are the mean training losses between two looks, ``wall_s`` the time spent in
    the loop so far, over all the processes that continued it.
    """

    args: argparse.Namespace
    vocabulary: Vocabulary
    corpus: Corpus
    training: Training
    losses: list[tuple[int, float]] = field(default_factory=list)
    wall_s: float = 0.0
    watch: dict[str, Any] | None = None

    @property
    def checkpoint(self) -> Path:
        """Where its checkpoint is."""
        return Path(self.args.logdir) / "checkpoint.pt"

    @property
    def picture(self) -> Path:
        """Where its picture will be."""
        return Path(self.args.logdir) / "overview.png"

    def identity(self) -> dict[str, Any]:
        """What must be equal for a checkpoint to be continued: arguments and text."""
        return {**identity(self.args), "text_digest": self.corpus.digest}

    def describe(self) -> str:
        """What is about to be trained on what, in one line."""
        num_parameters = sum(p.numel() for p in self.training.model.parameters())
        return (
            f"A BERT of {num_parameters:,} parameters, {self.vocabulary.size:,} tokens in its "
            f"vocabulary; {len(self.corpus.train):,} tokens to train on, "
            f"{len(self.corpus.held_out):,} x {self.args.sequence} held out."
        )

    def save(self, watcher: sw.Watcher | None, *, finished: bool = False) -> None:
        """Write the checkpoint."""
        state = {
            "identity": self.identity(),
            "finished": finished,
            "training": self.training.state_dict(),
            "vocabulary": self.vocabulary.to_text(),
            "losses": self.losses,
            "wall_s": self.wall_s,
            "watch": watcher.state_dict() if watcher else None,
        }
        checkpoint.save(self.checkpoint, state)

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.training.load_state_dict(state["training"])
        self.losses = [(int(step), float(loss)) for step, loss in state["losses"]]
        self.wall_s = float(state["wall_s"])
        self.watch = state["watch"]


def prepare(args: argparse.Namespace) -> Run:
    """Text, model and optimizer, all at the start.

    Raises:
        ValueError: an argument cannot be used; it is named.
    """
    blocks = list(text_blocks(args.text))
    vocabulary: Vocabulary = (
        SubwordVocabulary(blocks, args.vocab) if args.vocab else CharacterVocabulary(blocks)
    )
    num_special = len(vocabulary.prefix) + len(vocabulary.suffix)
    if args.sequence <= num_special:
        raise ValueError(
            f"Expected `--sequence` longer than its {num_special} special tokens, "
            f"got {args.sequence}."
        )
    tokens = vocabulary.encode(blocks)
    corpus = split(tokens, args.held_out, args.sequence - num_special, args.fraction)
    torch.manual_seed(args.seed)
    model = bert(
        layers=args.layers,
        hidden=args.hidden,
        heads=args.heads,
        ffn=args.ffn,
        activation=args.activation,
        dropout=args.dropout,
        vocabulary_size=vocabulary.size,
        length=args.sequence,
    ).to(args.device)
    sampler = TextSampler(
        corpus.train,
        args.batch,
        args.sequence,
        vocabulary.size,
        torch.Generator().manual_seed(args.seed),
        prefix=vocabulary.prefix,
        suffix=vocabulary.suffix,
    )
    training = Training(
        model.train(),
        sampler,
        lr=args.lr,
        betas=tuple(args.betas),
        decay=args.decay,
        clip=args.clip,
        schedule=args.schedule,
        warmup=args.warmup,
        steps=args.steps,
    )
    return Run(args, vocabulary, corpus, training)


def take_up(run: Run) -> str:
    """Go on from the checkpoint in the logdir, or clear the way for a new run.

    Returns:
        What was done, for people; empty if there was nothing.

    Raises:
        ValueError: the checkpoint is of a run with other arguments, or there is none to
            go on from and ``--resume`` was given.
    """
    args = run.args
    state = None if args.fresh else checkpoint.load(run.checkpoint)
    if state is not None and not state["finished"]:
        differences = checkpoint.differences(state["identity"], run.identity())
        if differences:
            raise ValueError(
                f"{args.logdir} holds an unfinished run with other arguments "
                f"({'; '.join(differences)}). Give the same arguments to go on, another "
                "`--logdir`, or `--fresh` to move it aside and start again."
            )
        run.restore(state)
        return f"Going on from step {run.training.steps_done}, as {run.checkpoint} has it."
    if args.resume:
        what = "a run that is finished" if state else "no checkpoint"
        raise ValueError(f"Expected an unfinished run in `--logdir` {args.logdir}, got {what}.")
    moved = checkpoint.move_aside([run.checkpoint, run.picture], beside=_WATCHED)
    return f"The earlier run is moved aside: {', '.join(map(str, moved))}." if moved else ""
