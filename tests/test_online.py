"""What the online phase of every script does alike: its rows, its batches, its actions."""

import copy
import csv
import importlib

import gymnasium as gym
import minari
import numpy as np
import pytest
import torch
from conftest import SCRIPTS as PATHS
from conftest import SMALL, TASK, TINY, pendulum, run

import iql

SCRIPTS = [path.stem for path in PATHS]
FAMILY = ["iql", "o3f", "pex", "jsrl_finetune"]
CQL_FAMILY = ["cal_ql", "wsrl", "porl"]


def online_run(script, *flags, **kwargs):
    """A run without offline steps; its folder."""
    module = importlib.import_module(script)
    flags = [*TINY, *SMALL.get(script, []), "--offline-steps", 0, *flags]
    return run("--dataset-id", pendulum(**kwargs), *flags, script=module)


def online_columns(folder):
    """Rewards and terminations. A row: 4 observations, action, reward, 4 observations, end."""
    rows = torch.load(folder / "latest.pt", weights_only=True)["online"]
    return rows[:, 5], rows[:, 10]


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_time_limit_is_no_end_and_rewards_have_their_scale(script):
    """The task pays 1 a step and 0 at a fall; here the clock ends most episodes after 4 steps."""
    spec = copy.deepcopy(gym.spec(TASK))
    spec.max_episode_steps = 4
    folder = online_run(script, "--reward-scale", 2, "--reward-bias", -1, env=spec)
    rewards, ends = online_columns(folder)
    assert {*rewards.tolist()} <= {1.0, -1.0}
    assert torch.equal(ends == 1, rewards == -1)
    assert len(ends) >= 80  # cal_ql.py keeps finished episodes only
    log = csv.DictReader(open(folder / "metrics.csv"))
    lengths = [float(row["online/episode_length"]) for row in log if row["online/episode_length"]]
    assert max(lengths) == 4
    assert ends.sum() < len(lengths)  # the others were cut


@pytest.mark.parametrize("script", FAMILY)
def test_online_rewards_keep_the_scale_of_the_returns(script):
    rewards, _ = online_columns(online_run(script, "--normalize-returns"))
    data = minari.load_dataset("test/pendulum/random-v0")
    totals = [episode.rewards.sum() for episode in data.iterate_episodes()]
    assert rewards.max().item() == pytest.approx(1000 / (max(totals) - min(totals)), rel=1e-5)


