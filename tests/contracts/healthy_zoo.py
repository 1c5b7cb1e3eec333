"""Trainings that look odd to a comparison of weights, and in which nothing is wrong."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import torch
import transformers
from contracts import fault_zoo
from contracts.fault_zoo import EVERY, LENGTH, OPTIMIZERS, SEEN, WATCHING, WIDTH, Linear, Training
from torch import nn
from torch.nn import functional

import sparsitywatch as sw

#: Does what is odd; a training that goes on in another way gives the watch itself.
Oddity = Callable[[Training], Any]


def plain(_: Training) -> None:
    """As it ought to be."""


def each_step(training: Training) -> None:
    """A snapshot after every step."""
    training.watching["every"] = 1


def frozen(training: Training) -> None:
    """A part requires no grad, whether the optimizer has it or not."""
    for index, parameter in enumerate(training.model.parameters()):
        parameter.requires_grad_(index >= 6)
    if training.seed % 2:
        training.make_optimizer()


class Adapted(nn.Module):
    """A frozen linear layer with a product of two small ones beside it, at first zero."""

    def __init__(self, base: Linear) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.lora_A = nn.Parameter(torch.randn(2, base.in_features) / 4)
        self.lora_B = nn.Parameter(torch.zeros(base.out_features, 2))

    @property
    def weight(self) -> torch.Tensor:
        return self.base.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base(x) + x @ self.lora_A.T @ self.lora_B.T


def lora(training: Training) -> None:
    """Adapters beside frozen matrices; one half of each is zero at first."""
    training.model.requires_grad_(False)
    for module in list(training.model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, Linear):
                setattr(module, name, Adapted(child))
    training.make_optimizer()
    training.watching |= {"scope": ["*lora_*"], "every": 1 + training.seed % 3}
    training.before_step.append(rates(training, lambda step: min(step - 1, 3) / 3))


def rate_of(training: Training) -> float:
    """The learning rate that trains its model."""
    return OPTIMIZERS[training.optimizer_name][1]["lr"]


def rates(training: Training, factor: Callable[[int], float]) -> Callable[[int], None]:
    """Sets the learning rate before each step."""
    highest = [group["lr"] for group in training.optimizer.param_groups]

    def set_rate(step: int) -> None:
        for group, lr in zip(training.optimizer.param_groups, highest, strict=True):
            group["lr"] = lr * factor(step)

    return set_rate


def warm_up(training: Training) -> None:
    """A learning rate of 0 for long, then one that rises from next to nothing."""
    training.watching["every"] = 2
    start = 6 if training.seed % 2 else 0
    training.before_step.append(rates(training, lambda step: max(step - start, 0) * 1e-6))


def down_to_zero(training: Training) -> None:
    """A schedule that ends at 0."""
    training.watching["every"] = 2
    training.before_step.append(
        rates(training, lambda step: (1 + math.cos(math.pi * min(step / 20, 1))) / 2)
    )


def restarts(training: Training) -> None:
    """The learning rate goes from next to nothing to its highest at once, again and again."""
    training.before_step.append(rates(training, lambda step: 1.0 if step % 8 < 4 else 1e-3))


def skipped_steps(training: Training) -> None:
    """A gradient scaler skips every step of some intervals: no gradient is finite."""

    def skip(step: int) -> None:
        if 5 <= step <= 12 and not step % 2:
            for parameter in training.model.parameters():
                parameter.grad = None

    training.before_step.append(skip)


def told_by_hand(training: Training) -> sw.Watcher:
    """A loop that tells of its steps itself, gradients set to zero before, some steps skipped."""
    data = torch.Generator().manual_seed(training.seed)
    with sw.watch(training.model, training.optimizer, **WATCHING) as watcher:
        for step in range(1, 25):
            training.model.loss(data).backward()
            if not 8 < step <= 12:
                training.optimizer.step()
            training.optimizer.zero_grad(set_to_none=bool(training.seed % 2))
            watcher.step()
    return watcher


class Routed(nn.Module):
    """Four experts, the last of which no token is sent to."""

    def __init__(self) -> None:
        super().__init__()
        self.router = Linear(WIDTH, 4)
        self.experts = nn.ModuleList(
            nn.Sequential(Linear(WIDTH, 24), nn.GELU(), Linear(24, WIDTH)) for _ in range(4)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weights = self.router(x)[..., :3].softmax(-1)
        best = weights.argmax(-1)
        found = torch.zeros_like(x)
        for index, expert in enumerate(self.experts):
            chosen = best == index
            if chosen.any():
                found[chosen] = expert(x[chosen]) * weights[chosen][:, index, None]
        return x + found


def experts(training: Training) -> None:
    """Experts to which no token is sent; without a gradient, or with one that is zero."""
    training.model.layers.append(Routed() if training.model_name != "convolutional" else Last())
    training.make_optimizer()
    if training.seed % 2:

        def fill(_: int) -> None:
            for parameter in training.model.parameters():
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)

        training.before_step.append(fill)


class Last(Routed):
    """The same over channels."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


