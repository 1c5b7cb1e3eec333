"""What replay.py is made of: checkpoints, one look at one, memory, a storage that counts."""
