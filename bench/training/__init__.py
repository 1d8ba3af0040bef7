"""Whole steps of training, data to update: ours against the usual loop, each in a process of its own."""