def unseen_tokens(training: Training) -> None:
    """A table most of whose rows are never used; without decay, and under it."""
    model = training.model
    if training.model_name != "convolutional":
        model.tokens = nn.Embedding(4096, WIDTH)
        nn.init.normal_(model.tokens.weight, std=0.1)
    training.make_optimizer(weight_decay=0.0 if training.seed % 2 else 0.1)


def tied(training: Training) -> None:
    """Two layers have one tensor."""
    layers = training.model.layers
    if training.model_name == "convolutional":
        layers[0].conv_1.weight = layers[1].conv_1.weight
    else:
        layers[0].up.weight = layers[1].up.weight
    training.make_optimizer()


def accumulated(training: Training) -> None:
    """Four backward passes to a step."""
    training.accumulate = 4


def averaged(training: Training) -> None:
    """A moving average of the layers within the model; it may even require grad."""
    model = training.model
    model.average = copy.deepcopy(model.layers).requires_grad_(bool(training.seed % 2))

    def update(_: int) -> None:
        with torch.no_grad():
            own = model.layers.parameters()
            for mean, parameter in zip(model.average.parameters(), own, strict=True):
                if training.seed % 3:
                    mean.lerp_(parameter, 0.1)

    training.after_step.append(update)


def resumed(training: Training) -> sw.Watcher:
    """The run goes on in another process, with the watch's state or without."""
    watcher = training.run(12)
    state = copy.deepcopy((training.model.state_dict(), training.optimizer.state_dict(),
                           watcher.state_dict()))  # fmt: skip
    again = Training(training.model_name, training.optimizer_name, training.seed)

    def load() -> None:
        again.model.load_state_dict(state[0])
        again.optimizer.load_state_dict(state[1])

    with_state = training.seed % 2
    if with_state:
        load()
    data = torch.Generator().manual_seed(training.seed)
    with sw.watch(again.model, again.optimizer, **WATCHING) as second:
        if with_state:
            second.load_state_dict(state[2])
        else:  # loaded when the watch is there already
            load()
        for _ in range(16):
            again.optimizer.zero_grad()
            again.model.loss(data).backward()
            again.optimizer.step()
    watcher.events.extend(second.events)
    return watcher


def own_loop(
    training: Training, model: nn.Module, optimizer: torch.optim.Optimizer,
    loss: Callable[[int], torch.Tensor], *, steps: int = 24, every: int = EVERY, **options: Any,
) -> sw.Watcher:  # fmt: skip
    """Train another model under watch."""
    training.model, training.optimizer = model, optimizer
    options = WATCHING | {"scope": "layers", "every": every} | options
    with sw.watch(model, optimizer, **options) as watcher:
        for step in range(steps):
            optimizer.zero_grad()
            loss(step).backward()
            optimizer.step()
            for function in training.after_step:
                function(step)
    return watcher


