r"""The training checklist as code: remarks before, during and after training.

Every remark has the number behind it. One that makes a training useless is grave, and ``fit`` warns
of it; all are in ``History.remarks``, in the checkpoint and on the page of the run.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import constraints

from pyro_bvae.core.context import Context, arguments
from pyro_bvae.core.errors import listed
from pyro_bvae.core.findings import Severity
from pyro_bvae.core.inputs.data import as_data
from pyro_bvae.core.inputs.public import exclusive, public
from pyro_bvae.core.module_modes import evaluating
from pyro_bvae.core.protocols import latent_dim_of, num_features_of, part_of
from pyro_bvae.core.seeds import PROBE_STREAM, seeded
from pyro_bvae.distributions import GreyBernoulli
from pyro_bvae.likelihoods import StandardizedScale
from pyro_bvae.program.sites import unwrapped
from pyro_bvae.training.checks.remarks import Remark
from pyro_bvae.training.initialization import last_bias

# Data that are looked at before training, and draws whose decodings are the decoder's start.
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
# Epochs before which there is no remark on the course of a training.
_SOON = 5


@exclusive
@torch.no_grad()
def check_before(
    vae: Any, x: Tensor, context: Context | None = None, beta: float = 1.0
) -> list[Remark]:
    r"""Look over data, parts and β before training.

    Constant features, features that are not scaled, values that another likelihood is meant for, a
    code as wide as the data, a decoder that starts far from the data's mean, β = 0; and, for a
    normal likelihood of fixed σ, a β above which nothing is encoded: where :math:`\beta \sigma^2`
    is above the largest eigenvalue of the data's covariance, the optimum of a linear decoder has
    rate 0 (Lucas et al. 2019).

    Args:
        vae: A module with a ``prior`` and a ``decoder``; of any other only the data are looked at.
        x: The data, ``(N, D)``; NaN is missing.
        context: Their context.
        beta: The β at the end of training.
    """
    x = as_data("x", x, None, num_features_of(vae))[:_LOOKED_AT]
    context = context and context.take(slice(_LOOKED_AT))
    remarks = list(_of_features(x)) if len(x) > 1 else []
    if beta == 0:
        seen = "β is 0, so the code is not held to the prior"
        advice = "this is an autoencoder; its samples from the prior mean nothing"
        remarks.append(Remark("no-prior", "warning", ("beta",), seen, advice))
    if part_of(vae, "prior") is None or part_of(vae, "decoder") is None:
        return remarks
    latent_dim = latent_dim_of(vae)
    if latent_dim is not None and latent_dim >= x.shape[1]:
        seen = f"the code has {latent_dim} latents for {x.shape[1]} features"
        advice = "fewer do; those that are not needed carry nothing, and cost time"
        remarks.append(Remark("wide-code", "warning", ("latent_dim",), seen, advice))
    with evaluating(vae), seeded(0, PROBE_STREAM):
        z = vae.prior().expand([min(_DRAWS, len(x))]).sample()
        decoded = vae.decoder(*arguments(z, context and context.take(slice(_DRAWS))))
    remarks += _of_likelihood(x, decoded)
    # A scale that is off is the cause of both.
    likelihood = part_of(vae, "decoder", "likelihood")
    scaled = isinstance(part_of(likelihood, "scale"), StandardizedScale)
    scales = [] if scaled else list(_of_scales(x, decoded))
    remarks += scales or _of_start(vae, x, context, decoded)
    if not (isinstance(likelihood, nn.Module) and any(True for _ in likelihood.parameters())):
        remarks += _of_threshold(x, decoded, beta)
    return remarks


def _of_features(x: Tensor) -> Iterator[Remark]:
    seen_values = x.nan_to_num(nan=torch.inf).amin(0), x.nan_to_num(nan=-torch.inf).amax(0)
    constant = (seen_values[0] >= seen_values[1]).nonzero().flatten().tolist()
    if constant:
        seen = f"{len(constant)} of {x.shape[1]} features have one value in all of {len(x)} data"
        seen += f" ({_columns(constant)})"
        advice = "they carry nothing; look whether they should vary"
        grave = len(constant) == x.shape[1]
        severity: Severity = "error" if grave else "warning"
        yield Remark("constant-features", severity, tuple(constant), seen, advice)


def _columns(numbers: Sequence[int]) -> str:
    """Return the numbers of some features, from 0."""
    return f"column{'s' * (len(numbers) > 1)} {listed(numbers, 10)}"


def _moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of each feature, over its observed values."""
    x = x.double()
    mean = x.nanmean(0)
    return mean, (x - mean).square().nanmean(0).sqrt()


