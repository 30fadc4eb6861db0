"""Weights that a program uses and a model does not own.

Refused before the first step, and named by an audit.
"""

import copy
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

from pyro_bvae import BetaVAE, Decoder, audit, fit, sweep
from pyro_bvae.core.errors import InputError
from pyro_bvae.core.module_modes import leaves, names_in
from pyro_bvae.likelihoods import NormalLikelihood
from pyro_bvae.networks import MLP
from pyro_bvae.posteriors import NormalPosterior
from pyro_bvae.priors import MixturePrior, NormalPrior
from pyro_bvae.training import IWELBO, Constant, FreeBits, TotalCorrelation, fit_ex_post_prior

D, L = 5, 2
QUICK: dict[str, Any] = {
    "epochs": 2,
    "batch_size": 8,
    "learning_rate": Constant(1e-2),
    "progress": False,
}


def data() -> Tensor:
    return torch.randn(24, D, generator=torch.Generator().manual_seed(0))


def network(inputs: int = D, outputs: int = 2 * L) -> MLP:
    return MLP(inputs, outputs, hidden=(4,))


def normal(outputs: Tensor) -> dist.Distribution:
    loc, log_scale = outputs.chunk(2, -1)
    return dist.Normal(loc, log_scale.exp()).to_event(1)


def own_decoder() -> Decoder:
    return Decoder(network(L, D), NormalLikelihood(0.5))


NETWORK = network()


def encode(net: nn.Module, x: Tensor) -> dist.Distribution:
    return normal(net(x))


def from_globals(x: Tensor) -> dist.Distribution:
    return normal(NETWORK(x))


class Holder:
    """No module, but it holds one."""

    def __init__(self) -> None:
        self.networks = {"encoder": [network()]}

    def __call__(self, x: Tensor) -> dist.Distribution:
        return normal(self.networks["encoder"][0](x))

    def encode(self, x: Tensor) -> dist.Distribution:
        return self(x)


class Module(nn.Module):
    """A module with a method of another name than ``forward``."""

    def __init__(self) -> None:
        super().__init__()
        self.net = network()

    def encode(self, x: Tensor) -> dist.Distribution:
        return normal(self.net(x))


