"""Whole training steps, from data to update: ours and the usual loop, each in a separate process."""
