"""Cal-QL and CQL: every loss against NumPy, hand-made cases, returns, and a resumed run."""

import copy
import csv
import dataclasses
import math
import os
import signal
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from conftest import TASK, TINY, pendulum
from torch import nn

import cal_ql

OBS, ACT, B, N = 5, 2, 16, 3


@pytest.fixture(autouse=True)
def log_often(monkeypatch):
    monkeypatch.setattr(cal_ql, "LOG_EVERY", 10)


def make_agent(**settings):
    torch.manual_seed(0)
    args = dataclasses.replace(
        cal_ql.Args(), **{"compile": False, "num_actions": N, "gamma": 0.9, "hidden": 32} | settings
    )
    agent = cal_ql.Agent(OBS, ACT, args, torch.device("cpu"))
    stir(agent)
    return agent


@torch.no_grad()
def stir(agent):
    """Output weights, biases, scales and shifts begin near 0 or 1: no good numbers to compare."""
    for net in (agent.actor.net, agent.critic.net, agent.critic_target.net):
        for parameter in (net.weights[-1], *net.biases, *net.norms):
            parameter.add_(0.3 * torch.randn_like(parameter))


def make_batch():
    rng = np.random.default_rng(1)
    batch = {
        "obs": rng.normal(size=(B, OBS)),
        "actions": rng.uniform(-1, 1, (B, ACT)),
        "rewards": rng.normal(size=B),
    }
    batch |= {
        "next_obs": rng.normal(size=(B, OBS)),
        "terminations": (rng.random(B) < 0.3).astype(float),
    }
    batch["mc_returns"] = rng.normal(size=B)
    return {name: torch.tensor(column, dtype=torch.float32) for name, column in batch.items()}


# ---- the same in NumPy


def forward(net, x, layer_norm=False):
    """(B, in) -> (E, B, out), member by member."""
    out = []
    weights, biases, norms = (
        [p.detach().double().numpy() for p in ps] for ps in (net.weights, net.biases, net.norms)
    )
    for e in range(len(weights[0])):
        h = x
        for layer, (w, b) in enumerate(zip(weights, biases)):
            h = h @ w[e] + b[e]
            if layer < len(weights) - 1:
                if layer_norm:
                    h = (h - h.mean(1, keepdims=True)) / np.sqrt(h.var(1, keepdims=True) + 1e-6)
                    h = h * norms[2 * layer][e] + norms[2 * layer + 1][e]
                h = np.maximum(h, 0)
        out.append(h)
    return np.stack(out)


class Recorder:
    """Stands in for the actor's sample(): draws as it does, and keeps what it returned."""

    def __init__(self, actor):
        self.sample, self.asked, self.drawn = actor.sample, [], []

    def __call__(self, obs, count):
        self.asked.append(obs)
        actions, log_prob = self.sample(obs, count)
        self.drawn.append((actions.detach().double().numpy(), log_prob.detach().double().numpy()))
        return actions, log_prob


def draw(agent, batch):
    """critic_loss() with its uniform actions, samples and critic subsets written down."""
    agent.actor.sample = recorder = Recorder(agent.actor)
    subsets, choose, rand, uniform = [], agent.some_critics, torch.rand, []
    agent.some_critics = lambda: subsets.append(choose()) or subsets[-1]
    torch.rand = lambda *shape, **options: uniform.append(rand(*shape, **options)) or uniform[-1]
    try:
        loss, metrics = agent.critic_loss(batch)
    finally:
        torch.rand = rand
    assert torch.equal(recorder.asked[0], batch["next_obs"]) and torch.equal(
        recorder.asked[1], batch["obs"]
    )
    return loss, metrics, recorder.drawn, 2 * uniform[0].double().numpy() - 1, subsets


def q_values(net, obs, actions, layer_norm=False):
    """(B, OBS), (K, B, ACT) -> (E, K, B)"""
    return np.stack(
        [forward(net, np.concatenate([obs, a], 1), layer_norm)[..., 0] for a in actions], 1
    )


