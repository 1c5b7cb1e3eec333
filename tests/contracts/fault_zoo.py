"""Small trainings, well and with one of twenty faults, for the vital signs to tell apart.

Three models, four optimizers. A fault begins right after a snapshot, or at the start of the run.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn import functional

import sparsitywatch as sw

EVERY, ONSET, END = 4, 16, 24  # steps
#: How trainings are watched.
WATCHING: dict[str, Any] = {
    "every": EVERY, "logdir": None, "strict": True, "max_overhead": None, "detectors": {},
    "on_event": (), "scope": ["layers.0.*"],
}  # fmt: skip
VOCABULARY, SEEN, WIDTH, LENGTH = 64, 40, 16, 12


# ------------------------------------------------------------------ models
#
# Weights are cast to the dtype of what flows, so that each may be stored in a dtype of its own.


class Linear(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return functional.linear(x, self.weight.to(x.dtype), bias)


class Norm(nn.Module):
    """Over the last dimension; root mean square if it has no bias."""

    def __init__(self, width: int, *, bias: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width)) if bias else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = self.weight.to(x.dtype)
        if self.bias is None:
            return weight * x * (x.square().mean(-1, keepdim=True) + 1e-6).rsqrt()
        return functional.layer_norm(x, x.shape[-1:], weight, self.bias.to(x.dtype))


class Block(nn.Module):
    """A transformer layer: of an encoder, or causal, without biases and with a gate."""

    def __init__(self, *, is_causal: bool) -> None:
        super().__init__()
        bias, self.is_causal = not is_causal, is_causal
        self.norm_1, self.norm_2 = Norm(WIDTH, bias=bias), Norm(WIDTH, bias=bias)
        self.query, self.key, self.value, self.out = (
            Linear(WIDTH, WIDTH, bias=bias) for _ in range(4)
        )
        self.up, self.down = Linear(WIDTH, 32, bias=bias), Linear(32, WIDTH, bias=bias)
        self.gate = Linear(WIDTH, 32, bias=False) if is_causal else None

    def attention(self, x: torch.Tensor) -> torch.Tensor:
        heads = (part(x).unflatten(-1, (2, -1)).transpose(1, 2)
                 for part in (self.query, self.key, self.value))  # fmt: skip
        mixed = functional.scaled_dot_product_attention(*heads, is_causal=self.is_causal)
        return self.out(mixed.transpose(1, 2).flatten(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attention(self.norm_1(x))
        y = self.norm_2(x)
        inner = functional.gelu(self.up(y))
        if self.gate is not None:
            inner = functional.silu(self.gate(y)) * self.up(y)
        return x + self.down(inner)


class Model(nn.Module):
    """What all three have: a stem, layers, a head; where the graph is cut, if anywhere."""

    cut_before: int | None = None  # the layer that nothing before gets a gradient from
    without_graph: int | None = None  # the layer that runs without a graph

    def body(self, x: torch.Tensor) -> torch.Tensor:
        for index, layer in enumerate(self.layers):
            if index == self.cut_before:
                x = x.detach()
            if index == self.without_graph:
                with torch.no_grad():
                    change = layer(x) - x
                x = x + change
            else:
                x = layer(x)
        return x


class Encoder(Model):
    """Masked tokens, as BERT's."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(VOCABULARY, WIDTH)
        self.positions = nn.Embedding(LENGTH, WIDTH)
        self.norm = Norm(WIDTH)
        self.layers = nn.ModuleList(Block(is_causal=False) for _ in range(3))
        self.head = Linear(WIDTH, SEEN)
        nn.init.normal_(self.tokens.weight, std=0.1)
        nn.init.normal_(self.positions.weight, std=0.1)

    def loss(self, generator: torch.Generator) -> torch.Tensor:
        labels = (torch.randint(2, SEEN, (8, 1), generator=generator) + torch.arange(LENGTH)) % SEEN
        is_masked = torch.rand(8, LENGTH, generator=generator) < 0.3
        is_masked[:, 0] = True
        tokens = self.tokens(labels.masked_fill(is_masked, 1)).float()
        x = self.norm(tokens + self.positions.weight.float())
        logits = self.head(self.body(x))
        return functional.cross_entropy(logits[is_masked].float(), labels[is_masked])


