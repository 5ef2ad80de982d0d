"""How fast iql.py is on a CPU: update against the usual way to write it, online step, loader.

    python benchmark/speed.py                 # updates, then online steps
    python benchmark/speed.py --o3f           # a whole online step of o3f.py against that of iql.py
    python benchmark/speed.py --load 1000000  # seconds to read a million transitions

Updates: hopper's sizes, 2x256 networks, batches of 256, sampling included. The twin stands for the
popular PyTorch ports of IQL: a module per critic, called in a Python loop; a default Adam per
network; the three losses one after the other, each with its own backward pass and an .item() at
every step; Polyak in a Python loop; a batch gathered tensor by tensor. It computes in float32
("highest"), denormal numbers included; ours as iql.py does by default, compiled where that works,
and at both settings of --matmul-precision. All three take turns in short blocks, in changing order,
so that another process on the machine slows all alike; a ratio compares blocks of one turn.

Online steps: what the online loop of iql.py adds to the simulator (acting, conversions, wrappers,
the buffer, but not the update), as the time of its steps less that of the bare environment for the
same actions from the same resets.

--o3f: both scripts with 5 critics, in turn, in one block the same number of online steps with their
updates.
"""

import copy
import csv
import os
import sys
import tempfile
import time
import warnings
from dataclasses import dataclass
from pathlib import Path

import gymnasium as gym
import minari
import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from minari.data_collector import EpisodeBuffer

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from sweep import machine, read_table

import iql
import o3f

CPU = torch.device("cpu")


@dataclass
class Args:
    threads: int = 1
    """CPU threads of torch"""
    blocks: int = 10
    """turns; each gives one ratio"""
    updates_per_block: int = 200
    """updates, and environment steps, of a block"""
    o3f: bool = False
    """measure the online steps of o3f.py instead: act, environment, buffer and update"""
    load: int = 0
    """measure the loader instead, on this many transitions"""
    out: Path | None = None
    """a CSV that receives the milliseconds of every block"""


def mlp(in_dim: int, out_dim: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(in_dim, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, out_dim)
    )


class Twin:
    """IQL as it is usually written in PyTorch.

    The same equations as iql.Agent but for the order of the steps.
    """

    def __init__(self, columns: dict[str, np.ndarray], args: iql.Args):
        self.args, (obs_dim, act_dim) = args, (columns["obs"].shape[1], columns["actions"].shape[1])
        self.data = [torch.from_numpy(column) for column in columns.values()]
        self.actor, self.value = nn.Sequential(mlp(obs_dim, act_dim), nn.Tanh()), mlp(obs_dim, 1)
        self.log_std = nn.Parameter(torch.zeros(act_dim))
        self.critics = nn.ModuleList(mlp(obs_dim + act_dim, 1) for _ in range(2))
        self.targets = copy.deepcopy(self.critics).requires_grad_(False)
        params = (
            [*self.actor.parameters(), self.log_std],
            self.value.parameters(),
            self.critics.parameters(),
        )
        self.optimizers = [torch.optim.Adam(p, lr=args.learning_rate) for p in params]

    def step(self, optimizer: torch.optim.Adam, loss: torch.Tensor) -> float:
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()

    def update(self) -> dict[str, float]:
        index = np.random.randint(0, len(self.data[0]), size=self.args.batch_size)
        obs, actions, rewards, next_obs, terminations = (column[index] for column in self.data)
        actor_optimizer, value_optimizer, critic_optimizer = self.optimizers
        sa = torch.cat([obs, actions], 1)
        with torch.no_grad():
            next_value = self.value(next_obs).squeeze(-1)
            target_q = torch.min(*[critic(sa).squeeze(-1) for critic in self.targets])
        u = target_q - self.value(obs).squeeze(-1)
        value_loss = torch.mean(torch.abs(self.args.expectile - (u < 0).float()) * u**2)
        log = {"value_loss": self.step(value_optimizer, value_loss)}
        target = rewards + (1.0 - terminations) * self.args.gamma * next_value
        critic_loss = sum(F.mse_loss(critic(sa).squeeze(-1), target) for critic in self.critics)
        log["critic_loss"] = self.step(critic_optimizer, critic_loss)
        for slow, fast in zip(self.targets.parameters(), self.critics.parameters()):
            slow.data.mul_(1 - self.args.tau).add_(self.args.tau * fast.data)
        weights = torch.exp(self.args.beta * u.detach()).clamp(max=100.0)
        policy = torch.distributions.Normal(self.actor(obs), self.log_std.clamp(-5.0, 2.0).exp())
        log["actor_loss"] = self.step(
            actor_optimizer, torch.mean(-weights * policy.log_prob(actions).sum(-1))
        )
        return log


