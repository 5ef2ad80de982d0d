"""Optimistic action selection: choice among candidates against NumPy, and hand-computed numbers."""

import dataclasses
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY, pendulum
from torch import nn

import iql
import o3f

OBS, ACT = 5, 2


def make_agent(**settings):
    torch.manual_seed(0)
    return o3f.Agent(
        OBS, ACT, dataclasses.replace(o3f.Args(), compile=False, **settings), torch.device("cpu")
    )


class Ensemble(nn.Module):
    """Critics given as functions of the candidates (count, act_dim); keeps what it was asked."""

    def __init__(self, *critics):
        super().__init__()
        self.critics, self.asked = critics, None

    def forward(self, obs, actions):
        assert obs.shape == (len(actions), OBS)
        self.asked = actions
        return torch.stack([critic(actions) for critic in self.critics])


def explore(agent, seed=1):
    torch.manual_seed(seed)
    return agent.explore(torch.ones(OBS))


@pytest.mark.parametrize("omega", [0.0, 1.0, -2.0])
def test_choice_against_numpy(omega):
    """Candidates from the same random numbers, every critic by hand, mean and population std."""
    agent = make_agent(omega=omega)
    action = explore(agent).numpy()
    torch.manual_seed(1)
    mean, log_std = agent.actor(torch.ones(OBS))
    center = (mean + log_std.exp() * torch.randn(ACT)).clamp(-1, 1).detach().numpy()
    candidates = np.clip(center + np.float32(0.2) * torch.randn(100, ACT).numpy(), -1, 1)
    weights, biases = (
        [x.detach().numpy() for x in xs] for xs in (agent.critic.weights, agent.critic.biases)
    )
    scores = []
    for candidate in candidates:
        q = []
        for j in range(5):
            x = np.concatenate([np.ones(OBS), candidate])
            for layer in range(3):
                x = x @ weights[layer][j] + biases[layer][j, 0]
                x = np.maximum(x, 0) if layer < 2 else x
            q.append(x[0])
        scores.append(np.mean(q) + omega * np.sqrt(np.mean((q - np.mean(q)) ** 2)))
    assert np.allclose(action, candidates[np.argmax(scores)])


def test_population_std():
    """Outputs 1, 2, 3, 4, 5 everywhere but at the right edge, where they agree on 3 + d.

    d decides at sqrt(2) = 1.41421.
    """
    for d, edge_wins in ((1.40, False), (1.43, True)):  # the sample's std would be 1.58114
        agent = make_agent(omega=1.0, sigma=2.0)
        agent.critic = Ensemble(
            *(lambda x, i=i, d=d: torch.where(x[:, 0] == 1, 3.0 + d, float(i)) for i in range(1, 6))
        )
        assert (explore(agent)[0].item() == 1) == edge_wins


@pytest.mark.parametrize("omega, side", [(1.0, 1), (-1.0, -1)])
def test_omega_prefers_or_avoids_disagreement(omega, side):
    agent = make_agent(omega=omega)
    agent.critic = Ensemble(lambda x: x[:, 0] + 1, lambda x: -x[:, 0] - 1)  # mean 0, spread 1 + x
    chosen = explore(agent)[0].item()
    assert chosen == (
        agent.critic.asked[:, 0].max() if side > 0 else agent.critic.asked[:, 0].min()
    )


def test_omega_means_nothing_to_identical_critics():
    same = [lambda x: (x**2).sum(1)] * 5
    chosen = []
    for omega in (0.0, 1.0, -3.0):
        agent = make_agent(omega=omega)
        agent.critic = Ensemble(*same)
        chosen.append(explore(agent))
    assert torch.equal(chosen[0], chosen[1])
    assert torch.equal(chosen[0], chosen[2])


def test_one_candidate_is_the_noise_arm():
    one, noise = make_agent(num_candidates=1), make_agent(exploration="noise")
    assert torch.equal(explore(one), explore(noise))
    assert not torch.equal(explore(one), explore(make_agent(exploration="plain")))


def test_without_noise_every_arm_is_the_policy():
    plain = explore(make_agent(exploration="plain"))
    agent = make_agent()
    torch.manual_seed(1)
    assert torch.equal(plain, agent.act(torch.ones(OBS), deterministic=False))
    for arm in ("o3f", "noise"):
        assert torch.equal(explore(make_agent(exploration=arm, sigma=0.0)), plain)
    agent = make_agent(center="mean", sigma=0.0)
    assert torch.equal(explore(agent), agent.act(torch.ones(OBS), deterministic=True))


@pytest.mark.parametrize(
    "count, gain", [(1, 0.0), (2, 0.5642), (10, 1.5388), (50, 2.2492), (100, 2.5077)]
)
def test_displacement_along_the_gradient(count, gain):
    """Q = g a: the best of N draws lies E[max of N normals] sigma further along g.

    Across g nothing changes.
    """
    agent = make_agent(num_candidates=count, sigma=0.05, center="mean")
    direction = torch.tensor([0.6, 0.8])
    agent.critic = Ensemble(*[lambda x: x @ direction] * 5)
    torch.manual_seed(0)
    center = agent.act(torch.ones(OBS), deterministic=True)
    moves = torch.stack([agent.explore(torch.ones(OBS)) - center for _ in range(3000)]) / 0.05
    assert (moves @ direction).mean().item() == pytest.approx(gain, abs=0.06)
    across = moves @ torch.tensor([-0.8, 0.6])
    assert across.mean().item() == pytest.approx(0, abs=0.06)
    assert across.std().item() == pytest.approx(1, abs=0.05)


