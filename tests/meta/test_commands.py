"""The commands that the manual, CONTRIBUTING and pre-commit name exist and take these arguments."""

from __future__ import annotations

import importlib.util
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from sparsitywatch import cli

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
MAKEFILE = (ROOT / "Makefile").read_text()
TARGETS = set(re.search(r"^\.PHONY:(.*)$", MAKEFILE, re.M)[1].split())
#: ``program [arguments]`` as it stands in code; the rest of its line belongs to it.
PROGRAM = re.compile(
    r"(?:\.venv/bin/)?(?:torchrun .*?-m )?(make|sparsitywatch|python3?|pip)\s+(.*)"
)


def code_in(markdown: str) -> Iterator[str]:
    """Lines of code blocks (fenced or indented) and pieces of inline code."""
    is_fenced = False
    for line in markdown.splitlines():
        if line.lstrip().startswith("```"):
            is_fenced = not is_fenced
        elif is_fenced or line.startswith("    "):
            yield line.strip()
        else:
            yield from re.findall(r"`([^`]+)`", line)


def commands_in(markdown: str) -> set[tuple[str, ...]]:
    """Commands of ours as lists of words, comments and what is explained beside them cut."""
    found = set()
    for code in code_in(markdown):
        match = PROGRAM.fullmatch(code.removeprefix("$ "))
        if match:
            words = re.split(r"\s{3,}|\s#", match[2])[0]  # three spaces: an explanation follows
            found.add((match[1], *shlex.split(words)))
    return found


COMMANDS = sorted(
    set().union(*(commands_in((ROOT / n).read_text()) for n in ("README.md", "CONTRIBUTING.md")))
)


PAGES = [*ROOT.glob("docs/**/*.md"), ROOT / "benchmarks" / "README.md"]
#: Scripts that a page tells to write.
WRITTEN = {name for page in PAGES for name in re.findall(r'title="(\w+\.py)"', page.read_text())}
MANUAL = sorted(set().union(*(commands_in(page.read_text()) for page in PAGES)) - set(COMMANDS))


def test_commands_are_found_in_every_kind_of_code() -> None:
    fenced = "```\n$ pip install x # why\n```"
    text = f'`make one`, not make two\n\n    make three A="b c"   explained\n{fenced}'
    assert commands_in(text) == {
        ("make", "one"),
        ("make", "three", "A=b c"),
        ("pip", "install", "x"),
    }


def test_readme_shows_how_to_begin() -> None:
    assert {("make", "demo"), ("make", "test")} <= commands_in((ROOT / "README.md").read_text())


def targets_and_arguments(command: tuple[str, ...]) -> tuple[set[str], str]:
    words = command[1:]
    targets = {word for word in words if "=" not in word and not word.startswith("-")}
    arguments = [word.removeprefix("ARGS=") for word in words if word.startswith("ARGS=")]
    return targets, "".join(arguments)


def test_every_kind_of_command_is_there() -> None:
    assert {"make", "pip", "sparsitywatch"} <= {command[0] for command in COMMANDS}


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_command_exists(
    command: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program, *arguments = command
    if program == "make":
        targets, _ = targets_and_arguments(command)
        assert targets <= TARGETS
    elif program == "sparsitywatch":
        monkeypatch.chdir(tmp_path)
        if "--follow" in arguments:  # waits for what is to come
            arguments = [*arguments, "--poll", "0.01", "--idle-timeout", "0.02"]
        # nothing is logged here: what parses says so and returns, what does not exits
        assert cli.main(arguments) == 2
    elif program == "pip":
        for extras in re.findall(r"\[([\w, ]+)\]", " ".join(arguments)):
            assert {extra.strip() for extra in extras.split(",")} <= EXTRAS.keys()
    elif not arguments[0].startswith("-"):
        assert (ROOT / arguments[0]).is_file()


@pytest.mark.parametrize("command", MANUAL, ids=" ".join)
def test_command_of_the_manual_parses(command: tuple[str, ...]) -> None:
    """Nothing is run: these may go to a network."""
    program, *arguments = command
    if program == "make":
        assert targets_and_arguments(command)[0] <= TARGETS
    elif program == "sparsitywatch" and len(arguments) == 1:  # its name in a sentence
        with pytest.raises(SystemExit, match=r"^0$"):
            cli.main([*arguments, "--help"])
    elif program == "sparsitywatch":
        assert cli._parser().parse_args(arguments).run
    elif program == "pip":
        assert set(re.findall(r"\[(\w+)\]", " ".join(arguments))) <= EXTRAS.keys()
    elif not arguments[0].startswith("-"):
        assert arguments[0] in WRITTEN or (ROOT / arguments[0]).is_file()


@pytest.mark.slow
def test_demo_takes_the_arguments_that_are_named(monkeypatch) -> None:
    example = ROOT / "examples" / "pretrain_bert.py"
    named = {
        option
        for command in (*COMMANDS, *MANUAL)
        for targets, arguments in [targets_and_arguments(command)]
        if "demo" in targets or str(example.relative_to(ROOT)) in targets
        for option in re.findall(r"--[a-z][\w-]*", arguments or " ".join(command))
    }
    assert "--steps" in named
    spec = importlib.util.spec_from_file_location(example.stem, example)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)  # where a dataclass looks for its types
    spec.loader.exec_module(module)
    assert named <= set(re.findall(r"--[a-z][\w-]*", module.parser().format_help()))


def test_help_names_every_target_for_people() -> None:
    done = subprocess.run(
        ["make", "--silent", "help"], check=True, capture_output=True, text=True, cwd=ROOT
    )
    parts_of_check = {"format", "lint", "types", "imports", "prose"}
    assert set(re.findall(r"make ([\w-]+)", done.stdout)) == TARGETS - parts_of_check - {"help"}


def test_pre_commit_runs_what_make_check_runs() -> None:
    check = re.search(r"^check:(.*)$", MAKEFILE, re.M)[1].split()
    hooks = re.findall(
        r"entry: make --silent (\w+)", (ROOT / ".pre-commit-config.yaml").read_text()
    )
    assert hooks == check
