"""Run an experiment, or a script with several seeds, and gather all evaluations in one CSV.

    python benchmark/sweep.py o3f-maze --dry-run       # what it would run, and what that would cost
    python benchmark/sweep.py o3f-maze                 # an entry of benchmark/experiments.py
    python benchmark/sweep.py iql.py --datasets o2o/hopper/medium-v0 o2o/halfcheetah/medium-v0 \\
        --seeds 0 1 2 --jobs 2 --out benchmark/results/iql.csv -- --offline-steps 50000

An experiment has arms; all arms of one seed start from one offline.pt. The offline phases of all
seeds come first. Then `make tables` writes into docs/evidence.md whether the precondition holds. If
it does not, stop the sweep: the arms could tell nothing. (jsrl-gate and cal_ql-maze need arms to
know.) What follows `--` goes to every run of a script. [Ray](https://docs.ray.io) places the runs:
on this machine, --jobs at a time with --threads CPU threads each, or with --address on the nodes of
a cluster that share the folder of the runs.

A sweep can be stopped and started again at any time: runs have fixed names below --run-dir, so a
finished run (summary.json) is left alone, a stopped one (latest.pt) goes on where it was, and one
that has not come that far starts afresh. So does a run whose worker or node was lost. A run that
was made with other arguments is refused: give those a --tag. One sweep at a time uses a --run-dir.

What a run prints goes to <run>.log beside its folder. After each finished run --out is written
anew: one row per run, step and policy, enough to draw every curve of the docs (benchmark/plot.py
reads it), and in the first row of each run its arguments, commit, command, machine and wall-clock
seconds. So are --losses and --training, which an experiment always has, beside --out, and what its
probe measured in the shared offline.pt, as ..._probe.csv. Rows of other runs stay as they are.
Exit status: 0 all finished; 1 some failed, named at the end; 2 bad input; 130 / 143 interrupted.
"""

import contextlib
import csv
import ctypes
import io
import itertools
import json
import logging
import os
import platform
import re
import shlex
import shutil
import signal
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path


def interrupted(number: int, _) -> None:
    """Signal handler: one line, whatever goes on."""
    os.write(2, f"{Path(__file__).name}: interrupted\n".encode())
    os._exit(128 + number)


if __name__ == "__main__":  # the imports below take seconds
    signal.signal(signal.SIGINT, interrupted)
    signal.signal(signal.SIGTERM, interrupted)

import tyro
from experiments import EXPERIMENTS, SECONDS_PER_STEP, offline_tag
from filelock import FileLock, Timeout

with contextlib.suppress(ImportError):  # plot.py reads tables without it
    import ray

ROOT = Path(__file__).resolve().parents[1]
RUN = ["script", "tag", "dataset", "seed"]  # which run a row is about
COLUMNS = [*RUN, "step", "phase", "policy", "return", "score", "success", "episodes"]
ABOUT = ["arguments", "commit", "command", "machine", "seconds"]  # only in a run's first row
# What config.json holds besides the arguments that decide a run's curve.
NOT_ARGUMENTS = {"script", "networks", "dataset_id", "obs_dim", "act_dim", "data", "transitions"}
NOT_ARGUMENTS |= {"torch", "numpy", "gymnasium", "gymnasium-robotics", "mujoco", "minari"}
NOT_ARGUMENTS |= {"code", "commit", "seed", "device", "run_dir", "run_name", "resume", "track"}
NOT_ARGUMENTS |= {"capture_video"}  # in older runs
# Flags that the sweep itself gives to a run.
OWN_FLAGS = {"--dataset-id", "--seed", "--run-dir", "--run-name", "--resume"}


@dataclass
class Args:
    what: tyro.conf.Positional[str]
    """an experiment of benchmark/experiments.py, or a script such as iql.py"""
    datasets: tuple[str, ...] = ()
    """Minari ids; default: those of the experiment"""
    seeds: tuple[int, ...] = ()
    """one run per data set and seed; default: those of the experiment, for a script 0"""
    out: Path | None = None
    """CSV that receives the evaluations of all runs; default: benchmark/results/EXPERIMENT.csv"""
    losses: Path | None = None
    """CSV that receives the losses, values, ... that each run logged last before each evaluation"""
    training: Path | None = None
    """CSV that receives all training episodes online"""
    jobs: int | None = None
    """runs at a time, without --address; default: as many as the CPUs allow"""
    threads: int = 1
    """CPU threads of each run (OMP_NUM_THREADS)"""
    tag: str = ""
    """name of this variant, if the script runs with other arguments than its defaults"""
    run_dir: Path = Path("runs/sweep")
    """folder that holds the runs"""
    address: str | None = None
    """a running Ray cluster, such as auto, whose nodes share --run-dir; default: this machine"""
    dry_run: bool = False
    """only print what would be run, and what it would cost"""


