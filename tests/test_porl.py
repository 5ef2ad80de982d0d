"""PORL: cloning, and a frozen policy whose critics learn.

Also what the policy is fine-tuned with, and where that is WSRL.
"""

import copy
import csv
import dataclasses
import math
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY, pendulum
from test_cal_ql import forward, make_batch, q_values, stir

import cal_ql
import porl
import wsrl

OBS, ACT, B = 5, 2, 16
DATA = ["--dataset-id", "test/pendulum/random-v0", *TINY, "--hidden", "16"]
ENSEMBLE = ["--num-critics", "3", "--critic-subset", "2"]


@pytest.fixture(autouse=True)
def log_often(monkeypatch):
    for script in (cal_ql, porl, wsrl):
        monkeypatch.setattr(script, "LOG_EVERY", 10)


def make_agent(obs_dim=OBS, act_dim=ACT, **settings):
    torch.manual_seed(0)
    settings = {"compile": False, "num_actions": 3, "gamma": 0.9, "hidden": 32} | settings
    args = dataclasses.replace(porl.Args(), **settings)
    agent = porl.Agent(obs_dim, act_dim, args, torch.device("cpu"))
    stir(agent)
    return agent


def tensors(agent, *networks):
    """Copies of the tensors of these networks; without a name, of all."""
    state = {name: tensor.clone() for name, tensor in agent.state_dict().items()}
    return {name: x for name, x in state.items() if not networks or name.startswith(networks)}


def same(one, other):
    assert one
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def gaussian(agent, obs, floor):
    """Mean and standard deviation before the tanh, in NumPy: (B, ACT) each."""
    mean, log_std = np.split(forward(agent.actor.net, obs, layer_norm=True)[0], 2, axis=1)
    log_std = agent.actor.log_std_scale.item() * log_std + agent.actor.log_std_shift.item()
    return mean, np.clip(np.exp(log_std), floor, np.exp(2.0))


def moved(agent, loss):
    """Names of the parameters that a loss sends gradients to."""
    agent.zero_grad()
    loss.backward()
    return {name for name, p in agent.named_parameters() if p.grad is not None}


# ---- behaviour cloning


def test_bc_loss_equals_numpy():
    agent, batch = make_agent(min_std=0.4), make_batch()
    batch["actions"][0] = torch.tensor([1 - 1e-5, -1 + 1e-5])  # as far as the data go
    loss, metrics = agent.bc_loss(batch)
    x = {name: column.double().numpy() for name, column in batch.items()}
    mean, std = gaussian(agent, x["obs"], floor=0.4)
    assert 0 < np.isclose(std, 0.4).mean() < 1  # the floor holds some of them
    actions = np.clip(x["actions"], -0.999, 0.999)
    density = np.exp(-0.5 * ((np.arctanh(actions) - mean) / std) ** 2)
    density /= std * math.sqrt(2 * math.pi) * (1 - actions**2)  # of u, then of a = tanh(u)
    assert loss.item() == pytest.approx(-np.log(density).sum(1).mean(), rel=1e-4)
    assert metrics.keys() == {"bc_loss", "std", "mc_return"} == set(porl.METRICS)
    assert metrics["bc_loss"].item() == loss.item()
    assert metrics["std"].item() == pytest.approx(std.mean(), rel=1e-5)
    assert metrics["mc_return"].item() == pytest.approx(x["mc_returns"].mean(), abs=1e-6)


@torch.no_grad()
def test_the_cloned_density_integrates_to_one():
    agent, actions = make_agent(act_dim=1), torch.linspace(-0.9985, 0.9985, 1001)
    agent.actor.log_std_shift.fill_(-3.0)  # narrow: nothing lies outside of these actions
    batch = {"obs": torch.ones(1, OBS), "mc_returns": torch.zeros(1)}
    losses = [agent.bc_loss(batch | {"actions": a.view(1, 1)})[0] for a in actions]
    density = torch.stack(losses).neg().exp()
    assert torch.trapezoid(density, actions).item() == pytest.approx(1, abs=0.005)


