"""The algorithm: every loss against NumPy, gradients, and hand-computed numbers.

The gradients are compared with an independent derivation.
"""

import dataclasses
import importlib

import numpy as np
import pytest
import torch
from conftest import TINY, pendulum, run

import iql

OBS, ACT, B = 5, 2, 64


@pytest.fixture
def args():
    torch.set_float32_matmul_precision("highest")
    return dataclasses.replace(iql.Args(), expectile=0.8, beta=2.0, gamma=0.9, compile=False)


def make_agent(args, seed=0):
    torch.manual_seed(seed)
    agent = iql.Agent(OBS, ACT, args, torch.device("cpu"))
    with torch.no_grad():  # targets, biases and log_std away from their initial values
        for parameter in agent.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return agent


def make_batch(seed=1, size=B):
    rng = np.random.default_rng(seed)
    batch = {
        "obs": rng.normal(size=(size, OBS)),
        "actions": rng.uniform(-1, 1, (size, ACT)),
        "rewards": rng.normal(size=size),
    }
    batch |= {
        "next_obs": rng.normal(size=(size, OBS)),
        "terminations": (rng.random(size) < 0.3).astype(float),
    }
    return {name: torch.tensor(column, dtype=torch.float32) for name, column in batch.items()}


def numpy_mlp(weights, biases, x):
    for i, (w, b) in enumerate(zip(weights, biases)):
        x = x @ w + b
        x = np.maximum(x, 0) if i < len(weights) - 1 else x
    return x


def numpy_losses(agent, batch, args):
    """The three losses from the equations alone, in float64."""
    p = {name: tensor.numpy().astype(np.float64) for name, tensor in agent.state_dict().items()}
    obs, actions, rewards, next_obs, done = (
        batch[name].numpy().astype(np.float64) for name in batch
    )

    def single(name, x):
        return numpy_mlp(
            [p[f"{name}.{i}.weight"].T for i in (0, 2, 4)],
            [p[f"{name}.{i}.bias"] for i in (0, 2, 4)],
            x,
        )

    def critics(name):
        x = np.concatenate([obs, actions], 1)
        weights, biases = (
            [p[f"{name}.{kind}.{i}"] for i in range(3)] for kind in ("weights", "biases")
        )
        members = [
            numpy_mlp([w[e] for w in weights], [b[e] for b in biases], x)[:, 0]
            for e in range(len(weights[0]))
        ]
        return np.stack(members)

    value, next_value = single("value", obs)[:, 0], single("value", next_obs)[:, 0]
    u = critics("critic_target").min(0) - value
    value_loss = np.mean(np.abs(args.expectile - (u < 0)) * u**2)
    mean, log_std = np.tanh(single("actor.mean", obs)), np.clip(p["actor.log_std"], -5, 2)
    density = np.exp(-0.5 * ((actions - mean) / np.exp(log_std)) ** 2) / (
        np.exp(log_std) * np.sqrt(2 * np.pi)
    )
    actor_loss = -np.mean(np.minimum(np.exp(args.beta * u), 100) * np.log(density).sum(1))
    target = rewards + args.gamma * np.where(done == 1, 0, next_value)
    critic_loss = sum(np.mean((target - q) ** 2) for q in critics("critic"))
    return {"value_loss": value_loss, "actor_loss": actor_loss, "critic_loss": critic_loss}


@pytest.mark.parametrize("num_critics", [2, 5])
def test_losses_equal_numpy(args, num_critics):
    args.num_critics = num_critics
    agent, batch = make_agent(args), make_batch()
    total, metrics = agent.loss(batch)
    expected = numpy_losses(agent, batch, args)
    for name, value in expected.items():
        assert metrics[name].item() == pytest.approx(value, rel=1e-4), name
    assert total.item() == pytest.approx(sum(expected.values()), rel=1e-4)


@pytest.mark.parametrize("num_critics", [2, 5])
@pytest.mark.parametrize("name", ["o3f", "pex", "jsrl_finetune"])
def test_children_have_the_same_losses_gradients_and_steps(args, name, num_critics):
    """To the bit, with targets and log_std away from where they begin."""
    args.num_critics = num_critics
    module, batch, parent = importlib.import_module(name), make_batch(), make_agent(args)
    common = {key: value for key, value in vars(args).items() if hasattr(module.Args, key)}
    child = module.Agent(OBS, ACT, module.Args(**common), torch.device("cpu"))
    child.load_state_dict(parent.state_dict(), strict=False)
    results = []
    for agent in (parent, child):
        loss, metrics = agent.loss(batch)
        loss.backward()
        named = agent.named_parameters()
        gradients = {key: p.grad.clone() for key, p in named if p.grad is not None}
        agent.update(batch)
        results.append(({"loss": loss} | metrics, gradients, agent.state_dict()))
    for one, other in zip(*(result[:2] for result in results)):
        assert one.keys() == other.keys()
        assert all(torch.equal(tensor, other[key]) for key, tensor in one.items())
    assert all(torch.equal(tensor, results[1][2][key]) for key, tensor in results[0][2].items())


