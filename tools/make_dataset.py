"""Make a small D4RL-style Minari dataset for a Gymnasium MuJoCo task or a PointMaze, from nothing.

    python tools/make_dataset.py sac --env-id Hopper-v5 --dataset-id o2o/hopper/medium-v0
    python tools/make_dataset.py maze --dataset-id o2o/pointmaze/large-v0

`sac` trains soft actor-critic (Haarnoja et al., arXiv 1812.05905) and records one of D4RL's levels:

  random         actions drawn uniformly from the action box
  medium         the first checkpoint whose deterministic return reaches a third of the way from the
                 random to the expert reference score, sampled stochastically
  medium-replay  every transition that the training of `medium` has seen, in order
  expert         the best checkpoint after --train-steps, sampled stochastically

`maze` lets a noisy PD controller wander between random cells of a PointMaze along shortest paths.
Reward and termination belong to one fixed goal in a corner; evaluation starts in the cells farthest
from it. Episodes of --episode-steps that are too short to lead from there to the goal have to be
stitched together by the learner (o2o/pointmaze/large-v0); longer ones reach it by themselves.

The dataset is written below --out in Minari's layout (HDF5, gzip; observations and actions
float32). Its metadata hold the environment, the reference scores and where they come from, the
command, the seed and the score of the policy that was recorded. It is made in a hidden folder and
moved when it is whole.

Exit status: 0 written; 2 bad input, one sentence; 130 / 143 interrupted. Only 0 leaves anything.
"""

from __future__ import annotations

import contextlib
import copy
import io
import json
import os
import re
import shlex
import shutil
import signal
import sys
import time
import uuid
import warnings
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal


def stop(number: int, _) -> None:
    """Signal handler: one line, whatever goes on."""
    os.write(2, f"{Path(__file__).name}: interrupted\n".encode())
    os._exit(128 + number)


if __name__ == "__main__":  # the imports below take seconds
    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGTERM, stop)

import gymnasium as gym
import h5py
import minari
import mujoco
import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
import tyro
from minari.dataset.minari_dataset import DATASET_ID_RE

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import iql

# Mean return of a random policy and of an expert, D4RL v2 (d4rl/infos.py). They were measured on
# gym's v2 tasks: on v5 tasks they give a comparable scale, not a comparable number.
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
    steps: Annotated[int, 1, 10**7] = 100_000
    """transitions to record, to the end of an episode (medium-replay: the last ones are kept)"""
    train_steps: Annotated[int, 15_000, 10**7] = 1_000_000
    """environment steps after which training gives up (medium) or stops (expert);
    the policy is evaluated from 15000 on"""
    reference: tuple = (0.0, 0.0)
    """mean return of a random and of an expert policy; 0 0: D4RL's constants for the task"""
    seed: Annotated[int, 0, 2**31] = 0
    """seed of networks, environment and sampling"""
    out: Path = Path("datasets")
    """folder that receives the dataset, in Minari's layout"""
    threads: Annotated[int, 1, 1024] = 1
    """torch threads"""


@dataclass
class MazeArgs:
    """Record a noisy waypoint controller that wanders through a PointMaze."""

    dataset_id: str
    """Minari id of the new dataset, NAMESPACE/TASK/NAME-vN"""
    env_id: str = "PointMaze_Large-v3"
    """a PointMaze of gymnasium-robotics"""
    steps: Annotated[int, 1, 10**7] = 60_000
    """transitions to record"""
    episode_steps: Annotated[int, 1, 10**6] = 100
    """length of a recorded episode that does not reach the goal (env steps)"""
    noise: Annotated[float, 0.0, 100.0] = 0.5
    """standard deviation of the Gaussian noise on the controller's action"""
    goal_visits: Annotated[float, 0.0, 1.0] = 0.3
    """probability that a waypoint is the goal's cell rather than any other"""
    starts: Annotated[int, 1, 10**4] = 8
    """evaluation starts in one of this many cells, those farthest from the goal"""
    time_limit: Annotated[int, 1, 10_000] = 600
    """length of an episode of the task (env steps)"""
    seed: Annotated[int, 0, 2**31] = 0
    """seed of environment, waypoints and noise"""
    out: Path = Path("datasets")
    """folder that receives the dataset, in Minari's layout"""


# ---------------------------------------------------------------------------------------------- SAC


