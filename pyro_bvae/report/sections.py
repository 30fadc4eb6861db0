"""The figures of the page: the model on some test data, drawn by the plots."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from pyro_bvae import plots
from pyro_bvae.priors import NormalPrior
from pyro_bvae.report.before_after import before_and_after
from pyro_bvae.runs._evaluate import count_checks_of

NUM_SAMPLES, NUM_POINTS, NUM_LATENTS, NUM_PAIRS, NUM_STEPS, NUM_CHECKED = 40, 3000, 10, 4, 9, 500


class Section(NamedTuple):
    """A heading, a figure, and the sentence below it; without a figure, the sentence says why."""

    title: str
    figure: Figure | None
    caption: str


def sections(run: Any, evaluation: Mapping[str, Any]) -> list[Section]:
    """Return the sections of the page, without those that a run has no data for.

    Args:
        run: A loaded run: ``vae``, ``splits`` and ``history`` are used.
        evaluation: The content of its ``evaluation.json``.
    """
    results = [
        _gaps(evaluation),
        None if (improved := before_and_after(run)) is None else Section(*improved),
        _training(run),
        _reconstructions(run),
        _samples(run),
        _latents(run, evaluation),
        *(_images(run, evaluation) if run.splits.test.image_shape is not None else ()),
        _counts(run),
        _calibration(evaluation),
        _kl(evaluation),
    ]
    return [section for section in results if section is not None]


def _gaps(evaluation: Mapping[str, Any]) -> Section | None:
    if any(evaluation.get(key) is None for key in ("variational_gap", "evidence", "elbo")):
        return None
    caption = (
        "What the ELBO misses of the evidence, and why: the three parts add up to the "
        "variational gap."
    )
    if evaluation.get("families"):
        caption += " Below, what richer guides would leave of the approximation gap."
    # The verdict stands at the head of the page.
    return Section("Where the ELBO loses", plots.gap_bar({**evaluation, "verdict": None}), caption)


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
    return Section("Posterior predictive checks", plots.count_checks(checks), caption)


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
    return Section("Calibration of the guide", plots.guide_calibration(found), caption)


def _training(run: Any) -> Section | None:
    if not len(run.history.get("epoch", ())):
        return None
    caption = "Training makes the objective small; distortion and rate are its two parts."
    return Section("Training", plots.training_curves(run.history), caption)


def _reconstructions(run: Any) -> Section:
    test = run.splits.test[:10]
    means = run.vae.reconstruct(test.x, test.context)
    if test.image_shape is None:
        title = "Data and their reconstructions"
        figure = plots.features(test.x, means, title, test.feature_names)
    else:
        figure = plots.reconstructions(test.x, means, test.image_shape)
    return Section(
        "Reconstructions", figure, "Test data, and the decoder's means at their posterior means."
    )


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
    )


def _latents(run: Any, evaluation: Mapping[str, Any]) -> Section:
    test = run.splits.test[:NUM_POINTS]
    normal = isinstance(run.vae.prior, NormalPrior)
    means, kl = run.vae.encode(test.x, test.context), _kl_values(evaluation)
    figure = plots.latent_scatter(means, test.labels, kl, test.label_names, normal_prior=normal)
    which = "highest KL" if kl is not None else "most varied posterior means"
    circles = " Inside the circles, samples from the prior are common." if normal else ""
    return Section("Latent space", figure, f"Test data in the two latents of {which}.{circles}")


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
    return Section("Traversals", figure, caption)


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
    return Section("Interpolation", plots.interpolation(images, test.image_shape), caption)


def _kl(evaluation: Mapping[str, Any]) -> Section | None:
    kl, units = _kl_values(evaluation), evaluation.get("active_units")
    if kl is None or units is None:
        return None
    figure = plots.kl_bars(
        kl, units["active"], evaluation["kl_per_dimension"].get("standard_errors")
    )
    return Section(
        "Rate per latent",
        figure,
        "How many nats each latent says about a datum; inactive ones say next to nothing.",
    )


def _kl_values(evaluation: Mapping[str, Any]) -> np.ndarray | None:
    kl = evaluation.get("kl_per_dimension")
    return None if kl is None else np.asarray(kl["values"], dtype=float)


def _decode(run: Any, codes: Tensor, rows: Tensor) -> Tensor:
    """Decode ``(R, S, L)`` codes in the contexts of test data, of indices ``rows`` ``(R, S)``."""
    context = run.splits.test[rows.flatten()].context
    images: Tensor = run.vae.decode(codes.flatten(0, 1), context)
    return images.unflatten(0, codes.shape[:2])
