"""What commands share: tables, pages, and options that say what is read and measured."""

from __future__ import annotations

import argparse
import csv
import functools
import importlib
import json
import re
import shutil
import sys
import textwrap
from collections.abc import Callable, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsitywatch.errors import ConfigurationError
from sparsitywatch.patterns import PATTERNS
from sparsitywatch.redact import printable
from sparsitywatch.sinks.jsonl import replace_file

if TYPE_CHECKING:  # torch takes a second to import
    from sparsitywatch.settings import Settings


#: What does the work of a command; it returns the exit status, None for 0.
Command = Callable[[argparse.Namespace], int | None]


def add_command(
    commands: Any, name: str, run: Command, words: str, description: str | None = None
) -> argparse.ArgumentParser:
    """The parser of another command; ``words`` say what it shows."""
    parser: argparse.ArgumentParser = commands.add_parser(name, help=words, description=description)
    parser.set_defaults(run=run)
    return parser


def add_json(parser: argparse.ArgumentParser, words: str = "one JSON object, for programs") -> None:
    """Add the output for programs."""
    parser.add_argument("--json", action="store_true", help=words)


def align(rows: Sequence[tuple[str, ...]], right: set[int], *, piped: int = 80) -> list[str]:
    """Rows with the cells below each other, folded to fit; columns in ``right`` end together."""
    columns = [[_kept(printable(cell)) for cell in column] for column in zip(*rows, strict=True)]
    widths, gap = _fitting(columns, right, _width(piped))
    pads = [str.rjust if i in right else str.ljust for i in range(len(columns))]
    found = []
    for row in zip(*columns, strict=True):
        folded = [_folded(cell, width) for cell, width in zip(row, widths, strict=True)]
        padded = [
            [pad(part, width) for pad, part, width in zip(pads, line, widths, strict=True)]
            for line in zip_longest(*folded, fillvalue="")
        ]
        text = "\n".join((" " * gap).join(cells).rstrip() for cells in padded)
        found.append(text.replace("\u00a0", " "))
    return found


def _fitting(
    columns: Sequence[Sequence[str]], right: set[int], width: int
) -> tuple[list[int], int]:
    """A width for each column, the widest narrowed first, and the blanks between them."""
    words = [max(len(x) for cell in column for x in cell.split(" ")) for column in columns]
    for gap, longest in (
        (2, 28),
        (1, 28),
        (1, 16),
        (1, 8),
    ):  # a number stays whole, a name if it can
        widths = [max(map(len, column)) for column in columns]
        least = [n if i in right else min(n, longest) for i, n in enumerate(words)]
        over = sum(widths) + gap * (len(widths) - 1) - width
        while over > 0 and any(map(int.__gt__, widths, least)):
            widths[max(range(len(widths)), key=lambda i: (widths[i] > least[i], widths[i]))] -= 1
            over -= 1
        if over <= 0:
            break
    return widths, gap


def _folded(cell: str, width: int) -> list[str]:
    """The lines of a cell, broken between words, and long names where their parts end."""
    lines = [""]
    for piece in re.split(r"(?<=[ /_-])|(?<=[^\W\d]\.)", cell):
        if lines[-1] and len(lines[-1] + piece.rstrip(" ")) > width:
            lines.append("")
        lines[-1] += piece
        while len(lines[-1].rstrip(" ")) > width > 0:
            lines[-1:] = [lines[-1][:width], lines[-1][width:]]
    return [line.rstrip(" ") for line in lines]


def fold(text: str, *, piped: int = 80) -> str:
    """Lines that fit in the terminal; what goes on is set in. For programs there is ``--json``."""
    found = []
    for line in text.splitlines():
        inset = " " * (len(line) - len(line.lstrip()) + 2)
        folded = textwrap.wrap(
            _kept(line), _width(piped), subsequent_indent=inset, break_long_words=False,
            break_on_hyphens=False,
        )  # fmt: skip
        found.append("\n".join(folded).replace("\u00a0", " "))
    return "\n".join(found)


def _width(piped: int) -> int:
    """Columns of the terminal, or of COLUMNS; else as of a pipe."""
    return max(shutil.get_terminal_size((piped, 24)).columns, 20)


def _kept(text: str) -> str:
    """A number and its unit, and the ends of an interval, stay in one line."""
    return re.sub(r"(\d) (%|×)", "\\1\u00a0\\2", text)


