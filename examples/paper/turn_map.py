"""A map of the turn: with which optimizer, activation, decay and rate do weights turn sparse?

    python examples/paper/turn_map.py

trains a small encoder to predict masked characters, under watch, with each of 48 settings: three
seeds of each, and on to eleven where none turns abruptly, which excludes a chance above 24 %. Each
run is asked by every threshold. That takes hours: started again it goes on, ``--minutes`` stops it
in time, and ``--only adam`` trains one optimizer, so that two go side by side.

The clock has the units of each optimizer's own shrinking. Beside the weights goes a copy of them
that never has a gradient: decay alone moves it. Adam with coupled L2 divides decay by the size of
the gradient, so that a weight without one loses about a rate a step, whatever the decay is. LAMB
(You et al. 2020, arXiv:1904.00962, algorithm 2) scales the step of a tensor by its own size, so
that its copy follows what it took of the tensor.
"""

from __future__ import annotations

import argparse
import datetime as dt
import itertools
import math
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import Results, arguments, begin, parsed, table
from emergence import spread, turns
from kept import FOLDER, counted, keep, kept
from lottery_ticket import masked_loss
from matplotlib.figure import Figure
from torch.nn import functional as F  # noqa: N812
from trained_here import Activation, Characters, TextModel, documentation, windows

import sparsitywatch as sw

ACTIVATIONS: dict[str, Activation] = {"gelu": F.gelu, "relu": F.relu}
DECAYS = (0.0, 0.01, 1.0)  # none, BERT's own, a hundred times as much
#: Of each optimizer the rates, and how it is made.
RATES = {
    "adam": (1e-3, 3e-3), "adamw": (1e-3, 3e-3), "lamb": (3e-3, 1e-2), "sgd": (3e-2, 1e-1),
}  # fmt: skip
SETTINGS = [
    (name, activation, decay, rate)
    for name, rates in RATES.items()
    for activation, decay, rate in itertools.product(ACTIVATIONS, DECAYS, rates)
]
FEW, MANY = 3, 11
SIZES = {"steps": 500, "every": 20, "warmup": 100, "batch": 16, "length": 16, "width": 32,
         "depth": 1}  # fmt: skip
TOY = {"steps": 20, "every": 5, "warmup": 5, "batch": 4, "length": 8, "width": 8, "depth": 1}
#: Sparsities that the proxy is asked for at each snapshot.
LEVELS = (0.1, 0.3, 0.6, 0.9)
NEAR_ZERO = "initial_0.1"
#: Of uniform weights, such as those of torch's layers, below a tenth of their rms; what is a rise.
BEGIN, RISE = 0.1 / math.sqrt(3.0), 1.25
Setting = tuple[str, str, float, float]
Run = Mapping[str, Any]

# ------------------------------------------------------------------ one training


class Lamb(torch.optim.Optimizer):
    """LAMB; ``shrunk`` of a tensor's state is the log of what decay left of it so far."""

    def __init__(self, params: Any, lr: float, betas: tuple[float, float]) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]  # noqa: ARG002
        """Update every tensor that has a gradient."""
        for group in self.param_groups:
            (first, second), decay = group["betas"], group["weight_decay"]
            for x in (p for p in group["params"] if p.grad is not None):
                state = self.state[x]
                if not state:
                    state |= {"m": torch.zeros_like(x), "v": torch.zeros_like(x)}
                    state |= {"step": 0, "shrunk": 0.0}
                state["step"] += 1
                m = state["m"].lerp_(x.grad, 1.0 - first) / (1.0 - first ** state["step"])
                v = state["v"].lerp_(x.grad**2, 1.0 - second) / (1.0 - second ** state["step"])
                update = m / (v.sqrt() + 1e-6) + decay * x
                norms = float(x.norm()), float(update.norm())
                rate = group["lr"] * (norms[0] / norms[1] if min(norms) > 0.0 else 1.0)
                state["shrunk"] += math.log1p(-min(rate * decay, 1.0 - 1e-9))
                x.sub_(rate * update)


