"""Make a small D4RL-style Minari dataset for a Gymnasium MuJoCo task or for a PointMaze, from nothing.

    python tools/make_dataset.py sac  --env-id Hopper-v5 --level medium --dataset-id o2o/hopper/medium-v0
    python tools/make_dataset.py maze --env-id PointMaze_Large-v3 --dataset-id o2o/pointmaze/large-v0

`sac` trains soft actor-critic (Haarnoja et al., arXiv 1812.05905) and records one of D4RL's four levels:

  random         actions drawn uniformly from the action box
  medium         the first checkpoint whose deterministic return reaches a third of the way from the random to the
                 expert reference score, sampled stochastically
  medium-replay  every transition that the training of `medium` has seen, in order
  expert         the best checkpoint after --train-steps, sampled stochastically

`maze` lets a noisy PD controller wander between random cells of a PointMaze along shortest paths. Reward and
termination belong to one fixed goal in a corner; evaluation starts in the cells farthest from it, and recorded episodes
are too short to lead from there to the goal, so a learner has to stitch pieces of several episodes together.

The dataset is written below --out in Minari's layout (HDF5, float32, gzip). Its metadata hold the environment, the
reference scores and where they come from, the command, the seed and the score of the policy that was recorded.
"""

from __future__ import annotations

import contextlib
import copy
import json
import os
import shlex
import sys
import time
import warnings
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import gymnasium as gym
import h5py
import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
import tyro

# Mean return of a random policy and of an expert, D4RL v2 (d4rl/infos.py). They were measured on gym's v2 tasks: on
# v5 tasks they give a comparable scale, not a comparable number.
D4RL_REFERENCES = {
    "Hopper": (-20.272305, 3234.3),
    "HalfCheetah": (-280.178953, 12135.0),
    "Walker2d": (1.629008, 4592.3),
    "Ant": (-325.6, 3879.7),
}


@dataclass
class SACArgs:
    """Train SAC and record one of the levels random, medium, medium-replay, expert."""

    dataset_id: str
    """Minari id of the new dataset, NAMESPACE/TASK/NAME-vN"""
    env_id: str = "Hopper-v5"
    """Gymnasium id of a task with a Box observation and a Box action space"""
    level: Literal["random", "medium", "medium-replay", "expert"] = "medium"
    """which behaviour to record"""
    steps: int = 100_000
    """transitions to record (medium-replay: at most, the last ones are kept)"""
    train_steps: int = 1_000_000
    """environment steps after which training gives up (medium) or stops (expert)"""
    reference: tuple[float, float] | None = None
    """mean return of a random and of an expert policy; default: D4RL's constants for the task"""
    seed: int = 0
    """seed of networks, environment and sampling"""
    out: Path = Path("datasets")
    """folder that receives the dataset, in Minari's layout"""
    threads: int = 1
    """torch threads"""


@dataclass
class MazeArgs:
    """Record a noisy waypoint controller that wanders through a PointMaze."""

    dataset_id: str
    """Minari id of the new dataset, NAMESPACE/TASK/NAME-vN"""
    env_id: str = "PointMaze_Large-v3"
    """a PointMaze of gymnasium-robotics"""
    steps: int = 60_000
    """transitions to record"""
    episode_steps: int = 100
    """length of a recorded episode that does not reach the goal (env steps)"""
    noise: float = 0.5
    """standard deviation of the Gaussian noise on the controller's action"""
    goal_visits: float = 0.3
    """probability that a waypoint is the goal's cell rather than any other"""
    starts: int = 8
    """evaluation starts in one of this many cells, those farthest from the goal"""
    time_limit: int = 600
    """length of an episode of the task (env steps)"""
    seed: int = 0
    """seed of environment, waypoints and noise"""
    out: Path = Path("datasets")
    """folder that receives the dataset, in Minari's layout"""


# ---------------------------------------------------------------------------------------------------------------- SAC


