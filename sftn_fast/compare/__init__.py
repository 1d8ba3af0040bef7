"""``python -m sftn_fast.compare RUN RUN ...``: hold several runs against each other."""
