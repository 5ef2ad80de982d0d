"""Run a script on several data sets with several seeds, and gather its evaluations in one CSV.

    python benchmark/sweep.py iql.py --datasets o2o/hopper/medium-v0 o2o/halfcheetah/medium-v0 --seeds 0 1 2 \\
        --jobs 2 --threads 1 --out benchmark/results/iql.csv -- --offline-steps 50000

What follows `--` goes to every run. A sweep can be stopped and started again at any time: runs have fixed names below
--run-dir, so a finished run (summary.json) is left alone, a stopped one (latest.pt) goes on where it was, and one that
has not come that far starts afresh. A run that was made with other arguments is refused: give those a --tag.

What a run prints goes to <run>.log beside its folder. After each finished run --out is written anew: one row per run,
step and policy, enough to draw every curve of the docs (benchmark/plot.py reads it); and, if asked for, --losses. Rows of
runs outside this sweep stay as they are. Exit status: 0 all finished; 1 some failed, named at the end; 2 bad input.
"""

import csv
import itertools
import json
import os
import shlex
import shutil
import signal
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import tyro

COLUMNS = [
    "script",
    "tag",
    "dataset",
    "seed",
    "step",
    "phase",
    "policy",
    "return",
    "score",
    "success",
    "episodes",
]


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
    print(f"sweep.py: {message}", file=sys.stderr)
    raise SystemExit(status)


def read_table(path: Path) -> list[dict[str, str]]:
    """Rows of a CSV; a last line that was cut while it was written is left out, and so is a missing file."""
    text = path.read_text() if path.exists() else ""
    return list(csv.DictReader(text[: text.rfind("\n") + 1].splitlines()))


def read_run(folder: Path, tag: str = "") -> list[dict[str, str]]:
    """The evaluations of a run, finished or not: one row (COLUMNS) per step and policy, means over episodes."""
    config = json.loads((folder / "config.json").read_text())
    scores = {}  # (step, "eval" or "eval_learner") -> score, where the data have reference returns
    for row in read_table(folder / "metrics.csv"):
        scores |= {
            (row["step"], key[: -len("/score")]): row[key]
            for key in row
            if key.endswith("/score") and row[key]
        }
    groups = {}
    for row in read_table(folder / "eval.csv"):
        groups.setdefault((row["step"], row["phase"], row["policy"]), []).append(row)
    rows = []
    for (step, phase, policy), group in groups.items():
        score = scores.get((step, "eval" if policy == "actor" else f"eval_{policy}"), "")
        values = {
            name: [float(row[name]) for row in group if row[name]] for name in ("return", "success")
        }
        values["score"] = [float(score)] if score else []
        row = {
            "script": config["script"],
            "tag": tag,
            "dataset": config["dataset_id"],
            "seed": str(config["seed"]),
        }
        row |= {"step": step, "phase": phase, "policy": policy, "episodes": str(len(group))}
        rows.append(
            row | {name: f"{statistics.fmean(x):.6g}" if x else "" for name, x in values.items()}
        )
    return rows


def read_losses(folder: Path, tag: str = "") -> list[dict[str, str]]:
    """One row per evaluation of a run: what it logged last before, by names without the phase."""
    config = json.loads((folder / "config.json").read_text())
    rows, losses = [], {}
    for row in read_table(folder / "metrics.csv"):
        for phase in ("offline", "online"):
            names = [
                key
                for key in row
                if key.startswith(f"{phase}/") and "/episode_" not in key and row[key]
            ]
            losses = (
                {"phase": phase}
                | {key.partition("/")[2]: f"{float(row[key]):.5g}" for key in names}
                if names
                else losses
            )
        if row["eval/return"] and losses.get("phase") == (
            "online" if int(row["step"]) > 0 else "offline"
        ):
            run = {
                "script": config["script"],
                "tag": tag,
                "dataset": config["dataset_id"],
                "seed": str(config["seed"]),
            }
            rows.append(run | {"step": row["step"]} | losses)
    return rows