def optimizer_of(setting: Setting, matrices: Any, others: Any = ()) -> torch.optim.Optimizer:
    """The optimizer of a setting; matrices decay."""
    name, _, decay, rate = setting
    groups = [{"params": [*matrices], "weight_decay": decay}]
    groups += [{"params": [*others], "weight_decay": 0.0}] if others else []
    if name == "sgd":
        return torch.optim.SGD(groups, lr=rate, momentum=0.9)
    if name == "lamb":
        return Lamb(groups, lr=rate, betas=(0.9, 0.98))
    kind: type[torch.optim.Adam] = torch.optim.Adam if name == "adam" else torch.optim.AdamW
    return kind(groups, lr=rate, betas=(0.9, 0.98), fused=True)


class Text:
    """Characters of Python's documentation, and windows of it that are held out."""

    def __init__(self, length: int) -> None:
        texts = documentation(["asyncio", "concurrent", "email", "json", "logging", "unittest"])
        said = "\n".join(itertools.chain.from_iterable(texts.values()))
        self.characters = Characters(said)
        tokens = self.characters.encode(said)
        self.tokens, held_out = tokens[: -length * 64], tokens[-length * 64 :].view(-1, length)
        hidden = torch.rand(held_out.shape, generator=torch.Generator().manual_seed(0)) < 0.15
        hidden[:, 0] |= ~hidden.any(1)
        batch = held_out.masked_fill(hidden, 1), held_out, hidden
        self.proxy = sw.Proxy([batch], self.loss)

    @staticmethod
    def loss(model: Any, batch: Any) -> torch.Tensor:
        """Mean over the hidden characters of each window, [N]."""
        seen, tokens, hidden = batch
        losses = F.cross_entropy(model(seen).transpose(1, 2), tokens, reduction="none")
        return torch.as_tensor((losses * hidden).sum(1) / hidden.sum(1))


class Alone:
    """A copy of the weights without gradient, that decay alone moves."""

    def __init__(self, setting: Setting, scope: Mapping[str, torch.nn.Parameter]) -> None:
        self.scope = scope
        self.first = {n: p.detach().clone() for n, p in scope.items()}
        self.now = {n: p.detach().clone().requires_grad_() for n, p in scope.items()}
        for copy in self.now.values():
            copy.grad = torch.zeros_like(copy)
        is_own = setting[0] == "lamb"  # whose copy of nothing but decay would go at once
        self.optimizer = None if is_own else optimizer_of(setting, self.now.values())

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """As the optimizer of the weights has just done."""
        if self.optimizer is not None:
            self.optimizer.param_groups[0]["lr"] = optimizer.param_groups[0]["lr"]
            self.optimizer.step()
            return
        for name, p in self.scope.items():
            shrunk = math.exp(optimizer.state[p]["shrunk"])
            torch.mul(self.first[name], shrunk, out=self.now[name].data)

    def shrunk(self) -> float:
        """The clock: by what it shrank, as a log, the median over its weights."""
        ratios = [(self.now[n].detach() / x).abs().flatten() for n, x in self.first.items()]
        return -math.log(max(float(torch.cat(ratios).median()), 1e-30))

    def near_zero(self) -> float:
        """What is below a tenth of the first rms of its tensor."""
        return float(torch.cat([
            (self.now[n].detach().abs() <= 0.1 * x.square().mean().sqrt()).float().flatten()
            for n, x in self.first.items()
        ]).mean())  # fmt: skip


