"""IQL: implicit Q-learning, offline and then online (Kostrikov, Nair, Levine, ICLR 2022, arXiv 2110.06169).

A critic trained on max_a Q(s', a) asks about actions that the data never tried, and overestimates them. IQL never asks:
V is an upper expectile of Q over the actions in the data, Q regresses on V, and the policy imitates the data's actions,
the more the better they are. With Qt the minimum over the target critics, and expectile e in (0.5, 1):

    value     L_V = E[ |e - 1(u < 0)| u^2 ]                              u = Qt(s, a) - V(s)
    actor     L_A = -E[ min(exp(beta u), 100) log pi(a | s) ]            no gradient through u
    critic    L_Q = sum_i E[ (r + gamma (1 - d) V(s') - Q_i(s, a))^2 ]   no gradient through V(s')
    target    Qt_i <- (1 - tau) Qt_i + tau Q_i

What changes at the switch from offline to online: only where the data come from. The policy acts (a sample, clipped to
the box), each transition joins the data set, batches are uniform over both, one update per step, the same losses.
Parent: none, this is the root of its family. Measured: docs/iql.md, with commands, seeds and curves.

Deviations from the authors' code (github.com/ikostrikov/implicit_q_learning):
 1. All losses see the networks as before the step: one backward pass, one Adam step. The authors use the new V.
 2. Online rewards get the scale of the offline ones; the authors' fine-tuning script adds unscaled locomotion rewards.
 3. The last transition of a timed-out episode is kept, and a time limit never cuts the bootstrap.
 4. --normalize-returns takes the returns of the recorded episodes; the authors look for jumps between observations.
 5. Goal tasks: observations hold the desired goal too; episodes end at the first success, in data and environment.
 6. The actor's learning rate is constant, as in their fine-tuning script; --actor-lr-decay is their offline script's.
 7. The settings for pointmaze are ours (antmaze's, with the decay), so are the budgets of locomotion, kitchen, pointmaze.
 8. Matrix products may round their inputs to bfloat16 where the CPU can; --matmul-precision highest forbids it.

    python iql.py                                         # bundled hopper data: 100k updates, then 50k env steps
    python iql.py --dataset-id D4RL/antmaze/umaze-v1      # the paper's settings: 1M updates, then 1M env steps
    python iql.py --resume runs/NAME/latest.pt            # go on where a run has stopped
"""

import contextlib
import copy
import csv
import dataclasses
import importlib.metadata
import json
import logging
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Literal

import gymnasium as gym
import minari
import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
import tyro
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm


@dataclasses.dataclass
class Args:
    # ---- shared arguments: the same in every script ----
    seed: int = 0  # seed of networks, batches, exploration and environments
    dataset_id: str = "o2o/hopper/medium-v0"  # Minari id: the bundled copy, else the local Minari copy, else a download
    device: Literal["auto", "cpu", "cuda"] = (
        "auto"  # where networks and data live; auto: cuda if there is one
    )
    offline_steps: int = (
        100_000  # gradient steps on the data set alone; 0 leaves the offline phase out
    )
    online_steps: int = 50_000  # environment steps of the online phase; 0 leaves it out
    eval_every: int = (
        5_000  # steps between evaluations (gradient steps offline, environment steps online)
    )
    eval_episodes: int = 10  # episodes per evaluation
    batch_size: int = 256  # transitions per gradient step
    gamma: float = 0.99  # discount per environment step
    tau: float = 0.005  # Polyak rate of the target critic per gradient step
    reward_scale: float = (
        1.0  # the learner sees reward_scale * r + reward_bias; logged returns are raw
    )
    reward_bias: float = 0.0  # added after scaling, see --reward-scale
    success_ends_episode: bool = (
        False  # mazes: end an episode at its first success, in data and environment
    )
    matmul_precision: Literal["highest", "medium"] = (
        "medium"  # medium: bfloat16 (CPU) or TF32 (GPU) inside products
    )
    compile: bool = True  # torch.compile the loss where that works (CPU: a C++ compiler is needed; GPU: CUDA graphs)
    run_dir: str = "runs"  # folder that holds the runs
    run_name: str | None = (
        None  # this run's folder in it; default: data set, script, seed and start time
    )
    checkpoint_every: int = (
        10_000  # steps between two writes of latest.pt (online: at the next episode's end)
    )
    resume: str | None = None  # a run's latest.pt: go on in its directory with its arguments
    offline_checkpoint: str | None = (
        None  # an offline.pt: skip the offline phase and start at the switch
    )
    track: bool = False  # log to Weights & Biases too (pip install wandb)
    capture_video: bool = False  # film the first episode of every evaluation (pip install moviepy)
    # ---- end of shared arguments ----
    learning_rate: float = 3e-4  # Adam step size of all networks
    actor_lr_decay: bool = (
        False  # let the actor's step size fall to 0 over the offline phase (cosine)
    )
    num_critics: int = 2  # size of the critic ensemble; targets and advantages take its minimum
    expectile: float = (
        0.7  # expectile of Q that V estimates: 0.5 the mean, towards 1 the best action in the data
    )
    beta: float = 3.0  # inverse temperature of the advantage weights; 0 is behaviour cloning
    dropout: float = 0.0  # dropout rate inside the actor's loss
    normalize_returns: bool = (
        False  # multiply rewards by 1000 / (highest - lowest episode return in the data)
    )


