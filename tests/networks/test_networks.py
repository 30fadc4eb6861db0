"""The residual network: its formula, its start and its shapes."""

import pytest
import torch
from torch import Tensor, nn

from pyro_bvae.core.errors import InputError
from pyro_bvae.networks import ConvolutionalDecoder, ConvolutionalEncoder, ResidualMLP


def moved(network: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return network


def test_every_block_starts_as_the_identity_and_can_leave_it() -> None:
    network = ResidualMLP(5, 3, hidden=7, num_blocks=4, activation=nn.Tanh)
    x = torch.randn(6, 5)
    h = network.stem(x)
    assert all(torch.equal(block(h), h) for block in network.blocks)
    assert torch.allclose(network(x), network.head(torch.tanh(h)))
    assert any(block.outer.weight.requires_grad for block in network.blocks)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.1)
    before = [parameter.detach().clone() for parameter in network.parameters()]
    for _ in range(2):  # the first step moves the last map of a block, the second the rest of it
        optimizer.zero_grad()
        network(x).square().sum().backward()
        optimizer.step()
    after = list(network.parameters())
    assert all(not torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_it_is_its_formula() -> None:
    network = moved(ResidualMLP(5, 3, hidden=4, num_blocks=2, activation=nn.ReLU)).double()
    x = torch.randn(6, 5, dtype=torch.double)
    state = network.state_dict()

    def affine(name: str, x: Tensor) -> Tensor:
        return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    h = affine("stem", x)
    for i in range(2):
        h = h + affine(f"blocks.{i}.outer", affine(f"blocks.{i}.inner", h.relu()).relu())
    assert torch.allclose(network(x), affine("head", h.relu()))


@pytest.mark.parametrize("leading", [(), (2,), (5, 2)])
def test_any_leading_dimensions_with_and_without_a_gradient(leading: tuple[int, ...]) -> None:
    network = moved(ResidualMLP(5, 3, hidden=8))
    x = torch.randn(*leading, 5)
    outputs = network(x)
    assert outputs.shape == (*leading, 3) and (network.in_features, network.out_features) == (5, 3)
    with torch.no_grad():
        assert torch.allclose(network(x), outputs, atol=1e-5)
        assert torch.allclose(network(x.reshape(-1, 5)).reshape(outputs.shape), outputs, atol=1e-5)


@pytest.mark.parametrize("size", ["in_features", "out_features", "hidden", "num_blocks"])
def test_bad_sizes_are_refused_in_words(size: str) -> None:
    with pytest.raises(InputError, match=f"'{size}' must be a positive integer, got 0"):
        ResidualMLP(**({"in_features": 2, "out_features": 2} | {size: 0}))


@pytest.mark.parametrize(
    ("shape", "widths", "last"),
    [
        # Those of version 0.1.0, whose checkpoints go on to fit.
        ((28, 28), (32, 64), 7 * 7),
        ((32, 32), (32, 64, 64), 4 * 4),
        ((64, 64), (32, 32, 64, 64), 4 * 4),
        # Others halve as often as both sides can, at least twice.
        ((4, 4), (32, 64), 1),
        ((8, 8), (32, 64), 2 * 2),
        ((64, 32), (32, 64, 64), 8 * 4),
        ((60, 100), (32, 64), 15 * 25),
        ((128, 128), (32, 32, 64, 64, 64), 4 * 4),
    ],
)
def test_stages_of_convolutions(shape: tuple[int, int], widths: tuple[int, ...], last: int) -> None:
    encoder = ConvolutionalEncoder((3, *shape), 5, 16, extra_features=2)
    decoder = ConvolutionalDecoder(4, (3, *shape), 2, hidden=16)
    down = [tuple(w.shape[:2]) for w in encoder.convolutions.parameters() if w.dim() == 4]
    up = [tuple(w.shape[:2]) for w in decoder.convolutions.parameters() if w.dim() == 4]
    ends = list(zip(widths, (3, *widths), strict=False))
    assert down == ends
    assert up == [*ends[:0:-1], (widths[0], 6)]
    assert next(encoder.head.parameters()).shape == (16, widths[-1] * last + 2)
    x = torch.rand(2, encoder.in_features)
    assert encoder(x).shape == (2, 5)
    assert decoder(torch.zeros(2, 4)).shape == (2, 2 * (encoder.in_features - 2))


def test_a_pixel_of_an_oblong_image_is_seen_at_its_place() -> None:
    encoder = ConvolutionalEncoder((1, 32, 64), 4, 16)
    x = torch.zeros(1, 32, 64)
    with torch.no_grad():
        before = encoder.convolutions[:-1](x[None])
        x[0, 20, 50] = 1.0
        changed = (encoder.convolutions[:-1](x[None]) != before).any(1)[0].nonzero()
    assert before.shape[2:] == (4, 8)
    assert len(changed)
    assert (changed - torch.tensor([20 // 8, 50 // 8])).abs().max() <= 1