@pytest.mark.parametrize("calibrate", [True, False])
@pytest.mark.parametrize(
    "settings",
    [{}, {"lagrange": True}, {"importance_sampling": False}, {"max_backup": False}]
    + [
        {
            "num_critics": 5,
            "critic_subset": 2,
            "layer_norm": True,
            "critic_layers": 3,
            "lagrange": True,
        }
    ],
    ids=["plain", "lagrange", "raw", "one next action", "subset of critics"],
)
def test_critic_loss_equals_numpy(settings, calibrate):
    agent, batch = make_agent(calibrate=calibrate, **settings), make_batch()
    loss, metrics, drawn, uniform, subsets = draw(agent, batch)
    args, layer_norm = agent.args, agent.args.layer_norm
    x = {name: column.double().numpy() for name, column in batch.items()}
    (following, following_log_prob), (current, current_log_prob) = drawn
    first, second = (range(args.num_critics) if s is None else s.numpy() for s in subsets)

    next_q = q_values(
        agent.critic_target.net,
        x["next_obs"],
        following if args.max_backup else following[:1],
        layer_norm,
    )
    target = x["rewards"] + 0.9 * (1 - x["terminations"]) * next_q[first].min(0).max(0)
    q = q_values(agent.critic.net, x["obs"], x["actions"][None], layer_norm)[:, 0]
    td_loss = np.mean((q - target) ** 2)

    gaps, lifted = [], []
    for i in second:
        values = {}
        for name, actions in (("uniform", uniform), ("current", current), ("following", following)):
            values[name] = q_values(agent.critic.net, x["obs"], actions, layer_norm)[
                i
            ]  # all judged at s
        policy = np.concatenate([values["current"], values["following"]])
        lifted.append(np.mean(policy < x["mc_returns"]))
        policy = np.maximum(policy, x["mc_returns"]) if calibrate else policy
        if args.importance_sampling:
            policy = policy - np.concatenate([current_log_prob, following_log_prob])
            logits = np.concatenate([values["uniform"] - ACT * np.log(0.5), policy])
        else:
            logits = np.concatenate([values["uniform"], q[i][None], policy])
        gaps.append(np.mean(np.log(np.exp(logits).sum(0)) - q[i]))
    gap = np.mean(gaps)
    multiplier = math.e if args.lagrange else 1.0
    expected = td_loss  # with a multiplier its loss and the gap's cancel, but not their gradients
    if not args.lagrange:
        expected += 5.0 * gap
    assert loss.item() == pytest.approx(expected, rel=1e-4, abs=1e-4)
    assert metrics["td_loss"].item() == pytest.approx(td_loss, rel=1e-4)
    assert metrics["cql_gap"].item() == pytest.approx(gap, rel=1e-4)
    assert metrics["cql_weight"].item() == pytest.approx(5.0 * multiplier)
    assert metrics["bound_rate"].item() == pytest.approx(np.mean(lifted), abs=1e-6)
    assert metrics["q"].item() == pytest.approx(q.mean(), rel=1e-4, abs=1e-5)
    assert metrics["mc_return"].item() == pytest.approx(x["mc_returns"].mean(), rel=1e-4)


def gradients(loss, parameters):
    return torch.autograd.grad(loss, list(parameters), retain_graph=True)


@pytest.mark.parametrize(
    "settings", [{}, {"lagrange": True}, {"calibrate": False, "layer_norm": True}]
)
def test_critic_loss_trains_critics_and_multiplier_alone(settings):
    """The critics descend TD error + w m gap.

    Nothing flows into the policy, by whose samples they are judged.
    """
    agent, batch = make_agent(**settings), make_batch()
    loss, metrics, ((next_actions, next_log_prob), (current, current_log_prob)), uniform, _ = draw(
        agent, batch
    )
    n, policy = np.float32, np.concatenate([current, next_actions])
    q = agent.critic(batch["obs"], batch["actions"][None])[:, 0]
    next_q = (
        agent.critic_target(batch["next_obs"], torch.tensor(next_actions.astype(n))).amin(0).amax(0)
    )
    target = batch["rewards"] + 0.9 * (1 - batch["terminations"]) * next_q
    values = agent.critic(batch["obs"], torch.tensor(np.concatenate([uniform, policy]).astype(n)))
    if agent.args.calibrate:
        values = torch.cat([values[:, :N], torch.maximum(values[:, N:], batch["mc_returns"])], 1)
    densities = np.concatenate(
        [np.full((N, B), ACT * np.log(0.5)), current_log_prob, next_log_prob]
    )
    gap = ((values - torch.tensor(densities.astype(n))).logsumexp(1) - q).mean()
    assert gap.item() == pytest.approx(metrics["cql_gap"].item(), rel=1e-4)
    expected = (q - target.detach()).square().mean() + 5.0 * (
        math.e if agent.args.lagrange else 1.0
    ) * gap
    for one, other in zip(
        gradients(loss, agent.critic.parameters()), gradients(expected, agent.critic.parameters())
    ):
        assert torch.allclose(one, other, rtol=1e-3, atol=1e-4)
    loss.backward()
    assert all(
        p.grad is None
        for p in (*agent.actor.parameters(), *agent.critic_target.parameters(), agent.log_alpha)
    )
    if agent.args.lagrange:
        assert agent.log_multiplier.grad.item() == pytest.approx(
            -5 * math.e * (gap.item() - 0.8), 1e-3
        )


