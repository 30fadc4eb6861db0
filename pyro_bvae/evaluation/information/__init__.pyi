from pyro_bvae.evaluation.information.curve import CurvePoint as CurvePoint
from pyro_bvae.evaluation.information.curve import RateDistortion as RateDistortion
from pyro_bvae.evaluation.information.curve import Slope as Slope
from pyro_bvae.evaluation.information.curve import rate_distortion as rate_distortion
from pyro_bvae.evaluation.information.decoder_curve import (
    rate_distortion_curve as rate_distortion_curve,
)
from pyro_bvae.evaluation.information.decoder_result import Bounds as Bounds
from pyro_bvae.evaluation.information.decoder_result import DecoderCurve as DecoderCurve
from pyro_bvae.evaluation.information.decoder_result import DecoderPoint as DecoderPoint
from pyro_bvae.evaluation.information.decomposition import KLDecomposition as KLDecomposition
from pyro_bvae.evaluation.information.decomposition import decompose_kl as decompose_kl
from pyro_bvae.evaluation.information.energy import EnergyTest as EnergyTest
from pyro_bvae.evaluation.information.energy import energy_test as energy_test
from pyro_bvae.evaluation.information.factors import LatentReading as LatentReading
from pyro_bvae.evaluation.information.factors import read_latents as read_latents
from pyro_bvae.evaluation.information.holes import HoleMass as HoleMass
from pyro_bvae.evaluation.information.holes import Mass as Mass
from pyro_bvae.evaluation.information.holes import hole_mass as hole_mass
from pyro_bvae.evaluation.information.holes import log_aggregate as log_aggregate
