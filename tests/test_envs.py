"""Every environment family that the settings name constructs and steps with the pinned packages."""

import dataclasses
import importlib
import json

import gymnasium as gym
import numpy as np
import pytest
from conftest import episode, make_dataset

import iql

FAMILIES = {
    "hopper": "Hopper-v5",
    "halfcheetah": "HalfCheetah-v5",
    "walker2d": "Walker2d-v5",
    "ant": "Ant-v5",
    "antmaze": "AntMaze_UMaze-v4",
    "pointmaze": "PointMaze_Large-v3",
    "pen": "AdroitHandPen-v1",
    "door": "AdroitHandDoor-v1",
    "hammer": "AdroitHandHammer-v1",
    "relocate": "AdroitHandRelocate-v1",
    "kitchen": "FrankaKitchen-v1",
}


def test_every_family_of_the_settings_is_here():
    assert set(FAMILIES) == set(iql.PAPER_SETTINGS)


@pytest.mark.parametrize("family", FAMILIES)
def test_family(family, capfd):
    """Record random steps, load them as the scripts do, and step the environment built for them."""
    gym.register_envs(importlib.import_module("gymnasium_robotics"))
    env = gym.make(FAMILIES[family], disable_env_checker=True)
    observations, actions, rewards = [env.reset(seed=0)[0]], [], []
    for _ in range(3):
        actions.append(env.action_space.sample())
        obs, reward, *_ = env.step(actions[-1])
        observations.append(obs)
        rewards.append(reward)
    recorded = episode(
        0, column(env.observation_space, observations), np.array(actions), rewards, False
    )
    dataset_id = make_dataset(f"test/{family}/random-v0", [recorded], env.spec)
    capfd.readouterr()
    args = dataclasses.replace(
        iql.Args(), dataset_id=dataset_id, batch_size=2, **iql.PAPER_SETTINGS[family]
    )
    iql.set_up(args)
    columns, _, task, _ = iql.load_data(args)
    wrapped = iql.make_env(task)
    obs, _ = wrapped.reset(seed=0)
    assert obs.dtype == np.float32
    assert obs.shape == columns["obs"][0].shape
    assert np.allclose(obs, columns["obs"][0], atol=1e-5)
    for action in columns["actions"]:
        obs, *_ = wrapped.step(action)
        assert wrapped.action_space.contains(action)
    assert obs.shape == columns["obs"][0].shape
    assert capfd.readouterr().err == ""


def column(space: gym.Space, observations: list):
    if isinstance(space, gym.spaces.Dict):
        return {key: column(sub, [obs[key] for obs in observations]) for key, sub in space.items()}
    return np.array(observations)


def test_kitchen_pays_as_its_data_say():
    """D4RL/kitchen was recorded with these arguments: a subtask that stays done pays on."""
    said = {"remove_task_when_completed": False, "terminate_on_tasks_completed": False}
    said["tasks_to_complete"] = ["microwave", "kettle"]
    task = iql.registered(json.dumps({"id": "FrankaKitchen-v1", "kwargs": said}))
    env = iql.make_env(task)
    for name, value in said.items():
        if name != "tasks_to_complete":
            assert getattr(env.unwrapped, name) == value
    assert env.unwrapped.goal.keys() == {"microwave", "kettle"}