def test_actor_loss_trains_the_policy_by_its_own_loss_alone():
    agent, batch = make_agent(), make_batch()
    with torch.no_grad():
        agent.log_alpha.fill_(-1.0)
    agent.actor.sample = recorder = Recorder(agent.actor)
    torch.manual_seed(2)
    loss, _ = agent.actor_loss(batch)
    torch.manual_seed(2)
    actions, log_prob = recorder.sample(batch["obs"], 1)
    expected = (math.exp(-1) * log_prob - agent.critic(batch["obs"], actions).amin(0)).mean()
    for one, other in zip(
        gradients(loss, agent.actor.parameters()), gradients(expected, agent.actor.parameters())
    ):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-6)


def test_all_losses_see_the_networks_as_before_the_step():
    whole, parts, batch = make_agent(), make_agent(), make_batch()
    torch.manual_seed(4)
    whole.update(batch)
    torch.manual_seed(4)
    losses = [parts.critic_loss(batch)[0], parts.actor_loss(batch)[0]]
    sum(losses).backward()
    parts.optimizer.step()
    for one, other in ((whole.actor, parts.actor), (whole.critic, parts.critic)):
        assert all(torch.equal(p, q) for p, q in zip(one.parameters(), other.parameters()))


def test_actor_and_temperature_losses_equal_numpy():
    agent, batch = make_agent(num_critics=4), make_batch()
    with torch.no_grad():
        agent.log_alpha.fill_(-1.0)
    agent.actor.sample = recorder = Recorder(agent.actor)
    loss, metrics = agent.actor_loss(batch)
    actions, log_prob = recorder.drawn[0]
    q = q_values(agent.critic.net, batch["obs"].double().numpy(), actions)[:, 0].min(0)
    actor_loss = np.mean(math.exp(-1.0) * log_prob[0] - q)
    assert metrics["actor_loss"].item() == pytest.approx(actor_loss, rel=1e-4)
    assert loss.item() == pytest.approx(actor_loss + 1.0 * np.mean(log_prob[0] - ACT), rel=1e-4)
    assert metrics["entropy"].item() == pytest.approx(-log_prob.mean(), rel=1e-4)
    loss.backward()
    assert agent.log_alpha.grad.item() == pytest.approx(-np.mean(log_prob - ACT), rel=1e-4)
    assert all(p.grad is None for p in agent.critic.parameters())
    assert all(p.grad is not None for p in agent.actor.parameters())


@pytest.mark.parametrize("u, log_prob", [(0.0, -0.9189), (1.0, -0.0514), (10.0, 17.6948)])
def test_log_density_of_a_squashed_gaussian(monkeypatch, u, log_prob):
    actor = cal_ql.Actor(OBS, 1, dataclasses.replace(cal_ql.Args(), hidden=8))
    actor.forward = lambda obs: (torch.full((1, 1), u), torch.zeros(1, 1))  # standard deviation 1
    monkeypatch.setattr(torch, "randn", lambda *shape, **_: torch.zeros(shape))
    actions, density = actor.sample(torch.zeros(1, OBS), 1)
    assert density.item() == pytest.approx(log_prob, abs=1e-4)
    assert actions.item() == pytest.approx(math.tanh(u))


def test_log_density_of_another():
    """Mean 0.5, standard deviation 0.2."""
    actor = cal_ql.Actor(OBS, 1, dataclasses.replace(cal_ql.Args(), hidden=8))
    actor.forward = lambda obs: (torch.full((1, 1), 0.5), torch.full((1, 1), math.log(0.2)))
    torch.manual_seed(0)
    actions, density = actor.sample(torch.zeros(1, OBS), 1000)
    reference = torch.distributions.TransformedDistribution(
        torch.distributions.Normal(torch.tensor(0.5), 0.2), torch.distributions.TanhTransform()
    )
    assert torch.allclose(density, reference.log_prob(actions)[..., 0], atol=1e-3)


class Constant(nn.Module):
    """Two critics that know of actions only what `values` says.

    It is a function of actions: (K, B, ACT) -> (K, B).
    """

    def __init__(self, values):
        super().__init__()
        self.values = values

    def forward(self, obs, actions, members=None, frozen=False):
        return self.values(actions).expand(2, -1, -1)


