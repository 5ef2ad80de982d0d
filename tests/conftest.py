"""Small data sets and helpers.

Nothing here needs a network; everything runs on one thread, so that bytes can be compared.
"""

import os
import signal
import sys
import types
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"  # an id that is not here is refused at once, without a network
ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tools")]

import filelock
import gymnasium as gym
import minari
import numpy as np
import pytest
import torch
from minari.data_collector import EpisodeBuffer

import iql

torch.set_num_threads(1)
# A file of a user's own may lie beside them: it has no such line.
SCRIPTS = [p for p in sorted(ROOT.glob("*.py")) if "\n# ==== below this line" in p.read_text()]
TASK = "InvertedPendulum-v5"  # 4 observations, 1 action in [-3, 3], short episodes that really end
TINY = [
    "--batch-size",
    "16",
    "--eval-episodes",
    "2",
    "--eval-every",
    "30",
    "--checkpoint-every",
    "25",
]
TINY += ["--offline-steps", "60", "--online-steps", "90", "--no-compile"]
# What makes a script small and lets it learn online within TINY's 90 steps, where it needs that.
SMALL = {
    "cal_ql": ["--hidden", "32"],
    "jsrl_finetune": ["--calibration-episodes", "2", "--min-episodes", "2"],
    "o3f": ["--num-candidates", "5"],
    "o3f_lapo": ["--num-candidates", "5", "--utd-ratio", "2"],
    "pex": ["--warmup-steps", "20"],
    "porl": ["--hidden", "32", "--num-critics", "3", "--presample-steps", "40", "--utd-ratio", "2"],
    "wsrl": ["--hidden", "32", "--num-critics", "3", "--warmup-steps", "20", "--utd-ratio", "2"],
}


@pytest.fixture(autouse=True)
def clean(monkeypatch, tmp_path):
    """A Minari folder and a working directory of its own, the signal handlers as they were."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(iql, "LOG_EVERY", 10)
    pid, end_process = os.getpid(), os._exit

    def leave(status):  # a signal handler ends this process only as far as a test can see it
        if os.getpid() == pid:
            raise SystemExit(status)
        end_process(status)

    monkeypatch.setattr(os, "_exit", leave)
    torch.set_float32_matmul_precision("highest")  # a run in an earlier test has lowered it
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    torch.set_flush_denormal(False)
    for number, handler in handlers.items():
        signal.signal(number, handler)


def episode(
    number: int, observations, actions, rewards, terminated: bool, infos=None
) -> EpisodeBuffer:
    """One recorded episode; its last step is terminated or truncated."""
    ends = np.zeros(len(rewards), bool)
    if len(ends):
        ends[-1] = True
    never = np.zeros(len(rewards), bool)
    flags = {
        "terminations": ends if terminated else never,
        "truncations": never if terminated else ends,
    }
    rewards = np.asarray(rewards, np.float64)
    return EpisodeBuffer(
        id=number, observations=observations, actions=actions, rewards=rewards, infos=infos, **flags
    )


def make_dataset(dataset_id: str, episodes: list[EpisodeBuffer], env=TASK, **kwargs) -> str:
    minari.create_dataset_from_buffers(dataset_id, episodes, env=env, data_format="hdf5", **kwargs)
    return dataset_id


def pendulum(dataset_id: str = "test/pendulum/random-v0", episodes: int = 20, **kwargs) -> str:
    """A data set of random behaviour in TASK."""
    env, rng, recorded = gym.make(TASK), np.random.default_rng(0), []
    for number in range(episodes):
        observations, actions, rewards, done = [env.reset(seed=number)[0]], [], [], False
        while not done:
            actions.append(rng.uniform(-3, 3, 1).astype(np.float32))
            obs, reward, terminated, truncated, _ = env.step(actions[-1])
            observations.append(obs)
            rewards.append(reward)
            done = terminated or truncated
        recorded.append(episode(number, np.array(observations), np.array(actions), rewards, True))
    return make_dataset(dataset_id, recorded, ref_min_score=5.0, ref_max_score=1000.0, **kwargs)


def start(script, args) -> None:
    """Run a script's main(args) in this process; its lock is released, as when a process ends."""
    locks = []

    def remembered(path):
        locks.append(filelock.FileLock(path))
        return locks[-1]

    script.filelock = types.SimpleNamespace(FileLock=remembered, Timeout=filelock.Timeout)
    try:
        script.main(args)
    finally:
        script.filelock = filelock
        for lock in locks:
            lock.release(force=True)


def run(*flags: str, script=iql) -> Path:
    """Run iql.py, or another script, in this process; returns the run's directory."""
    args = script.parse_args([str(flag) for flag in flags])
    start(script, args)
    return Path(args.run_dir, args.run_name)


def refused(capsys, *flags: str) -> str:
    """Run iql.py, expect exit status 2 and one line on stderr; returns that line.

    Nothing may be left behind.
    """
    before = sorted(Path(".").rglob("runs/**"))
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        run(*flags)
    lines = capsys.readouterr().err.strip().splitlines()
    assert stop.value.code == 2
    assert len(lines) == 1, lines
    assert sorted(Path(".").rglob("runs/**")) == before
    return lines[0]
