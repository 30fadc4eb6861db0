"""Training: objectives, schedules, and ``fit``."""

from pyro_bvae.training.beta_conditioned import ConditionedBeta, at_beta, with_beta
from pyro_bvae.training.checklist import Remark, check_after, check_before, check_during
from pyro_bvae.training.checkpoint import checkpoint_path, load_checkpoint, load_weights, save_checkpoint
from pyro_bvae.training.controlled_capacity import ControlledCapacity
from pyro_bvae.training.distributed import Ranks, process_group
from pyro_bvae.training.ex_post import fit_ex_post_prior
from pyro_bvae.training.fit import fit
from pyro_bvae.training.free_bits import FreeBits
from pyro_bvae.training.health import TrainingError
from pyro_bvae.training.history import History
from pyro_bvae.training.importance_weighted import IWELBO
from pyro_bvae.training.loss import GivenNoise, Loss, reparametrize
from pyro_bvae.training.objectives import Objective, Terms, TraceTerms
from pyro_bvae.training.schedules import Constant, CosineWarmup, Cyclical, LinearWarmup, OneCycle, Schedule
from pyro_bvae.training.start import start_at_mean
from pyro_bvae.training.sweep import Replica, Sweep, sweep
from pyro_bvae.training.target_rate import RateController, TargetRate
from pyro_bvae.training.tensorboard import TensorBoard
from pyro_bvae.training.total_correlation import TotalCorrelation

__all__ = [
    "IWELBO",
    "ConditionedBeta",
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
    "Ranks",
    "RateController",
    "Remark",
    "Replica",
    "Schedule",
    "Sweep",
    "TargetRate",
    "TensorBoard",
    "Terms",
    "TotalCorrelation",
    "TraceTerms",
    "TrainingError",
    "at_beta",
    "check_after",
    "check_before",
    "check_during",
    "checkpoint_path",
    "fit",
    "fit_ex_post_prior",
    "load_checkpoint",
    "load_weights",
    "process_group",
    "reparametrize",
    "save_checkpoint",
    "start_at_mean",
    "sweep",
    "with_beta",
]
