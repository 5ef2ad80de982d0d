"""What holds for the agents of several scripts: how they begin, compile and go on."""

import csv
import importlib
import itertools
import json

import gymnasium as gym
import numpy as np
import pytest
import torch
from conftest import SCRIPTS as PATHS
from conftest import SMALL, TINY, episode, make_dataset, pendulum, run

import iql

SCRIPTS = [path.stem for path in PATHS]
OBS, ACT, B = 5, 2, 32


def make_agent(script, **settings):
    module = importlib.import_module(script)
    torch.manual_seed(0)
    return module.Agent(OBS, ACT, module.Args(compile=False, **settings), torch.device("cpu"))


def make_batch():
    rng = np.random.default_rng(1)
    batch = {"obs": rng.normal(size=(B, OBS)), "actions": rng.uniform(-1, 1, (B, ACT))}
    batch |= {"rewards": rng.normal(size=B), "next_obs": rng.normal(size=(B, OBS))}
    batch |= {"terminations": rng.random(B) < 0.3, "mc_returns": rng.normal(size=B)}
    return {name: torch.tensor(column, dtype=torch.float32) for name, column in batch.items()}


def stir(agent):
    """Every parameter away from where it begins: last layers may begin near 0."""
    with torch.no_grad():
        for parameter in agent.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))


@pytest.mark.parametrize("script", SCRIPTS)
def test_targets_begin_as_copies_and_no_two_critics_alike(script):
    agent = make_agent(script)
    networks = dict(agent.named_children())
    targets = [name for name in networks if name.endswith("_target")]
    for name in targets:
        source = name.removesuffix("_target")
        target, network = networks[name], networks.get(source, networks.get(f"{source}_net"))
        for one, other in zip(target.parameters(), network.parameters(), strict=True):
            assert torch.equal(one, other), name
            assert one.data_ptr() != other.data_ptr()
    assert {"critic_target", "q_target"} & {*targets}
    critic = networks.get("critic", networks.get("q_net"))
    weights = getattr(critic, "net", critic).weights[0]
    assert len(weights) >= 2
    for one, other in itertools.combinations(weights, 2):
        assert not torch.equal(one, other)


LOSSES = [
    ("o3f", "loss", {}),
    ("pex", "loss", {"expanded": True}),
    ("jsrl_finetune", "loss", {}),
    ("cal_ql", "critic_loss", {}),
    ("cal_ql", "actor_loss", {}),
    ("wsrl", "critic_loss", {}),
    ("wsrl", "critic_loss", {"online": True}),
    ("porl", "bc_loss", {}),
    ("porl", "critic_loss", {"stage_a": True}),
    ("porl", "critic_loss", {"stage_a": False}),
    ("porl", "actor_loss", {}),
]


@pytest.mark.parametrize(("script", "name", "options"), LOSSES)
def test_compiled_losses_and_gradients_are_the_same(script, name, options):
    """The whole graph, without a C++ compiler; iql, awac, td3_c, o3f_lapo: in their own tests."""
    agent, batch = make_agent(script), make_batch()
    stir(agent)
    loss_of = getattr(agent, name)
    compiled = torch.compile(loss_of, backend="aot_eager", fullgraph=True)
    parameters = [parameter for parameter in agent.parameters() if parameter.requires_grad]
    results = []
    for function in (loss_of, compiled):
        torch.manual_seed(3)
        loss, metrics = function(batch, **options)
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
        results.append([loss, *metrics.values(), *gradients])
    assert any(gradient is not None for gradient in gradients)
    for eager, other in zip(*results, strict=True):
        assert (eager is None) == (other is None)
        if eager is not None:
            assert torch.allclose(eager, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("script", "options"),
    [("o3f", {}), ("jsrl_finetune", {}), ("pex", {}), ("pex", {"expanded": True})],
)
def test_dropout_is_in_the_actors_loss(script, options, monkeypatch):
    agent, batch = make_agent(script, dropout=0.5), make_batch()
    if options:  # else the cloned action is another one each time
        cloned = agent.composite(batch["obs"], deterministic=True)
        monkeypatch.setattr(agent, "composite", lambda obs, deterministic: cloned)
    losses = {agent.loss(batch, **options)[1]["actor_loss"].item() for _ in range(5)}
    assert len(losses) == 5
    agent.args.dropout = 0.0
    assert len({agent.loss(batch, **options)[1]["actor_loss"].item() for _ in range(2)}) == 1


@pytest.mark.parametrize("script", ["iql", "o3f", "awac"])
def test_adams_moments_go_on_at_the_switch(script):
    module = importlib.import_module(script)
    flags = ["--dataset-id", pendulum(), *TINY, *SMALL.get(script, [])]
    folder = run(*flags, script=module)
    optimizer = module.load_checkpoint(folder / "latest.pt")["optimizer"]
    counts = {moments["step"].item() for moments in optimizer["state"].values()}
    assert counts == {60 + 90}  # offline and online


@pytest.mark.parametrize(("script", "first"), [("iql", 1), ("td3_c", 16)])
def test_an_update_online_finds_the_transition_of_its_step(monkeypatch, script, first):
    module = importlib.import_module(script)
    rows, sample = [], module.ReplayBuffer.sample

    def sampling(self, *args):
        rows.append(self.size - self.offline_size)
        return sample(self, *args)

    monkeypatch.setattr(module.ReplayBuffer, "sample", sampling)
    run("--dataset-id", pendulum(), *TINY, script=module)
    assert rows == [0] * 60 + list(range(first, 91))


