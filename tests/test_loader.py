"""From Minari episodes to transitions: spaces, ends of episodes, rescaling, and the data's task."""

import dataclasses
import importlib
import json

import gymnasium as gym
import minari
import numpy as np
import pytest
import torch
from conftest import ROOT, TASK, episode, make_dataset, pendulum
from gymnasium.spaces import Box, Dict

import iql

VECTOR = Box(-np.inf, np.inf, (4,), np.float64)


def numbers(steps, width=4, start=0):
    return (np.arange((steps + 1) * width, dtype=np.float64) + start).reshape(steps + 1, width)


def recorded(steps, terminated, number=0, **kwargs):
    actions = np.linspace(-3, 3, steps, dtype=np.float32)[:, None]
    return episode(number, numbers(steps), actions, np.arange(steps) + 1.0, terminated, **kwargs)


def load(dataset_id, **settings):
    return iql.load_data(
        dataclasses.replace(iql.Args(), dataset_id=dataset_id, batch_size=1, **settings)
    )


def test_truncated_and_terminated_episodes_of_unequal_length():
    columns, ends, task, _ = load(
        make_dataset(
            "test/a/a-v0", [recorded(3, True), recorded(2, False, 1), recorded(1, True, 2)]
        )
    )
    assert ends.tolist() == [3, 5, 6]
    assert columns["terminations"].tolist() == [0, 0, 1, 0, 0, 1]
    assert columns["rewards"].tolist() == [1, 2, 3, 1, 2, 1]
    assert np.array_equal(columns["obs"][3:5], numbers(2)[:2])
    assert np.array_equal(
        columns["next_obs"][3:5], numbers(2)[1:]
    )  # the last step of a truncated episode is kept
    assert task.id == TASK
    assert all(column.dtype == np.float32 for column in columns.values())


def test_actions_are_rescaled_and_kept_inside_the_box():
    columns, *_ = load(make_dataset("test/a/a-v0", [recorded(3, True)]))
    assert columns["actions"][:, 0].tolist() == pytest.approx([-1 + 1e-5, 0, 1 - 1e-5], abs=1e-7)


def test_targets_of_a_two_step_mdp():
    """Both episodes reward 1, 2; one ends in truth, the other by the clock.

    Only the former loses its bootstrap.
    """
    columns, *_ = load(make_dataset("test/a/a-v0", [recorded(2, True), recorded(2, False, 1)]))
    buffer = iql.ReplayBuffer(columns, 0, torch.device("cpu"))
    agent = iql.Agent(
        4, 1, dataclasses.replace(iql.Args(), gamma=0.5, compile=False), torch.device("cpu")
    )
    parts = buffer.rows.split(buffer.widths, dim=1)
    batch = {
        name: part if shape else part[:, 0]
        for (name, shape), part in zip(buffer.shapes.items(), parts)
    }
    object.__setattr__(agent, "value", lambda obs: torch.full((len(obs), 1), 10.0))
    object.__setattr__(agent, "critic", lambda obs, actions: torch.zeros(1, len(obs)))
    expected = np.array([1 + 5, 2, 1 + 5, 2 + 5])
    assert agent.loss(batch)[1]["critic_loss"].item() == pytest.approx(np.mean(expected**2))


@pytest.mark.parametrize(
    "space",
    [
        VECTOR,
        Box(-1, 1, (2, 3), np.float32),
        Dict(
            {
                "observation": VECTOR,
                "achieved_goal": Box(-1, 1, (2,)),
                "desired_goal": Box(-1, 1, (2,)),
            }
        ),
        Dict({"b": Dict({"z": Box(-1, 1, (1,)), "a": Box(-1, 1, (3,))}), "a": VECTOR}),
    ],
)
def test_flatten_is_gymnasiums_flatten_for_one_and_for_many(space):
    space.seed(0)
    samples = [space.sample() for _ in range(3)]
    expected = np.stack([gym.spaces.flatten(space, sample) for sample in samples]).astype(
        np.float32
    )

    def column(sub, items):
        if isinstance(sub, Dict):
            return {key: column(sub[key], [item[key] for item in items]) for key in sub}
        return np.stack(items)

    assert np.array_equal(np.stack([iql.flatten(space, sample) for sample in samples]), expected)
    assert np.array_equal(iql.flatten(space, column(space, samples)), expected)


