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
from pyro_bvae.report.live.charts import Chart, gap_chart, kl_chart, training_charts
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
    reading = "a line inside the cloud of copies: the model draws such data."
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
    test = run.splits.test[: 10 if images else 1]
    means = run.vae.reconstruct(test.x, test.context)
    if test.image_shape is None:
        title = "A datum and its reconstruction"
        figure = plots.features(test.x, means, title, test.feature_names)
    else:
        figure = plots.reconstructions(test.x, means, test.image_shape)
    caption = "Test data, and the decoder's means at their posterior means."
    reading = "the closer the two, the more of a datum its code keeps."
    return Section("Reconstructions", figure, caption, reading)


def _samples(run: Any) -> Section:
    test = run.splits.test[:NUM_SAMPLES]
    samples = run.vae.generate(
        NUM_SAMPLES if test.context is None else len(test), test.context, seed=0
    )
    title = "New data: draws from the prior, decoded"
    if test.image_shape is None:
        figure = plots.features(samples, None, title, test.feature_names)
    else:
        figure = plots.image_grid(samples, test.image_shape, title, num=NUM_SAMPLES)
    return Section(
        "Samples from the prior",
        figure,
        "Latents drawn from the prior, and the decoder's means there.",
        "samples that look like no datum lie where the prior has mass and the codes have none.",
    )


def _images(run: Any, evaluation: Mapping[str, Any]) -> Iterator[Section | None]:
    yield _traversals(run, evaluation)
    yield _interpolation(run)


def _traversals(run: Any, evaluation: Mapping[str, Any]) -> Section | None:
    units = evaluation.get("active_units")
    if units is None:
        return None
    kl = _kl_values(evaluation)
    order = np.argsort(-np.asarray(units["variances"] if kl is None else kl), kind="stable")
    latents = [int(latent) for latent in order if units["active"][latent]][:NUM_LATENTS]
    if not latents:
        return Section(
            "Traversals", None, "No latent is active: the codes say nothing about the data."
        )
    datum = run.splits.test[:1]
    values = torch.linspace(-3, 3, NUM_STEPS)
    codes = run.vae.encode(datum.x, datum.context).repeat(len(latents), NUM_STEPS, 1)
    for row, latent in enumerate(latents):
        codes[row, :, latent] = values
    images = _decode(run, codes, torch.zeros(codes.shape[:2], dtype=torch.long))
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
    images = _decode(run, (1 - share) * ends[:, 0] + share * ends[:, 1], rows)
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


def _decode(run: Any, codes: Tensor, rows: Tensor) -> Tensor:
    """Decode ``(R, S, L)`` codes in the contexts of test data, of indices ``rows`` ``(R, S)``."""
    context = run.splits.test[rows.flatten()].context
    images: Tensor = run.vae.decode(codes.flatten(0, 1), context)
    return images.unflatten(0, codes.shape[:2])