def test_cloning_moves_the_policy_alone():
    agent, batch = make_agent(), make_batch()
    before, policy = tensors(agent), tensors(agent, "actor.")
    loss, _ = agent.bc_loss(batch)
    assert moved(agent, loss) == set(policy)
    metrics = agent.update(batch)
    after = tensors(agent)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == set(policy)
    assert metrics.keys() == set(porl.METRICS)
    for parameter in agent.actor.parameters():
        assert agent.optimizer.state[parameter]["step"].item() == 1


def test_cloning_finds_the_mean_and_stops_at_the_floor():
    agent = make_agent(actor_lr=3e-3, min_std=0.1)
    batch = make_batch() | {"actions": torch.full((B, ACT), math.tanh(0.5))}
    losses = [agent.update(batch)["bc_loss"].item() for _ in range(1500)]
    mean, _ = agent.actor(batch["obs"])
    _, log_std = agent.actor(batch["obs"], floored=True)
    assert torch.allclose(mean, torch.tensor(0.5), atol=0.02)
    assert torch.allclose(log_std.exp(), torch.tensor(0.1), atol=1e-3)
    lowest = ACT * (math.log(0.1 * math.sqrt(2 * math.pi)) + math.log(1 - math.tanh(0.5) ** 2))
    assert losses[0] > losses[-1]
    assert losses[-1] == pytest.approx(lowest, abs=0.02)


@pytest.mark.parametrize("size", [0.999, 1 - 1e-5])
def test_cloning_of_actions_at_the_ends_of_the_box(size):
    agent = make_agent(actor_lr=3e-3)
    batch = make_batch() | {"actions": torch.full((B, ACT), size)}
    for _ in range(500):
        loss = agent.update(batch)["bc_loss"]
        assert loss.isfinite()
    mean, _ = agent.actor(batch["obs"])
    assert mean.max() < math.atanh(0.999) + 0.5  # not atanh(1 - 1e-5) = 6.1


# ---- the critics, in stage A and B


class Draws:
    """Stands in for torch.randn, and keeps what it returned."""

    def __init__(self):
        self.drawn, self.randn = [], torch.randn

    def __call__(self, *shape, **options):
        self.drawn.append(self.randn(*shape, **options))
        return self.drawn[-1]


@pytest.mark.parametrize("online_max_backup", [False, True])
@pytest.mark.parametrize("presample", [True, False])
@pytest.mark.parametrize("subset", [2, 0])
def test_critic_loss_equals_numpy(monkeypatch, presample, online_max_backup, subset):
    """The actions of the target are derived, too, from the normal numbers drawn."""
    settings = {"online_max_backup": online_max_backup, "min_std": 0.5, "critic_subset": subset}
    agent, batch = make_agent(**settings), make_batch()
    monkeypatch.setattr(torch, "randn", Draws())
    chosen, choose = [], agent.some_critics
    agent.some_critics = lambda: chosen.append(choose()) or chosen[-1]
    loss, metrics = agent.critic_loss(batch, presample)
    [noise] = [drawn.double().numpy() for drawn in torch.randn.drawn]
    assert len(noise) == (3 if online_max_backup and not presample else 1)
    [members] = chosen
    members = np.arange(10) if members is None else members.numpy()
    assert len(members) == (subset or 10)

    x = {name: column.double().numpy() for name, column in batch.items()}
    mean, std = gaussian(agent, x["next_obs"], floor=0.5 if presample else 0.0)
    assert (std < 0.5).any() != presample
    next_q = q_values(agent.critic_target.net, x["next_obs"], np.tanh(mean + std * noise), True)
    best = next_q[members].min(0).max(0)
    target = x["rewards"] + 0.9 * (1 - x["terminations"]) * best
    q = q_values(agent.critic.net, x["obs"], x["actions"][None], True)[:, 0]
    assert loss.item() == pytest.approx(np.mean((q - target) ** 2), rel=1e-4)
    assert metrics.keys() == {"td_loss", "q"}
    assert metrics["td_loss"].item() == loss.item()
    assert metrics["q"].item() == pytest.approx(q.mean(), rel=1e-4, abs=1e-5)
    assert moved(agent, loss) == {name for name in tensors(agent, "critic.")}


