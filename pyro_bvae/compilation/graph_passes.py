"""Passes over a captured graph before it is compiled: the same numbers, in fewer seconds.

The time that a step of an MLP takes without each of them, in units of the whole, is in
``analysis/results/speed/ablation.csv``: 1.13 without :func:`take_biases_apart`, 1.10 without
:func:`turn_products`. :func:`fold_constants` saves nothing in that step; it is for exactness.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

# Numbers in a constant that is computed before what depends on it is compiled.
_MOST_FOLDED = 65_536
_ZEROS = {
    torch.ops.aten.zeros.default,
    torch.ops.aten.zeros_like.default,
    torch.ops.aten.new_zeros.default,
}


def rewrite(graph: GraphModule) -> None:
    """Rewrite a captured graph in place.

    Args:
        graph: As :func:`~pyro_bvae.compilation.compiled_function.capture` returns it, each node
            with its example in ``meta["val"]``.
    """
    select_by_masks(graph)
    fold_constants(graph)
    take_biases_apart(graph)
    turn_products(graph)
    graph.recompile()


def select_by_masks(graph: GraphModule) -> None:
    """Choose entries by ``where``, since the shapes of ``a[mask] = b[mask]`` depend on values."""
    aten = torch.ops.aten
    for node in list(graph.graph.nodes):
        if node.target not in (aten.index_put.default, aten.index_put_.default):
            continue
        base, (mask, *more), value, *accumulate = node.args
        if more or not _covers(mask, base):
            continue
        source: Any = None
        if (
            value.target is aten.index.Tensor
            and list(value.args[1]) == [mask]
            and _covers(mask, value.args[0])
        ):
            source = value.args[0]
        elif value.target not in _ZEROS:
            continue
        with graph.graph.inserting_before(node):
            zero = graph.graph.call_function(aten.zeros_like.default, (base,))
            chosen = zero if source is None else source
            other = zero if any(accumulate) else base
            whole = graph.graph.call_function(aten.where.self, (mask, chosen, other))
            zero.meta = whole.meta = node.meta
            if any(accumulate):
                whole = graph.graph.call_function(aten.add.Tensor, (base, whole))
                whole.meta = node.meta
        node.replace_all_uses_with(whole)
        graph.graph.erase_node(node)
        if source is None:
            continue
        # The entries that the mask has chosen go, if nothing but their type is still asked for.
        for user in list(value.users):
            if user.target is aten.new_zeros.default:
                user.replace_input_with(value, source)
        if not value.users:
            graph.graph.erase_node(value)


def _covers(mask: object, tensor: object) -> bool:
    """Whether a node is a boolean mask of another's shape."""
    if not isinstance(mask, Node) or not isinstance(tensor, Node):
        return False
    one, other = mask.meta["val"], tensor.meta["val"]
    return one.dtype == torch.bool and one.shape == other.shape


def fold_constants(graph: GraphModule) -> None:
    """Compute constants by the operations themselves: a compiled cosine is another."""
    values: dict[Node, Any] = {}
    for node in list(graph.graph.nodes):
        if node.op == "get_attr":
            values[node] = getattr(graph, str(node.target))
        elif _is_pure(node.target) and all(part in values for part in node.all_input_nodes):
            args, kwargs = torch.fx.map_arg((node.args, node.kwargs), values.__getitem__)
            values[node] = node.target(*args, **kwargs)
    for number, (node, value) in enumerate(values.items()):
        read = any(user not in values for user in node.users)
        # What has one value everywhere the compiler writes as that value.
        if (
            not read
            or node.op == "get_attr"
            or not isinstance(value, Tensor)
            or not 1 < value.numel() <= _MOST_FOLDED
        ):
            continue
        if bool((value != value.flatten()[0]).any()):
            graph.register_buffer(f"_folded_{number}", value)
            with graph.graph.inserting_before(node):
                known = graph.graph.get_attr(f"_folded_{number}")
            known.meta = node.meta
            node.replace_all_uses_with(known)


def _is_pure(target: object) -> bool:
    """Whether an operation of a graph has the same result whenever it is run."""
    if not isinstance(target, torch._ops.OpOverload) or "empty" in target.name():
        return False
    return torch.Tag.nondeterministic_seeded not in target.tags and not target._schema.is_mutable


def take_biases_apart(graph: GraphModule) -> None:
    """Add biases after the products, in a loop that is there anyway, and not by a copy before."""
    aten = torch.ops.aten
    for node in graph.graph.nodes:
        if (
            node.target is aten.addmm.default
            and not node.kwargs
            and node.args[0].meta["val"].dim() == 1
        ):
            bias, *factors = node.args
            with graph.graph.inserting_before(node):
                product = graph.graph.call_function(aten.mm.default, tuple(factors))
                # As a difference, which is the sum to the bit: a sum the compiler would turn back
                # into the product with its bias.
                minus = graph.graph.call_function(aten.neg.default, (bias,))
                whole = graph.graph.call_function(aten.sub.Tensor, (product, minus))
            minus.meta, whole.meta, product.meta = bias.meta, node.meta, node.meta
            node.replace_all_uses_with(whole)
            graph.graph.erase_node(node)


def turn_products(graph: GraphModule) -> None:
    """Multiply ``W x^T`` instead of ``x W^T`` where x has fewer rows than W.

    A processor's product copies its second factor, where that is transposed, into the order in
    which it reads it: a batch is less to copy than the weights of a layer.
    """
    aten = torch.ops.aten
    for node in list(graph.graph.nodes):
        if node.target is not aten.mm.default:
            continue
        x, weight = (factor.meta["val"] for factor in node.args)
        transposed = x.stride(1) == 1 and weight.stride(0) == 1 != weight.stride(1)
        if (
            not transposed
            or x.shape[0] >= weight.shape[1]
            or x.dtype != torch.float32
            or x.device.type != "cpu"
        ):
            continue
        turned = node.meta["val"].t().contiguous()
        with graph.graph.inserting_before(node):
            factors = [
                graph.graph.call_function(aten.t.default, (factor,))
                for factor in reversed(node.args)
            ]
            product = graph.graph.call_function(aten.mm.default, tuple(factors))
            whole = graph.graph.call_function(aten.t.default, (product,))
        for made, value in zip(
            (*factors, product, whole), (weight.t(), x.t(), turned, turned.t()), strict=True
        ):
            made.meta = {"val": value}
        node.replace_all_uses_with(whole)
        graph.graph.erase_node(node)
