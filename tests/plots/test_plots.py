"""Figures show the numbers they are given: heights, lengths, positions and words."""

import matplotlib as mpl
import numpy as np
import pytest
import torch
from matplotlib._pylab_helpers import Gcf
from matplotlib.figure import Figure

from pyro_bvae import plots
from pyro_bvae.core.errors import InputError
from pyro_bvae.evaluation import Estimate, InferenceGaps
from pyro_bvae.evaluation.marginal import ElboParts
from pyro_bvae.plots import style


def estimate(value, standard_error=0.1, monte_carlo_error=0.01):
    return {
        "value": value,
        "standard_error": standard_error,
        "monte_carlo_error": monte_carlo_error,
    }


def gaps(approximation=0.5, beta=2.0, amortization=1.0, note=None):
    parts = {"approximation_gap": approximation, "beta_gap": beta, "amortization_gap": amortization}
    known = {key: None if value is None else estimate(value) for key, value in parts.items()}
    total = 3.5 if None in parts.values() else sum(parts.values())
    whole = {
        "variational_gap": estimate(total, 0.2),
        "evidence": estimate(-20.0),
        "elbo": estimate(-20.0 - total),
    }
    return {**whole, **known, "gaps_note": note}


def history(epochs=6, beta=None, validation=True):
    epoch = list(range(1, epochs + 1))
    columns = {"epoch": epoch, "beta": beta or [4.0] * epochs}
    for name, scale in (("distortion", 3.0), ("rate", 1.0), ("objective", 7.0)):
        columns[name] = [scale * (10 - e) for e in epoch]
        if validation:
            columns[f"validation_{name}"] = [scale * (10 + abs(e - 4)) for e in epoch]
    return columns


def draw(figure: Figure) -> Figure:
    figure.canvas.draw()
    return figure


def texts(figure: Figure) -> str:
    """All words of a figure, drawn ones included."""
    draw(figure)
    return "\n".join(text.get_text() for text in figure.findobj(mpl.text.Text))


def bars(axes):
    return [patch for patch in axes.patches if isinstance(patch, mpl.patches.Rectangle)]


def error_bars(axes):
    """The (from, to) of every error bar, in the order drawn."""
    lines = [bar[-1][0].get_segments() for bar in axes.containers if hasattr(bar, "has_xerr")]
    return [segment for segments in lines for segment in segments]


# --- training curves


def test_training_curves_draws_training_and_validation_and_the_best_epoch():
    columns = history()
    figure = plots.training_curves(columns)
    assert [axes.get_title(loc="left") for axes in figure.axes] == [
        "Distortion D",
        "Rate R",
        "Objective, D + βR",
    ]
    for axes, name in zip(figure.axes, ("distortion", "rate", "objective"), strict=True):
        train, validation, best = axes.lines
        assert list(train.get_ydata()) == columns[name]
        assert list(validation.get_ydata()) == columns[f"validation_{name}"]
        assert set(best.get_xdata()) == {4}
        assert (axes.get_xlabel(), axes.get_ylabel()) == ("epoch", "nats per datum")
    assert "epoch 4" in texts(figure)


def test_training_curves_show_beta_only_when_it_changes():
    beta = [0.0, 1.0, 2.0, 4.0, 4.0, 4.0]
    figure = plots.training_curves(history(beta=beta))
    assert len(figure.axes) == 4
    assert list(figure.axes[3].lines[0].get_ydata()) == beta
    assert "validation: at the last β" in figure.axes[2].get_title(loc="left")
    assert len(plots.training_curves(history()).axes) == 3


@pytest.mark.parametrize("absent", [False, True])
def test_training_curves_without_validation(absent):
    columns = history(validation=False)
    if not absent:
        columns |= {
            f"validation_{name}": [float("nan")] * 6 for name in ("distortion", "rate", "objective")
        }
    figure = plots.training_curves(columns)
    assert [len(axes.lines) for axes in figure.axes] == [1, 1, 1]
    assert "validation" not in texts(figure)