def with_constants(calibrate, q, returns, **settings):
    agent, batch = make_agent(calibrate=calibrate, num_actions=10, **settings), make_batch()
    agent.critic = agent.critic_target = Constant(lambda actions: torch.full(actions.shape[:2], q))
    agent.actor.sample = lambda obs, count: (
        torch.zeros(count, B, ACT),
        torch.full((count, B), -1.0),
    )
    return agent.critic_loss(batch | {"mc_returns": torch.full((B,), returns)})[1]


@pytest.mark.parametrize("q", [-3.0, 0.0, 40.0])
def test_gap_of_a_constant_critic(q):
    assert with_constants(False, q, q + 1)["cql_gap"].item() == pytest.approx(4.5472, abs=1e-4)
    assert with_constants(True, q, q + 1)["cql_gap"].item() == pytest.approx(5.2353, abs=1e-4)
    assert with_constants(True, q, q + 1)["bound_rate"].item() == 1
    assert (
        with_constants(True, q, -1e9)["cql_gap"].item()
        == with_constants(False, q, 0.0)["cql_gap"].item()
    )
    assert with_constants(True, q, -1e9)["bound_rate"].item() == 0


@pytest.mark.parametrize("log_prob, gap", [(2 * math.log(0.5), 4.787492), (0.3, 4.003989)])
def test_gap_with_other_densities(log_prob, gap):
    agent, batch = make_agent(calibrate=False, num_actions=10), make_batch()
    agent.critic = agent.critic_target = Constant(lambda actions: torch.ones(actions.shape[:2]))
    agent.actor.sample = lambda obs, count: (
        torch.zeros(count, B, ACT),
        torch.full((count, B), log_prob),
    )
    assert agent.critic_loss(batch)[1]["cql_gap"].item() == pytest.approx(gap, abs=1e-5)


def test_calibration_takes_the_gradient_from_policy_actions_only():
    agent, batch = make_agent(num_actions=4, cql_alpha=1.0), make_batch()
    seen = []

    class Table(nn.Module):
        def forward(self, obs, actions, members=None, frozen=False):
            table = torch.zeros(2, *actions.shape[:2], requires_grad=True)
            seen.append(table)
            return table

    for returns, moved in ((1.0, False), (-1e9, True)):
        seen.clear()
        agent.critic = agent.critic_target = Table()
        agent.critic_loss(batch | {"mc_returns": torch.full((B,), returns)})[0].backward()
        sampled = next(table for table in seen if table.shape[1] == 12).grad
        assert (sampled[:, :4] > 0).all()  # uniform actions are always pushed down
        assert bool((sampled[:, 4:] > 0).all()) == moved
        assert bool((sampled[:, 4:] == 0).all()) == (not moved)


def test_bound_far_below_is_cql_to_the_last_bit():
    one, other, batch = make_agent(calibrate=True), make_agent(calibrate=False), make_batch()
    batch["mc_returns"] = torch.full((B,), -1e9)
    for agent in (one, other):
        torch.manual_seed(5)
        for _ in range(3):
            agent.update(batch)
    assert all(torch.equal(p, q) for p, q in zip(one.parameters(), other.parameters()))


@pytest.mark.parametrize("gap, sign", [(5.0, -1), (4.5472, 0), (1.0, 1)])
def test_multiplier_rises_while_the_gap_is_too_wide(gap, sign):
    """The gap is 4.5472. m falls if --cql-gap is above it, rises if below, and stays if equal."""
    agent, batch = (
        make_agent(calibrate=False, num_actions=10, lagrange=True, cql_gap=gap),
        make_batch(),
    )
    agent.critic = agent.critic_target = Constant(lambda actions: torch.zeros(actions.shape[:2]))
    agent.actor.sample = lambda obs, count: (
        torch.zeros(count, B, ACT),
        torch.full((count, B), -1.0),
    )
    loss, metrics = agent.critic_loss(batch)
    assert metrics["cql_weight"].item() == pytest.approx(5 * math.e)
    loss.backward()
    step = -agent.log_multiplier.grad.item()
    assert step == pytest.approx(5 * math.e * (4.5472 - gap), abs=2e-3)
    assert np.sign(round(step, 2)) == sign


