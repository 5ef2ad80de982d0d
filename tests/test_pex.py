"""Policy expansion: gate and losses against NumPy, what is frozen, batches, and a resumed run."""

import csv
import dataclasses
import os
import signal
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from conftest import TASK, TINY, pendulum
from torch import nn

import iql
import pex

OBS, ACT, B = 5, 2, 64
QUICK = [*TINY, "--warmup-steps", "20"]


def make_agent(**settings):
    torch.manual_seed(0)
    settings = {"compile": False, "beta": 2.0, "gamma": 0.9, "expectile": 0.8} | settings
    return pex.Agent(OBS, ACT, dataclasses.replace(pex.Args(), **settings), torch.device("cpu"))


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
    return {name: torch.tensor(column, dtype=torch.float32) for name, column in batch.items()}


class Critic(nn.Module):
    """Two equal Q-functions given as one function of actions (B, act_dim)."""

    def __init__(self, q):
        super().__init__()
        self.q = q

    def forward(self, obs, actions):
        return self.q(actions).expand(2, -1)


def set_policies(agent, offline, new):
    """Both policies as constants, the new one without noise."""
    with torch.no_grad():
        for policy, mean in ((agent.offline_actor, offline), (agent.actor, new)):
            for parameter in policy.mean.parameters():
                parameter.zero_()
            policy.mean[-1].bias.copy_(torch.atanh(torch.tensor(mean)))
            policy.log_std.fill_(-5.0)


@pytest.mark.parametrize(
    "temperature, gain, share",
    [(10, 0.1, 0.7311), (10, 0.0, 0.5), (0, 0.7, 0.5), (3, -0.2, 0.3543)],
)
def test_gate_probabilities(temperature, gain, share):
    agent = make_agent(inverse_temperature=temperature)
    set_policies(agent, [0.0, 0.0], [0.5, 0.5])
    agent.critic = Critic(lambda actions: 1.0 + gain * (actions[:, 0] > 0.25))
    actions, is_new = agent.composite(torch.zeros(20_000, OBS), deterministic=False)
    assert is_new.float().mean().item() == pytest.approx(share, abs=0.015)
    assert torch.equal(is_new, actions[:, 0] > 0.25)
    greedy, is_new = agent.composite(torch.zeros(4, OBS), deterministic=True)
    assert is_new.tolist() == [gain > 0] * 4
    assert torch.equal(agent.act_composite(torch.zeros(OBS), deterministic=True), greedy[0])


def test_gate_draws_anew_for_every_observation_and_takes_the_lower_critic():
    agent = make_agent(inverse_temperature=0.0)
    set_policies(agent, [0.0, 0.0], [0.5, 0.5])
    drawn = agent.composite(torch.zeros(100, OBS), deterministic=False)[1]
    assert 20 < drawn.sum() < 80
    agent.critic.forward = lambda obs, actions: torch.stack(
        [actions[:, 0], -2 * actions[:, 0]]
    )  # the minimum falls with a
    assert not agent.composite(torch.zeros(3, OBS), deterministic=True)[1].any()


def test_the_gate_takes_the_lower_critic_of_each_action():
    """Offline (3, 1), new (2, 1.2): the gain is 0.2, by means or maxima it were negative."""
    agent = make_agent(inverse_temperature=10.0)
    set_policies(agent, [0.0, 0.0], [0.5, 0.5])
    values = torch.tensor([[3.0, 2.0], [1.0, 1.2]])  # of both critics, at the old and the new one
    agent.critic.forward = lambda obs, actions: values[:, (actions[:, 0] > 0.25).long()]
    assert agent.composite(torch.zeros(3, OBS), deterministic=True)[1].all()
    drawn = agent.composite(torch.zeros(20_000, OBS), deterministic=False)[1]
    assert drawn.float().mean().item() == pytest.approx(0.8808, abs=0.01)  # sigmoid(10 * 0.2)


def test_the_offline_policy_proposes_its_mode_and_the_new_one_a_sample():
    agent = make_agent()
    set_policies(agent, [0.1, 0.2], [0.5, 0.5])
    for policy in (agent.offline_actor, agent.actor):
        policy.log_std.data.fill_(-1.0)
    actions, is_new = agent.composite(torch.zeros(200, OBS), deterministic=False)
    assert 0 < is_new.sum() < 200
    assert torch.equal(actions[~is_new], agent.offline_actor(torch.zeros(200, OBS))[0][~is_new])
    assert len(actions[is_new].unique(dim=0)) == is_new.sum()


