"""Experiments of the paper on models that are trained here, at toy size: tickets, decoder."""

from __future__ import annotations

import itertools

import decoder
import lottery_ticket
import mask_similarity
import numpy as np
import pytest
import texts
import torch
import trained_here
from contracts.families import some_of
from contracts.paper import said, table
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import prune

import sparsitywatch as sw

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """Folder and words of each command, run once."""
    found = {}

    def run(command):
        name = command.__name__
        if name not in found:
            out = tmp_path_factory.mktemp(name)
            found[name] = out, said(command, out)
        return found[name]

    return run


@pytest.mark.slow
@pytest.mark.parametrize("command", some_of([decoder, lottery_ticket], 2))
def test_started_again_it_trains_nothing_and_says_the_same(command, ran, monkeypatch):
    out, text = ran(command)
    name = command.__name__
    assert (out / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    monkeypatch.setattr(command, "fit", None)  # calling it would fail
    assert said(command, out) == text


@pytest.mark.slow
def test_results_of_other_settings_are_refused(ran, capsys):
    out, _ = ran(decoder)
    with pytest.raises(SystemExit, match=r"Expected results of .*'steps'"):
        decoder.main(["--out", str(out)])
    with pytest.raises(SystemExit):
        decoder.main(["--seeds", "1", "--out", str(out)])
    assert "two `--seeds`" in capsys.readouterr().err


# ------------------------------------------------------------------ what they share


def test_a_causal_transformer_does_not_see_what_comes_after():
    torch.manual_seed(0)
    model = trained_here.TextModel(9, 6, 8, 2, causal=True)
    tokens = torch.tensor([[1, 2, 3, 4, 5, 6]])
    other = tokens.clone()
    other[0, 4] = 8
    same = torch.isclose(model(tokens), model(other)).all(2)[0].tolist()
    assert same == [True] * 4 + [False] * 2
    other_way = trained_here.TextModel(9, 6, 8, 2)
    assert not torch.isclose(other_way(tokens), other_way(other)).all(2).any()


def test_training_lowers_a_loss_and_its_rate_rises_and_ends_at_zero(monkeypatch):
    rates = []
    step = torch.optim.AdamW.step
    monkeypatch.setattr(
        torch.optim.AdamW, "step",
        lambda self, *a: (rates.append([g["lr"] for g in self.param_groups]), step(self, *a))[1],
    )  # fmt: skip
    torch.manual_seed(0)
    model = nn.Linear(3, 1)
    x = torch.randn(20, 3)
    loss = lambda: (model(x) - 1).square().mean()  # noqa: E731
    before = float(loss().detach())
    trained_here.fit(model, loss, steps=20, lr=0.1)
    assert float(loss().detach()) < 0.5 * before
    assert not model.training
    assert [r[0] for r in rates[:2]] == pytest.approx([0.05, 0.1])
    assert max(r[0] for r in rates) == pytest.approx(0.1)
    assert 0 < rates[-1][0] < 0.01


def test_the_documentation_is_read_by_package():
    found = trained_here.documentation(["json", "textwrap"])
    assert set(found) == {"json", "textwrap"}
    assert any("json (javascript object notation)" in text for text in found["json"])
    assert all(len(set(texts)) == len(texts) for texts in found.values())


def test_characters_are_known_or_unknown():
    characters = trained_here.Characters("abba" * 5000 + "z")
    assert characters.encode("abz").tolist() == [2, 3, 0]
    assert len(characters) == 4


# ------------------------------------------------------------------ lottery tickets


@pytest.mark.slow
def test_a_ticket_drops_the_smallest_fifth_of_what_was_trained_round_by_round(ran):
    out, _ = ran(lottery_ticket)
    dense, *others = (
        np.concatenate(
            [w.numpy().ravel() for w in torch.load(out / "tickets-package" / f).values()]
        )
        for f in ("0-0.0000.pt", "0-0.2000.pt", "0-0.3600.pt")
    )
    kept, before = np.ones(len(dense), dtype=bool), dense
    for trained in others:
        left = np.sort(np.abs(before[kept]))
        kept &= np.abs(before) > left[round(0.2 * len(left)) - 1]
        np.testing.assert_array_equal(trained != 0, kept)
        before = trained
    assert kept.mean() == pytest.approx(0.64, abs=0.001)


def test_tickets_go_back_to_the_pretrained_weights(tmp_path):
    trained = {"w": torch.tensor([[5.0, -1.0, 3.0], [4.0, 2.0, 6.0]])}
    tickets = lottery_ticket.LotteryTickets(tmp_path, [0.0, 0.2])
    trained_here.save(tickets.file(0, 0.0), trained)
    cut = lottery_ticket.GivenMasks.of(0.2, tickets.masks(0, 0.2))
    pretrained = torch.arange(1.0, 7.0).reshape(2, 3)
    out = torch.empty(2, 3)
    cut.prune("w", pretrained, out=out)
    assert out.tolist() == [[1, 0, 3], [4, 5, 6]]
    assert cut.sparsity == pytest.approx(1 / 6)
    assert cut.shares["w"] == pytest.approx(1 / 6)


@pytest.mark.slow
def test_dense_is_the_same_for_both_masks_and_the_table_has_every_level(ran):
    _, text = ran(lottery_ticket)
    found = table(text, "task")[2:]
    assert [(row[0], row[1]) for row in found] == [
        (task, level) for task in ("package", "next") for level in ("0.000", "0.200", "0.360")
    ]
    for row in found:
        if row[1] == "0.000":
            assert row[2] == row[3]
            continue
        chance = float(row[1])
        assert float(row[8]) == pytest.approx(1 - chance, abs=0.002)  # cosine
        assert float(row[10]) == pytest.approx(chance, abs=0.002)  # overlap
        assert float(row[7]) > float(row[8])
        assert float(row[9]) > float(row[10])
    assert "\nnext, 2 sparsities below a half together: tickets − OMP: " in text


def test_tickets_and_omp_are_compared_by_what_each_example_gave_at_all_levels_below_a_half():
    random = np.random.default_rng(0)
    values = random.integers(0, 2, (2, 3, 40)).astype(float)  # of two curves: level, example

    def curve(of):
        return sw.FinetunedCurve(
            sparsity=[0.0, 0.2, 0.6], value=of.mean(1).tolist(), level=[0.0, 0.2, 0.6], seeds=(0,),
            by_seed=[of.mean(1).tolist()], by_example=of[None],
        )  # fmt: skip

    tickets, omp = map(curve, values)
    learned = sw.Difference.of(40.0, 1.0)
    outcome = lottery_ticket.Outcome("next", omp, tickets, omp, {}, learned)
    ((about, comparison),) = outcome.compared()
    assert about == "next, 1 sparsities below a half together"
    lost = 100 * (values[0, 1] - values[1, 1])
    assert comparison.difference.mean == pytest.approx(lost.mean())
    assert comparison.difference.stderr == pytest.approx(lost.std(ddof=1) / 40**0.5)


# ------------------------------------------------------------------ how alike masks can be


@given(
    st.lists(st.floats(0.0, 10.0), min_size=2, max_size=7),
    st.floats(0.0, 5.0),
    st.floats(0.1, 0.9),
)
def test_the_lowest_cosine_is_that_of_every_choice_of_what_goes_afterwards(sizes, moved, level):
    sizes = np.sort(sizes)
    num, gone = len(sizes), round(level * len(sizes))
    assume(0 < gone < num)
    before, lowest = set(range(gone)), 1.0
    for after in map(set, itertools.combinations(range(num), gone)):
        # what goes moves down, what stays up: that can be if none that stays lies below
        ends = [max(sizes[i] - moved, 0.0) if i in after else sizes[i] + moved for i in range(num)]
        if max(ends[i] for i in after) <= min(ends[i] for i in range(num) if i not in after):
            both = num - len(before | after)
            lowest = min(lowest, both / (num - gone))
    found = mask_similarity.lowest_cosine(sizes, level, moved)
    assert found == pytest.approx(lowest)


def test_how_far_a_weight_can_come_is_the_sum_of_the_rates():
    parameter = nn.Parameter(torch.zeros((), dtype=torch.float64))
    model = nn.Module()
    model.weight = parameter
    steps, rate = 40, 1e-3
    optimizer = torch.optim.AdamW([parameter], lr=rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda t: min((t + 1) / 4, max(0.0, (steps - t) / (steps - 4 + 1)))
    )
    for _ in range(steps):
        parameter.grad = torch.ones((), dtype=torch.float64)  # always alike
        optimizer.step()
        schedule.step()
    by_rate = mask_similarity.reach(steps, rate, at_most=False)
    assert -parameter.item() == pytest.approx(by_rate, rel=1e-6)
    assert mask_similarity.reach(steps, rate, at_most=True) > by_rate


@pytest.mark.slow
def test_mask_similarity_runs_and_goes_on(ran, monkeypatch):
    out, text = ran(mask_similarity)
    found = table(text)[2:]
    assert [row[0] for row in found] == ["0.10", "0.20", "0.30", "0.40"]
    for level, cosines, by_rate, at_most, chance in found:
        assert all(float(at_most) <= float(one) <= 1.0 for one in cosines.split())
        assert float(at_most) <= float(by_rate)
        assert float(chance) == pytest.approx(1 - float(level))
    assert "At 40% the cosine is" in text
    monkeypatch.setattr(mask_similarity.Tuning, "train", None)
    assert said(mask_similarity, out) == text


# ------------------------------------------------------------------ a sum in words


def test_sums_in_words_are_odd_or_even_and_in_one_part_only(monkeypatch):
    monkeypatch.setattr(texts, "_encoded", lambda chosen, *_: chosen)
    task = texts.parity(train=2000, held_out=3000)
    numbers = {texts.in_words(n): n for n in range(100)}
    assert len(numbers) == 100
    parts = (task.train, task.validation, task.held_out)
    assert [len(part) for part in parts] == [2000, 3000, 3000]
    assert len({text for part in parts for text, _, _ in part}) == 8000
    for text, label, _ in task.held_out:
        first, second = map(numbers.get, text.split(" plus "))
        assert label == (first + second) % 2
    assert sum(label for _, label, _ in task.held_out) == 1500


# ------------------------------------------------------------------ decoder


@pytest.mark.slow
def test_the_decoder_s_losses_are_those_of_torch_s_own_pruning(ran):
    out, _ = ran(decoder)
    args = decoder.arguments_of(["--small", "--out", str(out)])
    experiment = decoder.Experiment(args)
    model = experiment.model(0)
    dense = experiment.measure(0, "global")
    assert dense["levels"][0] == 0.0
    pruned = [
        (module, "weight")
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and "blocks" in name
    ]
    with torch.no_grad():
        assert decoder.losses(model, experiment.held_out).mean() == pytest.approx(dense["loss"][0])
        prune.global_unstructured(pruned, prune.L1Unstructured, amount=0.5)
        half = float(decoder.losses(model, experiment.held_out).mean())
    assert half == pytest.approx(dense["loss"][dense["levels"].index(0.5)], rel=1e-5)


@pytest.mark.slow
def test_the_held_out_text_is_not_trained_on(tmp_path):
    args = decoder.arguments_of(["--small", "--out", str(tmp_path)])
    experiment = decoder.Experiment(args)
    train = bytes(experiment.train.tolist())
    windows = [bytes(window.tolist()) for window in experiment.held_out]
    assert sum(window in train for window in windows) <= len(windows) // 10  # phrases recur


def test_rises_are_in_percent_of_dense():
    found = decoder.rise([2.2, 3.3], [2.0, 3.0])
    assert found.mean == pytest.approx(10.0)
    # two seeds that agree: 1 - 0.05^(1/2) of the others may be as far off again
    assert found.stderr == pytest.approx(10.0 * (1 - 0.05**0.5) / 1.6448536)
