r"""Pretrain a BERT from scratch under watch, in a plain PyTorch loop.

    python examples/pretrain_bert.py

trains a small model (2 layers, single characters, ReLU, weight decay 1.0) on Python's own
documentation. It takes about two minutes on one CPU core and shows two things. First comes the
*breakthrough*: after a long plateau the model begins to use its encoder. The held-out loss falls,
reliance jumps, essential sparsity falls, and weights go dormant. Then comes the *take-off* of
near-zero weights. It follows the decay clock: weight decay drives it. The control does not show
it:

    python examples/pretrain_bert.py --decay 0.01 --logdir runs/control

This is no proof of Figure 8 of the paper (arXiv:2306.03805): BERT-base uses GELU, and its weight
decay is not stated there.

Every size is an argument. This is BERT-base on BookCorpus, from a folder of text files:

    python examples/pretrain_bert.py --text bookcorpus/ --tokenizer bert-base-uncased \
        --sequence 128 --layers 12 --hidden 768 --heads 12 --ffn 3072 --activation gelu \
        --dropout 0.1 --decay 0.01 --lr 1e-4 --betas 0.9 0.999 --schedule linear \
        --warmup 10000 --steps 50000 --batch 256 --every 1000 --held-out 512 --device cuda \
        --logdir runs/bert-base

A run that was killed goes on when the same command is given again.
"""

from __future__ import annotations

import argparse
import ast
import functools
import gc
import hashlib
import itertools
import math
import sys
import sysconfig
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import torch
from torch.nn import functional as F  # noqa: N812
from transformers import AutoTokenizer, BertConfig, BertForMaskedLM

import sparsitywatch as sw
from sparsitywatch.cli import main as sparsitywatch

IGNORED = -100  # the label of a position that is not to be predicted
NEAR_ZERO = "initial_0.1"  # |w| <= 0.1 x the first root mean square of its tensor
Batch = dict[str, torch.Tensor]


# ---------------- The run under watch


def train(run: Pretraining, watch_state: dict[str, Any] | None) -> None:
    """The loop. Only the checkpoint knows of the watch.

    Args:
        run: at its start, or as its checkpoint has it.
        watch_state: what the checkpoint holds of the watch.
    """
    args, path = run.args, run.args.logdir / "checkpoint.pt"
    with sw.watch(
        run.model,
        run.optimizer,
        proxy=run.proxy(),
        every=args.every,
        logdir=args.logdir,
        max_overhead=args.max_overhead,
        initial_step=run.steps_done,
        on_record=[show],
    ) as watcher:
        if watch_state is not None:
            watcher.load_state_dict(watch_state)
        while run.steps_done < args.steps:
            loss = run.step()
            if run.steps_done % args.every == 0 and not math.isfinite(loss):
                sys.exit(f"The loss is {loss} at step {run.steps_done}: try a smaller `--lr`.")
            if run.steps_done % args.save_every == 0:
                save(path, {**run.state_dict(), "watch": watcher.state_dict()})
        watcher.snapshot()  # the last one, whether or not it is due
        save(path, {**run.state_dict(), "watch": watcher.state_dict()})


def show(record: sw.Record) -> None:
    """One line for each snapshot."""
    estimate, series = record.essential_sparsity, record.series()
    known = "not used yet"
    if estimate and (estimate.informative or estimate.examples_needed):
        known = f"{estimate.value:.2f}" if estimate.informative else "cannot say"
    print(
        f"step {record.step:5}  held-out loss {series.get('value/dense', math.nan):.3f}  "
        f"reliance {record.reliance:.2f}  essential sparsity {known:12}  "
        f"near zero {record.near_zero[NEAR_ZERO]:.3f}  "
        f"dormant {series.get('motion/dormant', math.nan):.3f}  "
        f"decay clock {record.decay_clock:.2f}"
    )


def report(logdir: Path) -> None:
    """What was seen, and where it can be seen again."""
    sparsitywatch(["summary", str(logdir)])
    sparsitywatch(["plot", str(logdir), "--output", str(logdir / "overview.png")])
    sparsitywatch(["report", str(logdir), "--output", str(logdir / "report.html")])
    print(
        f"""
What this shows, and what not. A take-off of near-zero weights follows the decay clock: it is driven
by weight decay. The control is --decay 0.01 --logdir runs/control. Essential sparsity is zero-shot,
without fine-tuning after pruning, so usually lower than the paper's. A small model with strong
decay is no proof of the paper's figure.

    tensorboard --logdir {logdir}   then open http://localhost:6006"""
    )


