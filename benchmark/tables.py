"""Make the tables and figures of README.md and docs/ from the CSVs in benchmark/results/.

    python benchmark/tables.py            # make tables
    python benchmark/tables.py --check    # only names what differs; exit status 1 if anything does

A table stands in a page between two comments, of which the first says what it is made from:

    <!-- table: runs iql.csv -->              figures of all runs in a CSV, as plot.py prints them
    <!-- table: runs pex.csv learner -->      the same, of the learner alone
    <!-- table: last-ten iql_default.csv -->  means of ten evaluations before and after the switch
    <!-- table: lapo-values -->               what lapo_values.py found
    <!-- table: demo -->                      the demo's five seeds
    <!-- table: soak -->                      what `make soak` has tried, by fault
    <!-- table: losses awac_losses.csv q clipped_share -->  what was logged last in both phases
    <!-- table: speed iql.py -->              milliseconds and ratios of a race
    <!-- table: claims -->                    every claim of experiments.py, a row each
    <!-- table: verdicts -->                  the same, shorter: for README
    <!-- table: experiment o3f-maze -->       its precondition, its arms, its paired differences
    <!-- table: looked pex-drop score_at:5500 pex -->  a measure that decides nothing, of some arms;
                                              of two arms, their difference, too
    <!-- table: probe o3f-maze -->            what the probe found in each offline checkpoint
    <!-- table: costs -->                     machine and hours of every experiment
    <!-- table: comparison comparison -->     six methods at one budget
    <!-- table: settings comparison -->       some of their settings
    <!-- end of table -->

An experiment with two seeds or more has a figure, docs/evidence_NAME.png and .svg; the comparison
has docs/comparison.png and .svg. The own runs of a page are drawn into docs/NAME.png.
"""

import dataclasses
import hashlib
import json
import math
import re
import statistics
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import plot
from experiments import EXPERIMENTS, UPDATES_ONLINE, Claim, Experiment, offline_tag
from PIL import Image
from sweep import read_flags, read_table

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmark/results"
# Figures of the scripts' pages: name -> CSV, whose evaluations.
FIGURES = {
    name: (f"{name}.csv", "actor")
    for name in (
        "awac",
        "cal_ql",
        "iql",
        "iql_default",
        "jsrl_finetune",
        "o3f",
        "pex",
        "wsrl",
    )
}
FIGURES["jsrl_finetune_learner"] = ("jsrl_finetune.csv", "learner")
BLOCK = re.compile(r"(<!-- table: (.*?) -->\n).*?(<!-- end of table -->)", re.DOTALL)
CODE = re.compile(r"```.*?```|`[^`]*`", re.DOTALL)
NUMBER = re.compile(r"(?<![\w.])(?<!\w-)\d[\d,_]*(?:\.\d+)?(?!\w)")
RESULTS_AT_TOP = re.compile(r"^- \*\*(?:Here|Cost):\*\*.*?(?=\n- |\n\n)", re.DOTALL | re.MULTILINE)
VERSIONS = re.compile(r"PyTorch [\d.]+|\d{4}-\d\d-\d\d|\]\(.*?\)")  # and where links lead


@dataclass
class Args:
    check: bool = False
    """write nothing; exit status 1 if a page differs from what would be written, or if a figure was
    made from other CSVs"""


@dataclass
class Run:
    """What the CSVs hold of one run."""

    scores: dict[int, float] = dataclasses.field(default_factory=dict)  # of the deployed policy
    learner: dict[int, float] = dataclasses.field(default_factory=dict)  # of the learner alone
    returns: list[float] = dataclasses.field(default_factory=list)  # training episodes, in order
    ended: list[int] = dataclasses.field(default_factory=list)  # their last steps
    evaluated: dict[int, float] = dataclasses.field(default_factory=dict)  # returns, not scores
    updated: list[int] = dataclasses.field(default_factory=list)  # evaluations online after updates
    q: dict[int, float] = dataclasses.field(default_factory=dict)  # means over a batch, as logged
    # Of jsrl_finetune.py's training episodes: last step, length, the guide's share of it, stage.
    guided: list[tuple[int, int, float, float]] = dataclasses.field(default_factory=list)
    # Of pex.py's training episodes: last step, length, the new policy's share of it.
    mixed: list[tuple[int, int, float]] = dataclasses.field(default_factory=list)
    seconds: float = math.nan
    machine: str = ""


# ---- reading

Runs = dict[tuple[str, str], dict[int, Run]]  # (data set, arm) -> seed -> run


def plan_of(name: str) -> str:
    """The experiment that CSVs belong to: "..._first" are runs of it that were made again."""
    return name.removesuffix("_first")


def read(name: str) -> Runs:
    """All runs of an experiment; empty if it has not been run.

    Runs of one arm that were told different things make no table: ValueError.
    """
    plan = plan_of(name)
    runs: Runs = {}
    told: dict[tuple[str, str], str] = {}  # (data set, tag) -> arguments

    def run_of(row: dict[str, str]) -> Run:
        is_offline = plan in EXPERIMENTS and row["tag"] == offline_tag(plan)
        arm = "offline" if is_offline else row["tag"].removeprefix(f"{plan}-")
        return runs.setdefault((row["dataset"], arm), {}).setdefault(int(row["seed"]), Run())

    for row in read_table(RESULTS / f"{name}.csv"):
        run = run_of(row)
        scores = run.learner if row["policy"] == "learner" else run.scores
        scores[int(row["step"])] = float(row["score"])
        if row["policy"] == "actor":
            run.evaluated[int(row["step"])] = float(row["return"])
        if row["machine"]:
            run.machine = row["machine"]
            run.seconds = float(row["seconds"])
            arm = row["dataset"], row["tag"]
            if told.setdefault(arm, row["arguments"]) != row["arguments"]:
                raise ValueError(f"{name}.csv: seeds of {arm} were run with different arguments")
    for row in read_table(RESULTS / f"{name}_losses.csv"):
        if row["q"]:
            run_of(row).q[int(row["step"])] = float(row["q"])
        if int(row["step"]) > 0:
            run_of(row).updated.append(int(row["step"]))
    for row in read_table(RESULTS / f"{name}_training.csv"):
        run_of(row).returns.append(float(row["return"]))
        run_of(row).ended.append(int(row["step"]))
        if row.get("guide_share"):
            episode = int(row["step"]), int(row["length"]), float(row["guide_share"])
            run_of(row).guided.append((*episode, float(row.get("stage") or math.nan)))
        if row.get("new_policy_share"):
            share = float(row["new_policy_share"])
            run_of(row).mixed.append((int(row["step"]), int(row["length"]), share))
    return runs


def at_switch(values: dict[int, float]) -> float:
    """Mean over the last five evaluations of an offline phase: a single one says little."""
    return statistics.fmean([values[step] for step in sorted(values) if step <= 0][-5:])