def recorded(env: gym.Env) -> dict[str, list]:
    """Seeds of an environment's resets, and its steps as rows of the buffer, with 2 r - 1."""
    log = {"seeds": [], "rows": []}
    reset, step = env.reset, env.step
    last = []

    def resetting(seed=None, options=None):
        log["seeds"].append(seed)
        obs, info = reset(seed=seed)
        last[:] = obs
        return obs, info

    def stepping(action):
        obs, reward, terminated, truncated, info = step(action)
        log["rows"].append([*last, *action, 2 * reward - 1, *obs, float(terminated)])
        last[:] = obs
        return obs, reward, terminated, truncated, info

    env.reset, env.step = resetting, stepping
    return log


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_buffer_holds_what_has_happened(monkeypatch, script):
    """Each row is one step of the task; episodes have seeds of their own; the end is evaluated."""
    module = importlib.import_module(script)
    make_env, logs = module.make_env, []

    def making(task):
        env = make_env(task)
        logs.append(recorded(env))
        return env

    monkeypatch.setattr(module, "make_env", making)
    flags = ["--reward-scale", 2, "--reward-bias", -1, "--eval-every", 40]
    folder = online_run(script, *flags)
    training = logs[1]  # the first one is that of evaluations
    rows = torch.load(folder / "latest.pt", weights_only=True)["online"][:, :11]
    assert len(rows) >= 80  # cal_ql.py keeps finished episodes only
    happened = torch.tensor(np.array(training["rows"], np.float32))
    assert len(happened) == 90
    assert torch.allclose(rows, happened[: len(rows)])
    assert len(set(training["seeds"])) == len(training["seeds"]) > 3
    evaluations = csv.DictReader(open(folder / "eval.csv"))
    assert {int(row["step"]) for row in evaluations} == {0, 40, 80, 90}


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_data_have_the_scale_that_the_learner_sees(monkeypatch, script):
    module = importlib.import_module(script)
    make, columns = module.ReplayBuffer.__init__, {}

    def making(self, data, capacity, device):
        columns.update({name: column.copy() for name, column in data.items()})
        make(self, data, capacity, device)

    monkeypatch.setattr(module.ReplayBuffer, "__init__", making)
    flags = ["--reward-scale", 2, "--reward-bias", -1, "--online-steps", 0]
    if script in FAMILY:
        flags.append("--normalize-returns")
    online_run(script, *flags)
    data = minari.load_dataset("test/pendulum/random-v0")
    episodes = [episode.rewards for episode in data.iterate_episodes()]
    scale = 2.0
    if script in FAMILY:
        totals = [rewards.sum() for rewards in episodes]
        scale *= 1000 / (max(totals) - min(totals))
    episodes = [scale * rewards - 1 for rewards in episodes]
    assert columns["rewards"] == pytest.approx(np.concatenate(episodes), rel=1e-5)
    assert ("mc_returns" in columns) == (script in CQL_FAMILY)
    if script in CQL_FAMILY:
        returns = []
        for rewards in episodes:
            for start in range(len(rewards)):
                rest = rewards[start:]
                returns.append((rest * 0.99 ** np.arange(len(rest))).sum())
        assert columns["mc_returns"] == pytest.approx(np.array(returns), rel=1e-4)


@pytest.mark.parametrize("script", ["iql", "o3f", "awac", "o3f_lapo"])
def test_online_batches_are_uniform_over_data_and_online_rows(monkeypatch, script):
    module = importlib.import_module(script)
    sample, add = module.ReplayBuffer.sample, module.ReplayBuffer.add
    drawn, expected = [], []

    def adding(self, **transition):
        add(self, **transition | {"rewards": 100.0})  # online rows only

    def sampling(self, *args, **kwargs):
        batch = sample(self, *args, **kwargs)
        drawn.append((batch["rewards"] > 50).float().mean().item())
        expected.append(1 - self.offline_size / self.size)
        return batch

    monkeypatch.setattr(module.ReplayBuffer, "add", adding)
    monkeypatch.setattr(module.ReplayBuffer, "sample", sampling)
    online_run(script)
    half = len(drawn) // 2
    for part in (slice(0, half), slice(half, None)):  # the share grows
        assert np.mean(drawn[part]) == pytest.approx(np.mean(expected[part]), abs=0.06)


@pytest.mark.parametrize("script", ["iql", "awac", "cal_ql", "wsrl", "td3_c"])
def test_the_online_phase_acts_with_samples(monkeypatch, script):
    module = importlib.import_module(script)
    calls, act = [], module.Agent.act

    def acting(self, obs, deterministic):
        if obs.ndim == 1 and not deterministic:  # awac.py asks for batches, too
            calls.append(1)
        return act(self, obs, deterministic)

    monkeypatch.setattr(module.Agent, "act", acting)
    online_run(script)
    assert len(calls) == 90


@pytest.mark.parametrize("script", FAMILY)
def test_the_decayed_learning_rate_is_full_again_online(monkeypatch, script):
    module = importlib.import_module(script)
    rates, update = [], module.Agent.update

    def recording(self, *args, **kwargs):
        rates.append([group["lr"] for group in self.optimizer.param_groups])
        return update(self, *args, **kwargs)

    monkeypatch.setattr(module.Agent, "update", recording)
    flags = ["--actor-lr-decay", "--offline-steps", 8, "--online-steps", 40]
    online_run(script, *flags)
    expected = [1.5e-4 * (1 + np.cos(np.pi * i / 8)) for i in range(8)]
    assert [rate[0] for rate in rates[:8]] == pytest.approx(expected, rel=1e-6)
    assert len(rates) > 20
    assert {rate[0] for rate in rates[8:]} == {3e-4}
    assert {rate[1] for rate in rates} == {3e-4}


