"""Lines of JSON: the contract, what survives, what is repaired, what is refused."""

from __future__ import annotations

import contextlib
import json
import math
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from contracts import fake_run
from contracts.sink_contract import STEPS, TESTS, DurableSinkContract
from hypothesis import given
from hypothesis import strategies as st

from sparsitywatch.errors import ConfigurationError, StateError
from sparsitywatch.records import SCHEMA_VERSION, Detail, Event, Record, to_json
from sparsitywatch.sinks import jsonl
from sparsitywatch.sinks.jsonl import (
    JsonlReader,
    JsonlSink,
    read_events,
    read_manifest,
    read_records,
    read_spectrum,
)
from sparsitywatch.weights.spectrum import MagnitudeSpectrum

LOOKS = fake_run.looks(STEPS)


def small(step: int) -> Record:
    """A record of a few hundred bytes, for tests that go byte by byte."""
    parts = ("curve", "essential_sparsity", "dormant", "reliance")
    return replace(fake_run.without(LOOKS[0][0], *parts), step=step, layers=())


def write_run(
    directory: Path, looks: Sequence = LOOKS, events: Sequence[Event] = (), first: int = 0
) -> None:
    """Some records and events after step ``first`` of the made-up run."""
    fake_run.write_to(JsonlSink(directory), looks, events, first)


def told(records: Iterable[Record]) -> list[str]:
    """All that records say; two unknown numbers are no difference."""
    return [to_json(record) for record in records]


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


class TestJsonlSink(DurableSinkContract):
    import_path = "sparsitywatch.sinks.jsonl:JsonlSink"
    unneeded = ("torch", "matplotlib", "tensorboard")

    def steps(self, sink: JsonlSink, directory: Path) -> list[int]:
        records = read_records(directory)
        assert all(record.layers == fake_run.look(record.step, last_step=200)[0].layers
                   for record in records if record.layers)  # fmt: skip
        steps = [record.step for record in records]
        names = sorted(path.name for path in (directory / "spectra").glob("*.npz"))
        with_spectrum = [step for step in steps if f"step-{step:08d}.npz" in names]
        assert len(names) == len(with_spectrum)  # none is left over
        return steps

    def events(self, sink: JsonlSink, directory: Path) -> list[tuple[str, int]]:
        return [(event.series, event.detected_step) for event in read_events(directory)]

    def fallen_events(self, sink: JsonlSink, directory: Path) -> list[str]:
        return [event.series for event in read_events(directory) if event.reverted_step >= 0]


def test_what_is_read_is_what_was_written(tmp_path: Path) -> None:
    write_run(tmp_path)
    assert told(read_records(tmp_path)) == told(record for record, _ in LOOKS)
    assert [r.step for r in read_records(tmp_path, max_step=60)] == [0, 25, 50]
    for record, detail in LOOKS:
        spectrum = read_spectrum(tmp_path, record.step)
        assert spectrum.keys() == detail.spectrum.keys()
        for name, array in detail.spectrum.items():
            np.testing.assert_array_equal(spectrum[name], array)
            assert spectrum[name].dtype == array.dtype


@given(
    keys=st.lists(st.integers(0, 2**31 - 1), max_size=30),
    counts=st.lists(st.integers(1, 2**62 - 1) | st.integers(1, 300), max_size=30),
    width=st.sampled_from(["u8", "u4"]),
)
def test_any_counts_come_back(keys: list[int], counts: list[int], width: str) -> None:
    largest = np.iinfo(width).max
    columns = {
        "keys": np.array(sorted(keys), width),
        "counts": np.array([min(count, largest) for count in counts], width),
    }
    with tempfile.TemporaryDirectory() as directory:
        sink = JsonlSink(directory)
        sink.open(fake_run.run_info())
        sink.write(small(0), Detail(spectrum=columns))
        sink.close()
        found = read_spectrum(directory, 0)
    assert found.keys() == columns.keys()
    for name, column in columns.items():
        np.testing.assert_array_equal(found[name], column)