# ---- what is measured: a number of one run, given all arms of its seed, and "offline". The first
# line of a docstring, without its point, stands in the docs.


def mean_online_score(run: Run, arms: dict[str, Run]) -> float:
    """Mean score over all evaluations online."""
    return plot.mean_online(run.scores)


def mean_while_learning(run: Run, arms: dict[str, Run]) -> float:
    """Mean score over the first seven evaluations that follow an update.

    So arms that begin to learn at different steps are compared after about equally much of it.
    """
    return statistics.fmean(run.scores[step] for step in sorted(run.updated)[:7])


def mean_after_warmup(run: Run, arms: dict[str, Run]) -> float:
    """Mean score over the evaluations after step 5,000."""
    return plot.mean_online({step: score for step, score in run.scores.items() if step > 5000})


def final_learner(run: Run, arms: dict[str, Run]) -> float:
    """Mean score of the learner alone in the last five evaluations."""
    return statistics.fmean([run.learner[step] for step in sorted(run.learner)][-5:])


def learner_share(run: Run, arms: dict[str, Run]) -> float:
    """Share of steps in which the learner acts, in per cent, second half of the online phase."""
    last = max(run.scores)
    late = [(length, share) for step, length, share, _ in run.guided if step > last / 2]
    acted = sum(length * (1 - share) for length, share in late)
    return 100 * acted / sum(length for length, _ in late)


def late_stage(run: Run, arms: dict[str, Run]) -> float:
    """Mean stage of the training episodes (10: the learner alone), second half of the online phase.

    The learner's share of the steps would not tell: the guide's h steps are few in an episode that
    the learner then does not solve.
    """
    last = max(run.scores)
    return statistics.fmean(stage for step, _, _, stage in run.guided if step > last / 2)


def training_success(run: Run, arms: dict[str, Run]) -> float:
    """Share of the training episodes online that reach the goal, in per cent."""
    return 100 * statistics.fmean(float(value > 0) for value in run.returns)


def training_return(run: Run, arms: dict[str, Run]) -> float:
    """Mean return of the training episodes online."""
    return statistics.fmean(run.returns)


def lowest_mean(returns: list[float]) -> float:
    """The lowest mean of ten returns in a row."""
    return min(statistics.fmean(returns[i : i + 10]) for i in range(len(returns) - 9))


def lowest_ten(run: Run, arms: dict[str, Run]) -> float:
    """Lowest mean return of ten training episodes in a row, in per cent of the guide's mean."""
    return 100 * lowest_mean(run.returns) / statistics.fmean(arms["guide"].returns)


def lowest_of_switch(run: Run, arms: dict[str, Run]) -> float:
    """Lowest mean return of ten training episodes in a row, in per cent of that at the switch."""
    return 100 * lowest_mean(run.returns) / at_switch(arms["offline"].evaluated)


def mean_in_warmup(run: Run, arms: dict[str, Run]) -> float:
    """Mean score over the evaluations of the first 5,000 steps, before any update."""
    return plot.mean_online({step: score for step, score in run.scores.items() if step <= 5000})


MEASURES = {
    function.__name__: function
    for function in (
        mean_online_score,
        mean_while_learning,
        mean_after_warmup,
        final_learner,
        learner_share,
        late_stage,
        training_success,
        training_return,
        lowest_ten,
        lowest_of_switch,
        mean_in_warmup,
    )
}


# ---- what was looked at besides, when runs had been seen: it decides nothing. What follows a
# colon in the name is told the function, and stands in the docs for {}.


def final_score(run: Run, arms: dict[str, Run]) -> float:
    """Mean score in the last five evaluations."""
    return statistics.fmean([run.scores[step] for step in sorted(run.scores)][-5:])


def score_at(run: Run, arms: dict[str, Run], step: int) -> float:
    """Score at step {}."""
    return run.scores[step]


def mean_between(run: Run, arms: dict[str, Run], first: int, last: int) -> float:
    """Mean score over the evaluations after step {} and up to step {}."""
    return statistics.fmean(score for step, score in run.scores.items() if first < step <= last)


def mean_every(run: Run, arms: dict[str, Run], interval: int, first: int) -> float:
    """Mean score over the evaluations at every {}th step, after step {}."""
    steps = [step for step in run.scores if step > first and step % interval == 0]
    return statistics.fmean(run.scores[step] for step in steps)


def mean_of_last(run: Run, arms: dict[str, Run], steps: int) -> float:
    """Mean score over the evaluations of the last {} steps."""
    first = max(run.scores) - steps
    return statistics.fmean(score for step, score in run.scores.items() if step > first)


def lowest_after(run: Run, arms: dict[str, Run], first: int) -> float:
    """Lowest score of an evaluation after step {}."""
    return min(score for step, score in run.scores.items() if step > first)


def lowest_score(run: Run, arms: dict[str, Run]) -> float:
    """Lowest score of an evaluation that follows an update."""
    return min(run.scores[step] for step in run.updated)


def first_full(run: Run, arms: dict[str, Run]) -> float:
    """Step of the first evaluation that follows an update and has a score of 100."""
    return min((step for step in run.updated if run.scores[step] == 100), default=math.nan)


def return_between(run: Run, arms: dict[str, Run], first: int, last: int) -> float:
    """Mean return of the training episodes that end after step {} and up to step {}."""
    pairs = zip(run.ended, run.returns, strict=True)
    return statistics.fmean(value for step, value in pairs if first < step <= last)


def success_between(run: Run, arms: dict[str, Run], first: int, last: int) -> float:
    """Share of the training episodes that reach the goal, in per cent, steps {} to {}."""
    pairs = zip(run.ended, run.returns, strict=True)
    return 100 * statistics.fmean(float(value > 0) for step, value in pairs if first < step <= last)


def lowest_of_last(run: Run, arms: dict[str, Run]) -> float:
    """Lowest mean return of ten training episodes, in per cent of the last evaluation offline."""
    return 100 * lowest_mean(run.returns) / arms["offline"].evaluated[0]


def q_at(run: Run, arms: dict[str, Run], step: int) -> float:
    """Mean of Q over the batch that was logged last before step {}."""
    return run.q[step]


def new_policy_share(run: Run, arms: dict[str, Run], first: int, last: int) -> float:
    """Share of the steps that the gate gives to the new policy, in per cent, steps {} to {}.

    Of the training episodes that end there.
    """
    episodes = [(length, share) for step, length, share in run.mixed if first < step <= last]
    steps = sum(length for length, _ in episodes)
    return 100 * sum(length * share for length, share in episodes) / steps


def last_stage(run: Run, arms: dict[str, Run]) -> float:
    """Stage of the last training episode."""
    return run.guided[-1][-1]


def alone_from(run: Run, arms: dict[str, Run]) -> float:
    """Step at which the first training episode of stage 10 ends."""
    return min((step for step, *_, stage in run.guided if stage == 10), default=math.nan)


