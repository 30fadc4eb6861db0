r"""Sums over discrete values of a product of factors, exactly and without their joint table.

A factor is the log density of one site, a tensor with a dimension for every plate of the site and
every discrete latent that it depends on. Sums go through Pyro's plated tensor variable elimination
(Obermeyer et al. 2019).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import NamedTuple

import torch
from pyro.ops.contract import contract_tensor_tree, contract_to_tensor
from pyro.ops.rings import LogRing
from torch import Tensor

from pyro_bvae.core.internals import dims_of, with_dims


class Factor(NamedTuple):
    """The log density of a site, or of several.

    Attributes:
        term: A packed tensor, with a letter for each dimension.
        plates: The letters of the plates that it lies in.
        is_observed: Whether it belongs to the data, and not to the latents.
    """

    term: Tensor
    plates: frozenset[str]
    is_observed: bool


class Axes(NamedTuple):
    """The dimensions of a result: particles and data, as letters with sizes.

    Attributes:
        particles: The letter of the particles; None for a single one.
        data: The letter of the data.
        sizes: The size of each plate, by letter.
    """

    particles: str | None
    data: str
    sizes: dict[str, int]

    @property
    def plates(self) -> frozenset[str]:
        """The letters that are left after all sums."""
        return frozenset((self.particles or self.data) + self.data)

    def arrange(self, term: Tensor) -> Tensor:
        """Return a packed result as ``(K, N)``."""
        order = (self.particles or "") + self.data
        result = term.permute([dims_of(term).index(letter) for letter in order])
        return result if self.particles else result.unsqueeze(0)

    def pack(self, values: Tensor) -> Tensor:
        """Return values ``(K, N)`` as a packed tensor."""
        if self.particles is None:
            return with_dims(values[0], self.data)
        return with_dims(values, self.particles + self.data)


class _ExactLogRing(LogRing):  # type: ignore[misc]
    """Pyro's sums of products of log terms, one latent at a time and without underflow.

    Pyro shifts every term by its own maximum before the exponential: where two terms peak at
    different values, hundreds of nats apart, their product is lost. Here they are added first.
    """

    def sumproduct(self, terms: list[Tensor], dims: set[str]) -> Tensor:
        """Return the log of the sum over some dimensions of the product of terms."""
        left, pending = list(terms), set(dims)
        while pending:
            letter = min(pending, key=lambda each: _joint_size(_with(each, left), each))
            pending.remove(letter)
            joint = add(_with(letter, left))
            left = [term for term in left if letter not in dims_of(term)]
            place = dims_of(joint).index(letter)
            left.append(with_dims(joint.logsumexp(place), dims_of(joint).replace(letter, "")))
        return add(left)


def _with(letter: str, terms: list[Tensor]) -> list[Tensor]:
    return [term for term in terms if letter in dims_of(term)]


def _joint_size(terms: list[Tensor], letter: str) -> tuple[int, str]:
    """Return how many dimensions the sum of terms has, and a letter that makes it unique."""
    return len(set("".join(dims_of(term) for term in terms))), letter


def _aligned(term: Tensor, dims: str) -> Tensor:
    """Return a packed tensor with a dimension for each of some letters, of size 1 where new."""
    own = dims_of(term)
    ordered = term.permute([own.index(letter) for letter in dims if letter in own])
    sizes = dict(zip((letter for letter in dims if letter in own), ordered.shape, strict=True))
    return ordered.reshape([sizes.get(letter, 1) for letter in dims])


def add(terms: list[Tensor]) -> Tensor:
    """Return the sum of packed tensors, with the letters of all."""
    dims = "".join(sorted(set("".join(dims_of(term) for term in terms))))
    total = _aligned(terms[0], dims)
    for term in terms[1:]:
        total = total + _aligned(term, dims)
    return with_dims(total, dims)


def _tree(factors: list[Factor]) -> OrderedDict[frozenset[str], list[Tensor]]:
    tree: OrderedDict[frozenset[str], list[Tensor]] = OrderedDict()
    for factor in factors:
        tree.setdefault(factor.plates, []).append(factor.term)
    return tree


def log_sum(factors: list[Factor], letters: set[str], axes: Axes) -> Tensor:
    """Return the log of the sum over discrete values of the product of factors, ``(K, N)``.

    Args:
        factors: The factors.
        letters: The letters of the discrete latents.
        axes: The dimensions of the result.
    """
    if not factors:
        sizes = [1 if axes.particles is None else axes.sizes[axes.particles], axes.sizes[axes.data]]
        return torch.zeros(sizes, dtype=torch.double)
    present = letters & {letter for factor in factors for letter in dims_of(factor.term)}
    ring = _ExactLogRing(dim_to_size=axes.sizes)
    return axes.arrange(contract_to_tensor(_tree(factors), present, axes.plates, ring=ring))


def sum_out(factors: list[Factor], letters: set[str], axes: Axes) -> list[Factor]:
    """Return factors whose product is that of the given ones, summed over some latents."""
    present = letters & {letter for factor in factors for letter in dims_of(factor.term)}
    if not present:
        return factors
    ring = _ExactLogRing(dim_to_size=axes.sizes)
    tree = contract_tensor_tree(_tree(factors), present, ring=ring)
    return [Factor(term, plates, False) for plates, terms in tree.items() for term in terms]


def expectations(
    guide: list[Factor], functions: list[list[Factor]], letters: set[str], axes: Axes
) -> list[Tensor]:
    r"""Return the means of functions of discrete latents under a guide's product, ``(K, N)`` each.

    Each function h is the sum of its factors. Its mean is a derivative of a log sum,

    .. math:: \mathbb{E}_q[h] = \partial_\epsilon \log \sum_y q(y) e^{\epsilon h(y)}
        \Big|_{\epsilon = 0},

    so that neither the joint table of y nor a marginal of q is made. It is minus infinity where an
    impossible value has some q.
    """
    impossible = [
        [factor._replace(term=_map(factor.term, _is_lost)) for factor in function]
        for function in functions
    ]
    has_lost = any(bool(factor.term.any()) for function in impossible for factor in function)
    finite = [
        [factor._replace(term=_map(factor.term, _without_lost)) for factor in function]
        for function in functions
    ]
    means = _derivatives(guide, finite, letters, axes)
    if not has_lost:
        return means
    lost = _derivatives(guide, impossible, letters, axes)
    return [
        mean.masked_fill(share > 0, -torch.inf) for mean, share in zip(means, lost, strict=True)
    ]


def _derivatives(
    guide: list[Factor], functions: list[list[Factor]], letters: set[str], axes: Axes
) -> list[Tensor]:
    differentiable = torch.is_grad_enabled()
    with torch.enable_grad():
        shape = log_sum(guide, letters, axes)
        steps = [torch.zeros_like(shape, requires_grad=True) for _ in functions]
        tilted = [
            Factor(_times(axes.pack(step), factor.term), factor.plates | axes.plates, False)
            for step, function in zip(steps, functions, strict=True)
            for factor in function
        ]
        total = log_sum([*guide, *tilted], letters, axes).sum()
        return list(torch.autograd.grad(total, steps, create_graph=differentiable))


def _map(term: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
    """Return a function of a packed tensor, as a packed tensor."""
    return with_dims(function(term), dims_of(term))


def _is_lost(term: Tensor) -> Tensor:
    return torch.isneginf(term).to(term.dtype)


def _without_lost(term: Tensor) -> Tensor:
    return term.masked_fill(torch.isinf(term), 0.0)


def _times(step: Tensor, term: Tensor) -> Tensor:
    """Return the product of two packed tensors, with the letters of both."""
    dims = "".join(sorted(set(dims_of(step) + dims_of(term))))
    return with_dims(_aligned(step, dims) * _aligned(term, dims), dims)


def negated(factors: list[Factor]) -> list[Factor]:
    """Return factors with the other sign; an impossible value counts as nothing."""
    return [
        factor._replace(term=_map(factor.term, lambda term: -_without_lost(term)))
        for factor in factors
    ]