class Decoder(Model):
    """The next token, with one table for what goes in and what comes out."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(VOCABULARY, WIDTH)
        nn.init.normal_(self.tokens.weight, std=0.1)
        self.layers = nn.ModuleList(Block(is_causal=True) for _ in range(3))
        self.norm = Norm(WIDTH, bias=False)
        self.head = Linear(WIDTH, WIDTH, bias=False)

    def loss(self, generator: torch.Generator) -> torch.Tensor:
        ids = (torch.randint(2, SEEN, (8, 1), generator=generator) + torch.arange(LENGTH)) % SEEN
        x = self.head(self.norm(self.body(self.tokens(ids[:, :-1]).float())))
        logits = x @ self.tokens.weight[:SEEN].to(x.dtype).T
        return functional.cross_entropy(logits.flatten(0, 1).float(), ids[:, 1:].flatten())


class Stage(nn.Module):
    """Two convolutions around which the input goes, too."""

    def __init__(self) -> None:
        super().__init__()
        self.conv_1, self.conv_2 = (nn.Conv2d(WIDTH, WIDTH, 3, padding=1) for _ in range(2))
        self.norm_1, self.norm_2 = Norm(WIDTH), Norm(WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = functional.relu(self.norm_1(convolved(self.conv_1, x).movedim(1, -1)).movedim(-1, 1))
        return x + self.norm_2(convolved(self.conv_2, y).movedim(1, -1)).movedim(-1, 1)


def convolved(layer: nn.Conv2d, x: torch.Tensor) -> torch.Tensor:
    weight, bias = layer.weight.to(x.dtype), layer.bias.to(x.dtype)
    return functional.conv2d(x, weight, bias, padding=1)


class Convolutional(Model):
    """Images of four channels, the last of which is always empty."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(4, WIDTH, 3, padding=1)
        self.layers = nn.ModuleList(Stage() for _ in range(3))
        self.norm = Norm(WIDTH)
        self.head = Linear(WIDTH, 10)

    def loss(self, generator: torch.Generator) -> torch.Tensor:
        labels = torch.randint(10, (8,), generator=generator)
        images = torch.randn(8, 4, 5, 5, generator=generator)
        images[:, 0] += labels[:, None, None] / 3
        images[:, 3] = 0.0
        x = self.body(convolved(self.stem, images.to(self.head.weight.dtype)))
        return functional.cross_entropy(self.head(self.norm(x.mean((2, 3)))).float(), labels)


MODELS: dict[str, type[Model]] = {
    "encoder": Encoder, "decoder": Decoder, "convolutional": Convolutional,
}  # fmt: skip


# ------------------------------------------------------------------ optimizers


class Lion(torch.optim.Optimizer):
    """Chen et al. 2023, arXiv:2302.06675: the sign of a mean of the gradients; decoupled decay."""

    __module__ = "lion_pytorch.lion_pytorch"  # what it does is known of the class of this name

    def __init__(self, params: Any, lr: float, weight_decay: float = 0.0) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "betas": (0.9, 0.99)})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            first, second = group["betas"]
            for p in group["params"]:
                if p.grad is None:
                    continue
                mean = self.state[p].setdefault("exp_avg", torch.zeros_like(p))
                p.mul_(1.0 - group["lr"] * group["weight_decay"])
                update = (mean * first + p.grad * (1.0 - first)).sign_()
                p.add_(update, alpha=-group["lr"])
                mean.lerp_(p.grad, 1.0 - second)


#: Makers of optimizers, with a learning rate that trains these models.
OPTIMIZERS: dict[str, tuple[Callable[..., torch.optim.Optimizer], dict[str, float]]] = {
    "adamw": (torch.optim.AdamW, {"lr": 3e-3, "weight_decay": 0.1, "foreach": True}),
    "sgd": (torch.optim.SGD, {"lr": 0.05, "momentum": 0.9, "weight_decay": 1e-3, "foreach": True}),
    "adafactor": (torch.optim.Adafactor, {"lr": 3e-2, "weight_decay": 0.1}),
    "lion": (Lion, {"lr": 1e-3, "weight_decay": 0.1}),
}


