"""The page on frameworks: each cell of its table, with the real library; its blocks are the runs.

For each framework one process imports it; from there the block is run with a watch, gone on with,
run in one piece without a watch, with the framework's logger, and on two ranks.
"""

from __future__ import annotations

import ast
import importlib.util
import math
import re
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from contracts import phases
from contracts.forked import WATCH, forked
from contracts.once import once
from contracts.phases import Phase

from sparsitywatch.sinks.jsonl import read_records

DOCS = Path(__file__).parents[2] / "docs"
BEFORE = """
import random
import warnings

import numpy

warnings.simplefilter("ignore")  # of these libraries
random.seed(0)
numpy.random.seed(0)
"""
AFTER = """
import hashlib
import pathlib
bits = b"".join(p.detach().numpy().tobytes() for p in {model}.parameters())
pathlib.Path("weights").write_text(hashlib.sha256(bits).hexdigest())
"""
#: From the first half of a training to the whole: how long it is, by the words of the blocks.
LONGER = {"train(30)": "train(60)", "range(30)": "range(60)", "fit(30)": "fit(60)"}
LONGER |= {"epochs=5": "epochs=10", "max_steps=4": "max_steps=8"}
#: How what a logger has kept is read back.
OF_TENSORBOARD = """
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
found = EventAccumulator("tb").Reload()
(tag,) = [tag for tag in found.Tags()["scalars"] if tag.endswith("sparsity/step")]
logged = sorted({int(point.value) for point in found.Scalars(tag)})
"""
OF_HISTORY = """
logged = [row["sparsity/step"] for row in trainer.state.log_history if "sparsity/step" in row]
"""
OF_CSV = """
import csv, pathlib
(file,) = pathlib.Path("csv").rglob("metrics.csv")
found = [row["sparsity/step"] for row in csv.DictReader(file.open())]
logged = [int(float(step)) for step in found if step]
"""
#: What users of a framework get wrong, and what they are told; nothing where it works all the same.
MISTAKES = """
import re
for mistake, words in {mistakes!r}.items():
    try:
        exec(mistake)
    except (sw.ConfigurationError, sw.StateError) as error:
        assert words and re.search(words, str(error)), (mistake, error)
    else:
        assert not words, mistake
"""
RESUMED = {"max_steps=4": "max_steps=8", ".train()": ".train(resume_from_checkpoint=True)"}
A_TRAINER = "to be a torch.nn.Module, got .* Give the model that a trainer, a learner or an engine"
FASTAI_ON_RANKS = """
from fastai.data.load import DataLoader
from fastai.distributed import DistributedDL


def broadcast(self, numbers, rank):  # theirs goes by a GPU
    numbers = torch.tensor(numbers)
    torch.distributed.broadcast(numbers, rank)
    return numbers.tolist()


DistributedDL._broadcast = broadcast
batches = DataLoader([*zip(inputs[64:], inputs[64:, :1])], bs=192)
"""
KERAS_ON_RANKS = """
torch.distributed.init_process_group("gloo")
model = nn.parallel.DistributedDataParallel(model)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
"""


class Framework(NamedTuple):
    """How a block becomes its runs: what is replaced, where the words of the page do not say it."""

    imports: str
    state: str  # where its own checkpoint is, and what of it is the watch's
    key: str = ""
    steps: tuple[int, ...] = (10, 20, 30, 40, 50, 60)
    model: str = "model"
    always: dict[str, str] = {}  # noqa: RUF012 so that two halves are the whole
    mistakes: dict[str, str] = {}  # noqa: RUF012 as of ``MISTAKES``
    resumed: dict[str, str] = {}  # noqa: RUF012 beside what a comment of the block shows
    logger: dict[str, str] = {}  # noqa: RUF012 what gives it one, and how that is read back
    logged: str = ""
    ranks: dict[str, str] = {}  # noqa: RUF012 else tests/integrations/test_on_ranks.py has it


