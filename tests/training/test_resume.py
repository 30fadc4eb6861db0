"""A resumed run is the run that was never interrupted, or is refused in words."""

import contextlib
import shutil
import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from pyro_bvae import BetaVAE, Decoder, fit
from pyro_bvae.core.errors import InputError
from pyro_bvae.datasets import Dataset
from pyro_bvae.likelihoods import BernoulliLikelihood
from pyro_bvae.networks import MLP
from pyro_bvae.posteriors import NormalPosterior
from pyro_bvae.priors import NormalPrior
from pyro_bvae.training import Constant, Cyclical, History, LinearWarmup, OneCycle, load_checkpoint

FEATURES, LATENTS = 6, 2


def small_vae(dropout: bool = False, hidden: int = 8) -> BetaVAE:
    torch.manual_seed(3)
    encoder = MLP(FEATURES, 2 * LATENTS, hidden=(hidden,))
    decoder = MLP(LATENTS, FEATURES, hidden=(hidden,))
    if dropout:
        encoder.layers.insert(1, nn.BatchNorm1d(hidden))
        encoder.layers.insert(2, nn.Dropout(0.3))
        decoder.layers.insert(1, nn.Dropout(0.3))
    return BetaVAE(
        NormalPrior(LATENTS), Decoder(decoder, BernoulliLikelihood()), NormalPosterior(encoder)
    )


def pixels(count: int = 50, seed: int = 0) -> Tensor:
    return torch.rand(count, FEATURES, generator=torch.Generator().manual_seed(seed)).round()


def settings(output: Path, **changes: object) -> dict[str, object]:
    return {
        "beta": LinearWarmup(2.0, 3),
        "epochs": 5,
        "learning_rate": Constant(1e-2),
        "batch_size": 16,
        "validation": pixels(20, seed=1),
        "output": output,
        "progress": False,
        "seed": 4,
        **changes,
    }


class Interrupt(Exception):
    """What a power cut would be."""


def interrupted_after(epochs: int) -> list[object]:
    def callback(row: dict[str, float]) -> None:
        if row["epoch"] == epochs:
            raise Interrupt

    return [callback]


def without_seconds(history: History) -> list[dict[str, float]]:
    return [
        {name: value for name, value in row.items() if name != "seconds"} for row in history.rows
    ]


def assert_same_state(one: object, other: object) -> None:
    if isinstance(one, Tensor):
        assert torch.equal(one, other)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for name in one:
            if name != "seconds":
                assert_same_state(one[name], other[name])
    elif isinstance(one, list):
        assert len(one) == len(other)
        for left, right in zip(one, other, strict=True):
            assert_same_state(left, right)
    else:
        assert one == other


@pytest.mark.parametrize("interruption", [1, 3])
@pytest.mark.parametrize(
    "kind", ["plain", "dropout and batch norm", "one cycle", "dynamic pixels", "loader"]
)
def test_resuming_is_bit_identical_with_never_stopping(
    kind: str, interruption: int, tmp_path: Path
) -> None:
    data, changes = pixels(), {}
    if kind == "one cycle":
        changes["learning_rate"] = OneCycle(1e-2)
    if kind == "dynamic pixels":
        data = Dataset(torch.rand(50, FEATURES)).dynamically_binarized()
    if kind == "loader":
        dataset = torch.utils.data.TensorDataset(data)
        data = torch.utils.data.DataLoader(dataset, batch_size=16, shuffle=True)
    dropout = kind == "dropout and batch norm"

    whole_vae = small_vae(dropout)
    whole = fit(whole_vae, data, **settings(tmp_path / "whole", **changes))

    parts = settings(tmp_path / "parts", **changes)
    with pytest.raises(Interrupt):
        fit(small_vae(dropout), data, callbacks=interrupted_after(interruption), **parts)
    torch.rand(5)  # another process would have another random state
    resumed_vae = small_vae(dropout)
    for parameter in resumed_vae.parameters():
        nn.init.zeros_(parameter)
    resumed = fit(resumed_vae, data, resume=True, **parts)

    assert len(resumed.rows) == 5
    assert without_seconds(resumed) == without_seconds(whole)
    assert_same_state(whole_vae.state_dict(), resumed_vae.state_dict())
    for which in ("last", "best"):
        states = [
            load_checkpoint(tmp_path / run / "checkpoints" / f"{which}.pt")
            for run in ("whole", "parts")
        ]
        assert_same_state(*states)
    assert without_seconds(History.read(tmp_path / "parts" / "metrics.csv")) == without_seconds(
        whole
    )