class Listed(nn.Module):
    """A module that forgot nn.ModuleList and nn.Parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.networks, self.shift = [network()], torch.zeros(2 * L, requires_grad=True)

    def forward(self, x: Tensor) -> dist.Distribution:
        return normal(self.networks[0](x) + self.shift)


class Late(nn.Module):
    """A module that makes its weights when it is first called."""

    def forward(self, x: Tensor) -> dist.Distribution:
        if not hasattr(self, "net"):
            self.net = network()
        return normal(self.net(x))


def closed_over() -> Callable[[Tensor], dist.Distribution]:
    net = network()
    return lambda x: normal(net(x))


def decoding() -> Callable[[Tensor], dist.Distribution]:
    net = network(L, D)
    return lambda z: dist.Normal(net(z), 0.5).to_event(1)


def leaf_prior() -> dist.Distribution:
    return dist.Normal(LEAF, 1.0).to_event(1)


LEAF = torch.zeros(L, requires_grad=True)
LOOSE: dict[str, tuple[Callable[[], BetaVAE], str]] = {
    "closure": (lambda: BetaVAE(NormalPrior(L), own_decoder(), closed_over()), "vae.encoder.net.layers.0.bias"),
    "global": (lambda: BetaVAE(NormalPrior(L), own_decoder(), from_globals), "vae.encoder.NETWORK.layers.0.bias"),
    "partial": (
        lambda: BetaVAE(NormalPrior(L), own_decoder(), functools.partial(encode, network())),
        "vae.encoder.args.0.layers.0.bias",
    ),
    "bound method of a module": (
        lambda: BetaVAE(NormalPrior(L), own_decoder(), Module().encode),
        "vae.encoder.Module.net.layers.0.bias",
    ),
    "callable object": (
        lambda: BetaVAE(NormalPrior(L), own_decoder(), Holder()),
        "vae.encoder.networks.encoder.0.layers.0.bias",
    ),
    "bound method of an object": (
        lambda: BetaVAE(NormalPrior(L), own_decoder(), Holder().encode),
        "vae.encoder.Holder.networks.encoder.0.layers.0.bias",
    ),
    "lists of a module": (
        lambda: BetaVAE(NormalPrior(L), own_decoder(), Listed()),
        "vae.encoder.networks.0.layers.0.bias",
    ),
    "decoder": (
        lambda: BetaVAE(NormalPrior(L), decoding(), NormalPosterior(network())),
        "vae.decoder.net.layers.0.bias",
    ),
    "network of a decoder": (
        lambda: BetaVAE(NormalPrior(L), Decoder(from_globals_decoder, NormalLikelihood()), NormalPosterior(network())),
        "vae.decoder.network.DECODER.layers.0.bias",
    ),
    "leaf tensor as a prior": (
        lambda: BetaVAE(leaf_prior, own_decoder(), NormalPosterior(network())),
        "vae.prior.LEAF",
    ),
}  # fmt: skip
DECODER = network(L, D)


def from_globals_decoder(z: Tensor) -> Tensor:
    return DECODER(z)


@pytest.mark.parametrize("case", LOOSE)
def test_weights_that_would_never_be_trained_are_refused_before_the_first_step(case: str) -> None:
    make, name = LOOSE[case]
    vae = make()
    before = [parameter.clone() for parameter in vae.parameters()]
    with pytest.raises(
        InputError, match=r"that it does not own, .* nn\.Module that holds them"
    ) as error:
        fit(vae, data(), **QUICK)
    assert name in str(error.value) and "\n" not in str(error.value)
    assert all(torch.equal(old, new) for old, new in zip(before, vae.parameters(), strict=True))


@pytest.mark.parametrize("case", LOOSE)
def test_an_audit_names_them(case: str) -> None:
    make, name = LOOSE[case]
    vae = make()
    results = audit(vae.model, vae.guide, data())
    assert [finding.code for finding in results.errors] == ["not-registered"]
    assert any(site.endswith(name.removeprefix("vae.")) for site in results.errors[0].sites), (
        results
    )


@pytest.mark.parametrize("objective", [IWELBO(3), FreeBits(0.1), TotalCorrelation(24)], ids=repr)
def test_they_are_refused_under_any_objective(objective: Any) -> None:
    with pytest.raises(InputError, match=r"vae\.encoder\.net"):
        fit(LOOSE["closure"][0](), data(), objective=objective, **QUICK)


def test_they_are_refused_in_a_sweep_and_in_a_run_that_goes_on(tmp_path: Path) -> None:
    for betas in ((1.0,), (1.0, 2.0)):
        with pytest.raises(InputError, match=r"vae\.encoder\.net"):
            sweep(lambda seed: LOOSE["closure"][0](), data(), betas=betas, **QUICK)
    fit(
        BetaVAE(NormalPrior(L), own_decoder(), nn.Sequential(Module().net, Normal())),
        data(),
        output=tmp_path,
        **QUICK,
    )
    vae = BetaVAE(NormalPrior(L), own_decoder(), nn.Sequential(Module().net, Normal()))
    vae.prior.__class__ = LeafPrior
    with pytest.raises(InputError, match=r"vae\.prior\.\S*leaf_prior|a tensor of shape \(2,\)"):
        fit(vae, data(), output=tmp_path, resume=True, **{**QUICK, "epochs": 3})


class Normal(nn.Module):
    """The last layer of an encoder."""

    def forward(self, outputs: Tensor) -> dist.Distribution:
        return normal(outputs)


class LeafPrior(NormalPrior):
    """A prior with a tensor that is no parameter."""

    def forward(self) -> dist.Distribution:
        return leaf_prior()


def test_weights_that_are_made_on_the_way_are_refused_until_they_are_there() -> None:
    vae = BetaVAE(NormalPrior(L), own_decoder(), Late())
    with pytest.raises(
        InputError, match=r"makes parameters when it is first run.*vae\.encoder\.net"
    ):
        fit(vae, data(), **QUICK)
    before = vae.encoder.net.layers[0].weight.clone()
    fit(vae, data(), **QUICK)
    assert not torch.equal(before, vae.encoder.net.layers[0].weight)


@pytest.mark.parametrize("part", ["encoder", "prior"])
def test_a_pyro_param_outside_the_module_is_refused_by_name(part: str) -> None:
    def encoder(x: Tensor) -> dist.Distribution:
        return normal(pyro.param("shift", torch.zeros(2 * L)).expand(len(x), -1))

    def prior() -> dist.Distribution:
        return dist.Normal(pyro.param("shift", torch.zeros(L)), 1.0).to_event(1)

    parts = {
        "prior": NormalPrior(L),
        "decoder": own_decoder(),
        "encoder": NormalPosterior(network()),
    }
    with pytest.raises(InputError, match=r"'shift' is a pyro\.param outside the module"):
        fit(BetaVAE(**{**parts, part: {"encoder": encoder, "prior": prior}[part]}), data(), **QUICK)


def test_what_is_left_as_it_is_on_purpose_is_no_alarm() -> None:
    frozen, unseen, detached = network().requires_grad_(False), network(), network()

    def encoder(x: Tensor) -> dist.Distribution:
        with torch.no_grad():
            shift = unseen(x)
        return normal(vae.own(x) + frozen(x) + shift + detached(x).detach())

    vae = BetaVAE(NormalPrior(L), own_decoder(), encoder)
    vae.own = network()
    fit(vae, data().requires_grad_(), **QUICK)
    assert audit(vae.model, vae.guide, data().requires_grad_()).ok


def test_a_module_that_encoder_and_decoder_share_is_trained_once() -> None:
    shared = nn.Linear(D, D)

    class Encoder(Module):
        def forward(self, x: Tensor) -> dist.Distribution:
            return self.encode(self.shared(x))

    class Means(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.shared = network(L, D), shared

        def forward(self, z: Tensor) -> dist.Distribution:
            return dist.Normal(self.shared(self.net(z)), 0.5).to_event(1)

    encoder = Encoder()
    encoder.shared = shared
    before = shared.weight.clone()
    fit(BetaVAE(NormalPrior(L), Means(), encoder), data(), **QUICK)
    assert not torch.equal(before, shared.weight)


def given(seed: int = 0) -> BetaVAE:
    """A model with a function as its encoder, whose network is the model's own, as the error
    advises."""
    torch.manual_seed(seed)
    net = network()
    vae = BetaVAE(NormalPrior(L), own_decoder(), lambda x: normal(net(x)))
    vae.extra = net
    return vae


def same(one: nn.Module, other: nn.Module) -> bool:
    return all(
        torch.equal(a, b)
        for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    )


def test_the_remedy_trains_as_a_module_does_and_can_be_resumed(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = network()
    module = BetaVAE(NormalPrior(L), own_decoder(), nn.Sequential(net, Normal()))
    whole, parted = given(), given()
    fit(module, data(), **{**QUICK, "epochs": 4})
    fit(whole, data(), **{**QUICK, "epochs": 4})
    assert torch.equal(whole.extra.layers[0].weight, net.layers[0].weight)
    fit(parted, data(), output=tmp_path, **QUICK)
    again = given(1)
    fit(again, data(), output=tmp_path, resume=True, **{**QUICK, "epochs": 4})
    assert same(again, whole)
    with pytest.raises(
        InputError, match="does not own"
    ):  # the function of a copy still uses the first one's weights
        fit(copy.deepcopy(whole), data(), **QUICK)


def test_the_remedy_can_be_swept_with_a_warning() -> None:
    with pytest.warns(UserWarning, match="the models are trained one after the other"):
        models = sweep(given, data(), betas=(0.5, 2.0), **QUICK)
    alone = given()
    fit(alone, data(), beta=2.0, **QUICK)
    assert same(models[1].vae, alone)


def test_an_ex_post_prior_owns_its_weights() -> None:
    class Listed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts, self.mean = [MixturePrior(L, 3)], nn.Parameter(torch.zeros(L))

        def forward(self) -> dist.Distribution:
            return self.parts[0]()

    vae = BetaVAE(NormalPrior(L), own_decoder(), NormalPosterior(network()))
    with pytest.raises(
        InputError, match=r"'prior' uses \d tensors that it does not own.*prior\.parts\.0"
    ):
        fit_ex_post_prior(vae, data(), Listed(), epochs=1, progress=False)
    fit_ex_post_prior(vae, data(), MixturePrior(L, 3), epochs=1, progress=False)


def test_an_objective_that_nothing_has_a_gradient_of_is_refused_in_words() -> None:
    class Blind(Module):
        def forward(self, x: Tensor) -> dist.Distribution:
            with torch.no_grad():
                return self.encode(x)

    vae = BetaVAE(
        NormalPrior(L),
        lambda z: dist.Normal(z.sum(-1, keepdim=True).expand(*z.shape[:-1], D), 1.0).to_event(1),
        Blind(),
    )
    with pytest.raises(InputError, match="no parameter that the objective has a gradient for"):
        fit(vae, data(), **QUICK)


def test_the_leaves_of_a_graph_are_found_wherever_they_are() -> None:
    a, b, c = torch.ones(2, requires_grad=True), nn.Parameter(torch.ones(2)), torch.ones(2)
    value = (a[:1] * b.exp() + c + (b * 2).detach()).sum()
    assert {id(leaf) for leaf in leaves(value)} == {id(a), id(b)}
    assert leaves(c) == []
    holder = {"inner": [a], "function": lambda: b}
    assert names_in(all=holder)[id(a)] == "all.inner.0"
    assert names_in(all=holder)[id(b)] == "all.function.b"


class Detached(nn.Module):
    """A network that no gradient reaches."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = self.layer(x).detach()
        return answer


def test_parameters_that_no_gradient_reaches_are_named_before_the_first_step() -> None:
    decoder = Decoder(MLP(2, 4, hidden=(8,)), NormalLikelihood())
    vae = BetaVAE(NormalPrior(2), decoder, NormalPosterior(Detached()))
    with pytest.warns(UserWarning, match="reaches 2 of 6 parameters.*encoder.network.layer.weight"):
        fit(vae, 3 * torch.randn(20, 4), epochs=1, progress=False)
    for parameter in vae.encoder.parameters():
        parameter.requires_grad_(False)
    fit(vae, 3 * torch.randn(20, 4), epochs=1, progress=False)


@pytest.mark.parametrize("shape", [nn.Flatten(0), nn.Unflatten(1, (2, 2))])
def test_an_encoder_gives_a_row_of_outputs_for_each_row(shape: nn.Module) -> None:
    decoder = Decoder(MLP(2, 4, hidden=(8,)), NormalLikelihood())
    encoder = NormalPosterior(nn.Sequential(nn.Linear(4, 4), shape))
    with pytest.raises(InputError, match="'network' must give a row of outputs for each row, got"):
        fit(BetaVAE(NormalPrior(2), decoder, encoder), torch.randn(20, 4), epochs=1)
