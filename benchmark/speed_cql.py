"""How fast cal_ql.py and wsrl.py are, on a CPU.

An update is timed against the usual way to write it, a step against its bare products.

    python benchmark/speed_cql.py         # cal_ql.py: updates, against an eager twin
    python benchmark/speed_cql.py --wsrl  # wsrl.py: a step's updates, against matrix products alone

cal_ql.py: hopper's sizes, critics of 3x256, batches of 256, 10 actions of each kind, Lagrange
multiplier. The twin stands for the popular PyTorch port: a module per critic; each critic called
apart for the data's action, the uniform ones, those of the policy here and in the next state, and
the target's; an Adam per network, each loss with its own backward pass and .item()s; Polyak in a
Python loop. It computes in float32 ("highest"), ours at both settings of --matmul-precision. All
take turns in short blocks, in changing order; a ratio compares blocks of one turn.

wsrl.py: 10 critics of 2x256 with layer norm, 4 batches of 256. The products are those of its
layers, forward and backward, as calls of torch.bmm with the same shapes and precision on tensors
that lie ready: no optimizer, no activation, no sampling.
"""

import copy
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from speed import report, seconds

import cal_ql
import wsrl

CPU, OBS, ACT = torch.device("cpu"), 11, 3


@dataclass
class Args:
    threads: int = 1
    """CPU threads of torch"""
    blocks: int = 8
    """turns; each gives one ratio"""
    updates_per_block: int = 20
    """updates (online steps with --wsrl) of a block"""
    wsrl: bool = False
    """measure wsrl.py instead"""
    out: Path | None = None
    """a CSV that receives the milliseconds of every block"""


def mlp(in_dim: int, out_dim: int, layers: int) -> nn.Sequential:
    parts = [nn.Linear(in_dim, 256), nn.ReLU()]
    for _ in range(layers - 1):
        parts += [nn.Linear(256, 256), nn.ReLU()]
    return nn.Sequential(*parts, nn.Linear(256, out_dim))