def test_every_line_names_its_schema(tmp_path: Path) -> None:
    write_run(tmp_path, LOOKS[:1], fake_run.events()[:1])
    for name in ("records.jsonl", "events.jsonl", "run.json"):
        assert lines(tmp_path / name)[0]["schema"] == SCHEMA_VERSION


def test_nothing_there_yet(tmp_path: Path) -> None:
    assert read_records(tmp_path / "no") == []
    assert read_events(tmp_path / "no") == []
    assert read_manifest(tmp_path / "no") is None
    with pytest.raises(StateError, match="Expected a spectrum of step 7"):
        read_spectrum(tmp_path, 7)


@pytest.mark.slow
def test_truncated_anywhere(tmp_path: Path) -> None:
    """Wherever a write was cut off, the whole lines before it are read and kept."""
    write_run(tmp_path / "whole", [(small(step), Detail()) for step in (0, 25, 50)])
    content = (tmp_path / "whole" / "records.jsonl").read_bytes()
    path = tmp_path / "cut" / "records.jsonl"
    path.parent.mkdir()
    # every byte around the ends of lines; inside of them any place is like its neighbours
    ends = [at for at in range(len(content) + 1) if b"\n" in content[max(0, at - 3) : at + 3]]
    for size in sorted({0, 1, 2, *ends, *range(0, len(content), 29)}):
        torn = content[:size]
        complete = [0, 25, 50][: torn.count(b"\n")]
        path.write_bytes(torn)
        assert [record.step for record in read_records(path.parent)] == complete
        write_run(path.parent, [(small(1025), Detail())], first=1000)
        assert [record.step for record in read_records(path.parent)] == [*complete, 1025]
        end = torn.rpartition(b"\n")[2]
        left = path.with_suffix(".torn")
        assert (left.read_bytes() if left.exists() else b"") == (end + b"\n" if end else b"")
        left.unlink(missing_ok=True)


#: Lines of a run, and of the same steps after a resume: other bytes, as many of them.
FUTURES = [
    [
        jsonl._line(vars(small(step)) | {"wall_time": time, "layers": None})
        for step in range(0, 100, 25)
    ]
    for time in (1.25, 8.75)
]


def told_or_refused(read: Callable[[], list[Record]]) -> list[str] | str:
    try:
        return told(read())
    except StateError as error:
        return str(error)


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("append"), st.integers(0, 1), st.integers(0, 1500)),
            st.tuples(st.just("cut"), st.just(0), st.integers(0, 1500)),
            st.tuples(st.just("rewrite"), st.integers(0, 1), st.integers(0, 3)),
            st.tuples(st.just("remove"), st.just(0), st.just(0)),
        ),
        max_size=8,
    )
)
def test_a_file_that_is_read_as_it_grows_is_read_as_a_whole(acts: list[tuple]) -> None:
    """Whatever becomes of it: it grows byte by byte, is cut, goes on as another, is rewritten."""
    with tempfile.TemporaryDirectory() as place:
        path, reader, content = Path(place) / "records.jsonl", JsonlReader(place), b""
        for act, which, number in acts:
            whole = b"".join(FUTURES[which])
            if act == "append":
                content += whole[len(content) : len(content) + number]
            elif act == "cut":
                content = content[: max(0, len(content) - number)]
            elif act == "rewrite":  # in place: as many bytes
                line, start = FUTURES[which][number], len(b"".join(FUTURES[which][:number]))
                content = (
                    content[:start] + line[: len(content) - start] + content[start + len(line) :]
                )
            path.write_bytes(content)
            if act == "remove":
                content = b""
                path.unlink()
            assert told_or_refused(reader.records) == told_or_refused(lambda: read_records(place))
            complete = content[: content.rfind(b"\n") + 1].splitlines()
            assert [r.step for r in reader.records()] == [json.loads(x)["step"] for x in complete]


