from pyro_bvae.evaluation.refit.settings import RefitSettings as RefitSettings
