"""Recorded runs: small trainings under a real watch, labelled from their own series.

The language models are those of examples/pretrain_bert.py, on shares of the text as those of
examples/paper/data_volume.py.
"""

import sys
from pathlib import Path

_EXAMPLES = Path(__file__).parents[2] / "examples"
for _folder in map(str, (_EXAMPLES / "paper", _EXAMPLES)):
    if _folder not in sys.path:
        sys.path.insert(0, _folder)