LOOKED_AT = {
    function.__name__: function
    for function in (
        final_score,
        score_at,
        mean_between,
        mean_every,
        mean_of_last,
        lowest_after,
        lowest_score,
        first_full,
        return_between,
        success_between,
        lowest_of_last,
        q_at,
        new_policy_share,
        last_stage,
        alone_from,
    )
}


# ---- preconditions: a sentence and whether it holds, per data set


def probed(name: str, dataset: str) -> dict[str, dict[int, float]]:
    """What the probe found in offline checkpoints, of planned seeds: {name: {seed: value}}.

    Success is in per cent.
    """
    plan = plan_of(name)
    percent = PRECONDITIONS[plan] is search_helps and "pointmaze" in dataset
    found: dict[str, dict[int, float]] = {}
    for row in read_table(RESULTS / f"{name}_probe.csv"):
        if row["dataset"] == dataset and int(row["seed"]) < EXPERIMENTS[plan].seeds:
            value = float(row["value"]) * (100 if percent else 1)
            found.setdefault(row["name"], {})[int(row["seed"])] = value
    return found


def search_against(found: dict[str, dict[int, float]]) -> list[tuple[str, str]]:
    """Of what inspect_search.py has played: the search, beside noise and the policy's own samples.

    The names hold sigma.
    """
    search, noise = (next(arm for arm in found if arm.startswith(k)) for k in ("o3f", "noise"))
    return [(search, "plain"), (search, noise)]


def search_helps(name: str, dataset: str, runs: Runs) -> tuple[str, bool]:
    """With frozen critics: whole episodes by the search against the policy's own samples."""
    found = probed(name, dataset)
    means = [f"{arm}: {statistics.fmean(by.values()):.0f}" for arm, by in found.items()]
    gains = list(difference(found, search_against(found)[0]).values())
    words = f"frozen critics: {', '.join(means)}; search − plain: {with_interval(gains, '+')}"
    return words, statistics.fmean(gains) - plot.interval(gains) > 0


def there_is_a_drop(name: str, dataset: str, runs: Runs) -> tuple[str, bool]:
    """Learning lowers the first claim's measure of `direct`."""
    experiment = EXPERIMENTS[name]
    numbers = measured(experiment, runs, dataset, experiment.claims[0].measure)
    losses = list(difference(numbers, ("frozen", "direct")).values())
    words = f"frozen − direct {with_interval(losses, '+')}"
    return words, statistics.fmean(losses) - plot.interval(losses) > 0


def critic_is_sane(name: str, dataset: str, runs: Runs) -> tuple[str, bool]:
    """The critic seldom ranks a random action above the policy's, which has something to lose."""
    share = statistics.fmean(probed(name, dataset)["random above the policy"].values())
    words, good = succeed(20)(name, dataset, runs)
    words = f"a random action outranks the policy's in {share:.0%} of the states; {words}"
    return words, good and share < 0.05


def succeed(least: float, most: float = math.inf):
    """Such a score at the switch (in mazes, success in per cent)."""

    def check(name: str, dataset: str, runs: Runs) -> tuple[str, bool]:
        score = statistics.fmean(at_switch(run.scores) for run in runs[dataset, "offline"].values())
        return f"a score of {score:.0f} at the switch", least <= score <= most

    return check


def values_are_settled(name: str, dataset: str, runs: Runs) -> tuple[str, bool]:
    """Room at the switch; Q moves less than 5 % over the last 2,000 updates; the bound acts.

    Means over all seeds, and for Q over two logged batches each: one of them scatters by 4 %.
    CQL has an offline phase of its own, whose Q must have settled, too.
    """
    rows = [row for row in read_table(RESULTS / f"{name}_losses.csv") if row["dataset"] == dataset]
    rows = [row for row in rows if int(row["seed"]) < EXPERIMENTS[name].seeds]
    sentences, holds = [], True
    words, room = succeed(20, 95)(name, dataset, runs)
    for tag, label in ((offline_tag(name), "Cal-QL"), (f"{name}-cql", "CQL")):
        own = [row for row in rows if row["tag"] == tag and int(row["step"]) <= 0]
        q = {int(row["step"]): [] for row in own}
        for row in own:
            q[int(row["step"])].append(float(row["q"]))
        last, before = (statistics.fmean(q[s] + q[s - 1000]) for s in (0, -2000))
        change = abs(last / before - 1)
        sentences.append(f"{label}'s mean Q moved by {change:.1%} over the last 2,000 updates")
        holds = holds and change < 0.05
        if tag == offline_tag(name):
            rate = statistics.fmean(float(row["bound_rate"]) for row in own if row["step"] == "0")
    sentences.append(f"bound rate {rate:.2f}")
    return f"{words}; {'; '.join(sentences)}", room and holds and 0.05 <= rate <= 0.9


def near_the_data(name: str, dataset: str, runs: Runs) -> tuple[str, bool]:
    """The offline score is within 10 of the behaviour's."""
    path = ROOT / "datasets" / dataset / "data/metadata.json"
    behaviour = json.loads(path.read_text())["o2o_behaviour_score"]
    score = statistics.fmean(at_switch(run.scores) for run in runs[dataset, "offline"].values())
    words = f"a score of {score:.0f} at the switch, the data's is {behaviour:.0f}"
    return words, abs(score - behaviour) <= 10


PRECONDITIONS = {
    "o3f-maze": search_helps,
    "o3f-locomotion": search_helps,
    "pex-drop": critic_is_sane,
    "jsrl-gate": there_is_a_drop,
    "jsrl-cold": succeed(20, 80),
    "wsrl-adam": succeed(20),
    "wsrl-maze": succeed(50),
    "cal_ql-maze": values_are_settled,
    "porl-init": succeed(20),
    "porl-hopper": succeed(20),
    "lapo-search": succeed(20, 80),
    "lapo-locomotion": search_helps,
    "td3-collapse": near_the_data,
}
# Which arms a precondition needs; the others read the offline checkpoints alone.
READS_ARMS = {"jsrl-gate": list(EXPERIMENTS["jsrl-gate"].arms), "cal_ql-maze": ["cql"]}


def precondition(
    name: str, experiment: Experiment, dataset: str, runs: Runs
) -> tuple[str, bool | None]:
    """What is known of the precondition, and whether it holds; None: seeds are missing."""
    if name not in PRECONDITIONS:
        return "", True
    planned = set(range(experiment.seeds))
    counted = {}  # the runs of planned seeds
    for key, seeds in runs.items():
        counted[key] = {seed: run for seed, run in seeds.items() if seed in planned}
    ready = set(planned)
    for arm in ["offline", *READS_ARMS.get(name, [])]:
        ready &= counted.get((dataset, arm), {}).keys()
    if experiment.probe:
        ready &= set().union(*probed(name, dataset).values())
    if not ready:
        return "", None
    words, holds = PRECONDITIONS[name](name, dataset, counted)
    return words, holds if ready == planned else None


