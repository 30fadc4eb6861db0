r"""A measured program as one ArviZ object: InferenceData on ArviZ 0.x, a DataTree on 1.x."""

from __future__ import annotations

import functools
import inspect
import io
import json
import re
import warnings
from collections.abc import Iterable
from dataclasses import asdict, is_dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from torch import Tensor, nn

from pyro_bvae.core.atomic_files import atomic_write
from pyro_bvae.core.errors import InputError
from pyro_bvae.core.inputs.public import exclusive, public
from pyro_bvae.core.internals import keystr, tree_flatten_with_path
from pyro_bvae.core.module_modes import owner
from pyro_bvae.evaluation._evaluate import Evaluation
from pyro_bvae.evaluation.estimate import METHODS
from pyro_bvae.program.predictive import Groups, draw_groups
from pyro_bvae.program.program import Function, Program, open_program

# ArviZ's names of the first two dimensions of all draws.
_DRAWN = ("chain", "draw")
# Variables as xarray takes them: names of all dimensions, and values.
Arrays = dict[str, tuple[tuple[str, ...], np.ndarray]]


@exclusive
def to_arviz(
    model: Function,
    guide: Function,
    *args: Any,
    evaluation: Evaluation | None = None,
    num_draws: Annotated[int, "an integer of at least 1"] = 100,
    num_predictive: Annotated[int, "an integer of at least 0"] = 10,
    attributes: dict[str, Any] | None = None,
    data_plate: str | None = None,
    seed: int = 0,
) -> Any:
    r"""Return the program's draws, weights, data and estimates as one ArviZ object.

    Variables are named as the program's sites are. Dimensions are chain (one), draw, the data
    plate, then other plates under their names and ``<site>_dim_0`` and so on. A latent is the
    latent of a datum, so that every variable has the data's dimension. The groups:

    - ``posterior``: each latent, **drawn from the guide**. These are no draws of the posterior
      until they are weighed: :math:`w_{kn} = \exp` of ``log_weight``, datum by datum.
    - ``sample_stats``: ``log_weight`` of each draw and datum, and its parts: ``log_prior``
      :math:`\log p(z)`, ``log_observed`` :math:`\log p(x|z)` of all observed sites and factors,
      ``log_guide`` :math:`\log q(z|x)`, so that ``log_weight = log_prior + log_observed -
      log_guide``. β does not enter; masks do.
    - ``log_likelihood``: :math:`\log p(x|z)` of each observed site, summed over its features.
    - ``posterior_predictive``: each observed site, drawn at the first ``num_predictive`` draws of
      ``posterior``.
    - ``prior``, ``prior_predictive``: latents and observed sites, drawn from the model; factors
      count in neither.
    - ``observed_data``: the value of each observed site.
    - ``constant_data``: the tensor arguments with a row for each datum that are no observed site's
      value, such as ``context_covariates``, and of an evaluation the per-datum ``elbo``,
      ``evidence``, ``pareto_k`` and, if it went on where samples could not be trusted,
      ``evidence_method``, the place of its estimator in the attribute ``evidence_methods``, beside
      its ``evidence_budget``. ``row`` is the number of each among the data that it was drawn from.

    Where the model cannot draw its data (a distribution without ``sample``), a warning says
    so and the groups of prior and prediction are left out. A slash in a name becomes a dot, and a
    name that is taken (an argument named as the data plate, or ``evidence``) gets an underscore.

    **Why** ``arviz.loo`` **of it is no score of the model.** Each datum has a latent of its own,
    and its pointwise log-likelihood is under draws that were made for that very datum. Leaving the
    datum out would leave its latent to the prior, so that the exact answer is the datum's evidence.
    To get there from draws that saw the datum, ``loo`` takes the harmonic mean of their
    likelihoods, whose variance is large and often infinite, and it takes the guide's draws for the
    posterior's. The result lies between evidence and reconstruction, and favours a model that
    copies its input. The held-out score is :func:`~pyro_bvae.evidence` on data that the model was
    not trained on.

    Args:
        model: A Pyro model whose latents share a plate over the data.
        guide: Its guide.
        *args: The arguments of both. Tensors of first size N are sliced with the data, others are
            passed whole.
        evaluation: Estimates of the same data.
        num_draws: Draws of the latents for each datum, from guide and prior.
        num_predictive: For how many of these draws the observed sites are drawn as well, which
            takes the memory of so many copies of the data, twice; at most ``num_draws``, and 0 for
            no such groups.
        attributes: Attributes of the whole, such as the configuration. Those without a type in
            netCDF (None, truth values, lists, mappings, dataclasses) are written as JSON. The
            package, its version, the model's name, ``seed``, ``num_draws`` and
            ``num_predictive`` are there in any case.
        data_plate: Name of the data plate, where the latents share more than one.
        seed: Seed of the draws; the caller's generators are left alone. The draws of the guide do
            not depend on ``num_predictive``.

    Raises:
        InputError: if the program has no per-datum weights, a number of draws is impossible, or the
            evaluation is of another number of data.
    """
    _check_number("num_draws", num_draws, 1)
    _check_number("num_predictive", num_predictive, 0)
    num_predictive = min(num_draws, num_predictive)
    with (
        open_program(model, guide, args, data_plate=data_plate, seed=seed) as program,
        torch.no_grad(),
    ):
        if evaluation is not None and len(evaluation.evidence.per_datum) != program.num_data:
            measured = len(evaluation.evidence.per_datum)
            raise InputError(
                f"'evaluation' must be of the {program.num_data} data, got one of {measured}"
            )
        groups = _arrays(draw_groups(program, num_draws, num_predictive, seed), program.plate.name)
        groups["constant_data"] = _constants(program, groups["observed_data"], evaluation)
    numbers = {"seed": seed, "num_draws": num_draws, "num_predictive": num_predictive}
    about = {**library(), "model": _name_of(model), **numbers, **_estimators(evaluation)}
    about |= attributes or {}
    return to_datatree(groups, {str(name): _attribute(value) for name, value in about.items()})