# The paper's settings (section 5, appendix B, authors' configs) by family, the second-to-last part of a data set's id.
FINE_TUNE = {"offline_steps": 1_000_000, "online_steps": 1_000_000, "checkpoint_every": 50_000}
MAZE = {"expectile": 0.9, "beta": 10.0, "reward_bias": -1.0, "success_ends_episode": True}
PAPER_SETTINGS = {
    **dict.fromkeys(
        ["hopper", "halfcheetah", "walker2d", "ant"],
        {"expectile": 0.7, "beta": 3.0, "normalize_returns": True},
    ),
    **dict.fromkeys(
        ["pen", "door", "hammer", "relocate", "kitchen"], {"beta": 0.5, "dropout": 0.1} | FINE_TUNE
    ),
    "antmaze": MAZE | FINE_TUNE | {"eval_every": 100_000, "eval_episodes": 100},
    "pointmaze": MAZE | {"actor_lr_decay": True, "eval_episodes": 24},
}

NETWORKS = "iql"  # scripts with the same word here accept each other's offline.pt
METRICS = [
    "value_loss",
    "critic_loss",
    "actor_loss",
    "q",
    "v",
    "advantage",
    "weight",
]  # what update() returns
KEYS = [f"{phase}/{name}" for phase in ("offline", "online") for name in METRICS]
KEYS += [
    "online/episode_return",
    "online/episode_length",
    "eval/return",
    "eval/score",
    "eval/success",
]


def mlp(in_dim: int, out_dim: int, hidden: int = 256) -> nn.Sequential:
    """Two hidden layers of ReLU units; orthogonal weights with gain sqrt(2) in every layer, zero biases."""
    layers = []
    for fan_in, fan_out in ((in_dim, hidden), (hidden, hidden), (hidden, out_dim)):
        linear = nn.Linear(fan_in, fan_out)
        nn.init.orthogonal_(linear.weight, math.sqrt(2))
        nn.init.zeros_(linear.bias)
        layers += [linear, nn.ReLU()]
    return nn.Sequential(*layers[:-1])


class Actor(nn.Module):
    """Diagonal Gaussian: its mean tanh(mlp(obs)) lies in the action box, one standard deviation per action entry."""

    def __init__(self, obs_dim: int, act_dim: int):
        super().__init__()
        self.mean = mlp(obs_dim, act_dim)
        self.log_std = nn.Parameter(torch.zeros(act_dim))

    def forward(self, obs: torch.Tensor, dropout: float = 0.0) -> tuple[torch.Tensor, torch.Tensor]:
        x = obs
        for layer in self.mean:
            x = F.dropout(layer(x), dropout) if isinstance(layer, nn.ReLU) else layer(x)
        return torch.tanh(x), self.log_std.clamp(-5.0, 2.0)  # (B, act_dim), (act_dim,)

    def log_prob(self, obs: torch.Tensor, actions: torch.Tensor, dropout: float) -> torch.Tensor:
        """Log-density of actions (B, act_dim), summed over entries: (B,). The Gaussian itself is not squashed."""
        mean, log_std = self(obs, dropout)
        z = (actions - mean) * torch.exp(-log_std)
        return (-0.5 * z.square() - log_std - 0.5 * math.log(2 * math.pi)).sum(-1)