# ------------------------------------------------------------------ a training


@dataclass
class Training:
    """A model, its optimizer, and what is done around each step."""

    model_name: str  # one of ``MODELS``
    optimizer_name: str  # one of ``OPTIMIZERS``
    seed: int  # of weights and data
    #: called with the number of the step, from 1 on
    before_step: list[Callable[[int], None]] = field(default_factory=list)
    after_step: list[Callable[[int], None]] = field(default_factory=list)
    watching: dict[str, Any] = field(default_factory=dict)  # further arguments of ``sw.watch``
    accumulate: int = 1

    def __post_init__(self) -> None:
        torch.manual_seed(self.seed)
        self.model = MODELS[self.model_name]()
        self.make_optimizer()

    def make_optimizer(self, chosen: Callable[[str, nn.Parameter], bool] | None = None,
                       **changes: float) -> None:  # fmt: skip
        """Train what is chosen; by default everything that requires grad."""
        named = [(n, p) for n, p in self.named.items() if p.requires_grad]
        params = [p for name, p in named if chosen is None or chosen(name, p)]
        self.optimizer = self.optimizer_of(params, **changes)

    def optimizer_of(self, params: Iterable[Any], **changes: float) -> torch.optim.Optimizer:
        """One of the training's kind."""
        make, options = OPTIMIZERS[self.optimizer_name]
        return make(params, **{**options, **changes})

    @property
    def named(self) -> dict[str, nn.Parameter]:
        """All parameters."""
        return dict(self.model.named_parameters())

    @property
    def names(self) -> list[str]:
        """Of all parameters."""
        return list(self.named)

    def after(self, step: int, do: Callable[[], object]) -> None:
        """Do something once, after a step."""
        self.after_step.append(lambda number: do() if number == step else None)

    def around(
        self, after: Callable[[int], object], before: Callable[[int], object] = lambda _: None
    ) -> None:
        """Do something within each step of the optimizer, before the watch looks; from 1 on."""
        numbers, again = itertools.count(1), itertools.count(1)
        self.optimizer.register_step_pre_hook(lambda *_: before(next(numbers)))
        self.optimizer.register_step_post_hook(lambda *_: after(next(again)))

    def stepper(self) -> Callable[[], None]:
        """What takes the next step each time, from step 1 on."""
        data, numbers = torch.Generator().manual_seed(self.seed + 1), itertools.count(1)

        def step() -> None:
            number = next(numbers)
            for parameter in self.model.parameters():
                parameter.grad = None
            for _ in range(self.accumulate):
                self.model.loss(data).backward()
            for function in self.before_step:
                function(number)
            self.optimizer.step()
            for function in self.after_step:
                function(number)

        return step

    def run(self, end: int = END) -> sw.Watcher:
        """Train under watch, from step 1 to the end."""
        step = self.stepper()
        options = WATCHING | {"background": False, **self.watching}
        with sw.watch(self.model, self.optimizer, **options) as watcher:
            for _ in range(end):
                step()
        return watcher


# ------------------------------------------------------------------ faults


@dataclass(frozen=True)
class Fault:
    """What goes wrong, from when on, and what has to be said of it."""

    kind: str  # of the event
    plant: Callable[[Training], Iterable[str]]  # does it, and gives the names of the tensors
    onset: int = 0  # the last step before it
    spreads: bool = False  # whether other tensors may be named rightly, too


def matrices(training: Training) -> list[str]:
    """Those inside the layers."""
    return [n for n, p in training.named.items() if p.dim() >= 2 and n.startswith("layers")]


def vectors(training: Training) -> list[str]:
    """Norms' weights and all biases."""
    return [n for n, p in training.named.items() if p.dim() == 1]


