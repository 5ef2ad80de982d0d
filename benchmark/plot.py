"""Draw evaluation curves over both phases, and print what happened at and after the switch.

    python benchmark/plot.py runs/hopper-0 runs/hopper-1 --out curve.png --csv table.csv
    python benchmark/plot.py benchmark/results/iql.csv --out docs/iql.png
    python benchmark/plot.py benchmark/results/o3f.csv --out o3f.svg --base "o3f noise"

Each argument is a run's folder, finished or interrupted, or a CSV made by benchmark/sweep.py. Runs
of the same script, tag, data set and arguments (but for seed, folder and device) are one curve: its
seeds thin, their mean bold, and a band, the 95 % t interval of the mean, from five seeds on; one
panel per data set. A curve's name is the script, with (CQL) where that is what it ran, the tag, and
the arguments in which it differs from others of that name. Scores where the data have reference
returns, else returns. Drawn is the policy that a user would deploy ("actor"); `--policy learner`
draws the learner alone after the switch, where a script has both.

--base NAME adds a second row: the mean online score of each other curve minus that of NAME, paired
by seed, with a dot per seed and the 95 % t interval. With three data sets or more, a
last panel has rliable's interquartile mean of the mean online score over all of them, of the curves
that have every data set.

The table: worst drop, the largest fall of the score below the score at the switch; regret, the mean
of 1 - score / 100, clipped to [0, 1], over the evaluations after the switch. Of a single run, a
sentence tells what happened instead.
"""

import contextlib
import csv
import math
import os
import re
import signal
import statistics
import sys
import warnings
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal


def interrupted(number: int, _) -> None:
    """Signal handler: one line, whatever goes on."""
    os.write(2, f"{Path(__file__).name}: interrupted\n".encode())
    os._exit(128 + number)


if __name__ == "__main__":  # the imports below take seconds
    signal.signal(signal.SIGINT, interrupted)
    signal.signal(signal.SIGTERM, interrupted)

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import scipy.stats
import tyro
from matplotlib.backend_bases import FigureCanvasBase
from sweep import RUN, finished, read_flags, read_run, read_table, replacing

plt.style.use("petroff10")  # ten colours that colour-blind readers can tell apart
plt.rcParams["text.parse_math"] = False  # a dollar in a name is a dollar
plt.rcParams["svg.hashsalt"] = "o2o"  # the same curves are the same file
FIGURES = ["offline", "final", "worst drop", "regret"]
CURVE = ["script", "tag", "dataset", "arguments"]  # runs that share these are one curve


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
    base: str | None = None
    """name of the curve that the others are compared with"""


def stop(message: str) -> None:
    """End with one line on stderr."""
    print(f"plot.py: {' '.join(message.split())}", file=sys.stderr)
    raise SystemExit(2)


def check_row(row: dict[str, str]) -> None:
    """ValueError unless the names of a row can be printed and its numbers drawn."""
    for name in CURVE:
        if not row[name].isprintable() or len(row[name]) > 10_000:
            raise ValueError(f"{name} {row[name][:50]!r} cannot be printed")
    for name in ("seed", "step"):
        int(row[name])
    for name in ("step", "return", "score"):
        missing = name == "score" and not row[name]
        if not missing and not abs(float(row[name])) < 1e15:
            raise ValueError(f"{name} {row[name][:50]} is not finite, or too large")


def read(path: Path, policy: str) -> list[dict[str, str]]:
    """Evaluations of a run folder or of a sweep's CSV, one row per step."""
    try:
        rows = read_run(path) if path.is_dir() else read_table(path)
        arguments = {}  # of each run: they stand in its first row, or, in older CSVs, nowhere
        for row in rows:
            run = tuple(row[name] for name in RUN)
            arguments[run] = row.get("arguments") or arguments.get(run, "")
        for row in rows:
            row["arguments"] = arguments[tuple(row[name] for name in RUN)]
            check_row(row)
        rows = [row for row in rows if row["policy"] == policy or int(row["step"]) <= 0]
    except Exception as error:  # a damaged file fails in many ways
        why = f"{type(error).__name__}: {error}"
        stop(f"{path} is neither a run's folder nor a CSV of benchmark/sweep.py: {why}")
    if not rows:
        stop(f"{path} does not exist, or holds no evaluation yet")
    if path.is_dir() and not finished(path):
        step = rows[-1]["step"]
        print(f"note: {path} is not finished, its last evaluation is that of step {step}")
    return rows


