"""The tab *Sparsity* in TensorBoard: the module that TensorBoard finds by its entry point.

It answers with the page, from logs on this machine. What fails while TensorBoard looks for its
plugins stops TensorBoard. So this imports nothing but the classes that it has to extend; all the
rest follows when ``load`` makes the plugin, and what fails there costs the tab alone.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from tensorboard.plugins import base_plugin

_logger = logging.getLogger("sparsitywatch")


class SparsityLoader(base_plugin.TBLoader):  # type: ignore[misc]
    """Makes the plugin once TensorBoard asks for it."""

    def load(self, context: Any) -> Any:
        """The plugin; None, with a warning, where it cannot be made."""
        try:
            return SparsityPlugin(context)
        except Exception:  # TensorBoard goes on without the tab
            _logger.warning("sparsitywatch: TensorBoard has no Sparsity tab", exc_info=True)
            return None


class SparsityPlugin(base_plugin.TBPlugin):  # type: ignore[misc]
    """The page as a tab; it reads the records beside the event files, so no loader matters."""

    plugin_name = "sparsity"

    def __init__(self, context: base_plugin.TBContext) -> None:
        from sparsitywatch.page import server

        roots, remark = roots_of(context.logdir or "", context.flags.logdir_spec)
        self._runs = server.Runs(roots)
        self._apps = server.apps_of(self._runs, remark)

    def get_plugin_apps(self) -> dict[str, Any]:
        """Each application by its route; TensorBoard asks for them when it is about to serve."""
        self._runs.warm()
        return self._apps

    def is_active(self) -> bool:
        """Whether there is a watched run."""
        return bool(self._runs.places())

    def frontend_metadata(self) -> Any:
        """Where the page begins, and what the tab is called."""
        return base_plugin.FrontendMetadata(es_module_path="/index.js", tab_name="Sparsity")


def roots_of(logdir: str, spec: str | None) -> tuple[dict[str, Path], str]:
    """Directories by the beginning of the names of their runs, and why there may be none."""
    given = {"": logdir} if logdir else {}
    for part in (spec or "").split(",") if not logdir else ():
        name, colon, path = part.partition(":")
        is_named = bool(colon) and not path.startswith("//")
        given[name if is_named else part] = path if is_named else part
    remote = [path for path in given.values() if "://" in path]
    remark = ""
    if remote:
        remark = (
            f"The Sparsity tab reads logs on this machine, and {remote[0]} is elsewhere. Copy the "
            "log here, or run TensorBoard where it lies"
        )
    return {name: Path(path) for name, path in given.items() if "://" not in path}, remark
