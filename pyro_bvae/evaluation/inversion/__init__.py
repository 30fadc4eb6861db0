"""Inversion with a VAE as the prior: operators, noise, the Pyro model, ways to its posterior, and their calibration."""

from pyro_bvae.evaluation.inversion.calibration import Calibration, calibrate
from pyro_bvae.evaluation.inversion.holes import AggregateHoles
from pyro_bvae.evaluation.inversion.methods import BatchedHMCMethod, Draws, NUTSMethod
from pyro_bvae.evaluation.inversion.model import DrawnSignal, InverseProblem, MeanSignal, Signal
from pyro_bvae.evaluation.inversion.noise import CountThinning, NormalNoise
from pyro_bvae.evaluation.inversion.occupancy import FoundModes
from pyro_bvae.evaluation.inversion.operators import (
    Blur,
    Downsample,
    LinearOperator,
    Mask,
    RandomProjection,
)
from pyro_bvae.evaluation.inversion.result import Inversion
from pyro_bvae.evaluation.inversion.solve import invert
from pyro_bvae.evaluation.inversion.starts import (
    AggregateStart,
    EncoderStart,
    PriorStart,
    Start,
    start_chains,
)
from pyro_bvae.evaluation.inversion.variational import VariationalMethod

__all__ = [
    "AggregateHoles",
    "AggregateStart",
    "BatchedHMCMethod",
    "Blur",
    "Calibration",
    "CountThinning",
    "Downsample",
    "DrawnSignal",
    "Draws",
    "EncoderStart",
    "FoundModes",
    "InverseProblem",
    "Inversion",
    "LinearOperator",
    "Mask",
    "MeanSignal",
    "NUTSMethod",
    "NormalNoise",
    "PriorStart",
    "RandomProjection",
    "Signal",
    "Start",
    "VariationalMethod",
    "calibrate",
    "invert",
    "start_chains",
]