def name_curves(curves: list[tuple]) -> dict[tuple, str]:
    """A name for each curve: script, tag, and the flags not shared by all of that name."""
    families = {}  # (script and tag, data set) -> curve -> flags
    for curve in curves:
        script, tag, dataset, arguments = curve
        flags = re.split(" (?=--)", arguments)
        name = Path(script).stem
        if "--no-calibrate" in flags:
            name += " (CQL)"
        families.setdefault((f"{name} {tag}".strip(), dataset), {})[curve] = flags
    names = {}
    for (name, _), members in families.items():
        known = [set(flags) for flags in members.values() if flags != [""]]
        for curve, flags in members.items():
            differing = [flag for flag in flags if not all(flag in other for other in known)]
            if known and flags == [""]:
                differing = ["(arguments unknown)"]
            names[curve] = " ".join([name, *differing]).strip()
    return names


def figures(curve: dict[int, float], scored: bool) -> list[float]:
    """FIGURES of one run, from {step: score}; NaN where it has no such evaluation, or no score."""
    online = [value for step, value in curve.items() if step > 0]
    first, last = curve.get(0, math.nan), math.nan
    if online:
        last = curve[max(curve)]
    if not (online and scored):
        return [first, last, math.nan, math.nan]
    regret = statistics.fmean(min(1.0, max(0.0, 1 - value / 100)) for value in online)
    return [first, last, max(0.0, first - min(online)), regret]


def tick(x: float, _) -> str:
    """What stands below a step."""
    if abs(x) >= 1000:
        return f"{abs(x) / 1000:g}k"
    return f"{abs(x):g}" if x else "switch"


def interval(values: list[float]) -> float:
    """Half the width of the 95 % t interval of a mean; NaN for fewer than two values."""
    if len(values) < 2:
        return math.nan
    error = statistics.stdev(values) / len(values) ** 0.5
    return float(scipy.stats.t.ppf(0.975, len(values) - 1)) * error


def mean_online(values: dict[int, float]) -> float:
    """Mean over all evaluations after the switch of one run {step: score}."""
    online = [value for step, value in values.items() if step > 0]
    return statistics.fmean(online) if online else math.nan


def paired(seeds: dict[int, float], base: dict[int, float]) -> dict[int, float]:
    """Differences of two curves' figures {seed: figure}, for the seeds that both have."""
    return {seed: seeds[seed] - base[seed] for seed in seeds if seed in base}


def colors_of(names) -> dict[str, str]:
    """A colour for each curve, the same in all panels."""
    return {name: f"C{number % 10}" for number, name in enumerate(names)}


def draw_curves(ax: plt.Axes, curves: dict[str, dict], colors: dict[str, str]) -> None:
    """One panel: curves {name: {seed: {step: value}}}."""
    for name, seeds in curves.items():
        steps = sorted({step for values in seeds.values() for step in values})
        values = [[run[step] for run in seeds.values() if step in run] for step in steps]
        means = np.array([statistics.fmean(group) for group in values])
        color = colors[name]
        plural = "s" if len(seeds) > 1 else ""
        ax.plot(steps, means, color=color, lw=2.2, label=f"{name}, {len(seeds)} seed{plural}")
        if len(seeds) > 1:
            for run in seeds.values():
                ax.plot(list(run), list(run.values()), color=color, lw=0.6, alpha=0.45)
        if len(seeds) >= 5:  # of fewer, the interval says nothing
            width = np.nan_to_num([interval(group) for group in values])
            ax.fill_between(steps, means - width, means + width, color=color, alpha=0.2, lw=0)
    ax.axvline(0, color="0.4", lw=1, ls="--")
    ax.xaxis.set_major_formatter(tick)
    ax.grid(alpha=0.25)
    ax.legend(frameon=False)


