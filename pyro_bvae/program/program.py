r"""A Pyro model and guide as evaluation needs them: inspected, checked and opened.

Nothing is assumed of the program's names. The latents are the model's unobserved sites, and the
data plate is the plate that all of them share.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pyro
import torch
from pyro import poutine
from torch import Tensor

from pyro_bvae.core.context import check_contexts
from pyro_bvae.core.errors import InputError
from pyro_bvae.core.inputs.programs import fitting_networks
from pyro_bvae.core.module_modes import EvalModeCheck, evaluating, owner
from pyro_bvae.core.param_store import private_store
from pyro_bvae.core.precision import fast_products, full_precision
from pyro_bvae.core.protocols import ChecksData
from pyro_bvae.core.seeds import PROBE_STREAM, PROGRAM_STREAM, seeded
from pyro_bvae.program.arguments import check_in_parts, naming_missing_values, tensors
from pyro_bvae.program.checks import (
    check_faults,
    check_rows,
    masked_latents,
    outside_priors,
    score,
    varying_sites,
)
from pyro_bvae.program.densities import LatentValues, LogDensities, is_close, stack
from pyro_bvae.program.discrete.checks import check_summation
from pyro_bvae.program.discrete.factors import Layout
from pyro_bvae.program.discrete.structure import NONE, find_discrete
from pyro_bvae.program.discrete.summation import Summation
from pyro_bvae.program.scoring import Function, ScoredProgram
from pyro_bvae.program.sites import (
    check_batches,
    check_sites,
    check_whole_plates,
    find_latents,
    find_masked,
    find_plate,
    replayable,
    samples,
)
from pyro_bvae.program.supports import is_unbounded

# Data with which a program is looked over before it is run.
_PROBE = 64


class Program(ScoredProgram):
    """A (model, guide) pair at work on its arguments.

    Args:
        model: Pyro model.
        guide: Pyro guide with the same arguments.
        args: The arguments of both. Tensors of first size N are sliced with the data, others are
            passed whole.
        data_plate: Name of the data plate where the latents share more than one.
        sums_discrete: Whether discrete latents are summed out, and not refused: for an evidence or
            a bound, which need a density of each datum too.
        in_training: Whether the guide may be a point within rounding, as one in training is for a
            while on data of large numbers.

    Raises:
        InputError: if latents share no data plate, lie outside it, are discrete, or are missing
            from the guide, or if a plate is subsampled.
    """

    # How far left of the program's plates that of the particles lies.
    dims_left = 1

    def __init__(
        self,
        model: Function,
        guide: Function,
        args: tuple[Any, ...],
        data_plate: str | None = None,
        sums_discrete: bool = False,
        in_training: bool = False,
    ) -> None:
        super().__init__(model, guide, args)
        self.in_training = in_training
        self.sums_discrete = sums_discrete
        traces = self._open(args, data_plate)
        check_sites(self.plate, *traces)
        check_batches(self.particle_dim, *traces)
        check_faults(self, *traces)
        self.unbounded = all(is_unbounded(traces[1].nodes[name]["fn"]) for name in self.latents)
        self.outside = tuple(outside_priors(self.latents, traces[1]))
        self.varying = varying_sites(self, traces[1])
        doubtful = score(self, *traces)
        if self.discrete.model:
            self.summation = self._summation(*traces)
        self.vectorized = self._is_vectorized()
        if self.sliceable and self._mixes_data():
            self.sliceable = False
        if sums_discrete and not self.sliceable:
            self._check_independence()
        check_rows(self, traces[1], doubtful)
        self.masked = masked_latents(self, self.masked)

    def _open(
        self, args: tuple[Any, ...], data_plate: str | None
    ) -> tuple[poutine.Trace, poutine.Trace]:
        """Find latents, plate and number of data from a few data, or from all if need be."""
        for size in dict.fromkeys(leaf.shape[0] for leaf in tensors(args)):
            self.num_data = size
            self.probe = self.take(slice(0, _PROBE))
            try:
                traces = self._find(self.probe, data_plate)
            except (RuntimeError, ValueError, IndexError):
                continue  # raised again below, if it is true of all the data
            if self.plate.size == min(size, _PROBE):
                return traces
        self.probe, self.sliceable = args, False
        traces = self._find(args, data_plate)
        self.num_data = self.plate.size
        return traces

    def _find(
        self, args: tuple[Any, ...], data_plate: str | None
    ) -> tuple[poutine.Trace, poutine.Trace]:
        guide_trace, model_trace = self._trace_once(args)
        sums = self.sums_discrete
        self.discrete = find_discrete(model_trace, guide_trace) if sums else NONE
        summed = self.discrete.model
        self.latents = find_latents(model_trace, guide_trace, summed if sums else None)
        self.masked = find_masked(guide_trace, model_trace) if sums else frozenset()
        self.plate = find_plate((*self.latents, *summed), model_trace, data_plate, args)
        self.guide_sites = {
            name: site
            for name, site in samples(guide_trace).items()
            if not site["is_observed"] and name not in summed
        }
        numbers = [site["value"].numel() for site in samples(model_trace).values()]
        self.width = max(1, max(numbers) // self.plate.size)  # numbers a datum in the widest site
        stacks = [
            site["cond_indep_stack"]
            for trace in (guide_trace, model_trace)
            for site in samples(trace).values()
        ]
        self.particle_dim = (
            min(frame.dim for stack in stacks for frame in stack if frame.vectorized)
            - self.dims_left
        )
        return guide_trace, model_trace

    @torch.no_grad()
    def _trace_once(self, args: tuple[Any, ...]) -> tuple[poutine.Trace, poutine.Trace]:
        with seeded(0, PROBE_STREAM), pyro.validation_enabled(), EvalModeCheck():
            guide_trace = poutine.trace(self.guide).get_trace(*args)
            replayed = poutine.replay(self.model, trace=replayable(guide_trace))
            try:
                model_trace = poutine.trace(replayed).get_trace(*args)
            except ValueError:
                # Latents outside their support may make parameters that validation refuses, such as
                # a negative scale.
                with pyro.validation_enabled(False):
                    model_trace = poutine.trace(replayed).get_trace(*args)
                latents = find_latents(model_trace, guide_trace)
                if not any(True for _ in outside_priors(latents, model_trace)):
                    raise
        check_whole_plates(guide_trace, model_trace)
        return guide_trace, model_trace

    def _summation(self, *traces: poutine.Trace) -> Summation:
        layout = Layout(
            self.plate,
            frozenset(self.latents),
            self.particle_plate,
            self.particle_dim,
            self.summed_terms,
            self.sum_others,
        )
        summation = Summation(self.discrete, layout)
        check_summation(self, summation, *traces)
        return summation

    @torch.no_grad()
    def _is_vectorized(self) -> bool:
        """Whether two particles have the same weights together and alone."""
        try:
            with seeded(0, PROBE_STREAM), full_precision(), pyro.validation_enabled(False):
                together = self.draw_at_once(2, self.probe, self.guide)
                dims = {name: self.dim_of(name, self.particle_dim) for name in together.values}
                single = [
                    {name: part.select(dims[name], k) for name, part in together.values.items()}
                    for k in (0, 1)
                ]
                alone = stack([self.score(values, self.probe) for values in single])
        except (RuntimeError, ValueError, IndexError, KeyError):
            return False  # Pyro's flows without an inverse raise the last
        return is_close(together.densities, alone.densities)

    @torch.no_grad()
    def _mixes_data(self) -> bool:
        """Whether data weigh otherwise together than in two halves, so that blocks matter."""
        first, second = self._halves(min(self.num_data, _PROBE))
        if not len(first):
            return False
        try:
            with seeded(0, PROBE_STREAM), full_precision(), pyro.validation_enabled(False):
                together = self.draw_at_once(None, self.probe, self.guide)
                apart = [
                    self.score(self._rows(together.values, half), self.take(half)).densities
                    for half in (first, second)
                ]
        except (RuntimeError, ValueError, IndexError, KeyError):
            return True
        order = torch.cat([first, second])
        return not is_close(
            LogDensities(*(part[:, order.to(part.device)] for part in together.densities)),
            LogDensities(*(torch.cat(parts, 1) for parts in zip(*apart, strict=True))),
        )

    @torch.no_grad()
    def _check_independence(self) -> None:
        """Raise if the density of a datum depends on the latents of others.

        Half of the data get other latents, which the densities of the rest must not show.
        """
        first, second = self._halves(self.plate.size)
        if not len(first):
            return
        with seeded(0, PROBE_STREAM), full_precision(), pyro.validation_enabled(False):
            draws = [self.draw_at_once(None, self.probe, self.guide) for _ in range(2)]
            if not is_close(draws[0].densities, self.score(draws[0].values, self.probe).densities):
                raise InputError(
                    "the model has other densities at the same draws: draw all noise by"
                    " pyro.sample, so that it is scored"
                )
            values = {
                name: value.index_copy(
                    dim := self.dim_of(name, self.plate.dim),
                    index := second.to(value.device),
                    draws[1].values[name].index_select(dim, index),
                )
                for name, value in draws[0].values.items()
            }
            mixed = self.score(values, self.probe).densities
        pairs = zip((first, second), draws, strict=True)
        for half, draw in pairs:
            own, other = (
                LogDensities(*(part[:, half.to(part.device)] for part in densities))
                for densities in (draw.densities, mixed)
            )
            if not is_close(own, other):
                raise InputError(
                    "the density of a datum depends on the latents of others, so that there is no"
                    " evidence of each: leave out the mean or the sum over the data that does so"
                )

    def _halves(self, size: int) -> tuple[Tensor, Tensor]:
        """Return the numbers of two halves of some data, chosen at random."""
        order = torch.randperm(size, generator=torch.Generator().manual_seed(PROBE_STREAM))
        return order[: size // 2].sort().values, order[size // 2 :].sort().values

    def _rows(self, values: LatentValues, rows: Tensor) -> LatentValues:
        return {
            name: value.index_select(self.dim_of(name, self.plate.dim), rows.to(value.device))
            for name, value in values.items()
        }


@contextmanager
def open_program(
    model: Function,
    guide: Function,
    args: tuple[Any, ...],
    *,
    data_plate: str | None = None,
    seed: int = 0,
    sums_discrete: bool = False,
    in_training: bool = False,
) -> Iterator[Program]:
    """Open a program in eval mode, with a store and randomness of its own.

    A program that cannot be vectorised over particles is run one particle at a time, with a
    warning. Discrete latents are refused, or summed out.
    """
    check_contexts(args)
    if isinstance(vae := owner(model), ChecksData):
        check_in_parts(vae.check_data, args[:2])
    device = next((leaf.device for leaf in tensors(args)), torch.device("cpu"))
    with (
        evaluating(model, guide),
        private_store(model, guide),
        seeded(seed, PROGRAM_STREAM),
        fast_products(device),
    ):
        with fitting_networks(vae), naming_missing_values(args):
            program = Program(model, guide, args, data_plate, sums_discrete, in_training)
        if not program.vectorized:
            warnings.warn(
                "the program gives other weights with a plate of particles around it than without"
                " (does it mix or "
                "count batch dimensions?), so it is run one particle at a time, which is slow",
                stacklevel=3,
            )
        if program.outside:
            names = ", ".join(f"'{name}'" for name in program.outside)
            warnings.warn(
                f"the guide draws latent {names} outside the support of its prior: such draws"
                " weigh nothing in an evidence, and the ELBO is minus infinity",
                stacklevel=3,
            )
        with pyro.validation_enabled(False):
            yield program


@contextmanager
def reopen_program(program: Program, *, seed: int = 0) -> Iterator[Program]:
    """Open a program again of which nothing but the weights has changed, without the checks.

    Draws are those of :func:`open_program` with the same seed.
    """
    device = next((leaf.device for leaf in tensors(program.args)), torch.device("cpu"))
    with (
        evaluating(program.model, program.guide),
        private_store(program.model, program.guide),
        seeded(seed, PROGRAM_STREAM),
        fast_products(device),
        pyro.validation_enabled(False),
    ):
        yield program
