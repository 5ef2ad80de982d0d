"""O3F on LAPO: every loss against NumPy, who gets gradients, the shared search, what a run does."""

import dataclasses
import inspect
import itertools
import math
import os
import signal
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY, episode, make_dataset, pendulum

import o3f
import o3f_lapo

OBS, ACT, B = 5, 2, 32
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def log_often(monkeypatch):
    monkeypatch.setattr(o3f_lapo, "LOG_EVERY", 10)


def make_agent(act_dim=ACT, **settings):
    """Targets away from their networks, statistics away from 0 and 1, wide bounds."""
    torch.manual_seed(0)
    args = dataclasses.replace(o3f_lapo.Args(), **{"compile": False, "gamma": 0.9} | settings)
    agent = o3f_lapo.Agent(OBS, act_dim, args, CPU)
    with torch.no_grad():
        for parameter in agent.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    rng = np.random.default_rng(0)
    obs = (3 * rng.normal(size=(200, OBS)) + np.arange(OBS)).astype(np.float32)
    actions = rng.uniform(-0.9, 0.5, (200, act_dim)).astype(np.float32)
    agent.set_statistics(obs, actions)
    agent.widen_bounds(-100.0, 100.0)
    return agent


def make_batch(size=B, act_dim=ACT):
    rng = np.random.default_rng(1)
    batch = {
        "obs": 3 * rng.normal(size=(size, OBS)),
        "actions": rng.uniform(-1, 1, (size, act_dim)),
        "rewards": rng.normal(size=size),
        "next_obs": 3 * rng.normal(size=(size, OBS)),
        "terminations": (rng.random(size) < 0.3).astype(float),
    }
    return {name: torch.tensor(column, dtype=torch.float32) for name, column in batch.items()}


def stub(agent, **functions):
    """Replace networks of the agent by functions."""
    for name, function in functions.items():
        object.__setattr__(agent, name, function)


def constant_q(*values):
    """Target critics that say these numbers, whatever they are asked; they ignore the draw."""
    return lambda obs, actions, members=None: torch.tensor(values)[:, None].expand(-1, len(obs))


def constant_v(value):
    return lambda obs: torch.full((len(obs), 1), float(value))


# ---- the same in NumPy, from the equations alone


class Reference:
    """An agent's networks in float64."""

    def __init__(self, agent):
        self.p = {name: x.double().numpy().copy() for name, x in agent.state_dict().items()}
        self.args = agent.args

    def net(self, name, x):
        for i in (0, 2, 4, 6):
            x = x @ self.p[f"{name}.{i}.weight"].T + self.p[f"{name}.{i}.bias"]
            x = np.maximum(x, 0) if i < 6 else x
        return x

    def critics(self, name, obs, actions):
        out = []
        for e in range(self.args.num_critics):
            x = np.concatenate([obs, actions], 1)
            for i in range(4):
                x = x @ self.p[f"{name}.weights.{i}"][e] + self.p[f"{name}.biases.{i}"][e, 0]
                x = np.maximum(x, 0) if i < 3 else x
            out.append(x[:, 0])
        return np.stack(out)

    def policy(self, name, obs):
        return self.args.max_latent * np.tanh(self.net(f"{name}.net", obs))

    def decode(self, name, obs, latent):
        return self.net(f"{name}.decoder", np.concatenate([obs, latent], 1))

    def mix(self, obs, latent, members):
        q = self.critics("q_target", obs, self.decode("vae_target", obs, latent))[members]
        weight = self.args.min_weight
        return weight * np.min(q, 0) + (1 - weight) * np.max(q, 0)

    def z_scores(self, batch):
        x = {name: column.double().numpy() for name, column in batch.items()}
        for name, prefix in (("obs", "obs"), ("next_obs", "obs"), ("actions", "action")):
            x[name] = (x[name] - self.p[f"{prefix}_mean"]) / self.p[f"{prefix}_std"]
        return x


def draw_members(agent):
    """The critics that the agent draws next."""
    return torch.rand(agent.args.num_critics).topk(agent.args.critic_subset).indices.numpy()


def numpy_critic_targets(agent, batch, seed):
    ref = Reference(agent)
    x = ref.z_scores(batch)
    torch.manual_seed(seed)
    noise = torch.randn(len(x["obs"]), 2 * ACT).double().numpy()
    members = draw_members(agent)
    next_v = ref.net("value", x["next_obs"])[:, 0]
    y_q = x["rewards"] + ref.args.gamma * np.where(x["terminations"] == 1, 0, next_v)
    latent = ref.policy("actor_target", x["obs"]) + np.clip(0.1 * noise, -0.2, 0.2)
    y_v = np.clip(ref.mix(x["obs"], latent, members), ref.p["value_low"], ref.p["value_high"])
    return ref, x, y_q, y_v


