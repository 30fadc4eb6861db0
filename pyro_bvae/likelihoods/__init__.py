r"""Likelihoods: modules from the decoder's output to a distribution over the data, :math:`p(x \mid z)`.

A likelihood says how many parameters it wants for each feature (``parameters_per_feature``), which
values it can explain (``support``), and owns what it needs beyond the decoder's output, such as a
scale. A new one is one class with these two attributes and a ``forward``.
"""

from pyro_bvae.likelihoods.autoregressive import AutoregressiveBernoulliLikelihood
from pyro_bvae.likelihoods.continuous import LaplaceLikelihood, NormalLikelihood, StudentTLikelihood
from pyro_bvae.likelihoods.counts import (
    DecoderDispersion,
    ExpRate,
    LearnedDispersion,
    NegativeBinomialLikelihood,
    PoissonLikelihood,
    SoftmaxRate,
    ZeroInflatedNegativeBinomialLikelihood,
)
from pyro_bvae.likelihoods.pixels import (
    BernoulliLikelihood,
    CategoricalLikelihood,
    ContinuousBernoulliLikelihood,
    DiscretizedLogisticLikelihood,
)
from pyro_bvae.likelihoods.scales import DecoderScale, FixedScale, LearnedScale

__all__ = [
    "AutoregressiveBernoulliLikelihood",
    "BernoulliLikelihood",
    "CategoricalLikelihood",
    "ContinuousBernoulliLikelihood",
    "DecoderDispersion",
    "DecoderScale",
    "DiscretizedLogisticLikelihood",
    "ExpRate",
    "FixedScale",
    "LaplaceLikelihood",
    "LearnedDispersion",
    "LearnedScale",
    "NegativeBinomialLikelihood",
    "NormalLikelihood",
    "PoissonLikelihood",
    "SoftmaxRate",
    "StudentTLikelihood",
    "ZeroInflatedNegativeBinomialLikelihood",
]