def test_policy_loss_is_that_of_wsrl():
    agent, batch = make_agent(initial_alpha=0.3), make_batch()
    known = {name: value for name, value in vars(agent.args).items() if hasattr(wsrl.Args, name)}
    parent = wsrl.Agent(OBS, ACT, wsrl.Args(**known), torch.device("cpu"))
    parent.load_state_dict(agent.state_dict())
    assert agent.log_alpha.exp().item() == pytest.approx(0.3)
    results = []
    for one in (agent, parent):
        torch.manual_seed(3)
        loss, metrics = one.actor_loss(batch)
        assert moved(one, loss) == {*tensors(one, "actor."), "log_alpha"}
        results.append((loss.item(), metrics, [p.grad for p in one.actor.parameters()]))
    assert results[0][0] == results[1][0]
    assert same(results[0][1], results[1][1])
    assert all(torch.equal(p, q) for p, q in zip(results[0][2], results[1][2], strict=True))


def test_the_floor_holds_for_samples_on_request_only():
    agent = make_agent(min_std=0.5)
    with torch.no_grad():
        agent.actor.log_std_shift.fill_(-6.0)
    obs = make_batch()["obs"][:1].expand(4000, -1)
    spread = {}
    for floored in (True, False):
        spread[floored] = torch.atanh(agent.act(obs, False, floored)).std(0)
    assert torch.allclose(spread[True], torch.tensor(0.5), rtol=0.1)
    assert (spread[False] < 0.1).all()
    assert torch.equal(agent.act(obs, True, True), agent.act(obs, True, False))
    assert torch.equal(torch.tanh(agent.actor(obs)[0]), agent.act(obs, True))


def chain_batch(agent):
    """A chain of 5 states, r = -1 in each, that ends behind the last; actions of the policy."""
    states = torch.eye(5).repeat(4, 1)
    following = torch.roll(torch.eye(5), -1, 0).repeat(4, 1)
    batch = {"obs": states, "next_obs": following, "rewards": -torch.ones(20)}
    ends = torch.tensor([0.0, 0.0, 0.0, 0.0, 1.0]).repeat(4)
    actions = agent.act(states, deterministic=False, floored=True)
    return batch | {"actions": actions, "terminations": ends}


def test_stage_a_finds_the_values_of_the_frozen_policy():
    settings = {"gamma": 0.99, "tau": 0.05, "critic_lr": 3e-3, "num_critics": 4}
    agent = make_agent(obs_dim=5, act_dim=1, **settings)
    frozen = tensors(agent, "actor.", "log_")
    for _ in range(800):
        agent.update_online([chain_batch(agent)], stage_a=True)
    batch = chain_batch(agent)
    with torch.no_grad():
        q = agent.critic(batch["obs"], batch["actions"][None])[:, 0].mean(0).view(4, 5)
    expected = [-(1 - 0.99**left) / 0.01 for left in (5, 4, 3, 2, 1)]
    assert expected[0] == pytest.approx(-4.901, abs=1e-3)
    assert np.allclose(q, expected, atol=0.05)
    assert same(frozen, tensors(agent, "actor.", "log_"))


@pytest.mark.parametrize("presample", [True, False])
def test_a_step_online(presample):
    """Four steps of critics and targets; in stage B then one of policy and temperature."""
    agent, batches = make_agent(), [make_batch() for _ in range(4)]
    before, critics, seen = tensors(agent), [], []
    follow, actor_loss = agent.update_target, agent.compiled_actor_loss
    agent.update_target = lambda: critics.append(agent.critic.net.weights[0].clone()) or follow()
    agent.compiled_actor_loss = lambda batch: seen.append(batch["obs"]) or actor_loss(batch)
    judged, critic_loss = [], agent.compiled_critic_loss
    agent.compiled_critic_loss = lambda *x, **y: judged.append(x[0]) or critic_loss(*x, **y)
    metrics = agent.update_online(batches, presample)
    assert [id(batch) for batch in judged] == [id(batch) for batch in batches]
    assert len({weights.sum().item() for weights in critics}) == len(critics) == 4
    steps = {}
    for name, parameter in agent.named_parameters():
        if parameter in agent.optimizer.state:
            steps[name] = agent.optimizer.state[parameter]["step"].item()
    assert {name for name, step in steps.items() if step == 4} == set(tensors(agent, "critic."))
    rest = {name: step for name, step in steps.items() if step != 4}
    after = tensors(agent)
    if presample:
        assert rest == {}
        assert not seen
        assert same(
            tensors(agent, "actor.", "log_"),
            {n: before[n] for n in after if n[:3] in ("act", "log")},
        )
        assert metrics.keys() == {"td_loss", "q"}
    else:
        assert rest == dict.fromkeys([*tensors(agent, "actor."), "log_alpha"], 1)
        assert torch.equal(seen[0], torch.cat([batch["obs"] for batch in batches]))
        assert metrics.keys() == {"td_loss", "q", "actor_loss", "alpha", "entropy"}
    assert torch.equal(before["log_multiplier"], after["log_multiplier"])