def test_scored_is_executed_is_stored(monkeypatch):
    """In a run: the action is inside the box and is the one that was scored.

    It reaches the environment, and is stored.
    """
    pendulum()
    tried, made, stored, explore = [], [], [], o3f.Agent.explore
    monkeypatch.setattr(o3f, "LOG_EVERY", 10)
    monkeypatch.setattr(
        o3f.Agent, "explore", lambda self, obs: (tried.append(explore(self, obs)), tried[-1])[1]
    )
    add, make_env = o3f.ReplayBuffer.add, o3f.make_env

    def making(*args, **kwargs):
        env = make_env(*args, **kwargs)
        made.append(([], env.step))
        env.step = lambda action, record=made[-1]: (
            record[0].append(action.copy()),
            record[1](action),
        )[1]
        return env

    def adding(self, **transition):
        add(self, **transition)
        stored.append((self.size, transition["actions"]))

    monkeypatch.setattr(o3f, "make_env", making)
    monkeypatch.setattr(o3f.ReplayBuffer, "add", adding)
    updates, update = [], o3f.Agent.update
    monkeypatch.setattr(
        o3f.Agent,
        "update",
        lambda self, batch: (updates.append(len(stored)), update(self, batch))[1],
    )
    args = o3f.parse_args(["--dataset-id", "test/pendulum/random-v0", *TINY, "--run-name", "one"])
    columns, *_ = o3f.load_data(args)
    o3f.main(args)
    executed = made[2][0]  # the data were looked at twice, with an environment each
    assert len(tried) == len(executed) == len(stored) == 90
    for action, env_action, (_, kept) in zip(tried, executed, stored):
        assert action.abs().max() <= 1
        assert np.array_equal(action.numpy(), env_action)
        assert np.array_equal(action.numpy(), kept)
    assert updates == [0] * 60 + list(
        range(1, 91)
    )  # one update per step, after the step's transition was added
    assert stored[0][0] == len(columns["rewards"]) + 1
    assert o3f.parse_args(["--dataset-id", "x/antmaze/a-v0"]).sigma == 0.05
    assert o3f.parse_args(["--dataset-id", "x/hopper/a-v0"]).sigma == 0.2


def run(*flags):
    start = [] if flags[0] == "--resume" else ["--dataset-id", "test/pendulum/random-v0", *TINY]
    args = o3f.parse_args([*start, *flags])
    o3f.main(args)
    return Path(args.run_dir, args.run_name)


def test_interrupted_and_resumed_is_the_same_run(monkeypatch):
    pendulum()
    whole, update, count = run("--run-name", "whole"), o3f.Agent.update, [0]

    def counting(self, batch):
        count[0] += 1
        if count[0] == 103:
            os.kill(os.getpid(), signal.SIGTERM)
        return update(self, batch)

    monkeypatch.setattr(o3f.Agent, "update", counting)
    with pytest.raises(SystemExit):
        run("--run-name", "halves")
    monkeypatch.setattr(o3f.Agent, "update", update)
    halves = run("--resume", "runs/halves/latest.pt")
    for name in ("eval.csv", "metrics.csv"):
        assert (whole / name).read_bytes() == (halves / name).read_bytes()
    weights, again = (
        torch.load(folder / "latest.pt", weights_only=True)["agent"] for folder in (whole, halves)
    )
    assert all(torch.equal(tensor, again[name]) for name, tensor in weights.items())


def test_starts_from_an_iql_checkpoint_with_as_many_critics(capsys):
    pendulum()
    flags = ["--dataset-id", "test/pendulum/random-v0", *TINY, "--online-steps", "0", "--run-name"]
    for count in ("2", "5"):
        iql.main(iql.parse_args([*flags, f"iql{count}", "--num-critics", count]))
    tuned = run("--offline-checkpoint", "runs/iql5/offline.pt", "--run-name", "tuned")
    weights, again = (
        torch.load(path / "offline.pt", weights_only=True)["agent"]
        for path in (Path("runs/iql5"), tuned)
    )
    assert all(torch.equal(tensor, again[name]) for name, tensor in weights.items())
    with pytest.raises(SystemExit):
        run("--offline-checkpoint", "runs/iql2/offline.pt", "--run-name", "refused")
    assert "not torch.float32" in capsys.readouterr().err


def test_bad_settings_are_refused(capsys):
    pendulum()
    for flag, words in (
        ("--num-candidates=0", "--num-candidates must be between 1 and 10000, not 0"),
        ("--sigma=-1", "--sigma must be between 0.0 and 10.0, not -1.0"),
        ("--omega=nan", "--omega must be between -1000000.0 and 1000000.0, not nan"),
    ):
        with pytest.raises(SystemExit) as stop:
            o3f.main(o3f.parse_args(["--dataset-id", "test/pendulum/random-v0", *TINY, flag]))
        assert (stop.value.code, capsys.readouterr().err) == (2, f"o3f.py: {words}\n")
