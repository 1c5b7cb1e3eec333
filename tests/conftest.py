"""What holds for every test."""

from __future__ import annotations

import os

# Beside another process of tests a second thread would only wait for a core. Set before torch is
# imported, and by setdefault: who asks for threads gets them.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

from hypothesis import settings

# the same examples every time, and no deadline: machines are shared and stand still at times
settings.register_profile("sparsitywatch", derandomize=True, deadline=None)
settings.load_profile("sparsitywatch")
