"""The configuration of a run, as data: spelled alike on a command line, in a file and in Python."""

from __future__ import annotations

import json
import math
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Self, get_args, get_origin, get_type_hints

from typing_extensions import Doc

from pyro_bvae.core.atomic_files import SUMS
from pyro_bvae.core.disk.digests import changed, check_sums, read_file, write_files
from pyro_bvae.core.errors import InputError, choices
from pyro_bvae.core.inputs.bounds import Bounds
from pyro_bvae.core.inputs.files import check_text
from pyro_bvae.core.inputs.public import public
from pyro_bvae.datasets.registry import DataOptions
from pyro_bvae.runs.catalogue import (
    ACTIVATIONS,
    DISPERSIONS,
    LIKELIHOODS,
    NETWORKS,
    POSTERIORS,
    PRIORS,
)
from pyro_bvae.runs.presets import preset_options
from pyro_bvae.training.schedules import CosineWarmup, Cyclical, LinearWarmup
from pyro_bvae.training.settings import Beta, FitOptions

if TYPE_CHECKING:
    from pyro_bvae.training.schedules import Schedule

SCHEDULES = ("linear", "cosine", "cyclical", "constant")

NumSeeds = Annotated[int, Bounds(1, 1000)]
NumSamples = Annotated[int, Bounds(1, 100_000_000)]
NumData = Annotated[int | None, Bounds(1, 1_000_000_000)]


@dataclass(frozen=True)
class ModelOptions:
    """The model of a run: its parts by name, and their sizes."""

    prior: Annotated[str, Doc(f"Prior p(z): {choices(PRIORS)}.")] = "normal"
    prior_components: Annotated[int | None, Bounds(1, 10_000)] = None
    """Components of the mixture prior (10), pseudo-inputs of vamp (500)."""
    likelihood: Annotated[str, Doc(f"Likelihood p(x|z): {choices(LIKELIHOODS)}.")] = "bernoulli"
    likelihood_scale: Annotated[float, Bounds(0, 1e6)] = 1.0
    """Scale of normal-fixed; where the learned scales start."""
    dispersion: Annotated[
        str, Doc(f"Dispersion of negative binomials: {choices(DISPERSIONS)}.")
    ] = "feature"
    posterior: Annotated[str, Doc(f"Guide q(z|x): {choices(POSTERIORS)}.")] = "normal"
    network: Annotated[str, Doc(f"Networks of encoder and decoder: {choices(NETWORKS)}.")] = "mlp"
    activation: Annotated[
        str, Doc(f"Activation between layers, of no effect with linear: {choices(ACTIVATIONS)}.")
    ] = "silu"
    hidden: Annotated[tuple[int, ...], Bounds(1, 10_000_000)] = (400, 400)
    """Widths of the hidden layers; of residual blocks; a convolutional network takes the last for
    its dense layer."""
    encoder_hidden: Annotated[tuple[int, ...], Bounds(1, 10_000_000)] = ()
    """Widths of the encoder's hidden layers, where they are others than --hidden."""
    latent_dim: Annotated[int, Bounds(1, 10_000)] = 20
    """Number of latents."""
    standardize: bool = False
    """Have the networks see features of mean 0 and standard deviation 1, for likelihoods of real
    numbers; results stay in the data's units, the scales of the likelihood are in deviations."""