def divergence(agent, start, obs):
    """KL(pi || start), before the tanh."""
    (mean, log_std), (old_mean, old_log_std) = agent.actor(obs), start(obs)
    square = (2 * log_std).exp() + (mean - old_mean).square()
    kl = old_log_std - log_std + square / (2 * (2 * old_log_std).exp()) - 0.5
    return kl.sum(1).mean().item()


@pytest.mark.parametrize("seed", [0, 1])
def test_without_stage_a_a_good_policy_is_forgotten(seed):
    """Of a policy that is right from the beginning: one step, r = -|a - 0.3|^2.

    The distance is taken after 50 updates; within 1,000 the policy learns most of it again."""
    torch.manual_seed(seed)
    settings = {"actor_lr": 1e-3, "initial_alpha": 1e-3, "compile": False, "hidden": 32}
    settings |= {"num_critics": 3}
    agent = porl.Agent(OBS, ACT, dataclasses.replace(porl.Args(), **settings), torch.device("cpu"))
    obs = torch.randn(64, OBS)
    batch = {"obs": obs, "next_obs": obs, "terminations": torch.ones(64)}
    cloned = batch | {"actions": torch.full((64, ACT), 0.3), "mc_returns": torch.zeros(64)}
    for _ in range(300):
        agent.update(cloned)
    agent.optimizer.state.clear()
    start = copy.deepcopy(agent.actor)

    def rollout(floored):
        actions = agent.act(obs, deterministic=False, floored=floored)
        return batch | {"actions": actions, "rewards": -(actions - 0.3).square().sum(1)}

    state, far = agent.state_dict(), {}
    state = {name: tensor.clone() for name, tensor in state.items()}
    for updates in (0, 400):
        torch.manual_seed(seed)
        agent.load_state_dict(state)
        agent.optimizer.state.clear()
        rows = [rollout(floored=True) for _ in range(4)]
        for _ in range(updates):
            rows = [*rows[1:], rollout(floored=True)]
            agent.update_online(rows, stage_a=True)
        for _ in range(50):
            rows = [*rows[1:], rollout(floored=False)]
            agent.update_online(rows, stage_a=False)
        with torch.no_grad():
            far[updates] = divergence(agent, start, obs)
    assert far[400] < far[0]


# ---- runs


@pytest.mark.parametrize(("action", "nll"), [(0.0, 0.918939), (0.5, 0.782125)])
def test_bc_loss_by_hand(action, nll):
    """Mean 0, deviation 1; at 0.5 u = 0.549306, and the tanh has the slope 0.75."""
    agent = make_agent(act_dim=1)
    agent.actor.forward = lambda obs, floored=False: (torch.zeros(B, 1), torch.zeros(B, 1))
    batch = make_batch() | {"actions": torch.full((B, 1), action)}
    assert agent.bc_loss(batch)[0].item() == pytest.approx(nll, abs=1e-5)


def run(*flags, script=porl, stage=("--presample-steps", "70")):
    if flags[0] == "--resume":
        args = script.parse_args([*flags])
    else:
        args = script.parse_args([*DATA, *ENSEMBLE, *stage, "--num-actions", "2", *flags])
    script.main(args)
    return Path(args.run_dir, args.run_name)


def offline_run(script=wsrl, name="base", *flags):
    """An offline.pt with trained critics."""
    flags = ["--run-name", name, "--online-steps", "0", *flags]
    return run(*flags, script=script, stage=["--layer-norm"]) / "offline.pt"


