"""Replicas of a model, of other weights and other β, as one Pyro program over a plate."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import pyro
import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state

from pyro_bvae.core.context import Context
from pyro_bvae.training.objectives.terms import Terms, TraceTerms
from pyro_bvae.vae import BetaVAE


class CannotStack(Exception):
    """Replicas cannot be one program; the message is the reason, as the end of a sentence."""


class StackedParameter(NamedTuple):
    """A parameter of R replicas, and theirs.

    Attributes:
        whole: All of them, shape ``(R, ...)``.
        parts: The parameters of the replicas, one for each.
    """

    whole: nn.Parameter
    parts: tuple[nn.Parameter, ...]


class StackedNetwork(nn.Module):
    """Networks of one architecture as one: each maps its own rows, all in the same operations.

    Only functions from tensors to tensors are vectorised so; the draws of a network are an error
    when it is called.

    Args:
        networks: R networks.
        stacked: Takes note of the parameters.

    Shape:
        ``(R, *, D)`` to ``(R, *, F)``, or ``(R N, D)`` to ``(R N, F)``, rows of the first replica
        first.

    Raises:
        CannotStack: if they differ in more than their weights, or have buffers, which each call may
            change.
    """

    def __init__(self, networks: Sequence[nn.Module], stacked: list[StackedParameter]) -> None:
        super().__init__()
        if any(True for network in networks for _ in network.buffers()):
            raise CannotStack("a network has buffers, such as those of batch norm")
        try:
            weights, _ = stack_module_state(list(networks))  # type: ignore[arg-type]
        except RuntimeError as error:
            raise CannotStack("their networks differ in more than their weights") from error
        self.count, self.names = len(networks), tuple(weights)
        self.weights = nn.ParameterList(
            nn.Parameter(weight.detach(), requires_grad=weight.requires_grad)
            for weight in weights.values()
        )
        for name, whole in zip(self.names, self.weights, strict=True):
            stacked.append(
                StackedParameter(whole, tuple(network.get_parameter(name) for network in networks))
            )
        # The module that runs the weights, in a list so that its own are none of this module's.
        self._template = [copy.deepcopy(networks[0]).to("meta")]

    def forward(self, x: Tensor) -> Tensor:
        """Map each replica's rows by its own network."""
        weights = dict(zip(self.names, self.weights, strict=True))
        rows = x.dim() == 2

        def one(weights: dict[str, Tensor], x: Tensor) -> Any:
            return functional_call(self._template[0], weights, (x,))

        outputs: Tensor = torch.vmap(one)(weights, x.unflatten(0, (self.count, -1)) if rows else x)
        return outputs.flatten(0, 1) if rows else outputs


