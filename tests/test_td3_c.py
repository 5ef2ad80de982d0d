"""TD3-C: every loss against NumPy, and hand-computed numbers.

Also the three methods side by side, and what the switch changes.
"""

import csv
import dataclasses
import math
import os
import signal

import numpy as np
import pytest
import torch
from conftest import TINY, pendulum, run
from torch import nn

import td3_c

OBS, ACT, B = 5, 2, 64
METHODS = ["td3c", "td3", "td3bc"]


@pytest.fixture(autouse=True)
def often(monkeypatch):
    monkeypatch.setattr(td3_c, "LOG_EVERY", 10)


def make_agent(obs_dim=OBS, act_dim=ACT, seed=0, **settings):
    """An agent whose targets differ from its networks and whose observations need standardizing."""
    torch.manual_seed(seed)
    args = dataclasses.replace(td3_c.Args(), compile=False, gamma=0.9, **settings)
    agent = td3_c.Agent(obs_dim, act_dim, args, torch.device("cpu"))
    with torch.no_grad():
        for network in (agent.actor, agent.critic, agent.actor_target, agent.critic_target):
            for parameter in network.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
    data = np.random.default_rng(3).normal(2.0, 3.0, (100, obs_dim)).astype(np.float32)
    agent.measure(data)
    return agent


def make_batch(seed=1, size=B):
    rng = np.random.default_rng(seed)
    batch = {
        "obs": rng.normal(2.0, 3.0, (size, OBS)),
        "actions": rng.uniform(-1, 1, (size, ACT)),
        "rewards": rng.normal(size=size),
        "next_obs": rng.normal(2.0, 3.0, (size, OBS)),
        "terminations": (rng.random(size) < 0.3).astype(float),
    }
    return {name: torch.tensor(column, dtype=torch.float32) for name, column in batch.items()}


def parameters_of(agent) -> dict:
    return {name: tensor.clone() for name, tensor in agent.state_dict().items()}


def changed(agent, before) -> set:
    """Networks with an entry that is no longer what it was."""
    after = agent.state_dict()
    names = {name for name in before if not torch.equal(before[name], after[name])}
    return {name.split(".")[0] for name in names}


def numpy_mlp(layers, x):
    for i, (weight, bias) in enumerate(layers):
        x = x @ weight + bias
        x = np.maximum(x, 0) if i < len(layers) - 1 else x
    return x


def numpy_losses(agent, batch, noise=0.0):
    """All losses from the equations alone, in float64; `noise` (B, act_dim) is standard normal."""
    args = agent.args
    p = {name: tensor.numpy().astype(np.float64) for name, tensor in agent.state_dict().items()}
    columns = {name: column.numpy().astype(np.float64) for name, column in batch.items()}
    data = np.random.default_rng(3).normal(2.0, 3.0, (100, OBS)).astype(np.float32)
    mean, std = data.astype(np.float64).mean(0), data.astype(np.float64).std(0)
    obs, next_obs = ((columns[name] - mean) / (std + 1e-3) for name in ("obs", "next_obs"))

    def policy(name, x):
        layers = [(p[f"{name}.net.{i}.weight"].T, p[f"{name}.net.{i}.bias"]) for i in (0, 2, 4)]
        return np.tanh(numpy_mlp(layers, x))

    def critic(name, x, a, member):
        layers = [
            (p[f"{name}.weights.{i}"][member], p[f"{name}.biases.{i}"][member]) for i in range(3)
        ]
        return numpy_mlp(layers, np.concatenate([x, a], 1))[:, 0]

    noise = np.clip(args.target_noise * noise, -args.noise_clip, args.noise_clip)
    next_actions = np.clip(policy("actor_target", next_obs) + noise, -1, 1)
    next_q = np.minimum(*(critic("critic_target", next_obs, next_actions, i) for i in (0, 1)))
    y = columns["rewards"] + args.gamma * np.where(columns["terminations"] == 1, 0, next_q)
    q = [critic("critic", obs, columns["actions"], i) for i in (0, 1)]
    actions = policy("actor", obs)
    policy_q = critic("critic", obs, actions, 0)
    bc = sum(np.sum((actions[i] - columns["actions"][i]) ** 2) for i in range(len(obs)))
    bc /= len(obs) * ACT
    gap = sum(np.sum((actions - policy("actor_target", obs)) ** 2, 1)) / (len(obs) * ACT)
    multiplier = np.log1p(np.exp(p["eta"]))
    scale = 1 / np.mean(np.abs(policy_q))
    return {
        "critic_loss": np.mean((y - q[0]) ** 2) + np.mean((y - q[1]) ** 2),
        "q": np.mean(q),
        "policy_q": np.mean(policy_q),
        "bc_loss": bc,
        "gap": gap,
        "td3bc": -args.alpha * scale * np.mean(policy_q) + bc,
        "td3": -scale * np.mean(policy_q),
        "td3c": -scale * np.mean(policy_q) + multiplier * gap,
        "dual_loss": multiplier * (args.epsilon - gap),
    }