# ---- tables


def measured(
    experiment: Experiment, runs: Runs, dataset: str, measure: str, arms: tuple[str, ...] = ()
) -> dict[str, dict[int, float]]:
    """A measure of the runs online (of all arms), of the planned seeds: {arm: {seed: number}}."""
    found: dict[str, dict[int, float]] = {}
    for arm in arms or experiment.arms:
        for seed, run in sorted(runs.get((dataset, arm), {}).items()):
            known = [*experiment.arms, "offline"]
            same_seed = {other: runs.get((dataset, other), {}).get(seed) for other in known}
            has_every_arm = run.scores and None not in same_seed.values()
            if has_every_arm and seed < experiment.seeds:
                function, *numbers = measure.split(":")
                value = (MEASURES | LOOKED_AT)[function](run, same_seed, *map(int, numbers))
                found.setdefault(arm, {})[seed] = value
    return found


def words_of(measure: str) -> str:
    """What a measure is, from its docstring."""
    function, *numbers = measure.split(":")
    words = (MEASURES | LOOKED_AT)[function].__doc__.partition("\n")[0].removesuffix(".")
    words = words.format(*(f"{int(number):,}" for number in numbers))
    return words[0].lower() + words[1:]


def name_of(pair: tuple[str, str]) -> str:
    """A difference in words; of a single arm, its name."""
    return " − ".join(filter(None, pair))


def difference(numbers: dict[str, dict[int, float]], pair: tuple[str, str]) -> dict[int, float]:
    """First arm minus second, paired by seed; with no second, the first."""
    first, second = pair
    if not second:
        return numbers.get(first, {})
    return plot.paired(numbers.get(first, {}), numbers.get(second, {}))


def cell(value: float, sign: str = "", like: float = 0.0) -> str:
    """A number with one decimal; with none if it or `like` is 1,000 or more. "-" for nan."""
    if math.isnan(value):
        return "-"
    digits = 0 if max(abs(value), abs(like)) >= 1000 else 1
    return f"{value:{sign},.{digits}f}"


def with_interval(values: list[float], sign: str = "") -> str:
    """Mean and 95 % t interval."""
    if not values or any(math.isnan(value) for value in values):
        return "-"
    mean, width = statistics.fmean(values), plot.interval(values)
    if math.isnan(width):
        return cell(mean, sign)
    low, high = cell(mean - width, sign, like=mean), cell(mean + width, sign, like=mean)
    return f"{cell(mean, sign)} ({low} to {high})"


def table_rows(
    dataset: str, numbers: dict[str, dict[int, float]], pairs: list[tuple[str, str]]
) -> list[str]:
    """A measure's rows: arms, and the differences of pairs, with a column per seed."""
    seeds = " | ".join(f"s{seed}" for seed in next(iter(numbers.values())))
    lines = [f"| {dataset} | mean (95 % interval) | {seeds} |"]
    lines.append(f"|{'---|' * (seeds.count('|') + 3)}")
    for arm, by_seed in numbers.items():
        each = " | ".join(cell(value) for value in by_seed.values())
        lines.append(f"| {arm} | {with_interval(list(by_seed.values()))} | {each} |")
    for pair in pairs:
        values = difference(numbers, pair)
        each = " | ".join(cell(value, "+") for value in values.values())
        interval = with_interval(list(values.values()), "+")
        lines.append(f"| **{name_of(pair)}** | {interval} | {each} |")
    return lines


def effect(experiment: Experiment, claim: Claim, runs: Runs, dataset: str) -> list[float]:
    """The differences that decide a claim, one per seed."""
    numbers = measured(experiment, runs, dataset, claim.measure)
    return list(difference(numbers, claim.pair).values())


def verdict(name: str, experiment: Experiment, claim: Claim, runs: Runs) -> str:
    """What the intervals say, by the rule of docs/evidence.md."""
    needed, done = list(experiment.datasets), 0
    unknown, shown, refuted, testable = [], [], [], []
    for dataset in experiment.datasets:
        values = effect(experiment, claim, runs, dataset)
        _, holds = precondition(name, experiment, dataset, runs)
        if holds is False:  # with or without runs of its arms
            needed.remove(dataset)
            continue
        done += len(values)
        if len(values) < experiment.seeds:
            continue
        if holds is None:
            unknown.append(dataset)
            continue
        if claim.control is not None:
            numbers = measured(experiment, runs, dataset, claim.measure)
            lost = list(difference(numbers, claim.control).values())
            if statistics.fmean(lost) - plot.interval(lost) <= 0:
                continue
        if claim.pair[1] and not any(values):  # the arms are the same, on every seed
            continue
        testable.append(dataset)
        mean, width = statistics.fmean(values), plot.interval(values)
        if mean - width > claim.margin:
            shown.append(dataset)
        if mean + width < claim.margin:
            refuted.append(dataset)
    planned = experiment.seeds * len(needed)
    if done == 0 and needed == experiment.datasets:
        return "not run yet"
    if done < planned:
        return f"open: {done} of {planned} pairs"
    if unknown:
        return f"open: the precondition is not known on {', '.join(unknown)}"
    if not testable:
        return "not testable here"
    if shown and refuted:
        return f"mixed: shown on {', '.join(shown)}, refuted on {', '.join(refuted)}"
    word = "not shown"
    if shown:
        word = "shown" if shown == testable else f"shown on {', '.join(shown)} only"
    if refuted:
        word = "refuted here"
        if refuted != testable:
            word = f"refuted on {', '.join(refuted)} only"
    if testable != experiment.datasets:
        word += f" (testable on {', '.join(testable)} only)"
    return word


def told_verdict(name: str, experiment: Experiment, claim: Claim, runs: Runs) -> str:
    """The verdict, and what of the plan was changed, and when."""
    note = f" ({claim.changed})" if claim.changed else ""
    return verdict(name, experiment, claim, runs) + note


def experiment_table(name: str) -> list[str]:
    """Precondition, arms and differences of one experiment, by each of its measures."""
    experiment, runs = EXPERIMENTS[name], read(name)
    lines = []
    for dataset in experiment.datasets:
        main = experiment.claims[0].measure
        words, holds = precondition(name, experiment, dataset, runs)
        if words:
            word = {True: "holds", False: "does not hold", None: "is open"}[holds]
            lines += [f"`{dataset}`: the precondition {word} ({words}).", ""]
        if not measured(experiment, runs, dataset, main):
            if holds is not False:
                lines += [f"`{dataset}`: no seed has run all arms yet.", ""]
            continue
        for measure in dict.fromkeys(claim.measure for claim in experiment.claims):
            pairs = [claim.pair for claim in experiment.claims if claim.measure == measure]
            arms = list(experiment.arms) if measure == main else [a for p in pairs for a in p if a]
            pairs += experiment.pairs if measure == main else []
            for claim in experiment.claims:
                if claim.control is not None and claim.measure == measure:
                    pairs.append(claim.control)
            numbers = measured(experiment, runs, dataset, measure)
            lines += [f"Measured: {words_of(measure)}.", ""]
            pairs = [pair for pair in pairs if pair[1]]  # else the arm itself: it has a row
            lines += table_rows(dataset, {arm: numbers[arm] for arm in arms}, pairs)
            lines.append("")
    return lines[:-1]


