"""Configurations: what a person can spell, what a file can hold, and what is refused before any
work is done."""

import json
from dataclasses import asdict, fields, replace
from pathlib import Path

import pytest
import torch

from pyro_bvae.core.errors import InputError
from pyro_bvae.likelihoods import LearnedScale
from pyro_bvae.runs import Shape, TrainConfig, build_vae, load_data, read_config, write_config
from pyro_bvae.runs.build import LIKELIHOODS, NETWORKS
from pyro_bvae.training import LinearWarmup

SMALL = TrainConfig(hidden=(8, 4), latent_dim=3)


def test_a_configuration_reads_back(tmp_path: Path) -> None:
    config = replace(
        SMALL, beta=2.0, validation=0.2, gradient_clip=None, path="data.csv", early_stopping=3
    )
    write_config(config, tmp_path / "config.json")
    assert read_config(tmp_path / "config.json") == config
    assert json.loads((tmp_path / "config.json").read_text())["hidden"] == [8, 4]


def test_what_a_file_leaves_out_is_the_default(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"beta": 4, "hidden": []}')
    assert read_config(tmp_path / "config.json") == TrainConfig(beta=4, hidden=())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is no JSON"),
        ("[1, 2]", "is no configuration of pyro_bvae: it has list"),
        ('{"betta": 1}', r"is no configuration of pyro_bvae: it has \['betta'\]"),
        ('{"beta": "four"}', "is no configuration of pyro_bvae: 'beta' is 'four'"),
        ('{"hidden": 400}', "is no configuration of pyro_bvae: 'hidden' is 400"),
        ('{"hidden": ["a"]}', "is no configuration of pyro_bvae: 'hidden' is"),
        ('{"epochs": 2.5}', "is no configuration of pyro_bvae: 'epochs' is 2.5"),
        ('{"dataset": null}', "is no configuration of pyro_bvae: 'dataset' is None"),
    ],
)
def test_a_broken_configuration_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(InputError, match=message):
        read_config(tmp_path / "config.json")


def test_a_missing_configuration_is_no_run_directory(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"is not a run directory: it has no config\.json"):
        read_config(tmp_path / "config.json")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("beta", -1.0),
        ("beta", float("nan")),
        ("beta", float("inf")),
        ("warmup_epochs", -1.0),
        ("warmup_epochs", float("nan")),
        ("latent_dim", 0),
        ("epochs", 0),
        ("batch_size", 0),
        ("learning_rate", -1e-3),
        ("learning_rate", float("nan")),
        ("gradient_clip", 0.0),
        ("early_stopping", 0),
        ("seed", -1),
    ],
)
def test_impossible_numbers_are_refused_without_data(name: str, value: float) -> None:
    with pytest.raises(InputError, match=rf"'{name}' must be .*, got {value}"):
        replace(SMALL, **{name: value}).check()


@pytest.mark.parametrize(
    ("name", "value", "nearest"),
    [
        ("dataset", "digit", "digits"),
        ("prior", "norml", "normal"),
        ("likelihood", "normal-perfeature", "normal-per-feature"),
        ("posterior", "nromal", "normal"),
        ("network", "convolution", "convolutional"),
    ],
)
def test_unknown_names_give_the_nearest_one(name: str, value: str, nearest: str) -> None:
    with pytest.raises(
        InputError, match=rf"unknown .* '{value}'\. Did you mean '{nearest}'\? Known: "
    ):
        replace(SMALL, **{name: value}).check()


def test_every_field_has_a_help_text() -> None:
    source = Path(__import__("pyro_bvae.runs.build", fromlist=["configs"]).__file__).read_text()
    for field in fields(TrainConfig):
        after = source.split(f"    {field.name}: ", 1)[1].split("\n", 2)[1]
        assert after.strip().startswith('"""'), field.name


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@pytest.mark.parametrize("network", NETWORKS)
def test_every_combination_of_parts_gives_a_model_of_the_data(
    network: str, likelihood: str
) -> None:
    config = replace(SMALL, network=network, likelihood=likelihood)
    vae = build_vae(config, Shape(28 * 28, (1, 28, 28)))
    assert (vae.latent_dim, vae.num_features) == (3, 784)
    x = torch.rand(2, 784)
    assert vae.reconstruct(x).shape == x.shape
    assert vae.encode(x).shape == (2, 3)


def test_convolutions_need_images() -> None:
    with pytest.raises(InputError, match="needs images"):
        build_vae(replace(SMALL, network="convolutional"), Shape(10, None))


def test_hidden_layers_are_mirrored_and_must_be_named() -> None:
    vae = build_vae(SMALL, Shape(10, None))
    assert [tuple(value.shape) for name, value in vae.named_parameters() if "layers" in name and "weight" in name] == [
        (4, 3), (8, 4), (10, 8), (8, 10), (4, 8), (6, 4),
    ]  # fmt: skip
    with pytest.raises(InputError, match="'hidden' must name at least one width"):
        build_vae(replace(SMALL, hidden=()), Shape(10, None))


def test_the_likelihood_scale_is_where_learning_starts() -> None:
    vae = build_vae(
        replace(SMALL, likelihood="normal-per-feature", likelihood_scale=0.3), Shape(10, None)
    )
    scale = vae.decoder.likelihood.scale
    assert isinstance(scale, LearnedScale)
    torch.testing.assert_close(scale.scale, torch.full((10,), 0.3))


def test_weights_follow_the_seed_and_nothing_else() -> None:
    def weights(seed: int) -> torch.Tensor:
        torch.rand(3)
        return (
            build_vae(replace(SMALL, seed=seed), Shape(10, None)).encoder.network.layers[0].weight
        )

    before = torch.get_rng_state()
    first = build_vae(SMALL, Shape(10, None)).encoder.network.layers[0].weight
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(first, weights(0))
    assert not torch.equal(first, weights(1))


def test_beta_is_constant_or_warms_up() -> None:
    assert replace(SMALL, beta=2.0, warmup_epochs=0.0).beta_schedule() == 2.0
    assert replace(SMALL, beta=2.0, epochs=50).beta_schedule() == LinearWarmup(2.0, 10.0)
    assert replace(SMALL, beta=2.0, warmup_epochs=3.0).beta_schedule() == LinearWarmup(2.0, 3.0)


@pytest.mark.parametrize(
    ("validation", "count"), [(0.25, 1250), (100.0, 100), (100, 100), (1.0, 1), (None, 500)]
)
def test_validation_is_a_share_or_a_number(validation: float | None, count: int) -> None:
    splits = load_data(replace(SMALL, dataset="linear-gaussian", validation=validation))
    assert len(splits.validation) == count


def test_validation_may_be_left_out_but_is_no_fraction_of_a_datum() -> None:
    config = replace(SMALL, dataset="linear-gaussian")
    assert load_data(replace(config, validation=0.0)).validation is None
    for value in (1.5, -0.1, float("nan"), float("inf")):
        with pytest.raises(InputError, match=rf"'validation' must be .*, got {value}"):
            load_data(replace(config, validation=value))


def test_the_defaults_are_a_configuration() -> None:
    TrainConfig().check()
    assert TrainConfig(**asdict(TrainConfig())) == TrainConfig()
