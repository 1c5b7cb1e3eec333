"""What it means: pure functions and detectors on numpy, nothing else."""