@dataclass
class Job:
    """One run."""

    folder: Path
    tag: str  # the arm
    command: list[str]  # script and flags
    needs: str | None = None  # the name of the run whose offline.pt it starts from
    probe: str = ""  # a program that measures something in its offline.pt

    @property
    def header(self) -> str:
        """The first line of its log: by it a later sweep knows that this command began it."""
        return f"$ {shlex.join(['python', *self.command])}"

    @property
    def complete(self) -> bool:
        """Has its run come to its end, and has what the probe measures been measured?"""
        probed = not self.probe or (self.folder / "probe.json").exists()
        return probed and finished(self.folder)


def stop(message: str, status: int = 2) -> None:
    """End the sweep with one line on stderr."""
    print(f"sweep.py: {' '.join(message.split())}", file=sys.stderr)
    raise SystemExit(status)


def read_flags(kind: type, stop, **options):
    """What the command line says, read by tyro; `stop` gets what it says of a mistake.

    As iql.read_flags, which would have to import torch."""
    heard = io.StringIO()
    try:
        with contextlib.redirect_stderr(heard):
            return tyro.cli(kind, **options)
    except SystemExit as ended:
        if ended.code:
            stop(re.sub("[─│╭╮╰╯]", " ", heard.getvalue()))
        raise


@contextlib.contextmanager
def replacing(path: Path):
    """A new file beside `path` that takes its place at the end, if nothing fails: atomically."""
    if path.exists() and not path.is_file():
        raise OSError(f"{path} is not a file")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        temporary.touch()
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def read_table(path: Path) -> list[dict[str, str]]:
    """Rows of a CSV; a last line that was cut is left out, and so is a missing file."""
    text = path.read_text() if path.exists() else ""
    lines = io.StringIO(text[: text.rfind("\n") + 1], newline="")
    rows = list(csv.DictReader(lines, strict=True))
    if any(None in row or None in row.values() for row in rows):
        raise ValueError(f"a row of {path} is shorter or longer than its first")
    return rows


def finished(folder: Path) -> bool:
    """Whether a run has come to its end and written a whole summary."""
    try:
        return isinstance(json.loads((folder / "summary.json").read_text()), dict)
    except (OSError, ValueError, RecursionError):
        return False


def arguments(config: dict) -> str:
    """What a run was told to do, as flags; all but its seed, its place and what it ran on."""
    flags = []
    for name, value in config.items():
        flag = name.replace("_", "-")
        if name in NOT_ARGUMENTS or value is None:
            continue
        if value is True or name == "offline_checkpoint":  # where the file lies tells nothing
            flags.append(f"--{flag}")
        elif value is False:
            flags.append(f"--no-{flag}")
        else:
            flags.append(f"--{flag} {str(value).removesuffix('.0')}")
    return " ".join(sorted(flags))


def identity(config: dict, tag: str) -> dict[str, str]:
    """What says in each row which run it is about."""
    values = [config["script"], tag, config["dataset_id"], str(config["seed"])]
    return dict(zip(RUN, values))


def read_run(folder: Path, tag: str = "") -> list[dict[str, str]]:
    """The evaluations of a run, finished or not: one row per step and policy, means over episodes.

    Files that are not those of a run raise exceptions of many kinds.
    """
    config = json.loads((folder / "config.json").read_text())
    scores = {}  # (step, "eval" or "eval_learner") -> score, where the data have reference returns
    for row in read_table(folder / "metrics.csv"):
        for key in row:
            if key.endswith("/score") and row[key]:
                scores[row["step"], key.removesuffix("/score")] = f"{float(row[key]):.6g}"
    groups = {}
    for row in read_table(folder / "eval.csv"):
        groups.setdefault((row["step"], row["phase"], row["policy"]), []).append(row)
    rows = []
    for (step, phase, policy), group in groups.items():
        row = identity(config, tag) | {"step": step, "phase": phase, "policy": policy}
        for name in ("return", "success"):
            values = [float(episode[name]) for episode in group if episode[name]]
            row[name] = f"{statistics.fmean(values):.6g}" if values else ""
        prefix = "eval" if policy == "actor" else f"eval_{policy}"
        row |= {"score": scores.get((step, prefix), ""), "episodes": str(len(group))}
        rows.append(row)
    if rows:
        rows[0] |= about(folder, config)
    return rows


