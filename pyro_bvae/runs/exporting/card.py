"""The model card of an export, in Markdown (Mitchell et al. 2019)."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pyro_bvae.core.disk.digests import read_file
from pyro_bvae.core.errors import InputError, listed
from pyro_bvae.evaluation.rows import rows_of
from pyro_bvae.runs.catalogue import COUNTS
from pyro_bvae.runs.config import TrainConfig
from pyro_bvae.runs.directory import Run
from pyro_bvae.runs.evaluation_files import check_measured
from pyro_bvae.runs.exporting.loading import loading
from pyro_bvae.runs.presets import NONE, TAKEN

# Names of features that are listed.
_MOST_NAMES = 10
_SHOWN = ("objective", "distortion", "rate", "validation_objective", "active_units")


def model_card(
    run: Run, described: Mapping[str, Any], names: Sequence[str], checkpoint: str
) -> str:
    """Return the model card of a run.

    Args:
        run: The run.
        described: The content of ``model.json``.
        names: The files of the export.
        checkpoint: The checkpoint that is exported.

    Raises:
        InputError: if the run's evaluation was changed or damaged.
    """
    assert run.config is not None
    evaluation = _evaluation(run.directory)
    sections = {
        "Data": _data(described),
        "Model": _model(run, described),
        "Training": _training(run, checkpoint),
        "Evidence": _evidence(evaluation, run.directory, checkpoint),
        "Limits": [f"- {limit}" for limit in _limits(run, described, evaluation)],
        "Files": loading(described, names),
        "Versions": [", ".join(f"{name} {each}" for name, each in described["versions"].items())],
    }
    title = f"# A β-VAE of {described['data']['name']}\n"
    parts = [f"## {name}\n\n" + "\n".join(lines) + "\n" for name, lines in sections.items()]
    return "\n".join([title, *parts])


def command(config: TrainConfig) -> str:
    """Return the command line that trains a run of a configuration, options at default left out.

    A file is named without its folder.
    """
    words = ["pyro-bvae train"]
    if config.data.dataset in TAKEN:
        words.append(f"--preset {NONE}")
    own, default = config.options(), TrainConfig().options()
    if own["warmup_epochs"] == own["epochs"] / 5:
        del own["warmup_epochs"]
    for name, value in own.items():
        if value == default[name]:
            continue
        flag = "--" + name.replace("_", "-")
        if value is True and default[name] is False:
            words.append(flag)
        elif isinstance(value, tuple):
            words.append(" ".join([flag, *map(str, value)]))
        else:
            shown = Path(value).name if name in ("path", "data_root") else value
            words.append(f"{flag} {_quoted(f'{shown:g}' if isinstance(shown, float) else shown)}")
    return " ".join(words)


def _quoted(value: object) -> str:
    text = str(value)
    return text if all(c.isalnum() or c in "-_.,:" for c in text) else f"'{text}'"


def _data(described: Mapping[str, Any]) -> list[str]:
    data, shape = described["data"], described["shape"]
    sizes = ", ".join(f"{count} {part}" for part, count in data["parts"].items())
    lines = [f"- Data set `{data['name']}`: {sizes} data.", f"- {_features(described)}"]
    if shape["missing"]:
        lines.append("- Entries may be missing: NaN.")
    if shape["has_size_factor"]:
        rule = "its total over these features" * data["total_is_size_factor"]
        lines.append(
            f"- Each datum has a size factor, {rule or 'a positive number'}, which multiplies its"
            " mean."
        )
    if shape["num_covariates"]:
        batches = f", one for each batch: {listed(data['batches'])}" if data["batches"] else ""
        lines.append(f"- Each datum has {shape['num_covariates']} covariates{batches}.")
    if data["labels"]:
        lines.append(f"- Classes, which the model was not shown: {listed(data['labels'])}.")
    return lines


def _features(described: Mapping[str, Any]) -> str:
    names, image = described["data"]["features"], described["shape"]["image_shape"]
    count = described["shape"]["num_features"]
    if image:
        channels, height, width = image
        return (
            f"Images of {channels} x {height} x {width} (channels, rows, columns), flat in this"
            f" order: {count} numbers."
        )
    if not names:
        return f"{count} features, without names."
    more = "; all of them, in their order, in `model.json`" if len(names) > _MOST_NAMES else ""
    return f"{count} features: {', '.join(names[:_MOST_NAMES])}{more}."


def _model(run: Run, described: Mapping[str, Any]) -> list[str]:
    options = described["config"]
    weights = {
        name: sum(each.numel() for each in getattr(run.vae, name).parameters())
        for name in ("encoder", "decoder")
    }
    prior = {id(each): each.numel() for each in run.vae.prior.parameters()}
    for each in run.vae.encoder.parameters():  # of which a prior of posteriors is made
        prior.pop(id(each), None)
    widths, own = (", ".join(map(str, options[f"{each}hidden"])) for each in ("", "encoder_"))
    return [
        "| part | kind | trained numbers |",
        "|---|---|---|",
        f"| prior p(z) | {options['prior']}, {options['latent_dim']} latents"
        f" | {sum(prior.values())} |",
        f"| decoder p(x given z) | {options['network']} ({widths}), {options['likelihood']}"
        f" | {weights['decoder']} |",
        f"| guide q(z given x) | {options['network']} ({own or widths}), {options['posterior']}"
        f" | {weights['encoder']} |",
    ]


def _training(run: Run, checkpoint: str) -> list[str]:
    assert run.config is not None
    training, last = run.config.training, run.history.rows[-1]
    shown = ", ".join(f"{name} {last[name]:.4g}" for name in _SHOWN if name in last)
    lines = [
        f"- β at the end: {run.training_beta:g}. Epochs: {len(run.history.rows)} of"
        f" {training.epochs}. Seed: {training.seed}. Checkpoint: {checkpoint}.",
        f"- At the end of training, in nats per datum: {shown}.",
    ]
    lines += [f"- Noticed {remark.when} training: {remark}" for remark in run.history.remarks]
    return [*lines, "", "```sh", command(run.config), "```"]


def _evaluation(directory: Path) -> dict[str, Any] | None:
    """Return the content of ``evaluation.json``; None for a run that was not evaluated."""
    try:
        content = json.loads(read_file(directory / "evaluation.json"))
    except FileNotFoundError:
        return None
    except InputError:
        raise
    except ValueError as error:
        raise InputError(f"{directory / 'evaluation.json'} is no JSON: {error}") from error
    if not isinstance(content, dict):
        return None
    check_measured(directory, content)
    return content


def _evidence(evaluation: Mapping[str, Any] | None, directory: Path, checkpoint: str) -> list[str]:
    order = f"pyro-bvae evaluate {directory.name}"
    if evaluation is None:
        return ["This model was not evaluated. The command is:", "", "```sh", order, "```"]
    lines = []
    if evaluation.get("checkpoint") not in (None, checkpoint):
        lines += [
            f"These numbers are of checkpoint {evaluation['checkpoint']}, and the files of"
            f" {checkpoint}.",
            "",
        ]
    lines += [
        "| nats per datum | value | standard error | Monte Carlo error |",
        "|---|---|---|---|",
    ]
    for label, _, estimate in rows_of(evaluation, evaluation.get("families") or {}):
        if estimate is not None:
            lines.append(f"| {label} | {_estimate(estimate)} |")
    untrusted = (evaluation.get("pareto_k") or {}).get("untrusted")
    lines += [
        "",
        f"Measured on {evaluation.get('num_data')} of the {evaluation.get('split')} data with"
        f" {evaluation.get('num_samples')} particles each, at seed {evaluation.get('seed')}."
        f" Data whose evidence is not to be trusted, by Pareto k: {untrusted}.",
    ]
    for name in ("verdict", "gaps_note", "kl_note"):
        if evaluation.get(name):
            lines += ["", f"{str(evaluation[name])[:1].upper()}{str(evaluation[name])[1:]}"]
    return lines


def _estimate(estimate: Mapping[str, Any]) -> str:
    """Return value, standard error and Monte Carlo error, in digits of the standard error."""
    value, error, noise = (
        estimate.get(name) for name in ("value", "standard_error", "monte_carlo_error")
    )
    digits = 2
    if isinstance(error, float) and error > 0:
        digits = min(4, max(2, -math.floor(math.log10(error))))
    shown = [
        "unknown" if each is None else f"{each:{form}}"
        for each, form in ((value, f".{digits}f"), (error, f".{digits}f"), (noise, ".2g"))
    ]
    shown[0] += " (untrusted)" if estimate.get("trusted") is False else ""
    return " | ".join(shown)


def _limits(
    run: Run, described: Mapping[str, Any], evaluation: Mapping[str, Any] | None
) -> list[str]:
    options, shape = described["config"], described["shape"]
    limits = [
        "The model is one of data like those that it was trained on; the encoder gives an answer"
        " for any other numbers too, without a warning.",
        "`scale` is the standard deviation of each latent by the guide, which may differ from that"
        " of the exact posterior: see the gaps.",
    ]
    if run.training_beta != 1:
        limits.append(
            f"It was trained at β = {run.training_beta:g}: the guide is fitted to that objective,"
            " and not to the exact posterior."
        )
    if shape["has_size_factor"]:
        limits.append("All densities are given the size factors, of which the model has no law.")
    if shape["num_covariates"]:
        limits.append("All densities are given the covariates; others than those are not known.")
    if shape["missing"]:
        limits.append(
            "An entry that is missing is left out, which is right where its value has no part in"
            " its being missing."
        )
    if options["standardize"]:
        limits.append(
            "x and every output are in the data's own units; the networks see features of mean 0"
            " and standard deviation 1."
        )
    if options["posterior"] == "full-rank" or options["posterior"] == "low-rank":
        limits.append("The files give no correlations of the latents, which the guide has.")
    if options["posterior"] in ("flow", "mixture"):
        limits.append(
            f"The guide is a {options['posterior']}: `mean` and `scale` are the moments of a law"
            " that is no normal one."
        )
    if options["likelihood"] == "autoregressive-bernoulli":
        limits.append("`logits` are those before the share of the earlier pixels is added.")
        limits.append(
            "`mean` gives each pixel given the means of those before it, not the exact mean."
            if "mean" in described["decoder"]["outputs"]
            else "The decoder gives no mean, which would take a pass for each of its pixels."
        )
    if options["likelihood"] in COUNTS:
        limits.append("x are whole numbers, raw counts: the encoder takes their logarithms itself.")
    if evaluation is None:
        limits.append("Nothing is known of the quality of this model: it was not evaluated.")
    return limits
