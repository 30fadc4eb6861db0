"""Row 3: the β table of the background README, by the preset of MNIST, over seeds."""

from __future__ import annotations

import statistics
from functools import partial
from typing import Any

from matplotlib.figure import Figure

from paper_parts.machinery import NOT_RUN, Entry, Line, Place, Row, Work, kept
from pyro_bvae.evaluation import elbo_parts
from pyro_bvae.runs import TrainConfig, load, train

EPOCHS, SEEDS, DRAWS = 30, (0, 1, 2), 16
#: β -> the background README's test BCE and KLD, and the objective that is aimed at.
BACKGROUND = {
    0.1: (64.4485, 52.7590, 65.7),
    2.0: (92.7549, 13.1315, 114.0),
    4.0: (109.8983, 8.2419, 138.5),
}
SETTING = "grey MNIST, Bernoulli likelihood, batch 128, 30 epochs, 60,000 training images, last epoch's weights; "


def one_seed(work: Work, config: TrainConfig, seed: int, num_images: int) -> dict[str, Any]:
    """Train with one seed, or go on, and measure the test images."""
    directory = work.folder / f"seed-{seed}"
    resume = (directory / "config.json").exists()
    train(config.with_options(seed=seed), directory, resume=resume)
    work.clock.tick()
    run = load(directory, checkpoint="last")
    x = run.splits.test.dense().x[:num_images]
    measured = elbo_parts(run.vae.model, run.vae.guide, x, num_samples=DRAWS)
    objective = measured.objective(config.training.beta)
    work.clock.tick()
    return {
        "objective": objective.value,
        "standard_error": objective.standard_error,
        "monte_carlo_error": objective.monte_carlo_error,
        "distortion": measured.distortion.value,
        "rate": measured.rate.value,
        "images": len(x),
    }


def measure(
    work: Work, *, beta: float, options: dict[str, Any], seeds: tuple[int, ...] = SEEDS,
    num_images: int = 10_000,
) -> Line:  # fmt: skip
    """Return the mean over seeds, and their spread."""
    config = TrainConfig.preset("mnist-mlp", **options, validation=0.0, beta=beta)
    if config.dataset == "mnist":
        config = config.with_options(data_root=str(work.place.data_root))
    each = []
    for seed in seeds:
        folder = work.folder.parent / f"beta-{beta:g}-{config.model.network}"
        shared = work._replace(folder=folder)  # lines of one seed and of three have it in common
        path = folder / f"seed-{seed}.json"
        each.append(kept(path, partial(one_seed, shared, config, seed, num_images)))

    def mean(name: str) -> float:
        return statistics.fmean(found[name] for found in each)

    values = [found["objective"] for found in each]
    aim = f"; aim {BACKGROUND[beta][2]:.1f}" if beta in BACKGROUND else ""
    return {
        "ours": f"{mean('objective'):.2f}",
        "standard_error": f"{mean('standard_error'):.2f}",
        "monte_carlo_error": f"{mean('monte_carlo_error') / len(each) ** 0.5:.3f}",
        "spread": f"{statistics.stdev(values):.2f}" if len(values) > 1 else "",
        "images": f"{each[0]['images']}",
        "seeds": f"{len(values)}",
        "note": f"distortion {mean('distortion'):.2f}, rate {mean('rate'):.2f}{aim}; "
        f"seeds {', '.join(f'{value:.2f}' for value in values)}",
    }


def entry(beta: float, network: str, seeds: tuple[int, ...]) -> Entry:
    """Return a line."""
    distortion, rate, _ = BACKGROUND[beta]
    convolutional = network == "convolutional"
    options: dict[str, Any] = {"dataset": "mnist", "network": network, "epochs": EPOCHS}
    name = f"β = {beta:g}, {'convolutional' if convolutional else 'MLP'}"
    return Entry(
        name if len(seeds) == 1 else f"{name}, {len(seeds)} seeds",
        f"test distortion + {beta:g} rate, nats an image",
        f"{distortion + beta * rate:.2f}",
        "A",
        SETTING + ("convolutions" if convolutional else "preset mnist-mlp") + ", start at the mean",
        "the network" + ("" if convolutional else ", learning rate and start"),
        f"{(15 if convolutional else 3) * len(seeds)} CPU minutes",
        partial(measure, beta=beta, options=options, seeds=seeds),
    )


def figure(lines: list[Line], place: Place) -> Figure:
    """Draw each objective as the nats that it gains over the background README."""
    shown = [line for line in lines if line["ours"] != NOT_RUN]
    picture = Figure((8, 1.6 + 0.45 * len(shown)), layout="constrained")
    axes = picture.subplots()
    for at, line in enumerate(shown):
        gain = float(line["published"]) - float(line["ours"])
        axes.barh(at, gain, color="#0072B2", xerr=float(line["spread"] or 0.0), ecolor="black")
        axes.text(
            gain + 0.1, at, f"{line['ours']} for {line['published']}", va="center", fontsize=9
        )
    axes.set_yticks(range(len(shown)), [line["line"] for line in shown])
    axes.invert_yaxis()
    axes.set_xlim(0, 1.4 * max(float(each["published"]) - float(each["ours"]) for each in shown))
    axes.set_xlabel("nats an image below the published objective (bars: spread of the seeds)")
    axes.set_title(
        "Grey MNIST, 30 epochs: gain over the background README", loc="left", weight="bold"
    )
    axes.spines[["top", "right"]].set_visible(False)
    return picture


ROW = Row(
    "background",
    "The β table of the background README",
    ("data_root",),
    (
        *(entry(beta, "mlp", SEEDS[:1]) for beta in BACKGROUND),
        *(entry(beta, "mlp", SEEDS) for beta in BACKGROUND),
        *(entry(beta, "convolutional", SEEDS[:1]) for beta in BACKGROUND),
    ),
    figure,
)
