"""Jump start: the decisions of the gate, who acts when, what is frozen, and a resumed run."""

import csv
import dataclasses
import math
import os
import signal
from pathlib import Path
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
import torch
from conftest import ROOT, TINY, pendulum, start

import iql
import jsrl_finetune as jsrl

OBS, ACT, B = 5, 2, 64
QUICK = [*TINY, "--calibration-episodes", "3", "--min-episodes", "2"]


def make_gate(stage=1, guide=((100.0, 1000, False),), random_return=0.0, **settings):
    gate = jsrl.Gate(dataclasses.replace(jsrl.Args(), **settings), stage, random_return)
    gate.guide_returns = [value for value, _, _ in guide]
    gate.guide_lengths = [length for _, length, _ in guide]
    gate.solved_lengths = [length for _, length, solved in guide if solved]
    return gate


def feed(gate, returns, guide_share=0.5):
    """Finished episodes; the verdict on the last one (None if there was none)."""
    for value in returns:
        logged = gate.after_episode({"r": value, "l": 1000}, math.inf, guide_share)
    return logged.get("online/gate_verdict")


def test_horizons_of_the_stages():
    gate = make_gate()
    stages = [setattr(gate, "stage", k) or gate.horizons() for k in range(11)]
    assert stages == [
        [math.inf],
        [900],
        [800],
        [700],
        [600],
        [500],
        [400],
        [300],
        [200],
        [100],
        [0],
    ]
    drawn = make_gate(schedule="random", guide=[(1.0, 300, True), (0.0, 600, False)]).horizons()
    assert drawn == [
        270,
        240,
        210,
        180,
        150,
        120,
        90,
        60,
        30,
        0,
    ]  # the unsolved episode does not count
    assert make_gate(guide=[(0.0, 600, False)] * 3).horizons() == [540]
    assert make_gate(stage=10, guide=(), schedule="direct").horizons() == [0]
    assert make_gate(guide=[(0.0, 100, False)], stages=250).horizons() == [99]  # not 100


CERTAIN = {"min_episodes": 3, "z_advance": 1.0, "z_retreat": 1.0}


@pytest.mark.parametrize(
    "returns, lower, upper, verdict",
    [
        ([96, 97, 95], 95.42, 96.58, 1),
        ([90, 100, 98], 92.94, 99.06, 0),
        ([60, 70, 65], 62.11, 67.89, -1),
    ],
)
def test_gate_on_returns_with_a_spread(returns, lower, upper, verdict):
    gate = make_gate(stage=2, guide=[(100.0, 1000, False)] * 4, **CERTAIN)
    assert feed(gate, returns[:2]) is None
    assert gate.bounds()[2] == 95
    logged = gate.after_episode({"r": returns[2], "l": 1000}, math.inf, 0.5)
    assert logged["online/gate_estimate"] == pytest.approx(np.mean(returns))
    assert logged["online/gate_lower"] == pytest.approx(lower, abs=0.01)
    assert logged["online/gate_upper"] == pytest.approx(upper, abs=0.01)
    assert (logged["online/gate_threshold"], logged["online/gate_verdict"], gate.stage) == (
        95,
        verdict,
        2 + verdict,
    )
    assert (gate.returns, gate.learner_episodes) == (([], 0) if verdict else (returns, 3))


def test_each_bound_has_its_own_margin():
    """Mean 96, deviations 1 and 0: an error of 1 / sqrt(3)."""
    margins = {"min_episodes": 3, "z_advance": 0.5, "z_retreat": 2.0}
    gate = make_gate(stage=2, guide=[(100.0, 1000, False)] * 4, **margins)
    feed(gate, [96, 97])
    gate.returns.append(95.0)
    lower, upper, _ = gate.bounds()
    assert (lower, upper) == pytest.approx((96 - 0.5 / 3**0.5, 96 + 2 / 3**0.5))


def test_the_guide_acts_by_its_mean():
    agent = make_agent()
    agent.jump_start(0.0)
    for parameter in agent.actor.parameters():
        parameter.data.add_(0.1)
    agent.guide.log_std.data.fill_(0.0)
    obs, before = torch.randn(OBS), torch.get_rng_state()
    for deterministic in (True, False):
        action = agent.act(obs, deterministic, guided=True)
        assert torch.equal(action, agent.guide(obs)[0])
    assert torch.equal(torch.get_rng_state(), before)  # nothing is drawn
    assert not torch.equal(action, agent.act(obs, True))