@dataclass(frozen=True)
class TrainingOptions(FitOptions):
    """The training of a run: the options of a fit, and how β and the learning rate come about."""

    beta: Beta = 1.0
    """Weight of the KL in the objective, 0 or more."""
    schedule: str = "linear"
    """How β comes about: linear or cosine (a warm-up from 0), cyclical (four of them), or
    constant."""
    warmup_epochs: Annotated[float | None, Bounds(0, 1e12)] = None
    """Epochs of the linear or cosine warm-up, a fifth of all by default; 0 for a constant β."""
    target_rate: Annotated[float | None, Bounds(0, 1e12, above=True)] = None
    """Rate in nats to train to, by a β that is adapted from --beta on; instead of a schedule."""
    learning_rate: Annotated[float, Bounds(0, 1e300)] = 3e-3
    """Highest learning rate of the one-cycle schedule."""
    steps: Annotated[int | None, Bounds(1, 1_000_000_000_000)] = None
    """Training steps, in place of --epochs: the epochs that hold so many."""
    sleep: Annotated[float, Bounds(0, 1e6)] = 0.0
    """Epochs after those of the model, as a share of them, in which the guide alone learns the
    posterior of data that the model draws (the sleep phase of wake-sleep), so that more importance
    weights can be trusted."""
    start_at_mean: bool = False
    """Start the decoder's last bias at the best of a model without latents, such as the logit of
    the data's mean."""
    compile: bool | None = None
    """Compile the training step; by default where the run is long enough to repay the seconds that
    takes."""
    device: str = "cpu"
    """Where to train: cpu, cuda, cuda:1, ..."""

    def beta_schedule(self) -> float | Schedule:
        """Return β as :func:`~pyro_bvae.fit` takes it."""
        if self.target_rate is not None:
            from pyro_bvae.training.objectives.target_rate import TargetRate

            return TargetRate(self.target_rate, start=self.beta)
        if self.schedule == "cyclical":
            return Cyclical(self.beta)
        warmup_epochs = self.epochs / 5 if self.warmup_epochs is None else self.warmup_epochs
        if not warmup_epochs or self.schedule == "constant":
            return self.beta
        warmup = CosineWarmup if self.schedule == "cosine" else LinearWarmup
        return warmup(self.beta, warmup_epochs)

    def settings(self) -> dict[str, Any]:
        """Return the keyword arguments of :func:`~pyro_bvae.fit` that these options make."""
        return {
            **{field.name: getattr(self, field.name) for field in fields(FitOptions)},
            "beta": self.beta_schedule(),
            "learning_rate": self.learning_rate,
            "compile": self.compile,
        }

    def sleep_settings(self) -> dict[str, Any]:
        """Return the keyword arguments of :func:`~pyro_bvae.training.sleep_phase` likewise."""
        names = ("batch_size", "seed", "gradient_clip")
        epochs = math.ceil(self.sleep * self.epochs)
        return {"epochs": epochs, **{name: getattr(self, name) for name in names}}