@pytest.mark.parametrize(("number", "share"), [(1, 0.25), (2, 0.4375), (10, 0.943686)])
def test_the_target_is_the_best_of_n_actions(number, share):
    """Qt is 1 if an action's first entry is above 0.5, else 0; actions are uniform: 1 - 0.75^N."""
    agent = make_agent(num_actions=number, cql_alpha=0.0)
    batch = make_batch() | {"rewards": torch.zeros(B), "terminations": torch.zeros(B)}
    agent.critic = Constant(lambda actions: torch.zeros(actions.shape[:2]))
    agent.critic_target = Constant(lambda actions: (actions[..., 0] > 0.5).float())
    agent.actor.sample = lambda obs, count: (
        2 * torch.rand(count, B, ACT) - 1,
        torch.full((count, B), 7.0),  # an entropy term would show
    )
    losses = [agent.critic_loss(batch)[1]["td_loss"].item() for _ in range(400)]
    assert np.mean(losses) / 0.81 == pytest.approx(share, abs=0.03)


def test_subset_is_drawn_with_replacement():
    agent = make_agent(num_critics=10, critic_subset=2)
    pairs = torch.stack([agent.some_critics() for _ in range(5000)])
    assert (pairs[:, 0] == pairs[:, 1]).float().mean().item() == pytest.approx(0.1, abs=0.015)
    assert torch.bincount(pairs.flatten(), minlength=10).min() > 800
    assert make_agent().some_critics() is None


def test_truncation_bootstraps_and_termination_does_not():
    agent, batch = make_agent(cql_alpha=0.0), make_batch()
    batch["terminations"] = torch.ones(B)
    agent.critic = Constant(lambda actions: torch.zeros(actions.shape[:2]))
    agent.critic_target = Constant(lambda actions: torch.full(actions.shape[:2], 1e6))
    assert agent.critic_loss(batch)[1]["td_loss"].item() == pytest.approx(
        batch["rewards"].square().mean().item()
    )
    batch["terminations"] = torch.zeros(B)  # also what a time limit leaves there
    assert agent.critic_loss(batch)[1]["td_loss"].item() == pytest.approx((0.9e6) ** 2, rel=1e-4)


def test_update_steps_every_network_and_lets_the_target_follow():
    agent, batch = make_agent(lagrange=True, layer_norm=True), make_batch()
    before = {name: tensor.clone() for name, tensor in agent.state_dict().items()}
    agent.update(batch)
    after = agent.state_dict()
    still = {name for name in before if torch.equal(before[name], after[name])}
    assert still == set(), still
    for name in before:
        if name.startswith("critic."):
            followed = torch.lerp(
                before[name.replace("critic", "critic_target")], after[name], 0.005
            )
            assert torch.equal(after[name.replace("critic", "critic_target")], followed)
    moved = {group["lr"] for group in agent.optimizer.param_groups}
    assert moved == {1e-4, 3e-4}
    assert (before["log_alpha"] - after["log_alpha"]).abs().item() == pytest.approx(
        1e-4, rel=1e-2
    )  # Adam's first step
    assert (before["log_multiplier"] - after["log_multiplier"]).abs().item() == pytest.approx(
        3e-4, rel=1e-2
    )


def test_initial_weights():
    agent = cal_ql.Agent(
        OBS, ACT, dataclasses.replace(cal_ql.Args(), compile=False), torch.device("cpu")
    )
    for net in (agent.actor.net, agent.critic.net):
        hidden, last = net.weights[1].detach(), net.weights[-1].detach()
        for member in hidden:
            assert torch.allclose(member.T @ member, 2 * torch.eye(256), atol=1e-4)
        for member in last:
            assert torch.allclose(member.T @ member, 1e-4 * torch.eye(last.shape[-1]), atol=1e-7)
        assert all((bias == 0).all() for bias in net.biases)
    mean, log_std = agent.actor(torch.zeros(1, OBS))
    assert torch.allclose(log_std, torch.tensor(-1.0), atol=0.1)


def test_act():
    agent, obs = make_agent(), torch.ones(OBS)
    assert torch.equal(agent.act(obs, deterministic=True), torch.tanh(agent.actor(obs[None])[0][0]))
    samples = torch.stack([agent.act(obs, deterministic=False) for _ in range(200)])
    assert samples.shape == (200, ACT)
    assert samples.std() > 0.1
    assert samples.abs().max() <= 1


ANTMAZE = {"infinite_horizon": True, "gamma": 0.99}


def returns_of(rewards, terminated, **settings):
    rewards, terminations = np.array(rewards, np.float32), np.zeros(len(rewards), np.float32)
    terminations[-1] = terminated
    return cal_ql.mc_returns(
        rewards,
        terminations,
        np.array([len(rewards)]),
        dataclasses.replace(cal_ql.Args(), **settings),
    )


