"""``sparsitywatch run``: the script is what it is without, and what it trains is watched."""

from __future__ import annotations

import io
import logging
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from contracts.forked import Child
from torch import nn

import sparsitywatch as sw
from sparsitywatch.cli import main
from sparsitywatch.cli.run import Teller
from sparsitywatch.live import unedited
from sparsitywatch.live.unedited import Unedited, module_of

# ------------------------------------------------------------------ as Python runs it

#: Ends a script; what it returns is that of Python.
ENDS = {
    "the end": "",
    "an exit code": "sys.exit(3)",
    "words": "sys.exit('no more')",
    "an exception": "def fail():\n    {}['key']\ntry:\n    fail()\nexcept KeyError as error:\n"
    "    raise ValueError('bad') from error",
    "a file that is not there": "open('nowhere')",
    "a pipe that is broken": "raise BrokenPipeError(32, 'broken')",
    "Ctrl-C": "os.kill(os.getpid(), signal.SIGINT); time.sleep(9)",
    "a signal": "os.kill(os.getpid(), signal.SIGTERM); time.sleep(9)",
    "its own hook": "sys.excepthook = lambda *e: print('hook', e[0], e[2].tb_lineno); 1 / 0",
    "a thread": "threading.Timer(0.1, print, ['late']).start()",
    "a worker": "if __name__ == '__main__':\n"
    "    one = context.Process(target=take, args=(Kept(),)); one.start(); one.join()\n"
    "    print(one.exitcode)",
    "no stderr": "sys.stderr.close(); sys.exit(4)",
    "no Python": "print('unfinished'",
}
SCRIPT = """\
import multiprocessing, os, pickle, signal, sys, threading, time
import neighbour
class Kept: pass
class Left:
    def __del__(self): print("left", __name__)
left = Left()
def take(kept): print(__name__, type(kept) is Kept)
context = multiprocessing.get_context("spawn")
early = {name for name in ("numpy", "torch", "tensorboard") if name in sys.modules}
names = sorted(name for name in globals() if name.startswith("__"))
print(sys.argv, sys.path[0], neighbour.__file__, early)
print(__name__, __file__, __package__, __spec__, __doc__, type(__loader__).__name__, names)
print(pickle.loads(pickle.dumps(Kept())).__class__ is Kept, sys.modules["__main__"].Kept is Kept)
print("to stderr", file=sys.stderr)
x: int = 1
"""


