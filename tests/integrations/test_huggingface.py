"""The callback on a real Trainer training a real BERT."""

from __future__ import annotations

import math
import operator
import os
import random
import shutil
import typing
from pathlib import Path

import numpy as np
import pytest
import tokenizers
import torch
import transformers
from contracts.live_runs import loss_per_sentence, sentences
from contracts.once import once
from contracts.trainers import checkpoints, proxy, train
from contracts.watched import SeesStep
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import sparsitywatch as sw
from sparsitywatch.integrations import huggingface
from sparsitywatch.integrations.huggingface import SparsityWatchCallback
from sparsitywatch.live.watch import WatchOptions, watch
from sparsitywatch.proxy.ready_made import labelled_value
from sparsitywatch.settings import SettingsFields
from sparsitywatch.sinks.jsonl import read_records


def weights(trainer: transformers.Trainer) -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in trainer.model.state_dict().items()}


@pytest.fixture(autouse=True)
def _quiet(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "tb"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.mark.slow
def test_one_line_watches_a_trainer_beside_its_own_run(tmp_path: Path) -> None:
    callback = SparsityWatchCallback(proxy(), max_overhead=None, every=2, strict=True)
    watched = train(tmp_path / "on", 8, callback, gradient_accumulation_steps=2)
    records = read_records(tmp_path / "tb" / "sparsitywatch")
    assert [r.step for r in records] == [2, 4, 6, 8]
    assert records[0].scope.num_tensors == 12
    ours = EventAccumulator(str(tmp_path / "tb" / "sparsitywatch")).Reload()
    theirs = EventAccumulator(str(tmp_path / "tb")).Reload()
    assert "0_sparsity/1_near_zero/initial_0.1" in ours.Tags()["scalars"]
    assert "train/loss" in theirs.Tags()["scalars"]
    assert not any("sparsity" in tag for tag in theirs.Tags()["scalars"])
    plain = train(tmp_path / "off", 8, None, gradient_accumulation_steps=2)
    torch.testing.assert_close(weights(watched), weights(plain), rtol=0, atol=0)


@pytest.mark.slow
def test_a_resumed_trainer_goes_on_in_the_same_log(tmp_path: Path) -> None:
    def watching(log: str) -> SparsityWatchCallback:
        return SparsityWatchCallback(
            proxy(), max_overhead=None, every=2, logdir=str(tmp_path / log), strict=True
        )

    train(tmp_path / "a", 10, watching("whole"))
    train(tmp_path / "b", 6, watching("log"))  # saves at 4 and at its end, 6
    (tmp_path / "b" / "checkpoint-6").rename(tmp_path / "b" / "gone")
    train(tmp_path / "b", 10, watching("log"), resume=True)
    whole, resumed = (read_records(tmp_path / log / "sparsitywatch") for log in ("whole", "log"))
    assert [r.step for r in resumed] == [2, 4, 6, 8, 10]
    parts = operator.attrgetter("curve", "near_zero", "dormant", "decay_clock")
    assert [*map(parts, resumed)] == [*map(parts, whole)]


def test_a_callback_takes_the_keywords_of_a_watch() -> None:
    hints = typing.get_type_hints(watch)
    own = {"model", "optimizer", "proxy", "logdir", "on_event", "initial_step", "fields", "return"}
    expected = {name: hints[name] for name in hints.keys() - own}
    assert typing.get_type_hints(WatchOptions) == expected | typing.get_type_hints(SettingsFields)


def test_an_unknown_option_is_refused_when_the_callback_is_made() -> None:
    with pytest.raises(sw.ConfigurationError, match=r"got \['evry'\]"):
        SparsityWatchCallback(evry=3)


def reacts(step: int, on_event: list, **options) -> SparsityWatchCallback:
    given = {"every": 1, "background": False, **options}
    detectors = {"near_zero/initial_0.1": SeesStep(step)}
    return SparsityWatchCallback(
        max_overhead=None, strict=True, detectors=detectors, on_event=on_event, **given
    )


@pytest.mark.slow
def test_an_event_makes_the_trainer_save(tmp_path: Path) -> None:
    seen = []
    callback = reacts(3, ["save", seen.append])
    trainer = train(tmp_path / "run", 6, callback, save_strategy="no")
    assert checkpoints(tmp_path / "run") == ["checkpoint-3"]
    assert (tmp_path / "run" / "checkpoint-3" / "sparsitywatch.pt").exists()
    assert (tmp_path / "run" / "checkpoint-3" / "optimizer.pt").exists()
    assert trainer.state.global_step == 6
    assert [(e.detected_step, e.course) for e in seen] == [(3, "seen"), (3, "settled")]


@pytest.mark.slow
def test_an_event_makes_the_trainer_save_and_stop(tmp_path: Path) -> None:
    stop = sw.actions.StopTraining()
    trainer = train(tmp_path / "run", 8, reacts(3, ["log", "save", stop]), save_strategy="no")
    assert trainer.state.global_step == 3
    assert checkpoints(tmp_path / "run") == ["checkpoint-3"]
    assert not stop.is_requested  # it has been answered
    # taken up again it goes on: the event is known
    again = train(tmp_path / "run", 5, reacts(3, ["stop"]), resume=True, save_strategy="no")
    assert again.state.global_step == 5


@pytest.mark.slow
def test_what_is_seen_behind_the_training_is_asked_for_at_a_later_step(tmp_path: Path) -> None:
    callback = reacts(3, ["save", "stop"], background=True)
    trainer = train(tmp_path / "run", 8, callback, save_strategy="no")
    stopped = trainer.state.global_step
    assert 3 <= stopped <= 8
    assert checkpoints(tmp_path / "run") == [f"checkpoint-{stopped}"]


@pytest.mark.slow
def test_what_the_last_look_sees_is_not_too_late(tmp_path: Path) -> None:
    callback = reacts(4, ["save"], background=True, every=4)
    train(tmp_path / "run", 4, callback, save_strategy="no")
    assert checkpoints(tmp_path / "run") == ["checkpoint-4"]


def test_every_rank_does_what_the_first_one_wants(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Trainer that saves or stops on one rank alone waits for the others forever."""
    told = []

    class OtherRank:
        is_available = is_initialized = staticmethod(lambda: True)

        @staticmethod
        def broadcast(flags: torch.Tensor, src: int) -> None:
            told.append((flags.tolist(), src))
            flags.copy_(torch.tensor([1, 0]))

    arguments = transformers.TrainingArguments(use_cpu=True)
    assert huggingface._agreed([False, True], arguments) == [False, True]
    monkeypatch.setattr(huggingface, "distributed", OtherRank)
    assert huggingface._agreed([False, False], arguments) == [True, False]
    assert told == [([0, 0], 0)]


@pytest.mark.parametrize("bad", ["save", ["halt"], [3], None, print])
def test_a_word_that_is_no_action_is_refused(bad: object) -> None:
    with pytest.raises(sw.ConfigurationError, match=r"words \['log', 'save', 'stop'\]"):
        SparsityWatchCallback(on_event=bad)


# ------------------------------------------------------------------ nothing ends the training


def natural_proxy(num_sentences: int = 16, **options) -> sw.Proxy:
    """As anybody would write it: the collator hides other tokens each time that it is asked."""
    words = {f"w{i}": i for i in range(36)} | {"[PAD]": 36, "[UNK]": 37, "[MASK]": 38}
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizers.Tokenizer(tokenizers.models.WordLevel(words, "[UNK]")),
        pad_token="[PAD]", unk_token="[UNK]", mask_token="[MASK]",
    )  # fmt: skip
    hidden = sentences(1, num_sentences)
    words_of = torch.where(hidden["labels"] < 0, hidden["input_ids"], hidden["labels"])
    held = [{"input_ids": words} for words in words_of]
    collate = transformers.DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.5)
    loader = torch.utils.data.DataLoader(held, 8, shuffle=True, collate_fn=collate)
    return sw.Proxy(loader, labelled_value, **options)


def test_the_natural_proxy_is_the_same_at_every_launch() -> None:
    hashes = set()
    for seed in (1, 2):
        transformers.set_seed(seed)
        before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()  # noqa: NPY002
        hashes.add(natural_proxy().hash)
        after = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()  # noqa: NPY002
        assert torch.equal(before[0], after[0])
        assert before[1:] == after[1:]
    assert len(hashes) == 1
    assert natural_proxy(seed=5).hash not in hashes


def watching(folder: Path, given: sw.Proxy, **options) -> SparsityWatchCallback:
    options = {"max_overhead": None, "every": 2, "logdir": str(folder / "log"), **options}
    return SparsityWatchCallback(given, **options)


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 4 steps."""

    def run(folder: Path) -> None:
        transformers.set_seed(1)
        train(folder / "run", 4, watching(folder, natural_proxy(seed=None), strict=True))

    return once(tmp_path_factory, "half-of-a-trainer", run)


def resumed(
    half: Path, folder: Path, spoil, *, second: sw.Proxy, **options
) -> SparsityWatchCallback:
    """The run of 4 steps, ``spoil`` on its checkpoint, and its resume up to step 6."""
    shutil.copytree(half, folder, dirs_exist_ok=True)
    spoil(folder / "run" / "checkpoint-4")
    callback = watching(folder, second, **options)
    trainer = train(folder / "run", 6, callback, resume=True)
    assert trainer.state.global_step == 6
    return callback


def steps(folder: Path) -> list[int]:
    return [record.step for record in read_records(folder)]


@pytest.mark.slow
def test_a_resumed_trainer_goes_on_with_the_batches_that_its_log_kept(
    half: Path, tmp_path: Path
) -> None:
    transformers.set_seed(2)
    second = natural_proxy(seed=None)  # other sentences together, other words hidden
    callback = resumed(half, tmp_path, lambda _: None, second=second, strict=True)
    records = read_records(tmp_path / "log" / "sparsitywatch")
    assert [r.step for r in records] == [2, 4, 6]
    assert len({r.provenance.proxy_hash for r in records}) == 1
    assert records[-1].provenance.proxy_hash != second.hash
    assert callback.watcher.off == ""
    assert not math.isnan(records[-1].decay_clock)


@pytest.mark.slow
def test_other_batches_begin_a_new_log_with_a_word(half: Path, tmp_path: Path, caplog) -> None:
    resumed(half, tmp_path, lambda _: None, second=natural_proxy(24))
    assert "sparsitywatch.pt cannot be taken up" in caplog.text
    assert "whose numbers cannot be compared with those that come (proxy_hash" in caplog.text
    assert steps(tmp_path / "log" / "sparsitywatch-earlier-1") == [2, 4]
    assert steps(tmp_path / "log" / "sparsitywatch") == [6]


@pytest.mark.slow
@pytest.mark.parametrize("num_bytes", [0, 100, 5000])
def test_a_truncated_state_is_said_and_the_log_gone_on_from(
    half: Path, tmp_path: Path, caplog, num_bytes: int
) -> None:
    def truncate(checkpoint: Path) -> None:
        os.truncate(checkpoint / "sparsitywatch.pt", num_bytes)

    resumed(half, tmp_path, truncate, second=natural_proxy())
    said = [r.getMessage() for r in caplog.records if "cannot be taken up" in r.getMessage()]
    assert len(said) == 1
    assert "The decay clock and the motion since the last snapshot are lost" in said[0]
    assert steps(tmp_path / "log" / "sparsitywatch") == [2, 4, 6]


class Saboteur(transformers.TrainerCallback):
    """Asked before the watch's callback at each save."""

    def __init__(self, on_save) -> None:
        self.sabotage = on_save

    def on_save(self, args, state, control, **_):
        self.sabotage(Path(args.output_dir) / f"checkpoint-{state.global_step}", state.global_step)


@pytest.mark.slow
def test_nothing_that_fails_in_the_callback_ends_the_trainer(tmp_path: Path, caplog) -> None:
    """One run, a fault at each save: a full disk, a state that cannot be told, no log any more."""
    failing = set()

    class Detector(sw.detectors.AbruptChange):
        def state_dict(self):
            if "state" in failing:
                raise RuntimeError("the detector's state broke")
            return super().state_dict()

    def sabotage(checkpoint: Path, step: int) -> None:
        failing.clear()
        if step == 2:  # torch raises a RuntimeError, not an OSError
            (checkpoint / "sparsitywatch.tmp").symlink_to("/dev/full")
        if step == 4:
            failing.add("state")
        if step == 6:
            shutil.rmtree(tmp_path / "log")
            (tmp_path / "log").write_text("in the way")

    def value(model, batch):
        if callback.watcher is not None and callback.watcher.step_count == 5:
            raise SystemExit("the value function exits")
        return loss_per_sentence(model, batch)

    given = proxy()
    given.value = value
    callback = SparsityWatchCallback(
        given, max_overhead=None, every=1, logdir=str(tmp_path / "log"),
        detectors={"near_zero/initial_0.1": Detector()},
    )  # fmt: skip
    options = {"save_steps": 2, "max_steps": 9}
    watched = train(tmp_path / "on", 9, callback, before=[Saboteur(sabotage)], **options)
    assert watched.state.global_step == 9
    states = [path.parent.name for path in (tmp_path / "on").rglob("sparsitywatch.pt*")]
    assert sorted(states) == ["checkpoint-6", "checkpoint-8", "checkpoint-9"]
    assert "saving the watch's state failed; training goes on" in caplog.text
    assert "the watch's state is not known; training goes on" in caplog.text
    invalid = [r for r in callback.watcher.records if not r.valid]
    assert [(r.step, r.reason) for r in invalid][:1] == [
        (5, "SystemExit: the value function exits")
    ]
    plain = train(tmp_path / "off", 9, None, **options)
    torch.testing.assert_close(weights(watched), weights(plain), rtol=0, atol=0)


@pytest.mark.slow
def test_a_full_disk_at_a_resume_does_not_end_it(half: Path, tmp_path: Path, caplog) -> None:
    def fill(_: Path) -> None:
        shutil.rmtree(tmp_path / "log")
        (tmp_path / "log").write_text("in the way")

    callback = resumed(half, tmp_path, fill, second=natural_proxy())
    assert callback.watcher is None
    assert "attaching failed; training goes on unwatched" in caplog.text


@pytest.mark.slow
def test_two_trainers_on_one_log(tmp_path: Path) -> None:
    options = {"max_overhead": None, "every": 1, "logdir": str(tmp_path / "log")}
    inner = SparsityWatchCallback(proxy(), **options)

    def train_another(_: Path, step: int) -> None:
        if step == 2:
            train(tmp_path / "inner", 2, inner)

    outer = SparsityWatchCallback(proxy(), **options)
    trainer = train(tmp_path / "outer", 4, outer, before=[Saboteur(train_another)], save_steps=2)
    assert trainer.state.global_step == 4
    assert steps(tmp_path / "log" / "sparsitywatch") == [1, 2]
    assert steps(tmp_path / "log" / "sparsitywatch-earlier-1") == [1, 2]
