"""The sweep and the plot: who may touch a run, what is one curve, what is refused."""

import contextlib
import csv
import dataclasses
import importlib
import io
import itertools
import json
import math
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import ray.cluster_utils
import torch
from conftest import ROOT, TINY, pendulum, run
from filelock import FileLock
from hypothesis import given, settings
from hypothesis import strategies as st

import iql

BENCHMARK = ROOT / "benchmark"
sys.path.insert(0, str(BENCHMARK))
import plot
import sweep
import tables
from experiments import EXPERIMENTS, Claim, Experiment

HEADER = "script,tag,dataset,seed,step,phase,policy,return,score,success,episodes"
CONFIG = {"script": "iql.py", "dataset_id": "test/x/y-v0", "seed": 0, "beta": 3.0, "gamma": 0.99}
METRICS = "step,eval/return,eval/score\n0,5,50\n10,6,60\n"
EVAL = (
    "step,phase,policy,episode,seed,return,length,success\n"
    "0,offline,actor,0,1,5,9,\n10,online,actor,0,2,6,9,\n"
)
# A script as the sweep sees it: it takes the lock of its folder, and leaves the files of a run.
STUB = f"""
import argparse, json, os, sys, time
from pathlib import Path
from filelock import FileLock
parser = argparse.ArgumentParser()
for flag in ("dataset-id", "seed", "run-dir", "run-name", "resume", "beta", "wait"):
    parser.add_argument("--" + flag)
args = parser.parse_args()
folder = Path(args.run_dir, args.run_name)
if folder.exists() and not args.resume:
    sys.exit(2)
folder.mkdir(parents=True, exist_ok=True)
try:
    FileLock(folder / ".lock", timeout=0).acquire()
except TimeoutError:
    sys.exit(2)
(folder / "worker").write_text(str(os.getppid()))
while args.wait and not Path(args.wait).exists():
    time.sleep(0.05)
config = {{"script": "stub.py", "dataset_id": args.dataset_id, "seed": int(args.seed)}}
config |= {{"beta": float(args.beta or 3), "run_name": args.run_name, "torch": "2"}}
(folder / "config.json").write_text(json.dumps(config))
(folder / "metrics.csv").write_text({METRICS!r})
(folder / "eval.csv").write_text({EVAL!r})
(folder / "how").write_text("resumed" if args.resume else "new")
(folder / "summary.json").write_text("{{}}")
"""
PROBE = """
import json, sys
from pathlib import Path
checkpoint, flag, out = sys.argv[1:]
Path(out).write_text(json.dumps({"networks": int(Path(checkpoint).exists())}))
"""
RUN = Path("runs/stub__test-x-y-v0__0")


@pytest.fixture(autouse=True)
def stub(monkeypatch):
    monkeypatch.setenv("RAY_worker_niceness", "0")  # 15 is Ray's default: beside other tests, slow
    torch.set_flush_denormal(False)  # as it was before a run: hypothesis wants to see all numbers
    Path("stub.py").write_text(STUB)


def command(*flags: str) -> list[str]:
    words = ["stub.py", "--datasets", "test/x/y-v0", "--out", "results.csv", "--run-dir", "runs"]
    return [sys.executable, str(BENCHMARK / "sweep.py"), *words, *flags]


def run_sweep(*flags: str, status: int = 0) -> str:
    done = subprocess.run(command(*flags), capture_output=True, text=True, timeout=240)
    assert done.returncode == status, done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout + done.stderr


def sentence(function, *args, status: int = 2) -> str:
    """What a call says that ends with this status and a single line."""
    with contextlib.redirect_stderr(io.StringIO()) as err, pytest.raises(SystemExit) as end:
        function(*args)
    lines = err.getvalue().splitlines()
    assert end.value.code == status
    assert len(lines) == 1, lines
    return lines[0]


def make_run(name: str, metrics: str = METRICS, evaluations: str = EVAL, **config) -> Path:
    folder = Path(name)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(CONFIG | config))
    (folder / "metrics.csv").write_text(metrics)
    (folder / "eval.csv").write_text(evaluations)
    (folder / "summary.json").write_text("{}")
    return folder


def table(capsys, *paths: str | Path) -> list[str]:
    """What plot.py calls the curves of these files."""
    capsys.readouterr()
    plot.main(plot.Args(runs=tuple(map(Path, paths)), out=Path("out.png")))
    lines = capsys.readouterr().out.splitlines()
    return [line.split("|")[1].strip() for line in lines[2:]]


# ---- sweep.py


def test_one_sweep_at_a_time():
    first = subprocess.Popen(command("--", "--wait", "go"), stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 45
        while not (RUN / ".lock").exists():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        (RUN / "mine").touch()
        said = run_sweep("--", "--wait", "go", status=2)
        assert (
            said
            == f"sweep.py: another sweep uses {RUN.parent.absolute()}: wait for its end, or give "
            "another --run-dir\n"
        )
    finally:
        Path("go").touch()
        assert first.wait(20) == 0
    assert (RUN / "mine").exists()
    assert "finished" in run_sweep("--", "--wait", "go")


def parent(process: int) -> int:
    return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])


def wait_for(what, seconds: float = 240):
    """What a function returns, once that is something."""
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return what()


def worker_of(folder: Path, other: int = 0) -> int:
    """The process of Ray that a run has been started by, which is not the other one."""
    file = folder / "worker"

    def found():
        text = file.read_text() if file.exists() else ""
        return int(text) if text and int(text) != other else 0

    return wait_for(found)


def test_a_lost_worker_costs_no_run():
    going = subprocess.Popen(command("--", "--wait", "go"), stdout=subprocess.PIPE, text=True)
    first = worker_of(RUN)
    os.kill(first, signal.SIGKILL)
    second = worker_of(RUN, other=first)
    Path("go").touch()
    out, _ = going.communicate(timeout=240)
    assert going.returncode == 0, out
    assert "status 0" in out
    assert first != second
    assert sweep.finished(RUN)


def test_a_lost_node_costs_no_run():
    """Two nodes, with one CPU each; that of the first of two runs is killed."""
    cluster = ray.cluster_utils.Cluster(True, head_node_args={"num_cpus": 0})
    try:
        for number in (2, 3):
            cluster.add_node(num_cpus=1, node_ip_address=f"127.0.0.{number}")
        flags = ["--seeds", "0", "1", "--address", cluster.address, "--", "--wait", "go"]
        going = subprocess.Popen(command(*flags), stdout=subprocess.PIPE, text=True)
        workers = [worker_of(RUN), worker_of(RUN.with_name(f"{RUN.name[:-1]}1"))]
        nodes = [parent(worker) for worker in workers]
        assert nodes[0] != nodes[1]
        for process in (nodes[0], workers[0]):  # all of a machine goes at once
            os.kill(process, signal.SIGKILL)
        Path("go").touch()
        out, _ = going.communicate(timeout=240)
        assert going.returncode == 0, out
        assert out.count("status 0") == 2
    finally:
        cluster.shutdown()


def test_an_interrupted_sweep_leaves_no_process():
    going = subprocess.Popen(command("--", "--wait", "go"), stdout=subprocess.DEVNULL)
    worker = worker_of(RUN)
    node = parent(worker)
    going.send_signal(signal.SIGTERM)
    assert going.wait(60) == 143
    wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in (worker, node)))
    with FileLock(RUN / ".lock", timeout=10):
        assert not (RUN / "summary.json").exists()


@pytest.mark.parametrize("latest", [True, False])
def test_a_living_run_is_left_alone(latest):
    RUN.mkdir(parents=True)
    (RUN / "mine").touch()
    log = RUN.with_name(f"{RUN.name}.log")
    log.write_text("what it has said\n")
    if latest:
        (RUN / "latest.pt").touch()
    with FileLock(RUN / ".lock"):
        assert "failed: stub__test-x-y-v0__0 (status 2)" in run_sweep(status=1)
        assert (RUN / "mine").exists()
    assert log.read_text().startswith("what it has said\n")


@pytest.mark.parametrize("latest", [True, False])
def test_a_run_without_a_whole_summary_is_not_finished(latest):
    RUN.mkdir(parents=True)
    (RUN / "summary.json").write_text('{"final_score": 1')
    if latest:
        (RUN / "latest.pt").touch()
    run_sweep()
    assert (RUN / "how").read_text() == ("resumed" if latest else "new")
    assert "finished" in run_sweep()
    assert len(sweep.read_table(Path("results.csv"))) == 2


