"""Which addresses are of one series: the same ones, but for the step and what goes on with it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

from sparsitywatch.checkpoints.step_from_path import path_parts, place_of_step
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
    is_again: bool  # the step of the name once more

    @property
    def is_identity(self) -> bool:
        return _IDENTITY.fullmatch(self.words[0]) is not None

    def is_of(self, step: int) -> bool:
        """Whether it is the step."""
        return self.is_again or (self.text.isdecimal() and int(self.text) == step)

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
    parts: tuple[str, ...]  # the components as they are; first what stands around the path
    around: tuple[str, ...] | None  # those before the one with the step, if one has it

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
    places = {a.around: found[url] for url, a in read.items() if a.around}
    for url, address in read.items():
        if address.around is None:
            found[url] = _by_role(address.parts, places, found[url])
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


def _by_role(parts: tuple[str, ...], places: Mapping[tuple[str, ...], str], own: str) -> str:
    """The series whose last or best checkpoint this is by its name, else its ``own``."""
    if parts in places:  # a Trainer leaves its best model in the folder of the run
        return places[parts]
    for at in (len(parts) - 1, len(parts) - 2):  # a file, or the folder that it is in
        if _ROLE.fullmatch(parts[at]) and parts[:at] in places:
            return places[parts[:at]]
    return f"{own.rpartition('/')[0]}/*" if _ROLE.fullmatch(parts[-1]) else own


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
    place, parts = place_of_step(url), path_parts(url)
    path = "/".join(parts)
    before, _, after = url.partition(path) if path and path in url else ("", "", "")
    after = after if after.startswith("::") else ""
    begin = path.rfind("/", 0, None if place is None else place.start) + 1
    around, own, rest = None, path[begin:], ""
    if place is not None:
        around = (before + after, *parts[: path.count("/", 0, begin)])
        front = path[begin : place.begin] + re.sub(r"\d+", "*", path[place.begin : place.start])
        behind, slash, rest = path[place.end :].partition("/")
        own, rest = _ROLE_BESIDE.sub("", f"{front}{{step}}{behind}"), slash + rest
    text, texts, values, end = path[:begin] + own + rest, [before], [], 0
    for match in _VALUE.finditer(text):
        words = _BEFORE.search(text[: match.start()]), _AFTER.match(text[match.end() :])
        values.append(
            _Value(
                text=match[0],
                kind=match.lastgroup or "",
                words=tuple(word[1].lower() if word else "" for word in words),
                is_beside=begin <= match.start() < begin + len(own),
                is_again=place is not None and match[0].isdecimal() and int(match[0]) == place.step,
            )
        )
        texts[-1] += text[end : match.start()]
        texts.append("")
        end = match.end()
    texts[-1] += text[end:] + after
    return _Address(tuple(texts), tuple(values), (before + after, *parts), around)
