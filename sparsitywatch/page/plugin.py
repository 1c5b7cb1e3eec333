"""The plugin behind the tab *Sparsity*: it answers with the page, from logs on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tensorboard.plugins import base_plugin

from sparsitywatch.page.server import App, Runs, apps_of


class SparsityPlugin(base_plugin.TBPlugin):  # type: ignore[misc]
    """The page as a tab; it reads the records beside the event files, so no loader matters."""

    plugin_name = "sparsity"

    def __init__(self, context: base_plugin.TBContext) -> None:
        roots, self._remark = roots_of(context.logdir or "", context.flags.logdir_spec)
        self._runs = Runs(roots)

    def get_plugin_apps(self) -> dict[str, App]:
        """Each application by its route; TensorBoard asks for them when it is about to serve."""
        self._runs.warm()
        return apps_of(self._runs, self._remark)

    def is_active(self) -> bool:
        """Whether there is a watched run."""
        return bool(self._runs.places())

    def frontend_metadata(self) -> Any:
        """Where the page begins, and what the tab is called."""
        return base_plugin.FrontendMetadata(es_module_path="/index.js", tab_name="Sparsity")


def roots_of(logdir: str, spec: str | None) -> tuple[dict[str, Path], str]:
    """Directories by the beginning of the names of their runs, and why there may be none.

    ``logdir`` and ``spec`` are as ``--logdir`` and ``--logdir_spec`` gave them.

    >>> roots_of("", "a:/x,/y")[0]
    {'a': PosixPath('/x'), '/y': PosixPath('/y')}
    >>> roots_of("s3://bucket/runs", "")[1][:42]
    'The Sparsity tab reads logs on this machin'
    """
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
