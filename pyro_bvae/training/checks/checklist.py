r"""The training checklist as code: what is seen before, during and after training, and what to try.

Every remark has the number behind it. What makes a training useless is grave, and ``fit`` warns of
it; all of it is in ``History.remarks``, in the checkpoint and on the page of the run.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributions import constraints

from pyro_bvae.core.context import Context, arguments
from pyro_bvae.core.errors import listed
from pyro_bvae.core.module_modes import evaluating
from pyro_bvae.core.protocols import latent_dim_of
from pyro_bvae.core.seeds import PROBE_STREAM, seeded
from pyro_bvae.distributions import GreyBernoulli
from pyro_bvae.program.sites import unwrapped
from pyro_bvae.training.initialization import last_bias

# Data that are looked at before training, and draws from the prior whose decoding says where the
# decoder starts.
_LOOKED_AT, _DRAWS = 4096, 64
# Standard deviations of the data by which a decoder may start off their mean, and the share of them
# that another start has to take away to be worth it.
_OFF, _GAIN = 0.5, 0.3
# Size of a feature, its mean or its standard deviation, from which networks and scales that start
# near 1 are far from it; and from which a training is of no use.
_WIDE, _FAR_TOO_WIDE = 10.0, 1000.0
# Remedy for features that are not scaled: by it a remark is known to be of them.
_STANDARDISE = "standardise each column, (x - mean) / sd with the training data's mean and sd"
# Nats of all latents, and of each on average, below which a rate is none, and the share of the
# objective by which it may rise above its best.
_NO_RATE, _NO_RATE_EACH, _RISE = 0.2, 0.02, 0.01
# Share of the rate from which a variational gap is large.
_FAR = 0.25
# Epochs before which nothing is said of where a training goes.
_SOON = 5


class Remark(NamedTuple):
    """Something that was seen, and what to try.

    Attributes:
        when: ``before``, ``during`` or ``after`` training.
        seen: What was seen, with its number.
        advice: What to try.
        grave: Whether a training is of no use with it.
    """

    when: str
    seen: str
    advice: str
    grave: bool = False

    def __str__(self) -> str:
        return f"{self.seen}: {self.advice}"


@torch.no_grad()
def check_before(
    vae: Any, x: Tensor, context: Context | None = None, beta: float = 1.0
) -> list[Remark]:
    r"""Look over data, parts and β before training.

    Constant features, features that are not scaled, values that another likelihood is meant for, a
    code as wide as the data, a decoder that starts far from the data's mean, β = 0; and, for a
    normal likelihood of fixed σ, a β above
    which nothing is encoded: where :math:`\beta \sigma^2` is above the largest eigenvalue of the
    data's covariance, the optimum of a linear decoder has rate 0 (Lucas et al. 2019).

    Args:
        vae: A module with a ``prior`` and a ``decoder``; of any other only the data are looked at.
        x: The data, ``(N, D)``; NaN is missing.
        context: Their context.
        beta: The β at the end of training.
    """
    x = x[:_LOOKED_AT]
    context = context and context.take(slice(_LOOKED_AT))
    remarks = list(_of_features(x)) if len(x) > 1 else []
    if beta == 0:
        seen = "β is 0, so the code is not held to the prior"
        remarks.append(
            Remark(
                "before", seen, "this is an autoencoder; its samples from the prior mean nothing"
            )
        )
    if not (hasattr(vae, "prior") and hasattr(vae, "decoder")):
        return remarks
    latent_dim = latent_dim_of(vae)
    if latent_dim is not None and latent_dim >= x.shape[1]:
        seen = f"the code has {latent_dim} latents for {x.shape[1]} features"
        remarks.append(
            Remark(
                "before", seen, "fewer do; those that are not needed carry nothing, and cost time"
            )
        )
    with evaluating(vae), seeded(0, PROBE_STREAM):
        z = vae.prior().expand([min(_DRAWS, len(x))]).sample()
        decoded = vae.decoder(*arguments(z, context and context.take(slice(_DRAWS))))
    remarks += _of_likelihood(x, decoded)
    unscaled = list(_of_scales(x, decoded))
    remarks += unscaled or _of_start(
        vae, x, context, decoded
    )  # a scale that is off is the cause of both
    if not any(
        True for _ in getattr(getattr(vae.decoder, "likelihood", None), "parameters", tuple)()
    ):
        remarks += _of_threshold(x, decoded, beta)
    return remarks


def _of_features(x: Tensor) -> Iterator[Remark]:
    seen_values = x.nan_to_num(nan=torch.inf).amin(0), x.nan_to_num(nan=-torch.inf).amax(0)
    constant = (seen_values[0] >= seen_values[1]).nonzero().flatten().tolist()
    if constant:
        seen = f"{len(constant)} of {x.shape[1]} features have one value in all of {len(x)} data ({_columns(constant)})"
        advice = "they carry nothing; look whether they should vary"
        yield Remark("before", seen, advice, len(constant) == x.shape[1])


def _columns(numbers: Sequence[int]) -> str:
    """Return the numbers of some features, from 0."""
    return f"column{'s' * (len(numbers) > 1)} {listed(numbers, 10)}"


def _moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of each feature, of what was observed of it."""
    x = x.double()
    mean = x.nanmean(0)
    return mean, (x - mean).square().nanmean(0).sqrt()


