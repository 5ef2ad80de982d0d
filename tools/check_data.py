"""Look at a data set before training on it: what it holds, and whether its environment still fits.

    python tools/check_data.py o2o/hopper/medium-v0
    python tools/check_data.py D4RL/door/human-v2 --replay-episodes 5
    python tools/check_data.py mine/reach/random-v0 --env-module my_envs

Why replay: an environment can change under its id. gymnasium-robotics 1.2.1 changed the dense
Adroit rewards and kept the ids, so older data reward one thing and the online phase another, and
nothing fails. Here the recorded actions of the first episodes are stepped again. The simulator is
put where the episode was by those of these ways that are known, and used if the next observation is
then the recorded one:

  reset        with the episode's recorded seed and options; the actions then run open loop, and
               rounding errors grow
  env state    Adroit's set_env_state, from the infos: at the start, or before every step if they
               hold every state
  qpos, qvel   from the infos, before every step
  observation  before every step: Hopper, HalfCheetah, Walker2d, Ant, AntMaze and PointMaze show
               their state up to a shift (Hopper and Walker2d clip velocities at 10: rewards of
               single steps are a few percent off there)

If there is none, the replay starts from a random reset, and only the kind of reward can be
compared.

Writes nothing (but a data set that is neither bundled nor local is first downloaded, by Minari).
Exit status: 0 looked at, whatever was seen; 2 bad input, one sentence; 130 / 143 interrupted.
"""

import dataclasses
import os
import signal
import sys
from pathlib import Path
from typing import Annotated


def stop(number: int, _) -> None:
    """Signal handler: one line, whatever goes on."""
    os.write(2, f"{Path(__file__).name}: interrupted\n".encode())
    os._exit(128 + number)


if __name__ == "__main__":  # the imports below take seconds
    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGTERM, stop)

import gymnasium as gym
import minari
import mujoco
import numpy as np
import tyro

sys.dont_write_bytecode = True
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import iql

RESETS = 20  # to compare first observations with
MAX_STEPS = 1000  # of an episode that are replayed
# How many leading entries of qpos the observation leaves out: the dynamics do not depend on them.
LEFT_OUT = {"Hopper": 1, "HalfCheetah": 1, "Walker2d": 1, "Ant": 2, "AntMaze": 0, "PointMaze": 0}


@dataclasses.dataclass
class Args:
    """Print what a data set holds, and whether its environment still resets and rewards so."""

    # Minari id: the bundled copy, else the local Minari copy, else a download
    dataset_id: str
    # episodes, from the first on, whose actions are stepped again
    replay_episodes: Annotated[int, 0, 10**9] = 3
    env_module: str | None = None  # a module of your own, which registers the environment


def span(values) -> str:
    """Quartiles of some numbers."""
    return "min {:.6g}, quartiles {:.6g} {:.6g} {:.6g}, max {:.6g}".format(
        *np.percentile(values, [0, 25, 50, 75, 100])
    )


def at(x, t: int):
    """Entry t of an array, or of each array in a nested dict."""
    if isinstance(x, dict):
        return {key: at(value, t) for key, value in x.items()}
    return np.asarray(x[t])


def kind(x, exact: bool = True) -> str:
    """Keys, shapes and dtypes of an observation; unless exact, float32 and float64 are the same."""
    if isinstance(x, dict):
        return "{" + ", ".join(f"{key}: {kind(x[key], exact)}" for key in sorted(x)) + "}"
    return f"{x.dtype if exact else x.dtype.kind}{list(x.shape)}"


