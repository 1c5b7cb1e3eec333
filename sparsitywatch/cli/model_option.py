"""``--model``, ``--text`` and what belongs to them: what is evaluated on each checkpoint."""

from __future__ import annotations

import argparse
import functools
import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsitywatch.errors import ConfigurationError

if TYPE_CHECKING:  # torch takes a second to import
    from torch import nn

    from sparsitywatch.pruning.proxy import Proxy

__all__ = ["add_model_options", "model_and_proxy"]


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
