"""MLflow: the server at MLFLOW_TRACKING_URI, or files under tracking/mlflow."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping

from shoestring.report.sinks import Run, Sink

PACKAGE, EXTRA = "mlflow", "mlflow"


class _Mlflow:
    def __init__(self, run: Run) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        from mlflow import MlflowClient  # pyright: ignore[reportMissingImports]

        uri = os.environ.get("MLFLOW_TRACKING_URI") or (run.folder / "mlflow").absolute().as_uri()
        if uri.startswith("file:"):
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        self.client = MlflowClient(tracking_uri=uri)
        title = os.environ.get("MLFLOW_EXPERIMENT_NAME", "shoestring")
        found = self.client.get_experiment_by_name(title)
        experiment = found.experiment_id if found else self.client.create_experiment(title)
        self.id = self.client.create_run(experiment, run_name=run.name).info.run_id
        for key, value in run.config.items():
            self.client.log_param(self.id, key, str(value)[:500])

    def log(self, step: int, values: Mapping[str, float]) -> None:
        from mlflow.entities import Metric  # pyright: ignore[reportMissingImports]

        now = int(time.time() * 1000)
        self.client.log_batch(self.id, metrics=[Metric(k, v, now, step) for k, v in values.items()])

    def close(self) -> None:
        self.client.set_terminated(self.id)


def begin(run: Run) -> Sink:
    return _Mlflow(run)
