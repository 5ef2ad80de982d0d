"""The tools around the scripts: making and checking data sets, sweeps, plots."""

import csv
import dataclasses
import importlib
import json
import os
import re
import runpy
import signal
import subprocess
import sys
import textwrap
import time
import traceback
from pathlib import Path
from types import SimpleNamespace

import gymnasium as gym
import h5py
import make_dataset
import minari
import numpy as np
import pytest
import torch
from conftest import ROOT, SMALL, TINY, pendulum, run
from torch.distributions import AffineTransform, Normal, TransformedDistribution
from torch.distributions.transforms import TanhTransform

import iql


def tool(*command, status=0) -> str:
    """What a program prints that must end with this status.

    It runs in a fork, which has the libraries already: to import them takes a process 2.5 seconds.
    """
    with open("printed", "w+") as printed:
        child = os.fork()
        if child == 0:
            as_program(*map(str, command), file=printed.fileno())
        _, ended = os.waitpid(child, 0)
        printed.seek(0)
        text = printed.read()
    Path("printed").unlink()
    assert os.waitstatus_to_exitcode(ended) == status, text
    return text


def in_a_process(*command) -> str:
    """What a program prints that must succeed: for Ray, which is slow in a fork."""
    words = [sys.executable, *map(str, command)]
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout


def as_program(script: str, *flags: str, file: int) -> None:
    """Run a program in this process, with both outputs in a file, and end with its status."""
    status = 1
    try:
        for stream in (1, 2):
            os.dup2(file, stream)
        sys.stdout, sys.stderr = (open(number, "w", buffering=1) for number in (1, 2))
        sys.argv = [script, *flags]
        sys.path[0] = str(Path(script).parent)
        runpy.run_path(script, run_name="__main__")
        status = 0
    except SystemExit as end:
        status = end.code or 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(status)


def test_maze_dataset(tmp_path):
    command = [
        "maze",
        "--env-id",
        "PointMaze_Medium-v3",
        "--dataset-id",
        "o2o/pointmaze/test-v0",
        "--steps",
        "1500",
    ]
    out = tool(
        ROOT / "tools/make_dataset.py",
        *command,
        "--goal-visits",
        "1",
        "--starts",
        "3",
        "--out",
        tmp_path / "minari",
    )
    assert "1500 steps" in out
    args = dataclasses.replace(
        iql.Args(), dataset_id="o2o/pointmaze/test-v0", **iql.PAPER_SETTINGS["pointmaze"]
    )
    columns, ends, task, references = iql.load_data(args)
    assert len(columns["obs"]) == 1500
    assert references == (0, 1)
    assert (
        columns["rewards"] == columns["terminations"]
    ).all()  # the goal, and only the goal, pays and ends
    assert columns["rewards"].sum() >= 1
    assert np.diff(np.r_[0, ends]).max() <= 100
    starts = [cell for row in task.kwargs["maze_map"] for cell in row]
    assert (starts.count("r"), starts.count("g")) == (3, 1)
    refusal = tool(ROOT / "tools/make_dataset.py", *command, "--out", tmp_path / "minari", status=2)
    assert "exists already" in refusal


def test_random_level(tmp_path):
    command = [
        "sac",
        "--env-id",
        "Hopper-v5",
        "--level",
        "random",
        "--dataset-id",
        "o2o/hopper/random-v0",
        "--steps",
        "300",
    ]
    tool(ROOT / "tools/make_dataset.py", *command, "--out", tmp_path / "minari")
    dataset = minari.load_dataset("o2o/hopper/random-v0")
    assert dataset.total_steps == 300
    assert dataset.storage.metadata["ref_max_score"] == 3234.3
    assert dataset.storage.metadata["o2o_command"].endswith(
        "--steps 300 --out " + str(tmp_path / "minari")
    )
    last = list(dataset.iterate_episodes())[-1]
    assert last.terminations[-1] or last.truncations[-1]