def sparse_inputs(training: Training) -> sw.Watcher:
    """SGD without momentum on inputs that are mostly zero, some of them always."""
    generator = torch.Generator().manual_seed(training.seed)
    model = nn.Sequential(nn.Linear(64, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 4))
    inputs = torch.randn(32, 64, generator=generator)
    inputs *= torch.rand(32, 64, generator=generator) < 0.05
    inputs[:, 40:] = 0.0
    targets = torch.randn(32, 4, generator=generator)
    decay = 1e-3 * (training.seed % 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=decay)

    def loss(step: int) -> torch.Tensor:
        some = slice(step % 8 * 4, step % 8 * 4 + 4)
        return functional.mse_loss(model(inputs[some]), targets[some])

    return own_loop(training, model, optimizer, loss, every=1 + training.seed % 4)


def sparse_gradients(training: Training) -> sw.Watcher:
    """An embedding whose gradients are sparse tensors, under an optimizer of its own kind."""
    generator = torch.Generator().manual_seed(training.seed)
    table = nn.Embedding(600, WIDTH, sparse=True)
    model = nn.Sequential(table, nn.Linear(WIDTH, 4))
    model[1].requires_grad_(False)
    make = torch.optim.SparseAdam if training.seed % 2 else torch.optim.SGD
    optimizer = make(table.parameters(), lr=0.01)

    def loss(_: int) -> torch.Tensor:
        return model(torch.randint(200, (8,), generator=generator)).square().mean()

    return own_loop(training, model, optimizer, loss, scope="matrices")


def master_copies(training: Training) -> sw.Watcher:
    """Weights in bfloat16, and an optimizer that steps on float32 copies of them."""
    model = training.model.bfloat16()
    own = list(model.parameters())
    copies = [nn.Parameter(p.detach().float()) for p in own]
    optimizer = training.optimizer_of(copies, lr=rate_of(training) / 100)
    data = torch.Generator().manual_seed(training.seed)

    def handed(_: int) -> None:
        for parameter, kept in zip(own, copies, strict=True):
            kept.grad = None if parameter.grad is None else parameter.grad.float()

    def copied(_: int) -> None:
        for parameter, kept in zip(own, copies, strict=True):
            parameter.data.copy_(kept.detach())

    training.optimizer = optimizer
    training.around(copied, handed)

    def loss(_: int) -> torch.Tensor:
        model.zero_grad()
        return model.loss(data)

    return own_loop(training, model, optimizer, loss, scope=["layers.0.*"])


def random_rounding(training: Training) -> None:
    """Weights in bfloat16 whose updates are rounded up or down at random, so that none is lost."""
    model = training.model.bfloat16()
    training.make_optimizer(lr=rate_of(training) / 10)
    draw = torch.Generator().manual_seed(training.seed)

    def widen(_: int) -> None:
        for p in model.parameters():
            p.data = p.data.float()
            p.grad = None if p.grad is None else p.grad.float()

    def narrow(_: int) -> None:
        for p in model.parameters():
            bits = p.data.view(torch.int32)
            bits += torch.randint(1 << 16, bits.shape, generator=draw, dtype=torch.int32)
            p.data = (bits & -65536).view(torch.float32).bfloat16()
            p.grad = None if p.grad is None else p.grad.bfloat16()

    training.around(narrow, widen)


def unused_pooler(training: Training) -> None:
    """Layers that nothing runs, in the optimizer all the same."""
    training.model.pooler = nn.Sequential(Linear(WIDTH, WIDTH), Linear(WIDTH, WIDTH))
    training.make_optimizer()


def unused_tower(training: Training) -> sw.Watcher:
    """A tower for images, first in the model, in a run on text alone."""
    tower = Training("convolutional", training.optimizer_name, training.seed).model
    both = nn.Module()
    both.vision, both.text = tower, training.model
    optimizer = training.optimizer_of(both.parameters())
    training.model.layers.append(nn.Identity())
    data = torch.Generator().manual_seed(training.seed)
    text = training.model
    big = nn.Parameter(torch.randn(300, 64) / 10)  # the text model is the larger one
    both.text.big = big
    optimizer.add_param_group({"params": [big]})
    return own_loop(training, both, optimizer, lambda _: text.loss(data) + big.square().mean(),
                    scope=["text.layers.0.*"])  # fmt: skip


