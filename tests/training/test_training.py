"""``fit`` is stock SVI, leaves the caller's world as it was, and keeps what was best."""

import copy
import csv
import math
import sys
from collections.abc import Iterator
from pathlib import Path

import pyro
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from torch import Tensor, nn

from pyro_bvae import BetaVAE, Decoder, datasets, fit, sweep
from pyro_bvae.core.errors import InputError
from pyro_bvae.core.seeds import NOISE_STREAM, VALIDATION_STREAM, stream_seed
from pyro_bvae.datasets import Dataset
from pyro_bvae.evaluation import elbo_parts
from pyro_bvae.likelihoods import BernoulliLikelihood, NormalLikelihood
from pyro_bvae.networks import MLP
from pyro_bvae.posteriors import NormalPosterior
from pyro_bvae.priors import NormalPrior
from pyro_bvae.training import (
    Constant,
    History,
    LinearWarmup,
    Loss,
    OneCycle,
    TraceTerms,
    load_checkpoint,
)

FEATURES, LATENTS = 6, 2
TINY = {"batch_size": 16, "progress": False}


def small_vae(name: str = "beta_vae", seed: int = 3) -> BetaVAE:
    torch.manual_seed(seed)
    decoder = Decoder(MLP(LATENTS, FEATURES, hidden=(8,)), BernoulliLikelihood())
    return BetaVAE(
        NormalPrior(LATENTS),
        decoder,
        NormalPosterior(MLP(FEATURES, 2 * LATENTS, hidden=(8,))),
        name=name,
    )


def pixels(count: int = 50, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    kind = torch.rand(count, 1, generator=generator).round()
    return (torch.rand(count, FEATURES, generator=generator) < 0.1 + 0.8 * kind).float()


def weights(vae: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in vae.state_dict().items()}


def changed(before: dict[str, Tensor], after: dict[str, Tensor]) -> bool:
    return all(not torch.equal(value, after[name]) for name, value in before.items())


def same(before: dict[str, Tensor], after: dict[str, Tensor]) -> bool:
    return all(torch.equal(value, after[name]) for name, value in before.items())


def noise_seed(seed: int, epoch: int) -> int:
    return stream_seed(seed, epoch, NOISE_STREAM)


# -- the SVI that one would write
# -----------------------------------------------------------------------------


def svi_losses(vae: BetaVAE, data: Dataset, beta: float, epochs: int, seed: int) -> list[float]:
    svi = SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 1e-2}), Trace_ELBO())
    losses = []
    for epoch in range(epochs):
        torch.manual_seed(noise_seed(seed, epoch))
        batches = data.batches(16, seed=seed, epoch=epoch)
        losses.append(sum(svi.step(x, context, beta) for x, context in batches) / len(data))
    return losses


@pytest.mark.parametrize("seed", [0, 7])
@pytest.mark.parametrize("beta", [0.0, 1.0, 4.0])
def test_a_whole_fit_is_stock_svi(beta: float, seed: int) -> None:
    data = Dataset(pixels().double())
    stock, ours = small_vae("stock").double(), small_vae("ours").double()
    losses = svi_losses(stock, data, beta, epochs=4, seed=seed)
    history = fit(
        ours,
        data,
        beta=beta,
        epochs=4,
        learning_rate=Constant(1e-2),
        gradient_clip=None,
        seed=seed,
        **TINY,
    )
    assert history["objective"] == pytest.approx(losses, abs=1e-8)
    for name, value in stock.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], value, atol=1e-8, rtol=0)
    assert changed(weights(small_vae().double()), weights(ours))


