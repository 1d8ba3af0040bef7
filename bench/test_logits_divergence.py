"""The divergences of logits under pytest-benchmark: `python -m pytest bench`."""

from bench.suite import throughput_of

test_forward_and_backward = throughput_of("logits_divergence")