def _of_scales(x: Tensor, decoded: Any) -> Iterator[Remark]:
    """Say where features are so large, for a density of real numbers, that one of them outweighs all others."""
    if len(x) < 2 or unwrapped(decoded).support is not constraints.real:
        return
    mean, spread = _moments(x)
    size = torch.maximum(mean.abs(), spread)
    wide = ((size > _WIDE) & (spread > 0)).nonzero().flatten().tolist()
    if not wide or not bool(
        torch.isfinite(size[wide]).all()
    ):  # what is too large to be squared stops the training
        return
    largest = max(wide, key=lambda column: float(size[column]))
    seen = f"{len(wide)} of {x.shape[1]} features are not scaled ({_columns(wide)}): column {largest} has mean"
    seen += f" {float(mean[largest]):.3g} and sd {float(spread[largest]):.3g}"
    yield Remark("before", seen, _STANDARDISE, grave=float(size[largest]) > _FAR_TOO_WIDE)


def _of_likelihood(x: Tensor, decoded: Any) -> Iterator[Remark]:
    """Say where the values are those of another likelihood."""
    values = x[~torch.isnan(x)]
    base = unwrapped(decoded)
    bits = bool(((values == 0) | (values == 1)).all())
    if isinstance(base, GreyBernoulli) and not bits:
        share = float(((values > 0) & (values < 1)).float().mean())
        seen = f"{100 * share:.0f}% of the values are greys, of which a Bernoulli has a cross-entropy and no density"
        yield Remark(
            "before",
            seen,
            "binarise them, or take ContinuousBernoulliLikelihood, to compare evidence",
        )
    if base.support is not constraints.real:
        return
    if bits:
        seen = "all values are 0 or 1, and the likelihood is a density of real numbers"
        yield Remark("before", seen, "take BernoulliLikelihood")
    elif bool((values == values.round()).all()) and bool((values >= 0).all()):
        seen = f"all values are counts, up to {float(values.max()):g}, and the likelihood is a density of real numbers"
        pixels = ", or divide pixels by 255" if float(values.max()) == 255 else ""
        yield Remark("before", seen, f"take NegativeBinomialLikelihood{pixels}")


def _of_start(vae: Any, x: Tensor, context: Context | None, decoded: Any) -> Iterator[Remark]:
    """Say how far from the data's mean the decoder starts, and what brings it nearer, if anything does."""
    try:
        start = decoded.mean.reshape(-1, x.shape[1]).mean(0)
    except (NotImplementedError, RuntimeError):
        return
    mean, spread = _moments(x)
    varies = (
        spread > 0
    )  # a feature that is constant or was never observed is no number of standard deviations off
    unit = spread[varies].square().mean().sqrt()
    off = float((start - mean)[varies].square().mean().sqrt() / unit) if bool(varies.any()) else 0.0
    if not off > _OFF:
        return
    seen = f"the untrained decoder is {off:.1f} standard deviations of the data off their mean"
    last, likelihood = last_bias(vae, context), getattr(vae.decoder, "likelihood", None)
    if last is None or likelihood is None:
        advice = "a decoder whose network ends with a bias could be started there; training finds it, in some steps"
        yield Remark("before", seen, advice)
        return
    # The bias moves what it gives by itself, and not what latents add to it.
    given = () if context is None else (context.take(slice(_DRAWS)),)
    count = min(_DRAWS, len(x)) if given else 1
    alone = (
        likelihood(last.bias[last.places].expand(count, -1), *given)
        .mean.reshape(-1, x.shape[1])
        .mean(0)
    )
    left = (_shared(mean, last.places) - mean).square() + (start - alone).square()
    if float(left[varies].mean().sqrt() / unit) < (1 - _GAIN) * off:
        advice = (
            "--start-at-mean, or training.start_at_mean(vae, x), sets the bias of its last layer"
        )
        yield Remark("before", seen, advice)