@dataclass(frozen=True, init=False)
class TrainConfig:
    """The configuration of a run: data, model and training.

    Options may be given by name alone, ``TrainConfig(dataset="mnist", prior="vamp", beta=4.0)``,
    and read so, ``config.beta``.

    Args:
        data: The options of the data.
        model: The options of the model.
        training: The options of the training.
        **options: Options of any part, which replace those of the part.

    Raises:
        TypeError: for an option that no part has.
    """

    data: DataOptions
    model: ModelOptions
    training: TrainingOptions

    def __init__(
        self,
        data: DataOptions | None = None,
        model: ModelOptions | None = None,
        training: TrainingOptions | None = None,
        **options: Any,
    ) -> None:
        for name, part in (
            ("data", data or DataOptions()),
            ("model", model or ModelOptions()),
            ("training", training or TrainingOptions()),
        ):
            own = {key: options.pop(key) for key in vars(part).keys() & options.keys()}
            object.__setattr__(self, name, replace(part, **own))
        if options:
            raise TypeError(f"no option of a configuration: {', '.join(options)}")

    def __getattr__(self, name: str) -> Any:
        for part in vars(self).values():
            if name in vars(part):
                return vars(part)[name]
        raise AttributeError(f"a configuration has no part and no option '{name}'")

    @classmethod
    def preset(cls, name: str, **options: Any) -> Self:
        """Return the configuration of a preset, such as ``counts-nb``.

        Args:
            name: One of :data:`~pyro_bvae.runs.presets.PRESETS`; ``none`` for the defaults.
            **options: Options of any part, which replace those of the preset.

        Raises:
            InputError: for another name.
            TypeError: for an option that no part has.
        """
        return cls(**preset_options(name, options), **options)

    def with_options(self, **options: Any) -> Self:
        """Return the configuration with other values of some options, of whichever part."""
        return type(self)(self.data, self.model, self.training, **options)

    def options(self) -> dict[str, Any]:
        """Return all options by name, as the command line spells them."""
        return {**asdict(self.data), **asdict(self.model), **asdict(self.training)}

    def resolved(self) -> TrainConfig:
        """Return the configuration that a run writes, with the options that follow from others.

        Paths are absolute, so that the run can be read from anywhere. Epochs that are given as
        steps follow from the data, see :meth:`in_epochs`.
        """
        warmup_epochs = self.training.warmup_epochs
        if warmup_epochs is None and self.training.steps is None:
            warmup_epochs = self.training.epochs / 5
        paths = {"data_root": self.data.data_root, "path": self.data.path}
        return self.with_options(
            warmup_epochs=warmup_epochs,
            **{name: str(Path(path).resolve()) for name, path in paths.items() if path is not None},
        )

    def in_epochs(self, steps_per_epoch: int) -> TrainConfig:
        """Return the resolved configuration with steps as epochs, the first that hold them all."""
        if self.training.steps is None:
            return self
        epochs = -(-self.training.steps // steps_per_epoch)
        return self.with_options(steps=None, epochs=epochs).resolved()


_PARTS: dict[str, Any] = get_type_hints(TrainConfig)
_TYPES: dict[str, Any] = {
    name: kind for part in _PARTS.values() for name, kind in get_type_hints(part).items()
}


# Entry of a configuration's file, and of a checkpoint, that names the file of the digests.
_DIGESTS = "digests"


@public
def write_config(config: TrainConfig, path: Path) -> None:
    """Write a configuration as JSON, each option by the name that the command line gives it.

    Its directory becomes one of a run, with a file of digests, which the entry ``digests`` names.
    """
    write_files({path: config_bytes(config)}, begin=True)


def config_bytes(config: TrainConfig) -> bytes:
    """Return the content of the file of a configuration."""
    text = json.dumps({_DIGESTS: SUMS, **config.options()}, indent=2) + "\n"
    return text.encode("utf-8")


@public
def read_config(path: Path) -> TrainConfig:
    """Read a configuration, whose options may stand in the parts ``data``, ``model``, ``training``.

    Raises:
        InputError: if the file is missing, no JSON, not as its run wrote it, or has fields that are
            none of a configuration.
    """
    if not path.exists():
        raise InputError(f"{path.parent} is not a run directory: it has no {path.name}")
    check_text(path)
    try:
        content = read_file(path)
    except InputError as error:
        if edited := _edited(path):
            raise changed(path, edited) from error
        raise
    try:
        values = json.loads(content.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is no JSON: {error}") from error
    foreign = f"{path} is no configuration of pyro_bvae"
    if not isinstance(values, dict):
        raise InputError(f"{foreign}: it has {type(values).__name__}")
    check_sums(path, values.pop(_DIGESTS, None))
    for part in _PARTS.keys() & values.keys():
        if isinstance(values[part], dict):
            values |= values.pop(part)
    if surplus := sorted(set(values) - set(_TYPES)):
        raise InputError(f"{foreign}: it has {surplus}")
    for name, value in values.items():
        if not _is_of_type(value, _TYPES[name]):
            raise InputError(f"{foreign}: '{name}' is {value!r}")
    lists = {name: tuple(value) for name, value in values.items() if isinstance(value, list)}
    return TrainConfig(**{**values, **lists})


def _edited(path: Path) -> str:
    """Return the options of a changed file that its last checkpoint was trained with otherwise."""
    from pyro_bvae.training.checkpoint import checkpoint_path, differences, load_checkpoint

    with suppress(OSError, ValueError, RecursionError):  # the error of the digest is told then
        given = json.loads(path.read_bytes())
        known = load_checkpoint(checkpoint_path(path.parent, "last")).get("config")
        if isinstance(given, dict) and isinstance(known, dict):
            return differences(known, given)
    return ""


def _is_of_type(value: Any, kind: Any) -> bool:
    """Return whether JSON's value can be one of a field's type: lists are tuples, 4 may be 4.0."""
    if get_origin(kind) is tuple:
        return isinstance(value, list) and all(type(item) is get_args(kind)[0] for item in value)
    kinds = get_args(kind) or (kind,)
    if isinstance(value, bool) and bool not in kinds:
        return False
    return isinstance(value, (*kinds, int) if float in kinds else kinds)
