"""Several processes train the model that one would.

Gradients, metrics, files, resuming, and processes that die.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import processes
import pytest
import torch
from torch import Tensor

from pyro_bvae.evaluation import Estimate, join_estimates, join_evaluations
from pyro_bvae.evaluation.marginal import Escalation
from pyro_bvae.runs import TrainConfig, train
from pyro_bvae.runs.evaluation_files import evaluate_shares
from pyro_bvae.training import History, Ranks, load_checkpoint
from tests.reliability.children import end, start

HERE = Path(__file__).parents[1]
ALONE = Ranks()
# What has noise of the processes', or none of its own.
OWN_NOISE = {"seconds", "validation_distortion", "validation_rate", "validation_elbo"}
Results = list[dict[str, Any]]


def free_port() -> int:
    with socket.socket() as result:
        result.bind(("127.0.0.1", 0))
        return int(result.getsockname()[1])


def quietly(*args: Any, **options: Any) -> Any:
    """Train as the processes do.

    Models so small and so short of training have remarks made about them.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return processes.run(*args, **options)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("processes")


@pytest.fixture(scope="module")
def results(folder: Path) -> Results:
    """Run the cases in two processes, after a run of one that they continue, and return what each
    has written."""
    quietly(processes.vae(), folder / "one")
    shutil.copytree(folder / "one", folder / "reference")
    place = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}

    def work(rank: int) -> None:
        os.environ.update({**place, "RANK": str(rank)})
        warnings.simplefilter("ignore")
        processes.write_cases(folder)

    said = [folder / f"{rank}.txt" for rank in range(2)]
    started = [start(lambda rank=rank: work(rank), said[rank]) for rank in range(2)]
    ended = [end(child, timeout=300) for child in started]
    assert ended == [0, 0], [path.read_text() for path in said]
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(2)]


@pytest.fixture(scope="module")
def alone(results: Results, folder: Path) -> Any:
    """The run that the two processes share, in one.

    It uses the store after the fixture that it depends on.
    """
    return quietly(processes.vae(), None)


def assert_close(one: Any, other: Any, tolerance: float = 1e-11) -> None:
    if isinstance(one, Tensor):
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for name in set(one) - OWN_NOISE:
            assert_close(one[name], other[name], tolerance)
    elif isinstance(one, list):
        assert len(one) == len(other)
        for pair in zip(one, other, strict=True):
            assert_close(*pair, tolerance)
    else:
        assert one == pytest.approx(other, rel=tolerance, abs=tolerance)


def test_shares_are_disjoint_and_even(results: Results) -> None:
    for count in range(12):
        parts = [list(range(count))[result["shares"][count]] for result in results]
        assert [*parts[0], *parts[1]] == list(range(count))
        assert len(parts[0]) - len(parts[1]) in (0, 1)
    assert [Ranks(rank, 3).share(8) for rank in range(3)] == [slice(0, 3), slice(3, 6), slice(6, 8)]


@pytest.mark.parametrize("count", [1, 7, 8])
@pytest.mark.parametrize("name", processes.OBJECTIVES)
def test_a_step_is_that_of_the_joint_batch(results: Results, name: str, count: int) -> None:
    expected = processes.gradients(ALONE, count, processes.OBJECTIVES[name])
    for result in results:
        assert_close(result[f"step-{name}-{count}"], expected)
    assert float(expected["stats"][3]) > 0.1 * count, "the clip does something"


def test_a_compiled_step_is_too(results: Results) -> None:
    expected = processes.gradients(ALONE, 7, processes.OBJECTIVES["bound"])
    for result in results:
        assert_close(result["compiled"], expected)


def test_the_loss_module_can_be_wrapped_by_torch(results: Results) -> None:
    """Where shares are of one size, and its mean over processes is made a sum."""
    expected = processes.gradients(ALONE, 8, processes.OBJECTIVES["bound"])["gradients"]
    for result in results:
        assert_close(result["ddp"], expected)


def test_a_run_is_that_of_one_process(results: Results, alone: Any) -> None:
    for result in results:
        for name in ("fit", "compiled-fit", "lazy"):
            assert_close(result[name], alone, 1e-8)
    assert [row["epoch"] for row in results[0]["fit"]["rows"]] == [1, 2, 3]
    assert {"objective", "gradient_norm", "active_units"} < results[0]["fit"]["rows"][0].keys()


@pytest.mark.parametrize("case", ["fit", "compiled-fit", "lazy", "resumed", "loader"])
def test_weights_are_the_same_to_the_bit(results: Results, case: str) -> None:
    one, other = (result[case]["weights"] for result in results)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_one_process_writes(results: Results, folder: Path) -> None:
    assert set(results[0]["writes"]) == {"best.pt", "last.pt"}
    assert not results[1]["writes"]
    assert len(History.read(folder / "two" / "metrics.csv").rows) == 3


def test_a_checkpoint_resumes_on_another_number_of_processes(
    results: Results, folder: Path
) -> None:
    expected = quietly(processes.vae(7), folder / "reference", epochs=5, resume=True)
    assert_close(quietly(processes.vae(7), folder / "two", epochs=5, resume=True), expected, 1e-8)
    for result in results:
        assert_close(result["resumed"], expected, 1e-8)
    assert len(expected["rows"]) == 5


def test_noise_is_each_process_s_own(results: Results) -> None:
    assert all(len(result["seeds"]) == 2 for result in results)
    assert not set(results[0]["seeds"]) & set(results[1]["seeds"])