def half_left_out(training: Training) -> Iterable[str]:
    """Half of the tensors were forgotten where the optimizer was made."""
    left_out = training.names[::2]
    training.make_optimizer(lambda name, _: name not in left_out)
    return left_out


def norms_left_out(training: Training) -> Iterable[str]:
    """Of the two groups with and without decay one was dropped."""
    training.make_optimizer(lambda _, p: p.dim() >= 2)
    return vectors(training)


def all_replaced(training: Training) -> Iterable[str]:
    """A checkpoint is loaded in a way that makes new parameters, which the optimizer never sees."""

    def replace() -> None:
        state = {n: t.clone() for n, t in training.model.state_dict().items()}
        training.model.load_state_dict(state, assign=True)

    training.after(ONSET + 1, replace)
    return training.names


def head_replaced(training: Training) -> Iterable[str]:
    """A new head is put on after the optimizer was made."""

    def replace() -> None:
        training.model.head = copy.deepcopy(training.model.head)

    training.after(ONSET, replace)
    return [name for name in training.names if name.startswith("head")]


def cut_off(training: Training) -> Iterable[str]:
    """Nothing before the third layer gets a gradient: a detach, a checkpoint without inputs."""
    training.model.cut_before = 2
    after = ("layers.2", "norm", "head")
    names = [n for n in training.names if not n.startswith(after)]
    if training.model_name == "encoder":  # its norm comes first
        names += ["norm.weight", "norm.bias"]
    return [n for n in names if not (training.model_name == "decoder" and n == "tokens.weight")]


def layer_without_graph(training: Training) -> Iterable[str]:
    """One layer runs under no_grad, and the residual connection hides it."""
    training.model.without_graph = 1
    return [name for name in training.names if name.startswith("layers.1.")]


# Gradients that end in the middle of a run, after so many steps with them.


def from_then_on(training: Training, onset: int, do: Callable[[], object]) -> None:
    """Do something before the first forward after a step, or at once."""
    training.after(onset, do) if onset else do()


def detached_at(layer: int) -> Callable[[Training, int], Iterable[str]]:
    """The graph is cut before a layer."""

    def cut(training: Training, onset: int) -> Iterable[str]:
        names = list(cut_off(training))
        training.model.cut_before = None
        if layer == 1:
            names = [n for n in names if not n.startswith("layers.1.")]
        from_then_on(training, onset, lambda: setattr(training.model, "cut_before", layer))
        return names

    return cut


def without_graph_from(training: Training, onset: int) -> Iterable[str]:
    """One layer runs under no_grad, and the residual connection hides it."""
    from_then_on(training, onset, lambda: setattr(training.model, "without_graph", 1))
    return [name for name in training.names if name.startswith("layers.1.")]


def weight_detached(training: Training, onset: int) -> Iterable[str]:
    """A layer works with a copy of its weight that knows no graph, such as one from a cache."""
    chosen = "layers.1.norm_1.weight"
    module = training.model.get_submodule(chosen.removesuffix(".weight"))
    values = training.named[chosen]
    apply = module.forward

    def forward(x: torch.Tensor) -> torch.Tensor:
        values.requires_grad_(False)
        try:
            return apply(x)
        finally:
            values.requires_grad_(True)

    from_then_on(training, onset, lambda: setattr(module, "forward", forward))
    return [chosen]


def outputs_detached(training: Training, onset: int) -> Iterable[str]:
    """What the first layer gives is detached: a cache, a round trip through numpy."""
    first = training.model.layers[0]

    def cut() -> None:
        first.register_forward_hook(lambda _, __, out: torch.from_numpy(out.detach().numpy()))

    from_then_on(training, onset, cut)
    before = {"encoder": ("tokens", "positions", "norm."), "decoder": (),
              "convolutional": ("stem",)}[training.model_name]  # fmt: skip
    return [n for n in training.names if n.startswith(("layers.0.", *before))]


def taken_away(training: Training, onset: int) -> Iterable[str]:
    """Gradients of some tensors are set to None before each step."""
    chosen = training.names[::2]

    def take(step: int) -> None:
        for name in chosen if step > onset else ():
            training.named[name].grad = None

    training.before_step.append(take)
    return chosen