class Critic(nn.Module):
    """E Q-functions, each an mlp() of observation and action; one batched matmul per layer serves all of them."""

    def __init__(self, num_critics: int, obs_dim: int, act_dim: int):
        super().__init__()
        members = [
            [m for m in mlp(obs_dim + act_dim, 1) if isinstance(m, nn.Linear)]
            for _ in range(num_critics)
        ]
        self.weights = nn.ParameterList(
            torch.stack([m.weight.detach().T for m in layer]) for layer in zip(*members)
        )
        self.biases = nn.ParameterList(
            torch.stack([m.bias.detach()[None] for m in layer]) for layer in zip(*members)
        )

    def forward(self, obs: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
        x = torch.cat([obs, actions], -1).expand(
            len(self.weights[0]), -1, -1
        )  # (E, B, obs_dim + act_dim)
        for layer, (weight, bias) in enumerate(zip(self.weights, self.biases)):
            x = torch.baddbmm(bias, F.relu(x) if layer else x, weight)
        return x.squeeze(-1)  # (E, B)


class Agent(nn.Module):
    """The networks of IQL (so that state_dict() is what a checkpoint holds), their optimizer and their update."""

    def __init__(self, obs_dim: int, act_dim: int, args: Args, device: torch.device):
        super().__init__()
        self.args = args
        self.actor, self.value = Actor(obs_dim, act_dim), mlp(obs_dim, 1)
        self.critic = Critic(args.num_critics, obs_dim, act_dim)
        self.critic_target = copy.deepcopy(self.critic).requires_grad_(False)
        self.to(device)
        groups = [
            {"params": [*self.actor.parameters()]},
            {"params": [*self.value.parameters(), *self.critic.parameters()]},
        ]
        self.optimizer = torch.optim.Adam(groups, lr=args.learning_rate, fused=True)
        if args.compile:
            self.loss = torch.compile(
                self.loss, mode="reduce-overhead" if device.type == "cuda" else None
            )

    @torch.no_grad()
    def act(self, obs: torch.Tensor, deterministic: bool) -> torch.Tensor:
        """Action (act_dim,) in [-1, 1] for one observation (obs_dim,): the policy's mean, or a sample."""
        mean, log_std = self.actor(obs)
        return (
            mean
            if deterministic
            else (mean + log_std.exp() * torch.randn_like(mean)).clamp(-1.0, 1.0)
        )

    def loss(self, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Sum of the three losses, each with gradients to its own network only; and what to log."""
        obs, actions = batch["obs"], batch["actions"]
        with torch.no_grad():
            target_q = self.critic_target(obs, actions).amin(0)  # (E, B) -> (B,)
            target = (
                batch["rewards"]
                + self.args.gamma
                * (1 - batch["terminations"])
                * self.value(batch["next_obs"])[:, 0]
            )

        value = self.value(obs).squeeze(-1)
        u = target_q - value  # the advantage of the data's action
        value_loss = (
            torch.where(u > 0, self.args.expectile, 1 - self.args.expectile) * u.square()
        ).mean()
        weights = torch.exp(self.args.beta * u.detach()).clamp(
            max=100.0
        )  # no single action may rule the batch
        actor_loss = -(weights * self.actor.log_prob(obs, actions, self.args.dropout)).mean()
        q = self.critic(obs, actions)  # (E, B)
        critic_loss = (q - target).square().mean(1).sum()

        logged = (
            value_loss,
            critic_loss,
            actor_loss,
            q.mean(),
            value.mean(),
            u.mean(),
            weights.mean(),
        )
        return value_loss + actor_loss + critic_loss, {
            name: x.detach() for name, x in zip(METRICS, logged)
        }

    def update(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """One gradient step on all networks, then the target critic follows."""
        self.optimizer.zero_grad()
        loss, metrics = self.loss(batch)
        loss.backward()
        self.optimizer.step()
        critic = [
            parameter.detach() for parameter in self.critic.parameters()
        ]  # else a graph grows behind the target
        torch._foreach_lerp_(list(self.critic_target.parameters()), critic, self.args.tau)
        return metrics


def return_scale(rewards: np.ndarray, ends: np.ndarray) -> float:
    """1000 / (highest - lowest episode return); rewards (N,), ends (episodes,) one past each episode's last."""
    returns = np.add.reduceat(rewards, np.r_[0, ends[:-1]], dtype=np.float64)
    check(
        returns.min() < returns.max(),
        "all episodes have the same return: give --no-normalize-returns",
    )
    return float(1000 / (returns.max() - returns.min()))


def main(args: Args) -> None:
    device = set_up(args)
    columns, ends, task, references = load_data(args)
    env, eval_env = (
        make_env(task, columns, args),
        make_env(task, columns, args, video=args.capture_video),
    )
    scale = args.reward_scale * (
        return_scale(columns["rewards"], ends) if args.normalize_returns else 1.0
    )
    columns["rewards"] = scale * columns["rewards"] + args.reward_bias
    buffer = ReplayBuffer(columns, args.online_steps, device)
    agent = Agent(columns["obs"].shape[1], columns["actions"].shape[1], args, device)
    run = Run(args, agent, buffer, references)

    # ---- offline: gradient steps -offline_steps + 1, ..., 0
    for step in run.steps("offline"):
        if args.actor_lr_decay:
            decay = 0.5 * (1 - math.cos(math.pi * (step - 1) / args.offline_steps))  # from 1 to 0
            agent.optimizer.param_groups[0]["lr"] = args.learning_rate * decay
        run.report(agent.update(buffer.sample(args.batch_size)))
        if step % args.eval_every == 0 and step < 0:
            run.evaluate(agent.act, eval_env)
        run.checkpoint()

    # ---- the switch: nothing changes but where the data come from
    if run.phase == "offline":
        agent.optimizer.param_groups[0]["lr"] = args.learning_rate
        run.evaluate(agent.act, eval_env)
        run.end_offline()

    # ---- online: environment steps 1, ..., online_steps
    obs, _ = env.reset(seed=run.seed(0, run.episode))
    for step in run.steps("online"):
        action = agent.act(torch.from_numpy(obs).to(device), deterministic=False).cpu().numpy()
        next_obs, reward, terminated, truncated, info = env.step(action)
        reward = scale * float(reward) + args.reward_bias
        buffer.add(
            obs=obs, actions=action, rewards=reward, next_obs=next_obs, terminations=terminated
        )
        obs = next_obs
        run.report(agent.update(buffer.sample(args.batch_size)))
        if step % args.eval_every == 0 or step == args.online_steps:
            run.evaluate(agent.act, eval_env)
        if terminated or truncated:
            run.end_episode(info["episode"])
            obs, _ = env.reset(seed=run.seed(0, run.episode))
    run.finish()


# ==== below this line: the same in every script (tests/test_shared_blocks.py) ====

SCRIPT, BUNDLED = Path(__file__), Path(__file__).resolve().parent / "datasets"
LOG_EVERY = 500  # steps between two readings of the losses: a GPU has to wait for each
PROGRESS = (
    "phase",
    "step",
    "episode",
    "history",
    "seconds",
)  # attributes of Run that a resumed run goes on with
# Mean returns of a random policy and of an expert, for mujoco/* data, which name none: D4RL v2, measured on gym's v2 tasks.
REFERENCE_SCORES = {"hopper": (-20.272305, 3234.3), "halfcheetah": (-280.178953, 12135.0)}
REFERENCE_SCORES |= {"walker2d": (1.629008, 4592.3), "ant": (-325.6, 3879.7)}


def check(condition: bool, message: str, status: int = 2) -> None:
    """Unless the condition holds, end the run with one sentence: status 2 bad input, 3 diverged, 130/143 interrupted."""
    if not condition:
        print(f"{SCRIPT.name}: {message}", file=sys.stderr)
        raise SystemExit(status)


def flatten(space: gym.Space, x) -> np.ndarray:
    """One observation -> (dim,), a column of T -> (T, dim) float32, in the order of gymnasium.spaces.flatten."""
    if isinstance(space, gym.spaces.Dict):
        return np.concatenate([flatten(sub, x[key]) for key, sub in space.items()], axis=-1)
    check(
        isinstance(space, gym.spaces.Box) and len(space.shape) < 3,
        f"observations must be vectors, not {space}",
    )
    x = np.array(x, np.float32)  # a copy: some tasks change the observation that they returned
    return x.reshape(*x.shape[: x.ndim - len(space.shape)], -1)


def find_dataset(dataset_id: str) -> minari.MinariDataset:
    """The bundled copy, else the local Minari copy, else a download."""
    for folder in (BUNDLED, minari.storage.get_dataset_path()):
        if (folder / dataset_id / "data").is_dir():
            return minari.MinariDataset(folder / dataset_id / "data")
    try:
        return minari.load_dataset(dataset_id, download=True)
    except Exception as error:
        have = [str(path.parent.relative_to(BUNDLED)) for path in BUNDLED.glob("**/data")] + [
            *minari.list_local_datasets()
        ]
        why = f"`minari download {dataset_id}` fails: {type(error).__name__}: {error}".splitlines()[
            0
        ]
        check(
            False,
            f"no data set {dataset_id} (bundled or local: {', '.join(sorted(have)) or 'none'}), and {why}",
        )


def read_episodes(
    dataset: minari.MinariDataset, success_ends_episode: bool
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """All transitions as float32 columns, rewards raw, actions rescaled to [-1, 1]; and one past each episode's last.
    An episode of T steps has T + 1 observations, so the last transition is kept even where a time limit cut it."""
    obs_dim, low, high = (
        gym.spaces.flatdim(dataset.observation_space),
        dataset.action_space.low,
        dataset.action_space.high,
    )
    shapes = {
        "obs": (obs_dim,),
        "actions": low.shape,
        "rewards": (),
        "next_obs": (obs_dim,),
        "terminations": (),
    }
    columns = {
        name: np.empty((int(dataset.total_steps), *shape), np.float32)
        for name, shape in shapes.items()
    }
    ends = [0]
    for episode in dataset.iterate_episodes():
        obs, length = flatten(dataset.observation_space, episode.observations), len(episode.rewards)
        terminations = episode.terminations
        if success_ends_episode:
            success = np.asarray((episode.infos or {}).get("success", episode.rewards > 0), bool)[
                -length:
            ]
            length = min([length, *np.flatnonzero(success)[:1] + 1])
            terminations = terminations | success
        rows = slice(ends[-1], ends[-1] + length)
        columns["obs"][rows], columns["next_obs"][rows] = obs[:length], obs[1 : length + 1]
        actions = 2 * (episode.actions[:length] - low) / (high - low) - 1
        columns["actions"][rows] = actions.clip(
            -1 + 1e-5, 1 - 1e-5
        )  # tanh never reaches the borders
        columns["rewards"][rows], columns["terminations"][rows] = (
            episode.rewards[:length],
            terminations[:length],
        )
        ends += [rows.stop] if length else []
    check(ends[-1] > 0, "the data set holds no transition")
    return {name: column[: ends[-1]] for name, column in columns.items()}, np.array(ends[1:])


def task_of(metadata: dict, args: Args) -> gym.envs.registration.EnvSpec:
    """The task that belongs to the data: its evaluation variant where there is one (it fixes start and goal of a maze),
    mirrored back where its walls are the mirror image of the data's, as in Minari's umaze."""
    specs = [
        gym.envs.registration.EnvSpec.from_json(metadata[k])
        for k in ("env_spec", "eval_env_spec")
        if metadata.get(k)
    ]
    check(bool(specs), "the data set names no environment: create it with the argument env=...")
    task = specs[-1]
    if "gymnasium_robotics" in str(
        task.entry_point
    ):  # imported only here, without its notice about Adroit
        with (
            open(os.devnull, "w") as null,
            contextlib.redirect_stdout(null),
            contextlib.redirect_stderr(null),
        ):
            gym.register_envs(importlib.import_module("gymnasium_robotics"))
    if "adroit" in str(task.entry_point):
        print(
            "note: gymnasium-robotics 1.2.1 changed the dense Adroit rewards: compare with tools/check_data.py"
        )
    walls = [
        [[cell == 1 for cell in row] for row in spec.kwargs.get("maze_map", [])] for spec in specs
    ]
    if walls[0] != walls[-1]:
        check(
            [row[::-1] for row in walls[-1]] == walls[0],
            "the evaluation maze has other walls than the data's",
        )
        task.kwargs["maze_map"] = [row[::-1] for row in task.kwargs["maze_map"]]
    task.kwargs |= {"continuing_task": False} if args.success_ends_episode else {}
    if (
        task.max_episode_steps or math.inf
    ) > 10_000:  # pointmaze data name a limit of a million steps
        task.max_episode_steps = gym.registry.get(task.id, task).max_episode_steps
    return task


def load_data(
    args: Args,
) -> tuple[dict[str, np.ndarray], np.ndarray, gym.envs.registration.EnvSpec, tuple | None]:
    """The data set --dataset-id, checked: columns and episode ends, its task, and the returns that score 0 and 100."""
    try:
        dataset = find_dataset(args.dataset_id)
        metadata, box = dataset.storage.metadata, dataset.action_space
        vectors = isinstance(box, gym.spaces.Box) and len(box.shape) == 1
        check(vectors and box.is_bounded(), f"actions must be vectors in a bounded Box, not {box}")
        task = task_of(metadata, args)
        columns, ends = read_episodes(dataset, args.success_ends_episode)
    except Exception as error:  # a damaged file fails in h5py, JSON or Minari, in many ways
        check(False, f"cannot read the data set {args.dataset_id}: {type(error).__name__}: {error}")
    for name, column in columns.items():
        check(
            bool(np.isfinite(column).all()),
            f"the data set {args.dataset_id} holds NaN or infinity in its {name}",
        )
    check(
        args.batch_size <= ends[-1],
        f"--batch-size {args.batch_size} is more than the {ends[-1]} transitions of the data",
    )
    references, source = REFERENCE_SCORES.get(args.dataset_id.split("/")[-2:][0]), "D4RL v2"
    if metadata.get("ref_max_score") is not None:
        references = (metadata["ref_min_score"], metadata["ref_max_score"])
        source = metadata.get("o2o_reference_source", "the data set")
    print(f"data: {args.dataset_id}, {len(ends)} episodes, {ends[-1]} transitions, task {task.id}")
    print(
        "score: 0 = return {:g}, 100 = return {:g}; {}".format(*references, source)
        if references
        else "score: none"
    )
    return columns, ends, task, references


def make_env(
    task: gym.envs.registration.EnvSpec, columns: dict, args: Args, video: bool = False
) -> gym.Env:
    """The task with flat float32 observations, actions in [-1, 1] and episode statistics in info["episode"]."""
    try:
        env = gym.make(
            task, disable_env_checker=True, **({"render_mode": "rgb_array"} if video else {})
        )
        if video:
            env.reset(seed=0)
            env.render()  # fails here, before anything is written, where nothing can be drawn
            env = gym.wrappers.RecordVideo(
                env, f"{args.run_dir}/{args.run_name}/videos", lambda n: n % args.eval_episodes == 0
            )
    except Exception as error:
        check(
            False,
            f"cannot build {task.id} {task.kwargs}: {error}"
            + video * "; --capture-video may need MUJOCO_GL=egl",
        )
    dims = [gym.spaces.flatdim(env.observation_space), gym.spaces.flatdim(env.action_space)]
    in_data = [columns[name].shape[1] for name in ("obs", "actions")]
    check(
        dims == in_data,
        f"{task.id} has {dims} observation and action entries, the data have {in_data}",
    )
    space, flat_space = (
        env.observation_space,
        gym.spaces.Box(-np.inf, np.inf, (dims[0],), np.float32),
    )
    env = gym.wrappers.TransformObservation(env, lambda obs: flatten(space, obs), flat_space)
    if (env.action_space.low != -1).any() or (env.action_space.high != 1).any():
        env = gym.wrappers.RescaleAction(env, np.float32(-1), np.float32(1))
    return gym.wrappers.RecordEpisodeStatistics(env)


class ReplayBuffer:
    """Transitions as rows of one tensor (a batch is one gather): the data set's, then up to `capacity` from interaction."""

    def __init__(self, columns: dict[str, np.ndarray], capacity: int, device: torch.device):
        self.shapes = {name: column.shape[1:] for name, column in columns.items()}
        self.widths = [math.prod(shape) for shape in self.shapes.values()]
        self.offline_size = self.size = len(columns["rewards"])
        self.rows = torch.empty(self.size + capacity, sum(self.widths), device=device)
        for part, column in zip(
            self.rows[: self.size].split(self.widths, dim=1), columns.values(), strict=True
        ):
            part.copy_(torch.from_numpy(column).reshape(part.shape))

    def add(self, **transition) -> None:
        """Append one transition, given by the names of the columns."""
        self.rows[self.size] = torch.from_numpy(
            np.concatenate([np.ravel(transition[name]) for name in self.shapes])
        )
        self.size += 1

    def sample(
        self, batch_size: int, offline_ratio: float | None = None, newest: int = sys.maxsize
    ) -> dict[str, torch.Tensor]:
        """Uniform with replacement over all that is held: each column as (batch_size,) or (batch_size, dim). With an
        offline_ratio: that share from the data set (first in the batch), the rest from the `newest` online transitions."""
        start = max(self.offline_size, self.size - newest)
        first, offline = (
            (0, 0) if offline_ratio is None else (start, round(offline_ratio * batch_size))
        )
        index = torch.randint(first, self.size, (batch_size,), device=self.rows.device)
        index[:offline] = torch.randint(self.offline_size, (offline,), device=self.rows.device)
        parts = self.rows[index].split(self.widths, dim=1)
        return {
            name: part if shape else part[:, 0]
            for (name, shape), part in zip(self.shapes.items(), parts, strict=True)
        }


class Run:
    """One run: its directory and logs, its clock, its step counters, and all that makes it resumable."""

    def __init__(
        self, args: Args, agent: Agent, buffer: ReplayBuffer, references: tuple[float, float] | None
    ):
        self.args, self.agent, self.buffer, self.references = args, agent, buffer, references
        self.dir, self.signal, self.rng = (
            Path(args.run_dir, args.run_name),
            0,
            torch.cuda if buffer.rows.is_cuda else torch,
        )
        self.phase, self.step, self.episode, self.history = "offline", -args.offline_steps, 0, {}
        self.seconds, self.tick = {"offline": 0.0, "online": 0.0}, time.perf_counter()
        self.identity = {"script": SCRIPT.name, "networks": NETWORKS, "dataset_id": args.dataset_id}
        offsets = (
            self.restore(args.resume or args.offline_checkpoint)
            if args.resume or args.offline_checkpoint
            else {}
        )
        try:
            self.dir.mkdir(parents=True, exist_ok=True)
            self.files = {
                name: open(self.dir / name, "a", 1, newline="")
                for name in ("metrics.csv", "eval.csv")
            }
        except OSError as error:
            check(False, f"cannot write to {self.dir}: {error.strerror}")
        self.tables = {
            name: csv.writer(file, lineterminator="\n") for name, file in self.files.items()
        }
        for (
            name,
            offset,
        ) in offsets.items():  # rows written after the checkpoint will be written again
            self.files[name].seek(self.files[name].truncate(offset))
        if not offsets:
            self.tables["metrics.csv"].writerow(["step", *KEYS])
            self.tables["eval.csv"].writerow(
                ["step", "phase", "policy", "episode", "seed", "return", "length", "success"]
            )
            packages = ("torch", "numpy", "gymnasium", "gymnasium-robotics", "mujoco", "minari")
            config = (
                self.identity
                | vars(args)
                | {name: importlib.metadata.version(name) for name in packages}
            )
            failed, commit = subprocess.getstatusoutput(
                f"git -C '{SCRIPT.resolve().parent}' rev-parse HEAD"
            )
            config |= {"transitions": buffer.offline_size, "commit": None if failed else commit}
            (self.dir / "config.json").write_text(json.dumps(config, indent=2))
        if args.track:
            importlib.import_module("wandb").init(
                id=args.run_name, resume="allow", config=vars(args), sync_tensorboard=True
            )
        self.tensorboard = SummaryWriter(
            str(self.dir), purge_step=self.step + 1 if offsets else None
        )
        self.snapshot, self.saved = self.state(), self.step
        for number in (signal.SIGINT, signal.SIGTERM):  # acted upon between two steps
            signal.signal(number, lambda number, _: setattr(self, "signal", number))
        print(f"run: {self.dir}")

    def steps(self, phase: str):
        """The steps of a phase that are still to do, behind a progress bar; ends the run between two if asked to."""
        last = self.args.online_steps if phase == "online" else 0
        self.bar = tqdm(range(self.step + 1, last + 1), desc=phase, disable=not sys.stderr.isatty())
        self.tick = time.perf_counter()
        for step in self.bar if phase == self.phase else ():
            self.step = step
            yield step
            if self.signal:  # offline: resume from here; online: from the end of the last episode
                self.write_latest(self.state() if phase == "offline" else self.snapshot)
                check(
                    False,
                    f"interrupted; go on with --resume {self.dir / 'latest.pt'}",
                    128 + self.signal,
                )

    def lap(self) -> None:  # add the time since the last lap to the phase's clock
        self.seconds[self.phase] += time.perf_counter() - self.tick
        self.tick = time.perf_counter()

    def seed(self, *key: int) -> int:
        """A seed for each key, the same in every run with this --seed."""
        return int(np.random.SeedSequence([self.args.seed, *key]).generate_state(1)[0])

    def log(self, values: dict[str, float], speed: dict[str, float]) -> None:
        """Scalars to metrics.csv and TensorBoard; `speed`, which depends on the clock, to TensorBoard only."""
        self.tables["metrics.csv"].writerow([self.step, *(values.get(key) for key in KEYS)])
        for key, value in (values | speed).items():
            self.tensorboard.add_scalar(key, value, self.step)

    def report(self, metrics: dict[str, torch.Tensor]) -> None:
        """Log what an update returned, every LOG_EVERY steps; end the run if a loss is not finite."""
        if self.step % LOG_EVERY:
            return
        values = dict(zip(metrics, torch.stack(list(metrics.values())).tolist(), strict=True))
        for name, value in values.items():
            check(
                math.isfinite(value),
                f"diverged: {name} is {value} at {self.phase} step {self.step}",
                3,
            )
        self.lap()
        rate = (self.step + self.args.offline_steps * (self.phase == "offline")) / self.seconds[
            self.phase
        ]
        speed = {"time/updates_per_second": rate} | (
            {"time/env_steps_per_second": rate} if self.phase == "online" else {}
        )
        self.log({f"{self.phase}/{name}": value for name, value in values.items()}, speed)
        self.bar.set_postfix(
            {name: f"{value:.3g}" for name, value in values.items() if name.endswith("loss")}
        )

    def evaluate(self, act, env: gym.Env, prefix: str = "eval", policy: str = "actor") -> None:
        """--eval-episodes deterministic episodes: a row each in eval.csv, their means as `prefix`/..."""
        self.lap()
        returns, successes = (
            [],
            [],
        )  # one entry per episode; no successes where the task does not tell
        for episode in range(self.args.eval_episodes):
            seed, success = self.seed(1 + (self.step > 0), abs(self.step), episode), None
            obs, info = env.reset(seed=seed)
            while "episode" not in info:
                action = (
                    act(torch.from_numpy(obs).to(self.buffer.rows.device), deterministic=True)
                    .cpu()
                    .numpy()
                )
                obs, _, _, _, info = env.step(action)
                success = int(success or info["success"]) if "success" in info else success
            returns += [float(info["episode"]["r"])]
            successes += [] if success is None else [success]
            row = [
                self.step,
                self.phase,
                policy,
                episode,
                seed,
                returns[-1],
                int(info["episode"]["l"]),
                success,
            ]
            self.tables["eval.csv"].writerow(row)
        values = {"return": float(np.mean(returns))}
        if self.references:
            low, high = self.references
            values["score"] = 100 * (values["return"] - low) / (high - low)
        values |= {"success": float(np.mean(successes))} if successes else {}
        self.history |= {self.step: values} if prefix == "eval" else {}
        self.log({f"{prefix}/{name}": value for name, value in values.items()}, {})
        line = f"{self.phase} {self.step:8d}  {prefix}: " + ", ".join(
            f"{name} {value:.4g}" for name, value in values.items()
        )
        print(line, flush=True) if self.bar.disable else self.bar.set_description(line)
        self.tick = time.perf_counter()

    def end_episode(self, stats: dict) -> None:
        """Log an online episode; between it and the next, the run can be resumed."""
        self.log(
            {
                "online/episode_return": float(stats["r"]),
                "online/episode_length": float(stats["l"]),
            },
            {},
        )
        self.episode += 1
        self.checkpoint()

    def end_offline(self) -> None:
        """Write offline.pt; from here on a step is an environment step."""
        self.phase, self.step = "online", 0
        self.snapshot = self.state()
        save(
            {k: self.snapshot[k] for k in (*self.identity, "args", "agent", "optimizer")},
            self.dir / "offline.pt",
        )
        self.write_latest(self.snapshot)

    def checkpoint(self) -> None:
        """Call wherever the run can be resumed; writes latest.pt when --checkpoint-every steps have passed."""
        due = self.step - self.saved >= self.args.checkpoint_every
        self.snapshot = self.state() if due or self.phase == "online" else self.snapshot
        if due:
            self.write_latest(self.snapshot)

    def state(self) -> dict:
        """A copy of all that a resumed run needs but the online transitions: tensors, numbers, strings only."""
        self.lap()
        state = (
            self.identity
            | {name: getattr(self, name) for name in PROGRESS}
            | {"args": vars(self.args)}
        )
        state |= {
            "offsets": {name: file.tell() for name, file in self.files.items()},
            "rng": self.rng.get_rng_state(),
        }
        state |= {"agent": self.agent.state_dict(), "optimizer": self.agent.optimizer.state_dict()}
        return copy.deepcopy(state | {"online_size": self.buffer.size - self.buffer.offline_size})

    def write_latest(self, state: dict) -> None:
        broken = [
            name
            for name, x in state["agent"].items()
            if torch.is_tensor(x) and not x.isfinite().all()
        ]
        check(
            not broken,
            f"diverged: {', '.join(broken)} not finite at {self.phase} step {self.step}",
            3,
        )
        online = self.buffer.rows[self.buffer.offline_size :][: state["online_size"]].clone()
        save(state | {"online": online}, self.dir / "latest.pt")
        self.saved = state["step"]

    def restore(self, path: str) -> dict[str, int]:
        """Networks and optimizer from a checkpoint; to resume, all the rest too, and how long the logs were is returned."""
        state = load_checkpoint(path)
        old, new = state["args"] | state, vars(self.args) | self.identity
        same = (
            "gamma",
            "reward_scale",
            "reward_bias",
            "normalize_returns",
            "success_ends_episode",
            "layer_norm",
        )
        for key in ("networks", "dataset_id", *same):
            check(
                old.get(key) == new.get(key),
                f"{path} does not fit: its {key} is {old.get(key)}, not {new.get(key)}",
            )
        try:
            self.agent.load_state_dict(
                state["agent"], strict=bool(self.args.resume)
            )  # scripts may differ in one network
            groups = (
                state["optimizer"] if self.args.resume else self.agent.optimizer.state_dict()
            )  # a new step size wins
            self.agent.optimizer.load_state_dict(
                state["optimizer"] | {"param_groups": groups["param_groups"]}
            )
        except (RuntimeError, ValueError) as error:
            check(
                False,
                f"{path} does not fit the networks of this run: {' '.join(str(error).split())}",
            )
        if not self.args.resume:
            return {}
        vars(self).update({name: state[name] for name in PROGRESS})
        self.buffer.size += state["online_size"]
        self.buffer.rows[self.buffer.offline_size : self.buffer.size] = state["online"].to(
            self.buffer.rows.device
        )
        if len(state["rng"]) == len(
            self.rng.get_rng_state()
        ):  # else the run moved to another kind of device
            self.rng.set_rng_state(state["rng"])
        return state["offsets"]

    def finish(self) -> None:
        """Write summary.json and the final latest.pt, and print the summary."""
        first, last, (offline, online) = (
            self.history[0],
            self.history[self.args.online_steps],
            self.seconds.values(),
        )
        scores = [
            values["score"] for step, values in self.history.items() if step > 0 and self.references
        ]
        summary = {
            f"{at}_{x}": row.get(x)
            for x in ("score", "return")
            for at, row in (("offline", first), ("final", last))
        }
        summary["worst_drop"] = max(0.0, first["score"] - min(scores)) if scores else None
        summary["regret"] = (
            float(np.mean(np.clip(1 - np.array(scores) / 100, 0, 1))) if scores else None
        )
        summary["updates_per_second"] = self.args.offline_steps / offline or None
        summary["env_steps_per_second"] = self.args.online_steps / online or None
        summary |= {
            "seconds_offline": offline,
            "seconds_online": online,
            "seconds_total": offline + online,
        }
        (self.dir / "summary.json").write_text(json.dumps(summary, indent=2))
        self.write_latest(self.state() | {"phase": "done"})
        print(
            "\n".join(
                f"{key:21} {value:.6g}" for key, value in summary.items() if value is not None
            )
        )
        self.tensorboard.close()


def save(state: dict, path: Path) -> None:
    """Replace a checkpoint atomically: a crash leaves the previous file or the new one, never a torn one."""
    with open(path.with_suffix(".tmp"), "wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(path.with_suffix(".tmp"), path)


def load_checkpoint(path: str) -> dict:
    """A checkpoint as plain tensors, numbers and strings; never runs code that somebody put into the file."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        return state | {
            "networks": state["networks"]
        }  # fails, too, if this is no checkpoint of these scripts
    except Exception as error:  # a missing, truncated or foreign file fails in many ways
        check(
            False, f"{path} is missing, damaged or no checkpoint of these scripts: {error!r}"[:300]
        )


def set_up(args: Args) -> torch.device:
    """Check the arguments, seed torch, choose the device."""
    for name, value in vars(args).items():
        flag, lo = (
            f"--{name.replace('_', '-')}",
            not name.endswith(("seed", "steps", "subset", "_lr", "_rate", "gamma", "tau")),
        )
        check(type(value) is not float or math.isfinite(value), f"{flag} must be finite")
        check(
            lo and type(value) is not int or lo <= value < 2**63,
            f"{flag} must be at least {lo:d} and below 2**63",
        )
    check(
        args.reward_scale != 0 and max(args.gamma, args.tau) <= 1,
        "--reward-scale is 0, or --gamma or --tau above 1",
    )
    check(
        args.device != "cuda" or torch.cuda.is_available(),
        "--device cuda: torch finds no CUDA device",
    )
    for package in ["wandb"] * args.track + ["moviepy"] * args.capture_video:
        check(
            importlib.util.find_spec(package) is not None,
            f"this needs {package}: pip install {package}",
        )
    torch.manual_seed(args.seed)
    torch.set_float32_matmul_precision(args.matmul_precision)
    torch.set_flush_denormal(
        True
    )  # where a ReLU is dead, Adam's moments decay to numbers that slow a CPU down
    gym.logger.min_level = gym.logger.ERROR  # v4 tasks announce their age each time they are built
    device = torch.device("cuda" if torch.cuda.is_available() and args.device != "cpu" else "cpu")
    logging.disable(
        logging.WARNING
    )  # the hub's client without a network, torch.compile without a GPU
    if args.compile:
        try:
            torch.compile(torch.square)(torch.ones(1, device=device))
        except Exception:  # no C++ compiler, no Python headers, ...
            print("note: torch.compile does not work on this machine; the loss runs without it")
            args.compile = False
    return device


def parse_args(argv: list[str]) -> Args:
    """Flags win over the family's PAPER_SETTINGS, and these over the defaults; a resumed run keeps its own arguments."""
    args = tyro.cli(Args, args=argv, description=__doc__)
    if args.resume:
        saved = load_checkpoint(args.resume)
        check(
            saved["script"] == SCRIPT.name,
            f"{args.resume} belongs to {saved['script']}, not to {SCRIPT.name}",
        )
        check(
            saved.get("phase", "done") != "done",
            f"{args.resume}: only the latest.pt of a stopped run can be resumed",
        )
        args = tyro.cli(
            Args,
            args=argv,
            default=Args(**{name: x for name, x in saved["args"].items() if hasattr(args, name)}),
        )
        for name in saved["args"].keys() - {
            "resume",
            "run_dir",
            "device",
            "track",
            "capture_video",
        }:
            old, new = saved["args"][name], vars(args).get(name)
            check(new == old, f"--{name.replace('_', '-')} {new}: the run to resume has {old}")
        folder = Path(args.resume).resolve().parent
        return dataclasses.replace(args, run_dir=str(folder.parent), run_name=folder.name)
    family, *name = args.dataset_id.split("/")[-2:]
    args = tyro.cli(
        Args, args=argv, default=dataclasses.replace(Args(), **PAPER_SETTINGS.get(family, {}))
    )
    args.offline_steps = 0 if args.offline_checkpoint else args.offline_steps
    args.run_name = args.run_name or "__".join(
        [family, *name, SCRIPT.stem, str(args.seed), time.strftime("%Y%m%d-%H%M%S")]
    )
    folder = Path(args.run_dir, args.run_name)
    check(
        not folder.exists(),
        f"{folder} exists: choose another --run-name, or --resume {folder / 'latest.pt'}",
    )
    print(SCRIPT.name, *(f"{name}={value}" for name, value in vars(args).items()))
    return args


if __name__ == "__main__":
    main(parse_args(sys.argv[1:]))
