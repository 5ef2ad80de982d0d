"""Look at a data set before training on it: what it holds, and whether its environment still tells the same story.

    python tools/check_data.py o2o/hopper/medium-v0
    python tools/check_data.py D4RL/door/human-v2 --replay-episodes 5

Why replay: an environment can change under its id. gymnasium-robotics 1.2.1 changed the dense Adroit rewards and kept
the ids, so older data reward one thing and the online phase another, and nothing fails. Here the recorded actions of the
first episodes are stepped again. The simulator is put where the episode was by those of these ways that are known, and
used if the next observation is then the recorded one:

  reset        with the episode's recorded seed and options; the actions then run open loop, and rounding errors grow
  env state    Adroit's set_env_state, from the infos: at the start, or before every step if they hold every state
  qpos, qvel   from the infos, before every step
  observation  before every step: Hopper, HalfCheetah, Walker2d, Ant, AntMaze and PointMaze show their state up to a
               shift (Hopper and Walker2d clip velocities at 10: rewards of single steps are a few percent off there)

If there is none, the replay starts from a random reset, and only the kind of reward can be compared.

Writes nothing (but a data set that is neither bundled nor local is first downloaded, by Minari). Exit status: 0 looked
at, whatever was seen; 2 bad input, one sentence.
"""

import sys
from pathlib import Path

import gymnasium as gym
import minari
import mujoco
import numpy as np
import tyro

sys.dont_write_bytecode = True
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import iql  # noqa: E402

RESETS, MAX_STEPS = (
    20,
    1000,
)  # resets to compare first observations with; steps of an episode that are replayed
# How many leading entries of qpos the observation leaves out: the dynamics do not depend on them.
LEFT_OUT = {"Hopper": 1, "HalfCheetah": 1, "Walker2d": 1, "Ant": 2, "AntMaze": 0, "PointMaze": 0}


def span(values) -> str:
    return "min {:.6g}, quartiles {:.6g} {:.6g} {:.6g}, max {:.6g}".format(
        *np.percentile(values, [0, 25, 50, 75, 100])
    )


def at(x, t: int):
    """Entry t of an array, or of each array in a nested dict."""
    return (
        {key: at(value, t) for key, value in x.items()} if isinstance(x, dict) else np.asarray(x[t])
    )


def kind(x, exact: bool = True) -> str:
    """Keys, shapes and dtypes of an observation; unless exact, float32 and float64 are the same."""
    if isinstance(x, dict):
        return "{" + ", ".join(f"{key}: {kind(x[key], exact)}" for key in sorted(x)) + "}"
    return f"{x.dtype if exact else x.dtype.kind}{list(x.shape)}"


def describe(
    dataset: minari.MinariDataset, references: tuple | None, keep: int
) -> tuple[list, np.ndarray]:
    """Print what the data hold, as recorded; return the first `keep` episodes and all first observations."""
    box, ends, kept, bad_obs = dataset.action_space, np.zeros(3, int), [], 0
    firsts, actions, rewards = [], [], []  # one entry per episode
    for episode in dataset.iterate_episodes():
        obs, length = (
            iql.flatten(dataset.observation_space, episode.observations),
            len(episode.rewards),
        )
        iql.check(
            len(obs) == length + 1,
            f"episode {episode.id}: {len(obs)} observations for {length} steps, not one more",
        )
        if length:
            firsts, actions, rewards = (
                [*firsts, obs[0]],
                [*actions, episode.actions],
                [*rewards, episode.rewards],
            )
            last = episode.terminations[-1] or episode.truncations[-1]
            ends += [episode.terminations.sum(), episode.truncations.sum(), not last]
            bad_obs += (~np.isfinite(obs)).sum()
            kept += [episode] if len(kept) < keep else []
    iql.check(bool(rewards), "the data set holds no transition")
    lengths, returns = [len(r) for r in rewards], np.array([r.sum(dtype=float) for r in rewards])
    actions, rewards = np.concatenate(actions), np.concatenate(rewards)
    print(
        f"episodes    {dataset.total_episodes}, {dataset.total_episodes - len(lengths)} of them empty; {len(rewards)} steps"
    )
    print(f"lengths     {span(lengths)}\nreturns     {span(returns)}, mean {returns.mean():.6g}")
    if references:
        score = 100 * (returns.mean() - references[0]) / (references[1] - references[0])
        print(
            f"score       mean {score:.2f} (0 = return {references[0]:g}, 100 = return {references[1]:g})"
        )
    if isinstance(
        dataset.observation_space, gym.spaces.Dict
    ):  # a goal: rewards may go on after it has been reached
        print(
            f"rewarded    {100 * (returns > 0).mean():.3g} % of the episodes have a positive return"
        )
    print("ends        {} terminations, {} truncations; {} episodes end with neither".format(*ends))
    values = np.unique(rewards)
    print(f"rewards     {f'only {values.tolist()}' if len(values) <= 10 else span(rewards)}")
    share = 100 * ((actions < box.low) | (actions > box.high)).mean()
    print(
        f"actions     {actions.min():.6g} to {actions.max():.6g}, box {box.low.min():g} to {box.high.max():g}",
        end="",
    )
    print(f"; {share:.3g} % of the entries lie outside the box")
    bad_actions, bad_rewards = (~np.isfinite(actions)).sum(), (~np.isfinite(rewards)).sum()
    print(
        f"non-finite  {bad_obs} observation, {bad_actions} action and {bad_rewards} reward entries"
    )
    return kept, np.array(firsts)