@public
def write_arviz(data: Any, path: Path) -> None:
    """Write the result of :func:`to_arviz` as netCDF, which ``arviz.from_netcdf`` reads back.

    Raises:
        InputError: for anything else.
        WriteError: if the file system does not take the file.
    """
    if isinstance(data, type) or not hasattr(data, "to_netcdf"):
        raise InputError(f"'data' must be a result of to_arviz, got {type(data).__name__}")
    content = netcdf_bytes(data)
    with atomic_write(path, "wb") as stream:
        stream.write(content)


def netcdf_bytes(data: Any) -> memoryview:
    """Return the content of the netCDF file of the result of :func:`to_arviz`.

    It is put together in memory: on a full disk the writer of HDF5 ends the process.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # ArviZ announces its next version
        import h5netcdf
        import xarray
        from xarray.backends import H5NetCDFStore

    names = data.groups() if callable(data.groups) else list(data.children)  # of ArviZ 0.x and 1.x
    buffer = io.BytesIO()
    with h5netcdf.File(buffer, "w") as file:
        xarray.Dataset(attrs=data.attrs).dump_to_store(H5NetCDFStore(file, mode="a"))
        for name in names:
            group = data[name]
            dataset = group if isinstance(group, xarray.Dataset) else group.to_dataset()
            numbers = [
                key for key, values in dataset.variables.items() if values.dtype.kind in "biuf"
            ]
            store = H5NetCDFStore(file, group=name, mode="a")
            dataset.dump_to_store(store, encoding={key: {"zlib": True} for key in numbers})
    return buffer.getbuffer()


def _check_number(name: str, value: int, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise InputError(f"'{name}' must be an integer of at least {least}, got {value!r}")


# -- from draws to arrays
# ------------------------------------------------------------------------------------------


def _dim(name: str) -> str:
    name = name.replace("/", ".")
    return f"{name}_" if name in _DRAWN else name


def _arrays(groups: Groups, plate: str) -> dict[str, Arrays]:
    """Add the chain to draws, and take the draws away from the rest."""
    arrays: dict[str, Arrays] = {}
    for group, variables in groups.items():
        drawn = group != "observed_data"
        arrays[group] = {
            name: (
                (*(_DRAWN if drawn else ()), *map(_dim, (plate, *dims))),
                as_array(values if drawn else values[0]),
            )
            for name, (values, dims) in variables.items()
        }
        if drawn:
            arrays[group] = {
                name: (dims, values[None]) for name, (dims, values) in arrays[group].items()
            }
    return arrays


def as_array(tensor: Tensor) -> np.ndarray:
    """Return a tensor as an array of a type that netCDF has."""
    tensor = tensor.detach().cpu()
    # Neither NumPy nor netCDF has all of torch's short floats.
    return (tensor.float() if tensor.dtype in (torch.half, torch.bfloat16) else tensor).numpy()


def _estimators(evaluation: Evaluation | None) -> dict[str, Any]:
    if evaluation is None or evaluation.evidence.methods is None:
        return {}
    return {"evidence_methods": METHODS, "evidence_budget": evaluation.evidence.budget}


def _constants(program: Program, observed: Arrays, evaluation: Evaluation | None) -> Arrays:
    """Return the arguments beside the data that go with them, and the estimates of each datum."""
    data_dim = _dim(program.plate.name)
    constants: Arrays = {}
    if evaluation is not None:
        estimates = {
            "elbo": evaluation.bound.elbo.per_datum,
            "evidence": evaluation.evidence.per_datum,
        }
        if evaluation.evidence.pareto_k is not None:
            estimates["pareto_k"] = evaluation.evidence.pareto_k
        if evaluation.evidence.methods is not None:
            estimates["evidence_method"] = evaluation.evidence.methods
        if evaluation.drawn is not None:
            estimates["row"] = evaluation.drawn
        constants = {name: ((data_dim,), as_array(value)) for name, value in estimates.items()}
    model = inspect.unwrap(program.model)  # of Pyro's handlers
    signature = inspect.signature(model.forward if isinstance(model, nn.Module) else model)
    arguments = signature.bind(*program.args).arguments
    for path, leaf in tree_flatten_with_path(dict(arguments))[0]:
        if not isinstance(leaf, Tensor) or leaf.dim() == 0 or leaf.shape[0] != program.num_data:
            continue
        value = as_array(leaf)
        if any(np.array_equal(value, known, equal_nan=True) for _, known in observed.values()):
            continue
        name = _free(re.sub(r"\W+", "_", keystr(path)).strip("_"), constants)
        constants[name] = ((data_dim, *(f"{name}_dim_{i}" for i in range(value.ndim - 1))), value)
    return constants


def _free(name: str, taken: Iterable[str]) -> str:
    name = name.replace("/", ".")
    while name in taken:
        name += "_"
    return name


# -- the object
# --------------------------------------------------------------------------------------------


def to_datatree(groups: dict[str, Arrays], attributes: dict[str, Any]) -> Any:
    """Make ArviZ's object of datasets that name their own dimensions.

    ``arviz.from_dict`` takes the dimensions of a name for all groups, where the same site has
    others in each.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # ArviZ announces its next version
        import arviz
        import xarray

        datasets = {name: _dataset(variables) for name, variables in groups.items() if variables}
        if int(arviz.__version__.split(".")[0]) < 1:
            return arviz.InferenceData(attrs=attributes, **datasets)
        return xarray.DataTree.from_dict({"/": xarray.Dataset(attrs=attributes), **datasets})


