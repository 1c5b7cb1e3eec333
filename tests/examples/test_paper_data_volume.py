"""The data-volume experiment: shares of a text, tiny runs, table and conclusion."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import data_finetuned
import data_volume
import numpy as np
import pretrain_bert
import pytest
import torch
from common import concluded
from contracts import fake_run
from contracts.families import whole
from contracts.paper import table
from data_volume import (
    VolumeRun,
    compared,
    mean_and_spread,
    read_run,
    rows,
    share_of,
)
from hypothesis import given
from hypothesis import strategies as st

# ------------------------------------------------------------------ shares of a text


@pytest.mark.slow
def test_shares_are_nested_and_have_their_size():
    tokens = np.arange(1_000_000, dtype=np.int32)
    larger = set(share_of(tokens, 1.0).tolist())
    assert len(larger) == len(tokens)
    for fraction in (0.9, 0.8, 0.7, 0.6, 0.2):
        part = share_of(tokens, fraction)
        kept = set(part.tolist())
        assert kept < larger
        assert len(kept) == pytest.approx(fraction * len(tokens), rel=0.01)
        assert (np.diff(part) > 0).all()  # the order of the text
        larger = kept


@pytest.mark.parametrize("fraction", [0.0, -0.1, 1.1, float("nan")])
def test_a_share_out_of_range_is_refused(fraction):
    with pytest.raises(ValueError, match=r"Expected `--fractions` in \(0, 1\]"):
        share_of(np.arange(500, dtype=np.int32), fraction)


# ------------------------------------------------------------------ the command


def _main(folder: Path, *arguments: object, pretraining: Sequence[str] = ()) -> int:
    text = folder / "text.txt"
    text.write_text("To be, or not to be: that is the question. " * 1_000)
    words = ["--small", "--out", folder, *arguments, "--pretraining", "--text", text, *pretraining]
    return data_volume.main(list(map(str, words)))


@pytest.mark.slow
def test_every_share_and_seed_once_then_a_table_and_a_conclusion(tmp_path, capsys):
    assert _main(tmp_path, "--fractions", 1.0, 0.5, "--seeds", 0) == 0
    first = capsys.readouterr().out
    assert first.count(": done") == 2
    assert "It takes two shares of the text and two seeds" in first
    folders = ["text-100-seed-0", "text-50-seed-0"]
    hashes = set()
    for folder in folders:
        lines = (tmp_path / folder / "sparsitywatch" / "records.jsonl").read_text().splitlines()
        records = [json.loads(line) for line in lines]
        assert [record["step"] for record in records] == [4, 8, 12]
        hashes.add(torch.load(tmp_path / folder / "checkpoint.pt")["settings"]["text_hash"])
    assert len(hashes) == 2
    written = (tmp_path / folders[0] / "checkpoint.pt").stat().st_mtime_ns

    assert _main(tmp_path, "--fractions", 1.0, 0.5, "--seeds", 0, 1) == 0
    second = capsys.readouterr().out
    assert second.count("finished before") == 2  # and two new ones
    assert second.count("\n| 100% ") == second.count("\n| 50% ") == 2
    assert "near zero at the end: 100% − 50%: " in second
    assert (tmp_path / folders[0] / "checkpoint.pt").stat().st_mtime_ns == written
    assert (tmp_path / "data_volume.png").read_bytes().startswith(b"\x89PNG")


@whole
def test_the_pretrained_models_are_fine_tuned_and_the_shares_compared(tmp_path, capsys):
    text = tmp_path / "text.txt"
    text.write_text("To be, or not to be: that is the question. " * 1_000)
    words = ["--small", "--out", tmp_path, "--fractions", 1.0, 0.5, "--seeds", 0, 1,
             "--pretraining", "--text", text]  # fmt: skip
    assert data_finetuned.main(list(map(str, words))) == 0
    said = capsys.readouterr().out
    found = table(said)
    assert [row[0] for row in found[2:]] == ["100%", "50%"]
    for share, row in zip((100, 50), found[2:], strict=True):
        values = []
        for seed in (0, 1):
            file = tmp_path / f"text-{share}-seed-{seed}" / "finetuned.jsonl"
            runs = [json.loads(line) for line in file.read_text().splitlines()[1:]]
            assert sorted(run["level"] for run in runs) == [0.0, 0.3, 0.5, 0.7]
            values += [run["value"] for run in runs if run["level"] == 0.0]
        assert row[1].startswith(f"{100 * np.mean(values):.1f} ")
    assert "drop at 0.50: 100% − 50%: " in said
    assert data_finetuned.main(list(map(str, words))) == 0
    again = capsys.readouterr().out
    assert again.count("finished before") == 4
    assert table(again) == found


def test_examples_are_windows_and_the_kind_of_what_follows():
    vocabulary = pretrain_bert.characters(["to be 1? " * 100])
    sequences = vocabulary.encode(["to be 1? to be 1? to be"])[None, :20]
    tokens, kinds = data_finetuned.examples_of(sequences, vocabulary)
    assert tokens.shape == (4, 16)
    assert tokens[1].tolist() == sequences[0, 1:17].tolist()
    assert "to be 1? to be 1? to be"[16:20] == "? to"
    assert kinds.tolist() == [4, 2, 1, 0]  # another, a space, a consonant, a vowel


def test_what_cannot_be_used_is_refused_by_name(tmp_path):
    with pytest.raises(SystemExit, match=r"Expected `--fractions` in \(0, 1\], got 1.5"):
        _main(tmp_path, "--fractions", 1.5, "--seeds", 0)


def test_what_cannot_be_trained_stops_with_its_reason(tmp_path):
    with pytest.raises(SystemExit, match="The loss is nan"):
        _main(tmp_path, "--fractions", 1.0, pretraining=["--lr", "1e30", "--warmup", "0"])


# ------------------------------------------------------------------ whether groups differ

numbers = st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=5)


@given(numbers)
def test_mean_and_spread_against_numpy(values):
    mean, spread = mean_and_spread(values)
    assert mean == pytest.approx(np.mean(values), abs=1e-9)
    expected = np.std(values, ddof=1) if len(values) > 1 else 0.0
    assert spread == pytest.approx(expected, abs=1e-9)


# ------------------------------------------------------------------ table and conclusion

ESTIMATE = fake_run.look(2000)[0].essential_sparsity


def _run(fraction, seed, near_zero, essential=0.5, doubled=1000.0, began=900.0):
    return VolumeRun(
        fraction=fraction, seed=seed, near_zero=near_zero,
        essential=(essential, essential - 0.1, essential + 0.1),
        doubled=doubled, doubled_clock=0.003 * doubled, began=began, began_clock=0.003 * began,
    )  # fmt: skip


def _runs(means, spread=0.01):
    return [
        _run(fraction, seed, mean + spread * (seed - 1), doubled=1000.0 + 50 * seed)
        for fraction, mean in means.items()
        for seed in range(3)
    ]


@pytest.mark.slow
def test_a_run_is_read_from_its_log(tmp_path):
    fake_run.write_run(tmp_path, fake_run.looks(range(0, 2001, 100)), fake_run.events())
    run = read_run(tmp_path, 0.6, 7)
    records = [record for record, _ in fake_run.looks(range(0, 2001, 100))]
    near_zero = [record.near_zero["initial_0.1"] for record in records]
    low = near_zero.index(min(near_zero))
    doubled = next(i for i in range(low, 21) if near_zero[i] > 2 * near_zero[low])
    assert (run.doubled, run.doubled_clock) == (100.0 * doubled, records[doubled].decay_clock)
    assert (run.began, run.began_clock) == (1050.0, pytest.approx(3.15))
    assert run.near_zero == near_zero[-1]
    assert run.essential == (ESTIMATE.value, ESTIMATE.low, ESTIMATE.high)
    assert (run.group, run.proxy_hash) == ("60%", records[0].provenance.proxy_hash)
    assert (run.steps, run.series) == (list(range(0, 2001, 100)), near_zero)


@pytest.mark.slow
@pytest.mark.parametrize(("direction", "began"), [("up", 600.0), ("down", 1050.0)])
def test_a_rise_that_another_series_saw_first_counts(tmp_path, direction, began):
    first, second = fake_run.events()
    first = replace(first, related=("near_zero/initial_0.1",), direction=direction)
    fake_run.write_run(tmp_path, fake_run.looks(range(0, 2001, 100)), [first, second])
    assert read_run(tmp_path, 0.6, 7).began == began


def test_a_run_without_event_or_doubling(tmp_path):
    fake_run.write_run(tmp_path, fake_run.looks(range(0, 1, 1)), [])
    run = read_run(tmp_path, 1.0, 0)
    assert all(math.isnan(x) for x in (run.doubled, run.began, run.began_clock, *run.essential))
    assert rows([run])[0][3:] == ("never", "never", "not informative")


def test_the_table_has_each_run_and_each_share():
    found = rows([_run(1.0, 0, 0.30), _run(1.0, 1, 0.34), _run(0.2, 0, 0.1)])
    assert found[0] == ("100%", "0", "0.300", "1000 (3.00)", "900 (2.70)", "0.500 [0.400, 0.600]")
    assert found[3][:3] == ("**100%**", "mean ± sd", "0.320 ± 0.028")
    assert found[4][:3] == ("**20%**", "mean ± sd", "0.100 ± 0.000")
    assert {len(row) for row in found} == {len(data_volume.HEAD)}


def told_of(runs):
    return "\n".join(concluded(compared(runs), unit="% of their mean"))


def test_a_measure_that_some_runs_lack_says_how_many_have_it():
    runs = [_run(1.0, 0, 0.3), _run(1.0, 1, 0.3, began=math.nan)]
    assert rows(runs)[-1][4] == "900 ± 0 (1 of 2)"
    runs += [_run(0.2, 0, 0.3), _run(0.2, 1, 0.3)]
    assert "cannot tell, a value is not finite" in told_of(runs)


@pytest.mark.slow
def test_shares_that_differ_less_than_seeds():
    told = told_of(_runs({1.0: 0.300, 0.6: 0.302, 0.2: 0.298}, spread=0.02))
    assert "they differ" not in told
    assert told.count("near zero at the end: 100% − ") == 2


@pytest.mark.slow
@pytest.mark.parametrize(("most", "higher"), [(0.5, "100%"), (0.1, "20%")])
def test_shares_that_differ_more_than_seeds(most, higher):
    """Paired by seed: here all differences are the same but for a thousandth."""
    runs = [
        _run(fraction, seed, mean + 0.01 * seed + 0.001 * (seed == number))
        for number, (fraction, mean) in enumerate({1.0: most, 0.6: 0.3, 0.2: 0.6 - most}.items())
        for seed in range(3)
    ]
    told = told_of(runs).splitlines()
    (line,) = [one for one in told if "near zero at the end: 100% − 20%" in one]
    assert line.endswith(f"they differ, {higher} is higher.")


def test_one_seed_or_one_share_says_nothing():
    for runs in ([_run(1.0, 0, 0.3), _run(0.2, 0, 0.1)], _runs({1.0: 0.3})):
        assert compared(runs) == []
