"""Evaluation of the networks that learned beside the exported one."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, cast

from sftn_fast import engine, models
from sftn_fast.engine import distributed
from sftn_fast.models import StagedNet
from sftn_fast.tasks import CollaborativeTask

if TYPE_CHECKING:
    from sftn_fast.experiment.job import JobRunner


def evaluate_peers(runner: JobRunner, task: CollaborativeTask) -> list[dict[str, Any]]:
    """Evaluate all networks but the exported one on the test set, and save each in ``peerN/`` of the job's folder."""
    layout = engine.Layout(runner.device)
    peers = []
    for number, network in enumerate(cast(list[StagedNet], list(task.networks)[:-1]), start=1):
        peers.append({"network": network.name, **engine.evaluate(network, runner.data.test, layout)})
        distributed.on_main(partial(runner.write_network, f"peer{number}", models.to_files(network)))
        distributed.say(f"  peer {network.name}: top-1 {peers[-1]['top1']:.2f} %")
    return peers
