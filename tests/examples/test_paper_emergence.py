"""The pretraining with BERT's settings, in tiny; what docs/reports/paper.md says of it in full."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import emergence
import kept
import numpy as np
import pytest
from contracts.claims import Claim, Runs, hold, section_of, words_of
from contracts.families import some_of, whole

import sparsitywatch as sw
from sparsitywatch.analysis.emergence import turns_of
from sparsitywatch.records.difference import Difference

SMALL = ["--small", "--steps", "12", "--every", "4"]
KEPT = kept.kept(kept.FOLDER / "emergence")
PAPER_MD = Path(__file__).parents[2] / "docs" / "reports" / "paper.md"
PAPER = PAPER_MD.read_text("utf-8")


@whole
@pytest.mark.slow
def test_a_run_is_kept_and_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = ["--out", str(tmp_path)]
    assert emergence.main([*SMALL, *out, "--only", "relu-1.0", "--seed", "2"]) == 0
    said = capsys.readouterr().out
    ((name, one),) = kept.kept(tmp_path / "kept").items()
    assert name == "relu-1.0-s2"
    assert one["steps"] == [4, 8, 12]
    counts = np.cumsum(one["count_changes"], axis=1)
    assert counts.min() >= 0
    assert counts.max() == one["num_weights"]
    assert (tmp_path / "emergence.txt").read_text() in said
    assert "| relu-1.0 |     1 |" in said
    assert (tmp_path / "emergence.png").stat().st_size > 10_000
    monkeypatch.setattr(emergence, "pretrain", lambda _: pytest.fail("trained"))
    assert emergence.main(["--report", *out]) == 0
    with pytest.raises(SystemExit):
        emergence.main(["--report", "--out", str(tmp_path / "none")])


# ------------------------------------------------------------------ what is kept


def test_what_is_kept_says_where_it_is_from_and_is_small(tmp_path: Path) -> None:
    kept.keep(tmp_path / "a.b-s0.json.gz", {"x": [1, 2], "date": "2026"})
    (found,) = kept.kept(tmp_path).items()
    assert found[0] == "a.b-s0"
    assert found[1]["x"] == [1, 2]
    assert {"commit", "detector", "date"} <= found[1].keys()
    assert len(found[1]["detector"]) == 12
    noise = np.random.default_rng(0).random(10_000).tolist()
    with pytest.raises(SystemExit, match="Expected at most 30,000 bytes"):
        kept.keep(tmp_path / "large.json.gz", {"x": noise})


def test_every_run_is_kept_with_its_origin() -> None:
    for name, one in KEPT.items():
        assert one.keys() > {"commit", "detector", "date"}, name
        assert (kept.FOLDER / "emergence" / f"{name}.json.gz").stat().st_size <= 30_000


@pytest.mark.slow
@pytest.mark.parametrize("name", some_of(KEPT, 18))
def test_the_turns_are_those_of_the_detector_as_it_is(name: str) -> None:
    one = KEPT[name]
    shares = np.cumsum(one["count_changes"], axis=1) / one["num_weights"]
    names = ("lr", "lr_clock", "decay_clock")
    columns = zip(*(one[f"motion/{name}"] for name in names), strict=True)
    contexts = [dict(zip(names, values, strict=True)) for values in columns]
    seen = turns_of(np.array(one["steps"]), shares, contexts)
    found = [
        {**{name: getattr(turn, name) for name in kept.TURN}, "series": f"near_zero/{name}"}
        for name, own in zip(one["thresholds"], seen, strict=True)
        for turn in own
    ]
    assert found == one["turns"]


# ------------------------------------------------------------------ claims


def of(runs: Runs, start: str) -> list[Mapping[str, Any]]:
    """Runs whose names begin so."""
    return [one for name, one in runs.items() if name.startswith(start)]


def turning(runs: Runs, start: str, direction: str = "up") -> str:
    """How many runs turn abruptly, of how many: "0 of 3"."""
    own = of(runs, start)
    return f"{sum(bool(emergence.turns(one, direction)) for one in own)} of {len(own)}"


def by_decay(runs: Runs, activation: str) -> Mapping[str, object]:
    found = [turning(runs, f"{activation}-{decay}-s") for decay in ("0.01", "0.1", "1.0")]
    assert activation == "relu" or all(text.startswith("0 ") for text in found)  # as it says
    return dict(zip("abc", found, strict=True))


def done(runs: Runs) -> Mapping[str, object]:
    numbers = [len(of(runs, f"{setting}-s")) for setting in emergence.SETTINGS]
    one = runs["gelu-0.01-s0"]
    return {
        "steps": one["steps"][-1], "every": one["steps"][0], "runs": len(runs),
        "seeds": emergence.spread(numbers, "d"), "thresholds": len(one["thresholds"]),
        "date": f"{max(one['date'] for one in runs.values()):.10}",
        "commits": " and ".join(sorted({one["trained_at_commit"] for one in runs.values()})),
    }  # fmt: skip


def share(one: Mapping[str, Any], threshold: str, step: int) -> float:
    """Per cent of the weights below a threshold at a step."""
    changes = one["count_changes"][one["thresholds"].index(threshold)]
    return 100 * sum(changes[: one["steps"].index(step) + 1]) / one["num_weights"]


def spread_of(runs: Runs, start: str, threshold: str, step: int) -> str:
    return emergence.spread([share(one, threshold, step) for one in of(runs, start)], ".1f")


def bend(runs: Runs) -> Mapping[str, object]:
    turns = [turn for one in of(runs, "relu-0.1-s") for turn in emergence.turns(one, "up")]
    assert all(turn["series"].startswith("near_zero/rms_") for turn in turns)  # as it says
    factors = [float(turn["series"].rpartition("_")[2]) for turn in turns]
    return {
        "least": min(factors), "most": max(factors),
        "low": min(turn["onset_low"] for turn in turns),
        "high": max(turn["onset_high"] for turn in turns),
        "then": spread_of(runs, "relu-0.1-s", "rms_0.1", 100),
        "middle": spread_of(runs, "relu-0.1-s", "rms_0.1", 7000),
        "now": spread_of(runs, "relu-0.1-s", "rms_0.1", 15_000),
    }  # fmt: skip


def rise(runs: Runs) -> Mapping[str, object]:
    assert all(
        emergence.turns(one, "up", "gradual") for one in of(runs, "gelu-1.0-s")
    )  # as it says
    return {
        "then": spread_of(runs, "gelu-1.0-s", "initial_0.1", 100),
        "now": spread_of(runs, "gelu-1.0-s", "initial_0.1", 15_000),
    }


def take_off(runs: Runs) -> Mapping[str, object]:
    turns = [turn for one in of(runs, "relu-1.0-s") for turn in emergence.turns(one, "up")]
    kinds = {turn["series"].partition("/")[2].partition("_")[0] for turn in turns}
    assert kinds == {"abs", "initial", "rms"}  # of every kind
    losses = [one["value/dense"][-1] for one in of(runs, "relu-1.0-s")]
    assert min(losses) > 1.5 * max(one["value/dense"][-1] for one in of(runs, "relu-0.01-s"))
    return {
        "low": min(turn["onset_low"] for turn in turns),
        "high": max(turn["onset_high"] for turn in turns),
        "then": spread_of(runs, "relu-1.0-s", "initial_0.1", 2000),
        "now": spread_of(runs, "relu-1.0-s", "initial_0.1", 15_000),
        "dormant": emergence.spread(
            [100 * one["motion/dormant"][-1] for one in of(runs, "relu-1.0-s")], ".0f"
        ),
        "loss": emergence.spread(losses),
    }  # fmt: skip


def fall(runs: Runs) -> Mapping[str, object]:
    others = [one for name, one in runs.items() if not name.startswith("gelu-1.0")]
    return {
        "then": spread_of(runs, "gelu-0.01-s", "initial_0.1", 100),
        "now": spread_of(runs, "gelu-0.01-s", "initial_0.1", 15_000),
        "relative": spread_of(runs, "gelu-0.01-s", "rms_0.1", 15_000),
        "dense": sum(bool(emergence.turns(one, "down")) for one in others),
        "others": len(others),
        "twice": turning(runs, "gelu-1.0-s", "down"),
    }


def essential(runs: Runs) -> Mapping[str, object]:
    found = {}
    for name, start in {"gelu": "gelu-0.01-s", "relu": "relu-0.1-s"}.items():
        series = [np.array(one["essential_sparsity/value"]) for one in of(runs, start)]
        known = [values[np.isfinite(values)] for values in series]
        assert all(values[-1] < 0.7 * values[0] for values in known)  # it falls
        found[f"{name}_first"] = emergence.spread([values[0] for values in known])
        found[name] = emergence.spread([values[-1] for values in known])
    return found


def dormant(runs: Runs) -> Mapping[str, object]:
    return {
        name: emergence.spread(
            [100 * one["motion/dormant"][-1] for one in of(runs, f"{name}-0.01-s")], ".0f"
        )
        for name in ("gelu", "relu")
    } | {
        "clock": emergence.spread([one["motion/decay_clock"][-1] for one in of(runs, "relu-0.01")])
    }


CLAIMS = [
    Claim(
        "Pretraining with what BERT-base has (warm-up, linear decay of the rate, dropout), in "
        "small: two layers, single characters, 16 sequences of 32 a step, {steps:,} steps, a "
        "snapshot every {every}. GELU and ReLU, three weight decays; {runs} runs (seeds of "
        "each: {seeds}), trained at commits {commits}, the last on {date}. Each is asked for an "
        "abrupt turn at {thresholds} thresholds, absolute ones and those relative to the first "
        "and the present rms; the chance of finding one among so many is [corrected "
        "for](../detection.md#every-threshold-at-once). Of the thresholds the table has the number"
        " that turn, of the rest the last value:",
        done,
    ),
    Claim("{table}", lambda runs: {"table": emergence.report(runs)}),
    Claim(
        "**With GELU no threshold makes an abrupt turn to sparse**: {a} runs with decay 0.01, "
        "which is BERT's own, {b} with 0.1, {c} with 1.",
        lambda runs: by_decay(runs, "gelu"),
    ),
    Claim(
        "With GELU and decay 1 near zero does rise, gradually: 0.1 of the first rms from {then} % "
        "to {now} %.",
        rise,
    ),
    Claim(
        "With ReLU there is one in {a} runs with decay 0.01, in {b} with 0.1, in {c} with 1.",
        lambda runs: by_decay(runs, "relu"),
    ),
    Claim(
        "At decay 0.1 that is a bend, and which threshold is asked decides: those from "
        "{least:g} to {most:g} of the *present* rms turn between steps {low:,} and {high:,} "
        "(0.1 of it: {then} % at the start, {middle} % at step 7,000, {now} % at the end); "
        "absolute ones, and those of the first rms, do not.",
        bend,
    ),
    Claim(
        "At decay 1 thresholds of every kind turn, begun between steps {low:,} and {high:,}: of"
        " the weights {then} % are below 0.1 of the first rms at step 2,000, {now} % at the "
        "end, when {dormant} % are dormant. But this model learns next to nothing (loss "
        "{loss}).",
        take_off,
    ),
    Claim(
        "The weights grow while the rate warms up, so that fixed thresholds catch fewer of them: "
        "0.1 of the first rms {then} % at the start and {now} % at the end (GELU, decay 0.01), 0.1 "
        "of the present rms {relative} % then. Mostly that is gradual: {dense} of {others} runs "
        "turn abruptly to dense at some threshold, and {twice} with GELU and decay 1.",
        fall,
    ),
    Claim(
        "Essential sparsity falls as the model learns: with GELU and decay 0.01 it is {gelu_first} "
        "where it first says anything and {gelu} at the end, with ReLU and decay 0.1 {relu_first} "
        "and {relu}.",
        essential,
    ),
    Claim(
        "With ReLU units die: {relu} % of the weights are dormant at the end with decay 0.01, "
        "with GELU {gelu} %. The decay clock ends at {clock}: they are not small yet.",
        dormant,
    ),
    Claim(
        "It cannot show what BERT-base does, with {here:,} weights in scope for its 84,934,656,"
        " and with what may be another optimizer: [A map of the turn](turn_map.md) has four.",
        lambda runs: {"here": runs["gelu-0.01-s0"]["num_weights"]},
    ),
]


def against_relu(runs: Runs) -> Mapping[str, object]:
    """Whether fewer runs turn than with ReLU, by the one rule: per cent, by decay and seed."""
    names = sorted(name.removeprefix("gelu-") for name in runs if name.startswith("gelu-"))
    gelu, relu = (
        np.array([[100.0 * bool(emergence.turns(runs[f"{unit}-{name}"], "up"))] for name in names])
        for unit in ("gelu", "relu")
    )
    assert not gelu.any()  # as it says
    difference = Difference.paired(gelu, relu, most=100.0)
    (said,) = sw.verdicts([sw.Comparison("GELU", "ReLU", difference)])
    assert said.word == "differs"
    return {"k": len(runs["gelu-0.01-s0"]["thresholds"]), "n": len(names), "rule": difference}


ROW = Claim(
    "no abrupt turn to sparse with GELU, at any of {k} thresholds ({n} runs) | GELU and ReLU "
    "differ: {rule} % of the runs",
    against_relu,
)


README = Claim(
    "With GELU and decay 0.01, as in BERT, a model of the size of the demo makes no abrupt turn to "
    "sparse by any of {k} thresholds "
    "([docs/reports/paper.md](docs/reports/paper.md#when-weights-turn-sparse-figure-8)).",
    lambda runs: {"k": len(runs["gelu-0.01-s0"]["thresholds"])} | by_decay(runs, "gelu"),
)


def test_the_paper_says_what_the_series_say() -> None:
    hold(section_of(PAPER, "When weights turn sparse (figure 8)"), CLAIMS, KEPT)
    (row,) = (line for line in PAPER.splitlines() if line.startswith("| 8 (i)"))
    assert ROW.told(KEPT) in row
    assert words_of(README.told(KEPT)) in words_of((PAPER_MD.parents[2] / "README.md").read_text())


def test_a_claim_that_is_not_said_or_not_computed_is_found() -> None:
    runs = {"a": {"loss": [2.0, 1.5]}}
    claim = Claim("The loss **ends** at {end:.1f}.", lambda r: {"end": r["a"]["loss"][-1]})
    markdown = "## Mine\n\n    a command\n\n- The loss ends\n  at 1.5.\n\n## Next\nIt is 7.\n"
    section = section_of(markdown, "Mine")
    hold(section, [claim], runs)
    with pytest.raises(AssertionError, match=r"does not say: The loss ends at 9\.0"):
        hold(section, [claim], {"a": {"loss": [9.0]}})
    with pytest.raises(AssertionError, match="No claim says: And more"):
        hold(section + "And more", [claim], runs)
