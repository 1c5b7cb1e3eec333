"""Which addresses are of one series: the same ones, but for the step and what goes on with it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

from sparsitywatch.checkpoints.step_from_path import StepPlace, path_parts, place_of_step
from sparsitywatch.weights.layout import natural_order

#: What changes within a run, by the word before or after a number.
_PROGRESS = re.compile(
    r"epochs?|ep|tok(?:ens?)?|samples|examples|seen|hours?|days|time(?:stamp)?|elapsed|loss|acc"
    r"|accuracy|ppl|perplexity|bleu|rouge|wer|cer|f|score|metric|map|m?iou|psnr|ssim|fid|auc|reward"
    r"|return|r?mse|mae|err(?:or)?|bpb|bpc|norm|ranks?|shard|part|gpu|worker|node|proc(?:ess)?"
    r"|device|host|consolidated"
)
#: What tells runs apart, also where it happens to rise with the step.
_IDENTITY = re.compile(
    r"runs?|seed|exp(?:eriment)?|trial|version|v|fold|lr|wd|id|job|try|attempt|stage|phase|copy"
    r"|replica"
)
_LATE = r"last|latest|newest|current|final|end|best|init|initial|resume|main"
_WHAT = r"checkpoint|ckpt|weights|state|(?:pytorch[_-])?model|consolidated"
#: A name that says what a checkpoint is for its run, not its step; Lightning adds "-v1".
_ROLE = re.compile(
    rf"(?:(?:{_LATE})(?:[_.-]?(?:{_WHAT}))?|(?:{_WHAT})(?:[_.-]?(?:{_LATE}))?)(?:-v\d+)?"
    r"(?:\.[a-z][\w.]*)?",
    re.IGNORECASE,
)
#: The same beside a step: step_500_best.pt.
_ROLE_BESIDE = re.compile(rf"(?<![A-Za-z])(?:{_LATE})[_.-]|[_.-](?:{_LATE})(?![A-Za-z])", re.I)
#: A day, a hash or a number: what may change from one address to the next.
_VALUE = re.compile(
    r"(?P<day>(?<!\d)(?:19|20)\d\d[-_.]?(?:0[1-9]|1[0-2])[-_.]?(?:0[1-9]|[12]\d|3[01])"
    r"(?:[-_T ]?\d\d[-_:.h]?\d\d(?:[-_:.m]?\d\d)?)?(?!\d))"
    r"|(?P<hash>(?<![A-Za-z0-9])(?=\d*[a-f])(?=[a-f]*\d)[\da-f]{7,64}(?![A-Za-z0-9]))"
    r"|(?P<number>(?:(?<==)-)?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?(?:[kKmMbBtT](?![A-Za-z0-9]))?"
    r"|(?<==)-?(?:nan|inf)(?![A-Za-z0-9]))"
)
_BEFORE, _AFTER = re.compile(r"([A-Za-z]+)[_=:. -]*$"), re.compile(r"[_=:. -]?([A-Za-z]+)")
_UNITS = {"k": 1e3, "m": 1e6, "b": 1e9, "t": 1e12}


@dataclass(frozen=True)
class _Value:
    """A number, a day or a hash in an address."""

    text: str
    kind: str
    words: tuple[str, ...]  # those before and after it, in lower case
    is_beside: bool  # in the component of the step
    is_of_step: bool  # the step once more, or what is said of it in front

    @property
    def is_identity(self) -> bool:
        return _IDENTITY.fullmatch(self.words[0]) is not None

    def is_of(self, step: int) -> bool:
        """Whether it is the step, or belongs to it."""
        return self.is_of_step or (self.text.isdecimal() and int(self.text) == step)

    @property
    def number(self) -> float:
        """Of a number; its unit counts."""
        unit = _UNITS.get(self.text[-1].lower())
        return float(self.text) if unit is None else float(self.text[:-1]) * unit


@dataclass(frozen=True)
class _Address:
    """An address whose step is "{step}", with every other number a place to be filled."""

    texts: tuple[str, ...]  # one more than values
    values: tuple[_Value, ...]
    folders: tuple[str, ...]  # the components as they are; with what stands before and after
    at: int  # of these, the one with the step; -1 if none has one

    def filled(self, kept: Sequence[bool]) -> str:
        """The address; what is not kept is "*"."""
        words = [value.text if keep else "*" for value, keep in zip(self.values, kept, strict=True)]
        return "".join(text + word for text, word in zip(self.texts, [*words, ""], strict=True))


def templates(steps: Mapping[str, int]) -> dict[str, str]:
    """The series that each address belongs to, given the steps by address.

    A series is called by its addresses: "{step}" stands for the step, "*" for what changes within a
    run, such as an epoch, tokens, a loss, a rank.
    """
    read = {url: _read(url) for url in steps}
    alike: dict[tuple[str, ...], list[str]] = {}
    for url, address in read.items():
        alike.setdefault(address.texts, []).append(url)
    found: dict[str, str] = {}
    for urls in alike.values():
        columns = zip(*(read[url].values for url in urls), strict=True)
        kept = [not _is_no_part(column, [steps[url] for url in urls]) for column in columns]
        found.update((url, read[url].filled(kept)) for url in urls)
    places = {a.folders[: a.at]: found[url] for url, a in read.items() if a.at >= 0}
    for url, address in read.items():
        if address.at < 0:
            found[url] = _by_role(address.folders, places, found[url])
    return found


def short_names(series: Sequence[str]) -> dict[str, str]:
    """A name of a folder for each series: the components in which they differ."""
    parts = {name: name.split("/") for name in series}
    shared = set.intersection(*map(set, parts.values()))
    names: dict[str, str] = {}
    for name in sorted(series, key=natural_order):
        own = [part for part in parts[name] if part not in shared] or parts[name][-2:-1]
        short = re.sub(r"\{step\}|[^A-Za-z0-9.=_-]+", "", "-".join(own)).strip("._-") or "series"
        number = sum(taken == short or taken.startswith(f"{short}~") for taken in names.values())
        names[name] = f"{short}~{number + 1}" if number else short
    return names


def _by_role(folders: tuple[str, ...], places: Mapping[tuple[str, ...], str], own: str) -> str:
    """The series whose last or best checkpoint this is by its name, else its ``own``."""
    if folders in places:  # a Trainer leaves its best model in the folder of the run
        return places[folders]
    for at in (len(folders) - 1, len(folders) - 2):  # a file, or the folder that it is in
        if _ROLE.fullmatch(folders[at]) and folders[:at] in places:
            return places[folders[:at]]
    return f"{own.rpartition('/')[0]}/*" if _ROLE.fullmatch(folders[-1]) else own


def _is_no_part(column: Sequence[_Value], steps: Sequence[int]) -> bool:
    """Whether what stands at one place of addresses changes within a run."""
    one, texts = column[0], [value.text for value in column]
    if not one.is_identity and any(map(_PROGRESS.fullmatch, one.words)):
        return True
    if not one.is_identity and all(map(_Value.is_of, column, steps)):
        return True
    if len(set(texts)) == 1 or not one.is_beside or one.is_identity:
        return False
    kinds = {value.kind for value in column}
    if "day" in kinds:
        return True
    in_order = sorted(zip(steps, texts, column, strict=True), key=lambda row: row[0])
    num_steps, num_texts = len(set(steps)), len(set(texts))
    if len({row[:2] for row in in_order}) > num_steps:
        return False  # it differs at one step
    if "hash" in kinds or any("." in text for text in texts):
        return 2 * num_texts > num_steps  # such as a commit, a loss: the value of a run stays
    counts = [value.number for _, _, value in in_order]
    rises = all(a <= b for a, b in pairwise(counts))
    return rises and (num_texts == num_steps or not one.words[0])


@lru_cache(2**16)
def _read(url: str) -> _Address:
    parts, place = path_parts(url), place_of_step(url)
    path = "/".join(parts)
    before, _, after = url.partition(path) if path in url else ("", "", "")
    after = after if after.startswith("::") else ""
    at = -1 if place is None else place.component
    texts, values = [before], []
    for index, part in enumerate(parts):
        texts[-1] += "/" if index else ""
        is_beside = index == (at if at >= 0 else len(parts) - 1)
        for found in _pieces(part, place, is_beside=is_beside, has_step=index == at):
            if isinstance(found, str):
                texts[-1] += found
            else:
                values.append(found)
                texts.append("")
    texts[-1] += after
    return _Address(
        tuple(texts), tuple(values), (before + after, *parts), at + 1 if at >= 0 else -1
    )


def _pieces(
    part: str, place: StepPlace | None, *, is_beside: bool, has_step: bool
) -> Iterator[str | _Value]:
    """What a component of a path consists of: text, "{step}" for the step, and values."""
    step, front, chunks = None if place is None else place.step, len(part), [part]
    if place is not None and has_step:
        front, chunks = place.begin, [part[: place.start], part[place.end :]]
    for number, chunk in enumerate(chunks):
        if number:
            yield "{step}"
        text = _ROLE_BESIDE.sub(lambda m: "\0" * len(m[0]), chunk) if has_step else chunk
        end = 0
        for match in _VALUE.finditer(text):
            yield text[end : match.start()].replace("\0", "")
            words = _BEFORE.search(text[: match.start()]), _AFTER.match(text[match.end() :])
            is_again = match[0].isdecimal() and int(match[0]) == step
            yield _Value(
                text=match[0],
                kind=match.lastgroup or "",
                words=tuple(word[1].lower() if word else "" for word in words),
                is_beside=is_beside,
                is_of_step=is_again or (number == 0 and match.start() >= front),
            )
            end = match.end()
        yield text[end:].replace("\0", "")