# ---------------- The training: model, optimizer, steps


class Pretraining:
    """Text, model and optimizer; what a checkpoint holds of them."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.steps_done = args, 0
        texts = read_text(args.text)
        self.vocabulary = subwords(args.tokenizer) if args.tokenizer else characters(texts)
        num_special = len(self.vocabulary.before) + len(self.vocabulary.after)
        self.window = args.sequence - num_special
        if self.window < 1:
            raise ValueError(f"Expected `--sequence` longer than {num_special} special tokens.")
        tokens = self.vocabulary.encode(texts)
        self.text, self.held_out = split(tokens, args.held_out, self.window)
        torch.manual_seed(args.seed)
        self.draw = torch.Generator().manual_seed(args.seed)
        self.model = bert(args, self.vocabulary.size).to(args.device).train()
        matrices = [p for p in self.model.parameters() if p.ndim >= 2]
        others = [p for p in self.model.parameters() if p.ndim < 2]
        groups = [
            {"params": matrices, "weight_decay": args.decay},
            {"params": others, "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=args.lr, betas=tuple(args.betas))

    def proxy(self) -> sw.Proxy:
        """The held-out sequences, masked once and for all."""
        draw = torch.Generator().manual_seed(1_234)
        tokens = surrounded(self.held_out, self.vocabulary)
        masked = mask_tokens(tokens, self.vocabulary, draw)
        parts = zip(*(tensor.split(64) for tensor in masked.values()), strict=True)
        batches = [dict(zip(masked, part, strict=True)) for part in parts]
        return sw.Proxy(batches, held_out_loss, name="held-out masked-LM loss")

    def batch(self) -> Batch:
        """Random windows of the text, masked anew each time."""
        num_starts = len(self.text) - self.window + 1
        starts = torch.randint(0, num_starts, (self.args.batch,), generator=self.draw).numpy()
        windows = self.text[starts[:, None] + np.arange(self.window)]
        return mask_tokens(surrounded(windows, self.vocabulary), self.vocabulary, self.draw)

    def step(self) -> torch.Tensor:
        """One optimizer step, as in any training. Returns the loss."""
        args = self.args
        factor = lr_factor(
            self.steps_done + 1, schedule=args.schedule, warmup=args.warmup, steps=args.steps
        )
        for group in self.optimizer.param_groups:
            group["lr"] = args.lr * factor
        loss = masked_losses(self.model, self.batch()).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.steps_done += 1
        return loss.detach()

    def settings(self) -> dict[str, Any]:
        """What must be the same for a run to go on: arguments and text."""
        text = hashlib.sha256(self.text.tobytes() + self.held_out.tobytes()).hexdigest()
        found = {**vars(self.args), "betas": list(self.args.betas), "text_hash": text[:16]}
        for immaterial in ("fresh", "logdir", "max_overhead", "save_every"):
            del found[immaterial]
        return found

    def state_dict(self) -> dict[str, Any]:
        """Weights, optimizer and every generator, for a checkpoint."""
        rng = {"torch": torch.get_rng_state(), "batches": self.draw.get_state()}
        if self.model.device.type == "cuda":
            rng["cuda"] = torch.cuda.get_rng_state(self.model.device)
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.steps_done,
            "rng": rng,
            "vocabulary": self.vocabulary.name,
            "settings": self.settings(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what ``state_dict`` gave."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.steps_done = state["step"]
        torch.set_rng_state(state["rng"]["torch"])
        self.draw.set_state(state["rng"]["batches"])
        if "cuda" in state["rng"]:
            torch.cuda.set_rng_state(state["rng"]["cuda"], self.model.device)


def bert(args: argparse.Namespace, vocabulary_size: int) -> Any:
    """A BERT with random weights."""
    config = BertConfig(
        vocab_size=vocabulary_size,
        hidden_size=args.hidden,
        num_hidden_layers=args.layers,
        num_attention_heads=args.heads,
        intermediate_size=args.ffn,
        hidden_act=args.activation,
        hidden_dropout_prob=args.dropout,
        attention_probs_dropout_prob=args.dropout,
        max_position_embeddings=args.sequence,
        type_vocab_size=1,  # there are no pairs of sentences
    )
    return BertForMaskedLM(config)


def lr_factor(step: int, *, schedule: str, warmup: int, steps: int) -> float:
    """The share of the peak learning rate at a step, from 1 to ``steps``.

    "wsd" is stable after the warm-up, and falls over the last fifth.
    """
    if step < warmup:
        return step / warmup
    progress = max(0, step - 1 - warmup) / max(1, steps - warmup)
    return {
        "constant": 1.0,
        "linear": 1.0 - progress,
        "cosine": 0.5 * (1.0 + math.cos(math.pi * progress)),
        "wsd": min(1.0, (1.0 - progress) / 0.2),
    }[schedule]


# ---------------- Masked language modelling


def masked_losses(model: Any, batch: Batch) -> torch.Tensor:
    """The loss at each masked position [M]; only these go through the head, which saves time."""
    device = next(model.parameters()).device
    labels = batch["labels"].to(device)
    masked = labels != IGNORED
    hidden = model.bert(batch["input_ids"].to(device)).last_hidden_state[masked]
    return F.cross_entropy(model.cls(hidden), labels[masked], reduction="none")


def held_out_loss(model: Any, batch: Batch) -> torch.Tensor:
    """What the watch evaluates: the loss of each sequence [N], the mean over its masks."""
    losses = masked_losses(model, batch)
    masked = (batch["labels"] != IGNORED).to(losses.device)
    # scattered and summed by row: the same bits each time, also on a GPU
    by_position = losses.new_zeros(masked.shape).masked_scatter(masked, losses)
    return by_position.sum(dim=1) / masked.sum(dim=1)


def mask_tokens(tokens: torch.Tensor, vocabulary: Vocabulary, draw: torch.Generator) -> Batch:
    """Hide 15 % of the tokens [N, L]: 80 % as [MASK], 10 % as another one, 10 % not at all.

    Every sequence gets at least one: it is drawn again until it has one. See Devlin et al. 2019,
    arXiv:1810.04805, appendix A.1.
    """
    ordinary = torch.isin(tokens, vocabulary.ordinary)
    if not ordinary.any(dim=1).all():
        raise ValueError("Expected a known token in each sequence. Use longer ones: `--sequence`.")
    chosen = torch.zeros_like(ordinary)
    while not chosen.any(dim=1).all():
        drawn = (torch.rand(tokens.shape, generator=draw) < 0.15) & ordinary
        chosen = torch.where(chosen.any(dim=1, keepdim=True), chosen, drawn)
    fate = torch.rand(tokens.shape, generator=draw)
    drawn = torch.randint(0, len(vocabulary.ordinary), tokens.shape, generator=draw)
    hidden = torch.where(chosen & (fate < 0.8), vocabulary.mask, tokens)
    others = chosen & (fate >= 0.8) & (fate < 0.9)
    hidden = torch.where(others, vocabulary.ordinary[drawn], hidden)
    return {"input_ids": hidden, "labels": torch.where(chosen, tokens, IGNORED)}


def surrounded(windows: np.ndarray, vocabulary: Vocabulary) -> torch.Tensor:
    """Windows of text [N, W] between the special tokens of a sequence, int64 [N, L]."""
    ends = [
        np.tile(np.array(end), (len(windows), 1)) for end in (vocabulary.before, vocabulary.after)
    ]
    return torch.from_numpy(np.concatenate([ends[0], windows, ends[1]], axis=1).astype(np.int64))


# ---------------- Going on after a kill


def take_up(run: Pretraining, path: Path, *, fresh: bool) -> dict[str, Any] | None:
    """The checkpoint that the run goes on from, if there is one.

    A finished run with other arguments is set aside, folder and all, and so is any with ``fresh``.

    Raises:
        ValueError: a run with other arguments is not finished there.
    """
    if not path.exists():
        return None
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    then, now = state["settings"], run.settings()
    changed = [
        f"--{name.replace('_', '-')} {then.get(name)} then, {now[name]} now"
        for name in now
        if then.get(name) != now[name]
    ]
    if fresh or (changed and state["step"] == then["steps"]):
        folder = path.parent
        names = (folder.with_name(f"{folder.name}-earlier-{n}") for n in itertools.count(1))
        aside = next(name for name in names if not name.exists())
        folder.rename(aside)
        print(f"The earlier run is set aside, in {aside}.")
        return None
    if changed:
        raise ValueError(
            f"{path.parent} holds an unfinished run with other arguments ({'; '.join(changed)}). "
            "Give the same ones to go on, another `--logdir`, or `--fresh` to set it aside."
        )
    run.load_state_dict(state)
    print(f"Going on from step {run.steps_done}.")
    return state


def save(path: Path, state: dict[str, Any]) -> None:
    """A checkpoint that is there whole or not at all."""
    part = path.with_suffix(".part")
    torch.save(state, part)
    part.replace(path)


# ---------------- The text: any other will do


def read_text(source: str | None) -> list[str]:
    """The text of a file, a folder or an fsspec URL, file by file; None for Python's own."""
    if source is None:
        return python_documentation()
    files, root = fsspec.core.url_to_fs(source)
    paths = sorted(files.find(root))
    if not paths:
        raise ValueError(f"Expected `--text` to be a file, a folder or a URL, found no {source!r}.")
    texts = []
    for path in paths:
        with files.open(path, "rt", encoding="utf-8", compression="infer") as file:
            texts.append(file.read())
    return texts