FRAMEWORKS = {
    "A loop": Framework("", "saved.pt", "watch"),
    "Trainer": Framework(
        "transformers.trainer",
        mistakes={
            "sw.watch(trainer, trainer.optimizer, logdir=None)": A_TRAINER,
            "SparsityWatchCallback(bert)": "`proxy` to be a sw.Proxy",
            "SparsityWatchCallback(optimizer=optimizer)": r"got \['optimizer'\]",
            "sw.watch(bert, trainer.optimizer, logdir=None)": "",  # Accelerate's
        },
        state="runs/bert/checkpoint-4/sparsitywatch.pt",
        steps=(2, 4, 6, 8),
        model="bert",
        always={"report_to=[]": 'report_to=[], lr_scheduler_type="constant"'},
        resumed=RESUMED,
        logged=OF_HISTORY,
    ),
    "Lightning": Framework(
        "lightning.pytorch",
        "lightning_logs/version_0/checkpoints/epoch=4-step=30.ckpt",
        "sparsitywatch",
        mistakes={
            "sw.watch(trainer, optimizer, logdir=None)": A_TRAINER,
            "SparsityWatch(model)": "`proxy` to be a sw.Proxy",
            "from lightning.pytorch.core.optimizer import LightningOptimizer\n"
            "sw.watch(model, LightningOptimizer(optimizer), logdir=None)": "",
        },
        resumed={"epochs=5": "epochs=10", ", 32))": ", 32), ckpt_path=SAVED)"},
        logger={"callbacks=": 'logger=lightning.pytorch.loggers.CSVLogger("csv"), callbacks='},
        logged=OF_CSV,
    ),
    "Accelerate": Framework(
        "accelerate",
        "saved/custom_checkpoint_0.pkl",
        mistakes={
            "with sw.watch(model, optimizer, logdir=None) as late:\n"
            "    train(1)\n"
            "    late.load_state_dict(watcher.state_dict())": "before the first step, got it after",
            "schedule = torch.optim.lr_scheduler.ConstantLR(optimizer.optimizer)\n"
            "sw.watch(model, accelerator.prepare(schedule), logdir=None)": "got .*AcceleratedSched",
            "part, its = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 1)), torch.optim.SGD\n"
            "its = its(part.parameters(), lr=0.1)\n"
            "with sw.watch(part, its, logdir=None, every=1, max_overhead=None) as early:\n"
            "    part, its = accelerator.prepare(part, its)\n"
            "    accelerator.backward(part(inputs).mean())\n"
            "    its.step()\n"
            "assert early.step_count == len(early.records) == 1": "",
        },
        logger={
            "cpu=True)": 'cpu=True, log_with="tensorboard", project_dir=".")\n'
            'accelerator.init_trackers("tb")'
        },
        logged="accelerator.end_training()\n" + OF_TENSORBOARD,
    ),
    "Ignite": Framework(
        "ignite.engine,ignite.handlers",
        "saved/checkpoint_30.pt",
        "watch",
        mistakes={"sw.watch(trainer, optimizer, logdir=None)": A_TRAINER},
        logger={
            "trainer.run(": "from ignite.handlers import TensorboardLogger\n"
            '    board = TensorboardLogger(log_dir="tb")\n'
            "    board.attach_output_handler(\n"
            '        trainer, Events.ITERATION_COMPLETED, "all", metric_names="all"\n'
            "    )\n"
            "    trainer.run("
        },
        logged="board.close()\n" + OF_TENSORBOARD,
        ranks={
            "trainer = ": "import ignite.distributed as idist\n"
            'idist.initialize("gloo")\n'
            "model = idist.auto_model(model)\n"
            "trainer = "
        },
    ),
    "fastai": Framework(
        "fastai.learner",
        "watch.pt",
        mistakes={
            "sw.watch(learner, learner.opt, logdir=None)": A_TRAINER,
            "from fastai.optimizer import Adam\n"
            "sw.watch(model, Adam([*model.parameters()], lr=0.1), logdir=None)": (
                "got .*fastai.optimizer.Optimizer.*Pass optimizer=None and call watcher.step"
            ),
            "sw.watch(learner.model, None, logdir=None)": "",
        },
        ranks={
            "batches = [(inputs[64:], inputs[64:, :1])]\n": FASTAI_ON_RANKS,
            "with sw": "with learner.distrib_ctx(sync_bn=False, cpu=True), sw",
        },
    ),
    "Keras on torch": Framework(
        "keras",
        "watch.pt",
        mistakes={
            "sw.watch(model, logdir=None)": r'Choose scope=\["\*kernel"\]',
            "sw.watch(model, model.optimizer, scope=['*kernel'], logdir=None)": (
                "got .*keras.src.*AdamW.*Pass optimizer=None and call watcher.step"
            ),
            "sw.watch(keras.Sequential([keras.layers.Dense(3)]), logdir=None)": "Build it first",
        },
        ranks={
            'model.compile("adamw", "mse")\n': KERAS_ON_RANKS,
            "watch(model, ": "watch(model, optimizer, ",
            "model.fit(x, y, epochs=5, shuffle=False, callbacks=[watching])": "train(30)",
            'model.save_weights("saved.weights.h5")': "",
        },
    ),
    "TRL with PEFT": Framework(
        "trl,peft",
        "runs/trl/checkpoint-4/sparsitywatch.pt",
        steps=(2, 4, 6, 8),
        model="llama",
        always={"report_to=[]": 'report_to=[], lr_scheduler_type="constant"'},
        mistakes={
            "sw.watch(trainer, trainer.optimizer, logdir=None)": A_TRAINER,
            "sw.watch(trainer.model, trainer.optimizer, logdir=None)": "",
        },
        resumed=RESUMED,
        logged=OF_HISTORY,
        ranks={"bf16=False": 'bf16=False, ddp_backend="gloo"'},
    ),
    "sentence-transformers": Framework(
        "sentence_transformers",
        "runs/encoder/checkpoint-4/sparsitywatch.pt",
        steps=(2, 4, 6, 8),
        model="encoder",
        always={"report_to=[]": 'report_to=[], lr_scheduler_type="constant"'},
        mistakes={
            "sw.watch(trainer, trainer.optimizer, logdir=None)": A_TRAINER,
            "sw.watch(encoder, trainer.optimizer, logdir=None)": "",
        },
        resumed=RESUMED,
        logged=OF_HISTORY,
        ranks={"use_cpu=True": 'use_cpu=True, ddp_backend="gloo"'},
    ),
    "timm": Framework(
        "timm",
        "watch.pt",
        model="vit",
        mistakes={
            "from timm.utils import ModelEmaV3\n"
            "sw.watch(ModelEmaV3(vit), adamw, logdir=None)": "not a copy of it",
        },
        ranks={
            "\n\ndef entropy": "\ntorch.distributed.init_process_group('gloo')\n"
            "vit = nn.parallel.DistributedDataParallel(vit)\n\n\ndef entropy"
        },
    ),
}