@pytest.mark.parametrize(
    "change, extra, word",
    [
        ({"tag": "../../x"}, [], "--tag"),
        ({"tag": "a..b"}, [], "--tag"),
        ({"tag": "a/b"}, [], "--tag"),
        ({"tag": "a\nb"}, [], "--tag"),
        ({"datasets": ("test/../../x",)}, [], "not the id"),
        ({"datasets": ("",)}, [], "not the id"),
        ({"datasets": ("test/x", "test-x")}, [], "share the folder"),
        ({"datasets": ()}, [], "one data set"),
        ({"out": None}, [], "--out"),
        ({"seeds": (-1,)}, [], "seed is below 0"),
        ({"jobs": 0}, [], "--jobs"),
        ({"threads": -1}, [], "--threads"),
        ({"what": "none.py"}, [], "none.py"),
        ({"what": "o3f-maze", "tag": "x"}, [], "own tags"),
        ({"what": "o3f-maze"}, ["--beta", "1"], "own tags"),
        ({}, ["--seed=4"], "--seed"),
        ({}, ["--run_name", "x"], "--run_name"),
        ({"out": Path("stub.py/results.csv")}, [], "stub.py"),
        ({"out": Path(".")}, [], "directory"),
        ({"out": Path("stub.py")}, [], "stub.py"),
        ({"losses": Path("stub.py/losses.csv")}, [], "stub.py"),
        ({"losses": Path("results.csv")}, [], "different files"),
        ({"run_dir": Path("stub.py/runs")}, [], "stub.py"),
        ({"run_dir": Path("stub.py")}, [], "stub.py"),
    ],
)
def test_a_sweep_refuses_before_it_begins(change, extra, word):
    args = {"what": "stub.py", "datasets": ("test/x/y-v0",), "out": Path("results.csv")}
    args |= {"run_dir": Path("runs")} | change
    said = sentence(sweep.main, sweep.Args(**args), extra)
    assert said.startswith("sweep.py: ")
    assert word in said
    assert not list(Path().rglob("*stub__*"))
    assert not list(Path().rglob("*.tmp"))
    assert Path("stub.py").read_text() == STUB


def test_a_sweep_refuses_a_damaged_finished_run():
    make_run(str(RUN), evaluations="step,phase\n1\n")
    args = sweep.Args("stub.py", ("test/x/y-v0",), out=Path("results.csv"), run_dir=Path("runs"))
    assert "eval.csv is shorter or longer" in sentence(sweep.main, args, [])