@functools.cache  # of the runs of one process the first reads it
def python_documentation() -> list[str]:
    """Help topics, then every docstring of the library: about two million characters.

    They are read from the sources. Nothing is imported.
    """
    library = Path(sysconfig.get_paths()["stdlib"])
    left_out = {"site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3"}
    left_out |= {"turtledemo"}
    names = (path.relative_to(library) for path in library.rglob("*.py"))
    sources = sorted(name.as_posix() for name in names if not left_out & set(name.parts))
    texts: list[str] = []
    gc.disable()  # it would walk the growing trees again and again
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # old escapes in the library
        topics = ast.parse((library / "pydoc_data/topics.py").read_bytes())
        for node in topics.body:
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict):
                texts += [text for _, text in sorted(ast.literal_eval(node.value).items())]
                break
        for name in ["pydoc_data/topics.py", *sources]:
            texts += docstrings(ast.parse((library / name).read_bytes()))
    gc.enable()
    return list(dict.fromkeys(texts))  # each text once


def docstrings(node: ast.AST) -> Iterator[str]:
    """The docstrings of a module, in the order of its definitions."""
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        yield from filter(None, [ast.get_docstring(node)])
    for field in ("body", "orelse", "handlers", "finalbody"):
        children = getattr(node, field, None)
        for child in children if isinstance(children, list) else []:
            yield from docstrings(child)