# ---- the losses


def test_critic_loss_equals_numpy():
    """The same noise, drawn twice; some of it is clipped, and some actions leave the box."""
    agent, batch = make_agent(target_noise=0.4), make_batch()
    torch.manual_seed(7)
    loss, metrics = agent.critic_loss(batch)
    torch.manual_seed(7)
    noise = torch.randn(B, ACT).numpy()
    assert (np.abs(0.4 * noise) > 0.5).any()
    expected = numpy_losses(agent, batch, noise)
    assert loss.item() == pytest.approx(expected["critic_loss"], rel=1e-4)
    for name, value in metrics.items():
        assert value.item() == pytest.approx(expected[name], rel=1e-4), name
    assert loss.item() != pytest.approx(numpy_losses(agent, batch)["critic_loss"], rel=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_actor_loss_equals_numpy(method):
    agent, batch = make_agent(alpha=1.7, initial_multiplier=3.0), make_batch()
    loss, metrics = agent.actor_loss(batch, method)
    expected = numpy_losses(agent, batch)
    assert loss.item() == pytest.approx(expected[method], rel=1e-4)
    assert metrics["actor_loss"].item() == loss.item()
    for name in ("policy_q", "bc_loss", "gap"):
        assert metrics[name].item() == pytest.approx(expected[name], rel=1e-4), name
    multiplier = {"td3c": 3.0}.get(method, 0.0)
    assert metrics["multiplier"].item() == pytest.approx(multiplier, rel=1e-6)


def test_dual_loss_equals_numpy():
    agent, batch = make_agent(epsilon=0.02, initial_multiplier=3.0), make_batch()
    expected = numpy_losses(agent, batch)["dual_loss"]
    assert agent.dual_loss(batch).item() == pytest.approx(expected, rel=1e-4)


def test_each_loss_moves_its_own_network_only():
    """Gradients exist there only, and equal finite differences of the loss in NumPy."""
    batch = make_batch()
    cases = [("critic", "critic_loss", ["critic.biases.2", "critic.weights.1"])]
    cases += [("actor", method, ["actor.net.4.bias", "actor.net.2.weight"]) for method in METHODS]
    cases += [("eta", "dual_loss", ["eta"])]
    for network, name, parameters in cases:
        agent = make_agent(target_noise=0.0, initial_multiplier=3.0)
        if name == "critic_loss":
            agent.critic_loss(batch)[0].backward()
        elif name == "dual_loss":
            agent.dual_loss(batch).backward()
        else:
            agent.actor_loss(batch, name)[0].backward()
        moved = {key.split(".")[0] for key, p in agent.named_parameters() if p.grad is not None}
        assert moved == {network}, name
        frozen = make_agent(target_noise=0.0, initial_multiplier=3.0)
        for key in parameters:
            parameter = dict(agent.named_parameters())[key]
            entry = ()
            if parameter.ndim > 0:
                entry = np.unravel_index(parameter.grad.abs().argmax().item(), parameter.shape)
            values = []
            for shift in (1e-3, -1e-3):
                frozen.state_dict()[key][entry] += shift
                values.append(constant_scale(frozen, agent, batch, name))
                frozen.state_dict()[key][entry] -= shift
            numeric = (values[0] - values[1]) / 2e-3
            assert parameter.grad[entry].item() == pytest.approx(numeric, rel=2e-2), (name, key)


def constant_scale(shifted, agent, batch, name) -> float:
    """A loss of the shifted agent in NumPy, with c as it is for the agent."""
    losses = numpy_losses(shifted, batch)
    if name not in METHODS:
        return losses[name]
    with torch.no_grad():
        obs = agent.standardized(batch["obs"])
        c = agent.critic.first(obs, agent.actor(obs)).abs().mean().item()
    weight = {"td3bc": agent.args.alpha}.get(name, 1.0)
    rest = losses[name] - weight * losses["td3"]  # the other term alone
    return -weight * losses["policy_q"] / c + rest


def test_first_critic_is_the_first_of_the_ensemble():
    agent, batch = make_agent(), make_batch()
    both = agent.critic(batch["obs"], batch["actions"])
    first = agent.critic.first(batch["obs"], batch["actions"])
    assert torch.allclose(first, both[0], atol=1e-5)
    assert not torch.allclose(first, both[1], atol=1e-2)


class Fixed(nn.Module):
    """A network with a given output, whatever it is asked; the output is its only parameter."""

    def __init__(self, output):
        super().__init__()
        self.output = nn.Parameter(torch.tensor(output))

    def forward(self, *_):
        return self.output

    def first(self, _, actions):
        """As a critic: Q moves with the action, by 1 per unit of its first entry."""
        return self.output + actions[:, 0] - actions[:, 0].detach()


def test_td3bc_by_hand():
    """Q = 1, -3: c = 2, and alpha / c = 1.25; the cloning term is 0.625; the loss 1.25 + 0.625."""
    agent = make_agent(act_dim=1, alpha=2.5)
    agent.actor, agent.critic = Fixed([[0.5], [0.0]]), Fixed([1.0, -3.0])
    agent.actor_target = Fixed([[0.5], [0.0]])
    batch = {"obs": torch.zeros(2, OBS), "actions": torch.tensor([[0.0], [1.0]])}
    loss, metrics = agent.actor_loss(batch, "td3bc")
    assert loss.item() == 1.875
    assert metrics["bc_loss"].item() == 0.625
    loss.backward()
    # Through Q: -1.25 / 2 each, as dQ/da = 1; the cloning term: (pi - a), as the mean is over two.
    gradient = torch.tensor([[-0.625 + 0.5], [-0.625 - 1.0]])
    assert torch.equal(agent.actor.output.grad, gradient)


def test_gap_by_hand():
    """A mean over the entries of actions, not a sum: 0.035, not 0.07."""
    agent = make_agent()
    agent.actor_target = Fixed([[0.0, 0.0], [0.0, 0.0]])
    gap = agent.gap(torch.zeros(2, OBS), torch.tensor([[0.1, -0.2], [0.0, 0.3]]))
    assert gap.item() == pytest.approx(0.035, abs=1e-8)


@pytest.mark.parametrize(("gap", "rises"), [(2e-3, True), (5e-4, False)])
def test_sign_of_the_dual(gap, rises):
    agent = make_agent(epsilon=1e-3, initial_multiplier=1.0)
    agent.actor, agent.actor_target = Fixed([[math.sqrt(gap)] * ACT] * B), Fixed([[0.0] * ACT] * B)
    before = td3_c.F.softplus(agent.eta).item()
    assert before == pytest.approx(1.0, abs=1e-6)
    agent.descend(agent.dual_loss(make_batch()))
    after = td3_c.F.softplus(agent.eta).item()
    assert (after > before) == rises
    assert after != before


@pytest.mark.parametrize("multiplier", [1e-6, 0.01, 1.0, 10.0, 1e4])
def test_initial_multiplier(multiplier):
    agent = make_agent(initial_multiplier=multiplier)
    assert td3_c.F.softplus(agent.eta).item() == pytest.approx(multiplier, rel=1e-4)
    eta = {1.0: 0.541325, 10.0: 9.99995}.get(multiplier, agent.eta.item())
    assert agent.eta.item() == pytest.approx(eta, abs=1e-5)


def test_the_multiplier_is_never_negative():
    agent, batch = make_agent(epsilon=4.0, dual_lr=1.0), make_batch()
    seen = [agent.update_actor(batch, "td3c")["multiplier"].item() for _ in range(60)]
    assert seen == sorted(seen, reverse=True)
    assert 0 <= seen[-1] < 1e-4


@pytest.mark.parametrize("terminated", [False, True])
def test_only_a_true_end_cuts_the_bootstrap(terminated):
    agent = make_agent(target_noise=0.0)
    agent.critic = Fixed([[0.0] * B, [0.0] * B])
    agent.critic_target = Fixed([[5.0] * B, [7.0] * B])
    batch = make_batch() | {"rewards": torch.full((B,), 2.0)}
    batch["terminations"] = torch.full((B,), float(terminated))
    y = 2.0 if terminated else 2.0 + 0.9 * 5.0
    assert agent.critic_loss(batch)[0].item() == pytest.approx(2 * y**2, rel=1e-6)


def test_target_noise_is_clipped_and_stays_in_the_box():
    agent, batch = make_agent(target_noise=10.0, noise_clip=0.3), make_batch()
    asked = []
    agent.actor_target = Fixed([[0.0, 0.9]] * B)
    agent.critic_target.forward = lambda obs, actions: asked.append(actions) or torch.zeros(2, B)
    agent.critic_loss(batch)
    assert asked[0][:, 0].abs().max().item() == pytest.approx(0.3)
    assert asked[0][:, 1].max().item() == 1.0
    assert asked[0][:, 1].min().item() == pytest.approx(0.6)


@pytest.mark.parametrize("method", METHODS)
def test_compiled_losses_are_the_same(method):
    agent, batch = make_agent(target_noise=0.0), make_batch()
    graph = {"backend": "aot_eager", "fullgraph": True}  # without a C++ compiler
    pairs = [(agent.critic_loss(batch)[0], torch.compile(agent.critic_loss, **graph)(batch)[0])]
    pairs += [(agent.dual_loss(batch), torch.compile(agent.dual_loss, **graph)(batch))]
    actor_loss = torch.compile(agent.actor_loss, **graph)
    pairs += [(agent.actor_loss(batch, method)[0], actor_loss(batch, method)[0])]
    for eager, other in pairs:
        assert torch.allclose(eager, other, rtol=1e-5)


# ---- the three methods


def test_without_a_multiplier_it_is_td3():
    """To the bit: gradients of the policy, and all networks after ten updates."""
    constrained, free = make_agent(), make_agent()
    for agent, method in ((constrained, "td3c"), (free, "td3")):
        with torch.no_grad():
            agent.eta.fill_(-200.0)  # softplus is 0 in float32
        assert td3_c.F.softplus(agent.eta).item() == 0
        agent.actor_loss(make_batch(), method)[0].backward()
    for one, other in zip(constrained.actor.parameters(), free.actor.parameters()):
        assert torch.equal(one.grad, other.grad)
        assert one.grad.abs().max() > 0
    for agent, method in ((constrained, "td3c"), (free, "td3")):
        agent.optimizer.zero_grad()
        torch.manual_seed(5)
        for step in range(10):
            agent.update(make_batch(seed=step), method, move_actor=step % 2 == 0)
    before = {name: tensor for name, tensor in free.state_dict().items() if name != "eta"}
    assert changed(constrained, before) == set()
    assert changed(make_agent(), before) >= {"actor", "critic", "actor_target", "critic_target"}


def test_a_huge_multiplier_pulls_the_policy_to_its_target():
    agent, batch = make_agent(initial_multiplier=1e4), make_batch()
    obs = agent.standardized(batch["obs"])
    actions = agent.actor(obs).detach().requires_grad_()
    agent.actor.forward = lambda _: actions
    agent.actor_loss(batch, "td3c")[0].backward()
    away = (actions - agent.actor_target(obs)).detach().flatten()
    cosine = torch.cosine_similarity(actions.grad.flatten(), away, dim=0)
    assert cosine.item() > 0.9999


@pytest.mark.parametrize("method", METHODS)
def test_what_an_update_moves(method):
    agent = make_agent()
    before = parameters_of(agent)
    agent.update(make_batch(), method, move_actor=False)
    assert changed(agent, before) == {"critic"}
    before = parameters_of(agent)
    agent.update(make_batch(), method, move_actor=True)
    networks = {"critic", "actor", "actor_target", "critic_target"}
    assert changed(agent, before) == networks | ({"eta"} if method == "td3c" else set())
    assert all(parameter.grad is None for parameter in agent.parameters())


def test_order_within_an_update():
    """Critics, then the multiplier, then the policy, then the targets.

    The multiplier moves by the old policy's gap, the policy with the new multiplier.
    """
    agent, batch = make_agent(epsilon=1e-3, initial_multiplier=1.0, dual_lr=0.5), make_batch()
    twin = make_agent(epsilon=1e-3, initial_multiplier=1.0, dual_lr=0.5)
    before = parameters_of(agent)
    torch.manual_seed(5)
    metrics = agent.update(batch, "td3c", move_actor=True)
    torch.manual_seed(5)
    twin.descend(twin.critic_loss(batch)[0])
    expected = numpy_losses(twin, batch)  # the critics have moved, the rest has not
    for name in ("policy_q", "gap"):
        assert metrics[name].item() == pytest.approx(expected[name], rel=1e-4), name
    eta = before["eta"].item() + 0.5  # Adam's first step
    assert agent.eta.item() == pytest.approx(eta, abs=1e-4)
    assert metrics["multiplier"].item() == pytest.approx(math.log1p(math.exp(eta)), rel=1e-4)
    after = agent.state_dict()
    for name in ("actor{}.net.2.weight", "actor{}.net.4.bias", "critic{}.weights.1"):
        target = 0.995 * before[name.format("_target")] + 0.005 * after[name.format("")]
        assert torch.allclose(after[name.format("_target")], target, atol=1e-7)
    assert not any(p.requires_grad for p in agent.actor_target.parameters())
    assert not any(p.requires_grad for p in agent.critic_target.parameters())


class Toy(nn.Module):
    """A policy that is one number, with a critic that knows Q(a) = -(a - 1)^2 - 10."""

    def __init__(self):
        super().__init__()
        self.action = nn.Parameter(torch.zeros(1))

    def forward(self, obs):
        return self.action[None]

    @staticmethod
    def first(obs, actions):
        return -(actions[:, 0] - 1).square() - 10


@pytest.mark.parametrize(
    ("method", "epsilon", "multiplier", "widest", "steps"),
    [
        ("td3", 1e-3, 10.0, 0.0543, 1000),
        ("td3c", 1e-3, 10.0, 0.0315, 4300),
        ("td3c", 1e-3, 1.0, 0.0413, 1000),  # it overshoots before the multiplier has risen
    ],
)
def test_toy(method, epsilon, multiplier, widest, steps):
    """The widest |pi - pit| on the way to the best action: constrained, about sqrt(epsilon)."""
    agent = make_agent(1, 1, epsilon=epsilon, initial_multiplier=multiplier)
    agent.actor, agent.actor_target, agent.critic = Toy(), Toy().requires_grad_(False), Toy()
    agent.critic_target = Toy().requires_grad_(False)
    dual = {"params": [agent.eta], "lr": 1e-2}
    agent.optimizer = torch.optim.Adam([{"params": [agent.actor.action]}, dual], lr=3e-4)
    batch = {"obs": torch.zeros(1, 1), "actions": torch.zeros(1, 1)}
    gaps = []
    for _ in range(steps):
        agent.update_actor(batch, method)
        gaps.append((agent.actor.action - agent.actor_target.action).abs().item())
    assert max(gaps) == pytest.approx(widest, abs=5e-5)
    assert agent.actor.action.item() > 0.1  # it is on its way


def adam(state, gradient, step_size):
    """How far Adam moves a number down its gradient."""
    state["t"] += 1
    state["m"] = 0.9 * state["m"] + 0.1 * gradient
    state["v"] = 0.999 * state["v"] + 0.001 * gradient**2
    m, v = state["m"] / (1 - 0.9 ** state["t"]), state["v"] / (1 - 0.999 ** state["t"])
    return -step_size * m / (math.sqrt(v) + 1e-8)


def toy_in_floats(epsilon, eta, action, target, steps):
    """The toy in plain Python: (action, target, eta) after each step; eta None: td3."""
    policy, dual, path = dict.fromkeys("tmv", 0.0), dict.fromkeys("tmv", 0.0), []
    for _ in range(steps):
        gradient = 2 * (action - 1) / (10 + (action - 1) ** 2)
        if eta is not None:
            slope = 1 / (1 + math.exp(-eta))
            eta += adam(dual, (epsilon - (action - target) ** 2) * slope, 1e-2)
            gradient += math.log1p(math.exp(eta)) * 2 * (action - target)
        action += adam(policy, gradient, 3e-4)
        target += 0.005 * (action - target)
        path.append((action, target, eta))
    return path


@pytest.mark.parametrize(
    ("epsilon", "multiplier", "arrival", "widest"),
    [
        (None, None, 4212, 0.0543),
        (1e-3, 10.0, 5960, 0.0315),
        (1e-4, 10.0, 17755, 0.0101),
        (1e-3, 1.0, 5520, 0.0413),
    ],
)
def test_when_the_toy_arrives(epsilon, multiplier, arrival, widest):
    """The toy in plain Python has the specified numbers; the agent is held against it below."""
    eta = None if multiplier is None else math.log(math.expm1(multiplier))
    path = toy_in_floats(epsilon, eta, 0.0, 0.0, 20_000)
    assert next(i for i, x in enumerate(path, 1) if x[0] > 0.9) == pytest.approx(arrival, abs=10)
    assert max(abs(x[0] - x[1]) for x in path) == pytest.approx(widest, abs=5e-5)
    assert path[-1][0] == pytest.approx(1.0, abs=1e-3)
    assert eta is None or math.log1p(math.exp(path[-1][2])) < 0.01


@pytest.mark.parametrize(
    ("method", "epsilon", "multiplier", "action", "target"),
    [
        ("td3", 1e-3, 1.0, 0.0, 0.0),
        ("td3c", 1e-3, 10.0, 0.0, 0.0),
        ("td3c", 1e-4, 10.0, 0.0, 0.0),
        ("td3c", 1e-3, 1.0, 0.8, 0.75),
    ],
)
def test_the_agent_goes_the_way_of_the_toy(method, epsilon, multiplier, action, target):
    agent = make_agent(1, 1, epsilon=epsilon, initial_multiplier=multiplier)
    agent.actor, agent.actor_target, agent.critic = Toy(), Toy().requires_grad_(False), Toy()
    agent.critic_target = Toy().requires_grad_(False)
    with torch.no_grad():
        agent.actor.action.fill_(action)
        agent.actor_target.action.fill_(target)
    eta = {"params": [agent.eta], "lr": 1e-2}
    agent.optimizer = torch.optim.Adam([{"params": [agent.actor.action]}, eta], lr=3e-4)
    start = None if method == "td3" else math.log(math.expm1(multiplier))
    batch = {"obs": torch.zeros(1, 1), "actions": torch.zeros(1, 1)}
    for x in toy_in_floats(epsilon, start, action, target, 300):
        agent.update_actor(batch, method)
        assert agent.actor.action.item() == pytest.approx(x[0], abs=1e-4)
        assert agent.actor_target.action.item() == pytest.approx(x[1], abs=1e-4)
        assert method == "td3" or agent.eta.item() == pytest.approx(x[2], abs=1e-3)


# ---- acting, and observations


def test_act():
    agent, obs = make_agent(exploration_noise=0.5), make_batch()["obs"]
    state = torch.get_rng_state()
    policy = agent.act(obs, deterministic=True)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(policy, agent.actor(agent.standardized(obs)))
    assert torch.allclose(agent.act(obs[0], deterministic=True), policy[0], atol=1e-6)
    torch.manual_seed(2)
    noisy = agent.act(obs, deterministic=False)
    torch.manual_seed(2)
    expected = (policy + 0.5 * torch.randn(B, ACT)).clamp(-1, 1)
    assert torch.equal(noisy, expected)
    assert noisy.abs().max() == 1.0
    quiet = make_agent(exploration_noise=0.0)
    assert torch.equal(quiet.act(obs, deterministic=False), policy)


def test_statistics_are_those_of_the_data_and_stay():
    folder = run("--dataset-id", pendulum(), *TINY, script=td3_c)
    flags = ["--dataset-id", "test/pendulum/random-v0", *TINY, "--run-name", "other"]
    args = td3_c.parse_args(flags)
    obs = td3_c.load_data(args)[0]["obs"].astype(np.float64)
    for name in ("offline.pt", "latest.pt"):
        agent = torch.load(folder / name)["agent"]
        assert np.allclose(agent["obs_mean"], obs.mean(0), atol=1e-6), name
        assert np.allclose(agent["obs_std"], obs.std(0), atol=1e-6), name
    online = torch.load(folder / "latest.pt")["online"]
    assert len(online) == 90
    assert not np.allclose(online[:, :4].mean(0), obs.mean(0), atol=1e-4)


# ---- the switch, and whole runs


@pytest.fixture
def updates(monkeypatch):
    """What Agent.update was called with, in order."""
    calls, update = [], td3_c.Agent.update

    def recording(self, batch, method, move_actor):
        columns = {name: column.clone() for name, column in batch.items()}
        calls.append((columns, method, move_actor))
        return update(self, batch, method, move_actor)

    monkeypatch.setattr(td3_c.Agent, "update", recording)
    return calls


@pytest.mark.parametrize("mode", ["append", "online_only", "symmetric"])
def test_replay_modes(updates, mode):
    folder = run("--dataset-id", pendulum(), *TINY, "--online-replay", mode, script=td3_c)
    rows = torch.load(folder / "latest.pt")["online"]
    new = {tuple(row[4:6].tolist()) for row in rows}  # action and reward
    shares = []
    for batch, _, _ in updates:
        pairs = torch.stack([batch["actions"][:, 0], batch["rewards"]], 1).tolist()
        shares.append(sum(tuple(pair) in new for pair in pairs))
    assert shares[:60] == [0] * 60
    online = shares[60:]
    assert len(online) == 75  # steps 16 to 90: a batch of 16 has to be there
    if mode == "online_only":
        assert online == [16] * 75
    elif mode == "symmetric":
        assert online == [8] * 75
    else:
        assert min(online) < 8 < max(online)
        assert sum(online[:25]) < sum(online[-25:])  # their share grows with the buffer


@pytest.mark.parametrize("method", METHODS)
def test_losses_and_steps_of_each_phase(updates, method):
    folder = run("--dataset-id", pendulum(), *TINY, "--method", method, script=td3_c)
    assert [call[1] for call in updates] == ["td3bc"] * 60 + [method] * 75
    assert [call[2] for call in updates[:60]] == [False, True] * 30
    assert [call[2] for call in updates[60:]] == [True, False] * 37 + [True]
    # Adam began anew at the switch: its counts are those of the online phase.
    optimizer, offline = (
        torch.load(folder / name)["optimizer"] for name in ("latest.pt", "offline.pt")
    )
    networks, dual = (group["params"] for group in optimizer["param_groups"])
    counts = [int(optimizer["state"][index]["step"]) for index in networks]
    assert counts == [38] * 6 + [75] * 6  # the policy's parameters, then those of the critics
    assert optimizer["state"][dual[0]]["step"] == (38 if method == "td3c" else 0)
    counts = [int(offline["state"][index]["step"]) for index in (*networks, *dual)]
    assert counts == [30] * 6 + [60] * 6 + [0]
    rows = list(csv.DictReader(open(folder / "metrics.csv", newline="")))
    for phase in ("offline", "online"):
        logged = [row for row in rows if row[f"{phase}/critic_loss"]]
        assert len(logged) == {"offline": 6, "online": 8}[phase]
        for row in logged:
            assert all(row[f"{phase}/{name}"] for name in td3_c.METRICS)
            constrained = phase == "online" and method == "td3c"
            assert (float(row[f"{phase}/multiplier"]) > 0) == constrained


@pytest.mark.parametrize("steps, noted", [(15, True), (16, False)])
def test_a_run_too_short_for_an_update_says_so(capsys, updates, steps, noted):
    flags = ["--dataset-id", pendulum(), *TINY, "--batch-size", 16, "--online-steps", steps]
    run(*flags, script=td3_c)
    note = "note: no update is made online: the first comes at step 16"
    assert (note in capsys.readouterr().out) == noted
    assert len(updates) == 60 + (not noted)


def rows_at_the_switch(folder):
    rows = csv.DictReader(open(folder / "eval.csv", newline=""))
    return [row for row in rows if row["step"] == "0"]


def test_every_method_starts_from_the_same_offline_phase():
    """One offline.pt, without a multiplier; the evaluation at step 0 is that of the end offline."""
    data = ["--dataset-id", pendulum()]
    first = run(*data, *TINY, "--run-name", "first", script=td3_c)
    offline = torch.load(first / "offline.pt")
    assert "eta" not in offline["agent"]
    assert {"obs_mean", "obs_std", "actor_target.net.0.weight"} <= offline["agent"].keys()
    for method in METHODS:
        flags = ["--method", method, "--initial-multiplier", 2, "--learning-rate", 0.0]
        flags += ["--dual-lr", 0.0, "--offline-checkpoint", first / "offline.pt"]
        folder = run(*data, *TINY, *flags, "--run-name", method, script=td3_c)
        assert rows_at_the_switch(folder) == rows_at_the_switch(first)
        assert len(rows_at_the_switch(folder)) == 2
        latest = torch.load(folder / "latest.pt")["agent"]
        assert torch.equal(latest["actor.net.2.weight"], offline["agent"]["actor.net.2.weight"])
        # The target lags behind at the switch, too: nothing has set it to the policy.
        gap = (latest["actor.net.2.weight"] - latest["actor_target.net.2.weight"]).abs().max()
        assert gap > 0
        assert td3_c.F.softplus(latest["eta"]).item() == pytest.approx(2.0, abs=1e-5)


@pytest.mark.parametrize("updates", [45, 62, 100])
def test_interrupted_and_resumed_is_the_same_run(monkeypatch, updates):
    """Offline, online before a first episode has ended after an update, and later."""
    flags = ["--dataset-id", pendulum(), *TINY]
    whole = run(*flags, "--run-name", "whole", script=td3_c)
    update, count = td3_c.Agent.update, [0]

    def counting(self, batch, method, move_actor):
        count[0] += 1
        if count[0] == updates:
            os.kill(os.getpid(), signal.SIGTERM)
        return update(self, batch, method, move_actor)

    monkeypatch.setattr(td3_c.Agent, "update", counting)
    with pytest.raises(SystemExit):
        run(*flags, "--run-name", "halves", script=td3_c)
    monkeypatch.setattr(td3_c.Agent, "update", update)
    halves = run("--resume", "runs/halves/latest.pt", script=td3_c)
    for name in ("eval.csv", "metrics.csv"):
        assert (whole / name).read_bytes() == (halves / name).read_bytes()
    one, other = (torch.load(folder / "latest.pt") for folder in (whole, halves))
    assert all(torch.equal(tensor, other["agent"][name]) for name, tensor in one["agent"].items())
    for index, moments in one["optimizer"]["state"].items():
        again = other["optimizer"]["state"][index]
        assert all(torch.equal(tensor, again[name]) for name, tensor in moments.items())


def test_a_bound_that_never_binds_is_td3():
    """To the bit, once the multiplier is 0.

    A huge dual step takes it there before the first step of the policy.
    """
    flags = ["--dataset-id", pendulum(), *TINY]
    free = run(*flags, "--method", "td3", "--run-name", "free", script=td3_c)
    flags += ["--epsilon", 1000]
    wide = run(*flags, "--dual-lr", 1000, "--run-name", "wide", script=td3_c)
    slow = run(*flags, "--run-name", "slow", script=td3_c)
    assert (free / "eval.csv").read_bytes() == (wide / "eval.csv").read_bytes()
    assert (free / "metrics.csv").read_bytes() == (wide / "metrics.csv").read_bytes()
    agents = [torch.load(folder / "latest.pt")["agent"] for folder in (free, wide, slow)]
    names = [name for name in agents[0] if name != "eta"]
    assert all(torch.equal(agents[0][name], agents[1][name]) for name in names)
    # With the default dual step the multiplier falls by 0.01 per step of the policy.
    assert not torch.equal(agents[0]["actor.net.2.weight"], agents[2]["actor.net.2.weight"])
    assert agents[2]["eta"].item() == pytest.approx(9.99995 - 0.01 * 38, abs=1e-3)


def test_a_tight_bound_holds_the_policy_back():
    """With a huge multiplier to start with, the policy moves less than without the constraint."""
    distances = {}
    for name, method, multiplier in (("free", "td3", 1.0), ("tight", "td3c", 1e4)):
        agent = make_agent(epsilon=0.0, initial_multiplier=multiplier)
        agent.actor.load_state_dict(agent.actor_target.state_dict())
        obs = make_batch()["obs"]
        start = agent.act(obs, deterministic=True)
        for step in range(40):
            agent.update_actor(make_batch(seed=step), method)
        distances[name] = (agent.act(obs, deterministic=True) - start).square().mean().item()
    assert distances["tight"] < 0.1 * distances["free"]


def test_paper_settings_name_real_arguments():
    names = {field.name for field in dataclasses.fields(td3_c.Args)}
    assert all(set(settings) <= names for settings in td3_c.PAPER_SETTINGS.values())
    antmaze = td3_c.parse_args(["--dataset-id", "D4RL/antmaze/umaze-v1"])
    assert (antmaze.reward_bias, antmaze.success_ends_episode) == (-1.0, True)
    assert (antmaze.offline_steps, antmaze.alpha) == (1_000_000, 2.5)
    maze = td3_c.parse_args(["--dataset-id", "o2o/pointmaze/large-v0", "--reward-bias", "0"])
    assert (maze.reward_bias, maze.offline_steps, maze.eval_episodes) == (0.0, 100_000, 24)
    default = td3_c.parse_args([])
    assert (default.method, default.online_replay) == ("td3c", "append")
    assert (default.reward_scale, default.reward_bias, default.alpha) == (1.0, 0.0, 2.5)
    assert (default.epsilon, default.initial_multiplier, default.dual_lr) == (1e-3, 10.0, 1e-2)
