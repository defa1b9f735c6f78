"""MLflow, where a preset asks for it; the package (mlflow, or mlflow-skinny) is an extra."""

import contextlib
import re
import time
from contextlib import AbstractContextManager
from pathlib import Path

from fismo_cli.files import locked
from fismo_cli.preset.nested import flat
from fismo_cli.preset.schema_logging import MlflowConfig
from fismo_cli.reporting.scalars import final_scalars
from fismo_cli.reporting.tracking import TrackedRun, TrackerSink, tracker_package
from fismo_cli.training.run_summary import RunSummary

__all__ = ["MlflowSink"]

PARAMS = 100
"""Parameters that MLflow takes at once."""

PARAM_LENGTH = 6000
"""Characters of a parameter's value that it takes."""

_NOT_IN_NAMES = re.compile(r"[^\w.:/ -]")  # as in a key of optimizer.rules, which is a pattern

_ENDED = {"completed": "FINISHED", "diverged": "FAILED", "interrupted": "KILLED"}


def _alone(uri: str) -> AbstractContextManager[None]:
    """Keeps runs side by side from making the tables of a database of this host all at once, which it does not bear."""
    path = uri.removeprefix("sqlite:///")
    return locked(Path(f"{path}.lock")) if path != uri else contextlib.nullcontext()


class MlflowSink(TrackerSink):
    """Tells a run of MLflow.

    Args:
        config: the preset's section.
        run: the run.
    """

    def __init__(self, config: MlflowConfig, run: TrackedRun) -> None:
        super().__init__(run)
        mlflow = tracker_package("mlflow")
        self._entities = mlflow.entities
        uri = config.tracking_uri or mlflow.get_tracking_uri()
        with _alone(uri):
            self._client = mlflow.MlflowClient(tracking_uri=uri)
            experiment = self._experiment(config.experiment, mlflow.exceptions.MlflowException)
        if run.id is None:
            tags = {**config.tags, **({} if config.group is None else {"group": config.group})}
            made = self._client.create_run(experiment, tags=tags, run_name=config.name or run.directory.name)
            self.id = str(made.info.run_id)
            self._tell_config(run)
        else:
            self.id = run.id
            self._client.update_run(self.id, status="RUNNING")
        self._status = "FAILED"
        where = "" if "@" in uri else f" at {uri}"  # which may have a password
        self.place = f"run {self.id} of experiment {config.experiment}{where}"

    def _experiment(self, name: str, taken: type[Exception]) -> str:
        """The id of an experiment, which is made where it is not there; others may make it at the same time."""
        with contextlib.suppress(taken):
            if self._client.get_experiment_by_name(name) is None:
                self._client.create_experiment(name)
        return str(self._client.get_experiment_by_name(name).experiment_id)

    def _tell_config(self, run: TrackedRun) -> None:
        values = {_NOT_IN_NAMES.sub("_", name): str(value)[:PARAM_LENGTH] for name, value in flat(run.config).items()}
        parameters = [self._entities.Param(name, value) for name, value in values.items()]
        for start in range(0, len(parameters), PARAMS):
            params = parameters[start : start + PARAMS]
            self._client.log_batch(self.id, params=params)

    def log(self, values: dict[str, float], step: int) -> None:
        """Tell the numbers of a step."""
        now = round(time.time() * 1000)
        self._client.log_batch(
            self.id, metrics=[self._entities.Metric(name, value, now, step) for name, value in values.items()]
        )

    def finish(self, summary: RunSummary) -> None:
        """Tell the final metrics."""
        self.log(final_scalars(summary), summary["steps"])
        self._status = _ENDED[summary["status"]]

    def close(self) -> None:
        """End the run."""
        self._client.set_terminated(self.id, self._status)
