"""The training loop and what makes a run safe: checkpoints, signals, checks, logs.

The engine is given a task and data, whose types are in :mod:`sftn_fast.engine.protocols`. It does not know methods or
networks.
"""

from sftn_fast.engine.checkpoint import CheckpointError, CheckpointStore, read_checkpoint
from sftn_fast.engine.device import Layout, amp_dtype, bfloat16_instructions, resolve_device, resolve_devices
from sftn_fast.engine.distributed import PeerError
from sftn_fast.engine.evaluate import ClassCounts, count_by_class, evaluate
from sftn_fast.engine.fingerprint import FingerprintMismatch
from sftn_fast.engine.finite import NonFiniteError
from sftn_fast.engine.folder import FolderError, RunFolder
from sftn_fast.engine.loop import FitResult, fit, steps_an_epoch
from sftn_fast.engine.process_group import process_group
from sftn_fast.engine.rng import seed_everything
from sftn_fast.engine.schedule import Schedule
from sftn_fast.engine.signals import Interrupted
from sftn_fast.engine.step import TrainStep, build_step
from sftn_fast.engine.threads import fastest_threads

__all__ = [
    "CheckpointError",
    "CheckpointStore",
    "ClassCounts",
    "FingerprintMismatch",
    "FitResult",
    "FolderError",
    "Interrupted",
    "Layout",
    "NonFiniteError",
    "PeerError",
    "RunFolder",
    "Schedule",
    "TrainStep",
    "amp_dtype",
    "bfloat16_instructions",
    "build_step",
    "count_by_class",
    "evaluate",
    "fastest_threads",
    "fit",
    "process_group",
    "read_checkpoint",
    "resolve_device",
    "resolve_devices",
    "seed_everything",
    "steps_an_epoch",
]
