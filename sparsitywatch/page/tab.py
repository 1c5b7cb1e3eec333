"""The tab *Sparsity* in TensorBoard: the module that TensorBoard finds by its entry point.

What fails while TensorBoard looks for its plugins stops TensorBoard. So this imports nothing but
the class that it has to extend; all the rest follows in ``load``, and what fails there costs the
tab alone.
"""

from __future__ import annotations

import logging
from typing import Any

from tensorboard.plugins import base_plugin

__all__ = ["SparsityLoader"]

_logger = logging.getLogger("sparsitywatch")


class SparsityLoader(base_plugin.TBLoader):  # type: ignore[misc]
    """Makes the plugin once TensorBoard asks for it."""

    def load(self, context: Any) -> Any:
        """The plugin; None, with a warning, where it cannot be made."""
        try:
            from sparsitywatch.page.plugin import SparsityPlugin

            return SparsityPlugin(context)
        except Exception:  # TensorBoard goes on without the tab
            _logger.warning("sparsitywatch: TensorBoard has no Sparsity tab", exc_info=True)
            return None
