"""Thin adapters to training frameworks, over the public face of sparsitywatch.

The folder lies at the top of the repository and is imported as
``sparsitywatch.integrations``. Each adapter imports its framework, so each is imported by
its own name: ``sparsitywatch.integrations.huggingface``.
"""

from __future__ import annotations

import logging
import os
from typing import Any

__all__: list[str] = []

# From the top of a checkout `import integrations` would succeed and make a second copy of
# every class in here, which isinstance() then tells apart from the first.
if __name__ != "sparsitywatch.integrations":
    raise ImportError(
        f"Expected this package to be imported as `sparsitywatch.integrations`, got "
        f"`{__name__}`. Write: import sparsitywatch.integrations"
    )


def lightning_callbacks() -> list[Any]:
    """For Lightning's entry point: what each Trainer gets if the environment asks for it."""
    if os.environ.get("SPARSITYWATCH_LIGHTNING", "") in ("", "0"):
        return []
    try:
        from sparsitywatch.integrations.lightning import AskedFor

        return [AskedFor()]
    except Exception:  # any: a Trainer that nobody edited must not end by it
        logging.getLogger("sparsitywatch").exception("SPARSITYWATCH_LIGHTNING cannot be followed")
        return []