def all_taken_away(training: Training, onset: int) -> Iterable[str]:
    """``zero_grad`` has come to stand between backward and step."""
    training.before_step.append(
        lambda step: training.optimizer.zero_grad() if step > onset else None
    )
    return training.names


def all_zeroed(training: Training, onset: int) -> Iterable[str]:
    """The same, and gradients are not set to None but to zero."""
    training.before_step.append(
        lambda step: training.optimizer.zero_grad(set_to_none=False) if step > onset else None
    )
    return training.names


def hooked_to_zero(training: Training, onset: int) -> Iterable[str]:
    """Hooks on some tensors give zeros for their gradients."""
    chosen = training.names[1::3]

    def hook() -> None:
        for name in chosen:
            training.named[name].register_hook(torch.zeros_like)

    from_then_on(training, onset, hook)
    return chosen


def clipped_to_zero(training: Training, onset: int) -> Iterable[str]:
    """Gradients are clipped to a norm of zero."""

    def clip(step: int) -> None:
        if step > onset:
            nn.utils.clip_grad_norm_(training.model.parameters(), 0.0)

    training.before_step.append(clip)
    return training.names


def loss_of_zero(training: Training, onset: int) -> Iterable[str]:
    """The loss is multiplied by zero: a weight of the loss, a scale that underflows."""
    loss, steps = training.model.loss, itertools.count(1)
    training.model.loss = lambda data: loss(data) * float(next(steps) <= onset)
    return training.names


def inputs_of_zero(training: Training, onset: int) -> Iterable[str]:
    """What a matrix is given is zero."""
    if training.model_name == "convolutional":
        first, name = training.model.layers[1].norm_2, "layers.1.norm_2.weight"
        inner = [n for n in training.names if n.startswith(("layers.1.conv", "layers.1.norm_1"))]
    else:
        first, name = training.model.layers[0].query, "layers.0.query.weight"
        inner = [] if training.model_name == "encoder" else ["layers.0.key.weight"]
    forward = first.forward
    from_then_on(training, onset, lambda: setattr(first, "forward", lambda x: forward(x * 0.0)))
    return [name, *inner]


def branch_of_zero(training: Training, onset: int) -> Iterable[str]:
    """What a branch beside a residual connection gives is multiplied by zero."""
    convolutional = training.model_name == "convolutional"
    name = "layers.1.norm_2" if convolutional else "layers.1.down"
    inner = ("conv_1", "conv_2", "norm_1", "norm_2") if convolutional else ("up", "down", "norm_2",
                                                                            "gate")  # fmt: skip

    def zero() -> None:
        training.model.get_submodule(name).register_forward_hook(lambda _, __, out: out * 0.0)

    from_then_on(training, onset, zero)
    return [n for n in training.names if n.startswith(tuple(f"layers.1.{x}." for x in inner))]


#: Ways in which gradients end, and in which they become zero; each begins after a step.
CUTS = {
    "detached before the second": detached_at(1),
    "detached before the third": detached_at(2),
    "layer without graph": without_graph_from,
    "weight detached": weight_detached,
    "outputs detached": outputs_detached,
    "taken away": taken_away,
    "all taken away": all_taken_away,
}
ZEROS = {
    "all zeroed": all_zeroed,
    "hooked to zero": hooked_to_zero,
    "clipped to zero": clipped_to_zero,
    "loss of zero": loss_of_zero,
    "inputs of zero": inputs_of_zero,
    "branch of zero": branch_of_zero,
}


def put_back(training: Training) -> Iterable[str]:
    """Some matrices are overwritten after each step with what they were."""
    chosen = matrices(training)[::3]
    kept = {name: training.named[name].detach().clone() for name in chosen}

    def restore(_: int) -> None:
        for name, weight in kept.items():
            training.named[name].data.copy_(weight)

    training.around(restore)
    return chosen


