"""Series of checkpoints on the Hub: branches of a repository, or repositories of an organization.

The real client of the Hub talks to a server on this machine, in a process of its own: whether it
is offline is decided when it is imported.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import safetensors.torch
import torch
from contracts.hub_server import Hub, hub_server

from sparsitywatch.sinks.jsonl import read_records

STEPS = [0, *(2**n for n in range(10)), *range(1000, 144_000, 1000)]


def weights(step: int) -> bytes:
    torch.manual_seed(step)
    layers = {f"encoder.layer.{i}.attention.weight": torch.randn(32, 32) for i in range(2)}
    return safetensors.torch.save({**layers, "embed_tokens.weight": torch.zeros(1000, 32)})


def branch(step: int) -> dict[str, bytes]:
    return {"config.json": b"{}", "model.safetensors": weights(step), "README.md": b"# Model"}


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    assert len(STEPS) == 154
    pythia = {"main": branch(143_000)} | {f"step{step}": branch(step) for step in STEPS}
    multi = {
        f"google/multi-seed_{seed}-step_{step}k": {"main": branch(step + seed)}
        for seed in (0, 1)
        for step in (0, 20, 100, 2000)
    }
    two = {name: branch(step) for name, step in (("main", 9), ("step5", 5), ("step9", 9))}
    odd = {
        "main": {"run [v2]/step_5[1].safetensors": weights(5), "step_51.safetensors": weights(51)}
    }
    repositories = {"org/pythia": pythia, "org/two": two, "org/odd": odd, "google/other": {}}
    with hub_server({**repositories, **multi}) as hub:
        yield hub


#: Everything in one process: it takes seconds to start.
CLIENT = """
import json, sys
from sparsitywatch.checkpoints.discovery import discover
from sparsitywatch.cli import main

def listed(place):
    return [(f.url, f.step, f.state, f.reason) for f in discover(place)]

*places, logdir = sys.argv[1:]
print(json.dumps({place: listed(place) for place in places}), flush=True)
sys.exit(main(["replay", "hf://org/two@step*", "--logdir", logdir]))
"""
ONE, BRANCHES = "hf://org/pythia@step1000", "hf://org/pythia@*"
REPOSITORIES = "hf://google/multi-seed_0-step_*"
#: What is there by that very name, and a pattern in a folder of such a name.
LITERAL = ["hf://org/odd/run [v2]/step_5[1].safetensors", "hf://org/odd/run [v2]/step_*"]


@pytest.fixture(scope="module")
def client(hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict, Path]:
    """What a process has listed, and where it has replayed a series to."""
    home = tmp_path_factory.mktemp("hub")
    places = [ONE, BRANCHES, REPOSITORIES, *LITERAL]
    command = [sys.executable, "-c", CLIENT, *places, str(home / "log")]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300, env=hub.environment(home), check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[0]), home / "log"


@pytest.mark.slow
def test_a_branch_is_a_checkpoint(client) -> None:
    assert client[0][ONE] == [[ONE, 1000, "complete", ""]]


@pytest.mark.slow
def test_branches_are_steps(client) -> None:
    expected = [[f"hf://org/pythia@step{step}", step, "complete", ""] for step in STEPS]
    assert client[0][BRANCHES] == [*expected, ["hf://org/pythia@main", None, "complete", ""]]


@pytest.mark.slow
def test_repositories_are_steps(client) -> None:
    expected = [(f"hf://google/multi-seed_0-step_{k}k", k * 1000) for k in (0, 20, 100, 2000)]
    assert client[0][REPOSITORIES] == [[url, step, "complete", ""] for url, step in expected]


@pytest.mark.slow
@pytest.mark.parametrize("place", LITERAL)
def test_what_is_there_by_that_name_is_meant(client, place: str) -> None:
    assert client[0][place] == [[LITERAL[0], 5, "complete", ""]]


@pytest.mark.slow
def test_a_replay_fetches_headers_and_what_is_in_scope(client, hub: Hub) -> None:
    records = read_records(client[1] / "sparsitywatch")
    assert [(record.step, record.valid) for record in records] == [(5, True), (9, True)]
    in_scope = 2 * 2 * 32 * 32 * 4  # steps, layers, weights, bytes
    sent = sum(size for repository, _, size in hub.sent if repository == "org/two")
    headers = 2 * 3 * 1000
    assert in_scope <= sent <= in_scope + headers < len(weights(5)) / 2
    files = {file for repository, file, _ in hub.sent if repository != "org/odd"}
    assert files == {"model.safetensors"}