def numpy_weights(agent, batch, seed):
    ref = Reference(agent)
    x = ref.z_scores(batch)
    torch.manual_seed(seed)
    members = draw_members(agent)
    eps = torch.randn(len(x["obs"]), 2 * ACT).double().numpy()
    following = ref.mix(x["next_obs"], ref.policy("actor_target", x["next_obs"]), members)
    outcome = x["rewards"] + ref.args.gamma * np.where(x["terminations"] == 1, 0, following)
    advantage = outcome - ref.net("value", x["obs"])[:, 0]
    return ref, x, eps, advantage, np.where(advantage > 0, ref.args.kappa, 1 - ref.args.kappa)


@pytest.mark.parametrize("min_weight", [1.0, 0.7])
def test_critic_and_value_loss_equal_numpy(min_weight):
    agent, batch = make_agent(min_weight=min_weight), make_batch()
    unbounded = numpy_critic_targets(agent, batch, seed=3)[3]
    agent.value_low.fill_(np.quantile(unbounded, 0.25))  # both bounds bind, for a quarter each
    agent.value_high.fill_(np.quantile(unbounded, 0.75))
    ref, x, y_q, y_v = numpy_critic_targets(agent, batch, seed=3)
    assert len({*y_v}) == B - 2 * (B // 4) + 2
    q, v = ref.critics("q_net", x["obs"], x["actions"]), ref.net("value", x["obs"])[:, 0]
    expected = {"critic_loss": sum(np.mean((y_q - member) ** 2) for member in q)}
    expected |= {"value_loss": np.mean((y_v - v) ** 2), "q": q.mean(), "v": v.mean()}
    torch.manual_seed(3)
    loss, metrics = agent.critic_loss(batch)
    assert metrics.keys() == expected.keys()
    for name, value in expected.items():
        assert metrics[name].item() == pytest.approx(value, rel=1e-4, abs=1e-6), name
    total = expected["critic_loss"] + expected["value_loss"]
    assert loss.item() == pytest.approx(total, rel=1e-4)

    # Gradients: those of the same losses with the targets as plain numbers, and none elsewhere.
    agent.zero_grad()
    loss.backward()
    obs, actions = (torch.tensor(x[name], dtype=torch.float32) for name in ("obs", "actions"))
    error = (agent.q_net(obs, actions) - torch.tensor(y_q).float()).square().mean(1).sum()
    error = error + (agent.value(obs)[:, 0] - torch.tensor(y_v).float()).square().mean()
    moved = [*agent.q_net.parameters(), *agent.value.parameters()]
    for parameter, gradient in zip(moved, torch.autograd.grad(error, moved), strict=True):
        assert torch.allclose(parameter.grad, gradient, atol=1e-5)
    for parameter in agent.q_net.parameters():
        assert all(member.any() for member in parameter.grad)  # each critic learns
    for parameter in [p for p in agent.parameters() if all(p is not m for m in moved)]:
        assert parameter.grad is None


@pytest.mark.parametrize("settings", [{}, {"kappa": 0.7, "kl_weight": 0.3, "min_weight": 0.7}])
def test_vae_and_policy_loss_equal_numpy(settings):
    agent, batch = make_agent(**settings), make_batch()
    ref, x, eps, advantage, weight = numpy_weights(agent, batch, seed=3)
    assert 0.2 < np.mean(advantage > 0) < 0.8
    encoded = ref.net("vae.encoder", np.concatenate([x["obs"], x["actions"]], 1))
    mean, log_var = encoded[:, : 2 * ACT], encoded[:, 2 * ACT :]
    decoded = ref.decode("vae", x["obs"], mean + np.exp(log_var / 2) * eps)
    kl = -0.5 * np.sum(1 + log_var - mean**2 - np.exp(log_var), 1)
    error = np.sum((decoded - x["actions"]) ** 2, 1)
    chosen = ref.decode("vae_target", x["obs"], ref.policy("actor", x["obs"]))
    expected = {"vae_loss": np.mean(weight * (error + ref.args.kl_weight * kl))}
    expected |= {"kl": kl.mean(), "advantage": advantage.mean()}
    expected |= {"actor_loss": -np.mean(ref.critics("q_net", x["obs"], chosen))}
    expected |= {"good_rate": np.mean(advantage > 0)}
    torch.manual_seed(3)
    loss, metrics = agent.policy_loss(batch)
    assert metrics.keys() == expected.keys()
    for name, value in expected.items():
        assert metrics[name].item() == pytest.approx(value, rel=1e-4, abs=1e-5), name
    total = expected["vae_loss"] + expected["actor_loss"]
    assert loss.item() == pytest.approx(total, rel=1e-4)

    agent.zero_grad()
    loss.backward()
    to = lambda array: torch.tensor(array, dtype=torch.float32)  # noqa: E731
    obs, actions = to(x["obs"]), to(x["actions"])
    mean, log_var = agent.vae.encode(obs, actions)
    decoded = agent.vae.decode(obs, mean + (log_var / 2).exp() * to(eps))
    kl = -0.5 * (1 + log_var - mean**2 - log_var.exp()).sum(1)
    again = (to(weight) * ((decoded - actions).square().sum(1) + ref.args.kl_weight * kl)).mean()
    again = again - agent.q_net(obs, agent.vae_target.decode(obs, agent.actor(obs))).mean()
    moved = [*agent.vae.parameters(), *agent.actor.parameters()]
    for parameter, gradient in zip(moved, torch.autograd.grad(again, moved), strict=True):
        assert torch.allclose(parameter.grad, gradient, atol=1e-5)
        assert parameter.grad.any()
    for parameter in [p for p in agent.parameters() if all(p is not m for m in moved)]:
        assert parameter.grad is None


# ---- numbers computed by hand


def test_kl_divergence():
    agent, batch = make_agent(act_dim=1), make_batch(act_dim=1)
    codes = torch.tensor([1.0, 0.0]).expand(B, -1), torch.tensor([0.0, math.log(4)]).expand(B, -1)
    stub(agent.vae, encode=lambda obs, actions: codes)
    assert agent.policy_loss(batch)[1]["kl"].item() == pytest.approx(1.3068528, abs=1e-6)


@pytest.mark.parametrize(("min_weight", "mixed"), [(0.7, 1.6), (1.0, 1.0), (0.0, 3.0)])
def test_mix_of_minimum_and_maximum(min_weight, mixed):
    agent = make_agent(min_weight=min_weight)
    stub(agent, q_target=constant_q(1.0, 3.0))
    q = agent.policy_q(torch.zeros(4, OBS), torch.zeros(4, 2 * ACT))
    assert torch.allclose(q, torch.full((4,), mixed))


def test_weights_of_good_and_other_actions():
    """Advantages -1, 0 and 2 weigh 0.1, 0.1 and 0.9.

    Squared errors are summed over an action's entries.
    """
    agent, batch = make_agent(kl_weight=0.0), make_batch(size=3)
    batch |= {"rewards": torch.tensor([-1.0, 0.0, 2.0]), "terminations": torch.ones(3)}
    stub(agent, value=constant_v(0))
    goal = agent.normalize_actions(batch["actions"])
    errors = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    stub(agent.vae, decode=lambda obs, latent: goal + errors)
    metrics = agent.policy_loss(batch)[1]
    assert metrics["vae_loss"].item() == pytest.approx((0.1 * 5 + 0.1 * 25 + 0.9 * 61) / 3)
    assert metrics["good_rate"].item() == pytest.approx(1 / 3)


def test_a_true_end_has_no_future():
    agent, batch = make_agent(), make_batch()
    batch["terminations"] = torch.ones(B)
    stub(agent, value=constant_v(1e6), q_target=constant_q(1e6, 1e6))
    q = torch.zeros(5, B)
    stub(agent, q_net=lambda obs, actions, frozen=False: q)
    loss = agent.critic_loss(batch)[1]["critic_loss"]
    assert loss.item() == pytest.approx(5 * batch["rewards"].square().mean().item(), rel=1e-6)
    assert torch.equal(agent.backup(batch, torch.full((B,), 1e6)), batch["rewards"])
    stub(agent, value=constant_v(0))
    advantage = agent.policy_loss(batch)[1]["advantage"]
    assert advantage.item() == pytest.approx(batch["rewards"].mean().item(), abs=1e-6)


def test_values_are_clamped_and_advantages_are_not():
    agent, batch = make_agent(), make_batch()
    agent.value_high.fill_(20.0)
    batch["terminations"] = torch.zeros(B)
    stub(agent, value=constant_v(0), q_target=constant_q(1e3, 1e3))
    assert agent.critic_loss(batch)[1]["value_loss"].item() == pytest.approx(400)
    expected = batch["rewards"].mean().item() + 0.9 * 1e3
    assert agent.policy_loss(batch)[1]["advantage"].item() == pytest.approx(expected, rel=1e-6)


def test_bounds_enclose_zero_and_grow_only():
    def bounds(agent):
        return agent.value_low.item(), agent.value_high.item()

    args = o3f_lapo.Args(compile=False, gamma=0.9)
    agent = o3f_lapo.Agent(OBS, ACT, args, CPU)
    agent.widen_bounds(0.5, 2.0)
    assert bounds(agent) == pytest.approx((0.0, 20.0))
    agent.widen_bounds(-1.0, -1.0)
    assert bounds(agent) == pytest.approx((-10.0, 20.0))
    agent.widen_bounds(3.0, 3.0)
    assert bounds(agent) == pytest.approx((-10.0, 30.0))
    agent.widen_bounds(1.0, 1.0)
    assert bounds(agent) == pytest.approx((-10.0, 30.0))
    args.single_reward = True
    agent = o3f_lapo.Agent(OBS, ACT, args, CPU)
    agent.widen_bounds(0.0, 100.0)
    assert bounds(agent) == pytest.approx((0.0, 100.0))


def test_codes_are_bounded_and_actions_are_not():
    agent = make_agent()
    obs = 100 * torch.randn(1000, OBS)
    latent = agent.actor(obs)
    assert latent.shape == (1000, 2 * ACT)
    assert 1.9 < latent.abs().max() <= 2.0
    assert make_agent(max_latent=0.5).actor(obs).abs().max() <= 0.5
    decoded = agent.vae.decode(torch.zeros(1, OBS), torch.full((1, 2 * ACT), 1e3))
    assert decoded.shape == (1, ACT)
    assert decoded.abs().max() > 3


# ---- networks and draws


def test_initial_weights():
    """PyTorch's: uniform within 1 / sqrt(inputs), for each member of the ensemble by itself."""
    torch.manual_seed(0)
    agent = o3f_lapo.Agent(OBS, ACT, o3f_lapo.Args(compile=False), CPU)
    assert [tuple(w.shape) for w in agent.q_net.weights] == [
        (5, OBS + ACT, 256),
        (5, 256, 256),
        (5, 256, 256),
        (5, 256, 1),
    ]
    for weights in agent.q_net.weights:
        bound = 1 / math.sqrt(weights.shape[1])
        assert 0.9 * bound < weights.abs().max() <= bound
        assert not torch.equal(weights[0], weights[1])
    for net in (agent.value, agent.actor.net, agent.vae.encoder, agent.vae.decoder):
        assert len(net) == 7
    for target, network in pairs(agent):
        for p, q in zip(target.parameters(), network.parameters(), strict=True):
            assert torch.equal(p, q) and not p.requires_grad
    places = [parameter.data_ptr() for parameter in agent.parameters()]
    assert len(set(places)) == len(places)


def pairs(agent):
    return (
        (agent.q_target, agent.q_net),
        (agent.vae_target, agent.vae),
        (agent.actor_target, agent.actor),
    )


def test_every_pair_of_critics_is_drawn_equally_often():
    agent = make_agent()
    drawn = Counter(tuple(sorted(agent.some_critics().tolist())) for _ in range(10_000))
    assert drawn.keys() == set(itertools.combinations(range(5), 2))  # never one of them twice
    assert all(abs(count / 10_000 - 0.1) < 0.01 for count in drawn.values())


@pytest.mark.parametrize(("count", "mean"), [(1, 5.5), (2, 11 / 3), (10, 1.0)])
def test_minimum_over_a_subset(count, mean):
    """Critics say 1 ... 10: the mean over the draws is that of the minimum over `count` of them."""
    agent = make_agent(num_critics=10, critic_subset=count)
    with torch.no_grad():
        for parameter in agent.q_target.parameters():
            parameter.zero_()
        agent.q_target.biases[3].copy_(torch.arange(1.0, 11.0)[:, None, None])
    asked = [agent.policy_q(torch.zeros(3, OBS), torch.zeros(3, 2 * ACT)) for _ in range(1000)]
    q = torch.stack(asked)
    assert q.mean().item() == pytest.approx(mean, abs=0.3)
    assert torch.equal(q[:, 0], q[:, 1]) and torch.equal(q[:, 0], q[:, 2])  # one draw per batch
    assert (len(q.unique()) > 1) == (count < 10)


def test_two_critics_are_the_twin_minimum():
    agent = make_agent(num_critics=2)
    obs, latent = torch.randn(B, OBS), torch.randn(B, 2 * ACT)
    with torch.no_grad():
        both = agent.q_target(obs, agent.vae_target.decode(obs, latent)).amin(0)
    assert torch.equal(agent.policy_q(obs, latent), both)


def test_members_and_frozen():
    agent = make_agent()
    obs, actions = torch.randn(B, OBS), torch.randn(B, ACT)
    q = agent.q_net(obs, actions)
    some = agent.q_net(obs, actions, members=torch.tensor([3, 1]))
    assert torch.allclose(some, q[[3, 1]], atol=1e-6)
    actions.requires_grad_(True)
    agent.q_net(obs, actions, frozen=True).sum().backward()
    assert actions.grad.any()
    assert all(parameter.grad is None for parameter in agent.q_net.parameters())


# ---- the update


def step_counts(agent):
    counts = {}
    for name, network in (("q_net", agent.q_net), ("value", agent.value), ("vae", agent.vae)):
        counts[name] = {agent.optimizer.state[p]["step"].item() for p in network.parameters()}
    counts["actor"] = {agent.optimizer.state[p]["step"].item() for p in agent.actor.parameters()}
    return counts


def test_a_step_is_many_of_the_critics_and_one_of_the_policy():
    agent = make_agent()
    batches = [make_batch() | {"rewards": torch.randn(B)} for _ in range(20)]
    seen, policy_loss = [], agent.compiled_policy_loss
    judged, critic_loss = [], agent.compiled_critic_loss
    agent.compiled_policy_loss = lambda batch: seen.append(batch) or policy_loss(batch)
    agent.compiled_critic_loss = lambda batch: judged.append(batch) or critic_loss(batch)
    metrics = agent.update(batches)
    assert [id(batch) for batch in judged] == [id(batch) for batch in batches]
    assert len(seen) == 1 and seen[0] is batches[-1]
    assert step_counts(agent) == {"q_net": {20}, "value": {20}, "vae": {1}, "actor": {1}}
    assert metrics.keys() == {*o3f_lapo.METRICS}
    agent.update(batches[:1])
    assert step_counts(agent) == {"q_net": {21}, "value": {21}, "vae": {2}, "actor": {2}}


def test_the_step_of_the_policy_moves_vae_and_policy_alone():
    agent, batch = make_agent(), make_batch()
    agent.update([batch])  # moments are there: a zero gradient would move a network, too
    before = {name: tensor.clone() for name, tensor in agent.state_dict().items()}
    agent.optimizer.zero_grad()
    agent.policy_loss(batch)[0].backward()
    agent.optimizer.step()
    after = agent.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if name.startswith(("vae.", "actor."))}


