from pyro_bvae.evaluation.comparison.difference import Difference as Difference
from pyro_bvae.evaluation.comparison.programs import compare_programs as compare_programs
from pyro_bvae.evaluation.comparison.result import Comparison as Comparison
from pyro_bvae.evaluation.comparison.stacking import stacking_weights as stacking_weights
