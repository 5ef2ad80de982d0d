"""AWAC: both losses against NumPy, gradients, the weights, and what a run does at the switch."""

import dataclasses

import numpy as np
import pytest
import torch
from conftest import TINY, pendulum, run, start

import awac
import iql

OBS, ACT, B = 5, 2, 64


@pytest.fixture
def args():
    torch.set_float32_matmul_precision("highest")
    return dataclasses.replace(awac.Args(), awac_lambda=2.0, gamma=0.9, compile=False)


def make_agent(args, seed=0):
    torch.manual_seed(seed)
    agent = awac.Agent(OBS, ACT, args, torch.device("cpu"))
    with torch.no_grad():  # targets, biases, log_std and statistics away from their initial values
        for parameter in agent.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
        agent.obs_mean.copy_(torch.randn(OBS))
        agent.obs_std.copy_(0.5 + torch.rand(OBS))
    return agent


def make_batch(seed=1, size=B):
    rng = np.random.default_rng(seed)
    batch = {
        "obs": rng.normal(size=(size, OBS)),
        "actions": rng.uniform(-1, 1, (size, ACT)),
        "rewards": rng.normal(size=size),
        "next_obs": rng.normal(size=(size, OBS)),
        "terminations": (rng.random(size) < 0.3).astype(float),
    }
    return {name: torch.tensor(column, dtype=torch.float32) for name, column in batch.items()}


def double(tensors):
    """Tensors as NumPy arrays in float64."""
    return {name: tensor.numpy().astype(np.float64) for name, tensor in tensors.items()}


def layers(weights, biases, x):
    for i, (w, b) in enumerate(zip(weights, biases)):
        x = x @ w + b
        if i < len(weights) - 1:
            x = np.maximum(x, 0)
    return x


def policy(p, obs):
    """Mean and standard deviation, from a state dict in NumPy and raw observations."""
    x = (obs - p["obs_mean"]) / p["obs_std"]
    weights = [p[f"actor.mean.{i}.weight"].T for i in (0, 2, 4, 6)]
    biases = [p[f"actor.mean.{i}.bias"] for i in (0, 2, 4, 6)]
    return np.tanh(layers(weights, biases, x)), np.exp(np.clip(p["actor.log_std"], -5, 2))


def critics(p, name, obs, actions):
    """One row of values per critic."""
    x = np.concatenate([(obs - p["obs_mean"]) / p["obs_std"], actions], 1)
    weights = [p[f"{name}.weights.{i}"] for i in range(4)]
    biases = [p[f"{name}.biases.{i}"] for i in range(4)]
    rows = []
    for e in range(len(weights[0])):
        rows.append(layers([w[e] for w in weights], [b[e] for b in biases], x)[:, 0])
    return np.stack(rows)


def constants(p, b, args, next_noise, noise):
    """What is a constant to both losses: the critics' target, and the advantages."""
    mean, std = policy(p, b["next_obs"])
    next_actions = np.clip(mean + std * next_noise, -1, 1)
    next_q = critics(p, "critic_target", b["next_obs"], next_actions).min(0)
    target = b["rewards"] + args.gamma * np.where(b["terminations"] == 1, 0, next_q)
    mean, std = policy(p, b["obs"])
    own_actions = np.clip(mean + std * noise, -1, 1)
    q = critics(p, "critic", b["obs"], b["actions"]).min(0)
    return target, q - critics(p, "critic", b["obs"], own_actions).min(0)


def numpy_losses(p, b, args, target, advantage):
    """Both losses from the equations alone, in float64."""
    weight = np.minimum(np.exp(advantage / args.awac_lambda), 100)
    mean, std = policy(p, b["obs"])
    density = np.exp(-0.5 * ((b["actions"] - mean) / std) ** 2) / (std * np.sqrt(2 * np.pi))
    q = critics(p, "critic", b["obs"], b["actions"])
    return {
        "actor_loss": -np.mean(weight * np.log(density).sum(1)),
        "critic_loss": sum(np.mean((target - row) ** 2) for row in q),
    }


def draws(seed, size=B):
    """The random numbers of Agent.loss after torch.manual_seed(seed): next actions come first."""
    torch.manual_seed(seed)
    return torch.randn(size, ACT).numpy(), torch.randn(size, ACT).numpy()


def loss(agent, batch, seed=7):
    torch.manual_seed(seed)
    return agent.loss(batch)


def stub(agent, **functions):
    """Replace networks or methods of the agent by functions."""
    for name, function in functions.items():
        object.__setattr__(agent, name, function)