class Through(nn.Module):
    """A head with something before it, and the weight of the head."""

    def __init__(self, inner: nn.Module, before: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.inner, self.before = inner, before

    @property
    def weight(self) -> torch.Tensor:
        return self.inner.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(self.before(x))


def one_head_of_many(training: Training) -> None:
    """A head for each task, of which one task is trained."""
    model = training.model
    model.heads = nn.ModuleList(Linear(WIDTH, WIDTH) for _ in range(4))
    inner = model.head
    model.head = Through(inner, lambda x: model.heads[training.seed % 4](x))
    training.make_optimizer()


def dropped_layers(training: Training) -> None:
    """Each layer is left out of a fifth of the steps; a snapshot after every one or two."""
    draw = torch.Generator().manual_seed(training.seed)

    def drop(x: torch.Tensor) -> torch.Tensor:
        layers = training.model.layers
        kept = [one for one in layers if torch.rand((), generator=draw) < 0.8]
        for layer in kept or [layers[0]]:
            x = layer(x)
        return x

    training.model.body = drop
    training.watching["every"] = 1 + training.seed % 2


def two_optimizers(training: Training, period: int = 1) -> None:
    """Half of the tensors belong to another optimizer."""
    second = training.optimizer_of([training.named[name] for name in training.names[1::2]])
    training.make_optimizer(lambda name, _: name in training.names[::2])
    training.before_step.append(lambda step: second.step() if step % period < 4 else None)


def second_in_turn(training: Training) -> None:
    """The other optimizer has a turn in every second interval only."""
    two_optimizers(training, period=8)


def held_to_bounds(training: Training) -> None:
    """Weights are clamped after each step, and a temperature stands at its bound."""
    model = training.model
    model.scale = nn.Parameter(torch.tensor(4.6))
    loss = model.loss
    model.loss = lambda data: loss(data) * model.scale.exp() / 100
    training.make_optimizer(**({"lr": 1e-3} if training.optimizer_name == "sgd" else {}))

    def clamp(_: int) -> None:
        with torch.no_grad():
            model.scale.fill_(4.6)
            for name, parameter in model.named_parameters():
                if name.startswith("layers.0") and parameter.dim() > 1:
                    parameter.clamp_(-0.1, 0.1)

    training.around(clamp)


def learned_by_heart(training: Training) -> sw.Watcher:
    """Eight examples, again and again, until next to no gradient is left."""
    generator = torch.Generator().manual_seed(training.seed)
    torch.manual_seed(training.seed)
    model = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.LayerNorm(64), nn.Linear(64, 64),
                          nn.ReLU(), nn.Linear(64, 3))  # fmt: skip
    inputs = torch.randn(8, 8, generator=generator)
    labels = torch.randint(3, (8,), generator=generator)
    optimizer = training.optimizer_of(model.parameters(), weight_decay=0.0)
    return own_loop(training, model, optimizer,
                    lambda _: functional.cross_entropy(5 * model(inputs), labels),
                    steps=240, every=30)  # fmt: skip


