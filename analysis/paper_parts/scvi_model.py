"""scvi-tools on the cells of `count_presets.py`, and its model as a Pyro program."""

from __future__ import annotations

import importlib.util
import logging
import warnings
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_bvae.datasets import Dataset

LATENTS, HIDDEN, BATCH, EPOCHS = 10, 128, 128, 100
#: Training options by name; "tuned" are those of the anchors.
OPTIONS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "tuned": {"plan_kwargs": {"lr": 5e-3, "n_epochs_kl_warmup": 20}},
}
INSTALL = "pip install scvi-tools"


def is_here() -> bool:
    """Return whether scvi-tools can be imported."""
    return importlib.util.find_spec("scvi") is not None


def version() -> str:
    """Return its version."""
    import scvi

    return str(scvi.__version__)


def anndata_of(x: Tensor) -> Any:
    """Return cells as scvi-tools takes them."""
    import anndata
    import scvi

    adata = anndata.AnnData(x.numpy())
    scvi.model.SCVI.setup_anndata(adata)
    return adata


def trained(data: Dataset, tuning: str, epochs: int = EPOCHS, seed: int = 0) -> Any:
    """Return a model with the negative binomial, trained by its own trainer."""
    import scvi

    scvi.settings.verbosity = logging.ERROR
    scvi.settings.seed = seed
    for name in ("lightning.pytorch", "pytorch_lightning"):
        logging.getLogger(name).setLevel(logging.ERROR)
    model = scvi.model.SCVI(
        anndata_of(data.x), n_latent=LATENTS, n_hidden=HIDDEN, n_layers=1, dropout_rate=0.0,
        gene_likelihood="nb", use_observed_lib_size=True,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.train(
            max_epochs=epochs, train_size=1.0, batch_size=BATCH, accelerator="cpu",
            enable_progress_bar=False, **OPTIONS[tuning],
        )  # fmt: skip
    model.module.eval()
    return model


def own_evidence(model: Any, held_out: Dataset, num_samples: int) -> Tensor:
    """Return the log-likelihood of each cell by scvi-tools itself."""
    with torch.no_grad():
        values = model.get_marginal_ll(
            anndata_of(held_out.x), n_mc_samples=num_samples, n_mc_samples_per_pass=20,
            return_mean=False,
        )  # fmt: skip
    return torch.as_tensor(values).flatten().double()


class Program(NamedTuple):
    """A trained model of scvi-tools as a model and a guide of Pyro."""

    module: Any

    def model(self, x: Tensor) -> None:
        """Draw latents from the prior and counts from scvi's decoder, given the cell's total."""
        library = x.sum(-1, keepdim=True).log()
        batch = torch.zeros(len(x), 1)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(LATENTS), 1.0).to_event(1))
            px = self.module.generative(z=z, library=library, batch_index=batch)["px"]
            logits = (px.mu + 1e-8).log() - (px.theta + 1e-8).log()
            counts = dist.NegativeBinomial(px.theta, logits=logits, validate_args=False)
            pyro.sample("x", counts.to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        """Draw latents from scvi's encoder."""
        qz = self.module.inference(x, torch.zeros(len(x), 1))["qz"]
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(qz.loc, qz.scale).to_event(1))