def blocks(page: str) -> dict[str, str]:
    """The first block under each heading, by that."""
    found, heading = {}, ""
    part = re.compile(r"^```python\n(?P<code>.*?)^```$|^#+ (?P<heading>[^\n]+)$", re.M | re.S)
    for one in part.finditer((DOCS / page).read_text()):
        heading = one["heading"] or heading
        if one["code"]:
            found.setdefault(heading, one["code"])
    return found


def table() -> dict[str, dict[str, str]]:
    """The cells of the page's table by framework and column."""
    lines = re.findall(r"^\| (.*) \|$", (DOCS / "frameworks.md").read_text(), re.M)
    head, *rows = [re.split(r" \| |^\| ", re.sub(r"\[(.+?)\]\(.+?\)", r"\1", x)) for x in lines]
    return {name: dict(zip(head[1:], cells, strict=True)) for name, *cells in rows}


RECIPES, PAGE = blocks("recipes.md"), blocks("frameworks.md")
GIVEN = RECIPES["Recipes"] + PAGE.pop("Frameworks")
PAGE |= {"A loop": RECIPES["A loop of your own"], "Trainer": RECIPES["A Trainer of transformers"]}
TABLE = table()
LOG = "`log` of a mirror"


def changed(code: str, replacements: dict[str, str]) -> str:
    for old, new in replacements.items():
        assert old in code, old
        code = code.replace(old, new)
    return code


def parts(name: str) -> tuple[str, str, str]:
    """The first half of a training, the second one, and the whole."""
    one = FRAMEWORKS[name]
    half = changed(PAGE[name], one.always)
    if name == "A loop":
        half += 'torch.save(saved, "saved.pt")\n'
        second = 'saved = torch.load("saved.pt")\n' + RECIPES["Resume a run"]
    else:
        second = re.sub(r"^( *)# (?=[\w.]+\()", r"\1", half, flags=re.M)
        second = changed(second, one.resumed)
    whole = half
    for words, more in LONGER.items():
        whole = whole.replace(words, more)
    assert len({half, second, whole}) == 3
    return half, second, whole


def runs(name: str) -> list[Phase]:
    """What is run of a framework, each in a folder of its own but for the second half."""
    one, (half, second, whole) = FRAMEWORKS[name], parts(name)

    def phase(code: str, folder: str, **options: Any) -> Phase:
        before = f"{BEFORE}\n{GIVEN}\nSAVED = {one.state!r}\n"
        return Phase(f"{before}\n{code}\n{AFTER.format(model=one.model)}", folder, **options)

    made = [phase(half, "on"), phase(second, "on")]
    mistakes = MISTAKES.format(mistakes=one.mistakes)
    made[0] = made[0]._replace(code=made[0].code + mistakes)
    made.append(phase(whole, "off", environment={"SPARSITYWATCH_DISABLED": "1"}))
    if one.logged:
        log = TABLE[name][LOG].strip("`")
        given = "**options" if "**options" in half else "every=2"
        sinks = f"{given}, background=False, sinks=[sw.sinks.Mirror({log})]"
        code = changed(half, {given: sinks, **one.logger}) + one.logged
        told = 'import json\nopen("logged", "w").write(json.dumps(logged))\n'
        made.append(phase(code + told, "logger"))
    if one.ranks:
        made.append(phase(changed(half, one.ranks), "ranks", num_ranks=2))
    return made