class Ensemble(nn.Module):
    """`size` independent MLPs with two hidden layers, one batched matmul per layer."""

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
        """(B, in) -> (E, B, out). Frozen: gradients flow to the input, not into the parameters."""
        x = x.expand(len(self.weights[0]), *x.shape)
        for i, (weight, bias) in enumerate(zip(self.weights, self.biases)):
            if frozen:
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
        """Action in (-1, 1) and its log-probability for standard normal `noise`;
        obs (B, obs_dim), noise (B, act_dim)."""
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
        """The policy's forward pass for one observation in NumPy: ten times faster than torch's."""
        x = obs.astype(np.float32)
        for i, (weight, bias) in enumerate(self.numpy_actor):
            x = x @ weight + bias
            x = np.maximum(x, 0) if i < 2 else x
        mean, log_std = np.split(x, 2)
        noise = 0 if deterministic else rng.standard_normal(mean.shape, np.float32)
        return np.tanh(mean + np.exp(log_std.clip(-5, 2)) * noise)

    @property
    def numpy_actor(self):
        """Weight (in, out) and bias (out,) of each of the policy's layers."""
        return [
            (w[0].numpy(), b[0, 0].numpy()) for w, b in zip(self.actor.weights, self.actor.biases)
        ]


def evaluate(agent: SAC, env: gym.Env, episodes: int, rng: np.random.Generator) -> float:
    """Mean undiscounted return of the policy's mode over `episodes` episodes."""
    returns = []
    for episode in range(episodes):
        obs, done, total = env.reset(seed=10_000 + episode)[0], False, 0.0
        while not done:
            obs, reward, terminated, truncated, _ = env.step(
                agent.act(obs, rng, deterministic=True)
            )
            total, done = total + float(reward), terminated or truncated
        returns.append(total)
    return float(np.mean(returns))


def train_sac(args: SACArgs, threshold: float) -> tuple[SAC, list[dict], float, int]:
    """Train until the deterministic return reaches `threshold`, or for all of --train-steps and
    keep the best policy.

    Returns the agent, the episodes that training has seen, the kept policy's return and the steps
    it took."""
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
            iql.fail(f"the return never reached {threshold:.0f} in {args.train_steps} steps")
    agent.load_state_dict(best)
    episodes += [episode] if episode["rewards"] else []
    return agent, episodes, best_return, best_step


def references_of(args: SACArgs) -> tuple[tuple[float, float], str]:
    """The mean returns of a random and of an expert policy, and where they come from."""
    name = args.env_id.rsplit("-", 1)[0]
    if args.reference == (0, 0):
        if name not in D4RL_REFERENCES:
            iql.fail(f"no reference scores are known for {name}: give --reference RANDOM EXPERT")
        return D4RL_REFERENCES[name], "D4RL v2 (measured on gym's v2 tasks)"
    two = len(args.reference) == 2 and np.isfinite(args.reference).all()
    if not two or args.reference[0] >= args.reference[1]:
        iql.fail("--reference must be two finite numbers, the lower one first")
    return args.reference, "given on the command line"


def sac_env(args: SACArgs) -> gym.Env:
    """The environment to record in: one that SAC, as it stands here, can act in."""
    env = build(args.env_id)
    for space in (env.observation_space, env.action_space):
        if not isinstance(space, gym.spaces.Box) or len(space.shape) != 1:
            iql.fail(f"--env-id {args.env_id}: observations and actions must be vectors")
    low, high = env.action_space.low, env.action_space.high
    if not np.isfinite([low, high]).all():
        iql.fail(f"--env-id {args.env_id}: the action box must have borders")
    if args.level != "random" and not ((low == -1).all() and (high == 1).all()):
        iql.fail(f"--env-id {args.env_id}: SAC acts in [-1, 1], the action box is another")
    if env.spec.max_episode_steps is None:
        iql.fail(f"--env-id {args.env_id} has no time limit: its episodes may never end")
    return env


def record_sac(args: SACArgs, env: gym.Env) -> dict:
    """Train (unless random) and collect episodes of the wanted level."""
    reference, source = references_of(args)
    rng = np.random.default_rng(args.seed + 1)
    agent, policy_return, train_steps = None, None, 0
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


# --------------------------------------------------------------------------------------------- maze


def shortest_path(walls: np.ndarray, start: tuple, goal: tuple) -> list[tuple]:
    """Cells from `start` (left out) to `goal`, breadth-first; walls (rows, columns) bool."""
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