def about(folder: Path, config: dict) -> dict[str, str]:
    """What ABOUT says of a run. Where the sweep has its folders tells nothing."""
    known = {"arguments": arguments(config), "commit": (config.get("commit") or "")[:12]}
    with contextlib.suppress(OSError):
        log = folder.with_name(f"{folder.name}.log").read_text(errors="replace")
        known["command"] = log.split("\n")[0].removeprefix("$ ").replace(f"{ROOT}{os.sep}", "")
        known |= json.loads((folder / "sweep.json").read_text())
    return known


def read_training(folder: Path, tag: str = "") -> list[dict[str, str]]:
    """One row per training episode of a run, with what its script logs of who acted in it."""
    run = identity(json.loads((folder / "config.json").read_text()), tag)
    rows, who = [], {}
    for row in read_table(folder / "metrics.csv"):
        for name in ("guide_share", "stage", "new_policy_share"):
            if row.get(f"online/{name}"):  # logged just before the return
                who[name] = f"{float(row[f'online/{name}']):.4g}"
        if row["online/episode_return"]:
            number = f"{float(row['online/episode_return']):.6g}"
            length = f"{float(row['online/episode_length']):.0f}"
            rows.append(run | {"step": row["step"], "return": number, "length": length} | who)
    return rows


def read_probe(folder: Path, tag: str = "") -> list[dict[str, str]]:
    """One row for each number that the probe of a run has found."""
    path = folder / "probe.json"
    if not path.exists():
        return []
    run = identity(json.loads((folder / "config.json").read_text()), tag)
    numbers = json.loads(path.read_text())
    return [run | {"name": name, "value": f"{value:.5g}"} for name, value in numbers.items()]


def read_losses(folder: Path, tag: str = "") -> list[dict[str, str]]:
    """One row per evaluation of a run: what it logged last before, by names without the phase."""
    run = identity(json.loads((folder / "config.json").read_text()), tag)
    rows, losses = [], {}
    for row in read_table(folder / "metrics.csv"):
        for phase in ("offline", "online"):
            logged = {}
            for key in row:
                if key.startswith(f"{phase}/") and "/episode_" not in key and row[key]:
                    logged[key.partition("/")[2]] = f"{float(row[key]):.5g}"
            if any("loss" in name for name in logged):  # some scripts log more between them
                losses = {"phase": phase} | logged
        phase = "online" if int(row["step"]) > 0 else "offline"
        if row["eval/return"] and losses.get("phase") == phase:
            rows.append(run | {"step": row["step"]} | losses)
    return rows


def order(row: dict[str, str]) -> tuple:
    """Where a row stands in --out or --losses."""
    names = [row[key] for key in RUN[:3]]
    last = row.get("policy", "") or row.get("name", "")
    return (*names, int(row["seed"]), int(row.get("step", 0)), last)


def write_results(args: Args, jobs: list[Job]) -> None:
    """Put the finished runs into --out and the other tables, in place of their rows."""
    probe = None
    if any(job.probe for job in jobs):
        probe = args.out.with_name(f"{args.out.stem}_probe.csv")
    jobs = [job for job in jobs if job.complete]
    tables = [
        (args.out, read_run, [*COLUMNS, *ABOUT]),
        (args.losses, read_losses, COLUMNS[:6]),
        (args.training, read_training, [*RUN, "step", "return", "length"]),
        (probe, read_probe, [*RUN, "name", "value"]),
    ]
    for path, read, columns in tables:
        if path is None:
            continue
        try:
            rows = [row for job in jobs for row in read(job.folder, job.tag)]
            runs = {tuple(row[key] for key in RUN) for row in rows}
            rows += [row for row in read_table(path) if tuple(row[key] for key in RUN) not in runs]
            rows.sort(key=order)
        except Exception as error:  # a damaged file fails in many ways
            stop(f"cannot read {path} or a finished run: {type(error).__name__}: {error}")
        names = dict.fromkeys([*columns, *(key for row in rows for key in row)])
        with replacing(path) as temporary, open(temporary, "w", newline="") as file:
            writer = csv.DictWriter(file, names, "", lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)


