"""Is this training training? Every parameter, in scope or not, from snapshot to snapshot.

    two snapshots, optimizer, gradients → facts of each tensor → findings → events

Plugged into live, offline and pipeline through the seams ``Examiner`` and ``Reviewer``.
"""

from sparsitywatch.vital.files import FilesReviewer
from sparsitywatch.vital.judgement import AT_REST, VitalReviewer, unread
from sparsitywatch.vital.one_run import OneRunReviewer
from sparsitywatch.vital.reading import VitalTracker
from sparsitywatch.vital.xray import XRayReviewer

__all__ = [
    "AT_REST", "FilesReviewer", "OneRunReviewer", "VitalReviewer", "VitalTracker", "XRayReviewer",
    "unread",
]  # fmt: skip
