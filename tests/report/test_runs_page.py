"""The page of several runs, and that of a run in training."""

import http.client
import json
import re
import shutil
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from pyro_bvae import runs
from pyro_bvae.cli._main import main
from pyro_bvae.core.errors import InputError
from pyro_bvae.report import traversals, write_runs
from pyro_bvae.report.runs_page import Member, runs_page
from pyro_bvae.report.traversals import side_by_side
from pyro_bvae.report.watching import news, watch, watched
from pyro_bvae.runs import TrainConfig
from tests.report.pages import members, run_of, vae_of
from tests.report.test_report import data_of, estimate, make_evaluation, text_of

MEMBERS = members()
CONFIG = TrainConfig(
    dataset="linear-gaussian", likelihood="normal", hidden=(4,), latent_dim=2, epochs=2,
    warmup_epochs=0.0, batch_size=2000,
)  # fmt: skip


def member(beta, evidence, **settings):
    """Return a run of some evidences."""
    values = {"evidence": estimate(float(np.mean(evidence))), "rate": estimate(9 / beta)}
    values |= {"distortion": estimate(20 + beta), "beta": beta, "seed": 0}
    record = SimpleNamespace(parts={"test": SimpleNamespace(fingerprints=np.arange(4.0))})
    config = {
        "data": {"dataset": "digits"},
        "training": {"beta": beta, "device": "cpu", **settings},
    }
    return Member(
        Path(f"beta{beta}"), make_evaluation(**values), config, record, np.array(evidence)
    )


def test_the_page_has_the_runs_as_points_and_their_numbers_against_beta():
    page = runs_page({"a": member(1.0, [1.0, 2.0]), "b-1": member(4.0, [3.0, 5.0])}, [])
    points, *against = data_of(page)["charts"].values()
    assert [row[:3] for row in points["rows"]] == [["a", 21.0, 9.0], ["b-1", 24.0, 2.25]]
    assert [chart["title"] for chart in against][:2] == ["Evidence", "ELBO"]
    assert against[0]["rows"] == [[1.0, 1.5], [4.0, 4.0]] and against[0]["log"]
    assert "The evidence is largest for b-1, 4.00 nats a datum." in text_of(page)


def test_paired_differences_are_of_the_same_data_alone():
    one, other = member(1.0, [1.0, 2.0, 3.0]), member(4.0, [2.0, 4.0, 6.0])
    text = text_of(runs_page({"a": one, "b": other}, []))
    assert "−2.00 ± 0.58" in text and "Evidence against b" in text  # of -1, -2 and -3
    record = SimpleNamespace(parts={"test": SimpleNamespace(fingerprints=np.ones(4))})
    text = text_of(runs_page({"a": one, "b": other._replace(record=record)}, []))
    assert "Evidence against" not in text and "measured on different data" in text


