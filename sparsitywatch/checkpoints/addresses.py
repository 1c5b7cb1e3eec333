"""What addresses state: a step, of what they are a part, and which of them are of one series.

Addresses of one series are the same, but for the step and what goes on with it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from itertools import pairwise

from sparsitywatch.weights.layout import natural_order

#: A sidecar asks for the same names again and again: so many are remembered.
_NUM_NAMES = 2**16
#: A link of a chained URL that has no path of its own, such as simplecache.
_BARE_LINK = re.compile(r"[a-z][a-z0-9_+]*")


def path_parts(url: str) -> list[str]:
    """The components of the path in a URL; of a chained one those of the first path in it."""
    links = url.split("::")
    while len(links) > 1 and _BARE_LINK.fullmatch(links[0]):
        del links[0]
    if "://" not in links[0]:  # no chain begins so: a local path
        links = ["::".join(links)]
    scheme, has_scheme, path = links[0].rpartition("://")
    if scheme in ("http", "https"):
        path = re.split("[?#]", path, maxsplit=1)[0]
    if has_scheme and len(links) > 1 and not path.strip("/"):  # all of an archive
        return path_parts("::".join(links[1:]))
    return [part for part in path.split("/") if part]


# ------------------------------------------------------------------ steps

#: 500, 1_000, 1,000 or 1.5, and then k, M or e5.
_NUMBER = (
    r"(?P<number>\d{1,3}(?:[_,]\d{3})+(?!\d)|\d+(?:\.\d+)?)"
    r"(?:[eE]\+?(?P<exponent>\d{1,2})|(?P<unit>[kKmM]))?(?![A-Za-z0-9\0]|-of-\d)"
)
_WHOLE = r"(?P<number>\d+)(?![A-Za-z0-9\0]|\.\d|-of-\d)"
#: What a day is written over with before a number is looked for that may be one.
_BLANK = "\0"
_GAP = rf"(?:__|--|[_=:. -]|[_-]?{_BLANK}+[_-]?)?"
#: "timestep5" and "lambda5" count something else.
_WORD = r"(?:(?<![A-Za-z])|(?<=[a-z])(?=[A-Z])|(?<=global)|(?<=train)|(?<=opt))"
_COUNTED = r"(?i:steps?|iterations?|iters?|itrs?|updates?)"
#: What a save may be called after: a part of the model, or what a save is.
_SAVED = (
    r"(?:[gG]|(?i:net(?:work)?(?:_g)?|gen(?:erator)?|agent|policy|state|snapshot|weights|training))"
)

#: What says that a number counts steps: these are believed, even where it looks like a date.
_SURE = (
    re.compile(rf"{_WORD}{_COUNTED}{_GAP}{_NUMBER}"),
    re.compile(rf"(?<![A-Za-z])ba{_NUMBER}"),  # Composer's ep0-ba1000: epoch, batches
    re.compile(rf"(?<![A-Za-z])checkpoint_\d+_(?!0\d){_WHOLE}"),  # fairseq's: epoch, updates
    re.compile(rf"(?<![A-Za-z0-9.]){_NUMBER}[_ -]{_COUNTED}$"),
    # of a few, such as sdxl_8step, an image is made
    re.compile(
        r"(?<![A-Za-z0-9.])(?P<number>\d{3,}|\d+(?:\.\d+)?(?=[kKmM]))(?P<unit>[kKmM])?"
        rf"{_COUNTED}$"
    ),
)
#: What may as well be a size (125m, 7b) or a day, and is a step only where it is neither.
_LIKELY = (
    re.compile(rf"{_WORD}(?i:checkpoint|ckpt){_GAP}{_NUMBER}(?<!m)"),
    re.compile(rf"{_WORD}(?i:model){_GAP}{_WHOLE}"),
    re.compile(rf"(?<![A-Za-z]){_SAVED}[_-](?=\d{{4}}){_WHOLE}"),
    # nobody fills up a seed or a size to so many digits
    re.compile(r"(?<=[A-Za-z][_-])(?<!epoch.)(?<!shard.)(?<!rank.)(?P<number>0\d{6,})$"),
    re.compile(rf"^{_NUMBER}(?<!m)$"),
)
#: Words before "steps" that make of them a setting, not how far training has come.
_SETTING = re.compile(
    r"(?:^|[^a-z])(?:accum(?:ulation)?|cooldown|decay|diffusion|eval|every|inference|log(?:ging)?"
    r"|max|min|n|num|per|sampling|save|total|val|warm_?up)[_. -]?$",
    re.IGNORECASE,
)
_DAY = re.compile(
    r"(?<!\d)(?:19|20)\d\d(?P<sep>[-_.]?)(?:0[1-9]|1[0-2])(?P=sep)(?:0[1-9]|[12]\d|3[01])"
    r"(?:[-_T ]?\d\d[-_:.h]?\d\d(?:[-_:.m]?\d\d)?)?(?!\d)"
)
_SUFFIX = re.compile(r"(?:\.(?:safetensors|bin|pt|pth|ckpt|tar|zip|tmp|part))+$")
#: Folders inside that of a step; those of its parts and ranks say no more.
_INNER = re.compile(
    r"model|weights|module|actor|critic|policy|huggingface|hf|consolidated|pytorch_model"
    r"|model_and_optim|(?:[tpdec]|sd)p_?\d+"
)
#: How deep inside the folder of a step weights may lie.
_MAX_PARTS = 6
#: No training goes on for so long; a number beyond it is a hash, or a time.
_TOO_MANY = 10**15


@dataclass(frozen=True)
class StepPlace:
    """The step that a path states, and where in it, as ``path_parts`` are with "/" between."""

    step: int
    is_sure: bool  # the name says that it counts steps
    begin: int  # of the words that say so: what stands before the number may be its epoch
    start: int  # of the number
    end: int


def step_of_name(url: str) -> int | None:
    """The step that the name of a checkpoint states, or that of the folder around it."""
    # a number counts if the name says that it counts steps, or if it is the whole name. Units are
    # read: 20k, 1.5M, 1e5, 1_000. Sizes of models, days, epochs, ranks and settings are no steps.
    place = place_of_step(url)
    return None if place is None else place.step


@lru_cache(_NUM_NAMES)
def place_of_step(url: str) -> StepPlace | None:
    """The step of ``step_of_name``, and where it stands."""
    parts = path_parts(url)
    last = list(enumerate(parts))[-_MAX_PARTS:]
    # of a folder inside that of a step, and of one of a rank, the name says nothing
    named = [(i, p) for i, p in last if not _INNER.fullmatch(p) and _PART.sub("", p).strip("_-")]
    for index, part in reversed(named[-2:]):
        match, is_sure = _match_in(_SUFFIX.sub("", part))
        step = None if match is None else _counted(match.groupdict())
        if match is not None and step is not None:
            end = max(match.end(key) for key in match.groupdict())
            before = sum(len(one) + 1 for one in parts[:index])
            spots = (match.start(), match.start("number"), end)
            return StepPlace(step, is_sure, *(before + spot for spot in spots))
    return None


def _match_in(stem: str) -> tuple[re.Match[str] | None, bool]:
    """What states a step in a name, and whether that is sure."""
    undated = _DAY.sub(lambda day: _BLANK * len(day[0]), stem)
    for patterns, text in ((_SURE, stem), (_LIKELY, undated)):
        for pattern in patterns:
            found = [m for m in pattern.finditer(text) if not _SETTING.search(text[: m.start()])]
            if found:
                return found[-1], patterns is _SURE
    return None, False


def _counted(said: dict[str, str | None]) -> int | None:
    value = Fraction(re.sub("[_,]", "", said["number"] or ""))
    value *= 10 ** {"": 0, "k": 3, "m": 6}[(said.get("unit") or "").lower()]
    value *= 10 ** int(said.get("exponent") or 0)
    return int(value) if value.denominator == 1 and value < _TOO_MANY else None


# ------------------------------------------------------------------ parts

#: mp_rank_00_000, tp_rank_00_pp_rank_001, world_size_8_rank_0, rank0-of-8, shard0.
_RANK = (
    r"(?:world_size_(?P<world>\d+)_)?(?P<axis>(?:[a-z]+_)?)(?:rank|shard)[_-]?(?P<rank>\d+)"
    r"(?P<stage>_\d{3})?(?:[_-]?of[_-]?(?P<ranks>\d+))?"
)
_PART = re.compile(
    rf"(?:^|(?<=[._-]))(?:{_RANK}|part[_-]?(?P<piece>\d+))(?![A-Za-z0-9])"
    r"|-(?P<shard>\d+)-of-(?P<shards>\d+)(?=\.|$)"
    r"|^__(?P<process>\d+)_\d+(?=\.|$)"  # what a process of FSDP saves by itself
    r"|^consolidated\.(?P<consolidated>\d+)(?=\.|$)"  # Llama as Meta published it
)
#: The rank of a matrix, not of a process.
_RANK_OF_A_MATRIX = re.compile(r"(?:lora|low|svd|lr|matrix|full)[_-]?$", re.IGNORECASE)


@dataclass(frozen=True)
class Part:
    """A name that says to be of one rank, or one of several files."""

    others: re.Pattern[str]  # what the names of the others match; numbers are left open
    depth: int  # how many components of the path follow on the one that says so
    is_one_of_several: bool  # whether there are others for certain, also where none are found


@lru_cache(_NUM_NAMES)
def part_of(url: str) -> Part | None:
    """What a path states of being a part; its last three components count."""
    for depth, name in enumerate(reversed(path_parts(url)[-3:])):
        found = [m for m in _PART.finditer(name) if not _is_of_a_matrix(name, m)]
        if found:
            is_sure = any(_has_others(match, is_file=depth == 0) for match in found)
            return Part(_with_open_numbers(name, found), depth, is_sure)
    return None


def _is_of_a_matrix(name: str, match: re.Match[str]) -> bool:
    before = name[: match.start()] + (match["axis"] or "")
    return match["rank"] is not None and _RANK_OF_A_MATRIX.search(before) is not None


def _has_others(match: re.Match[str], *, is_file: bool) -> bool:
    said = match.groupdict()
    if any(int(said[key] or 0) > 1 for key in ("world", "ranks", "shards")) or said["stage"]:
        return True
    # without a number 0 there is at least that one; "rank8/" may be many things
    number = said["rank"] if is_file or said["axis"] else None
    return int(number or said["process"] or said["consolidated"] or 0) > 0


def _with_open_numbers(name: str, found: list[re.Match[str]]) -> re.Pattern[str]:
    pattern, end = "", 0
    for match in found:
        pattern += re.escape(name[end : match.start()]) + re.sub(r"\d+", r"\\d+", match[0])
        end = match.end()
    return re.compile(pattern + re.escape(name[end:]))


# ------------------------------------------------------------------ names until a writer is done

_TEMPORARY_START = re.compile(r"^[._]*tmp[._-]", re.I)
_TEMPORARY_END = re.compile(r"\.(?:tmp|part|partial|incomplete|saving)(?:[._-]\w*)?$|~$", re.I)


def is_temporary(url: str) -> bool:
    """Whether a name is one that a writer uses until it is done."""
    # of the folder around only if that is of a step itself: a run may lie in tmp_exp
    *around, name = path_parts(url)[-2:] or [""]
    if _TEMPORARY_END.search(name):
        return True
    return any(
        (_TEMPORARY_START.search(part) or _TEMPORARY_END.search(part))
        and step_of_name(without_temporary(part)) is not None
        for part in (*around, name)
    )


def without_temporary(name: str) -> str:
    """The name that a file will have once its writer is done: step-5.pt of step-5.pt.tmp."""
    return _TEMPORARY_END.sub("", _TEMPORARY_START.sub("", name))


# ------------------------------------------------------------------ series

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
    rf"(?P<day>{_DAY.pattern})"
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
    """The series of each address, given the steps: "*" is what else changes within a run."""
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
    if _IDENTITY.fullmatch(one.words[0]):
        return False
    pairs = zip(column, steps, strict=True)
    is_step = all(v.is_again or (v.text.isdecimal() and int(v.text) == step) for v, step in pairs)
    # of one address: a folder elsewhere may have the same number by chance
    is_step &= len(column) > 1 or one.is_beside
    if is_step or any(map(_PROGRESS.fullmatch, one.words)):
        return True
    if len(set(texts)) == 1 or not one.is_beside:
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
    rises = all(a <= b for a, b in pairwise(value.number for _, _, value in in_order))
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