def passed_over(training: Training) -> Iterable[str]:
    """The optimizer has vectors in its groups, and its step leaves them out."""
    chosen = vectors(training)
    own = [training.named[name] for name in chosen]
    taken: list[torch.Tensor | None] = []

    def take(_: int) -> None:
        taken[:] = [p.grad for p in own]
        for p in own:
            p.grad = None

    def give(_: int) -> None:
        for p, gradient in zip(own, taken, strict=True):
            p.grad = gradient

    training.around(give, take)
    return chosen


def all_in_bf16(training: Training) -> Iterable[str]:
    """Weights in bfloat16 without a copy of higher precision, and a usual small learning rate."""
    training.model.bfloat16()
    training.make_optimizer(lr=OPTIMIZERS[training.optimizer_name][1]["lr"] / 1000)
    return [n for n, p in training.named.items() if p.any()]


def norms_in_bf16(training: Training) -> Iterable[str]:
    """Only the norms' weights, about 1, where the numbers are farthest apart."""
    chosen = [n for n in vectors(training) if "norm" in n and n.endswith("weight")]
    for name in chosen:
        training.named[name].data = training.named[name].data.bfloat16()
    lr = {"adamw": 5e-4, "sgd": 2e-2, "adafactor": 5e-4, "lion": 5e-4}
    training.make_optimizer(lr=lr[training.optimizer_name])
    return chosen


def rate_too_small(training: Training) -> Iterable[str]:
    """A learning rate so small that even float32 does not hold the updates."""
    lr = {"adamw": 1e-11, "sgd": 1e-9, "adafactor": 1e-10, "lion": 1e-11}[training.optimizer_name]
    training.make_optimizer(lr=lr)
    return [n for n, p in training.named.items() if p.any()]


def decay_ignored(training: Training) -> Iterable[str]:
    """The groups state a weight decay and the step does not apply it."""
    decay = 0.5 if training.optimizer_name != "sgd" else 0.05
    training.make_optimizer(weight_decay=decay)

    (group,) = training.optimizer.param_groups
    training.around(lambda _: group.update(weight_decay=decay),
                    lambda _: group.update(weight_decay=0.0))  # fmt: skip
    return [name for name, one in training.named.items() if one.dim() > 1]


def frozen_but_decayed(training: Training) -> Iterable[str]:
    """A layer is frozen by setting its gradients to zero, and weight decay wears it down."""
    chosen = [n for n in matrices(training) if n.startswith("layers.1.")]
    training.make_optimizer(weight_decay=0.5 if training.optimizer_name != "sgd" else 0.05)

    def zero(_: int) -> None:
        for name in chosen:
            training.named[name].grad.zero_()

    training.before_step.append(zero)
    return chosen


def nan_in_a_norm(training: Training) -> Iterable[str]:
    """One weight of a norm becomes NaN after the last step."""

    def spoil(step: int) -> None:
        if step == ONSET + EVERY:
            training.named["norm.weight"].data[3] = torch.nan

    training.around(spoil)
    return ["norm.weight"]


def overflow(training: Training) -> Iterable[str]:
    """A weight becomes infinite, and the next loss is NaN."""
    chosen = matrices(training)[0]
    weights = training.named[chosen].data.view(-1)
    training.after(ONSET + 2, lambda: weights[5:6].fill_(torch.inf))
    return [chosen]


def rolled_back(training: Training, part: int = 1) -> Iterable[str]:
    """The weights of an earlier snapshot are back, all or a part of them."""
    chosen = training.names[::part]
    kept: dict[str, torch.Tensor] = {}

    def restore(step: int) -> None:
        for name, parameter in training.named.items():
            if step == ONSET - EVERY:
                kept[name] = parameter.detach().clone()
            elif step == ONSET + EVERY and name in chosen:
                parameter.data.copy_(kept[name])

    training.around(restore)
    return chosen


def part_rolled_back(training: Training) -> Iterable[str]:
    """The same of every second tensor: a wrong merge, a stale average put back."""
    return rolled_back(training, 2)


