"""The tables beside published figures: work that goes on where it stopped, lines as the code says, and
a page that is its csv files."""

import math
import sys
from pathlib import Path
from types import SimpleNamespace

import pyro.distributions as dist
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "analysis"))
import paper_tables
import peers
from paper_parts import background, iwae, pages, peer_programs, scvi_model
from paper_parts.machinery import COLUMNS, Clock, Entry, Place, Row, Work, compute, in_blocks, read

from pyro_bvae import evidence
from pyro_bvae.datasets import Dataset, Splits
from pyro_bvae.evaluation import Estimate
from pyro_bvae.evaluation.marginal import AnnealingSettings

ROWS = [paper_tables.row_of(name) for name in paper_tables.NAMES]


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(None, None, tmp_path / "runs", tmp_path / "results")


def work_of(place: Place, name: str = "line") -> Work:
    folder = place.runs / name
    return Work(place, folder, Clock(folder / "clock.json"))


def test_an_evaluation_that_was_stopped_measures_the_other_blocks_alone(place: Place) -> None:
    x, measured = torch.arange(10.0).reshape(10, 1), []

    def measure(some: torch.Tensor, seed: int) -> dict[str, Estimate]:
        if seed == 2 and len(measured) == 2:
            raise KeyboardInterrupt
        measured.append(seed)
        return {"value": Estimate.over_data(some[:, 0], torch.ones(len(some)))}

    work = work_of(place)
    for _ in range(2):
        try:
            found = in_blocks(work.folder, x, measure, work.clock, 3)["value"]
        except KeyboardInterrupt:
            measured.append(-1)
    assert measured == [0, 1, -1, 2, 3]
    assert found.value == 4.5 and found.monte_carlo_error == pytest.approx(math.sqrt(10) / 10)
    assert found.standard_error == pytest.approx(float(x.std()) / math.sqrt(10))


def row_with(measures: dict[str, float], computed: list[str]) -> Row:
    def measure(name: str, work: Work) -> dict[str, str]:
        computed.append(name)
        work.clock.tick()
        return {"ours": f"{measures[name]}", "images": "3", "seeds": "1"}

    entries = [
        Entry(name, "nats", "2.00", "A", "a setting", "", "1 minute",
              lambda work, name=name: measure(name, work))
        for name in measures
    ]  # fmt: skip
    return Row("planted", "A planted row", (), tuple(entries))


def test_lines_are_computed_once_in_any_order_and_stand_in_the_order_of_the_row(
    place: Place,
) -> None:
    computed: list[str] = []
    row = row_with({"one": 1.0, "two": 2.5}, computed)
    compute(row, place, ("two",))
    (line,) = read(place.results / "planted.csv")
    assert tuple(line) == COLUMNS and line["ours"] == "2.5" and line["processor"]
    table = pages.table(row, place.results)
    assert "| one | 2.00 (A) | not run |" in table and "--only 'one'`, about 1 minute" in table
    lines = compute(row, place)
    assert computed == ["two", "one"] and [line["line"] for line in lines] == ["one", "two"]
    assert "not run" not in pages.table(row, place.results)


def test_a_clock_counts_the_seconds_of_earlier_commands(tmp_path: Path) -> None:
    path = tmp_path / "line" / "clock.json"
    clock = Clock(path)
    clock._started = (clock._started[0] - 100.0, clock._started[1] - 40.0)
    clock.tick()
    wall, cpu = Clock(path).seconds()
    assert 100 <= wall < 101 and 40 <= cpu < 41


def images(count: int) -> Dataset:
    return Dataset(torch.rand(count, 6, generator=torch.Generator().manual_seed(0)).round())


class Stopped(Exception):
    pass


def test_training_goes_on_from_its_last_epoch_and_the_nll_is_that_of_the_model(
    place: Place,
) -> None:
    data = images(64)
    splits = Splits(data, None, data, name="planted")

    def model() -> iwae.BetaVAE:
        return iwae.new_vae(6, 2, (8,))

    whole, parted = work_of(place, "whole"), work_of(place, "parted")
    vae = model()
    iwae.trained(whole, splits, vae, None, 3)
    calls: list[int] = []

    def stop(*_: object) -> None:
        calls.append(1)
        if len(calls) == 2:
            raise Stopped

    stopping = parted._replace(clock=SimpleNamespace(tick=stop))
    with pytest.raises(Stopped):
        iwae.trained(stopping, splits, model(), None, 3)
    other = model()
    history = iwae.trained(parted, splits, other, None, 3)
    assert len(history.rows) == 3
    assert all(torch.equal(a, b) for a, b in zip(vae.parameters(), other.parameters(), strict=True))
    for name in ("first", "second", "first"):  # the last replaces the first
        iwae.add_curve(place.results / iwae.CURVE, name, history)
    curve = read(place.results / iwae.CURVE)
    assert [(point["line"], point["epoch"]) for point in curve[::3]] == [
        ("second", "1"),
        ("first", "1"),
    ]
    assert len(curve) == 6 and math.isfinite(float(curve[0]["loss"]))
    few = AnnealingSettings(num_temperatures=25, num_chains=11, pilot_temperatures=20)
    line = iwae.measured(whole, vae, data.x, 500, 3, few)
    direct = evidence(vae.model, vae.guide, data.x, num_samples=500, seed=5, progress=False)
    error = float(line["monte_carlo_error"]) + direct.monte_carlo_error
    assert abs(float(line["ours"]) + direct.value) < 4 * error + 0.005
    assert line["images"] == "64" and "3 random images" in line["note"]