def test_training_curves_skip_the_epochs_that_were_not_validated():
    columns = history() | {
        "validation_rate": [float("nan"), 5.0, float("nan"), 3.0, float("nan"), 4.0]
    }
    validation = plots.training_curves(columns).axes[1].lines[1]
    assert list(validation.get_xdata()) == [2, 4, 6]


def test_training_curves_of_a_single_epoch_are_points():
    figure = draw(plots.training_curves(history(epochs=1)))
    assert figure.axes[0].lines[0].get_marker() == "o"
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == ["0", "1", "2"]


# --- images


def test_reconstructions_lie_below_their_data():
    x, means = torch.rand(12, 6), torch.rand(12, 6)
    figure = plots.reconstructions(x, means, (1, 2, 3), num=5)
    picture = figure.axes[0].images[0].get_array()
    assert picture.shape == (2 * 2 + 1, 5 * 3 + 4)
    np.testing.assert_allclose(picture[:2, 4:7], x[1].reshape(2, 3))
    np.testing.assert_allclose(picture[3:, 4:7], means[1].reshape(2, 3))
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == [
        "data",
        "reconstruction",
    ]


def test_colour_images_keep_their_colours():
    x = torch.zeros(2, 3, 2, 2)
    x[0, 0], x[1, 2] = 1.0, 1.0
    picture = plots.image_grid(x.flatten(1), (3, 2, 2), "images").axes[0].images[0].get_array()
    assert tuple(picture[0, 0]) == (1, 0, 0)
    assert tuple(picture[0, -1]) == (0, 0, 1)
    assert tuple(picture[0, 2]) == (1, 1, 1)


def test_image_grid_leaves_the_rest_of_the_last_row_blank():
    figure = plots.image_grid(np.ones((13, 4)), (2, 2), "ones", num=12)
    picture = figure.axes[0].images[0].get_array()
    assert picture.shape == (5, 29)
    assert picture.mask[3:, 5:].all()
    assert not picture.mask[3:, :2].any()
    assert figure.axes[0].get_title(loc="left") == "ones"


def test_values_outside_the_unit_interval_share_one_grey_scale():
    picture = (
        plots.image_grid(np.array([[-4.0, 0.0], [2.0, 4.0]]), (1, 2), "real values")
        .axes[0]
        .images[0]
        .get_array()
    )
    np.testing.assert_allclose(picture.compressed(), [0.0, 0.5, 0.75, 1.0])


def test_pixels_a_little_outside_the_unit_interval_keep_black_and_white():
    picture = (
        plots.image_grid(np.array([[-0.1, 0.0], [0.5, 1.2]]), (1, 2), "means")
        .axes[0]
        .images[0]
        .get_array()
    )
    np.testing.assert_allclose(picture.compressed(), [0.0, 0.0, 0.5, 1.0])


def test_constant_images_are_drawn():
    draw(plots.image_grid(np.full((3, 4), 7.0), (2, 2), "sevens"))


@pytest.mark.parametrize("shape", [(1, 3, 3), (2, 2, 1), (4,), (1, 1, 2, 2)])
def test_an_image_shape_that_does_not_fit_is_an_error(shape):
    with pytest.raises(InputError, match="'image_shape' must be"):
        plots.image_grid(np.ones((2, 4)), shape, "no images")


def test_traversals_name_latents_and_values():
    figure = plots.traversals(
        np.zeros((2, 3, 4)), [-3, 0, 3], [1.916, 0.5], (2, 2), [3, 0], around="0"
    )
    axes = figure.axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["z3  KL 1.92", "z0  KL 0.50"]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["−3", "0", "3"]
    assert axes.get_title(loc="left").endswith("held at 0")
    unknown = plots.traversals(np.zeros((2, 3, 4)), [-3, 0, 3], None, (2, 2), [3, 0])
    assert [label.get_text() for label in unknown.axes[0].get_yticklabels()] == ["z3", "z0"]