def rate_of_one(training: Training) -> Iterable[str]:
    """One matrix gets a learning rate a thousand times too large."""
    chosen = matrices(training)[1]
    training.make_optimizer(lambda name, _: name != chosen)
    lr = OPTIMIZERS[training.optimizer_name][1]["lr"]
    training.optimizer.add_param_group({"params": [training.named[chosen]], "lr": lr})
    training.after(ONSET, lambda: training.optimizer.param_groups[-1].update(lr=1000 * lr))
    return [chosen]


def made_anew(training: Training) -> Iterable[str]:
    """One matrix is initialised once more in the middle of the run."""
    chosen = matrices(training)[1]
    weight = training.named[chosen].data
    anew = torch.randn(weight.shape, generator=torch.Generator().manual_seed(7))
    training.after(ONSET + 1, lambda: weight.copy_(anew))
    return [chosen]


def elsewhere(training: Training) -> dict[str, torch.Tensor]:
    """The weights of another model of the kind, trained elsewhere, as far as one can see."""
    other = type(training)(training.model_name, training.optimizer_name, training.seed + 1000)
    return {name: p.detach() for name, p in other.named.items()}


def shuffled(weight: torch.Tensor) -> torch.Tensor:
    order = torch.randperm(weight.numel(), generator=torch.Generator().manual_seed(5))
    return weight.reshape(-1)[order].reshape(weight.shape)


def swapped(named: dict[str, torch.Tensor], _: Training) -> dict[str, torch.Tensor]:
    """Two layers have changed places."""
    places = {"layers.0.": "layers.1.", "layers.1.": "layers.0."}
    return {n: named[places[n[:9]] + n[9:]] for n in named if n[:9] in places}


def noisy(weight: torch.Tensor) -> torch.Tensor:
    draw = torch.Generator().manual_seed(6)
    noise = torch.randn(weight.shape, generator=draw) * weight.square().mean().sqrt()
    return weight + noise


def anew(weight: torch.Tensor) -> torch.Tensor:
    drawn = torch.randn(weight.shape, generator=torch.Generator().manual_seed(8))
    return drawn * weight.std()


#: What may be written over all of a model's weights: from these, by name, to those that change.
OVERWRITES: dict[str, Callable[[dict[str, torch.Tensor], Training], dict[str, torch.Tensor]]] = {
    "another model's": lambda _, training: elsewhere(training),
    "shuffled": lambda named, _: {n: shuffled(w) for n, w in named.items()},
    "negated": lambda named, _: {n: -w for n, w in named.items()},
    "doubled": lambda named, _: {n: 2.0 * w for n, w in named.items()},
    "halved": lambda named, _: {n: 0.5 * w for n, w in named.items()},
    "half of the layers from elsewhere": lambda _, training: {
        n: w for n, w in elsewhere(training).items() if n.startswith(("layers.0.", "layers.2."))
    },
    "two layers swapped": swapped,
    "noise of their size": lambda named, _: {n: noisy(w) for n, w in named.items()},
    "transposed": lambda named, _: {
        n: w.transpose(0, 1) for n, w in named.items() if w.dim() > 1 and w.shape[0] == w.shape[1]
    },
    "one layer copied to all": lambda named, _: {
        n: named["layers.1." + n[9:]] for n in named if n.startswith(("layers.0.", "layers.2."))
    },
    "rows reversed": lambda named, _: {n: w.flip(0) for n, w in named.items() if w.dim() > 1},
    "initialised again": lambda named, _: {n: anew(w) for n, w in named.items() if w.dim() > 1},
}  # fmt: skip


def overwritten(what: str, at: int) -> Callable[[Training], Iterable[str]]:
    """All of a model is written over, so many steps after a snapshot."""

    def plant(training: Training) -> Iterable[str]:
        def write() -> None:
            named = {n: p.detach().clone() for n, p in training.named.items()}
            for name, values in OVERWRITES[what](named, training).items():
                training.named[name].data.copy_(values)

        training.after(ONSET + at, write)
        named = {n: p.detach() for n, p in training.named.items()}
        # what all have the same of, such as norms, moves next to nowhere
        return [n for n in OVERWRITES[what](named, training) if n in matrices(training)]

    return plant