def test_schedules_and_clipping_are_those_of_a_loop_by_hand() -> None:
    data, epochs = Dataset(pixels().double()), 3
    by_hand, ours = small_vae("by hand").double(), small_vae("ours").double()
    rate, beta, clip = OneCycle(5e-2), LinearWarmup(4.0, 2), 1.5
    optimizer = torch.optim.Adam(by_hand.parameters())
    loss, norms = Loss(by_hand), []
    for epoch in range(epochs):
        torch.manual_seed(noise_seed(0, epoch))
        for step, (x, _) in enumerate(data.batches(16, seed=0, epoch=epoch)):
            optimizer.param_groups[0]["lr"] = rate(epoch + step / 4, epochs)
            optimizer.zero_grad()
            loss(x, None, beta(epoch + step / 4, epochs)).loss.backward()
            norms.append(
                float(nn.utils.clip_grad_norm_(by_hand.parameters(), clip * len(x))) / len(x)
            )
            optimizer.step()
    assert min(norms) < clip < max(norms)  # some steps are clipped, and some are not
    history = fit(
        ours, data, beta=beta, epochs=epochs, learning_rate=rate, gradient_clip=clip, **TINY
    )
    for name, value in by_hand.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], value, atol=1e-8, rtol=0)
    assert history["gradient_norm"] == pytest.approx([sum(norms[i : i + 4]) / 4 for i in (0, 4, 8)])
    assert history["beta"] == pytest.approx([4 * 0.375, 4 * 0.875, 4.0])
    assert history["learning_rate"] == pytest.approx(
        [rate(epoch + 0.75, epochs) for epoch in range(epochs)]
    )


def test_training_finds_the_structure_of_the_data() -> None:
    vae = small_vae()
    history = fit(
        vae, pixels(200), beta=0.5, epochs=25, learning_rate=5e-2, batch_size=50, progress=False
    )
    independent = (
        FEATURES * torch.log(torch.tensor(2.0)).item()
    )  # what the marginals alone would cost
    assert history["distortion"][0] > 0.9 * independent
    assert history["distortion"][-1] < 0.7 * independent
    assert history["rate"][-1] > 0.3


def test_an_objective_of_ones_own_is_used() -> None:
    one, three = small_vae("one"), small_vae("three")
    fit(one, pixels(), epochs=1, **TINY)
    fit(three, pixels(), epochs=1, objective=TraceTerms(num_particles=3), **TINY)
    assert not same(weights(one), weights(three))


# -- the caller's world
# ---------------------------------------------------------------------------------------


def test_two_fits_in_one_process_both_train() -> None:
    first, second = small_vae(seed=1), small_vae(seed=2)
    for vae in (first, second):
        before = weights(vae)
        fit(vae, pixels(), epochs=1, **TINY)
        assert changed(before, weights(vae))


def test_a_deep_copy_trains_and_leaves_the_original_alone() -> None:
    original = small_vae()
    fit(original, pixels(), epochs=1, **TINY)
    clone, before = copy.deepcopy(original), weights(original)
    fit(clone, pixels(), epochs=1, **TINY)
    assert changed(before, weights(clone))
    assert same(before, weights(original))


def test_a_store_that_holds_another_vae_of_the_same_name_is_neither_used_nor_changed() -> None:
    other, vae = small_vae(seed=1), small_vae(seed=2)
    svi = SVI(other.model, other.guide, pyro.optim.Adam({"lr": 1e-2}), Trace_ELBO())
    svi.step(pixels())
    pyro.param("mine", torch.tensor(2.0), constraint=pyro.distributions.constraints.positive)
    store = pyro.get_param_store()
    stored = dict(store.named_parameters())
    others, before = weights(other), weights(vae)

    fit(vae, pixels(), epochs=1, **TINY)
    assert changed(before, weights(vae))
    assert same(others, weights(other))
    assert {name: id(value) for name, value in store.named_parameters()} == {
        name: id(value) for name, value in stored.items()
    }
    assert pyro.param("mine").item() == pytest.approx(2.0)
    svi.step(pixels())
    assert changed(others, weights(other))


def test_a_model_trained_by_plain_svi_can_be_fitted_further_and_back() -> None:
    vae = small_vae()
    svi = SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 1e-2}), Trace_ELBO())
    for train in (
        lambda: svi.step(pixels()),
        lambda: fit(vae, pixels(), epochs=1, **TINY),
        lambda: svi.step(pixels()),
    ):
        before = weights(vae)
        train()
        assert changed(before, weights(vae))


def test_random_state_store_and_validation_are_left_as_they_were() -> None:
    vae = small_vae()
    before = torch.get_rng_state()
    fit(vae, pixels(), epochs=2, validation=pixels(20, seed=1), **TINY)
    assert torch.equal(torch.get_rng_state(), before)
    assert not dict(pyro.get_param_store().named_parameters())
    with pytest.raises(ValueError, match=r"scale|invalid"):
        pyro.distributions.Normal(0.0, -1.0)


