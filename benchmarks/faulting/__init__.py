"""The cases of ``faults.py``, by what fails; each module has a tuple ``CASES``."""