def draw_means(ax: plt.Axes, curves: dict[str, dict], colors: dict[str, str]) -> None:
    """One panel of many curves {name: {seed: {step: value}}}: their means alone."""
    for name, seeds in curves.items():
        steps = sorted(set.intersection(*(set(values) for values in seeds.values())))
        means = [statistics.fmean(values[step] for values in seeds.values()) for step in steps]
        ax.plot(steps, means, color=colors[name], lw=1.8, label=name)
    ax.axvline(0, color="0.4", lw=1, ls="--")
    ax.xaxis.set_major_formatter(tick)
    ax.grid(alpha=0.25)
    ax.legend(frameon=False, fontsize="small", ncols=2)


def draw_differences(ax: plt.Axes, differences: dict[str, dict[int, float]], colors: dict) -> None:
    """One panel: a row per comparison {name: {seed: difference}}, a dot per seed."""
    for row, (name, values) in enumerate(differences.items()):
        numbers = list(values.values())
        ax.plot(numbers, [row] * len(numbers), "o", color=colors[name], ms=5, alpha=0.5)
        if numbers:
            mean, width = statistics.fmean(numbers), interval(numbers)
            ax.errorbar(mean, row + 0.2, xerr=width, fmt="D", color=colors[name], capsize=4)
    ax.axvline(0, color="0.4", lw=1, ls="--")
    ax.set_yticks(range(len(differences)), list(differences))
    ax.set_ylim(len(differences) - 0.5, -0.5)
    ax.grid(alpha=0.25, axis="x")


def bootstrap(scores: dict, statistic) -> tuple[dict, dict]:
    """rliable's estimate of a statistic for each name, and its interval (2, 1)."""
    from rliable import library  # takes seconds

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # rliable's way to seed the bootstrap is old
        return library.get_interval_estimates(
            scores,
            lambda *x: np.array([statistic(*x)]),
            reps=2000,
            random_state=np.random.RandomState(0),
        )


def aggregate(scores: dict[str, np.ndarray]) -> tuple[dict, dict]:
    """rliable's interquartile mean over runs and tasks {name: (runs, tasks)}, and its interval."""
    from rliable import metrics

    return bootstrap(scores, metrics.aggregate_iqm)


def improvement(scores: dict[str, np.ndarray], base: str) -> tuple[dict, dict]:
    """rliable's probability that a run is better than one of `base`, a mean over tasks."""
    from rliable import metrics

    pairs = {name: (x, scores[base]) for name, x in scores.items() if name != base}
    return bootstrap(pairs, metrics.probability_of_improvement)


def by_task(curves: dict, names: dict[tuple, str]) -> dict[str, np.ndarray]:
    """Mean online scores {name: (seeds, data sets)} of the names that have every data set."""
    datasets = list(dict.fromkeys(curve[2] for curve in curves))
    found = {}
    for curve, seeds in curves.items():
        column = {seed: mean_online(values) for seed, values in seeds.items()}
        found.setdefault(names[curve], {})[curve[2]] = column
    complete = {}
    for name, columns in found.items():
        if len(columns) == len(datasets):
            common = sorted(set.intersection(*(set(column) for column in columns.values())))
            rows = [[columns[dataset][seed] for dataset in datasets] for seed in common]
            if rows and np.isfinite(rows).all():
                complete[name] = np.array(rows)
    return complete


def draw_estimates(ax: plt.Axes, points: dict, intervals: dict, colors: dict) -> None:
    """One panel: a row per name, its estimate and interval."""
    for row, name in enumerate(points):
        low, high = intervals[name][:, 0]
        span = {"color": colors[name], "lw": 6, "alpha": 0.5, "solid_capstyle": "butt"}
        ax.plot([low, high], [row, row], **span)
        ax.plot(points[name], [row], "k|", ms=14, mew=2)
    ax.set_yticks(range(len(points)), list(points))
    ax.set_ylim(len(points) - 0.5, -0.5)
    ax.grid(alpha=0.25, axis="x")


