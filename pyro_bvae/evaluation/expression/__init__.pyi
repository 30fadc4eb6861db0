from pyro_bvae.evaluation.expression.differential import (
    differential_expression as differential_expression,
)
from pyro_bvae.evaluation.expression.posterior import corrected_expression as corrected_expression
from pyro_bvae.evaluation.expression.result import DifferentialExpression as DifferentialExpression
from pyro_bvae.evaluation.expression.sums import ExpressionSums as ExpressionSums
