"""Small versions of Pyro's own examples: ``python -m tests.program.pyro_examples`` prints the table
of docs/any-pyro-program.md, which measurements each of them has after some training.
"""

import argparse
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer import SVI, TraceEnum_ELBO, config_enumerate
from pyro.optim import Adam
from torch import Tensor, nn

from pyro_bvae import audit, elbo, evidence, inference_gaps
from pyro_bvae.core.errors import InputError
from pyro_bvae.evaluation.refit import RefitSettings

PIXELS, CODES, LABELS = 6, 2, 3


def network(inputs: int, outputs: int) -> nn.Module:
    return nn.Sequential(nn.Linear(inputs, 16), nn.Softplus(), nn.Linear(16, outputs))


def normal(parameters: Tensor) -> dist.Distribution:
    loc, log_scale = parameters.chunk(2, -1)
    return dist.Normal(loc, log_scale.exp()).to_event(1)


def joined(*parts: Tensor) -> Tensor:
    shape = torch.broadcast_shapes(*(part.shape[:-1] for part in parts))
    return torch.cat([part.expand(*shape, -1) for part in parts], -1)


def standard() -> dist.Distribution:
    return dist.Normal(torch.zeros(CODES), 1.0).to_event(1)


class VAE(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.decoder, self.encoder = network(CODES, PIXELS), network(PIXELS, 2 * CODES)

    def model(self, x: Tensor) -> None:
        pyro.module("vae", self)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", standard())
            pyro.sample("x", dist.Bernoulli(logits=self.decoder(z)).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        pyro.module("vae", self)
        with pyro.plate("data", len(x)):
            pyro.sample("z", normal(self.encoder(x)))


class Conditional(nn.Module):
    """A conditional VAE: the right half of a picture given the left one."""

    def __init__(self) -> None:
        super().__init__()
        half = PIXELS // 2
        self.prior, self.encoder = network(half, 2 * CODES), network(PIXELS, 2 * CODES)
        self.decoder = network(half + CODES, half)

    def model(self, left: Tensor, right: Tensor) -> None:
        pyro.module("cvae", self)
        with pyro.plate("data", len(left)):
            z = pyro.sample("z", normal(self.prior(left)))
            logits = self.decoder(joined(left, z))
            pyro.sample("right", dist.Bernoulli(logits=logits).to_event(1), obs=right)

    def guide(self, left: Tensor, right: Tensor) -> None:
        pyro.module("cvae", self)
        with pyro.plate("data", len(left)):
            pyro.sample("z", normal(self.encoder(joined(left, right))))


class SemiSupervised(nn.Module):
    """Model M2 of Kingma et al. (2014): a label that is seen, or one that the guide draws."""

    def __init__(self) -> None:
        super().__init__()
        self.decoder = network(LABELS + CODES, PIXELS)
        self.classifier = network(PIXELS, LABELS)
        self.encoder = network(PIXELS + LABELS, 2 * CODES)

    def model(self, x: Tensor, y: Tensor | None = None) -> None:
        pyro.module("m2", self)
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.OneHotCategorical(logits=torch.zeros(LABELS)), obs=y)
            z = pyro.sample("z", standard())
            logits = self.decoder(joined(y, z))
            pyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)

    def guide(self, x: Tensor, y: Tensor | None = None) -> None:
        pyro.module("m2", self)
        with pyro.plate("data", len(x)):
            if y is None:
                y = pyro.sample("y", dist.OneHotCategorical(logits=self.classifier(x)))
            pyro.sample("z", normal(self.encoder(joined(x, y))))


class Summed(SemiSupervised):
    """The same model, whose guide has no label: the model's is summed out."""

    def __init__(self) -> None:
        super().__init__()
        del self.classifier

    def guide(self, x: Tensor, y: Tensor | None = None) -> None:
        pyro.module("m2", self)
        with pyro.plate("data", len(x)):
            pyro.sample("z", normal(self.encoder(joined(x, torch.zeros(LABELS)))))


class Markov(nn.Module):
    """A deep Markov model: sequences of several lengths, one in a row."""

    def __init__(self) -> None:
        super().__init__()
        self.transition, self.emission = network(CODES, 2 * CODES), network(CODES, PIXELS)
        self.summary = nn.GRU(PIXELS, 8, batch_first=True)
        self.combiner = network(8 + CODES, 2 * CODES)

    def model(self, x: Tensor, lengths: Tensor, beta: float = 1.0) -> None:
        pyro.module("dmm", self)
        z = torch.zeros(CODES)
        with pyro.plate("data", len(x)):
            for t in pyro.markov(range(x.shape[1])):
                with poutine.mask(mask=t < lengths):
                    with poutine.scale(scale=beta):
                        z = pyro.sample(f"z{t}", normal(self.transition(z)))
                    emitted = dist.Bernoulli(logits=self.emission(z)).to_event(1)
                    pyro.sample(f"x{t}", emitted, obs=x[:, t])

    def guide(self, x: Tensor, lengths: Tensor, beta: float = 1.0) -> None:
        pyro.module("dmm", self)
        seen = torch.arange(x.shape[1]) < lengths[:, None]
        future = self.summary((x * seen[..., None]).flip(1))[0].flip(1)
        z = torch.zeros(CODES)
        with pyro.plate("data", len(x)):
            for t in pyro.markov(range(x.shape[1])):
                with poutine.mask(mask=t < lengths), poutine.scale(scale=beta):
                    z = pyro.sample(f"z{t}", normal(self.combiner(joined(future[:, t], z))))


