"""Throughput of the ops, compared with the PyTorch code of the methods' authors."""