def ran(folder: Path, *command: str) -> tuple[int, str, str]:
    done = subprocess.run(
        [sys.executable, *command], cwd=folder, capture_output=True, text=True, check=False
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.part(3)
@pytest.mark.slow
@pytest.mark.parametrize("end", ENDS)
def test_a_script_is_run_as_python_runs_it(end: str, tmp_path: Path) -> None:
    inside = tmp_path / "inside"
    inside.mkdir()
    (inside / "neighbour.py").write_text("")
    (inside / "script.py").write_text(SCRIPT + ENDS[end] + "\n")
    (tmp_path / "link.py").symlink_to(inside / "script.py")
    given = ["./link.py", "--every", "x", "--", "-h", "run", "--lo"]
    expected = ran(tmp_path, *given)
    options = ["--every", "7", "--"]
    code, output, errors = ran(tmp_path, "-m", "sparsitywatch", "run", *options, *given)
    own = [line for line in errors.splitlines() if line.startswith("sparsitywatch: ")]
    assert (code, output) == expected[:2]
    assert [line for line in errors.splitlines() if line not in own] == expected[2].splitlines()
    if code != -signal.SIGTERM and end != "no stderr":
        (words,) = own
        assert "no optimizer of torch took a step in this process: nothing was watched" in words
    assert "set()" in output or end == "no Python"
    assert "left __main__" in output or end in ("a signal", "its own hook", "no Python")
    assert not (tmp_path / "runs").exists()


def test_a_script_that_is_not_there_and_options_that_mean_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nowhere = str(tmp_path / "nowhere.py")
    for options, words in {
        (): "sparsitywatch: [Errno 2] No such file or directory: ",
        ("--every", "0"): "Expected `--every` to be a whole number >= 1, got 0.",
        ("--max-overhead", "2"): "Expected `--max-overhead` to be in (0, 1], or none, got 2.0.",
    }.items():
        assert main(["run", *options, nowhere]) == 2
        assert words in capsys.readouterr().err
    for refused in (["--max-overhead", "all", nowhere], ["--"], []):
        with pytest.raises(SystemExit, match=r"^2$"):
            main(["run", *refused])
        assert "usage: sparsitywatch run" in capsys.readouterr().err


#: Modules of a package, each as the name by which Python runs it.
MODULES = {
    "pkg.sub": "a module", "pkg": "a package", "pkg.none": "no such module",
    "pkg.empty": "no module to run", "none.sub": "no such package", "pkg.bad": "a fault",
}  # fmt: skip
MODULE = """\
import sys
from . import neighbour
from .neighbour import Kept
x: int = 1
names = sorted(name for name in globals() if name.startswith("__"))
print(sys.argv, sys.path[0], __name__, __file__, __package__, __spec__.name, names)
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", MODULES)
def test_a_module_is_run_as_python_runs_it(name: str, tmp_path: Path) -> None:
    (tmp_path / "pkg" / "empty").mkdir(parents=True)
    for file, text in {
        "__init__": "", "empty/__init__": "", "neighbour": "class Kept: pass\n", "sub": MODULE,
        "__main__": MODULE, "bad": MODULE + "def fail(): 1 / 0\nfail()\n",
    }.items():  # fmt: skip
        (tmp_path / "pkg" / f"{file}.py").write_text(text)
    given = ["-m", name, "--every", "x", "-m", "--", "-h"]
    expected = ran(tmp_path, *given)
    code, output, errors = ran(tmp_path, "-m", "sparsitywatch", "run", "--every", "7", *given)
    own = [line for line in errors.splitlines() if line.startswith("sparsitywatch: ")]
    assert (code, output) == expected[:2]
    assert [line for line in errors.splitlines() if line not in own] == expected[2].splitlines()


# ------------------------------------------------------------------ what it trains

HEAD = """
import hashlib, os, sys, torch
from torch import nn
torch.manual_seed(0)
class Net(nn.Module):
    def __init__(self, width=16):
        super().__init__()
        self.up, self.mid, self.down = nn.Linear(6, width), nn.Linear(width, 8), nn.Linear(8, 6)
    def forward(self, x):
        return self.down(self.mid(self.up(x).relu()).relu())
class Other(Net): pass
def step(model, optimizer):
    optimizer.zero_grad()
    (model(torch.randn(4, 6)) - 1).square().mean().backward()
    optimizer.step()
def tell(*models):
    bits = b"".join(p.detach().numpy().tobytes() for m in models for p in m.parameters())
    print(hashlib.sha256(bits).hexdigest(), torch.rand(1).item())
"""
GAN = """
class Both(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.other = Net(), Other()
both = Both()
one, other = torch.optim.Adam(both.one.parameters()), torch.optim.SGD(both.other.parameters(), 0.1)
os.chdir("elsewhere")
for _ in range(12):
    step(both.one, one); step(both.other, other)
tell(both)
"""
TWINS = """
one, other = nn.Sequential(Net()), nn.Sequential(Net(8))
optimizers = [torch.optim.AdamW(m.parameters()) for m in (one, other)]
model = torch.compile(one, backend="eager")
for _ in range(12):
    step(model, optimizers[0]); step(other, optimizers[1])
tell(one, other)
"""
PHASES = """
model = Net()
first = torch.optim.AdamW(model.parameters())
second = torch.optim.SGD([model.mid.weight, model.mid.bias], 0.01)
for _ in range(6):
    step(model, first); second.step()
first = torch.optim.AdamW(model.parameters(), 1e-3)
for _ in range(6):
    step(model, first); second.step()
tell(model)
"""
LOGS = {
    "gan": (GAN, {"Net": 6, "Other": 6}),
    "twins": (TWINS, {"Net": 6, "Net-2": 6}),
    "phases": (PHASES, {"Net": 6}),
}


def watched(script: Path, *options: str, ranks: int = 0) -> tuple[int, str, str]:
    """Run a script under watch, in a process that has imported torch."""
    words = ["run", "--every", "2", "--max-overhead", "none", *options, script.name]
    code = f"import sys\nfrom sparsitywatch.cli import main\nsys.exit(main({words}))"
    return Child(code, cwd=script.parent, num_ranks=ranks).communicate()


@pytest.mark.slow
@pytest.mark.parametrize("name", LOGS)
def test_weights_are_the_same_and_each_module_has_a_log(name: str, tmp_path: Path) -> None:
    body, logs = LOGS[name]
    (tmp_path / "elsewhere").mkdir()
    script = tmp_path / "train.py"
    script.write_text(HEAD + body)
    code, output, errors = watched(script)
    assert code == 0, errors
    assert (code, output) == Child(script, cwd=tmp_path).communicate()[:2]
    folders = {path.name for path in (tmp_path / "runs" / "train").iterdir()}
    assert folders == set(logs)
    for folder, number in logs.items():
        run = sw.load(tmp_path / "runs" / "train" / folder)
        assert [record.step for record in run.records] == [2 * i for i in range(number + 1)]
        assert f"sparsitywatch: {folder} is watched, and logs into {run.directory.parent}" in errors
    assert errors.count(" is watched") == len(logs)
    assert main(["status", str(tmp_path / "runs" / "train")]) == 0


WITH_PROXY = """
import sparsitywatch as sw
def make():
    torch.rand(3)
    batches = [torch.randn(64, 6) for _ in range(4)]
    return sw.Proxy(batches, lambda model, x: (model(x) - 1).square().mean(1))
made, broken, number = make(), lambda: {}["key"], 3
model = Net()
optimizer = torch.optim.AdamW(model.parameters())
for _ in range(4):
    step(model, optimizer)
tell(model)
"""


@pytest.mark.slow
def test_a_proxy_is_named_and_a_scope_and_what_is_neither_leaves_the_weights_watched(
    tmp_path: Path,
) -> None:
    script = tmp_path / "train.py"
    script.write_text(HEAD + WITH_PROXY)
    expected = Child(script, cwd=tmp_path).communicate()[1]
    for name, is_one in {"train:make": 1, "__main__:made": 1, "train:broken": 0, "no:x": 0}.items():
        options = ["--proxy", name, "--scope", "up.*", "--scope", "*.weight", "--logdir", name]
        code, output, errors = watched(script, *options)
        assert (code, output) == (0, expected), errors
        records = sw.load(tmp_path / name / "Net").records
        assert [record.scope.num_tensors for record in records] == [4, 4, 4]
        assert all((record.curve is not None) == bool(is_one) for record in records)
        assert ("No evaluation: ConfigurationError: Expected `--proxy`" in errors) != bool(is_one)
    assert main(["run", "--proxy", "train", str(script)]) == 2


WORKERS = """
def work(rank, path):
    torch.manual_seed(rank)
    model = Net()
    optimizer = torch.optim.AdamW(model.parameters())
    for _ in range(6):
        step(model, optimizer)
    torch.save(model.state_dict(), f"{path}-{rank}.pt")
if __name__ == "__main__":
    torch.multiprocessing.spawn(work, (sys.argv[1],), nprocs=1)
"""


@pytest.mark.slow
def test_processes_that_a_script_starts_watch_what_they_train(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(HEAD + WORKERS)
    code, _, errors = Child("import train\ntrain.work(0, 'plain')", cwd=tmp_path).communicate()
    assert code == 0, errors
    options = ["--every", "2", "--max-overhead", "none"]
    code, _, errors = ran(tmp_path, "-m", "sparsitywatch", "run", *options, "train.py", "watched")
    assert code == 0, errors
    first, second = (torch.load(tmp_path / f"{name}-0.pt") for name in ("plain", "watched"))
    assert all(torch.equal(first[name], second[name]) for name in first)
    records = sw.load(tmp_path / "runs" / "train" / "Net").records
    assert [record.step for record in records] == [0, 2, 4, 6]
    assert "The processes that it started say what they watch" in errors


EARLY = """
import importlib.util, os
os.environ["OMP_NUM_THREADS"] = "1"
assert importlib.util.find_spec("torch")  # as transformers and datasets ask before they import it
"""
LATE = """
print(torch.get_num_threads(), type(torch.__loader__).__name__)
model = Net()
optimizer = torch.optim.AdamW(model.parameters())
for _ in range(6):
    step(model, optimizer)
tell(model)
"""


@pytest.mark.slow
def test_what_a_script_sets_up_before_torch_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    (tmp_path / "train.py").write_text(EARLY + HEAD + LATE)
    options = ["--every", "2", "--max-overhead", "none", "--logdir", "log"]
    code, output, errors = ran(tmp_path, "-m", "sparsitywatch", "run", *options, "train.py")
    assert (code, output) == Child(tmp_path / "train.py").communicate()[:2], errors
    assert output.startswith("1 SourceFileLoader")
    assert [record.step for record in sw.load(tmp_path / "log" / "Net").records] == [0, 2, 4, 6]


RESUMED = """
model = Net()
optimizer = torch.optim.AdamW(model.parameters())
if os.path.exists("saved.pt"):
    saved = torch.load("saved.pt")
    model.load_state_dict(saved["model"]); optimizer.load_state_dict(saved["optimizer"])
for _ in range(6):
    step(model, optimizer)
torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, "saved.pt")
"""


@pytest.mark.slow
def test_a_script_that_resumes_goes_on_in_its_log(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(HEAD + RESUMED)
    for _ in range(2):
        code, _, errors = watched(script)
        assert code == 0, errors
    (folder,) = (tmp_path / "runs" / "train").iterdir()
    assert [path.name for path in folder.iterdir()] == ["sparsitywatch"]
    assert [record.step for record in sw.load(folder).records] == [0, 2, 4, 6, 8, 10, 12]


def test_words_that_cannot_be_said_are_no_fault_and_go_where_stderr_was(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first, closed = io.StringIO(), io.StringIO()
    closed.close()
    logged = logging.LogRecord("", logging.WARNING, "", 0, "sparsitywatch: %s", ("late",), None)
    for stream in (first, closed, None):
        tell = Teller(stream)
        monkeypatch.setattr(sys, "stderr", closed)
        tell("early")
        tell.emit(logged)
    assert first.getvalue() == "sparsitywatch: early\nsparsitywatch: late\n"
    assert main(["run", "nowhere.py"]) == 2
    assert capsys.readouterr().out == ""


RANKS = """
from torch import distributed
distributed.init_process_group("gloo")
model = Net()
if WAY == "fsdp2":
    from torch.distributed.fsdp import fully_shard
    fully_shard(model.mid); fully_shard(model)
elif WAY == "fsdp1":
    from torch.distributed.fsdp import FullyShardedDataParallel as FSDP
    model = FSDP(model, device_id=torch.device("cpu"))
else:
    model = nn.parallel.DistributedDataParallel(model)
optimizer = torch.optim.AdamW(model.parameters(), 0.01)
for _ in range(8):
    step(model, optimizer)
distributed.barrier()
sys.stdout.flush(); sys.stderr.flush()
os._exit(0)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("way", "kind"),
    [("ddp", "Net"), ("fsdp2", "FSDPNet"), ("fsdp1", "FullyShardedDataParallel")],
)
def test_under_torchrun_all_ranks_watch_into_one_log(way: str, kind: str, tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(HEAD + RANKS.replace("WAY", repr(way)))
    code, _, errors = watched(script, "--logdir", "log", ranks=2)
    assert code == 0, errors
    (folder,) = (tmp_path / "log").iterdir()
    assert folder.name == kind
    records = sw.load(folder).records
    assert [record.step for record in records][:4] == [0, 2, 4, 6]  # the last one is on its way
    assert all(record.valid and record.scope.num_weights == 224 for record in records)
    compared = {record.replicas.num_ranks for record in records if record.replicas}
    assert compared == ({2} if way == "ddp" else set())
    assert errors.count("is watched") == 1
    assert "rank 0 watches alone" not in errors


# ------------------------------------------------------------------ what is not watched


@pytest.fixture
def said() -> Iterator[list[str]]:
    """What a watch of this process says."""
    yield []
    for watcher in [*sw.Watcher._all]:
        watcher.close()


@pytest.fixture
def attach(tmp_path: Path, said: list[str]) -> Iterator[Callable[..., Unedited]]:
    made: list[Unedited] = []

    def attached(**options: Any) -> Unedited:
        made.append(
            Unedited(tmp_path, said.append, **{"every": 1, "max_overhead": None, **options})
        )
        return made[-1]

    yield attached
    for one in made:
        one._hook.remove()


def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))


