"""A whole run: its files, its reproducibility, and what survives an interruption."""

import csv
import importlib.metadata
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, TINY, pendulum, run
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import iql

LOGS = ("eval.csv", "metrics.csv")


def final(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "latest.pt", weights_only=True)["agent"]


def assert_same_run(one: Path, other: Path) -> None:
    for name in LOGS:
        assert (one / name).read_bytes() == (other / name).read_bytes(), name
    weights = final(other)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in final(one).items())


@pytest.fixture
def whole(tmp_path):
    """A run that nothing stopped."""
    pendulum()
    return run("--dataset-id", "test/pendulum/random-v0", *TINY, "--run-name", "whole")


def test_files_of_a_run(whole):
    config = json.loads((whole / "config.json").read_text())
    assert {"seed", "expectile", "torch", "mujoco", "commit", "transitions", "dataset_id"} <= set(
        config
    )
    rows = list(csv.DictReader(open(whole / "eval.csv")))
    assert list(rows[0]) == [
        "step",
        "phase",
        "policy",
        "episode",
        "seed",
        "return",
        "length",
        "success",
    ]
    assert [int(row["step"]) for row in rows] == [-30, -30, 0, 0, 30, 30, 60, 60, 90, 90]
    assert [row["phase"] for row in rows] == ["offline"] * 4 + ["online"] * 6
    assert len({row["seed"] for row in rows}) == len(rows)
    metrics = list(csv.DictReader(open(whole / "metrics.csv")))
    assert list(metrics[0]) == ["step", *iql.KEYS]
    assert sum(bool(row["offline/value_loss"]) for row in metrics) == 6
    assert sum(bool(row["online/value_loss"]) for row in metrics) == 9
    summary = json.loads((whole / "summary.json").read_text())
    keys = "offline_score offline_return final_score final_return updates_per_second"
    keys += " env_steps_per_second"
    assert list(summary) == [*keys.split(), "seconds_offline", "seconds_online", "seconds_total"]
    returns = {
        step: np.mean([float(row["return"]) for row in rows if int(row["step"]) == step])
        for step in (0, 30, 60, 90)
    }
    scores = {step: 100 * (value - 5) / 995 for step, value in returns.items()}
    assert summary["offline_score"] == pytest.approx(scores[0])
    assert summary["final_score"] == pytest.approx(scores[90])


def test_a_package_that_is_not_installed_is_not_recorded(monkeypatch):
    monkeypatch.setattr(iql, "PACKAGES", ["torch", "no-such-package"])
    folder = run("--dataset-id", pendulum(), *TINY)
    config = json.loads((folder / "config.json").read_text())
    assert config["torch"] == importlib.metadata.version("torch")
    assert "no-such-package" not in config


def test_tensorboard_has_the_same_keys_and_the_clock(whole):
    events = EventAccumulator(str(whole))
    events.Reload()
    logged = {
        key
        for row in csv.DictReader(open(whole / "metrics.csv"))
        for key, value in row.items()
        if value
    }
    assert set(events.Tags()["scalars"]) == logged - {"step"} | {
        "time/updates_per_second",
        "time/env_steps_per_second",
    }


def test_every_logged_key_is_documented(whole):
    documented = set(
        re.findall(
            r"`((?:offline|online|eval|time)/[a-z_]+)`", (ROOT / "docs" / "iql.md").read_text()
        )
    )
    events = EventAccumulator(str(whole))
    events.Reload()
    assert documented == set(iql.KEYS) | set(events.Tags()["scalars"])


def test_same_seed_same_bytes(whole):
    flags = ["--dataset-id", "test/pendulum/random-v0", *TINY]
    assert_same_run(whole, run(*flags, "--run-name", "again"))
    other = run(*flags, "--run-name", "other", "--seed", "1")
    assert (whole / "metrics.csv").read_bytes() != (other / "metrics.csv").read_bytes()