def trained(setting: Setting, seed: int, text: Text, args: argparse.Namespace) -> dict[str, Any]:
    """Train under watch; what is kept of it."""
    torch.manual_seed(seed)
    activation = ACTIVATIONS[setting[1]]
    model = TextModel(
        len(text.characters), args.length, args.width, args.depth, activation=activation
    )
    scope = {n: p for n, p in model.trunk.blocks.named_parameters() if p.ndim > 1}
    ids = set(map(id, scope.values()))
    others = [p for p in model.parameters() if id(p) not in ids]
    optimizer = optimizer_of(setting, scope.values(), others)
    alone = Alone(setting, scope)
    decay: list[tuple[float, float]] = []
    with tempfile.TemporaryDirectory() as folder:
        with sw.watch(
            model,
            optimizer,
            proxy=text.proxy,
            every=args.every,
            logdir=folder,
            levels=LEVELS,
            max_overhead=None,
        ):
            for step in range(1, args.steps + 1):
                for group in optimizer.param_groups:
                    group["lr"] = setting[3] * min(step / args.warmup, 1.0)
                optimizer.zero_grad()
                loss = masked_loss(model, windows(text.tokens, args.batch, args.length))
                loss.backward()  # type: ignore[no-untyped-call]
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                alone.step(optimizer)
                if step % args.every == 0:
                    decay.append((alone.shrunk(), alone.near_zero()))
                if not math.isfinite(float(loss.detach())):
                    break
        return {**summary(sw.load(folder), decay), **ended(scope, alone.first)}


def summary(run: sw.Run, decay: Sequence[tuple[float, float]]) -> dict[str, Any]:
    """When a run turned, by which thresholds, and what stood beside it."""
    found = counted(run)
    own = turns(found, "up")
    at = {step: k for k, step in enumerate(found["steps"])}
    near, loss = run.column(f"near_zero/{NEAR_ZERO}"), run.column("value/dense")
    rises = [e for e in run.events if e.series.startswith("near_zero") and e.direction == "up"]
    told: dict[str, Any] = {
        "steps": found["steps"][-1], "num_turns": {}, "near": [rounded(x) for x in near],
        "loss": [rounded(x) for x in loss], "clock": [rounded(x) for x, _ in decay],
        "alone": [rounded(x) for _, x in decay], "told": len(rises),
        "explained": [e.explained_by_decay for e in rises],
        "essential": rounded(run.column("essential_sparsity/value")[-1]),
        "free": free(run.records[-1]),
    }  # fmt: skip
    for kind in ("abs", "initial", "rms"):
        names = {t["series"] for t in own if t["series"].startswith(f"near_zero/{kind}")}
        told["num_turns"][kind] = len(names)
    if own:
        largest = max(own, key=lambda turn: turn["value"] - turn["baseline"])
        told["turn"] = [largest[key] for key in ("series", "onset_low", "onset_high")]
        told["turn"] += [rounded(largest[key]) for key in ("baseline", "value")]
        told["at"] = min((abs(step - largest["onset_step"]), k) for step, k in at.items())[1]
    return told


def free(record: sw.Record) -> float | None:
    """The loss without the weights that are near zero, less the dense one, in per cent of it."""
    if record.curve is None:
        return None
    value = np.interp(record.near_zero[NEAR_ZERO], record.curve.sparsity, record.curve.value)
    return rounded(100.0 * (float(value) / record.curve.value[0] - 1.0))


def ended(
    scope: Mapping[str, torch.nn.Parameter], first: Mapping[str, torch.Tensor]
) -> dict[str, Any]:
    """What kind of sparse the weights are in the end, and where."""
    tiny, num = torch.finfo(torch.float32).tiny, sum(x.numel() for x in first.values())
    with torch.no_grad():
        sizes = {n: p.abs() for n, p in scope.items()}
        rms = {n: x.square().mean().sqrt() for n, x in first.items()}
        ratio = sum(float(x.square().sum()) for x in sizes.values())
        ratio /= sum(float(x.square().sum()) for x in first.values())
        near = {n: float((x <= 0.1 * rms[n]).float().mean()) for n, x in sizes.items()}
        relative = sum(int((x <= 0.1 * x.square().mean().sqrt()).sum()) for x in sizes.values())
        return {
            "rms": rounded(math.sqrt(ratio)), "relative": rounded(relative / num),
            "zeros": sum(int((x == 0.0).sum()) for x in sizes.values()),
            "denormal": sum(int(((x > 0.0) & (x < tiny)).sum()) for x in sizes.values()),
            "layers": {n: rounded(x) for n, x in near.items()}, "num": num,
        }  # fmt: skip


