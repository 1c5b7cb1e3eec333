"""Recorded runs: small trainings under a real watch, labelled from their own series.

The language models are those of examples/pretrain_bert.py.
"""

import sys
from pathlib import Path

_EXAMPLES = str(Path(__file__).parents[2] / "examples")
if _EXAMPLES not in sys.path:
    sys.path.insert(0, _EXAMPLES)