def stir(agent):
    """Targets, log_std and biases away from where they begin, and from each other."""
    with torch.no_grad():
        for parameter in agent.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))


def test_losses_against_numpy():
    """After the switch: value and critic as in IQL, on the batch's actions.

    The actor is trained on the composite's.
    """
    agent, batch = make_agent(), make_batch()
    agent.begin_online()
    stir(agent)
    torch.manual_seed(3)
    cloned, is_new = agent.composite(batch["obs"], deterministic=False)
    assert 0 < is_new.sum() < B
    torch.manual_seed(3)
    _, metrics = agent.loss(batch, expanded=True)
    with torch.no_grad():
        value, next_value = (
            agent.value(batch[name]).squeeze(-1).double().numpy() for name in ("obs", "next_obs")
        )
        asked = (
            (agent.critic_target, batch["actions"]),
            (agent.critic_target, cloned),
            (agent.critic, batch["actions"]),
        )
        target_data, target_cloned, q = (
            net(batch["obs"], actions).double().numpy() for net, actions in asked
        )
        mean, log_std = (x.double().numpy() for x in agent.actor(batch["obs"]))
    u = target_data.min(0) - value
    assert metrics["value_loss"].item() == pytest.approx(
        np.mean(np.abs(0.8 - (u < 0)) * u**2), rel=1e-4
    )
    target = batch["rewards"].numpy() + 0.9 * (1 - batch["terminations"].numpy()) * next_value
    assert metrics["critic_loss"].item() == pytest.approx(
        ((q - target) ** 2).mean(1).sum(), rel=1e-4
    )
    weights = np.minimum(np.exp(2.0 * (target_cloned.min(0) - value)), 100)
    z = (cloned.numpy() - mean) / np.exp(log_std)
    log_prob = (-0.5 * z**2 - log_std - 0.5 * np.log(2 * np.pi)).sum(1)
    assert metrics["actor_loss"].item() == pytest.approx(-np.mean(weights * log_prob), rel=1e-4)


def test_gradients_after_the_switch():
    """The actor's: of weights and actions as plain numbers. Those of Q and V: as offline."""
    agent, batch = make_agent(), make_batch()
    agent.begin_online()
    stir(agent)
    torch.manual_seed(3)
    cloned, _ = agent.composite(batch["obs"], deterministic=False)
    with torch.no_grad():
        v = agent.value(batch["obs"]).squeeze(-1)
        gain = agent.critic_target(batch["obs"], cloned).amin(0) - v
        weight = torch.exp(2.0 * gain).clamp(max=100.0)
    torch.manual_seed(3)
    agent.loss(batch, expanded=True)[0].backward()
    mean, log_std = agent.actor(batch["obs"])
    normal = torch.distributions.Normal(mean, log_std.exp().expand_as(mean))
    loss = -(weight * normal.log_prob(cloned).sum(1)).mean()
    expected = torch.autograd.grad(loss, list(agent.actor.parameters()))
    for parameter, gradient in zip(agent.actor.parameters(), expected, strict=True):
        assert torch.allclose(parameter.grad, gradient, rtol=1e-3, atol=1e-3)
    others = [*agent.value.parameters(), *agent.critic.parameters()]
    after = [parameter.grad.clone() for parameter in others]
    agent.zero_grad()
    agent.loss(batch)[0].backward()
    assert all(torch.allclose(p.grad, g) for p, g in zip(others, after, strict=True))


@pytest.mark.parametrize(("advantage", "weight"), [(0.5, 100.0), (0.1, 2.71828), (-0.1, 0.367879)])
def test_weight_after_the_switch(advantage, weight):
    """beta = 10: exp(5) = 148.4 is clipped."""
    agent, batch = make_agent(beta=10.0), make_batch()
    agent.begin_online()
    agent.critic = Critic(lambda actions: torch.full((len(actions),), advantage))
    agent.critic_target = agent.critic
    for parameter in agent.value.parameters():
        nn.init.zeros_(parameter)
    metrics = agent.loss(batch, expanded=True)[1]
    assert metrics["weight"].item() == pytest.approx(weight, rel=1e-5)