def saved(path):
    return torch.load(path, weights_only=True)


def test_defaults():
    args = porl.Args()
    assert (args.num_critics, args.critic_subset, args.layer_norm) == (10, 2, True)
    assert (args.presample_steps, args.utd_ratio, args.q_init) == (5000, 4, "presample")
    fields = {field.name for field in dataclasses.fields(porl.Args)}
    for family, settings in porl.PAPER_SETTINGS.items():
        assert settings.keys() <= fields
        same = ("hidden", "actor_layers", "critic_layers", "gamma", "tau", "actor_lr")
        same += ("reward_scale", "reward_bias", "success_ends_episode", "online_max_backup")
        for name in same:
            parent = wsrl.PAPER_SETTINGS[family].get(name, getattr(wsrl.Args, name))
            assert settings.get(name, getattr(porl.Args, name)) == parent, (family, name)
        goes_on = wsrl.PAPER_SETTINGS[family].get("infinite_horizon", False)
        assert settings.get("infinite_horizon", False) == goes_on, family


@pytest.mark.parametrize("source", ["bc", "cal_ql", "wsrl"])
@pytest.mark.parametrize("q_init", ["presample", "random"])
def test_what_begins_at_the_switch(monkeypatch, source, q_init):
    """New critics (of this run's seed), temperature and moments; the policy goes on."""
    pendulum()
    begun, act = [], porl.Agent.act

    def acting(self, obs, deterministic, floored=False):
        if not deterministic and not begun:
            begun.append((tensors(self), dict(self.optimizer.state)))
        return act(self, obs, deterministic, floored)

    monkeypatch.setattr(porl.Agent, "act", acting)
    start = []
    if source != "bc":
        path = offline_run({"cal_ql": cal_ql, "wsrl": wsrl}[source])
        start = ["--offline-checkpoint", str(path)]
    flags = ["--q-init", q_init, "--initial-alpha", "0.2", "--seed", "5", *start]
    folder = run("--run-name", "run", *flags)
    agent, moments = begun[0]
    assert not moments
    if source == "bc":
        path = folder / "offline.pt"
        assert all(name.startswith("actor.") for name in saved(path)["agent"])
    else:
        assert agent["log_alpha"] != saved(path)["agent"]["log_alpha"]
        old = saved(path)["agent"]
        for name in tensors_of(agent, "critic.net.weights", "critic_target.net.weights"):
            assert not torch.equal(agent[name], old[name]), name
    policy = tensors_of(agent, "actor.")
    assert same(policy, tensors_of(saved(path)["agent"], "actor."))
    assert agent["log_alpha"].item() == pytest.approx(math.log(0.2))
    torch.manual_seed(5)
    new = porl.Agent(4, 1, porl.parse_args([*DATA, *ENSEMBLE]), torch.device("cpu")).state_dict()
    assert same(tensors_of(agent, "critic"), tensors_of(new, "critic"))
    targets = tensors_of(agent, "critic_target.")
    assert all(torch.equal(x, agent[n.replace("_target", "")]) for n, x in targets.items())


def tensors_of(state, *networks):
    return {name: tensor for name, tensor in state.items() if name.startswith(networks)}