def write_page(path: Path, page: str, option: str) -> None:
    """Write a page where an option says; the folder is made if need be."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, page.encode())  # a browser never sees half of it
    except OSError as error:
        raise ConfigurationError(
            f"Expected `{option}` to be a file that can be written, got {str(path)!r}: {error}."
        ) from error


# ------------------------------------------------------------------ where checkpoints lie


def add_places(parser: argparse.ArgumentParser) -> None:
    """Add where checkpoints lie."""
    add = parser.add_argument
    add("places", metavar="CHECKPOINT", nargs="*",
        help="a checkpoint, a folder or a pattern, on any storage that fsspec knows")  # fmt: skip
    add("--steps", metavar="CSV", type=Path,
        help="instead of them a file with a step and the address of its checkpoint in each line, "
        "where neither names nor contents say which step each is of")  # fmt: skip
    add("--key", metavar="PATH",
        help="what leads to the model in checkpoints that hold more than one, such as model_ema: "
        "a dotted path, or what the names of its tensors begin with")  # fmt: skip
    add("--storage-option", metavar="KEY=VALUE", action="append", default=[],
        help="what fsspec is given for the storage, such as endpoint_url=http://... or anon=true; "
        "VALUE is taken as JSON where it is JSON; may be repeated")  # fmt: skip


def add_checkpoint_options(parser: argparse.ArgumentParser) -> None:
    """Add where checkpoints lie, and which weights of them count."""
    add_places(parser)
    add = parser.add_argument
    add("--scope", metavar="PRESET|PATTERN", action="append", default=argparse.SUPPRESS,
        help="which weights count: blocks (the default), all, paper, layers, matrices, or a "
        "pattern of tensor names such as '*.query.weight'; patterns may be repeated")  # fmt: skip


def add_measuring_options(parser: argparse.ArgumentParser, words: str) -> None:
    """Add what is read, and how it is measured; ``words`` are of the output for programs."""
    add_checkpoint_options(parser)
    add_json(parser, words)
    _add_settings_options(parser)
    _add_model_options(parser)


def _places_of(arguments: argparse.Namespace) -> list[str] | dict[int, str]:
    """Where checkpoints lie, or which there are by step; an error if it is neither or both."""
    if bool(arguments.places) == bool(arguments.steps):
        came = "both" if arguments.steps else "neither"
        raise ConfigurationError(f"Expected CHECKPOINT or `--steps`, got {came}. Give one of them.")
    return steps_from(arguments.steps) if arguments.steps else list(arguments.places)


def steps_from(path: Path) -> dict[int, str]:
    """Addresses by step, from a CSV file of both, with or without names of the columns."""
    found: dict[int, str] = {}
    try:
        rows = list(csv.reader(path.read_text(encoding="utf-8-sig").splitlines()))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigurationError(f"Expected `--steps` to be a CSV file, but {error}.") from error
    for number, row in enumerate(rows, 1):
        step, address = [cell.strip() for cell in row] if len(row) == 2 else ("", "")
        is_step = step.isdecimal() and step.isascii()
        if is_step and address and int(step) not in found:
            found[int(step)] = address
        elif row and (number > 1 or is_step or not address):  # not the names of the columns
            raise ConfigurationError(
                f"Expected a new step and an address in line {number} of {str(path)!r} "
                f"(`--steps`), got {row!r}."
            )
    if not found:
        raise ConfigurationError(f"Expected steps and addresses in {str(path)!r} (`--steps`).")
    return found


def reading_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """Which are read, and how, as arguments of ``replay``; an error if that cannot be."""
    options: dict[str, Any] = {}
    for given in arguments.storage_option:
        key, equals, value = given.partition("=")
        if not key or not equals:
            # the value may be a secret: it is not repeated
            raise ConfigurationError(
                "Expected `--storage-option` of the form KEY=VALUE, got one without a key or '='."
            )
        if key in options:
            raise ConfigurationError(
                f"Expected `--storage-option` {key} once, got it twice. Give one value."
            )
        try:
            options[key] = json.loads(value)
        except ValueError:  # a text without quotes
            options[key] = value
    return {"urls": _places_of(arguments), "storage_options": options, "key": arguments.key}


# ------------------------------------------------------------------ what is measured


def _add_settings_options(parser: argparse.ArgumentParser) -> None:
    """Add the other fields of ``Settings``, each by its name; what is not given has its default."""
    group = parser.add_argument_group("settings", "what is measured, and how")
    add = functools.partial(group.add_argument, default=argparse.SUPPRESS)
    add("--levels", metavar="S,S,...", type=_levels,
        help="sparsities to evaluate, such as 0.5,0.9 (default: ten, and finer ones where the "
        "tolerance is first crossed)")  # fmt: skip
    add("--pattern", metavar="NAME",
        help="which weights a level removes (default: global): "
        + "; ".join(f"{name}: {words}" for name, (*_, words) in PATTERNS.items())
        + "; or score:structure:allocation, such as wanda:2:4 or magnitude:layer:owl")  # fmt: skip
    add("--controls", metavar="NAME", action="append",
        help="a pattern that is measured beside it at the same levels, such as random; may be "
        "repeated")  # fmt: skip
    add("--tolerance", metavar="EPSILON", type=float,
        help="harm that counts as none where weights are removed (default: 0.01)")  # fmt: skip
    add("--tolerance-mode", choices=("relative", "absolute"),
        help="the tolerance is a share of the dense value, or in units of the value (default: "
        "relative for losses, absolute for scores)")  # fmt: skip
    add("--confidence", metavar="P", type=float,
        help="coverage of the interval of essential sparsity (default: 0.9)")  # fmt: skip
    add("--near-zero", metavar="RULE", action="append",
        help="what counts as near zero, such as initial_0.1 or abs_0.001; may be repeated; the "
        "first one is watched for abrupt changes")  # fmt: skip
    add("--dormant-samples", metavar="N", type=_number_or_all,
        help="weights that are compared from one checkpoint to the next, or 'all' "
        "(default: 1000000)")  # fmt: skip


def settings_of(arguments: argparse.Namespace) -> Settings:
    """The settings that were given, and the defaults of the others."""
    from sparsitywatch.settings import Settings  # imports torch
    from sparsitywatch.weights.scope import PRESETS

    given = {name: value for name, value in vars(arguments).items() if name in Settings.names()}
    if len(given.get("scope", ())) == 1 and given["scope"][0] in PRESETS:
        (given["scope"],) = given["scope"]
    return Settings(**given)


def _levels(text: str) -> list[float]:
    return [float(level) for level in text.split(",")]


def _number_or_all(text: str) -> int | None:
    return None if text == "all" else int(text)


# ------------------------------------------------------------------ what is evaluated


def _add_model_options(parser: argparse.ArgumentParser) -> None:
    """Add the options to a command that may evaluate a model."""
    add = parser.add_argument_group(
        "evaluation", "without these nothing is run; what weights tell needs no model"
    ).add_argument
    add("--model", metavar="MODEL",
        help="a folder with a config.json of transformers; a type such as bert, with --config; or "
        "module:function, which makes it")  # fmt: skip
    add("--config", metavar="FILE", type=Path, help="the config of a type of model")
    add("--text", metavar="FILE", type=Path, help="a held-out text; its loss is the proxy")
    add("--tokenizer", metavar="FOLDER", type=Path, help="of the text; by default that of --model")
    add("--examples", metavar="N", type=int, default=128,
        help="windows of the text (default: 128)")  # fmt: skip
    add("--length", metavar="N", type=int, default=128,
        help="tokens in each (default: 128)")  # fmt: skip
    add("--proxy", metavar="MODULE:FUNCTION",
        help="makes the sparsitywatch.Proxy, instead of --text")  # fmt: skip


def _model_and_proxy(arguments: argparse.Namespace) -> dict[str, Any]:
    """How to make the model, and the proxy; a ConfigurationError if options do not go together."""
    model, text = arguments.model, arguments.text
    if model is None:
        for option in ("config", "text", "tokenizer", "proxy"):
            if vars(arguments)[option]:
                raise ConfigurationError(
                    f"Expected `--model` beside `--{option}`, got none: what to evaluate?"
                )
        return {}
    if arguments.proxy and text:
        raise ConfigurationError("Expected one of `--proxy` and `--text`, got both.")
    if ":" in model and not Path(model).exists():
        make = _named("--model", model)
    else:
        from sparsitywatch.integrations.language_models import make_model

        make = functools.partial(make_model, model, arguments.config)
    if arguments.proxy:
        return {"model": make, "proxy": _named("--proxy", arguments.proxy)()}
    if text is None:
        return {"model": make}
    from sparsitywatch.integrations.language_models import text_proxy

    folder = arguments.tokenizer or Path(model)
    size = {"num_examples": arguments.examples, "length": arguments.length}
    return {"model": make, "proxy": text_proxy(text, folder, make(), **size)}


def measuring_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """What is read, and how it is measured, as arguments of ``replay``."""
    return {
        **reading_options(arguments),
        "settings": settings_of(arguments),
        **_model_and_proxy(arguments),
    }


def _named(option: str, name: str) -> Any:
    """A function by its module and its name; modules of the working directory come first."""
    module, _, function = name.partition(":")
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        found = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigurationError(
            f"Expected `{option}` to be module:function, got {name!r}: {error}."
        ) from error
    if not callable(found):
        raise ConfigurationError(f"Expected `{option}` to name a function, got {found!r}.")
    return found
