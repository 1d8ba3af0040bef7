"""Tasks: the modules that jobs train. They return the named terms of their loss."""

from sftn_fast.tasks.base import Task
from sftn_fast.tasks.collaborate import CollaborativeTask
from sftn_fast.tasks.distill import DistillTask, Route
from sftn_fast.tasks.sftn import SFTNTask
from sftn_fast.tasks.soteacher import SoTeacherTask
from sftn_fast.tasks.supervised import SupervisedTask

__all__ = ["CollaborativeTask", "DistillTask", "Route", "SFTNTask", "SoTeacherTask", "SupervisedTask", "Task"]