def _of_scales(x: Tensor, decoded: Any) -> Iterator[Remark]:
    """Remark on features so large that one outweighs all others in a density of reals."""
    if len(x) < 2 or unwrapped(decoded).support is not constraints.real:
        return
    mean, spread = _moments(x)
    size = torch.maximum(mean.abs(), spread)
    wide = ((size > _WIDE) & (spread > 0)).nonzero().flatten().tolist()
    if not wide or not bool(torch.isfinite(size[wide]).all()):  # an error in training
        return
    largest = max(wide, key=lambda column: float(size[column]))
    seen = f"{len(wide)} of {x.shape[1]} features are not scaled ({_columns(wide)}): column"
    seen += f" {largest} has mean {float(mean[largest]):.3g} and sd {float(spread[largest]):.3g}"
    grave = float(size[largest]) > _FAR_TOO_WIDE
    severity: Severity = "error" if grave else "warning"
    yield Remark(
        "unscaled-features", severity, tuple(wide), seen, f"--standardize, or {_STANDARDISE}"
    )


def _of_likelihood(x: Tensor, decoded: Any) -> Iterator[Remark]:
    """Remark on values that are those of another likelihood."""
    values = x[~torch.isnan(x)]
    base = unwrapped(decoded)
    bits = bool(((values == 0) | (values == 1)).all())
    if isinstance(base, GreyBernoulli) and not bits:
        share = float(((values > 0) & (values < 1)).float().mean())
        seen = f"{100 * share:.0f}% of the values are greys,"
        seen += " of which a Bernoulli has a cross-entropy and no density"
        advice = "binarise them, or take ContinuousBernoulliLikelihood, to compare evidence"
        yield Remark("grey-pixels", "warning", ("x",), seen, advice)
    if base.support is not constraints.real:
        return
    if bits:
        seen = "all values are 0 or 1, and the likelihood is a density of real numbers"
        yield Remark("binary-data", "warning", ("x",), seen, "take BernoulliLikelihood")
    elif bool((values == values.round()).all()) and bool((values >= 0).all()):
        most = float(values.max())
        seen = f"all values are counts, up to {most:g}, and the likelihood is a density of"
        seen += " real numbers"
        pixels = ", or divide pixels by 255" if most == 255 else ""
        advice = f"take NegativeBinomialLikelihood{pixels}"
        yield Remark("count-data", "warning", ("x",), seen, advice)


def _of_start(vae: Any, x: Tensor, context: Context | None, decoded: Any) -> Iterator[Remark]:
    """Remark on a decoder that starts far from the data's mean, with a remedy, if there is one."""
    try:
        start = decoded.mean.reshape(-1, x.shape[1]).mean(0)
    except (NotImplementedError, RuntimeError):
        return
    mean, spread = _moments(x)
    varies = spread > 0  # not of features that are constant or never observed
    unit = spread[varies].square().mean().sqrt()
    off = float((start - mean)[varies].square().mean().sqrt() / unit) if bool(varies.any()) else 0.0
    if not off > _OFF:
        return
    seen = f"the untrained decoder is {off:.1f} standard deviations of the data off their mean"
    last, likelihood = last_bias(vae, context), part_of(vae, "decoder", "likelihood")
    if last is None or likelihood is None:
        advice = "a decoder whose network ends with a bias could start there; training finds it"
        yield Remark("decoder-start", "warning", ("x",), seen, advice)
        return
    # The bias moves its own part of the mean, and not the part that latents add.
    given = () if context is None else (context.take(slice(_DRAWS)),)
    count = min(_DRAWS, len(x)) if given else 1
    alone = likelihood(last.bias[last.places].expand(count, -1), *given).mean
    alone = alone.reshape(-1, x.shape[1]).mean(0)
    left = (_shared(mean, last.places) - mean).square() + (start - alone).square()
    if float(left[varies].mean().sqrt() / unit) < (1 - _GAIN) * off:
        advice = "--start-at-mean, or training.start_at_mean(vae, x), sets the bias of its last"
        advice += " layer"
        yield Remark("decoder-start", "warning", ("x",), seen, advice)