def test_gate_without_a_margin_advances_earlier():
    assert (
        feed(
            make_gate(guide=[(100.0, 1000, False)] * 4, **(CERTAIN | {"z_advance": 0.0})),
            [90, 100, 98],
        )
        == 1
    )


def test_the_error_of_the_guides_mean_counts():
    gate = make_gate(guide=[(95.0, 1000, False), (105.0, 1000, False)], **CERTAIN)  # SE_g = 5
    assert feed(gate, [96, 97, 95]) == 0
    spread = 0.25 * np.std([95, 105], ddof=1)  # more than that of the three returns
    assert gate.bounds()[0] == pytest.approx(96 - math.sqrt(spread**2 / 3 + 25))


def test_tolerance_is_a_share_of_the_lead_over_a_random_policy():
    for guide, random_return, threshold in (
        (100.0, 20.0, 96.0),
        (-100.0, -300.0, -110.0),
        (50.0, 0.0, 47.5),
    ):
        gate = make_gate(guide=[(guide, 9, False)] * 2, random_return=random_return)
        gate.returns = [1.5, 2.0]
        assert gate.bounds()[2] == pytest.approx(threshold)


@pytest.mark.parametrize(
    "ones, lower, upper", [(9, 0.766, 0.961), (6, 0.443, 0.739), (2, 0.104, 0.351)]
)
def test_wilson_bounds_of_a_share(ones, lower, upper):
    assert jsrl.wilson(ones / 10, 10, 1.0) == pytest.approx((lower, upper), abs=1e-3)
    assert jsrl.wilson(ones / 10, 10, 0.0) == pytest.approx((ones / 10, ones / 10))


def test_newcombes_bounds_are_those_of_his_example():
    """R. G. Newcombe, Statistics in Medicine 17, 1998, 873-890: 56 of 70 against 48 of 80."""
    first, second = [1.0] * 56 + [0.0] * 14, [1.0] * 48 + [0.0] * 32
    bounds = jsrl.newcombe(first, second, 1.959964)
    assert bounds == pytest.approx((0.0524, 0.3339), abs=1e-4)
    assert jsrl.newcombe(second, first, 1.959964) == pytest.approx((-bounds[1], -bounds[0]))


def share_bounds(ones, number, z):
    """Wilson's bounds by their definition: the p with (p - share)^2 = z^2 p (1 - p) / number."""
    share = ones / number
    roots = np.roots([1 + z**2 / number, -2 * share - z**2 / number, share**2])
    return min(roots), max(roots)


@pytest.mark.parametrize(
    "ones, solved, episodes, verdict",
    [
        (10, 16, 20, 1),
        (9, 16, 20, 0),  # Wilson's lower bound of 0.9 alone would advance
        (6, 16, 20, 0),  # and his upper bound of 0.6 alone retreat
        (2, 16, 20, -1),
        (9, 160, 200, 1),  # a guide that is better known
        (6, 160, 200, -1),
    ],
)
def test_for_returns_of_0_or_1_the_errors_of_both_shares_count(ones, solved, episodes, verdict):
    guide = [(1.0, 100, True)] * solved + [(0.0, 600, False)] * (episodes - solved)  # 0.8
    gate = make_gate(guide=guide, min_episodes=10, window=20, z_advance=1.0, z_retreat=0.9)
    returns = [1.0] * ones + [0.0] * (10 - ones)
    assert feed(gate, returns[:9]) is None
    logged = gate.after_episode({"r": returns[9], "l": 100}, math.inf, 0.5)
    low, guide_high = share_bounds(ones, 10, 1.0)[0], share_bounds(solved, episodes, 1.0)[1]
    high, guide_low = share_bounds(ones, 10, 0.9)[1], share_bounds(solved, episodes, 0.9)[0]
    lower = ones / 10 - np.sqrt((ones / 10 - low) ** 2 + (guide_high - 0.8) ** 2)
    upper = ones / 10 + np.sqrt((high - ones / 10) ** 2 + (0.8 - guide_low) ** 2)
    assert logged["online/gate_estimate"] == pytest.approx(ones / 10)
    assert logged["online/gate_lower"] == pytest.approx(lower)
    assert logged["online/gate_upper"] == pytest.approx(upper)
    assert logged["online/gate_threshold"] == pytest.approx(0.75)
    assert logged["online/gate_verdict"] == verdict == gate.stage - 1


