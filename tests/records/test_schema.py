"""The JSON Schema of what is logged; that each line of a test is valid, conftest.py sees to."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fastjsonschema
import numpy as np
import pytest
from contracts import fake_run
from contracts.log_schema import kind_of, validator
from jsonschema import Draft202012Validator

import sparsitywatch as sw
from sparsitywatch.cli import main
from sparsitywatch.lab.audit import AuditFinding
from sparsitywatch.records import Event, Record, RunInfo, from_json, to_json
from sparsitywatch.records.schema import json_schema

KINDS = {"audit": AuditFinding, "event": Event, "record": Record, "run": RunInfo}
#: Written by version 0.1.0: a watch of a small model with a proxy, LayerNorm and a tied head.
KEPT = Path(__file__).parent / "log-0.1"
FINDING = AuditFinding.of(1000, "copy", "its bytes are those of step 500")


@pytest.mark.parametrize("kind", [*KINDS, None])
def test_the_command_prints_a_schema(kind: str | None, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema", *filter(None, [kind])]) == 0
    schema = json.loads(capsys.readouterr().out)
    Draft202012Validator.check_schema(schema)
    classes = KINDS.values() if kind is None else [KINDS[kind]]
    assert schema == json_schema(*classes)
    assert all(schema["$defs"][c.__name__]["properties"]["schema"] == {"const": 1} for c in classes)
    for cls in classes:
        fields = {field.name for field in dataclasses.fields(cls)}
        assert schema["$defs"][cls.__name__]["properties"].keys() == fields | {"schema"}


def test_one_schema_is_of_all_lines() -> None:
    whole = Draft202012Validator(json_schema(*KINDS.values()))
    record = json.loads(to_json(fake_run.looks([200])[0][0]))
    for line in (record, json.loads(to_json(FINDING))):
        assert whole.is_valid(line)
    assert not whole.is_valid({"step": 3})


def test_a_record_is_valid_with_its_layers_and_a_finding_is() -> None:
    record = fake_run.looks([200])[0][0]
    assert record.layers
    validator(Record)(json.loads(to_json(record)))  # as `sparsitywatch measure --json` prints it
    validator(AuditFinding)(json.loads(to_json(FINDING)))
    unknown = dataclasses.replace(record, largest=np.inf, lr=np.nan)
    validator(Record)(json.loads(to_json(unknown)))


def _drop(key: str) -> Callable[[dict[str, Any]], Any]:
    return lambda line: line.pop(key)


def _put(key: str, value: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda line: line.__setitem__(key, value)


@pytest.mark.parametrize(
    "spoil",
    [
        _drop("scope"), _drop("step"), _put("step", "3"), _put("step", 1.5), _put("lr", "NaN"),
        _put("valid", 1), _put("near_zero", {"zero": "0"}), _put("layers", {"names": [0, 1, 2]}),
        _put("layers", [{"name": "a"}]), _put("schema", 2), _put("scope", None),
        _put("curve", {"sparsity": [0.0]}), _put("reason", None), _put("cost", []),
    ],
)  # fmt: skip
def test_what_a_reader_refuses_is_not_valid(spoil: Callable[[dict[str, Any]], Any]) -> None:
    line = json.loads(to_json(fake_run.looks([200])[0][0]))
    validator(Record)(line)
    spoil(line)
    with pytest.raises(fastjsonschema.JsonSchemaValueException):
        validator(Record)(line)


def test_what_may_come_later_is_valid() -> None:
    line = json.loads(to_json(fake_run.looks([200])[0][0])) | {"new": {"number": 1}}
    del line["largest"]  # it has a default
    validator(Record)(line)
    assert from_json(Record, json.dumps(line)).step == 200


def test_a_kept_log_of_version_0_1_is_valid_and_is_read() -> None:
    lines = [(KEPT / "run.json").read_text()]
    lines += [
        x for f in ("records", "events") for x in (KEPT / f"{f}.jsonl").read_text().splitlines()
    ]
    for text in lines:
        line = json.loads(text)
        validator(kind_of(line))(line)
        assert line["schema"] == 1
    run = sw.load(KEPT)
    assert (len(run.records), len(run.events), len(lines)) == (8, 1, 11)  # one event, twice
    assert run.records[-1].essential_sparsity is not None
    assert [layer.num_weights for layer in run.records[-1].layers] == [1024, 1024]