class Replicas(nn.Module):
    r"""R β-VAEs of the same parts as one Pyro program, each with its own weights, data and β.

    .. math:: z_{rn} \sim p_r(z), \quad x_{rn} \sim p_r(x \mid z_{rn}), \qquad z_{rn} \sim q_r(z
        \mid x_{rn})

    in the plates ``replicas`` and ``data``. It is itself a :class:`~pyro_bvae.BetaVAE` whose
    networks are stacked (:class:`StackedNetwork`) and whose other parameters, of shape ``(R, 1,
    ...)``, broadcast over the data: stock SVI trains it, with β a tensor ``(R, 1)``.

    Args:
        vaes: The models, which are left as they are.

    Raises:
        CannotStack: if their parts cannot be stacked. The rehearsal checks the result.
    """

    def __init__(self, vaes: Sequence[BetaVAE]) -> None:
        super().__init__()
        for vae in vaes:
            if type(vae) is not BetaVAE:
                raise CannotStack(f"a {type(vae).__name__} is no BetaVAE")
            if len(list(vae.parameters())) < len(
                list(vae.named_parameters(remove_duplicate=False))
            ):
                raise CannotStack("their parts share parameters")
        self.count = len(vaes)
        self.stacked: list[StackedParameter] = []
        self.vae = copy.deepcopy(vaes[0])
        _stack(self.vae, vaes, self.stacked)

    def model(
        self, x: Tensor, context: Context | None = None, beta: float | Tensor = 1.0
    ) -> Tensor:
        """The generative models; x ``(R, N, D)``, β ``(R, 1)``."""
        with pyro.plate("replicas", self.count, dim=-2):
            return self.vae.model(x, context, beta)

    def guide(
        self, x: Tensor, context: Context | None = None, beta: float | Tensor = 1.0
    ) -> Tensor:
        """The guides; arguments as of :meth:`model`."""
        with pyro.plate("replicas", self.count, dim=-2):
            return self.vae.guide(x, context, beta)

    @property
    def trained(self) -> list[StackedParameter]:
        """The parameters that require a gradient."""
        return [stacked for stacked in self.stacked if stacked.whole.requires_grad]

    def keep(self, remaining: Sequence[int]) -> None:
        """Go on with some of the models, by their positions among those so far."""
        stacked, self.count = self.stacked, len(remaining)
        self.stacked = []
        for whole, parts in stacked:
            whole.grad, whole.data = None, whole.data[list(remaining)]
            self.stacked.append(StackedParameter(whole, tuple(parts[r] for r in remaining)))
        for module in self.modules():
            if isinstance(module, StackedNetwork):
                module.count = self.count

    @torch.no_grad()
    def hand_back(self, replica: int) -> None:
        """Give a replica its weights."""
        for whole, parts in self.stacked:
            parts[replica].copy_(whole[replica].view_as(parts[replica]))


def _stack(
    target: nn.Module, modules: Sequence[nn.Module], stacked: list[StackedParameter]
) -> None:
    """Give a copy of the first of some modules the parameters of all."""
    if len({type(module) for module in modules}) > 1:
        raise CannotStack("their parts are of different types")
    for name, _ in list(target.named_parameters(recurse=False)):
        parts = tuple(module.get_parameter(name) for module in modules)
        if len({(part.shape, part.requires_grad) for part in parts}) > 1:
            raise CannotStack(
                f"their parameters '{name}' differ in shape, or in whether they are trained"
            )
        whole = nn.Parameter(
            torch.stack([part.detach() for part in parts]).unsqueeze(1), parts[0].requires_grad
        )
        setattr(target, name, whole)
        stacked.append(StackedParameter(whole, parts))
    for name, buffer in target.named_buffers(recurse=False):
        if not all(torch.equal(buffer, module.get_buffer(name)) for module in modules):
            raise CannotStack(f"their buffers '{name}' differ")
    for name, child in list(target.named_children()):
        children = [module.get_submodule(name) for module in modules]
        # A network goes from tensor to tensor, by its name or its sizes.
        sized = hasattr(child, "in_features") and hasattr(child, "out_features")
        if name == "network" or sized or isinstance(child, nn.Sequential):
            setattr(target, name, StackedNetwork(children, stacked))
        else:
            _stack(child, children, stacked)


class ReplicaTerms(TraceTerms):
    """The terms of a program over a ``replicas`` plate, each of shape ``(R,)``."""

    def terms(
        self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Terms:
        """Return the terms of one batch."""
        ((model_trace, guide_trace),) = self._get_traces(model, guide, args, kwargs)
        sites: list[tuple[int, Any]] = [(-1, site) for site in model_trace.nodes.values()]
        sites += [(1, site) for site in guide_trace.nodes.values()]
        # A plate is a site too, which has no density.
        sites = [(sign, site) for sign, site in sites if site["type"] == "sample"]
        latent = [
            (sign, site["unscaled_log_prob"]) for sign, site in sites if not site["is_observed"]
        ]
        observed = [
            (sign, site["unscaled_log_prob"]) for sign, site in sites if site["is_observed"]
        ]
        loss = _sum([(sign, site["log_prob"]) for sign, site in sites])
        with torch.no_grad():
            return Terms(loss, _sum(observed), _sum(latent))


def _sum(terms: list[tuple[int, Tensor]]) -> Tensor:
    """Return a sum of terms ``(R, N)`` over data."""
    return torch.stack([sign * term.sum(-1) for sign, term in terms]).sum(0)
