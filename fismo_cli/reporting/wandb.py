"""Weights & Biases, where a preset asks for it; the package is an extra."""

import secrets

from fismo_cli.errors import UsageError, first_line
from fismo_cli.preset.schema_logging import WandbConfig
from fismo_cli.reporting.scalars import final_scalars
from fismo_cli.reporting.tracking import TrackedRun, TrackerSink, tracker_package
from fismo_cli.training.run_summary import RunSummary

__all__ = ["WandbSink", "require_wandb"]

FINISH_SECONDS = 120
"""How long the end of a run may wait for a network; what is not sent by then is on the disk, for `wandb sync`."""


def require_wandb(config: WandbConfig) -> None:
    """Make sure that runs can be told; on a terminal, W&B asks for a key that it does not have.

    Raises:
        UsageError: if the package is not installed, or nobody is logged in.
    """
    wandb = tracker_package("wandb")
    if config.mode == "offline":
        return
    try:
        wandb.setup(wandb.Settings(silent=True))
        wandb.login()
    except wandb.errors.UsageError as error:
        raise UsageError(
            f"logging.wandb: {first_line(error)} Or keep its files here by logging.wandb.mode=offline"
        ) from error
    except wandb.Error:
        pass  # a server that is not there now, or does not like the key: the run goes on without it, and says so


class WandbSink(TrackerSink):
    """Tells a run of W&B; its files are in the run's directory.

    Args:
        config: the preset's section.
        run: the run.
    """

    def __init__(self, config: WandbConfig, run: TrackedRun) -> None:
        super().__init__(run)
        wandb = tracker_package("wandb")
        self.id = run.id or secrets.token_hex(4)
        self._run = wandb.init(
            project=config.project,
            entity=config.entity,
            name=config.name or run.directory.name,
            group=config.group,
            tags=config.tags,
            mode=config.mode,
            id=self.id,
            resume="allow",
            dir=str(run.directory),
            config=dict(run.config),
            settings=wandb.Settings(console="off", silent=True, finish_timeout=FINISH_SECONDS),
        )
        self._failed = True
        self.place = f"{self._run.dir} (offline)" if self._run.offline else str(self._run.url)

    def log(self, values: dict[str, float], step: int) -> None:
        """Tell the numbers of a step."""
        self._run.log(values, step=step)

    def finish(self, summary: RunSummary) -> None:
        """Put the final metrics into the run's summary."""
        self._run.summary.update({**final_scalars(summary), "status": summary["status"]})
        self._failed = summary["status"] != "completed"

    def close(self) -> None:
        """End the run, as failed where it has not completed."""
        self._run.finish(exit_code=int(self._failed))
