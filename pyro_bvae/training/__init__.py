"""Training: objectives, schedules, and ``fit``."""

from pyro_bvae.training.checkpoint import checkpoint_path, load_checkpoint, load_weights, save_checkpoint
from pyro_bvae.training.controlled_capacity import ControlledCapacity
from pyro_bvae.training.fit import fit
from pyro_bvae.training.free_bits import FreeBits
from pyro_bvae.training.health import TrainingError
from pyro_bvae.training.history import History
from pyro_bvae.training.importance_weighted import IWELBO
from pyro_bvae.training.loss import GivenNoise, Loss, reparametrize
from pyro_bvae.training.objectives import Objective, Terms, TraceTerms
from pyro_bvae.training.schedules import Constant, CosineWarmup, Cyclical, LinearWarmup, OneCycle, Schedule

__all__ = [
    "IWELBO",
    "Constant",
    "ControlledCapacity",
    "CosineWarmup",
    "Cyclical",
    "FreeBits",
    "GivenNoise",
    "History",
    "LinearWarmup",
    "Loss",
    "Objective",
    "OneCycle",
    "Schedule",
    "Terms",
    "TraceTerms",
    "TrainingError",
    "checkpoint_path",
    "fit",
    "load_checkpoint",
    "load_weights",
    "reparametrize",
    "save_checkpoint",
]
