"""The live driver: attach to an optimizer, take snapshots when due, let no fault out."""