def looked_table(name: str, measure: str, *arms: str) -> list[str]:
    """A measure that was looked at when runs had been seen; of two arms, their difference, too."""
    experiment, runs = EXPERIMENTS[plan_of(name)], read(name)
    lines = [f"Looked at afterwards: {words_of(measure)}.", ""]
    for dataset in experiment.datasets:
        numbers = measured(experiment, runs, dataset, measure, arms)
        if numbers:
            lines += [*table_rows(dataset, numbers, [arms] if len(arms) == 2 else []), ""]
    return lines[:-1]


def probe_table(name: str) -> list[str]:
    """What the probe of search_helps() found with each seed's frozen critics."""
    lines = ["Frozen critics, seed by seed:", ""]
    for dataset in EXPERIMENTS[plan_of(name)].datasets:
        found = probed(name, dataset)
        if found:
            lines += [*table_rows(dataset, found, search_against(found)), ""]
    return lines[:-1]


def effects_of(experiment: Experiment, claim: Claim, runs: Runs) -> str:
    """The difference that decides a claim, per data set."""
    effects = []
    for dataset in experiment.datasets:
        values = effect(experiment, claim, runs, dataset)
        if values:
            family = dataset.partition("/")[2].removesuffix("-v0")
            interval = with_interval(values, "+" if claim.pair[1] else "")
            seeds = f"{len(values)} seed{'s' if len(values) > 1 else ''}"
            effects.append(f"{family}, {seeds}: {interval}")
    return "<br>".join(effects) or "-"


def most_seeds(experiment: Experiment, runs: Runs) -> int:
    """On how many seeds the first claim has been measured, on the data set with the most."""
    claims = experiment.claims[:1]
    seeds = [len(effect(experiment, c, runs, d)) for c in claims for d in experiment.datasets]
    return max(seeds, default=0)


def asked_of(claim: Claim) -> str:
    """What must lie above what, for a claim to be shown."""
    return f"{name_of(claim.pair)} above {claim.margin:.0f}"


def claims_table() -> list[str]:
    """One row per claim."""
    titles = ["claim", "the paper's", "measured", "asked for", "precondition"]
    titles += ["effect (95 % interval)", "verdict", "figure", "command"]
    lines = [f"| {' | '.join(titles)} |", f"|{'---|' * len(titles)}"]
    for name, experiment in EXPERIMENTS.items():
        runs = read(name)
        drawn = most_seeds(experiment, runs) > 1
        for claim in experiment.claims:
            cells = [f"[{claim.text}](#{name})", claim.paper, words_of(claim.measure)]
            cells += [asked_of(claim), experiment.precondition]
            cells.append(effects_of(experiment, claim, runs))
            cells.append(told_verdict(name, experiment, claim, runs))
            cells.append(f"[figure](evidence_{name}.png)" if drawn else "-")
            command = f"`python benchmark/sweep.py {name}`"
            if experiment.full:
                command += f"<br>at the paper's budget: `{experiment.full}`"
            cells.append(command)
            lines.append(f"| {' | '.join(cells)} |")
    return lines


def verdicts_table() -> list[str]:
    """The claims whose runs are complete, for the README."""
    titles = ["claim", "here", "measured", "asked for", "effect (95 % interval)"]
    lines = [f"| {' | '.join(titles)} |", f"|{'---|' * len(titles)}"]
    for name, experiment in EXPERIMENTS.items():
        runs = read(name)
        for claim in experiment.claims:
            word = told_verdict(name, experiment, claim, runs)
            if word != "not run yet" and not word.startswith("open"):
                cells = [f"[{claim.text}](docs/evidence.md#{name})", word, words_of(claim.measure)]
                cells += [asked_of(claim), effects_of(experiment, claim, runs)]
                lines.append(f"| {' | '.join(cells)} |")
    return lines


def compared(command: str, run: Run, first: Run, data: dict) -> dict[str, float]:
    """Scores of a run whose offline phase is that of `first`, by column; NaN where it has none.

    A run without an online phase is read as the others are: its last updates in the place of that.
    """
    scores, before = run.scores, first.scores
    if "--online-steps 0" in command:
        before = scores = {step + UPDATES_ONLINE: score for step, score in run.scores.items()}
    online = [score for step, score in sorted(scores.items()) if step > 0]
    late = [score for step, score in scores.items() if step > 5000]
    low, high = data["ref_min_score"], data["ref_max_score"]
    acting = statistics.fmean(run.returns) if run.returns else math.nan
    return {
        "at the switch": at_switch(before),
        "mean online": statistics.fmean(online),
        "after step 5,000": statistics.fmean(late),
        "at the end": statistics.fmean(online[-3:]),  # a single one says little
        "while acting": 100 * (acting - low) / (high - low),
        "minutes": (run.seconds + (0 if run is first else first.seconds)) / 60,
    }


def comparison(name: str, dataset: str) -> dict[str, list[dict[str, float]]]:
    """The columns of compared() of every seed of every arm that has been run: {arm: [columns]}."""
    experiment, runs = EXPERIMENTS[name], read(name)
    data = json.loads((ROOT / "datasets" / dataset / "data/metadata.json").read_text())
    found: dict[str, list[dict[str, float]]] = {arm: [] for arm in experiment.arms}
    for arm, command in experiment.arms.items():
        for seed, run in sorted(runs.get((dataset, arm), {}).items()):
            if run.scores and seed < experiment.seeds:
                own = "--offline-steps" in command
                first = run if own else runs[dataset, "offline"][seed]
                found[arm].append(compared(command, run, first, data))
    return found


def complete(name: str, dataset: str) -> bool:
    """Have all arms of a comparison all their seeds on a data set?"""
    seeds = [len(runs) for runs in comparison(name, dataset).values()]
    return min(seeds) == EXPERIMENTS[name].seeds