class Lever(gym.Env):
    """Actions in [-1, 3]; the goal is touched in the third of five steps only."""

    def __init__(self):
        self.observation_space = gym.spaces.Box(-1.0, 5.0, (1,), np.float32)
        self.action_space = gym.spaces.Box(-1.0, 3.0, (2,), np.float32)
        self.seen = []

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        self.step_number = 0
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.seen.append(np.array(action))
        self.step_number += 1
        obs = np.full(1, self.step_number, np.float32)
        return obs, 0.0, False, False, {"success": self.step_number == 3}


@pytest.fixture
def lever():
    """A data set of recorded actions in an asymmetric box, and these actions."""
    gym.register("Lever-v0", f"{__name__}:Lever", max_episode_steps=5)
    actions = np.random.default_rng(0).uniform(-1, 3, (20, 5, 2)).astype(np.float32)
    obs = np.arange(6, dtype=np.float32)[:, None]
    episodes = [episode(i, obs, column, np.zeros(5), False) for i, column in enumerate(actions)]
    yield make_dataset("test/lever/random-v0", episodes, env="Lever-v0"), actions.reshape(-1, 2)
    del gym.registry["Lever-v0"]


def test_actions_of_the_data_come_back_in_the_environment(lever):
    dataset_id, actions = lever
    columns, _, task, _ = iql.load_data(iql.Args(dataset_id=dataset_id, batch_size=2))
    env = iql.make_env(task)
    for number, action in enumerate(columns["actions"]):
        if number % 5 == 0:
            env.reset(seed=0)
        env.step(action)
    assert np.allclose(env.unwrapped.seen, actions, atol=1e-4)


def test_a_goal_that_was_touched_once_is_a_success(lever):
    folder = run("--dataset-id", lever[0], *TINY)
    rows = list(csv.DictReader(open(folder / "eval.csv")))
    assert {row["success"] for row in rows} == {"1"}
    log = csv.DictReader(open(folder / "metrics.csv"))
    assert {float(row["eval/success"]) for row in log if row["eval/success"]} == {1.0}


@pytest.mark.parametrize("script", ["iql", "pex", "jsrl_finetune"])
def test_means_of_an_evaluation_are_those_of_its_episodes(script):
    """In metrics.csv and summary.json, of the deployed policy; rewards are those of the task."""
    module = importlib.import_module(script)
    flags = ["--dataset-id", pendulum(), *TINY, *SMALL.get(script, []), "--reward-scale", 2]
    folder = run(*flags, script=module)
    returns = {}
    for row in csv.DictReader(open(folder / "eval.csv")):
        key = (int(row["step"]), row["policy"])
        returns.setdefault(key, []).append(float(row["return"]))
    logged = {}
    for row in csv.DictReader(open(folder / "metrics.csv")):
        for prefix, policy in (("eval", "actor"), ("eval_learner", "learner")):
            if row.get(f"{prefix}/return"):
                values = (float(row[f"{prefix}/{name}"]) for name in ("return", "score"))
                logged[int(row["step"]), policy] = tuple(values)
    assert logged.keys() == returns.keys()
    for key, (mean, score) in logged.items():
        assert len(returns[key]) == 2
        assert mean == pytest.approx(np.mean(returns[key]))
        assert score == pytest.approx(100 * (mean - 5) / 995)  # pendulum's reference scores
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["final_return"] == pytest.approx(logged[90, "actor"][0])
    assert summary["final_score"] == pytest.approx(logged[90, "actor"][1])


def test_the_summary_is_of_the_deployed_policy(monkeypatch):
    finish = iql.Run.finish

    def finishing(self):
        row = {"step": 90, "phase": "online", "policy": "learner", "episode": 0, "return": 1e6}
        self.tables["eval.csv"].writerow(row)
        finish(self)

    monkeypatch.setattr(iql.Run, "finish", finishing)
    folder = run("--dataset-id", pendulum(), *TINY)
    assert json.loads((folder / "summary.json").read_text())["final_return"] < 1000


def test_the_clocks_of_both_phases_leave_evaluation_out(monkeypatch):
    clock, watched, evaluate, make = [0.0], [False], iql.Run.evaluate, iql.make_env

    def making(task):
        env = make(task)
        reset = env.reset

        def slow(**kwargs):
            clock[0] += 100.0 * watched[0]
            return reset(**kwargs)

        env.reset = slow
        return env

    def evaluating(*args, **kwargs):
        watched[0] = True
        result = evaluate(*args, **kwargs)
        watched[0] = False
        return result

    monkeypatch.setattr(iql, "make_env", making)
    monkeypatch.setattr(iql.Run, "evaluate", evaluating)

    def now():
        clock[0] += 1e-3
        return clock[0]

    monkeypatch.setattr(iql.time, "perf_counter", now)
    folder = run("--dataset-id", pendulum(), *TINY)
    seconds = iql.load_checkpoint(folder / "latest.pt")["seconds"]
    assert clock[0] > 500
    assert max(seconds.values()) < 10
