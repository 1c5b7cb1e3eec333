"""One rank or many, behind one protocol: what they agree on, hold, read and evaluate together."""
