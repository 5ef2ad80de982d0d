"""Whatever is wrong with the input: one sentence, exit status 2, nothing half-written."""

import builtins
import importlib.util
import json
import shutil
from pathlib import Path

import minari
import numpy as np
import pytest
import torch
from conftest import TINY, episode, make_dataset, pendulum, refused, run
from gymnasium.spaces import Box, Dict, Discrete

import iql

DATA = ["--dataset-id", "test/pendulum/random-v0"]


def one_episode(observations=None, actions=None, rewards=None):
    observations = np.zeros((41, 4)) if observations is None else observations
    actions = np.zeros((40, 1), np.float32) if actions is None else actions
    return [episode(0, observations, actions, np.ones(40) if rewards is None else rewards, True)]


def test_unknown_dataset(capsys, monkeypatch):
    pendulum()

    def no_network(dataset_id):
        raise ConnectionError("Name or service not known\nand more")

    monkeypatch.setattr(minari, "download_dataset", no_network)
    line = refused(capsys, "--dataset-id", "D4RL/hoper/medium-v0")
    assert "o2o/hopper/medium-v0" in line
    assert "test/pendulum/random-v0" in line
    assert "minari download D4RL/hoper/medium-v0" in line
    assert "Name or service not known" in line
    assert "and more" not in line


def test_malformed_dataset_id(capsys):
    assert "'nonsense!' is no Minari id" in refused(capsys, "--dataset-id", "nonsense!")


def test_corrupted_dataset(capsys, tmp_path):
    pendulum()
    path = tmp_path / "minari/test/pendulum/random-v0/data/main_data.hdf5"
    path.write_bytes(path.read_bytes()[:5000])
    assert "cannot read the data set test/pendulum/random-v0" in refused(capsys, *DATA, *TINY)
    (path.parent / "metadata.json").write_text("{")
    assert "cannot read the data set test/pendulum/random-v0" in refused(capsys, *DATA, *TINY)


def test_empty_dataset(capsys):
    make_dataset("test/empty/a-v0", [])
    assert "holds no transition" in refused(capsys, "--dataset-id", "test/empty/a-v0", *TINY)


@pytest.mark.parametrize("where", ["observations", "actions", "rewards"])
def test_nan_and_infinity(capsys, where):
    arrays = {
        "observations": np.zeros((41, 4)),
        "actions": np.zeros((40, 1), np.float32),
        "rewards": np.ones(40),
    }
    arrays[where][7] = np.nan if where != "rewards" else np.inf
    make_dataset("test/nan/a-v0", one_episode(**arrays))
    line = refused(capsys, "--dataset-id", "test/nan/a-v0", *TINY)
    assert f"holds NaN or infinity in its {'obs' if where == 'observations' else where}" in line


@pytest.mark.parametrize(
    ("space", "name", "words"),
    [
        (Discrete(3), "action_space", "actions must be vectors"),
        (Box(-np.inf, np.inf, (1,)), "action_space", "bounded Box"),
        (Discrete(3), "observation_space", "observations must be vectors"),
        (Box(0, 255, (8, 8, 3), np.uint8), "observation_space", "observations must be vectors"),
        (Box(0, 255, (8, 8), np.uint8), "observation_space", "observations must be vectors"),
        (
            Dict({"camera": Box(0, 255, (8, 8, 3), np.uint8)}),
            "observation_space",
            "observations must be vectors",
        ),
    ],
)
def test_discrete_and_image_spaces(capsys, space, name, words):
    observations = actions = None
    if isinstance(space, Dict):
        observations = {"camera": np.zeros((41, 8, 8, 3), np.uint8)}
    elif name == "observation_space":
        observations = np.zeros((41, *space.shape), space.dtype)
    elif isinstance(space, Discrete):
        actions = np.zeros(40, int)
    make_dataset(
        "test/spaces/a-v0", one_episode(observations, actions), **{name: space}, jpeg_encoding=False
    )
    assert words in refused(capsys, "--dataset-id", "test/spaces/a-v0", *TINY)


