"""The keys of a configuration that decide nothing of what is trained, each with the reason.

Neither a run's default folder nor the comparison of a run with what lies in its folder looks at them. docs/runs.md
lists them for the user.
"""

from __future__ import annotations

NEUTRAL = {
    "output": "where the results lie",
    "resume": "what is done with the results that lie there",
    "devices": "which process trains a stage; every stage seeds itself",
    "data.root": "images are compared by their content",
    "data.download": "images are compared by their content",
    "data.workers": "who decodes an image draws nothing",
    "engine.device": "the same computation but for rounding",
    "engine.threads": "the same computation but for rounding",
    "engine.cuda_graphs": "the same kernels in the same order",
    "engine.log_every": "how often metrics are written",
    "engine.checkpoint_every": "how often a checkpoint is written",
    "engine.keep_checkpoints": "how many checkpoints stay",
    "engine.tensorboard": "who else is told the metrics",
}
"""Key by its dotted name, and why two runs that differ in it are the same run."""