@pytest.mark.parametrize("script", FAMILY)
def test_samples_have_the_policys_spread(script):
    module = importlib.import_module(script)
    torch.manual_seed(0)
    agent = module.Agent(5, 2, module.Args(compile=False), torch.device("cpu"))
    with torch.no_grad():
        for parameter in agent.actor.mean.parameters():
            parameter.zero_()
        agent.actor.mean[4].bias.copy_(torch.atanh(torch.tensor([0.3, -0.2])))
        agent.actor.log_std.copy_(torch.log(torch.tensor([0.05, 0.1])))
    samples = agent.act(torch.zeros(20_000, 5), deterministic=False)
    assert samples.mean(0).tolist() == pytest.approx([0.3, -0.2], abs=5e-3)
    assert samples.std(0).tolist() == pytest.approx([0.05, 0.1], rel=0.03)


@pytest.mark.parametrize("script", [*FAMILY, "awac"])
def test_the_spread_of_the_policy_is_bounded(script):
    module = importlib.import_module(script)
    agent = module.Agent(5, 2, module.Args(compile=False), torch.device("cpu"))
    for value, bound in ((-9.0, -5.0), (9.0, 2.0)):
        agent.actor.log_std.data.fill_(value)
        _, log_std = agent.actor(torch.zeros(5))
        assert log_std.tolist() == [bound, bound]


@pytest.mark.parametrize("script", ["cal_ql", "wsrl", "porl"])
def test_the_spread_of_a_squashed_policy_is_bounded(script):
    module = importlib.import_module(script)
    agent = module.Agent(5, 2, module.Args(compile=False), torch.device("cpu"))
    for value, bound in ((-99.0, -20.0), (99.0, 2.0)):
        agent.actor.log_std_shift.data.fill_(value)
        _, log_std = agent.actor(torch.zeros(3, 5))
        assert (log_std == bound).all()


@pytest.mark.parametrize("script", FAMILY)
def test_dropout_follows_the_activations(monkeypatch, script):
    module = importlib.import_module(script)
    agent = module.Agent(5, 2, module.Args(compile=False), torch.device("cpu"))
    seen = []

    def dropping(x, rate):
        seen.append((x, rate))
        return x

    monkeypatch.setattr(torch.nn.functional, "dropout", dropping)
    agent.actor(torch.randn(64, 5), 0.3)
    assert [(x.shape, rate) for x, rate in seen] == [((64, 256), 0.3)] * 2
    assert all(x.min() == 0 for x, _ in seen)  # a ReLU came before


def test_buffer_samples_uniformly():
    columns = {"rewards": np.arange(6, dtype=np.float32)}
    buffer = iql.ReplayBuffer(columns, 4, torch.device("cpu"))
    for reward in (6.0, 7.0, 8.0, 9.0):
        buffer.add(rewards=reward)
    torch.manual_seed(0)
    whole = np.bincount(buffer.sample(20_000)["rewards"].int(), minlength=10)
    assert np.abs(whole / 2_000 - 1).max() < 0.12
    mixed = buffer.sample(20_000, 0.3)["rewards"].int()
    offline, online = np.bincount(mixed[:6_000], minlength=10), np.bincount(mixed[6_000:])
    assert np.abs(offline[:6] / 1_000 - 1).max() < 0.16
    assert offline[6:].sum() == 0
    assert online[:6].sum() == 0
    assert np.abs(online[6:] / 3_500 - 1).max() < 0.10


def test_reference_scores_are_those_of_d4rl():
    assert iql.REFERENCE_SCORES == {
        "halfcheetah": (-280.178953, 12135.0),
        "hopper": (-20.272305, 3234.3),
        "walker2d": (1.629008, 4592.3),
        "ant": (-325.6, 3879.7),
    }