def test_each_loss_moves_its_own_network_only(args):
    """The gradient of the sum equals, per network, that of the one loss that should train it.

    The comparison is by finite differences.
    """
    agent, batch = make_agent(args), make_batch()
    agent.loss(batch)[0].backward()
    assert all(p.grad is None for p in agent.critic_target.parameters())
    pairs = {
        "value.4.bias": "value_loss",
        "actor.mean.4.bias": "actor_loss",
        "actor.log_std": "actor_loss",
    }
    pairs |= {
        "critic.biases.2": "critic_loss",
        "critic.weights.1": "critic_loss",
        "value.2.weight": "value_loss",
    }
    frozen = make_agent(args)  # another agent with the same weights, to be shifted
    for name, loss in pairs.items():
        parameter, state = dict(agent.named_parameters())[name], frozen.state_dict()
        entry = np.unravel_index(parameter.grad.abs().argmax().item(), parameter.shape)
        values = []
        for shift in (1e-3, -1e-3):
            state[name][entry] += shift
            values.append(numpy_losses(frozen, batch, args)[loss])
            state[name][entry] -= shift
        numeric = (values[0] - values[1]) / 2e-3
        assert parameter.grad[entry].item() == pytest.approx(numeric, rel=2e-2), name


def stub(agent, **functions):
    """Replace networks of the agent by functions."""
    for name, function in functions.items():
        object.__setattr__(agent, name, function)


def test_expectile_of_a_coin(args):
    agent, batch = make_agent(args), make_batch(size=100)
    coin = torch.tensor([0.0, 1.0]).repeat(50)
    for expectile in (0.5, 0.7, 0.9):
        args.expectile = expectile
        losses = []
        grid = np.linspace(0, 1, 101)
        for v in grid:
            stub(
                agent,
                critic_target=lambda o, a: coin[None],
                value=lambda o, v=v: torch.full((len(o), 1), float(v)),
            )
            losses.append(agent.loss(batch)[1]["value_loss"].item())
        assert grid[int(np.argmin(losses))] == pytest.approx(expectile, abs=1e-9)


@pytest.mark.parametrize(("advantage", "weight"), [(1.0, 20.0855), (2.0, 100.0), (-1.0, 0.049787)])
def test_advantage_weight(args, advantage, weight):
    args.beta = 3.0
    agent, batch = make_agent(args), make_batch()
    stub(
        agent,
        critic_target=lambda o, a: torch.full((2, B), advantage),
        value=lambda o: torch.zeros(len(o), 1),
    )
    assert agent.loss(batch)[1]["weight"].item() == pytest.approx(weight, rel=1e-5)


def test_log_prob_is_the_plain_gaussian(args):
    actor = iql.Actor(OBS, 2)
    with torch.no_grad():
        for layer in actor.mean[::2]:
            layer.weight.zero_()
        actor.mean[4].bias.copy_(torch.atanh(torch.tensor([0.5, 0.0])))
    log_prob = actor.log_prob(torch.zeros(1, OBS), torch.tensor([[0.6, -0.2]]), 0.0)
    assert log_prob.item() == pytest.approx(-1.862877, abs=1e-6)


def test_dropout_is_in_the_loss_only(args):
    args.dropout = 0.5
    agent, batch = make_agent(args), make_batch()
    losses = {agent.loss(batch)[1]["actor_loss"].item() for _ in range(5)}
    actions = {tuple(agent.act(batch["obs"][0], deterministic=True).tolist()) for _ in range(5)}
    assert len(losses) == 5
    assert len(actions) == 1


def test_act(args):
    agent, obs = make_agent(args), make_batch()["obs"][0]
    with torch.no_grad():
        agent.actor.log_std.fill_(3.0)  # clamped to 2: samples leave the box and are clipped
    assert (agent.actor(obs)[1] == 2.0).all()
    samples = torch.stack([agent.act(obs, deterministic=False) for _ in range(50)])
    assert samples.shape == (50, ACT)
    assert samples.abs().max() == 1.0
    assert torch.equal(agent.act(obs, deterministic=True), agent.actor(obs)[0])


def test_initial_weights_are_orthogonal(args):
    torch.manual_seed(0)
    agent = iql.Agent(OBS, ACT, args, torch.device("cpu"))
    for weight in [agent.value[2].weight, agent.actor.mean[2].weight, *agent.critic.weights[1]]:
        assert torch.allclose(weight @ weight.T, 2 * torch.eye(256), atol=1e-4)
    assert not torch.equal(agent.critic.weights[1][0], agent.critic.weights[1][1])
    assert torch.equal(agent.critic.weights[0], agent.critic_target.weights[0])