def divergent(training: Training) -> Iterable[str]:
    """The learning rate of SGD is far too large, and steps blow up by themselves."""
    training.after(ONSET, lambda: training.optimizer.param_groups[0].update(lr=10.0))
    return training.names


FAULTS = {
    "half left out": Fault("untrained", half_left_out),
    "norms left out": Fault("untrained", norms_left_out),
    "all replaced": Fault("untrained", all_replaced, ONSET),
    "head replaced": Fault("untrained", head_replaced, ONSET),
    "cut off": Fault("untrained", cut_off),
    "layer without graph": Fault("untrained", layer_without_graph),
    "put back": Fault("untrained", put_back),
    "passed over": Fault("untrained", passed_over),
    "all in bf16": Fault("rounding", all_in_bf16),
    "norms in bf16": Fault("rounding", norms_in_bf16),
    "rate too small": Fault("rounding", rate_too_small),
    "decay ignored": Fault("decay", decay_ignored, spreads=True),
    "frozen but decayed": Fault("no_gradient", frozen_but_decayed),
    "NaN in a norm": Fault("not_finite", nan_in_a_norm, ONSET),
    "overflow": Fault("not_finite", overflow, ONSET, spreads=True),
    "rolled back": Fault("returned", rolled_back, ONSET),
    "part rolled back": Fault("returned", part_rolled_back, ONSET),
    "rate of one": Fault("blew_up", rate_of_one, ONSET),
    "made anew": Fault("overwritten", made_anew, ONSET),
}


PAIRS = [(model, optimizer) for model in MODELS for optimizer in OPTIMIZERS]


def named(fault: str, model: str, optimizer: str, seed: int) -> str:
    """Why a fault was not named in one training; empty if it was."""
    training = Training(model, optimizer, seed)
    planted = FAULTS[fault]
    truth = list(planted.plant(training))
    return verdict(planted, truth, training.run(planted.onset + 2 * EVERY))


def ended(way: str, model: str, optimizer: str, seed: int, onset: int = ONSET) -> str:
    """The same of gradients that end after a step."""
    training = Training(model, optimizer, seed)
    names = [*(CUTS | ZEROS)[way](training, onset)]
    fault = Fault("untrained", lambda _: (), onset)
    return verdict(fault, names, training.run(onset + 2 * EVERY))


def written_over(what: str, model: str, optimizer: str, seed: int) -> str:
    """The same of a model that is written over; by the next snapshot.

    Where gradients grow on what was written, SGD goes as far by itself, and its blowing up is told.
    """
    training = Training(model, optimizer, seed)
    [*overwritten(what, 1)(training)]
    watcher = training.run(ONSET + 2 * EVERY)
    events = [(event.kind, event.detected_step) for event in watcher.events]
    kinds = {"overwritten"} | ({"blew_up"} if optimizer == "sgd" else set())
    is_told = events and events[0][0] in kinds and events[0][1] == ONSET + EVERY
    others = {kind for kind, _ in events} - kinds - {"not_finite"}
    return "" if is_told and not others else f"told were {events}"


def verdict(fault: Fault, truth: Iterable[str], watcher: sw.Watcher) -> str:
    """Why the fault was not named as it has to be; empty if it was."""
    events = [e for e in watcher.events if e.detected_step <= fault.onset + 2 * EVERY]
    early = [e for e in events if e.detected_step <= fault.onset]
    if early:
        return f"alarm before it began: {early[0].describe()}"
    named = [e for e in events if e.kind == fault.kind]
    if not named:
        return f"not named; told were {[(e.kind, e.layers[:3]) for e in watcher.events]}"
    wrong = set(named[0].layers) - set(truth)
    if wrong and not fault.spreads:
        return f"innocent: {sorted(wrong)[:4]}"
    # one snapshot may name some of the tensors, the next the others
    right = {name for event in named for name in event.layers} & set(truth)
    if 2 * len(right) < len(set(truth)):
        return f"{len(right)} named of {len(set(truth))}"
    return ""
