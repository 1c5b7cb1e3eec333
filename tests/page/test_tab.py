"""How TensorBoard finds the tab: light, and whatever fails costs the tab alone."""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys
from base64 import b64encode
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import quote

import pytest
from contracts import fake_run
from page.conftest import in_node, needs_node
from tensorboard.plugins import base_plugin

from sparsitywatch.page.server import Runs
from sparsitywatch.page.tab import SparsityLoader, SparsityPlugin


def context(logdir: Path | str, spec: str = "") -> base_plugin.TBContext:
    return base_plugin.TBContext(logdir=str(logdir), flags=SimpleNamespace(logdir_spec=spec))


def test_the_entry_point_leads_here() -> None:
    (found,) = importlib.metadata.entry_points(group="tensorboard_plugins", name="sparsity")
    assert found.value == "sparsitywatch.page.tab:SparsityLoader"
    assert issubclass(found.load(), base_plugin.TBLoader)


@pytest.mark.slow
def test_looking_for_plugins_imports_nothing_heavy() -> None:
    code = (
        "import json, sys; from tensorboard.plugins import base_plugin; before = set(sys.modules)\n"
        "import sparsitywatch.page.tab; print(json.dumps(sorted(set(sys.modules) - before)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    own = {"sparsitywatch", "sparsitywatch.page", "sparsitywatch.page.tab"}
    loaded = set(json.loads(done.stdout))
    assert own <= loaded
    assert {name for name in loaded if name.startswith("sparsitywatch")} == own
    assert not {name.partition(".")[0] for name in loaded} & {"torch", "numpy", "matplotlib"}


def test_what_fails_costs_the_tab_alone(monkeypatch, caplog) -> None:
    monkeypatch.setattr("sparsitywatch.page.tab.roots_of", lambda *_: 1 / 0)
    assert SparsityLoader().load(context("/x")) is None
    assert "TensorBoard has no Sparsity tab" in caplog.text
    assert "ZeroDivisionError" in caplog.text


def test_it_is_a_tab_where_there_is_a_watched_run(tmp_path: Path, monkeypatch) -> None:
    assert not SparsityLoader().load(context(tmp_path)).is_active()
    fake_run.write_run(tmp_path / "run", [fake_run.look(0)])
    plugin = SparsityLoader().load(context(tmp_path))
    assert plugin.is_active()
    assert plugin.frontend_metadata().tab_name == "Sparsity"
    assert plugin.frontend_metadata().es_module_path == "/index.js"
    begun: list[int] = []
    monkeypatch.setattr(Runs, "warm", lambda _: begun.append(1))
    assert {"/index.js", "/runs", "/page", "/details"} <= set(plugin.get_plugin_apps())
    assert begun == [1]


def test_a_log_directory_elsewhere_has_no_tab() -> None:
    assert not SparsityPlugin(context("s3://bucket/runs")).is_active()


def test_several_directories_by_name(tmp_path: Path) -> None:
    fake_run.write_run(tmp_path / "run", [fake_run.look(0)])
    assert SparsityPlugin(context("", f"one:{tmp_path}")).is_active()


# ------------------------------------------------------------------ what is chosen elsewhere


def in_base64(choice: object) -> str:
    return quote(b64encode(json.dumps(choice).encode()).decode(), safe="")


@pytest.mark.slow
@needs_node
def test_what_the_address_and_the_table_say_of_runs() -> None:
    """As TensorBoard writes them: components of the address are escaped, the choice in base64."""
    chosen = in_base64({"a/x": False, "b/x": True})
    both = f"#scalars&runSelectionState={chosen}&regexInput=%5B%5Ez%5D"
    code = f"""
    import {{ hexadecimal, ofAddress, ofTable }} from "./elsewhere.js";
    const shown = (says) => ["a/x", "b/x", "c/x", "z", "constructor"].map(says).join();
    console.log(shown(ofAddress("#sparsity")));
    console.log(shown(ofAddress("{both}")));
    console.log(shown(ofAddress("#scalars&runSelectionState=cut&regexInput=(")));
    console.log(shown(ofAddress("#scalars&runSelectionState={in_base64(None)}")));
    const rows = new Map([["a/x", {{ chosen: false }}], ["z", {{ chosen: true }}]]);
    console.log(shown(ofTable("", rows)));
    console.log(shown(ofTable("?runFilter=X%24&p.sparsity.step=5", rows)));
    console.log([hexadecimal("rgb(18, 181, 203)"), hexadecimal("none")].join());
    """
    assert in_node(code).splitlines() == [
        "true,true,true,true,true",
        "false,true,true,false,true",
        "true,true,true,true,true",
        "true,true,true,true,true",
        "false,,,true,",
        "false,,,false,false",
        "#12b5cb,",
    ]


@pytest.mark.slow
@needs_node
def test_the_last_choice_counts_wherever_it_was_made() -> None:
    code = """
    import { Follower } from "./elsewhere.js";
    const follower = new Follower();
    const told = (address, table) => {
      const sources = { address: (run) => address[run], table: (run) => table[run] };
      console.log([...follower.changes(sources, ["a", "b"])].join(" ") || "nothing");
    };
    told({ a: true, b: true }, {});
    told({ a: false, b: true }, {});
    told({ a: false, b: true }, { a: true, b: true });
    told({ a: false, b: true }, { a: true, b: false });
    told({ a: false, b: true }, {});
    told({ a: true, b: true }, { b: false });
    told({ a: true, b: true }, { b: true });
    """
    assert in_node(code).splitlines() == [
        "nothing", "a,false", "nothing", "b,false", "nothing", "a,true", "b,true",
    ]  # fmt: skip