def test_only_what_was_appended_is_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_run(tmp_path, LOOKS[:3])
    read, made = jsonl._read_record, []
    with monkeypatch.context() as patch:
        patch.setattr(jsonl, "_read_record", lambda *given: made.append(1) or read(*given))
        reader = JsonlReader(tmp_path)
    first = reader.records()
    assert (len(first), len(made)) == (3, 3)
    write_run(tmp_path, LOOKS[3:4], first=50)
    records = reader.records()
    assert (len(first), len(records), len(made)) == (3, 4, 4)
    assert all(a is b for a, b in zip(first, records, strict=False))
    write_run(tmp_path, LOOKS[2:3], first=25)  # a resume that lost the future
    again = reader.records()
    assert [record.step for record in again] == [0, 25, 50]
    assert told(again) == told(read_records(tmp_path))


@pytest.mark.parametrize("end", [b"\0\0\0\n", b'{"schema":1,"step":\n', b"\n"])
def test_a_last_line_that_is_not_json_is_torn(tmp_path: Path, end: bytes) -> None:
    write_run(tmp_path)
    path = tmp_path / "records.jsonl"
    path.write_bytes(path.read_bytes() + end)
    assert [record.step for record in read_records(tmp_path)] == list(STEPS)
    JsonlSink(tmp_path).open(fake_run.run_info(200))
    assert (tmp_path / "records.torn").read_bytes() == end
    assert len(lines(path)) == len(STEPS)


def test_damage_above_the_end_is_refused_and_named(tmp_path: Path) -> None:
    write_run(tmp_path)
    path = tmp_path / "records.jsonl"
    content = path.read_bytes().splitlines(keepends=True)
    content[2] = content[2][:40] + b"\n"
    path.write_bytes(b"".join(content))
    for act in (
        lambda: read_records(tmp_path),
        lambda: JsonlSink(tmp_path).open(fake_run.run_info(50)),
    ):
        with pytest.raises(StateError, match=r"records\.jsonl, line 3: Expected"):
            act()
    assert path.read_bytes() == b"".join(content)


@pytest.mark.parametrize("name", ["records.jsonl", "events.jsonl", "run.json"])
def test_another_schema_version_is_refused_and_left_alone(tmp_path: Path, name: str) -> None:
    write_run(tmp_path, LOOKS[:1], fake_run.events()[:1])
    path = tmp_path / name
    path.write_bytes(path.read_bytes().replace(b'"schema":1', b'"schema":99'))
    before = path.read_bytes()
    read = {"records.jsonl": read_records, "events.jsonl": read_events, "run.json": read_manifest}
    with pytest.raises(StateError, match=rf"{name}.* schema version 1, got 99"):
        read[name](tmp_path)
    with pytest.raises(StateError, match=rf"{name}.* schema version 1.* got 99"):
        JsonlSink(tmp_path).open(fake_run.run_info(100))
    assert path.read_bytes() == before


def test_a_lost_future_is_moved_not_thrown_away(tmp_path: Path) -> None:
    write_run(tmp_path, events=[replace(fake_run.events()[0], detected_step=100)])
    records, events = (tmp_path / "records.jsonl"), (tmp_path / "events.jsonl")
    all_lines = records.read_bytes().splitlines() + events.read_bytes().splitlines()
    spectra = {path.name: path.read_bytes() for path in (tmp_path / "spectra").glob("*.npz")}
    write_run(tmp_path, [], first=75)
    assert [line["step"] for line in lines(records)] == [0, 25, 50, 75]
    assert lines(events) == []
    moved = (tmp_path / "superseded.jsonl").read_bytes().splitlines()
    assert sorted(records.read_bytes().splitlines() + moved) == sorted(all_lines)
    rest = {path.name: path.read_bytes() for path in (tmp_path / "spectra").glob("*.npz")}
    superseded = tmp_path / "spectra" / "superseded"
    assert spectra == rest | {path.name: path.read_bytes() for path in superseded.iterdir()}
    assert sorted(rest) == [f"step-{step:08d}.npz" for step in (0, 25, 50, 75)]


def test_a_kill_between_copy_and_cut_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_run(tmp_path)
    path = tmp_path / "records.jsonl"
    before = path.read_bytes()

    def killed(*args: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "truncate", killed)
        with pytest.raises(KeyboardInterrupt):
            JsonlSink(tmp_path).open(fake_run.run_info(100))
    assert path.read_bytes() == before
    JsonlSink(tmp_path).open(fake_run.run_info(100))
    assert [line["step"] for line in lines(path)] == [0, 25, 50, 75, 100]


