from pyro_bvae.sklearn.estimator import BetaVAEEstimator as BetaVAEEstimator
