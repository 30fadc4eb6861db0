"""What the tables of the study of trust say: pooled coverage, its worst settings, and a figure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from matplotlib.figure import Figure
from scipy.stats import beta

Row = Mapping[str, str]
Tables = Mapping[str, list[dict[str, str]]]
# The share of trusted numbers whose interval must hold the truth, and from how many trusted on a
# setting is judged.
AIM, JUDGED = 0.93, 200
BLUE, ORANGE, GREY = "#0072B2", "#E69F00", "#A8A8A8"


def _latents(count: str) -> str:
    return "1 latent" if count == "1" else f"{count} latents"


POOLS: dict[str, Callable[[Row], tuple[str, str]]] = {
    "guides": lambda row: (
        f"evidence, {row['estimator']}, {row['average']}",
        f"{_latents(row['latents'])}, {row['num_samples']} samples",
    ),
    "annealing": lambda row: (
        f"annealed from {'the prior' if row['start'] == 'prior' else 'a guide'}",
        f"{_latents(row['dimensions'])}, {row['temperatures']} temperatures, {row['chains']} "
        f"chains",
    ),
    "bounds": lambda row: (
        f"ELBO, {row['model']} model",
        f"{row['num_samples']} samples, {row['num_data']} "
        f"{'datum' if row['num_data'] == '1' else 'data'}",
    ),
}


def interval(successes: int, trials: int, level: float) -> tuple[float, float]:
    """Return the exact binomial interval of a share (Clopper and Pearson 1934)."""
    if not trials:
        return 0.0, 1.0
    tail = (1 - level) / 2
    low = beta.ppf(tail, successes, trials - successes + 1) if successes else 0.0
    high = beta.ppf(1 - tail, successes + 1, trials - successes) if successes < trials else 1.0
    return float(low), float(high)


def fails(row: Row) -> bool:
    """Whether a setting is sure to cover less often than it should.

    Its 99.9% upper limit lies below 93%.
    """
    trusted, covered = int(row["trusted"]), int(row["covered"])
    return trusted >= JUDGED and interval(covered, trusted, 0.998)[1] < AIM


def pooled(part: str, rows: Iterable[Row]) -> list[dict[str, Any]]:
    """Return one line for each estimator and size, over all settings of its guides."""
    groups: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in rows:
        groups[POOLS[part](row)].append(row)
    lines = []
    for (estimator, setting), members in groups.items():
        count, trusted, covered = (
            sum(int(row[name]) for row in members) for name in ("repetitions", "trusted", "covered")
        )
        shares = [
            int(row["covered"]) / int(row["trusted"])
            for row in members
            if int(row["trusted"]) >= JUDGED
        ]
        lines.append(
            {
                "estimator": estimator,
                "setting": setting,
                "repetitions": count,
                "trusted": trusted,
                "covered": covered,
                "share_trusted": f"{trusted / count:.3f}",
                "coverage_of_trusted": f"{covered / trusted:.3f}" if trusted else "",
                "lowest_judged": f"{min(shares):.3f}" if shares else "",
                "failing_settings": sum(map(fails, members)),
            }
        )
    return lines


def summary(tables: Tables) -> list[dict[str, Any]]:
    """Return the pooled lines of all parts."""
    return [line for part in POOLS for line in pooled(part, tables[part])]


def reading(tables: Tables) -> str:
    """Say what the tables show."""
    said = []
    for part in POOLS:
        lines = pooled(part, tables[part])
        if not lines:
            continue
        judged = [line for line in lines if line["trusted"] >= JUDGED]
        below = [line for line in judged if line["covered"] < AIM * line["trusted"]]
        failing = sum(line["failing_settings"] for line in lines)
        trusted, covered = (sum(line[name] for line in lines) for name in ("trusted", "covered"))
        said.append(
            f"{part}: {trusted} of {sum(line['repetitions'] for line in lines)} called trusted, of "
            f"which the 95%"
            f" interval holds the truth in {100 * covered / max(trusted, 1):.1f}%; {len(below)} of "
            f"{len(judged)} pools of {JUDGED} or more trusted"
            f" below {AIM:.0%}, {failing} settings sure to be below"
        )
        said += [
            f"  below: {line['estimator']}, {line['setting']}: {line['coverage_of_trusted']}"
            for line in below
        ]
    said += _sound(tables["guides"])
    for part in ("gaps", "inversions"):
        said += _modes(part, tables[part])
    return "\n".join(said) + "\n"


def _sound(rows: list[dict[str, str]]) -> list[str]:
    """Say how often good guides are trusted, which a rule that trusts nothing would not."""
    good = [
        row
        for row in rows
        if (row["estimator"], row["average"], row["posterior"]) == ("default", "plain", "normal")
        and row["num_samples"] == "5000"
        and int(row["latents"]) <= 10
        and float(row["shift"]) == 0
        and 0.8 <= float(row["ratio"]) <= 1.25
    ]
    shares = [int(row["trusted"]) / int(row["repetitions"]) for row in good]
    return (
        [
            f"good guides (ratio 0.8 to 1.25, 5000 samples, up to 10 latents): {min(shares):.1%} "
            f"trusted at least"
        ]
        if shares
        else []
    )


def _has_two(row: Row) -> bool:
    """Whether a posterior has two modes.

    Gaps have the weight of the first in their table, inversions a count.
    """
    return row["modes"] == "2" if "modes" in row else float(row["weight"]) < 1


def _modes(part: str, rows: list[dict[str, str]]) -> list[str]:
    said = []
    for method in dict.fromkeys(row.get("method", "") for row in rows):
        mine = [row for row in rows if row.get("method", "") == method]
        two, one = ([row for row in mine if _has_two(row) == several] for several in (True, False))
        right = sum("True" in (row["found"], row["flagged"]) for row in two)
        alarms = sum(row["flagged"] == "True" for row in one)
        name = f"{part}{f' ({method})' if method else ''}"
        said.append(
            f"{name}: {right} of {len(two)} posteriors of two modes found or flagged; {alarms} of "
            f"{len(one)} of one"
            " mode flagged"
        )
    return said


def figure_of(tables: Tables) -> Figure:
    """Draw how much is called trusted, and how often that is right."""
    lines = [
        line
        for line in summary(tables)
        if "," not in line["estimator"][9:] or "plain" in line["estimator"]
    ]
    lines = [
        line
        for line in lines
        if line["estimator"].startswith(("evidence, default", "annealed", "ELBO"))
    ]
    figure = Figure((11, 1.6 + 0.24 * len(lines)), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for place, line in enumerate(lines):
        left.barh(place, 1, color="#E9E9E9")
        left.barh(place, line["trusted"] / line["repetitions"], color=BLUE)
        if line["trusted"] >= 20:
            share = line["covered"] / line["trusted"]
            low, high = interval(line["covered"], line["trusted"], 0.95)
            right.errorbar(
                share,
                place,
                xerr=[[share - low], [high - share]],
                fmt="o",
                color=BLUE,
                markersize=5,
            )
        else:
            right.text(
                0.852, place, "hardly ever trusted", va="center", fontsize=8, color="#666666"
            )
    right.axvspan(0.85, AIM, color=ORANGE, alpha=0.15)
    right.axvline(0.95, color="#222222", linewidth=1)
    right.set_xlim(0.85, 1.0)
    names = [f"{line['estimator'].replace(', plain', '')}: {line['setting']}" for line in lines]
    left.set_yticks(range(len(lines)), names, fontsize=8)
    left.set_ylim(len(lines) - 0.4, -0.6)
    left.set_xlim(0, 1)
    left.set_title("called trusted (share of all)", loc="left", fontsize=10)
    right.set_title("of these, truth in the 95% interval", loc="left", fontsize=10)
    figure.suptitle(
        "Is a number right when it calls itself trusted?", x=0.01, ha="left", fontweight="bold"
    )
    return figure