@pytest.mark.parametrize("num_critics", [2, 5])
def test_losses_equal_numpy(args, num_critics):
    args.num_critics = num_critics
    agent, batch = make_agent(args), make_batch()
    total, metrics = loss(agent, batch)
    p, b = double(agent.state_dict()), double(batch)
    target, advantage = constants(p, b, args, *draws(7))
    expected = numpy_losses(p, b, args, target, advantage)
    for name, value in expected.items():
        assert metrics[name].item() == pytest.approx(value, rel=1e-4), name
    assert total.item() == pytest.approx(sum(expected.values()), rel=1e-4)
    q = critics(p, "critic", b["obs"], b["actions"])
    assert metrics["q"].item() == pytest.approx(q.mean(), rel=1e-4)
    assert metrics["advantage"].item() == pytest.approx(advantage.mean(), rel=1e-3)
    assert metrics["v"].item() == pytest.approx((q.min(0) - advantage).mean(), rel=1e-3)


def test_each_loss_moves_its_own_network_only(args):
    """Each gradient of the sum is that of the one loss that should train the parameter, where what
    the other networks say stands still (finite differences)."""
    agent, batch = make_agent(args), make_batch()
    loss(agent, batch)[0].backward()
    assert all(parameter.grad is None for parameter in agent.critic_target.parameters())
    p, b = double(agent.state_dict()), double(batch)
    target, advantage = constants(p, b, args, *draws(7))
    of = {"actor.mean.6.bias": "actor_loss", "actor.log_std": "actor_loss"}
    of |= {"actor.mean.2.weight": "actor_loss", "critic.biases.3": "critic_loss"}
    of |= {"critic.weights.1": "critic_loss"}
    for name, which in of.items():
        grad = dict(agent.named_parameters())[name].grad
        entry = np.unravel_index(grad.abs().argmax().item(), grad.shape)
        values = []
        for shift in (1e-4, -1e-4):
            p[name][entry] += shift
            values.append(numpy_losses(p, b, args, target, advantage)[which])
            p[name][entry] -= shift
        numeric = (values[0] - values[1]) / 2e-4
        assert grad[entry].item() == pytest.approx(numeric, rel=1e-2), name


@pytest.mark.parametrize(
    ("advantage", "awac_lambda", "weight", "clipped"),
    [
        (0.0, 1.0, 1.0, 0.0),
        (1.0, 1.0, 2.71828, 0.0),
        (2.0, 1.0, 7.38906, 0.0),
        (-2.0, 1.0, 0.135335, 0.0),
        (1.0, 1 / 3, 20.0855, 0.0),
        (0.4, 0.1, 54.5982, 0.0),
        (0.5, 0.1, 100.0, 1.0),  # exp(5) = 148.4
    ],
)
def test_advantage_weight(args, advantage, awac_lambda, weight, clipped):
    """The critics' minimum is 3 for the data's actions, and less by the advantage for others."""
    args.awac_lambda = awac_lambda
    agent, batch = make_agent(args), make_batch()

    def critic(obs, actions):
        low = torch.full((B,), 3.0 if actions is batch["actions"] else 3.0 - advantage)
        return torch.stack([low + 5, low]).requires_grad_()

    stub(agent, critic=critic)
    metrics = loss(agent, batch)[1]
    assert metrics["weight"].item() == pytest.approx(weight, rel=1e-5)
    assert metrics["clipped_share"].item() == clipped


def test_share_of_clipped_weights(args):
    agent, batch = make_agent(args), make_batch()
    gain = torch.where(torch.arange(B) < 16, 1000.0, 0.0)
    stub(agent, critic=lambda obs, a: gain.expand(2, -1) * (a is batch["actions"]))
    metrics = loss(agent, batch)[1]
    assert metrics["clipped_share"].item() == 0.25
    assert metrics["weight"].item() == pytest.approx(0.25 * 100 + 0.75)


def test_a_policy_that_does_what_the_data_do_clones_them(args):
    agent, batch = make_agent(args), make_batch()
    stub(agent, act=lambda obs, deterministic: batch["actions"])
    metrics = loss(agent, batch)[1]
    b = double(batch)
    mean, std = policy(double(agent.state_dict()), b["obs"])
    z = (b["actions"] - mean) / std
    log_density = (-0.5 * z**2 - np.log(std) - 0.5 * np.log(2 * np.pi)).sum(1)
    assert metrics["advantage"].item() == 0
    assert metrics["weight"].item() == 1
    assert metrics["actor_loss"].item() == pytest.approx(-log_density.mean(), rel=1e-4)


