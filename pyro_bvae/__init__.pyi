from pyro_bvae import datasets as datasets
from pyro_bvae import evaluation as evaluation
from pyro_bvae import latents as latents
from pyro_bvae import likelihoods as likelihoods
from pyro_bvae import networks as networks
from pyro_bvae import oracle as oracle
from pyro_bvae import plots as plots
from pyro_bvae import posteriors as posteriors
from pyro_bvae import priors as priors
from pyro_bvae import training as training
from pyro_bvae.core.context import Context as Context
from pyro_bvae.core.errors import InputError as InputError
from pyro_bvae.evaluation import audit as audit
from pyro_bvae.evaluation import decompose_kl as decompose_kl
from pyro_bvae.evaluation import diagnose as diagnose
from pyro_bvae.evaluation import elbo as elbo
from pyro_bvae.evaluation import evidence as evidence
from pyro_bvae.evaluation import inference_gaps as inference_gaps
from pyro_bvae.evaluation import invert as invert
from pyro_bvae.evaluation import rate_distortion as rate_distortion
from pyro_bvae.runs import compare as compare
from pyro_bvae.runs.sweeps.reading import load as load
from pyro_bvae.training import fit as fit
from pyro_bvae.training import sweep as sweep
from pyro_bvae.vae import BetaVAE as BetaVAE
from pyro_bvae.vae import Decoder as Decoder

__version__: str