def test_interpolation_has_a_row_per_pair():
    axes = plots.interpolation(torch.zeros(3, 5, 4), (2, 2)).axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["pair 1", "pair 2", "pair 3"]
    assert [label.get_text() for label in axes.get_xticklabels()] == [
        "0%",
        "25%",
        "50%",
        "75%",
        "100%",
    ]


# --- latents


def test_latent_scatter_takes_the_two_latents_of_highest_kl_and_names_the_classes():
    means, labels = (
        torch.randn(30, 4, generator=torch.Generator().manual_seed(0)),
        torch.arange(30) % 3,
    )
    figure = draw(
        plots.latent_scatter(means, labels, [0.1, 2.0, 0.0, 1.0], ["cat", "dog", "cost $\\x$"])
    )
    axes = figure.axes[0]
    assert axes.get_xlabel() == "z1  (KL 2.00 nats)"
    assert axes.get_ylabel() == "z3  (KL 1.00 nats)"
    assert [text.get_text() for text in axes.get_legend().get_texts()] == [
        "cat",
        "dog",
        r"cost \$\x\$",
    ]
    drawn = [points.get_offsets() for points in axes.collections]
    np.testing.assert_allclose(drawn[1], means[labels == 1][:, [1, 3]])
    assert axes.get_aspect() == 1
    assert sorted(patch.radius for patch in axes.patches) == [1, 2]


def test_latent_scatter_without_labels_or_prior_or_kl():
    means = np.array([[0.0, 5.0, 1.0], [0.0, -5.0, -1.0]])
    axes = plots.latent_scatter(means, None, None, normal_prior=False).axes[0]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("z1", "z2")
    assert len(axes.collections) == 1
    assert axes.get_legend() is None
    assert not axes.patches


@pytest.mark.parametrize("labels", [np.arange(13), np.linspace(0, 1, 13).round(1)])
def test_many_labels_or_fractions_are_a_scale(labels):
    figure = draw(
        plots.latent_scatter(np.random.default_rng(0).normal(size=(13, 2)), labels, [1.0, 2.0])
    )
    assert len(figure.axes) == 2
    assert figure.axes[1].get_ylabel() == "label"


@pytest.mark.parametrize("labels", [None, np.arange(20) % 2])
def test_a_single_latent(labels):
    means = np.linspace(-1, 1, 20)[:, None]
    axes = draw(plots.latent_scatter(means, labels, [0.5])).axes[0]
    assert axes.get_xlabel() == "z0  (KL 0.50 nats)"
    if labels is None:
        assert sum(bar.get_height() for bar in bars(axes)) == 20
    else:
        assert len(axes.collections) == 2


def test_kl_bars_are_sorted_and_coloured_by_activity():
    kl, active, error = [0.001, 2.0, 1.0], [False, True, True], [0.001, 0.1, 0.2]
    figure = plots.kl_bars(kl, active, error)
    axes = figure.axes[0]
    by_place = sorted(bars(axes), key=lambda bar: bar.get_x())
    assert [bar.get_height() for bar in by_place] == [2.0, 1.0, 0.001]
    assert mpl.colors.to_hex(by_place[0].get_facecolor()) == style.BLUE.lower()
    assert mpl.colors.to_hex(by_place[2].get_facecolor()) == style.GREY.lower()
    assert [label.get_text() for label in axes.get_xticklabels()] == ["z1", "z2", "z0"]
    assert axes.get_title(loc="left") == "KL per latent: 3.0 nats in total, 2 of 3 active"
    np.testing.assert_allclose([np.ptp(line[:, 1]) for line in error_bars(axes)], [0.4, 0.8, 0.004])
    assert "2 standard errors over data" in axes.get_xlabel()


def test_kl_bars_of_a_collapsed_model():
    axes = draw(plots.kl_bars(torch.zeros(2), torch.zeros(2, dtype=torch.bool))).axes[0]
    assert [bar.get_height() for bar in bars(axes)] == [0, 0]
    assert "0 of 2 active" in axes.get_title(loc="left")
    assert not error_bars(axes)
    assert axes.get_ylim() == (0.0, 0.1)


# --- gaps


