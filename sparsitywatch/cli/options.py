"""Options of the commands that read checkpoints: where they lie, what is measured, the model."""

from __future__ import annotations

import argparse
import functools
import importlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsitywatch.errors import ConfigurationError

if TYPE_CHECKING:  # torch takes a second to import
    from torch import nn

    from sparsitywatch.pruning.proxy import Proxy
    from sparsitywatch.settings import Settings

__all__ = [
    "add_checkpoint_options",
    "add_model_options",
    "add_settings_options",
    "model_and_proxy",
    "settings_of",
    "storage_options",
]


def add_checkpoint_options(parser: argparse.ArgumentParser) -> None:
    """Add where checkpoints lie, and which weights of them count."""
    parser.add_argument(
        "places",
        metavar="CHECKPOINT",
        nargs="+",
        help="a checkpoint, a folder of them or a pattern, on any storage that fsspec knows",
    )
    parser.add_argument(
        "--scope",
        metavar="PRESET|PATTERN",
        action="append",
        default=argparse.SUPPRESS,
        help="which weights count: blocks (the default), paper, layers, matrices, or a pattern of "
        "tensor names such as '*.query.weight'; patterns may be repeated",
    )
    parser.add_argument(
        "--storage-option",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help="what fsspec is given for the storage, such as endpoint_url=http://... or anon=true; "
        "VALUE is taken as JSON where it is JSON; may be repeated",
    )
    parser.add_argument(
        "--duplicates",
        choices=("refuse", "first"),
        default="refuse",
        help="of several checkpoints of one step that do not hold the same weights, such as one "
        "for each rank, take none (default), or the first",
    )


def storage_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """The options of the storage that were given.

    Raises:
        ConfigurationError: one is not of the form KEY=VALUE, or a key is there twice.
    """
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
        options[key] = _value(value)
    return options


def _value(text: str) -> Any:
    """JSON where it is JSON, else the text itself.

    >>> _value("true"), _value('{"region_name": "eu"}'), _value("http://localhost:9000")
    (True, {'region_name': 'eu'}, 'http://localhost:9000')
    """
    try:
        return json.loads(text)
    except ValueError:
        return text


# ------------------------------------------------------------------ what is measured


def add_settings_options(parser: argparse.ArgumentParser) -> None:
    """Add the other fields of ``Settings``, each by its name; what is not given has its default."""
    group = parser.add_argument_group("settings", "what is measured, and how")
    add = functools.partial(group.add_argument, default=argparse.SUPPRESS)
    add("--levels", metavar="S,S,...", type=_levels,
        help="sparsities to evaluate, such as 0.5,0.9 (default: ten, and finer ones where the "
        "tolerance is first crossed)")  # fmt: skip
    add("--pattern", metavar="NAME",
        help="what a level means: global, global_normalised, layerwise, per_row, random, erk, "
        "wanda, sparsegpt, or keep_2_of_4 (default: global)")  # fmt: skip
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
    """The settings that were given, and the defaults of the others.

    Raises:
        ConfigurationError: a value cannot be used; the field is named.
    """
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


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Add the options to a command that may evaluate a model."""
    group = parser.add_argument_group(
        "evaluation", "without these nothing is run; what weights tell needs no model"
    )
    group.add_argument(
        "--model",
        metavar="MODEL",
        help="a folder with a config.json of transformers; a type such as bert, with --config; or "
        "module:function, which makes it",
    )
    group.add_argument("--config", metavar="FILE", type=Path, help="the config of a type of model")
    group.add_argument(
        "--text", metavar="FILE", type=Path, help="a held-out text; its loss is the proxy"
    )
    group.add_argument(
        "--tokenizer", metavar="FOLDER", type=Path, help="of the text; by default that of --model"
    )
    group.add_argument(
        "--examples", metavar="N", type=int, default=128, help="windows of the text (default: 128)"
    )
    group.add_argument(
        "--length", metavar="N", type=int, default=128, help="tokens in a window (default: 128)"
    )
    group.add_argument(
        "--proxy",
        metavar="MODULE:FUNCTION",
        help="makes the sparsitywatch.Proxy, instead of --text",
    )


def model_and_proxy(
    arguments: argparse.Namespace,
) -> tuple[Callable[[], nn.Module] | None, Proxy | None]:
    """How to make the model, and the proxy.

    Raises:
        ConfigurationError: the options do not go together, or name nothing.
    """
    if arguments.model is None:
        given = [o for o in ("config", "text", "tokenizer", "proxy") if getattr(arguments, o)]
        if given:
            raise ConfigurationError(
                f"Expected `--model` beside `--{given[0]}`, got none: what to evaluate?"
            )
        return None, None
    if arguments.proxy and arguments.text:
        raise ConfigurationError("Expected one of `--proxy` and `--text`, got both.")
    make: Callable[[], nn.Module]
    if ":" in arguments.model and not Path(arguments.model).exists():
        make = _named("--model", arguments.model)
    else:
        from sparsitywatch.integrations.language_models import make_model

        make = functools.partial(make_model, arguments.model, arguments.config)
    if arguments.proxy:
        return make, _named("--proxy", arguments.proxy)()
    if arguments.text:
        return make, _text_proxy(arguments, make())
    return make, None


def _text_proxy(arguments: argparse.Namespace, model: nn.Module) -> Proxy:
    from sparsitywatch.integrations.language_models import text_proxy

    folder = arguments.tokenizer or Path(arguments.model)
    return text_proxy(
        arguments.text, folder, model, num_examples=arguments.examples, length=arguments.length
    )


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
