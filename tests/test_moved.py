"""Names of 0.1.0 that moved work where they were, with a warning that names the new path."""

import importlib
import pickle
import sys
from collections.abc import Iterator

import pytest

import pyro_bvae
from pyro_bvae import evaluation
from pyro_bvae.core.errors import InputError
from pyro_bvae.core.moved import MOVED, RENAMED, grouped
from pyro_bvae.datasets import from_anndata, h5ad
from pyro_bvae.evaluation.inversion import invert
from pyro_bvae.evaluation.refit import RefitSettings

#: What ``pyro_bvae.evaluation`` exported in 0.1.0.
EVALUATION = [
    "AggregateHoles",
    "AggregateStart",
    "AnnealingSettings",
    "Audit",
    "BatchedHMCMethod",
    "Blur",
    "Bound",
    "Calibration",
    "Cause",
    "Check",
    "CollapseFinding",
    "CountChecks",
    "CountThinning",
    "Coverage",
    "CurvePoint",
    "DecoderGeometry",
    "DefensiveProposal",
    "Diagnosis",
    "Downsample",
    "DrawnSignal",
    "Draws",
    "EncoderStart",
    "EnergyTest",
    "Estimate",
    "Evaluation",
    "Finding",
    "Geodesic",
    "GuideProposal",
    "HeavyTailedProposal",
    "InferenceGaps",
    "InverseProblem",
    "Inversion",
    "KLDecomposition",
    "KLPerDimension",
    "LabelClassifier",
    "LabelQuality",
    "LatentDiagnosis",
    "LatentReading",
    "LinearOperator",
    "Mask",
    "Mass",
    "MeanSignal",
    "NUTSMethod",
    "NormalNoise",
    "PrincipalFeatures",
    "PriorStart",
    "RandomProjection",
    "RateDistortion",
    "RefitProposal",
    "RefitSettings",
    "RobustProposal",
    "RotationTest",
    "SampleQuality",
    "SampleScore",
    "Sandwich",
    "Signal",
    "Slope",
    "Start",
    "Statistic",
    "VariationalMethod",
    "annealed_evidence",
    "audit",
    "averages",
    "bidirectional_evidence",
    "bound",
    "calibrate",
    "count_checks",
    "coverage",
    "decoder_geometry",
    "decoder_jacobian",
    "decompose_kl",
    "diagnose",
    "disentanglement",
    "elbo",
    "energy_test",
    "evaluate",
    "evidence",
    "fisher_rao",
    "geodesic",
    "inference_gaps",
    "invert",
    "join_estimates",
    "join_evaluations",
    "kl_per_dimension",
    "log_aggregate",
    "rate_distortion",
    "read_latents",
    "sample_quality",
    "to_arviz",
    "two_sample_test",
    "verify",
    "write_arviz",
]
#: A name of each module of 0.1.0 that README, examples or studies imported it from.
OLD = {
    "annotate": "annotate",
    "catalogue": "Shape",
    "configs": "TrainConfig",
    "context": "Context",
    "curve_plots": "rate_distortion",
    "datasets.streams": "stream_generator",
    "drawing": "BLUE",
    "errors": "InputError",
    "evaluation.audit": "Audit",
    "evaluation.averages": "log_mean_exp",
    "evaluation.refit_settings": "RefitSettings",
    "evaluation.disentanglement.importances": "dci",
    "files": "atomic_write",
    "latent_plots": "traversal_grid",
    "latent_results": "Traversal",
    "modulated": "ModulatedMLP",
    "randomness": "seeded",
    "snapshots": "Snapshots",
    "training.fit": "fit",
    "training.loss": "Loss",
}


@pytest.fixture(autouse=True)
def forget_old_modules() -> Iterator[None]:
    """Leave the package as it was: an import puts the old module into it."""
    yield
    for place in MOVED:
        parent, _, name = f"pyro_bvae.{place}".rpartition(".")
        module = sys.modules.get(f"{parent}.{name}")
        if type(module).__name__ == "_OldModule":
            del sys.modules[f"{parent}.{name}"]
            vars(sys.modules[parent]).pop(name, None)


def warned(call: object) -> tuple[object, str]:
    with pytest.warns(DeprecationWarning) as record:
        value = call()
    assert all(each.filename == __file__ for each in record), "the warning names the caller's line"
    return value, str(record[0].message)


@pytest.mark.parametrize("name", EVALUATION)
def test_each_name_of_the_old_door_is_there_or_is_found(name: str) -> None:
    if name in evaluation.__all__:
        assert hasattr(evaluation, name)
        return
    value, message = warned(lambda: getattr(evaluation, name))
    path = message.split(" is now ")[1].split(";")[0]
    module, _, new = path.rpartition(".")
    assert value is getattr(importlib.import_module(module), new)


def test_the_door_exports_what_answers_a_question() -> None:
    functions = [name for name in evaluation.__all__ if name.islower()]
    folders = [n for n in functions if hasattr(getattr(evaluation, n), "__path__")]
    assert len(evaluation.__all__) - len(folders) <= 36