def _shared(mean: Tensor, places: Tensor) -> Tensor:
    """Return the mean of each feature over all that share its entry of the last bias."""
    groups = places[: len(mean)]  # by a likelihood's first parameter of each feature
    count = int(places.max()) + 1
    known = torch.isfinite(mean)
    sums, sizes = mean.new_zeros(count), mean.new_zeros(count)
    sums.index_add_(0, groups, mean.where(known, 0)), sizes.index_add_(0, groups, known.double())
    return (sums / sizes)[groups]


def _of_threshold(x: Tensor, decoded: Any, beta: float) -> Iterator[Remark]:
    """Remark on a β above the largest threshold of a normal likelihood of fixed scale."""
    base = unwrapped(decoded)
    if not isinstance(base, torch.distributions.Normal) or bool(torch.isnan(x).any()) or len(x) < 2:
        return
    if bool(base.scale.amax() > base.scale.amin()):  # it varies with the decoder
        return
    noise = float(base.scale.square().mean())
    covariance = torch.cov(x.T.double(), correction=0).reshape(x.shape[1], -1)
    if not bool(torch.isfinite(covariance).all()):  # data too large to be squared
        return
    largest = float(torch.linalg.eigvalsh(covariance)[-1])
    if 0 < largest < beta * noise:
        seen = f"β σ² is {beta * noise:.3g}, above the largest eigenvalue {largest:.3g} of the"
        seen += " data's covariance"
        least = f"{largest / noise:.3g}"
        advice = f"every latent will collapse; take β below {least}, or a smaller scale"
        yield Remark("collapse", "error", ("beta",), seen, advice)


@public
def check_during(
    rows: Sequence[dict[str, float]],
    clip: float | None = None,
    *,
    latent_dim: int | None = None,
    before: Sequence[Remark] = (),
) -> list[Remark]:
    """Look over the metrics of a training: its rate, objective, active units and gradients.

    A rate that rises is healthy while the held-out bound rises with it, and no remark is made of
    it.

    Args:
        rows: The metrics, one dictionary an epoch, as ``History.rows``.
        clip: Limit on the gradient's norm per datum.
        latent_dim: Number of latents that share the rate, where it is known.
        before: The remarks before training, which may hold the cause of those after it.
    """
    if not rows:
        return []
    unscaled = any(_STANDARDISE in remark.advice for remark in before)
    slow = _STANDARDISE if unscaled else "lower the learning rate"
    results = [*_of_rate(rows, latent_dim), *_of_explosion(rows), *_of_turns(rows, slow)]
    return [*results, *_of_units_lost(rows), *_of_gradients(rows, clip, slow)]


@public
def check_after(evaluation: Mapping[str, Any]) -> list[Remark]:
    """Look over an evaluation after training: idle units, and a loose bound.

    Args:
        evaluation: The content of ``evaluation.json``.
    """
    results = []
    active = (evaluation.get("active_units") or {}).get("active") or []
    idle = len(active) - sum(active)
    if active and idle == len(active):
        seen = f"none of {len(active)} latents is active on the test data"
        advice = "pyro_bvae.diagnose(vae, data) names the cause"
        results.append(Remark("collapse", "error", tuple(range(idle)), seen, advice, "after"))
    elif idle:
        seen = f"{idle} of {len(active)} latents are not active on the test data"
        advice = "nothing is lost with fewer; pyro_bvae.diagnose(vae, data) names the cause"
        which = tuple(number for number, works in enumerate(active) if not works)
        results.append(Remark("idle-latents", "note", which, seen, advice, "after"))
    names = ("variational_gap", "rate")
    gap, rate = ((evaluation.get(name) or {}).get("value") for name in names)
    if gap is not None and rate and gap > _FAR * rate:
        share = f"{100 * gap / rate:.0f}% of the rate of {rate:.3g} nats"
        seen = f"the ELBO is {gap:.3g} nats below the evidence, {share}"
        advice = "the verdict says which part of the gap is largest, and what makes it smaller"
        results.append(Remark("loose-bound", "warning", ("elbo",), seen, advice, "after"))
    return results