def rounded(x: float) -> float | None:
    """Four digits; None of what is not finite."""
    return float(f"{x:.4g}") if math.isfinite(x) else None


# ------------------------------------------------------------------ what it says


def is_turn(run: Run) -> bool:
    """Whether a run turned abruptly to sparse at some threshold."""
    return "turn" in run


def by_setting(runs: Mapping[str, Run]) -> dict[Setting, list[Run]]:
    """The runs of each setting; those of one that has none are left out."""
    own = {s: [runs[n] for k in range(MANY) if (n := name_of(s, k)) in runs] for s in SETTINGS}
    return {setting: found for setting, found in own.items() if found}


def median(own: Sequence[Run], key: str) -> float:
    """Of what is a number in the runs; NaN of none."""
    values = [one[key] for one in own if one.get(key) is not None]
    return float(np.median(values)) if values else math.nan


def mark(own: Sequence[Run]) -> str:
    """So many of the runs turn; of none, which chance of it they exclude at 95 %."""
    told = f"{sum(map(is_turn, own))} of {len(own)}"
    return told if any(map(is_turn, own)) else f"{told} (< {1.0 - 0.05 ** (1.0 / len(own)):.0%})"


def kind_of(own: Sequence[Run]) -> str:
    """Whether the weights are near zero in the end as a whole, or a part of them is."""
    if median(own, "end") < RISE * BEGIN:
        return "no rise"
    if (
        median(own, "relative") < 1.5 * BEGIN
    ):  # below a tenth of the present rms: the shape is what it was
        return "whole"
    return "both" if median(own, "rms") < 0.5 else "part"


def cause_of(own: Sequence[Run], control: Sequence[Run]) -> str:
    """Whether a rise is no more than what decay alone does to weights without a gradient."""
    if kind_of(own) == "no rise":
        return ""
    if not all(one["is_within"] for one in own):
        return "more than decay"
    return "decay" if control and kind_of(control) == "no rise" else "not told"


HEAD = ("setting: decay, rate", "runs that turn", "thresholds", "begun at", "near zero, %",
        "rms", "kind", "cause", "loss", "without them, %", "clock")  # fmt: skip


def rows(found: Mapping[Setting, Sequence[Run]]) -> dict[Setting, list[str]]:
    """A row for each setting: medians over its runs."""
    told = {}
    for setting, own in found.items():
        optimizer, activation, decay, rate = setting
        turned = [one for one in own if is_turn(one)]
        when = [one["turn"][1:3] for one in turned]
        control = found.get((optimizer, activation, 0.0, rate), [])
        title = f"{TITLES[optimizer]}, {TITLES[activation]}: {decay:g}, {rate:g}"
        told[setting] = [
            title, mark(own),
            spread([sum(one["num_turns"].values()) for one in turned], "d") if when else "",
            f"{min(low for low, _ in when)} to {max(high for _, high in when)}" if when else "",
            f"{100 * median(own, 'end'):.0f}",
            f"{median(own, 'rms'):.2g}", kind_of(own), cause_of(own, control) if decay else "",
            f"{median(own, 'loss_end'):.2f}", f"{median(own, 'free'):+.1f}",
            f"{median(own, 'clock_end'):.2f}",
        ]  # fmt: skip
    return told