def test_the_guide_drives_again_after_a_retreat_and_its_statistics_grow():
    gate = make_gate(stage=1, guide=[(100.0, 1000, False)] * 10)
    assert feed(gate, [1, 2, 3, 4, 5]) == -1
    assert (gate.stage, gate.horizons()) == (0, [math.inf])
    assert feed(gate, [99.0] * 4, guide_share=1.0) is None
    assert gate.stage == 0
    feed(gate, [99.0], guide_share=1.0)
    assert (gate.stage, len(gate.guide_returns), gate.returns) == (1, 15, [])


def test_episodes_that_end_before_the_learner_acts_are_no_ground_for_a_decision():
    gate = make_gate(guide=[(100.0, 1000, False)] * 10)
    assert feed(gate, [100.0] * 30, guide_share=1.0) is None
    assert len(gate.returns) == 10  # the window
    assert feed(gate, [100.0] * 4) is None
    assert feed(gate, [100.0]) == 1


def test_a_learner_as_good_as_the_guide_takes_over_in_the_fewest_episodes():
    gate, episodes = make_gate(stage=0, guide=()), 0
    while gate.stage < 10:
        feed(gate, [100.0], guide_share=1.0 if gate.stage == 0 else 0.5)
        episodes += 1
    assert episodes == 10 + 9 * 5
    assert feed(gate, [100.0] * 5) == 1
    assert gate.stage == 10
    feed(gate, [0.0] * 10)
    assert gate.stage < 10  # watched to the end


def test_a_worthless_learner_is_held_back():
    means, stages = [], []
    for seed in range(20):
        rng, gate, returns = np.random.default_rng(seed), make_gate(stage=0, guide=()), []
        for _ in range(60):
            share = 1.0 if gate.stage == 0 else 1 - gate.stage / 10
            returns.append(100 * share + rng.normal(0, 5))
            feed(gate, returns[-1:], guide_share=share)
            stages.append(gate.stage)
        means.append(np.mean(returns[10:]))
    assert np.mean(means) >= 100 * (1 - 1 / 10 - 0.05)
    assert max(stages) <= 3
    assert np.mean(np.array(stages) <= 2) > 0.99


def make_curriculum(guide_return, evaluations=()):
    """A gate at stage 1, after some evaluations of the guide and its calibration episodes."""
    gate = make_gate(stage=0, guide=(), schedule="curriculum")
    for value in evaluations:
        assert not gate.after_evaluation(value)
    feed(gate, [guide_return - 5, guide_return + 5] * 5, guide_share=1.0)
    assert gate.stage == 1
    return gate


@pytest.mark.parametrize("evaluations", [[], [1000.0] * 3, [1000.0] * 5])
@pytest.mark.parametrize(
    "average, best, stage",
    [(76.0, 80.0, 2), (75.9, 80.0, 1), (-105.0, -100.0, 2), (-105.1, -100.0, 1)],
)
def test_curriculum_starts_from_the_guides_level(average, best, stage, evaluations):
    gate = make_curriculum(best, evaluations)
    for value in (average - 2, average + 2, average - 1, average + 1):
        assert not gate.after_evaluation(value)
        assert gate.stage == 1
    logged = gate.after_evaluation(average)
    assert (gate.stage, gate.best) == (stage, max(best, average))
    assert logged["online/gate_estimate"] == pytest.approx(average)
    assert logged["online/gate_threshold"] == pytest.approx(best - 0.05 * abs(best))
    assert logged["online/gate_verdict"] == stage - 1
    assert not {"online/gate_lower", "online/gate_upper"} & logged.keys()