def _shared(mean: Tensor, places: Tensor) -> Tensor:
    """Return the means that features have together with those that share an entry of the last bias with them."""
    groups = places[: len(mean)]  # a likelihood's first parameter of each feature says where it is
    count = int(places.max()) + 1
    known = torch.isfinite(mean)
    sums, sizes = mean.new_zeros(count), mean.new_zeros(count)
    sums.index_add_(0, groups, mean.where(known, 0)), sizes.index_add_(0, groups, known.double())
    return (sums / sizes)[groups]


def _of_threshold(x: Tensor, decoded: Any, beta: float) -> Iterator[Remark]:
    """Say where β is above the largest threshold of a normal likelihood with a fixed scale."""
    base = unwrapped(decoded)
    if not isinstance(base, torch.distributions.Normal) or bool(torch.isnan(x).any()) or len(x) < 2:
        return
    if bool(base.scale.amax() > base.scale.amin()):  # the decoder has a say in it
        return
    noise = float(base.scale.square().mean())
    covariance = torch.cov(x.T.double(), correction=0).reshape(x.shape[1], -1)
    if not bool(torch.isfinite(covariance).all()):  # data too large to be squared
        return
    largest = float(torch.linalg.eigvalsh(covariance)[-1])
    if 0 < largest < beta * noise:
        seen = f"β σ² is {beta * noise:.3g}, above the largest eigenvalue {largest:.3g} of the data's covariance"
        advice = (
            f"every latent will collapse; take β below {largest / noise:.3g}, or a smaller scale"
        )
        yield Remark("before", seen, advice, grave=True)


def check_during(
    rows: Sequence[dict[str, float]],
    clip: float | None = None,
    *,
    latent_dim: int | None = None,
    before: Sequence[Remark] = (),
) -> list[Remark]:
    """Look over the metrics of a training: a rate near zero or exploding, an objective that turned, units that died.

    A rate that rises is healthy while the held-out bound rises with it, and no remark is made of
    it.

    Args:
        rows: The metrics, one dictionary an epoch, as ``History.rows``.
        clip: Limit on the gradient's norm per datum.
        latent_dim: How many latents share the rate, where it is known.
        before: What was seen before training: the cause of what is seen after it may be among it.
    """
    if not rows:
        return []
    slow = (
        _STANDARDISE
        if any(_STANDARDISE in remark.advice for remark in before)
        else "lower the learning rate"
    )
    results = [*_of_rate(rows, latent_dim), *_of_explosion(rows), *_of_turns(rows, slow)]
    return [*results, *_of_units_lost(rows), *_of_gradients(rows, clip, slow)]


def check_after(evaluation: Mapping[str, Any]) -> list[Remark]:
    """Look over what was measured after training: units that carry nothing, and a bound that is far off.

    Args:
        evaluation: What ``evaluation.json`` holds.
    """
    return [*_of_units(evaluation), *_of_gap(evaluation)]


def _of_units(evaluation: Mapping[str, Any]) -> Iterator[Remark]:
    active = (evaluation.get("active_units") or {}).get("active") or []
    idle = len(active) - sum(active)
    if active and idle == len(active):
        seen = f"none of {len(active)} latents is active on the test data"
        yield Remark("after", seen, "pyro_bvae.diagnose(vae, data) names the cause", grave=True)
    elif idle:
        seen = f"{idle} of {len(active)} latents are not active on the test data"
        yield Remark(
            "after",
            seen,
            "nothing is lost with fewer; pyro_bvae.diagnose(vae, data) names the cause",
        )