class Annotated(nn.Module):
    """Counts of cells with a type that is not seen, and two levels of codes, as scANVI has them."""

    def __init__(self) -> None:
        super().__init__()
        self.prior = network(CODES + LABELS, 2 * CODES)
        self.decoder = network(CODES, PIXELS)
        self.log_counts = nn.Parameter(torch.zeros(PIXELS))
        self.encoder, self.classifier = network(PIXELS, 2 * CODES), network(CODES, LABELS)
        self.second = network(CODES + LABELS, 2 * CODES)

    def model(self, counts: Tensor, size: Tensor) -> None:
        pyro.module("cells", self)
        with pyro.plate("cells", len(counts)):
            kind = pyro.sample("type", dist.OneHotCategorical(logits=torch.zeros(LABELS)))
            inner = pyro.sample("z2", standard())
            code = pyro.sample("z1", normal(self.prior(joined(inner, kind))))
            log_mean = self.decoder(code).log_softmax(-1) + size.log()[:, None]
            expressed = dist.NegativeBinomial(
                self.log_counts.exp(), logits=log_mean - self.log_counts
            )
            pyro.sample("x", expressed.to_event(1), obs=counts)

    def guide(self, counts: Tensor, size: Tensor) -> None:
        pyro.module("cells", self)
        with pyro.plate("cells", len(counts)):
            code = pyro.sample("z1", normal(self.encoder(counts.log1p())))
            kind = pyro.sample("type", dist.OneHotCategorical(logits=self.classifier(code)))
            pyro.sample("z2", normal(self.second(joined(code, kind))))


HEADER = """| program | latents | `elbo` | `evidence` | `inference_gaps` | `audit` |
| --- | --- | --- | --- | --- | --- |"""
# The shortest refits: whether there are any is all that the table says.
QUICK = RefitSettings(
    max_rounds=1, steps_per_round=2, check_particles=2, certified_gain=1e6, num_starts=0
)


def outcome(measure: Callable[..., object], part: nn.Module, *args: Tensor, **options: Any) -> str:
    """Return whether a program is measured, or in which words it is refused."""
    try:
        measure(part.model, part.guide, *args, num_samples=100, **options)
    except InputError as error:
        return f"refused: {error}"
    return "measured"


def row(name: str, latents: str, part: nn.Module, args: tuple[Tensor, ...], steps: int) -> str:
    """Train a program for some steps and return its row of the table."""
    pyro.clear_param_store()
    guide = config_enumerate(part.guide)
    model = config_enumerate(part.model)
    loss = TraceEnum_ELBO(max_plate_nesting=1, strict_enumeration_warning=False)
    svi = SVI(model, guide, Adam({"lr": 1e-2}), loss)
    for _ in range(steps):
        svi.step(*args)
    cells = [
        outcome(elbo, part, *args),
        outcome(evidence, part, *args),
        outcome(inference_gaps, part, *args, settings=QUICK),
        ", ".join(found.code for found in audit(part.model, part.guide, *args).findings)
        or "nothing found",
    ]
    return f"| {' | '.join([name, latents, *cells])} |"


def rows(steps: int, num_data: int) -> list[str]:
    """Return the rows of all programs."""
    pyro.set_rng_seed(0)
    x = torch.bernoulli(torch.full((num_data, PIXELS), 0.4))
    labels = torch.eye(LABELS)[torch.arange(num_data) % LABELS]
    sequences = torch.bernoulli(torch.full((num_data, 4, PIXELS), 0.4))
    lengths = 1 + torch.arange(num_data) % 4
    counts = torch.poisson(torch.full((num_data, PIXELS), 2.0))
    programs = [
        ("`vae`", "z", VAE(), (x,)),
        ("`cvae`", "z given a half", Conditional(), x.chunk(2, -1)),
        ("`ss_vae_M2`, labels seen", "z", SemiSupervised(), (x, labels)),
        ("`ss_vae_M2`, labels unseen", "y and z given y", SemiSupervised(), (x,)),
        ("`ss_vae_M2`, no label in the guide", "y, summed out, and z", Summed(), (x,)),
        ("`dmm`", "z of each step, masked by length", Markov(), (sequences, lengths)),
        ("`scanvi`-like", "type, z1 and z2", Annotated(), (counts, counts.sum(-1) + 1)),
    ]
    return [row(*program, steps) for program in programs]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--num-data", type=int, default=20)
    print(HEADER, *rows(**vars(parser.parse_args())), sep="\n")
