"""The part of a preset that says which trackers are told of a run, besides its own record. It changes no result."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, Strict
from pydantic.config import JsonDict

from fismo_cli.preset.schema_base import Config

__all__ = ["LoggingConfig", "MlflowConfig", "TrackioConfig", "WandbConfig"]

Text = Annotated[str, Field(min_length=1)]

_NAME = "Name of the run there; null: its directory's."
_GROUP = "What the run belongs to; null: the study of fismo tune or the comparison of fismo compare."


class WandbConfig(Config):
    """A run of Weights & Biases."""

    project: Text = Field(default="fismo", description="Project that the run is in.")
    entity: Text | None = Field(default=None, description="User or team that has the project; null: W&B's default.")
    name: Text | None = Field(default=None, description=_NAME)
    group: Text | None = Field(default=None, description=_GROUP)
    tags: Annotated[tuple[Text, ...], Strict(False)] = Field(default=(), description="Tags of the run.")
    mode: Literal["online", "offline"] | None = Field(
        default=None, description="offline: files for `wandb sync`. null: what WANDB_MODE says, or online."
    )


class MlflowConfig(Config):
    """A run of MLflow."""

    experiment: Text = Field(default="fismo", description="Experiment that the run is in; made if it is not there.")
    name: Text | None = Field(default=None, description=_NAME)
    group: Text | None = Field(default=None, description=f"{_GROUP} It is the tag `group`.")
    tags: dict[str, str] = Field(default={}, description="Tags of the run.")
    tracking_uri: Text | None = Field(
        default=None, description="Server or database; null: what MLFLOW_TRACKING_URI says, or MLflow's default."
    )


class TrackioConfig(Config):
    """A run of trackio."""

    project: Text = Field(default="fismo", description="Project that the run is in.")
    name: Text | None = Field(default=None, description=f"{_NAME} A few letters that make it unique follow.")
    group: Text | None = Field(default=None, description=_GROUP)
    space_id: Text | None = Field(
        default=None, description="Hugging Face Space; null: what TRACKIO_SPACE_ID says, or a database on this machine."
    )


def _switch(value: Any) -> Any:
    """`true` is a section without keys, `false` none."""
    if isinstance(value, bool):
        return {} if value else None
    return value


_Switch = BeforeValidator(_switch)
_EXPECTED: JsonDict = {"expected": "true or false, a section (keys and values) or null"}


class LoggingConfig(Config):
    """Where measurements go besides metrics.jsonl."""

    tensorboard: bool = Field(default=False, description="Write TensorBoard event files into the run directory.")
    wandb: Annotated[WandbConfig | None, _Switch] = Field(
        default=None, description="Tell Weights & Biases.", json_schema_extra=_EXPECTED
    )
    mlflow: Annotated[MlflowConfig | None, _Switch] = Field(
        default=None, description="Tell MLflow.", json_schema_extra=_EXPECTED
    )
    trackio: Annotated[TrackioConfig | None, _Switch] = Field(
        default=None, description="Tell trackio.", json_schema_extra=_EXPECTED
    )

    def in_group(self, group: str) -> "LoggingConfig":
        """The same, with the runs in a group wherever the preset names none."""
        trackers = {"wandb": self.wandb, "mlflow": self.mlflow, "trackio": self.trackio}
        return self.model_copy(
            update={
                name: tracker.model_copy(update={"group": group})
                for name, tracker in trackers.items()
                if tracker is not None and tracker.group is None
            }
        )