def test_weights_see_the_value_that_has_just_been_updated():
    agent, batch = make_agent(), make_batch()
    values, policy_loss = [], agent.compiled_policy_loss
    start = agent.value[6].bias.item()
    agent.compiled_policy_loss = lambda batch: (
        values.append(agent.value[6].bias.item()) or policy_loss(batch)
    )
    agent.update([batch])
    assert values == [agent.value[6].bias.item()] != [start]


def test_targets_follow_each_step_of_their_networks():
    agent = make_agent(learning_rate=0.0)
    with torch.no_grad():
        for target, network in pairs(agent):
            for old, new in zip(target.parameters(), network.parameters(), strict=True):
                old.fill_(1.0)
                new.fill_(0.0)
    agent.update([make_batch()] * 4)
    for (target, _), kept in zip(pairs(agent), (0.995**4, 0.995, 0.995), strict=True):
        for parameter in target.parameters():
            assert torch.allclose(parameter, torch.tensor(kept), atol=1e-6)
            assert parameter.is_leaf and not parameter.requires_grad


def test_compiled_losses_are_the_same():
    agent, batch = make_agent(critic_subset=5), make_batch()
    agent.value_low.fill_(-0.02)
    for loss in (agent.critic_loss, agent.policy_loss):
        compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
        results = []
        for function in (loss, compiled):
            torch.manual_seed(0)
            results.append(function(batch)[1])
        for name, value in results[0].items():
            assert torch.allclose(value, results[1][name], rtol=1e-4, atol=1e-6), name