def check_header(folder: Path, header: str) -> None:
    """Refuse a run that was begun by another command: the first line of its log tells."""
    log = folder.with_name(f"{folder.name}.log")
    if not log.exists() or not (finished(folder) or (folder / "latest.pt").exists()):
        return
    first = log.read_text(errors="replace").split("\n")[0]
    if first.startswith("$ ") and first != header:
        stop(
            f"{folder} was made with other arguments (see {log}, line 1): give these a --tag; of an"
            " experiment, remove it, and with an offline phase all that began from it"
        )


def clear(folder: Path) -> None:
    """Remove what a run left that was killed before its first checkpoint, unless it still runs."""
    with contextlib.suppress(Timeout), FileLock(folder / ".lock", timeout=0):
        if not (folder / "latest.pt").exists():
            shutil.rmtree(folder, ignore_errors=True)


def die_with_the_worker() -> None:
    """A run whose worker is lost gets SIGTERM: it writes its latest.pt and ends (Linux)."""
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)


def machine(threads: int) -> str:
    """The processor that a run has had, and how much of it."""
    model = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        found = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
        model = found.group(1) if found else model
    return f"{model}, {threads} of {os.cpu_count()} CPUs"


def execute(job: Job, threads: int, here: str, needed: int | None) -> int | None:
    """In a worker: start, continue or, if it is finished, leave a run; returns its exit status.

    `needed`, for which Ray waits, is the status of the run that it starts from, 0 if that had been
    finished before. After one that failed it is not begun, and has no status.
    """
    if needed != 0:
        return None
    status = 0
    if not finished(job.folder):
        status = train(job, threads, here)
    if status == 0 and job.probe and finished(job.folder) and not job.complete:
        script, *flags = shlex.split(job.probe)
        command = [str(ROOT / script), str(job.folder / "offline.pt"), *flags]
        found = job.folder / "probe.tmp"
        status = run_python([*command, "--out", str(found)], job, threads, here)
        if status == 0:
            found.replace(job.folder / "probe.json")  # a torn file would count as complete
    return status


def run_python(command: list[str], job: Job, threads: int, here: str) -> int:
    """A program that writes to the log of a run."""
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    with open(job.folder.with_name(f"{job.folder.name}.log"), "a") as file:
        return subprocess.run(
            [sys.executable, *command],
            stdout=file,
            stderr=file,
            env=environment,
            cwd=here,
            preexec_fn=die_with_the_worker,
        ).returncode


def train(job: Job, threads: int, here: str) -> int:
    """Start or continue a run; sweep.json receives where, and how long it took in all."""
    log = job.folder.with_name(f"{job.folder.name}.log")
    if job.folder.is_dir():  # a run that has lost its worker needs a moment to end
        with contextlib.suppress(Timeout), FileLock(job.folder / ".lock", timeout=5):
            pass
    command = job.command
    if (job.folder / "latest.pt").exists():
        command = [*command, "--resume", str(job.folder / "latest.pt")]
    else:
        clear(job.folder)
        if not job.folder.exists():  # else the script will refuse the folder
            log.write_text(f"{job.header}\n")
    about, before = job.folder / "sweep.json", 0.0
    with contextlib.suppress(OSError, ValueError, KeyError):
        before = float(json.loads(about.read_text())["seconds"])
    start = time.monotonic()
    status = run_python(command, job, threads, here)
    if job.folder.is_dir():
        seconds = f"{before + time.monotonic() - start:.0f}"
        with replacing(about) as temporary:
            temporary.write_text(json.dumps({"machine": machine(threads), "seconds": seconds}))
    return status