def test_evaluation_never_changes_training(whole):
    flags = [
        "--dataset-id",
        "test/pendulum/random-v0",
        *TINY,
        "--eval-every",
        1000,
        "--eval-episodes",
        1,
    ]
    rare = run(*flags, "--run-name", "rare")
    weights = final(rare)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in final(whole).items())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(
    "updates", [7, 60, 83]
)  # inside the offline phase, at the switch, inside an episode
def test_interrupted_and_resumed_is_the_same_run(whole, monkeypatch, number, updates):
    update, count = iql.Agent.update, [0]

    def counting(self, batch):
        count[0] += 1
        if count[0] == updates:
            os.kill(os.getpid(), number)
        return update(self, batch)

    monkeypatch.setattr(iql.Agent, "update", counting)
    with pytest.raises(SystemExit) as stop:
        run("--dataset-id", "test/pendulum/random-v0", *TINY, "--run-name", "halves")
    assert stop.value.code == 128 + number
    monkeypatch.setattr(iql.Agent, "update", update)
    assert_same_run(whole, run("--resume", "runs/halves/latest.pt"))


def test_interrupted_again_and_again_is_the_same_run(whole, monkeypatch):
    """A second stop comes before a new row has been written.

    It must not count the rows that the first resume cut off.
    """
    update, stops = iql.Agent.update, [0]

    def stopping(self, batch):
        stops[0] -= 1
        if stops[0] == 0:
            os.kill(os.getpid(), signal.SIGTERM)
        return update(self, batch)

    monkeypatch.setattr(iql.Agent, "update", stopping)
    flags = ["--dataset-id", "test/pendulum/random-v0", *TINY, "--run-name", "pieces"]
    for after in (72, 1, 1, 3):  # the first inside an episode, after a row that will be cut off
        stops[0] = after
        with pytest.raises(SystemExit):
            run(*flags)
        flags = ["--resume", "runs/pieces/latest.pt", "--run-dir", "runs"]
    assert_same_run(whole, run(*flags))


@pytest.mark.parametrize("updates", [41, 59, 61, 140])
def test_crashed_and_resumed_is_the_same_run(whole, monkeypatch, updates):
    """A crash between two checkpoints (as by SIGKILL).

    Rows written after the checkpoint are written again, once.
    """
    update, count = iql.Agent.update, [0]

    def failing(self, batch):
        count[0] += 1
        if count[0] == updates:
            raise RuntimeError("power cut")
        return update(self, batch)

    monkeypatch.setattr(iql.Agent, "update", failing)
    with pytest.raises(RuntimeError):
        run("--dataset-id", "test/pendulum/random-v0", *TINY, "--run-name", "halves")
    monkeypatch.setattr(iql.Agent, "update", update)
    shutil.move("runs/halves", "runs/moved")  # a run can be carried elsewhere
    assert_same_run(whole, run("--resume", "runs/moved/latest.pt"))


def test_killed_while_writing_leaves_the_previous_checkpoint(whole, monkeypatch, capsys):
    before = (whole / "latest.pt").read_bytes()
    broken = lambda descriptor: (_ for _ in ()).throw(OSError("power cut"))  # noqa: E731
    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(SystemExit) as stop:
        iql.write(whole / "latest.pt", lambda file: file.write(b"half of a chec"))
    assert stop.value.code == 2
    assert "is the disk full? power cut" in capsys.readouterr().err
    assert (whole / "latest.pt").read_bytes() == before
    assert not list(whole.glob("*.tmp"))


def script(*flags, cwd, **env):
    command = [sys.executable, "iql.py", *map(str, flags)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=cwd, env=os.environ | env, **pipes)


def test_alone_in_an_empty_folder_and_killed(tmp_path):
    """The file copied without its repository runs on a local data set; after SIGKILL it goes on."""
    pendulum()
    folder = tmp_path / "empty"
    folder.mkdir()
    shutil.copy(ROOT / "iql.py", folder)
    flags = [
        "--dataset-id",
        "test/pendulum/random-v0",
        *TINY,
        "--online-steps",
        100_000,
        "--run-name",
        "killed",
    ]
    process, latest = script(*flags, cwd=folder), folder / "runs/killed/latest.pt"
    while not latest.exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    process.kill()
    process.communicate()
    assert torch.load(latest, weights_only=True)["phase"] in ("offline", "online")
    process = script("--resume", latest, cwd=folder)
    while "run:" not in process.stdout.readline():
        assert process.poll() is None
    process.terminate()
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 143
    assert stderr.strip().splitlines()[-1].startswith("iql.py: interrupted; go on with --resume ")