def test_two_armed_bandit():
    """One step, no future: a quarter of the actions is good, and the policy finds them."""
    rng = np.random.default_rng(0)
    arms = np.where(rng.random((64, 1)) < 0.25, 0.5, -0.5).astype(np.float32)
    actions = np.repeat(arms, 2, 1)
    batch = {"obs": torch.ones(64, 3), "actions": torch.from_numpy(actions)}
    batch |= {"rewards": torch.from_numpy(arms[:, 0] > 0).float(), "next_obs": torch.ones(64, 3)}
    batch |= {"terminations": torch.ones(64)}
    torch.manual_seed(0)
    args = o3f_lapo.Args(compile=False, tau=0.05, learning_rate=1e-3, kl_weight=0.1)
    agent = o3f_lapo.Agent(3, 2, args, CPU)
    agent.set_statistics(np.ones((2, 3), np.float32), actions)
    agent.widen_bounds(0.0, 1.0)
    for _ in range(200):
        agent.update([batch])
    action = agent.act(torch.ones(3), deterministic=True)
    assert 0.3 < action.min() <= action.max() < 0.8


# ---- statistics, acting, the search


def test_statistics_of_the_data():
    rng = np.random.default_rng(0)
    obs = rng.normal(2.0, 3.0, (500, OBS)).astype(np.float32)
    actions = rng.uniform(-1, 0, (500, ACT)).astype(np.float32)
    agent = o3f_lapo.Agent(OBS, ACT, o3f_lapo.Args(compile=False), CPU)
    agent.set_statistics(obs, actions)
    for column, normalize in ((obs, agent.normalize_obs), (actions, agent.normalize_actions)):
        z = normalize(torch.from_numpy(column)).double().numpy()
        expected = (column - column.astype(float).mean(0)) / column.astype(float).std(0)
        assert np.allclose(z, expected, atol=1e-5)
    c = 2 * torch.rand(1000, ACT) - 1
    assert torch.allclose(agent.unnormalize_actions(agent.normalize_actions(c)), c, atol=1e-5)
    agent.set_statistics(np.full((7, OBS), 0.1, np.float32), actions)  # nothing varies
    assert torch.allclose(agent.normalize_obs(torch.full((OBS,), 0.3)), torch.tensor(0.2))
    names = {"obs_mean", "obs_std", "action_mean", "action_std", "value_low", "value_high"}
    assert names <= agent.state_dict().keys()  # a checkpoint holds them
    assert not names & {name for name, _ in agent.named_parameters()}