def spread(values) -> str:
    """Minimum, median and maximum as three columns of a table."""
    return " | ".join(f"{value:.2f}" for value in np.percentile(values, [0, 50, 100]))


def report(args, program: str, milliseconds: dict[str, list[float]]) -> None:
    """Print milliseconds and ratios; write args.out.

    A ratio is the time of the first contestant / the time of this one.
    """
    print(f"\n{program}, ms; ratio: time of the first / time of this one")
    print("| | ms min | median | max | ratio min | median | max |\n|---|---|---|---|---|---|---|")
    first = next(iter(milliseconds.values()))
    for name, ms in milliseconds.items():
        print(f"| {name} | {spread(ms)} | {spread(np.divide(first, ms))} |")
    if args.out is None:
        return
    rows = [row for row in read_table(args.out) if row["program"] != program]
    about = {"machine": machine(args.threads), "load": f"{os.getloadavg()[0]:.1f}"}
    about |= {"torch": torch.__version__}
    for name, ms in milliseconds.items():
        for block, value in enumerate(ms):
            row = {"program": program, "name": name, "block": block, "ms": f"{value:.4g}"}
            rows.append(row | about)
    with open(args.out, "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[-1]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def seconds(function, times: int) -> float:
    """Mean time of a call."""
    start = time.perf_counter()
    for _ in range(times):
        function()
    return (time.perf_counter() - start) / times


def time_updates(args: Args, columns: dict[str, np.ndarray], agent: iql.Agent) -> None:
    """Milliseconds per update."""
    buffer, twin = iql.ReplayBuffer(columns, 0, CPU), Twin(columns, agent.args)
    ours = lambda: agent.update(buffer.sample(agent.args.batch_size))  # noqa: E731
    contestants = {"twin, highest": twin.update, "iql.py, highest": ours, "iql.py, medium": ours}
    milliseconds, order = {name: [] for name in contestants}, list(contestants)
    for block in range(-1, args.blocks):
        for name in order[block % 3 :] + order[: block % 3]:
            torch.set_float32_matmul_precision(name.split(", ")[1])
            torch.set_flush_denormal(
                name.startswith("iql.py")
            )  # as iql.set_up does; a port does not
            ms = 1000 * seconds(contestants[name], args.updates_per_block if block >= 0 else 20)
            milliseconds[name] += [ms] * (block >= 0)  # block -1 warms up
    report(args, "iql.py", milliseconds)


def time_online_steps(args: Args, columns: dict[str, np.ndarray], agent: iql.Agent, task) -> None:
    """Milliseconds per step of the online loop without its update, and of the bare environment."""
    steps, buffer = (
        args.updates_per_block,
        iql.ReplayBuffer(columns, (args.blocks + 1) * args.updates_per_block, CPU),
    )
    env, bare = (
        iql.make_env(task),
        gym.make(task, disable_env_checker=True).unwrapped,
    )
    torch.set_float32_matmul_precision(agent.args.matmul_precision)
    micros = {"online loop": [], "bare environment": [], "difference": []}
    for block in range(-1, args.blocks):  # block -1 warms up
        actions, ends = [], []
        start, (obs, _) = time.perf_counter(), env.reset(seed=block + 1)
        for _ in range(steps):  # as in iql.main
            action = agent.act(torch.from_numpy(obs).to(CPU), deterministic=False).cpu().numpy()
            next_obs, reward, terminated, truncated, _ = env.step(action)
            reward = 1.0 * float(reward) + agent.args.reward_bias
            buffer.add(
                obs=obs, actions=action, rewards=reward, next_obs=next_obs, terminations=terminated
            )
            obs = next_obs
            actions.append(action)
            ends.append(terminated or truncated)
            if ends[-1]:
                obs, _ = env.reset(seed=block + 1)
        middle, _ = time.perf_counter(), bare.reset(seed=block + 1)
        for action, end in zip(actions, ends):
            bare.step(action)
            if end:
                bare.reset(seed=block + 1)
        total = np.diff([start, middle, time.perf_counter()]) * 1e6 / steps
        for name, value in zip(micros, (*total, total[0] - total[1])):
            micros[name] += [value] * (block >= 0)
    row, tensor, buffer.size = (
        {name: column[0] for name, column in columns.items()},
        torch.from_numpy(obs),
        buffer.offline_size,
    )
    parts = {
        "of it, Agent.act": lambda: agent.act(tensor, False),
        "of it, ReplayBuffer.add": lambda: buffer.add(**row),
    }
    micros |= {
        name: [1e6 * seconds(part, steps) for _ in range(args.blocks)]
        for name, part in parts.items()
    }
    milliseconds = {name: [value / 1000 for value in values] for name, values in micros.items()}
    report(args, "iql.py, online step without its update", milliseconds)


def time_o3f(args: Args, columns: dict[str, np.ndarray], task) -> None:
    """Milliseconds per online step, update included, of o3f.py and iql.py with 5 critics."""
    milliseconds = {"o3f.py": [], "iql.py, 5 critics": []}
    loops = {}
    for name, script in zip(milliseconds, (o3f, iql)):
        settings = script.Args(num_critics=5)
        agent = script.Agent(columns["obs"].shape[1], columns["actions"].shape[1], settings, CPU)
        loops[name] = (
            agent,
            iql.ReplayBuffer(columns, (args.blocks + 1) * args.updates_per_block, CPU),
        )
        loops[name] += (iql.make_env(task),)
    for block in range(-1, args.blocks):  # block -1 warms up
        for name in list(loops)[:: 1 if block % 2 else -1]:
            agent, buffer, env = loops[name]
            obs, _ = env.reset(seed=block + 1)
            choose = getattr(
                agent, "explore", lambda x, agent=agent: agent.act(x, deterministic=False)
            )
            start = time.perf_counter()
            for _ in range(args.updates_per_block):
                action = choose(torch.from_numpy(obs)).numpy()
                next_obs, reward, terminated, truncated, _ = env.step(action)
                buffer.add(
                    obs=obs,
                    actions=action,
                    rewards=float(reward),
                    next_obs=next_obs,
                    terminations=terminated,
                )
                agent.update(buffer.sample(256))
                obs = env.reset()[0] if terminated or truncated else next_obs
            milliseconds[name] += [
                1000 * (time.perf_counter() - start) / args.updates_per_block
            ] * (block >= 0)
    report(args, "o3f.py, online step", milliseconds)


def time_loading(transitions: int) -> None:
    """Print the seconds that iql.read_episodes takes, on data made up for it.

    Once with few long episodes, once with many short ones.
    """
    rng, obs_dim, act_dim = np.random.default_rng(0), 29, 8
    spaces = {"observation_space": gym.spaces.Box(-np.inf, np.inf, (obs_dim,), np.float64)}
    spaces["action_space"] = gym.spaces.Box(-1, 1, (act_dim,), np.float32)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["MINARI_DATASETS_PATH"] = folder
        for count in (1000, 5000):
            length = transitions // count
            ends = np.arange(length) == length - 1
            arrays = {
                "actions": rng.uniform(-1, 1, (length, act_dim)).astype(np.float32),
                "rewards": rng.normal(size=length),
            }
            arrays |= {
                "observations": rng.normal(size=(length + 1, obs_dim)),
                "truncations": ends,
                "terminations": 0 * ends,
            }
            buffers = [EpisodeBuffer(id=i, **arrays) for i in range(count)]
            with warnings.catch_warnings():  # Minari misses author, environment, ...
                warnings.simplefilter("ignore")
                dataset = minari.create_dataset_from_buffers(
                    f"speed/e{count}-v0", buffers, data_format="hdf5", **spaces
                )
            took = seconds(lambda: iql.read_episodes(dataset, False), 1)  # noqa: B023
            print(
                f"{length * count} transitions in {count} episodes,"
                f" {obs_dim} + {act_dim} entries: {took:.2f} s"
            )


def main(args: Args) -> None:
    if min(args.threads, args.blocks, args.updates_per_block) < 1:
        iql.fail("threads, blocks and updates must be at least 1")
    if args.load != 0 and args.load < 5000:
        iql.fail("--load needs at least 5000 transitions: one in each episode")
    if args.load:
        time_loading(args.load)
        return
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    columns, _, task, _ = iql.load_data(iql.Args())
    print(
        f"torch {torch.__version__}, {args.threads} threads,"
        f" load of the machine {os.getloadavg()[0]:.1f}"
    )
    if args.o3f:
        torch.set_float32_matmul_precision("medium")
        torch.set_flush_denormal(True)
        time_o3f(args, columns, task)
        return
    agent = iql.Agent(columns["obs"].shape[1], columns["actions"].shape[1], iql.Args(), CPU)
    time_updates(args, columns, agent)
    time_online_steps(args, columns, agent, task)


if __name__ == "__main__":
    iql.SCRIPT = Path(__file__)  # error messages start with its name
    main(iql.read_flags(Args, description=__doc__))