def describe(dataset: minari.MinariDataset, references: tuple | None, keep: int):
    """Print what the data hold, as recorded; return the first `keep` episodes and all first
    observations."""
    space, ends, kept, bad_obs = dataset.observation_space, np.zeros(3, int), [], 0
    firsts, actions, rewards = [], [], []  # one entry per episode
    for episode in dataset.iterate_episodes():
        obs, length = iql.flatten(space, episode.observations), len(episode.rewards)
        if len(obs) != length + 1:
            iql.fail(f"episode {episode.id}: {len(obs)} observations for {length} steps")
        if not length:
            continue
        firsts.append(obs[0])
        actions.append(episode.actions)
        rewards.append(episode.rewards)
        last = episode.terminations[-1] or episode.truncations[-1]
        ends += [episode.terminations.sum(), episode.truncations.sum(), not last]
        bad_obs += (~np.isfinite(obs)).sum()
        if len(kept) < keep:
            kept.append(episode)
    if not rewards:
        iql.fail("the data set holds no transition")
    returns = np.array([np.sum(r, dtype=float) for r in rewards])
    lengths = [len(r) for r in rewards]
    empty = dataset.total_episodes - len(lengths)
    print(f"episodes    {dataset.total_episodes}, {empty} of them empty; {sum(lengths)} steps")
    print(f"lengths     {span(lengths)}")
    print(f"returns     {span(returns)}, mean {returns.mean():.6g}")
    if references:
        low, high = references
        print(f"score       mean {100 * (returns.mean() - low) / (high - low):.2f}")
    if isinstance(space, gym.spaces.Dict):  # a goal: rewards may go on after it has been reached
        share = 100 * (returns > 0).mean()
        print(f"rewarded    {share:.3g} % of the episodes have a positive return")
    print("ends        {} terminations, {} truncations; {} episodes end with neither".format(*ends))
    actions, rewards, box = np.concatenate(actions), np.concatenate(rewards), dataset.action_space
    values = np.unique(rewards)
    print("rewards     " + (f"only {values.tolist()}" if len(values) <= 10 else span(rewards)))
    share = 100 * ((actions < box.low) | (actions > box.high)).mean()
    print(f"actions     {actions.min():.6g} to {actions.max():.6g}", end="")
    print(f", box {box.low.min():g} to {box.high.max():g}", end="")
    print(f"; {share:.3g} % of the entries lie outside the box")
    bad_actions, bad_rewards = (~np.isfinite(actions)).sum(), (~np.isfinite(rewards)).sum()
    print(
        f"non-finite  {bad_obs} observation, {bad_actions} action and {bad_rewards} reward entries"
    )
    return kept, np.array(firsts)


def compare_resets(env: gym.Env, first, firsts: np.ndarray) -> None:
    """Does reset() give what the data start with? `first`: an observation as recorded;
    firsts (episodes, obs_dim)."""
    resets = [env.reset(seed=seed)[0] for seed in range(RESETS)]
    same = kind(first, False) == kind(resets[0], False)
    verdict = "the same kind" if same else "NOT THE SAME kind"
    print(f"observation {kind(first)}; reset() gives {kind(resets[0])}: {verdict}")
    if not same:
        return
    now = np.array([iql.flatten(env.observation_space, obs) for obs in resets])
    spread = np.sqrt((firsts.var(0) + now.var(0)) / 2) + 1e-6
    gap = np.abs(firsts.mean(0) - now.mean(0)) / spread
    print(f"first obs   means over {len(firsts)} episodes and {RESETS} resets, farthest apart:")
    for i in np.argsort(-gap)[:3]:
        means = f"{firsts[:, i].mean():.4g} and {now[:, i].mean():.4g}"
        print(f"            entry {i}: {means}, {gap[i]:.3g} standard deviations apart")


def starts(env: gym.Env, episode, seed: int | None, options: dict | None):
    """The ways to put the simulator where the episode was before step t:
    (name, place(t), known for every t?)."""
    task, infos, obs = env.unwrapped, episode.infos or {}, episode.observations
    robot = getattr(task, "point_env", task)  # a maze wraps its robot's environment
    simulator = getattr(task, "ant_env", robot)
    if seed is not None or options:
        yield f"reset(seed={seed})", lambda t: env.reset(seed=seed, options=options), False
    if hasattr(task, "set_env_state"):
        # get_env_state() of the hammer task returns more than set_env_state() takes
        keys = task._state_space.keys()
        # the infos themselves, or one of them, such as initial_state
        for name, states in {"infos": infos, **infos}.items():
            if isinstance(states, dict) and keys <= states.keys():

                def place(t, states=states):
                    task.set_env_state({key: at(states[key], t) for key in keys})

                yield f"env state from {name}", place, "initial" not in name

    def set_state(t, qpos, qvel):
        if isinstance(obs, dict) and "desired_goal" in obs:
            task.goal = np.array(obs["desired_goal"][t], float)
        simulator.set_state(np.asarray(qpos, float), np.asarray(qvel, float))

    if {"qpos", "qvel"} <= infos.keys() and hasattr(simulator, "set_state"):
        qpos, qvel = infos["qpos"], infos["qvel"]
        yield "qpos, qvel from infos", lambda t: set_state(t, qpos[t], qvel[t]), True
    name = env.spec.id.split("-")[0].split("_")[0]
    if name in LEFT_OUT:
        state = obs["observation"] if isinstance(obs, dict) else obs
        front = np.zeros((len(state), LEFT_OUT[name]))
        if name == "AntMaze":
            front = obs["achieved_goal"]
        state = np.concatenate([front, state], axis=1)
        nq, nv = simulator.model.nq, simulator.model.nv
        yield "observation", lambda t: set_state(t, state[t, :nq], state[t, nq : nq + nv]), True


