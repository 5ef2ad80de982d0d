"""The tools around the scripts: making and checking data sets, sweeps, plots."""

import csv
import dataclasses
import subprocess
import sys
from pathlib import Path

import gymnasium as gym
import make_dataset
import minari
import numpy as np
import pytest
import torch
from conftest import ROOT, TINY, pendulum, run
from torch.distributions import AffineTransform, Normal, TransformedDistribution
from torch.distributions.transforms import TanhTransform

import iql


def tool(*command, status=0) -> str:
    done = subprocess.run([sys.executable, *map(str, command)], capture_output=True, text=True)
    assert done.returncode == status, done.stderr
    return done.stdout + done.stderr


def test_maze_dataset(tmp_path):
    command = [
        "maze",
        "--env-id",
        "PointMaze_Medium-v3",
        "--dataset-id",
        "o2o/pointmaze/test-v0",
        "--steps",
        "1500",
    ]
    out = tool(
        ROOT / "tools/make_dataset.py",
        *command,
        "--goal-visits",
        "1",
        "--starts",
        "3",
        "--out",
        tmp_path / "minari",
    )
    assert "1500 steps" in out
    args = dataclasses.replace(
        iql.Args(), dataset_id="o2o/pointmaze/test-v0", **iql.PAPER_SETTINGS["pointmaze"]
    )
    columns, ends, task, references = iql.load_data(args)
    assert len(columns["obs"]) == 1500
    assert references == (0, 1)
    assert (
        columns["rewards"] == columns["terminations"]
    ).all()  # the goal, and only the goal, pays and ends
    assert columns["rewards"].sum() >= 1
    assert np.diff(np.r_[0, ends]).max() <= 100
    starts = [cell for row in task.kwargs["maze_map"] for cell in row]
    assert (starts.count("r"), starts.count("g")) == (3, 1)
    refusal = tool(ROOT / "tools/make_dataset.py", *command, "--out", tmp_path / "minari", status=1)
    assert "exists already" in refusal


def test_random_level(tmp_path):
    command = [
        "sac",
        "--env-id",
        "Hopper-v5",
        "--level",
        "random",
        "--dataset-id",
        "o2o/hopper/random-v0",
        "--steps",
        "300",
    ]
    tool(ROOT / "tools/make_dataset.py", *command, "--out", tmp_path / "minari")
    dataset = minari.load_dataset("o2o/hopper/random-v0")
    assert dataset.total_steps == 300
    assert dataset.storage.metadata["ref_max_score"] == 3234.3
    assert dataset.storage.metadata["o2o_command"].endswith(
        "--steps 300 --out " + str(tmp_path / "minari")
    )
    last = list(dataset.iterate_episodes())[-1]
    assert last.terminations[-1] or last.truncations[-1]


def test_sac_policy_density_and_losses():
    torch.manual_seed(0)
    agent = make_dataset.SAC(3, 2)
    obs, noise = torch.randn(50, 3), torch.randn(2, 50, 2)
    actions, log_prob = agent.policy(obs, noise[0])
    mean, log_std = agent.actor(obs)[0].chunk(2, -1)
    squashed = TransformedDistribution(
        Normal(mean, log_std.exp()), [TanhTransform(), AffineTransform(0, 1)]
    )
    assert torch.allclose(log_prob, squashed.log_prob(actions).sum(-1), atol=1e-3)
    batch = (obs, torch.rand(50, 2), torch.randn(50), torch.randn(50, 3), torch.zeros(50))
    agent.loss(*batch, noise).backward()
    assert all(p.grad is None for p in agent.critic_target.parameters())
    new_actions, new_log_prob = agent.policy(obs, noise[1])  # alpha = 1 at first
    (
        new_log_prob - agent.critic(torch.cat([obs, new_actions], -1)).squeeze(-1).amin(0)
    ).mean().backward()
    twice = agent.actor.weights[1].grad
    agent.zero_grad()
    agent.loss(*batch, noise).backward()
    assert torch.allclose(
        2 * agent.actor.weights[1].grad, twice, atol=1e-5
    )  # the actor saw its own loss only
    numpy_action = agent.act(obs[0].numpy(), np.random.default_rng(0), True)
    assert np.allclose(numpy_action, mean[0].tanh().detach().numpy(), atol=1e-5)


def test_shortest_path():
    walls = np.ones((5, 5), bool)
    walls[1, 1:4] = walls[2, 3] = walls[3, 1:4] = False
    path = make_dataset.shortest_path(walls, (1, 1), (3, 1))
    assert path == [(1, 2), (1, 3), (2, 3), (3, 3), (3, 2), (3, 1)]
    assert make_dataset.shortest_path(walls, (1, 1), (1, 1)) == []


@pytest.mark.parametrize(
    "dataset_id", ["o2o/hopper/medium-v0", "o2o/pointmaze/large-v0", "test/pendulum/random-v0"]
)
def test_check_data(dataset_id):
    if dataset_id.startswith(
        "test"
    ):  # recorded in [-3, 3], as the task wants it, but described as wider
        pendulum(action_space=gym.spaces.Box(-6, 6, (1,)))
    out = tool(ROOT / "tools/check_data.py", dataset_id, "--replay-episodes", 1)
    for word in ("episodes", "return", "termination", "truncation", "outside", "reward"):
        assert word in out.lower(), word
    assert (
        "[-3.] to [3.]: NOT THE SAME"
        if dataset_id.startswith("test")
        else "the environment's is the same"
    ) in out
    assert "no data set" in tool(ROOT / "tools/check_data.py", "nonsense!", status=2)