def test_console_shows_only_our_words(tmp_path):
    pendulum()
    process = script("--dataset-id", "test/pendulum/random-v0", *TINY, cwd=ROOT)
    stdout, stderr = process.communicate(timeout=120)
    assert process.returncode == 0
    assert stderr == ""
    starts = ("iql.py seed=0 ", "settings of ", "data: ", "score: ", "run: ", "offline ", "online ")
    lines = [line for line in stdout.splitlines() if not re.match(r"[a-z_]+ +[-+.e0-9]+$", line)]
    assert all(line.startswith(starts) for line in lines), lines
    shutil.rmtree(ROOT / next(line for line in lines if line.startswith("run: "))[5:])


@pytest.mark.skipif(not shutil.which("g++"), reason="no C++ compiler")
def test_a_compiled_update_is_the_plain_one():
    agents = []
    for compile_it in (False, True):
        torch.manual_seed(0)
        args = iql.Args(compile=compile_it)
        agents.append(iql.Agent(4, 1, args, torch.device("cpu")))
    for number in range(5):
        torch.manual_seed(number)
        batch = {"obs": torch.randn(64, 4), "next_obs": torch.randn(64, 4)}
        batch |= {"actions": 2 * torch.rand(64, 1) - 1, "rewards": torch.randn(64)}
        batch["terminations"] = (torch.rand(64) < 0.3).float()
        plain, compiled = (agent.update(batch) for agent in agents)
        for name, value in plain.items():
            assert compiled[name].item() == pytest.approx(value.item(), rel=1e-4, abs=1e-6), name
    weights = agents[1].state_dict()
    for name, tensor in agents[0].state_dict().items():
        assert torch.allclose(tensor, weights[name], atol=3e-5), name  # a step is 3e-4


@pytest.mark.skipif(not shutil.which("g++"), reason="no C++ compiler")
def test_compiled_run_resumes_to_the_same_bytes(whole, monkeypatch):
    flags = ["--dataset-id", "test/pendulum/random-v0", *TINY, "--compile"]
    compiled, update = run(*flags, "--run-name", "compiled"), iql.Agent.update
    assert json.loads((compiled / "config.json").read_text())["compile"] is True
    count = [0]

    def counting(self, batch):
        count[0] += 1
        if count[0] == 40:
            os.kill(os.getpid(), signal.SIGTERM)
        return update(self, batch)

    monkeypatch.setattr(iql.Agent, "update", counting)
    with pytest.raises(SystemExit):
        run(*flags, "--run-name", "halves")
    monkeypatch.setattr(iql.Agent, "update", update)
    assert_same_run(compiled, run("--resume", "runs/halves/latest.pt"))


def test_without_a_compiler_the_loss_is_not_compiled(tmp_path):
    pendulum()
    flags = [
        "--dataset-id",
        "test/pendulum/random-v0",
        *TINY,
        "--compile",
        "--run-dir",
        tmp_path,
        "--run-name",
        "plain",
    ]
    process = script(
        *flags, cwd=ROOT, PATH=str(tmp_path), TORCHINDUCTOR_CACHE_DIR=str(tmp_path / "cache")
    )
    stdout, stderr = process.communicate(timeout=120)
    assert (process.returncode, stderr) == (0, "")
    assert (
        "note: torch.compile does not work on this machine; the loss runs without it"
        in stdout.splitlines()
    )
    assert json.loads((tmp_path / "plain/config.json").read_text())["compile"] is False


