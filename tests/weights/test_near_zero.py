"""Near-zero rules: one spelling, and what each of them counts."""

from __future__ import annotations

import math

import pytest
import torch

from sparsitywatch.errors import ConfigurationError
from sparsitywatch.weights.spectrum import MagnitudeSpectrum
from sparsitywatch.weights.spectrum.magnitude import DEFAULT_RULES, NearZeroRule, near_zero_rules


@pytest.fixture
def tensors():
    generator = torch.Generator().manual_seed(0)
    return {
        "wide": torch.randn(40, 50, generator=generator).bfloat16(),
        "narrow": (0.01 * torch.randn(30, 10, generator=generator)).bfloat16(),
        "mostly zero": torch.tensor([0.0] * 90 + [0.5] * 10, dtype=torch.bfloat16),
        "broken": torch.full((5,), math.nan, dtype=torch.bfloat16),
        "empty": torch.empty(0, dtype=torch.bfloat16),
    }


def share(tensors, tau_of):
    near = sum(int((w.double().abs() <= tau_of(name, w)).sum()) for name, w in tensors.items())
    return near / sum(w.numel() for w in tensors.values())


def test_each_rule_counts_what_it_says(tensors):
    spectrum = MagnitudeSpectrum.of(tensors)
    reference = {"wide": 2.0, "narrow": 0.1, "mostly zero": 0.0, "broken": 1.0, "empty": 1.0}
    assert spectrum.near_zero(abs=1e-2) == share(tensors, lambda *_: 1e-2)
    assert spectrum.near_zero(abs=0.0) == 90 / 2405
    assert spectrum.near_zero(rms=0.1) == share(
        tensors, lambda _, w: 0.1 * w.double().square().mean().sqrt().item()
    )
    assert spectrum.near_zero(initial=0.1, reference=reference) == share(
        tensors, lambda name, _: 0.1 * reference[name]
    )


def test_near_zero_wants_exactly_one_rule(tensors):
    spectrum = MagnitudeSpectrum.of(tensors)
    with pytest.raises(ConfigurationError, match=r"exactly one of .* got \[\]"):
        spectrum.near_zero()
    with pytest.raises(ConfigurationError, match=r"got \['abs', 'rms'\]"):
        spectrum.near_zero(abs=0.1, rms=0.1)
    for wrong in (-0.1, math.nan, math.inf):
        with pytest.raises(ConfigurationError, match="`rms` to be a finite number >= 0"):
            spectrum.near_zero(rms=wrong)
    with pytest.raises(ConfigurationError, match=r"`reference`.*got none"):
        spectrum.near_zero(initial=0.1)
    with pytest.raises(ConfigurationError, match="no entry for 'narrow'"):
        spectrum.near_zero(initial=0.1, reference={"wide": 1.0})


def test_several_rules_are_answered_as_one_by_one(tensors):
    spectrum = MagnitudeSpectrum.of(tensors)
    reference = {"wide": 2.0, "narrow": 0.1, "mostly zero": 0.0, "broken": 1.0, "empty": 1.0}
    rules = {name: NearZeroRule.parse(name) for name in (*DEFAULT_RULES, "rms_1.5")}
    one_by_one = {
        "initial_0.1": {"initial": 0.1, "reference": reference},
        "rms_0.1": {"rms": 0.1},
        "abs_0.001": {"abs": 1e-3},
        "zero": {"abs": 0.0},
        "rms_1.5": {"rms": 1.5},
    }
    whole, by_layer = spectrum.near_zero_by_rule(rules, reference)
    assert whole == {name: spectrum.near_zero(**rule) for name, rule in one_by_one.items()}
    assert list(by_layer) == list(tensors)
    for name, layer in spectrum.layers().items():
        expected = {rule: layer.near_zero(**asked) for rule, asked in one_by_one.items()}
        assert str(by_layer[name]) == str(expected)  # as text: NaN is not equal to itself


@pytest.mark.parametrize("name", ["small", "rms", "rms_", "rms_-1", "rms_inf", "abs_0", "zero_1"])
def test_a_name_that_is_no_rule_is_refused(name):
    with pytest.raises(ConfigurationError, match=f"`near_zero` rules such as .* got '{name}'"):
        near_zero_rules([*DEFAULT_RULES, name])
    with pytest.raises(ConfigurationError, match="`near_zero` to be a list of rules"):
        near_zero_rules(name)


def test_thresholds_that_do_not_move_are_known_beforehand():
    initial_rms = {"a": 2.0, "b": 0.5}
    fixed = {n: NearZeroRule.parse(n).fixed_thresholds(initial_rms) for n in DEFAULT_RULES}
    assert fixed == {
        "initial_0.1": {"a": 0.2, "b": 0.05},
        "rms_0.1": None,
        "abs_0.001": {"a": 0.001, "b": 0.001},
        "zero": None,
    }