MAKE = ROOT / "tools/make_dataset.py"
REFUSED = [
    ("sac --steps 0", "--steps"),
    ("sac --train-steps 14999", "--train-steps"),
    ("sac --seed -1", "--seed"),
    ("sac --threads 0", "--threads"),
    ("sac --env-id Nope-v0 --reference 0 1", "Nope"),
    ("sac --env-id CartPole-v1 --reference 0 1", "must be vectors"),
    ("sac --env-id Humanoid-v5 --reference 0 1", "[-1, 1]"),
    ("sac --env-id Swimmer-v5", "no reference scores"),
    ("sac --reference 5 5", "--reference"),
    ("sac --reference 5 4", "--reference"),
    ("sac --reference nan 5", "--reference"),
    ("sac --reference 0 inf", "--reference"),
    ("sac --reference 5", "--reference"),
    ("maze --steps 0", "--steps"),
    ("maze --episode-steps 0", "--episode-steps"),
    ("maze --starts 0", "--starts"),
    ("maze --starts 46", "at most 45"),
    ("maze --time-limit 0", "--time-limit"),
    ("maze --noise nan", "--noise"),
    ("maze --noise -1", "--noise"),
    ("maze --goal-visits 1.5", "--goal-visits"),
    ("maze --seed -1", "--seed"),
    ("maze --env-id Nope-v0", "no PointMaze"),
    ("maze --env-id AntMaze_UMaze-v5", "no PointMaze"),
    ("maze --dataset-id /etc/x-v0", "--dataset-id"),
    ("maze --dataset-id ../x-v0", "--dataset-id"),
    ("maze --dataset-id a/b", "--dataset-id"),
    ("maze --dataset-id a//b-v0", "--dataset-id"),
    ("maze --dataset-id a/b-v0", "--dataset-id"),
    ("maze --dataset-id there/is-v0", "exists already"),
    ("maze --out file", "cannot write"),
    ("maze --out file/below", "cannot write"),
    ("maze --out /proc/below", "cannot write"),
]


def make(monkeypatch, capsys, *flags) -> tuple[int, list[str]]:
    """Run make_dataset.py in this process: its exit status, and the lines on stderr."""
    monkeypatch.setattr(iql, "SCRIPT", iql.SCRIPT)
    monkeypatch.setattr(sys, "argv", ["make_dataset.py", *flags])
    capsys.readouterr()
    status = 0
    try:
        make_dataset.main()
    except SystemExit as stop:
        status = stop.code
    return status, capsys.readouterr().err.splitlines()


@pytest.mark.parametrize("flags, words", REFUSED, ids=[flags for flags, _ in REFUSED])
def test_make_dataset_refuses_before_it_records(flags, words, monkeypatch, capsys):
    monkeypatch.setattr(make_dataset, "new_episode", lambda obs: pytest.fail("it has begun"))
    Path("datasets/there/is-v0").mkdir(parents=True)
    Path("file").touch()
    before = sorted(Path(".").rglob("*"))
    if "--dataset-id" not in flags:
        flags += " --dataset-id a/b/c-v0"
    status, lines = make(monkeypatch, capsys, *flags.split())
    assert status == 2
    assert len(lines) == 1, lines
    assert lines[0].startswith("make_dataset.py: ")
    assert words in lines[0]
    assert sorted(Path(".").rglob("*")) == before


@pytest.mark.parametrize("name", ["pack", "move"])
def test_make_dataset_leaves_nothing_half_made(name, monkeypatch, capsys):
    flags = ["maze", "--steps", "50", "--out", "new", "--dataset-id"]
    assert make(monkeypatch, capsys, *flags, "a/b/first-v0") == (0, [])
    before = sorted(Path(".").rglob("*"))

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(make_dataset, name, full)
        status, lines = make(patch, capsys, *flags, "a/b/second-v0")
    assert (status, len(lines)) == (2, 1)
    assert "No space left" in lines[0]
    assert sorted(Path(".").rglob("*")) == before
    assert make(monkeypatch, capsys, *flags, "a/b/second-v0") == (0, [])
    monkeypatch.setenv("MINARI_DATASETS_PATH", "new")
    assert set(minari.list_local_datasets()) == {"a/b/first-v0", "a/b/second-v0"}