def _of_gap(evaluation: Mapping[str, Any]) -> Iterator[Remark]:
    gap, rate = (
        ((evaluation.get(name) or {}).get("value")) for name in ("variational_gap", "rate")
    )
    if gap is not None and rate and gap > _FAR * rate:
        seen = f"the ELBO is {gap:.3g} nats below the evidence, {100 * gap / rate:.0f}% of the rate of {rate:.3g} nats"
        yield Remark(
            "after",
            seen,
            "the verdict says which part of the gap is largest, and what makes it smaller",
        )


def _of_rate(rows: Sequence[dict[str, float]], latent_dim: int | None) -> Iterator[Remark]:
    """Say where the rate is next to nothing: in all, for so many latents, or with none of them active."""
    last = rows[-1]
    least = max(_NO_RATE, min(1.0, _NO_RATE_EACH * (latent_dim or 0)))
    none_active = last.get("active_units") == 0 and last["rate"] < 1
    if len(rows) >= _SOON and last["beta"] > 0 and (last["rate"] < least or none_active):
        of = (
            "the latents" if latent_dim is None else f"{latent_dim} latent{'s' * (latent_dim != 1)}"
        )
        seen = f"the rate is {last['rate']:.2g} nats at the end: {of} carry next to nothing (posterior collapse)"
        yield Remark("during", seen, "pyro_bvae.diagnose(vae, data) names the cause", grave=True)


def _of_explosion(rows: Sequence[dict[str, float]]) -> Iterator[Remark]:
    """Say where the rate of the last half grew by half, and the held-out bound fell: what it carries is no help."""
    half = rows[len(rows) // 2]
    last = rows[-1]
    if len(rows) < 2 * _SOON or "validation_elbo" not in last or half["beta"] != last["beta"]:
        return
    fall = half["validation_elbo"] - last["validation_elbo"]
    if last["rate"] > 1.5 * half["rate"] and fall > _RISE * abs(half["validation_elbo"]):
        grew = f"the rate grew from {half['rate']:.3g} to {last['rate']:.3g} nats"
        seen = f"{grew}, and the held-out ELBO fell by {fall:.3g}"
        yield Remark(
            "during", seen, "raise β, or stop earlier: the code is of the training data alone"
        )


def _of_units_lost(rows: Sequence[dict[str, float]]) -> Iterator[Remark]:
    """Say where fewer units are active than have been at the same β."""
    same = [row for row in rows if row["beta"] == rows[-1]["beta"] and "active_units" in row]
    if len(same) < _SOON:
        return
    most = max(same, key=lambda row: row["active_units"])
    lost = most["active_units"] - same[-1]["active_units"]
    if lost > 0:
        seen = f"{lost:g} of {most['active_units']:g} units that were active at epoch {most['epoch']:g} are not any more"
        yield Remark(
            "during", seen, "pyro_bvae.diagnose(vae, data) says whether there was signal for them"
        )


def _of_turns(rows: Sequence[dict[str, float]], slow: str) -> Iterator[Remark]:
    """Say where an objective is well above its best, among the epochs at the final β."""
    same = [row for row in rows if row["beta"] == rows[-1]["beta"]]
    for column, what in (
        ("validation_objective", "held-out objective"),
        ("objective", "training objective"),
    ):
        if column not in rows[-1] or len(same) < _SOON:
            continue
        best = min(same, key=lambda row: row[column])
        rise = same[-1][column] - best[column]
        if (
            rise > _RISE * max(1.0, abs(best[column]))
            and len(same) - same.index(best) > len(same) / 5
        ):
            rate = same[-1]["rate"] - best["rate"]
            seen = f"the {what} rose by {rise:.3g} nats since epoch {best['epoch']:g}, the rate by {rate:.3g}"
            advice = "early_stopping ends there, a smaller network or more data go further"
            if column == "objective":
                advice = f"{slow}, or clip gradients"
            yield Remark("during", seen, advice)
            return


def _of_gradients(
    rows: Sequence[dict[str, float]], clip: float | None, slow: str
) -> Iterator[Remark]:
    clipped = sum(row["gradient_norm"] >= clip for row in rows) if clip is not None else 0
    if clipped > len(rows) / 2:
        seen = f"the mean gradient norm was above its limit {clip:g} in {clipped} of {len(rows)} epochs"
        yield Remark("during", seen, f"{slow}, or raise gradient_clip if the loss falls steadily")
