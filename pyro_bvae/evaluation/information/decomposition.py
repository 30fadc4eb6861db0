r"""The mean KL taken apart: information of the latents on the data, and mismatch of the prior.

.. math::
    \frac1N \sum_n KL(q(z|x_n) \| p(z)) = I_q(x; z) + KL(q(z) \| p(z)), \qquad q(z) = \frac1N \sum_n
    q(z|x_n)
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from pyro_bvae.core.inputs.public import exclusive
from pyro_bvae.evaluation.estimate import Estimate
from pyro_bvae.evaluation.information.aggregate import Aggregate, log_marginals
from pyro_bvae.evaluation.information.latent_draws import (
    LatentDraws,
    aggregate_at,
    check_densities,
    check_one_latent,
    draw_latents,
    why_not_product,
)
from pyro_bvae.evaluation.marginal.averages import error_of_mean
from pyro_bvae.evaluation.marginal.importance import check_num_samples
from pyro_bvae.program.program import Function, open_program

# Draws of all data together, at least: of fewer the spread does not tell the error.
_LEAST_DRAWS = 4000
# Nats within which a term that does not vary is the same for all draws.
_ROUNDING = 1e-9

#: Nats below log N from which on mutual information is near its limit: a draw then is that of fewer
#: than e data.
NEAR_LIMIT = 1.0


@dataclass(frozen=True, eq=False)
class KLDecomposition:
    """The mean KL of guide and prior over N data, and its parts, in nats, for each datum.

    Attributes:
        rate: The mean KL, ``mutual_information + marginal_kl``.
        mutual_information: I_q(x; z) over the empirical distribution of the data: between 0 and log
            N.
        marginal_kl: KL(q(z) || p(z)), ``total_correlation + dimension_wise_kl``.
        total_correlation: KL(q(z) || prod_d q(z_d)); None where the parts cannot be had.
        dimension_wise_kl: sum_d KL(q(z_d) || p(z_d)); None likewise.
        reason: Why they cannot be had, or None.
    """

    rate: Estimate
    mutual_information: Estimate
    marginal_kl: Estimate
    total_correlation: Estimate | None
    dimension_wise_kl: Estimate | None
    reason: str | None = None

    @property
    def limit(self) -> float:
        """``log N``: the most that mutual information can be over N data, in nats."""
        return math.log(len(self.rate.per_datum))

    @property
    def warning(self) -> str | None:
        """A caution for a mutual information within 1 nat of log N; None if it is further below."""
        left = self.limit - self.mutual_information.value
        if left >= NEAR_LIMIT:
            return None
        count = len(self.rate.per_datum)
        return (
            f"mutual information is {max(left, 0.0):.2f} nats below its limit, log {count} ="
            f" {self.limit:.2f}: nearly"
            " every datum has its posterior for itself. It counts the data and is no estimate for"
            " a population, where it is larger, and KL(q(z) || p(z)) smaller; more data would tell"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return values and errors for a JSON file."""
        parts = {name: getattr(self, name) for name in _PARTS}
        described = {name: None if part is None else part.to_dict() for name, part in parts.items()}
        return {
            **described,
            "log_num_data": self.limit,
            "reason": self.reason,
            "warning": self.warning,
        }

    def __str__(self) -> str:
        lines = []
        for name, title in _PARTS.items():
            part = getattr(self, name)
            lines.append(
                f"{title:<34}{'not available: ' + str(self.reason) if part is None else part}"
            )
        lines.append(
            f"over the empirical aggregate of {len(self.rate.per_datum)} data (log N ="
            f" {self.limit:.3f})"
        )
        return "\n".join([*lines, *([] if self.warning is None else [f"warning: {self.warning}"])])


_PARTS = {
    "rate": "mean KL(q(z|x) || p(z))",
    "mutual_information": "= mutual information I_q(x; z)",
    "marginal_kl": "+ marginal KL(q(z) || p(z))",
    "total_correlation": "    = total correlation",
    "dimension_wise_kl": "    + dimension-wise KL",
}


