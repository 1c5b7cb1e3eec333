"""Ways in which a training turns sparse, for a truth table: what each does to a course."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from contracts.course import LAST, Course
from contracts.fault_zoo import matrices
from torch.nn import functional

MIDDLE = 80  # what begins in the middle begins after this step


def stepped_by(kind: type, course: Course, **options: float) -> None:
    course.optimizer = kind(course.model.parameters(), **options)


def multiply(course: Course, factor: float) -> None:
    with torch.no_grad():
        for name in matrices(course):
            course.named[name].mul_(factor)


@torch.no_grad()
def kept_of(weight: torch.Tensor, share: float) -> torch.Tensor:
    """True for what is kept where the smallest share goes."""
    number = max(int(share * weight.numel()), 1)
    return weight.abs() > weight.abs().flatten().kthvalue(number).values


@torch.no_grad()
def drop(course: Course, share: float, names: Iterable[str] = ()) -> dict[str, torch.Tensor]:
    """Set the smallest weights of each matrix to zero; gives what is kept."""
    masks = {n: kept_of(course.named[n], share) for n in names or matrices(course)}
    apply(course, masks)
    return masks


@torch.no_grad()
def apply(course: Course, masks: dict[str, torch.Tensor]) -> None:
    for name, mask in masks.items():
        course.named[name].mul_(mask)


ONE = "layers.1.up.weight"


def penalty(strength: float, onset: int = 0, names: Iterable[str] = ()) -> Callable[[Course], Any]:
    """L1, by its gradient."""

    def do(course: Course) -> Iterable[str]:
        chosen = list(names) or matrices(course)

        def push(_: int) -> None:
            for name in chosen:
                weight = course.named[name]
                weight.grad.add_(weight.detach().sign(), alpha=strength)

        course.before_each(push, after=onset)
        return names

    return do


def coupled(kind: type, decay: float, onset: int = 0) -> Callable[[Course], None]:
    """L2 in the gradient, which the optimizer divides by its size."""

    def do(course: Course) -> None:
        stepped_by(kind, course, lr=3e-3, weight_decay=0.0 if onset else decay)
        if onset:
            (group,) = course.optimizer.param_groups
            course.after(onset, lambda: group.update(weight_decay=decay))

    return do


def decayed(decay: float, onset: int = 0) -> Callable[[Course], None]:
    def do(course: Course) -> None:
        course.make_optimizer(weight_decay=0.0 if onset else decay)
        if onset:
            (group,) = course.optimizer.param_groups
            course.after(onset, lambda: group.update(weight_decay=decay))

    return do


def softened(by: float, onset: int = 0, *, rows: bool = False) -> Callable[[Course], None]:
    """A proximal step after each step: of each weight, or of each row's norm."""

    @torch.no_grad()
    def prox(course: Course) -> None:
        for name in matrices(course):
            weight = course.named[name]
            if rows:
                norm = weight.norm(dim=1, keepdim=True)
                weight.mul_((1.0 - by / norm.clamp_min(1e-12)).clamp_min(0.0))
            else:
                weight.copy_(functional.softshrink(weight, by))

    return lambda course: course.after_each(lambda _: prox(course), after=onset)


def pruned(
    share: float, onset: int = MIDDLE, names: tuple[str, ...] = (), *, held: bool = True
) -> Callable[[Course], Iterable[str]]:
    """Once, the smallest; held: masks are applied after each step from then on."""

    def do(course: Course) -> Iterable[str]:
        masks: dict[str, torch.Tensor] = {}
        course.after(onset, lambda: masks.update(drop(course, share, names)))
        if held:
            course.after_each(lambda _: apply(course, masks), after=onset)
        return names

    return do


def masked(share: float, onset: int = 0) -> Callable[[Course], None]:
    """Random masks after each step."""

    def do(course: Course) -> None:
        draw = torch.Generator().manual_seed(course.seed)
        masks = {n: torch.rand(course.named[n].shape, generator=draw) >= share
                 for n in matrices(course)}  # fmt: skip
        course.after_each(lambda _: apply(course, masks), after=onset)

    return do


def gradually(
    share: float, onset: int = 0, names: tuple[str, ...] = ()
) -> Callable[[Course], Iterable[str]]:
    """More and more of the smallest, by the end so many."""

    def do(course: Course) -> Iterable[str]:
        def prune(step: int) -> None:
            now = share * (step - onset) / (LAST - onset)
            drop(course, now, names)

        course.after_each(prune, after=onset)
        return names

    return do


def rows_zeroed(
    rows: int, onset: int = MIDDLE, *, by_and_by: bool = False
) -> Callable[[Course], list[str]]:
    """The first rows of one matrix, at once or one after the other."""

    def do(course: Course) -> list[str]:
        def zero(step: int) -> None:
            now = rows * (step - onset) // (LAST - onset) if by_and_by else rows
            course.named[ONE].data[:now] = 0.0

        course.after_each(zero, after=onset)
        return [ONE]

    return do


def shrunk(factor: float, onset: int = 0) -> Callable[[Course], None]:
    """All weights of all layers, by a little after each step."""
    return lambda course: course.after_each(lambda _: multiply(course, factor), after=onset)


def made_small(course: Course) -> None:
    """Two fifths become small, and not zero, and hardly move from there."""
    draw = torch.Generator().manual_seed(course.seed)
    masks = {n: torch.where(torch.rand(course.named[n].shape, generator=draw) < 0.4, 0.01, 1.0)
             for n in matrices(course)}  # fmt: skip
    course.after(MIDDLE, lambda: apply(course, masks))
    course.make_optimizer(lr=1e-3, weight_decay=0.0)


def cut_to_zero(course: Course) -> None:
    """What is below a threshold becomes zero after each step, a hard threshold that rises."""

    @torch.no_grad()
    def cut(step: int) -> None:
        for name in matrices(course):
            weight = course.named[name]
            weight.mul_(weight.abs() > 1e-3 * step)

    course.after_each(cut)


def two_of_four(course: Course) -> None:
    """Of four neighbours the two smallest go."""

    @torch.no_grad()
    def choose() -> None:
        for name in matrices(course):
            weight = course.named[name]
            fours = weight.abs().reshape(-1, 4)
            mask = torch.zeros_like(fours).scatter_(1, fours.topk(2).indices, 1.0)
            masks[name] = mask.reshape(weight.shape).bool()
        apply(course, masks)

    masks: dict[str, torch.Tensor] = {}
    course.after(MIDDLE, choose)
    course.after_each(lambda _: apply(course, masks), after=MIDDLE)


def sparse_at_first(course: Course) -> None:
    masks = drop(course, 0.7)
    course.after_each(lambda _: apply(course, masks))


def sparser_still(course: Course) -> None:
    masks = drop(course, 0.5)
    course.after(MIDDLE, lambda: masks.update(drop(course, 0.9)))
    course.after_each(lambda _: apply(course, masks))


def dead_and_decayed(course: Course) -> None:
    """Most units of each layer die, and weight decay shrinks what they had."""
    decayed(10.0, MIDDLE)(course)

    @torch.no_grad()
    def kill() -> None:
        for layer in course.model.layers:
            layer.up.bias[:40] = -30.0

    course.after(MIDDLE, kill)


def regrown(course: Course) -> None:
    """Pruned once, and a large rate grows them back."""
    pruned(0.5, held=False)(course)
    course.make_optimizer(lr=1e-2, weight_decay=0.0)