@pytest.mark.parametrize("before", [0, 1, 4, 5, 6])
def test_curriculum_holds_a_learner_far_worse_than_the_guide(before):
    gate = make_curriculum(100.0, [100.0] * before)
    for _ in range(100):
        gate.after_evaluation(10.0)
    assert (gate.stage, gate.best) == (1, 100)


def test_curriculum_compares_with_the_best_window_so_far():
    gate = make_curriculum(100.0)
    for value in [200.0] * 5 + [100.0] * 5:
        logged = gate.after_evaluation(value)
    assert (gate.stage, gate.best) == (2, 200)
    assert (logged["online/gate_threshold"], logged["online/gate_verdict"]) == (190, 0)


def test_curriculum_advances_on_a_full_window_and_never_retreats():
    gate, stages = make_curriculum(50.0), []
    for value in [50] * 5 + [10] * 8 + [60] * 30:
        gate.after_evaluation(value)
        feed(gate, [0.0])  # training episodes do not matter
        stages.append(gate.stage)
    assert stages[3:6] == [1, 2, 2]
    assert stages == sorted(stages)
    assert stages[-1] == 10


def test_the_page_shows_how_often_the_gate_is_wrong(monkeypatch, tmp_path, capsys):
    """The tables are those of the CSV, and a shorter simulation gives numbers of the same size."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmark"))
    import gate_table

    table = list(csv.DictReader(open(ROOT / "benchmark/results/gate_table.csv")))
    page = (ROOT / "docs/jsrl_finetune.md").read_text()
    for schedule in ("automatic", "curriculum"):
        assert gate_table.markdown(table, schedule) in page
    gate_table.main(gate_table.Args(simulations=100, runs=40, out=tmp_path / "few.csv"))
    few = list(csv.DictReader(open(tmp_path / "few.csv")))
    assert gate_table.markdown(few, "automatic") in capsys.readouterr().out
    for row, other in zip(few, table, strict=True):
        for name in ("schedule", "returns", "guide", "settings", "learner"):
            assert row[name] == other[name]
        for name in ("first", "end", "undecided"):
            assert abs(float(row[name] or 0) - float(other[name] or 0)) < 12
        for name in ("stage_2", "stage_10"):
            assert abs(int(row[name] or 0) / 40 - int(other[name] or 0) / 500) < 0.15
        if row["learner"] == "90 % worse":
            assert row["stage_2"] == other["stage_2"] == "0"


def test_random_draws_every_stage_equally_often():
    owner = SimpleNamespace(args=SimpleNamespace(seed=0))
    drawn = np.bincount(
        [jsrl.Run.seed(owner, "horizon", episode) % 10 for episode in range(10_000)]
    )
    assert np.abs(drawn / 10_000 - 0.1).max() < 0.01


def test_batches_hold_the_share_and_only_the_newest():
    columns = {"obs": np.zeros((50, 1), np.float32), "rewards": np.full(50, -1, np.float32)}
    buffer = jsrl.ReplayBuffer(columns, 300, torch.device("cpu"))
    for reward in range(300):
        buffer.add(obs=np.zeros(1, np.float32), rewards=np.float32(reward))
    batches = [buffer.sample(256, 0.25, 100)["rewards"] for _ in range(20)]
    assert all((batch[:64] == -1).all() and (batch[64:] >= 200).all() for batch in batches)
    assert torch.cat([batch[64:] for batch in batches]).unique().tolist() == list(range(200, 300))
    assert buffer.sample(20_000, 0.25)["rewards"][5_000:].unique().tolist() == list(range(300))


def make_agent(**settings):
    torch.manual_seed(0)
    args = dataclasses.replace(
        jsrl.Args(), compile=False, beta=2.0, gamma=0.9, expectile=0.8, **settings
    )
    return jsrl.Agent(OBS, ACT, args, torch.device("cpu"))


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


def same(first, second):
    pairs = zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    return all(torch.equal(one, other) for one, other in pairs)


@pytest.mark.parametrize("init", ["warm", "cold"])
def test_the_switch(init):
    agent, batch = make_agent(init=init), make_batch()
    agent.update(batch)
    critic, value = agent.critic.weights[0].clone(), agent.value[0].weight.clone()
    agent.jump_start(7.0)
    assert torch.equal(value, agent.value[0].weight) == (init == "warm")
    assert (
        same(agent.guide, agent.actor)
        == (init == "warm")
        == torch.equal(critic, agent.critic.weights[0])
    )
    assert (
        same(agent.critic, agent.critic_target) == (init == "cold") == (not agent.optimizer.state)
    )
    assert (agent.gate.stage, agent.gate.random_return) == (0, 7)


def test_while_calibrating_the_learners_policy_rests_and_afterwards_it_learns():
    agent, batch = make_agent(), make_batch()
    for _ in range(3):
        agent.update(batch)
    agent.jump_start(0.0)
    for _ in range(3):
        agent.update(batch, train_actor=False)
    assert all(parameter.grad is None for parameter in agent.actor.parameters())
    assert same(agent.guide, agent.actor)
    value = agent.value[0].weight.clone()
    agent.update(batch)
    assert not same(agent.guide, agent.actor)
    assert not torch.equal(value, agent.value[0].weight)


def run(*flags):
    if flags[0] != "--resume":
        flags = ["--dataset-id", "test/pendulum/random-v0", *QUICK, *flags]
    args = jsrl.parse_args(list(flags))
    start(jsrl, args)
    return Path(args.run_dir, args.run_name)


def rows(folder, name="metrics.csv"):
    return list(csv.DictReader(open(folder / name)))


def test_only_solved_episodes_of_the_guide_give_the_horizon():
    gate = make_gate(stage=0, guide=(), calibration_episodes=3, min_episodes=2)
    for solved_at in (math.inf, 20, 40):  # of episodes that go on after the first success
        gate.after_episode({"r": 1.0, "l": 50}, solved_at, 1.0)
    assert gate.guide_lengths == [50, 50, 50]
    assert gate.solved_lengths == [20, 40]
    assert gate.horizon(1) == 27  # 30 (1 - 1/10)


def test_the_policy_rests_until_stage_0_is_over():
    gate = make_gate(stage=0, guide=(), calibration_episodes=2, min_episodes=5)
    for _ in range(5):
        assert gate.stage == 0 and not gate.calibrated()
        feed(gate, [1.0])
    assert gate.stage == 1 and gate.calibrated()


def test_settings_are_those_of_the_page():
    """docs/jsrl_finetune.md; offline_ratio, online_window and stages are JSRL's."""
    args = jsrl.Args()
    assert (args.offline_ratio, args.online_window, args.stages) == (0.25, 100_000, 10)
    assert (args.schedule, args.init, args.tolerance) == ("automatic", "warm", 0.05)
    assert (args.z_advance, args.z_retreat) == (0.5, 1.0)
    for family in jsrl.PAPER_SETTINGS:
        args = jsrl.parse_args(["--dataset-id", f"x/{family}/a-v0"])
        episodes = (args.calibration_episodes, args.min_episodes, args.window)
        assert episodes == ((20, 10, 20) if "maze" in family else (10, 5, 10))
        if family in ("hopper", "halfcheetah", "walker2d", "ant"):
            assert args.online_steps == 250_000