def test_sweep_and_plot():
    pendulum()
    command = [
        ROOT / "benchmark/sweep.py",
        ROOT / "iql.py",
        "--datasets",
        "test/pendulum/random-v0",
        "--seeds",
        0,
        1,
    ]
    command += ["--out", "results.csv", "--losses", "losses.csv", "--", *TINY]
    first = tool(*command)
    assert first.count("start") == 2
    rows = list(csv.DictReader(open("results.csv")))
    assert {(row["seed"], row["step"]) for row in rows} == {
        (s, t) for s in "01" for t in ("-30", "0", "30", "60", "90")
    }
    losses = list(csv.DictReader(open("losses.csv")))  # so short a run logs them at the switch only
    assert [(row["seed"], row["step"], row["phase"]) for row in losses] == [
        ("0", "0", "offline"),
        ("1", "0", "offline"),
    ]
    assert {name for name in losses[0] if losses[0][name]} == {
        "script",
        "dataset",
        "seed",
        "step",
        "phase",
        *iql.METRICS,
    }
    before = Path("losses.csv").read_bytes()
    assert tool(*command).count("finished") == 2
    assert Path("losses.csv").read_bytes() == before
    out = tool(ROOT / "benchmark/plot.py", "results.csv", "--out", "curve.png")
    assert "test/pendulum/random-v0" in out
    assert Path("curve.png").read_bytes()[:4] == b"\x89PNG"
    folder = run("--dataset-id", "test/pendulum/random-v0", *TINY, "--run-name", "one")
    tool(ROOT / "benchmark/plot.py", folder, "--out", "one.png")
    assert Path("one.png").exists()


def test_losses_of_a_run(tmp_path):
    sys.path.insert(0, str(ROOT / "benchmark"))
    from sweep import read_losses

    (tmp_path / "config.json").write_text(
        '{"script": "cal_ql.py", "dataset_id": "test/x/y-v0", "seed": 3}'
    )
    rows = [
        "step,offline/q,online/q,online/episode_return,eval/return",
        "-500,1,,,",
        "-500,,,,7",
        "0,2.123456,,,",
        "0,,,,7",
    ]
    rows += ["5,,,99,", "10,,,,7", "500,,3,,", "501,,,98,", "510,,,,7"]
    (tmp_path / "metrics.csv").write_text("\n".join(rows) + "\n")
    found = [(row["step"], row["phase"], row["q"]) for row in read_losses(tmp_path, "tag")]
    assert found == [
        ("-500", "offline", "1"),
        ("0", "offline", "2.1235"),
        ("510", "online", "3"),
    ]  # nothing yet before 10
    assert read_losses(tmp_path)[0].keys() == {
        "script",
        "tag",
        "dataset",
        "seed",
        "step",
        "phase",
        "q",
    }


def test_inspect_critic():
    sys.path.insert(0, str(ROOT / "benchmark"))
    from inspect_critic import returns_to_go

    returns = returns_to_go(
        np.array([1.0, 2.0, 4.0, 8.0]), np.array([0, 1, 0, 0]), np.array([2, 4]), 0.5
    )
    assert returns.tolist() == [2.0, 2.0, 8.0, 8.0]
    pendulum()
    folder = run(
        "--dataset-id", "test/pendulum/random-v0", *TINY, "--online-steps", 0, "--run-name", "one"
    )
    out = tool(ROOT / "benchmark/inspect_critic.py", folder / "offline.pt")
    assert "effective sample size" in out


def test_inspect_search():
    pendulum()
    folder = run(
        "--dataset-id", "test/pendulum/random-v0", *TINY, "--online-steps", 0, "--run-name", "one"
    )
    options = ["--episodes", 2, "--states", 5, "--horizon", 3, "--sigma", 0]
    out = tool(ROOT / "benchmark/inspect_search.py", folder / "offline.pt", *options)
    returns = {
        line.split("(")[0].split("return")[1]
        for line in out.splitlines()
        if "return" in line and ":" not in line
    }
    assert len(returns) == 1, out  # without noise, all arms are the policy itself
    assert (
        out.count("predicted 0.000, measured 0.000") == 2
    )  # and the simulator's state has been put back


def test_inspect_maze():
    options = [
        "--hidden",
        8,
        "--offline-steps",
        2,
        "--online-steps",
        0,
        "--eval-episodes",
        1,
        "--no-compile",
    ]
    tool(
        ROOT / "cal_ql.py", "--dataset-id", "o2o/pointmaze/large-v0", *options, "--run-name", "one"
    )
    out = tool(
        ROOT / "benchmark/inspect_maze.py", "runs/one/offline.pt", "--episodes", 2
    ).splitlines()[-3:]
    assert all(line.startswith(("failed after 600: (", "goal after ")) for line in out[:2]), out
    assert out[2] == "Q of never reaching the goal: -1000"


def test_plot_of_the_learner_alone():
    header = "script,tag,dataset,seed,step,phase,policy,return,score,success,episodes"
    rows = ["0,offline,actor,5,50,,2", "10,online,actor,6,60,,2", "10,online,learner,2,20,,2"]
    Path("both.csv").write_text(
        "\n".join([header, *(f"jsrl_finetune.py,,test/x/y-v0,0,{row}" for row in rows)]) + "\n"
    )
    for policy, figures in (
        ("actor", "50.0 (50.0) | 60.0 (60.0)"),
        ("learner", "50.0 (50.0) | 20.0 (20.0)"),
    ):
        assert figures in tool(
            ROOT / "benchmark/plot.py", "both.csv", "--out", "both.png", "--policy", policy
        )


def test_speed_of_the_cql_family():
    for flags in ([], ["--wsrl"]):
        out = tool(ROOT / "benchmark/speed_cql.py", "--blocks", 1, "--updates-per-block", 1, *flags)
        assert out.count("| ms min | median | max |") == (2 if flags else 1)
        assert "| 1.00 | 1.00 | 1.00 |" in out  # the first one's ratio to itself
