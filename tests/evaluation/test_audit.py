"""Planted mistakes are found, sound programs are left in peace, and an audit leaves no trace."""

import importlib.util
import random
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal
from torch import Tensor, nn

from pyro_bvae import evidence
from pyro_bvae.core.findings import Finding
from pyro_bvae.evaluation.program_audit.auditor import Audit, audit


def load_benchmark() -> ModuleType:
    path = Path(__file__).parents[2] / "analysis" / "audit_benchmark.py"
    specification = importlib.util.spec_from_file_location("audit_benchmark", path)
    module = importlib.util.module_from_spec(specification)
    sys.modules[specification.name] = module
    specification.loader.exec_module(module)
    return module


benchmark = load_benchmark()


def codes(result: Audit) -> list[str]:
    return [finding.code for finding in result.findings]


@pytest.mark.parametrize("name", benchmark.MISTAKES)
def test_a_planted_mistake_is_found(name: str) -> None:
    case, result = benchmark.run(benchmark.MISTAKES[name])
    assert case.code in codes(result), str(result)
    results = next(finding for finding in result.findings if finding.code == case.code)
    assert results.sites and all(site for site in results.sites)
    assert case.code in str(result) and results.message in str(result)
    assert result.ok == (not result.errors)


@pytest.mark.parametrize("name", benchmark.SOUND)
def test_a_sound_program_raises_no_alarm(name: str) -> None:
    _, result = benchmark.run(benchmark.SOUND[name])
    assert result.findings == () and result.ok, str(result)
    assert str(result) == "nothing found"


def test_the_benchmark_is_large_enough() -> None:
    assert len(benchmark.MISTAKES) >= 20


@pytest.mark.parametrize("function", ["model", "guide"])
def test_findings_name_the_sites_and_the_scales(function: str) -> None:
    model, guide = benchmark.vae_program(**{f"{function}_scale": benchmark.no_scale})
    (finding,) = audit(model, guide, benchmark.data(), beta=4.0).findings
    own, other = ("1", "4") if function == "model" else ("4", "1")
    assert finding.sites == ("z",) and finding.severity == "error"
    assert (
        f"latent 'z' is scaled by {own} in the model and by {other} in the guide" in finding.message
    )


def test_errors_come_first_and_warnings_alone_are_ok() -> None:
    error, warning = (
        Finding("one", "error", ("z",), "words"),
        Finding("two", "warning", ("z",), "words"),
    )
    assert Audit((warning,)).ok and not Audit((error, warning)).ok
    model, guide = benchmark.vae_program(
        guide_scale=benchmark.no_scale, prior=lambda n: dist.Exponential(torch.ones(2)).to_event(1)
    )
    severities = [finding.severity for finding in audit(model, guide, benchmark.data()).findings]
    assert severities == sorted(severities)


def test_what_is_said_of_evidence_is_so() -> None:
    """The finding 'scale-in-weights' says that ``evidence`` drops the scale."""
    case = benchmark.MISTAKES["fixed beta on both sides"]()
    assert "pyro_bvae.evidence drops it" in str(audit(case.model, case.guide, *case.args))
    scaled = evidence(case.model, case.guide, *case.args, num_samples=200)
    plain = evidence(*benchmark.vae_program(), *case.args, num_samples=200)
    assert torch.allclose(scaled.per_datum, plain.per_datum)


class Noisy(nn.Module):
    """A model with everything that a run may change: dropout, batch norm, parameters, the store."""

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.BatchNorm1d(3), nn.Dropout(0.5), nn.Linear(3, 3))

    def model(self, x: Tensor) -> None:
        pyro.module(
            "network", self.network
        )  # takes the store's parameters in place of its own, where there are some
        bias = pyro.param("bias", torch.zeros(3))
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.network(z) + bias, 1.0).to_event(1), obs=x)


def state_of(noisy: Noisy, guide: Any) -> dict[str, Any]:
    store = pyro.get_param_store()
    return {
        "store": {name: (id(value), value.detach().clone()) for name, value in store.named_parameters()},
        "parameters": {name: (id(value), value.detach().clone()) for name, value in noisy.named_parameters()},
        "gradients": {name: value.grad for name, value in noisy.named_parameters()},
        "needed": {name: value.requires_grad for name, value in noisy.named_parameters()},
        "buffers": {name: value.clone() for name, value in noisy.named_buffers()},
        "training": [module.training for module in (*noisy.modules(), *guide.modules())],
        "guide": sorted(vars(guide)), "prototype": guide.prototype_trace, "locs": [*guide.named_parameters()],
        "torch": torch.get_rng_state(), "numpy": np.random.get_state()[1].tolist(), "python": random.getstate(),  # noqa: NPY002
    }  # fmt: skip


def same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (tuple, list)):
        return len(one) == len(other) and all(same(a, b) for a, b in zip(one, other, strict=True))
    return bool(one == other)


def with_an_empty_store(noisy: Noisy) -> None:
    pass


def with_its_own_store(noisy: Noisy) -> None:
    pyro.module("network", noisy.network)
    pyro.param("bias", torch.ones(3))


def with_the_store_of_another(noisy: Noisy) -> None:
    pyro.module("network", Noisy().network)


@pytest.mark.parametrize(
    "prepare", [with_an_empty_store, with_its_own_store, with_the_store_of_another]
)
def test_an_audit_leaves_no_trace(prepare: Callable[[Noisy], None]) -> None:
    noisy = Noisy()
    prepare(noisy)
    guide = AutoNormal(noisy.model)
    noisy.network[2].weight.grad = torch.full((3, 3), 7.0)
    noisy.network[1].eval()
    before = state_of(noisy, guide)
    result = audit(noisy.model, guide, benchmark.data())
    assert ("shared-parameter" in codes(result)) == (prepare is with_the_store_of_another)
    after = state_of(noisy, guide)
    for what, value in before.items():
        assert same(value, after[what]), what


def test_a_beta_that_is_no_number_is_not_tried() -> None:
    """A regression coefficient may be named β too."""

    def model(x: Tensor, beta: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z + x @ beta, 1.0), obs=x[:, 0])

    def guide(x: Tensor, beta: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(pyro.param("loc", torch.zeros(len(x))), 1.0))

    result = audit(model, guide, benchmark.data(), torch.ones(3))
    assert result.findings == (), str(result)


@pytest.mark.parametrize("args", [(4.0, True), (1.0, True), ()])
def test_arguments_after_beta_are_kept(args: tuple[Any, ...]) -> None:
    spoilt, guide = benchmark.vae_program(model_scale=benchmark.no_scale)
    sound, _ = benchmark.vae_program()

    def model(x: Tensor, beta: float = 1.0, wrong: bool = False) -> None:
        (spoilt if wrong else sound)(x, beta)

    def same_guide(x: Tensor, beta: float = 1.0, wrong: bool = False) -> None:
        guide(x, beta)

    expected = ["beta-one-side"] if args else []
    assert codes(audit(model, same_guide, benchmark.data(), *args)) == expected


def test_what_a_program_raises_is_reported() -> None:
    model, guide = benchmark.vae_program()
    for finding in audit(model, guide).findings:
        assert (
            finding.code == "does-not-run"
            and "missing 1 required positional argument: 'x'" in finding.message
        )
    vae = benchmark.build_vae()
    assert "'beta' must be non-negative and finite, got -1.0" in str(
        audit(vae.model, vae.guide, benchmark.data(), beta=-1.0)
    )
