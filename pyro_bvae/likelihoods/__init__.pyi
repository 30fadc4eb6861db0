from pyro_bvae.likelihoods.autoregressive import (
    AutoregressiveBernoulliLikelihood as AutoregressiveBernoulliLikelihood,
)
from pyro_bvae.likelihoods.continuous import LaplaceLikelihood as LaplaceLikelihood
from pyro_bvae.likelihoods.continuous import NormalLikelihood as NormalLikelihood
from pyro_bvae.likelihoods.continuous import StudentTLikelihood as StudentTLikelihood
from pyro_bvae.likelihoods.counts import DecoderDispersion as DecoderDispersion
from pyro_bvae.likelihoods.counts import ExpRate as ExpRate
from pyro_bvae.likelihoods.counts import LearnedDispersion as LearnedDispersion
from pyro_bvae.likelihoods.counts import NegativeBinomialLikelihood as NegativeBinomialLikelihood
from pyro_bvae.likelihoods.counts import PoissonLikelihood as PoissonLikelihood
from pyro_bvae.likelihoods.counts import SoftmaxRate as SoftmaxRate
from pyro_bvae.likelihoods.counts import (
    ZeroInflatedNegativeBinomialLikelihood as ZeroInflatedNegativeBinomialLikelihood,
)
from pyro_bvae.likelihoods.pixels import BernoulliLikelihood as BernoulliLikelihood
from pyro_bvae.likelihoods.pixels import CategoricalLikelihood as CategoricalLikelihood
from pyro_bvae.likelihoods.pixels import (
    ContinuousBernoulliLikelihood as ContinuousBernoulliLikelihood,
)
from pyro_bvae.likelihoods.pixels import (
    DiscretizedLogisticLikelihood as DiscretizedLogisticLikelihood,
)
from pyro_bvae.likelihoods.scales import DecoderScale as DecoderScale
from pyro_bvae.likelihoods.scales import FixedScale as FixedScale
from pyro_bvae.likelihoods.scales import LearnedScale as LearnedScale
from pyro_bvae.likelihoods.scales import StandardizedScale as StandardizedScale