def test_offline_checkpoint_starts_at_the_switch(whole):
    """The fine-tuning of the whole run, from its offline.pt.

    The same networks at the switch, then an online phase.
    """
    flags = ["--dataset-id", "test/pendulum/random-v0", *TINY]
    tuned = run(*flags, "--offline-checkpoint", whole / "offline.pt", "--run-name", "tuned")
    rows = list(csv.DictReader(open(tuned / "eval.csv")))
    assert [int(row["step"]) for row in rows] == [0, 0, 30, 30, 60, 60, 90, 90]
    assert [row["seed"] for row in rows] == [
        row["seed"] for row in csv.DictReader(open(whole / "eval.csv"))
    ][2:]  # same starts
    offline, again = (
        torch.load(folder / "offline.pt", weights_only=True) for folder in (whole, tuned)
    )
    assert all(
        torch.equal(tensor, again["agent"][name]) for name, tensor in offline["agent"].items()
    )
    assert json.loads((tuned / "summary.json").read_text())["updates_per_second"] is None
    faster = run(
        *flags,
        "--offline-checkpoint",
        whole / "offline.pt",
        "--learning-rate",
        "0.01",
        "--run-name",
        "faster",
    )
    groups = torch.load(faster / "latest.pt", weights_only=True)["optimizer"]["param_groups"]
    assert [group["lr"] for group in groups] == [0.01] * 2


def test_phases_can_be_left_out(whole):
    flags = ["--dataset-id", "test/pendulum/random-v0", *TINY]
    offline = run(*flags, "--online-steps", 0, "--run-name", "offline")
    assert json.loads((offline / "summary.json").read_text())["env_steps_per_second"] is None
    online = run(*flags, "--offline-steps", 0, "--run-name", "online")
    assert [int(row["step"]) for row in csv.DictReader(open(online / "eval.csv"))] == [
        0,
        0,
        30,
        30,
        60,
        60,
        90,
        90,
    ]


def test_rewards_are_transformed_for_the_learner_only(whole, monkeypatch):
    seen = []
    monkeypatch.setattr(
        iql,
        "Run",
        lambda args, agent, buffer, references: (seen.append(buffer), SystemExit("seen"))[1],
    )
    flags = [
        "--dataset-id",
        "test/pendulum/random-v0",
        *TINY,
        "--reward-scale",
        "2",
        "--reward-bias",
        "-3",
    ]
    with pytest.raises(AttributeError):  # the stand-in has no steps
        run(*flags)
    rewards = seen[0].rows.split(seen[0].widths, dim=1)[list(seen[0].shapes).index("rewards")]
    assert set(rewards[: seen[0].size].flatten().tolist()) <= {
        -1.0,
        -3.0,
    }  # raw rewards are 1, at the fall 0


def test_diverged_run_stops_and_keeps_the_last_good_checkpoint(monkeypatch, capsys):
    pendulum()
    update, count = iql.Agent.update, [0]

    def poisoned(self, batch):
        count[0] += 1
        if count[0] == 33:
            batch["rewards"] = batch["rewards"] * float("nan")
        return update(self, batch)

    monkeypatch.setattr(iql.Agent, "update", poisoned)
    with pytest.raises(SystemExit) as stop:
        run("--dataset-id", "test/pendulum/random-v0", *TINY, "--run-name", "bad")
    assert stop.value.code == 3
    assert re.search(r"diverged: \w+ is nan at offline step -20", capsys.readouterr().err)
    state = torch.load("runs/bad/latest.pt", weights_only=True)
    assert state["step"] == -35
    assert all(tensor.isfinite().all() for tensor in state["agent"].values())


@pytest.mark.parametrize("part", ["agent", "optimizer"])
def test_numbers_that_are_not_finite_are_never_written(whole, monkeypatch, capsys, part):
    """A loss can be finite when a weight or one of Adam's moments no longer is."""
    update, before = iql.Agent.update, (whole / "latest.pt").read_bytes()

    def poisoned(self, batch):
        metrics = update(self, batch)
        parameter = self.value[0].bias
        tensor = parameter if part == "agent" else self.optimizer.state[parameter]["exp_avg_sq"]
        with torch.no_grad():
            tensor[0] = float("inf")
        return metrics

    monkeypatch.setattr(iql.Agent, "update", poisoned)
    with pytest.raises(SystemExit) as stop:
        flags = ["--dataset-id", "test/pendulum/random-v0", *TINY, "--checkpoint-every", 1]
        run(*flags, "--run-name", "inf")
    assert stop.value.code == 3
    assert re.search(
        rf"diverged at offline step -\d+: {part}.* is not finite", capsys.readouterr().err
    )
    state = torch.load("runs/inf/latest.pt", weights_only=True)
    assert state["step"] == -60
    assert before == (whole / "latest.pt").read_bytes()
