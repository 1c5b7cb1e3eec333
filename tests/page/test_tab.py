"""How TensorBoard finds the tab: light, and whatever fails costs the tab alone."""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from contracts import fake_run
from tensorboard.plugins import base_plugin

from sparsitywatch.page.plugin import SparsityPlugin
from sparsitywatch.page.tab import SparsityLoader


def context(logdir: Path | str, spec: str = "") -> base_plugin.TBContext:
    return base_plugin.TBContext(logdir=str(logdir), flags=SimpleNamespace(logdir_spec=spec))


def test_the_entry_point_leads_here() -> None:
    (found,) = importlib.metadata.entry_points(group="tensorboard_plugins", name="sparsity")
    assert found.value == "sparsitywatch.page.tab:SparsityLoader"
    assert issubclass(found.load(), base_plugin.TBLoader)


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


def test_what_fails_costs_the_tab_alone(monkeypatch: pytest.MonkeyPatch, caplog) -> None:
    monkeypatch.setattr("sparsitywatch.page.plugin.roots_of", lambda *_: 1 / 0)
    assert SparsityLoader().load(context("/x")) is None
    assert "TensorBoard has no Sparsity tab" in caplog.text
    assert "ZeroDivisionError" in caplog.text


def test_it_is_a_tab_where_there_is_a_watched_run(tmp_path: Path) -> None:
    assert not SparsityLoader().load(context(tmp_path)).is_active()
    fake_run.write_run(tmp_path / "run", [fake_run.look(0)])
    plugin = SparsityLoader().load(context(tmp_path))
    assert plugin.is_active()
    assert plugin.frontend_metadata().tab_name == "Sparsity"
    assert plugin.frontend_metadata().es_module_path == "/index.js"
    assert {"/index.js", "/runs", "/page", "/details"} <= set(plugin.get_plugin_apps())


def test_a_log_directory_elsewhere_has_no_tab() -> None:
    assert not SparsityPlugin(context("s3://bucket/runs")).is_active()


def test_several_directories_by_name(tmp_path: Path) -> None:
    fake_run.write_run(tmp_path / "run", [fake_run.look(0)])
    assert SparsityPlugin(context("", f"one:{tmp_path}")).is_active()