def test_act_is_the_target_decoder_of_the_policys_code():
    agent, batch = make_agent(), make_batch()
    ref = Reference(agent)
    x = ref.z_scores(batch)
    decoded = ref.decode("vae_target", x["obs"], ref.policy("actor", x["obs"]))
    expected = decoded * ref.p["action_std"] + ref.p["action_mean"]
    state = torch.get_rng_state()
    actions = agent.act(batch["obs"], deterministic=True)
    assert np.allclose(actions.numpy(), expected.clip(-1, 1), atol=1e-5)
    assert torch.allclose(agent.act(batch["obs"][0], deterministic=False), actions[0], atol=1e-6)
    assert torch.equal(torch.get_rng_state(), state)
    with torch.no_grad():
        agent.vae_target.decoder[6].bias.fill_(100.0)
    assert torch.equal(agent.act(batch["obs"], deterministic=True), torch.ones(B, ACT))


def test_the_search_is_that_of_o3f_line_by_line():
    """But for its center: LAPO's policy has no sample to choose, so there is no --center."""
    ours, parents = (inspect.getsource(m.Agent.explore).splitlines() for m in (o3f_lapo, o3f))
    assert len(ours) == len(parents)
    different = [pair for pair in zip(ours, parents) if pair[0] != pair[1]]
    assert [line.strip() for line in different[0]] == [
        "center = self.act(obs, deterministic=True)",
        'center = self.act(obs, deterministic=(args.center == "mean"))',
    ]
    assert len(different) == 1
    flags = ("exploration", "num_candidates", "sigma", "omega", "num_critics")
    for name in flags:
        assert getattr(o3f_lapo.Args(), name) == getattr(o3f.Args(), name)
    for family, settings in o3f.PAPER_SETTINGS.items():
        default = o3f.Args.sigma
        own = o3f_lapo.PAPER_SETTINGS[family].get("sigma", default)
        assert own == settings.get("sigma", default)


