"""It ends when it is told to, at any time and within a second, and never needs to be killed."""

import functools
import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path

import gymnasium as gym
import pytest
from common import (
    CACHE,
    DATA,
    begun,
    child,
    data,
    describe,
    ended,
    flags_of,
    load,
    program,
    start,
    stops,
    wait_for,
)
from conftest import ROOT, TASK, TINY, refused, run

SLACK = 5.0  # seconds; the machine may be busy
LONG = ["--offline-steps", "100000", "--eval-every", "100000"]
MODULE = """
import pathlib
import time

import gymnasium as gym
import minari
from gymnasium.envs.mujoco.inverted_pendulum_v5 import InvertedPendulumEnv


class Slow(InvertedPendulumEnv):
    def step(self, action):
        if pathlib.Path("runs/slow/latest.pt").exists():
            pathlib.Path("in_step").touch()
            time.sleep(60)
        return super().step(action)


gym.register("Slow-v0", "my_tasks:Slow", max_episode_steps=10)
gym.register("Endless-v0", "my_tasks:InvertedPendulumEnv")
"""
SLOW_READER = """
import pathlib
import time

import minari


def iterate_episodes(self):
    pathlib.Path("in_loading").touch()
    time.sleep(60)


minari.MinariDataset.iterate_episodes = iterate_episodes
"""


@pytest.fixture(autouse=True)
def modules(monkeypatch):
    """Modules of a user's own, in the current directory."""
    Path("my_tasks.py").write_text(MODULE)
    Path("my_reader.py").write_text(SLOW_READER)
    before, path = set(gym.registry), list(sys.path)
    yield
    sys.path[:] = path
    for name in set(gym.registry) - before:
        del gym.registry[name]
    for name in ("my_tasks", "my_reader"):
        sys.modules.pop(name, None)


def task(name: str, **changes) -> None:
    """A data set of a task that the user's module registers."""
    spec = json.loads(gym.spec(TASK).to_json()) | {"id": name} | changes
    describe(data(), env_spec=json.dumps(spec))


def test_an_environment_without_a_time_limit(capsys):
    task("Endless-v0", max_episode_steps=None)
    line = refused(capsys, *DATA, *TINY, "--env-module", "my_tasks")
    assert "Endless-v0 has no time limit" in line


@pytest.mark.parametrize("limit", [0, -1, "100", [], 10**12, 2.5])
def test_a_time_limit_that_is_none(capsys, limit):
    """The data's own limit counts if it is one, else that of the registered task."""
    task("Endless-v0", max_episode_steps=limit)
    stops(capsys, run, *DATA, *TINY, "--env-module", "my_tasks")


# ---- signals to a program that is doing something


def answer(name: str, number: int, lines: list[str], status: int, seconds: float) -> None:
    print(f"{name}: signal {number} answered after {seconds:.2f} s")
    assert status == 128 + number, lines
    assert len(lines) == 1, lines
    assert lines[0].startswith("iql.py: interrupted")
    assert seconds < SLACK


def is_importing(process) -> bool:
    return "libtorch" in Path(f"/proc/{process.pid}/maps").read_text()


def is_compiling(process) -> bool:
    return any(Path("cache").rglob("*.cpp"))


def is_loading(process) -> bool:
    return Path("in_loading").exists()


def is_updating(process) -> bool:
    return Path("runs/update/latest.pt").exists()