class Ensemble(nn.Module):
    """`size` independent MLPs with two hidden layers, evaluated as one batched matmul per layer: (B, in) -> (E, B, out)."""

    def __init__(self, size: int, in_dim: int, out_dim: int, hidden: int = 256):
        super().__init__()
        widths = [in_dim, hidden, hidden, out_dim]
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        for fan_in, fan_out in zip(widths[:-1], widths[1:]):
            bound = fan_in**-0.5
            self.weights.append(
                nn.Parameter(torch.empty(size, fan_in, fan_out).uniform_(-bound, bound))
            )
            self.biases.append(nn.Parameter(torch.empty(size, 1, fan_out).uniform_(-bound, bound)))

    def forward(self, x: torch.Tensor, frozen: bool = False) -> torch.Tensor:
        x = x.expand(len(self.weights[0]), *x.shape)
        for i, (weight, bias) in enumerate(zip(self.weights, self.biases)):
            if frozen:  # gradients flow to the input, not into the parameters
                weight, bias = weight.detach(), bias.detach()
            x = torch.baddbmm(bias, x, weight)
            x = F.relu(x) if i < len(self.weights) - 1 else x
        return x


class SAC(nn.Module):
    """Twin critics, tanh-Gaussian policy, learned entropy temperature."""

    def __init__(self, obs_dim: int, act_dim: int):
        super().__init__()
        self.actor = Ensemble(1, obs_dim, 2 * act_dim)
        self.critic = Ensemble(2, obs_dim + act_dim, 1)
        self.critic_target = copy.deepcopy(self.critic).requires_grad_(False)
        self.log_alpha = nn.Parameter(torch.zeros(()))
        self.target_entropy = -float(act_dim)

    def policy(self, obs, noise):
        """Action in (-1, 1) and its log-probability for standard normal `noise`; obs (B, obs_dim), noise (B, act_dim)."""
        mean, log_std = self.actor(obs)[0].chunk(2, dim=-1)
        log_std = log_std.clamp(-5, 2)
        raw = mean + log_std.exp() * noise
        gaussian = -0.5 * noise.square() - log_std - 0.5 * np.log(2 * np.pi)
        tanh_slope = 2 * (np.log(2) - raw - F.softplus(-2 * raw))  # log(1 - tanh(raw)^2), stable
        return raw.tanh(), (gaussian - tanh_slope).sum(-1)

    def loss(self, obs, actions, rewards, next_obs, terminations, noise):
        """Sum of critic, actor and temperature loss; each touches its own parameters only."""
        alpha = self.log_alpha.exp().detach()
        with torch.no_grad():
            next_actions, next_log_prob = self.policy(next_obs, noise[0])
            next_q = self.critic_target(torch.cat([next_obs, next_actions], -1)).squeeze(-1).amin(0)
            target = rewards + 0.99 * (1 - terminations) * (next_q - alpha * next_log_prob)
        q = self.critic(torch.cat([obs, actions], -1)).squeeze(-1)
        critic_loss = (q - target).square().mean(1).sum()
        new_actions, log_prob = self.policy(obs, noise[1])
        new_q = self.critic(torch.cat([obs, new_actions], -1), frozen=True).squeeze(-1).amin(0)
        actor_loss = (alpha * log_prob - new_q).mean()
        alpha_loss = -self.log_alpha * (log_prob.detach().mean() + self.target_entropy)
        return critic_loss + actor_loss + alpha_loss

    @torch.no_grad()
    def act(self, obs: np.ndarray, rng: np.random.Generator, deterministic: bool) -> np.ndarray:
        """NumPy forward pass of the policy for one observation: ten times faster than torch's for a batch of one."""
        x = obs.astype(np.float32)
        for i, (weight, bias) in enumerate(self.numpy_actor):
            x = x @ weight + bias
            x = np.maximum(x, 0) if i < 2 else x
        mean, log_std = np.split(x, 2)
        noise = 0 if deterministic else rng.standard_normal(mean.shape, np.float32)
        return np.tanh(mean + np.exp(log_std.clip(-5, 2)) * noise)

    @property
    def numpy_actor(self):
        return [
            (w[0].numpy(), b[0, 0].numpy()) for w, b in zip(self.actor.weights, self.actor.biases)
        ]


def evaluate(
    agent: SAC, env: gym.Env, episodes: int, rng: np.random.Generator, deterministic: bool = True
) -> float:
    """Mean undiscounted return over `episodes` episodes."""
    returns = []
    for episode in range(episodes):
        obs, done, total = env.reset(seed=10_000 + episode)[0], False, 0.0
        while not done:
            obs, reward, terminated, truncated, _ = env.step(agent.act(obs, rng, deterministic))
            total, done = total + float(reward), terminated or truncated
        returns.append(total)
    return float(np.mean(returns))


