"""docs/tags.md names everything that is written, and nothing else."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import reduce
from pathlib import Path

if __name__ == "__main__":  # tests get it from pyproject.toml
    sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import pytest
from contracts import event_readers, fake_run

from sparsitywatch.records import Detail, WatchState
from sparsitywatch.series import SERIES
from sparsitywatch.sinks.jsonl import JsonlSink
from sparsitywatch.sinks.tensorboard import FIRST, LAST, LEADING, OTHER_TAGS, TensorBoardSink

PAGE = Path(__file__).parents[2] / "docs" / "tags.md"
DOCS = PAGE.read_text()
#: fields whose keys are names from the run
MAPPINGS = ("near_zero", "initial_rms", "xray.expert_load")


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with one full record and one event."""
    directory = tmp_path_factory.mktemp("run")
    record, detail = fake_run.look(2000)
    assert record.curve is not None
    curve = replace(record.curve, num_seen=[record.curve.num_examples] * len(record.curve.sparsity))
    record = replace(record, curve=curve, same_weights_as=1000, fingerprint="f1n9er")
    assert None not in vars(record).values()
    beneath = ("vital/untrained@1000",)
    event = replace(fake_run.events()[1], detected_step=2000, consequences=beneath)
    closed = WatchState(status="closed", step=2100, wall_time=0.0, overhead=0.01)
    failed = replace(record, step=2001, valid=False, reason="for once")
    looks = [(record, detail), (failed, detail)]
    fake_run.write_to(JsonlSink(directory), looks[:1], [event], state=closed)
    fake_run.write_to(TensorBoardSink(directory), looks, [event], state=closed)
    return directory


def rows(heading: str) -> dict[str, list[str]]:
    """The cells of the table under a heading, by the name in the first one."""
    section = DOCS.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    table = [line.strip("| ").split(" | ") for line in section.splitlines() if line[:3] == "| `"]
    names = [cells[0].strip("`") for cells in table]
    assert len(names) == len(set(names))
    return dict(zip(names, (cells[1:] for cells in table), strict=True))


def matches(pattern: str, name: str) -> bool:
    return re.fullmatch(re.escape(pattern).replace(r"\*", ".+"), name) is not None


def compare(documented: set[str], written: set[str]) -> None:
    undocumented = {n for n in written if not any(matches(p, n) for p in documented)}
    never_written = {p for p in documented if not any(matches(p, n) for n in written)}
    assert (undocumented, never_written) == (set(), set())


def fields(value: object, path: str = "") -> Iterator[str]:
    """Names of the fields of a JSON object, as on the page."""
    if isinstance(value, dict) and value:
        for key, item in value.items():
            name = "*" if path in MAPPINGS else key
            yield from fields(item, f"{path}.{name}" if path else name)
    elif isinstance(value, list) and value:
        yield from fields(value[0], f"{path}[]")
    else:
        yield path


def test_fields_of_a_nested_object() -> None:
    value = {"a": 1, "b": [{"c": {"d": 0.1}, "e": [0.0]}], "near_zero": {"x": 2}}
    expected = ["a", "b[].c.d", "b[].e[]", "near_zero.*"]
    assert list(fields(value)) == expected


def test_a_difference_is_found() -> None:
    compare({"a", "b/*"}, {"a", "b/x", "b/y"})
    with pytest.raises(AssertionError):
        compare({"a"}, {"a", "b"})
    with pytest.raises(AssertionError):
        compare({"a", "b/*"}, {"a"})


@pytest.mark.slow
def test_tensorboard_tags(directory: Path) -> None:
    reader = event_readers.plugin_accumulator(directory)
    written = {
        tag for plugin in reader.ActivePlugins() for tag in event_readers.tags_of(reader, plugin)
    }
    compare(set(rows("Tags of TensorBoard")), written)


