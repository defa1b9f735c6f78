"""The training loop: schedule, trainer, checkpoints and the events they emit."""