@pytest.mark.parametrize(("std", "log_prob"), [(1.0, -0.963939), (0.5, -0.405791)])
def test_log_prob_is_the_plain_gaussian(std, log_prob):
    actor = pex.Actor(OBS, 1)
    with torch.no_grad():
        for parameter in actor.mean.parameters():
            parameter.zero_()
        actor.log_std.fill_(np.log(std))
    value = actor.log_prob(torch.zeros(1, OBS), torch.tensor([[0.3]]), 0.0)
    assert value.item() == pytest.approx(log_prob, abs=1e-5)


def test_expanding_changes_the_policies_alone():
    agent, batch = make_agent(), make_batch()
    for _ in range(3):
        agent.update(batch)
    before = {name: tensor.clone() for name, tensor in agent.state_dict().items()}
    assert any(x["exp_avg"].any() for x in agent.optimizer.state.values())
    agent.begin_online()
    after = agent.state_dict()
    changed = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"actor", "offline_actor"}
    for name, tensor in agent.offline_actor.state_dict().items():
        assert torch.equal(tensor, before[f"actor.{name}"])
    assert not agent.optimizer.state
    lag = after["critic.weights.1"] - after["critic_target.weights.1"]
    assert lag.any()  # the target is not set to the critic


def test_actor_loss_moves_the_new_policy_only():
    agent, batch = make_agent(), make_batch()
    agent.begin_online()
    frozen = {name: tensor.clone() for name, tensor in agent.offline_actor.state_dict().items()}
    assert not torch.equal(agent.actor.mean[0].weight, agent.offline_actor.mean[0].weight)
    for _ in range(5):
        agent.update(batch, expanded=True)
    assert all(
        torch.equal(tensor, frozen[name])
        for name, tensor in agent.offline_actor.state_dict().items()
    )
    agent.critic, agent.critic_target = Critic(lambda a: a[:, 0]), Critic(lambda a: a[:, 0])
    agent.zero_grad()
    agent.loss(batch, expanded=True)[0].backward()
    value_gradient = agent.value[0].weight.grad.clone()
    agent.zero_grad()
    agent.loss(batch, expanded=False)[0].backward()
    assert torch.allclose(
        value_gradient, agent.value[0].weight.grad
    )  # nothing of the actor's loss reaches V


def test_constant_critic_gives_plain_cloning():
    agent, batch = make_agent(), make_batch()
    agent.begin_online()
    agent.critic_target, agent.critic = (
        Critic(lambda a: torch.zeros(len(a))),
        Critic(lambda a: torch.zeros(len(a))),
    )
    for parameter in agent.value.parameters():
        nn.init.zeros_(parameter)
    torch.manual_seed(3)
    cloned, _ = agent.composite(batch["obs"], deterministic=False)
    torch.manual_seed(3)
    _, metrics = agent.loss(batch, expanded=True)
    assert metrics["weight"].item() == 1
    cloning = -agent.actor.log_prob(batch["obs"], cloned, 0.0).mean().item()
    assert metrics["actor_loss"].item() == pytest.approx(cloning, rel=1e-6)


def test_new_policy_finds_the_action_that_the_critic_likes():
    agent, best = make_agent(learning_rate=1e-3, beta=10.0), torch.tensor([0.3, -0.4])
    agent.begin_online()
    q = Critic(lambda a: -((a - best) ** 2).sum(1))
    agent.critic, agent.critic_target = q, q
    optimizer, obs = (
        torch.optim.Adam([*agent.actor.parameters(), *agent.value.parameters()], 1e-3),
        torch.ones(B, OBS),
    )
    agent.optimizer, agent.critic.parameters = optimizer, lambda: [nn.Parameter(torch.zeros(1))]
    agent.critic_target.parameters = lambda: [torch.zeros(1)]
    with torch.no_grad():
        agent.offline_actor.load_state_dict(agent.actor.state_dict())
        for parameter in agent.offline_actor.mean.parameters():
            parameter.zero_()
        agent.offline_actor.mean[-1].bias.copy_(torch.atanh(best))
    batch = make_batch() | {"obs": obs, "next_obs": obs}
    early = agent.composite(obs.repeat(50, 1), deterministic=False)[1].float().mean()
    for _ in range(500):
        agent.update(batch, expanded=True)
    assert torch.allclose(agent.act(torch.ones(OBS), deterministic=True), best, atol=0.1)
    late = agent.composite(obs.repeat(50, 1), deterministic=False)[1].float().mean()
    assert early < late  # the gate draws the new policy more often than at first