@exclusive
def decompose_kl(
    model: Function,
    guide: Function,
    *args: Any,
    num_samples: int = 4,
    data_plate: str | None = None,
    seed: int = 0,
    progress: bool = False,
) -> KLDecomposition:
    r"""Take the mean KL apart into mutual information, total correlation and dimension-wise KL.

    .. math::
        \overline{KL} = \underbrace{\mathbb{E} \log \frac{q(z|x)}{q(z)}}_{I_q(x; z)}
            + \underbrace{\mathbb{E} \log \frac{q(z)}{p(z)}}_{KL(q(z) \| p(z))}, \qquad
        KL(q(z) \| p(z)) = \underbrace{\mathbb{E} \log \frac{q(z)}{\prod_d q(z_d)}}_{\text{total
        correlation}}
            + \underbrace{\sum_d \mathbb{E} \log \frac{q(z_d)}{p(z_d)}}_{\text{dimension-wise KL}}

    with means over data and draws of the guide, and :math:`q(z) = \frac1N \sum_m q(z | x_m)` over
    all N data given, none left out and none weighted: the terms are those of the empirical
    distribution, and the only error is that of the draws. Where Pyro knows the mean KL in closed
    form, it is the rate, and its estimate from the draws is a control variate for the parts. The
    second split is for priors that are products of independent dimensions and guides whose single
    dimensions have a density: products and correlated normals.

    The standard error over the data holds to first order, the aggregated posterior's dependence on
    them included. Every draw meets every posterior: time grows with ``num_samples`` times N
    squared, memory with N beside a block. Diagonal normal guides take one matrix product for it,
    others their densities.

    Args:
        model: A Pyro model with one latent site under a plate over the data.
        guide: Its guide.
        *args: The arguments of both. Tensors of first size N are sliced with the data, others are
            passed whole.
        num_samples: Draws for each datum; with one there are no Monte Carlo errors. With more, few
            data get as many as make 4,000 draws together: their terms are skewed, and the spread of
            a few draws is no error.
        data_plate: Name of the data plate, where the latent has more than one.
        seed: Seed of the draws; the caller's generators are left alone.
        progress: Show progress bars.

    Returns:
        The terms in nats with their errors, and a warning where mutual information is near log N.
        References: Hoffman and Johnson 2016, Chen et al. 2018.

    Raises:
        InputError: if there is more than one latent, if the guide's density cannot be evaluated at
            another datum's draws, if the prior is another one for each datum, or if the data or
            ``num_samples`` cannot be used.
    """
    check_num_samples(num_samples)
    with (
        open_program(model, guide, args, data_plate=data_plate, seed=seed) as program,
        torch.no_grad(),
    ):
        check_one_latent(program)
        check_densities(program)
        reason = why_not_product(program)
        if num_samples > 1:
            num_samples = max(num_samples, -(-_LEAST_DRAWS // program.num_data))
        draws = draw_latents(program, num_samples, progress)
        rows = draws.values.flatten(0, 1)
        aggregate = aggregate_at(program, draws, rows, progress)
        points, marginals = rows.reshape(len(rows), -1), aggregate.marginals
        if reason is not None:
            marginals = None
        elif points.shape[1] == 1:
            marginals = aggregate.joint.unsqueeze(1)
        elif draws.normals is not None:
            marginals = log_marginals(points, draws.normals)
        aggregate = aggregate._replace(marginals=marginals)
    return _decompose(draws, aggregate, reason)


def _decompose(draws: LatentDraws, aggregate: Aggregate, reason: str | None) -> KLDecomposition:
    log_ratio = draws.log_guide - draws.log_prior
    joint = aggregate.joint.reshape(log_ratio.shape)
    # The draws' error of the KL, of mean 0: terms that move with it are freed of it.
    surplus = torch.zeros_like(log_ratio) if draws.rate is None else log_ratio - draws.rate
    rate, information = log_ratio - surplus, _freed(draws.log_guide - joint, surplus)
    parts: tuple[Estimate | None, Estimate | None] = (None, None)
    if aggregate.marginals is not None:
        correlation = _freed(joint - aggregate.marginals.sum(1).reshape(joint.shape), surplus)
        parts = _estimate(correlation, True), _estimate(rate - information - correlation, True)
    return KLDecomposition(
        _estimate(rate),
        _estimate(information, True),
        _estimate(rate - information, True),
        *parts,
        reason=reason,
    )


def _freed(term: Tensor, surplus: Tensor) -> Tensor:
    """Return a term less the multiple of the surplus that leaves it the smallest variance."""
    variance = surplus.square().mean()
    if float(variance) <= torch.finfo(surplus.dtype).eps:
        return term
    return term - ((term - term.mean()) * surplus).mean() / variance * surplus


def _estimate(term: Tensor, skewed: bool = False) -> Estimate:
    """Return the estimate of a term, which may hinge on draws too rare to be among them."""
    result = Estimate.over_data(term.mean(0), error_of_mean(term), num_samples=len(term))
    if not skewed or float(term.amax() - term.amin()) < _ROUNDING:
        return result
    # An event of probability 1 / M is in none of M draws more often than not, and is worth about a
    # nat.
    return replace(result, monte_carlo_error=math.hypot(result.monte_carlo_error, 1 / term.numel()))