def stepped(*optimizers: torch.optim.Optimizer) -> None:
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            for p in group["params"]:
                p.grad = torch.ones_like(p)
        optimizer.step()


def test_what_no_module_holds_or_has_no_step_of_its_own_is_declined(
    attach: Callable[..., Unedited], said: list[str], tmp_path: Path
) -> None:
    attach()
    model, second, lone = net(), net(), nn.Linear(4, 4)
    kept = [torch.optim.SGD([p], 0.1) for p in model.parameters()]
    stepped(*kept, *kept)
    across = torch.optim.AdamW([*model.parameters(), *second.parameters()])
    copies = torch.optim.AdamW([torch.zeros(3), torch.zeros(3)])
    stepped(across, copies, torch.optim.AdamW(lone.parameters()))
    instead = "Use `sw.watch` and `watcher.step()` instead"
    assert said[:2] == [
        "SGD is not watched: a single tensor's step is part of one. " + instead,
        "AdamW is not watched: no module was found for it. " + instead,
    ]
    assert re.match(r"Linear is not watched: ScopeError: ", said[2])
    assert len(said) == 3
    assert [*tmp_path.iterdir()] == []


def test_no_fault_reaches_the_script_and_it_is_told_once(
    attach: Callable[..., Unedited], said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    watch, models = unedited.watch, [net(), net(), net()]

    def fail(model: nn.Module, **options: Any) -> sw.Watcher:
        if model is not models[2]:
            raise RuntimeError("no such thing")
        return watch(model, **options)

    monkeypatch.setattr(unedited, "watch", fail)
    attach()
    stepped(*(torch.optim.AdamW(model.parameters()) for model in models))
    assert said[0] == "AdamW is not watched: RuntimeError: no such thing"
    assert said[1].startswith("Sequential-3 is watched")
    assert len(said) == 2


def test_some_optimizers_are_looked_at_and_no_more(
    attach: Callable[..., Unedited], said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unedited, "_MOST", 2)
    found = attach()
    models = [net(), net(), net()]
    optimizers = [torch.optim.AdamW(model.parameters()) for model in models]
    others = [*sw.Watcher._all]  # of other tests, perhaps not closed
    stepped(*optimizers, *optimizers)
    assert found.num_looked_at == 2
    assert [words.partition(",")[0] for words in said] == [
        "Sequential is watched", "Sequential-2 is watched",
        "no more is watched: it has looked at 2 optimizers",
    ]  # fmt: skip
    assert sum(watcher not in others for watcher in sw.Watcher._all) == 2


def test_a_model_that_the_script_watches_has_one_watch(
    attach: Callable[..., Unedited], said: list[str], tmp_path: Path
) -> None:
    attach()
    model = net()
    optimizer = torch.optim.AdamW(model.parameters())
    with sw.watch(model, optimizer, logdir=tmp_path / "own", every=1, max_overhead=None) as watcher:
        stepped(optimizer, optimizer)
    assert [record.step for record in watcher.records] == [1, 2]
    assert said == []
    assert [path.name for path in tmp_path.iterdir()] == ["own"]


def test_where_watches_are_switched_off_that_is_said(
    attach: Callable[..., Unedited], said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPARSITYWATCH_DISABLED", "1")
    attach()
    model = net()
    stepped(torch.optim.AdamW(model.parameters()))
    assert said == ["Sequential is not watched: SPARSITYWATCH_DISABLED is set"]


class Named(nn.Module):
    """Whose class says more than the one in which it has its layers."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleDict({"inner": net()})


def test_the_smallest_module_is_found_in_whatever_holds_it() -> None:
    inner = net()
    holder = nn.ModuleDict({"same": nn.ModuleList([inner]), "metric": nn.Identity()})
    larger = nn.ModuleList([holder, nn.Linear(2, 2)])
    ids = {id(p) for p in inner.parameters()}
    assert module_of(ids) is inner
    assert module_of(ids | {id(larger[1].weight)}) is larger
    assert module_of({id(inner[2].weight)}) is inner[2]
    assert module_of({id(torch.zeros(1))}) is None
    assert module_of(set()) is None
    frozen = nn.ModuleDict({"base": nn.Linear(4, 4).requires_grad_(False), "lora": nn.Linear(2, 2)})
    adapted = nn.Sequential(frozen, nn.Linear(3, 3).requires_grad_(False))
    kept = nn.ModuleList([adapted, nn.Linear(5, 5)])
    assert module_of({id(p) for p in frozen["lora"].parameters()}) is adapted
    assert module_of({id(p) for p in kept.parameters() if p.requires_grad}) is kept
    compiled = torch.compile(Named(), backend="eager")
    assert module_of({id(p) for p in compiled.parameters()}) is compiled._orig_mod
    holder._handle = object()  # as FSDP1's wrapper
    assert module_of(ids) is holder