def test_target_of_a_policy_without_noise(args, monkeypatch):
    """It is r + gamma min Qt(s', mean): a critic that says so has no loss."""
    agent, batch = make_agent(args), make_batch()
    p, b = double(agent.state_dict()), double(batch)
    next_q = critics(p, "critic_target", b["next_obs"], policy(p, b["next_obs"])[0]).min(0)
    target = b["rewards"] + args.gamma * (1 - b["terminations"]) * next_q
    monkeypatch.setattr(torch, "randn_like", torch.zeros_like)
    stub(agent, critic=lambda obs, actions: torch.tensor(target).float().expand(2, -1))
    assert loss(agent, batch)[1]["critic_loss"].item() == pytest.approx(0, abs=1e-6)


def test_log_prob_is_the_plain_gaussian():
    actor = awac.Actor(OBS, 2)
    with torch.no_grad():
        for layer in actor.mean[::2]:
            layer.weight.zero_()
        actor.mean[6].bias.copy_(torch.atanh(torch.tensor([0.5, 0.0])))
    log_prob = actor.log_prob(torch.zeros(1, OBS), torch.tensor([[0.6, -0.2]]))
    assert log_prob.item() == pytest.approx(-1.862877, abs=1e-6)


def test_act(args):
    agent, obs = make_agent(args), make_batch()["obs"][0]
    mean, std = policy(double(agent.state_dict()), obs.numpy())
    assert agent.act(obs, deterministic=True).numpy() == pytest.approx(mean, abs=1e-5)
    torch.manual_seed(3)
    action = agent.act(obs, deterministic=False)
    torch.manual_seed(3)
    assert action.numpy() == pytest.approx(
        np.clip(mean + std * torch.randn(ACT).numpy(), -1, 1), abs=1e-5
    )
    with torch.no_grad():
        agent.actor.log_std.fill_(3.0)  # clamped to 2: samples leave the box and are clipped
    samples = torch.stack([agent.act(obs, deterministic=False) for _ in range(50)])
    assert samples.shape == (50, ACT)
    assert samples.abs().max() == 1.0


def test_networks_have_three_hidden_layers_with_orthogonal_weights(args):
    agent = awac.Agent(OBS, ACT, args, torch.device("cpu"))
    shapes = [tuple(layer.weight.shape) for layer in agent.actor.mean[::2]]
    assert shapes == [(256, OBS), (256, 256), (256, 256), (ACT, 256)]
    shapes = [tuple(weight.shape) for weight in agent.critic.weights]
    assert shapes == [(2, OBS + ACT, 256), (2, 256, 256), (2, 256, 256), (2, 256, 1)]
    for weight in [agent.actor.mean[4].weight, *agent.critic.weights[2]]:
        assert torch.allclose(weight @ weight.T, 2 * torch.eye(256), atol=1e-4)
    assert not torch.equal(agent.critic.weights[1][0], agent.critic.weights[1][1])
    assert torch.equal(agent.critic.weights[0], agent.critic_target.weights[0])
    assert agent.actor.log_std.tolist() == [0.0, 0.0]


def test_update_steps_every_network_and_lets_the_target_follow(args):
    agent, batch = make_agent(args), make_batch()
    before = {name: tensor.clone() for name, tensor in agent.state_dict().items()}
    agent.update(batch)
    after = agent.state_dict()
    for name, tensor in before.items():
        assert torch.equal(tensor, after[name]) == name.startswith("obs_"), name
    for name in ("weights.1", "biases.3"):
        old, new = before[f"critic_target.{name}"], after[f"critic.{name}"]
        expected = (1 - args.tau) * old + args.tau * new
        assert torch.allclose(after[f"critic_target.{name}"], expected, atol=1e-7)


def test_compiled_loss_is_the_same(args):
    agent, batch = make_agent(args), make_batch()
    eager = loss(agent, batch)[1]
    agent.loss = torch.compile(agent.loss, backend="aot_eager", fullgraph=True)
    for one, other in zip(eager.values(), loss(agent, batch)[1].values()):
        assert torch.allclose(one, other, rtol=1e-4)


@pytest.mark.parametrize(("awac_lambda", "arm"), [(0.1, 0.5), (1e6, 0.0)])
def test_two_armed_bandit(args, awac_lambda, arm):
    """One step, no future: a small lambda finds the better arm, a large one clones the data."""
    arms = torch.tensor([-0.5, 0.5]).repeat(128)
    batch = {
        "obs": torch.ones(256, 3),
        "actions": arms[:, None].repeat(1, 2),
        "rewards": (arms > 0).float(),
        "next_obs": torch.ones(256, 3),
        "terminations": torch.ones(256),
    }
    torch.manual_seed(0)
    settings = dataclasses.replace(args, awac_lambda=awac_lambda, learning_rate=1e-3)
    agent = awac.Agent(3, 2, settings, torch.device("cpu"))
    for _ in range(300):
        agent.update(batch)
    assert agent.act(torch.ones(3), deterministic=True).mean().item() == pytest.approx(arm, abs=0.1)