def test_gap_bar_draws_every_part_and_their_sum():
    axes = plots.gap_bar(gaps()).axes[0]
    stack, parts = bars(axes)[:3], bars(axes)[3:]
    assert (
        [bar.get_width() for bar in stack] == [bar.get_width() for bar in parts] == [0.5, 2.0, 1.0]
    )
    assert [bar.get_x() for bar in stack] == [0.0, 0.5, 2.5]
    assert [bar.get_x() for bar in parts] == [0.0, 0.0, 0.0]
    np.testing.assert_allclose(
        [np.ptp(line[:, 0]) for line in error_bars(axes)], [0.8, 0.4, 0.4, 0.4]
    )
    assert [label.get_text().split("  ")[-1] for label in axes.get_yticklabels()] == [
        "variational gap",
        "approximation gap",
        "β gap",
        "amortization gap",
    ]
    assert axes.get_title(loc="left") == "Variational gap: the ELBO is 3.50 nats below the evidence"
    assert "evidence −20.00,  ELBO −23.50" in axes.get_xlabel()


def test_gap_bar_draws_a_negative_part_left_of_zero():
    axes = draw(plots.gap_bar(gaps(amortization=-1.0))).axes[0]
    below = [bar for bar in bars(axes) if bar.get_width() < 0]
    assert [(bar.get_x(), bar.get_width()) for bar in below] == [(0.0, -1.0), (0.0, -1.0)]
    assert axes.get_xlim()[0] < -1.0
    assert "−1.00" in texts(axes.figure)


def test_gap_bar_says_which_error_it_shows():
    axes = plots.gap_bar(gaps(), error="monte_carlo_error").axes[0]
    np.testing.assert_allclose([np.ptp(line[:, 0]) for line in error_bars(axes)], 0.04)
    assert "2 Monte Carlo errors" in axes.get_xlabel()
    assert "2 standard errors over data" in plots.gap_bar(gaps()).axes[0].get_xlabel()


def test_gap_bar_without_parts_gives_the_reason():
    figure = draw(
        plots.gap_bar(
            gaps(approximation=None, beta=None, amortization=None, note="a $flow$ was used")
        )
    )
    axes = figure.axes[0]
    assert [bar.get_width() for bar in bars(axes)] == [3.5]
    assert r"parts not shown: a \$flow\$ was used" in axes.get_xlabel()


def test_gap_bar_has_the_verdict_as_its_title_and_its_limits_below():
    words = (
        "amortization is 29% of the gap (1.00 of 3.50 nats): enlarge the $encoder$. The "
        "evidence is untrusted."
    )
    axes = draw(plots.gap_bar(gaps() | {"verdict": words})).axes[0]
    title = axes.get_title(loc="left").replace("\n", " ")
    assert title == r"Amortization is 29% of the gap (1.00 of 3.50 nats): enlarge the \$encoder\$"
    assert axes.get_xlabel().endswith("The evidence is untrusted.")


def test_gap_bar_draws_what_richer_families_leave_on_the_approximation_gap():
    families = {"full-rank": estimate(0.2), "flow": estimate(0.05)}
    axes = draw(plots.gap_bar(gaps() | {"families": families})).axes[0]
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert names[4:] == [
        "approximation gap\nwith a full-rank guide",
        "approximation gap\nwith a flow guide",
    ]
    assert [bar.get_width() for bar in bars(axes)[6:]] == [0.5, 0.2, 0.5, 0.05]
    assert bars(axes)[6].get_alpha() < bars(axes)[7].get_facecolor()[3] == 1
    assert "0.20 left" in texts(axes.figure) and "0.05 left" in texts(axes.figure)
    assert len(error_bars(axes)) == 6
    unknown = plots.gap_bar(gaps(beta=None, note="none") | {"families": families}).axes[0]
    assert len(bars(unknown)) == 1