def run(*flags):
    start = [] if flags[0] == "--resume" else ["--dataset-id", "test/pendulum/random-v0", *QUICK]
    args = pex.parse_args([*start, *flags])
    pex.main(args)
    return Path(args.run_dir, args.run_name)


def test_the_first_update_follows_the_warm_up_and_finds_the_checkpoints_critics(monkeypatch):
    pendulum()
    assert (pex.Args().warmup_steps, pex.Args().offline_ratio) == (5000, 0.5)
    added, updates, first, chosen, choices = [], [], {}, [], []
    update, add, composite = pex.Agent.update, pex.ReplayBuffer.add, pex.Agent.composite

    def adding(self, **transition):
        added.append(transition["actions"])
        add(self, **transition)

    def updating(self, batch, expanded=False):
        if expanded and not updates:
            first.update({name: tensor.clone() for name, tensor in self.state_dict().items()})
        if expanded:
            updates.append(len(added))
        return update(self, batch, expanded)

    def choosing(self, obs, deterministic):
        actions, is_new = composite(self, obs, deterministic)
        if len(obs) == 1 and not deterministic:
            chosen.append(actions[0].numpy())
            choices.append(bool(is_new))
        return actions, is_new

    monkeypatch.setattr(pex.Agent, "update", updating)
    monkeypatch.setattr(pex.ReplayBuffer, "add", adding)
    monkeypatch.setattr(pex.Agent, "composite", choosing)
    folder = run("--run-name", "run")
    assert updates == list(range(21, 91))
    assert len(chosen) == len(added) == 90
    assert all(np.array_equal(one, other) for one, other in zip(chosen, added))
    log = list(csv.DictReader(open(folder / "metrics.csv")))
    lengths = [
        int(float(row["online/episode_length"])) for row in log if row["online/episode_length"]
    ]
    shares = [
        float(row["online/new_policy_share"]) for row in log if row["online/new_policy_share"]
    ]
    assert len(shares) == len(lengths) > 3
    for length, share in zip(lengths, shares):
        assert share == pytest.approx(np.mean(choices[:length]))
        choices[:length] = []
    offline = torch.load(folder / "offline.pt", weights_only=True)["agent"]
    for name, tensor in first.items():
        if name.startswith(("critic", "value")):
            assert torch.equal(tensor, offline[name]), name


def test_the_new_policy_is_evaluated_alone_too():
    pendulum()
    folder = run("--run-name", "run")
    rows = list(csv.DictReader(open(folder / "eval.csv")))
    steps = {
        policy: {int(row["step"]) for row in rows if row["policy"] == policy}
        for policy in ("actor", "learner")
    }
    assert steps["learner"] == {step for step in steps["actor"] if step > 0}
    state = pex.load_checkpoint(folder / "latest.pt")
    agent = pex.Agent(state["obs_dim"], state["act_dim"], pex.Args(**state["args"]), "cpu")
    agent.load_state_dict(state["agent"])
    env, last = pex.make_env(gym.spec(TASK)), rows[-1]
    obs, info = env.reset(seed=int(last["seed"]))
    while "episode" not in info:
        action = agent.act(torch.from_numpy(obs), deterministic=True)
        obs, _, _, _, info = env.step(action.numpy())
    assert last["policy"] == "learner"
    assert float(last["return"]) == pytest.approx(float(info["episode"]["r"]))
    direct = run("--run-name", "direct", "--baseline", "direct")
    assert "learner" not in (direct / "eval.csv").read_text()


@pytest.mark.parametrize("baseline, share", [("pex", 0.5), ("buffer", 0.5), ("scratch", 0.0)])
def test_batches_warm_up_and_updates(monkeypatch, capsys, baseline, share):
    pendulum()
    seen, update = [], pex.Agent.update

    def recording(self, batch, expanded=False):
        moved = any(moments["exp_avg"].any() for moments in self.optimizer.state.values())
        seen.append((expanded, (batch["rewards"] > 50).float().mean().item(), moved))
        return update(self, batch, expanded)

    monkeypatch.setattr(pex.Agent, "update", recording)
    make = pex.ReplayBuffer.__init__

    def tagged(self, columns, capacity, device):
        columns["rewards"] = columns["rewards"] + 100  # offline rows only
        make(self, columns, capacity, device)

    monkeypatch.setattr(pex.ReplayBuffer, "__init__", tagged)
    run("--run-name", baseline, "--baseline", baseline)
    offline = 60 if baseline == "pex" else 0
    assert (f"note: --baseline {baseline} has no offline phase" in capsys.readouterr().out) == (
        offline == 0
    )
    assert [expanded for expanded, *_ in seen] == [False] * offline + [
        baseline == "pex"
    ] * 70  # 90 steps, 20 of them warm-up
    assert {tags for _, tags, _ in seen[offline:]} == {share}
    assert not seen[offline][2]  # no moments before the first online update


