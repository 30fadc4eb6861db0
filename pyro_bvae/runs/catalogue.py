"""The parts by name: the one place where the names of a command line become modules.

A new prior, likelihood, posterior or network is one more line in its table. The classes are
imported when an entry is built, so that the names can be listed without them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from pyro_bvae import likelihoods, networks, posteriors, priors
from pyro_bvae.core.errors import InputError, check_bytes

# The least scale of likelihoods that learn theirs, and of one that is fixed, in float32.
_FLOOR, _LEAST = 1e-2, 1e-6


class Part(NamedTuple):
    """An entry of a table: the function that builds the part, and a note for the list of names."""

    build: Callable[..., Any]
    note: str = ""


# Torch is imported when one is built.
ACTIVATIONS: dict[str, Part] = {
    "silu": Part(lambda: _torch_activation("SiLU")),
    "relu": Part(lambda: _torch_activation("ReLU")),
    "tanh": Part(lambda: _torch_activation("Tanh")),
    "gelu": Part(lambda: _torch_activation("GELU")),
}


def _torch_activation(name: str) -> Callable[[], Any]:
    """Return the class of an activation."""
    from torch import nn

    found: Callable[[], Any] = getattr(nn, name)
    return found


def _dense(family: Callable[..., Any]) -> Callable[..., Any]:
    """Return the builder of both networks from ``family(inputs, outputs, widths, activation)``."""

    def build(options: Any, shape: Any, outputs: int, *, decodes: bool) -> Any:
        if decodes:
            inputs, widths = options.latent_dim, options.hidden[::-1]
            outputs *= shape.num_features
        else:
            inputs, widths = shape.num_features, options.hidden
        activation = ACTIVATIONS[options.activation].build()
        return family(inputs + shape.num_covariates, outputs, widths, activation)

    return build


def _convolutional(options: Any, shape: Any, outputs: int, *, decodes: bool) -> Any:
    image, width, extra = shape.image_shape, options.hidden[-1], shape.num_covariates
    activation = ACTIVATIONS[options.activation].build()
    if image is None:
        raise InputError(
            "network 'convolutional' needs images, but this data set's features are no pixels:"
            " use mlp"
        )
    if image[1] % 4 or image[2] % 4:
        raise InputError(
            "network 'convolutional' needs images whose height and width are divisible by 4, got"
            f" {image[2]} x {image[1]}; 'image_size' gives those of a folder another size, and mlp"
            " takes any"
        )
    if decodes:
        return networks.ConvolutionalDecoder(
            options.latent_dim + extra, image, outputs, width, activation
        )
    return networks.ConvolutionalEncoder(image, outputs, width, extra, activation)


# Given options, shape, outputs (of a decoder, for each feature), and whether the network decodes.
NETWORKS: dict[str, Part] = {
    "mlp": Part(
        _dense(
            lambda inputs, outputs, widths, activation: networks.MLP(
                inputs, outputs, hidden=widths, activation=activation
            )
        )
    ),
    "residual": Part(
        _dense(
            lambda inputs, outputs, widths, activation: networks.ResidualMLP(
                inputs, outputs, widths[0], len(widths), activation
            )
        )
    ),
    "linear": Part(
        _dense(lambda inputs, outputs, *_: networks.MLP(inputs, outputs, hidden=())),
        "one affine layer each, whatever hidden is",
    ),
    "convolutional": Part(_convolutional, "images with sides divisible by 4"),
}

# Given the shape of the data.
DISPERSIONS: dict[str, Part] = {
    "feature": Part(
        lambda shape: likelihoods.LearnedDispersion(shape.num_features), "one for each"
    ),
    "feature-batch": Part(
        lambda shape: likelihoods.LearnedDispersion(
            shape.num_features, shape.num_covariates or None
        )
    ),
    "shared": Part(lambda shape: likelihoods.LearnedDispersion()),
    "decoder": Part(lambda shape: likelihoods.DecoderDispersion()),
}


def _scale(options: Any, num_features: int | None = None) -> Any:
    return likelihoods.LearnedScale(num_features, initial=_scale_above(_FLOOR, options))


def _scale_above(least: float, options: Any) -> float:
    """Return the scale of a likelihood, above the least one that it can have."""
    scale: float = options.likelihood_scale
    if not scale > least:
        raise InputError(
            f"'likelihood_scale' must be above {least:g} with likelihood '{options.likelihood}',"
            f" got a scale of {scale}"
        )
    return scale


def _counts(options: Any, shape: Any) -> dict[str, Any]:
    """Return rate and dispersion of a negative binomial."""
    return {"dispersion": DISPERSIONS[options.dispersion].build(shape), "rate": _rate(shape)}


def _rate(shape: Any) -> Any:
    return likelihoods.SoftmaxRate() if shape.has_size_factor else likelihoods.ExpRate()


def _categorical(options: Any, shape: Any) -> Any:
    """Return the likelihood of as many categories as the largest value asks for."""
    count = max(2, shape.num_categories)
    weights = (min(options.hidden) + 1) * count * shape.num_features
    check_bytes(16 * weights, f"a decoder of {count:,} categories, the largest value and one more,")
    return likelihoods.CategoricalLikelihood(count)


# Given options and the shape of the data.
LIKELIHOODS: dict[str, Part] = {
    "bernoulli": Part(lambda options, shape: likelihoods.BernoulliLikelihood()),
    "autoregressive-bernoulli": Part(
        lambda options, shape: likelihoods.AutoregressiveBernoulliLikelihood(shape.num_features)
    ),
    "continuous-bernoulli": Part(
        lambda options, shape: likelihoods.ContinuousBernoulliLikelihood()
    ),
    "normal": Part(
        lambda options, shape: likelihoods.NormalLikelihood(_scale(options)), "one learned scale"
    ),
    "normal-per-feature": Part(
        lambda options, shape: likelihoods.NormalLikelihood(_scale(options, shape.num_features))
    ),
    "normal-fixed": Part(
        lambda options, shape: likelihoods.NormalLikelihood(_scale_above(_LEAST, options))
    ),
    "normal-decoder": Part(
        lambda options, shape: likelihoods.NormalLikelihood(likelihoods.DecoderScale())
    ),
    "laplace": Part(lambda options, shape: likelihoods.LaplaceLikelihood(_scale(options))),
    "student-t": Part(lambda options, shape: likelihoods.StudentTLikelihood(_scale(options))),
    "discretized-logistic": Part(
        lambda options, shape: likelihoods.DiscretizedLogisticLikelihood(), "8-bit pixels"
    ),
    "categorical": Part(_categorical),
    "poisson": Part(lambda options, shape: likelihoods.PoissonLikelihood(_rate(shape))),
    "negative-binomial": Part(
        lambda options, shape: likelihoods.NegativeBinomialLikelihood(**_counts(options, shape))
    ),
    "zero-inflated-negative-binomial": Part(
        lambda options, shape: likelihoods.ZeroInflatedNegativeBinomialLikelihood(
            **_counts(options, shape)
        )
    ),
}
#: Likelihoods of counts, whose encoders see the logarithm of one plus the count.
COUNTS = frozenset({"poisson", "negative-binomial", "zero-inflated-negative-binomial"})

#: Likelihoods of real numbers, whose data may be standardized.
REAL = frozenset(
    {"laplace", "normal", "normal-decoder", "normal-fixed", "normal-per-feature", "student-t"}
)

# Each gives the class, which knows the number of outputs of its network.
POSTERIORS: dict[str, Part] = {
    "normal": Part(lambda: posteriors.NormalPosterior),
    "full-rank": Part(lambda: posteriors.FullRankPosterior),
    "low-rank": Part(lambda: posteriors.LowRankPosterior),
    "flow": Part(lambda: posteriors.FlowPosterior),
    "mixture": Part(lambda: posteriors.MixturePosterior),
}


#: Components of the priors that have some, by default.
MIXTURES = {"mixture": 10, "vamp": 500}


def _vamp(options: Any, shape: Any, encoder: Any, support: Any) -> Any:
    if shape.examples is None:
        raise InputError("prior 'vamp' starts at some of the data, and none are given")
    inputs, context = shape.examples(options.prior_components or MIXTURES["vamp"])
    # The encoders here look at no size factor, so that of a pseudo-input would never be learned.
    if context is not None:
        context = None if context.covariates is None else context._replace(size_factor=None)
    return priors.VampPrior(encoder, inputs, support=support, context=context)


# Given options, shape, encoder and the support of the likelihood.
PRIORS: dict[str, Part] = {
    "normal": Part(lambda options, *_: priors.NormalPrior(options.latent_dim)),
    "learned-normal": Part(lambda options, *_: priors.LearnedNormalPrior(options.latent_dim)),
    "laplace": Part(lambda options, *_: priors.LaplacePrior(options.latent_dim)),
    "student-t": Part(lambda options, *_: priors.StudentTPrior(options.latent_dim)),
    "mixture": Part(
        lambda options, *_: priors.MixturePrior(
            options.latent_dim, options.prior_components or MIXTURES["mixture"]
        )
    ),
    "vamp": Part(_vamp),
    "flow": Part(lambda options, *_: priors.FlowPrior(options.latent_dim)),
    "zuko": Part(lambda options, *_: priors.ZukoPrior.neural_spline(options.latent_dim)),
}

TABLES: dict[str, Mapping[str, Part]] = {
    "prior": PRIORS,
    "likelihood": LIKELIHOODS,
    "posterior": POSTERIORS,
    "network": NETWORKS,
    "activation": ACTIVATIONS,
    "dispersion": DISPERSIONS,
}