def measured_gaps(**families):
    """Inference gaps of four data, the last of them much worse than the others."""

    def of(value, last):
        return Estimate.over_data(torch.tensor([value] * 3 + [last]), torch.full((4,), 0.02))

    bound = ElboParts(of(-24.0, -29.0), of(20.0, 25.0), of(4.0, 4.0))
    parts = {"approximation": of(0.5, 0.5), "beta": of(0.0, 0.0), "amortization": of(0.5, 8.5)}
    return InferenceGaps(
        of(1.0, 9.0), **parts, evidence=of(-23.0, -20.0), bound=bound, training_beta=1.0,
        certified=torch.ones(4, dtype=torch.bool), steps=100, families={name: of(*families[name]) for name in families},
    )  # fmt: skip


def test_inference_gaps_are_drawn_as_they_are_returned():
    axes = draw(plots.inference_gaps(measured_gaps(flow=(0.25, 0.25)))).axes[0]
    np.testing.assert_allclose([bar.get_width() for bar in bars(axes)[:3]], [0.5, 0.0, 2.5])
    assert axes.get_title(loc="left").startswith(
        "Amortization is 83% of the gap (2.50 of 3.00 nats)"
    )
    assert "evidence −22.25,  ELBO −25.25" in axes.get_xlabel()
    assert "0.25 left" in texts(axes.figure)
    noise = plots.inference_gaps(measured_gaps(), error="monte_carlo_error").axes[0]
    np.testing.assert_allclose([np.ptp(line[:, 0]) for line in error_bars(noise)], 0.04)


def test_per_datum_gaps_draw_every_datum_and_the_mean():
    axes = draw(plots.per_datum_gaps(measured_gaps())).axes[0]
    assert axes.get_title(loc="left") == "Gaps of 4 data: the worst tenth make 75% of the whole"
    assert len(axes.collections) == 4
    rows = [np.asarray(points.get_offsets()) for points in axes.collections]
    np.testing.assert_allclose(rows[0][:, 0], [1, 1, 1, 9])
    np.testing.assert_allclose(rows[3][:, 0], [0.5, 0.5, 0.5, 8.5])
    assert all(np.abs(row[:, 1] - place).max() < 0.4 for place, row in enumerate(rows))
    means = [line.get_xdata()[0] for line in axes.lines if len(set(line.get_xdata())) == 1]
    assert {3.0, 0.5, 0.0, 2.5} <= set(means)


# --- data that are not images


def test_features_draw_data_and_reconstruction_in_a_panel_each():
    x, means = np.random.default_rng(0).normal(size=(2, 4, 30))
    figure = draw(plots.features(x, means, "signals"))
    panels = [axes for axes in figure.axes if axes.axison]
    assert len(panels) == 4
    data, fit = panels[2].lines
    np.testing.assert_array_equal(data.get_ydata(), x[2])
    np.testing.assert_array_equal(fit.get_ydata(), means[2])
    assert {text.get_text() for text in figure.legends[0].get_texts()} == {"data", "reconstruction"}
    assert figure.get_suptitle() == "signals"


def test_features_with_names_and_without_reconstructions():
    figure = draw(plots.features(torch.rand(1, 3), None, "samples", ["a", "b", "c"]))
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == ["a", "b", "c"]
    assert len(figure.axes[0].lines) == 1
    assert not figure.legends


def test_many_features_are_drawn_against_their_reconstructions():
    x = torch.rand(2, 101)
    figure = draw(plots.features(x, x, "genes"))
    points = figure.axes[0].lines[0]
    np.testing.assert_array_equal(points.get_xdata(), points.get_ydata())
    assert (figure.axes[0].get_xlabel(), figure.axes[0].get_ylabel()) == ("data", "reconstruction")


# --- all of them


def test_nothing_leaks_into_pyplot_or_the_global_style():
    style = [name for name in mpl.rcParams if name != "backend"]
    before = [mpl.rcParams[name] for name in style]
    figures = [
        plots.training_curves(history()),
        plots.gap_bar(gaps()),
        plots.kl_bars([1.0], [True]),
    ]
    assert all(isinstance(figure, Figure) for figure in figures)
    assert [mpl.rcParams[name] for name in style] == before
    assert not Gcf.figs
