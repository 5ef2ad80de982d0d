"""Make the tables and figures of README.md and docs/ from the CSVs in benchmark/results/.

    python benchmark/tables.py            # make tables
    python benchmark/tables.py --check    # only names the pages that differ; exit status 1 if any

A table stands in a page between two comments, of which the first says what it is made from:

    <!-- table: runs iql.csv -->              figures of all runs in a CSV, as plot.py prints them
    <!-- table: runs pex.csv learner -->      the same, of the learner alone
    <!-- table: last-ten iql_default.csv -->  means of ten evaluations before and after the switch
    <!-- table: lapo-values -->               what lapo_values.py found
    <!-- table: demo -->                      the demo's five seeds
    <!-- table: soak -->                      what `make soak` has tried, by fault
    <!-- table: claims -->                    every claim of experiments.py, a row each
    <!-- table: experiment o3f-maze -->       its precondition, its arms, its paired differences
    <!-- table: looked pex-drop score_at:5500 pex -->  a measure that decides nothing, of some arms;
                                              of two arms, their difference, too
    <!-- table: probe o3f-maze -->            what the probe found in each offline checkpoint
    <!-- table: costs -->                     machine and hours of every experiment
    <!-- end of table -->

An experiment with two seeds or more has a figure, docs/evidence_NAME.png and .svg. The own runs of
a page are drawn into docs/NAME.png.
"""