def train_sac(args: SACArgs, threshold: float) -> tuple[SAC, list[dict], float, int]:
    """Train until the deterministic return reaches `threshold`, or for all of --train-steps and keep the best policy.

    Returns the agent, the episodes that training has seen, the kept policy's return and the steps it took."""
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    torch.set_float32_matmul_precision(
        "medium"
    )  # bf16 inside matmuls where the CPU has it: twice as fast
    rng = np.random.default_rng(args.seed)
    env, eval_env = gym.make(args.env_id), gym.make(args.env_id)
    obs_dim, act_dim = env.observation_space.shape[0], env.action_space.shape[0]
    agent = SAC(obs_dim, act_dim)
    params = [p for p in agent.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(params, lr=3e-4, fused=True)
    online, target = list(agent.critic.parameters()), list(agent.critic_target.parameters())

    widths = {
        "obs": obs_dim,
        "actions": act_dim,
        "rewards": 0,
        "next_obs": obs_dim,
        "terminations": 0,
    }
    data = {
        k: torch.zeros((args.train_steps, w) if w else (args.train_steps,))
        for k, w in widths.items()
    }
    rows = {k: v.numpy() for k, v in data.items()}  # same memory: cheap single-row writes
    episodes, episode = [], new_episode(env.reset(seed=args.seed)[0])
    best, best_return, best_step, start = None, -np.inf, 0, time.time()
    for step in range(args.train_steps):
        obs = episode["observations"][-1]
        random_phase = step < 10_000
        action = (
            rng.uniform(-1, 1, act_dim).astype(np.float32)
            if random_phase
            else agent.act(obs, rng, False)
        )
        next_obs, reward, terminated, truncated, _ = env.step(action)
        for key, value in zip(widths, (obs, action, reward, next_obs, terminated)):
            rows[key][step] = value
        append(episode, next_obs, action, reward, terminated, truncated)
        if terminated or truncated:
            episodes.append(episode)
            episode = new_episode(env.reset()[0])
        if step >= 5_000:
            index = torch.from_numpy(rng.integers(0, step + 1, 256))
            loss = agent.loss(*(v[index] for v in data.values()), torch.randn(2, 256, act_dim))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            with torch.no_grad():
                torch._foreach_lerp_(target, online, 0.005)
        if step >= 10_000 and (step + 1) % 5_000 == 0:
            value = evaluate(agent, eval_env, 10, rng)
            print(
                f"{step + 1:8d} steps  {time.time() - start:7.0f} s  return {value:8.1f}",
                flush=True,
            )
            if value > best_return:
                best, best_return, best_step = copy.deepcopy(agent.state_dict()), value, step + 1
            if value >= threshold:
                break
    else:
        if args.level != "expert":
            raise SystemExit(
                f"the return never reached {threshold:.0f} in {args.train_steps} steps"
            )
    agent.load_state_dict(best)
    episodes += [episode] if episode["rewards"] else []
    return agent, episodes, best_return, best_step


def record_sac(args: SACArgs) -> dict:
    """Train (unless random) and collect episodes of the wanted level."""
    reference, source = args.reference, "given on the command line"
    if reference is None:
        name = args.env_id.rsplit("-", 1)[0]
        if name not in D4RL_REFERENCES:
            raise SystemExit(
                f"no reference scores are known for {name}: give --reference RANDOM EXPERT"
            )
        reference, source = D4RL_REFERENCES[name], "D4RL v2 (measured on gym's v2 tasks)"
    env, rng = gym.make(args.env_id), np.random.default_rng(args.seed + 1)
    agent, policy_return, train_steps = None, None, 0
    if args.level != "random" and args.train_steps < 15_000:
        raise SystemExit(
            "--train-steps must be at least 15000: the policy is first evaluated there"
        )
    if args.level != "random":
        third = reference[0] + (reference[1] - reference[0]) / 3
        agent, seen, policy_return, train_steps = train_sac(
            args, np.inf if args.level == "expert" else third
        )
    if args.level == "medium-replay":
        episodes = seen[::-1]
        while sum(len(e["rewards"]) for e in episodes) - len(episodes[-1]["rewards"]) >= args.steps:
            episodes.pop()
        episodes = episodes[::-1]
    else:
        env.action_space.seed(args.seed)
        policy = (
            (lambda obs: agent.act(obs, rng, False))
            if agent
            else (lambda obs: env.action_space.sample())
        )
        episodes, total = [], 0
        while total < args.steps:
            episode = new_episode(env.reset(seed=args.seed + len(episodes))[0])
            while total < args.steps:
                action = policy(episode["observations"][-1])
                next_obs, reward, terminated, truncated, _ = env.step(action)
                append(episode, next_obs, action, reward, terminated, truncated)
                total += 1
                if terminated or truncated:
                    break
            episodes.append(episode)
    episodes[-1]["truncations"][-1] = not episodes[-1]["terminations"][-1]
    facts = {"policy_return": policy_return, "sac_steps": train_steps, "reference_source": source}
    return dict(
        env=env, episodes=episodes, reference=reference, facts=facts, algorithm=f"SAC, {args.level}"
    )


# --------------------------------------------------------------------------------------------------------------- maze


def shortest_path(walls: np.ndarray, start: tuple, goal: tuple) -> list[tuple]:
    """Cells from `start` (left out) to `goal` by breadth-first search; walls (rows, columns) bool."""
    parents, queue = {start: None}, deque([start])
    while queue and goal not in parents:
        row, col = queue.popleft()
        for cell in ((row + 1, col), (row - 1, col), (row, col + 1), (row, col - 1)):
            if cell not in parents and not walls[cell]:
                parents[cell] = (row, col)
                queue.append(cell)
    path = [goal]
    while parents[path[-1]] is not None:
        path.append(parents[path[-1]])
    return path[-2::-1] if len(path) > 1 else []


def record_maze(args: MazeArgs) -> dict:
    """Wander through the maze; the episode ends at the goal or after --episode-steps."""
    with (
        open(os.devnull, "w") as null,
        contextlib.redirect_stdout(null),
        contextlib.redirect_stderr(null),
    ):
        import gymnasium_robotics  # prints a notice about Adroit
    gym.register_envs(gymnasium_robotics)
    maze_map = copy.deepcopy(gym.spec(args.env_id).kwargs["maze_map"])
    walls = np.array([[cell == 1 for cell in row] for row in maze_map])
    cells = [tuple(int(i) for i in cell) for cell in np.argwhere(~walls)]
    goal_cell = cells[-1]
    maze_map = [[1 if wall else 0 for wall in row] for row in walls]
    maze_map[goal_cell[0]][goal_cell[1]] = "g"
    for row, col in sorted(cells, key=lambda cell: len(shortest_path(walls, cell, goal_cell)))[
        -args.starts :
    ]:
        maze_map[row][col] = "r"
    task = {
        "maze_map": maze_map,
        "continuing_task": False,
        "reset_target": False,
        "reward_type": "sparse",
    }
    env = gym.make(args.env_id, max_episode_steps=args.time_limit, **task)
    maze, rng = env.unwrapped.maze, np.random.default_rng(args.seed)
    others = [cell for cell in cells if cell != goal_cell]

    episodes, total, hits = [], 0, 0
    while total < args.steps:
        start = others[rng.integers(len(others))]
        obs, _ = env.reset(seed=args.seed + len(episodes), options={"reset_cell": np.array(start)})
        episode, path = new_episode(obs), []
        while total < args.steps and len(episode["rewards"]) < args.episode_steps:
            position, velocity = obs["observation"][:2], obs["observation"][2:]
            cell = tuple(int(i) for i in maze.cell_xy_to_rowcol(position))
            while not path:
                target = (
                    goal_cell
                    if rng.random() < args.goal_visits
                    else others[rng.integers(len(others))]
                )
                path = shortest_path(walls, cell, target)
            waypoint = maze.cell_rowcol_to_xy(np.array(path[0]))
            action = 10 * (waypoint - position) - velocity + args.noise * rng.standard_normal(2)
            action = action.clip(-1, 1).astype(np.float32)
            obs, reward, terminated, _, _ = env.step(action)
            append(episode, obs, action, reward, terminated, False)
            total += 1
            if np.linalg.norm(obs["observation"][:2] - waypoint) < 0.3:
                path.pop(0)
            if terminated:
                break
        hits += episode["terminations"][-1]
        episode["truncations"][-1] = not episode["terminations"][-1]
        episodes.append(episode)
    facts = {
        "goal_share": hits / len(episodes),
        "reference_source": "0: never at the goal, 1: always",
    }
    algorithm = f"waypoint controller, action noise {args.noise}"
    return dict(env=env, episodes=episodes, reference=(0.0, 1.0), facts=facts, algorithm=algorithm)


# ------------------------------------------------------------------------------------------------------------ writing


def new_episode(obs) -> dict:
    return {
        "observations": [obs],
        "actions": [],
        "rewards": [],
        "terminations": [],
        "truncations": [],
    }


def append(episode: dict, next_obs, action, reward, terminated, truncated) -> None:
    values = (next_obs, action, float(reward), bool(terminated), bool(truncated))
    for key, value in zip(episode, values):
        episode[key].append(value)


def float32_space(space: gym.Space) -> gym.Space:
    """The same Box, or Dict of Boxes, with dtype float32: halves the file, and learners compute in float32 anyway."""
    if isinstance(space, gym.spaces.Dict):
        return gym.spaces.Dict({key: float32_space(sub) for key, sub in space.items()})
    return gym.spaces.Box(
        space.low.astype(np.float32), space.high.astype(np.float32), dtype=np.float32
    )


def stack(observations: list):
    if isinstance(observations[0], dict):
        return {key: stack([obs[key] for obs in observations]) for key in observations[0]}
    return np.asarray(observations, np.float32)


def write(
    args, env: gym.Env, episodes: list[dict], reference: tuple, facts: dict, algorithm: str
) -> Path:
    """Create the Minari dataset below args.out, add our metadata, and repack the HDF5 file with compression."""
    os.environ["MINARI_DATASETS_PATH"] = str(args.out.resolve())
    import minari
    from minari.data_collector import EpisodeBuffer

    buffers = [
        EpisodeBuffer(
            id=i,
            observations=stack(e["observations"]),
            actions=np.asarray(e["actions"], np.float32),
            rewards=np.asarray(e["rewards"], np.float64),
            terminations=np.asarray(e["terminations"], bool),
            truncations=np.asarray(e["truncations"], bool),
        )
        for i, e in enumerate(episodes)
    ]
    with (
        warnings.catch_warnings()
    ):  # Minari warns about metadata that are optional here (author, permalink)
        warnings.simplefilter("ignore")
        dataset = minari.create_dataset_from_buffers(
            args.dataset_id,
            buffers,
            env=env.spec,
            observation_space=float32_space(env.observation_space),
            action_space=env.action_space,
            algorithm_name=algorithm,
            ref_min_score=reference[0],
            ref_max_score=reference[1],
            data_format="hdf5",
            requirements=[f"mujoco=={__import__('mujoco').__version__}"],
        )
    returns = [sum(e["rewards"]) for e in episodes]
    score = 100 * (np.mean(returns) - reference[0]) / (reference[1] - reference[0])
    facts = {"behaviour_score": round(float(score), 2), "seed": args.seed, **facts}
    facts["command"] = shlex.join(["python", "tools/make_dataset.py", *sys.argv[1:]])
    dataset.storage.update_metadata({f"o2o_{key}": value for key, value in facts.items()})

    folder = args.out / args.dataset_id / "data"
    main_file, packed = folder / "main_data.hdf5", folder / "packed.hdf5"
    with h5py.File(main_file, "r") as source, h5py.File(packed, "w", libver="latest") as sink:
        copy_compressed(source, sink)
    os.replace(packed, main_file)
    size = round(main_file.stat().st_size / 1e6, 1)
    dataset.storage.update_metadata({"dataset_size": size})
    print(
        f"{args.dataset_id}: {len(episodes)} episodes, {sum(len(e['rewards']) for e in episodes)} steps, {size} MB"
    )
    print(json.dumps(facts, indent=2))
    return folder


def copy_compressed(source: h5py.Group, sink: h5py.Group) -> None:
    """Copy groups, attributes and arrays; arrays become one gzip chunk each."""
    sink.attrs.update(source.attrs)
    for key, item in source.items():
        if isinstance(item, h5py.Group):
            copy_compressed(item, sink.create_group(key))
        else:
            sink.create_dataset(key, data=item[()], chunks=item.shape, compression=9, shuffle=True)


def main() -> None:
    args = tyro.cli(
        Annotated[SACArgs, tyro.conf.subcommand("sac")]
        | Annotated[MazeArgs, tyro.conf.subcommand("maze")],
        description=__doc__,
    )
    if (args.out / args.dataset_id).exists():
        raise SystemExit(
            f"{args.out / args.dataset_id} exists already: delete it, or give another --dataset-id"
        )
    write(args, **(record_sac(args) if isinstance(args, SACArgs) else record_maze(args)))


if __name__ == "__main__":
    main()
