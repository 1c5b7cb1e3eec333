"""The command line: read watched runs, also while they are still being written.

::

    sparsitywatch summary runs/demo           what happened so far, as a table (or --json)
    sparsitywatch plot runs/demo -o x.png     the same as a picture
    sparsitywatch report runs/demo -o x.html  the same as one page of HTML with everything in it
    sparsitywatch compare runs/a runs/b       runs side by side, if they can be compared
    sparsitywatch scope runs/demo             which parameters are watched, and why
    sparsitywatch replay runs/a --logdir x    saved checkpoints, as a live watch would see them
    sparsitywatch inspect checkpoint-500      what a checkpoint holds, and what of it would count

Commands that read logs load no model and do not import torch; those that read checkpoints import
it when they run. One file per command.
"""

from sparsitywatch.cli.command_line import main
from sparsitywatch.cli.summary import RunSummary, SeriesSummary, summarise

__all__ = ["RunSummary", "SeriesSummary", "main", "summarise"]