def _dataset(variables: Arrays) -> Any:
    import xarray

    sizes = {
        dim: size
        for dims, values in variables.values()
        for dim, size in zip(dims, values.shape, strict=True)
    }
    named = {_free(name, sizes): variable for name, variable in variables.items()}
    sampled = (
        {"sample_dims": list(_DRAWN)} if "draw" in sizes else {}
    )  # which some of ArviZ's plots ask for
    return xarray.Dataset(
        named, coords={dim: np.arange(size) for dim, size in sizes.items()}, attrs=sampled
    )


def library() -> dict[str, str]:
    """Return the attributes that name this package and its version."""
    try:
        return {"inference_library": "pyro-bvae", "inference_library_version": version("pyro-bvae")}
    except PackageNotFoundError:
        return {"inference_library": "pyro-bvae"}


def _name_of(model: Function) -> str:
    module, function = owner(model), inspect.unwrap(model)
    if module is not None:
        return type(module).__name__
    while isinstance(function, functools.partial):
        function = function.func
    return getattr(function, "__name__", type(function).__name__)


def _attribute(value: Any) -> Any:
    """Return a value as netCDF can hold it: text and numbers as they are, anything else as JSON."""
    if isinstance(value, np.generic):
        value = value.item()
    fits = isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63
    if isinstance(value, str | float) or fits:
        return value

    def plain(part: Any) -> Any:
        if is_dataclass(part) and not isinstance(part, type):
            return asdict(part)
        return part.tolist() if hasattr(part, "tolist") else str(part)

    return json.dumps(value, default=plain)