@pytest.mark.parametrize("schedule", ["automatic", "curriculum", "random", "direct"])
@pytest.mark.parametrize("init", ["warm", "cold"])
def test_who_acts_what_is_frozen_and_what_the_gate_is_told(monkeypatch, schedule, init):
    """One whole run per schedule, with every online action, update and gate input recorded."""
    pendulum()
    acted, updates, told, begun = [], [], [], []
    act, update, jump = jsrl.Agent.act, jsrl.Agent.update, jsrl.Agent.jump_start
    after = jsrl.Gate.after_episode

    def acting(self, obs, deterministic, guided=False):
        if not deterministic:
            acted.append(bool(guided))
        return act(self, obs, deterministic, guided)

    def updating(self, batch, train_actor=True):
        metrics = update(self, batch, train_actor)
        updates.append((len(begun), train_actor, same(self.guide, self.actor)))
        if begun:
            assert same(self.guide, begun[0])
        return metrics

    def telling(self, stats, solved_at, guide_share):
        h = (
            self.horizons() if schedule in ("automatic", "direct") else None
        )  # the others may have moved since
        told.append((float(stats["r"]), int(stats["l"]), guide_share, h, list(acted)))
        acted.clear()
        return after(self, stats, solved_at, guide_share)

    def starting(self, random_return):
        assert random_return == 5  # the data set's reference
        jump(self, random_return)
        begun.append(jsrl.copy.deepcopy(self.guide))

    monkeypatch.setattr(jsrl.Agent, "act", acting)
    monkeypatch.setattr(jsrl.Agent, "update", updating)
    monkeypatch.setattr(jsrl.Gate, "after_episode", telling)
    monkeypatch.setattr(jsrl.Agent, "jump_start", starting)
    flags = ["--reward-scale", "0.1", "--reward-bias", "-3", "--eval-every", "10", "--stages", "4"]
    folder = run("--run-name", "run", "--schedule", schedule, "--init", init, *flags)

    assert len(told) > 6
    for number, (value, length, share, horizons, guided) in enumerate(told):
        assert (
            value == length - 1
        )  # this task pays 1 a step but for the last: the gate sees raw returns
        assert len(guided) == length
        assert sum(guided) == share * length
        assert guided == sorted(guided, reverse=True)  # first the guide, then the learner
        if horizons:
            assert sum(guided) == min(length, horizons[0])
        assert (sum(guided) == length) or number >= 3 or schedule == "direct"
    assert sum(not all(guided) for *_, guided in told) >= 3
    online = [(train, equal) for after_switch, train, equal in updates if after_switch]
    assert len(online) == 90 - 15  # from the 16th step on there is a batch
    calibrating = (
        [] if schedule == "direct" else range(sum(length for _, length, *_ in told[:3]) - 15)
    )
    assert [train for train, _ in online] == [False] * len(calibrating) + [True] * (
        75 - len(calibrating)
    )
    if init == "warm":
        assert [equal for _, equal in online] == [not train for train, _ in online]
    policies = {row["policy"] for row in rows(folder, "eval.csv") if int(row["step"]) > 0}
    assert policies == {"actor", "learner"}
    stages = [int(row["online/stage"]) for row in rows(folder) if row["online/stage"]]
    assert stages[0] == (4 if schedule == "direct" else 0)
    assert len(set(stages)) > 1 or schedule == "direct"
    verdicts = [row for row in rows(folder) if row["online/gate_verdict"]]
    assert bool(verdicts) == (schedule in ("automatic", "curriculum"))


