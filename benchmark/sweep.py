"""Run a script on several data sets with several seeds, and gather its evaluations in one CSV.

    python benchmark/sweep.py iql.py --datasets o2o/hopper/medium-v0 o2o/halfcheetah/medium-v0 \\
        --seeds 0 1 2 --jobs 2 --threads 1 --out benchmark/results/iql.csv -- --offline-steps 50000

What follows `--` goes to every run. A sweep can be stopped and started again at any time: runs have
fixed names below --run-dir, so a finished run (summary.json) is left alone, a stopped one
(latest.pt) goes on where it was, and one that has not come that far starts afresh. A run that was
made with other arguments is refused: give those a --tag. One sweep at a time uses a --run-dir.

What a run prints goes to <run>.log beside its folder. After each finished run --out is written
anew: one row per run, step and policy, enough to draw every curve of the docs (benchmark/plot.py
reads it), and in the first row of each run the arguments that it ran with; if asked for, --losses
too. Rows of runs outside this sweep stay as they are.
Exit status: 0 all finished; 1 some failed, named at the end; 2 bad input.
"""

import contextlib
import csv
import io
import itertools
import json
import os
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
from filelock import FileLock, Timeout

RUN = ["script", "tag", "dataset", "seed"]  # which run a row is about
COLUMNS = [*RUN, "step", "phase", "policy", "return", "score", "success", "episodes"]
# What config.json holds besides the arguments that decide a run's curve.
NOT_ARGUMENTS = {"script", "networks", "dataset_id", "obs_dim", "act_dim", "data", "transitions"}
NOT_ARGUMENTS |= {"torch", "numpy", "gymnasium", "gymnasium-robotics", "mujoco", "minari"}
NOT_ARGUMENTS |= {"code", "commit", "seed", "device", "run_dir", "run_name", "resume", "track"}
NOT_ARGUMENTS |= {"capture_video"}  # in older runs
# Flags that the sweep itself gives to a run.
OWN_FLAGS = {"--dataset-id", "--seed", "--run-dir", "--run-name", "--resume"}


@dataclass
class Args:
    script: tyro.conf.Positional[Path]
    """the algorithm, such as iql.py"""
    datasets: tuple[str, ...]
    """Minari ids"""
    out: Path
    """CSV that receives the evaluations of all runs"""
    losses: Path | None = None
    """CSV that receives the losses, values, ... that each run logged last before each evaluation"""
    seeds: tuple[int, ...] = (0,)
    """one run per data set and seed"""
    jobs: int = 1
    """runs at a time"""
    threads: int = 1
    """CPU threads of each run (OMP_NUM_THREADS)"""
    tag: str = ""
    """name of this variant, if the script runs with other arguments than its defaults"""
    run_dir: Path = Path("runs/sweep")
    """folder that holds the runs"""


def stop(message: str, status: int = 2) -> None:
    """End the sweep with one line on stderr."""
    print(f"sweep.py: {' '.join(message.split())}", file=sys.stderr)
    raise SystemExit(status)


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
        row["arguments"] = "" if rows else arguments(config)
        rows.append(row)
    return rows


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
            if logged:
                losses = {"phase": phase} | logged
        phase = "online" if int(row["step"]) > 0 else "offline"
        if row["eval/return"] and losses.get("phase") == phase:
            rows.append(run | {"step": row["step"]} | losses)
    return rows


def order(row: dict[str, str]) -> tuple:
    """Where a row stands in --out or --losses."""
    names = [row[key] for key in RUN[:3]]
    return (*names, int(row["seed"]), int(row["step"]), row.get("policy", ""))


def write_results(args: Args, folders: list[Path]) -> None:
    """Put the finished runs among `folders` into --out and --losses, in place of their rows."""
    tables = [(args.out, read_run, COLUMNS), (args.losses, read_losses, COLUMNS[:6])]
    for path, read, columns in tables[: 2 if args.losses else 1]:
        try:
            rows = [row for run in filter(finished, folders) for row in read(run, args.tag)]
            runs = {tuple(row[key] for key in RUN) for row in rows}
            rows += [row for row in read_table(path) if tuple(row[key] for key in RUN) not in runs]
            rows.sort(key=order)
        except Exception as error:  # a damaged file fails in many ways
            stop(f"cannot read {path} or a finished run: {type(error).__name__}: {error}")
        names = dict.fromkeys([*columns, *(key for row in rows for key in row)])
        with replacing(path) as temporary, open(temporary, "w", newline="") as file:
            writer = csv.DictWriter(file, names, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)


def check_header(folder: Path, header: str) -> None:
    """Refuse a run that was begun by another command: the first line of its log tells."""
    log = folder.with_name(f"{folder.name}.log")
    if not log.exists() or not (finished(folder) or (folder / "latest.pt").exists()):
        return
    first = log.read_text(errors="replace").split("\n")[0]
    if first.startswith("$ ") and first != header:
        stop(f"{folder} was made with other arguments (see {log}, line 1): give these a --tag")