@pytest.fixture
def ran(name: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folders of all runs of a framework."""
    imports = list(filter(None, FRAMEWORKS[name].imports.split(",")))
    if imports and importlib.util.find_spec(imports[0].partition(".")[0]) is None:
        pytest.skip(f"{imports[0]} is not installed: it is of the group frameworks")

    def make(folder: Path) -> None:
        phases.run(imports, runs(name), folder, KERAS_BACKEND="torch")

    return once(tmp_path_factory, f"framework-{name.replace(' ', '-')}", make)


def log_of(folder: Path) -> Path:
    (log,) = folder.rglob("sparsitywatch/records.jsonl")
    return log.parent


def one_half(name: str) -> tuple[int, ...]:
    steps = FRAMEWORKS[name].steps
    return steps[: len(steps) // 2]


each = pytest.mark.parametrize("name", FRAMEWORKS)


def test_every_block_and_every_row_is_of_a_framework_that_is_known() -> None:
    assert PAGE.keys() == TABLE.keys() == FRAMEWORKS.keys()
    for name, one in FRAMEWORKS.items():
        # the others are in tests/integrations/test_on_ranks.py, a loop of torchrun's is below
        assert TABLE[name]["ranks"] == ("DDP" if one.ranks else "DDP, FSDP2")


@each
def test_so_many_statements_name_the_watch(name: str) -> None:
    def own(node: ast.stmt) -> str:
        inside = getattr(node, "body", [])
        return ast.unparse(node) if not inside else ast.unparse(node).split(":\n")[0]

    named = [
        node for node in ast.walk(ast.parse(PAGE[name]))
        if isinstance(node, ast.stmt) and re.search("watch", own(node), re.I)
    ]  # fmt: skip
    assert len(named) == int(TABLE[name]["lines"])


@pytest.mark.slow
@each
def test_a_watch_changes_no_bit_of_a_training(name: str, ran: Path) -> None:
    """Nor of one that was interrupted."""
    assert (ran / "on" / "weights").read_text() == (ran / "off" / "weights").read_text()
    assert not [*(ran / "off").rglob("records.jsonl")]
    assert TABLE[name]["same bits"] == "yes"


@pytest.mark.slow
@each
def test_a_resumed_training_has_each_step_once(name: str, ran: Path) -> None:
    records = read_records(log_of(ran / "on"))
    assert tuple(record.step for record in records) == FRAMEWORKS[name].steps
    has_proxy = "**options" in PAGE[name] or "proxy=" in PAGE[name]
    assert all(r.valid and (r.curve is not None) == has_proxy for r in records)
    clocks = [record.decay_clock / record.step for record in records]
    if name == "Keras on torch":  # its optimizers are none of torch
        assert all(map(math.isnan, clocks))
    else:
        assert clocks == pytest.approx([clocks[0]] * len(clocks))
    assert TABLE[name]["resumes"] == "yes"


@pytest.mark.slow
@each
def test_the_state_of_the_watch_is_where_the_table_says(name: str, ran: Path) -> None:
    file, key = ran / "on" / FRAMEWORKS[name].state, FRAMEWORKS[name].key
    state = torch.load(file, weights_only=False)
    state = state[key] if key else state
    state = state[0] if isinstance(state, list) else state
    assert state["step"] in FRAMEWORKS[name].steps
    where = "your file" if file.name in ("watch.pt", "saved.pt") else "its checkpoints"
    assert TABLE[name]["its state is in"] == where


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, one in FRAMEWORKS.items() if one.logged])
def test_its_logger_has_the_numbers(name: str, ran: Path) -> None:
    assert (ran / "logger" / "logged").read_text() == str([*one_half(name)])


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, one in FRAMEWORKS.items() if one.ranks])
def test_two_ranks_watch_together(name: str, ran: Path) -> None:
    records = read_records(log_of(ran / "ranks"))
    assert tuple(record.step for record in records) == one_half(name)
    assert all(record.valid and record.replicas.num_ranks == 2 for record in records)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["FSDP2", "DDP"])
def test_ranks_of_torchrun_watch_together(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    block = blocks("distributed.md")["What to call where"]
    if kind == "DDP":
        ddp = "model = nn.parallel.DistributedDataParallel(model)"
        assert f"fully_shard(model)  # or {ddp}" in block
        block = block.replace("fully_shard(model)", ddp)
    monkeypatch.chdir(tmp_path)
    script = tmp_path / "script.py"
    script.write_text(BEFORE + GIVEN + block + "\ndist.destroy_process_group()\n")
    status, output = forked(script, imports=WATCH)
    assert status == 0, output
    assert [record.step for record in read_records(log_of(tmp_path))] == [10, 20, 30]