def test_a_run_standardizes_scales_and_adds_one_update_per_step(monkeypatch):
    """Statistics are those of the data alone; rewards have one scale; updates follow the rows."""
    monkeypatch.setattr(awac, "LOG_EVERY", 10)
    stored, updates, agents = [], [], []
    add, update = awac.ReplayBuffer.add, awac.Agent.update

    def adding(self, **transition):
        stored.append(transition)
        add(self, **transition)

    def counting(self, batch):
        agents.append(self)
        updates.append(len(stored))
        return update(self, batch)

    monkeypatch.setattr(awac.ReplayBuffer, "add", adding)
    monkeypatch.setattr(awac.Agent, "update", counting)
    flags = ["--dataset-id", pendulum(), *TINY, "--reward-scale", "2", "--reward-bias", "-1"]
    args = awac.parse_args(flags)
    obs = awac.load_data(args)[0]["obs"].astype(np.float64)
    start(awac, args)
    assert updates == [0] * 60 + list(range(1, 91))
    assert agents[-1].obs_mean.numpy() == pytest.approx(obs.mean(0), abs=1e-6)
    assert agents[-1].obs_std.numpy() == pytest.approx(obs.std(0) + 1e-3, rel=1e-5)
    for transition in stored:  # the task pays 1 per step, and 0 at its end
        assert transition["rewards"] == 2.0 * (not transition["terminations"]) - 1.0
    assert all(np.abs(transition["actions"]).max() <= 1 for transition in stored)


def test_lambda_can_change_at_the_switch(monkeypatch):
    """O3F's figure 3: the networks of a run with lambda 1 start one with 0.1."""
    monkeypatch.setattr(awac, "LOG_EVERY", 10)
    flags = ["--dataset-id", pendulum(), *TINY, "--run-name"]
    run(*flags, "one", "--awac-lambda", 1, "--online-steps", 0, script=awac)
    lambdas, update = [], awac.Agent.update

    def recording(self, batch):
        lambdas.append(self.args.awac_lambda)
        return update(self, batch)

    monkeypatch.setattr(awac.Agent, "update", recording)
    offline = ["--offline-checkpoint", "runs/one/offline.pt"]
    tuned = run(*flags, "tuned", "--awac-lambda", 0.1, *offline, script=awac)
    assert lambdas == [0.1] * 90
    weights = torch.load("runs/one/offline.pt", weights_only=True)["agent"]
    again = torch.load(tuned / "offline.pt", weights_only=True)["agent"]
    assert all(torch.equal(tensor, again[name]) for name, tensor in weights.items())


def test_networks_of_iql_are_refused(capsys):
    flags = ["--dataset-id", pendulum(), *TINY, "--run-name"]
    run(*flags, "iql", "--online-steps", 0, script=iql)
    with pytest.raises(SystemExit) as stop:
        run(*flags, "awac", "--offline-checkpoint", "runs/iql/offline.pt", script=awac)
    assert stop.value.code == 2
    assert "its networks is iql, not awac" in capsys.readouterr().err


def test_settings_of_the_families():
    names = {field.name for field in dataclasses.fields(awac.Args)}
    assert all(set(settings) <= names for settings in awac.PAPER_SETTINGS.values())
    antmaze = awac.parse_args(["--dataset-id", "D4RL/antmaze/umaze-v1"])
    assert (antmaze.awac_lambda, antmaze.reward_bias) == (0.1, -1.0)
    assert antmaze.success_ends_episode
    assert (antmaze.offline_steps, antmaze.online_steps) == (1_000_000, 1_000_000)
    assert (antmaze.eval_every, antmaze.eval_episodes) == (50_000, 100)
    pen = awac.parse_args(["--dataset-id", "D4RL/pen/human-v2"])
    assert (pen.awac_lambda, pen.reward_bias, pen.offline_steps) == (0.1, 0.0, 1_000_000)
    hopper = awac.parse_args([])
    assert (hopper.awac_lambda, hopper.offline_steps) == (1 / 3, 100_000)
    assert awac.parse_args(["--awac-lambda", "0.3"]).awac_lambda == 0.3
    assert awac.parse_args(["--dataset-id", "mine/pendulum/random-v0"]).awac_lambda == 1.0


def test_bad_settings_are_refused(capsys):
    for value in ("0", "-1", "nan"):
        with pytest.raises(SystemExit) as stop:
            awac.parse_args([f"--awac-lambda={value}"])
        assert stop.value.code == 2
        assert "--awac-lambda must be between 0.001 and 1000000.0" in capsys.readouterr().err
