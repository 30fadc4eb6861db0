"""The figures of the page: the model on some test data, drawn by the plots."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from pyro_bvae import plots
from pyro_bvae.report.before_after import before_and_after
from pyro_bvae.report.live.charts import (
    Chart,
    gap_chart,
    kl_chart,
    moments,
    profile_chart,
    ranges_chart,
    training_charts,
)
from pyro_bvae.report.live.content import kind_of
from pyro_bvae.report.tables import few_gaps
from pyro_bvae.runs._evaluate import count_checks_of

NUM_SAMPLES, NUM_LATENTS, NUM_PAIRS, NUM_STEPS, NUM_CHECKED = 40, 10, 4, 9, 500


class Section(NamedTuple):
    """A heading, a figure or charts, and the sentence below; without both, it says why.

    Attributes:
        title: The heading.
        figure: A picture.
        caption: The sentence below it.
        reading: How to read it.
        charts: Charts that the page draws from their data.
    """

    title: str
    figure: Figure | None
    caption: str
    reading: str = ""
    charts: Sequence[Chart] = ()


def opening(run: Any, evaluation: Mapping[str, Any]) -> list[Section]:
    """Return the figures of the first screen: the gap and some reconstructions.

    Args:
        run: A loaded run: ``vae`` and ``splits`` are used.
        evaluation: The content of its ``evaluation.json``.
    """
    return [each for each in (_gaps(evaluation), _reconstructions(run)) if each is not None]


def sections(run: Any, evaluation: Mapping[str, Any], names: Sequence[str] = ()) -> list[Section]:
    """Return the sections of the page, without those that a run has no data for.

    Args:
        run: A loaded run: ``vae``, ``splits`` and ``history`` are used.
        evaluation: The content of its ``evaluation.json``.
        names: The name of each latent.
    """
    results = [
        None if (improved := before_and_after(run)) is None else Section(*improved),
        _kl(evaluation, names),
        *(_images(run, evaluation) if run.splits.test.image_shape is not None else ()),
        _samples(run),
        _counts(run),
        _calibration(evaluation),
        _training(run),
    ]
    return [section for section in results if section is not None]


def _gaps(evaluation: Mapping[str, Any]) -> Section | None:
    chart = gap_chart(evaluation)
    if chart is None:
        return None
    caption = (
        "What the ELBO misses of the evidence, and why: the three parts add up to the "
        "variational gap."
    )
    if len(chart.rows) == 1:
        caption = "What the ELBO misses of the evidence; an evaluation tells why."
    if (few := few_gaps(evaluation)) is not None:
        caption += f" They are those of {few} data, ELBO and evidence those of all."
    if evaluation.get("families"):
        caption += " Thin: what richer guides would leave of the approximation gap."
    reading = "each bar starts where the one above ends, from the ELBO to the evidence."
    return Section("Where the ELBO loses", None, caption, reading, [chart])


def _counts(run: Any) -> Section | None:
    """Return the posterior predictive checks of counts; None where the data are none."""
    test = run.splits.test[:NUM_CHECKED].dense()
    checks = count_checks_of(run, test)
    if checks is None:
        return None
    verdict = checks.verdict
    caption = (
        "Are counts that the model draws like those that it saw? Latents from the guide, counts "
        "from the likelihood,"
        f" {len(checks.total.simulated)} copies of {len(test)} test data; lines are two standard "
        "deviations of a copy."
        f" {verdict[:1].upper()}{verdict[1:]}. In all, {checks}."
    )
    reading = (
        "points on the diagonal, blue points among black ones, and a blue line along the grey: the "
        "model draws such data."
    )
    return Section("Posterior predictive checks", plots.count_checks(checks), caption, reading)


def _calibration(evaluation: Mapping[str, Any]) -> Section | None:
    """Return the calibration of the guide; None where it was not asked for."""
    found = evaluation.get("calibration")
    if found is None:
        return None
    caption = (
        f"Is the guide the posterior? On {found['num_simulations']} data drawn from the model, the"
        " true values are ranked among the guide's draws; lines of a right guide stay in the grey"
        f" band. {found['verdict']}."
    )
    reading = "a line above or below the band: the guide is too narrow, too wide or shifted."
    return Section("Calibration of the guide", plots.guide_calibration(found), caption, reading)


def _training(run: Any) -> Section | None:
    if not len(run.history.get("epoch", ())):
        return None
    caption = "Training makes the objective small; distortion and rate are its two parts."
    reading = "curves that still fall at the right ask for more epochs."
    return Section("Training", None, caption, reading, training_charts(run.history))


def _reconstructions(run: Any) -> Section:
    images = run.splits.test.image_shape is not None
    test = run.splits.test[: 10 if images else 1].dense()
    means = run.vae.reconstruct(test.x, test.context)
    if images:
        figure = plots.reconstructions(test.x, means, test.image_shape)
        caption = "Test data, and the decoder's means at their posterior means."
        reading = "the closer the two, the more of a datum its code keeps."
        return Section("Reconstructions", figure, caption, reading)
    counted = kind_of(run.vae, None) == "count"
    scale = None if counted else moments(run.splits.test[:NUM_CHECKED].dense().x)
    chart = profile_chart(_names(test), means[0], test.x[0], scale)
    caption = "The first test datum, and the decoder's mean at its posterior mean."
    if len(chart.rows) < test.num_features:
        caption += f" Shown are {len(chart.rows)} of {test.num_features} features."
    reading = "the nearer bars end to the strokes, the more of the datum its code keeps."
    return Section("A datum and its reconstruction", None, caption, reading, [chart])


def _names(data: Any) -> Sequence[str]:
    """Return the names of features."""
    return data.feature_names or [f"x{i}" for i in range(data.num_features)]


def _samples(run: Any) -> Section:
    """Return draws from the prior: as images, or as the ranges of features."""
    if run.splits.test.image_shape is None:
        return _ranges(run)
    test = run.splits.test[:NUM_SAMPLES]
    samples = run.vae.generate(
        NUM_SAMPLES if test.context is None else len(test), test.context, seed=0
    )
    title = "New data: draws from the prior, decoded"
    return Section(
        "Samples from the prior",
        plots.image_grid(samples, test.image_shape, title, num=NUM_SAMPLES),
        "Latents drawn from the prior, and the decoder's means there.",
        "samples that look like no datum lie where the prior has mass and the codes have none.",
    )


def _ranges(run: Any) -> Section:
    test = run.splits.test[:NUM_CHECKED].dense()
    count = NUM_CHECKED if test.context is None else len(test)
    drawn = run.vae.generate(count, test.context, noise=True, seed=0)
    chart = ranges_chart(_names(test), test.x, drawn)
    caption = (
        f"Latents from the prior, data from the likelihood there: {count} draws beside {len(test)} "
        "test data. Lines go from 10% to 90% of a group, strokes are medians."
    )
    if len(chart.rows) < test.num_features:
        caption += f" Shown are the {len(chart.rows)} features that differ most."
    reading = "two lines of equal ends: the model draws such values of this feature."
    return Section("Samples from the prior", None, caption, reading, [chart])


def _images(run: Any, evaluation: Mapping[str, Any]) -> Iterator[Section | None]:
    yield _traversals(run, evaluation)
    yield _interpolation(run)


def most_used(evaluation: Mapping[str, Any], most: int) -> list[int] | None:
    """Return the active latents of largest KL, or else variance; None where they are unknown."""
    units = evaluation.get("active_units")
    if units is None:
        return None
    kl = _kl_values(evaluation)
    order = np.argsort(-np.asarray(units["variances"] if kl is None else kl), kind="stable")
    return [int(latent) for latent in order if units["active"][latent]][:most]


def traversed(vae: Any, datum: Any, latents: Sequence[int], values: Tensor) -> Tensor:
    """Return images ``(R, S, D)``: each of R latents of a datum alone takes S values.

    Args:
        vae: The model.
        datum: A data set of one datum.
        latents: The numbers of the latents.
        values: The values, ``(S,)``.
    """
    codes = vae.encode(datum.x, datum.context).repeat(len(latents), len(values), 1)
    for row, latent in enumerate(latents):
        codes[row, :, latent] = values
    context = datum[torch.zeros(codes[..., 0].numel(), dtype=torch.long)].context
    images: Tensor = vae.decode(codes.flatten(0, 1), context)
    return images.unflatten(0, codes.shape[:2])


def _traversals(run: Any, evaluation: Mapping[str, Any]) -> Section | None:
    latents = most_used(evaluation, NUM_LATENTS)
    if latents is None:
        return None
    if not latents:
        return Section(
            "Traversals", None, "No latent is active: the codes say nothing about the data."
        )
    datum, values = run.splits.test[:1], torch.linspace(-3, 3, NUM_STEPS)
    images = traversed(run.vae, datum, latents, values)
    kl = _kl_values(evaluation)
    shown = None if kl is None else kl[latents]
    around = "the code of a test datum"
    figure = plots.traversals(images, values, shown, datum.image_shape, latents, around=around)
    caption = (
        "What each active latent changes in the first test datum, as it alone moves from −3 to 3."
    )
    reading = "a row whose images change shows the meaning of its latent; left low, right high."
    return Section("Traversals", figure, caption, reading)


def _interpolation(run: Any) -> Section | None:
    test = run.splits.test[: 2 * NUM_PAIRS]
    pairs = len(test) // 2
    if not pairs:
        return None
    ends = run.vae.encode(test.x, test.context)[: 2 * pairs].reshape(pairs, 2, 1, -1)
    share = torch.linspace(0, 1, NUM_STEPS).unsqueeze(-1).to(ends)
    rows = torch.arange(0, 2 * pairs, 2).unsqueeze(-1).expand(pairs, NUM_STEPS)
    codes = (1 - share) * ends[:, 0] + share * ends[:, 1]
    decoded = run.vae.decode(codes.flatten(0, 1), run.splits.test[rows.flatten()].context)
    images = decoded.unflatten(0, codes.shape[:2])
    caption = "Decoded on the way between the codes of two test data"
    caption += "." if test.context is None else ", in the context of the first of them."
    reading = "images between the ends that look like data: the latent space has no hole there."
    figure = plots.interpolation(images, test.image_shape)
    return Section("Interpolation", figure, caption, reading)


def _kl(evaluation: Mapping[str, Any], names: Sequence[str]) -> Section | None:
    chart = kl_chart(evaluation, names)
    if chart is None:
        return None
    caption = "How many nats each latent says about a datum; inactive ones say next to nothing."
    reading = "the sum of the bars is the rate, where the guide's latents are independent."
    return Section("Rate per latent", None, caption, reading, [chart])


def _kl_values(evaluation: Mapping[str, Any]) -> np.ndarray | None:
    kl = evaluation.get("kl_per_dimension")
    return None if kl is None else np.asarray(kl["values"], dtype=float)
