"""What the manual shows runs as it stands: the tutorial from an empty folder, and every block."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from contracts.forked import said

from sparsitywatch import cli
from sparsitywatch.sinks.jsonl import read_records

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
FENCED = re.compile(r"^```python(?: title=\"(?P<title>[^\"]+)\")?\n(?P<code>.*?)^```$", re.M | re.S)
#: Pages that test_frameworks.py runs, on ranks or with other libraries.
OWN = ("distributed.md", "frameworks.md")
#: Pages whose blocks go on from those of the recipes' first one.
PAGES = sorted(
    page.name
    for page in DOCS.glob("*.md")
    if FENCED.search(page.read_text())
    and page.name not in (*OWN, "recipes.md", "start.md", "tutorial.md")
)
#: What blocks of other pages take for granted beside that.
GIVEN = """
proxy, held_out_batches = sw.Proxy([inputs[:64]], value), [inputs[:64]]
with sw.watch(model, optimizer, every=10, logdir="runs/mine", max_overhead=None):
    train(20)
"""
#: Blocks that no test runs, by how they begin.
NOT_RUN = {
    "client = dask.distributed": "needs a cluster of its own: tests/offline/test_dask.py runs one",
}


def indented(markdown: str) -> list[list[str]]:
    """The lines of each block that is set in by four spaces."""
    text = re.sub(r"^```.*?^```$", "", markdown, flags=re.M | re.S)
    return [found[0].split("\n")[:-1] for found in re.finditer(r"(?<=\n\n)(?: {4}.*\n)+", text)]


def test_every_block_is_run_or_it_is_said_why_not() -> None:
    """Commands are parsed by tests/meta/test_commands.py: some serve, or go to a network."""
    found = set()
    for page in [ROOT / "README.md", *DOCS.glob("*.md")]:
        text = page.read_text()
        languages = set(re.findall(r"^```(.+)\n(?:.*\n)*?```$", text, re.M))
        assert {name.partition(" ")[0] for name in languages} <= {"python", "text"}, page.name
        for lines in indented(text):
            (why,) = [start for start in NOT_RUN if start in lines[0]] or [""]
            found.add(why)
            command = r"    (make|pip|python|sparsitywatch|tensorboard|torchrun) [\w.\"'-]"
            if lines[0].startswith("    >>>"):
                assert page.name == "python.md"  # tests/pipeline/test_load.py runs these
            elif not why:
                assert all(re.match(command, line) for line in lines), lines
    assert found == {"", *NOT_RUN}


def blocks(page: str) -> list[str]:
    return [found["code"] for found in FENCED.finditer((DOCS / page).read_text())]


@pytest.mark.slow
def test_the_recipes_run_in_their_order(tmp_path: Path) -> None:
    assert len(blocks("recipes.md")) == 10
    printed, _ = said("\n".join(blocks("recipes.md")), tmp_path)
    assert "<Record" in printed
    assert {path.name for path in (tmp_path / "runs").iterdir()} >= {"mine", "bert", "replayed"}


@pytest.mark.slow
def test_the_blocks_of_the_other_pages_run(tmp_path: Path) -> None:
    assert len(PAGES) >= 11
    code = [blocks("recipes.md")[0], GIVEN]
    code += [block for page in PAGES for block in blocks(page)]
    said("\n".join(code), tmp_path)


@pytest.mark.slow
def test_the_tutorial_from_an_empty_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With fewer steps; what it says of the first run is what that prints."""
    text = (DOCS / "tutorial.md").read_text()
    data, pretrain, mended = (found["code"] for found in FENCED.finditer(text))
    (wrong,) = (line for line in pretrain.splitlines() if line.startswith("    others = "))
    small = pretrain.replace("max_steps=100", "max_steps=20").replace(
        "save_steps=20", "save_steps=5"
    )
    small = small.replace("every=10", "every=5").replace("logging_steps=10", "logging_steps=5")
    assert {"max_steps=20", "save_steps=5", "logging_steps=5", "every=5"} <= set(
        re.findall(r"\w+=\d+", small)
    )
    said(data, tmp_path)
    first = "".join(said(small, tmp_path, "first"))
    alarm = re.search(r"```text\n(.*?) \[\.\.\.\]\n```", text, re.S)[1]
    alarm = " ".join(alarm.split()).replace("and 10, seen at step 10", "and 5, seen at step 5")
    assert alarm in first
    assert wrong in small
    second = "".join(said(small.replace(wrong, mended.rstrip()), tmp_path, "second"))
    assert "not trained" not in second

    monkeypatch.chdir(tmp_path)
    commands = re.findall(r"^    sparsitywatch (.*?)(?:  +#.*)?$", text, re.M)
    names = [command.split()[0] for command in commands]
    assert names == ["status", "summary", "report", "compare", "audit", "replay", "compare"]
    for command in commands:
        words = shlex.split(command.replace("checkpoint-20", "checkpoint-5"))
        assert cli.main(words) == 0, command
    assert cli.main(["status", "first/runs"]) == 2
    assert "broken: 6 tensors not trained" in capsys.readouterr().out
    live = {r.step: r for r in read_records(tmp_path / "second" / "runs" / "sparsitywatch")}
    replayed = read_records(tmp_path / "replayed" / "sparsitywatch")
    assert [record.step for record in replayed] == [5, 10, 15, 20]
    for record in replayed:
        assert record.curve is not None
        assert record.near_zero["abs_0.001"] == live[record.step].near_zero["abs_0.001"]
        # of the rates before the first that the Trainer logs nothing is known
        assert record.decay_clock == pytest.approx(live[record.step].decay_clock, rel=0.15)
    for before, last in (live[5], live[20]), (replayed[0], replayed[-1]):
        assert last.decay_clock - before.decay_clock == pytest.approx(0.01 * 1e-3 * 15 * 0.4)
