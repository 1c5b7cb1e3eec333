"""What is there: which weights count, their magnitudes, what moved."""