@pytest.mark.parametrize("schedule", ["automatic", "curriculum"])
def test_what_the_gate_is_told_and_what_is_logged(monkeypatch, schedule):
    """Of each episode its stage and the guide's share; of each evaluation what is deployed."""
    pendulum()
    told, evaluated, alone, judged = [], [], [], []
    evaluate, after_episode = jsrl.Run.evaluate, jsrl.Gate.after_episode
    after_evaluation = jsrl.Gate.after_evaluation

    def telling(self, stats, solved_at, guide_share):
        told.append((self.stage, guide_share))
        return after_episode(self, stats, solved_at, guide_share)

    def evaluating(self, act, env, *names):
        values = evaluate(self, act, env, *names)
        if self.step > 0:
            (alone if names else evaluated).append(values["return"])
        return values

    def judging(self, value):
        judged.append(value)
        return after_evaluation(self, value)

    monkeypatch.setattr(jsrl.Run, "evaluate", evaluating)
    monkeypatch.setattr(jsrl.Gate, "after_episode", telling)
    monkeypatch.setattr(jsrl.Gate, "after_evaluation", judging)
    flags = ["--schedule", schedule, "--init", "cold", "--eval-every", "10"]
    folder = run("--run-name", "all", *flags)
    assert judged == evaluated != alone
    log = [row for row in rows(folder) if row["online/guide_share"]]
    logged = [(int(row["online/stage"]), float(row["online/guide_share"])) for row in log]
    assert len({stage for stage, _ in logged}) > 1
    if schedule == "automatic":  # the curriculum may have moved in the middle of an episode
        assert logged == told