def test_the_manifest_keeps_the_first_sizes(tmp_path: Path) -> None:
    first = fake_run.run_info()
    sink = JsonlSink(tmp_path)
    sink.open(first)
    sink.close()
    assert read_manifest(tmp_path) == first
    later = replace(
        fake_run.run_info(100), initial_rms={**dict.fromkeys(first.initial_rms, 0.5), "new": 0.7}
    )
    sink.open(later)
    sink.close()
    expected = replace(later, initial_rms={**first.initial_rms, "new": 0.7})
    assert read_manifest(tmp_path) == expected
    sink.open(replace(later, initial_step=0))  # another start: nothing was seen before
    assert read_manifest(tmp_path) == replace(later, initial_step=0)


def test_a_damaged_manifest_is_refused_and_named(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(StateError, match=r"run\.json: Expected one JSON object"):
        JsonlSink(tmp_path).open(fake_run.run_info(1))


def test_left_over_temporary_files_are_removed(tmp_path: Path) -> None:
    (tmp_path / "spectra").mkdir()
    half = tmp_path / "spectra" / "step-00000025.tmp"
    half.write_bytes(b"PK")
    JsonlSink(tmp_path).open(fake_run.run_info())
    assert not half.exists()


def test_a_spectrum_holds_no_pickle(tmp_path: Path) -> None:
    sink = JsonlSink(tmp_path)
    sink.open(fake_run.run_info())
    with pytest.raises(ValueError, match="allow_pickle"):
        sink.write(small(0), Detail(spectrum={"bad": np.array([{}], dtype=object)}))
    sink.write(small(25), Detail(spectrum={"file": np.arange(3), "a/b.c": np.array(["x"])}))
    sink.close()
    assert [record.step for record in read_records(tmp_path)] == [25]  # the other is given again
    assert [path.name for path in (tmp_path / "spectra").iterdir()] == ["step-00000025.npz"]
    with zipfile.ZipFile(tmp_path / "spectra" / "step-00000025.npz") as archive:
        assert archive.namelist() == ["file.npy", "a/b.c.npy"]
    assert list(read_spectrum(tmp_path, 25)["file"]) == [0, 1, 2]


def test_layers_are_read_when_they_are_asked_for(tmp_path: Path) -> None:
    write_run(tmp_path)
    records = read_records(tmp_path)
    assert json.loads((tmp_path / "records.jsonl").read_bytes().splitlines()[0])[
        "layers"
    ].keys() == {"names", "numbers"}
    assert [record.layers for record in records[:4]] == [r.layers for r, _ in LOOKS[:4]]
    (tmp_path / "layers.npys").rename(tmp_path / "moved")
    assert records[3].layers == LOOKS[3][0].layers  # kept
    with pytest.raises(StateError, match=r"Expected layers in '.*layers\.npys'.* load the run ag"):
        list(records[4].layers)
    (tmp_path / "moved").rename(tmp_path / "layers.npys")
    assert records[4].layers == LOOKS[4][0].layers


def test_layers_are_arrays_that_numpy_reads_one_after_another(tmp_path: Path) -> None:
    write_run(tmp_path)
    with (tmp_path / "layers.npys").open("rb") as file:
        names = json.loads(np.load(file).tobytes())
        for record, _ in LOOKS:
            numbers = np.load(file)
            assert int(numbers["step"]) == record.step
            for i, layer in enumerate(record.layers):
                assert (names["tensors"][i], numbers["rms"][i]) == (layer.name, layer.rms)
                assert tuple(numbers["removed"][:, i]) == layer.removed
                assert dict(zip(names["rules"], numbers["near_zero"][:, i], strict=True)) == (
                    layer.near_zero
                )
        assert file.read() == b""


@pytest.mark.parametrize("at", [-1, 200])
def test_damaged_layers_are_named_and_the_others_read(tmp_path: Path, at: int) -> None:
    write_run(tmp_path)
    path = tmp_path / "layers.npys"
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)
    records = read_records(tmp_path)
    num_broken = len(records) if at == 200 else 1  # there the names are
    assert told(records[:-num_broken]) == told(record for record, _ in LOOKS[:-num_broken])
    for record in records[-num_broken:]:
        message = r"layers\.npys: Expected \d+ bytes of layers from byte \d+ on, with checksum"
        with pytest.raises(StateError, match=message):
            len(record.layers)