def draw_aggregate(ax: plt.Axes, scores: dict[str, np.ndarray], colors: dict) -> None:
    """One panel: a row per curve."""
    draw_estimates(ax, *aggregate(scores), colors)
    ax.set(title="all data sets (rliable)", xlabel="interquartile mean of the mean online score")


def draw_improvement(
    ax: plt.Axes, scores: dict[str, np.ndarray], base: str, colors: dict[str, str]
) -> None:
    """One panel: a row per curve but the base."""
    draw_estimates(ax, *improvement(scores, base), colors)
    ax.axvline(0.5, color="0.4", lw=1, ls="--")
    words = f"probability that a run has a better mean online score than one of {base}"
    ax.set(title="all data sets (rliable)", xlabel=words)


def draw(curves: dict, names: dict, units: dict[str, str], base: str | None = None) -> plt.Figure:
    """One panel per data set, one line per curve {seed: {step: value}}."""
    scores = by_task(curves, names) if base is not None and len(units) >= 3 else {}
    rows, columns = 1 + (base is not None), len(units) + bool(scores)
    size = (5.2 * columns, 3.8 + 1.9 * (rows - 1))
    fig, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")
    colors = colors_of(dict.fromkeys(names.values()))
    for column, (dataset, unit) in enumerate(units.items()):
        panel, online = {}, {}
        for curve, seeds in curves.items():
            if curve[2] == dataset:
                panel[names[curve]] = seeds
                online[names[curve]] = {seed: mean_online(run) for seed, run in seeds.items()}
        ax = axes[0, column]
        draw_curves(ax, panel, colors)
        ax.set(title=dataset, xlabel="gradient steps | environment steps", ylabel=unit)
        if base in online:
            others = {name: paired(x, online[base]) for name, x in online.items() if name != base}
            draw_differences(axes[1, column], others, colors)
            axes[1, column].set(xlabel=f"mean online {unit} minus that of {base}")
    if scores:
        draw_aggregate(axes[0, -1], scores, colors)
        axes[1, -1].axis("off")
    return fig


def table_lines(table: dict[tuple, dict[int, list]], names: dict, units: dict) -> list[str]:
    """A table in Markdown, one line per curve: of each figure, the mean and what each seed has."""
    lines = [f"| script | data set | seeds | {' | '.join(FIGURES)} |"]
    lines.append(f"|{'---|' * (3 + len(FIGURES))}")
    for curve, seeds in table.items():
        cells = [names[curve], f"{curve[2]} ({units[curve[2]]})", " ".join(map(str, seeds))]
        for figure, values in zip(FIGURES, zip(*seeds.values())):
            digits = 3 if figure == "regret" else 1
            known = [value for value in values if not math.isnan(value)]
            each = " ".join("-" if math.isnan(x) else f"{x:.{digits}f}" for x in values)
            cells.append(f"{statistics.fmean(known):.{digits}f} ({each})" if known else "-")
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def tell(curves: dict, names: dict, units: dict, picture: Path) -> None:
    """One sentence about a single run: where it began to interact, and where it ended."""
    ((curve, seeds),) = curves.items()
    ((seed, values),) = seeds.items()
    unit, last = units[curve[2]], max(values)
    sentence = f"{names[curve]} on {curve[2]}, seed {seed}: {unit} {values[last]:.1f} at the end"
    if 0 in values and last > 0:
        gain = values[last] - values[0]
        better = "better" if gain >= 0 else "worse"
        sentence = f"{names[curve]} on {curve[2]}, seed {seed}: {unit} {values[0]:.1f} after the"
        sentence += f" offline phase, {values[last]:.1f} after {last:,} steps of interaction,"
        sentence += f" so {abs(gain):.1f} {better}"
    print(f"{sentence}; the curve is {picture}")