def test_the_background_row_means_over_its_seeds(place: Place) -> None:
    options = {"dataset": "digits", "epochs": 1, "hidden": (8,), "latent_dim": 2}
    work = work_of(place)
    line = background.measure(work, beta=2.0, options=options, seeds=(0, 1), num_images=50)
    found = [float(text) for text in line["note"].rsplit("seeds ", 1)[1].split(", ")]
    assert float(line["ours"]) == pytest.approx(sum(found) / 2, abs=0.011)
    assert float(line["spread"]) == pytest.approx(abs(found[0] - found[1]) / 2**0.5, abs=0.011)
    assert float(line["spread"]) > 0 and line["images"] == "50" and line["seeds"] == "2"
    again = background.measure(work, beta=2.0, options=options, seeds=(0,), num_images=50)
    assert float(again["ours"]) == found[0]  # the seed that both lines have is not trained again


@pytest.mark.parametrize("row", ROWS, ids=paper_tables.NAMES)
def test_lines_on_disk_have_the_settings_that_the_code_has(row: Row) -> None:
    entries = {entry.line: entry for entry in row.entries}
    assert len(entries) == len(row.entries)
    for line in read(paper_tables.RESULTS / f"{row.name}.csv"):
        entry = entries[line["line"]]
        assert tuple(line) == COLUMNS
        for name in ("quantity", "published", "certainty", "setting", "differs"):
            assert line[name] == getattr(entry, name), (row.name, line["line"], name)
        assert math.isfinite(float(line["ours"])) and int(line["images"]) > 0
        assert int(line["cpu_seconds"]) >= 0 and line["processor"] and line["seeds"]
        assert line["standard_error"] or line["monte_carlo_error"]


def test_the_tables_of_the_page_are_those_of_the_csv_files() -> None:
    page = paper_tables.PAGE.read_text(encoding="utf-8")
    assert pages.with_tables(page, ROWS, paper_tables.RESULTS) == page
    with pytest.raises(ValueError, match="no two comments around a table of iwae"):
        pages.with_tables("an empty page", ROWS, paper_tables.RESULTS)


def test_the_list_says_which_lines_have_been_computed(tmp_path: Path) -> None:
    said = paper_tables.listing(tmp_path)
    assert said.count("not run") == sum(len(row.entries) for row in ROWS)
    assert "(computed)" in paper_tables.listing()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "one of --list, --row and --pages"),
        (["--row", "counts"], "row counts needs --counts"),
        (["--row", "sprites", "--only", "β = 3"], "row sprites has no line β = 3"),
    ],
)
def test_bad_options_are_refused(
    arguments: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(sys, "argv", ["paper_tables.py", *arguments])
    with pytest.raises(SystemExit, match="2"):
        paper_tables.main()
    assert said in capsys.readouterr().err


# -- peers


class Module(torch.nn.Module):
    """A model of scvi-tools whose counts do not depend on the latents."""

    def inference(self, x: torch.Tensor, batch: torch.Tensor) -> dict[str, dist.Normal]:
        return {"qz": dist.Normal(x.new_zeros(len(x), 10), 1.0)}

    def generative(self, z: torch.Tensor, library: torch.Tensor, batch_index: torch.Tensor) -> dict:
        mean = library.exp() * torch.tensor([0.2, 0.3, 0.5]) + 0 * z[..., :1]
        return {"px": SimpleNamespace(mu=mean, theta=torch.tensor([1.0, 2.0, 3.0]))}


def test_the_program_of_scvi_tools_has_the_density_of_its_counts() -> None:
    x = torch.tensor([[1.0, 0.0, 4.0], [2.0, 2.0, 2.0]])
    program = scvi_model.Program(Module())
    found = evidence(program.model, program.guide, x, num_samples=50, progress=False)
    mean, theta = x.sum(-1, keepdim=True) * torch.tensor([0.2, 0.3, 0.5]), torch.arange(1.0, 4.0)
    exact = (
        torch.lgamma(x + theta) - torch.lgamma(theta) - torch.lgamma(x + 1)
        + theta * (theta / (theta + mean)).log() + x * (mean / (theta + mean)).log()
    ).sum(-1)  # fmt: skip
    assert torch.allclose(found.per_datum.float(), exact, atol=0.2)


@pytest.mark.parametrize("name", ["this package", "plain Pyro"])
def test_a_peer_and_this_package_agree_on_the_same_weights(name: str) -> None:
    x = torch.rand(64, 784, generator=torch.Generator().manual_seed(0)).round()
    line = peers.measured(lambda: peer_programs.PROGRAMS[name](x, 1), x[:10], 200)
    apart = float(line["evidence"]) - float(line["own_evidence"])
    assert abs(apart) < 4 * float(line["monte_carlo_error"]) + 1
    assert int(line["peak_mib"]) > 0 and float(line["train_cpu_seconds"]) >= 0


def test_lines_of_code_are_counted_without_words() -> None:
    def program(x: int) -> int:
        """Words."""
        # More words.

        return x

    assert peers.lines_of(program) == 2


def test_a_peer_that_is_missing_is_left_out_with_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(peer_programs, "PROGRAMS", {"pythae": None})
    monkeypatch.setattr(peers, "NEEDS", {"pythae": ("no_such_module", "pip install pythae")})
    peers.main(Path("unused"), None, tmp_path)
    said = "pythae cannot be imported here and is left out: pip install pythae"
    assert said in capsys.readouterr().out and not list(tmp_path.iterdir())