def _of_rate(rows: Sequence[dict[str, float]], latent_dim: int | None) -> Iterator[Remark]:
    """Remark on a rate next to nothing: in all, for so many latents, or with none active."""
    last = rows[-1]
    least = max(_NO_RATE, min(1.0, _NO_RATE_EACH * (latent_dim or 0)))
    none_active = last.get("active_units") == 0 and last["rate"] < 1
    if len(rows) >= _SOON and last["beta"] > 0 and (last["rate"] < least or none_active):
        plural = "s" * (latent_dim != 1)
        of = "the latents" if latent_dim is None else f"{latent_dim} latent{plural}"
        seen = f"the rate is {last['rate']:.2g} nats at the end: {of} carry next to nothing"
        seen += " (posterior collapse)"
        advice = "pyro_bvae.diagnose(vae, data) names the cause"
        yield Remark("collapse", "error", ("rate",), seen, advice, "during")


def _of_explosion(rows: Sequence[dict[str, float]]) -> Iterator[Remark]:
    """Remark on a rate that grew by half in the last half, while the validation bound fell."""
    half = rows[len(rows) // 2]
    last = rows[-1]
    if len(rows) < 2 * _SOON or "validation_elbo" not in last or half["beta"] != last["beta"]:
        return
    fall = half["validation_elbo"] - last["validation_elbo"]
    if last["rate"] > 1.5 * half["rate"] and fall > _RISE * abs(half["validation_elbo"]):
        grew = f"the rate grew from {half['rate']:.3g} to {last['rate']:.3g} nats"
        seen = f"{grew}, and the held-out ELBO fell by {fall:.3g}"
        advice = "raise β, or stop earlier: the code is of the training data alone"
        yield Remark("overfitting", "warning", ("rate",), seen, advice, "during")


def _of_units_lost(rows: Sequence[dict[str, float]]) -> Iterator[Remark]:
    """Remark on fewer active units than there were at the same β."""
    same = [row for row in rows if row["beta"] == rows[-1]["beta"] and "active_units" in row]
    if len(same) < _SOON:
        return
    most = max(same, key=lambda row: row["active_units"])
    lost = most["active_units"] - same[-1]["active_units"]
    if lost > 0:
        seen = f"{lost:g} of {most['active_units']:g} units that were active at epoch"
        seen += f" {most['epoch']:g} are not any more"
        advice = "pyro_bvae.diagnose(vae, data) says whether there was signal for them"
        yield Remark("lost-units", "warning", ("active_units",), seen, advice, "during")


def _of_turns(rows: Sequence[dict[str, float]], slow: str) -> Iterator[Remark]:
    """Remark on an objective well above its best, among the epochs at the final β."""
    same = [row for row in rows if row["beta"] == rows[-1]["beta"]]
    names = {"validation_objective": "held-out objective", "objective": "training objective"}
    for column, name in names.items():
        if column not in rows[-1] or len(same) < _SOON:
            continue
        best = min(same, key=lambda row: row[column])
        rise = same[-1][column] - best[column]
        late = len(same) - same.index(best) > len(same) / 5
        if late and rise > _RISE * max(1.0, abs(best[column])):
            rate = same[-1]["rate"] - best["rate"]
            seen = f"the {name} rose by {rise:.3g} nats since epoch {best['epoch']:g},"
            seen += f" the rate by {rate:.3g}"
            advice = "early_stopping ends there, a smaller network or more data go further"
            if column == "objective":
                advice = f"{slow}, or clip gradients"
            yield Remark("risen-objective", "warning", (column,), seen, advice, "during")
            return


def _of_gradients(
    rows: Sequence[dict[str, float]], clip: float | None, slow: str
) -> Iterator[Remark]:
    clipped = sum(row["gradient_norm"] >= clip for row in rows) if clip is not None else 0
    if clipped > len(rows) / 2:
        seen = f"the mean gradient norm was above its limit {clip:g} in {clipped} of"
        seen += f" {len(rows)} epochs"
        advice = f"{slow}, or raise gradient_clip if the loss falls steadily"
        yield Remark("clipped-gradients", "warning", ("gradient_norm",), seen, advice, "during")