def explore(agent, seed=1):
    torch.manual_seed(seed)
    return agent.explore(torch.ones(OBS))


@pytest.mark.parametrize("omega", [0.0, 1.0, -2.0])
def test_choice_against_numpy(omega):
    """Candidates in [-1, 1] from the same random numbers, their z-scores, each critic by hand."""
    agent = make_agent(omega=omega)
    action = explore(agent).numpy()
    ref = Reference(agent)
    torch.manual_seed(1)
    center = agent.act(torch.ones(OBS), deterministic=True).numpy()
    candidates = np.clip(center + np.float32(0.2) * torch.randn(100, ACT).numpy(), -1, 1)
    obs = np.repeat((np.ones((1, OBS)) - ref.p["obs_mean"]) / ref.p["obs_std"], 100, 0)
    scored = (candidates - ref.p["action_mean"]) / ref.p["action_std"]
    q = ref.critics("q_net", obs, scored)
    scores = q.mean(0) + omega * np.sqrt(((q - q.mean(0)) ** 2).mean(0))
    assert np.allclose(action, candidates[np.argmax(scores)])


def test_the_search_scores_z_scores_and_returns_what_it_scored():
    agent, asked = make_agent(), []

    def q_net(obs, actions):
        asked.append((obs, actions))
        return actions.sum(1).expand(5, -1)

    stub(agent, q_net=q_net)
    action = explore(agent)
    obs, actions = asked[0]
    assert torch.allclose(obs[7], agent.normalize_obs(torch.ones(OBS)))
    raw = agent.unnormalize_actions(actions)
    assert raw.abs().max() <= 1 + 1e-6
    assert torch.allclose(raw[actions.sum(1).argmax()], action, atol=1e-5)


def test_arms():
    plain = explore(make_agent(exploration="plain"))
    assert torch.equal(plain, make_agent().act(torch.ones(OBS), deterministic=True))
    noise = explore(make_agent(exploration="noise"))
    assert torch.equal(explore(make_agent(num_candidates=1)), noise)
    assert not torch.equal(noise, plain)
    for arm in ("o3f", "noise"):
        assert torch.equal(explore(make_agent(exploration=arm, sigma=0.0)), plain)


# ---- runs

SMALL = ["--utd-ratio", "2", "--num-candidates", "5"]


@pytest.mark.parametrize("subset", [1, 2, 5])
def test_equal_critics_are_one_critic(subset):
    agent = make_agent(critic_subset=subset)
    with torch.no_grad():
        for parameter in agent.q_target.parameters():
            parameter.copy_(parameter[:1].expand_as(parameter).clone())
    obs, latent = torch.randn(B, OBS), torch.randn(B, 2 * ACT)
    with torch.no_grad():
        one = agent.q_target(obs, agent.vae_target.decode(obs, latent))[0]
    assert torch.allclose(agent.policy_q(obs, latent), one, atol=1e-5)


def run(*flags):
    start = [] if flags[0] == "--resume" else [*TINY, *SMALL]
    if flags[0] != "--resume" and "--dataset-id" not in flags:
        start += ["--dataset-id", "test/pendulum/random-v0"]
    args = o3f_lapo.parse_args([*start, *flags])
    o3f_lapo.main(args)
    return Path(args.run_dir, args.run_name)