def test_mc_returns():
    assert returns_of([-5, -5, -5, -5, 5], 1, **ANTMAZE) == pytest.approx(
        [-14.899, -9.999, -5.0495, -0.05, 5], abs=1e-3
    )
    assert returns_of([-5.0] * 1000, 0, **ANTMAZE) == pytest.approx(np.full(1000, -500.0))
    assert returns_of([-5.0] * 2, 1, **ANTMAZE) == pytest.approx(
        [-9.95, -5]
    )  # it ends: nothing goes on for ever
    finite = returns_of([-5.0] * 1000, 0, **(ANTMAZE | {"infinite_horizon": False}))
    assert (finite[0], finite[-1]) == pytest.approx((-499.978, -5), abs=1e-3)
    # Two subtasks of a kitchen are solved when it is cut: 2 / (1 - gamma), then backwards.
    assert returns_of([0, 1, 2], 0, **ANTMAZE) == pytest.approx([196.02 + 0.99, 199, 200])
    for steps, value in ((100, -313.29), (200, -431.66), (500, -496.65)):
        assert returns_of([-5.0] * (steps - 1) + [5.0], 1, **ANTMAZE)[0] == pytest.approx(
            value, abs=1e-2
        )


def test_mc_returns_respect_the_borders_of_episodes():
    rewards, terminations = np.array([1, 2, 4, 8], np.float32), np.array([0, 1, 0, 0], np.float32)
    args = dataclasses.replace(cal_ql.Args(), gamma=0.5)
    assert cal_ql.mc_returns(rewards, terminations, np.array([2, 4]), args).tolist() == [2, 2, 8, 8]
    assert cal_ql.mc_returns(rewards, terminations, np.array([4]), args).tolist() == [
        2,
        2,
        8,
        8,
    ]  # data may go on after an end


def run(*flags):
    start = (
        []
        if flags[0] == "--resume"
        else ["--dataset-id", "test/pendulum/random-v0", *TINY, "--hidden", "16"]
    )
    args = cal_ql.parse_args([*start, *flags])
    cal_ql.main(args)
    return Path(args.run_dir, args.run_name)


@pytest.mark.parametrize("ratio", [0.5, 0.25])
def test_batches_and_what_an_episode_leaves_in_the_buffer(monkeypatch, ratio):
    pendulum()
    seen, update, added, add = [], cal_ql.Agent.update, [], cal_ql.ReplayBuffer.add

    def recording(self, batch):
        seen.append((batch["rewards"] < 50).sum().item())
        return update(self, batch)

    def adding(self, **transition):
        added.append(
            (
                float(transition["rewards"]),
                float(transition["mc_returns"]),
                bool(transition["terminations"]),
            )
        )
        add(self, **transition)

    make = cal_ql.ReplayBuffer.__init__

    def tagged(self, columns, capacity, device):
        make(
            self, columns | {"rewards": columns["rewards"] + 100}, capacity, device
        )  # offline rows only

    monkeypatch.setattr(cal_ql.Agent, "update", recording)
    monkeypatch.setattr(cal_ql.ReplayBuffer, "__init__", tagged)
    monkeypatch.setattr(cal_ql.ReplayBuffer, "add", adding)
    folder = run(
        "--run-name",
        "run",
        "--offline-ratio",
        str(ratio),
        "--reward-scale",
        "2",
        "--reward-bias",
        "0.5",
    )
    lengths = [
        int(float(row["online/episode_length"]))
        for row in rows(folder)
        if row["online/episode_length"]
    ]
    assert seen[:60] == [0] * 60
    assert seen[60:] == [16 - round(16 * ratio)] * (
        90 - lengths[0]
    )  # the first episode: nothing to learn from yet
    assert len(added) == sum(lengths)
    expected = []
    for length in lengths:  # 1 a step, 0 for the last
        rewards = np.array([2.5] * (length - 1) + [0.5])
        expected += [sum(rewards[t:] * 0.99 ** np.arange(length - t)) for t in range(length)]
    assert [value for _, value, _ in added] == pytest.approx(expected, rel=1e-5)
    assert sum(ended for *_, ended in added) == len(lengths)


def rows(folder, name="metrics.csv"):
    return list(csv.DictReader(open(folder / name)))