def interrupted(command: list, number: int, ready) -> None:
    """Start a tool, send the signal once ready(process id), and expect one line and its status."""
    command = [sys.executable, *map(str, command)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    while not ready(process.pid):
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.send_signal(number)
    error = process.communicate(timeout=60)[1]
    assert error == f"{Path(command[1]).name}: interrupted\n"
    assert process.returncode == 128 + number


def has_handlers(process: int) -> bool:
    """Does a process catch SIGTERM? The tools do so before the imports that take seconds."""
    status = Path(f"/proc/{process}/status").read_text()
    caught = int(status.split("SigCgt:")[1].split()[0], 16)
    return bool(caught >> (signal.SIGTERM - 1) & 1)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_signals_while_importing(number):
    for name, flags in (
        ("make_dataset.py", ["maze", "--dataset-id", "aa/b-v0"]),
        ("check_data.py", ["o2o/hopper/medium-v0"]),
        ("play.py", ["nothing.pt"]),
    ):
        interrupted([ROOT / "tools" / name, *flags], number, has_handlers)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_while_recording(number):
    before = sorted(Path(".").rglob("*"))
    command = [MAKE, "maze", "--steps", "1000000", "--dataset-id", "aa/b-v0", "--out", "new/deep"]
    interrupted(command, number, lambda _: list(Path(".").glob(".making-*")))
    assert sorted(Path(".").rglob("*")) == before


def test_sac_policy_density_and_losses():
    torch.manual_seed(0)
    agent = make_dataset.SAC(3, 2)
    obs, noise = torch.randn(50, 3), torch.randn(2, 50, 2)
    actions, log_prob = agent.policy(obs, noise[0])
    mean, log_std = agent.actor(obs)[0].chunk(2, -1)
    squashed = TransformedDistribution(
        Normal(mean, log_std.exp()), [TanhTransform(), AffineTransform(0, 1)]
    )
    assert torch.allclose(log_prob, squashed.log_prob(actions).sum(-1), atol=1e-3)
    batch = (obs, torch.rand(50, 2), torch.randn(50), torch.randn(50, 3), torch.zeros(50))
    loss = agent.loss(*batch, noise)
    loss.backward()
    assert all(p.grad is None for p in agent.critic_target.parameters())
    entropy = -agent.policy(obs, noise[1])[1].mean().item()
    assert agent.log_alpha.grad.item() == pytest.approx(entropy + 2)  # the target entropy is -2
    new_actions, new_log_prob = agent.policy(obs, noise[1])  # alpha = 1 at first
    (
        new_log_prob - agent.critic(torch.cat([obs, new_actions], -1)).squeeze(-1).amin(0)
    ).mean().backward()
    twice = agent.actor.weights[1].grad
    agent.zero_grad()
    agent.loss(*batch, noise).backward()
    assert torch.allclose(
        2 * agent.actor.weights[1].grad, twice, atol=1e-5
    )  # the actor saw its own loss only
    # Critics' and policy's loss in NumPy, at alpha = 0.5, half of the transitions true ends.
    agent.log_alpha.data.fill_(np.log(0.5))
    ends = np.arange(50) % 2
    _, data_actions, rewards, next_obs, _ = batch
    with torch.no_grad():
        next_actions, next_log_prob = agent.policy(next_obs, noise[0])
        new_actions, new_log_prob = agent.policy(obs, noise[1])
        q = agent.critic(torch.cat([obs, data_actions], -1))[..., 0].numpy()
        new_q = agent.critic(torch.cat([obs, new_actions], -1))[..., 0].numpy()
        next_q = agent.critic_target(torch.cat([next_obs, next_actions], -1))[..., 0].numpy()
    next_v = next_q.min(0) - 0.5 * next_log_prob.numpy()
    target = rewards.numpy() + 0.99 * (1 - ends) * next_v
    expected = ((q - target) ** 2).mean(1).sum()
    expected += (0.5 * new_log_prob.numpy() - new_q.min(0)).mean()
    expected -= np.log(0.5) * (new_log_prob.numpy().mean() - 2)
    loss = agent.loss(*batch[:4], torch.from_numpy(ends).float(), noise)
    assert loss.item() == pytest.approx(expected, rel=1e-4)
    numpy_action = agent.act(obs[0].numpy(), np.random.default_rng(0), True)
    assert np.allclose(numpy_action, mean[0].tanh().detach().numpy(), atol=1e-5)


def test_shortest_path():
    walls = np.ones((5, 5), bool)
    walls[1, 1:4] = walls[2, 3] = walls[3, 1:4] = False
    path = make_dataset.shortest_path(walls, (1, 1), (3, 1))
    assert path == [(1, 2), (1, 3), (2, 3), (3, 3), (3, 2), (3, 1)]
    assert make_dataset.shortest_path(walls, (1, 1), (1, 1)) == []


@pytest.mark.parametrize(
    "dataset_id", ["o2o/hopper/medium-v0", "o2o/pointmaze/large-v0", "test/pendulum/random-v0"]
)
def test_check_data(dataset_id):
    if dataset_id.startswith(
        "test"
    ):  # recorded in [-3, 3], as the task wants it, but described as wider
        pendulum(action_space=gym.spaces.Box(-6, 6, (1,)))
    out = tool(ROOT / "tools/check_data.py", dataset_id, "--replay-episodes", 1)
    for word in ("episodes", "return", "termination", "truncation", "outside", "reward"):
        assert word in out.lower(), word
    assert (
        "[-3.] to [3.]: NOT THE SAME"
        if dataset_id.startswith("test")
        else "the environment's is the same"
    ) in out
    if "hopper" in dataset_id:  # placed at each recorded state, the simulator pays the same
        found = re.search(r"observation, every step: largest reward difference (\S+)", out)
        assert float(found[1]) < 0.1


def test_check_data_refuses_an_unknown_id():
    assert "no Minari id" in tool(ROOT / "tools/check_data.py", "nonsense!", status=2)
    assert "no data set" in tool(ROOT / "tools/check_data.py", "non/sense-v0", status=2)


def test_check_data_sees_what_is_not_finite():
    dataset = minari.MinariDataset(minari.storage.get_dataset_path(pendulum()) / "data")
    with h5py.File(dataset.spec.data_path + "/main_data.hdf5", "a") as file:
        file["episode_0/rewards"][1] = np.nan
        file["episode_1/observations"][2, :3] = np.inf
    out = tool(ROOT / "tools/check_data.py", "test/pendulum/random-v0")
    assert "non-finite  3 observation, 0 action and 1 reward entries" in out


EVIL_SPECS = {
    "entry point": {"entry_point": "os:system", "kwargs": {"command": "touch PWNED"}},
    "wrapper": {
        "additional_wrappers": [
            {"name": "W", "entry_point": "evil:wrap", "kwargs": {"command": "touch PWNED"}}
        ]
    },
    "other id": {"id": "Evil-v0", "entry_point": "evil:make"},
    "module in the id": {"id": "evil:Evil-v0"},
}


@pytest.mark.parametrize("key", ["env_spec", "eval_env_spec"])
@pytest.mark.parametrize("name", EVIL_SPECS)
def test_check_data_runs_no_code_of_the_data(name, key, monkeypatch):
    path = minari.storage.get_dataset_path(pendulum(eval_env=gym.spec("InvertedPendulum-v5")))
    file = path / "data/metadata.json"
    metadata = json.loads(file.read_text())
    metadata[key] = json.dumps(json.loads(metadata[key]) | EVIL_SPECS[name])
    file.write_text(json.dumps(metadata))
    code = "import os; wrap = make = lambda *_, **__: os.system('touch PWNED')"
    Path("evil.py").write_text(f"open('IMPORTED', 'w')\n{code}\n")
    monkeypatch.setenv("PYTHONPATH", ".")
    command = [sys.executable, ROOT / "tools/check_data.py", "test/pendulum/random-v0"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert not Path("PWNED").exists()
    assert not Path("IMPORTED").exists()
    harmless = 0 if name == "wrapper" else 2  # a wrapper is left out, the rest names nothing known
    assert done.returncode == harmless, done.stderr
    assert len(done.stderr.splitlines()) == harmless / 2


def test_check_data_with_a_module_of_ones_own():
    module = """
        import gymnasium
        from gymnasium.envs.mujoco.inverted_pendulum_v5 import InvertedPendulumEnv as Env
        gymnasium.register("Mine-v0", "mine:Env", max_episode_steps=50)
    """
    Path("mine.py").write_text(textwrap.dedent(module))
    path = minari.storage.get_dataset_path(pendulum()) / "data/metadata.json"
    path.write_text(path.read_text().replace("InvertedPendulum-v5", "Mine-v0"))
    command = [ROOT / "tools/check_data.py", "test/pendulum/random-v0", "--replay-episodes", 1]
    assert "--env-module" in tool(*command, status=2)
    assert "recorded in Mine-v0" in tool(*command, "--env-module", "mine")
    assert "no_module" in tool(*command, "--env-module", "no_module", status=2)


def test_sweep_and_plot():
    pendulum()
    command = [
        ROOT / "benchmark/sweep.py",
        ROOT / "iql.py",
        "--datasets",
        "test/pendulum/random-v0",
        "--seeds",
        0,
        1,
    ]
    command += ["--out", "results.csv", "--losses", "losses.csv", "--", *TINY]
    first = in_a_process(*command)
    assert first.count("status 0") == 2
    rows = list(csv.DictReader(open("results.csv")))
    assert {(row["seed"], row["step"]) for row in rows} == {
        (s, t) for s in "01" for t in ("-30", "0", "30", "60", "90")
    }
    losses = list(csv.DictReader(open("losses.csv")))  # so short a run logs them at the switch only
    assert [(row["seed"], row["step"], row["phase"]) for row in losses] == [
        ("0", "0", "offline"),
        ("1", "0", "offline"),
    ]
    assert {name for name in losses[0] if losses[0][name]} == {
        "script",
        "dataset",
        "seed",
        "step",
        "phase",
        *iql.METRICS,
    }
    before = Path("losses.csv").read_bytes()
    assert in_a_process(*command).count("finished") == 2
    assert Path("losses.csv").read_bytes() == before
    out = tool(ROOT / "benchmark/plot.py", "results.csv", "--out", "curve.png")
    assert "test/pendulum/random-v0" in out
    assert Path("curve.png").read_bytes()[:4] == b"\x89PNG"
    folder = run("--dataset-id", "test/pendulum/random-v0", *TINY, "--run-name", "one")
    tool(ROOT / "benchmark/plot.py", folder, "--out", "one.png")
    assert Path("one.png").exists()


def test_losses_of_a_run(tmp_path):
    sys.path.insert(0, str(ROOT / "benchmark"))
    from sweep import read_losses

    (tmp_path / "config.json").write_text(
        '{"script": "cal_ql.py", "dataset_id": "test/x/y-v0", "seed": 3}'
    )
    rows = [
        "step,offline/td_loss,online/td_loss,online/episode_return,eval/return",
        "-500,1,,,",
        "-500,,,,7",
        "0,2.123456,,,",
        "0,,,,7",
    ]
    rows += ["5,,,99,", "10,,,,7", "500,,3,,", "501,,,98,", "510,,,,7"]
    (tmp_path / "metrics.csv").write_text("\n".join(rows) + "\n")
    found = [(row["step"], row["phase"], row["td_loss"]) for row in read_losses(tmp_path, "tag")]
    assert found == [
        ("-500", "offline", "1"),
        ("0", "offline", "2.1235"),
        ("510", "online", "3"),
    ]  # nothing yet before 10
    assert read_losses(tmp_path)[0].keys() == {
        "script",
        "tag",
        "dataset",
        "seed",
        "step",
        "phase",
        "td_loss",
    }


def test_inspect_critic():
    sys.path.insert(0, str(ROOT / "benchmark"))
    from inspect_critic import returns_to_go

    returns = returns_to_go(
        np.array([1.0, 2.0, 4.0, 8.0]), np.array([0, 1, 0, 0]), np.array([2, 4]), 0.5
    )
    assert returns.tolist() == [2.0, 2.0, 8.0, 8.0]
    pendulum()
    folder = run(
        "--dataset-id", "test/pendulum/random-v0", *TINY, "--online-steps", 0, "--run-name", "one"
    )
    # A critic min(-|a|, 10 + |a|), the targets' plus 2; and two policies, at 0 and at the border.
    state = torch.load(folder / "offline.pt", weights_only=True)
    agent = iql.Agent(4, 1, iql.Args(compile=False), torch.device("cpu"))
    agent.load_state_dict(state["agent"])
    for critic, above in ((agent.critic, 0.0), (agent.critic_target, 2.0)):
        for parameter in critic.parameters():
            parameter.data.zero_()
        first, second, last = critic.weights
        first.data[:, 4, :2] = torch.tensor([1.0, -1.0])  # its input: 4 observations, 1 action
        second.data[:, :2, :2] = torch.eye(2)
        last.data[0, :2], last.data[1, :2] = -1.0, 1.0
        critic.biases[2].data[:, 0, 0] = torch.tensor([above, above + 10])
    for parameter in agent.actor.mean.parameters():
        parameter.data.zero_()
    data = minari.load_dataset("test/pendulum/random-v0")
    size = np.abs(np.concatenate([e.actions for e in data.iterate_episodes()])).mean() / 3
    for bias, share in ((0.0, 0.0), (9.0, 1.0)):
        agent.actor.mean[4].bias.data.fill_(bias)
        torch.save(state | {"agent": dict(agent.state_dict())}, "made.pt")
        out = tool(ROOT / "benchmark/inspect_critic.py", "made.pt", "--out", "out.json")
        assert "effective sample size" in out
        numbers = json.loads(Path("out.json").read_text())
        assert numbers["random above the policy"] == share
        assert numbers["mean q"] == pytest.approx(2 - size, rel=1e-4)


@pytest.mark.parametrize("name", ["iql", "o3f_lapo"])
def test_inspect_search(name):
    pendulum()
    folder = run(
        *["--dataset-id", "test/pendulum/random-v0", *TINY, "--online-steps", 0],
        *["--run-name", "one", *SMALL.get(name, [])],
        script=importlib.import_module(name),
    )
    options = ["--sigma", 0, "--episodes", 2, "--states", 5, "--horizon", 3, "--out", "out.json"]
    tool(ROOT / "benchmark/inspect_search.py", folder / "offline.pt", *options)
    sampled = json.loads(Path("out.json").read_text())
    options += ["--center", "mean"]
    tool(ROOT / "benchmark/inspect_search.py", folder / "offline.pt", *options)
    numbers = json.loads(Path("out.json").read_text())
    assert sampled.keys() == numbers.keys()
    assert (sampled["plain"] == numbers["plain"]) == (name == "o3f_lapo")  # it draws no actions
    # Without noise, all ways to choose are the policy itself.
    assert numbers["plain"] == numbers["noise 0"] == numbers["o3f 0"] > 0
    # The simulator's state has been put back before each action.
    gains = [value for name, value in numbers.items() if "predicted" in name or "measured" in name]
    assert gains == [0.0] * 4


def benchmark_of(name: str):
    sys.path.insert(0, str(ROOT / "benchmark"))
    return importlib.import_module(name)


def test_inspect_search_plays_every_way_to_choose(monkeypatch):
    pendulum()
    folder = run(
        "--dataset-id", "test/pendulum/random-v0", *TINY, "--online-steps", 0, "--run-name", "one"
    )
    inspect_search = benchmark_of("inspect_search")
    explore, played = inspect_search.o3f.Agent.explore, []

    def exploring(self, obs):
        played.append((self.args.exploration, self.args.sigma))
        return explore(self, obs)

    monkeypatch.setattr(inspect_search.o3f.Agent, "explore", exploring)
    options = inspect_search.Args(str(folder / "offline.pt"), sigma=(0.1, 0.2), episodes=2)
    inspect_search.main(options)
    arms = [("plain", 0.0)]
    arms += [("noise", 0.1), ("o3f", 0.1), ("noise", 0.2), ("o3f", 0.2)]
    assert list(dict.fromkeys(played)) == arms


class Counting:
    """An environment whose k-th step pays k, and one more if the action was 1."""

    def __init__(self, steps):
        self.unwrapped, self.steps = self, steps

    def reset(self, seed):
        self.count = 0
        return np.zeros(1, np.float32), {}

    def set_state(self, position, velocity):
        self.placed = position, velocity

    def step(self, action):
        self.count += 1
        info = {"episode": {"r": 5.0}} if self.count == self.steps else {}
        reward = self.count + float(action[0] == 1)
        return np.zeros(1, np.float32), reward, self.count == self.steps, False, info


@pytest.mark.filterwarnings("ignore:invalid value")  # equal states have no correlation
def test_inspect_search_discounts_what_it_measures():
    inspect_search = benchmark_of("inspect_search")
    env, ones = Counting(3), torch.ones(1)
    agent = SimpleNamespace(args=SimpleNamespace(exploration="o3f", gamma=0.5))
    agent.explore = lambda obs: ones * float(agent.args.exploration == "o3f")
    agent.critic = lambda obs, actions: actions.sum(-1).expand(2, -1) + torch.tensor([[1.0], [3.0]])
    start = np.zeros(1, np.float32), "position", "velocity"
    for horizon, total in ((0, 2.0), (1, 2 + 0.5 * 2), (9, 2 + 0.5 * 2 + 0.25 * 3)):
        assert inspect_search.discounted(agent, env, 10.0, start, ones, horizon) == 10 * total
    assert env.placed == ("position", "velocity")
    options = SimpleNamespace(horizon=1)
    numbers = inspect_search.single_actions(agent, env, 10.0, [start] * 2, options)
    assert (numbers["o3f predicted"], numbers["o3f measured"]) == (1.0, 10.0)
    assert (numbers["noise predicted"], numbers["noise measured"]) == (0.0, 0.0)


def test_lapo_values_of_an_episode():
    """Rewards 1, 2, 3 that are doubled and lose 1; V is 7 everywhere."""
    lapo_values = benchmark_of("lapo_values")
    args = SimpleNamespace(gamma=0.5, reward_bias=-1.0)
    agent = SimpleNamespace(args=args, normalize_obs=lambda obs: obs)
    agent.act = lambda obs, deterministic: torch.zeros(1)
    agent.value = lambda obs: torch.full((len(obs), 1), 7.0)
    numbers = lapo_values.over_episodes(agent, Counting(3), 2.0, 2)
    followed = [1 + 0.5 * 3 + 0.25 * 5, 3 + 0.5 * 5, 5.0]
    assert numbers["episodes: return that followed"] == pytest.approx(np.mean(followed))
    assert (numbers["episodes: V"], numbers["episodes: return in all"]) == (7.0, 5.0)


def test_lapo_values():
    """Two updates of each variant; and what the critics see where the decoder leaves the box."""
    sys.path.insert(0, str(ROOT / "benchmark"))
    import lapo_values

    options = ["--dataset-id", "o2o/pointmaze/umaze-tiny-v0", "--offline-steps", 2, "--no-compile"]
    out = tool(ROOT / "benchmark/lapo_values.py", *options, "--episodes", 1, "--out", "values.csv")
    rows = Path("values.csv").read_text().splitlines()[1:]
    assert len(rows) == 44 and out.count("recorded return") == 4
    assert lapo_values.counted(300, terminated=False) == 200
    assert lapo_values.counted(50, terminated=True) == 50
    wrong = [row for row in rows if not np.isfinite(float(row.rpartition(",")[2]))]
    assert all("how far outside" in row for row in wrong)  # there may be none
    args = lapo_values.o3f_lapo.Args(compile=False, num_critics=2)
    obs, latent = torch.zeros(1, 3), torch.zeros(1, 4)
    box = torch.tensor([[2.0, -0.25]])  # (1 - 0.5) / 0.25 is the end of the box
    for variant in ("clipped targets", "clipped"):
        agent = lapo_values.VARIANTS[variant][0](3, 2, args, torch.device("cpu"))
        agent.action_mean[:] = torch.tensor([0.5, 0.0])
        agent.action_std[:] = torch.tensor([0.25, 2.0])
        for last in (agent.vae_target.decoder[-1], agent.vae.decoder[-1]):
            last.weight.data.zero_()
            last.bias.data[:] = torch.tensor([9.0, -0.25])
        assert torch.equal(agent.policy_q(obs, latent), agent.q_target(obs, box).amin(0))
        loss_sees = box if variant == "clipped" else torch.tensor([[9.0, -0.25]])
        assert torch.equal(agent.vae_target.decode(obs, latent), loss_sees)
        assert agent.vae.decode(obs, latent).tolist() == [[9.0, -0.25]]  # it learns as before


def test_inspect_maze():
    options = [
        "--hidden",
        8,
        "--offline-steps",
        2,
        "--online-steps",
        0,
        "--eval-episodes",
        1,
        "--no-compile",
    ]
    tool(
        ROOT / "cal_ql.py", "--dataset-id", "o2o/pointmaze/large-v0", *options, "--run-name", "one"
    )
    out = tool(
        ROOT / "benchmark/inspect_maze.py", "runs/one/offline.pt", "--episodes", 2
    ).splitlines()[-3:]
    assert all(line.startswith(("failed after 600: (", "goal after ")) for line in out[:2]), out
    assert out[2] == "Q of never reaching the goal: -1000"


def test_plot_of_the_learner_alone():
    header = "script,tag,dataset,seed,step,phase,policy,return,score,success,episodes"
    rows = ["0,offline,actor,5,50,,2", "10,online,actor,6,60,,2", "10,online,learner,2,20,,2"]
    Path("both.csv").write_text(
        "\n".join([header, *(f"jsrl_finetune.py,,test/x/y-v0,0,{row}" for row in rows)]) + "\n"
    )
    for policy, figures in (
        (
            "actor",
            "50.0 after the offline phase, 60.0 after 10 steps of interaction, so 10.0 better",
        ),
        (
            "learner",
            "50.0 after the offline phase, 20.0 after 10 steps of interaction, so 30.0 worse",
        ),
    ):
        assert figures in tool(
            ROOT / "benchmark/plot.py", "both.csv", "--out", "both.png", "--policy", policy
        )


def test_speed_of_the_cql_family(monkeypatch):
    monkeypatch.setenv("TORCHDYNAMO_DISABLE", "1")  # compiling would take a minute
    for flags in ([], ["--wsrl"]):
        out = tool(ROOT / "benchmark/speed_cql.py", "--blocks", 1, "--updates-per-block", 1, *flags)
        assert out.count("| ms min | median | max |") == (2 if flags else 1)
        assert "| 1.00 | 1.00 | 1.00 |" in out  # the first one's ratio to itself


def test_speed_of_lapo(monkeypatch):
    monkeypatch.setenv("TORCHDYNAMO_DISABLE", "1")
    flags = ["--blocks", 2, "--updates-per-block", 1, "--out", "speed.csv"]
    Path("speed.csv").write_text("program,name,block,ms\niql.py,twin,0,1\no3f_lapo.py,old,0,1\n")
    out = tool(ROOT / "benchmark/speed_lapo.py", *flags)
    assert "| twin, highest |" in out
    assert "| 1.00 | 1.00 | 1.00 |" in out
    rows = [line.split(",")[:2] for line in Path("speed.csv").read_text().splitlines()]
    assert rows[1] == ["iql.py", "twin"]  # other programs keep theirs
    assert len(rows) == 1 + 1 + 3 * 2