@pytest.mark.parametrize("places", [3, {"names": [0, 1, 2]}, {"names": [0, 1], "numbers": [0, 1]}])
def test_a_line_that_does_not_say_where_its_layers_are_is_refused(
    tmp_path: Path, places: object
) -> None:
    write_run(tmp_path)
    path = tmp_path / "records.jsonl"
    line = lines(path)[0] | {"layers": places}
    path.write_text(json.dumps(line) + "\n")
    with pytest.raises(StateError, match=r"line 1: Expected where its names and numbers are"):
        read_records(tmp_path)


def test_other_tensors_get_names_of_their_own(tmp_path: Path) -> None:
    looks = [fake_run.look(step, num_tensors=n) for step, n in ((0, 3), (25, 3), (50, 5), (75, 0))]
    write_run(tmp_path, looks)
    assert [r.layers for r in read_records(tmp_path)] == [record.layers for record, _ in looks]
    places = [line["layers"] for line in lines(tmp_path / "records.jsonl")]
    assert places[0]["names"] == places[1]["names"] != places[2]["names"]
    assert places[3] is None


@pytest.mark.slow
def test_layers_of_a_lost_future_can_still_be_read(tmp_path: Path) -> None:
    write_run(tmp_path)
    write_run(tmp_path, [fake_run.look(100, seed=1)], first=75)
    expected = [r for r, _ in LOOKS[:4]] + [fake_run.look(100, seed=1)[0]]
    assert told(read_records(tmp_path)) == told(expected)
    lost = tmp_path / "lost"
    lost.mkdir()
    (tmp_path / "superseded.jsonl").rename(lost / "records.jsonl")
    (tmp_path / "layers.npys").rename(lost / "layers.npys")
    assert told(read_records(lost)) == told(record for record, _ in LOOKS[4:])


class Killed(BaseException):
    """Nothing is written from here on."""