def comparison_table(name: str) -> list[str]:
    """Per data set and script: scores with intervals, and the time of one run.

    The offline phase is included in that time.
    """
    lines = []
    for dataset in EXPERIMENTS[name].datasets:
        data = json.loads((ROOT / "datasets" / dataset / "data/metadata.json").read_text())
        titles = ["at the switch", "mean online", "after step 5,000", "at the end", "while acting"]
        titles.append("minutes")
        lines.append(f"| {dataset} | seeds | {' | '.join(titles)} |")
        lines.append(f"|{'---|' * (2 + len(titles))}")
        for arm, seeds in comparison(name, dataset).items():
            cells = ["not run yet", *["-"] * 5]
            if seeds:
                columns = [[columns[title] for columns in seeds] for title in titles]
                cells = [with_interval(values) for values in columns[:-1]]
                cells.append(f"{statistics.fmean(columns[-1]):.0f}")
            lines.append(f"| {arm} | {len(seeds)} | {' | '.join(cells)} |")
        dashes = " | ".join(["-"] * (len(titles) - 1))
        lines += [f"| *the data* | - | {data['o2o_behaviour_score']:.1f} | {dashes} |", ""]
    return lines[:-1]


SETTINGS = ["hidden", "layer_norm", "num_critics", "critic_subset", "num_actions", "utd_ratio"]
SETTINGS += ["gamma", "tau", "expectile", "beta", "actor_lr_decay", "reward_scale", "reward_bias"]
SETTINGS += ["normalize_returns", "warmup_steps", "offline_ratio", "retain_offline_ratio"]
SETTINGS += ["calibrate", "infinite_horizon", "online_max_backup"]
SETTINGS += ["calibration_episodes", "min_episodes", "stages"]


def settings_table(name: str) -> list[str]:
    """What the arms of an experiment were told, of some settings: a column per arm.

    Where they differ between data sets, a value for each, in the order of the data sets.
    """
    experiment = EXPERIMENTS[name]
    told: dict[str, dict[str, dict[str, str]]] = {}  # arm -> data set -> setting -> value
    for row in read_table(RESULTS / f"{name}.csv"):
        arm = row["tag"].removeprefix(f"{name}-")
        if row["arguments"] and arm in experiment.arms:
            words = re.findall(r"--([a-z-]+)(?: ([^-\s]\S*|-\d\S*))?", row["arguments"])
            told.setdefault(arm, {})[row["dataset"]] = dict(words)
    if not told:
        return ["No run yet."]
    told = {arm: told[arm] for arm in experiment.arms if arm in told}  # their order there
    lines = [f"| setting | {' | '.join(told)} |", f"|{'---|' * (1 + len(told))}"]
    for setting in SETTINGS:
        flag, cells = setting.replace("_", "-"), []
        for by_dataset in told.values():
            values = []
            for dataset in experiment.datasets:
                words = by_dataset.get(dataset, {})
                value = words.get(flag) or ("yes" if flag in words else None)
                values.append(value or ("no" if f"no-{flag}" in words else "-"))
            cells.append(values[0] if len(set(values)) == 1 else ", ".join(values))
        lines.append(f"| `{setting}` | {' | '.join(cells)} |")
    return lines


def costs_table() -> list[str]:
    """What the experiments took; a shared offline phase counts where it was planned first."""
    lines = ["| experiment | runs | hours in all | machine of each run |", f"|{'---|' * 4}"]
    for name, experiment in EXPERIMENTS.items():
        found = []
        lender = read(experiment.shares) if experiment.shares else {}
        for key, seeds in read(name).items():
            counted = lender.get(key, {}) if key[1] == "offline" else {}
            for seed, run in seeds.items():
                same = seed in counted and counted[seed].seconds == run.seconds
                if run.machine and not same:
                    found.append(run)
        if found:
            hours = sum(run.seconds for run in found) / 3600
            machines = ", ".join(sorted({run.machine for run in found}))
            lines.append(f"| {name} | {len(found)} | {hours:.1f} | {machines} |")
    return lines


def runs_table(file: str, policy: str = "actor") -> list[str]:
    """The figures of all runs in a CSV."""
    curves, units = plot.gather((RESULTS / file,), policy)
    names = plot.name_curves(list(curves))
    return plot.table_lines(plot.table_of(curves, units), names, units)


def last_ten_table(file: str) -> list[str]:
    """Means of the last ten evaluations of both phases, a number per seed."""
    curves, _ = plot.gather((RESULTS / file,), "actor")
    names = " ".join(map(str, next(iter(curves.values()))))
    lines = [f"| data set | offline, seeds {names} | online, seeds {names} |", f"|{'---|' * 3}"]
    for curve, seeds in curves.items():
        offline, online = [], []
        for values in seeds.values():
            before = [values[step] for step in sorted(values) if step <= 0]
            after = [values[step] for step in sorted(values) if step > 0]
            offline.append(f"{statistics.fmean(before[-10:]):.1f}")
            online.append(f"{statistics.fmean(after[-10:]):.1f}")
        lines.append(f"| {curve[2]} | {' '.join(offline)} | {' '.join(online)} |")
    return lines


def losses_table(file: str, *columns: str) -> list[str]:
    """What the runs logged last, before the switch and before their end: lowest to highest seed."""
    runs: dict[tuple[str, ...], dict[str, dict[str, dict[str, str]]]] = {}
    for row in read_table(RESULTS / file):  # in the order of their steps: the last one stays
        run = (f"{row['script'].removesuffix('.py')} {row['tag']}".strip(), row["dataset"])
        runs.setdefault(run, {}).setdefault(row["phase"], {})[row["seed"]] = row
    titles = [f"`{column}` at the switch | at the end" for column in columns]
    lines = [f"| script | data set | {' | '.join(titles)} |", f"|{'---|' * (2 + 2 * len(columns))}"]
    for run, phases in runs.items():
        cells = list(run)
        for column in columns:
            for phase in ("offline", "online"):
                rows = phases.get(phase, {}).values()
                values = sorted(float(row[column]) for row in rows if row[column])
                ends = [
                    f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}" for value in values
                ]
                cells.append(" to ".join(dict.fromkeys(ends[:1] + ends[-1:])) or "-")
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def speed_table(*words: str) -> list[str]:
    """Milliseconds of all blocks of a race, and ratios to its first contestant in that block."""
    program = " ".join(words)
    times: dict[str, dict[str, float]] = {}
    for row in read_table(RESULTS / "speed.csv"):
        if row["program"] == program:
            times.setdefault(row["name"], {})[row["block"]] = float(row["ms"])
    first = next(iter(times.values()))
    lines = ["| | ms min | median | max | ratio min | median | max |", f"|{'---|' * 7}"]
    for name, blocks in times.items():
        cells = []
        for values in (blocks.values(), [first[block] / ms for block, ms in blocks.items()]):
            cells += [min(values), statistics.median(values), max(values)]
        lines.append(f"| {name} | {' | '.join(f'{number:.2f}' for number in cells)} |")
    return lines


