"""Run directories: configuration, metrics and checkpoints on disk, trained and measured."""

from pyro_bvae.runs._annotate import annotate
from pyro_bvae.runs._evaluate import choose_data, evaluate_run
from pyro_bvae.runs._sweep import train_sweep
from pyro_bvae.runs._train import check_device, check_splits, train, untrained
from pyro_bvae.runs.build import Shape, build_vae, check_config, load_data
from pyro_bvae.runs.config import TrainConfig, read_config, write_config
from pyro_bvae.runs.directory import Run, load
from pyro_bvae.runs.snapshots import Snapshots

__all__ = [
    "Run",
    "Shape",
    "Snapshots",
    "TrainConfig",
    "annotate",
    "build_vae",
    "check_config",
    "check_device",
    "check_splits",
    "choose_data",
    "evaluate_run",
    "load",
    "load_data",
    "read_config",
    "train",
    "train_sweep",
    "untrained",
    "write_config",
]
