"""What ends, hangs or harms a training that is watched, stopped and taken up again."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import tokenizers
import torch
import transformers
from torch import nn
from torch.utils.data import DataLoader

import sparsitywatch as sw
from faulting.case import Case
from sparsitywatch.integrations.huggingface import SparsityWatchCallback
from sparsitywatch.integrations.language_models import masked_loss
from sparsitywatch.live import snapshots
from sparsitywatch.sinks.jsonl import JsonlSink, read_records
from sparsitywatch.sinks.tensorboard import TensorBoardSink
from sparsitywatch.sinks.tensorboard_pages import IN_EVERY_RECORD

__all__ = ["CASES"]

_RANDOM_SIGNALS = 150


class _TimeIsUpError(Exception):
    """What a user's handler of a signal raises."""


# ---------------------------------------------------------------------------- a Trainer


def _sentences(num: int, seed: int) -> Any:
    generator = torch.Generator().manual_seed(seed)
    return [{"input_ids": torch.randint(36, (8,), generator=generator)} for _ in range(num)]


def _collator() -> Any:
    words = {f"w{i}": i for i in range(36)} | {"[PAD]": 36, "[UNK]": 37, "[MASK]": 38}
    special = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "mask")}
    model = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, "[UNK]"))
    make: Any = transformers.PreTrainedTokenizerFast
    tokenizer = make(tokenizer_object=model, **special)
    return transformers.DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.5)


def _proxy(num: int = 16, value: Any = masked_loss, seed: int | None = 0) -> sw.Proxy:
    return sw.Proxy(DataLoader(_sentences(num, 1), 8, collate_fn=_collator()), value, seed=seed)


class _AtSave(transformers.TrainerCallback):
    """Does something before the watch is asked to save."""

    def __init__(self, act: Callable[[Path, int], object]) -> None:
        self._act = act

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        del control
        self._act(Path(args.output_dir) / f"checkpoint-{state.global_step}", state.global_step)


def _callback(folder: Path, proxy: sw.Proxy | None = None, **options: Any) -> SparsityWatchCallback:
    options = {"max_overhead": None, "every": 2, "logdir": str(folder / "log")} | options
    return SparsityWatchCallback(_proxy() if proxy is None else proxy, **options)