def test_the_best_epoch_before_an_interruption_stays_the_best(tmp_path: Path) -> None:
    # Steps so large that the held-out objective only gets worse: the patience begun before goes on
    # counting after.
    options = {"early_stopping": 4, "epochs": 40, "beta": 1.0, "learning_rate": Constant(0.3)}
    whole = fit(small_vae(), pixels(), **settings(tmp_path / "whole", **options))
    assert len(whole.rows) < 40
    best = whole["validation_objective"].index(min(whole["validation_objective"])) + 1
    parts = settings(tmp_path / "parts", **options)
    with pytest.raises(Interrupt):
        fit(small_vae(), pixels(), callbacks=interrupted_after(best + 2), **parts)
    resumed_vae = small_vae()
    resumed = fit(resumed_vae, pixels(), resume=True, **parts)
    assert without_seconds(resumed) == without_seconds(whole)
    state = load_checkpoint(tmp_path / "parts" / "checkpoints" / "best.pt")
    assert state["history"][-1]["epoch"] == best
    assert_same_state(state["model"], resumed_vae.state_dict())


def test_dropout_and_noise_differ_between_epochs() -> None:
    # Were every epoch seeded alike, resuming would be easy and training wrong.
    rows = fit(
        small_vae(),
        pixels(16),
        epochs=3,
        learning_rate=Constant(0.0),
        batch_size=16,
        progress=False,
    )
    assert len(set(rows["distortion"])) == 3


def test_more_epochs_may_be_asked_for(tmp_path: Path) -> None:
    whole_vae, resumed_vae = small_vae(), small_vae()
    whole = fit(whole_vae, pixels(), **settings(tmp_path / "whole", epochs=6))
    fit(small_vae(), pixels(), **settings(tmp_path / "parts", epochs=4))
    resumed = fit(resumed_vae, pixels(), resume=True, **settings(tmp_path / "parts", epochs=6))
    assert without_seconds(resumed) == without_seconds(whole)
    assert_same_state(whole_vae.state_dict(), resumed_vae.state_dict())


@pytest.mark.parametrize("done", [2, 6])
def test_a_schedule_that_jumps_at_the_seam_is_said_with_both_values(
    done: int, tmp_path: Path
) -> None:
    peak, more = 0.01, 12
    options = {"learning_rate": peak, "beta": Cyclical(2.0, num_cycles=1)}
    with contextlib.suppress(Interrupt):
        stops = interrupted_after(done)
        fit(small_vae(), pixels(), callbacks=stops, **settings(tmp_path, epochs=6, **options))
    rows = History.read(tmp_path / "metrics.csv").rows
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(small_vae(), pixels(), resume=True, **settings(tmp_path, epochs=more, **options))
    said = [str(warning.message) for warning in caught]
    rates = f"{rows[-1]['learning_rate']:.2g} at the end of epoch {done} to"
    rates = f"the learning rate jumps from {rates} {OneCycle(peak)(done, more):.2g}, since"
    betas = f"β jumps from {rows[-1]['beta']:.2g} at the end of epoch {done} to"
    betas = f"{betas} {Cyclical(2.0, num_cycles=1)(done, more):.2g}, since"
    assert sum(line.startswith(rates) for line in said) == 1, said
    # At the end of the shorter training β has its last value, and half-way through the longer too.
    assert sum(line.startswith(betas) for line in said) == (done == 2), said
    jumps = [line for line in said if "jumps" in line]
    assert all(line.endswith("its schedule is now that of 12 epochs") for line in jumps)


