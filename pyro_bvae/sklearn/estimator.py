"""A β-VAE with the methods of scikit-learn's density estimators and transformers."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils import check_array, check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor

from pyro_bvae.core.errors import check_count
from pyro_bvae.datasets import Dataset
from pyro_bvae.runs import Shape, TrainConfig, build_vae
from pyro_bvae.runs.catalogue import REAL
from pyro_bvae.sklearn.scores import score_rows
from pyro_bvae.training import fit

# Share of rows with untrusted evidence from which a warning says so.
_MANY_UNTRUSTED = 0.1
# Steps of a training by default, and the fewest and most epochs for them.
_STEPS, _EPOCHS = 2000, (20, 1000)

Array = NDArray[np.float64]


@dataclass(eq=False, repr=False)
class BetaVAEEstimator(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    r"""A β-variational autoencoder as a density estimator and transformer of scikit-learn.

    ``transform`` gives the posterior means of the latents, ``score_samples`` the evidence
    :math:`\log p(x)` of each row in nats, estimated by importance sampling, and ``score`` its mean:
    the number by which ``GridSearchCV`` compares models. All of them are functions of the row
    alone: the same noise is drawn for every row, so neither order nor company of the rows changes
    a result. Options have the names and meanings of :class:`~pyro_bvae.runs.TrainConfig`; numbers
    are float64 throughout, and the model is a :class:`~pyro_bvae.BetaVAE` for all the rest of the
    package (``evidence(estimator.vae_, x)``).

    Args:
        latent_dim: L, the number of latents.
        prior: Prior p(z), by its name on the command line.
        prior_components: Components of a mixture prior, pseudo-inputs of vamp.
        likelihood: Likelihood p(x|z). The default is for tables of real numbers: normal with a
            learned noise for each feature, so that columns of any unit and noise have a proper
            density, and the model with one affine layer is factor analysis. Counts, binary or
            grey features have their own.
        likelihood_scale: Where learned scales start.
        posterior: Guide q(z|x).
        network: ``mlp``, ``residual`` or ``linear``.
        hidden: Widths of the hidden layers.
        standardize: Whether the networks see features of mean 0 and standard deviation 1; by
            default where the likelihood is one of real numbers. Scores and outputs are in the
            units of X in any case.
        missing: ``nan`` takes NaN for entries that were not observed: the evidence is that of the
            others.
        beta: Weight of the KL in the objective.
        warmup_epochs: Epochs of the linear warm-up of β, a fifth of all by default.
        epochs: Passes over the data; by default as many as make 2,000 steps, from 20 to 1,000.
        batch_size: Data in a step.
        learning_rate: Highest learning rate of the one-cycle schedule.
        num_samples: Importance samples for each row.
        random_state: Seed of weights, order, noise and samples.
        verbose: Show progress bars.

    Attributes:
        vae_: The trained model.
        history_: Metrics of each epoch.
        seed_: The seed that ``random_state`` gave.
        n_features_in_: D.
        feature_names_in_: Names of the columns, where X is a table with names.

    Raises:
        InputError: a ``ValueError``, from ``fit``, for options that make no sense.
    """

    latent_dim: int = 5
    prior: str = "normal"
    prior_components: int | None = None
    likelihood: str = "normal-per-feature"
    likelihood_scale: float = 1.0
    posterior: str = "normal"
    network: str = "mlp"
    hidden: tuple[int, ...] = (100, 100)
    standardize: bool | None = None
    missing: str = "none"
    beta: float = 1.0
    warmup_epochs: float | None = None
    epochs: int | None = None
    batch_size: int = 128
    learning_rate: float = 3e-3
    num_samples: int = 500
    random_state: int | np.random.RandomState | None = None
    verbose: bool = False

    def fit(self, X: Any, y: Any = None) -> BetaVAEEstimator:
        """Train the model.

        Args:
            X: The data, ``(N, D)``.
            y: Ignored.
        """
        x = self._validated(X, reset=True)
        check_count("num_samples", _plain(self.num_samples))
        self.seed_ = int(check_random_state(self.random_state).randint(2**31 - 1))
        config = self._config(len(x))
        data = Dataset(x, missing=self.missing == "nan")
        vae = build_vae(config, Shape.of(data)).double()
        vae.check_data(x)
        settings = {**config.training.settings(), "compile": False}
        self.history_ = fit(vae, data, **settings, progress=self.verbose)
        self.vae_ = vae.eval()
        self._n_features_out = config.model.latent_dim
        return self

    def transform(self, X: Any) -> Array:
        """Return the posterior means of the latents, ``(N, L)``."""
        return _array(self._fitted().encode(self._validated(X)))

    def inverse_transform(self, X: Any) -> Array:
        """Return the means of p(x|z) at latents ``(N, L)``, in the data's units, ``(N, D)``."""
        vae = self._fitted()
        z = check_array(X, dtype=np.float64)
        if z.shape[1] != vae.latent_dim:
            raise ValueError(f"X has {z.shape[1]} latents, but the model has {vae.latent_dim}")
        return _array(vae.decode(torch.from_numpy(z)))

    def score_samples(self, X: Any) -> Array:
        """Return the evidence of each row in nats, ``(N,)``.

        Where more than a tenth of the rows have an evidence that cannot be trusted, a warning says
        so: more ``num_samples`` help, or ``pyro_bvae.evidence`` with ``method="auto"``.
        """
        vae = self._fitted()
        x = self._validated(X)
        vae.check_data(x)
        scores = score_rows(vae, x, _plain(self.num_samples), self.seed_)
        doubtful = int((~scores.reliable).sum())
        if doubtful > _MANY_UNTRUSTED * len(x):
            warnings.warn(
                f"the evidence of {doubtful} of {len(x)} rows cannot be trusted with num_samples ="
                f" {self.num_samples}; take more, or pyro_bvae.evidence(estimator.vae_, X,"
                ' method="auto")',
                stacklevel=2,
            )
        return _array(scores.evidence)

    def score(self, X: Any, y: Any = None) -> float:
        """Return the mean evidence of the rows in nats; ``y`` is ignored."""
        return float(self.score_samples(X).mean())

    def sample(self, n_samples: int = 1, random_state: Any = None) -> Array:
        """Draw data from the model, noise included, ``(n_samples, D)``, in the units of the data.

        Args:
            n_samples: The number of data.
            random_state: Seed of the draws; by default that of the fit.
        """
        vae = self._fitted()
        seed = self.seed_
        if random_state is not None:
            seed = int(check_random_state(random_state).randint(2**31 - 1))
        return _array(vae.generate(n_samples, noise=True, seed=seed))

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = self.missing == "nan"
        return tags

    def _config(self, num_data: int) -> TrainConfig:
        """Return the options as a configuration; numbers may be NumPy's, ``hidden`` a list."""
        options = {name: _plain(value) for name, value in self.get_params(deep=False).items()}
        for name in ("num_samples", "random_state", "verbose"):
            del options[name]
        if options["standardize"] is None:
            options["standardize"] = options["likelihood"] in REAL
        if options["epochs"] is None:
            steps = -(-num_data // max(1, int(self.batch_size)))
            options["epochs"] = min(max(_EPOCHS[0], -(-_STEPS // steps)), _EPOCHS[1])
        return TrainConfig(**options, seed=self.seed_)

    def _validated(self, X: Any, *, reset: bool = False) -> Tensor:
        """Return rows as scikit-learn checks them: finite, of the features of the fit."""
        x = validate_data(
            self,
            X,
            reset=reset,
            dtype=np.float64,
            ensure_all_finite="allow-nan" if self.missing == "nan" else True,
            ensure_min_samples=2 if reset else 1,
        )
        return torch.from_numpy(np.array(x))

    def _fitted(self) -> Any:
        check_is_fitted(self, "vae_")
        return self.vae_


def _plain(value: Any) -> Any:
    if isinstance(value, list | tuple | np.ndarray):
        return tuple(_plain(entry) for entry in value)
    return value.item() if isinstance(value, np.generic) else value


def _array(tensor: Tensor) -> Array:
    return tensor.numpy().astype(np.float64)