def _train(
    output: Path,
    steps: int,
    *callbacks: transformers.TrainerCallback,
    resume: bool = False,
) -> str:
    """How a real Trainer of a tiny BERT ends."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    transformers.set_seed(0)
    config = transformers.BertConfig(
        vocab_size=40,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
    )
    arguments = transformers.TrainingArguments(
        output_dir=str(output),
        max_steps=steps,
        per_device_train_batch_size=8,
        save_steps=2,
        use_cpu=True,
        disable_tqdm=True,
        report_to=[],
    )
    trainer = transformers.Trainer(
        model=transformers.BertForMaskedLM(config),
        args=arguments,
        train_dataset=_sentences(64, 2),
        data_collator=_collator(),
        callbacks=list(callbacks),
    )
    try:
        trainer.train(resume_from_checkpoint=resume)
    except _TimeIsUpError:
        return "the training got what its handler raised"
    return f"trained to step {trainer.state.global_step}"


def _logged(folder: Path) -> str:
    """Steps in each log beside another."""

    def told(log: Path) -> str:
        try:
            return str([record.step for record in read_records(log)])
        except sw.StateError:
            return "cannot be read"

    logs = sorted(path.parent for path in folder.rglob("records.jsonl"))
    return "; ".join(f"{log.name} {told(log)}" for log in logs)


def _resumed(folder: Path, spoil: Callable[[Path], object], second: sw.Proxy) -> str:
    """Four steps, then what ``spoil`` does, then a resume to step 6."""
    transformers.set_seed(1)
    _train(folder / "run", 4, _callback(folder, _proxy(seed=None)))
    spoil(folder)
    ended = _train(folder / "run", 6, _callback(folder, second), resume=True)
    return f"{ended}: {_logged(folder)}"


def _nothing(folder: Path) -> None:
    del folder


def _truncate(folder: Path) -> None:
    os.truncate(folder / "run" / "checkpoint-4" / "sparsitywatch.pt", 3000)


def _damage_log(folder: Path) -> None:
    records = folder / "log" / "sparsitywatch" / "records.jsonl"
    records.write_bytes(records.read_bytes().replace(b'"step":2', b'"step":"two"', 1))


def _put_file_in_the_way(folder: Path) -> None:
    shutil.rmtree(folder / "log")
    (folder / "log").write_text("in the way")


def _masked_anew(folder: Path) -> str:
    transformers.set_seed(2)
    return _resumed(folder, _nothing, _proxy(seed=None))


def _full_disk(folder: Path) -> str:
    def fill(checkpoint: Path, step: int) -> None:
        if step == 2:  # torch raises a RuntimeError of it
            (checkpoint / "sparsitywatch.pt.tmp").symlink_to("/dev/full")

    ended = _train(folder / "run", 4, _AtSave(fill), _callback(folder))
    states = sorted(path.parent.name for path in folder.rglob("sparsitywatch.pt*"))
    return f"{ended}, state in {', '.join(states)}"


class _NoState(sw.detectors.AbruptChange):
    """A detector whose state cannot be told."""

    def state_dict(self) -> dict[str, Any]:
        raise RuntimeError("the detector's state broke")


class _NoStateLater(_NoState):
    """The same, once it is watched."""

    _is_attached = False

    def state_dict(self) -> dict[str, Any]:
        if self._is_attached:
            return super().state_dict()
        self._is_attached = True
        return sw.detectors.AbruptChange.state_dict(self)


def _state_raises(folder: Path) -> str:
    detectors = {"near_zero/initial_0.1": _NoStateLater()}
    return _train(folder / "run", 4, _callback(folder, detectors=detectors))


def _value_that(act: Callable[[], object]) -> Callable[..., torch.Tensor]:
    """A loss that does something else in the midst of the first snapshot, the weights masked."""
    calls = [0]

    def value(model: nn.Module, batch: Any) -> torch.Tensor:
        calls[0] += 1
        if calls[0] == 8:
            act()
        return masked_loss(model, batch)

    return value


def _exits(folder: Path) -> str:
    def leave() -> None:
        raise SystemExit("the value function exits")

    callback = _callback(folder, _proxy(value=_value_that(leave)))
    ended = _train(folder / "run", 4, callback)
    valid = [record.valid for record in read_records(folder / "log" / "sparsitywatch")]
    return f"{ended}, valid {valid}"


def _time_is_up(number: int, frame: object) -> None:
    raise _TimeIsUpError(number, frame)


def _handler_raises(folder: Path) -> str:
    signal.signal(signal.SIGUSR1, _time_is_up)
    act = partial(os.kill, os.getpid(), signal.SIGUSR1)
    return _train(folder / "run", 4, _callback(folder, _proxy(value=_value_that(act))))


def _log_goes(folder: Path) -> str:
    def remove(_: Path, step: int) -> None:
        if step == 2:
            _put_file_in_the_way(folder)

    return _train(folder / "run", 6, _AtSave(remove), _callback(folder, every=1))


def _two_trainers(folder: Path) -> str:
    def train_another(_: Path, step: int) -> None:
        if step == 2:
            _train(folder / "inner", 2, _callback(folder, every=1))

    ended = _train(folder / "outer", 4, _AtSave(train_another), _callback(folder, every=1))
    return f"{ended}: {_logged(folder)}"


# ---------------------------------------------------------------------------- a loop


class _Loop:
    """A small training of one's own."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.Linear(16, 2))
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.01)

    def watch(self, logdir: Path | None, **options: Any) -> sw.Watcher:
        options = {"every": 3, "max_overhead": None, **options}
        return sw.watch(self.model, self.optimizer, logdir=logdir, **options)

    def steps(self, number: int) -> None:
        for _ in range(number):
            self.optimizer.zero_grad()
            torch.autograd.backward(self.model(torch.randn(8, 6)).square().mean())
            self.optimizer.step()

    def bits(self) -> bytes:
        return b"".join(t.numpy().tobytes() for t in self.model.state_dict().values())


_OWN_PROCESS = """
import sys
from pathlib import Path
sys.path.insert(0, {folder!r})
from faulting import resume
{body}
"""


