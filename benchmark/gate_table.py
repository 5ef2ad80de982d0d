"""How often is the gate of jsrl_finetune.py wrong? Returns are drawn; no environment runs.

    python benchmark/gate_table.py

`automatic`: the guide's calibration episodes, then episodes at stage 1 whose mean return is the
guide's or 20 % lower, until the first verdict that is not hold (200 at most). False is a retreat
where the mean is the same, and an advance where it is lower. The first decision may be hold.

`curriculum`: after the calibration episodes, 50 evaluations of guide and learner, of 10 episodes
each. Returns have a spread of 0.3 of the guide's mean; that of guide and learner is the same at
every stage. Counted are the runs that reach stage 2 and stage 10.

Writes benchmark/results/gate_table.csv and prints the tables of docs/jsrl_finetune.md.
"""

import csv
import dataclasses
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
import jsrl_finetune as jsrl

EPISODES = 200  # of guide and learner, at most
EVALUATIONS = 50  # the same for `curriculum`
COLUMNS = ["schedule", "returns", "guide", "settings", "learner", "runs"]
COLUMNS += ["first", "end", "undecided", "episodes"]  # automatic: percent, and a mean
COLUMNS += ["stage_2", "stage_10"]  # curriculum: numbers of runs
SURE = {"calibration_episodes": 100, "window": 100, "z_advance": 1.64, "z_retreat": 1.64}
# spread of the returns (None: they are 0 or 1), the guide's mean, the family's settings, flags
CASES = [
    (0.1, 1.0, {}, {}),
    (0.3, 1.0, {}, {}),
    (None, 0.5, jsrl.MAZE, {}),
    (None, 0.9, jsrl.MAZE, {}),
    (None, 0.5, jsrl.MAZE, {"z_advance": 1.0}),
    (None, 0.9, jsrl.MAZE, {"z_advance": 1.0}),
    (None, 0.5, jsrl.MAZE, SURE),
]
# the docs' tables: heading and column
AUTOMATIC = {"returns": "returns", "guide's mean": "guide", "settings": "settings"}
AUTOMATIC |= {"learner": "learner", "false at the first decision, %": "first"}
AUTOMATIC |= {"false in the end, %": "end", "undecided, %": "undecided"}
AUTOMATIC |= {"episodes": "episodes"}
CURRICULUM = {"learner": "learner", "runs": "runs"}
CURRICULUM |= {"reach stage 2": "stage_2", "reach stage 10": "stage_10"}


@dataclasses.dataclass
class Args:
    simulations: int = 3000
    """per case of `automatic`"""
    runs: int = 500
    """per case of `curriculum`"""
    out: Path = ROOT / "benchmark/results/gate_table.csv"
    """table to write"""


def draw(rng: np.random.Generator, mean: float, spread: float | None, number: int) -> list[float]:
    """Returns of so many episodes."""
    if spread is None:
        return (rng.random(number) < mean).astype(float).tolist()
    return rng.normal(mean, spread, number).tolist()


def calibrate(gate: jsrl.Gate, returns: list[float]) -> None:
    """The guide's own episodes, which bring the gate to stage 1."""
    for value in returns:
        gate.after_episode({"r": value, "l": 100}, False, 1.0)


def decide(gate: jsrl.Gate, returns: list[float]) -> tuple[int, int, int]:
    """The first verdict, the first but hold (0: there is none), and after how many episodes."""
    first = None
    for number, value in enumerate(returns, 1):
        logged = gate.after_episode({"r": value, "l": 100}, False, 0.5)
        verdict = logged.get("online/gate_verdict")
        if first is None:
            first = verdict
        if verdict:
            return first, verdict, number
    return first, 0, len(returns)


def describe(learner: float) -> str:
    """The learner's mean as a share of the guide's, in words."""
    if learner == 1:
        return "equal"
    return f"{100 * (1 - learner):.0f} % worse"


def automatic(case: tuple, learner: float, simulations: int) -> dict:
    """One row: how often a learner with that share of the guide's mean meets a false decision."""
    spread, guide, family, flags = case
    returns = "0 or 1" if spread is None else f"spread {spread:g}"
    settings = ["mazes" if family else "locomotion"]
    settings += [f"--{name.replace('_', '-')} {value:g}" for name, value in flags.items()]
    args = dataclasses.replace(jsrl.Args(), **(family | flags))
    rng = np.random.default_rng(0)
    outcomes = []
    for _ in range(simulations):
        gate = jsrl.Gate(args)
        calibrate(gate, draw(rng, guide, spread, args.calibration_episodes))
        outcomes.append(decide(gate, draw(rng, learner * guide, spread, EPISODES)))
    first, end, episodes = np.array(outcomes).T
    false = -1 if learner == 1 else 1
    return {
        "schedule": "automatic",
        "returns": returns,
        "guide": f"{guide:g}",
        "settings": " ".join(settings),
        "learner": describe(learner),
        "runs": str(simulations),
        "first": f"{100 * np.mean(first == false):.1f}",
        "end": f"{100 * np.mean(end == false):.1f}",
        "undecided": f"{100 * np.mean(end == 0):.1f}",
        "episodes": f"{np.mean(episodes):.0f}",
    }


def curriculum(learner: float, runs: int) -> dict:
    """One row: how far a learner with that share of the guide's mean gets."""
    args = dataclasses.replace(jsrl.Args(), schedule="curriculum")
    rng = np.random.default_rng(0)
    stages = []
    for _ in range(runs):
        gate = jsrl.Gate(args)
        calibrate(gate, draw(rng, 100, 30, args.calibration_episodes))
        for _ in range(EVALUATIONS):
            gate.after_evaluation(np.mean(draw(rng, learner * 100, 30, 10)))
        stages.append(gate.stage)
    return {
        "schedule": "curriculum",
        "returns": "spread 0.3",
        "guide": "100",
        "settings": "locomotion",
        "learner": describe(learner),
        "runs": str(runs),
        "stage_2": str(sum(stage >= 2 for stage in stages)),
        "stage_10": str(sum(stage >= 10 for stage in stages)),
    }


def markdown(rows: list[dict], schedule: str) -> str:
    """The table of one schedule as it stands in the docs."""
    columns = AUTOMATIC if schedule == "automatic" else CURRICULUM
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for row in rows:
        if row["schedule"] == schedule:
            lines.append(f"| {' | '.join(row[name] for name in columns.values())} |")
    return "\n".join(lines)


def main(args: Args) -> None:
    rows = []
    for case in CASES:
        rows += [automatic(case, learner, args.simulations) for learner in (1.0, 0.8)]
    rows += [curriculum(learner, args.runs) for learner in (0.1, 0.8, 1.0)]
    with open(args.out, "w", newline="") as file:
        table = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        table.writeheader()
        table.writerows(rows)
    print(f"{markdown(rows, 'automatic')}\n\n{markdown(rows, 'curriculum')}")


if __name__ == "__main__":
    jsrl.SCRIPT = Path(__file__)  # error messages start with its name
    main(jsrl.read_flags(Args, description=__doc__))