class Modes(nn.Module):
    """A network that notes the mode it is run in."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network, self.seen = network, []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(self.training)
        return self.network(x)


@pytest.mark.parametrize("training", [True, False])
def test_modes_are_restored_module_by_module_and_train_in_train_mode(training: bool) -> None:
    watched = Modes(MLP(LATENTS, FEATURES, hidden=()))
    vae = BetaVAE(
        NormalPrior(LATENTS),
        Decoder(watched, BernoulliLikelihood()),
        NormalPosterior(MLP(FEATURES, 2 * LATENTS, hidden=())),
    )
    vae.train(training)
    watched.training = not training
    modes = {name: module.training for name, module in vae.named_modules()}
    fit(vae, pixels(16), epochs=1, validation=pixels(4), **TINY)
    assert {name: module.training for name, module in vae.named_modules()} == modes
    # Checks in eval mode, one training step, validation in eval mode.
    assert watched.seen.count(True) == 1
    assert not watched.seen[0]
    assert not watched.seen[-1]


def test_batch_norm_statistics_move_with_the_training_batches_alone() -> None:
    def with_batch_norm() -> tuple[BetaVAE, nn.BatchNorm1d]:
        vae = small_vae()
        norm = nn.BatchNorm1d(8)
        vae.encoder.network.layers.insert(1, norm)
        return vae, norm

    results = []
    for validation in (None, pixels(20, seed=4)):
        vae, norm = with_batch_norm()
        fit(vae, pixels(), epochs=2, validation=validation, **TINY)
        results.append(weights(vae))
        assert int(norm.num_batches_tracked) == 2 * 4
    assert same(*results)


def test_frozen_parameters_stay_and_a_frozen_model_is_refused() -> None:
    vae = small_vae()
    vae.decoder.requires_grad_(False)
    decoder, encoder = weights(vae.decoder), weights(vae.encoder)
    fit(vae, pixels(), epochs=1, **TINY)
    assert same(decoder, weights(vae.decoder))
    assert changed(encoder, weights(vae.encoder))
    vae.requires_grad_(False)
    with pytest.raises(InputError, match="no parameter that requires a gradient"):
        fit(vae, pixels(), epochs=1, **TINY)


class Outside(nn.Module):
    """A model with a ``pyro.param`` that the module does not own."""

    def __init__(self) -> None:
        super().__init__()
        self.loc = nn.Parameter(torch.zeros(()))

    def model(self, x: Tensor, context: object = None, beta: float = 1.0) -> None:
        scale = pyro.param("outside", torch.ones(()))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", pyro.distributions.Normal(0.0, 1.0))
            pyro.sample("x", pyro.distributions.Normal(z, scale), obs=x[:, 0])

    def guide(self, x: Tensor, context: object = None, beta: float = 1.0) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", pyro.distributions.Normal(self.loc, 1.0))


def test_a_parameter_outside_the_module_is_refused_rather_than_left_untrained() -> None:
    with pytest.raises(InputError, match=r"'outside' is a pyro\.param outside the module"):
        fit(Outside(), pixels(), epochs=1, **TINY)
    assert not dict(pyro.get_param_store().named_parameters())


# -- the same seed
# --------------------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_numbers_and_another_seed_others() -> None:
    results = []
    for seed in (5, 5, 6):
        torch.rand(3)  # the caller's generator has no part in it
        vae = small_vae()
        history = fit(vae, pixels(), epochs=2, validation=pixels(20, seed=1), seed=seed, **TINY)
        results.append(
            (weights(vae), {name: values for name, values in history.items() if name != "seconds"})
        )
    assert same(results[0][0], results[1][0])
    assert results[0][1] == results[1][1]
    assert not same(results[0][0], results[2][0])
    assert results[0][1]["validation_objective"] != results[2][1]["validation_objective"]


def test_validation_changes_no_training_step() -> None:
    with_validation, without = small_vae(), small_vae()
    fit(with_validation, pixels(), epochs=2, validation=pixels(20, seed=1), **TINY)
    fit(without, pixels(), epochs=2, **TINY)
    assert same(weights(with_validation), weights(without))


# -- what is written and what was best
# ------------------------------------------------------------------------

COLUMNS = ["epoch", "beta", "learning_rate", "gradient_norm", "objective", "distortion", "rate"]
VALIDATION = ["validation_objective", "validation_distortion", "validation_rate", "validation_elbo"]


def test_metrics_are_consistent_and_written_with_all_their_digits(tmp_path: Path) -> None:
    history = fit(
        small_vae(),
        pixels(),
        beta=3.0,
        epochs=3,
        validation=pixels(20, seed=1),
        output=tmp_path / "run",
        **TINY,
    )
    assert list(history) == [*COLUMNS, *VALIDATION, "active_units", "seconds"]
    assert history["epoch"] == [1, 2, 3]
    for row in history.rows:
        assert row["objective"] == pytest.approx(row["distortion"] + 3 * row["rate"], rel=1e-5)
        assert row["validation_objective"] == pytest.approx(
            row["validation_distortion"] + 3 * row["validation_rate"], rel=1e-9
        )
        assert row["validation_elbo"] == pytest.approx(
            -row["validation_distortion"] - row["validation_rate"], rel=1e-9
        )
    with (tmp_path / "run" / "metrics.csv").open() as stream:
        read = list(csv.DictReader(stream))
    assert [{name: float(value) for name, value in row.items()} for row in read] == history.rows
    assert History.read(tmp_path / "run" / "metrics.csv").rows == history.rows
    written = sorted(
        path.relative_to(tmp_path / "run").as_posix() for path in (tmp_path / "run").rglob("*")
    )
    checkpoints = ["checkpoints", "checkpoints/best.pt", "checkpoints/last.pt"]
    assert written == [*checkpoints, "digests.sha256", "metrics.csv"]


def test_without_an_output_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    fit(small_vae(), pixels(), epochs=1, **TINY)
    assert list(tmp_path.iterdir()) == []


def test_validation_is_an_average_over_data_measured_with_the_same_noise_every_epoch() -> None:
    vae, held_out = small_vae(), pixels(20, seed=1)
    history = fit(vae, pixels(), epochs=3, validation=held_out, learning_rate=Constant(0.0), **TINY)
    assert len(set(history["validation_objective"])) == 1
    with torch.no_grad():
        posterior = vae.encoder(held_out).base_dist
        rate = torch.distributions.kl_divergence(
            posterior, torch.distributions.Normal(0.0, 1.0)
        ).sum(-1)
        draws = posterior.loc + posterior.scale * torch.randn(4000, len(held_out), LATENTS)
        distortion = -vae.decoder(draws).log_prob(held_out)
        log_weights = (
            vae.prior().log_prob(draws) - vae.encoder(held_out).log_prob(draws) - distortion
        )
    error = float(log_weights.var(0).mean() / len(held_out)) ** 0.5  # of one draw for each datum
    assert history["validation_distortion"][0] == pytest.approx(
        float(distortion.mean()), abs=3 * error
    )
    assert history["validation_rate"][0] == pytest.approx(float(rate.mean()), abs=1e-4)


def test_validation_of_each_epoch_is_the_bound_of_its_weights() -> None:
    """Epochs after the first, which do not look the program over again, among them."""
    vae, held_out = small_vae(), pixels(20, seed=1)
    history = fit(vae, pixels(), epochs=3, validation=held_out, **TINY)
    bound = elbo_parts(vae.model, vae.guide, held_out, num_samples=1, seed=VALIDATION_STREAM)
    assert history["validation_elbo"][-1] == bound.elbo.value
    assert history["validation_rate"][-1] == bound.rate.value
    assert len(set(history["validation_elbo"])) == 3


def callbacks_of(vae: nn.Module, kept: list[dict[str, Tensor]]) -> list[object]:
    return [lambda row: kept.append(weights(vae))]


def test_best_is_chosen_by_the_objective_at_the_final_beta_and_not_by_the_bound(
    tmp_path: Path,
) -> None:
    vae, kept = small_vae(), []
    history = fit(
        vae, pixels(200), beta=0.02, epochs=20, validation=pixels(50, seed=1), learning_rate=Constant(3e-2),
        output=tmp_path, callbacks=callbacks_of(vae, kept), batch_size=50, progress=False,
    )  # fmt: skip
    objective, bound = history["validation_objective"], history["validation_elbo"]
    best = objective.index(min(objective))
    assert best != bound.index(max(bound))  # the two would choose differently here
    state = load_checkpoint(tmp_path / "checkpoints" / "best.pt")
    assert same(state["model"], kept[best])
    assert len(state["history"]) == best + 1
    last = load_checkpoint(tmp_path / "checkpoints" / "last.pt")
    assert same(last["model"], kept[-1])
    assert same(weights(vae), kept[-1])  # without early stopping the last weights stay


def test_best_is_chosen_by_the_final_beta_during_a_warmup_too(tmp_path: Path) -> None:
    history = fit(
        small_vae(), pixels(200), beta=LinearWarmup(4.0, 5), epochs=10, validation=pixels(100, seed=1),
        learning_rate=Constant(1e-2), output=tmp_path, **TINY,
    )  # fmt: skip
    for row in history.rows:
        assert row["validation_objective"] == pytest.approx(
            row["validation_distortion"] + 4 * row["validation_rate"]
        )
    best = load_checkpoint(tmp_path / "checkpoints" / "best.pt")["history"][-1]
    assert best["validation_objective"] == min(history["validation_objective"])


def test_no_epoch_of_the_warmup_is_best_or_counts_against_the_patience(tmp_path: Path) -> None:
    """A step size that spoils the model makes the first epoch the best.

    But β has not arrived there.
    """
    history = fit(
        small_vae(), pixels(200), beta=LinearWarmup(2.0, 4), epochs=6, validation=pixels(50, seed=1), early_stopping=1,
        learning_rate=lambda epoch, epochs: 0.3 * epoch, gradient_clip=None, output=tmp_path, progress=False,
    )  # fmt: skip
    objective = history["validation_objective"]
    assert objective.index(min(objective)) < 3  # the planted trap
    best = load_checkpoint(tmp_path / "checkpoints" / "best.pt")["history"]
    assert len(best) >= 4 and len(history.rows) >= 5


def test_without_validation_best_is_chosen_by_the_training_objective(tmp_path: Path) -> None:
    history = fit(
        small_vae(),
        pixels(),
        beta=2.0,
        epochs=6,
        learning_rate=Constant(0.3),
        output=tmp_path,
        **TINY,
    )
    best = load_checkpoint(tmp_path / "checkpoints" / "best.pt")["history"]
    assert best[-1]["objective"] == min(history["objective"])


@pytest.fixture(params=[True, False], ids=["output", "no output"])
def output(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path | None]:
    yield tmp_path / "run" if request.param else None


def test_early_stopping_stops_and_goes_back_to_the_best_weights(output: Path | None) -> None:
    vae, kept, patience = small_vae(), [], 4
    history = fit(
        vae, pixels(30), beta=0.5, epochs=400, validation=pixels(30, seed=1), learning_rate=Constant(5e-2),
        early_stopping=patience, output=output, callbacks=callbacks_of(vae, kept), **TINY,
    )  # fmt: skip
    objective = history["validation_objective"]
    best = objective.index(min(objective))
    assert len(objective) == best + 1 + patience < 400
    assert same(weights(vae), kept[best])
    assert not same(weights(vae), kept[-1])
    again = small_vae()
    if (
        output is not None
    ):  # a stopped run that is resumed stays stopped, and gives the best weights too
        resumed = fit(
            again, pixels(30), beta=0.5, epochs=400, validation=pixels(30, seed=1), learning_rate=Constant(5e-2),
            early_stopping=patience, output=output, resume=True, **TINY,
        )  # fmt: skip
        assert resumed.rows == history.rows
        assert same(weights(again), kept[best])


@pytest.mark.parametrize("stacked", [False, True], ids=["fit", "sweep"])
def test_early_stopping_without_validation_data_says_that_it_watches_the_training(
    stacked: bool,
) -> None:
    options = {"epochs": 40, "learning_rate": Constant(0.5), "early_stopping": 2, **TINY}
    with pytest.warns(UserWarning, match="watches the training objective, since there are no"):
        if stacked:
            trained = sweep(lambda seed: small_vae(), pixels(30), betas=(0.5, 1.0), **options)
            history = trained.runs[0].history
        else:
            history = fit(small_vae(), pixels(30), beta=0.5, **options)
    best = history["objective"].index(min(history["objective"]))
    assert len(history.rows) == best + 3 < 40


def test_early_stopping_that_never_stops_goes_back_to_the_best_weights_too(
    output: Path | None,
) -> None:
    vae, kept = small_vae(), []
    history = fit(
        vae, pixels(30), beta=0.5, epochs=12, validation=pixels(30, seed=1), learning_rate=Constant(0.3),
        early_stopping=100, output=output, callbacks=callbacks_of(vae, kept), **TINY,
    )  # fmt: skip
    best = history["validation_objective"].index(min(history["validation_objective"]))
    assert best < 11
    assert same(weights(vae), kept[best])


def test_a_warmup_that_outlives_the_training_warns() -> None:
    with pytest.warns(
        UserWarning, match=r"it ends at β = 2, not at 4; train for more than 2 epochs"
    ) as caught:
        fit(small_vae(), pixels(), beta=LinearWarmup(4.0, 4), epochs=2, **TINY)
    assert caught[0].filename == __file__  # the line to change is the caller's
    with pytest.warns(
        UserWarning,
        match=r"as long as the training: no step is taken at β = 4; train for more than 2",
    ):
        fit(small_vae(), pixels(), beta=LinearWarmup(4.0, 2), epochs=2, **TINY)
    fit(small_vae(), pixels(), beta=LinearWarmup(4.0, 1), epochs=2, **TINY)


def test_progress_shows_distortion_and_rate_apart(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys.stderr, "isatty", lambda: True)
        fit(small_vae(), pixels(), epochs=2, batch_size=16)
    shown = capsys.readouterr().err
    assert "epoch 2/2" in shown
    assert "distortion=" in shown
    assert "rate=" in shown
    fit(small_vae(), pixels(), epochs=1, **TINY)
    assert capsys.readouterr().err == ""


def test_callbacks_get_the_metrics_of_each_epoch_and_cannot_change_them() -> None:
    rows = []

    def callback(row: dict[str, float]) -> None:
        rows.append(dict(row))
        row.clear()

    history = fit(small_vae(), pixels(), epochs=3, callbacks=[callback], **TINY)
    assert rows == history.rows


def test_history_is_a_mapping_from_column_to_values() -> None:
    history = History([{"epoch": 1, "rate": 0.5}, {"epoch": 2, "rate": 0.25}])
    assert dict(history) == {"epoch": [1, 2], "rate": [0.5, 0.25]}
    assert repr(history) == "History(2 epochs: epoch, rate)"
    with pytest.raises(KeyError, match="distortion"):
        history["distortion"]
    assert dict(History()) == {}


@pytest.mark.parametrize(
    "text",
    ["", "a,b\n1,2\n", "epoch,rate\n1,x\n", "epoch,rate\n1\n", "epoch\n1,2\n", "epoch\nnan\n"],
)
def test_a_foreign_metrics_file_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "metrics.csv"
    path.write_text(text)
    if text == "":
        assert History.read(path).rows == []
        return
    with pytest.raises(InputError, match="does not hold the metrics of a training run"):
        History.read(path)


def test_learned_likelihood_parameters_are_trained() -> None:
    from pyro_bvae.likelihoods import LearnedScale

    scale = LearnedScale()
    vae = BetaVAE(
        NormalPrior(LATENTS),
        Decoder(MLP(LATENTS, FEATURES, hidden=()), NormalLikelihood(scale)),
        NormalPosterior(MLP(FEATURES, 2 * LATENTS, hidden=())),
    )
    before = scale.scale.item()
    fit(vae, pixels(), epochs=1, **TINY)
    assert scale.scale.item() != before


@pytest.mark.filterwarnings("ignore:β σ²")
@pytest.mark.parametrize("beta", [0.0, 1e-3, 1.0, 1e3])
@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_both_extremes_of_beta_train_without_nan(beta: float, precision: str) -> None:
    torch.manual_seed(0)
    decoder = Decoder(MLP(4, 64, hidden=(32,)), NormalLikelihood(0.3))
    vae = BetaVAE(NormalPrior(4), decoder, NormalPosterior(MLP(64, 8, hidden=(32,))))
    x = datasets.digits().train.x[:300]
    history = fit(
        vae, x, beta=beta, epochs=40, learning_rate=1e-2, precision=precision, progress=False
    )
    assert all(math.isfinite(value) for row in history.rows for value in row.values())
    assert all(bool(torch.isfinite(parameter).all()) for parameter in vae.parameters())
    assert history["rate"][-1] > 10 if beta < 0.01 else history["rate"][-1] < 10
