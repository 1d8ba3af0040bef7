"""MLflow: the server of ``MLFLOW_TRACKING_URI``, else a database in the run's folder."""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from shlex import quote
from typing import Any

from sftn_fast.loggers.base import Logger, LoggerError, register
from sftn_fast.loggers.guard import reason
from sftn_fast.utils.text import printable

DEFAULTS = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_HTTP_REQUEST_TIMEOUT": "20"}
DEFAULTS |= {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_ENABLE_ASYNC_LOGGING": "false"}
"""Settings of the library, unless the environment has others: a training waits for a lost server about a minute."""
BATCH = 100
"""Largest number of parameters in a request."""
LONGEST = 6000
"""Largest number of characters of a parameter."""
UNKNOWN = re.compile(r"[^\w.\-/ ]")
"""Characters that names can't have."""


@register("mlflow")
class MLflow(Logger):
    """A run in the MLflow experiment of the run's folder."""

    module = "mlflow"

    _client: Any = None
    _run_id = ""

    @classmethod
    def check(cls, root: Path) -> None:
        """Ask the server for an answer, if there is one."""
        cls.require()
        if uri := os.environ.get("MLFLOW_TRACKING_URI"):
            try:
                cls._connect(uri).search_experiments(max_results=1)
            except Exception as error:
                raise LoggerError(
                    f"logger mlflow can't use MLFLOW_TRACKING_URI={printable(uri)}: {reason(error)}; "
                    "without this variable it records into the run's folder"
                ) from error

    @classmethod
    def prepare(cls, root: Path) -> str:
        """Create the experiment, and the database if there is no server."""
        uri = os.environ.get("MLFLOW_TRACKING_URI")
        if not uri:
            (root / "mlflow").mkdir(exist_ok=True)
        cls._experiment(cls._connect(uri or _local(root)), root)
        return uri or f"mlflow ui --backend-store-uri {quote(_local(root))}"

    @classmethod
    def require(cls) -> Any:
        """Return the library, with the logs of its database turned down."""
        for name, value in DEFAULTS.items():
            os.environ.setdefault(name, value)
        library = super().require()
        for name in ("mlflow", "alembic"):
            logging.getLogger(name).setLevel(logging.ERROR)
        return library

    @classmethod
    def _connect(cls, uri: str) -> Any:
        return cls.require().MlflowClient(tracking_uri=uri)

    @classmethod
    def _experiment(cls, client: Any, root: Path) -> str:
        """Return the id of the experiment's counterpart, which is created if there is none."""
        found = client.get_experiment_by_name(root.name)
        if found is not None:
            return str(found.experiment_id)
        place = None if os.environ.get("MLFLOW_TRACKING_URI") else (root / "mlflow" / "artifacts").as_uri()
        return str(client.create_experiment(root.name, artifact_location=place))

    def begin(self, run_id: str | None, step: int) -> str:
        """Start or continue the run. Parameters can't change and are logged once."""
        self._client = self._connect(os.environ.get("MLFLOW_TRACKING_URI") or _local(self.info.root))
        if run_id is not None and self._knows(run_id):
            self._client.update_run(run_id, status="RUNNING")
        else:
            experiment = self._experiment(self._client, self.info.root)
            run = self._client.create_run(experiment, run_name=self.info.name, tags={"kind": self.info.kind})
            run_id = str(run.info.run_id)
            self._log_parameters(run_id)
        self._run_id = run_id
        return run_id

    def _knows(self, run_id: str) -> bool:
        """Return whether the server has the run. One that was made in another folder is unknown here."""
        exceptions = self.require().exceptions
        try:
            return bool(self._client.get_run(run_id).info.lifecycle_stage == "active")
        except exceptions.MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return False
            raise

    def _log_parameters(self, run_id: str) -> None:
        entity = self.require().entities.Param
        parameters = [
            entity(UNKNOWN.sub("_", name), str(value)[:LONGEST]) for name, value in self.info.parameters.items()
        ]
        for start in range(0, len(parameters), BATCH):
            self._client.log_batch(run_id, params=parameters[start : start + BATCH])

    def log(self, metrics: Mapping[str, float], step: int, *, row: int) -> None:
        """Log all values in one request."""
        entity, now = self.require().entities.Metric, time.time_ns() // 1_000_000
        values = [entity(UNKNOWN.sub("_", name), value, now, step) for name, value in metrics.items()]
        self._client.log_batch(self._run_id, metrics=values)

    def pictures(self, files: Sequence[Path]) -> None:
        """Log the pictures as artifacts."""
        for file in files:
            self._client.log_artifact(self._run_id, str(file))

    def close(self, *, finished: bool) -> None:
        """Set the status of the run."""
        if self._run_id:
            self._client.set_terminated(self._run_id, status="FINISHED" if finished else "KILLED")


def _local(root: Path) -> str:
    """Return the address of the database in the experiment's folder."""
    return f"sqlite:///{root / 'mlflow' / 'mlflow.db'}"