@dataclass(frozen=True)
class Vocabulary:
    """How text becomes token ids.

    ``ordinary`` are the ids that may be masked, and stand in for others. ``before`` and ``after``
    are the special tokens around each sequence. ``name`` says what it is in a checkpoint.
    """

    encode: Callable[[Iterable[str]], np.ndarray]
    size: int
    ordinary: torch.Tensor
    mask: int
    before: tuple[int, ...] = ()
    after: tuple[int, ...] = ()
    name: str = ""


def characters(texts: Iterable[str]) -> Vocabulary:
    """One token a character, in lower case; those rarer than 1 in 100,000 are unknown.

    Ids 0 to 4 are [PAD], [UNK], [CLS], [SEP] and [MASK], as usual.
    """

    def plain(text: str) -> str:
        return " ".join(text.lower().split()) + " "

    counts = Counter[str]()
    for text in texts:
        counts.update(plain(text))
    known = sorted(c for c, count in counts.items() if count >= 1e-5 * counts.total())
    ids = {character: index for index, character in enumerate(known, start=5)}

    def encode(texts: Iterable[str]) -> np.ndarray:
        tokens = (ids.get(c, 1) for text in texts for c in plain(text))
        return np.fromiter(tokens, dtype=np.int32)

    size = 5 + len(known)
    return Vocabulary(encode, size, torch.arange(5, size), mask=4, name="".join(known))