@pytest.mark.parametrize("updates", [30, 61, 110])
def test_interrupted_and_resumed_is_the_same_run(monkeypatch, updates):
    pendulum()
    flags = ["--lagrange", "--num-critics", "4", "--critic-subset", "2", "--layer-norm"]
    whole, update, count = run("--run-name", "whole", *flags), cal_ql.Agent.update, [0]

    def counting(self, batch):
        count[0] += 1
        if count[0] == updates:
            os.kill(os.getpid(), signal.SIGTERM)
        return update(self, batch)

    monkeypatch.setattr(cal_ql.Agent, "update", counting)
    with pytest.raises(SystemExit):
        run("--run-name", "halves", *flags)
    monkeypatch.setattr(cal_ql.Agent, "update", update)
    halves = run("--resume", "runs/halves/latest.pt")
    for name in ("eval.csv", "metrics.csv"):
        assert (whole / name).read_bytes() == (halves / name).read_bytes()
    state, again = (
        torch.load(folder / "latest.pt", weights_only=True) for folder in (whole, halves)
    )
    assert all(torch.equal(tensor, again["agent"][name]) for name, tensor in state["agent"].items())
    moments = [x["exp_avg"] for x in state["optimizer"]["state"].values()]
    assert all(
        torch.equal(x, y["exp_avg"]) for x, y in zip(moments, again["optimizer"]["state"].values())
    )


def test_the_switch_changes_no_tensor():
    pendulum()
    first = run("--run-name", "first", "--online-steps", "0", "--lagrange")
    offline, latest = (
        torch.load(first / name, weights_only=True) for name in ("offline.pt", "latest.pt")
    )
    assert all(
        torch.equal(tensor, latest["agent"][name]) for name, tensor in offline["agent"].items()
    )
    assert {"log_alpha", "log_multiplier"} <= set(offline["agent"])
    assert len(offline["optimizer"]["state"]) == len(
        offline["optimizer"]["param_groups"][0]["params"]
    ) + len(offline["optimizer"]["param_groups"][1]["params"])


def test_moments_and_calibration_go_on_across_the_switch(monkeypatch):
    pendulum()
    seen, update = [], cal_ql.Agent.update

    def updating(self, batch):
        before = [
            {k: v.clone() for k, v in moments.items()}
            for moments in self.optimizer.state_dict()["state"].values()
        ]
        state = torch.get_rng_state()
        gap = self.critic_loss(batch | {"mc_returns": torch.full((16,), 1e6)})[1]["cql_gap"].item()
        torch.set_rng_state(state)
        seen.append((before, gap))
        return update(self, batch)

    monkeypatch.setattr(cal_ql.Agent, "update", updating)
    folder, first = run("--run-name", "run"), len(seen)
    again = run("--run-name", "again", "--offline-checkpoint", str(folder / "offline.pt"))
    offline = torch.load(folder / "offline.pt", weights_only=True)["optimizer"]["state"].values()
    for before, _ in (seen[60], seen[first]):  # each run's first update online
        for moments, kept in zip(before, offline, strict=True):
            assert all(
                torch.equal(moments[name], kept[name]) for name in ("exp_avg", "exp_avg_sq", "step")
            )
    assert all(
        gap > 9e5 for _, gap in seen
    )  # a return so high lifts the policy's values, online too
    assert (again / "summary.json").exists()


@pytest.mark.parametrize(("log_multiplier", "weight"), [(1.0, 5 * math.e), (20.0, 5e6)])
def test_the_multiplier_is_bounded(log_multiplier, weight):
    agent = make_agent(lagrange=True)
    agent.log_multiplier.data.fill_(log_multiplier)
    _, metrics = agent.critic_loss(make_batch())
    assert metrics["cql_weight"].item() == pytest.approx(weight)


def test_two_armed_bandit():
    """Reward 1 for actions above 0, data from both arms.

    The policy takes the good one, and Q stays near the returns.
    """
    torch.manual_seed(0)
    args = dataclasses.replace(
        cal_ql.Args(), compile=False, hidden=32, actor_lr=3e-3, critic_lr=3e-3, cql_alpha=0.1
    )
    agent = cal_ql.Agent(1, 1, args, torch.device("cpu"))
    actions = 2 * torch.rand(512, 1) - 1
    rewards = (actions[:, 0] > 0).float()
    batch = {
        "obs": torch.zeros(512, 1),
        "actions": actions,
        "rewards": rewards,
        "next_obs": torch.zeros(512, 1),
    }
    batch |= {"terminations": torch.ones(512), "mc_returns": rewards}
    for _ in range(300):
        metrics = agent.update(batch)
    assert agent.act(torch.zeros(1), deterministic=True).item() > 0.2
    assert metrics["q"].item() == pytest.approx(0.5, abs=0.15)


