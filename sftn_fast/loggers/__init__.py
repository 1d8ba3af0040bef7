"""Loggers: services that receive a copy of a run's metrics. A logger never stops or changes a training.

One service is one file, found by its name. The libraries are imported when a service is used.
"""

from sftn_fast.loggers import mlflow, tensorboard, trackio, wandb
from sftn_fast.loggers.base import Logger, LoggerError, RunInfo, register
from sftn_fast.loggers.checks import check, prepare
from sftn_fast.loggers.open_run import OpenRun, Services

__all__ = [
    "Logger",
    "LoggerError",
    "OpenRun",
    "RunInfo",
    "Services",
    "check",
    "mlflow",
    "prepare",
    "register",
    "tensorboard",
    "trackio",
    "wandb",
]