class Twin:
    """Cal-QL as it is usually written in PyTorch; the same equations as cal_ql.Agent."""

    def __init__(self, args: cal_ql.Args):
        self.args = args
        self.actor = mlp(OBS, 2 * ACT, args.actor_layers)
        self.critics = nn.ModuleList(mlp(OBS + ACT, 1, args.critic_layers) for _ in range(2))
        self.targets = copy.deepcopy(self.critics).requires_grad_(False)
        self.log_alpha, self.log_multiplier = (
            nn.Parameter(torch.zeros(1)),
            nn.Parameter(torch.ones(1)),
        )
        self.optimizers = [
            torch.optim.Adam(self.actor.parameters(), 1e-4),
            torch.optim.Adam(self.critics.parameters(), 3e-4),
        ]
        self.optimizers += [
            torch.optim.Adam([self.log_alpha], 1e-4),
            torch.optim.Adam([self.log_multiplier], 3e-4),
        ]

    def sample(self, obs: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        mean, log_std = self.actor(obs.unsqueeze(1).repeat(1, count, 1)).chunk(2, -1)
        normal = torch.distributions.Normal(mean, (log_std - 1.0).clamp(-20, 2).exp())
        policy = torch.distributions.TransformedDistribution(
            normal, torch.distributions.TanhTransform(cache_size=1)
        )
        actions = policy.rsample()
        return actions, policy.log_prob(actions).sum(-1)  # (B, count, ACT), (B, count)

    def q(self, critic: nn.Module, obs: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
        obs = obs.unsqueeze(1).repeat(1, actions.shape[1], 1)
        return critic(torch.cat([obs, actions], -1)).squeeze(-1)

    def step(self, optimizer: torch.optim.Adam, loss: torch.Tensor, retain: bool = False) -> float:
        optimizer.zero_grad()
        loss.backward(retain_graph=retain)
        optimizer.step()
        return loss.item()

    def update(self, batch: dict[str, torch.Tensor]) -> dict[str, float]:
        args, obs, next_obs = self.args, batch["obs"], batch["next_obs"]
        actor_optimizer, critic_optimizer, alpha_optimizer, multiplier_optimizer = self.optimizers
        new_actions, log_prob = self.sample(obs, 1)
        alpha_loss = -(self.log_alpha * (log_prob - ACT).detach()).mean()
        log = {"alpha_loss": self.step(alpha_optimizer, alpha_loss)}
        q_new = torch.min(*[self.q(critic, obs, new_actions) for critic in self.critics])
        actor_loss = (self.log_alpha.exp().detach() * log_prob - q_new).mean()

        with torch.no_grad():
            best, _ = self.sample(next_obs, args.num_actions)
            target_q = torch.min(*[self.q(critic, next_obs, best) for critic in self.targets]).amax(
                1
            )
            target = batch["rewards"] + (1 - batch["terminations"]) * args.gamma * target_q
        data_q = [
            self.q(critic, obs, batch["actions"].unsqueeze(1)).squeeze(1) for critic in self.critics
        ]
        td_loss = sum(F.mse_loss(q, target) for q in data_q)
        uniform = torch.empty(len(obs), args.num_actions, ACT).uniform_(-1, 1)
        current, current_log_prob = (x.detach() for x in self.sample(obs, args.num_actions))
        following, following_log_prob = (
            x.detach() for x in self.sample(next_obs, args.num_actions)
        )
        bound, gaps = batch["mc_returns"].unsqueeze(1), []
        for critic, q in zip(self.critics, data_q):
            q_uniform, q_current, q_following = (
                self.q(critic, obs, actions) for actions in (uniform, current, following)
            )
            q_current, q_following = (
                torch.maximum(q_current, bound),
                torch.maximum(q_following, bound),
            )
            parts = [
                q_uniform + ACT * np.log(2),
                q_following - following_log_prob,
                q_current - current_log_prob,
            ]
            gaps.append((torch.logsumexp(torch.cat(parts, 1), 1) - q).mean())
        multiplier = self.log_multiplier.exp().clamp(max=1e6)
        penalty = sum(multiplier * args.cql_alpha * (gap - args.cql_gap) for gap in gaps).squeeze()
        log["multiplier_loss"] = self.step(multiplier_optimizer, -0.5 * penalty, retain=True)
        log["critic_loss"] = (td_loss + penalty).item()
        actor_optimizer.zero_grad()
        actor_loss.backward(retain_graph=True)
        critic_optimizer.zero_grad()
        (
            td_loss
            + sum(
                multiplier.detach() * args.cql_alpha * (gap - args.cql_gap) for gap in gaps
            ).squeeze()
        ).backward()
        actor_optimizer.step()
        critic_optimizer.step()
        log["actor_loss"] = actor_loss.item()
        for slow, fast in zip(self.targets.parameters(), self.critics.parameters()):
            slow.data.mul_(1 - args.tau).add_(args.tau * fast.data)
        return log


def make_batch(size: int) -> dict[str, torch.Tensor]:
    batch = {
        "obs": torch.randn(size, OBS),
        "actions": 2 * torch.rand(size, ACT) - 1,
        "rewards": torch.randn(size),
    }
    return batch | {
        "next_obs": torch.randn(size, OBS),
        "terminations": torch.zeros(size),
        "mc_returns": torch.randn(size),
    }


def products(args: wsrl.Args) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """The factors of all matrix products that the updates of one online step of wsrl.py need."""
    found = []

    def layers(
        count: int,
        rows: int,
        in_dim: int,
        out_dim: int,
        hidden: int,
        grad_input: bool,
        grad_weights: bool,
    ) -> None:
        dims = [in_dim] + [args.hidden] * hidden + [out_dim]
        for layer, (fan_in, fan_out) in enumerate(zip(dims, dims[1:])):
            x, w, g = (
                torch.randn(count, rows, fan_in),
                torch.randn(count, fan_in, fan_out),
                torch.randn(count, rows, fan_out),
            )
            found.append((x, w))
            if grad_weights:
                found.append((x.transpose(1, 2), g))
            if grad_input or (grad_weights and layer):
                found.append((g, w.transpose(1, 2)))

    for _ in range(args.utd_ratio):
        layers(1, args.batch_size, OBS, 2 * ACT, args.actor_layers, False, False)  # next actions
        layers(
            args.critic_subset, args.batch_size, OBS + ACT, 1, args.critic_layers, False, False
        )  # target
        layers(
            args.num_critics, args.batch_size, OBS + ACT, 1, args.critic_layers, False, True
        )  # TD loss
    rows = args.utd_ratio * args.batch_size
    layers(1, rows, OBS, 2 * ACT, args.actor_layers, False, True)
    layers(
        args.num_critics, rows, OBS + ACT, 1, args.critic_layers, True, False
    )  # through the critics to the action
    return found


def race(args: Args, contestants: dict[str, tuple[str, object]], program: str) -> None:
    """Let all take turns in short blocks, and report."""
    names = list(contestants)
    milliseconds = {name: [] for name in names}
    for block in range(-1, args.blocks):
        for name in names[block % len(names) :] + names[: block % len(names)]:
            precision, call = contestants[name]
            torch.set_float32_matmul_precision(precision)
            torch.set_flush_denormal(not name.startswith("twin"))
            ms = 1000 * seconds(call, args.updates_per_block if block >= 0 else 3)
            milliseconds[name] += [ms] * (block >= 0)  # block -1 warms up
    report(args, program, milliseconds)


def main(args: Args) -> None:
    if min(args.threads, args.blocks, args.updates_per_block) < 1:
        cal_ql.fail("threads, blocks, updates must be at least 1")
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    print(
        f"torch {torch.__version__}, {args.threads} threads,"
        f" load of the machine {os.getloadavg()[0]:.1f}"
    )
    if args.wsrl:
        settings = wsrl.Args()
        agent, batches = (
            wsrl.Agent(OBS, ACT, settings, CPU),
            [make_batch(256) for _ in range(settings.utd_ratio)],
        )
        pairs = products(settings)
        flops = sum(2 * x.shape[0] * x.shape[1] * x.shape[2] * y.shape[2] for x, y in pairs)
        print(f"{flops / 1e9:.1f} GFLOP of products per online step")
        bare = lambda: [torch.bmm(x, y) for x, y in pairs]  # noqa: E731
        ours = lambda: agent.update_online(batches)  # noqa: E731
        contestants = {
            "wsrl.py, medium": ("medium", ours),
            "products alone, medium": ("medium", bare),
        }
        race(args, contestants, "wsrl.py, medium")
        contestants = {
            "wsrl.py, highest": ("highest", ours),
            "products alone, highest": ("highest", bare),
        }
        race(args, contestants, "wsrl.py, highest")
        return
    settings = cal_ql.Args(critic_layers=3, lagrange=True)
    agent, twin, batch = cal_ql.Agent(OBS, ACT, settings, CPU), Twin(settings), make_batch(256)
    ours = lambda: agent.update(batch)  # noqa: E731
    contestants = {"twin, highest": ("highest", lambda: twin.update(batch))}
    contestants |= {"cal_ql.py, highest": ("highest", ours), "cal_ql.py, medium": ("medium", ours)}
    race(args, contestants, "cal_ql.py")


if __name__ == "__main__":
    cal_ql.SCRIPT = Path(__file__)  # error messages start with its name
    main(cal_ql.read_flags(Args, description=__doc__))