def lapo_table() -> list[str]:
    """What benchmark/lapo_values.py found, a number per seed; last, by how much V is too high."""
    found: dict[str, dict[str, list[float]]] = {}
    for row in read_table(RESULTS / "lapo_values.csv"):
        values = found.setdefault(row["name"], {}).setdefault(row["variant"], [])
        values.append(float(row["value"]))
    variants = list(next(iter(found.values())))
    excess = found["episodes: V - that return"] = {}
    for variant in variants:
        v, followed = (
            found[f"episodes: {name}"][variant] for name in ("V", "return that followed")
        )
        excess[variant] = [value - after for value, after in zip(v, followed)]
    lines = [f"| | {' | '.join(variants)} |", f"|{'---|' * (1 + len(variants))}"]
    for name, values in found.items():
        digits = 0 if name == "episodes: return in all" else 2
        cells = [" ".join(f"{value:.{digits}f}" for value in values[v]) for v in variants]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def soak_table() -> list[str]:
    """Sums over all scripts."""
    rows = read_table(RESULTS / "soak.csv")
    scripts = len({row["script"] for row in rows})
    lines = [f"| fault | trials, {scripts} scripts | runs lost | bytes different |"]
    lines.append(f"|{'---|' * 4}")
    for fault in dict.fromkeys(row["fault"] for row in rows):
        columns = ("trials", "lost", "bytes_different")
        sums = [sum(int(row[key]) for row in rows if row["fault"] == fault) for key in columns]
        lines.append(f"| {fault} | {' | '.join(map(str, sums))} |")
    return lines


def demo_curves() -> dict[str, dict[int, dict[int, float]]]:
    """The demo's runs, and those that make as many updates on the recordings alone.

    Of these, the updates after the 3,000 of the demo stand where its environment steps do.
    """
    curves, _ = plot.gather((RESULTS / "demo.csv",), "actor")
    (seeds,) = curves.values()
    found = {"with interaction": seeds}
    curves, _ = plot.gather((RESULTS / "demo_control.csv",), "actor")
    for curve, seeds in curves.items():
        found[curve[1].replace("-", " ")] = {
            seed: {step + 12_000: value for step, value in values.items()}
            for seed, values in seeds.items()
        }
    return found


def demo_table() -> list[str]:
    """Success of the demo's seeds: at the switch, soon after it, at the end, and the controls'."""
    demo, *controls = demo_curves().values()
    titles = ["seed", "at the switch", "after 1,000 steps", "after 12,000 steps", "gain"]
    titles += [f"no interaction: {name}" for name in [*demo_curves()][1:]]
    lines = [f"| {' | '.join(titles)} |", f"|{'---|' * len(titles)}"]
    rows = {}
    for seed, scores in demo.items():
        gain = scores[12_000] - scores[0]
        rows[str(seed)] = [scores[0], scores[1000], scores[12_000], gain]
        rows[str(seed)] += [control[seed][12_000] for control in controls]
    rows["mean"] = [statistics.fmean(column) for column in zip(*rows.values())]
    for seed, values in rows.items():
        cells = [f"{value:{'+' if place == 3 else ''}.1f}" for place, value in enumerate(values)]
        lines.append(f"| {seed} | {' | '.join(cells)} |")
    return lines


def draw_demo() -> None:
    """The demo's curve, beside as many updates without interaction."""
    curves = demo_curves()
    fig, ax = plt.subplots(figsize=(7.5, 4.2), layout="constrained")
    plot.draw_curves(ax, curves, plot.colors_of(curves))
    ax.set(xlabel="gradient steps | environment steps, or as many gradient steps", ylabel="score")
    save(fig, "demo", "png")


def table(words: str) -> list[str]:
    """The lines that belong below `<!-- table: words -->`."""
    kind, *rest = words.split()
    return MAKERS[kind](*rest)


MAKERS = {
    "claims": claims_table,
    "comparison": comparison_table,
    "costs": costs_table,
    "demo": demo_table,
    "experiment": experiment_table,
    "lapo-values": lapo_table,
    "last-ten": last_ten_table,
    "looked": looked_table,
    "losses": losses_table,
    "probe": probe_table,
    "runs": runs_table,
    "settings": settings_table,
    "soak": soak_table,
    "speed": speed_table,
    "verdicts": verdicts_table,
}


# ---- running text


def untraced(page: str) -> list[str]:
    """Numbers that stand neither in a table made here nor in a command: of a page's results.

    Results are what follows "## Measured", and the lines "Here" and "Cost" at the top. Of
    evidence.md they are every section that is named after an experiment, with its own tables; there
    the numbers of the experiment's entry are known, too.
    """
    _, _, text = page.partition("\n## Measured\n")
    text += "".join(RESULTS_AT_TOP.findall(page))
    found = unknown_numbers(text, page)
    for section in re.split(r"^## ", page, flags=re.MULTILINE):
        name = section.partition("\n")[0]
        if name in EXPERIMENTS:
            words = unknown_numbers(section, section, entry=str(EXPERIMENTS[name]))
            found += [f"{word} ({name})" for word in words]
    return found


def unknown_numbers(text: str, source: str, entry: str = "") -> list[str]:
    """Numbers of a text that stand in no table and no code of its source, and not in the entry.

    A number of the text may be a rounded one of a table. Counts up to 20 need no source, nor does
    100, of per cent.
    """
    tables = "\n".join(found[0] for found in BLOCK.finditer(source))
    commands = "\n".join(CODE.findall(source))
    known = [abs(number_of(word)) for word in NUMBER.findall(tables)]
    known += [abs(number_of(word)) for word in NUMBER.findall(f"{commands}\n{entry}")]
    found = []
    for word in NUMBER.findall(CODE.sub("", VERSIONS.sub("", BLOCK.sub("", text)))):
        number, digits = abs(number_of(word)), len(word.partition(".")[2])
        small = (number <= 20 or number == 100) and digits == 0
        if not small and all(round(value, digits) != number for value in known):
            found.append(word)
    return found


def number_of(word: str) -> float:
    """The number that is written with thousands' commas, or as Python does."""
    return float(re.sub("[,_]", "", word))


# ---- figures


def sources() -> dict[str, list[str]]:
    """Of every figure of docs/, the CSVs that it is made from."""
    found = {name: [file] for name, (file, _) in FIGURES.items()}
    found["demo"] = ["demo.csv", "demo_control.csv"]
    for name, experiment in EXPERIMENTS.items():
        files = [f"{name}{kind}.csv" for kind in ("", "_losses", "_training")]
        if experiment.claims:
            if most_seeds(experiment, read(name)) > 1:
                found[f"evidence_{name}"] = files
        elif any(complete(name, dataset) for dataset in experiment.datasets):
            found[name] = files
    return found


def check_sum(files: list[str]) -> str:
    """One number for the contents of CSVs."""
    paths = [RESULTS / file for file in files]
    contents = [path.read_bytes() for path in paths if path.exists()]
    return hashlib.sha256(b"".join(contents)).hexdigest()


