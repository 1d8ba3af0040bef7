"""Throughput of the ops against the PyTorch code that the methods' authors ship."""