def free_cells(maze_map: list) -> tuple[np.ndarray, list[tuple]]:
    """Walls of a maze (rows, columns) bool, and its cells without one; the last is the goal's."""
    walls = np.array([[cell == 1 for cell in row] for row in maze_map])
    return walls, [tuple(int(i) for i in cell) for cell in np.argwhere(~walls)]


def maze_env(args: MazeArgs) -> gym.Env:
    """The maze to record in: one fixed goal, and starts in the cells farthest from it."""
    with (
        open(os.devnull, "w") as null,
        contextlib.redirect_stdout(null),
        contextlib.redirect_stderr(null),
    ):
        import gymnasium_robotics  # prints a notice about Adroit
    gym.register_envs(gymnasium_robotics)
    registered = gym.registry.get(args.env_id)
    if registered is None or not args.env_id.startswith("PointMaze_"):
        iql.fail(f"--env-id {args.env_id} is no PointMaze of gymnasium-robotics")
    walls, cells = free_cells(registered.kwargs["maze_map"])
    goal_cell = cells[-1]
    if args.starts >= len(cells):
        iql.fail(f"--starts must be at most {len(cells) - 1}, the cells besides the goal's")
    maze_map = [[1 if wall else 0 for wall in row] for row in walls]
    maze_map[goal_cell[0]][goal_cell[1]] = "g"
    by_distance = sorted(cells, key=lambda cell: len(shortest_path(walls, cell, goal_cell)))
    for row, col in by_distance[-args.starts :]:
        maze_map[row][col] = "r"
    task = {
        "maze_map": maze_map,
        "continuing_task": False,
        "reset_target": False,
        "reward_type": "sparse",
    }
    return build(args.env_id, max_episode_steps=args.time_limit, **task)


def record_maze(args: MazeArgs, env: gym.Env) -> dict:
    """Wander through the maze; the episode ends at the goal or after --episode-steps."""
    walls, cells = free_cells(env.unwrapped.maze.maze_map)
    goal_cell, others = cells[-1], cells[:-1]
    maze, rng = env.unwrapped.maze, np.random.default_rng(args.seed)

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


# ------------------------------------------------------------------------------------------ writing


def build(env_id: str, **kwargs) -> gym.Env:
    """gym.make, or a sentence why it cannot."""
    try:
        return gym.make(env_id, **kwargs)
    except Exception as error:  # an unknown id, a missing package, an environment of one's own
        iql.fail(f"cannot build --env-id {env_id}: {' '.join(str(error).split())}")


def new_episode(obs) -> dict:
    """Columns of an episode that begins with this observation."""
    return {
        "observations": [obs],
        "actions": [],
        "rewards": [],
        "terminations": [],
        "truncations": [],
    }


def append(episode: dict, next_obs, action, reward, terminated, truncated) -> None:
    """Add a step to the columns."""
    values = (next_obs, action, float(reward), bool(terminated), bool(truncated))
    for key, value in zip(episode, values):
        episode[key].append(value)


def float32_space(space: gym.Space) -> gym.Space:
    """The same Box, or Dict of Boxes, with dtype float32: halves the file, and learners compute in
    float32 anyway."""
    if isinstance(space, gym.spaces.Dict):
        return gym.spaces.Dict({key: float32_space(sub) for key, sub in space.items()})
    return gym.spaces.Box(
        space.low.astype(np.float32), space.high.astype(np.float32), dtype=np.float32
    )


def stack(observations: list):
    """T observations, arrays or dictionaries of arrays -> the same with T rows, float32."""
    if isinstance(observations[0], dict):
        return {key: stack([obs[key] for obs in observations]) for key in observations[0]}
    return np.asarray(observations, np.float32)


def pack(episodes: list[dict]) -> bytes:
    """The episodes as an HDF5 file in Minari's layout. It is made in memory: HDF5 itself crashes
    where a disk is full."""
    dtypes = {
        "actions": np.float32,
        "rewards": np.float64,
        "terminations": bool,
        "truncations": bool,
    }
    memory = io.BytesIO()
    with h5py.File(memory, "w", libver="latest") as file:
        for number, episode in enumerate(episodes):
            group = file.create_group(f"episode_{number}")
            group.attrs.update({"id": number, "total_steps": len(episode["rewards"])})
            add(group, "observations", stack(episode["observations"]))
            for key, dtype in dtypes.items():
                add(group, key, np.asarray(episode[key], dtype))
    return memory.getvalue()


