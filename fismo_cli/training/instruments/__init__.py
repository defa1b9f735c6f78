"""What looks on while a run takes its steps: each instrument is told of every part of a step, and measures some."""

from fismo_cli.training.instruments.base import Instrument, Step
from fismo_cli.training.instruments.noise import NoiseInstrument
from fismo_cli.training.instruments.radius import RadiusInstrument

__all__ = ["Instrument", "NoiseInstrument", "RadiusInstrument", "Step"]
