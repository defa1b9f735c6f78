"""trackio, where a preset asks for it; the package is an extra."""

import contextlib
import secrets
import sys

from fismo_cli.preset.schema_logging import TrackioConfig
from fismo_cli.reporting.scalars import final_scalars
from fismo_cli.reporting.tracking import TrackedRun, TrackerSink, tracker_package
from fismo_cli.training.run_summary import RunSummary

__all__ = ["TrackioSink"]


class TrackioSink(TrackerSink):
    """Tells a run of trackio, which knows runs by their names. What it prints goes to stderr: stdout has the answer.

    Args:
        config: the preset's section.
        run: the run.
    """

    def __init__(self, config: TrackioConfig, run: TrackedRun) -> None:
        super().__init__(run)
        self._trackio = tracker_package("trackio")
        self.id = run.id or f"{config.name or run.directory.name}-{secrets.token_hex(3)}"
        with contextlib.redirect_stdout(sys.stderr):
            self._run = self._trackio.init(
                config.project,
                name=self.id,
                group=config.group,
                space_id=config.space_id,
                config=dict(run.config),
                resume="never" if run.id is None else "must",
                embed=False,
            )
        self.place = f"run {self.id} of: trackio show --project {config.project}"

    def log(self, values: dict[str, float], step: int) -> None:
        """Tell the numbers of a step."""
        self._run.log(values, step=step)

    def finish(self, summary: RunSummary) -> None:
        """Tell the final metrics, which trackio keeps as those of the last step."""
        if summary["status"] != "interrupted":
            self._run.log(final_scalars(summary), step=summary["steps"])

    def close(self) -> None:
        """End the run."""
        with contextlib.redirect_stdout(sys.stderr):
            self._trackio.finish()
