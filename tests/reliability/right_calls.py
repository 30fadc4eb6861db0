"""One right call of each public function, on small models and data."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pyro_bvae import BetaVAE, Decoder, evaluation, fit, runs, sweep
from pyro_bvae.datasets import Dataset, Splits
from pyro_bvae.evaluation.information.holes import HoleMass
from pyro_bvae.evaluation.inversion import (
    InverseProblem,
    Mask,
    NormalNoise,
    PriorStart,
    VariationalMethod,
)
from pyro_bvae.evaluation.marginal import AnnealingSettings
from pyro_bvae.evaluation.plan import Plan
from pyro_bvae.evaluation.refit import RefitSettings
from pyro_bvae.likelihoods import NegativeBinomialLikelihood, NormalLikelihood
from pyro_bvae.networks import MLP
from pyro_bvae.posteriors import NormalPosterior
from pyro_bvae.priors import MixturePrior, NormalPrior
from pyro_bvae.runs import Shape, TrainConfig
from pyro_bvae.training import History

N, D, L = 12, 4, 2
SHAPE = (1, 2, 2)
REFITS = RefitSettings(max_rounds=2, steps_per_round=5, num_plateaus=1, num_starts=1)
CHAINS = AnnealingSettings(
    num_temperatures=5, num_chains=3, leapfrog_steps=1, pilot_chains=2, pilot_temperatures=5
)
CONFIG = TrainConfig(
    dataset="linear-gaussian",
    likelihood="normal",
    hidden=(4,),
    latent_dim=2,
    epochs=1,
    warmup_epochs=0.0,
    batch_size=2000,
)


def make_vae(seed: int = 0, covariates: int = 0, likelihood: Any = None) -> BetaVAE:
    """Return a small model whose weights are a function of the seed."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        decoder = Decoder(
            MLP(L + covariates, D, (6,)),
            likelihood or NormalLikelihood(),
            num_covariates=covariates,
        )
        encoder = NormalPosterior(MLP(D + covariates, 2 * L, (6,)), num_covariates=covariates)
        return BetaVAE(NormalPrior(L), decoder, encoder)