def says(found: Mapping[Setting, Sequence[Run]]) -> Iterator[str]:
    """What the map says, each sentence by its runs."""
    for optimizer in RATES:
        bert = {s[3]: x for s, x in found.items() if s[:3] == (optimizer, "gelu", 0.01)}
        texts = [
            f"{mark(runs)} runs at rate {rate:g}, near zero at the end "
            f"{spread([100.0 * one['end'] for one in runs], '.0f')} %"
            for rate, runs in bert.items()
        ]
        text = "; ".join(texts) or "no run yet"
        yield f"**{TITLES[optimizer]}, GELU, decay 0.01** turns in {text}."
    turned = [s for s, own in found.items() if any(map(is_turn, own))]
    told = rows(found)
    rises = [s for s, row in told.items() if row[HEAD.index("kind")] != "no rise"]
    count = {
        name: Counter(told[s][HEAD.index(name)] for s in rises if s[2])
        for name in ("cause", "kind")
    }
    yield (
        f"**What explains it**: near zero rises by a quarter or more in {len(rises)} "
        f"of {len(found)} settings, {sum(s[2] == 0.0 for s in rises) or 'none'} without decay. "
        f"In {count['cause']['decay']} decay alone explains it, in "
        f"{count['cause']['more than decay'] or 'none'} it is more. In {len(turned)} a run turns "
        f"abruptly, {sum(s[2] == 0.0 for s in turned) or 'none'} of them without decay."
    )
    every = [one for own in found.values() for one in own]
    zeros, denormal, num = (sum(one[key] for one in every) for key in ("zeros", "denormal", "num"))
    yield (
        f"**What kind of sparse**: {count['kind']['whole']} shrink as a whole, in "
        f"{count['kind']['part']} it is a part of the weights, in {count['kind']['both']} both. "
        f"Of {num:,} weights at the end {zeros:,} are exactly zero and {denormal:,} denormal."
    )
    said = Counter(word for one in every for word in one["explained"])
    wrong = sum(one["explained"].count(False) for one in every if one["is_within"])
    yield (
        f"**What the watch said** of {said.total()} rises: decay explains {said[True]}, does "
        f"not explain {said[False]} (wrongly {wrong}, by the copy without gradient), not known "
        f"{said[None]}. It has no decay clock for Adam with coupled L2 and for LAMB."
    )
    own = [one for setting in turned for one in found[setting] if is_turn(one)]
    if own:
        layers = [(is_feed(name), x) for one in own for name, x in one["layers"].items()]
        feed, rest = (100.0 * np.mean([x for it, x in layers if it == b]) for b in (True, False))
        losses = (spread([one[key] for one in own]) for key in ("loss_turn", "loss_end"))
        cost = spread([one["free"] for one in own if one["free"] is not None], "+.2f")
        yield (
            f"**Of runs that turn** {feed:.0f} % of the feed-forward weights are near zero at the "
            f"end, and {rest:.0f} % of attention's. The loss is {' at the turn, '.join(losses)} at "
            f"the end; without the weights near zero it changes by {cost} %."
        )


def is_feed(name: str) -> bool:
    """Whether a matrix is one of the feed-forward."""
    return name.split(".")[1] in ("up", "down")


TITLES = {"adam": "Adam", "adamw": "AdamW", "lamb": "LAMB", "sgd": "SGD",
          "gelu": "GELU", "relu": "ReLU"}  # fmt: skip
PAGE = """# A map of the turn

With which optimizer, activation, decay and rate do weights turn sparse?
`examples/paper/turn_map.py` trains a small encoder ({depth} block, {weights:,} weights in scope,
{steps} steps of {batch} windows of {length} characters, masked prediction, {warmup} steps of
warm-up) under watch: {runs} runs of {num} settings, the last on {date}. Adam has coupled L2, AdamW
has not; SGD has a momentum of 0.9. A run turns if one of 90 thresholds [rises
abruptly](../detection.md#every-threshold-at-once); what rises from the first snapshot on has no
quiet stretch before it, and does not count.

![Share of the weights near zero at the end, by setting, and where it turned](turn_map.png)

{says}

## What that means for figure 8

BERT's own decay is 0.01 and its rate 1e-4. Under AdamW a weight without a gradient has then lost at
most {clock:.1%} by step 25,000, where the paper sees its turn: decay alone cannot make it. The turn
of [ReLU with decay 1](paper.md#when-weights-turn-sparse-figure-8), which comes when such a weight
has lost {lost}, is another one. Under Adam with coupled L2 a weight that never has a gradient loses
a rate a step, whatever the decay is: {walk:,.0f} steps at that rate take it from BERT's initial
0.02 to zero. The paper does not name its optimizer. So this is a way to a turn, no proof that it
was the one: the turns here come in or soon after the warm-up, the paper's in the middle, and this
model learns little in its {steps} steps.

## Every setting

Medians over the runs. In brackets is the chance of a turn that runs without one exclude (95 %).
*Thresholds*: how many turn. *Begun at*: between these steps. *Near zero*: below a tenth of the
first rms, at the end; the uniform weights of the start have {begin:.1%}. *rms*: the last over the
first. *Kind*: "whole" if the shape of the distribution is what it was, "part" if it is not, "both"
if the rms has halved as well. *Without them*: the loss without the weights near zero beside the
dense one. *Clock*: by what a weight without a gradient shrank, as a logarithm. *Cause*: "decay" if
no more is near zero than decay alone makes of weights without a gradient, and without decay there
is no rise, by a quarter or more.

{table}
"""


