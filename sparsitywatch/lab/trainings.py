"""The trainings of a fine-tuned curve that are done, in a file that several processes may share."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sparsitywatch.errors import MeasurementError, StateError
from sparsitywatch.processes import held

#: What every line is of, as the first one says.
_SAME = ("pattern", "scope", "proxy")


@dataclass(frozen=True, kw_only=True)
class DoneTraining:
    """One training that is done."""

    seed: int
    level: float
    sparsity: float  # counted in the model that was evaluated
    value: float
    examples: tuple[float, ...] = ()  # the value of each, of which ``value`` is the mean
    dense: str  # fingerprint of the model before it was pruned
    trained: str  # of the one that was evaluated
    is_changed: bool  # whether training changed any weight
    drawn: str  # of the global generators afterwards; empty where training drew nothing


class TrainingLog:
    """What is done, by seed and level; in a file too, under what the trainings are of."""

    # a training is claimed by a lock that ends with the process that holds it: no two do the same
    # one, and what a killed one has begun is left to the others

    def __init__(self, file: Path | None, experiment: Mapping[str, Any]) -> None:
        self.file, self.experiment = file, experiment
        self.found: dict[tuple[int, float], DoneTraining] = {}
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
        with self._read():
            pass

    def add(self, one: DoneTraining) -> None:
        """Keep a training, here and in the file; refused if it is that of another seed again."""
        with self._read():
            refuse_equal([*self.found.values(), one], log=self.file)
            self.found[one.seed, one.level] = one
            line = {name: value for name, value in asdict(one).items() if value != ()}
            self._write(line | {name: self.experiment[name] for name in _SAME})

    @contextlib.contextmanager
    def claimed(self, seed: int, level: float, *, wait: bool) -> Iterator[bool]:
        """Whether a training is this process's to do; with ``wait`` once no other does it."""
        if self.file is None:
            yield True
            return
        claim = self.file.with_name(f"{self.file.name}.{seed}-{level!r}.claim")
        with held(claim, wait=wait) as is_ours:
            with self._read():
                pass
            yield is_ours
            if is_ours:  # it is done, as who waits for it finds in the file
                claim.unlink(missing_ok=True)

    def expect_same(self, name: str, given: Any, had: Any) -> None:
        """A StateError where the file is of something else."""
        if given != had:
            raise StateError(
                f"Expected `log` {str(self.file)!r} to be of `{name}` {given!r}, got one that was "
                f"begun with {had!r}. Give it the same ones (seeds and levels may be added), or "
                "each experiment a file of its own."
            )

    @contextlib.contextmanager
    def _read(self) -> Iterator[None]:
        """Nobody writes to the file meanwhile, and all that others have done is known."""
        if self.file is None:
            yield
            return
        with held(self.file):
            text = self.file.read_bytes()
            *lines, rest = text.split(b"\n")
            if not lines and not json.dumps(self.experiment).encode().startswith(rest):
                lines = [rest]  # no first line of a log that a kill cut short
            for number, line in enumerate(lines, start=1):
                self._parse(number, line)
            if rest:  # a kill came while it was written
                os.truncate(self.file, len(text) - len(rest))
            if not lines:
                self._write(self.experiment)
            yield

    def _parse(self, number: int, line: bytes) -> None:
        try:
            said = json.loads(line)
            of = {name: said.pop(name) for name in (self.experiment if number == 1 else _SAME)}
            if number > 1:
                one = DoneTraining(**said | {"examples": tuple(said.get("examples", ()))})
                self.found[one.seed, one.level] = one
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            what = "what it is of" if number == 1 else "a training"
            raise StateError(
                f"Expected {what} in line {number} of `log` {str(self.file)!r}, got {error!r}."
            ) from error
        for name, had in of.items():
            self.expect_same(name, self.experiment[name], had)

    def _write(self, line: Mapping[str, Any]) -> None:
        if self.file is not None:
            with self.file.open("a") as file:
                file.write(json.dumps(line) + "\n")
                file.flush()
                os.fsync(file.fileno())


def refuse_equal(
    trainings: Iterable[DoneTraining], levels: Collection[float] = (), *, log: Path | None = None
) -> None:
    """A MeasurementError where two seeds gave the same weights: they are no two trainings."""
    # where nothing is trained the pattern alone may draw, so that dense models are alike: two seeds
    # are then the same one if they are at all of these ``levels``
    by_seed: dict[int, dict[float, DoneTraining]] = {}
    for training in trainings:
        by_seed.setdefault(training.seed, {})[training.level] = training
    for first, second in itertools.combinations(by_seed.values(), 2):
        same = [k for k in first if k in second and first[k].trained == second[k].trained]
        trained = [level for level in same if first[level].is_changed]
        if not trained and not (levels and set(levels) <= set(same)):
            continue
        one, other = first[(trained or same)[0]], second[(trained or same)[0]]
        why = "what `train` draws makes no difference"
        if not one.is_changed:
            why = "nothing was trained, and nothing drawn"
        elif not one.drawn:
            why = "`train` draws nothing from the global generators of torch, numpy and python"
        elif one.drawn == other.drawn:
            why = (
                "`train` seeds the generators itself, as transformers' Trainer does by "
                "TrainingArguments(seed=42)"
            )
        begin = f" Begin a new `log`: {str(log)!r} has such a training." if log else ""
        raise MeasurementError(
            f"Expected other weights after the training of seed {other.seed} than of seed "
            f"{one.seed}, got the same bit for bit at level {one.level:g}: {why}. Let `train` take "
            f"`run` and seed by run.seed whatever it seeds, or give one of `seeds`.{begin}"
        )