def test_data_and_environment_that_do_not_match(capsys):
    spaces = {"observation_space": Box(-1, 1, (4,)), "action_space": Box(-1, 1, (1,))}
    make_dataset("test/hopper/a-v0", one_episode(), env="Hopper-v5", **spaces)
    line = refused(capsys, "--dataset-id", "test/hopper/a-v0", *TINY)
    assert "Hopper-v5 has 11 observation and (3,) action entries" in line
    assert "the data have 4 and (1,)" in line


def test_dataset_without_environment(capsys):
    make_dataset(
        "test/none/a-v0",
        one_episode(),
        env=None,
        observation_space=Box(-1, 1, (4,)),
        action_space=Box(-1, 1, (1,)),
    )
    assert "names no environment" in refused(capsys, "--dataset-id", "test/none/a-v0", *TINY)


def test_environment_that_cannot_be_built(capsys):
    pendulum()
    path = iql.minari.storage.get_dataset_path("test/pendulum/random-v0") / "data/metadata.json"
    metadata = json.loads(path.read_text())
    spec = json.loads(metadata["env_spec"]) | {"kwargs": {"gravity": 3}}  # no such argument
    path.write_text(json.dumps(metadata | {"env_spec": json.dumps(spec)}))
    line = refused(capsys, *DATA, *TINY)
    assert "cannot build InvertedPendulum-v5" in line


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--reward-scale", 0], "--reward-scale must not be 0"),
        (
            ["--reward-scale", "nan"],
            "--reward-scale must be between -1000000.0 and 1000000.0, not nan",
        ),
        (
            ["--reward-bias", "inf"],
            "--reward-bias must be between -1000000.0 and 1000000.0, not inf",
        ),
        (["--gamma", "1.5"], "--gamma must be between 0.0 and 1.0, not 1.5"),
        (["--tau", "2"], "--tau must be between 0.0 and 1.0, not 2.0"),
        (["--gamma", "-0.1"], "--gamma must be between 0.0 and 1.0, not -0.1"),
        (["--learning-rate", "-1"], "--learning-rate must be between 0.0 and 1.0"),
        (["--beta", "nan"], "--beta must be between 0.0 and"),
        (["--num-critics", 0], "--num-critics must be between 1 and"),
        (["--offline-steps", -1], "--offline-steps must be between 0 and"),
        (["--online-steps", -1], "--online-steps must be between 0 and"),
        (["--seed", -1], "--seed must be between 0 and"),
        (["--seed", 2**63], "--seed must be between 0 and"),
        (["--eval-every", 0], "--eval-every must be between 1 and"),
        (["--eval-episodes", 0], "--eval-episodes must be between 1 and"),
        (["--batch-size", 0], "--batch-size must be between 1 and"),
        (["--checkpoint-every", 0], "--checkpoint-every must be between 1 and"),
        (["--batch-size", 100_000], "--batch-size 100000 is more than"),
        (["--device", "cuda"], "torch finds no CUDA device"),
    ],
)
def test_arguments(capsys, flags, words, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    pendulum()
    assert words in refused(capsys, *DATA, *TINY, *flags)


def test_returns_that_are_all_the_same(capsys):
    make_dataset("test/same/a-v0", one_episode())
    assert "same return" in refused(
        capsys, "--dataset-id", "test/same/a-v0", *TINY, "--normalize-returns"
    )


def test_missing_optional_package(capsys, monkeypatch):
    pendulum()
    find = importlib.util.find_spec
    without = lambda name, *rest: None if name == "wandb" else find(name, *rest)  # noqa: E731
    monkeypatch.setattr(importlib.util, "find_spec", without)
    assert "pip install wandb" in refused(capsys, *DATA, *TINY, "--track")


def test_run_directory_that_is_taken_or_not_writable(capsys, monkeypatch, tmp_path):
    pendulum()
    (tmp_path / "runs/taken").mkdir(parents=True)
    assert "runs/taken exists" in refused(capsys, *DATA, *TINY, "--run-name", "taken")
    (tmp_path / "file").write_text("")
    assert "cannot write to file/x" in refused(
        capsys, *DATA, *TINY, "--run-dir", "file", "--run-name", "x"
    )
    opened = builtins.open  # root may write anywhere, so permission is taken away by hand

    def denied(path, *rest, **kwargs):
        if str(path).endswith("metrics.csv"):
            raise PermissionError(13, "Permission denied")
        return opened(path, *rest, **kwargs)

    monkeypatch.setattr(builtins, "open", denied)
    with pytest.raises(SystemExit):
        run(*DATA, *TINY, "--run-name", "denied")
    assert "Permission denied" in capsys.readouterr().err
    assert not Path("runs/denied").exists()


@pytest.fixture
def finished():
    pendulum()
    return run(*DATA, *TINY, "--online-steps", 0, "--run-name", "finished")


def edited(source, target, **changes):
    """A copy of a checkpoint with other entries."""
    torch.save(torch.load(source, weights_only=True) | changes, target)
    return target


def test_checkpoints_that_do_not_fit(finished, capsys, tmp_path):
    offline, latest = finished / "offline.pt", finished / "latest.pt"
    start = [*DATA, *TINY, "--offline-checkpoint"]
    assert "missing" in refused(capsys, *start, "nowhere/offline.pt")
    (tmp_path / "torn.pt").write_bytes(offline.read_bytes()[:3000])
    assert "damaged" in refused(capsys, *start, "torn.pt")
    torch.save([1, 2], "list.pt")
    assert "no checkpoint of these scripts" in refused(capsys, *start, "list.pt")
    assert "its networks is sac, not iql" in refused(
        capsys, *start, edited(offline, "sac.pt", networks="sac")
    )
    pendulum("test/pendulum/other-v0")
    line = refused(
        capsys, "--dataset-id", "test/pendulum/other-v0", *TINY, "--offline-checkpoint", offline
    )
    assert "its dataset_id is test/pendulum/random-v0, not test/pendulum/other-v0" in line
    assert "its reward_bias is 0.0, not -1.0" in refused(
        capsys, *start, offline, "--reward-bias", "-1"
    )
    assert "critic.weights.0 is torch.float32 (2, 5, 256)" in refused(
        capsys, *start, offline, "--num-critics", 5
    )
    assert "only a larger --online-steps can extend" in refused(
        capsys, "--resume", latest
    )  # it is complete
    assert "can be resumed" in refused(capsys, "--resume", offline)
    goal = torch.load(offline, weights_only=True)["args"] | {"success_ends_episode": True}
    assert "its success_ends_episode is True, not False" in refused(
        capsys, *start, edited(offline, "goal.pt", args=goal)
    )
    older = edited(
        latest, "older.pt", args={"seed": 0, "expectancy": 0.7}, phase="online"
    )  # a flag that is no more
    assert "older.pt is of another version of iql.py: ['actor_lr_decay'" in refused(
        capsys, "--resume", older
    )
    assert "belongs to pex.py" in refused(
        capsys, "--resume", edited(latest, "pex.pt", script="pex.py", phase="online")
    )


def test_checkpoint_never_runs_code(finished, capsys):
    class Evil:
        def __reduce__(self):
            return shutil.rmtree, ("runs",)

    torch.save({"networks": "iql", "agent": Evil()}, "evil.pt")
    assert "damaged" in refused(capsys, *DATA, *TINY, "--offline-checkpoint", "evil.pt")
    assert finished.exists()


def test_resumed_run_keeps_its_arguments(finished, capsys):
    stopped = edited(finished / "latest.pt", finished / "stopped.pt", phase="offline", step=-10)
    assert "--beta 1.0: the run to resume has 3.0" in refused(
        capsys, "--resume", stopped, "--beta", "1"
    )
    name = torch.load(stopped, weights_only=True)["args"]["run_name"]
    assert f"--run-name new: the run to resume has {name}" in refused(
        capsys, "--resume", stopped, "--run-name", "new"
    )
    assert (
        f"--run-dir elsewhere: a run goes on where its latest.pt is, in {Path('runs').resolve()}"
        in (refused(capsys, "--resume", stopped, "--run-dir", "elsewhere"))
    )
    iql.parse_args(["--resume", str(stopped), "--run-dir", "runs"])
    args = iql.parse_args(["--resume", str(stopped), "--device", "cpu", "--batch-size", "16"])
    assert (args.device, args.beta) == ("cpu", 3.0)
