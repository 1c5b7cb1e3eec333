"""What an x-ray shows for the first time and a person should see."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sparsitywatch.pipeline.pipeline import Reviewer
from sparsitywatch.records import Event, Record, XRay
from sparsitywatch.series import percent
from sparsitywatch.vital.judgement import event_at

#: A layer with this share of dead units reads hardly anything; it has died where once it had at
#: most the other share.
_DEAD, _ALIVE = 0.9, 0.5
#: Below this share of the most that it was, of so many bits at least, sign diversity collapsed.
_COLLAPSED, _DIVERSE = 0.5, 0.5


class XRayReviewer(Reviewer):
    """Makes events of layers that die, unreached ones, super weights, and signs that collapse.

    It remembers how alive each layer was at best: records let go of their layers.
    """

    def __init__(self) -> None:
        self._least_dead: dict[str, float] = {}
        self._step = -1  # the last one whose layers are in it

    def events(
        self, record: Record, earlier: Sequence[Record], told: Sequence[Event]
    ) -> list[Event]:
        """What the evaluations before did not show; again where twice as many tensors have it."""
        if record.xray is None:
            return []
        before = {r.step: r.xray for r in earlier if r.xray is not None}
        last, found = max(before, default=-1), []
        since = {"unreached": max((x for x in before if x < last), default=-1)}  # seen twice
        for step, xray in (*before.items(), (record.step, record.xray)):
            if step > self._step:
                self._remember(xray)
        self._step = max(self._step, record.step)
        for kind, names, reason in _signs(record.xray, list(before.values()), self._least_dead):
            known = {name for event in told if event.kind == kind for name in event.layers}
            tensors = tuple(dict.fromkeys(name.partition("[")[0] for name in names))
            if tensors and len(known.union(tensors)) >= 2 * len(known):
                event = event_at(
                    record, since.get(kind, last), kind=kind, series=f"xray/{kind}", direction="",
                    baseline=0.0, value=float(len(tensors)), layers=tensors, reason=reason,
                )  # fmt: skip
                found.append(event)
        return found

    def state_dict(self) -> dict[str, Any]:
        """The least share of dead units of each layer, by name."""
        return {"least_dead": dict(self._least_dead), "step": self._step}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what ``state_dict`` gave."""
        self._least_dead, self._step = dict(state["least_dead"]), int(state["step"])

    def _remember(self, xray: XRay) -> None:
        for name, share in zip(xray.layers.names, xray.layers.dead, strict=True):
            self._least_dead[name] = min(self._least_dead.get(name, 1.0), share)


def _signs(
    now: XRay, before: Sequence[XRay], least_dead: Mapping[str, float]
) -> Iterator[tuple[str, Sequence[str], str]]:
    """What is to be told of an x-ray: its kind, tensors or weights, and why."""
    last = before[-1] if before else XRay()
    shares, was = (dict(zip(x.layers.names, x.layers.dead, strict=True)) for x in (now, last))
    # what reads sparse data has many from the start, and is well
    yield "dead_units", [
        name for name, share in shares.items()
        if (share >= _DEAD and least_dead[name] <= _ALIVE)
        or (share == 1.0 and was.get(name) == 1.0)
    ], f"{percent(_DEAD)} or more of what they read is zero or nearly so"  # fmt: skip
    # by chance no token of few may be routed to an expert: twice in a row is none
    experts = [name for name in now.unreached if "expert" in name or "moe" in name]
    again = [name for name in experts if name in last.unreached]
    yield "unreached", again, "no held-out example came to them, twice in a row"
    which = ", ".join(now.super_weights[:3])
    why = f"{which} made more than half of an output {now.massive:,.0f} times the median"
    yield "super_weights", now.super_weights, why
    most = max((x.sign_diversity for x in before if x.sign_diversity > 0.0), default=0.0)
    pairs = sorted(zip(now.layers.sign_diversity, now.layers.names, strict=True))
    names = [name for x, name in pairs if x < _COLLAPSED * most]
    # one layer alone may read what has one sign, and where there was little there is little to lose
    if now.sign_diversity < _COLLAPSED * most and most >= _DIVERSE and len(names) > 1:
        fell = f"from {most:.2g} to {now.sign_diversity:.2g} bits"
        why = f"sign diversity fell {fell}: most units keep one sign on all examples"
        yield "sign_diversity", names, why
