"""The offline driver: checkpoints in, the same records, events and files as from a live watch.

::

    call.py        sw.replay: everything a user may ask for, checked
    processes.py   an executor of processes on this machine
    selection.py   which checkpoints are looked at, in which order
    driver.py      what is missing is looked at, by step, and passed on
    look.py        one look at one checkpoint, here or in a worker
    stage.py       the model that a worker evaluates on
    workers.py     looks by an executor, in order, in a bounded window
    publisher.py   from looks to records, and on to the sinks
    log.py         what an earlier replay has left in the log directory
    following.py   waiting for checkpoints that are still to come
"""

from sparsitywatch.replayer.call import replay
from sparsitywatch.replayer.result import Failure, Replayed

__all__ = ["Failure", "Replayed", "replay"]
