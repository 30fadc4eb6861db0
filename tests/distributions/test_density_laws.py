"""One law of all densities: value and every gradient are those of exact arithmetic, over twelve decades.

A member is one line in the list: the distribution, its log density in mpmath, where to look at its
parameters, and the values. Parameters and values are rounded to the type first, so that rounding
them is no error.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import mpmath as mp
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyro_bvae.distributions import (
    AutoregressivePixels,
    ContinuousBernoulliPixels,
    DiagonalNormal,
    DiscretizedLogistic,
    FullRankNormal,
    GreyBernoulli,
    LowRankNormal,
    NegativeBinomialCounts,
    NormalMixture,
    NumberedCategories,
    Pixels,
    PoissonCounts,
    ZeroInflatedNegativeBinomialCounts,
)

DECADES = [10.0**k for k in (-6, -4, -2, 0, 2, 4, 6)]
LOG_MEANS = [math.log(mean) for mean in (*DECADES, 25.0, 1e5)]
COUNTS = [0.0, 1.0, 2.0, 7.0, 8.0, 30.0, 100.0, 1e5, 1e6]
# Both sides of the borders of Stirling's series, and the dispersions between which a float32 used
# to lose its digits.
DISPERSIONS = [*DECADES, 0.3, 6.999, 7.001, 7.9999, 8.0, 8.0001, 199.0, 1e5]
LOGITS = [0.0, *(sign * size for sign in (-1, 1) for size in (*DECADES, 0.0999, 0.1, 0.1001, 12.0))]
PLACES = [0.0, *(sign * size for sign in (-1, 1) for size in (1e-6, 0.01, 1.0, 100.0, 1e6))]
# Scales from its nearest centre up to which a mixture, or a correlated normal, is looked at.
# Further out the terms of centres and directions are differences of large numbers, and the digits
# of a float32 are those of the largest.
FAR = 10.0
GREYS = [0.0, 1 / 255, 100 / 255, 254 / 255, 1.0]


class Member(NamedTuple):
    """A density: ``make(*parameters)`` scores ``value``, ``exact(x, *parameters)`` does in
    mpmath."""

    make: Callable[..., Any]
    exact: Callable[..., Any]
    parameters: Sequence[Sequence[float]]
    values: Sequence[float]
    positive: Sequence[int] = ()  # parameters whose gradient is that by their logarithm
    near: Callable[..., bool] = lambda x, *parameters: True  # whether a point is looked at


def log_gamma_ratio(x: Any, theta: Any) -> Any:
    return mp.loggamma(x + theta) - mp.loggamma(theta) - mp.loggamma(x + 1)


def poisson(x: Any, log_mean: Any) -> Any:
    return x * log_mean - mp.exp(log_mean) - mp.loggamma(x + 1)


def negative_binomial(x: Any, log_mean: Any, theta: Any) -> Any:
    mean = mp.exp(log_mean)
    return (
        log_gamma_ratio(x, theta)
        - theta * mp.log1p(mean / theta)
        + x * (log_mean - mp.log(theta + mean))
    )


def zero_inflated(x: Any, log_mean: Any, theta: Any, gate: Any) -> Any:
    kept = -mp.log1p(mp.exp(gate)) + negative_binomial(x, log_mean, theta)
    return kept if x > 0 else mp.log(1 / (1 + mp.exp(-gate)) + mp.exp(kept))


def bernoulli(x: Any, logit: Any) -> Any:
    return x * logit - mp.log1p(mp.exp(logit))


def continuous_bernoulli(x: Any, logit: Any) -> Any:
    return logit * x - (mp.log(mp.expm1(logit) / logit) if logit else 0)


def discretized_logistic(x: Any, loc: Any, scale: Any) -> Any:
    half = mp.mpf(0.5 / 255)
    upper, lower = (x + half - loc) / scale, (x - half - loc) / scale
    if x < half:
        return -mp.log1p(mp.exp(-upper))
    if x > 1 - half:
        return -mp.log1p(mp.exp(lower))
    return -mp.log1p(mp.exp(-upper)) - mp.log1p(mp.exp(lower)) + mp.log(-mp.expm1(lower - upper))


def normal(x: Any, loc: Any, scale: Any) -> Any:
    return -(((x - loc) / scale) ** 2) / 2 - mp.log(scale) - mp.log(2 * mp.pi) / 2


def laplace(x: Any, loc: Any, scale: Any) -> Any:
    return -abs(x - loc) / scale - mp.log(2 * scale)


def student(x: Any, df: Any, loc: Any, scale: Any) -> Any:
    constant = (
        mp.loggamma((df + 1) / 2) - mp.loggamma(df / 2) - mp.log(df * mp.pi) / 2 - mp.log(scale)
    )
    return constant - (df + 1) / 2 * mp.log1p(((x - loc) / scale) ** 2 / df)


def categorical(x: Any, *logits: Any) -> Any:
    return logits[int(x)] - mp.log(sum(map(mp.exp, logits)))


def mixture(x: Any, first: Any, second: Any, loc: Any, scale: Any) -> Any:
    parts = [
        mp.exp(first + normal(x, loc, scale)),
        mp.exp(second + normal(x, mp.mpf(0), mp.mpf(1))),
    ]
    return mp.log(sum(parts)) - mp.log(mp.exp(first) + mp.exp(second))


def low_rank(x: Any, scale: Any, one: Any, two: Any) -> Any:
    """Two dimensions of one value, with the covariance s² (I + v vᵀ)."""
    size = 1 + one**2 + two**2
    distance = (2 * x**2 - x**2 * (one + two) ** 2 / size) / scale**2
    return -distance / 2 - 2 * mp.log(scale) - mp.log(size) / 2 - mp.log(2 * mp.pi)


def full_rank(x: Any, first: Any, below: Any, second: Any) -> Any:
    """Two dimensions of one value, with a Cholesky factor."""
    one = x / first
    two = (x - below * one) / second
    return -(one**2 + two**2) / 2 - mp.log(first * second) - mp.log(2 * mp.pi)


def make_mixture(first: Tensor, second: Tensor, loc: Tensor, scale: Tensor) -> Any:
    locs, scales = torch.stack([loc, 0 * loc], -1), torch.stack([scale, torch.ones_like(scale)], -1)
    return NormalMixture(torch.stack([first, second], -1), locs.unsqueeze(-1), scales.unsqueeze(-1))


def make_low_rank(scale: Tensor, one: Tensor, two: Tensor) -> Any:
    both = torch.stack([scale, scale], -1)
    return LowRankNormal(torch.zeros_like(both), both, torch.stack([one, two], -1).unsqueeze(-1))


def make_full_rank(first: Tensor, below: Tensor, second: Tensor) -> Any:
    tril = torch.stack([torch.stack([first, 0 * first], -1), torch.stack([below, second], -1)], -2)
    return FullRankNormal(torch.zeros_like(tril[..., 0]), scale_tril=tril)


def rows(make: Callable[..., Any]) -> Callable[..., Any]:
    """Give each number an event dimension of its own."""
    return lambda *parameters: make(*(parameter.unsqueeze(-1) for parameter in parameters))


MEMBERS = {
    "poisson": Member(PoissonCounts, poisson, [LOG_MEANS], COUNTS),
    "negative binomial": Member(
        NegativeBinomialCounts, negative_binomial, [LOG_MEANS, DISPERSIONS], COUNTS, [1]
    ),
    "zero-inflated": Member(
        ZeroInflatedNegativeBinomialCounts,
        zero_inflated,
        [LOG_MEANS[::2], DISPERSIONS[1::3], [-1e6, -12.0, -1e-6, 0.0, 1.0, 12.0, 60.0]],
        [0.0, 1.0, 30.0, 1e5],
        [1],
    ),
    "bernoulli": Member(
        lambda logit: GreyBernoulli(logits=logit), bernoulli, [LOGITS], [0.0, 1.0, 0.3, 0.5]
    ),
    "pixels": Member(
        rows(lambda logit: Pixels(GreyBernoulli(logits=logit), 1)),
        bernoulli,
        [LOGITS],
        [0.0, 1.0, 0.3, 0.5],
    ),
    "autoregressive pixels": Member(
        rows(lambda logit: AutoregressivePixels(logit, torch.zeros_like)),
        bernoulli,
        [LOGITS],
        [0.0, 1.0],
    ),
    "continuous bernoulli": Member(
        ContinuousBernoulliPixels,
        continuous_bernoulli,
        [LOGITS],
        [0.0, 1e-6, 0.3, 0.5, 0.999, 1 - 1e-6, 1.0],
    ),
    "discretized logistic": Member(
        DiscretizedLogistic,
        discretized_logistic,
        [[*PLACES, 0.5 / 255, 100 / 255, 0.5], DECADES],
        GREYS,
        [1],
    ),
    "normal": Member(rows(DiagonalNormal.of), normal, [PLACES, DECADES], [0.0, 1.0, -100.0], [1]),
    "laplace": Member(
        dist.Laplace,
        laplace,
        [PLACES, DECADES],
        [0.0, 1.0, -100.0],
        [1],
        lambda x, loc, scale: x != loc,
    ),
    "student-t": Member(
        dist.StudentT, student, [[1.5, 4.0, 30.0], PLACES, DECADES], [0.0, 1.0, -100.0], [0, 2]
    ),
    "categorical": Member(
        lambda *logits: NumberedCategories(logits=torch.stack(logits, -1)),
        categorical,
        [LOGITS[::3], LOGITS[1::3], [0.0]],
        [0.0, 1.0, 2.0],
    ),
    "mixture": Member(
        make_mixture,
        mixture,
        [[-60.0, 0.0, 12.0], [0.0, 3.0], PLACES, DECADES],
        [0.0, 1.0, 9.0, -100.0],
        [3],
        lambda x, first, second, loc, scale: min(abs(x - loc) / scale, abs(x)) < FAR,
    ),
    "low rank": Member(
        make_low_rank,
        low_rank,
        [DECADES, [-1e3, -1.0, 1e-6, 0.0, 2.0], [1e-6, 1.0, 1e3]],
        [0.0, 1.0, -100.0],
        [0],
        lambda x, scale, one, two: abs(x) / scale < FAR,
    ),
    "full rank": Member(
        make_full_rank,
        full_rank,
        [DECADES, [-1e3, -1.0, 0.0, 2.0], [1e-4, 1.0, 1e3]],
        [0.0, 1.0, -100.0],
        [0, 2],
    ),
}
MEMBERS["pixels without gradients"] = MEMBERS["pixels"]


def scored(member: Member, points: Tensor) -> tuple[Tensor, Tensor]:
    """Return the log densities of points ``(P, 1 + n)``, ``(P,)``, and their gradients, ``(P,
    n)``."""
    x, *parameters = (column.clone().requires_grad_() for column in points.T)
    made = member.make(*parameters)
    value = x.detach().reshape(-1, *[1] * len(made.event_shape)).expand(len(x), *made.event_shape)
    log_prob = made.log_prob(value)
    gradients = list(torch.autograd.grad(log_prob.sum(), parameters))
    for place in member.positive:
        gradients[place] = gradients[place] * parameters[place].detach()
    return log_prob.detach(), torch.stack(gradients, -1)


def truth(member: Member, points: Tensor) -> tuple[Tensor, Tensor]:
    """Return the same in exact arithmetic."""
    values, gradients = [], []
    for row in points.double().tolist():
        given = [mp.mpf(number) for number in row]
        values.append(float(member.exact(*given)))
        partials = []
        for place in range(1, len(given)):
            step = mp.mpf(10) ** -25 * max(abs(given[place]), mp.mpf(10) ** -12)
            low, high = (
                [*given[:place], given[place] + sign * step, *given[place + 1 :]]
                for sign in (-1, 1)
            )
            size = given[place] if place - 1 in member.positive else 1
            partials.append(float(size * (member.exact(*high) - member.exact(*low)) / (2 * step)))
        gradients.append(partials)
    return torch.tensor(values, dtype=torch.double), torch.tensor(gradients, dtype=torch.double)


def points_of(member: Member, dtype: torch.dtype, most: int = 260) -> Tensor:
    """Return every combination of values and parameters, or, of many, as many at random."""
    every = itertools.product(member.values, *member.parameters)
    points = torch.tensor([point for point in every if member.near(*point)], dtype=torch.double)
    if len(points) > most:
        points = points[
            torch.randperm(len(points), generator=torch.Generator().manual_seed(0))[:most]
        ]
    return points.to(dtype)


def worst(result: Tensor, exact: Tensor, relative: float, absolute: float) -> Tensor:
    """Return the errors in units of what is allowed."""
    return (result.double() - exact).abs() / (relative * exact.abs()).clamp(min=absolute)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("name", MEMBERS)
def test_value_and_every_gradient_are_those_of_exact_arithmetic(
    name: str, dtype: torch.dtype
) -> None:
    member = MEMBERS[name]
    points = points_of(member, dtype)
    with mp.workdps(70):
        values, gradients = truth(member, points)
    result, slopes = scored(member, points)
    if name.endswith("without gradients"):
        with torch.no_grad():
            result = member.make(*points.T[1:].unbind()).log_prob(points[:, :1])
    relative, absolute = (1e-3, 1e-6) if dtype == torch.float32 else (1e-8, 1e-9)
    pairs = (result.unsqueeze(1), values.unsqueeze(1)), (slopes, gradients)
    errors = torch.cat([worst(*pair, relative, absolute) for pair in pairs], 1)
    place = int(errors.amax(1).nan_to_num(math.inf).argmax())
    assert float(errors.max()) <= 1, (
        f"at {points[place].tolist()}: {result[place]} for {values[place]}, {slopes[place]} for "
        f"{gradients[place]}"
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_zero_initialised_layer_trains_every_pixel_of_a_continuous_bernoulli(
    dtype: torch.dtype,
) -> None:
    logits = torch.zeros(3, dtype=dtype, requires_grad=True)
    x = torch.tensor([0.0, 0.3, 1.0], dtype=dtype)
    (gradient,) = torch.autograd.grad(
        ContinuousBernoulliPixels(logits).log_prob(x).sum(), logits, create_graph=True
    )
    assert torch.allclose(gradient, x - 0.5, atol=1e-7)
    (second,) = torch.autograd.grad(gradient.sum(), logits)
    assert torch.allclose(second, torch.full_like(x, -1 / 12))


def test_the_dispersion_of_a_nearly_poisson_count_has_its_slope_in_float32() -> None:
    """Differences of digamma functions gave 0.045 for 2.5e-5, and -0.44 for 2.5e-6."""
    for theta, slope in ((1e5, 2.5e-5), (1e6, 2.5e-6)):
        log_theta = torch.tensor(math.log(theta), requires_grad=True)
        scored = NegativeBinomialCounts(torch.tensor(math.log(25.0)), log_theta.exp()).log_prob(
            torch.tensor(30.0)
        )
        (result,) = torch.autograd.grad(scored, log_theta)
        with mp.workdps(50):
            log_mean, size = (
                mp.mpf(float(torch.tensor(math.log(25.0)))),
                mp.mpf(float(log_theta.detach().exp())),
            )
            exact = size * mp.diff(partial(negative_binomial, mp.mpf(30), log_mean), size)
        assert float(exact) == pytest.approx(slope, rel=2e-3)
        assert float(result) == pytest.approx(float(exact), rel=1e-3, abs=1e-7)


def test_second_derivatives_are_right_at_the_borders() -> None:
    counts = torch.tensor([0.0, 3.0, 8.0, 40.0], dtype=torch.double)
    at_count = torch.tensor(
        [-1.0, math.log(3.0), math.log(8.0), 2.0], dtype=torch.double
    ).requires_grad_()
    theta = torch.tensor([0.5, 4.0, 20.0, 7.5], dtype=torch.double).requires_grad_()
    for check in (torch.autograd.gradcheck, torch.autograd.gradgradcheck):
        assert check(lambda m, t: NegativeBinomialCounts(m, t).log_prob(counts), (at_count, theta))
        assert check(lambda m: PoissonCounts(m).log_prob(counts), (at_count,))
        logits = torch.tensor([0.0, 0.05, -3.0], dtype=torch.double).requires_grad_()
        greys = torch.tensor([0.2, 0.0, 1.0], dtype=torch.double)
        assert check(
            lambda logits, greys=greys: ContinuousBernoulliPixels(logits).log_prob(greys), (logits,)
        )