def _start(body: str, *arguments: str) -> subprocess.Popen[str]:
    script = _OWN_PROCESS.format(folder=str(Path(__file__).parents[1]), body=body)
    command = [sys.executable, "-c", script, *arguments]
    return subprocess.Popen(  # noqa: S603
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def _late_snapshot(folder: Path) -> str:
    """A notebook's cell that is run again while a snapshot is on its way behind the training."""
    import threading

    is_on_its_way, go_on = threading.Event(), threading.Event()
    measure = snapshots.__dict__["measure_snapshot"]

    def wait(*arguments: Any, **options: Any) -> Any:
        is_on_its_way.set()
        go_on.wait(60)
        return measure(*arguments, **options)

    first, second = _Loop(), _Loop()
    late = first.watch(folder)
    first.steps(4)
    state = late.state_dict()
    with mock.patch.object(snapshots, "measure_snapshot", wait):
        first.steps(2)
        is_on_its_way.wait(60)
    with second.watch(folder) as later:
        later.load_state_dict(state)
        second.steps(3)
        go_on.set()
        late.close()
    return f"{_logged(folder)}; the first is off: {'has taken over' in late.off}"


_WATCHED = """
loop = resume._Loop()
watcher = loop.watch(Path(sys.argv[1]))
for line in sys.stdin:
    loop.steps(int(line))
    print(len(watcher.records), bool(watcher.off), flush=True)
"""


def _ask(other: subprocess.Popen[str], steps: int) -> str:
    assert other.stdin is not None
    assert other.stdout is not None
    print(steps, file=other.stdin, flush=True)
    return other.stdout.readline().strip()


def _dying_predecessor(folder: Path) -> str:
    other = _start(_WATCHED, str(folder))
    _ask(other, 4)
    loop = _Loop()
    with loop.watch(folder, initial_step=4):
        loop.steps(1)
        told = _ask(other, 3)
        loop.steps(4)
    other.communicate(timeout=60)
    return f"{_logged(folder)}; the other: {told}, ended with {other.returncode}"


def _second_by_mistake(folder: Path) -> str:
    other = _start(_WATCHED, str(folder))
    _ask(other, 4)
    loop = _Loop()
    with loop.watch(folder):
        loop.steps(4)
        told = _ask(other, 3)
    other.communicate(timeout=60)
    return f"{_logged(folder)}; the other: {told}, ended with {other.returncode}"


def _at_once(folder: Path) -> str:
    """Two processes that know nothing of each other, as ranks before init_process_group."""
    others = [_start(_WATCHED, str(folder)) for _ in range(2)]
    for other in others:
        assert other.stdin is not None
        print(6, file=other.stdin, flush=True)
    for other in others:
        other.communicate(timeout=90)
    codes = sorted(other.returncode for other in others)
    return f"{_logged(folder)}; ended with {codes}"


_FAILS_AT_EXIT = """
from sparsitywatch.sinks.tensorboard import TensorBoardSink
def fail(self):
    raise SystemExit(7)
TensorBoardSink.close = fail
loop = resume._Loop()
watcher = loop.watch(Path(sys.argv[1]))
loop.steps(4)
"""


def _fails_at_exit(folder: Path) -> str:
    process = _start(_FAILS_AT_EXIT, str(folder))
    process.communicate(timeout=90)
    return f"ended with {process.returncode}: {_logged(folder)}"


def _random_signals(folder: Path) -> str:
    """Signals at random times whose handler raises; each step is repeated until it is through."""
    del folder
    signal.signal(signal.SIGALRM, _time_is_up)
    loop, draw = _Loop(), random.Random(0)  # noqa: S311 no secret

    def value(model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = model(batch).square().mean(dim=1)
        return result

    watcher = loop.watch(None, proxy=sw.Proxy([torch.randn(12, 6)], value), every=1, scope="layers")
    loop.steps(1)
    before, flags = loop.bits(), [module.training for module in loop.model.modules()]
    generator = torch.get_rng_state()
    num_differ = num_raised = 0
    for number in range(_RANDOM_SIGNALS):
        try:
            signal.setitimer(signal.ITIMER_REAL, draw.uniform(1e-4, 0.02))
            watcher.step(number + 2)
            signal.setitimer(signal.ITIMER_REAL, 0)
        except _TimeIsUpError:
            num_raised += 1
        same = loop.bits() == before and torch.equal(torch.get_rng_state(), generator)
        num_differ += not (same and flags == [m.training for m in loop.model.modules()])
    off = f", off: {watcher.off}" if watcher.off else ""
    return f"{'some' if num_raised > 10 else num_raised} raised, {num_differ} differ{off}"


# ---------------------------------------------------------------------------- TensorBoard


def _killed(body: str, *arguments: str) -> int:
    process = _start(body, *arguments)
    process.communicate(timeout=90)
    return process.returncode


_KILLED_LIVE = """
resume.die_at(resume.TensorBoardSink, 6)
loop = resume._Loop()
with loop.watch(Path(sys.argv[1])):
    loop.steps(7)
"""

_KILLED_REPLAY = """
import sparsitywatch as sw
resume.die_at(resume.JsonlSink, 6)
sw.replay(sys.argv[1], logdir=sys.argv[2])
"""


def die_at(sink: type[TensorBoardSink | JsonlSink], step: int) -> None:
    """Kill this process when ``sink`` is given the record of a step."""
    write: Any = sink.write

    def die(self: Any, record: sw.Record, detail: Any) -> None:
        if record.step == step:
            os.kill(os.getpid(), signal.SIGKILL)
        write(self, record, detail)

    sink.write = die  # type: ignore[method-assign]


def _shown(folder: Path) -> list[int]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(folder / "sparsitywatch"))
    return [event.step for event in read.Reload().Scalars(IN_EVERY_RECORD)]


def _gap_live(folder: Path) -> str:
    code = _killed(_KILLED_LIVE, str(folder))
    before, lines = _shown(folder), _logged(folder)
    loop = _Loop()
    with loop.watch(folder, initial_step=6):
        loop.steps(3)
    return f"{code}: {lines}, shown {before}, then {_shown(folder)}"


def _gap_replay(folder: Path) -> str:
    loop = _Loop()
    for step in (3, 6, 9):
        loop.steps(3)
        (folder / "run").mkdir(exist_ok=True)
        torch.save(loop.model.state_dict(), folder / "run" / f"step-{step}.pt")
    code = _killed(_KILLED_REPLAY, str(folder / "run"), str(folder / "log"))
    lines = _logged(folder)
    sw.replay(folder / "run", logdir=folder / "log")
    return f"{code}: {lines}, then {_logged(folder)}, shown {_shown(folder / 'log')}"


def _case(point: str, what: str, expected: str, run: Callable[[Path], str]) -> Case:
    return Case(point=point, what=what, expected=expected, run=run)


_trainer = partial(_case, "Trainer runs ended or hung by the callback")
_writers = partial(_case, "two writers on one log")
_tensorboard = partial(_case, "a kill between the log and TensorBoard")

_ONE_LOG = "trained to step 6: sparsitywatch [2, 4, 6]"
_NEW_LOG = "trained to step 6: sparsitywatch [6]; sparsitywatch-earlier-1 [2, 4]"

CASES = (
    _trainer("the proxy masks anew at the resume", _ONE_LOG, _masked_anew),
    _trainer(
        "the proxy has other batches at the resume",
        _NEW_LOG,
        lambda folder: _resumed(folder, _nothing, _proxy(24)),
    ),
    _trainer(
        "a truncated sparsitywatch.pt",
        _ONE_LOG,
        lambda folder: _resumed(folder, _truncate, _proxy()),
    ),
    _trainer(
        "a damaged line in the log at the resume",
        "trained to step 6: sparsitywatch [6]; sparsitywatch-earlier-1 cannot be read",
        lambda folder: _resumed(folder, _damage_log, _proxy()),
    ),
    _trainer(
        "no directory can be made for the log at the resume",
        "trained to step 6: ",
        lambda folder: _resumed(folder, _put_file_in_the_way, _proxy()),
    ),
    _trainer("a full disk in on_save", "trained to step 4, state in checkpoint-4", _full_disk),
    _trainer("state_dict raises", "trained to step 4", _state_raises),
    _trainer("SystemExit in a snapshot", "trained to step 4, valid [False, True]", _exits),
    _trainer(
        "a handler of a signal raises in a snapshot",
        "the training got what its handler raised",
        _handler_raises,
    ),
    _trainer("the log directory goes in mid-run", "trained to step 6", _log_goes),
    _trainer(
        "two Trainers on one log",
        "trained to step 4: sparsitywatch [1, 2]; sparsitywatch-earlier-1 [1, 2]",
        _two_trainers,
    ),
    _trainer(
        "SystemExit at the interpreter's exit", "ended with 0: sparsitywatch [3]", _fails_at_exit
    ),
    _trainer(
        f"{_RANDOM_SIGNALS} signals at random times, whose handler raises",
        "some raised, 0 differ",
        _random_signals,
    ),
    _writers(
        "a late snapshot of a watch that was never closed",
        "sparsitywatch [3, 6]; the first is off: True",
        _late_snapshot,
    ),
    _writers(
        "a resume while the process before still lives",
        "sparsitywatch [3, 6, 9]; the other: 1 True, ended with 0",
        _dying_predecessor,
    ),
    _writers(
        "a second run by mistake",
        "sparsitywatch [3, 6]; sparsitywatch-2 [3]; the other: 2 False, ended with 0",
        _second_by_mistake,
    ),
    _writers(
        "two processes begin at once",
        "sparsitywatch [3, 6]; sparsitywatch-2 [3, 6]; ended with [0, 0]",
        _at_once,
    ),
    _tensorboard("live", "-9: sparsitywatch [3, 6], shown [3], then [3, 6, 9]", _gap_live),
    _tensorboard(
        "replay",
        "-9: sparsitywatch [3], then sparsitywatch [3, 6, 9], shown [3, 6, 9]",
        _gap_replay,
    ),
)