def lost_at_turns() -> str:
    """What a weight without a gradient has lost when the runs of ReLU with decay 1 turn."""
    runs = [run for name, run in kept(FOLDER / "emergence").items() if name.startswith("relu-1.0")]
    clocks = [
        np.interp(turn["onset_step"], run["steps"], run["motion/decay_clock"])
        for run in runs for turn in turns(run, "up")
    ]  # fmt: skip
    return f"{spread([-100.0 * math.expm1(-clock) for clock in clocks], '.0f')} %"


def page(files: Mapping[str, Any]) -> str:
    """docs/reports/turn_map.md."""
    runs = {key: run for file in files.values() for key, run in file["runs"].items()}
    first, found = next(iter(files.values())), by_setting(runs)
    return PAGE.format(
        **first["sizes"], weights=next(iter(runs.values()))["num"], runs=len(runs), num=len(found),
        date=max(file["date"] for file in files.values()), clock=1e-4 * 0.01 * 25_000,
        walk=0.02 / 1e-4, begin=BEGIN, lost=lost_at_turns(),
        says="\n".join(f"- {one}" for one in says(found)),
        table=table(HEAD, [*rows(found).values()]),
    )  # fmt: skip


def draw(found: Mapping[Setting, Sequence[Run]], path: Path) -> None:
    """A cell for each setting: near zero at the end, runs that turn, what explains it."""
    figure = Figure(figsize=(12.0, 5.0), layout="constrained")
    grid, told = figure.subplots(1, len(RATES), sharey=True), rows(found)
    for axes, (optimizer, rates) in zip(grid, RATES.items(), strict=True):
        columns = list(itertools.product(ACTIVATIONS, rates))
        cells = np.full((len(DECAYS), len(columns)), np.nan)
        for (y, decay), (x, at) in itertools.product(enumerate(DECAYS), enumerate(columns)):
            setting = (optimizer, at[0], decay, at[1])
            if setting not in found:
                axes.text(x, y, "not run", ha="center", va="center", fontsize=7)
                continue
            cells[y, x] = 100.0 * median(found[setting], "end")
            own, turned = found[setting], sum(map(is_turn, found[setting]))
            cause = told[setting][HEAD.index("cause")]
            parts = [
                f"{cells[y, x]:.0f} %",
                f"{turned} of {len(own)}",
                cause.replace(" ", "\n", 1),
            ]
            axes.text(
                x, y, "\n".join(parts), ha="center", va="center", fontsize=8,
                weight="bold" if turned else "normal", color="k" if cells[y, x] > 55 else "w",
            )  # fmt: skip
        shown = axes.imshow(cells, vmin=0.0, vmax=100.0, aspect="auto")
        axes.set_title(TITLES[optimizer] + (" (coupled L2)" if optimizer == "adam" else ""))
        axes.set_xticks(
            range(len(columns)), [f"{TITLES[name]}\n{rate:g}" for name, rate in columns]
        )
        axes.set_yticks(range(len(DECAYS)), [f"{decay:g}" for decay in DECAYS])
    grid[0].set_ylabel("weight decay")
    figure.supxlabel("activation and learning rate")
    figure.suptitle(
        "Weights near zero at the end; how many runs turn abruptly (bold: some); what explains it"
    )
    figure.colorbar(shown, ax=grid, label="weights near zero at the end, %", fraction=0.02)
    figure.savefig(path, dpi=100)


