"""Draw evaluation curves over both phases, and print what happened at and after the switch.

    python benchmark/plot.py runs/hopper-0 runs/hopper-1 --out curve.png --csv table.csv
    python benchmark/plot.py benchmark/results/iql.csv --out docs/iql.png

Each argument is a run's folder, finished or interrupted, or a CSV made by benchmark/sweep.py. Runs
of the same script, tag, data set and arguments (but for seed, folder and device) are one curve: the
mean over the seeds that have been evaluated at a step, in a band from the lowest to the highest;
one panel per data set. A curve's name is the script, with (CQL) where that is what it ran, the tag,
and the arguments in which it differs from others of that name. Scores where the data have reference
returns, else returns. Drawn is the policy that a user would deploy ("actor"); `--policy learner`
draws the learner alone after the switch, where a script has both.

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
from dataclasses import dataclass
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
import tyro
from matplotlib.backend_bases import FigureCanvasBase
from sweep import RUN, finished, read_flags, read_run, read_table, replacing

plt.rcParams["text.parse_math"] = False  # a dollar in a name is a dollar
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


def draw(curves: dict, names: dict[tuple, str], units: dict[str, str]) -> plt.Figure:
    """One panel per data set, one line per curve {seed: {step: value}}."""
    size = (5.2 * len(units), 3.8)
    fig, axes = plt.subplots(1, len(units), figsize=size, squeeze=False, layout="constrained")
    panels = dict(zip(units, axes[0]))
    for curve, seeds in curves.items():
        steps = sorted({step for values in seeds.values() for step in values})
        values = [[run[step] for run in seeds.values() if step in run] for step in steps]
        label = f"{names[curve]}, {len(seeds)} seed"
        if len(seeds) > 1:
            label += "s"
        ax = panels[curve[2]]
        (line,) = ax.plot(steps, [statistics.fmean(v) for v in values], lw=1.8, label=label)
        low, high = [min(v) for v in values], [max(v) for v in values]
        ax.fill_between(steps, low, high, color=line.get_color(), alpha=0.2, lw=0)
    for dataset, ax in panels.items():
        ax.axvline(0, color="0.4", lw=1, ls="--")
        ax.set(title=dataset, xlabel="gradient steps | environment steps", ylabel=units[dataset])
        ax.xaxis.set_major_formatter(tick)
        ax.grid(alpha=0.25)
        ax.legend(frameon=False)
    return fig


def print_table(table: dict[tuple, dict[int, list]], names: dict, units: dict) -> None:
    """One line per curve: of each figure, the mean and what each seed has."""
    print(f"| script | data set | seeds | {' | '.join(FIGURES)} |\n|{'---|' * (3 + len(FIGURES))}")
    for curve, seeds in table.items():
        cells = [names[curve], f"{curve[2]} ({units[curve[2]]})", " ".join(map(str, seeds))]
        for figure, values in zip(FIGURES, zip(*seeds.values())):
            digits = 3 if figure == "regret" else 1
            known = [value for value in values if not math.isnan(value)]
            each = " ".join("-" if math.isnan(x) else f"{x:.{digits}f}" for x in values)
            cells.append(f"{statistics.fmean(known):.{digits}f} ({each})" if known else "-")
        print(f"| {' | '.join(cells)} |")


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


def main(args: Args) -> None:
    """Read the runs, then write the picture and, if asked for, the table; print what happened."""
    if not args.runs:
        stop("name at least one run folder or CSV")
    if args.out.suffix[1:].lower() not in FigureCanvasBase.get_supported_filetypes():
        stop(f"--out {args.out} must end as pictures do, such as in .png")
    if args.csv and args.csv.resolve() in [path.resolve() for path in (args.out, *args.runs)]:
        stop(f"--csv {args.csv} would overwrite what else you name")
    rows = [row for path in args.runs for row in read(path, args.policy)]
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
    names = name_curves(list(curves))
    table = {}  # CURVE -> seed -> FIGURES
    for curve, seeds in curves.items():
        scored = units[curve[2]] == "score"
        table[curve] = {seed: figures(values, scored) for seed, values in seeds.items()}
    try:
        with contextlib.ExitStack() as stack:
            picture = stack.enter_context(replacing(args.out))
            if args.csv:
                write_table(table, names, units, stack.enter_context(replacing(args.csv)))
            fig = draw(curves, names, units)
            fig.savefig(picture, dpi=130, format=args.out.suffix[1:])
            plt.close(fig)
    except (OSError, ValueError, RuntimeError) as error:
        stop(f"cannot write {args.out} or {args.csv}: {error}")
    if sum(len(seeds) for seeds in curves.values()) == 1:
        tell(curves, names, units, args.out)
    else:
        print_table(table, names, units)


if __name__ == "__main__":
    try:
        main(read_flags(Args, stop, description=__doc__))
        sys.stdout.flush()
    except OSError as error:
        os.close(1)  # else Python fails again at its exit
        stop(f"cannot print: {error.strerror}")
