"""Look at a data set before training on it: what it holds, and whether the simulator still tells the same story.

    python tools/check_data.py o2o/hopper/medium-v0
    python tools/check_data.py D4RL/door/human-v2 --replay-episodes 5

Why replay: an environment can change under its id. gymnasium-robotics 1.2.1 changed the dense Adroit rewards and left
the ids as they were, so a learner would get one reward from older data and another one online, and nothing would fail.
Here the recorded actions of the first episodes are stepped again and the rewards compared. The simulator starts where
the episode did, by the first of these ways that reproduces the second recorded observation:

  reset          the episode's recorded seed and reset options (then the actions run open loop)
  env state      Adroit's set_env_state, from the infos (also before every step, if the infos hold that)
  qpos, qvel     from the infos, before every step
  observation    Hopper, HalfCheetah, Walker2d, Ant, AntMaze and PointMaze show their state, up to a shift, at every step

If none does, the replay starts from a random reset, and only the kind of reward can be compared.

A data set that is neither bundled nor in the local Minari folder is downloaded by Minari first. Nothing else is
written. Exit status: 0 looked at, whatever was seen; 2 bad input, one sentence.
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

RESETS, MAX_STEPS = 20, 1000  # resets to compare first observations with; longest part of an episode that is replayed
# qpos entries that lead the state and that the observation leaves out, because the dynamics do not depend on them.
LEFT_OUT = {"Hopper": 1, "HalfCheetah": 1, "Walker2d": 1, "Ant": 2, "AntMaze": 0, "PointMaze": 0}


def span(values, names=("min", "quartile", "median", "quartile", "max")) -> str:
    """Minimum, quartiles and maximum in one line."""
    return ", ".join(f"{name} {value:.6g}" for name, value in zip(names, np.percentile(values, [0, 25, 50, 75, 100])))


def kind(x, dtype: bool = True) -> str:
    """Keys, shapes and, if wanted, dtypes of an observation, nested dicts too."""
    if isinstance(x, dict):
        return "{" + ", ".join(f"{key}: {kind(x[key], dtype)}" for key in sorted(x)) + "}"
    return f"{x.dtype if dtype else ''}{list(x.shape)}"


def not_finite(x: np.ndarray) -> int:
    return int((~np.isfinite(x)).sum())


def at(x, t: int):
    """Entry t of an array, or of every array in a nested dict."""
    return {key: at(value, t) for key, value in x.items()} if isinstance(x, dict) else np.asarray(x[t])


def starts(env: gym.Env, episode, metadata: dict):
    """The ways to put the simulator where the episode was before step t: (name, place(t), for every t or for 0 only)."""
    task, infos, obs = env.unwrapped, episode.infos or {}, episode.observations
    simulator = getattr(task, "ant_env", getattr(task, "point_env", task))  # the mazes wrap the robot's environment
    seed, options = metadata.get("seed"), metadata.get("options")
    if seed is not None or options:
        yield f"reset(seed={seed}{', recorded options' * bool(options)})", lambda t: env.reset(seed=seed, options=options), False
    if hasattr(task, "get_env_state"):
        wanted = task.get_env_state().keys()
        for key, states in {"infos": infos, **infos}.items():  # among the infos themselves or under a key of their own
            if isinstance(states, dict) and wanted <= states.keys():
                place = lambda t, states=states: task.set_env_state({k: at(states[k], t) for k in wanted})  # noqa: E731
                yield f"env state, {key}", place, states is infos

    def set_state(t, qpos, qvel):
        if isinstance(obs, dict) and "desired_goal" in obs:
            task.goal = np.array(obs["desired_goal"][t], float)
        simulator.set_state(np.asarray(qpos, float), np.asarray(qvel, float))

    if {"qpos", "qvel"} <= infos.keys() and hasattr(simulator, "set_state"):
        yield "qpos and qvel, infos", lambda t: set_state(t, infos["qpos"][t], infos["qvel"][t]), True
    name = env.spec.id.split("-")[0].split("_")[0]
    if name in LEFT_OUT:
        state, nq, nv = obs["observation"] if isinstance(obs, dict) else obs, simulator.model.nq, simulator.model.nv
        front = obs["achieved_goal"] if name == "AntMaze" else np.zeros((len(state), LEFT_OUT[name]))
        state = np.concatenate([front, state], axis=1)
        yield "observation", lambda t: set_state(t, state[t, :nq], state[t, nq : nq + nv]), True


def replay(env: gym.Env, episode, place, every_step: bool, steps: int) -> tuple[np.ndarray, object]:
    """Rewards of the simulator for the recorded actions, and the observation after the last."""
    env.reset(seed=0)
    rewards, obs = np.zeros(steps), None
    for t in range(steps):
        if t == 0 or every_step:
            place(t)
        obs, rewards[t], *_ = env.step(episode.actions[t])
    return rewards, obs


def compare(env: gym.Env, episode, metadata: dict) -> None:
    """Replay an episode open loop and, where every state is known, step by step; print how far the rewards are apart."""
    recorded, found = np.asarray(episode.rewards[:MAX_STEPS], float), {}
    print(f"replay of episode {episode.id}: {len(recorded)} steps, recorded return {recorded.sum():.6g}")
    second = iql.flatten(env.observation_space, at(episode.observations, 1))
    for name, place, every_step in starts(env, episode, metadata):
        try:
            obs = iql.flatten(env.observation_space, replay(env, episode, place, every_step, 1)[1])
        except Exception as error:  # a state of another size, options that the task no longer knows, ...
            print(f"  {name}: not possible, {type(error).__name__}: {error}".splitlines()[0])
            continue
        off = float(np.max(np.abs(obs - second) / (1 + np.abs(second))))
        if off < 0.01:
            found.setdefault("step by step" if every_step else "open loop", (name, place, every_step, off))
        else:
            print(f"  {name}: does not put the simulator there, the second observation is off by {off:.2g}")
    for how, (name, place, every_step, off) in found.items():
        rewards, _ = replay(env, episode, place, every_step, len(recorded))
        error = np.abs(rewards - recorded)
        early = "" if every_step else f" ({error[:10].max():.3g} in the first 10 steps; small errors grow)"
        print(f"  {name}, {how}: second observation off by {off:.2g}; largest reward difference {error.max():.3g}{early};", end="")
        print(f" return {rewards.sum():.6g}")
    if not found:
        rewards, _ = replay(env, episode, lambda t: None, False, len(recorded))
        print("  the recorded state is not known: from a random reset, only the kind of reward can be compared")
        print(f"  rewards recorded: {span(recorded)}\n  rewards now:      {span(rewards)}; return {rewards.sum():.6g}")


def describe(dataset: minari.MinariDataset, references: tuple | None, keep: int) -> tuple[list, np.ndarray]:
    """Print what the data hold, actions and rewards as recorded; return the first `keep` episodes and all first observations."""
    box, total, ends, kept, bad_obs = dataset.action_space, dataset.total_episodes, np.zeros(3, int), [], 0
    firsts, actions, rewards = [], [], []  # one entry per episode
    for episode in dataset.iterate_episodes():
        obs, length = iql.flatten(dataset.observation_space, episode.observations), len(episode.rewards)
        iql.check(len(obs) == length + 1, f"episode {episode.id} has {length} steps and {len(obs)} observations, not one more")
        if length:
            firsts, actions, rewards = [*firsts, obs[0]], [*actions, episode.actions], [*rewards, episode.rewards]
            last = episode.terminations[-1] or episode.truncations[-1]
            ends, bad_obs = ends + [episode.terminations.sum(), episode.truncations.sum(), not last], bad_obs + not_finite(obs)
            kept += [episode] if len(kept) < keep else []
    iql.check(bool(rewards), "the data set holds no transition")
    lengths, returns = [len(r) for r in rewards], np.array([r.sum(dtype=float) for r in rewards])
    actions, rewards = np.concatenate(actions), np.concatenate(rewards)
    print(f"episodes    {total}, {total - len(lengths)} of them empty; {len(rewards)} steps")
    print(f"lengths     {span(lengths)}")
    print(f"returns     {span(returns)}, mean {returns.mean():.6g}")
    if references:
        score = 100 * (returns.mean() - references[0]) / (references[1] - references[0])
        print(f"score       {score:.2f} (0 = return {references[0]:g}, 100 = return {references[1]:g})")
    print("ends        {} terminations, {} truncations; {} episodes end with neither".format(*ends))
    values = np.unique(rewards)
    print(f"rewards     {f'only {values.tolist()}' if len(values) <= 10 else span(rewards)}")
    share = 100 * ((actions < box.low) | (actions > box.high)).mean()
    print(f"actions     {actions.min():.6g} to {actions.max():.6g}, box {box.low.min():g} to {box.high.max():g};", end="")
    print(f" {share:.3g} % of the entries lie outside the box")
    print(f"non-finite  {bad_obs} observation, {not_finite(actions)} action and {not_finite(rewards)} reward entries")
    return kept, np.array(firsts)


def compare_resets(env: gym.Env, first, firsts: np.ndarray) -> None:
    """Does reset() give observations like the first ones of the data? `first`: one as recorded; firsts (episodes, obs_dim)."""
    resets = [env.reset(seed=seed)[0] for seed in range(RESETS)]
    same = kind(first, False) == kind(resets[0], False)
    print(f"observation {kind(first)}; reset() gives " + ("the same" if kind(first) == kind(resets[0]) else kind(resets[0])), end="")
    print(": same keys and shapes" if same else ": NOT THE SAME KIND")
    if same:
        now = np.array([iql.flatten(env.observation_space, obs) for obs in resets])
        gap = np.abs(firsts.mean(0) - now.mean(0))
        std = np.sqrt((firsts.var(0) + now.var(0)) / 2) + 1e-6
        print(f"            first observations of {len(firsts)} episodes and of {RESETS} resets, entries that differ most:")
        for i in np.argsort(-gap / std)[:3]:
            print(f"            entry {i}: mean {firsts[:, i].mean():.4g} and {now[:, i].mean():.4g}, {gap[i] / std[i]:.3g} std apart")


def look(dataset_id: str, replay_episodes: int) -> None:
    """Print the data, their resets, their replays."""
    dataset = iql.find_dataset(dataset_id)
    metadata, box = dataset.storage.metadata, dataset.action_space
    iql.check(isinstance(box, gym.spaces.Box), f"actions must be vectors in a Box, not {box}")
    task = iql.task_of(metadata, iql.Args(dataset_id=dataset_id))
    references = iql.REFERENCE_SCORES.get(dataset_id.split("/")[-2:][0])
    if metadata.get("ref_max_score") is not None:
        references = metadata["ref_min_score"], metadata["ref_max_score"]
    recorded = gym.envs.registration.EnvSpec.from_json(metadata["env_spec"]) if metadata.get("env_spec") else task
    print(f"data set    {dataset_id}, recorded in {recorded.id}, evaluated in {task.id}")
    kept, firsts = describe(dataset, references, max(1, replay_episodes))
    compare_resets(gym.make(task, disable_env_checker=True), at(kept[0].observations, 0), firsts)
    env = gym.make(recorded, disable_env_checker=True)
    for episode in kept[:replay_episodes]:
        compare(env, episode, next(iter(dataset.storage.get_episode_metadata([episode.id]))))


def main(dataset_id: tyro.conf.Positional[str], replay_episodes: int = 3) -> None:
    """Print what a data set holds, and whether its environment still resets and rewards as recorded.

    Args:
        dataset_id: Minari id: the bundled copy, else the local Minari copy, else a download
        replay_episodes: episodes, from the first on, whose actions are stepped again
    """
    iql.SCRIPT = Path(__file__)  # error messages start with its name
    iql.check(replay_episodes >= 0, "--replay-episodes must be at least 0")
    gym.logger.min_level = gym.logger.ERROR
    mujoco.set_mju_user_warning(lambda message: None)  # else MuJoCo writes its warnings to a file, MUJOCO_LOG.TXT
    try:
        look(dataset_id, replay_episodes)
    except Exception as error:  # a damaged file fails in h5py, JSON or Minari, in many ways
        iql.check(False, f"cannot read the data set {dataset_id}: {type(error).__name__}: {error}")


if __name__ == "__main__":
    tyro.cli(main)