def stale(name: str, files: list[str]) -> bool:
    """Was a figure made from other CSVs than these, or never?"""
    path = ROOT / f"docs/{name}.png"
    if not path.exists():
        return True
    with Image.open(path) as picture:
        return picture.text.get("Comment") != check_sum(files)


def save(fig: plt.Figure, name: str, *forms: str) -> None:
    """Write a figure of docs/."""
    for form in forms:
        plot.save(fig, ROOT / f"docs/{name}.{form}", form, check_sum(sources()[name]))
    plt.close(fig)


def draw(name: str) -> None:
    """A row per data set that was run: the curves of all arms, and their paired differences."""
    experiment, runs = EXPERIMENTS[name], read(name)
    measure = experiment.claims[0].measure
    found = {
        dataset: measured(experiment, runs, dataset, measure) for dataset in experiment.datasets
    }
    found = {dataset: numbers for dataset, numbers in found.items() if numbers}
    size = (11, 4.6 * len(found))
    fig, axes = plt.subplots(len(found), 2, figsize=size, squeeze=False, layout="constrained")
    for (left, right), (dataset, numbers) in zip(axes, found.items()):
        seeds = next(iter(numbers.values()))
        curves = {"offline": {seed: runs[dataset, "offline"][seed].scores for seed in seeds}}
        of = ""
        for arm, seeds in numbers.items():
            curves[arm] = {seed: runs[dataset, arm][seed].scores for seed in seeds}
            if measure == "final_learner":  # else the guide would be drawn, too
                curves[arm] = {seed: runs[dataset, arm][seed].learner for seed in seeds}
                of = " of the learner alone"
        plot.draw_curves(left, curves, {"offline": "black"} | plot.colors_of(experiment.arms))
        left.set(xlabel="gradient steps | environment steps", ylabel=f"score{of}")
        place = {"loc": "lower center", "bbox_to_anchor": (0.4, 1.0), "ncols": 2}
        left.legend(**place, frameon=False, fontsize="small", title=dataset)
        draw_pairs(right, experiment, runs, dataset)
    save(fig, f"evidence_{name}", "png", "svg")


def draw_pairs(ax: plt.Axes, experiment: Experiment, runs: Runs, dataset: str) -> None:
    """One panel: the differences that claims and experiment ask for, with a claim's margin."""
    claims = [claim for claim in experiment.claims if claim.pair[1]]  # a level is no difference
    main = experiment.claims[0].measure
    wanted = [(claim.pair, claim.measure, claim.margin) for claim in claims]
    wanted += [(pair, main, 0.0) for pair in experiment.pairs]
    measures = list(dict.fromkeys(measure for _, measure, _ in wanted))
    differences, margins = {}, []
    for pair, measure, margin in wanted:
        label = name_of(pair)
        if len(measures) > 1:  # in per cent or scores, all of them
            label = textwrap.fill(f"{label}: {words_of(measure)}", 28)
        if label not in differences:
            numbers = measured(experiment, runs, dataset, measure)
            differences[label] = difference(numbers, pair)
            margins.append(margin)
    plot.draw_differences(ax, differences, dict.fromkeys(differences, "0.25"))
    for row, margin in enumerate(margins):
        if margin != 0:  # what a claim asks for
            ax.plot([margin] * 2, [row - 0.4, row + 0.4], "k:")
    words = f": {words_of(main)}" if len(measures) == 1 else ""
    ax.set(xlabel=textwrap.fill(f"differences{words}", 50))


def draw_comparison(name: str) -> None:
    """Per data set: curves of all arms, and what each is above the first; below, all data sets."""
    experiment, runs = EXPERIMENTS[name], read(name)
    base, *others = experiment.arms
    datasets = [dataset for dataset in experiment.datasets if complete(name, dataset)]
    found = {dataset: comparison(name, dataset) for dataset in datasets}
    together = len(found) == len(experiment.datasets)
    rows = len(found) + together
    fig, axes = plt.subplots(rows, 2, figsize=(11, 4.2 * rows), squeeze=False, layout="constrained")
    colors = plot.colors_of(experiment.arms)
    for (left, right), (dataset, arms) in zip(axes, found.items()):
        curves = {}
        for arm in arms:
            own = "--offline-steps" in experiment.arms[arm]
            shift = UPDATES_ONLINE if "--online-steps 0" in experiment.arms[arm] else 0
            for seed in range(experiment.seeds):
                run = runs[dataset, arm][seed]
                scores = {} if own else dict(runs[dataset, "offline"][seed].scores)
                scores |= {step + shift: score for step, score in run.scores.items()}
                curves.setdefault(arm, {})[seed] = dict(sorted(scores.items()))
        plot.draw_means(left, curves, colors)
        left.set(title=dataset, xlabel="gradient steps | environment steps", ylabel="score")
        differences = {}
        for arm in others:
            pairs = zip(arms[arm], arms[base])
            gains = [one["mean online"] - other["mean online"] for one, other in pairs]
            differences[arm] = dict(enumerate(gains))
        plot.draw_differences(right, differences, colors)
        right.set(xlabel=f"mean online score minus that of {base}")
    if together:
        scores = {
            arm: np.array([[run["mean online"] for run in arms[arm]] for arms in found.values()]).T
            for arm in experiment.arms
        }
        plot.draw_aggregate(axes[-1, 0], scores, colors)
        plot.draw_improvement(axes[-1, 1], scores, base, colors)
    save(fig, name, "png", "svg")


def draw_page(name: str) -> None:
    """The figure of a script's page."""
    file, policy = FIGURES[name]
    curves, units = plot.gather((RESULTS / file,), policy)
    save(plot.draw(curves, plot.name_curves(list(curves)), units), name, "png")


def main(args: Args) -> None:
    """Write, or with --check compare, what stands in the module's docstring."""
    differing, bad = [], []
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        before = page.read_text()
        after = BLOCK.sub(
            lambda found: found[1] + "\n".join(table(found[2])) + "\n" + found[3], before
        )
        if after != before:
            differing.append(str(page.relative_to(ROOT)))
            if not args.check:
                page.write_text(after)
        words = untraced(after)
        if words:
            bad.append(f"{page.relative_to(ROOT)}: {', '.join(words)}")
    print(f"changed: {', '.join(differing) or 'nothing'}")
    if bad:
        print("numbers that stand in no table of their page:", *bad, sep="\n  ")
    figures = sources()
    if args.check:
        old = [name for name, files in figures.items() if stale(name, files)]
        if old:
            print(f"figures that are not made from these CSVs: {', '.join(old)}")
        sys.exit(bool(differing or bad or old))
    for name in figures:
        if name == "demo":
            draw_demo()
        elif name in FIGURES:
            draw_page(name)
        elif name in EXPERIMENTS:
            draw_comparison(name)
        else:
            draw(name.removeprefix("evidence_"))


if __name__ == "__main__":
    main(read_flags(Args, plot.stop, description=__doc__))