@pytest.mark.parametrize(("place", "name"), OLD.items(), ids=list(OLD))
def test_a_module_that_moved_is_imported_from_its_old_path(place: str, name: str) -> None:
    module = importlib.import_module(f"pyro_bvae.{place}")
    value, message = warned(lambda: getattr(module, name))
    path = message.split(" is now ")[1].split(";")[0]
    new, _, renamed = path.rpartition(".")
    assert message.startswith(f"pyro_bvae.{place}.{name} is now pyro_bvae.")
    assert value is getattr(importlib.import_module(new), renamed)


@pytest.mark.parametrize("place", MOVED)
def test_each_row_of_the_table_leads_to_a_module(place: str) -> None:
    for path in MOVED[place]:
        assert importlib.import_module(f"pyro_bvae.{path}").__name__ == f"pyro_bvae.{path}"
    old = importlib.import_module(f"pyro_bvae.{place}")
    assert not hasattr(old, "no_such_name")


@pytest.mark.parametrize("old", RENAMED)
def test_a_renamed_object_is_found_by_its_old_name(old: str) -> None:
    place, _, name = old.rpartition(".")
    module = importlib.import_module(f"pyro_bvae.{place}")
    value, message = warned(lambda: getattr(module, name))
    assert value.__name__ == RENAMED[old] and message.split(";")[0].endswith(f".{RENAMED[old]}")


def test_an_old_import_statement_and_attribute_warn() -> None:
    names: dict[str, object] = {}
    with pytest.warns(DeprecationWarning, match=r"is now pyro_bvae.runs.TrainConfig"):
        exec("from pyro_bvae.configs import TrainConfig", names)
    assert names["TrainConfig"] is pyro_bvae.runs.TrainConfig
    with pytest.warns(DeprecationWarning, match=r"pyro_bvae.core.context.Context"):
        assert pyro_bvae.context.Context is pyro_bvae.Context


def test_a_pickle_of_0_1_0_is_read() -> None:
    old = pickle.dumps(pyro_bvae.Context, protocol=0).replace(
        b"pyro_bvae.core.context", b"pyro_bvae.context"
    )
    with pytest.warns(DeprecationWarning, match="Context"):
        assert pickle.loads(old) is pyro_bvae.Context


def test_an_old_import_hides_no_function_that_bears_the_modules_name() -> None:
    with pytest.warns(DeprecationWarning):
        exec("from pyro_bvae.evaluation.audit import Audit", {})
    assert evaluation.audit is importlib.import_module("pyro_bvae.evaluation.program_audit").audit


def test_a_file_that_is_a_folder_today_keeps_its_names() -> None:
    for place, name in (
        ("datasets.counts", "check_counts"),
        ("datasets.factors", "FactorSpace"),
        ("evaluation.gaps", "inference_gaps"),
        ("latents", "traverse"),
        ("networks", "MLP"),
        ("plots", "inference_gaps"),
        ("runs", "train"),
        ("training.objectives", "TraceTerms"),
    ):
        assert callable(getattr(importlib.import_module(f"pyro_bvae.{place}"), name))


def test_keywords_that_a_record_holds_today_work_with_a_warning() -> None:
    @grouped("settings", RefitSettings, families="families", starts="num_starts")
    def call(x: int, *, settings: RefitSettings | None = None) -> tuple[int, RefitSettings | None]:
        return x, settings

    assert call(1) == (1, None)
    given = RefitSettings(max_rounds=7)
    assert call(2, settings=given) == (2, given)
    value, message = warned(lambda: call(3, families=("flow",), starts=0))
    assert value == (3, RefitSettings(families=("flow",), num_starts=0))
    assert message.startswith(
        "'families', 'starts' of call is now settings=RefitSettings(families=..., num_starts=...);"
    )
    value, _ = warned(lambda: call(4, settings=given, starts=2))
    assert value == (4, RefitSettings(max_rounds=7, num_starts=2))
    with pytest.raises(TypeError, match="no_such"):
        call(5, no_such=1)


KEYWORDS = {
    "inference_gaps": (
        lambda **old: pyro_bvae.inference_gaps(None, None, num_samples=0, **old),
        "settings",
    ),
    "invert": (lambda **old: invert(None, None, None, 1.0, **old), "settings"),
    "from_anndata": (lambda **old: from_anndata(None, **old), "columns"),
    "h5ad": (lambda **old: h5ad("no such file", **old), "columns"),
}
FORMER = {
    "inference_gaps": ("families", "local_guide"),
    "invert": ("starts", "data", "holes"),
    "from_anndata": ("label_column", "batch_column", "split_column"),
    "h5ad": ("label_column", "batch_column", "split_column"),
}


@pytest.mark.parametrize(
    ("name", "old"), [(name, old) for name, names in FORMER.items() for old in names]
)
def test_former_keywords_warn_with_their_new_spelling(name: str, old: str) -> None:
    call, new = KEYWORDS[name]
    value = ("no such family",) if old == "families" else "part"
    with (
        pytest.warns(DeprecationWarning, match=rf"'{old}' of {name} is now {new}="),
        pytest.raises((InputError, AttributeError)),  # of the other arguments, which make no sense
    ):
        call(**{old: value})
