"""Configurations: what a person can spell, what a file can hold, and what is refused before any
work is done."""

import json
import re
import subprocess
import sys
from dataclasses import asdict, fields
from pathlib import Path

import pytest
import torch

import pyro_bvae
from pyro_bvae.cli import main
from pyro_bvae.core.errors import InputError
from pyro_bvae.datasets.registry import SOURCES
from pyro_bvae.likelihoods import LearnedScale
from pyro_bvae.runs import (
    Shape,
    TrainConfig,
    build_vae,
    check_config,
    load_data,
    read_config,
    write_config,
)
from pyro_bvae.runs.catalogue import LIKELIHOODS, NETWORKS, TABLES
from pyro_bvae.runs.config import TrainingOptions
from pyro_bvae.training import LinearWarmup

SMALL = TrainConfig(hidden=(8, 4), latent_dim=3)


def test_a_configuration_reads_back(tmp_path: Path) -> None:
    config = SMALL.with_options(
        beta=2.0, validation=0.2, gradient_clip=None, path="data.csv", early_stopping=3
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
        check_config(SMALL.with_options(**{name: value}))


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
        check_config(SMALL.with_options(**{name: value}))


def test_every_option_is_spelled_once_and_has_a_help_text(
    capsys: pytest.CaptureFixture[str],
) -> None:
    parts = [type(part) for part in vars(TrainConfig()).values()]
    names = [field.name for part in parts for field in fields(part)]
    assert len(names) == len(set(names))
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    texts = re.split(r"(?m)^[│ ]{1,2} ?--", capsys.readouterr().out)
    shown = [re.sub(r"[│\s]+", " ", text) for text in texts]
    for name in names:
        help_text = next(text for text in shown if re.match(rf"{name.replace('_', '-')}\b", text))
        assert re.search(r"[a-z]+ [a-z]+.*\(default: ", help_text), help_text


@pytest.mark.parametrize("name", [*TABLES, "dataset"])
def test_the_choices_of_a_table_are_listed_from_it(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    shown = re.sub(r"[│\s]+", " ", capsys.readouterr().out)
    text = shown.split(f" --{name} ")[1].split(" --")[0]
    for choice in TABLES.get(name, SOURCES):
        assert re.search(rf"[ ,]{choice}[ ,.)]", text), choice


def test_a_configuration_may_be_written_in_its_parts(tmp_path: Path) -> None:
    config = SMALL.with_options(beta=2.0, min_cells=3)
    (tmp_path / "config.json").write_text(json.dumps(asdict(config)))
    assert read_config(tmp_path / "config.json") == config


def test_options_are_given_and_read_by_name_alone() -> None:
    config = TrainConfig(beta=2.0, hidden=(3,), min_cells=4)
    assert (config.training.beta, config.model.hidden, config.data.min_cells) == (2.0, (3,), 4)
    assert (config.beta, config.hidden, config.min_cells) == (2.0, (3,), 4)
    with pytest.raises(TypeError, match="betta"):
        TrainConfig(betta=1.0)
    with pytest.raises(AttributeError, match="betta"):
        config.betta  # noqa: B018


@pytest.mark.parametrize("command", [[], ["train"], ["sweep"], ["traverse"], ["verify"]])
def test_help_is_printed_without_torch(command: list[str]) -> None:
    heavy = ("torch", "pyro", "matplotlib", "pandas", "sklearn", "arviz")
    program = f"""
import sys
from pyro_bvae.cli import main
try:
    main({[*command, "--help"]})
except SystemExit as ended:
    assert ended.code == 0
print("imported:", [name for name in {heavy} if name in sys.modules])
"""
    root = Path(pyro_bvae.__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=root, check=True
    )
    assert done.stdout.endswith("imported: []\n")


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@pytest.mark.parametrize("network", NETWORKS)
def test_every_combination_of_parts_gives_a_model_of_the_data(
    network: str, likelihood: str
) -> None:
    config = SMALL.with_options(network=network, likelihood=likelihood)
    vae = build_vae(config, Shape(28 * 28, (1, 28, 28)))
    assert (vae.latent_dim, vae.num_features) == (3, 784)
    x = torch.randint(2, (2, 784)).float()  # which any likelihood can explain
    assert vae.reconstruct(x).shape == x.shape
    assert vae.encode(x).shape == (2, 3)


def test_convolutions_need_images() -> None:
    with pytest.raises(InputError, match="needs images"):
        build_vae(SMALL.with_options(network="convolutional"), Shape(10, None))
    wide = "height and width are divisible by 4, got 30 x 28; 'image_size'"
    with pytest.raises(InputError, match=wide):
        build_vae(SMALL.with_options(network="convolutional"), Shape(840, (1, 28, 30)))
    vae = build_vae(SMALL.with_options(network="convolutional"), Shape(24 * 36, (1, 24, 36)))
    assert vae.reconstruct(torch.zeros(2, 24 * 36)).shape == (2, 24 * 36)


def test_hidden_layers_are_mirrored_and_must_be_named() -> None:
    vae = build_vae(SMALL, Shape(10, None))
    assert [tuple(value.shape) for name, value in vae.named_parameters() if "layers" in name and "weight" in name] == [
        (4, 3), (8, 4), (10, 8), (8, 10), (4, 8), (6, 4),
    ]  # fmt: skip
    other = build_vae(SMALL.with_options(encoder_hidden=(6,)), Shape(10, None))
    assert [layer.out_features for layer in other.encoder.network.layers[::2]] == [6, 6]
    assert [layer.out_features for layer in other.decoder.network.layers[::2]] == [4, 8, 10]
    with pytest.raises(InputError, match="'hidden' must name at least one width"):
        build_vae(SMALL.with_options(hidden=()), Shape(10, None))


@pytest.mark.parametrize("network", ["mlp", "residual", "convolutional"])
def test_networks_have_the_activation_that_is_named(network: str) -> None:
    for name, kind in {"silu": torch.nn.SiLU, "relu": torch.nn.ReLU}.items():
        vae = build_vae(SMALL.with_options(network=network, activation=name), Shape(64, (1, 8, 8)))
        for part in (vae.encoder, vae.decoder):
            kinds = {type(each) for each in part.modules()} & {torch.nn.SiLU, torch.nn.ReLU}
            assert kinds == {kind}


def test_the_likelihood_scale_is_where_learning_starts() -> None:
    vae = build_vae(
        SMALL.with_options(likelihood="normal-per-feature", likelihood_scale=0.3), Shape(10, None)
    )
    scale = vae.decoder.likelihood.scale
    assert isinstance(scale, LearnedScale)
    torch.testing.assert_close(scale.scale, torch.full((10,), 0.3))


def test_weights_follow_the_seed_and_nothing_else() -> None:
    def weights(seed: int) -> torch.Tensor:
        torch.rand(3)
        return (
            build_vae(SMALL.with_options(seed=seed), Shape(10, None))
            .encoder.network.layers[0]
            .weight
        )

    before = torch.get_rng_state()
    first = build_vae(SMALL, Shape(10, None)).encoder.network.layers[0].weight
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(first, weights(0))
    assert not torch.equal(first, weights(1))


def test_beta_is_constant_or_warms_up() -> None:
    def schedule(**options: float) -> object:
        return TrainingOptions(beta=2.0, **options).beta_schedule()

    assert schedule(warmup_epochs=0.0) == 2.0
    assert schedule(epochs=50) == LinearWarmup(2.0, 10.0)
    assert schedule(warmup_epochs=3.0) == LinearWarmup(2.0, 3.0)


@pytest.mark.parametrize(
    ("validation", "count"), [(0.25, 1250), (100.0, 100), (100, 100), (1.0, 1), (None, 500)]
)
def test_validation_is_a_share_or_a_number(validation: float | None, count: int) -> None:
    splits = load_data(SMALL.with_options(dataset="linear-gaussian", validation=validation))
    assert len(splits.validation) == count


def test_validation_may_be_left_out_but_is_no_fraction_of_a_datum() -> None:
    config = SMALL.with_options(dataset="linear-gaussian")
    assert load_data(config.with_options(validation=0.0)).validation is None
    for value in (1.5, -0.1, float("nan"), float("inf")):
        with pytest.raises(InputError, match=rf"'validation' must be .*, got {value}"):
            load_data(config.with_options(validation=value))


def test_the_defaults_are_a_configuration() -> None:
    check_config(TrainConfig())
    assert TrainConfig(**TrainConfig().options()) == TrainConfig()