def write_results(args: Args, folders: list[Path]) -> None:
    """Put the finished runs among `folders` into --out and --losses, in place of what these say about them."""
    for path, read, columns in (
        (args.out, read_run, COLUMNS),
        (args.losses, read_losses, COLUMNS[:6]),
    ):
        if path is None:
            continue
        rows = [
            row
            for folder in folders
            if (folder / "summary.json").exists()
            for row in read(folder, args.tag)
        ]
        runs = {tuple(row[key] for key in COLUMNS[:4]) for row in rows}
        rows += [
            row for row in read_table(path) if tuple(row[key] for key in COLUMNS[:4]) not in runs
        ]
        rows.sort(
            key=lambda row: (
                *(row[key] for key in COLUMNS[:3]),
                int(row["seed"]),
                int(row["step"]),
                row.get("policy"),
            )
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".tmp")  # the change is atomic
        with open(temporary, "w", newline="") as file:
            writer = csv.DictWriter(
                file,
                dict.fromkeys([*columns, *(key for row in rows for key in row)]),
                lineterminator="\n",
            )
            writer.writeheader()
            writer.writerows(rows)
        os.replace(temporary, path)


def check_header(folder: Path, header: str) -> None:
    """A run is only left alone or continued if the first line of its log, where a sweep wrote it, is the command of now."""
    log = folder.with_name(f"{folder.name}.log")
    made = log.exists() and ((folder / "summary.json").exists() or (folder / "latest.pt").exists())
    first = log.read_text().split("\n")[0] if made else ""
    if first.startswith("$ ") and first != header:
        stop(
            f"{folder} was made with other arguments (see the first line of {log}): give these a --tag"
        )


def start(args: Args, folder: Path, command: list[str], header: str) -> subprocess.Popen | None:
    """Start, continue or, if it is finished, leave a run."""
    done, begun = (folder / "summary.json").exists(), (folder / "latest.pt").exists()
    print(f"{'finished' if done else 'continue' if begun else 'start':9} {folder.name}", flush=True)
    if done:
        return None
    log = folder.with_name(f"{folder.name}.log")
    if begun:
        command = [*command, "--resume", str(folder / "latest.pt")]
    else:
        shutil.rmtree(folder, ignore_errors=True)
        args.run_dir.mkdir(parents=True, exist_ok=True)
        log.write_text(f"{header}\n")
    environment = os.environ | {"OMP_NUM_THREADS": str(args.threads)}
    with open(log, "a") as file:
        return subprocess.Popen(
            [sys.executable, *command], stdout=file, stderr=file, env=environment
        )


def main(args: Args, extra: list[str]) -> None:
    if not args.script.is_file() or min(args.jobs, args.threads) < 1:
        stop(f"there must be a script {args.script}, and --jobs and --threads must be at least 1")
    queue, running, failed = [], {}, []
    for dataset, seed in dict.fromkeys(itertools.product(args.datasets, args.seeds)):
        name = "__".join(
            [args.script.stem, dataset.replace("/", "-"), str(seed)] + [args.tag] * bool(args.tag)
        )
        command = [str(args.script), "--dataset-id", dataset, "--seed", str(seed)]
        command += ["--run-dir", str(args.run_dir), "--run-name", name, *extra]
        queue.append((args.run_dir / name, command, f"$ {shlex.join(['python', *command])}"))
        check_header(args.run_dir / name, queue[-1][2])
    folders = [folder for folder, _, _ in queue]
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    try:
        while queue or running:
            while queue and len(running) < args.jobs:
                job = queue.pop(0)
                child = start(args, *job)
                running |= {job[0]: child} if child else {}
            time.sleep(0.5)
            for folder in [folder for folder, child in running.items() if child.poll() is not None]:
                status = running.pop(folder).returncode
                print(f"{f'status {status}' if status else 'done':9} {folder.name}", flush=True)
                failed += [f"{folder.name} (status {status})"] if status else []
                write_results(args, folders)
    finally:  # if the sweep is stopped, the runs write their checkpoints and end
        for child in running.values():
            child.terminate()
        for child in running.values():
            child.wait()
    write_results(args, folders)
    if failed:
        stop(f"failed: {', '.join(failed)}; see {args.run_dir}/<run>.log", 1)


if __name__ == "__main__":
    end = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    main(tyro.cli(Args, args=sys.argv[1:end], description=__doc__), sys.argv[end + 1 :])
