"""The grokking example, a few steps of it: what it prints, writes and refuses."""

from __future__ import annotations

import json
import re

import grokking
import pytest
import torch

STEPS, EVERY = 40, 4


@pytest.fixture(scope="module")
def short(tmp_path_factory):
    """Folder and words of a short run."""
    logdir = tmp_path_factory.mktemp("grokking")
    with pytest.MonkeyPatch.context() as patch:
        said: list[str] = []
        patch.setattr("builtins.print", lambda *x, sep=" ", **_: said.append(sep.join(map(str, x))))
        arguments = ["--steps", STEPS, "--every", EVERY, "--seed", 3, "--logdir", logdir]
        assert grokking.main([str(x) for x in arguments]) == 0
    return logdir, "\n".join(said)


def _records(logdir):
    text = (logdir / "sparsitywatch" / "records.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.slow
def test_the_table_parses_and_says_what_the_records_say(short):
    logdir, said = short
    head, *rows = [line.split() for line in said.partition("\n\n")[0].splitlines()]
    assert head == ["run", "step", "loss", "accuracy", "near", "zero", "dormant", "clock"]
    assert [(row[0], int(row[1])) for row in rows] == [
        (name, step) for name in ("decay", "control") for step in (20, 40)
    ]
    for name, step, loss, accuracy, near_zero, _, clock in rows:
        record = next(r for r in _records(logdir / name) if r["step"] == int(step))
        assert float(near_zero) == pytest.approx(record["near_zero"]["initial_0.1"], abs=1e-4)
        assert float(clock) == pytest.approx(0.01 * int(step) if name == "decay" else 0.0)
        assert float(loss) < 1.0  # half of the pairs are learnt by heart in no time
        assert 0.0 <= float(accuracy) < 0.2  # and nothing understood yet


@pytest.mark.slow
def test_both_runs_start_from_the_same_weights_and_pairs(short):
    logdir, _ = short
    runs = [json.loads((logdir / n / "sparsitywatch" / "run.json").read_text()) for n in
            ("decay", "control")]  # fmt: skip
    assert runs[0]["initial_rms"] == runs[1]["initial_rms"]
    assert [entry["name"] for entry in runs[0]["ledger"] if entry["in_scope"]] == ["hidden.weight"]


@pytest.mark.slow
def test_the_summary_and_the_picture(short):
    logdir, said = short
    for name in ("decay", "control"):
        assert re.search(rf"^{name}: never understood; near zero 0\.\d+ at its lowest", said, re.M)
    assert (logdir / "grokking.png").read_bytes().startswith(b"\x89PNG")
    assert len(_records(logdir / "decay")) == STEPS // EVERY


def test_the_sums_are_modulo_53():
    model = grokking.Adder()
    pairs = torch.cartesian_prod(torch.arange(53), torch.arange(53))
    assert model(pairs).shape == (53 * 53, 53)


@pytest.mark.parametrize("every", ["0", "50"])
def test_snapshots_further_apart_than_the_run_is_long_are_refused(every, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        grokking.main(["--steps", "40", "--every", every, "--logdir", str(tmp_path / "x")])
    assert stop.value.code == 2
    assert "Expected 1 <= `--every` <= `--steps`" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()
