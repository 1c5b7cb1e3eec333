"""The offline driver: checkpoints in, the same records, events and files as from a live watch."""
