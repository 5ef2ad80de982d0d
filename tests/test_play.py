"""tools/play.py: what it plays is what the scripts evaluate, and bad input gets one sentence."""

import csv
import importlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import gymnasium as gym
import numpy as np
import play
import pytest
import torch
from conftest import ROOT, SCRIPTS, TINY, episode, make_dataset, run

import iql

DATA = "test/dot/random-v0"
MODULE = '''
import gymnasium as gym
import numpy as np


class Dot(gym.Env):
    """Stay at the origin. A picture shows the number of the step."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}
    observation_space = gym.spaces.Box(-10, 10, (2,), np.float32)
    action_space = gym.spaces.Box(-2, 2, (2,), np.float32)

    def __init__(self, render_mode=None):
        self.render_mode = render_mode

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        self.steps, self.place = 0, self.np_random.normal(size=2).astype(np.float32)
        return self.place, {}

    def step(self, action):
        self.steps += 1
        self.place = np.clip(self.place + 0.1 * np.float32(action), -10, 10)
        distance = float(np.linalg.norm(self.place))
        return self.place, -distance, False, False, {"success": distance < 0.5}

    def render(self):
        return np.full((32, 32, 3), self.steps, np.uint8)


gym.register("Dot-v0", "dots:Dot", max_episode_steps=8)
'''


