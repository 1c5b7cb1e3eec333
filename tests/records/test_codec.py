"""Records to JSON and back: nothing changes on the way, and what is wrong is named."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, fields, replace
from typing import get_type_hints

import pytest
from contracts import fake_run
from hypothesis import given
from hypothesis import strategies as st

from sparsitywatch.errors import StateError
from sparsitywatch.records import (
    SCHEMA_VERSION,
    Began,
    BlockGradient,
    Content,
    Cost,
    DecayProjection,
    Dormant,
    EssentialSparsity,
    Event,
    Finding,
    Forecast,
    Gradient,
    LayerShare,
    LedgerEntry,
    MaskOverlap,
    Movement,
    Provenance,
    Record,
    Replicas,
    RunInfo,
    ScopeSummary,
    Source,
    SparsityCurve,
    Vital,
    WatchState,
    XRay,
    XRayLayers,
    from_json,
    to_json,
)

NAMES = st.text(min_size=1, max_size=8)
COUNTS = st.integers(min_value=-1, max_value=2**62)
FLOATS = st.floats()
FRACTIONS = st.floats(min_value=0.0, max_value=1.0)
RULES = st.dictionaries(NAMES, FLOATS, max_size=3)


def plain(cls: type, **special: st.SearchStrategy) -> st.SearchStrategy:
    """Any instance of a dataclass of strings, numbers and flags."""
    by_type = {str: st.text(max_size=8), int: COUNTS, float: FLOATS, bool: st.booleans()}
    by_type[bool | None] = st.none() | st.booleans()
    by_type[int | None] = st.none() | COUNTS
    by_type[tuple[str, ...]] = st.lists(NAMES, max_size=3).map(tuple)
    by_type[tuple[int, ...]] = st.lists(COUNTS, max_size=3).map(tuple)
    by_type[tuple[float, ...]] = st.lists(FLOATS, max_size=3).map(tuple)
    hints = get_type_hints(cls)
    names = {f.name for f in fields(cls)} - set(special)
    return st.builds(cls, **special, **{name: by_type[hints[name]] for name in names})


@st.composite
def curves(draw: st.DrawFn) -> SparsityCurve:
    size = draw(st.integers(min_value=1, max_value=5))

    def column(of: st.SearchStrategy[float]) -> st.SearchStrategy[list[float]]:
        return st.lists(of, min_size=size, max_size=size)

    errors = st.floats(min_value=0.0) | st.just(math.nan)
    return SparsityCurve(
        sparsity=draw(column(FRACTIONS)),
        value=draw(column(FLOATS)),
        stderr=draw(st.none() | column(errors)),
        higher_is_better=draw(st.booleans()),
        level=draw(st.none() | column(FLOATS)),
        num_examples=draw(st.none() | COUNTS),
    )


PROVENANCES = plain(Provenance)
RECORDS = plain(
    Record,
    schema=st.just(SCHEMA_VERSION),
    scope=plain(ScopeSummary),
    near_zero=RULES,
    dormant=st.none() | plain(Dormant, projection=st.none() | plain(DecayProjection)),
    movement=st.none() | plain(Movement, by_block=RULES),
    masks=st.none() | plain(MaskOverlap),
    forecast=st.none() | plain(Forecast),
    curve=st.none() | curves(),
    controls=st.dictionaries(NAMES, curves(), max_size=2),
    essential_sparsity=st.none() | plain(EssentialSparsity),
    alone=st.dictionaries(NAMES, plain(EssentialSparsity), max_size=2),
    layers=st.lists(plain(LayerShare, near_zero=RULES), max_size=2).map(tuple),
    replicas=st.none() | plain(Replicas),
    source=st.none() | plain(Source, contents=st.lists(plain(Content), max_size=2).map(tuple)),
    xray=st.none()
    | plain(
        XRay,
        layers=plain(XRayLayers),
        expert_load=st.dictionaries(NAMES, st.lists(COUNTS, max_size=3).map(tuple), max_size=2),
    ),
    vital=st.none()
    | plain(
        Vital,
        findings=st.lists(plain(Finding), max_size=2).map(tuple),
        gradient=st.none()
        | plain(Gradient, blocks=st.lists(plain(BlockGradient), max_size=2).map(tuple)),
    ),
    cost=plain(Cost),
    provenance=PROVENANCES,
)
RUNS = plain(
    RunInfo,
    provenance=PROVENANCES,
    ledger=st.lists(plain(LedgerEntry), max_size=2).map(tuple),
    initial_rms=RULES,
    began=st.none() | plain(Began, near_zero=st.dictionaries(NAMES, RULES, max_size=2)),
    state=st.none() | plain(WatchState),
)


@pytest.mark.slow
@pytest.mark.parametrize("values", [RECORDS, plain(Event), RUNS], ids=["Record", "Event", "Run"])
@given(data=st.data())
def test_round_trip(values: st.SearchStrategy, data: st.DataObject) -> None:
    value = data.draw(values)
    # repr is an oracle that knows NaN, -0.0 and int from float; that of a record is short
    assert repr(asdict(from_json(type(value), to_json(value)))) == repr(asdict(value))


@pytest.mark.slow
@given(RECORDS)
def test_a_line_is_one_line_of_strict_json(record: Record) -> None:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    line = to_json(record)
    assert "\n" not in line
    assert json.loads(line, parse_constant=refuse)["step"] == record.step


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (math.nan, "null"),
        (math.inf, '"Infinity"'),
        (-math.inf, '"-Infinity"'),
        (0.1, "0.1"),
        (-0.0, "-0.0"),
        (5e-324, "5e-324"),
    ],
)
def test_floats_by_hand(value: float, written: str) -> None:
    event = replace(fake_run.events()[0], noise=value)
    assert f'"noise":{written},' in to_json(event)


def test_none_and_nan_are_told_apart_by_the_type() -> None:
    record = fake_run.without(fake_run.look(0)[0], "curve", "reliance")
    data = json.loads(to_json(record))
    assert data["curve"] is data["reliance"] is None
    again = from_json(Record, to_json(record))
    assert again.curve is None
    assert math.isnan(again.reliance)


def test_keys_that_are_not_known_are_passed_over() -> None:
    """A newer version may add fields within a schema version."""
    record = fake_run.look(0)[0]
    data = json.loads(to_json(record)) | {"added_later": [1, 2]}
    data["cost"]["added_later"] = None
    assert repr(asdict(from_json(Record, json.dumps(data)))) == repr(asdict(record))


def test_fields_with_a_default_may_be_missing() -> None:
    """An older version did not have them."""
    record = fake_run.look(0)[0]
    data = json.loads(to_json(record))
    del data["decay_clock"], data["dormant"], data["cost"]["publish_s"]
    del data["lr_clock"], data["lr"], data["movement"], data["forecast"]
    del data["layers"][0]["dormant"]
    read = from_json(Record, json.dumps(data))
    assert all(math.isnan(x) for x in (read.decay_clock, read.lr_clock, read.lr))
    assert (read.dormant, read.movement, read.forecast) == (None, None, None)
    assert math.isnan(read.layers[0].dormant)
    assert read.cost.publish_s == 0.0


def change(path: str, value: object) -> str:
    """A record as JSON with one field changed, or taken away."""
    data = json.loads(to_json(fake_run.look(0)[0]))
    *parents, last = path.split(".")
    inner = data
    for key in parents:
        inner = inner[int(key)] if isinstance(inner, list) else inner[key]
    if value is ...:
        del inner[last]
    else:
        inner[int(last) if isinstance(inner, list) else last] = value
    return json.dumps(data)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("step", ..., r"Expected a field 'step' in Record, got \['alone', .*\]"),
        ("cost.stall_s", ..., r"Expected a field 'stall_s' in Record\.cost"),
        ("step", 1.5, r"Expected a int at Record\.step, got 1\.5"),
        ("step", True, r"Expected a int at Record\.step, got True"),
        ("valid", 1, r"Expected a bool at Record\.valid, got 1"),
        ("reason", None, r"Expected a str at Record\.reason, got None"),
        ("reliance", "much", r"Expected a number or null at Record\.reliance, got 'much'"),
        ("near_zero", [], r"Expected an object at Record\.near_zero, got \[\]"),
        ("near_zero.zero", "x", r"Expected a number or null at Record\.near_zero\.zero"),
        ("layers", {}, r"Expected a list at Record\.layers, got \{\}"),
        ("layers.1.rms", [], r"Expected a number or null at Record\.layers\[1\]\.rms"),
        ("curve", 3, r"Expected an object at Record\.curve, got 3"),
        ("schema", 99, r"Expected a Record of schema version 1, got 99\. Read it with"),
        ("schema", None, r"schema version 1, got None"),
    ],
)
def test_what_is_wrong_is_named(path: str, value: object, message: str) -> None:
    with pytest.raises(StateError, match=message):
        from_json(Record, change(path, value))


@pytest.mark.parametrize("text", ["", "{", "nonsense", '{"step": 1'])
def test_what_is_not_json_is_refused(text: str) -> None:
    with pytest.raises(StateError, match="Expected one JSON object for Record"):
        from_json(Record, text)


@pytest.mark.parametrize("text", ["[]", "1", "null", '"record"'])
def test_what_is_no_object_is_refused(text: str) -> None:
    with pytest.raises(StateError, match="Expected an object at Record"):
        from_json(Record, text)