def test_direct_goes_on_with_the_policy_and_a_fresh_target():
    agent = make_agent(baseline="direct")
    before = agent.actor.mean[0].weight.clone()
    agent.update(make_batch())
    trained = agent.actor.mean[0].weight.clone()
    agent.begin_online()
    assert not torch.equal(before, trained)
    assert torch.equal(agent.actor.mean[0].weight, trained)
    assert all(
        torch.equal(p, q)
        for p, q in zip(agent.critic.parameters(), agent.critic_target.parameters())
    )


@pytest.mark.parametrize("updates", [30, 61, 100])
def test_interrupted_and_resumed_is_the_same_run(monkeypatch, updates):
    pendulum()
    whole, update, count = run("--run-name", "whole"), pex.Agent.update, [0]

    def counting(self, batch, expanded=False):
        count[0] += 1
        if count[0] == updates:
            os.kill(os.getpid(), signal.SIGTERM)
        return update(self, batch, expanded)

    monkeypatch.setattr(pex.Agent, "update", counting)
    with pytest.raises(SystemExit):
        run("--run-name", "halves")
    monkeypatch.setattr(pex.Agent, "update", update)
    halves = run("--resume", "runs/halves/latest.pt")
    for name in ("eval.csv", "metrics.csv"):
        assert (whole / name).read_bytes() == (halves / name).read_bytes()
    weights, again = (
        torch.load(folder / "latest.pt", weights_only=True)["agent"] for folder in (whole, halves)
    )
    assert all(torch.equal(tensor, again[name]) for name, tensor in weights.items())


def test_resumed_in_the_first_episode_expands_again_to_the_same_bytes(monkeypatch):
    pendulum()
    whole, add, count = run("--run-name", "whole"), pex.ReplayBuffer.add, [0]

    def counting(self, **transition):
        count[0] += 1
        if count[0] == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return add(self, **transition)

    monkeypatch.setattr(pex.ReplayBuffer, "add", counting)
    with pytest.raises(SystemExit):
        run("--run-name", "halves")
    monkeypatch.setattr(pex.ReplayBuffer, "add", add)
    state = torch.load("runs/halves/latest.pt", weights_only=True)
    assert (state["phase"], state["step"]) == ("online", 0)
    halves = run("--resume", "runs/halves/latest.pt")
    assert (whole / "metrics.csv").read_bytes() == (halves / "metrics.csv").read_bytes()
    assert (whole / "eval.csv").read_bytes() == (halves / "eval.csv").read_bytes()


def test_offline_checkpoints_of_iql_and_pex_serve_each_other(capsys):
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
    tuned = run("--offline-checkpoint", "runs/iql/offline.pt", "--run-name", "tuned")
    start = torch.load("runs/iql/offline.pt", weights_only=True)["agent"]
    final = torch.load(tuned / "latest.pt", weights_only=True)["agent"]
    assert all(
        torch.equal(final["offline_" + name], tensor)
        for name, tensor in start.items()
        if name.startswith("actor.")
    )
    flags = ["--dataset-id", "test/pendulum/random-v0", *TINY, "--run-name", "back"]
    iql.main(
        iql.parse_args(
            [*flags, "--offline-checkpoint", str(tuned / "offline.pt"), "--online-steps", "30"]
        )
    )
    for flags, words in (
        (
            ["--baseline", "scratch", "--offline-checkpoint", "runs/iql/offline.pt"],
            "starts from nothing",
        ),
        (
            ["--normalize-returns", "--offline-checkpoint", "runs/iql/offline.pt"],
            "its normalize_returns is False",
        ),
        (["--offline-ratio", "1.5"], "between 0.0 and 1.0"),
        (["--warmup-steps", "-1"], "between 0 and"),
        (["--inverse-temperature", "nan"], "--inverse-temperature must be between 0.0 and"),
        (["--inverse-temperature", "-1"], "--inverse-temperature must be between 0"),
    ):
        with pytest.raises(SystemExit) as stop:
            run("--run-name", "refused", *flags)
        assert stop.value.code == 2
        assert words in capsys.readouterr().err