def replay(env: gym.Env, episode, place, every_step: bool, steps: int):
    """The simulator's rewards for the recorded actions, placed before every step or before the
    first; its last observation."""
    obs, rewards = env.reset(seed=0)[0], np.zeros(steps)
    for t in range(steps):
        if t == 0 or every_step:
            place(t)
        obs, rewards[t], *_ = env.step(episode.actions[t])
    return rewards, iql.flatten(env.observation_space, obs)


def compare_rewards(env: gym.Env, episode, metadata: dict) -> None:
    """Replay an episode in each way that is known, and print how far the rewards are from the
    recorded ones."""
    recorded, matched = np.asarray(episode.rewards[:MAX_STEPS], float), False
    steps = len(recorded)
    print(f"replay      episode {episode.id}, {steps} steps, recorded return {recorded.sum():.6g}")
    next_obs = iql.flatten(env.observation_space, at(episode.observations, 1))
    ways = starts(env, episode, metadata.get("seed"), metadata.get("options"))
    for name, place, every_step in ways:
        try:
            gap = np.abs(replay(env, episode, place, every_step, 1)[1] - next_obs)
            off = (gap / (1 + np.abs(next_obs))).max()
            why = f"off by {off:.2g}"
        except Exception as error:  # a state of another size, options that the task does not know
            off, why = np.inf, type(error).__name__
        if not off < 0.01:
            print(f"            {name}: does not lead to the next observation, {why}")
            continue
        error = np.abs(replay(env, episode, place, every_step, steps)[0] - recorded)
        how = "every step"
        if not every_step:
            how = f"open loop; {error[:10].max():.2g} in the first 10 steps"
        print(f"            {name}, {how}: largest reward difference {error.max():.2g}")
        matched = True
    if not matched:
        rewards = replay(env, episode, lambda t: None, False, steps)[0]
        print("            from a random reset, as its state is not known: ", end="")
        print("only the kind of reward can be compared")
        print(f"            recorded {span(recorded)}\n            now      {span(rewards)}")


def look(args: Args) -> None:
    """Read the data set, and print all there is to see."""
    dataset = iql.find_dataset(args.dataset_id)
    metadata, box = dataset.storage.metadata, dataset.action_space
    if not isinstance(box, gym.spaces.Box):
        iql.fail(f"actions must be vectors in a Box, not {box}")
    task = iql.task_of(metadata, False)  # where evaluation happens; the recording may differ
    recorded = iql.registered(metadata.get("env_spec") or metadata["eval_env_spec"])
    print(f"data set    {args.dataset_id}, recorded in {recorded.id}, evaluated in {task.id}")
    references = iql.references_of(args.dataset_id, metadata)
    kept, firsts = describe(dataset, references, max(1, args.replay_episodes))
    env = gym.make(task, disable_env_checker=True)
    now, verdict = env.action_space, "the same"
    if now != box:
        verdict = f"{now.low} to {now.high}: NOT THE SAME"
    print(f"action box  the environment's is {verdict}")
    compare_resets(env, at(kept[0].observations, 0), firsts)
    env = gym.make(recorded, disable_env_checker=True)
    for episode in kept[: args.replay_episodes]:
        facts = next(iter(dataset.storage.get_episode_metadata([episode.id])))
        compare_rewards(env, episode, facts)


def main(args: Args) -> None:
    """Look at a data set, or say in one sentence why that cannot be done."""
    iql.SCRIPT = Path(__file__)  # error messages start with its name
    iql.check_ranges(args)
    iql.set_up(iql.Args(env_module=args.env_module, compile=False))
    # else MuJoCo writes its warnings to a file, MUJOCO_LOG.TXT
    mujoco.set_mju_user_warning(lambda message: None)
    try:
        look(args)
    except Exception as error:  # a damaged file fails in h5py, JSON or Minari, in many ways
        why = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        iql.fail(f"cannot look at {args.dataset_id}: {why}")


if __name__ == "__main__":
    iql.SCRIPT = Path(__file__)  # error messages start with its name
    main(iql.read_flags(Args, config=(tyro.conf.PositionalRequiredArgs,)))