def test_only_the_settings_that_differ_are_shown():
    page = runs_page({"a": member(1.0, [1.0]), "b": member(4.0, [2.0], epochs=3)}, [])
    table = text_of(page.partition("<h2>Settings that differ</h2>")[2].partition("</section>")[0])
    assert table.split() == ["Run", "beta", "epochs", "a", "1.0", "none", "b", "4.0", "3"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run that was trained and evaluated."""
    directory = tmp_path_factory.mktemp("runs") / "a"
    runs.train(CONFIG, directory, progress=False)
    runs.evaluate_run(directory, num_samples=5, num_data=6, method="importance", progress=False)
    return directory


def test_a_page_of_two_directories_links_to_their_pages(run: Path, tmp_path: Path) -> None:
    twin = Path(shutil.copytree(run, run.with_name("b"), dirs_exist_ok=True))
    (twin / "report.html").write_text("<p>", encoding="utf-8")
    path = write_runs([run, twin], tmp_path / "page.html")
    page = path.read_text(encoding="utf-8")
    assert len(re.findall(r'href="[^"#]*b/report.html"', page)) == 1
    assert "0.00 ± 0.00" in page  # a run against its copy
    (twin / "report.html").unlink()


def test_runs_that_make_no_page(run: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="takes two runs or more, got 1"):
        write_runs([run], tmp_path / "page.html")
    with pytest.raises(InputError, match="takes each run once"):
        write_runs([run, run / "."], tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()


def test_the_traversals_of_runs_are_around_one_datum_and_named(monkeypatch) -> None:
    drawn: list = []
    original = traversals.mosaic
    monkeypatch.setattr(
        traversals, "mosaic", lambda *a, **k: drawn.append((a, k)) or original(*a, **k)
    )
    vae, data = MEMBERS["mlp"]
    other = vae_of(vae.decoder.network, vae.decoder.likelihood, 16, seed=5)
    runs = {"a": run_of(vae, data), "b": run_of(other, data[5:])}
    runs["wider"] = run_of(*MEMBERS["convolutional"])  # images of another size
    active = {"count": 2, "active": [True, False, True], "variances": [0.5, 0.0, 0.9]}
    evaluation = {"active_units": active, "kl_per_dimension": None}
    (section,) = side_by_side(runs, dict.fromkeys(runs, evaluation))
    (images, shape, _), named = drawn[0]
    assert shape == (1, 4, 4) and named["rows"] == ["a  z2", "z0", "", "b  z2", "z0"]
    code = other.encode(data.x[:1])  # of the first run's datum
    code[0, 2] = 3.0
    assert np.allclose(images[3, -1], other.decode(code)[0], atol=1e-6)
    assert np.isnan(images[2]).all() and "3 active latents" in section.caption
    counts = {"a": run_of(*MEMBERS["counts"])}
    assert side_by_side(counts, {"a": evaluation}) == []
    nothing = {"active_units": {**active, "active": [False] * 3}}
    assert side_by_side({"a": runs["a"]}, {"a": nothing}) == []


# --- a run in training


@pytest.fixture
def server(run: Path):
    """Serve a run, and return its port."""
    addresses: list[str] = []
    thread = threading.Thread(target=watch, args=(run, 0), kwargs={"on_start": addresses.append})
    thread.daemon = True
    thread.start()
    while not addresses:
        thread.join(0.01)
    return int(addresses[0].rstrip("/").rpartition(":")[2])


def get(port: int, path: str, host: str = "127.0.0.1"):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request("GET", path, headers={"Host": f"{host}:{port}"})
    answer = connection.getresponse()
    return answer.status, answer.read().decode("utf-8")


def test_the_watch_serves_the_page_and_its_news_to_this_machine_alone(
    server: int, run: Path
) -> None:
    status, page = get(server, "/")
    assert status == 200 and "connect-src 'self'; script-src" in page
    status, content = get(server, "/news.json")
    found = json.loads(content)
    assert found["ended"] and found["state"].startswith("all 2 epochs are done: objective ")
    assert [len(chart["rows"]) for chart in found["charts"].values()] == [2, 2, 2, 2]
    assert get(server, "/config.json")[0] == 404
    assert get(server, "/news.json", host="evil.example")[0] == 403
    with pytest.raises(InputError, match=f"'port' {server} is in use"):
        watch(run, server)


def test_news_of_a_run_that_has_just_begun(run: Path, tmp_path: Path) -> None:
    shutil.copy(run / "config.json", tmp_path / "config.json")
    shutil.copy(run / "digests.sha256", tmp_path / "digests.sha256")
    assert news(tmp_path) == {
        "state": "no epoch is finished yet", "charts": {}, "pictures": [], "ended": False
    }  # fmt: skip
    with pytest.raises(InputError, match="it has no config"):
        watch(tmp_path / "nowhere")


def test_a_run_is_watched_while_it_is_trained_and_no_earlier_one_is(
    run: Path, tmp_path: Path
) -> None:
    own = tmp_path / "own"
    with watched(own, CONFIG, resume=False) as address:  # of a run that is not there yet
        port = int(address.rstrip("/").rpartition(":")[2])
        assert get(port, "/")[0] == 200
        assert json.loads(get(port, "/news.json")[1])["state"] == "no epoch is finished yet"
        shutil.copytree(run, own)
        assert json.loads(get(port, "/news.json")[1])["ended"]
    with pytest.raises(OSError, match="refused"):
        get(port, "/")
    for resume, charts in ((False, 0), (True, 4)):
        with watched(own, CONFIG, resume=resume) as address:
            port = int(address.rstrip("/").rpartition(":")[2])
            assert len(json.loads(get(port, "/news.json")[1])["charts"]) == charts


def test_the_training_prints_the_address_of_its_page(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny = ["--likelihood", "normal", "--hidden", "4", "--latent-dim", "2", "--batch-size", "2000"]
    command = ["train", "--dataset", "linear-gaussian", *tiny, "--epochs", "1", "--live"]
    assert main([*command, "--output", str(tmp_path / "run")]) == 0
    assert re.search(r"(?m)^live page: http://127\.0\.0\.1:\d+/$", capsys.readouterr().out)
