"""The command line: read watched runs, also while they are still being written.

::

    sparsitywatch summary runs/demo           what happened so far, as a table (or --json)
    sparsitywatch plot runs/demo -o x.png     the same as a picture
    sparsitywatch compare runs/a runs/b       runs side by side, if they can be compared
    sparsitywatch scope runs/demo             which parameters are watched, and why

It reads log files only: no model is loaded, and torch is not imported. One file per command.
"""

from sparsitywatch.cli.command_line import main
from sparsitywatch.cli.summary import RunSummary, SeriesSummary, summarise

__all__ = ["RunSummary", "SeriesSummary", "main", "summarise"]
