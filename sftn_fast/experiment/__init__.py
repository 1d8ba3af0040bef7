"""Experiments: which networks to train, in which order, and the jobs that train them."""
