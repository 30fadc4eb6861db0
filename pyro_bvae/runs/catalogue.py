"""The parts by name: the one place where what a command line spells becomes a module.

A new prior, likelihood, posterior or network is one more line in its table.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn

from pyro_bvae.core.context import Context
from pyro_bvae.core.errors import InputError, unknown_name
from pyro_bvae.datasets import Dataset, LazyDataset
from pyro_bvae.likelihoods import (
    AutoregressiveBernoulliLikelihood,
    BernoulliLikelihood,
    CategoricalLikelihood,
    ContinuousBernoulliLikelihood,
    DecoderDispersion,
    DecoderScale,
    DiscretizedLogisticLikelihood,
    ExpRate,
    LaplaceLikelihood,
    LearnedDispersion,
    LearnedScale,
    NegativeBinomialLikelihood,
    NormalLikelihood,
    PoissonLikelihood,
    SoftmaxRate,
    StudentTLikelihood,
    ZeroInflatedNegativeBinomialLikelihood,
)
from pyro_bvae.networks import MLP, ConvolutionalDecoder, ConvolutionalEncoder, ResidualMLP
from pyro_bvae.posteriors import (
    FlowPosterior,
    FullRankPosterior,
    LowRankPosterior,
    MixturePosterior,
    NormalPosterior,
)
from pyro_bvae.priors import (
    FlowPrior,
    LaplacePrior,
    LearnedNormalPrior,
    MixturePrior,
    NormalPrior,
    StudentTPrior,
    VampPrior,
    ZukoPrior,
)

if TYPE_CHECKING:
    from pyro_bvae.runs.config import TrainConfig

_Part = TypeVar("_Part")
# What a prior of so many components has by default.
_MIXTURE_COMPONENTS, _PSEUDO_INPUTS = 10, 500


@dataclass(frozen=True)
class Shape:
    """What parts need to know of the data.

    Attributes:
        num_features: D.
        image_shape: ``(C, H, W)`` where the features are pixels.
        num_covariates: C, the number of covariates of each datum.
        has_size_factor: Whether each datum has a size factor.
        num_categories: One more than the largest value, which likelihoods of categories need.
        examples: Some of the data ``(K, D)``, as many as are asked for, with their contexts; for
            pseudo-inputs.
        missing: Whether entries may be missing.
    """

    num_features: int
    image_shape: tuple[int, int, int] | None = None
    num_covariates: int = 0
    has_size_factor: bool = False
    num_categories: int = 2
    examples: Callable[[int], tuple[Tensor, Context | None]] | None = None
    missing: bool = False

    @classmethod
    def of(cls, data: Dataset | LazyDataset) -> Shape:
        """Return the shape of a data set."""
        size_factor, covariates = data.context or Context()

        def examples(count: int) -> tuple[Tensor, Context | None]:
            rows = torch.randperm(len(data))[:count]
            some = data[rows] if isinstance(data, Dataset) else data[rows].dense()
            return torch.nan_to_num(some.x), some.context

        return cls(
            data.num_features,
            data.image_shape,
            0 if covariates is None else covariates.shape[1],
            size_factor is not None,
            int(torch.nan_to_num(data.x).max()) + 1 if isinstance(data, Dataset) else 2,
            examples,
            getattr(data, "missing", False),
        )


def pick(kind: str, name: str, table: Mapping[str, _Part]) -> _Part:
    """Return an entry of a table by its name.

    Raises:
        InputError: for an unknown name, with the nearest one.
    """
    if name not in table:
        raise unknown_name(kind, name, table)
    return table[name]


# -- networks
# ---------------------------------------------------------------------------------------------------------


def _image_shape(shape: Shape) -> tuple[int, int, int]:
    if shape.image_shape is None:
        raise InputError(
            "network 'convolutional' needs images, but this data set's features are no pixels: use mlp"
        )
    return shape.image_shape


# Name -> (encoder network with so many outputs, decoder network with so many parameters a feature).
NETWORKS: dict[str, tuple[Callable[..., nn.Module], Callable[..., nn.Module]]] = {
    "mlp": (
        lambda config, shape, outputs: MLP(
            shape.num_features + shape.num_covariates, outputs, config.hidden
        ),
        lambda config, shape, per_feature: MLP(
            config.latent_dim + shape.num_covariates,
            per_feature * shape.num_features,
            config.hidden[::-1],
        ),
    ),
    "residual": (
        lambda config, shape, outputs: ResidualMLP(
            shape.num_features + shape.num_covariates, outputs, config.hidden[0], len(config.hidden)
        ),
        lambda config, shape, per_feature: ResidualMLP(
            config.latent_dim + shape.num_covariates,
            per_feature * shape.num_features,
            config.hidden[-1],
            len(config.hidden),
        ),
    ),
    "convolutional": (
        lambda config, shape, outputs: ConvolutionalEncoder(
            _image_shape(shape), outputs, config.hidden[-1], extra_features=shape.num_covariates
        ),
        lambda config, shape, per_feature: ConvolutionalDecoder(
            config.latent_dim + shape.num_covariates,
            _image_shape(shape),
            per_feature,
            config.hidden[-1],
        ),
    ),
}

# -- likelihoods
# ------------------------------------------------------------------------------------------------------


def _learned(config: TrainConfig, num_features: int | None = None) -> LearnedScale:
    return LearnedScale(num_features, initial=config.likelihood_scale)


def _rate(shape: Shape) -> SoftmaxRate | ExpRate:
    return SoftmaxRate() if shape.has_size_factor else ExpRate()


DISPERSIONS: dict[str, Callable[[Shape], LearnedDispersion | DecoderDispersion]] = {
    "feature": lambda shape: LearnedDispersion(shape.num_features),
    "feature-batch": lambda shape: LearnedDispersion(
        shape.num_features, shape.num_covariates or None
    ),
    "shared": lambda shape: LearnedDispersion(),
    "decoder": lambda shape: DecoderDispersion(),
}

LIKELIHOODS: dict[str, Callable[[TrainConfig, Shape], nn.Module]] = {
    "bernoulli": lambda config, shape: BernoulliLikelihood(),
    "autoregressive-bernoulli": lambda config, shape: AutoregressiveBernoulliLikelihood(
        shape.num_features
    ),
    "continuous-bernoulli": lambda config, shape: ContinuousBernoulliLikelihood(),
    "normal": lambda config, shape: NormalLikelihood(_learned(config)),
    "normal-per-feature": lambda config, shape: NormalLikelihood(
        _learned(config, shape.num_features)
    ),
    "normal-fixed": lambda config, shape: NormalLikelihood(config.likelihood_scale),
    "normal-decoder": lambda config, shape: NormalLikelihood(DecoderScale()),
    "laplace": lambda config, shape: LaplaceLikelihood(_learned(config)),
    "student-t": lambda config, shape: StudentTLikelihood(_learned(config)),
    "discretized-logistic": lambda config, shape: DiscretizedLogisticLikelihood(),
    "categorical": lambda config, shape: CategoricalLikelihood(max(2, shape.num_categories)),
    "poisson": lambda config, shape: PoissonLikelihood(_rate(shape)),
    "negative-binomial": lambda config, shape: NegativeBinomialLikelihood(
        dispersion=pick("dispersion", config.dispersion, DISPERSIONS)(shape), rate=_rate(shape)
    ),
    "zero-inflated-negative-binomial": lambda config, shape: ZeroInflatedNegativeBinomialLikelihood(
        dispersion=pick("dispersion", config.dispersion, DISPERSIONS)(shape), rate=_rate(shape)
    ),
}
#: Likelihoods of counts, whose encoders see the logarithm of one plus the count.
COUNTS = frozenset({"poisson", "negative-binomial", "zero-inflated-negative-binomial"})

# -- posteriors and priors
# --------------------------------------------------------------------------------------------

POSTERIORS: dict[str, Any] = {
    "normal": NormalPosterior,
    "full-rank": FullRankPosterior,
    "low-rank": LowRankPosterior,
    "flow": FlowPosterior,
    "mixture": MixturePosterior,
}


def _vamp(config: TrainConfig, shape: Shape, encoder: nn.Module, support: Any) -> nn.Module:
    if shape.examples is None:
        raise InputError("prior 'vamp' starts at some of the data, and none are given")
    inputs, context = shape.examples(config.prior_components or _PSEUDO_INPUTS)
    # The encoders here look at no size factor, so that of a pseudo-input would never be learned.
    covariates = (
        None
        if context is None or context.covariates is None
        else context._replace(size_factor=None)
    )
    return VampPrior(encoder, inputs, support=support, context=covariates)


# Name -> prior, given configuration, shape, encoder and the support of the likelihood.
PRIORS: dict[str, Callable[[TrainConfig, Shape, nn.Module, Any], nn.Module]] = {
    "normal": lambda config, *_: NormalPrior(config.latent_dim),
    "learned-normal": lambda config, *_: LearnedNormalPrior(config.latent_dim),
    "laplace": lambda config, *_: LaplacePrior(config.latent_dim),
    "student-t": lambda config, *_: StudentTPrior(config.latent_dim),
    "mixture": lambda config, *_: MixturePrior(
        config.latent_dim, config.prior_components or _MIXTURE_COMPONENTS
    ),
    "vamp": _vamp,
    "flow": lambda config, *_: FlowPrior(config.latent_dim),
    "zuko": lambda config, *_: ZukoPrior.neural_spline(config.latent_dim),
}

TABLES: dict[str, Mapping[str, Any]] = {
    "prior": PRIORS,
    "likelihood": LIKELIHOODS,
    "posterior": POSTERIORS,
    "network": NETWORKS,
    "dispersion": DISPERSIONS,
}