@pytest.fixture
def trained(monkeypatch, tmp_path):
    """A function that trains a script on an environment of our own; it returns the run's folder."""
    Path("dots.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(iql, "SCRIPT", iql.SCRIPT)  # play.py puts its own name there
    importlib.import_module("dots")
    env, rng, recorded = gym.make("Dot-v0"), np.random.default_rng(0), []
    for number in range(20):
        observations, actions, rewards = [env.reset(seed=number)[0]], [], []
        for _ in range(8):
            actions.append(rng.uniform(-2, 2, 2).astype(np.float32))
            obs, reward, *_ = env.step(actions[-1])
            observations.append(obs)
            rewards.append(reward)
        recorded.append(episode(number, np.array(observations), np.array(actions), rewards, False))
    make_dataset(DATA, recorded, env="Dot-v0", ref_min_score=-30.0, ref_max_score=0.0)

    def train(script="iql", *flags):
        module = importlib.import_module(script)
        data = ["--dataset-id", DATA, "--env-module", "dots", "--run-name", script]
        return run(*data, *TINY, *flags, script=module)

    return train


def played(capsys, *flags) -> list[dict[str, float]]:
    """What play.py prints of each episode, and as the last entry of the means."""
    capsys.readouterr()
    args = play.tyro.cli(
        play.Args,
        args=[str(flag) for flag in ("--env-module", "dots", *flags)],
        config=(play.tyro.conf.PositionalRequiredArgs,),
    )
    play.main(args)
    out = capsys.readouterr()
    assert out.err == ""
    found = []
    for line in out.out.splitlines():
        if line.startswith(("episode", "mean")):
            words = line.split(": ")[1].split(";")[0].split(", ")
            found.append({word.split()[0]: float(word.split()[1]) for word in words})
    return found


def evaluated(folder: Path, step: int, policy: str = "actor") -> list[dict[str, str]]:
    rows = list(csv.DictReader(open(folder / "eval.csv")))
    return [row for row in rows if int(row["step"]) == step and row["policy"] == policy]


# The gate: after three episodes of the guide it goes to stage 1, and there it stays.
GATE = ["--calibration-episodes", 3, "--min-episodes", 3, "--stages", 2, "--init", "cold"]
GATE += ["--z-advance", 100, "--z-retreat", 100]
FLAGS = {"pex": ["--warmup-steps", 10], "jsrl_finetune": GATE}
FLAGS |= {"cal_ql": ["--hidden", 8], "wsrl": ["--hidden", 8, "--warmup-steps", 10]}
FLAGS |= {"porl": ["--hidden", 8, "--presample-steps", 70], "o3f_lapo": ["--utd-ratio", 2]}


@pytest.mark.parametrize("script", [path.stem for path in SCRIPTS])
def test_plays_what_the_script_evaluates(script, trained, capsys):
    folder = trained(script, *FLAGS.get(script, []))
    for checkpoint, step in ((folder / "offline.pt", 0), (folder, 90)):
        rows = evaluated(folder, step)
        assert len(rows) == 2
        first, mean = played(capsys, checkpoint, "--seed", rows[0]["seed"], "--episodes", 1)
        assert first["return"] == pytest.approx(float(rows[0]["return"]), rel=1e-5), checkpoint
        assert first["length"] == 8
        assert first["success"] == float(rows[0]["success"])
        assert mean["score"] == pytest.approx(100 * (first["return"] + 30) / 30, rel=1e-4)
    if script == "jsrl_finetune":  # guide and learner together are not the learner
        assert evaluated(folder, 90, "learner")[0]["return"] != rows[0]["return"]
    if script == "pex":  # the composite's choice is the critic's: another critic chooses otherwise
        state = iql.load_checkpoint(str(folder / "latest.pt"))
        state["agent"]["critic.weights.2"].neg_()
        torch.save(state, "contrary.pt")
        contrary = played(capsys, "contrary.pt", "--episodes", 20)
        assert played(capsys, folder, "--episodes", 20) != contrary


@pytest.mark.parametrize("script", ["pex", "jsrl_finetune"])
def test_without_an_online_phase_the_offline_policy_plays(script, trained, capsys):
    folder = trained(script, *FLAGS[script], "--online-steps", 0)
    of_offline = played(capsys, folder / "offline.pt", "--episodes", 2)
    assert played(capsys, folder / "latest.pt", "--episodes", 2) == of_offline


def test_episodes_and_samples(trained, capsys):
    folder = trained()
    first = played(capsys, folder, "--episodes", 3)
    assert len(first) == 4
    assert first[3]["return"] == pytest.approx(np.mean([row["return"] for row in first[:3]]), 1e-4)
    assert played(capsys, folder, "--episodes", 2, "--seed", 1)[:2] == first[1:3]
    sampled = [played(capsys, folder, "--episodes", 3, "--stochastic") for _ in range(2)]
    assert sampled[0] == sampled[1]
    assert sampled[0] != first
    (folder / "latest.pt").unlink()  # then a run's offline.pt is played
    assert played(capsys, folder, "--episodes", 3) != first


class Writer(list):
    """What imageio gives for a video, as a list of pictures."""

    append_data = list.append
    close = list.copy


def test_video(trained, capsys, monkeypatch):
    folder = trained()
    files = sorted(Path(".").rglob("*"))
    opened = {}

    def get_writer(path, fps):
        opened[path, fps] = Writer()
        return opened[path, fps]

    monkeypatch.setattr(play.imageio, "get_writer", get_writer)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    with_film = played(capsys, folder, "--episodes", 2, "--video", "film.mp4")
    pictures = opened.pop(("film.mp4", 10))
    assert [int(picture[0, 0, 0]) for picture in pictures] == [*range(8), *range(8)]
    assert played(capsys, folder, "--episodes", 2) == with_film
    assert (
        sorted(Path(".").rglob("*")) == files
    )  # nothing but the video is written, and it by imageio


def test_real_video(trained, capsys):
    pytest.importorskip("imageio_ffmpeg")
    played(capsys, trained(), "--episodes", 1, "--video", "film.mp4")
    assert b"ftyp" in Path("film.mp4").read_bytes()[:16]


def refused(capsys, *flags) -> str:
    """play.py ends with status 2 and one line on stderr; the line is returned."""
    with pytest.raises(SystemExit) as stop:
        played(capsys, *flags)
    lines = capsys.readouterr().err.splitlines()
    assert stop.value.code == 2
    assert len(lines) == 1
    assert lines[0].startswith("play.py: ")
    return lines[0]


def test_bad_input(trained, capsys, monkeypatch):
    folder = trained()
    files = sorted(Path(".").rglob("*"))
    assert "missing" in refused(capsys, "nowhere.pt")
    assert "neither latest.pt nor offline.pt" in refused(capsys, "minari")
    assert "no checkpoint" in refused(capsys, "dots.py")
    assert "--episodes" in refused(capsys, folder, "--episodes", 0)
    assert "--seed" in refused(capsys, folder, "--seed", -1)
    assert "nothing_of_this_name" in refused(capsys, folder, "--env-module", "nothing_of_this_name")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "pip install" in refused(capsys, folder, "--video", "film.mp4")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    for path in ("film.avi", "nowhere/film.mp4"):
        assert path in refused(capsys, folder, "--video", path)
    monkeypatch.setattr(sys.modules["dots"].Dot, "render", lambda self: 1 / 0)
    assert "MUJOCO_GL" in refused(capsys, folder, "--video", "film.mp4")
    monkeypatch.delitem(gym.registry, "Dot-v0")
    assert "--env-module" in refused(capsys, folder)
    assert sorted(Path(".").rglob("*")) == files


def changed(key: str, value):
    def change(state):
        state[key] = value

    return change


def changed_args(**values):
    return lambda state: state["args"].update(values)


def not_a_number(state):
    state["agent"]["actor.log_std"].fill_(float("nan"))


CHECKPOINTS = {
    "a script elsewhere": (changed("script", "../evil.py"), "none of the scripts"),
    "a test": (changed("script", "conftest.py"), "none of the scripts"),
    "another script": (changed("script", "cal_ql.py"), "of another version"),
    "an argument too many": (changed_args(new=1), "of another version"),
    "an argument of another type": (changed_args(num_critics="2"), "--num-critics"),
    "another size": (changed("obs_dim", 10**12), "of another environment"),
    "another data set": (changed("dataset_id", "../elsewhere"), "no Minari id"),
    "no networks": (changed("agent", {}), "agent"),
    "NaN": (not_a_number, "actor.log_std"),
}


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_bad_checkpoints(name, trained, capsys):
    change, words = CHECKPOINTS[name]
    state = iql.load_checkpoint(str(trained() / "latest.pt"))
    change(state)
    torch.save(state, "bad.pt")
    Path("evil.py").write_text("raise RuntimeError('imported')")
    assert words in refused(capsys, "bad.pt")


def test_a_stranger_beside_the_scripts(trained, capsys, monkeypatch):
    """A file may name a script of ours, and nothing else that happens to lie in their folder."""
    state = iql.load_checkpoint(str(trained() / "latest.pt"))
    torch.save(state | {"script": "evil.py"}, "bad.pt")
    Path("evil.py").write_text("raise RuntimeError('imported')")
    monkeypatch.setattr(play, "ROOT", Path.cwd())
    monkeypatch.syspath_prepend(".")
    assert "none of the scripts" in refused(capsys, "bad.pt")


def test_bad_gate(trained, capsys):
    state = iql.load_checkpoint(str(trained("jsrl_finetune") / "latest.pt"))
    gate = state["agent"]["_extra_state"]
    for name, value in (("guide_lengths", [[1.0]]), ("stage", -1), ("stage", 10**400)):
        state["agent"]["_extra_state"] = gate | {name: value}
        torch.save(state, "bad.pt")
        assert name in refused(capsys, "bad.pt")


def test_module_of_a_checkpoint_is_not_imported(trained, capsys):
    """Only the command line names modules."""
    state = iql.load_checkpoint(str(trained() / "latest.pt"))
    state["args"]["env_module"] = "evil"
    torch.save(state, "bad.pt")
    Path("evil.py").write_text("raise RuntimeError('imported')")
    assert played(capsys, "bad.pt", "--episodes", 1)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals(number, trained):
    folder = trained()
    command = [sys.executable, ROOT / "tools/play.py", folder, "--env-module", "dots"]
    command += ["--episodes", "1000000"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ
    )
    while not process.stdout.readline().startswith("episode"):
        assert process.poll() is None
    process.send_signal(number)
    error = process.communicate(timeout=60)[1]
    assert (process.returncode, error) == (128 + number, "play.py: interrupted\n")