def test_paper_settings_name_real_arguments():
    fields = {field.name for field in dataclasses.fields(cal_ql.Args)}
    assert all(settings.keys() <= fields for settings in cal_ql.PAPER_SETTINGS.values())
    antmaze, kitchen, door = (
        cal_ql.PAPER_SETTINGS[family] for family in ("antmaze", "kitchen", "door")
    )
    assert (antmaze["reward_scale"], antmaze["reward_bias"], antmaze["critic_layers"]) == (
        10,
        -5,
        4,
    )
    assert (kitchen["offline_ratio"], kitchen["importance_sampling"], kitchen["hidden"]) == (
        0.25,
        False,
        512,
    )
    assert (kitchen["infinite_horizon"], "reward_bias" in kitchen) == (True, False)
    assert (kitchen["offline_steps"], kitchen["online_steps"]) == (500_000, 1_500_000)
    assert (door["cql_alpha"], door["offline_steps"]) == (1, 20_000)


def test_settings_of_all_families():
    for family in cal_ql.PAPER_SETTINGS:
        args = cal_ql.parse_args(["--dataset-id", f"x/{family}/a-v0"])
        locomotion = family in ("hopper", "halfcheetah", "walker2d", "ant")
        assert args.calibrate != locomotion
        assert args.layer_norm == (locomotion or family == "pointmaze")
        assert (args.max_backup, args.num_actions, args.cql_gap) == (True, 10, 0.8)
        assert (args.num_critics, args.critic_subset, args.critic_lr) == (2, 0, 3e-4)
        ours = family == "pointmaze"
        rates = (args.actor_lr, args.gamma, args.tau)
        assert rates == ((3e-4, 0.995, 0.02) if ours else (1e-4, 0.99, 0.005))
        assert args.offline_ratio == (0.25 if family == "kitchen" else 0.5)
    assert cal_ql.PAPER_SETTINGS["pen"]["online_steps"] == 200_000
    assert cal_ql.PAPER_SETTINGS["door"]["online_steps"] == 1_000_000


@pytest.mark.parametrize("ratio, offline", [(0.5, 128), (0.25, 64)])
def test_share_of_offline_rows_in_a_batch_of_256(ratio, offline):
    columns = {"rewards": np.zeros(300, np.float32)}
    buffer = cal_ql.ReplayBuffer(columns, 300, torch.device("cpu"))
    for _ in range(300):
        buffer.add(rewards=1.0)
    batch = buffer.sample(256, ratio)
    assert batch["rewards"].sum() == 256 - offline


@pytest.mark.parametrize(
    "flags, words",
    [
        (["--num-actions", "0"], "--num-actions must be between 1"),
        (["--critic-layers", "0"], "--critic-layers must be between 1"),
        (["--critic-subset", "-1"], "--critic-subset must be between 0"),
        (["--critic-lr", "-0.1"], "--critic-lr must be between 0"),
        (["--cql-alpha", "-1"], "--cql-alpha must be between 0"),
        (["--offline-ratio", "2"], "between 0.0 and 1.0"),
        (["--infinite-horizon", "--gamma", "1"], "needs a --gamma below 1"),
    ],
)
def test_refused(capsys, flags, words):
    pendulum()
    with pytest.raises(SystemExit) as stop:
        run("--run-name", "refused", *flags)
    assert stop.value.code == 2
    assert words in capsys.readouterr().err
    assert not Path("runs/refused").exists()


def test_checkpoints_of_the_other_family_are_refused(capsys):
    import iql

    pendulum()
    iql.main(
        iql.parse_args(
            [
                "--dataset-id",
                "test/pendulum/random-v0",
                *TINY,
                "--online-steps",
                "0",
                "--run-name",
                "iql",
            ]
        )
    )
    with pytest.raises(SystemExit):
        run("--run-name", "refused", "--offline-checkpoint", "runs/iql/offline.pt")
    assert "its networks is iql, not cql" in capsys.readouterr().err


def test_online_returns_of_an_episode_that_the_clock_cut():
    """--infinite-horizon: it goes on for ever, 1 / (1 - 0.99); one that ends is summed up."""
    spec = copy.deepcopy(gym.spec(TASK))
    spec.max_episode_steps = 4
    pendulum(env=spec)
    folder = run("--run-name", "run", "--infinite-horizon", "--offline-steps", "0")
    online, start, cut = torch.load(folder / "latest.pt", weights_only=True)["online"], 0, 0
    for row in rows(folder):
        if row["online/episode_length"]:
            length = int(float(row["online/episode_length"]))
            ends, returns = online[start : start + length, 10], online[start : start + length, 11]
            start += length
            cut += not ends.any()
            first = (1 - 0.99 ** (length - 1)) / 0.01 if ends.any() else 100.0
            assert returns[0].item() == pytest.approx(first, rel=1e-5)
            assert returns[-1].item() == pytest.approx(0.0 if ends.any() else 100.0, rel=1e-5)
    assert start == len(online)
    assert cut > 0
