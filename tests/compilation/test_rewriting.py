"""Captured graphs say the same after they were rewritten, on data of which the example knew
nothing."""

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor
from torch.nn.functional import linear

from pyro_bvae.compilation.compiled_function import capture
from pyro_bvae.compilation.graph_passes import (
    fold_constants,
    rewrite,
    select_by_masks,
    take_biases_apart,
    turn_products,
)

aten = torch.ops.aten
Function = Callable[[Sequence[Tensor]], Sequence[Tensor]]


def targets(graph: torch.fx.GraphModule) -> list[object]:
    return [node.target for node in graph.graph.nodes if node.op == "call_function"]


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def beyond_one(tensors: Sequence[Tensor]) -> Sequence[Tensor]:
    """Squares, but the identity beyond 1 and a number below -2, with its gradient."""
    x = tensors[0].detach().requires_grad_()
    y, beyond = x.square(), x.abs() > 1
    y[beyond] = x[beyond]
    y[x < -2] = 7.0
    (gradient,) = torch.autograd.grad((y * torch.arange(1.0, 7.0)).sum(), x)
    return [y.detach(), gradient]


def test_entries_are_chosen_by_masks_of_any_count() -> None:
    graph = capture(beyond_one, [torch.zeros(4, 6)])  # where no entry is beyond 1
    select_by_masks(graph)
    graph.recompile()
    assert aten.index.Tensor not in targets(graph) and aten.index_put.default not in targets(graph)
    x = 2 * numbers(4, 6)
    assert (x.abs() > 1).any() and (x < -2).any() and (x.abs() < 1).any()
    for result, expected in zip(graph(x), beyond_one([x]), strict=True):
        assert torch.equal(result, expected)


def test_chosen_entries_are_added_to_what_is_there() -> None:
    def added(tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        base, other = tensors
        positive = other > 0
        return [aten.index_put(base, [positive], other[positive], True)]

    graph = capture(added, [torch.zeros(9), torch.zeros(9)])
    select_by_masks(graph)
    graph.recompile()
    assert aten.index_put.default not in targets(graph)
    given = [numbers(9), numbers(9, seed=1)]
    assert torch.equal(graph(*given)[0], added(given)[0])


def test_entries_that_another_mask_has_chosen_are_left_alone() -> None:
    def swapped(tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        x, y = tensors
        out = x.clone()
        out[x > 0] = y[x < 0]
        return [out]

    given = [torch.tensor([1.0, -1.0, 2.0, -2.0]), torch.arange(4.0)]
    graph = capture(swapped, given)
    select_by_masks(graph)
    graph.recompile()
    assert torch.equal(graph(*given)[0], torch.tensor([1.0, -1.0, 3.0, -2.0]))


def test_places_by_number_are_left_alone() -> None:
    def flipped(tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        out = torch.zeros(3)
        out[torch.tensor([2, 0, 1])] = tensors[0]
        return [out]

    graph = capture(flipped, [torch.zeros(3)])
    rewrite(graph)
    assert torch.equal(graph(torch.arange(3.0))[0], torch.tensor([1.0, 2.0, 0.0]))


def test_constants_are_computed_once_and_draws_are_not() -> None:
    def waves(tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        return [tensors[0] + (0.3 * torch.arange(5.0)).cos() + torch.ones(5) + torch.randn(5)]

    graph = capture(waves, [torch.zeros(5)])
    fold_constants(graph)
    graph.graph.eliminate_dead_code()
    graph.recompile()
    assert aten.cos.default not in targets(graph)
    assert aten.ones.default in targets(graph), "one value everywhere is left to the compiler"
    torch.manual_seed(0)
    first, second = graph(numbers(5))[0], graph(numbers(5))[0]
    assert not torch.equal(first, second)
    torch.manual_seed(0)
    assert torch.equal(first, waves([numbers(5)])[0])


def test_biases_are_added_after_products_to_the_bit() -> None:
    def layer(tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        return [linear(*tensors)]

    given = [numbers(8, 3), numbers(4, 3, seed=1), numbers(4, seed=2)]
    graph = capture(layer, given)
    assert aten.addmm.default in targets(graph)
    take_biases_apart(graph)
    graph.recompile()
    assert aten.addmm.default not in targets(graph)
    assert torch.equal(graph(*given)[0], given[0] @ given[1].T + given[2])


@pytest.mark.parametrize(("rows", "turned"), [(3, True), (9, False)])
def test_a_product_copies_the_smaller_factor(rows: int, turned: bool) -> None:
    def products(tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        x, weight = tensors
        out = x @ weight.T
        return [out, out @ weight, out.T @ x]

    given = [numbers(rows, 4), numbers(5, 4, seed=1)]
    graph = capture(products, given)
    turn_products(graph)
    graph.recompile()
    first = next(node for node in graph.graph.nodes if node.target is aten.mm.default)
    assert tuple(first.meta["val"].shape) == ((5, rows) if turned else (rows, 5))
    for result, expected in zip(graph(*given), products(given), strict=True):
        torch.testing.assert_close(result, expected)