def test_arms_start_from_the_offline_phase_of_their_seed():
    """An experiment of two arms; one of them makes an offline phase of its own."""
    pendulum()
    short = " ".join(TINY).replace("--offline-steps 60 --online-steps 90", "--eval-episodes 1")
    online = f"iql.py --online-steps 90 {short}"
    arms = {"a": online, "own": f"{online} --offline-steps 30"}
    source = (BENCHMARK / "experiments.py").read_text()
    offline = f"iql.py --offline-steps 60 {short}"
    source += f"""
EXPERIMENTS = {{
    "tiny": Experiment(
        [], "", ["test/pendulum/random-v0"], 1, {offline!r}, {arms!r}, [], "probe.py"
    )
}}
"""
    for name in ("sweep.py", "plot.py"):
        Path("benchmark").mkdir(exist_ok=True)
        Path("benchmark", name).write_text((BENCHMARK / name).read_text())
    Path("benchmark/experiments.py").write_text(source)
    Path("iql.py").symlink_to(ROOT / "iql.py")
    Path("probe.py").write_text(PROBE)
    words = [sys.executable, "benchmark/sweep.py", "tiny", "--run-dir", "runs"]
    cost = subprocess.run([*words, "--dry-run"], capture_output=True, text=True)
    assert cost.stdout.count(" 1         0 ") == 3, cost.stdout
    assert cost.stdout.splitlines()[-1].split()[:4] == ["in", "all", "3", "0"]
    assert not Path("runs").exists()
    done = subprocess.run(words, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    rows = sweep.read_table(Path("benchmark/results/tiny.csv"))
    scores = {(row["tag"], row["seed"], row["step"]): row["return"] for row in rows}
    assert {tag for tag, _, _ in scores} == {"tiny-offline", "tiny-a", "tiny-own"}
    assert scores["tiny-a", "0", "0"] == scores["tiny-offline", "0", "0"]
    arguments = {row["tag"]: row["arguments"] for row in rows if row["arguments"]}
    assert "--offline-checkpoint" in arguments["tiny-a"]
    assert "--offline-checkpoint" not in arguments["tiny-own"]
    about = [row for row in rows if row["machine"]]
    assert [row["tag"] for row in about] == list(arguments)
    assert all(row["command"].startswith("python iql.py --dataset-id") for row in about)
    assert all(float(row["seconds"]) > 0 for row in about)
    training = sweep.read_table(Path("benchmark/results/tiny_training.csv"))
    assert {row["tag"] for row in training} == {"tiny-a", "tiny-own"}
    probed = sweep.read_table(Path("benchmark/results/tiny_probe.csv"))
    assert [(row["tag"], row["name"], row["value"]) for row in probed] == [
        ("tiny-offline", "networks", "1")
    ]
    again = subprocess.run(words, capture_output=True, text=True, timeout=300)
    assert again.stdout.count("finished") == 3


def test_arms_of_a_lost_offline_phase_are_not_begun(monkeypatch):
    """Ray ends them with the run that they wait for, when its worker has died once too often."""

    class Lost:
        exceptions = sweep.ray.exceptions
        init = shutdown = staticmethod(lambda *_, **__: None)
        cluster_resources = staticmethod(dict)

        @staticmethod
        def remote(**_):
            class Task:
                remote = staticmethod(lambda job, *_: job.folder.name)

            return lambda function: Task

        @staticmethod
        def wait(results, timeout):
            return results[:1], results[1:]

        @staticmethod
        def get(result):
            raise sweep.ray.exceptions.WorkerCrashedError

    monkeypatch.setattr(sweep, "ray", Lost)
    jobs = [sweep.Job(Path("runs/offline"), "x-offline", ["stub.py"])]
    jobs.append(sweep.Job(Path("runs/a"), "x-a", ["stub.py"], needs="offline"))
    files = {name: Path(f"{name}.csv") for name in ("out", "losses", "training")}
    said = sentence(sweep.work, sweep.Args("x", jobs=1, **files), jobs, status=1)
    assert "offline (WorkerCrashedError), a (not begun)" in said


@pytest.mark.parametrize("threads", [1, 2, 10**6])
def test_as_many_runs_at_a_time_as_there_are_cpus(threads):
    args = sweep.Args("stub.py", ("test/x/y-v0",), (0,), out=Path("x.csv"), threads=threads)
    sweep.check(args, [])
    assert args.jobs == max(1, len(os.sched_getaffinity(0)) // threads)


def test_arms_of_a_failed_offline_phase_are_not_begun():
    Path("benchmark").mkdir()
    for name in ("sweep.py", "plot.py"):
        Path("benchmark", name).write_text((BENCHMARK / name).read_text())
    source = (BENCHMARK / "experiments.py").read_text()
    source += """
ARMS = {"a": "stub.py", "b": "stub.py"}
EXPERIMENTS = {"tiny": Experiment([], "", ["test/x/y-v0"], 1, "stub.py", ARMS, [])}
"""
    Path("benchmark/experiments.py").write_text(source)
    words = [sys.executable, "benchmark/sweep.py", "tiny", "--run-dir", "runs", "--jobs", "2"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=240)
    assert done.returncode == 1
    assert done.stderr.count("(status 2)") == 1, done.stderr  # the stub knows no --online-steps
    assert done.stderr.count("(not begun)") == 2, done.stderr


def test_experiments_name_what_exists():
    for name, experiment in EXPERIMENTS.items():
        assert "offline" not in experiment.arms, name  # the offline phase's name in tables, figures
        for command in (experiment.offline, *experiment.arms.values()):
            script, *flags = shlex.split(command)
            module = importlib.import_module(Path(script).stem)
            known = {field.name for field in dataclasses.fields(module.Args)}
            for flag in flags:
                if flag.startswith("--"):
                    assert flag[2:].removeprefix("no-").replace("-", "_") in known, (name, flag)
        if experiment.probe:
            assert (ROOT / experiment.probe.split()[0]).is_file(), name
        for dataset in experiment.datasets:
            assert (ROOT / "datasets" / dataset).is_dir(), (name, dataset)
        if experiment.shares:
            assert EXPERIMENTS[experiment.shares].offline == experiment.offline, name


def test_every_arm_starts_from_the_offline_phase_of_its_seed():
    for what in ("jsrl-gate", "td3-collapse", "o3f-maze"):
        started = 0
        for job in sweep.plan(sweep.Args(what), []):
            if job.needs is None:
                continue
            flags = dict(itertools.pairwise(job.command))
            assert Path(flags["--offline-checkpoint"]).parent.name == job.needs
            _, dataset, seed, _ = job.needs.split("__")
            assert (dataset, seed) == (flags["--dataset-id"].replace("/", "-"), flags["--seed"])
            started += 1
        assert started >= 20


def test_a_run_that_was_told_other_things_is_not_taken_over():
    make_run(str(RUN))
    RUN.with_name(f"{RUN.name}.log").write_text("$ python stub.py --beta 2\n")
    args = sweep.Args("stub.py", ("test/x/y-v0",), out=Path("results.csv"), run_dir=Path("runs"))
    assert "other arguments" in sentence(sweep.main, args, [])


def test_what_a_run_will_cost():
    """As the finished runs of its arm have taken in all; before any, by what a step takes."""
    command = ["iql.py", "--offline-steps", "1000", "--online-steps", "1000"]
    jobs = [sweep.Job(Path(name), "arm", command) for name in "abc"]
    jobs.append(sweep.Job(Path("d"), "other", command))
    assert [sweep.cost(job, jobs) for job in jobs] == [12.0] * 4  # 0.006 s a step
    for job, seconds in zip(jobs, (100, 300)):
        job.folder.mkdir()
        (job.folder / "summary.json").write_text('{"seconds_total": 1}')  # without evaluations
        (job.folder / "sweep.json").write_text(f'{{"seconds": "{seconds}"}}')
    assert [sweep.cost(job, jobs) for job in jobs] == [0.0, 0.0, 200.0, 12.0]
    (Path("b") / "sweep.json").unlink()  # of a run made by hand nothing is known
    assert sweep.cost(jobs[2], jobs) == 100.0


def test_seconds_of_a_resumed_run_count_from_its_start(monkeypatch, tmp_path):
    job = sweep.Job(tmp_path / "a", "", ["stub.py"])
    job.folder.mkdir()
    (job.folder / "latest.pt").touch()
    (job.folder / "sweep.json").write_text('{"machine": "m", "seconds": "100"}')
    monkeypatch.setattr(sweep, "run_python", lambda *_: 0)
    sweep.train(job, 1, ".")
    assert float(json.loads((job.folder / "sweep.json").read_text())["seconds"]) >= 100


def test_the_learner_alone_has_its_own_score(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    scores = "step,eval/score,eval_learner/score\n10,60,\n10,,20\n"
    (tmp_path / "metrics.csv").write_text(scores)
    episodes = [f"10,online,{policy},0,1,6,9," for policy in ("actor", "learner")]
    (tmp_path / "eval.csv").write_text("\n".join([EVAL.split("\n")[0], *episodes]) + "\n")
    rows = sweep.read_run(tmp_path)
    assert [(row["policy"], row["score"]) for row in rows] == [("actor", "60"), ("learner", "20")]


def test_offline_phases_come_first():
    """So the precondition is known before the arms cost anything."""
    jobs = sweep.plan(sweep.Args("cal_ql-maze"), [])
    tags = [job.tag for job in jobs]
    assert tags[:6] == ["cal_ql-maze-offline"] * 5 + ["cal_ql-maze-cal_ql"]
    assert tags.count("cal_ql-maze-offline") == 5


def test_a_sweep_without_address_joins_no_cluster(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")  # what another program may have set
    run_sweep("--seeds", "0")
    assert sweep.read_table(Path("results.csv"))


def test_the_arguments_of_a_run_stand_in_its_first_row():
    old = f"{HEADER}\nstub.py,,test/x/y-v0,5,0,offline,actor,5,50,,2\n"
    Path("results.csv").write_text(old)
    run_sweep("--seeds", "0", "1", "--", "--beta", "1")
    rows = sweep.read_table(Path("results.csv"))
    found = [(row["seed"], row["step"], row["arguments"]) for row in rows]
    assert found[:4] == [
        ("0", "0", "--beta 1"),
        ("0", "10", ""),
        ("1", "0", "--beta 1"),
        ("1", "10", ""),
    ]
    assert found[4:] == [("5", "0", "")]
    before = Path("results.csv").read_bytes()
    run_sweep("--seeds", "0", "1", "--", "--beta", "1")
    assert Path("results.csv").read_bytes() == before


# ---- plot.py: what is one curve


def test_runs_with_other_arguments_are_other_curves(capsys):
    same = {"run_name": "b", "device": "cuda", "torch": "3", "commit": "f00"}
    a, b = make_run("a"), make_run("b", seed=1, **same)
    c, d = make_run("c", seed=2, beta=1.0), make_run("d", seed=0, beta=1.0, gamma=0.5)
    assert table(capsys, a, b) == ["iql"]
    assert table(capsys, a, b, c) == ["iql --beta 3", "iql --beta 1"]
    assert table(capsys, a, d) == ["iql --beta 3 --gamma 0.99", "iql --beta 1 --gamma 0.5"]
    other = make_run("e", dataset_id="test/z/y-v0", beta=7.0)
    assert table(capsys, a, other) == ["iql", "iql"]
    guided = make_run("f", offline_checkpoint="runs/a/offline.pt")
    again = make_run("g", seed=1, offline_checkpoint="runs/b/offline.pt")
    assert table(capsys, guided, again) == ["iql"]
    assert table(capsys, a, guided) == ["iql", "iql --offline-checkpoint"]


def test_nothing_but_arguments_counts():
    folder = run("--dataset-id", pendulum(), *TINY, "--online-steps", 0, "--run-name", "one")
    text = sweep.arguments(json.loads((folder / "config.json").read_text()))
    found = {flag.split()[0].removeprefix("no-") for flag in text.removeprefix("--").split(" --")}
    fields = {field.name.replace("_", "-") for field in dataclasses.fields(iql.Args)}
    fields -= {"dataset-id", "env-module", "seed", "device", "run-dir", "run-name", "resume"}
    assert found == fields - {"offline-checkpoint", "track"}


def test_cql_is_named(capsys):
    runs = [make_run("a", script="cal_ql.py", calibrate=False)]
    runs += [make_run("b", script="cal_ql.py", calibrate=True)]
    runs += [make_run("c", script="wsrl.py", calibrate=False)]
    assert table(capsys, *runs) == ["cal_ql (CQL)", "cal_ql", "wsrl (CQL)"]


def test_curves_of_a_sweep(capsys):
    row = "cal_ql.py,{tag},test/x/y-v0,{seed},0,offline,actor,5,50,,2"
    old = [row.format(tag="cql", seed=0), row.format(tag="", seed=0)]
    Path("old.csv").write_text("\n".join([HEADER, *old]) + "\n")
    assert table(capsys, "old.csv") == ["cal_ql cql", "cal_ql"]
    new = [f"{row.format(tag='cql', seed=1)},--beta 1 --no-calibrate"]
    new += [f"{row.format(tag='', seed=2)},--beta 1 --calibrate"]
    new += [f"{row.format(tag='', seed=3)},--beta 2 --calibrate"]
    new += [f"{row.format(tag='', seed=3)},".replace(",0,offline", ",10,online")]
    Path("new.csv").write_text("\n".join([f"{HEADER},arguments", *new]) + "\n")
    names = ["cal_ql (CQL) cql", "cal_ql --beta 1", "cal_ql --beta 2"]
    assert table(capsys, "new.csv") == names
    both = ["cal_ql cql", "cal_ql (arguments unknown)", *names]
    assert table(capsys, "old.csv", "new.csv") == both


def test_one_curve_has_no_seed_twice():
    make_run("a")
    make_run("b")
    args = plot.Args(runs=(Path("a"), Path("b")), out=Path("out.png"))
    assert "two runs of iql.py on test/x/y-v0 with seed 0" in sentence(plot.main, args)
    assert not Path("out.png").exists()


# ---- plot.py: bad input


@pytest.mark.parametrize(
    "row",
    [
        "iql.py,,test/x/y-v0,0,0,offline,actor,5,50",
        "iql.py,,test/x/y-v0,0,0,offline,actor,5,50,,2,3,4",
        "iql.py,,test/x/y-v0,0,0,offline,actor,nan,,,2",
        "iql.py,,test/x/y-v0,0,0,offline,actor,5,inf,,2",
        "iql.py,,test/x/y-v0,0,0,offline,actor,1e308,,,2",
        "iql.py,,test/x/y-v0,0,0,offline,actor,,50,,2",
        f"iql.py,,test/x/y-v0,0,{'9' * 400},online,actor,5,50,,2",
        f"iql.py,,test/x/y-v0,0,{'9' * 5000},online,actor,5,50,,2",
        "iql.py,,test/x/y-v0,x,0,offline,actor,5,50,,2",
        "iql.py,,test/x/y-v0,0,0.5,offline,actor,5,50,,2",
        f"iql.py,,{'x' * 200_000},0,0,offline,actor,5,50,,2",
        'iql.py,,"a\nb",0,0,offline,actor,5,50,,2',
        'iql.py,,"a"b,0,0,offline,actor,5,50,,2',
    ],
    ids=str.__len__,
)
def test_a_bad_row_is_refused(row):
    Path("bad.csv").write_text(f"{HEADER}\n{row}\n")
    said = sentence(plot.main, plot.Args(runs=(Path("bad.csv"),), out=Path("out.png")))
    assert said.startswith("plot.py: bad.csv is neither")
    assert len(said) < 400
    assert not Path("out.png").exists()


@pytest.mark.parametrize("name", ["nothing", "empty.csv", "binary.csv", "folder", "list", "deep"])
def test_what_is_no_run_is_refused(name):
    Path("empty.csv").write_text(f"{HEADER}\n")
    Path("binary.csv").write_bytes(b"\xff\xfe\n")
    Path("folder").mkdir()
    for folder, text in (("list", "[]"), ("deep", "[" * 100_000)):
        (make_run(folder) / "config.json").write_text(text)
    said = sentence(plot.main, plot.Args(runs=(Path(name),), out=Path("out.png")))
    assert said.startswith(f"plot.py: {name} ")


@pytest.mark.parametrize(
    "outputs",
    [
        {"out": "file/out.png"},
        {"out": "folder.png"},
        {"out": "out"},
        {"out": "out.csv"},
        {"csv": "file/out.csv"},
        {"csv": "folder.png"},
        {"csv": "out.png"},
        {"csv": "runs/../results.csv"},
    ],
)
def test_outputs_are_checked_before_drawing(outputs, monkeypatch):
    results = f"{HEADER}\niql.py,,test/x/y-v0,0,0,offline,actor,5,50,,2\n"
    Path("results.csv").write_text(results)
    Path("file").touch()
    Path("folder.png").mkdir()
    Path("runs").mkdir()
    monkeypatch.setattr(plot, "draw", None)  # to call it is a TypeError
    paths = {name: Path(path) for name, path in ({"out": "out.png"} | outputs).items()}
    said = sentence(plot.main, plot.Args(runs=(Path("results.csv"),), **paths))
    assert said.startswith("plot.py: ")
    assert Path("results.csv").read_text() == results
    assert not list(Path().rglob("*.tmp"))
    assert not Path("out.png").exists()


def test_a_failure_leaves_the_old_files(monkeypatch):
    make_run("a")
    args = plot.Args(runs=(Path("a"),), out=Path("out.png"), csv=Path("out.csv"))
    plot.main(args)
    before = args.out.read_bytes(), args.csv.read_bytes()

    def disk_full(self, path, **_):
        Path(path).write_bytes(b"half")
        raise OSError("No space left on device")

    (Path("a") / "eval.csv").write_text(EVAL.replace(",5,9,", ",7,9,"))
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", disk_full)
    assert "No space left" in sentence(plot.main, args)
    assert (args.out.read_bytes(), args.csv.read_bytes()) == before
    assert not list(Path().glob("*.tmp"))


# ---- plot.py: properties


def outcome(path: Path) -> bool:
    """Whether plot.py draws a file; if not, it must say so in one line with status 2."""
    err = io.StringIO()
    with contextlib.redirect_stderr(err), contextlib.redirect_stdout(io.StringIO()):
        try:
            plot.main(plot.Args(runs=(path,), out=Path("out.svg"), csv=Path("out.csv")))
            return True
        except SystemExit as end:
            assert end.code == 2
    lines = err.getvalue().splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("plot.py: ")
    return False


def quick_outcome(path: Path) -> bool:
    """The same with an empty picture, which takes less time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plot, "draw", lambda *_: plot.plt.figure())
        return outcome(path)


ROWS = [f"{HEADER},arguments", "iql.py,a,test/x/y-v0,0,-5,offline,actor,1,10,0.5,2,--beta 1"]
ROWS += [
    "iql.py,a,test/x/y-v0,0,0,offline,actor,2,20,,2,",
    "iql.py,a,t/x/y-v0,1,5,online,actor,3,,,2,",
]
CELLS = st.one_of(st.text(max_size=20), st.integers().map(str), st.floats().map(str))
CHECK = settings(max_examples=100, deadline=None, derandomize=True)


@CHECK
@given(value=st.floats(), column=st.sampled_from([7, 8]))
def test_any_number_is_drawn_or_refused(value, column):
    row = ["iql.py", "", "test/x/y-v0", "0", "0", "offline", "actor", "1", "10", "", "2"]
    row[column] = repr(value)
    Path("x.csv").write_text(f"{HEADER}\n{','.join(row)}\n")
    assert quick_outcome(Path("x.csv")) == (abs(value) < 1e15)


@CHECK
@given(row=st.integers(0, 3), column=st.integers(0, 11), cell=CELLS)
def test_any_cell_is_drawn_or_refused(row, column, cell):
    rows = [line.split(",") for line in ROWS]
    rows[row][column] = cell
    with open("x.csv", "w", newline="", errors="surrogateescape") as file:
        csv.writer(file).writerows(rows)
    quick_outcome(Path("x.csv"))


@CHECK
@given(start=st.integers(0, 300), length=st.integers(0, 300), junk=st.binary(max_size=20))
def test_any_damage_is_drawn_or_refused(start, length, junk):
    content = "\n".join([*ROWS, ""]).encode()
    Path("x.csv").write_bytes(content[:start] + junk + content[start + length :])
    quick_outcome(Path("x.csv"))


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=9),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3)
    ),
    max_leaves=5,
)


@CHECK
@given(
    key=st.sampled_from([*CONFIG, "calibrate", "x y"]),
    value=JSON,
    summary=JSON,
    cut=st.integers(0, 200),
)
def test_any_config_and_summary_are_drawn_or_refused(key, value, summary, cut):
    folder = Path("any")
    if not folder.exists():
        make_run("any")
    (folder / "config.json").write_text(json.dumps(CONFIG | {key: value})[: cut or None])
    (folder / "summary.json").write_text(json.dumps(summary)[:cut])
    quick_outcome(folder)
    assert sweep.finished(folder) == (isinstance(summary, dict) and cut >= len(json.dumps(summary)))


@settings(max_examples=12, deadline=None, derandomize=True)
@given(
    name=st.text(st.characters(max_codepoint=0x24F, exclude_categories=["C", "Z"]), max_size=30),
    values=st.lists(st.floats(-1e15, 1e15), min_size=2, max_size=9),
    scale=st.integers(1, 10**13),
)
def test_whatever_is_read_can_be_drawn(name, values, scale):
    rows = [HEADER.split(",")]
    for number, value in enumerate(values):
        step = str((number - 2) * scale)
        rows.append(["$_" + name, name, name, "0", step, "x", "actor", repr(value), "", "", "1"])
    with open("x.csv", "w", newline="") as file:
        csv.writer(file).writerows(rows)
    valid = name.isprintable() and all(abs(value) < 1e15 for value in values)
    assert outcome(Path("x.csv")) == valid


# ---- statistics, and the tables of the docs


def test_the_interval_is_that_of_students_t():
    """From a printed table: the 97.5 % point is 12.706 for 1 degree of freedom, 2.776 for 4."""
    assert math.isnan(plot.interval([1.0]))
    assert plot.interval([0.0, 2.0]) == pytest.approx(12.706, rel=1e-4)  # standard error 1
    assert plot.interval([1.0, 2.0, 3.0, 4.0, 5.0]) == pytest.approx(2.776 * 0.5**0.5, rel=1e-3)


def test_differences_are_paired_by_seed():
    assert plot.paired({0: 5.0, 1: 7.0, 2: 9.0}, {1: 1.0, 0: 2.0, 3: 4.0}) == {0: 3.0, 1: 6.0}


def make_table(path: str, curves: dict[str, float]) -> Path:
    """A CSV of three data sets and two seeds; a curve has the same score at each step."""
    lines = [HEADER]
    for tag, score in curves.items():
        for dataset, seed, step in itertools.product("xyz", (0, 1), (0, 10, 20)):
            value = score + seed
            lines.append(
                f"iql.py,{tag},test/{dataset}/a-v0,{seed},{step},online,actor,5,{value},,2"
            )
    Path(path).write_text("\n".join(lines) + "\n")
    return Path(path)


def test_curves_are_compared_with_a_base(capsys):
    path = make_table("results.csv", {"a": 10.0, "b": 30.0})
    plot.main(plot.Args(runs=(path,), out=Path("out.svg"), base="iql a"))
    assert "rliable" in Path("out.svg").read_text()
    first = Path("out.svg").read_bytes()
    plot.main(plot.Args(runs=(path,), out=Path("out.svg"), base="iql a"))
    assert Path("out.svg").read_bytes() == first
    line = sentence(plot.main, plot.Args(runs=(path,), out=Path("out.svg"), base="iql c"))
    assert "'iql a', 'iql b'" in line


def test_without_rliable_a_base_over_three_data_sets_gets_a_sentence(monkeypatch):
    path = make_table("results.csv", {"a": 10.0, "b": 30.0})
    monkeypatch.setattr(plot, "find_spec", lambda name: None)
    args = plot.Args(runs=(path,), out=Path("out.svg"), base="iql a")
    assert "needs rliable: make benchmark" in sentence(plot.main, args)
    assert not Path("out.svg").exists()


def test_a_figure_shows_by_how_much_a_curve_is_above_the_base(monkeypatch):
    path, drawn = make_table("results.csv", {"a": 10.0, "b": 30.0}), []
    monkeypatch.setattr(plot, "draw_differences", lambda ax, others, colors: drawn.append(others))
    plot.main(plot.Args(runs=(path,), out=Path("out.svg"), base="iql a"))
    assert drawn == [{"iql b": {0: 20.0, 1: 20.0}}] * 3


def test_the_aggregate_is_the_interquartile_mean():
    scores = np.array([[0.0, 1.0], [2.0, 3.0], [4.0, 5.0], [6.0, 100.0]])
    points, intervals = plot.aggregate({"x": scores})
    assert points["x"] == pytest.approx(3.5)  # of 2, 3, 4, 5
    low, high = intervals["x"][:, 0]
    assert low < 3.5 < high


def claim(
    *differences: list[float],
    holds: str = "de",
    margin: float = 0.0,
    control=None,
    offline=(),
    probe: str = "",
) -> str:
    """The verdict on an experiment with one run per arm and seed; a list for each data set.

    Of the data sets `offline` the offline phases have been made, too, and no arm."""
    runs = {(dataset, "offline"): dict.fromkeys(range(4), tables.Run()) for dataset in offline}
    for dataset, values in zip("de", differences):
        for seed, value in enumerate(values):
            scores = {"a": {0: 0.0, 1: 50.0 + value}, "b": {0: 0.0, 1: 50.0}, "offline": {0: 0.0}}
            for arm, points in scores.items():
                runs.setdefault((dataset, arm), {})[seed] = tables.Run(scores=points)
    asked = Claim("", "", ("a", "b"), "mean_online_score", margin, control)
    datasets = list("de"[: len(differences)])
    experiment = Experiment([asked], "", datasets, 4, "", {"a": "", "b": ""}, [], probe)

    def check(name: str, dataset: str, runs: tables.Runs) -> tuple[str, bool]:
        assert all(seed < 4 for seeds in runs.values() for seed in seeds)  # the plan's
        return "", dataset in holds

    tables.PRECONDITIONS["made-up"] = check
    try:
        return tables.verdict("made-up", experiment, asked, runs)
    finally:
        del tables.PRECONDITIONS["made-up"]


def test_verdicts():
    assert claim([]) == "not run yet"
    assert claim([5.0, 6.0]) == "open: 2 of 4 pairs"
    assert claim([5.0, 6.0, 7.0, 6.0, 5.0, 6.0, 7.0, 6.0], []) == "open: 4 of 8 pairs"
    assert claim([-5.0, 6.0, 7.0, -6.0, *[6.0] * 99]) == "not shown"  # seeds beyond the plan
    assert claim([5.0, 6.0, 7.0, 6.0]) == "shown"
    assert claim([5.0, 6.0, 7.0, 6.0], holds="") == "not testable here"
    assert claim([], [], offline="de") == "not run yet"
    assert claim([], [], offline="de", holds="") == "not testable here"
    assert claim([], [], offline="d", holds="") == "open: 0 of 4 pairs"
    unknown = claim([5.0, 6.0, 7.0, 6.0], probe="probe.py")  # it has found nothing
    assert unknown == "open: the precondition is not known on d"
    assert claim([-5.0, 6.0, 7.0, -6.0]) == "not shown"
    above, around, below = [5.0, 6.0, 7.0, 6.0], [-5.0, 6.0, 7.0, -6.0], [-5.0, -6.0, -7.0, -6.0]
    assert claim(above, above) == "shown"
    assert claim(above, around) == "shown on d only"
    assert claim(above, below) == "mixed: shown on d, refuted on e"
    assert claim(around, around) == "not shown"
    assert claim(below, around) == "refuted on d only"
    assert claim([-5.0, -6.0, -7.0, -6.0]) == "refuted here"
    assert claim([-3.0, -2.0, -3.0, -2.0], margin=-5.0) == "shown"
    assert claim(above, above, holds="d") == "shown (testable on d only)"
    assert claim(above, [], holds="d", offline="e") == "shown (testable on d only)"
    assert claim(above, margin=-5.0, control=("a", "b")) == "shown"
    assert claim(around, margin=-50.0) == "shown"
    assert claim(around, margin=-50.0, control=("a", "b")) == "not testable here"
    assert claim(below, above, holds="d") == "refuted here (testable on d only)"
    assert claim([-9.0, 2.0, 2.0, 2.0]) == "not shown"  # a mean below 0, an interval around it
    assert claim([5.0, 6.0, 7.0, 6.0], margin=20.0) == "refuted here"
    assert claim([0.0, 0.0, 0.0, 0.0]) == "not testable here"  # the arms are the same
    assert claim([0.0, 0.0, 0.0, 0.1]) == "not shown"
    assert claim([5.0, 40.0, 7.0, 6.0], margin=20.0) == "not shown"


def offline_runs(score: float, seeds: int = 8) -> dict:
    """The offline phases of an experiment, all with one score at the switch."""
    scores = {-4: score, -3: score, -2: score, -1: score, 0: score}
    return {("d", "offline"): {seed: tables.Run(scores=scores) for seed in range(seeds)}}


@pytest.mark.parametrize(
    "name, score, holds",
    [
        ("jsrl-cold", 19.0, False),
        ("jsrl-cold", 21.0, True),
        ("jsrl-cold", 79.0, True),
        ("jsrl-cold", 81.0, False),
        ("lapo-search", 19.0, False),
        ("lapo-search", 81.0, False),
        ("wsrl-maze", 49.0, False),
        ("wsrl-maze", 100.0, True),
        ("wsrl-adam", 19.0, False),
        ("porl-init", 19.0, False),
        ("porl-hopper", 21.0, True),
    ],
)
def test_preconditions_on_the_score_at_the_switch(name, score, holds):
    assert tables.PRECONDITIONS[name](name, "d", offline_runs(score))[1] is holds


def test_a_precondition_is_open_until_all_seeds_are_there():
    experiment = EXPERIMENTS["jsrl-cold"]
    for score, holds in ((0.0, False), (50.0, True)):
        for seeds, known in ((1, None), (7, None), (8, holds), (9, holds)):
            runs = offline_runs(score, seeds)
            assert tables.precondition("jsrl-cold", experiment, "d", runs)[1] is known
    runs = offline_runs(50.0) | {("d", "offline"): offline_runs(50.0)["d", "offline"]}
    runs["d", "offline"][8] = tables.Run(scores={0: -1e9})  # beyond the plan
    assert tables.precondition("jsrl-cold", experiment, "d", runs)[1] is True


@pytest.mark.parametrize(
    "search, holds",
    [([9.0, 9.0, 9.0], True), ([1.0, 9.0, 2.0], False), ([-9.0, -8.0, -9.0], False)],
)
def test_the_search_has_to_help_beyond_its_scatter(monkeypatch, search, holds):
    rows = []
    for seed, gain in enumerate(search):
        rows += [("o3f 0.1", seed, gain + seed), ("plain", seed, seed)]
        rows.append(("noise 0.1", seed, 0.0 if holds else -99.0))  # does not count
    probe = [{"dataset": "d", "seed": str(seed), "name": n, "value": str(v)} for n, seed, v in rows]
    probe.append({"dataset": "e", "seed": "0", "name": "o3f 0.1", "value": "-1e9"})
    monkeypatch.setattr(tables, "read_table", lambda path: probe)
    assert tables.search_helps("o3f-maze", "d", {})[1] is holds


def test_commands_at_the_papers_budgets_can_be_given():
    """A shell says what they call; the scripts read it."""
    calls = []
    for experiment in EXPERIMENTS.values():
        script = f'python() {{ echo "$@"; }}; {experiment.full}'
        done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
        calls += done.stdout.splitlines()
    for call in calls:
        name, *flags = call.split()
        importlib.import_module(name.removesuffix(".py")).parse_args(flags)
    assert len(set(calls)) == 3 * 3 + 4 + 2


@pytest.mark.parametrize(
    "score, share, holds", [(30, 0.01, True), (30, 0.09, False), (9, 0.01, False)]
)
def test_a_sane_critic_seldom_prefers_a_random_action(monkeypatch, score, share, holds):
    row = {"dataset": "d", "seed": "0", "name": "random above the policy", "value": str(share)}
    monkeypatch.setattr(tables, "read_table", lambda path: [row])
    assert tables.critic_is_sane("pex-drop", "d", offline_runs(float(score)))[1] is holds


@pytest.mark.parametrize("direct, holds", [([50.0, 60.0], True), ([50.0, 95.0], False)])
def test_a_drop_is_more_than_its_scatter(monkeypatch, direct, holds):
    numbers = {"frozen": {0: 90.0, 1: 100.0}, "direct": dict(enumerate(direct))}
    monkeypatch.setattr(tables, "measured", lambda *_: numbers)
    assert tables.there_is_a_drop("jsrl-gate", "d", {})[1] is holds


@pytest.mark.parametrize(
    "score, q, cql_q, rate, holds",
    [
        (60.0, 102.0, 98.0, 0.5, True),
        (15.0, 102.0, 98.0, 0.5, False),
        (97.0, 102.0, 98.0, 0.5, False),
        (60.0, 110.0, 98.0, 0.5, False),
        (60.0, 102.0, 90.0, 0.5, False),
        (60.0, 102.0, 98.0, 0.02, False),
        (60.0, 102.0, 98.0, 0.95, False),
    ],
)
def test_values_are_settled_where_q_rests_and_the_bound_acts(
    monkeypatch, score, q, cql_q, rate, holds
):
    """Q is 100 until 2,000 updates before the switch."""
    losses = []
    for tag, last in (("cal_ql-maze-offline", q), ("cal_ql-maze-cql", cql_q)):
        for step, value in ((-3000, 100.0), (-2000, 100.0), (-1000, last), (0, last)):
            row = {"dataset": "d", "seed": "0", "tag": tag, "step": str(step)}
            losses.append(row | {"q": str(value), "bound_rate": str(rate)})
    monkeypatch.setattr(tables, "read_table", lambda path: losses)
    assert tables.values_are_settled("cal_ql-maze", "d", offline_runs(score))[1] is holds


def test_measures():
    run = tables.Run(
        scores={0: 10.0, 2500: 20.0, 5000: 40.0, 7500: 90.0},
        returns=[0.0] * 5 + [1.0] * 15,
    )
    arms = {"guide": tables.Run(returns=[2.0, 2.0])}
    values = {-6: 1000.0, -4: 1.0, -3: 2.0, -2: 3.0, -1: 4.0, 0: 15.0}  # the last five: mean 5
    arms["offline"] = tables.Run(scores=values, evaluated=values)
    run.learner = {step: float(step) for step in range(1, 8)}
    run.guided = [(10, 10, 1.0, 9), (3760, 5, 0.9, 2), (7500, 15, 0.5, 6)]  # the first: too early
    assert tables.mean_online_score(run, arms) == 50.0
    assert tables.mean_after_warmup(run, arms) == 90.0
    learned = {step: float(step) for step in range(12)}  # from 3 on, so 3 to 9 count
    run_from_3 = tables.Run(scores=learned, updated=list(range(11, 2, -1)))
    assert tables.mean_while_learning(run_from_3, arms) == 6.0
    assert tables.final_learner(run, arms) == 5.0
    assert tables.learner_share(run, arms) == pytest.approx(40.0)
    assert tables.late_stage(run, arms) == 4.0
    assert tables.training_success(run, arms) == 75.0
    assert tables.training_return(run, arms) == 0.75
    assert tables.lowest_ten(run, arms) == 25.0  # five of the first ten, half as good as the guide
    assert tables.mean_in_warmup(run, arms) == 30.0
    assert tables.lowest_of_switch(run, arms) == 10.0


def test_training_episodes_carry_the_guides_share_and_stage():
    """It is logged before the return of its episode, in a row of its own."""
    folder = Path("runs/one")
    folder.mkdir(parents=True)
    Path(folder, "config.json").write_text(json.dumps(CONFIG))
    lines = ["step,online/guide_share,online/stage,online/td_loss"]
    lines[0] += ",online/episode_return,online/episode_length"
    lines += ["9,0.75,1,,,", "9,,,,3,9", "10,,,1,,", "19,0.5,2.0,,,", "19,,,,4,10"]
    Path(folder, "metrics.csv").write_text("\n".join(lines) + "\n")
    rows = sweep.read_training(folder)
    assert "new_policy_share" not in rows[0]
    assert [(row["step"], row["return"], row["guide_share"], row["stage"]) for row in rows] == [
        ("9", "3", "0.75", "1"),
        ("19", "4", "0.5", "2"),
    ]


def test_losses_are_those_of_the_last_update():
    """A row without a loss (what pex.py logs of each episode) is none of them."""
    folder = Path("runs/one")
    folder.mkdir(parents=True)
    Path(folder, "config.json").write_text(json.dumps(CONFIG))
    lines = ["step,online/new_policy_share,online/td_loss,eval/return"]
    lines += ["9,0.75,,", "10,,,1", "20,,3,", "25,0.5,,", "30,,,2"]
    Path(folder, "metrics.csv").write_text("\n".join(lines) + "\n")
    assert [(row["step"], row["td_loss"]) for row in sweep.read_losses(folder)] == [("30", "3")]


def test_runs_of_an_arm_that_were_told_different_things_make_no_table(monkeypatch):
    monkeypatch.setattr(tables, "RESULTS", Path())
    lines = [f"{HEADER},arguments,machine,seconds"]
    for seed, words in ((0, "--beta 3"), (1, "--beta 3"), (2, "--beta 4")):
        lines.append(f"iql.py,x-a,d,{seed},0,offline,actor,1,1,,1,{words},here,5")
    Path("x.csv").write_text("\n".join(lines[:-1]) + "\n")
    assert len(tables.read("x")["d", "a"]) == 2
    Path("x.csv").write_text("\n".join(lines) + "\n")
    with pytest.raises(ValueError, match="x-a.*different arguments"):
        tables.read("x")


def test_arms_of_a_seed_began_with_one_policy():
    """What the CSVs of the experiments say of the switch, evaluated with the same seeds."""
    compared = 0
    for name, experiment in EXPERIMENTS.items():
        found = tables.read(name)
        sharing = [arm for arm, words in experiment.arms.items() if "--offline-steps" not in words]
        for dataset, seed in itertools.product(experiment.datasets, range(experiment.seeds)):
            runs = [found.get((dataset, arm), {}).get(seed) for arm in sharing]
            returns = [done.evaluated[0] for done in runs if done]
            assert len(set(returns)) <= 1, (name, dataset, seed)
            compared += len(returns)
    assert compared > 100


def test_costs_count_a_shared_offline_phase_once(monkeypatch):
    first = {("d", "offline"): {0: tables.Run(seconds=3600.0, machine="m")}}
    second = {("d", "offline"): {0: tables.Run(seconds=3600.0, machine="m")}}
    second["e", "offline"] = {0: tables.Run(seconds=3600.0, machine="m")}
    second["d", "offline"][1] = tables.Run(seconds=3600.0, machine="m")
    first["d", "offline"][1] = tables.Run(seconds=3599.0, machine="m")  # made again elsewhere
    lends = dataclasses.replace(EXPERIMENTS["jsrl-gate"])
    takes = dataclasses.replace(lends, shares="lends")
    monkeypatch.setattr(tables, "EXPERIMENTS", {"lends": lends, "takes": takes})
    monkeypatch.setattr(tables, "read", {"lends": first, "takes": second}.get)
    rows = ["| lends | 2 | 2.0 | m |", "| takes | 2 | 2.0 | m |"]
    assert tables.costs_table()[2:] == rows


def test_table_of_losses(monkeypatch):
    monkeypatch.setattr(tables, "RESULTS", Path())
    rows = ["step,phase,q,gap", "-10,offline,1,7", "0,offline,1234.5,", "10,online,0.12345,8"]
    header, *rows = rows
    lines = [f"script,tag,dataset,seed,{header}", *(f"iql.py,x,d,0,{row}" for row in rows)]
    lines.append("iql.py,x,d,1,0,offline,-3,9")
    Path("losses.csv").write_text("\n".join(lines) + "\n")
    last = tables.losses_table("losses.csv", "q", "gap")[-1]
    assert last == "| iql x | d | -3 to 1234 | 0.123 | 9 | 8 |"


def test_table_of_speeds(monkeypatch):
    monkeypatch.setattr(tables, "RESULTS", Path())
    rows = ["a b,twin,0,4", "a b,ours,0,2", "a b,twin,1,9", "a b,ours,1,3", "c,ours,0,1"]
    Path("speed.csv").write_text("\n".join(["program,name,block,ms", *rows]) + "\n")
    lines = tables.speed_table("a", "b")[2:]
    assert lines[0] == "| twin | 4.00 | 6.50 | 9.00 | 1.00 | 1.00 | 1.00 |"
    assert lines[1] == "| ours | 2.00 | 2.50 | 3.00 | 2.00 | 2.50 | 3.00 |"


def small_comparison(monkeypatch, runs, datasets, arms):
    experiment = dataclasses.replace(
        EXPERIMENTS["comparison"], datasets=datasets, arms=arms, seeds=2
    )
    monkeypatch.setitem(EXPERIMENTS, "comparison", experiment)
    monkeypatch.setattr(tables, "read", lambda name: runs)


def test_table_of_a_comparison(monkeypatch):
    """An arm's time includes the offline phase that it starts from; the end: three evaluations."""
    d = "o2o/hopper/medium-v0"  # whose 0 and 100 are -20.272305 and 3234.3
    runs = {(d, "offline"): {0: tables.Run(scores={0: 10.0}, seconds=60.0)}}
    scores = {5: 10.0, 10: 20.0, 6000: 40.0, 6010: 60.0}
    runs[d, "shared"] = {
        0: tables.Run(scores=scores, seconds=120.0, returns=[3234.3, -20.272305]),
        2: tables.Run(scores={5: 99.0}),  # not planned
    }
    own = {0: 1.0, 5: 2.0, 5500: 3.0}
    runs[d, "own"] = {0: tables.Run(scores=own, seconds=60.0, returns=[3234.3])}
    late = {-16_000: 7.0, -15_000: 9.0, -14_000: 20.0, -9_000: 30.0, 0: 40.0}
    runs[d, "resting"] = {0: tables.Run(scores=late, seconds=600.0)}
    arms = {"shared": "iql.py", "own": "awac.py --offline-steps 5", "none": "pex.py"}
    arms["resting"] = "iql.py --offline-steps 9 --online-steps 0"
    small_comparison(monkeypatch, runs, [d], arms)
    assert tables.comparison_table("comparison")[2:] == [
        "| shared | 1 | 10.0 | 32.5 | 50.0 | 40.0 | 50.0 | 3 |",
        "| own | 1 | 1.0 | 2.5 | 3.0 | 2.5 | 100.0 | 1 |",
        "| none | 0 | not run yet | - | - | - | - | - |",
        "| resting | 1 | 8.0 | 30.0 | 35.0 | 30.0 | - | 10 |",
        "| *the data* | - | 42.3 | - | - | - | - | - |",
    ]


def test_figure_of_a_comparison(monkeypatch):
    """Data sets whose runs are complete; where all are, rliable's two panels, too."""
    monkeypatch.setattr(tables, "ROOT", Path())
    datasets, runs = ["o2o/a/b-v0", "o2o/c/d-v0"], {}
    for dataset, level in zip(datasets, (10.0, 50.0)):
        Path("datasets", dataset, "data").mkdir(parents=True)
        references = {"ref_min_score": 0.0, "ref_max_score": 1.0, "o2o_behaviour_score": 5.0}
        Path("datasets", dataset, "data/metadata.json").write_text(json.dumps(references))
        for arm, gain in (("offline", 0.0), ("iql", 1.0), ("other", 4.0)):
            steps = (-5, 0) if arm == "offline" else (6000, 7000)
            runs[dataset, arm] = {
                seed: tables.Run(scores=dict.fromkeys(steps, level + seed + gain), seconds=1.0)
                for seed in (0, 1)
            }
    small_comparison(monkeypatch, runs, datasets, {"iql": "iql.py", "other": "pex.py"})
    figures = []
    monkeypatch.setattr(tables, "save", lambda fig, *words: figures.append((fig, words)))
    tables.draw_comparison("comparison")
    assert [words for _, words in figures] == [("comparison", "png", "svg")]
    axes = figures[0][0].axes
    assert [ax.get_title() for ax in axes] == [*(t for d in datasets for t in (d, "")), *2 * [ALL]]
    curve = axes[0].lines[1]  # of `other`, a mean over seeds
    assert (list(curve.get_xdata()), list(curve.get_ydata())) == (
        [-5, 0, 6000, 7000],
        [10.5, 10.5, 14.5, 14.5],
    )
    dots = axes[3].lines[0]  # what it is above iql
    assert list(dots.get_xdata()) == [3.0, 3.0]
    assert [line.get_xdata()[0] for line in axes[4].lines[1::2]] == [31.5, 34.5]
    assert axes[5].lines[1].get_xdata()[0] == 1.0
    del runs[datasets[1], "other"][1]
    figures.clear()
    tables.draw_comparison("comparison")
    assert [ax.get_title() for ax in figures[0][0].axes] == [datasets[0], ""]
    assert "comparison" in tables.sources()
    runs.clear()
    assert "comparison" not in tables.sources()


def test_which_csvs_a_figure_is_made_from(monkeypatch):
    """An experiment with one seed has none: its difference has no interval."""
    monkeypatch.setattr(tables, "read", lambda name: {})
    monkeypatch.setattr(
        tables, "most_seeds", lambda experiment, runs: 1 + (experiment is EXPERIMENTS["pex-drop"])
    )
    found = tables.sources()
    assert found["demo"] == ["demo.csv", "demo_control.csv"]
    assert found["iql"] == ["iql.csv"]
    assert [name for name in found if name.startswith("evidence_")] == ["evidence_pex-drop"]
    names = ["pex-drop.csv", "pex-drop_losses.csv", "pex-drop_training.csv"]
    assert found["evidence_pex-drop"] == names


def test_the_panel_of_differences(monkeypatch):
    """A row per pair and measure; a level is none; dotted what a claim asks for, if it is not 0."""
    claims = [
        Claim("no drop", "", ("a", "b"), "mean_in_warmup", -5.0),
        Claim("it holds", "", ("a", ""), "mean_in_warmup"),
        Claim("later", "", ("a", "b"), "mean_after_warmup"),
    ]
    experiment = Experiment(claims, "", ["d"], 2, "", {"a": "", "b": ""}, [("b", "a"), ("a", "b")])
    runs = {("d", "offline"): {0: tables.Run(), 1: tables.Run()}}
    for arm, early, late in (("a", 10.0, 40.0), ("b", 20.0, 30.0)):
        runs["d", arm] = {
            seed: tables.Run(scores={1000: early + seed, 6000: late}) for seed in (0, 1)
        }
    ax = plot.plt.figure().subplots()
    tables.draw_pairs(ax, experiment, runs, "d")
    labels = [label.get_text().replace("\n", " ") for label in ax.get_yticklabels()]
    assert [label.partition(":")[0] for label in labels] == ["a − b", "a − b", "b − a"]
    assert "first 5,000 steps" in labels[0]
    assert "after step 5,000" in labels[1]
    dots = [line for line in ax.lines if line.get_marker() == "o"]
    assert [list(line.get_xdata()) for line in dots] == [[-10, -10], [10, 10], [10, 10]]
    dotted = [line for line in ax.lines if line.get_linestyle() == ":"]
    assert [list(line.get_xdata()) for line in dotted] == [[-5, -5]]


def test_a_figure_from_other_csvs_is_stale(monkeypatch):
    monkeypatch.setattr(tables, "ROOT", Path())
    monkeypatch.setattr(tables, "RESULTS", Path())
    monkeypatch.setattr(tables, "sources", lambda: {"a": ["a.csv", "a_losses.csv"]})
    Path("docs").mkdir()
    Path("a.csv").write_text("1")
    files = tables.sources()["a"]
    assert tables.stale("a", files)  # it is not there
    tables.save(plot.plt.figure(), "a", "png", "svg")
    assert not tables.stale("a", files)
    assert Path("docs/a.svg").exists()
    Path("a_losses.csv").write_text("2")
    assert tables.stale("a", files)


ALL = "all data sets (rliable)"


def test_table_of_settings(monkeypatch):
    monkeypatch.setattr(tables, "RESULTS", Path())
    small_comparison(monkeypatch, {}, ["d/a-v0", "d/b-v0"], {"iql": "", "o3f": "", "pex": ""})
    assert tables.settings_table("comparison") == ["No run yet."]
    rows = ["comparison-iql,d/a-v0,--beta 3 --normalize-returns --reward-bias -1"]
    rows.append("comparison-iql,d/b-v0,--beta 10 --no-normalize-returns --reward-bias -1")
    rows += [f"comparison-o3f,d/{x}-v0,--num-critics 5 --beta 3" for x in "ab"]
    rows += ["comparison-o3f,d/a-v0,", "comparison-offline,d/a-v0,--beta 9"]
    Path("comparison.csv").write_text("\n".join(["tag,dataset,arguments", *rows]) + "\n")
    lines = tables.settings_table("comparison")
    assert lines[0] == "| setting | iql | o3f |"
    for line in (
        "| `beta` | 3, 10 | 3 |",
        "| `num_critics` | - | 5 |",
        "| `normalize_returns` | yes, no | - |",
        "| `reward_bias` | -1 | - |",
    ):
        assert line in lines


def test_numbers_in_running_text_stand_in_a_table():
    table = "<!-- table: runs x.csv -->\n| a | 12.34 | -50.6 |\n<!-- end of table -->\n"
    here = "- **Here:** it gains 12.3 points.\n- **Cost:** 12.34 hours.\n\n"
    page = f"{here}Its paper says 77.7.\n## Measured\n{table}```bash\n--steps 5000\n```\nIt ends "
    for text in ("at −51", "at 12.3 after 5,000 steps", "at 12 of 20", "2026-11-25, PyTorch 2.1"):
        assert tables.untraced(f"{page}{text}.") == [], text
    for text, number in (("at 13.3", "13.3"), ("12.35", "12.35"), ("after 6,000 steps", "6,000")):
        assert tables.untraced(f"{page}{text}.") == [number], text
    assert tables.untraced(page.replace("gains 12.3", "gains 12.4")) == ["12.4"]


def test_numbers_of_an_experiment_stand_in_its_own_section():
    table = "<!-- table: experiment x -->\n| a | 12.34 | 55.6 |\n<!-- end of table -->\n"
    page = f"All 100 of 77.7.\n## jsrl-gate\n{table}In 60,000 updates, 56.\n## o3f-maze\n"
    assert tables.untraced(page) == []  # 60,000: of the entry in experiments.py
    assert tables.untraced(page.replace("56.", "57.")) == ["57 (jsrl-gate)"]
    assert tables.untraced(f"{page}There 12.3, and 100 %.\n") == ["12.3 (o3f-maze)"]


LOOKED_AT_RUN = tables.Run(
    scores={0: 30.0, 500: 10.0, 1000: 100.0, 1500: 90.0, 2000: 100.0, 2500: 80.0},
    updated=[1000, 1500, 2000, 2500],
    returns=[1.0, 3.0, 6.0, 9.0],
    ended=[100, 200, 500, 501],
    q={2000: 7.5},
    guided=[(900, 900, 1.0, 0.0), (1000, 100, 0.5, 10.0), (2000, 1000, 0.0, 9.0)],
    mixed=[(100, 100, 0.0), (400, 300, 0.5), (500, 100, 1.0), (900, 400, 0.0)],
)


@pytest.mark.parametrize(
    "measure, value, words",
    [
        ("final_score", 76.0, "mean score in the last five evaluations"),
        ("score_at:1500", 90.0, "score at step 1,500"),
        ("mean_between:500:1500", 95.0, "evaluations after step 500 and up to step 1,500"),
        ("mean_every:1000:0", 100.0, "at every 1,000th step, after step 0"),
        ("mean_of_last:1000", 90.0, "of the last 1,000 steps"),
        ("lowest_after:500", 80.0, "after step 500"),
        ("lowest_score", 80.0, "that follows an update"),
        ("first_full", 1000.0, "a score of 100"),
        ("q_at:2000", 7.5, "logged last before step 2,000"),
        ("return_between:100:500", 4.5, "end after step 100 and up to step 500"),
        ("new_policy_share:100:500", 62.5, "steps 100 to 500"),
        ("last_stage", 9.0, "of the last training episode"),
        ("alone_from", 1000.0, "of stage 10 ends"),
    ],
)
def test_what_was_looked_at(measure, value, words):
    runs = {("d", arm): {0: LOOKED_AT_RUN} for arm in ("a", "b", "offline")}
    experiment = Experiment([], "", ["d"], 1, "", {"a": "", "b": ""}, [])
    numbers = tables.measured(experiment, runs, "d", measure, ("a",))
    assert numbers == {"a": {0: pytest.approx(value)}}
    assert tables.words_of(measure).endswith(words)


def test_what_never_came_is_no_number():
    never = tables.Run(scores={0: 9.0}, updated=[0], guided=[(1, 1, 1.0, 0.0)])
    for measure in (tables.first_full, tables.alone_from):
        assert math.isnan(measure(never, {}))
    rows = tables.table_rows("d", {"a": {0: 1234.56, 1: math.nan}, "b": {0: 1.25, 1: 2.0}}, [])
    assert rows[2] == "| a | - | 1,235 | - |"
    assert rows[3].endswith("| 1.2 | 2.0 |")
    assert tables.with_interval([1000.0, 2000.0]) == "1,500 (-4,853 to 7,853)"
    assert tables.with_interval([1000.0, 900.0], "+") == "+950.0 (+314.7 to +1,585)"


def test_the_docs_hold_what_the_csvs_say():
    done = subprocess.run([sys.executable, str(BENCHMARK / "tables.py"), "--check"])
    assert done.returncode == 0, "run: make tables"


def test_every_experiment_stands_in_the_docs():
    page = (ROOT / "docs/evidence.md").read_text()
    for name, experiment in EXPERIMENTS.items():
        if not experiment.claims:
            continue
        assert f"## {name}\n" in page
        assert f"<!-- table: experiment {name} -->" in page
        assert all(claim.measure in tables.MEASURES for claim in experiment.claims)
        pairs = [*experiment.pairs, *(claim.pair for claim in experiment.claims)]
        arms = {arm for pair in pairs for arm in pair if arm}
        assert arms <= experiment.arms.keys()