@pytest.mark.slow
def test_a_kill_at_any_byte_leaves_whole_records(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of what was reported nothing is lost; a line has its layers; the run goes on."""
    looks = [(fake_run.look(step, num_tensors=2)[0], Detail()) for step in (25, 50, 75, 100)]
    write_run(tmp_path / "whole", looks)
    names = ("layers.npys", "records.jsonl")
    total = sum((tmp_path / "whole" / name).stat().st_size for name in names)
    write = os.write
    for room in range(0, total, 241):
        left = room

        def killed(descriptor: int, block: bytes) -> int:
            nonlocal left
            taken = write(descriptor, bytes(block)[:left]) if left else 0
            left -= taken
            if taken < len(block):
                raise Killed
            return taken

        log, reported = tmp_path / f"killed-{room}", []
        sink = JsonlSink(log)
        sink.open(fake_run.run_info())
        with monkeypatch.context() as patch:
            patch.setattr(os, "write", killed)
            with contextlib.suppress(Killed):
                for record, detail in looks:
                    sink.write(record, detail)
                    reported.append(record)
        assert len(reported) < len(looks)
        held = read_records(log)
        assert told(held) == told(record for record, _ in looks[: len(held)])
        assert 0 <= len(held) - len(reported) <= 1
        write_run(log, looks[len(held) :], first=held[-1].step if held else 0)
        assert told(read_records(log)) == told(record for record, _ in looks)


WRITING = f"""
import sys
sys.path.insert(0, {str(TESTS)!r})
from contracts import fake_run
from itertools import count
from pathlib import Path
from sparsitywatch.sinks.jsonl import JsonlSink

first = int(sys.argv[2])
sink = JsonlSink(Path(sys.argv[1]), keep_spectra=2)
sink.open(fake_run.run_info(first))
for step in count(first + 1):
    sink.write(*fake_run.look(step, num_tensors=3))
    print(step, flush=True)
"""


@pytest.mark.slow
def test_killed_while_it_writes_again_and_again(tmp_path: Path) -> None:
    """What it said to have written is there, whole, and the next one goes on from there."""
    last = 0
    for num in (7, 1, 23, 4):
        command = [sys.executable, "-c", WRITING, str(tmp_path), str(last)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
            for _ in range(num):
                reported = int(child.stdout.readline())
            child.kill()
        records = read_records(tmp_path)
        assert [record.step for record in records] == list(range(1, records[-1].step + 1))
        assert last + num == reported <= records[-1].step
        last = records[-1].step
        expected = [fake_run.look(step, num_tensors=3) for step in range(1, last + 1)]
        assert told(records) == told(record for record, _ in expected)
        for step in (*range(1, last + 1, 2), last):  # every second one, and the last
            for name, array in expected[step - 1][1].spectrum.items():
                np.testing.assert_array_equal(read_spectrum(tmp_path, step)[name], array)


def spectra_of(directory: Path) -> list[int]:
    return sorted(int(path.stem[5:]) for path in (directory / "spectra").glob("*.npz"))


@pytest.mark.slow
def test_every_third_spectrum_and_the_last_one_are_kept(tmp_path: Path) -> None:
    """Counted over the whole run, wherever it was taken up again."""
    looks = fake_run.looks(range(10, 111, 10))
    held = []
    for first, last in ((0, 5), (5, 8), (6, 11)):
        sink = JsonlSink(tmp_path, keep_spectra=3)
        sink.open(fake_run.run_info(10 * first))
        for look in looks[first:last]:
            sink.write(*look)
            held.append(spectra_of(tmp_path))
        sink.close()
    assert held[:5] == [[10], [10, 20], [10, 30], [10, 40], [10, 40, 50]]
    assert held[5:8] == [[10, 40, 60], [10, 40, 70], [10, 40, 70, 80]]
    assert held[8:11] == [[10, 40, 70], [10, 40, 70, 80], [10, 40, 70, 90]]
    assert held[11:] == [[10, 40, 70, 100], [10, 40, 70, 100, 110]]
    assert [record.step for record in read_records(tmp_path)] == list(range(10, 111, 10))


@pytest.mark.parametrize("wrong", [0, -1, 1.5, True, None])
def test_what_is_no_number_of_spectra(tmp_path: Path, wrong: object) -> None:
    with pytest.raises(ConfigurationError, match="`keep_spectra` to be a whole number >= 1"):
        JsonlSink(tmp_path, keep_spectra=wrong)


FULL_DISK = f"""
import resource, sys
sys.path.insert(0, {str(TESTS)!r})
from contracts import fake_run
from dataclasses import replace
from pathlib import Path
from sparsitywatch.pipeline import outlets
from sparsitywatch.pipeline.pipeline import Pipeline
from sparsitywatch.records import Detail
from sparsitywatch.sinks.jsonl import JsonlSink, read_records

directory, name = Path(sys.argv[1]), sys.argv[2]
pipeline = Pipeline(sinks=[JsonlSink(directory)])
pipeline.open(fake_run.run_info())
now = [0.0]
outlets.time.monotonic = lambda: now[0]
looks = fake_run.looks(range(0, 151, 25))
if name == "records.jsonl":
    looks = [(replace(record, layers=()), detail) for record, detail in looks]
sizes = []
for look in looks[:2]:
    pipeline.take(*look)
    sizes.append((directory / name).stat().st_size)
# room for a piece of the next one; then nothing more; then the disk is emptied
_, most = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (sizes[1] + (sizes[1] - sizes[0]) // 2, most))
for look in looks[2:5]:
    pipeline.take(*look)
    assert (directory / name).stat().st_size == sizes[1]  # nothing of it is there
assert [r.step for r in read_records(directory)] == [0, 25]
resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
now[0] = 60.0
pipeline.take(*looks[5])
assert [r.step for r in read_records(directory)] == [0, 25, 50, 75, 100, 125]
pipeline.take(*looks[6])
pipeline.close()
for record, (written, _) in zip(read_records(directory), looks, strict=True):
    assert record.layers == written.layers
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["records.jsonl", "layers.npys"])
def test_what_a_full_disk_did_not_take_comes_first_later(tmp_path: Path, name: str) -> None:
    child = subprocess.run(
        [sys.executable, "-W", "error", "-c", FULL_DISK, str(tmp_path), name],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert child.returncode == 0, child.stderr
    assert child.stderr.count("JsonlSink failed and is tried again") == 1
    assert "was lost at step 50 to 125, and is back" in child.stderr
    assert [record.step for record in read_records(tmp_path)] == list(range(0, 151, 25))
    assert not (tmp_path / "records.torn").exists()


def test_of_the_versions_of_an_event_the_last_one_counts(tmp_path: Path) -> None:
    first, second = fake_run.events(200)
    fallen = fake_run.fallen(first, 150)
    write_run(tmp_path, [], [first, second, fallen])
    assert read_events(tmp_path) == [fallen, second]
    assert len((tmp_path / "events.jsonl").read_text().splitlines()) == 3
    assert read_events(tmp_path, max_step=149) == [first, second]
    assert read_events(tmp_path, max_step=first.detected_step) == [first]


DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.float8_e4m3fn]


def through_the_log(arrays: dict[str, np.ndarray]) -> tuple[dict[str, np.ndarray], int]:
    """Arrays of a spectrum as they are read again, and the bytes of their file."""
    with tempfile.TemporaryDirectory() as place:
        write_run(Path(place), [(small(0), Detail(spectrum=arrays))])
        (file,) = (Path(place) / "spectra").glob("*.npz")
        return read_spectrum(place, 0), file.stat().st_size


@pytest.mark.slow
@given(st.lists(st.sampled_from(DTYPES), max_size=4), st.integers(0, 2**32))
def test_spectra_of_every_dtype_come_back(dtypes: list[torch.dtype], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    tensors = {"nothing": torch.zeros(0), "not finite": torch.tensor([math.nan, math.inf, 1e-45])}
    for i, dtype in enumerate(dtypes):
        scale = 10.0 ** torch.randint(-6, 3, (1,), generator=generator)
        weights = scale * torch.randn(500 * i, generator=generator)
        weights[: 60 * i] = 0.0
        tensors[f"{i}"] = weights.to(dtype)
    spectrum = MagnitudeSpectrum.of(tensors)
    found, _ = through_the_log(spectrum.to_arrays())
    assert {n: (a.dtype, a.tolist()) for n, a in found.items()} == {
        n: (a.dtype, a.tolist()) for n, a in spectrum.to_arrays().items()
    }
    assert MagnitudeSpectrum.from_arrays(found) == spectrum


@pytest.mark.slow
def test_a_spectrum_takes_few_more_bytes_than_its_counts_hold() -> None:
    """Their entropy, the density being known: of a Poisson number for each bin."""
    num_weights, scale = 300_000, 0.02
    generator = torch.Generator().manual_seed(0)
    tensors = {f"{i}": scale * torch.randn(num_weights, generator=generator) for i in range(8)}
    edges = (np.arange(65_000, dtype=np.uint32) << 15).view(np.float32).astype(np.float64)
    below = [math.erf(x / scale / math.sqrt(2.0)) for x in edges[edges < 12 * scale]]
    mean = num_weights * np.diff(below)
    mean = mean[mean > 1e-12][:, None]
    k = np.arange(2_000)
    log_p = k * np.log(mean) - mean - np.array([math.lgamma(x + 1.0) for x in k])
    entropy = -(np.exp(log_p) * log_p).sum() / math.log(2.0) / 8.0
    _, num_bytes = through_the_log(MagnitudeSpectrum.of(tensors).to_arrays())
    assert 1.0 < num_bytes / (8 * entropy) < 1.5  # 1.3 in a large model
