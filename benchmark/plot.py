"""Draw evaluation curves over both phases, and print what happened at and after the switch.

    python benchmark/plot.py runs/hopper-0 runs/hopper-1 --out curve.png --csv table.csv
    python benchmark/plot.py benchmark/results/iql.csv --out docs/iql.png

Each argument is a run's folder, finished or interrupted, or a CSV made by benchmark/sweep.py. Runs of the same script,
tag and data set are one curve: the mean over the seeds that have been evaluated at a step, in a band from the lowest to
the highest; one panel per data set. Scores where the data have reference returns, else returns. Drawn is the policy
that a user would deploy ("actor"); `--policy learner` draws the learner alone after the switch, where a script has both.

The table uses the definitions of summary.json: worst drop, the largest fall of the score below the score at the switch;
regret, the mean of 1 - score / 100, clipped to [0, 1], over the evaluations after the switch.
"""

import csv
import math
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402
import tyro  # noqa: E402
from sweep import COLUMNS, read_run, read_table  # noqa: E402

FIGURES = ["offline", "final", "worst drop", "regret"]


@dataclass
class Args:
    runs: tyro.conf.Positional[tuple[Path, ...]]
    """run folders, or CSV files made by benchmark/sweep.py"""
    out: Path
    """picture to write; the ending chooses the format"""
    policy: Literal["actor", "learner"] = "actor"
    """whose evaluations after the switch"""
    csv: Path | None = None
    """table to write: the figures of each run"""


def stop(message: str) -> None:
    print(f"plot.py: {message}", file=sys.stderr)
    raise SystemExit(2)


def read(path: Path, policy: str) -> list[dict[str, str]]:
    """Evaluations of a run folder or of a sweep's CSV, one row per step."""
    try:
        rows = read_run(path) if path.is_dir() else read_table(path)
        rows = [
            {name: row[name] for name in COLUMNS}
            for row in rows
            if row["policy"] == policy or int(row["step"]) <= 0
        ]
    except (OSError, KeyError, ValueError) as error:
        stop(
            f"{path} is neither a run's folder nor a CSV of benchmark/sweep.py: {type(error).__name__}: {error}"
        )
    if not rows:
        stop(f"{path} does not exist, or holds no evaluation yet")
    if path.is_dir() and not (path / "summary.json").exists():
        print(
            f"note: {path} is not finished, its last evaluation is that of step {rows[-1]['step']}"
        )
    return rows


def figures(curve: dict[int, float], scored: bool) -> list[float]:
    """FIGURES of one run, from {step: score}; NaN where there is no such evaluation or, for the last two, no score."""
    online = [value for step, value in curve.items() if step > 0]
    first, last = curve.get(0, math.nan), curve[max(curve)] if online else math.nan
    if not (online and scored):
        return [first, last, math.nan, math.nan]
    regret = statistics.fmean(min(1.0, max(0.0, 1 - value / 100)) for value in online)
    return [first, last, max(0.0, first - min(online)), regret]


def draw(
    groups: dict[tuple, dict[str, dict[int, float]]], units: dict[str, str], out: Path
) -> None:
    """One panel per data set, one curve per group {seed: {step: value}}."""

    def tick(x, _):
        return "switch" if x == 0 else f"{abs(x) / 1000:g}k" if abs(x) >= 1000 else f"{abs(x):g}"

    datasets = list(units)
    fig, axes = plt.subplots(
        1, len(datasets), figsize=(5.2 * len(datasets), 3.8), squeeze=False, layout="constrained"
    )
    for ax, dataset in zip(axes[0], datasets):
        for (script, tag, where), seeds in groups.items():
            if where != dataset:
                continue
            steps = sorted({step for curve in seeds.values() for step in curve})
            values = [[curve[step] for curve in seeds.values() if step in curve] for step in steps]
            label = (
                f"{Path(script).stem} {tag}".strip()
                + f", {len(seeds)} seed{'s' * (len(seeds) > 1)}"
            )
            (line,) = ax.plot(steps, [statistics.fmean(v) for v in values], lw=1.8, label=label)
            ax.fill_between(
                steps,
                [min(v) for v in values],
                [max(v) for v in values],
                color=line.get_color(),
                alpha=0.2,
                lw=0,
            )
        ax.axvline(0, color="0.4", lw=1, ls="--")
        ax.set(title=dataset, xlabel="gradient steps | environment steps", ylabel=units[dataset])
        ax.xaxis.set_major_formatter(tick)
        ax.grid(alpha=0.25)
        ax.legend(frameon=False)
    out.parent.mkdir(parents=True, exist_ok=True)
    try:
        fig.savefig(out, dpi=130)
    except ValueError as error:
        stop(f"cannot write {out}: {error}")


def main(args: Args) -> None:
    if not args.runs:
        stop("name at least one run folder or CSV")
    rows = [row for path in args.runs for row in read(path, args.policy)]
    units = {}  # data set -> "score" or "return", by first appearance
    for row in rows:
        units[row["dataset"]] = (
            "score" if row["score"] and units.get(row["dataset"]) != "return" else "return"
        )
    groups = {}  # (script, tag, data set) -> seed -> step -> value
    for row in rows:
        curves = groups.setdefault((row["script"], row["tag"], row["dataset"]), {})
        curve = curves.setdefault(row["seed"], {})
        if int(row["step"]) in curve:
            stop(
                "two runs of {script} on {dataset} have seed {seed}: give variants a --tag in sweep.py".format(
                    **row
                )
            )
        curve[int(row["step"])] = float(row[units[row["dataset"]]])
    draw(groups, units, args.out)

    table = [
        [*group, seed, units[group[2]], *figures(curve, units[group[2]] == "score")]
        for group, curves in groups.items()
        for seed, curve in curves.items()
    ]
    print(f"| script | data set | seeds | {' | '.join(FIGURES)} |\n|{'---|' * (3 + len(FIGURES))}")
    for group in groups:
        lines = [line for line in table if tuple(line[:3]) == group]
        cells = [f"{Path(group[0]).stem} {group[1]}".strip(), f"{group[2]} ({units[group[2]]})"]
        cells.append(" ".join(line[3] for line in lines))
        for column, name in enumerate(FIGURES, start=5):
            digits, known = (
                3 if name == "regret" else 1,
                [line[column] for line in lines if not math.isnan(line[column])],
            )
            each = " ".join(
                "-" if math.isnan(line[column]) else f"{line[column]:.{digits}f}" for line in lines
            )
            cells.append(f"{statistics.fmean(known):.{digits}f} ({each})" if known else "-")
        print(f"| {' | '.join(cells)} |")
    if args.csv:
        args.csv.parent.mkdir(parents=True, exist_ok=True)
        with open(args.csv, "w", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(
                [
                    "script",
                    "tag",
                    "dataset",
                    "seed",
                    "unit",
                    *(name.replace(" ", "_") for name in FIGURES),
                ]
            )
            writer.writerows(
                [*line[:5], *("" if math.isnan(x) else f"{x:.6g}" for x in line[5:])]
                for line in table
            )


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