def test_nested_dict_observations_are_read():
    space = Dict(
        {
            "state": Dict(
                {"velocity": Box(-np.inf, np.inf, (1,)), "angle": Box(-np.inf, np.inf, (2,))}
            ),
            "goal": VECTOR,
        }
    )
    observations = {
        "state": {"velocity": numbers(3, 1), "angle": numbers(3, 2, 100)},
        "goal": numbers(3, 4, 200),
    }
    recording = episode(0, observations, np.zeros((3, 1), np.float32), np.ones(3), True)
    dataset = minari.load_dataset(make_dataset("test/n/n-v0", [recording], observation_space=space))
    columns, _ = iql.read_episodes(dataset, False)
    assert columns["obs"][1].tolist() == [204, 205, 206, 207, 102, 103, 1]
    assert columns["next_obs"][2].tolist() == [212, 213, 214, 215, 106, 107, 3]


@pytest.mark.parametrize("infos", [None, {"success": np.array([False, False, True, False, True])}])
def test_success_ends_the_episode(infos):
    rewards = [0, 1, 0, 1] if infos is None else [5, 5, 5, 5]
    recordings = [episode(0, numbers(4), np.zeros((4, 1), np.float32), rewards, False, infos)]
    failed = {"success": np.zeros(3, bool)} if infos else None
    recordings += [episode(1, numbers(2), np.zeros((2, 1), np.float32), [0, 0], False, failed)]
    dataset = minari.load_dataset(make_dataset("test/g/g-v0", recordings))
    columns, ends = iql.read_episodes(dataset, True)
    assert ends.tolist() == [2, 4]
    assert columns["terminations"].tolist() == [0, 1, 0, 0]
    assert len(iql.read_episodes(dataset, False)[0]["obs"]) == 6


def test_bundled_before_local(monkeypatch, tmp_path):
    pendulum("o2o/hopper/medium-v0", episodes=2)  # the same id in the local folder
    assert iql.find_dataset("o2o/hopper/medium-v0").total_steps == 100_000
    monkeypatch.setattr(iql, "BUNDLED", tmp_path / "nothing")
    assert iql.find_dataset("o2o/hopper/medium-v0").total_episodes == 2


BUNDLED = [  # transitions, and bounds of the mean score of their episodes
    ("o2o/hopper/medium-v0", 100_000, 20, 75),
    ("o2o/hopper/medium-replay-v0", 115_000, 5, 15),
    ("o2o/halfcheetah/medium-v0", 100_000, 20, 75),
    ("o2o/pointmaze/large-v0", 60_000, 0, 5),
    ("o2o/pointmaze/medium-play-v0", 60_000, 45, 60),
    ("o2o/pointmaze/medium-play-10k-v0", 10_000, 45, 60),
    ("o2o/pointmaze/umaze-v0", 3000, 35, 50),
    ("o2o/pointmaze/umaze-tiny-v0", 500, 60, 80),
]


def test_every_bundled_data_set_is_tested_and_described():
    folders = (ROOT / "datasets").glob("**/metadata.json")
    names = sorted(str(path.parents[1].relative_to(ROOT / "datasets")) for path in folders)
    assert names == sorted(dataset_id for dataset_id, *_ in BUNDLED)
    for page in ("README.md", "datasets/README.md"):
        text = (ROOT / page).read_text()
        assert [name for name in names if f"`{name}`" not in text] == [], page


