from pyro_bvae.evaluation.calibration.guide import calibrate_guide as calibrate_guide
from pyro_bvae.evaluation.calibration.result import CalibratedQuantity as CalibratedQuantity
from pyro_bvae.evaluation.calibration.result import GuideCalibration as GuideCalibration
from pyro_bvae.evaluation.calibration.uniformity import rank_bands as rank_bands
from pyro_bvae.evaluation.calibration.uniformity import uniformity_p_value as uniformity_p_value
