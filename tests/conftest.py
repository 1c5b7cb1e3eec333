"""What holds for every test."""

from __future__ import annotations

import os
from collections.abc import Iterator

# Beside another process of tests a second thread would only wait for a core. Set before torch is
# imported, and by setdefault: who asks for threads gets them.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from hypothesis import settings

# the same examples every time, and no deadline: machines are shared and stand still at times
settings.register_profile("sparsitywatch", derandomize=True, deadline=None)
settings.load_profile("sparsitywatch")


#: Rooms where nobody looks at TensorBoard's pictures; in ``sinks`` and ``browser`` somebody does.
WITHOUT_PICTURES = {
    *("checkpoints", "cli", "examples", "integrations", "live", "offline", "pipeline", "pruning"),
}


@pytest.fixture(scope="module", autouse=True)
def _no_pictures(request: pytest.FixtureRequest) -> Iterator[None]:
    """Draws none in these: that is most of the time of a short run."""
    if request.path.parent.name not in WITHOUT_PICTURES:
        yield
        return
    from contracts import pictures

    with pytest.MonkeyPatch.context() as patch:
        for method in pictures.DRAWING:
            patch.setattr(pictures.TensorBoardSink, method, lambda _: None)
        yield
