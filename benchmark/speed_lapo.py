"""How fast a critic update of o3f_lapo.py is, against the usual way to write it. CPU only.

    python benchmark/speed_lapo.py

Halfcheetah's sizes, five critics and a value of 3x256, batches of 512; one step of critics and
value, with the target critics following. The twin stands for the popular PyTorch port: a module per
critic, called in a Python loop, all five targets evaluated; an Adam for the critics and one for the
value; an .item() for each loss; Polyak in a Python loop. It computes in float32 ("highest"), ours
at both settings of --matmul-precision. All take turns in short blocks, in changing order; a ratio
compares blocks of one turn.
"""

import copy
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn as nn
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from speed_cql import race

import o3f_lapo

OBS, ACT = 17, 6


@dataclass
class Args:
    threads: int = 1
    """CPU threads of torch"""
    blocks: int = 8
    """turns; each gives one ratio"""
    updates_per_block: int = 20
    """updates of a block"""
    out: Path | None = None
    """a CSV that receives the milliseconds of every block"""


def mlp(in_dim: int, out_dim: int) -> nn.Sequential:
    layers = []
    for fan_in in (in_dim, 256, 256):
        layers += [nn.Linear(fan_in, 256), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(256, out_dim))


class Twin:
    """Critics and value of LAPO as they are usually written; the same equations as Agent's."""

    def __init__(self, agent: o3f_lapo.Agent):
        self.agent = agent  # its policy and decoder give the actions
        self.critics = nn.ModuleList(mlp(OBS + ACT, 1) for _ in range(agent.args.num_critics))
        self.targets = copy.deepcopy(self.critics).requires_grad_(False)
        self.value = mlp(OBS, 1)
        self.critic_optimizer = torch.optim.Adam(self.critics.parameters(), lr=2e-4)
        self.value_optimizer = torch.optim.Adam(self.value.parameters(), lr=2e-4)

    def update(self, batch: dict[str, torch.Tensor]) -> dict[str, float]:
        agent, args = self.agent, self.agent.args
        obs = agent.normalize_obs(batch["obs"])
        next_obs = agent.normalize_obs(batch["next_obs"])
        sa = torch.cat([obs, agent.normalize_actions(batch["actions"])], 1)
        with torch.no_grad():
            target = batch["rewards"] + args.gamma * (1 - batch["terminations"]) * self.value(
                next_obs
            ).squeeze(-1)
            latent = agent.actor_target(obs)
            latent = latent + (0.1 * torch.randn_like(latent)).clamp(-0.2, 0.2)
            decoded = torch.cat([obs, agent.vae_target.decode(obs, latent)], 1)
            q = torch.stack([critic(decoded).squeeze(-1) for critic in self.targets])
            pair = q[torch.randperm(len(self.targets))[: args.critic_subset]]
            mixed = args.min_weight * pair.amin(0) + (1 - args.min_weight) * pair.amax(0)
            value_target = mixed.clamp(agent.value_low, agent.value_high)
        critic_loss = sum(F.mse_loss(critic(sa).squeeze(-1), target) for critic in self.critics)
        value_loss = F.mse_loss(self.value(obs).squeeze(-1), value_target)
        log = {"critic_loss": critic_loss.item(), "value_loss": value_loss.item()}
        for optimizer, loss in (
            (self.critic_optimizer, critic_loss),
            (self.value_optimizer, value_loss),
        ):
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        for slow, fast in zip(self.targets.parameters(), self.critics.parameters()):
            slow.data.mul_(1 - args.tau).add_(args.tau * fast.data)
        return log


def critic_step(agent: o3f_lapo.Agent, batch: dict[str, torch.Tensor]) -> None:
    """The body of the loop in Agent.update."""
    agent.optimizer.zero_grad()
    loss, _ = agent.compiled_critic_loss(batch)
    loss.backward()
    agent.optimizer.step()
    agent.follow(agent.q_target, agent.q_net)


def main(args: Args) -> None:
    if min(args.threads, args.blocks, args.updates_per_block) < 1:
        o3f_lapo.fail("threads, blocks, updates must be at least 1")
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    load = os.getloadavg()[0]
    print(f"torch {torch.__version__}, {args.threads} threads, load of the machine {load:.1f}")
    agent = o3f_lapo.Agent(OBS, ACT, o3f_lapo.Args(batch_size=512), torch.device("cpu"))
    twin, size = Twin(agent), agent.args.batch_size
    batch = {"obs": torch.randn(size, OBS), "actions": torch.rand(size, ACT) * 2 - 1}
    batch |= {"rewards": torch.rand(size), "next_obs": torch.randn(size, OBS)}
    batch["terminations"] = torch.zeros(size)
    ours = lambda: critic_step(agent, batch)  # noqa: E731
    contestants = {"twin, highest": ("highest", lambda: twin.update(batch))}
    contestants |= {"o3f_lapo.py, highest": ("highest", ours)}
    contestants |= {"o3f_lapo.py, medium": ("medium", ours)}
    race(args, contestants, "o3f_lapo.py")


if __name__ == "__main__":
    o3f_lapo.SCRIPT = Path(__file__)  # error messages start with its name
    main(o3f_lapo.read_flags(Args, description=__doc__))