def test_an_episode_is_solved_by_its_first_success(monkeypatch):
    pendulum()
    make_env, after_episode, told = jsrl.make_env, jsrl.Gate.after_episode, []

    def making(task):
        env = make_env(task)
        step = env.step

        def stepping(action):
            odd = env.episode_count % 2 == 1
            *outcome, info = step(action)  # of five steps and more
            return *outcome, info | {"success": odd and env.episode_lengths in (3, 5)}

        env.step = stepping
        return env

    def telling(self, stats, solved_at, guide_share):
        told.append(solved_at)
        return after_episode(self, stats, solved_at, guide_share)

    monkeypatch.setattr(jsrl, "make_env", making)
    monkeypatch.setattr(jsrl.Gate, "after_episode", telling)
    run("--run-name", "one")
    assert len(told) > 8
    assert told == [3 if number % 2 == 1 else math.inf for number in range(len(told))]


def test_the_mixture_in_evaluation():
    calls = []
    agent = SimpleNamespace(
        act=lambda obs, deterministic, guided: calls.append(guided) or torch.zeros(1)
    )
    env = gym.wrappers.RecordEpisodeStatistics(gym.make("Pendulum-v1", max_episode_steps=5))
    env.episode_count = 3  # earlier evaluations do not matter
    act = jsrl.mixture(agent, env, [math.inf, 2, 0])
    for _ in range(4):
        env.reset(seed=0)
        for _ in range(5):
            env.step(act(None, deterministic=True).numpy())
    assert [sum(calls[i : i + 5]) for i in range(0, 20, 5)] == [5, 2, 0, 5]
    assert calls[5:10] == [True, True, False, False, False]


@pytest.mark.parametrize("schedule", ["automatic", "curriculum", "random"])
@pytest.mark.parametrize("updates", [30, 80, 120])
def test_interrupted_and_resumed_is_the_same_run(monkeypatch, schedule, updates):
    pendulum()
    flags = ["--schedule", schedule, "--init", "cold", "--eval-every", "10"]
    whole, update, count = run("--run-name", "whole", *flags), jsrl.Agent.update, [0]

    def counting(self, batch, train_actor=True):
        count[0] += 1
        if count[0] == updates:
            os.kill(os.getpid(), signal.SIGTERM)
        return update(self, batch, train_actor)

    monkeypatch.setattr(jsrl.Agent, "update", counting)
    with pytest.raises(SystemExit):
        run("--run-name", "halves", *flags)
    monkeypatch.setattr(jsrl.Agent, "update", update)
    halves = run("--resume", "runs/halves/latest.pt")
    for name in ("eval.csv", "metrics.csv"):
        assert (whole / name).read_bytes() == (halves / name).read_bytes()
    state, again = (
        torch.load(folder / "latest.pt", weights_only=True)["agent"] for folder in (whole, halves)
    )
    assert state.pop("_extra_state") == again.pop("_extra_state")
    assert all(torch.equal(tensor, again[name]) for name, tensor in state.items())


def test_offline_checkpoints_of_iql_and_jsrl_finetune_serve_each_other():
    pendulum()
    flags = ["--dataset-id", "test/pendulum/random-v0", *TINY]
    start(iql, iql.parse_args([*flags, "--online-steps", "0", "--run-name", "iql"]))
    tuned = run("--offline-checkpoint", "runs/iql/offline.pt", "--run-name", "tuned")
    before = torch.load("runs/iql/offline.pt", weights_only=True)["agent"]
    after = torch.load(tuned / "latest.pt", weights_only=True)["agent"]
    actor = [name for name in before if name.startswith("actor.")]
    assert actor
    for name in actor:  # the policy has become the guide
        assert torch.equal(after[name.replace("actor.", "guide.", 1)], before[name])
    again = ["--offline-checkpoint", str(tuned / "offline.pt")]
    direct = run(*again, "--run-name", "direct", "--schedule", "direct")
    stages = {row["online/stage"] for row in rows(direct)}
    assert stages == {"", "10"}  # the gate of the older run is not taken over
    start(iql, iql.parse_args([*flags, *again, "--online-steps", "30", "--run-name", "back"]))


