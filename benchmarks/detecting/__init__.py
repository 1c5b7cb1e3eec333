"""How well abrupt changes are caught live: made-up series, recorded runs, peers and scores."""
