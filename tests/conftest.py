"""What holds for every test."""

from __future__ import annotations

from hypothesis import settings

# the same examples every time, and no deadline: machines are shared and stand still at times
settings.register_profile("sparsitywatch", derandomize=True, deadline=None)
settings.load_profile("sparsitywatch")