def compact(run: Run) -> dict[str, Any]:
    """What is kept of a run: numbers instead of its series."""
    near, alone = np.array(run["near"], float), np.array(run["alone"][: len(run["near"])], float)
    noise = 4.0 * np.sqrt(near * (1.0 - near) / run["num"])
    series = ("near", "alone", "clock", "loss")
    return {key: value for key, value in run.items() if key not in series} | {
        "end": run["near"][-1], "clock_end": run["clock"][-1],
        "loss_end": run["loss"][-1], "loss_turn": run["loss"][run["at"]] if "at" in run else None,
        "is_within": bool(np.all((near <= alone + noise) | (near < RISE * BEGIN))),
    }  # fmt: skip


def tell(args: argparse.Namespace) -> None:
    """Keep what was trained, and write page and picture."""
    asked = {key: value for key, value in vars(args).items() if key in SIZES}
    for file in sorted(args.out.glob("*.jsonl")):
        runs = {key: compact(run) for key, run in Results(file, asked).found.items()}
        date = dt.datetime.fromtimestamp(file.stat().st_mtime, dt.timezone.utc).date()
        keep(args.kept / f"{file.stem}.json.gz", {"date": f"{date}", "sizes": asked, "runs": runs})
    files = kept(args.kept)
    if not any(file["runs"] for file in files.values()):
        raise SystemExit(f"Expected runs in {args.kept}, found none. Leave out `--report`.")
    args.page.write_text(page(files), encoding="utf-8")
    runs = {key: run for file in files.values() for key, run in file["runs"].items()}
    draw(by_setting(runs), args.page.with_suffix(".png"))
    print(page(files))


# ------------------------------------------------------------------ the command


def name_of(setting: Setting, seed: int) -> str:
    """Of a run: "adam-gelu-0.01-0.001-s0"."""
    return "-".join([*map(str, setting), f"s{seed}"])


def train(args: argparse.Namespace) -> None:
    """Train what is missing, until the time is over."""
    began, text = time.monotonic(), Text(args.length)
    asked = {key: value for key, value in vars(args).items() if key in SIZES}
    for seed, setting in sorted(itertools.product(range(args.seeds), SETTINGS), key=order):
        if setting[0] not in args.only:
            continue
        results = Results(args.out / f"{setting[0]}.jsonl", asked)
        earlier = [results[key] for s in range(seed) if (key := name_of(setting, s)) in results]
        name = name_of(setting, seed)
        if name in results or (seed >= FEW and any(map(is_turn, earlier))):
            continue
        if time.monotonic() - began > 60.0 * args.minutes:
            return
        results.add(name, trained(setting, seed, text, args))


def order(one: tuple[int, Setting]) -> tuple[int, int]:
    """One run of every setting, then all of what BERT has, then a few of the others, and more."""
    seed, (_, activation, decay, _) = one
    is_bert = (activation, decay) == ("gelu", 0.01)
    return (0 if seed == 0 else 1 if is_bert else 2 if seed < FEW else 3), seed


def main(argv: Sequence[str] | None = None) -> int:
    """Train and tell; returns the exit status."""
    parser = arguments("turn_map", __doc__ or "")
    parser.set_defaults(threads=1)
    for name, value in SIZES.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    add = parser.add_argument
    add("--seeds", type=int, default=MANY, help="at most, of each setting")
    add("--minutes", type=float, default=math.inf, help="begin no training after so many")
    add("--kept", type=Path, help="where numbers are kept (in --out)")
    add("--page", type=Path, help="the page that is written (in --out)")
    add("--report", action="store_true", help="train nothing: tell what is kept")
    add("--only", nargs="+", choices=RATES, default=[*RATES], help="these optimizers")
    args = parsed(parser, argv, TOY)
    args.kept, args.page = args.kept or args.out / "kept", args.page or args.out / "turn_map.md"
    begin(args)
    if not args.report:
        train(args)
    tell(args)
    return 0


if __name__ == "__main__":
    sys.exit(main())