def test_update_steps_every_network_and_lets_the_target_follow(args):
    agent, batch = make_agent(args), make_batch()
    before = {name: tensor.clone() for name, tensor in agent.state_dict().items()}
    agent.update(batch)
    after = agent.state_dict()
    assert all(not torch.equal(before[name], after[name]) for name in before)
    assert all(
        p.is_leaf and not p.requires_grad for p in agent.critic_target.parameters()
    )  # no graph grows behind it
    for name in ("weights.1", "biases.2"):
        expected = (1 - args.tau) * before[f"critic_target.{name}"] + args.tau * after[
            f"critic.{name}"
        ]
        assert torch.allclose(after[f"critic_target.{name}"], expected, atol=1e-7)


def test_compiled_loss_is_the_same(args):
    agent, batch = make_agent(args), make_batch()
    # The whole graph, without a C++ compiler.
    compiled = torch.compile(agent.loss, backend="aot_eager", fullgraph=True)
    parameters = [parameter for parameter in agent.parameters() if parameter.requires_grad]
    results = []
    for function in (agent.loss, compiled):
        loss, metrics = function(batch)
        results.append([*metrics.values(), *torch.autograd.grad(loss, parameters)])
    for eager, other in zip(*results, strict=True):
        assert torch.allclose(eager, other, rtol=1e-5, atol=1e-7)


def test_two_armed_bandit(args):
    """One step, no future: a large beta finds the better arm, 0 clones the uniform behaviour."""
    rng = np.random.default_rng(0)
    arms = rng.choice([-0.5, 0.5], size=(256, 1))
    batch = {
        "obs": torch.ones(256, 3),
        "actions": torch.tensor(arms, dtype=torch.float32).repeat(1, 2),
    }
    batch |= {
        "rewards": torch.tensor(arms[:, 0] > 0, dtype=torch.float32),
        "next_obs": torch.ones(256, 3),
    }
    batch |= {"terminations": torch.ones(256)}
    means = {}
    for beta in (0.0, 10.0):
        torch.manual_seed(0)
        settings = dataclasses.replace(args, beta=beta, tau=0.05, learning_rate=1e-3)
        agent = iql.Agent(3, 2, settings, torch.device("cpu"))
        for _ in range(150):
            agent.update(batch)
        means[beta] = agent.act(torch.ones(3), deterministic=True).mean().item()
    assert means[10.0] == pytest.approx(0.5, abs=0.1)
    assert means[0.0] == pytest.approx(arms.mean(), abs=0.1)


def test_the_start_names_the_familys_settings_that_are_in_force(capsys):
    iql.parse_args(["--dataset-id", "x/antmaze/y-v0", "--expectile", "0.8"])
    line = capsys.readouterr().out.splitlines()[1]
    assert line.startswith("settings of antmaze: ")
    assert " beta=10.0" in line
    assert "expectile" not in line


def test_return_scale():
    assert iql.return_scale(
        np.array([-4.0, -6.0, 90.0], np.float32), np.array([2, 3])
    ) == pytest.approx(10)
    with pytest.raises(SystemExit):
        iql.return_scale(np.ones(4, np.float32), np.array([2, 4]))


def test_actor_learning_rate_follows_the_cosine_and_comes_back(monkeypatch):
    rates, update = [], iql.Agent.update

    def recording(self, batch):
        rates.append([group["lr"] for group in self.optimizer.param_groups])
        return update(self, batch)

    monkeypatch.setattr(iql.Agent, "update", recording)
    run(
        "--dataset-id",
        pendulum(),
        *TINY,
        "--offline-steps",
        8,
        "--online-steps",
        2,
        "--actor-lr-decay",
    )
    actor = [rate[0] for rate in rates]
    assert actor[0] == 3e-4
    assert [actor[2], actor[4], actor[6]] == pytest.approx(
        [2.56066e-4, 1.5e-4, 4.3934e-5], rel=1e-4
    )
    assert actor[8:] == [3e-4, 3e-4]
    assert all(rate[1:] == [3e-4] for rate in rates)


def test_paper_settings_name_real_arguments():
    names = {field.name for field in dataclasses.fields(iql.Args)}
    assert all(set(settings) <= names for settings in iql.PAPER_SETTINGS.values())
    antmaze = iql.parse_args(["--dataset-id", "D4RL/antmaze/umaze-v1"])
    assert (antmaze.expectile, antmaze.beta, antmaze.reward_bias, antmaze.offline_steps) == (
        0.9,
        10.0,
        -1.0,
        1_000_000,
    )
    flags = iql.parse_args(
        ["--dataset-id", "D4RL/antmaze/umaze-v1", "--beta", "3", "--offline-steps", "7"]
    )
    assert (flags.expectile, flags.beta, flags.offline_steps) == (0.9, 3.0, 7)
    default = iql.parse_args([])
    assert (default.offline_steps, default.online_steps, default.normalize_returns) == (
        100_000,
        50_000,
        True,
    )