@pytest.mark.parametrize(
    "q_init, steps, first", [("presample", 80, 65), ("random", 80, 81), ("presample", 0, 65)]
)
def test_stages_their_updates_and_what_batches_hold(monkeypatch, q_init, steps, first):
    pendulum()
    calls, floors, sizes = [], [], []
    update, make, add = porl.Agent.update_online, porl.ReplayBuffer.__init__, porl.ReplayBuffer.add
    act = porl.Agent.act

    def updating(self, parts, presample):
        assert len(parts) == 4
        assert all((part["rewards"] < 50).all() for part in parts)  # no row of the data set
        calls.append((sizes[-1], presample))
        metrics = update(self, parts, presample)
        if presample:
            policy.append(tensors(self, "actor.", "log_"))
        return metrics

    def adding(self, **transition):
        add(self, **transition)
        sizes.append(self.size - self.offline_size)

    def tagged(self, columns, capacity, device):
        make(self, columns | {"rewards": columns["rewards"] + 100}, capacity, device)

    def acting(self, obs, deterministic, floored=False):
        if not deterministic:
            floors.append(floored)
        return act(self, obs, deterministic, floored)

    policy = []
    monkeypatch.setattr(porl.Agent, "update_online", updating)
    monkeypatch.setattr(porl.Agent, "act", acting)
    monkeypatch.setattr(porl.ReplayBuffer, "add", adding)
    monkeypatch.setattr(porl.ReplayBuffer, "__init__", tagged)
    flags = ["--q-init", q_init, "--presample-steps", str(steps)]
    folder = run("--run-name", "run", *flags)
    assert sizes == list(range(1, 91))  # nothing but online transitions, one per step
    assert calls == [(step, step <= steps) for step in range(first, 91)]
    assert floors == [step <= steps for step in range(1, 91)]
    offline = tensors_of(saved(folder / "offline.pt")["agent"], "actor.")
    for state in policy:  # bit-identical through stage A
        assert same(tensors_of(state, "actor."), offline)
        assert state["log_alpha"].item() == pytest.approx(math.log(0.1))
    assert len(policy) == (16 if q_init == "presample" and steps else 0)
    final = saved(folder / "latest.pt")
    assert not same(tensors_of(final["agent"], "actor."), offline)
    taken = {moments["step"].item() for moments in final["optimizer"]["state"].values()}
    assert taken == {0, 90 - max(steps, 64), 4 * (91 - first)}  # log_multiplier, policy, critics
    rows = list(csv.DictReader(open(folder / "metrics.csv")))
    logged = {int(row["step"]): row for row in rows if row["online/td_loss"]}
    assert min(logged) == -(-first // 10) * 10
    for step, row in logged.items():
        assert bool(row["online/actor_loss"]) == (step > steps), step


@pytest.mark.parametrize("flags", [[], ["--online-max-backup"]])
@pytest.mark.parametrize("script", [cal_ql, wsrl])
@pytest.mark.parametrize("steps", [70, 0])
def test_q_init_offline_is_wsrl(script, steps, flags):
    """From one offline.pt: the same actions, updates, logs and networks, bit for bit."""
    pendulum()
    start = ["--offline-checkpoint", str(offline_run(script)), *flags]
    stage = ["--warmup-steps", str(steps)]
    one = run("--run-name", "wsrl", *start, script=wsrl, stage=stage)
    stage = ["--q-init", "offline", "--presample-steps", str(steps), "--min-std", "1e-9"]
    other = run("--run-name", "porl", *start, stage=stage)
    assert (one / "eval.csv").read_bytes() == (other / "eval.csv").read_bytes()
    logs = [list(csv.DictReader(open(folder / "metrics.csv"))) for folder in (one, other)]
    kept = ("step", "online", "eval")
    for rows in logs:
        rows[:] = [{k: x for k, x in row.items() if k.startswith(kept)} for row in rows]
    assert logs[0] == logs[1]
    assert sum(bool(row["online/actor_loss"]) for row in logs[0]) >= 2
    states = [saved(folder / "latest.pt") for folder in (one, other)]
    assert same(states[0]["agent"], states[1]["agent"])
    moments = [state["optimizer"]["state"] for state in states]
    for name in moments[0]:
        assert same(moments[0][name], moments[1][name])


def test_q_init_offline_needs_trained_critics(capsys):
    pendulum()
    own = run("--run-name", "bc", "--online-steps", "0")
    cases = {
        "needs the critics of an --offline-checkpoint": [],
        "bc/offline.pt is of porl.py": ["--offline-checkpoint", str(own / "offline.pt")],
        "nowhere.pt is missing": ["--offline-checkpoint", "nowhere.pt"],
    }
    for words, flags in cases.items():
        with pytest.raises(SystemExit) as stop:
            run("--run-name", "refused", "--q-init", "offline", *flags)
        assert stop.value.code == 2
        assert words in capsys.readouterr().err
        assert not Path("runs/refused").exists()


def test_flags_that_do_not_go_together(capsys):
    pendulum()
    for flags, words in (
        (["--infinite-horizon", "--gamma", "1"], "--infinite-horizon needs a --gamma below 1"),
        (["--critic-subset", "4"], "--critic-subset must be at most --num-critics, 3"),
        (["--min-std", "0"], "--min-std must be between 1e-09 and 1.0"),
        (["--presample-steps", "-1"], "--presample-steps must be between 0"),
    ):
        with pytest.raises(SystemExit) as stop:
            run("--run-name", "refused", *flags)
        assert stop.value.code == 2
        assert words in capsys.readouterr().err


@pytest.mark.parametrize("q_init", ["presample", "offline"])
def test_checkpoints_of_other_sizes_are_refused(capsys, q_init):
    pendulum()
    start = ["--offline-checkpoint", str(offline_run()), "--q-init", q_init]
    for flags, words in (
        (["--num-critics", "2"], "(3, 5, 16), not torch.float32 (2, 5, 16)"),
        (["--no-layer-norm"], "layer_norm is True, not False"),
        (["--gamma", "0.5"], "gamma is 0.99, not 0.5"),
    ):
        with pytest.raises(SystemExit) as stop:
            run("--run-name", "refused", *start, *flags)
        assert stop.value.code == 2
        error = capsys.readouterr().err
        assert words in error or "missing or superfluous" in error
        assert len(error.strip().splitlines()) == 1


def test_a_checkpoint_of_cloning_starts_no_other_script(capsys):
    """It has no critics, and says so; a second porl.py goes on from its policy."""
    pendulum()
    path = run("--run-name", "bc", "--online-steps", "0") / "offline.pt"
    again = run("--run-name", "again", "--offline-checkpoint", str(path))
    assert same(saved(path)["agent"], saved(again / "offline.pt")["agent"])
    for script, stage in ((wsrl, ["--warmup-steps", "70"]), (cal_ql, ["--layer-norm"])):
        with pytest.raises(SystemExit) as stop:
            flags = ["--run-name", "refused", "--offline-checkpoint", str(path)]
            run(*flags, script=script, stage=stage)
        assert stop.value.code == 2
        assert "agent has missing or superfluous entries: critic" in capsys.readouterr().err


@pytest.mark.parametrize(
    "flags, note",
    [
        (["--presample-steps", "90"], "the policy makes no update: it rests for the first 90"),
        (["--presample-steps", "90", "--online-steps", "60"], "no update is made: the first 64"),
        (
            ["--presample-steps", "64"],
            "no critic learns in stage A: it must be longer than 64",
        ),
        (["--presample-steps", "70"], None),
        (["--presample-steps", "10", "--q-init", "random"], None),
    ],
)
def test_notes(capsys, flags, note):
    pendulum()
    run("--run-name", "run", *flags)
    notes = [line for line in capsys.readouterr().out.splitlines() if line.startswith("note: ")]
    notes = [line for line in notes if "critic" in line or "update" in line]
    assert len(notes) == (note is not None)
    assert note is None or note in notes[0]


@pytest.mark.parametrize("q_init", ["presample", "offline"])
@pytest.mark.parametrize("steps", [2, 66, 85])
def test_interrupted_and_resumed_is_the_same_run(monkeypatch, q_init, steps):
    """In the first episode, in stage A and in stage B; the checkpoint may be gone by then."""
    pendulum()
    base = offline_run()
    flags = ["--offline-checkpoint", str(base), "--q-init", q_init]
    whole, add, count = run("--run-name", "whole", *flags), porl.ReplayBuffer.add, [0]

    def counting(self, **transition):
        count[0] += 1
        if count[0] == steps:
            os.kill(os.getpid(), signal.SIGTERM)
        return add(self, **transition)

    monkeypatch.setattr(porl.ReplayBuffer, "add", counting)
    with pytest.raises(SystemExit):
        run("--run-name", "halves", *flags)
    monkeypatch.setattr(porl.ReplayBuffer, "add", add)
    base.unlink()
    halves = run("--resume", "runs/halves/latest.pt")
    for name in ("eval.csv", "metrics.csv"):
        assert (whole / name).read_bytes() == (halves / name).read_bytes()
    states = [saved(folder / "latest.pt")["agent"] for folder in (whole, halves)]
    assert same(*states)
