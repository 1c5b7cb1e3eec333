"""An event in words, once: log, summary, webhook, figures, TensorBoard and page read these.

The result comes first, then where and why, then what people do about it.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from sparsitywatch.records.vital import SIGNS
from sparsitywatch.series import describe
from sparsitywatch.shown import shown_name

if TYPE_CHECKING:
    from sparsitywatch.records.event import Event

__all__ = ["advice", "cause", "headline", "sentences", "sequel", "when"]

_CHANGES = {
    "scale": "the scale of the weights moved",
    "shape": "the shape of the weights' distribution changed",
    "both": "scale and shape of the weights' distribution changed",
}
#: What a change says of the model, by its series and its direction.
_MEANINGS = {
    ("value/reliance", "up"): "the model begins to use the watched weights",
    ("value/reliance", "down"): "the model uses the watched weights less",
    ("essential_sparsity/value", "up"): "more of the weights could be removed without harm",
    ("essential_sparsity/value", "down"): "fewer of the weights could be removed without harm",
}
#: Weights that would be near zero only after so many times the steps so far are not seen to be.
_FAR = 10
_MOST_NAMES, _DORMANT = 3, "motion/dormant"


def headline(event: Event) -> str:
    """What happened, in a few words: "Near-zero weights rose abruptly from 8.9 % to 11.1 %"."""
    if event.kind == "replicas":
        ranks = ", ".join(map(str, event.ranks))
        return f"Replicas differ: rank{'s' if len(event.ranks) > 1 else ''} {ranks}"
    if event.kind in SIGNS:
        return f"{event.value:,.0f} tensor{'s' if event.value > 1 else ''} {SIGNS[event.kind]}"
    series = describe(event.series)
    if event.series == _DORMANT and event.direction == "up" and event.kind == "abrupt":
        return f"Units are dying: {series.shown(event.size)} of the weights get no gradient"
    verb = {"up": "rose", "down": "fell"}.get(event.direction, "changed")
    verb += {"abrupt": " abruptly", "steady": " steadily"}.get(event.kind, "")
    if event.kind == "steady" and event.baseline > 0.0:
        verb += f" to {event.value / event.baseline:.2f} times their floor,"
    if math.isnan(event.baseline) and math.isnan(event.value):
        return f"{shown_name(series.subject)} {verb}"
    sizes = f"from {series.shown(event.baseline)} to {series.shown(event.value)}"
    return f"{shown_name(series.subject)} {verb} {sizes}"


def sentences(event: Event) -> str:
    """What happened, when it began and was seen, where, why, and what came of it."""
    if event.kind == "replicas":
        return _replicas(event)
    if event.kind in SIGNS:
        return _sign(event)
    names = _names(event)
    first = f"{headline(event)}: {when(event)}{f', most in {names}' if names else ''}"
    # units that die make no weight small: that takes decay
    trend = [event.trend] if event.trend and event.series != _DORMANT else []
    more = "; ".join([*trend, *cause(event), *sequel(event)])
    return f"{first}. {more[0].upper()}{more[1:]}" if more else first


def when(event: Event) -> str:
    """When it began, with the interval of that, and when it was seen."""
    interval = ""
    if event.onset_low < event.onset_high:
        interval = f" ({event.onset_low:,} to {event.onset_high:,})"
    began = f"began at about step {event.onset_step:,}{interval}"
    return f"{began}, seen at step {event.detected_step:,}"


def cause(event: Event) -> list[str]:
    """What is known of the reason, a few words each."""
    known = _meaning(event)
    if event.num_not_finite:
        known.append(f"{event.num_not_finite:,} weights are NaN or infinite")
    if event.change in _CHANGES:
        known.append(_CHANGES[event.change])
    if event.explained_by_decay is not None:
        speed = "no faster" if event.explained_by_decay else "faster"
        known.append(f"{speed} than weight decay alone could")
    return known


def sequel(event: Event) -> list[str]:
    """What else saw it, what announced it, and what came of it, a few words each."""
    known = []
    if event.related:
        rows = map(describe, event.related)
        others = [row.label.partition(", ")[0] + _rule(row.label) for row in rows]
        known.append(f"seen in {', '.join(map(shown_name, others))} too")
    if event.preceded_by:
        series, _, step = event.preceded_by.partition("@")
        known.append(
            f"announced by {shown_name(describe(series).label)} at step {shown_name(step)}"
        )
    if event.reverted_step >= 0:
        known.append(f"back by half at step {event.reverted_step:,}")
    return known


def advice(event: Event) -> str:
    """What people do about such an event; never empty."""
    if event.kind == "replicas":
        return (
            "Stop the run and look at what these ranks do otherwise, their devices first. Go on "
            f"from a checkpoint of {_step(event.before_step, 'an earlier step')} or before."
        )
    if event.kind in SIGNS:
        earlier = _step(event.before_step, "an earlier step")
        return _SIGN_ADVICE[event.kind].format(before=earlier)
    before = event.before_step if event.before_step >= 0 else event.onset_step
    compare = f"Compare the checkpoints around steps {before:,} and {event.detected_step:,}"
    room = "dormant" if event.series == "motion/dormant" else event.series.partition("/")[0]
    words = _ADVICE.get((room, event.direction), "{compare}.")
    return words.format(compare=compare, decay=_DECAY[event.explained_by_decay])


def _meaning(event: Event) -> list[str]:
    """What the change says of the model, and when it will show in small weights."""
    meaning = _MEANINGS.get((event.series, event.direction))
    known = [] if meaning is None else [meaning]
    if event.near_zero_step >= 0:
        step = f"step {event.near_zero_step:,}"
        known.append(
            f"at the present decay half of them will be near zero by {step}"
            if event.near_zero_step <= _FAR * event.detected_step
            else f"decay is too weak to make them near zero soon: half of them would be by {step}"
        )
    return known


_DECAY = {
    True: "If it is unwanted, lower the weight decay of the layers named.",
    False: "Look for another cause than weight decay: pruning, a penalty, a jump in training.",
    None: "If it is unwanted, look at weight decay and activation of the layers named.",
}
#: By the room of a series and its direction; what is not here is compared.
_ADVICE = {
    ("dormant", "up"): "Nothing need be done now: near-zero weights may follow on the decay clock. "
    "If it is unwanted, look for units of the layers named that get no gradient.",
    ("dormant", "down"): "Nothing need be done: these weights get gradients again.",
    ("near_zero", "up"): "{compare}. {decay} Nothing need be done while the loss still falls.",
    ("near_zero", "down"): "Nothing need be done: weights grow back. {compare} if that surprises.",
    ("value", "up"): "Nothing need be done: the model began to need these weights.",
    ("value", "down"): "{compare}: the model needs these weights less than before.",
    ("essential_sparsity", "up"): "Nothing need be done: more could be removed now. {compare}.",
    ("essential_sparsity", "down"): "Nothing need be done: the model makes use of more weights.",
}


#: By kind of vital sign.
_SIGN_ADVICE = {
    "untrained": "Stop the run and put these tensors into the optimizer, or let the gradient reach "
    "them. If they are frozen on purpose, set requires_grad to False: that says so and is faster.",
    "rounding": "Keep float32 copies for the optimizer (or the weights in float32 under autocast), "
    "or raise the learning rate: as it is these tensors do not learn.",
    "decay": "Look at the weight decay of the param group that they are in: at what applies it, "
    "and whether these tensors ought to be in it.",
    "not_finite": "Stop the run and go on from a checkpoint of {before} or before.",
    "returned": "If nobody went back to a checkpoint on purpose, look for what overwrites weights: "
    "a reload, an average that is put back. After a rollback the steps count on as before.",
    "blew_up": "Look at the learning rate and the gradients of these tensors, and at what may have "
    "overwritten them. Go on from a checkpoint of {before} or before.",
}


def _step(step: int, unknown: str) -> str:
    return f"step {step:,}" if step >= 0 else unknown


def _names(event: Event) -> str:
    num = max(int(event.value), len(event.layers)) if event.kind in SIGNS else len(event.layers)
    more = num - _MOST_NAMES
    names = ", ".join(map(shown_name, event.layers[:_MOST_NAMES]))
    return names + (f" and {more} more" if more > 0 else "")


def _rule(label: str) -> str:
    """The part of a label that tells a series from the others of its family, in brackets."""
    rule = label.partition(", ")[2]
    return f" ({rule})" if rule else ""


def _sign(event: Event) -> str:
    since = f", not yet so at step {event.before_step:,}" if event.before_step >= 0 else ""
    text = f"{headline(event)}: {_names(event)}; {event.reason}; seen at step "
    text += f"{event.detected_step:,}{since}"
    if event.reverted_step >= 0:
        text += f"; over since step {event.reverted_step:,}"
    return text


def _replicas(event: Event) -> str:
    since = f", the same up to step {event.before_step:,}" if event.before_step >= 0 else ""
    text = (
        f"{headline(event)} did not hold the weights that other ranks held of {_names(event)}, "
        f"seen at step {event.detected_step:,}{since}. The records go on with what rank 0 holds"
    )
    if event.reverted_step >= 0:
        text += f"; all ranks agree again since step {event.reverted_step:,}"
    return text