import dataclasses
import json
import math
import re
import statistics
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import plot
from experiments import EXPERIMENTS, Claim, Experiment, offline_tag
from sweep import read_flags, read_table

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmark/results"
# Figures of the scripts' pages: name -> CSV, whose evaluations.
FIGURES = {
    name: (f"{name}.csv", "actor")
    for name in (
        "awac",
        "cal_ql",
        "demo",
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
RESULTS_AT_TOP = re.DOTALL | re.MULTILINE
VERSIONS = re.compile(r"PyTorch [\d.]+|\d{4}-\d\d-\d\d|\]\(.*?\)")  # and where links lead


@dataclass
class Args:
    check: bool = False
    """write nothing; exit status 1 if a page differs from what would be written"""


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


def read(name: str) -> Runs:
    """All runs of an experiment; empty if it has not been run.

    Runs of one arm that were told different things make no table: ValueError.
    """
    runs: Runs = {}
    told: dict[tuple[str, str], str] = {}  # (data set, tag) -> arguments

    def run_of(row: dict[str, str]) -> Run:
        is_offline = name in EXPERIMENTS and row["tag"] == offline_tag(name)
        arm = "offline" if is_offline else row["tag"].removeprefix(f"{name}-")
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


def lowest_ten(run: Run, arms: dict[str, Run]) -> float:
    """Lowest mean return of ten training episodes in a row, in per cent of the guide's mean."""
    means = [statistics.fmean(run.returns[i : i + 10]) for i in range(len(run.returns) - 9)]
    return 100 * min(means) / statistics.fmean(arms["guide"].returns)


def lowest_of_switch(run: Run, arms: dict[str, Run]) -> float:
    """Lowest mean return of ten training episodes in a row, in per cent of that at the switch."""
    means = [statistics.fmean(run.returns[i : i + 10]) for i in range(len(run.returns) - 9)]
    return 100 * min(means) / at_switch(arms["offline"].evaluated)


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
        mean_of_last,
        lowest_after,
        lowest_score,
        first_full,
        return_between,
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
    percent = PRECONDITIONS[name] is search_helps and "pointmaze" in dataset
    found: dict[str, dict[int, float]] = {}
    for row in read_table(RESULTS / f"{name}_probe.csv"):
        if row["dataset"] == dataset and int(row["seed"]) < EXPERIMENTS[name].seeds:
            value = float(row["value"]) * (100 if percent else 1)
            found.setdefault(row["name"], {})[int(row["seed"])] = value
    return found


def search_and_noise(found: dict[str, dict[int, float]]) -> tuple[str, str]:
    """Of what inspect_search.py has played, those two."""
    return tuple(next(arm for arm in found if arm.startswith(kind)) for kind in ("o3f", "noise"))


def search_helps(name: str, dataset: str, runs: Runs) -> tuple[str, bool]:
    """With frozen critics: whole episodes by the search against equal noise."""
    found = probed(name, dataset)
    means = [f"{arm}: {statistics.fmean(by.values()):.0f}" for arm, by in found.items()]
    gains = list(difference(found, search_and_noise(found)).values())
    words = f"frozen critics: {', '.join(means)}; search − noise: {with_interval(gains, '+')}"
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
            complete = run.scores and None not in same_seed.values()  # seeds that have every arm
            if complete and seed < experiment.seeds:
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
    """The verdict, and whether the plan was changed when runs had been seen."""
    note = f" ({claim.changed} after the runs)" if claim.changed else ""
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
            word = "no seed has run all arms yet"
            if holds is False:
                word = "it does not hold, so the arms need not be run"
            lines += [f"`{dataset}`: {word}.", ""]
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
    experiment, runs = EXPERIMENTS[name], read(name)
    lines = [f"Looked at afterwards: {words_of(measure)}.", ""]
    for dataset in experiment.datasets:
        numbers = measured(experiment, runs, dataset, measure, arms)
        if numbers:
            lines += [*table_rows(dataset, numbers, [arms] if len(arms) == 2 else []), ""]
    return lines[:-1]


def probe_table(name: str) -> list[str]:
    """What the probe of search_helps() found with each seed's frozen critics."""
    lines = ["Frozen critics, seed by seed:", ""]
    for dataset in EXPERIMENTS[name].datasets:
        found = probed(name, dataset)
        if found:
            search, noise = search_and_noise(found)
            lines += [*table_rows(dataset, found, [(search, noise)]), ""]
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


def asked_of(claim: Claim) -> str:
    """What must lie above what, for a claim to be shown."""
    return f"{name_of(claim.pair)} above {claim.margin:.0f}"


def claims_table() -> list[str]:
    """One row per claim."""
    titles = ["claim", "the paper's", "measured", "asked for", "precondition"]
    titles += ["effect (95 % interval)", "verdict", "command"]
    lines = [f"| {' | '.join(titles)} |", f"|{'---|' * len(titles)}"]
    for name, experiment in EXPERIMENTS.items():
        runs = read(name)
        for claim in experiment.claims:
            cells = [f"[{claim.text}](#{name})", claim.paper, words_of(claim.measure)]
            cells += [asked_of(claim), experiment.precondition]
            cells.append(effects_of(experiment, claim, runs))
            cells.append(told_verdict(name, experiment, claim, runs))
            cells.append(f"`python benchmark/sweep.py {name}`")
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


def comparison_table(name: str) -> list[str]:
    """Per data set and script: scores with intervals, and the time of one run.

    The offline phase is included in that time.
    """
    experiment, runs = EXPERIMENTS[name], read(name)
    lines = []
    for dataset in experiment.datasets:
        lines.append(f"| {dataset} | seeds | at the switch | mean online | at the end | minutes |")
        lines.append(f"|{'---|' * 6}")
        for arm, command in experiment.arms.items():
            seeds = {seed: run for seed, run in runs.get((dataset, arm), {}).items() if run.scores}
            if not seeds:
                lines.append(f"| {arm} | 0 | not run yet | - | - | - |")
                continue
            online, end, before, minutes = [], [], [], []
            for seed, run in seeds.items():
                own = "--offline-steps" in command
                first = run if own else runs[dataset, "offline"][seed]
                after = [score for step, score in sorted(run.scores.items()) if step > 0]
                online.append(statistics.fmean(after))
                end.append(statistics.fmean(after[-3:]))  # a single one says little
                before.append(at_switch(first.scores))
                minutes.append((run.seconds + (0 if own else first.seconds)) / 60)
            cells = [with_interval(values) for values in (before, online, end)]
            cells.append(f"{statistics.fmean(minutes):.0f}")
            lines.append(f"| {arm} | {len(seeds)} | {' | '.join(cells)} |")
        lines.append("")
    return lines[:-1]


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
        lines.append(f"| {name} | {' | '.join(f'{cell:.2f}' for cell in cells)} |")
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


def demo_table() -> list[str]:
    """Success of the demo's seeds before and after the interaction."""
    curves, _ = plot.gather((RESULTS / "demo.csv",), "actor")
    (seeds,) = curves.values()
    rows = {str(seed): (values[0], values[max(values)]) for seed, values in seeds.items()}
    rows["mean"] = tuple(statistics.fmean(column) for column in zip(*rows.values()))
    lines = ["| seed | at the switch | after 12,000 steps | gain |"]
    lines.append(f"|{'---|' * 4}")
    for seed, (before, after) in rows.items():
        lines.append(f"| {seed} | {before:.1f} | {after:.1f} | {after - before:+.1f} |")
    return lines


def table(words: str) -> list[str]:
    """The lines that belong below `<!-- table: words -->`."""
    kind, *rest = words.split()
    makers = {"runs": runs_table, "demo": demo_table, "claims": claims_table}
    makers |= {"verdicts": verdicts_table}
    makers |= {"last-ten": last_ten_table, "soak": soak_table}
    makers |= {"losses": losses_table, "speed": speed_table, "comparison": comparison_table}
    makers |= {"costs": costs_table, "experiment": experiment_table, "lapo-values": lapo_table}
    makers |= {"looked": looked_table, "probe": probe_table}
    return makers[kind](*rest)


# ---- running text


def untraced(page: str) -> list[str]:
    """Numbers that stand neither in a table made here nor in a command: of a page's results.

    Results are what follows "## Measured", and the lines "Here" and "Cost" at the top. Of
    evidence.md they are every section that is named after an experiment, with its own tables; there
    the numbers of the experiment's entry are known, too.
    """
    _, _, text = page.partition("\n## Measured\n")
    text += "".join(re.findall(r"^- \*\*(?:Here|Cost):\*\*.*?(?=\n- |\n\n)", page, RESULTS_AT_TOP))
    found = unknown_numbers(text, page)
    for section in re.split(r"^## ", page, flags=re.MULTILINE):
        name = section.partition("\n")[0]
        if name in EXPERIMENTS:
            words = unknown_numbers(section, f"{section}`{EXPERIMENTS[name]}`")
            found += [f"{word} ({name})" for word in words]
    return found


def unknown_numbers(text: str, source: str) -> list[str]:
    """Numbers of a text that stand in no table and no code of its source.

    A number of the text may be a rounded one of a table. Counts up to 20 need no source, nor does
    100, of per cent.
    """
    tables = "\n".join(found[0] for found in BLOCK.finditer(source))
    commands = "\n".join(CODE.findall(source))
    known = [abs(number_of(word)) for word in NUMBER.findall(tables)]
    known += [abs(number_of(word)) for word in NUMBER.findall(commands)]
    found = []
    for word in NUMBER.findall(CODE.sub("", VERSIONS.sub("", BLOCK.sub("", text)))):
        number, digits = abs(number_of(word)), len(word.partition(".")[2])
        small = (number <= 20 or number == 100) and digits == 0
        if not small and all(round(value, digits) != number for value in known):
            found.append(word)
    return found


def number_of(word: str) -> float:
    return float(re.sub("[,_]", "", word))


# ---- figures


def draw(name: str) -> None:
    """Curves of an experiment and, below them, its paired differences: data sets that were run."""
    experiment, runs = EXPERIMENTS[name], read(name)
    measure = experiment.claims[0].measure
    found = {
        dataset: measured(experiment, runs, dataset, measure) for dataset in experiment.datasets
    }
    found = {dataset: numbers for dataset, numbers in found.items() if numbers}
    size = (6.4 * len(found), 7.2)
    fig, axes = plt.subplots(2, len(found), figsize=size, squeeze=False, layout="constrained")
    for column, (dataset, numbers) in enumerate(found.items()):
        seeds = next(iter(numbers.values()))
        curves = {"offline": {seed: runs[dataset, "offline"][seed].scores for seed in seeds}}
        of = ""
        for arm, seeds in numbers.items():
            curves[arm] = {seed: runs[dataset, arm][seed].scores for seed in seeds}
            if measure == "final_learner":  # else the guide would be drawn, too
                curves[arm] = {seed: runs[dataset, arm][seed].learner for seed in seeds}
                of = " of the learner alone"
        colors = {"offline": "black"} | plot.colors_of(experiment.arms)
        ax = axes[0, column]
        plot.draw_curves(ax, curves, colors)
        ax.set(xlabel="gradient steps | environment steps", ylabel=f"score{of}")
        place = {"loc": "lower center", "bbox_to_anchor": (0.3, 1.0), "ncols": 2}
        ax.legend(**place, frameon=False, fontsize="small", title=dataset)
        margins = {  # of the claims: a level is no difference
            claim.pair: claim.margin
            for claim in experiment.claims
            if claim.measure == measure and claim.pair[1]
        }
        shown = dict.fromkeys([*margins, *experiment.pairs])
        pairs = {name_of(pair): difference(numbers, pair) for pair in shown}
        plot.draw_differences(axes[1, column], pairs, plot.colors_of(pairs))
        for row, margin in enumerate(margins.values()):
            if margin != 0:  # what a claim asks for
                axes[1, column].plot([margin] * 2, [row - 0.4, row + 0.4], "k:")
        words = textwrap.fill(f"differences of: {words_of(measure)}", 50)
        axes[1, column].set(xlabel=words)
    for form in ("png", "svg"):
        plot.save(fig, ROOT / f"docs/evidence_{name}.{form}", form)
    plt.close(fig)


def draw_page(name: str) -> None:
    """The figure of a script's page."""
    file, policy = FIGURES[name]
    curves, units = plot.gather((RESULTS / file,), policy)
    fig = plot.draw(curves, plot.name_curves(list(curves)), units)
    plot.save(fig, ROOT / f"docs/{name}.png", "png")
    plt.close(fig)


def main(args: Args) -> None:
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
    if args.check:
        sys.exit(bool(differing or bad))
    for name in FIGURES:
        draw_page(name)
    for name, experiment in EXPERIMENTS.items():
        runs, claims = read(name), experiment.claims[:1]
        seeds = [len(effect(experiment, c, runs, d)) for c in claims for d in experiment.datasets]
        if max(seeds, default=0) > 1:
            draw(name)


if __name__ == "__main__":
    main(read_flags(Args, plot.stop, description=__doc__))