def test_no_seam_is_said_where_there_is_none(tmp_path: Path) -> None:
    options = {"learning_rate": 0.01, "beta": Cyclical(2.0)}
    with pytest.raises(Interrupt):
        fit(small_vae(), pixels(), callbacks=interrupted_after(2), **settings(tmp_path, **options))
    fit(small_vae(), pixels(), resume=True, **settings(tmp_path, **options))  # warnings are errors


@pytest.mark.filterwarnings("ignore:the warm-up of β outlives")
def test_fewer_epochs_than_are_done_are_said_and_nothing_happens(tmp_path: Path) -> None:
    history = fit(small_vae(), pixels(), **settings(tmp_path))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.warns(UserWarning, match="5 epochs are done and 'epochs' is 2: nothing is trained"):
        again = fit(small_vae(), pixels(), resume=True, **settings(tmp_path, epochs=2))
    assert again.rows == history.rows
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_finished_run_that_is_resumed_gives_its_weights_and_writes_nothing(
    tmp_path: Path,
) -> None:
    trained, resumed = small_vae(), small_vae()
    history = fit(trained, pixels(), **settings(tmp_path))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    again = fit(resumed, pixels(), resume=True, **settings(tmp_path))
    assert again.rows == history.rows
    assert_same_state(trained.state_dict(), resumed.state_dict())
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run of two epochs."""
    output = tmp_path_factory.mktemp("runs") / "run"
    fit(small_vae(), pixels(), **settings(output, epochs=2, beta=2.0))
    return output


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"beta": 1.0}, r"'beta' was Constant\(value=2.0\), got Constant\(value=1.0\)"),
        ({"beta": LinearWarmup(2.0, 3)}, r"'beta' was Constant\(value=2.0\), got LinearWarmup"),
        (
            {"learning_rate": 1e-2},
            r"'learning_rate' was Constant\(value=0.01\), got OneCycle\(value=0.01",
        ),
        (
            {"learning_rate": lambda epoch, epochs: 0.1},
            r"'learning_rate' was Constant\(value=0.01\), got .*<lambda>",
        ),
        ({"batch_size": 8}, "'batch_size' was 16, got 8"),
        ({"gradient_clip": None}, "'gradient_clip' was 200.0, got None"),
        ({"seed": 5}, "'seed' was 4, got 5"),
        ({"validation": None}, "it was trained with 'validation'"),
    ],
)
def test_other_settings_are_refused_and_nothing_is_lost(
    run: Path, tmp_path: Path, change: dict[str, object], message: str
) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    before = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    vae = small_vae()
    weights = {name: value.clone() for name, value in vae.state_dict().items()}
    with pytest.raises(InputError, match=rf"cannot resume .*last\.pt: {message}"):
        fit(vae, pixels(), resume=True, **{**settings(copy, beta=2.0), **change})
    assert {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()} == before
    assert_same_state(weights, vae.state_dict())


def test_another_model_is_refused(run: Path) -> None:
    with pytest.raises(InputError, match=r"last\.pt does not fit this model: .*size mismatch"):
        fit(small_vae(hidden=5), pixels(), resume=True, **settings(run, beta=2.0))


def test_another_choice_of_frozen_parameters_is_refused(run: Path) -> None:
    vae = small_vae()
    vae.decoder.requires_grad_(False)
    with pytest.raises(InputError, match="other parameters of the model were trained"):
        fit(vae, pixels(), resume=True, **settings(run, beta=2.0))


def test_a_run_is_not_overwritten(run: Path) -> None:
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    with pytest.raises(
        InputError, match="holds a run already: resume it, or choose another directory"
    ):
        fit(small_vae(), pixels(), **settings(run))
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_there_must_be_something_to_resume(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"there is no checkpoint at .*last\.pt"):
        fit(small_vae(), pixels(), resume=True, **settings(tmp_path / "missing"))
    with pytest.raises(InputError, match="'resume' needs 'output'"):
        fit(small_vae(), pixels(), resume=True, **settings(tmp_path) | {"output": None})
    assert list(tmp_path.iterdir()) == []