def write_table(table: dict, names: dict, units: dict, path: Path) -> None:
    """The figures of each run as a CSV."""
    with open(path, "w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["name", *RUN, "unit", *(name.replace(" ", "_") for name in FIGURES)])
        for curve, seeds in table.items():
            for seed, values in seeds.items():
                cells = ["" if math.isnan(x) else f"{x:.6g}" for x in values]
                writer.writerow([names[curve], *curve[:3], seed, units[curve[2]], *cells])


def save(fig: plt.Figure, path: Path, form: str, source: str = "") -> None:
    """Write a figure; without the date, so that the same curves are the same file.

    A PNG can say what it was made from.
    """
    metadata = {"svg": {"Date": None}, "png": {"Comment": source}}.get(form)
    fig.savefig(path, dpi=130, format=form, metadata=metadata)


def gather(paths: tuple[Path, ...], policy: str) -> tuple[dict, dict[str, str]]:
    """Curves {CURVE: {seed: {step: value}}}, and of each data set whether these are scores."""
    rows = [row for path in paths for row in read(path, policy)]
    units = {row["dataset"]: "score" for row in rows}
    units |= {row["dataset"]: "return" for row in rows if not row["score"]}
    curves = {}  # CURVE -> seed -> step -> value
    for row in rows:
        seeds = curves.setdefault(tuple(row[name] for name in CURVE), {})
        values = seeds.setdefault(int(row["seed"]), {})
        step = int(row["step"])
        if step in values:
            run = "{script} on {dataset} with seed {seed}".format(**row)
            stop(f"two runs of {run} have the same arguments: draw one, or give them --tags")
        values[step] = float(row[units[row["dataset"]]])
    return curves, units


def table_of(curves: dict, units: dict) -> dict[tuple, dict[int, list]]:
    """The figures of each run: {CURVE: {seed: FIGURES}}."""
    table = {}
    for curve, seeds in curves.items():
        scored = units[curve[2]] == "score"
        table[curve] = {seed: figures(values, scored) for seed, values in seeds.items()}
    return table


def main(args: Args) -> None:
    """Read the runs, then write the picture and, if asked for, the table; print what happened."""
    if not args.runs:
        stop("name at least one run folder or CSV")
    if args.out.suffix[1:].lower() not in FigureCanvasBase.get_supported_filetypes():
        stop(f"--out {args.out} must end as pictures do, such as in .png")
    if args.csv and args.csv.resolve() in [path.resolve() for path in (args.out, *args.runs)]:
        stop(f"--csv {args.csv} would overwrite what else you name")
    curves, units = gather(args.runs, args.policy)
    names = name_curves(list(curves))
    if args.base is not None and args.base not in names.values():
        stop(f"--base {args.base!r} is none of the curves {', '.join(map(repr, names.values()))}")
    if args.base is not None and len(units) >= 3 and find_spec("rliable") is None:
        stop("--base over three data sets needs rliable: make benchmark")
    table = table_of(curves, units)
    try:
        with contextlib.ExitStack() as stack:
            picture = stack.enter_context(replacing(args.out))
            if args.csv:
                write_table(table, names, units, stack.enter_context(replacing(args.csv)))
            fig = draw(curves, names, units, args.base)
            save(fig, picture, args.out.suffix[1:])
            plt.close(fig)
    except (OSError, ValueError, RuntimeError) as error:
        stop(f"cannot write {args.out} or {args.csv}: {error}")
    if sum(len(seeds) for seeds in curves.values()) == 1:
        tell(curves, names, units, args.out)
    else:
        print("\n".join(table_lines(table, names, units)))


if __name__ == "__main__":
    try:
        main(read_flags(Args, stop, description=__doc__))
        sys.stdout.flush()
    except OSError as error:
        with contextlib.suppress(OSError):
            sys.stdout.close()  # else Python fails again at its exit
        stop(f"cannot print: {error.strerror}")
