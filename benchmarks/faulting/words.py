"""What is printed, and what is typed: secrets, escapes, names of patterns, short answers."""

from __future__ import annotations

import io
import logging
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path

import fsspec
import torch
from torch import nn

import sparsitywatch as sw
from faulting.case import Case
from sparsitywatch.cli import main

__all__ = ["CASES"]

_SECRET = "pl4ntedS3cr3tpl4ntedS3cr3t"  # noqa: S105 planted, to be looked for
_ESCAPE = "\x1b]0;owned\x07\x1b[2J\u202e"
_STEPS = range(10, 250, 10)


def _weights(step: int) -> dict[str, torch.Tensor]:
    """Of a layer with a hostile name; as good as gone from step 170 on."""
    generator = torch.Generator().manual_seed(step)
    scale = 1e-4 if step >= _STEPS[16] else 1.0
    return {
        f"block.{_ESCAPE}.weight": scale * torch.randn(16, 16, generator=generator),
        "block.1.weight": torch.randn(16, 16, generator=generator),
    }


@contextmanager
def _said() -> Iterator[io.StringIO]:
    """Everything that is printed and logged meanwhile."""
    text = io.StringIO()
    handler = logging.StreamHandler(text)
    logging.getLogger("sparsitywatch").addHandler(handler)
    with redirect_stdout(text), redirect_stderr(text):
        yield text
    logging.getLogger("sparsitywatch").removeHandler(handler)


def _replayed(folder: Path) -> str:
    """A replay from a storage whose URLs hold secrets, with an event; what was said."""
    urls = []
    for step in _STEPS:
        url = f"memory://me:{_SECRET}@host/checkpoint-{step}.pt?sv=1&sig={_SECRET}"
        with fsspec.open(url, "wb") as file:
            torch.save(_weights(step), file)
        urls.append(url)
    with fsspec.open(f"memory://me:{_SECRET}@host/checkpoint-900.pt?token={_SECRET}", "wb"):
        urls.append(f"memory://me:{_SECRET}@host/checkpoint-900.pt?token={_SECRET}")
    with _said() as text:
        replayed = sw.replay(
            urls,
            logdir=folder,
            scope=["block.*"],
            detectors={"near_zero/initial_0.1": sw.detectors.AbruptChange(0.05)},
        )
        print(replayed.failures, replayed)
        for command in ("summary", "scope"):
            main([command, str(folder)])
        main(["report", str(folder), "-o", str(folder / "report.html")])
        main(["inspect", *urls])
    if not (replayed.events and replayed.failures):
        return "nothing to tell"
    return text.getvalue()


def _secrets_in_files(folder: Path) -> str:
    _replayed(folder)
    files = [path for path in folder.rglob("*") if path.is_file()]
    found = [path.name for path in files if _SECRET.encode() in path.read_bytes()]
    return ", ".join(found) or f"none in {'some' if files else 'no'} files"


def _secrets_in_words(folder: Path) -> str:
    return "told" if _SECRET in _replayed(folder) else "none"


def _escapes_in_words(folder: Path) -> str:
    text = _replayed(folder)
    if "rose abruptly" not in text:
        return "no event"
    return "obeyed" if re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e]", text) else "none"


def _begun(folder: Path) -> str:
    watch = sw.watch(nn.Linear(4, 4), None, logdir=folder, scope="layers", every=500)
    with watch as watcher:
        watcher.step()
        with _said() as text:
            status = main(["summary", str(folder)])
    has_begun = "has taken no snapshot so far" in text.getvalue()
    return f"exit status {status}, {'has begun' if has_begun else text.getvalue()}"


def _pattern(pattern: object) -> Callable[[Path], str]:
    def run(_: Path) -> str:
        model = nn.Linear(4, 4)
        try:
            watch = sw.watch(model, None, logdir=None, scope="layers", pattern=pattern)  # type: ignore[arg-type]
        except sw.ConfigurationError as error:
            return str(error).partition(" or an object")[0]
        watch.close()
        return "taken"

    return run