def make_prior() -> MixturePrior:
    """Return a prior whose weights are always the same."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return MixturePrior(L, 2)


class Workshop:
    """Models, data and results for the calls, each made once.

    Args:
        folder: Where files go.
    """

    methods = ("encode", "decode", "reconstruct", "impute", "generate", "posterior")

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        os.chdir(folder)  # wrong paths are relative
        self.results: dict[str, Any] = {}
        self.vae = make_vae()
        generator = torch.Generator().manual_seed(1)
        self.x = torch.randn(N, D, generator=generator)
        self.other = torch.randn(N, D, generator=generator)
        self.factors = torch.stack([torch.arange(N) % 2, torch.arange(N) // 2 % 2], 1)
        names = ("a", "b")
        self.data = Dataset(
            self.x, labels=self.factors[:, 0], factors=self.factors, factor_names=names
        )
        self.codes = torch.randn(60, 2, generator=generator).double()
        self.known = torch.arange(60)[:, None].repeat(1, 2) % torch.tensor([2, 3])
        self.z = torch.randn(N, L, generator=generator)
        self.counts = torch.poisson(torch.full((N, D), 3.0), generator=generator)

    @property
    def pair(self) -> tuple[Any, ...]:
        """Model, guide and data."""
        return self.vae.model, self.vae.guide, self.x

    @cached_property
    def run(self) -> Path:
        """A run directory."""
        runs.train(CONFIG, self.folder / "run", progress=False)
        runs.evaluate_run(self.folder / "run", num_samples=3, num_data=5, progress=False)
        return self.folder / "run"

    @cached_property
    def counted(self) -> Path:
        """A run of cells."""
        config = CONFIG.with_options(
            dataset="h5ad", path=str(self.h5ad), likelihood="poisson", batch_size=8
        )
        runs.train(config, self.folder / "counted", progress=False)
        return self.folder / "counted"

    @cached_property
    def twin(self) -> Path:
        """A copy of the run directory."""
        return Path(shutil.copytree(self.run, self.folder / "twin"))

    @cached_property
    def swept(self) -> Path:
        """A directory of runs."""
        runs.train_sweep(CONFIG, self.folder / "swept", betas=(1.0,), progress=False)
        return self.folder / "swept"

    @cached_property
    def sweep(self) -> Any:
        """A sweep of two seeds."""
        return sweep(
            make_vae, self.x, betas=[1.0], seeds=[0, 1], epochs=1, validation=self.data,
            progress=False,
        )  # fmt: skip

    @cached_property
    def gaps(self) -> Any:
        """Inference gaps."""
        return evaluation.inference_gaps(*self.pair[:2], self.x[:2], num_samples=5, settings=REFITS)

    @cached_property
    def holes(self) -> HoleMass:
        """A hole mass."""
        return evaluation.hole_mass(*self.pair, **self.held_out)

    @property
    def held_out(self) -> dict[str, Any]:
        """Options of a quick hole mass."""
        return {"held_out": self.other, "num_samples": 20, "share": 0.2, "num_permutations": 5}

    @cached_property
    def adata(self) -> Any:
        """Cells."""
        import anndata

        cells = anndata.AnnData(np.tile(self.counts.numpy(), (3, 1)))
        cells.obs["kind"] = [str(i % 2) for i in range(cells.n_obs)]
        return cells

    @cached_property
    def h5ad(self) -> Path:
        """A file of cells."""
        self.adata.copy().write_h5ad(self.folder / "cells.h5ad")
        return self.folder / "cells.h5ad"

    @cached_property
    def csv(self) -> Path:
        """A table of numbers."""
        lines = [",".join("abcd"), *(",".join(map(str, row)) for row in self.x.tolist())]
        (self.folder / "table.csv").write_text("\n".join(lines), encoding="utf-8")
        return self.folder / "table.csv"

    @property
    def frame(self) -> Any:
        """A table in memory."""
        import pandas as pd

        columns = {name: self.x[:, place].numpy() for place, name in enumerate("abcd")}
        kinds = ["u", "v"] * (N // 2)
        return pd.DataFrame({**columns, "kind": kinds, "cell": [f"c{i}" for i in range(N)]})

    @cached_property
    def npz(self) -> Path:
        """A file of the form of dSprites."""
        classes = np.tile(np.arange(30)[:, None] % 2, (1, 6))
        images = np.tile(np.arange(30)[:, None, None] % 2, (1, 2, 2)).astype(np.uint8)
        parts = {"imgs": images, "latents_classes": classes, "latents_values": classes + 0.5}
        np.savez(self.folder / "dsprites.npz", **parts)
        return self.folder / "dsprites.npz"

    @property
    def splits(self) -> Splits:
        """Three parts."""
        return Splits(self.data, self.data, self.data, "all")

    @property
    def problem(self) -> InverseProblem:
        """An inversion."""
        return InverseProblem(self.vae.prior, self.vae.decoder, self.operator, NormalNoise(1.0))

    @property
    def operator(self) -> Mask:
        """What is measured."""
        return Mask(torch.tensor([True, True, False, True]))

    @cached_property
    def history(self) -> History:
        """The metrics of a fit."""
        return fit(make_vae(), self.x, epochs=2, progress=False)

    @cached_property
    def cells_vae(self) -> BetaVAE:
        """A model of cells."""
        return make_vae(likelihood=NegativeBinomialLikelihood(D))

    @cached_property
    def cell_format(self) -> Any:
        """How cells are read."""
        from pyro_bvae.datasets import CellFormat

        return CellFormat(genes=tuple(self.adata.var_names), size_factor=False)

    def result(self, name: str) -> Any:
        """Return the result of the right call of another function."""
        from tests.reliability.doors import FUNCTIONS

        if name not in self.results:
            args, kwargs = RIGHT[name](self)
            self.results[name] = FUNCTIONS[name](*args, **kwargs)
        return self.results[name]


Call = Callable[[Workshop], tuple[tuple[Any, ...], dict[str, Any]]]


def of(*args: Any, **kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return arguments as they are."""
    return args, kwargs