def subwords(name: str) -> Vocabulary:
    """The tokenizer of a model on the Hub, or in a local folder."""
    tokenizer = AutoTokenizer.from_pretrained(name)

    def encode(texts: Iterable[str]) -> np.ndarray:
        encoded = tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
        return np.concatenate([np.array(ids, dtype=np.int32) for ids in encoded])

    size, special = len(tokenizer), set(tokenizer.all_special_ids)
    ordinary = torch.tensor([i for i in range(size) if i not in special])
    ends = (tokenizer.cls_token_id,), (tokenizer.sep_token_id,)
    return Vocabulary(encode, size, ordinary, tokenizer.mask_token_id, *ends, name=name)


def split(tokens: np.ndarray, num_held_out: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Tokens to train on [T], and held-out sequences [N, length], spread evenly over the text."""
    needed = 5 * num_held_out * length
    if len(tokens) < needed:
        raise ValueError(
            f"Expected a text of at least {needed:,} tokens, got {len(tokens):,}. Use more text, "
            "or fewer sequences: `--held-out`."
        )
    starts = np.linspace(0, len(tokens) // length - 1, num_held_out).astype(np.int64) * length
    positions = starts[:, None] + np.arange(length)
    return np.delete(tokens, positions.ravel()), tokens[positions]


# ---------------- The command line


def parser() -> argparse.ArgumentParser:
    """Every argument; the defaults are the small BERT."""
    out = argparse.ArgumentParser(
        description="Pretrain a BERT from scratch under watch.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = out.add_argument
    add("--text", help="file, folder or fsspec URL (Python's documentation)")
    add("--tokenizer", help="on the Hub or in a folder (none: single characters)")
    add("--sequence", type=positive, default=32, help="length in tokens")
    add("--held-out", type=positive, default=192, help="held-out sequences")
    add("--layers", type=positive, default=2)
    add("--hidden", type=positive, default=64)
    add("--heads", type=positive, default=4)
    add("--ffn", type=positive, default=256, help="feed-forward width")
    add("--activation", choices=("relu", "gelu", "gelu_new", "silu"), default="relu")
    add("--dropout", type=float, default=0.0)
    add("--steps", type=positive, default=2000)
    add("--batch", type=positive, default=64, help="sequences a step")
    add("--lr", type=float, default=3e-3, help="peak learning rate")
    add("--betas", type=float, nargs=2, default=(0.9, 0.98), help="of AdamW")
    add("--decay", type=float, default=1.0, help="weight decay, matrices only")
    add("--schedule", choices=("constant", "linear", "cosine", "wsd"), default="constant")
    add("--warmup", type=int, default=100, help="steps of warm-up")
    add("--seed", type=int, default=0)
    add("--device", default="cpu")
    add("--threads", type=positive, default=1, help="torch threads")
    add("--every", type=positive, default=25, help="steps between two snapshots")
    add("--max-overhead", type=float, help="largest share of the time for the watch (no limit)")
    add("--save-every", type=positive, default=100, help="steps between two checkpoints")
    add("--logdir", type=Path, default=Path("runs/demo"))
    add("--fresh", action="store_true", help="set an earlier run aside and start anew")
    return out


def positive(text: str) -> int:
    """A whole number of at least 1."""
    if int(text) < 1:
        raise ValueError
    return int(text)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the example; returns the exit status."""
    arguments = parser()
    args = arguments.parse_args(argv)
    torch.set_num_threads(args.threads)
    try:
        run = Pretraining(args)
        state = take_up(run, args.logdir / "checkpoint.pt", fresh=args.fresh)
    except (ValueError, OSError, RuntimeError) as error:
        arguments.error(str(error))
    args.logdir.mkdir(parents=True, exist_ok=True)
    print(
        f"{sum(p.numel() for p in run.model.parameters()):,} parameters, "
        f"{run.vocabulary.size:,} different tokens, {len(run.text):,} tokens to train on"
    )
    try:
        if run.steps_done < args.steps:
            train(run, state and state["watch"])
    except KeyboardInterrupt:
        print("Interrupted. The same command goes on from the last checkpoint.")
        return 130
    report(args.logdir)
    return 0


if __name__ == "__main__":
    sys.exit(main())