def add(group: h5py.Group, key: str, value) -> None:
    """Add an array as one gzip chunk, or a dict of arrays as a group of such."""
    if isinstance(value, dict):
        for name, part in value.items():
            add(group.require_group(key), name, part)
    else:
        group.create_dataset(key, data=value, chunks=value.shape, compression=9, shuffle=True)


def write(
    args, root: Path, env: gym.Env, episodes: list[dict], reference: tuple, facts: dict, algorithm
) -> None:
    """Create the Minari dataset below root, with metadata of ours, and put the episodes into it."""
    os.environ["MINARI_DATASETS_PATH"] = str(root)
    with warnings.catch_warnings():
        # Minari warns about metadata that are optional here (author, permalink)
        warnings.simplefilter("ignore")
        dataset = minari.create_dataset_from_buffers(
            args.dataset_id,
            [],
            env=env.spec,
            observation_space=float32_space(env.observation_space),
            action_space=env.action_space,
            algorithm_name=algorithm,
            ref_min_score=reference[0],
            ref_max_score=reference[1],
            data_format="hdf5",
            requirements=[f"mujoco=={mujoco.__version__}"],
        )
    file = pack(episodes)
    (root / args.dataset_id / "data/main_data.hdf5").write_bytes(file)
    returns = [sum(episode["rewards"]) for episode in episodes]
    score = 100 * (np.mean(returns) - reference[0]) / (reference[1] - reference[0])
    facts = {"behaviour_score": round(float(score), 2), "seed": args.seed, **facts}
    facts["command"] = shlex.join(["python", "tools/make_dataset.py", *sys.argv[1:]])
    steps, size = sum(len(episode["rewards"]) for episode in episodes), round(len(file) / 1e6, 1)
    sizes = {"total_episodes": len(episodes), "total_steps": steps, "dataset_size": size}
    dataset.storage.update_metadata(sizes | {f"o2o_{key}": x for key, x in facts.items()})
    print(f"{args.dataset_id}: {len(episodes)} episodes, {steps} steps, {size} MB")
    print(json.dumps(facts, indent=2))


def move(root: Path, out: Path, dataset_id: str) -> None:
    """Move a whole dataset, and Minari's files about its namespaces, from root to out."""
    (out / dataset_id).parent.mkdir(parents=True, exist_ok=True)
    for file in root.rglob("namespace_metadata.json"):
        if not (out / file.relative_to(root)).exists():
            os.replace(file, out / file.relative_to(root))
    os.rename(root / dataset_id, out / dataset_id)


def main() -> None:
    """Check everything that can be checked, record, and only then write."""
    iql.SCRIPT = Path(__file__)  # error messages start with its name
    args = iql.read_flags(
        Annotated[SACArgs, tyro.conf.subcommand("sac")]
        | Annotated[MazeArgs, tyro.conf.subcommand("maze")],
        description=__doc__,
    )
    iql.check_ranges(args)
    gym.logger.min_level = gym.logger.ERROR  # older tasks announce their age
    plain = re.fullmatch(r"([\w-]{1,99}/)*[\w-]{1,99}-v\d{1,9}", args.dataset_id, re.ASCII)
    if not plain or not DATASET_ID_RE.fullmatch(args.dataset_id):
        iql.fail(f"--dataset-id {args.dataset_id} is not of the form NAMESPACE/TASK/NAME-v0")
    target = args.out / args.dataset_id
    if os.path.lexists(target):
        iql.fail(f"{target} exists already: delete it, or give another --dataset-id or --out")
    home = next(folder for folder in target.absolute().parents if os.path.exists(folder))
    root = home / f".making-{uuid.uuid4().hex}"

    def clear_and_stop(number: int, _) -> None:
        shutil.rmtree(root, ignore_errors=True)
        stop(number, _)

    signal.signal(signal.SIGINT, clear_and_stop)
    signal.signal(signal.SIGTERM, clear_and_stop)
    try:
        root.mkdir()
        if isinstance(args, SACArgs):
            recorded = record_sac(args, sac_env(args))
        else:
            recorded = record_maze(args, maze_env(args))
        write(args, root, **recorded)
        move(root, args.out, args.dataset_id)
    except (OSError, MemoryError, RuntimeError) as error:  # torch raises RuntimeErrors
        iql.fail(f"cannot write {target}: {error}")
    finally:
        shutil.rmtree(root, ignore_errors=True)


if __name__ == "__main__":
    main()
