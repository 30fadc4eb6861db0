"""Training: objectives, schedules, and ``fit``."""

from pyro_bvae.training.checkpoint import (
    checkpoint_path,
    load_checkpoint,
    load_weights,
    save_checkpoint,
)
from pyro_bvae.training.checks.checklist import Remark, check_after, check_before, check_during
from pyro_bvae.training.checks.nonfinite import TrainingError
from pyro_bvae.training.distributed import Ranks, process_group
from pyro_bvae.training.ex_post import fit_ex_post_prior
from pyro_bvae.training.fitting import fit
from pyro_bvae.training.history import History
from pyro_bvae.training.initialization import start_at_mean
from pyro_bvae.training.objectives.beta_conditioned import ConditionedBeta, at_beta, with_beta
from pyro_bvae.training.objectives.capacity import ControlledCapacity
from pyro_bvae.training.objectives.free_bits import FreeBits
from pyro_bvae.training.objectives.iwelbo import IWELBO
from pyro_bvae.training.objectives.loss import GivenNoise, Loss, reparametrize
from pyro_bvae.training.objectives.terms import Objective, Terms, TraceTerms
from pyro_bvae.training.objectives.total_correlation import TotalCorrelation
from pyro_bvae.training.replicas.sweeping import Replica, Sweep, sweep
from pyro_bvae.training.schedules import (
    Constant,
    CosineWarmup,
    Cyclical,
    LinearWarmup,
    OneCycle,
    Schedule,
)
from pyro_bvae.training.target_rate import RateController, TargetRate
from pyro_bvae.training.tensorboard import TensorBoard

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