@pytest.mark.parametrize(("dataset_id", "transitions", "low", "high"), BUNDLED)
def test_bundled_datasets(dataset_id, transitions, low, high):
    settings = iql.PAPER_SETTINGS[dataset_id.split("/")[1]]
    args = dataclasses.replace(iql.Args(), dataset_id=dataset_id, **settings)
    columns, ends, task, references = iql.load_data(args)
    assert transitions * 0.98 <= ends[-1] <= transitions  # a goal may cut an episode
    returns = np.add.reduceat(columns["rewards"], np.r_[0, ends[:-1]], dtype=np.float64)
    assert low < 100 * (returns.mean() - references[0]) / (references[1] - references[0]) < high
    metadata = iql.find_dataset(dataset_id).storage.metadata
    assert metadata["o2o_command"].startswith("python tools/make_dataset.py ")
    assert {"o2o_seed", "o2o_reference_source", "o2o_behaviour_score"} <= set(metadata)
    env = iql.make_env(task)
    assert env.reset(seed=0)[0].dtype == np.float32
    env.close()


def test_references(capsys):
    random_and_expert = {"ref_min_score": 5.0, "ref_max_score": 1000.0}
    assert load(make_dataset("test/a/a-v0", [recorded(3, True)], **random_and_expert))[3] == (
        5.0,
        1000.0,
    )
    assert load(make_dataset("test/hopper/a-v0", [recorded(3, True)]))[3] == (-20.272305, 3234.3)
    assert "D4RL v2" in capsys.readouterr().out
    assert load(make_dataset("test/b/b-v0", [recorded(3, True)]))[3] is None
    assert "score: none" in capsys.readouterr().out


MAZE = [[1, 1, 1, 1, 1], [1, "g", 0, 0, 1], [1, 1, 1, 0, 1], [1, "r", 0, 0, 1], [1, 1, 1, 1, 1]]


def maze_metadata(train, evaluation):
    gym.register_envs(importlib.import_module("gymnasium_robotics"))
    spec = json.loads(gym.spec("PointMaze_UMaze-v3").to_json())
    metadata = {}
    for key, maze in (("env_spec", train), ("eval_env_spec", evaluation)):
        metadata[key] = json.dumps(
            spec | {"kwargs": spec["kwargs"] | {"maze_map": maze}, "max_episode_steps": 1_000_000}
        )
    return metadata


def test_a_mirrored_evaluation_maze_is_mirrored_back():
    train = [[1 if cell == 1 else 0 for cell in row] for row in MAZE]
    task = iql.task_of(maze_metadata(train, [row[::-1] for row in MAZE]), True)
    assert task.kwargs["maze_map"] == MAZE
    assert task.kwargs["continuing_task"] is False
    assert task.max_episode_steps == gym.spec("PointMaze_UMaze-v3").max_episode_steps
    same = iql.task_of(maze_metadata(train, MAZE), False)
    assert same.kwargs["maze_map"] == MAZE
    with pytest.raises(SystemExit):
        iql.task_of(
            maze_metadata(
                train, [[1] * 5, [1, 0, 0, 0, 1], [1, 0, 1, 1, 1], [1, 0, 1, 0, 1], [1] * 5]
            ),
            False,
        )


def test_buffer_samples_everything_and_keeps_columns_together():
    columns = {
        "obs": np.arange(12, dtype=np.float32).reshape(6, 2),
        "rewards": np.arange(6, dtype=np.float32),
    }
    buffer = iql.ReplayBuffer(columns, 2, torch.device("cpu"))
    buffer.add(obs=np.array([12, 13], np.float32), rewards=6.0)
    batch = buffer.sample(1000)
    assert batch["obs"].shape == (1000, 2)
    assert batch["rewards"].shape == (1000,)
    assert torch.equal(batch["obs"][:, 0], 2 * batch["rewards"])
    assert torch.equal(batch["obs"][:, 1], 2 * batch["rewards"] + 1)
    assert batch["rewards"].unique().tolist() == list(range(7))