def test_what_a_run_does(monkeypatch):
    """The tried action is inside the box, executed and stored.

    Updates are counted; statistics stay as they were.
    """
    pendulum()
    tried, stored, updates, statistics, made = [], [], [], [], []
    act, update, add = o3f_lapo.Agent.explore, o3f_lapo.Agent.update, o3f_lapo.ReplayBuffer.add
    make_env, set_statistics = o3f_lapo.make_env, o3f_lapo.Agent.set_statistics

    def exploring(self, obs):
        tried.append(act(self, obs))
        return tried[-1]

    def making(task):
        env, actions = make_env(task), []
        made.append(actions)
        step = env.step

        def stepping(action):
            actions.append(action.copy())
            return step(action)

        env.step = stepping
        return env

    def adding(self, **transition):
        add(self, **transition)
        stored.append((self.size - self.offline_size, transition["actions"]))

    def updating(self, batches):
        assert all(len(batch["rewards"]) == 16 for batch in batches)
        for one, other in itertools.combinations(batches, 2):  # each of them drawn anew
            assert not torch.equal(one["obs"], other["obs"])
        updates.append((len(stored), len(batches)))
        return update(self, batches)

    def setting(self, obs, actions):
        set_statistics(self, obs, actions)
        names = ("obs_mean", "obs_std", "action_mean", "action_std")
        statistics.append({name: getattr(self, name).clone() for name in names})

    monkeypatch.setattr(o3f_lapo, "make_env", making)
    monkeypatch.setattr(o3f_lapo.Agent, "explore", exploring)
    monkeypatch.setattr(o3f_lapo.Agent, "update", updating)
    monkeypatch.setattr(o3f_lapo.Agent, "set_statistics", setting)
    monkeypatch.setattr(o3f_lapo.ReplayBuffer, "add", adding)
    folder = run("--run-name", "one")
    executed = made[1]  # by the first environment after the one that the data were checked with
    assert len(tried) == len(executed) == len(stored) == 90
    for action, env_action, (_, kept) in zip(tried, executed, stored):
        assert action.abs().max() <= 1
        assert np.array_equal(action.numpy(), env_action)
        assert np.array_equal(action.numpy(), kept)
    assert updates == [(0, 1)] * 60 + [(step, 2) for step in range(1, 91)]
    assert [size for size, _ in stored] == list(range(1, 91))
    state = torch.load(folder / "latest.pt", weights_only=True)
    for name, tensor in statistics[0].items():
        assert torch.equal(state["agent"][name], tensor)
        assert tensor.any()
    counts = sorted(moments["step"].item() for moments in state["optimizer"]["state"].values())
    assert counts == sorted([60 + 90] * (8 + 16) + [60 + 180] * (8 + 8))


def test_interrupted_and_resumed_is_the_same_run(monkeypatch):
    pendulum()
    flags = ["--reward-scale", "-1"]  # the bounds at the switch are in the checkpoint, too
    whole, update, count = run("--run-name", "whole", *flags), o3f_lapo.Agent.update, [0]

    def counting(self, batches):
        count[0] += 1
        if count[0] == 103:
            os.kill(os.getpid(), signal.SIGTERM)
        return update(self, batches)

    monkeypatch.setattr(o3f_lapo.Agent, "update", counting)
    with pytest.raises(SystemExit):
        run("--run-name", "halves", *flags)
    monkeypatch.setattr(o3f_lapo.Agent, "update", update)
    halves = run("--resume", "runs/halves/latest.pt")
    for name in ("eval.csv", "metrics.csv"):
        assert (whole / name).read_bytes() == (halves / name).read_bytes()
    weights, again = (
        torch.load(folder / "latest.pt", weights_only=True)["agent"] for folder in (whole, halves)
    )
    assert weights.keys() == again.keys()
    assert all(torch.equal(tensor, again[name]) for name, tensor in weights.items())


def test_one_pretraining_serves_all_arms(capsys):
    pendulum()
    start = run("--run-name", "start", "--online-steps", "0") / "offline.pt"
    first = torch.load(start, weights_only=True)["agent"]
    for arm in ("noise", "plain"):
        flags = ["--exploration", arm, "--offline-checkpoint", str(start), "--online-steps", "20"]
        again = torch.load(run("--run-name", arm, *flags) / "offline.pt", weights_only=True)
        assert all(torch.equal(tensor, again["agent"][name]) for name, tensor in first.items())
    # The bounds are those of the data and of this run's flags, not of the run before.
    flags = ["--single-reward", "--online-steps", "0", "--offline-checkpoint", str(start)]
    single = torch.load(run("--run-name", "single", *flags) / "latest.pt", weights_only=True)
    usual = torch.load(start.with_name("latest.pt"), weights_only=True)
    assert 0 < single["agent"]["value_high"] < usual["agent"]["value_high"]
    flags = ["--dataset-id", "test/pendulum/random-v0", *TINY, "--online-steps", "0"]
    o3f.main(o3f.parse_args([*flags, "--run-name", "iql"]))
    with pytest.raises(SystemExit):
        run("--run-name", "refused", "--offline-checkpoint", "runs/iql/offline.pt")
    assert "does not fit: its networks is iql, not lapo" in capsys.readouterr().err
    with pytest.raises(SystemExit):  # its codes would mean other actions
        run("--run-name", "bound", "--max-latent", "0.5", "--offline-checkpoint", str(start))
    assert "does not fit: its max_latent is 2.0, not 0.5" in capsys.readouterr().err


