from pyro_bvae.evaluation.gaps.measure import inference_gaps as inference_gaps
from pyro_bvae.evaluation.gaps.result import InferenceGaps as InferenceGaps
