"""Which addresses are of one series: those of real libraries are, those of several runs are not."""

from __future__ import annotations

import pytest
from contracts.series_names import ARRANGED, CLEAN, MIXED, ROLES, STEPS, series, two_runs
from hypothesis import given
from hypothesis import strategies as st

from sparsitywatch.checkpoints.addresses import short_names, step_of_name, templates


@pytest.mark.parametrize("pattern", CLEAN.values(), ids=CLEAN)
def test_the_checkpoints_of_one_run_are_one_series(pattern: str) -> None:
    for steps in (STEPS, STEPS[:1], (0, *STEPS)):
        found = series(pattern, steps)
        for listed in (found, dict(reversed(found.items()))):
            assert len(set(templates(listed).values())) == 1


@pytest.mark.parametrize(("pattern", "other"), ROLES.values(), ids=ROLES)
@pytest.mark.parametrize("step", [0, 2000, 3000])
def test_what_one_has_for_its_role_is_of_the_run(pattern: str, other: str, step: int) -> None:
    assert len(set(templates({**series(pattern), other: step}).values())) == 1


@pytest.mark.parametrize(("pattern", "x", "y"), MIXED.values(), ids=MIXED)
@pytest.mark.parametrize("steps", ARRANGED.values(), ids=ARRANGED)
def test_several_runs_are_several_series(pattern: str, x, y, steps) -> None:
    one, other = two_runs(pattern, x, y, steps)
    found = templates(one | other)
    assert len(set(found.values())) == 2, found
    assert len({found[url] for url in one}) == 1
    names = short_names(sorted(set(found.values())))
    assert len(set(names.values())) == 2
    assert all(name and "/" not in name and not name.startswith(".") for name in names.values())


WORDS = st.sampled_from(["runs/a", "s3://b/x/y", "exp-7", "out", "2024-01-01/9", "1000", "v1.2"])
STEP_WORDS = st.sampled_from(["step-{0}", "checkpoint-{0}", "iter_{0:06}", "ba{0}", "{0}"])
PROGRESS = st.sampled_from(["", "epoch={1}-", "ep{1}_", "loss-{2}_", "acc={2}-", "tokens{1}M-"])


@given(
    st.lists(WORDS, min_size=2, max_size=3, unique=True),
    STEP_WORDS,
    PROGRESS,
    st.sets(st.integers(0, 10**6), min_size=2, max_size=8),
    st.randoms(use_true_random=False),
)
def test_whatever_it_is_called_each_folder_is_a_series(folders, word, progress, steps, random):
    urls = {}
    for folder in folders:
        for step in steps:
            name = (progress + word).format(step, random.randrange(9), f"{random.random():.3f}")
            urls[f"{folder}/{name}.pt"] = step
    urls = {url: step for url, step in urls.items() if step_of_name(url) == step}
    found = templates(urls)
    by_folder = {}
    for url, name in found.items():
        by_folder.setdefault(url.rpartition("/")[0], set()).add(name)
    assert all(len(names) == 1 for names in by_folder.values())
    assert len(set(found.values())) == len(by_folder)


def test_a_root_is_an_address() -> None:
    assert len(set(templates({"/": 3, "/run/step-5.pt": 5}).values())) == 2


def test_a_log_of_each_series_has_a_name_that_says_which_it_is() -> None:
    names = short_names(["/x/sweep/lr=0.1/step-{step}.pt", "/x/sweep/lr=0.2/step-{step}.pt"])
    assert list(names.values()) == ["lr=0.1", "lr=0.2"]
    assert short_names(["/x/a/step-{step}.pt"]) == {"/x/a/step-{step}.pt": "a"}
    clash = short_names(["r/a?/step-{step}.pt", "r/a!/step-{step}.pt"])
    assert sorted(clash.values()) == ["a", "a~2"]


def test_the_step_of_a_single_checkpoint_stands_in_other_folders_by_chance() -> None:
    (series,) = templates({"/runs/pytest-7/seed2/checkpoint-7.pt": 7}).values()
    assert series == "/runs/pytest-7/seed2/checkpoint-{step}.pt"
    both = {f"/runs/step-{step}/model-{step}.pt": step for step in (7, 9)}
    assert len(set(templates(both).values())) == 1