def test_rows_of_a_table_are_looked_up_once(results: Results) -> None:
    last = [set(result["asked"][-count:]) for result, count in zip(results, (11, 10), strict=True)]
    assert not last[0] & last[1]
    assert last[0] | last[1] == set(range(21))


def test_a_loader_with_a_distributed_sampler_is_shared(results: Results) -> None:
    seen = [result["loader"]["seen"] for result in results]
    for epoch in (slice(-20, -10), slice(-10, None)):
        assert sorted(seen[0][epoch] + seen[1][epoch]) == list(range(20))
    assert seen[0][-20:-10] != seen[0][-10:], "each epoch has its order"


def test_what_stops_being_finite_in_one_process_ends_all_with_its_reason(results: Results) -> None:
    said = {result["infinite"] for result in results}
    assert len(said) == 1
    assert said.pop().startswith("TrainingError: epoch 1, step")
    assert "of the model has a log density that is not finite" in results[0]["infinite"]


def test_what_is_no_sum_over_data_is_refused(results: Results) -> None:
    for result in results:
        assert (
            "'objective' must be a sum over data" in result["batch"]
            and "TotalCorrelation" in result["batch"]
        )
        assert "is a batch norm" in result["norm"]
        assert "DistributedSampler, got a SequentialSampler" in result["plain"]


def test_an_evaluation_is_of_all_data(results: Results) -> None:
    one, other = (result["evaluation"] for result in results)
    assert one == other
    data = processes.numbers(5)
    model = processes.vae()
    expected = evaluate_shares(model, (data,), ALONE, seed=0, num_samples=2000)
    assert one["num_data"] == 5
    assert one["kl_per_dimension"] == expected.to_dict()["kl_per_dimension"]
    for name in ("evidence", "elbo", "approximation_gap", "amortization_gap"):
        there, here = one[name], expected.to_dict()[name]
        error = (there["monte_carlo_error"] ** 2 + here["monte_carlo_error"] ** 2) ** 0.5
        assert abs(there["value"] - here["value"]) < 5 * error + 1e-3, name


def test_estimates_of_parts_are_that_of_the_whole() -> None:
    draws = torch.Generator().manual_seed(0)
    values, errors, biases = (torch.rand(9, generator=draws, dtype=torch.double) for _ in range(3))
    whole = Estimate.over_data(
        values, errors, biases, num_samples=7, pareto_k=values, cost=90, budget=180,
        methods=torch.tensor([0, 1, 2] * 3, dtype=torch.uint8), reliable=values > 0.3,
    )  # fmt: skip
    joined = join_estimates([whole.take(slice(0, 4)), whole.take(slice(4, 9))])
    for name, value in vars(whole).items():
        assert_close(getattr(joined, name), value) if value is not None else None
    assert joined.untrusted_rows == whole.untrusted_rows != []
    assert joined.by_method == {"guide": 3, "refit": 3, "annealing": 3}
    with pytest.raises(ValueError, match="at least one evaluation, got none"):
        join_evaluations([], None)


def test_a_budget_is_divided_with_the_data(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each process takes the part of the budget that its rows are of the data."""
    seen = []

    class Rank:
        size, rank = 2, 1

        def share(self, count: int) -> slice:
            return slice(3, count)

        def gather(self, own: object) -> list[object]:
            return [own]

    def evaluated(*args: object, method: object, **options: object) -> None:
        seen.append(method)

    monkeypatch.setattr("pyro_bvae.runs.evaluation_files.evaluate", evaluated)
    monkeypatch.setattr("pyro_bvae.runs.evaluation_files.join_evaluations", lambda *parts: None)
    model, data = processes.vae(), processes.numbers(5)
    for method in (Escalation(budget=1000), Escalation(), "auto", "importance"):
        evaluate_shares(model, (data,), Rank(), seed=0, num_samples=2, method=method)  # type: ignore[arg-type]
    assert seen == [Escalation(budget=400), Escalation(), "auto", "importance"]


def torchrun(
    output: Path, restarts: int, seconds: float = 300
) -> "subprocess.CompletedProcess[str]":
    command = [
        sys.executable,
        "-W",
        "ignore",
        "-m",
        "torch.distributed.run",
        "--nproc-per-node=2",
        "--standalone",
    ]
    command += [
        f"--max-restarts={restarts}",
        "--monitor-interval=0.1",
        str(HERE / "processes.py"),
        str(output),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=seconds, check=False
    )


@pytest.mark.filterwarnings("ignore:the learning rate jumps")
@pytest.mark.slow
def test_a_process_that_dies_ends_the_job_and_leaves_a_checkpoint(tmp_path: Path) -> None:
    ended = torchrun(tmp_path / "run", restarts=0)
    assert ended.returncode != 0
    assert "Signal 9 (SIGKILL)" in ended.stderr
    state = load_checkpoint(tmp_path / "run" / "checkpoints" / "last.pt")
    assert [row["epoch"] for row in state["history"]] == [1, 2]
    config = TrainConfig(epochs=3, hidden=(8,), latent_dim=2, likelihood="normal", batch_size=256)
    assert len(train(config, tmp_path / "run", resume=True, progress=False).history.rows) == 3


@pytest.mark.slow
def test_torchrun_starts_again_where_the_run_was(tmp_path: Path) -> None:
    done = torchrun(tmp_path / "run", restarts=1)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("run directory:") == 1, "one process prints"
    rows = History.read(tmp_path / "run" / "metrics.csv").rows
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4]
    assert "exitcode: -9" in done.stderr
    assert done.stdout.count("Evidence, log p(x)") == 1, "one process prints"
    assert json.loads((tmp_path / "run" / "evaluation.json").read_text())["num_data"] == 5