@pytest.mark.parametrize(
    "flags, words",
    [
        (["--stages", "0"], "--stages must be"),
        (["--calibration-episodes", "1"], "--calibration-episodes must be"),
        (["--min-episodes", "8", "--window", "7"], "--window must be at least --min-episodes"),
        (["--min-episodes", "1"], "--min-episodes must be"),
        (["--online-window", "0"], "--online-window must be"),
        (["--offline-ratio", "-0.1"], "--offline-ratio must be"),
        (["--z-advance", "-1"], "--z-advance must be"),
    ],
)
def test_settings_out_of_their_range_are_refused(capsys, flags, words):
    pendulum()
    with pytest.raises(SystemExit) as stop:
        run("--run-name", "refused", *flags)
    lines = capsys.readouterr().err.strip().splitlines()
    assert stop.value.code == 2
    assert len(lines) == 1
    assert words in lines[0]


def test_a_cold_learner_has_new_networks_throughout():
    """New biases are 0, those of trained networks are not."""
    agent, batch = make_agent(init="cold"), make_batch()
    agent.update(batch)
    biases = [agent.actor.mean[0].bias, agent.value[0].bias, agent.critic.biases[0]]
    assert all(bias.any() for bias in [*biases, agent.critic_target.biases[0]])
    value = agent.value[0].weight.clone()
    agent.jump_start(0.0)
    assert not any(bias.any() for bias in [*biases, agent.critic_target.biases[0]])
    assert agent.guide.mean[0].bias.any()
    assert not torch.equal(value, agent.value[0].weight)


def test_batches_of_a_run_hold_the_share_and_only_the_newest(monkeypatch):
    pendulum()
    assert (jsrl.Args().offline_ratio, jsrl.Args().online_window) == (0.25, 100_000)
    make, add, update = jsrl.ReplayBuffer.__init__, jsrl.ReplayBuffer.add, jsrl.Agent.update
    added, seen = [0], []

    def tagged(self, columns, capacity, device):
        rewards = np.full_like(columns["rewards"], -1)
        make(self, columns | {"rewards": rewards}, capacity, device)

    def adding(self, **transition):
        add(self, **transition | {"rewards": added[0]})  # their numbers, from 0
        added[0] += 1

    def updating(self, batch, train_actor=True):
        if added[0] > 0:
            seen.append((added[0], batch["rewards"].tolist()))
        return update(self, batch, train_actor)

    monkeypatch.setattr(jsrl.ReplayBuffer, "__init__", tagged)
    monkeypatch.setattr(jsrl.ReplayBuffer, "add", adding)
    monkeypatch.setattr(jsrl.Agent, "update", updating)
    run("--run-name", "run", "--online-window", "20")
    assert [count for count, _ in seen] == list(range(16, 91))
    ages = []
    for count, rewards in seen:
        assert rewards.count(-1) == 4  # a quarter of 16
        ages += [count - 1 - number for number in rewards if number >= 0]
    assert (min(ages), max(ages)) == (0, 19)


def test_a_run_draws_its_horizons_at_random(monkeypatch):
    pendulum()
    acted, told = [], []
    act, after, horizons = jsrl.Agent.act, jsrl.Gate.after_episode, jsrl.Gate.horizons

    def acting(self, obs, deterministic, guided=False):
        if not deterministic:
            acted.append(bool(guided))
        return act(self, obs, deterministic, guided)

    def telling(self, stats, solved_at, guide_share):
        told.append((self.stage, sum(acted), len(acted)))
        acted.clear()
        return after(self, stats, solved_at, guide_share)

    choices = lambda self: [0, 1, 2, 3] if self.stage > 0 else horizons(self)  # noqa: E731
    monkeypatch.setattr(jsrl.Agent, "act", acting)
    monkeypatch.setattr(jsrl.Gate, "after_episode", telling)
    monkeypatch.setattr(jsrl.Gate, "horizons", choices)
    flags = ["--schedule", "random", "--online-steps", "300", "--eval-every", "1000"]
    run("--run-name", "run", *flags)
    drawn = [guided for stage, guided, length in told if stage > 0 and length > 3]
    assert len(drawn) >= 15
    assert {*drawn} == {0, 1, 2, 3}
    assert drawn[4:] != drawn[:-4]  # not in turn