def tables() -> str:
    """What docs/tags.md says of every series and of TensorBoard's other tags."""
    series = [f"| `{row.name}` | {row.unit} | {row.sentence} | `{row.source}` |" for row in SERIES]
    first, *leading = LEADING
    scalars = {f"{FIRST}/1_{first.format(rule='*')}": "series `near_zero/*`, the first rule's"}
    scalars |= {f"{FIRST}/{i}_{name}": f"series `{name}`" for i, name in enumerate(leading, 2)}
    scalars |= {f"{LAST}/near_zero/*": "series `near_zero/*`, those of the next three rules"}
    rest = [row.name for row in SERIES if row.is_chart or row.beside]
    scalars |= {f"{LAST}/{name}": f"series `{name}`" for name in rest}
    scalars |= {f"{LAST}/gradient/block/*": "series `gradient/block/*`, of at most 24 blocks"}
    others = [f"| `{tag}` | scalar | {what} |" for tag, what in scalars.items()]
    others += [f"| `{row.name}` | {row.unit} | {row.sentence} |" for row in OTHER_TAGS]
    lines = [
        "| series | unit | meaning | place in the record |", "|---|---|---|---|", *series, "",
        "## Tags of TensorBoard", "| tag | kind | meaning |", "|---|---|---|", *others,
    ]  # fmt: skip
    return "\n".join(lines).replace("|w|", "&#124;w&#124;")


def test_the_page_says_what_the_tables_of_the_package_say() -> None:
    """``python tests/sinks/test_tags.py`` writes them anew."""
    assert tables() in DOCS


@pytest.mark.slow
def test_the_command_that_writes_them_runs_by_itself(tmp_path: Path) -> None:
    written = tmp_path / "tags.md"
    subprocess.run([sys.executable, __file__, str(written)], check=True, cwd=tmp_path)
    assert written.read_text() == DOCS


def test_each_series_is_read_from_the_place_that_the_page_states() -> None:
    """Neither a name nor its place changes without the page."""
    record = fake_run.look(2000)[0]
    expected = {}
    for name, (_, _, place) in rows("Series").items():
        value = reduce(getattr, place.strip("`").split("."), record)
        room, _, last = name.partition("/")
        parts = value.items() if isinstance(value, Mapping) else [(last, value)]
        expected |= {f"{room}/{key}": number for key, number in parts if matches(last, key)}
    assert record.series() == expected
    assert all(type(value) is float for value in record.series().values())


def test_arrays_of_layers(directory: Path) -> None:
    with (directory / "layers.npys").open("rb") as file:
        assert json.loads(np.load(file).tobytes()).keys() == {"tensors", "rules"}
        assert np.load(file).dtype.names == tuple(rows("Arrays of `layers.npys`"))


@pytest.mark.parametrize("name", ["records.jsonl", "events.jsonl", "run.json"])
def test_fields(directory: Path, name: str) -> None:
    (line,) = (directory / name).read_text().splitlines()
    compare(set(rows(f"Fields of `{name}`")), set(fields(json.loads(line))))


def test_files(directory: Path) -> None:
    """Also those that only a kill or a resumed run leaves behind."""
    for name in ("records", "events"):
        with (directory / f"{name}.jsonl").open("ab") as file:
            file.write(b"{")
    fake_run.write_to(JsonlSink(directory), [(fake_run.look(2000)[0], Detail())], first=1000)
    (directory / "spectra" / "step-00000000.npz").touch()
    (directory / "sparsitywatch-proxy-0123.pt").touch()
    (directory / "ring.npz").touch()
    documented = re.findall(r"^\| (`.*`) \| ", DOCS.split("\n## ")[0], re.MULTILINE)
    patterns = {name for cell in documented for name in re.findall(r"`([^`]+)`", cell)}
    found = {str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file()}
    compare({p + "*" if p.endswith("/") else p for p in patterns}, found)


if __name__ == "__main__":
    before, _, rest = DOCS.partition("| series | unit")
    _, _, after = rest.partition("\n\n## Fields of `records.jsonl`")
    page = Path(sys.argv[1]) if len(sys.argv) > 1 else PAGE
    page.write_text(f"{before}{tables()}\n\n## Fields of `records.jsonl`{after}")