def unfrozen_later(training: Training) -> None:
    """Layers are frozen at first and let go one by one."""
    layers = training.model.layers.requires_grad_(False)
    training.optimizer = training.optimizer_of(training.model.parameters())

    def let_go(step: int) -> None:
        if not step % 5 and step // 5 <= len(layers):
            layers[-(step // 5)].requires_grad_(True)

    training.after_step.append(let_go)


def rate_of_zero(training: Training) -> None:
    """A group whose learning rate is 0 on purpose."""
    first, rest = training.model.layers[0].parameters(), training.model.layers[1:].parameters()
    groups = [{"params": list(first), "lr": 0.0}, {"params": list(rest)}]
    training.optimizer = training.optimizer_of(groups)
    for name, parameter in training.named.items():
        parameter.requires_grad_(name.startswith("layers"))


def autocast(training: Training) -> None:
    """Forward passes in bfloat16 over weights in float32."""
    loss = training.model.loss

    def cast(data: torch.Generator) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return loss(data)

    training.model.loss = cast


def pruned(training: Training) -> None:
    """Nine weights of ten are kept at zero."""
    draw = torch.Generator().manual_seed(training.seed)
    masks = {n: torch.rand(p.shape, generator=draw) < 0.1
             for n, p in training.named.items() if p.dim() > 1}  # fmt: skip

    def mask(_: int) -> None:
        for name, kept in masks.items():
            training.named[name].data *= kept

    mask(0)
    training.around(mask)


def large_rate(training: Training) -> None:
    """A learning rate at which the loss swings."""
    factor = {"adamw": 10, "sgd": 4, "adafactor": 3, "lion": 10}[training.optimizer_name]
    training.make_optimizer(lr=factor * rate_of(training))


def looking_ahead(training: Training) -> None:
    """Every fifth step the weights go back halfway to where they were five steps ago."""
    kept = [p.detach().clone() for p in training.model.parameters()]

    def back(step: int) -> None:
        if step % 5 == 0:
            for slow, parameter in zip(kept, training.model.parameters(), strict=True):
                slow.lerp_(parameter.detach(), 0.5)
                parameter.data.copy_(slow)

    training.around(back)


def small_gradients(training: Training) -> None:
    """Gradients are clipped to next to nothing."""

    def clip(_: int) -> None:
        nn.utils.clip_grad_norm_(training.model.parameters(), 1e-2)

    training.before_step.append(clip)


def key_biases(training: Training) -> sw.Watcher:
    """A BERT, whose biases begin at zero. Those of keys get no gradient but rounding's.

    What an attention adds to all scores of a query, its softmax takes away again. Adam makes steps
    of that noise: far smaller ones than elsewhere, and far larger ones than an interval before.
    """
    torch.manual_seed(training.seed)
    config = transformers.BertConfig(
        vocab_size=SEEN, hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=64, max_position_embeddings=LENGTH, hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    model = transformers.BertForMaskedLM(config).train()
    assert not any(p.any() for n, p in model.named_parameters() if n.endswith("key.bias"))
    training.model = model
    optimizer = training.optimizer = training.optimizer_of(model.parameters())
    rate = rates(training, lambda step: min(step / 50, 1.0))
    data = torch.Generator().manual_seed(training.seed)

    def loss(step: int) -> torch.Tensor:
        rate(step + 1)
        start = torch.randint(2, SEEN, (8, 1), generator=data)
        labels = (start + torch.arange(LENGTH)) % SEEN
        is_masked = torch.rand(labels.shape, generator=data) < 0.3
        is_masked[:, 0] = True
        logits = model(input_ids=labels.masked_fill(is_masked, 1)).logits
        return functional.cross_entropy(logits[is_masked], labels[is_masked])

    every = 5 * (1 + training.seed % 3)
    return own_loop(training, model, optimizer, loss, steps=10 * every, every=every, scope="blocks")


def heads_in_turn(training: Training) -> None:
    """A head for each task; each has its turn of some steps, with None or zeros for the others."""
    model = training.model
    model.tasks = nn.ModuleList(Linear(WIDTH, WIDTH) for _ in range(3))
    inner, steps, length = model.head, [0], 5 + training.seed % 4
    model.head = Through(inner, lambda x: model.tasks[steps[0] // length % 3](x))
    training.make_optimizer()
    if training.seed % 2:
        training.before_step.append(lambda _: zeros_for_none(training))
    training.after_step.append(lambda step: steps.__setitem__(0, step))


def zeros_for_none(training: Training) -> None:
    """As where gradients are kept and set to zero, not to None."""
    for parameter in training.model.parameters():
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)


def dropped_layers_of_zero(training: Training) -> None:
    """Layers are left out at random, and have a gradient of zero then."""
    dropped_layers(training)
    training.before_step.append(lambda _: zeros_for_none(training))


def rare_experts(training: Training) -> sw.Watcher:
    """A mixture of experts some of which get a token now and then, or none any more."""
    torch.manual_seed(training.seed)
    draw = torch.Generator().manual_seed(training.seed)
    stem, head = nn.Linear(8, WIDTH), nn.Linear(WIDTH, 3)
    experts = nn.ModuleList(nn.Sequential(nn.Linear(WIDTH, 24), nn.GELU(), nn.Linear(24, WIDTH))
                            for _ in range(5))  # fmt: skip
    model = nn.ModuleDict({"stem": stem, "experts": experts, "head": head})
    optimizer = training.optimizer_of(model.parameters())

    def loss(step: int) -> torch.Tensor:
        shares = torch.tensor([4.0, 2.0, 0.5, 0.05, 2.0 if step < 15 else 0.0])
        x, found = stem(torch.randn(16, 8, generator=draw)), []
        for row in x:
            chosen = int(torch.multinomial(shares, 1, generator=draw))
            found.append(head(experts[chosen](row)))
        return torch.stack(found).square().mean()

    return own_loop(training, model, optimizer, loss, steps=60, scope=["experts*"],
                    every=2 + training.seed % 4)  # fmt: skip


def averages_put_in(training: Training) -> None:
    """The weights become their moving average, for good, now and then."""
    own = list(training.model.parameters())
    kept = [p.detach().clone() for p in own]

    def average(step: int) -> None:
        for mean, parameter in zip(kept, own, strict=True):
            mean.lerp_(parameter.detach(), 0.2)
            if step % 9 == 0:
                parameter.data.copy_(mean)

    training.around(average)


def looking_ahead_closely(training: Training) -> None:
    """The same as looking ahead, with a snapshot after every step."""
    looking_ahead(training)
    training.watching["every"] = 1


def pruned_by_and_by(training: Training) -> None:
    """More and more of the smallest weights are set to zero, at once in some steps."""

    def prune(step: int) -> None:
        share = min(step // 5 * 0.2, 0.8)
        for name, parameter in training.named.items():
            if parameter.dim() > 1 and name.startswith("layers"):
                number = max(int(share * parameter.numel()), 1)
                least = parameter.detach().abs().flatten().kthvalue(number).values
                parameter.data[parameter.detach().abs() <= least] = 0.0

    training.around(prune)


def of_one_size(training: Training) -> None:
    """Matrices are brought to one norm after each step."""

    def scale(_: int) -> None:
        for parameter in training.named.values():
            if parameter.dim() > 1:
                parameter.data *= 2.0 / parameter.detach().norm()

    training.around(scale)


ODDITIES: dict[str, Oddity] = {
    one.__name__.replace("_", " "): one
    for one in (
        plain, each_step, frozen, lora, warm_up, down_to_zero, restarts, skipped_steps,
        told_by_hand, experts, unseen_tokens, tied, accumulated, averaged, resumed, sparse_inputs,
        sparse_gradients, master_copies, random_rounding, unused_pooler, unused_tower,
        one_head_of_many, dropped_layers, two_optimizers, second_in_turn, held_to_bounds,
        learned_by_heart, unfrozen_later, rate_of_zero, autocast, pruned, large_rate,
        looking_ahead, small_gradients, key_biases, heads_in_turn, dropped_layers_of_zero,
        rare_experts, averages_put_in, looking_ahead_closely, pruned_by_and_by,
        of_one_size,
    )
}  # fmt: skip


def watched(oddity: Oddity, training: Training) -> sw.Watcher:
    """The watch of a training in which nothing is wrong."""
    own = oddity(training)
    return training.run() if own is None else own


def pairs_of(seed: int) -> list[tuple[str, str]]:
    """Models and optimizers that a seed is tried on: every second one."""
    return fault_zoo.PAIRS[::2] if seed % 2 else fault_zoo.PAIRS[1::2]


def said_of(
    oddity: str, seed: int, pairs: list[tuple[str, str]] | None = None
) -> dict[tuple[str, str], list[str]]:
    """The events of trainings that are well, by model and optimizer, of those that have any.

    That an expert has not been chosen yet is a note, and true.
    """
    said = {}
    for index, (model, optimizer) in enumerate(pairs or pairs_of(seed)):
        watcher = watched(ODDITIES[oddity], Training(model, optimizer, 10 * seed + index))
        assert all(r.valid and r.vital is not None and not r.vital.reason for r in watcher.records)
        events = [e for e in watcher.events if (oddity, e.kind) != ("experts", "idle")]
        if events:
            said[model, optimizer] = [event.describe() for event in events]
    return said