def test_real_processes(subtests):
    """Side by side, as each has to import everything first."""
    data()
    cases = [
        ("import", is_importing, signal.SIGINT, []),
        ("again", is_importing, signal.SIGTERM, []),
    ]
    cases += [("loading", is_loading, signal.SIGTERM, ["--env-module", "my_reader"])]
    cases += [("update", is_updating, signal.SIGINT, [])]
    if shutil.which("g++"):
        cases += [("compile", is_compiling, signal.SIGTERM, ["--compile"])]
    cache = {"TORCHINDUCTOR_CACHE_DIR": "cache", "TRITON_CACHE_DIR": "cache"}
    processes = []
    for name, _, _, flags in cases:
        command = [ROOT / "iql.py", *flags_of("iql", *LONG, "--run-name", name, *flags)]
        processes.append(program(*command, env=os.environ | cache))
    for process, (name, condition, number, _) in zip(processes, cases):
        with subtests.test(name):
            wait_for(functools.partial(condition, process))
            sent = time.monotonic()
            process.send_signal(number)
            _, stderr = process.communicate(timeout=60)
            seconds = time.monotonic() - sent
            answer(name, number, stderr.strip().splitlines(), process.returncode, seconds)
        process.kill()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_during_an_evaluation(number):
    task("Slow-v0")
    flags = flags_of("iql", "--env-module", "my_tasks", "--run-name", "slow")
    pid = child("iql", *flags)
    wait_for(Path("in_step").exists, 30)
    sent = time.monotonic()
    for _ in range(3):  # nobody presses Ctrl-C only once
        os.kill(pid, number)
    status, lines = ended(pid)
    answer("evaluation", number, lines, status, time.monotonic() - sent)
    assert load("runs/slow/latest.pt")["step"] < 0


def test_during_an_online_step():
    """The environment does not come back; latest.pt is that of the end of the last episode."""
    task("Slow-v0")
    flags = flags_of("iql", "--env-module", "my_tasks", "--run-name", "slow")
    pid = child("iql", *flags, "--offline-steps", 0, "--eval-every", 1000)
    wait_for(Path("in_step").exists, 30)
    sent = time.monotonic()
    os.kill(pid, signal.SIGTERM)
    status, lines = ended(pid)
    answer("online step", signal.SIGTERM, lines, status, time.monotonic() - sent)
    assert Path("runs/slow/latest.pt").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_during_an_update(number):
    data()
    pid = child("iql", *flags_of("iql", *LONG, "--run-name", "long"))
    wait_for(begun)
    time.sleep(0.2)
    sent = time.monotonic()
    os.kill(pid, number)
    status, lines = ended(pid)
    answer("update", number, lines, status, time.monotonic() - sent)
    assert load("runs/long/latest.pt")["phase"] == "offline"


# ---- the moment at which a file of the run is written


@functools.cache
def whole() -> Path:
    """A run that nothing stopped."""
    start("iql", *flags_of("iql", "--run-dir", "once", "--run-name", "whole"))
    return Path(shutil.move("once/whole", CACHE / "whole"))


FILES = ["config.json", "offline.pt", "summary.json", "latest.pt"]


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if "tfevents" not in path.name}


def is_finished(folder: Path) -> bool:
    return (folder / "summary.json").exists() and load(folder / "latest.pt")["phase"] == "done"


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_while_a_file_is_written(monkeypatch, name, moment, number):
    """At the rename; of latest.pt's the last. After a restart it is as if nothing had happened."""
    data()
    reference, rename, cut = whole(), os.replace, Path("runs/cut")

    def renamed(source, target):
        hit = Path(target).name == name
        if name == "latest.pt":
            hit = hit and load(source)["phase"] == "done"
        if hit:
            os.replace = rename  # only once
        if hit and moment == "before":
            os.kill(os.getpid(), number)
        rename(source, target)
        if hit and moment == "after":
            os.kill(os.getpid(), number)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", renamed)
        status, lines = ended(child("iql", *flags_of("iql", "--run-name", "cut")))
    assert status in (-signal.SIGKILL, 143), lines
    if not (cut / "latest.pt").exists():
        shutil.rmtree(cut)
        start("iql", *flags_of("iql", "--run-name", "cut"))
    elif not is_finished(cut):
        start("iql", "--resume", cut / "latest.pt")
    assert names(cut) == names(reference)
    for log in ("eval.csv", "metrics.csv"):
        assert (cut / log).read_bytes() == (reference / log).read_bytes()
    for checkpoint in ("offline.pt", "latest.pt"):
        agent = load(cut / checkpoint)["agent"]
        assert all(agent[key].equal(x) for key, x in load(reference / checkpoint)["agent"].items())
