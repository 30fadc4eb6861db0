"""The training checklist.

Each planted fault is seen with its number, and a sound training has no remark.
"""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from pyro_bvae import BetaVAE, Decoder, datasets, fit
from pyro_bvae.core.findings import Finding
from pyro_bvae.likelihoods import (
    BernoulliLikelihood,
    LearnedScale,
    NegativeBinomialLikelihood,
    NormalLikelihood,
    PoissonLikelihood,
    SoftmaxRate,
)
from pyro_bvae.networks import MLP
from pyro_bvae.posteriors import NormalPosterior
from pyro_bvae.priors import NormalPrior
from pyro_bvae.training import (
    Constant,
    Remark,
    check_after,
    check_before,
    check_during,
    load_checkpoint,
    start_at_mean,
)

FEATURES = 8


def vae_of(likelihood: nn.Module, latents: int = 2, features: int = FEATURES) -> BetaVAE:
    torch.manual_seed(0)
    decoder = MLP(latents, getattr(likelihood, "parameters_per_feature", 1) * features, hidden=(8,))
    return BetaVAE(
        NormalPrior(latents),
        Decoder(decoder, likelihood),
        NormalPosterior(MLP(features, 2 * latents, hidden=(8,))),
    )


def normals(count: int = 300, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(count, FEATURES, generator=torch.Generator().manual_seed(0))


def bits(count: int = 300) -> Tensor:
    return (normals(count) > 0).float()


def counts(count: int = 300) -> Tensor:
    return torch.poisson(normals(count).exp(), generator=torch.Generator().manual_seed(1))


def with_a_constant(x: Tensor) -> Tensor:
    x = x.clone()
    x[:, 3] = 0
    return x


def unscaled(columns: dict[int, tuple[float, float]]) -> Tensor:
    x = normals(4000)
    x = (x - x.mean(0)) / x.std(0)
    for column, (mean, spread) in columns.items():
        x[:, column] = mean + spread * x[:, column]
    return x


SOUND = [
    (lambda: vae_of(NormalLikelihood(0.5)), normals, 1.0),
    (lambda: vae_of(BernoulliLikelihood()), bits, 1.0),
    (lambda: vae_of(NormalLikelihood(LearnedScale(initial=2.0))), normals, 1.0),
]
PLANTED: list[tuple[Callable[[], BetaVAE], Callable[[], Tensor], float, str, bool]] = [
    (
        lambda: vae_of(NormalLikelihood(0.5)),
        lambda: with_a_constant(normals()),
        1.0,
        "1 of 8 features have one value in all of 300 data (column 3)",
        False,
    ),
    (lambda: vae_of(BernoulliLikelihood()), lambda: torch.zeros(50, FEATURES), 1.0, "8 of 8 features have one", True),
    (
        lambda: vae_of(NormalLikelihood(0.5)),
        lambda: unscaled({1: (40.0, 15.0)}),
        1.0,
        "1 of 8 features are not scaled (column 1): column 1 has mean 40",
        False,
    ),
    (
        lambda: vae_of(NormalLikelihood(LearnedScale(initial=1.0))),
        lambda: unscaled({1: (40.0, 15.0), 6: (5e4, 2e4)}),
        1.0,
        "2 of 8 features are not scaled (columns 1, 6): column 6 has mean 5e+04 and sd 2e+04",
        True,
    ),
    (lambda: vae_of(BernoulliLikelihood()), lambda: normals().sigmoid(), 1.0, "100% of the values "
                                                                              "are greys", False),
    (lambda: vae_of(NormalLikelihood(0.5)), bits, 1.0, "all values are 0 or 1", False),
    (lambda: vae_of(NormalLikelihood(0.5)), counts, 1.0, "all values are counts, up to", False),
    (lambda: vae_of(NormalLikelihood(0.5)), normals, 0.0, "β is 0", False),
    (lambda: vae_of(NormalLikelihood(0.5), latents=8), normals, 1.0, "the code has 8 latents for 8 "
                                                                     "features", False),
    (lambda: vae_of(NormalLikelihood(0.5)), lambda: normals() + 3, 1.0, "the untrained decoder is "
                                                                        "3", False),
    (lambda: vae_of(NormalLikelihood(1.0)), normals, 2.0, "β σ² is 2, above the largest eigenvalue "
                                                          "1.", True),
]  # fmt: skip


@pytest.mark.parametrize("case", range(len(SOUND)))
def test_there_is_no_remark_on_a_sound_start(case: int) -> None:
    make, data, beta = SOUND[case]
    assert check_before(make(), data(), None, beta) == []


@pytest.mark.parametrize("case", range(len(PLANTED)), ids=[planted[3][:30] for planted in PLANTED])
def test_what_is_wrong_before_training_is_seen_with_its_number(case: int) -> None:
    make, data, beta, seen, grave = PLANTED[case]
    remarks = check_before(make(), data(), None, beta)
    results = [remark for remark in remarks if remark.seen.startswith(seen)]
    assert len(results) == 1, remarks
    assert results[0].grave == grave
    assert results[0].when == "before"
    assert isinstance(results[0], Finding) and results[0].subject and results[0].code


def test_the_threshold_of_collapse_is_the_closed_form() -> None:
    x = normals()
    largest = float(torch.linalg.eigvalsh(torch.cov(x.T, correction=0))[-1])
    vae = vae_of(NormalLikelihood(1.0))
    assert not [remark for remark in check_before(vae, x, None, 0.99 * largest) if remark.grave]
    (remark,) = [remark for remark in check_before(vae, x, None, 1.01 * largest) if remark.grave]
    assert f"take β below {largest:.3g}" in remark.advice


def test_fit_warns_of_what_is_grave_and_keeps_the_rest() -> None:
    with pytest.warns(UserWarning, match="every latent will collapse; take β below"):
        history = fit(
            vae_of(NormalLikelihood(1.0)), with_a_constant(normals()), beta=3.0, epochs=2, progress=False,
        )  # fmt: skip
    assert [remark.grave for remark in history.remarks] == [False, True]


def rows(**columns: list[float]) -> list[dict[str, float]]:
    count = max(map(len, columns.values()))
    base = {"beta": 1.0, "rate": 10.0, "gradient_norm": 5.0, "objective": 100.0}
    return [
        {"epoch": index + 1, **base, **{name: values[index] for name, values in columns.items()}}
        for index in range(count)
    ]


FALLING = [100.0 - epoch for epoch in range(10)]
TURNING = [100.0, 90.0, 80.0, 82.0, 85.0, 88.0, 90.0, 92.0, 94.0, 96.0]


def test_a_rate_that_rises_while_the_objective_falls_is_healthy() -> None:
    rising = [float(epoch) for epoch in range(10)]
    assert (
        check_during(
            rows(objective=FALLING, rate=rising, validation_elbo=rising, active_units=rising)
        )
        == []
    )


@pytest.mark.parametrize(
    ("columns", "seen"),
    [
        ({"rate": [0.01] * 10}, "the rate is 0.01 nats at the end"),
        ({"rate": [0.13] * 10, "active_units": [2.0] * 10}, "the rate is 0.13 nats at the end"),
        ({"rate": [0.5] * 10, "active_units": [0.0] * 10}, "the rate is 0.5 nats at the end"),
        (
            {"validation_objective": TURNING},
            "the held-out objective rose by 16 nats since epoch 3, the rate by 0",
        ),
        ({"objective": TURNING}, "the training objective rose by 16 nats since epoch 3"),
        (
            {
                "rate": [2.0 + 2 * epoch for epoch in range(10)],
                "validation_elbo": [-50.0 - epoch for epoch in range(10)],
            },
            "the rate grew from 12 to 20 nats, and the held-out ELBO fell by 4",
        ),
        (
            {"active_units": [8.0, 9.0, 9.0, 9.0, 8.0, 7.0, 6.0, 6.0, 6.0, 6.0]},
            "3 of 9 units that were active at epoch 2 are not any more",
        ),
        (
            {"gradient_norm": [300.0] * 10},
            "the mean gradient norm was above its limit 200 in 10 of 10 epochs",
        ),
    ],
)
def test_what_goes_wrong_during_training_is_seen(
    columns: dict[str, list[float]], seen: str
) -> None:
    (remark,) = check_during(rows(**columns), 200.0)
    assert remark.seen.startswith(seen)


def test_a_warmup_is_no_rise_of_the_objective() -> None:
    beta = [0.2, 0.4, 0.6, 0.8, *[1.0] * 6]
    assert check_during(rows(beta=beta, objective=[10.0, 20.0, 30.0, 40.0, *FALLING[4:]])) == []


def test_a_collapse_is_warned_of_at_the_end() -> None:
    with pytest.warns(UserWarning, match=r"the rate is .* nats at the end.*diagnose"):
        fit(vae_of(NormalLikelihood(LearnedScale(initial=1.0))), normals(), beta=50.0, epochs=30,
            learning_rate=Constant(1e-2), progress=False)  # fmt: skip


@pytest.mark.parametrize("missing", [False, True])
def test_the_start_is_the_best_of_a_model_without_latents(missing: bool) -> None:
    x = bits()
    if missing:
        x[::7, 2] = torch.nan
    vae = vae_of(BernoulliLikelihood())
    start_at_mean(vae, x)
    torch.testing.assert_close(
        vae.decoder.network.layers[-1].bias, torch.logit(x.nanmean(0)), atol=1e-3, rtol=0
    )
    x = normals() + torch.arange(FEATURES)
    vae = vae_of(NormalLikelihood(0.5))
    start_at_mean(vae, x)
    torch.testing.assert_close(vae.decoder.network.layers[-1].bias, x.mean(0), atol=1e-3, rtol=0)
    assert not [remark for remark in check_before(vae, x) if "untrained decoder" in remark.seen]


@pytest.mark.parametrize("likelihood", [PoissonLikelihood, NegativeBinomialLikelihood])
def test_the_start_sees_size_factors(likelihood: Callable[..., nn.Module]) -> None:
    data = datasets.with_size_factor(datasets.load("counts").train)
    part = likelihood(rate=SoftmaxRate())
    vae = vae_of(part, features=data.x.shape[1])
    before = vae.decoder(torch.zeros(len(data), 2), data.context).log_prob(data.x).mean()
    start_at_mean(vae, data.x, data.context)
    after = vae.decoder(torch.zeros(len(data), 2), data.context).log_prob(data.x).mean()
    assert after > before + 1


def test_a_rate_is_too_small_by_the_number_of_its_latents() -> None:
    few = rows(rate=[0.3] * 10, active_units=[1.0] * 10)
    assert check_during(few) == check_during(few, latent_dim=2) == []
    (remark,) = check_during(few, latent_dim=20)
    assert remark.grave
    assert "20 latents carry next to nothing (posterior collapse)" in remark.seen
    several = rows(rate=[4.0] * 10, active_units=[2.0] * 10, beta=[4.0] * 10)
    assert check_during(several, latent_dim=2) == check_during(several, latent_dim=1000) == []


@pytest.mark.parametrize("value", [0.0, 0.1, 0.5, 7.0])
def test_constant_columns_are_no_unit_of_the_start(value: float) -> None:
    x = torch.full((100, FEATURES), value)
    said = [
        remark.seen
        for remark in check_before(vae_of(NormalLikelihood(LearnedScale(initial=1.0))), x)
    ]
    assert said[0].startswith("8 of 8 features have one value")
    assert "standard deviations" not in " ".join(said)
    x = normals()
    x[:, 2] = 1e4 * value + 1.0
    remarks = check_before(vae_of(NormalLikelihood(0.5)), x)
    assert [remark.seen for remark in remarks] == [
        "1 of 8 features have one value in all of 300 data (column 2)"
    ]


def test_missing_entries_are_no_zeros_of_the_start() -> None:
    x = unscaled({}) + 3
    x[::2, 1:] = torch.nan
    remarks = check_before(vae_of(NormalLikelihood(0.5)), x)
    (start,) = [remark.seen for remark in remarks if "untrained decoder" in remark.seen]
    assert start.startswith("the untrained decoder is 3."), start


def test_long_lists_of_columns_are_cut() -> None:
    x = torch.randn(100, 30, generator=torch.Generator().manual_seed(0))
    x[:, :13] = 0.5
    (remark,) = check_before(vae_of(NormalLikelihood(0.5), features=30), x)
    assert remark.seen.endswith("(columns 0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 3 more)")


def test_the_remedy_for_columns_that_are_not_scaled_is_that_alone() -> None:
    vae, x = (
        vae_of(NormalLikelihood(LearnedScale(initial=1.0))),
        unscaled({0: (5e4, 2e4), 3: (40.0, 15.0)}),
    )
    with pytest.warns(
        UserWarning,
        match=r"not scaled \(columns 0, 3\).*standardise each column, \(x - mean\) / sd",
    ):
        history = fit(vae, x[:64], epochs=6, batch_size=16, progress=False)
    said = " ".join(map(str, history.remarks))
    assert history["objective"][-1] > 1e6
    assert "gradient norm" in said
    assert "lower the learning rate" not in said
    assert "--start-at-mean" not in said
    scaled = (x - x.mean(0)) / x.std(0)
    assert [
        remark
        for remark in check_before(vae_of(NormalLikelihood(0.5)), scaled)
        if "not scaled" in remark.seen
    ] == []


def test_counts_and_pixels_of_likelihoods_of_their_own_need_no_scale() -> None:
    remarks = check_before(vae_of(PoissonLikelihood()), 100 * counts())
    assert not [remark for remark in remarks if "not scaled" in remark.seen]


def test_one_datum_says_nothing_of_features() -> None:
    assert check_before(vae_of(NormalLikelihood(0.5)), normals(1)) == []


def test_a_remark_is_a_finding_with_the_names_that_it_had() -> None:
    (remark,) = check_before(vae_of(NormalLikelihood(0.5)), with_a_constant(normals()))
    assert isinstance(remark, Remark) and isinstance(remark, Finding)
    assert (remark.code, remark.severity, remark.subject) == ("constant-features", "warning", (3,))
    assert (remark.when, remark.seen, remark.grave) == ("before", remark.message, False)
    assert str(remark) == f"{remark.seen}: {remark.advice}" and remark.sentence == f"{remark}."
    units = {"active_units": {"active": [True, False, True, False]}}
    (idle,) = check_after(units)
    assert (idle.code, idle.severity, idle.subject) == ("idle-latents", "note", (1, 3))
    (collapse,) = check_after({"active_units": {"active": [False, False]}})
    assert (collapse.severity, collapse.subject, collapse.when) == ("error", (0, 1), "after")


def test_remarks_of_a_checkpoint_are_read_in_both_forms(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="every latent will collapse"):
        history = fit(
            vae_of(NormalLikelihood(1.0)), with_a_constant(normals()), beta=3.0, epochs=2,
            output=tmp_path, progress=False,
        )  # fmt: skip
    saved = load_checkpoint(tmp_path / "checkpoints" / "last.pt", "cpu")["remarks"]
    assert [Remark.read(each) for each in saved] == [
        r for r in history.remarks if r.when == "before"
    ]
    old = {"when": "during", "seen": "the rate is 0", "advice": "lower β", "grave": True}
    read = Remark.read(old)
    assert {name: getattr(read, name) for name in old} == old
    assert str(read) == "the rate is 0: lower β" and read.severity == "error"