def compare_resets(env: gym.Env, first, firsts: np.ndarray) -> None:
    """Does reset() give what the data start with? `first`: an observation as recorded; firsts (episodes, obs_dim)."""
    resets = [env.reset(seed=seed)[0] for seed in range(RESETS)]
    same = kind(first, False) == kind(resets[0], False)
    print(
        f"observation {kind(first)}; reset() gives {kind(resets[0])}: {'the same' if same else 'NOT THE SAME'} kind"
    )
    if same:
        now = np.array([iql.flatten(env.observation_space, obs) for obs in resets])
        gap = np.abs(firsts.mean(0) - now.mean(0)) / (
            np.sqrt((firsts.var(0) + now.var(0)) / 2) + 1e-6
        )
        print(
            f"first obs   means over {len(firsts)} episodes and {RESETS} resets, farthest apart (in standard deviations):"
        )
        for i in np.argsort(-gap)[:3]:
            print(
                f"            entry {i}: {firsts[:, i].mean():.4g} and {now[:, i].mean():.4g} ({gap[i]:.3g})"
            )


def starts(env: gym.Env, episode, seed: int | None, options: dict | None):
    """The ways to put the simulator where the episode was before step t: (name, place(t), known for every t?)."""
    task, infos, obs = env.unwrapped, episode.infos or {}, episode.observations
    simulator = getattr(
        task, "ant_env", getattr(task, "point_env", task)
    )  # a maze wraps its robot's environment
    if seed is not None or options:
        yield f"reset(seed={seed})", lambda t: env.reset(seed=seed, options=options), False
    if hasattr(task, "set_env_state"):
        keys = (
            task._state_space.keys()
        )  # get_env_state() of the hammer task returns more than set_env_state() takes
        for name, states in {
            "infos": infos,
            **infos,
        }.items():  # the infos themselves, or one of them, such as initial_state
            if isinstance(states, dict) and keys <= states.keys():
                place = lambda t, states=states: task.set_env_state(
                    {key: at(states[key], t) for key in keys}
                )  # noqa: E731
                yield f"env state from {name}", place, "initial" not in name

    def set_state(t, qpos, qvel):
        if isinstance(obs, dict) and "desired_goal" in obs:
            task.goal = np.array(obs["desired_goal"][t], float)
        simulator.set_state(np.asarray(qpos, float), np.asarray(qvel, float))

    if {"qpos", "qvel"} <= infos.keys() and hasattr(simulator, "set_state"):
        yield (
            "qpos, qvel from infos",
            lambda t: set_state(t, infos["qpos"][t], infos["qvel"][t]),
            True,
        )
    name = env.spec.id.split("-")[0].split("_")[0]
    if name in LEFT_OUT:
        state, nq, nv = (
            obs["observation"] if isinstance(obs, dict) else obs,
            simulator.model.nq,
            simulator.model.nv,
        )
        front = (
            obs["achieved_goal"] if name == "AntMaze" else np.zeros((len(state), LEFT_OUT[name]))
        )
        state = np.concatenate([front, state], axis=1)
        yield "observation", lambda t: set_state(t, state[t, :nq], state[t, nq : nq + nv]), True