def check(args: Args, extra: list[str]) -> None:
    """Refuse what no sweep can run."""
    if args.threads < 1 or (args.jobs is not None and args.jobs < 1):
        stop("--jobs and --threads must be at least 1")
    if args.jobs is None:
        args.jobs = max(1, len(os.sched_getaffinity(0)) // args.threads)
    if not args.datasets or min(args.seeds, default=-1) < 0:
        stop("name at least one data set and one seed; no seed is below 0")
    if not re.fullmatch(r"[A-Za-z0-9._-]*", args.tag) or ".." in args.tag:
        stop(f"--tag {args.tag!r}: use letters, digits, '-', '_' and '.', but not '..'")
    for flag in extra:
        if flag.partition("=")[0].replace("_", "-") in OWN_FLAGS:
            stop(f"the sweep itself gives {flag} to each run")
    if args.out is None:
        stop("--out: name the CSV that receives the evaluations")
    paths = [path.resolve() for path in (args.out, args.losses, args.training) if path]
    if len(set(paths)) < len(paths):
        stop("--out, --losses and --training must be different files")
    for dataset in args.datasets:
        if not re.fullmatch(r"[\w./-]+", dataset) or ".." in dataset:
            stop(f"{dataset!r} is not the id of a data set")


def make_job(args: Args, script: str, dataset: str, seed: int, tag: str, flags: list[str]) -> Job:
    """One run, in a folder that says what it is."""
    name = f"{Path(script).stem}__{dataset.replace('/', '-')}__{seed}"
    if tag:
        name += f"__{tag}"
    command = [script, "--dataset-id", dataset, "--seed", str(seed)]
    command += ["--run-dir", str(args.run_dir), "--run-name", name, *flags]
    return Job(args.run_dir / name, tag, command)


def plan(args: Args, extra: list[str]) -> list[Job]:
    """All runs, those that others need first; bad input ends the sweep."""
    experiment = EXPERIMENTS.get(args.what)
    if experiment is not None:
        if args.tag or extra:
            stop("an experiment has its own tags and flags: see benchmark/experiments.py")
        args.datasets = args.datasets or tuple(experiment.datasets)
        args.seeds = args.seeds or tuple(range(experiment.seeds))
        args.out = args.out or ROOT / f"benchmark/results/{args.what}.csv"
        args.losses = args.losses or args.out.with_name(f"{args.out.stem}_losses.csv")
        args.training = args.training or args.out.with_name(f"{args.out.stem}_training.csv")
    elif not Path(args.what).is_file():
        stop(f"there is no experiment and no script {args.what}: {', '.join(EXPERIMENTS)}")
    args.seeds = args.seeds or (0,)
    check(args, extra)
    offline, jobs = [], []
    for dataset, seed in dict.fromkeys(itertools.product(args.datasets, args.seeds)):
        if experiment is None:
            jobs.append(make_job(args, args.what, dataset, seed, args.tag, extra))
            continue
        script, *flags = shlex.split(experiment.offline)
        tag = offline_tag(args.what)
        flags += ["--online-steps", "0"]
        first = make_job(args, str(ROOT / script), dataset, seed, tag, flags)
        first.probe = experiment.probe
        offline.append(first)
        for arm, words in experiment.arms.items():
            script, *flags = shlex.split(words)
            shared = "--offline-steps" not in flags
            if shared:
                flags += ["--offline-checkpoint", str(first.folder / "offline.pt")]
            job = make_job(args, str(ROOT / script), dataset, seed, f"{args.what}-{arm}", flags)
            if shared:
                job.needs = first.folder.name
            jobs.append(job)
    jobs = [*offline, *jobs]
    names = [job.folder.name for job in jobs]
    for name in names:
        if names.count(name) > 1:
            stop(f"two data sets would share the folder {name}")
    return jobs


def steps_of(job: Job) -> float:
    """How many steps a run makes, if its flags say so, else NaN. An arm makes no offline steps."""
    steps = 0
    for flag in ("--offline-steps", "--online-steps"):
        if flag in job.command:
            steps += int(job.command[job.command.index(flag) + 1])
        elif flag == "--online-steps" or job.needs is None:
            return float("nan")
    return steps


def cost(job: Job, jobs: list[Job]) -> float:
    """Seconds that a run takes: as finished ones of its arm, else by what a step usually takes."""
    if finished(job.folder):  # only its probe is missing
        return 0.0
    taken = []
    for other in jobs:
        if other.tag == job.tag and other.complete:
            with contextlib.suppress(OSError, ValueError, KeyError):
                about = json.loads((other.folder / "sweep.json").read_text())
                taken.append(float(about["seconds"]))  # evaluations included
    if taken:
        return statistics.fmean(taken)
    return steps_of(job) * SECONDS_PER_STEP.get(Path(job.command[0]).name, float("nan"))


def hours(seconds: float) -> str:
    """Seconds in words; nan: unknown."""
    return "an unknown time" if seconds != seconds else f"{seconds / 3600:.1f} h"


def overview(jobs: list[Job]) -> None:
    """A table: how many runs each arm has, how many are finished, what the rest would take."""
    print(f"{'arm':40}{'runs':>6}{'finished':>10}{'steps each':>12}  still to do")
    for tag in dict.fromkeys(job.tag for job in jobs):
        arm = [job for job in jobs if job.tag == tag]
        rest = [job for job in arm if not job.complete]
        steps = steps_of(arm[0])
        word = "default" if steps != steps else f"{steps:,}"
        left = hours(sum(cost(job, jobs) for job in rest))
        print(f"{tag or '-':40}{len(arm):6}{len(arm) - len(rest):10}{word:>12}  {left}")
    rest = [job for job in jobs if not job.complete]
    total = hours(sum(cost(job, jobs) for job in rest))
    print(f"{'in all':40}{len(jobs):6}{len(jobs) - len(rest):10}{'':12}  {total}")


def work(args: Args, jobs: list[Job]) -> None:
    """Hand the runs to Ray, and gather what they leave; a run that fails does not stop others."""
    if "ray" not in globals():
        stop("a sweep needs Ray: pip install -r requirements-benchmark.txt")
    for job in jobs:
        check_header(job.folder, job.header)
    write_results(args, jobs)  # what cannot be read or written shows before any run begins
    for job in jobs:
        if job.complete:
            print(f"finished  {job.folder.name}", flush=True)
    todo = [job for job in jobs if not job.complete]
    if not todo:
        return
    slots = {} if args.address else {"num_cpus": args.jobs * args.threads}
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # silences a warning
    # "local": without it, Ray would join any cluster that happens to run on this machine.
    address = args.address or "local"
    ray.init(address, log_to_driver=False, logging_level=logging.ERROR, **slots)
    asked = []  # by signals; Ray has set handlers of its own
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: asked.append(number))
    run = ray.remote(num_cpus=args.threads, max_retries=5)(execute)
    results = {}  # name of a run -> what will be its status; offline phases come first
    for job in todo:
        needed = results.get(job.needs, 0)
        results[job.folder.name] = run.remote(job, args.threads, os.getcwd(), needed)
    rest = dict(zip(results.values(), todo))
    failed, lost = [], set()
    while rest:
        ready, _ = ray.wait(list(rest), timeout=1)
        if asked:
            sys.exit(128 + asked[0])
        if not ready:
            continue
        job = rest.pop(ready[0])
        try:
            status = ray.get(ready[0])
            word = "not begun" if status is None else f"status {status}"
        except ray.exceptions.RayError as error:  # the runs that need a lost one end with it
            word = "not begun" if job.needs in lost else type(error).__name__
            lost.add(job.folder.name)
        if not job.complete:
            failed.append(f"{job.folder.name} ({word})")
        write_results(args, jobs)
        slots = int(ray.cluster_resources().get("CPU", 0)) // args.threads
        left = hours(sum(cost(job, jobs) for job in rest.values()) / max(1, slots))
        count = len(jobs) - len(rest)
        print(f"{word:9} {job.folder.name}: {count} of {len(jobs)}, {left} left", flush=True)
    if failed:
        stop(f"failed: {', '.join(failed)}; see {args.run_dir}/<run>.log", 1)


def main(args: Args, extra: list[str]) -> None:
    """One sweep, alone in its --run-dir."""
    try:
        args.run_dir = args.run_dir.absolute()
        jobs = plan(args, extra)
        if args.dry_run:
            overview(jobs)
            return
        args.run_dir.mkdir(parents=True, exist_ok=True)
        with FileLock(args.run_dir / ".sweep.lock", timeout=0):
            work(args, jobs)
    except Timeout:
        stop(f"another sweep uses {args.run_dir}: wait for its end, or give another --run-dir")
    except OSError as error:
        stop(str(error))
    finally:  # the runs write their checkpoints and end
        if "ray" in globals():
            ray.shutdown()


if __name__ == "__main__":
    end = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    main(read_flags(Args, stop, args=sys.argv[1:end], description=__doc__), sys.argv[end + 1 :])