FEW: dict[str, Any] = {"num_samples": 5, "seed": 1, "progress": False}
BOOT: dict[str, Any] = {"num_bootstrap": 2, "seed": 1, "factor_names": ("a", "b")}
TRAIN: dict[str, Any] = {"epochs": 1, "batch_size": 6, "progress": False, "seed": 1}
SPLIT: dict[str, Any] = {"validation": 0.25, "test": 0.25, "seed": 1}
QUICK = VariationalMethod(num_draws=5, num_steps=2, num_particles=2)


_PARTS = ("variational", "approximation", "beta", "amortization")
GAPS = {name: {"value": 1.0, "monte_carlo_error": 0.1} for name in _PARTS}
RIGHT: dict[str, Call] = {
    # models
    "improve_guide": lambda w: of(
        make_vae(), w.x, settings=REFITS, num_data=2, num_samples=5, epochs=1, progress=False
    ),
    "improve": lambda w: of(
        w.run,
        w.folder / "improved",
        num_data=2,
        num_samples=5,
        epochs=1,
        overwrite=True,
        progress=False,
    ),
    "before_and_after": lambda w: of({"before": GAPS, "after": GAPS}),
    "is_sweep": lambda w: of(w.swept),
    "runs.load": lambda w: of(w.run, checkpoint="best", device="cpu"),
    "vae.encode": lambda w: of(w.vae, w.x),
    "vae.decode": lambda w: of(w.vae, w.z),
    "vae.reconstruct": lambda w: of(w.vae, w.x),
    "vae.impute": lambda w: of(w.vae, w.x),
    "vae.posterior": lambda w: of(w.vae, w.x),
    "vae.generate": lambda w: of(w.vae, 3, noise=True, temperature=0.5, seed=2),
    # estimates
    "elbo": lambda w: of(*w.pair, **FEW),
    "evidence": lambda w: of(*w.pair, compile=False, **FEW),
    "elbo_parts": lambda w: of(*w.pair, **FEW),
    "kl_per_dimension": lambda w: of(*w.pair, **FEW),
    "annealed_evidence": lambda w: of(*w.pair, settings=CHAINS, start="prior", seed=1),
    "bidirectional_evidence": lambda w: of(*w.pair, settings=CHAINS, start="guide", seed=1),
    "inference_gaps": lambda w: of(
        w.vae.model,
        w.vae.guide,
        w.x[:1],
        settings=REFITS,
        training_beta=2.0,
        train=(w.other[:1],),
        **FEW,
    ),
    "evaluate": lambda w: of(w.vae.model, w.vae.guide, w.x[:1], training_beta=1.0, **FEW),
    "evaluate_within": lambda w: of(
        w.vae.model, w.vae.guide, w.x[:2], within=Plan(2, 5), training_beta=1.0, seed=1
    ),
    "decompose_kl": lambda w: of(*w.pair, **FEW),
    "hole_mass": lambda w: of(*w.pair, seed=1, **w.held_out),
    "log_aggregate": lambda w: of(*w.pair, points=w.z, seed=1),
    "read_latents": lambda w: of(
        *w.pair,
        labels=w.data.labels,
        factors=w.factors,
        label_names=("a", "b"),
        factor_names=("c", "d"),
        **FEW,
    ),
    "rate_distortion": lambda w: of([(1.0, w.vae)], w.x, **FEW),
    "rate_distortion_curve": lambda w: of(*w.pair, betas=(1.0,), settings=CHAINS, seed=1),
    "audit": lambda w: of(*w.pair),
    "count_checks": lambda w: of(*w.pair, num_copies=2, seed=1),
    "predictive_check": lambda w: of(*w.pair, num_copies=19, statistics=("mean",), seed=1),
    "corrected_expression": lambda w: of(
        make_vae(likelihood=NegativeBinomialLikelihood(D)), w.counts, **FEW
    ),
    "differential_expression": lambda w: of(w.cells_vae, w.counts, torch.arange(N) % 2, **FEW),
    "stratified_sample": lambda w: of(torch.arange(40) % 3, 12, seed=1),
    "calibrate_guide": lambda w: of(*w.pair, num_simulations=20, num_draws=19, seed=1),
    "uniformity_p_value": lambda w: of(torch.arange(12), 19),
    "rank_bands": lambda w: of(12, 19, 0.9),
    "diagnose": lambda w: of(w.vae, w.x, beta=1.0, num_data=10, seed=1),
    "to_arviz": lambda w: of(*w.pair, num_draws=3, num_predictive=2, seed=1),
    "write_arviz": lambda w: of(w.result("to_arviz"), w.folder / "data.nc"),
    "join_estimates": lambda w: of([w.gaps.evidence, w.gaps.evidence]),
    "join_evaluations": lambda w: of([w.result("evaluate")], None),
    "verify": lambda w: of("cpu", torch.float32, latents=(), seed=1),
    "energy_test": lambda w: of(
        w.z, w.z + 1, num_permutations=5, generator=torch.Generator().manual_seed(1)
    ),
    "two_sample_test": lambda w: of(w.x, w.other + 1, seed=1),
    "sample_quality": lambda w: of(w.x, w.other, neighbours=2, num_splits=2, seed=1),
    "compare": lambda w: of(
        {"a": w.vae, "b": make_vae(1)}, w.x, num_data=10, method="importance", **FEW
    ),
    "compare_programs": lambda w: of(
        {"a": w.pair[:2], "b": (make_vae(1).model, make_vae(1).guide)}, w.x, level=0.9, **FEW
    ),
    "stacking_weights": lambda w: of(w.x.T),
    # geometry, inversion
    "decoder_jacobian": lambda w: of(w.vae, w.z[:3]),
    "decoder_geometry": lambda w: of(w.vae, w.z[:3], num_rotations=3, seed=1),
    "geodesic": lambda w: of(
        w.vae, w.z[0], w.z[1], num_terms=2, num_points=129, max_iterations=3, tolerance=1e-2
    ),
    "invert": lambda w: of(w.vae, w.x[0, :3], w.operator, 1.0, method=QUICK, seed=1),
    "calibrate": lambda w: of(
        w.vae, w.operator, NormalNoise(1.0), method=QUICK, num_problems=2, num_ranked=3, seed=1
    ),
    "start_chains": lambda w: of(w.vae, w.problem, w.x[:, :3][:2], None, [PriorStart()], 2, 1),
    # disentanglement
    "disentanglement": lambda w: of(
        w.vae, w.data, metrics=(evaluation.disentanglement.sap,), num_data=12, num_nulls=1, seed=1
    ),
    "score_codes": lambda w: of(
        w.codes,
        w.known,
        metrics=(evaluation.disentanglement.sap,),
        num_nulls=1,
        seed=1,
        factor_names=("a", "b"),
    ),
    "beta_vae_score": lambda w: of(w.codes, w.known, num_groups=20, group_size=4, **BOOT),
    "factor_vae_score": lambda w: of(w.codes, w.known, num_groups=20, group_size=4, **BOOT),
    "mutual_information_gap": lambda w: of(w.codes, w.known, bins=5, **BOOT),
    "mutual_information": lambda w: of(w.codes, w.known, bins=5, factor_names=("a", "b")),
    "modularity": lambda w: of(w.codes, w.known, bins=5, **BOOT),
    "sap": lambda w: of(w.codes, w.known, **BOOT),
    "explicitness": lambda w: of(w.codes, w.known, **BOOT),
    "dci": lambda w: of(w.codes, w.known, **{**BOOT, "num_bootstrap": 0}),
    "rank_correlation": lambda w: of(w.codes.numpy(), w.codes.numpy()),
    "unsupervised_disentanglement_ranking": lambda w: of(w.sweep, w.data, num_bootstrap=2, seed=1),
    # training
    "fit": lambda w: of(make_vae(), w.x, beta=2.0, validation=w.other, learning_rate=1e-2, **TRAIN),
    "sweep": lambda w: of(
        make_vae, w.x, betas=[1.0, 2.0], seeds=(0, 1), epochs=1, batch_size=6, progress=False
    ),
    "choose": lambda w: of(
        make_vae,
        w.x,
        betas=[1.0, 2.0],
        num_samples=3,
        method="importance",
        criterion="evidence",
        epochs=1,
        batch_size=6,
        progress=False,
    ),
    "fit_ex_post_prior": lambda w: of(w.vae, w.x, make_prior(), learning_rate=1e-2, **TRAIN),
    "start_at_mean": lambda w: of(make_vae(), w.x),
    "sleep_phase": lambda w: of(make_vae(), w.x, **TRAIN),
    "with_beta": lambda w: of(w.x, 2.0),
    "at_beta": lambda w: of(make_vae(covariates=1), 2.0),
    "check_before": lambda w: of(w.vae, w.x, None, 1.0),
    "check_during": lambda w: of(
        [{"epoch": 1.0, "rate": 1.0, "beta": 1.0, "distortion": 1.0, "gradient_norm": 1.0}],
        200.0,
        latent_dim=2,
    ),
    "check_after": lambda w: of({}),
    "checkpoint_path": lambda w: of(w.folder, "best"),
    "save_checkpoint": lambda w: of(w.folder / "state.pt", {"model": {}}),
    "load_checkpoint": lambda w: of(w.run / "checkpoints" / "last.pt", "cpu"),
    "load_weights": lambda w: of(
        runs.load(w.run).vae, w.result("load_checkpoint"), w.run / "checkpoints" / "last.pt"
    ),
    # posteriors
    "refined": lambda w: of(w.vae.guide, w.vae.model, 2, learning_rate=0.1, num_points=8),
    # runs
    "load": lambda w: of(w.run, checkpoint="best", device="cpu"),
    "train": lambda w: of(CONFIG, w.folder / "trained", overwrite=True, progress=False),
    "train_sweep": lambda w: of(
        CONFIG, w.folder / "sweep", betas=(1.0,), seeds=1, overwrite=True, progress=False
    ),
    "evaluate_run": lambda w: of(w.run, num_data=5, checkpoint="best", **FEW),
    "score": lambda w: of(
        w.run, torch.zeros(3, 10), method="importance", checkpoint="best", seed=1, num_samples=3
    ),
    "calibrate_run": lambda w: of(w.run, num_simulations=20, num_data=5, checkpoint="best", seed=1),
    "compare_groups": lambda w: of(
        w.counted, "0", "1", data=None, group_column="kind", **{**FEW, "num_samples": 3}
    ),
    "saved_sweep": lambda w: of(w.swept),
    "sweep_members": lambda w: of(w.swept),
    "evaluate_sweep": lambda w: of(w.swept, num_data=5, num_samples=3, progress=False),
    "choose_data": lambda w: of(w.data, 5, 1),
    "check_config": lambda w: of(CONFIG),
    "load_data": lambda w: of(CONFIG),
    "build_vae": lambda w: of(CONFIG, Shape(D)),
    "untrained": lambda w: of(CONFIG, w.splits),
    "check_splits": lambda w: of(w.vae, w.splits),
    "check_device": lambda w: of("cpu"),
    "read_config": lambda w: of(w.run / "config.json"),
    "write_config": lambda w: of(CONFIG, w.folder / "config.json"),
    "annotate": lambda w: of(
        w.adata.copy(), w.cells_vae, w.cell_format, num_samples=3, seed=1, key="pyro_bvae"
    ),
    "export": lambda w: of(w.run, w.folder / "export", onnx=False, checkpoint="best"),
    "from_export": lambda w: of(w.result("export").folder),
    "write_report": lambda w: of(w.run, w.folder / "report.html"),
    "write_runs": lambda w: of([w.run, w.twin], w.folder / "runs.html"),
    "write_comparison": lambda w: of(w.result("compare"), w.folder / "comparison.html"),
    # latents
    "embed": lambda w: of(w.vae, w.x, scales=True),
    "reconstruct": lambda w: of(w.vae, w.x),
    "generate": lambda w: of(w.vae, 3, temperature=0.5, noise=True, seed=2),
    "interpolate": lambda w: of(w.vae, w.x[:2], w.x[2:4], num_steps=3),
    "traverse": lambda w: of(w.vae, w.x, latents=[0], values=[-1.0, 1.0], num_steps=3, datum=1),
    # data sets
    "stream_seed": lambda w: of(1, 2),
    "stream_generator": lambda w: of(1, 2, 3),
    "check_counts": lambda w: of(w.counts, "x"),
    "with_size_factor": lambda w: of(Dataset(w.counts + 1)),
    "negative_binomial_truth": lambda w: of(4, 2, dispersion=2.0, num_types=2, seed=1),
    "negative_binomial_factors": lambda w: of(20, library_size=50.0, observed_size=True, **SPLIT),
    "linear_gaussian": lambda w: of(20, noise_scale=0.5, num_features=4, latent_dim=2, **SPLIT),
    "linear_gaussian_weight": lambda w: of(4, 2, 1),
    "digits": lambda w: of(**SPLIT),
    "sprites": lambda w: of(3, 2, 2, size=32, seed=1),
    "render_sprites": lambda w: of(torch.zeros(2, 5, dtype=torch.long), 32),
    "from_factors": lambda w: of(w.x, w.factors, factor_names=("a", "b"), **SPLIT),
    "factor_classes": lambda w: of(w.factors),
    "dsprites": lambda w: of(w.npz, num_data=20, **SPLIT),
    "from_path": lambda w: of(w.csv, **SPLIT),
    "from_dataframe": lambda w: of(w.frame, label="kind", index="cell", **SPLIT),
    "from_anndata": lambda w: of(w.adata, min_cells=1, **SPLIT),
    "h5ad": lambda w: of(w.h5ad),
    "datasets.load": lambda w: of("linear-gaussian", seed=1),
    "split": lambda w: of(w.data, name="all", **SPLIT),
    "standardized": lambda w: of(w.splits),
    # figures
    "plots.count_checks": lambda w: of(w.result("count_checks")),
    "decoder_curve": lambda w: of(w.result("rate_distortion_curve"), {"a": (1.0, 2.0)}),
    "guide_calibration": lambda w: of(w.result("calibrate_guide")),
    "plots.rate_distortion": lambda w: of(w.result("rate_distortion")),
    "disentanglement_scores": lambda w: of(w.result("score_codes")),
    "comparison": lambda w: of(w.result("compare"), titled=False),
    "paired_differences": lambda w: of(w.result("compare")),
    "gap_bar": lambda w: of(w.result("evaluate").to_dict()),
    "plots.inference_gaps": lambda w: of(w.gaps),
    "per_datum_gaps": lambda w: of(w.gaps),
    "plots.decoder_geometry": lambda w: of(w.result("decoder_geometry")),
    "plots.geodesic": lambda w: of(w.result("geodesic"), SHAPE, 3),
    "log_densities": lambda w: of(w.holes),
    "hole_samples": lambda w: of(w.holes, w.x[:3], w.x[3:6], SHAPE),
    "kl_parts": lambda w: of(w.result("decompose_kl")),
    "latent_reading": lambda w: of(w.result("read_latents")),
    "inversions": lambda w: of(
        [w.result("invert")], w.x[:1], w.x[:1], SHAPE, rows=("a",), num_draws=2
    ),
    "traversal_grid": lambda w: of(w.result("traverse"), SHAPE),
    "traversal_lines": lambda w: of(w.result("traverse"), tuple("abcd")),
    "traversal_frames": lambda w: of(w.result("traverse"), SHAPE),
    "interpolation_strips": lambda w: of({"line": w.result("interpolate")}, SHAPE),
    "interpolation_lines": lambda w: of({"line": w.result("interpolate")}, tuple("abcd")),
    "write_gif": lambda w: of(w.result("traversal_frames"), w.folder / "frames.gif", 50),
    "reconstructions": lambda w: of(w.x, w.other, SHAPE, 3),
    "image_grid": lambda w: of(w.x, SHAPE, "title", 3),
    "traversals": lambda w: of(
        w.x.reshape(3, 4, D), w.x[0], w.x[0, :3], SHAPE, (0, 1, 2), around="0"
    ),
    "interpolation": lambda w: of(w.x.reshape(3, 4, D), SHAPE),
    "latent_scatter": lambda w: of(w.z, w.data.labels, w.x[0, :2], ("a", "b")),
    "kl_bars": lambda w: of(w.x[0], w.x[0] > 0, w.x[0].abs()),
    "features": lambda w: of(w.x, w.other, "title", tuple("abcd"), 3),
    "training_curves": lambda w: of(w.history),
}