def paid(reward, dataset_id):
    """Episodes of 10 steps with this reward and its half in turn; the environment itself pays 1."""
    rng, episodes = np.random.default_rng(0), []
    for number in range(10):
        actions = rng.uniform(-3, 3, (10, 1)).astype(np.float32)
        rewards = [reward, reward / 2] * 5
        episodes.append(episode(number, rng.normal(size=(11, 4)), actions, rewards, True))
    return make_dataset(dataset_id, episodes, ref_min_score=0.0, ref_max_score=1.0)


@pytest.mark.parametrize(
    ("family", "best", "scale", "high"),
    [
        ("hopper", 4.0, 1 / 4, 100.0),  # the environment's 1 is a quarter of the best
        ("hopper", 0.5, 1 / 0.5, 200.0),  # online a better reward is seen than in the data
        ("pendulum", 4.0, 1.0, 400.0),
        ("antmaze", 1.0, 100.0, 100.0),
        ("antmaze", 0.5, 100.0, 100.0),
    ],
)
def test_rewards_and_bounds(monkeypatch, family, best, scale, high):
    dataset_id = paid(best, f"test/{family}/paid-v0")
    rewards, offline, add = [], [], o3f_lapo.ReplayBuffer.add
    make = o3f_lapo.ReplayBuffer.__init__

    def making(self, columns, capacity, device):
        offline.append(columns["rewards"].copy())
        make(self, columns, capacity, device)

    def adding(self, **transition):
        rewards.append(transition["rewards"])
        add(self, **transition)

    monkeypatch.setattr(o3f_lapo.ReplayBuffer, "__init__", making)
    monkeypatch.setattr(o3f_lapo.ReplayBuffer, "add", adding)
    flags = ["--offline-steps", "2", "--online-steps", "8", "--no-success-ends-episode"]
    folder = run("--run-name", "one", "--dataset-id", dataset_id, "--batch-size", "16", *flags)
    assert offline[0].max() == pytest.approx(scale * best)
    assert len(rewards) == 8
    assert max(rewards) == pytest.approx(scale)
    assert {*rewards} <= {0.0, max(rewards)}  # a fall is paid nothing
    agent = torch.load(folder / "latest.pt", weights_only=True)["agent"]
    assert (agent["value_low"].item(), agent["value_high"].item()) == pytest.approx((0.0, high))


def test_a_reward_lower_than_all_in_the_data_lets_values_be_lower():
    """Data of 2 and 0; online each step is paid -1, a fall -2."""
    dataset_id = paid(4.0, "test/pendulum/paid-v0")
    flags = ["--offline-steps", "2", "--online-steps", "8", "--reward-bias", "-2"]
    folder = run("--run-name", "one", "--dataset-id", dataset_id, "--batch-size", "16", *flags)
    state = torch.load(folder / "latest.pt", weights_only=True)
    lowest = state["online"][:, 5].min().item()  # a row: 4 observations, action, reward, ...
    assert lowest < 0
    assert state["agent"]["value_low"].item() == pytest.approx(100 * lowest)


def test_paper_settings():
    names = {field.name for field in dataclasses.fields(o3f_lapo.Args)}
    assert all(settings.keys() <= names for settings in o3f_lapo.PAPER_SETTINGS.values())
    parse = lambda *flags: o3f_lapo.parse_args(["--dataset-id", *flags])  # noqa: E731
    for family in o3f_lapo.PAPER_SETTINGS:
        args = parse(f"x/{family}/a-v0")
        fixed = (args.batch_size, args.learning_rate, args.num_critics, args.critic_subset)
        assert fixed + (args.utd_ratio, args.kappa, args.max_latent) == (
            512,
            2e-4,
            5,
            2,
            20,
            0.9,
            2.0,
        )
        in_a_maze = "maze" in family
        assert args.normalize_rewards != in_a_maze
        assert args.min_weight == (0.7 if in_a_maze else 1.0)
        assert args.kl_weight == (0.3 if family == "pointmaze" else 1.0)
    assert parse("x/antmaze/a-v0", "--min-weight", "1", "--sigma", "0.2").min_weight == 1.0


def test_bad_settings_are_refused(capsys):
    pendulum()
    paid(-1.0, "test/debt/paid-v0")
    debt = ["--dataset-id", "test/debt/paid-v0", "--normalize-rewards"]
    for flags, words in (
        (["--critic-subset", "6"], "--critic-subset must be at most --num-critics, 5"),
        (["--gamma", "1"], "--gamma must be below 1: it bounds the values"),
        (debt, "no reward in the data is above 0: give --no-normalize-rewards"),
        (["--utd-ratio", "0"], "--utd-ratio must be between 1 and 1000, not 0"),
        (["--kappa", "1.1"], "--kappa must be between 0.0 and 1.0, not 1.1"),
    ):
        with pytest.raises(SystemExit) as stop:
            run("--run-name", "refused", *flags)
        assert (stop.value.code, capsys.readouterr().err) == (2, f"o3f_lapo.py: {words}\n")
        assert not Path("runs/refused").exists()