def replay(env: gym.Env, episode, place, every_step: bool, steps: int):
    """The simulator's rewards for the recorded actions, placed before every step or before the first; its last observation."""
    obs, rewards = env.reset(seed=0)[0], np.zeros(steps)
    for t in range(steps):
        if t == 0 or every_step:
            place(t)
        obs, rewards[t], *_ = env.step(episode.actions[t])
    return rewards, iql.flatten(env.observation_space, obs)


def compare_rewards(env: gym.Env, episode, metadata: dict) -> None:
    """Replay an episode in each way that is known, and print how far the rewards are from the recorded ones."""
    recorded, matched = np.asarray(episode.rewards[:MAX_STEPS], float), False
    print(
        f"replay      episode {episode.id}, {len(recorded)} steps, recorded return {recorded.sum():.6g}"
    )
    next_obs = iql.flatten(env.observation_space, at(episode.observations, 1))
    for name, place, every_step in starts(
        env, episode, metadata.get("seed"), metadata.get("options")
    ):
        try:
            off = np.abs(replay(env, episode, place, every_step, 1)[1] - next_obs) / (
                1 + np.abs(next_obs)
            )
            why = f"off by {off.max():.2g}" if not off.max() < 0.01 else ""
        except (
            Exception
        ) as error:  # a state of another size, options that the task does not know, ...
            why = type(error).__name__
        if why:
            print(f"            {name}: does not lead to the next observation, {why}")
            continue
        error = np.abs(replay(env, episode, place, every_step, len(recorded))[0] - recorded)
        how = (
            "every step"
            if every_step
            else f"open loop; {error[:10].max():.2g} in the first 10 steps"
        )
        print(f"            {name}, {how}: largest reward difference {error.max():.2g}")
        matched = True
    if not matched:
        rewards = replay(env, episode, lambda t: None, False, len(recorded))[0]
        print(
            "            from a random reset, as its state is not known: only the kind of reward can be compared"
        )
        print(f"            recorded {span(recorded)}\n            now      {span(rewards)}")


def look(dataset_id: str, replay_episodes: int) -> None:
    dataset = iql.find_dataset(dataset_id)
    metadata, box = dataset.storage.metadata, dataset.action_space
    iql.check(isinstance(box, gym.spaces.Box), f"actions must be vectors in a Box, not {box}")
    task = iql.task_of(
        metadata, iql.Args(dataset_id=dataset_id)
    )  # where evaluation happens; the recording may differ
    recorded = gym.envs.registration.EnvSpec.from_json(
        metadata.get("env_spec") or metadata["eval_env_spec"]
    )
    references = iql.REFERENCE_SCORES.get(dataset_id.split("/")[-2:][0])
    if metadata.get("ref_max_score") is not None:
        references = metadata["ref_min_score"], metadata["ref_max_score"]
    print(f"data set    {dataset_id}, recorded in {recorded.id}, evaluated in {task.id}")
    kept, firsts = describe(dataset, references, max(1, replay_episodes))
    env = gym.make(task, disable_env_checker=True)
    now, same = env.action_space, env.action_space == box
    print(
        f"action box  the environment's is {'the same' if same else f'{now.low} to {now.high}: NOT THE SAME'}"
    )
    compare_resets(env, at(kept[0].observations, 0), firsts)
    env = gym.make(recorded, disable_env_checker=True)
    for episode in kept[:replay_episodes]:
        compare_rewards(
            env, episode, next(iter(dataset.storage.get_episode_metadata([episode.id])))
        )


def main(dataset_id: tyro.conf.Positional[str], replay_episodes: int = 3) -> None:
    """Print what a data set holds, and whether its environment still resets and rewards as recorded.

    Args:
        dataset_id: Minari id: the bundled copy, else the local Minari copy, else a download
        replay_episodes: episodes, from the first on, whose actions are stepped again"""
    iql.SCRIPT = Path(__file__)  # error messages start with its name
    iql.check(replay_episodes >= 0, "--replay-episodes must be at least 0")
    gym.logger.min_level = gym.logger.ERROR
    mujoco.set_mju_user_warning(
        lambda message: None
    )  # else MuJoCo writes its warnings to a file, MUJOCO_LOG.TXT
    try:
        look(dataset_id, replay_episodes)
    except Exception as error:  # a damaged file fails in h5py, JSON or Minari, in many ways
        iql.check(
            False,
            f"cannot look at {dataset_id}: {type(error).__name__}: {' '.join(str(error).split())[:300]}",
        )


if __name__ == "__main__":
    tyro.cli(main)
