"""A forward that communicates, or runs on one rank of many."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

from contracts.forked import WATCH, forked

_HEAD = '''
import datetime, os, sys, threading, warnings
from pathlib import Path
import torch
import torch.distributed as dist
from torch import nn
import sparsitywatch as sw
warnings.simplefilter("ignore")
torch.manual_seed(0)
folder, rank = Path(sys.argv[1]), int(os.environ["RANK"])

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6))
        self.head = nn.Linear(6, 2)
        self.extra = lambda x: x
    def forward(self, x):
        return self.head(self.extra(self.body(x)))

def value(model, batch):
    return model(batch).square().mean(1)

proxy = sw.Proxy([torch.linspace(-1, 1, 24).reshape(4, 6)], value)

def init():
    dist.init_process_group("gloo", timeout=datetime.timedelta(seconds=20))

def train(model, steps=3, proxy=proxy, before=None, **options):
    """Attaches, trains; prints what came of it, on rank 0."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    arguments = dict(every=1, logdir=folder, scope="layers", max_overhead=None, levels=[0.5])
    try:
        watcher = sw.watch(model, optimizer, proxy=proxy, **(arguments | options))
    except sw.ConfigurationError as error:
        report("refused: " + str(error))
        watcher = None
    if dist.is_initialized():
        dist.barrier()
    for step in range(steps):
        if before:
            before(step)
        optimizer.zero_grad()
        model(torch.randn(4, 6)).square().mean().backward()
        for p in model.parameters():
            if dist.is_initialized() and type(model) is Net and type(p.grad) is torch.Tensor:
                dist.all_reduce(p.grad)
        optimizer.step()
    if watcher is not None:
        watcher.close()
        report("records: " + "; ".join(r.reason or "valid" for r in watcher.records))
        report("off: " + watcher.off)
    report("trained")
    return watcher

scenario = ""

def report(text):
    line = f"[{rank}] {scenario}| {text}".replace(chr(10), " ")
    os.write(1, (line + chr(10)).encode())  # in one piece beside the other rank's

def gather(x):
    parts = [torch.empty_like(x) for _ in range(2)]
    dist.all_gather(parts, x.detach())
    return x + 0 * sum(parts)

alive = []  # torch 2.13 at times hangs when it lets go of a DDP

def with_extra(extra):
    model = Net()
    model.extra = extra
    alive.append(nn.parallel.DistributedDataParallel(model))
    return alive[-1]