def clear(folder: Path) -> None:
    """Remove what a run left that was killed before its first checkpoint, unless it still runs."""
    with contextlib.suppress(Timeout), FileLock(folder / ".lock", timeout=0):
        if not (folder / "latest.pt").exists():
            shutil.rmtree(folder, ignore_errors=True)


def start(args: Args, folder: Path, command: list[str], header: str) -> subprocess.Popen | None:
    """Start, continue or, if it is finished, leave a run."""
    done, begun = finished(folder), (folder / "latest.pt").exists()
    word = "continue" if begun else "start"
    print(f"{'finished' if done else word:9} {folder.name}", flush=True)
    if done:
        return None
    log = folder.with_name(f"{folder.name}.log")
    if begun:
        command = [*command, "--resume", str(folder / "latest.pt")]
    else:
        clear(folder)
        if not folder.exists():  # else the script will refuse the folder
            log.write_text(f"{header}\n")
    environment = os.environ | {"OMP_NUM_THREADS": str(args.threads)}
    with open(log, "a") as file:
        return subprocess.Popen(
            [sys.executable, *command], stdout=file, stderr=file, env=environment
        )


def plan(args: Args, extra: list[str]) -> list[tuple[Path, list[str], str]]:
    """Folder, command and first line of the log of each run; bad input ends the sweep."""
    if not args.script.is_file():
        stop(f"there is no script {args.script}")
    if min(args.jobs, args.threads) < 1:
        stop("--jobs and --threads must be at least 1")
    if not args.datasets or min(args.seeds, default=-1) < 0:
        stop("name at least one data set and one seed; no seed is below 0")
    if not re.fullmatch(r"[A-Za-z0-9._-]*", args.tag) or ".." in args.tag:
        stop(f"--tag {args.tag!r}: use letters, digits, '-', '_' and '.', but not '..'")
    for flag in extra:
        if flag.partition("=")[0].replace("_", "-") in OWN_FLAGS:
            stop(f"the sweep itself gives {flag} to each run")
    if args.losses and args.losses.resolve() == args.out.resolve():
        stop("--out and --losses must be two files")
    queue = {}
    for dataset, seed in dict.fromkeys(itertools.product(args.datasets, args.seeds)):
        if not re.fullmatch(r"[\w./-]+", dataset) or ".." in dataset:
            stop(f"{dataset!r} is not the id of a data set")
        name = f"{args.script.stem}__{dataset.replace('/', '-')}__{seed}"
        if args.tag:
            name += f"__{args.tag}"
        if name in queue:
            stop(f"two data sets would share the folder {name}")
        command = [str(args.script), "--dataset-id", dataset, "--seed", str(seed)]
        command += ["--run-dir", str(args.run_dir), "--run-name", name, *extra]
        queue[name] = (args.run_dir / name, command, f"$ {shlex.join(['python', *command])}")
    return list(queue.values())


def work(args: Args, queue: list[tuple[Path, list[str], str]]) -> None:
    """Do all runs of the queue, --jobs at a time."""
    folders = [folder for folder, _, _ in queue]
    for folder, _, header in queue:
        check_header(folder, header)
    write_results(args, folders)  # what cannot be read or written shows before any run begins
    running, failed = {}, []
    try:
        while queue or running:
            while queue and len(running) < args.jobs:
                job = queue.pop(0)
                child = start(args, *job)
                if child:
                    running[job[0]] = child
            time.sleep(0.5)
            for folder in [folder for folder, child in running.items() if child.poll() is not None]:
                status = running.pop(folder).returncode
                if status:
                    failed.append(f"{folder.name} (status {status})")
                print(f"{f'status {status}' if status else 'done':9} {folder.name}", flush=True)
                write_results(args, folders)
    finally:  # if the sweep is stopped, the runs write their checkpoints and end
        for child in running.values():
            child.terminate()
        for child in running.values():
            child.wait()
    if failed:
        stop(f"failed: {', '.join(failed)}; see {args.run_dir}/<run>.log", 1)


def main(args: Args, extra: list[str]) -> None:
    """One sweep, alone in its --run-dir."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    try:
        queue = plan(args, extra)
        args.run_dir.mkdir(parents=True, exist_ok=True)
        with FileLock(args.run_dir / ".sweep.lock", timeout=0):
            work(args, queue)
    except Timeout:
        stop(f"another sweep uses {args.run_dir}: wait for its end, or give another --run-dir")
    except OSError as error:
        stop(str(error))


if __name__ == "__main__":
    end = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    main(tyro.cli(Args, args=sys.argv[1:end], description=__doc__), sys.argv[end + 1 :])