def _longest_repr(_: Path) -> str:
    model = nn.Sequential(*(nn.Linear(8, 8) for _ in range(200)))
    proxy = sw.Proxy([torch.randn(4, 8)], lambda model, batch: model(batch).square().mean(dim=1))
    with sw.watch(model, None, logdir=None, proxy=proxy, every=1, max_overhead=None) as watcher:
        watcher.step()
        record = watcher.records[0]
        shown = (record, record.curve, record.essential_sparsity, watcher, proxy)
        longest = max(len(repr(one)) for one in shown)
        page = max(len(record._repr_html_()), len(watcher._repr_html_()))
    line = "one short line" if longest < 220 else f"{longest} characters"
    return f"{line}, {'a small table' if page < 3000 else f'{page} characters of HTML'}"


def _further_in(folder: Path) -> str:
    """A checkpoint whose weights and step are further in."""
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    training = {"model": model.state_dict(), "steps_done": 60}
    torch.save({"identity": {"steps": 60}, "training": training}, folder / "checkpoint.pt")
    with _said() as text:
        status = main(["inspect", str(folder / "checkpoint.pt")])
    return f"exit status {status}, {'step 60' if 'step 60' in text.getvalue() else 'no step'}"


def _is_refused(call: Callable[[dict[str, object]], object], name: str, wrong: object) -> bool:
    try:
        call({name: wrong})
    except sw.SparsityWatchError:
        return True
    except Exception:  # noqa: BLE001 it is counted
        return False
    return True


def _wrong_arguments(folder: Path) -> str:
    """How often an error from inside comes of an argument that means nothing."""
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    torch.save(model.state_dict(), folder / "checkpoint-1.pt")
    names = ("proxy", "scope", "levels", "detectors", "sinks", "on_event", "logdir", "near_zero")
    calls: tuple[Callable[[dict[str, object]], object], ...] = (
        lambda given: sw.watch(model, None, **{"logdir": None, **given}),  # type: ignore[arg-type]
        lambda given: sw.replay(folder, **{"logdir": None, **given}),  # type: ignore[arg-type]
    )
    from_inside = [
        name
        for call in calls
        for name in names
        for wrong in (3, object(), [None], b"x")
        if not _is_refused(call, name, wrong)
    ]
    return f"{len(from_inside)} errors from inside {' '.join(from_inside)}".strip()


CASES = (
    Case(
        point="secrets and escapes",
        what="a login and a signature in URLs, in every file of a replay and its report",
        expected="none in some files",
        run=_secrets_in_files,
    ),
    Case(
        point="secrets and escapes",
        what="the same in all that is printed and logged",
        expected="none",
        run=_secrets_in_words,
    ),
    Case(
        point="secrets and escapes",
        what="terminal escapes in a tensor's name, in event lines and tables",
        expected="none",
        run=_escapes_in_words,
    ),
    Case(
        point="first minutes",
        what="summary of a run that was not looked at yet",
        expected="exit status 2, has begun",
        run=_begun,
    ),
    Case(point="first minutes", what='pattern="global"', expected="taken", run=_pattern("global")),
    Case(
        point="first minutes",
        what='pattern="nonsense"',
        expected="Expected `pattern` to be one of 'global'",
        run=_pattern("nonsense"),
    ),
    Case(
        point="first minutes",
        what="repr and HTML of what a watch of 200 layers gives back",
        expected="one short line, a small table",
        run=_longest_repr,
    ),
    Case(
        point="first minutes",
        what="inspect of a checkpoint as the demo writes it",
        expected="exit status 0, step 60",
        run=_further_in,
    ),
    Case(
        point="first minutes",
        what="64 wrong arguments of watch and replay",
        expected="0 errors from inside",
        run=_wrong_arguments,
    ),
)