'''

_END = """
if dist.is_initialized():
    dist.barrier()
sys.stdout.flush()
os._exit(0)  # torch 2.13 at times hangs when it lets go of a DDP
"""


def run_ranked(script: str, folder: Path, num: int = 2, limit_s: float = 60.0) -> list[str]:
    """Run a script on ranks; the lines that they print, sorted.

    What a rank does not say within the time is missing.
    """
    path = folder / "script.py"
    path.write_text(_HEAD + textwrap.dedent(script) + _END)
    _, output = forked(path, str(folder / "logs"), num_ranks=num, imports=WATCH, limit_s=limit_s)
    lines = sorted(line for line in output.splitlines() if line[:1] == "[" and line[2:4] == "] ")
    return lines or [output[-2000:]]


#: Two ranks that have a process group, by what is unusual: scripts that are watched as ever.
_WATCHED = {
    "DDP, nothing unusual": "train(with_extra(lambda x: x))",
    "SyncBatchNorm": """
        model = Net()
        norm = nn.SyncBatchNorm(6)
        model.body.append(norm)  # in training it runs on GPUs only
        norm.forward = lambda x: x if norm.training else nn.SyncBatchNorm.forward(norm, x)
        train(model)
    """,
    "a collective of a group of one": """
        groups = [dist.new_group([0]), dist.new_group([1])]
        def alone(x):
            dist.all_reduce(x.detach(), group=groups[rank])
            return x
        train(with_extra(alone))
    """,
    "all_gather in forward": "train(with_extra(gather))",
    "all_gather of torch.distributed.nn": """
        import torch.distributed.nn
        train(with_extra(lambda x: x + 0 * sum(dist.nn.all_gather(x))))
    """,
    "a functional collective": """
        import torch.distributed._functional_collectives as funcol
        group = dist.group.WORLD
        train(with_extra(lambda x: x + 0 * funcol.all_reduce(x.detach(), "sum", group)))
    """,
    "a collective in a thread of the forward": """
        def in_thread(x):
            thread = threading.Thread(target=dist.all_reduce, args=(x.detach().clone(),))
            thread.start()
            thread.join()
            return x
        train(with_extra(in_thread))
    """,
    "a collective whose error the forward catches": """
        def careful(x):
            try:
                dist.all_reduce(x.detach().clone())
            except RuntimeError:
                pass
            return x
        train(with_extra(careful))
    """,
    "send and recv in forward": """
        def swap(x):
            other = x.detach().clone()
            dist.send(other, 1) if rank == 0 else dist.recv(other, 0)
            return x
        train(with_extra(swap))
    """,
    "a DDP inside, with buffers to broadcast": """
        model = Net()
        model.body.append(nn.BatchNorm1d(6))
        model.body = nn.parallel.DistributedDataParallel(model.body)
        alive.append(model)
        train(model)
    """,
    "a barrier in forward": "train(with_extra(lambda x: (dist.barrier(), x)[1]))",
    "a group made in forward": "train(with_extra(lambda x: (dist.new_group([0, 1]), x)[1]))",
    "collectives only from the second step on": """
        late = []
        model = with_extra(lambda x: gather(x) if late else x)
        train(model, before=lambda step: step == 1 and late.append(1))
    """,
    "FSDP2, only the head": """
        from torch.distributed.fsdp import fully_shard
        model = Net()
        fully_shard(model.head)
        train(model, scope=["body.*.weight"])
    """,
    "FSDP2, only the head, no proxy": """
        from torch.distributed.fsdp import fully_shard
        model = Net()
        fully_shard(model.head)
        train(model, scope=["body.*.weight"], proxy=None)
    """,
    "FSDP1, one root wrapper": """
        from torch.distributed.fsdp import FullyShardedDataParallel as FSDP
        train(FSDP(Net(), device_id=torch.device("cpu")), proxy=None)
    """,
    "a DTensor, out of scope": """
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.tensor import Shard, distribute_tensor
        model = Net()
        mesh = init_device_mesh("cpu", (2,))
        model.table = nn.Parameter(distribute_tensor(torch.ones(4, 4), mesh, [Shard(0)]))
        model.table.grad = torch.zeros_like(model.table)
        train(model, scope=["body.*.weight"])
    """,
}
#: Others, and what comes of them.
_OTHERWISE = {
    "a collective inside torch.compile": (
        """
        import torch.distributed._functional_collectives as funcol
        group = dist.group.WORLD
        compiled = torch.compile(
            lambda x: x + 0 * funcol.all_reduce(x.detach(), "sum", group), backend="aot_eager"
        )
        train(with_extra(compiled), steps=1)
    """,
        "1 valid, on both ranks",
    ),
    "FSDP1, nested, use_orig_params, a predicate": (
        """
        from torch.distributed.fsdp import FullyShardedDataParallel as FSDP
        model = Net()
        model.body = FSDP(model.body, use_orig_params=True, device_id=torch.device("cpu"))
        train(model, scope=lambda name, p: "head.weight" in name)
    """,
        "refused: without FSDP1",
    ),
    "ZeRO-3": (
        """
        model = Net()
        model.head.bias.ds_id = 3
        train(model)
    """,
        "refused: ZeRO-3",
    ),
    "Megatron's column-parallel layer": (
        """
        model = Net()
        model.head.output_size, model.head.output_size_per_partition = 4, 2
        train(model, proxy=None)
    """,
        "refused: split",
    ),
    "sharded after the attach": (
        """
        from torch.distributed.fsdp import fully_shard
        model = Net()
        train(model, before=lambda step: step == 1 and fully_shard(model.head))
    """,
        "1 valid, 2 sharded, on both ranks",
    ),
    "a pipeline whose ranks hold other parts": (
        "train(Net().body if rank else Net().head, proxy=None)",
        "refused: of other names or shapes",
    ),
    "a PipelineStage, attached by rank 0 alone": (
        """
        from torch.distributed.pipelining import PipelineStage
        model = Net().body
        stage = PipelineStage(model, rank, 2, torch.device("cpu"))
        train(model, proxy=None)
    """,
        "refused: stage 0 of 2",
    ),
}
#: A script, and what has to come of it.
RANKED = {name: (script, "3 valid, on both ranks") for name, script in _WATCHED.items()}
RANKED |= _OTHERWISE


def came_of(lines: list[str], scenario: str = "") -> str:
    """What the ranks printed, in a few words."""
    of = [line.replace(f" {scenario}|", "", 1) for line in lines if f"] {scenario}|" in line]
    said = next((line for line in of if line[3:].startswith(" refused")), "")
    watched = next((line for line in of if line.startswith("[0] records: ")), "")
    if not {"[0] trained", "[1] trained"} <= {*of}:
        return f"not trained: {of or lines}"
    if said and "valid" not in watched:  # of two that differ the second one refuses
        words = ("without FSDP1", "ZeRO-3", "split", "of other names or shapes", "stage 0 of 2")
        found = [word for word in words if word in said]
        return f"refused: {found[0]}" if found else said
    other = next((line for line in of if line.startswith("[1] records: ")), "")
    reasons = watched.split(": ", 1)[1]
    numbers = {"valid": reasons.count("valid"), "sharded": reasons.count("as at attach")}
    counted = [f"{number} {what}" for what, number in numbers.items() if number]
    also = "" if other == "[1] records: " else ", on both ranks"
    return ", ".join(counted or [reasons]) + also


def script_of(names: Sequence[str]) -> str:
    """One script that does several of ``RANKED``, one after the other."""
    parts = ["init()"]
    for name in names:
        body = textwrap.indent(textwrap.dedent(RANKED[name][0]), "    ")
        parts.append(
            f"def one():\n{body}\n"
            f"scenario = {name!r}\nfolder = Path(sys.argv[1]) / str({len(parts)})\n"
            "try:\n    one()\nexcept Exception as error:\n    report(repr(error))\ndist.barrier()\n"
        )
    return "\n".join(parts)
