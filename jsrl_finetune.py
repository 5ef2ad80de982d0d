"""Jump start for fine-tuning: JSRL, and an automatic gate against performance degradation.

Fine-tuning a policy in place may first lose what it could do. A jump start hands over gradually. In
each episode a frozen copy of the offline policy, the guide, acts for the first h steps, and the
learner for the rest. So the learner begins with short tails from good states. In n = --stages
stages, h falls from the whole episode to 0. H is the mean number of steps that the guide needs to
solve the task or, if it never does, the mean length of its episodes:

    act          a_t = mean of guide(s_t) if t < h_k, else a_t ~ learner(. | s_t)
                 h_k = H (1 - k/n) at stage k, rounded and below H; h_0 = infinity
    learn        IQL's losses on the steps of guide and learner; of each batch, --offline-ratio is
                 offline data, the rest from the newest --online-window steps (both as in JSRL);
                 one update per step, as soon as a batch of online steps is there:
                 L_V = E[ |e - 1(u < 0)| u^2 ],  u = min_i Qt_i(s, a) - V(s),  e: --expectile
                 L_A = -E[ min(exp(beta u), 100) log pi(a | s) ],  pi: the learner's policy
                 L_Q = sum_i E[ (r + gamma (1 - d) V(s') - Q_i(s, a))^2 ],  d = 1 at a true end
                 target critics: Qt_i <- (1 - tau) Qt_i + tau Q_i

--schedule tells when to hand over more. J_g: mean return of the guide's own episodes, SE_g: its
standard error; mu, s, m: mean, spread (at least a quarter of the guide's) and number of the returns
that a decision looks at; J_r: a random policy's mean return (the data's, else D4RL's, else 0):

    automatic    after each training episode, once the learner has acted in --min-episodes of the
                 stage, by a test of the last --window returns at stage k
                 advance (k + 1) if mu - z_advance SE >= threshold
                 retreat (k - 1) if mu + z_retreat SE < threshold, else hold
                 threshold = J_g - tolerance |J_g - J_r|, SE = sqrt(s^2 / m + SE_g^2)
                 if all returns are 0 or 1: threshold = J_g - tolerance, and the two bounds are
                 J_g + (Newcombe's bounds of the difference mu - J_g)
    curriculum   JSRL: after each evaluation of guide and learner acting together, from stage 1 on,
                 advance if the mean of the last 5 is at least best - tolerance |best|; never
                 retreat. best: the highest such mean so far, at first J_g
    random       JSRL: h drawn for every episode from h_1 ... h_n (evaluations take them in turn)
    direct       no guide: the learner alone from the first step, without a stage 0. It is not
                 iql.py: batches are mixed, and updates begin, as above

What changes at the switch: the policy is copied. The copy, the guide, never changes; the policy
trains on as the learner, with critics, V and Adam's moments as they are (--init cold: all are new).
A decayed learning rate is full again. Stage 0 comes first: the guide acts alone, for
--calibration-episodes (at least --min-episodes); critic and value train, the learner's policy does
not. Stage 1 follows without a test. A retreat to stage 0 adds --min-episodes of the guide, and the
policy trains on. eval/... is now guide and learner together, eval_learner/... the learner alone.

The jump start is Uchendu et al., ICML 2023, arXiv 2204.02372. `automatic` has the aim of Wang,
White, White, Fine-Tuning without Performance Degradation, arXiv 2505.00913, whose exact gate we
could not read (only the abstract and part of the introduction). From there: a gradual hand-over
after a jump start, by online estimates. The test, its numbers and the retreat are ours.
Parent: iql.py; `diff iql.py jsrl_finetune.py` is the method. Measured: docs/jsrl_finetune.md.

Deviations from JSRL (no code of its authors for this part is known):
 1. H comes from the episodes of stage 0, which count as steps, and in which critic and value train;
    theirs from 100 that do not count, without training.
 2. --init warm is the default (the aim is not to lose the offline level); their main table is cold.
 3. The curriculum decides every --eval-every steps (theirs: 10,000): in mazes our default is too
    seldom for ten stages. Its tolerance is ours, and so is that `best` starts at J_g.
 4. All that iql.py lists under its deviations holds here too.

    python jsrl_finetune.py                                             # bundled hopper data
    python jsrl_finetune.py --offline-checkpoint runs/NAME/offline.pt   # a guide from iql.py
    python jsrl_finetune.py --schedule direct                           # no guide: the comparator
"""

# ---- imports: the same in every script ----
import contextlib
import copy
import csv
import dataclasses
import hashlib
import importlib.metadata
import inspect
import io
import json
import logging
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import typing
from pathlib import Path
from typing import Annotated, Literal


def stop_at_once(number: int, _) -> None:
    """Signal handler until the run has something to save."""
    os.write(2, f"{Path(__file__).name}: interrupted before the run began\n".encode())
    os._exit(128 + number)


if __name__ == "__main__":  # the imports below take seconds: Ctrl-C is answered with one line
    signal.signal(signal.SIGINT, stop_at_once)
    signal.signal(signal.SIGTERM, stop_at_once)

import filelock
import gymnasium as gym
import h5py
import minari
import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
import tyro
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

Tensors = dict[str, torch.Tensor]  # such as a batch: each column (B,) or (B, dim)

# ---- end of imports ----


@dataclasses.dataclass
class Args:
    # ---- shared arguments: the same in every script ----
    # Annotated[type, lowest, highest]: anything outside is refused.
    seed: Annotated[int, 0, 2**63 - 1] = 0  # of networks, batches, exploration and environments
    dataset_id: str = "o2o/hopper/medium-v0"  # Minari id: bundled, else local, else downloaded
    env_module: str | None = None  # import this module first: it registers environments of your own
    device: Literal["auto", "cpu", "cuda"] = "auto"  # for networks and data; auto: cuda if possible
    offline_steps: Annotated[int, 0, 10**9] = 100_000  # gradient steps on the data set alone
    online_steps: Annotated[int, 0, 10**9] = 50_000  # environment steps after the switch
    eval_every: Annotated[int, 1, 10**9] = 5_000  # steps between two evaluations
    eval_episodes: Annotated[int, 1, 10**6] = 10  # episodes per evaluation
    batch_size: Annotated[int, 1, 10**6] = 256  # transitions per gradient step
    gamma: Annotated[float, 0.0, 1.0] = 0.99  # discount per environment step
    tau: Annotated[float, 0.0, 1.0] = 0.005  # Polyak rate: target <- (1 - tau) target + tau trained
    reward_scale: Annotated[float, -1e6, 1e6] = 1.0  # the learner sees scale * r + bias
    reward_bias: Annotated[float, -1e6, 1e6] = 0.0  # see above; logged returns are raw
    success_ends_episode: bool = False  # episodes end at the first success, in data and in mazes
    matmul_precision: Literal["highest", "medium"] = "medium"  # medium: bfloat16 (CPU), TF32 (GPU)
    compile: bool = True  # torch.compile the losses (CPU: needs a C++ compiler; GPU: CUDA graphs)
    run_dir: str = "runs"  # folder that holds the runs
    run_name: str | None = None  # folder in it; default: data set, script, seed and start time
    checkpoint_every: Annotated[int, 1, 10**9] = 10_000  # steps between two writes of latest.pt
    resume: str | None = None  # a run's latest.pt: go on in its directory with its arguments
    offline_checkpoint: str | None = None  # an offline.pt: skip the offline phase
    track: bool = False  # log to Weights & Biases too (pip install wandb)
    # ---- end of shared arguments ----
    learning_rate: Annotated[float, 0.0, 1.0] = 3e-4  # Adam learning rate of all networks
    actor_lr_decay: bool = False  # offline, the actor's learning rate falls to 0 along a cosine
    num_critics: Annotated[int, 1, 100] = 2  # V and advantages take the lowest target critic
    expectile: Annotated[float, 0.01, 0.999] = 0.7  # V estimates this expectile of Q; 0.5: mean
    beta: Annotated[float, 0.0, 1e3] = 3.0  # advantage weights are exp(beta u); 0 clones the data
    dropout: Annotated[float, 0.0, 0.99] = 0.0  # dropout rate inside the actor's loss
    schedule: Literal["automatic", "curriculum", "random", "direct"] = "automatic"  # see above
    init: Literal["warm", "cold"] = "warm"  # the learner starts as the guide, or from new networks
    stages: Annotated[int, 1, 10**6] = 10  # n, from the guide alone to the learner alone
    calibration_episodes: Annotated[int, 2, 10**6] = 10  # of the guide alone, before stage 1
    min_episodes: Annotated[int, 2, 10**6] = 5  # with the learner in them, before a first verdict
    window: Annotated[int, 2, 10**6] = 10  # automatic: so many returns count, a stage's newest
    z_advance: Annotated[float, 0.0, 100.0] = 0.5  # automatic: standard errors above the threshold
    z_retreat: Annotated[float, 0.0, 100.0] = 1.0  # automatic: standard errors below it
    tolerance: Annotated[float, 0.0, 1.0] = 0.05  # accepted loss, see the thresholds above
    offline_ratio: Annotated[float, 0.0, 1.0] = 0.25  # share of each online batch from the data set
    online_window: Annotated[int, 1, 10**9] = 100_000  # only so many, the newest, are sampled
    normalize_returns: bool = False  # rewards * 1000 / (highest - lowest return in the data)


# Settings by family, the second-to-last part of a data set's id. They are defaults: a flag wins.
# IQL's paper (section 5, appendix B) and its authors' configs; JSRL keeps them. Ours: iql.py's
# deviation 7, the online budget of locomotion, and the gate's episodes in mazes.
FINE_TUNE = {"offline_steps": 1_000_000, "online_steps": 1_000_000, "checkpoint_every": 50_000}
LOCOMOTION = {"expectile": 0.7, "beta": 3.0, "normalize_returns": True}
LOCOMOTION |= {"online_steps": 250_000}
MAZE = {"expectile": 0.9, "beta": 10.0, "reward_bias": -1.0, "success_ends_episode": True}
MAZE |= {"calibration_episodes": 20, "min_episodes": 10, "window": 20}
MANIPULATION = {"expectile": 0.7, "beta": 0.5, "dropout": 0.1} | FINE_TUNE
PAPER_SETTINGS = {
    **dict.fromkeys(["hopper", "halfcheetah", "walker2d", "ant"], LOCOMOTION),
    **dict.fromkeys(["pen", "door", "hammer", "relocate", "kitchen"], MANIPULATION),
    "antmaze": MAZE | FINE_TUNE | {"eval_every": 100_000, "eval_episodes": 100},
    "pointmaze": MAZE | {"actor_lr_decay": True, "eval_episodes": 24},
}

NETWORKS = "iql"  # scripts with this word and equal sizes accept each other's offline.pt
ONLINE_ONLY = ("guide.", "_extra_state")  # parts of the agent that begin at the switch
METRICS = ["value_loss", "critic_loss", "actor_loss", "q", "v", "advantage", "weight"]
KEYS = [f"{phase}/{name}" for phase in ("offline", "online") for name in METRICS]  # in metrics.csv
KEYS += ["online/episode_return", "online/episode_length"]
KEYS += ["eval/return", "eval/score", "eval/success"]
KEYS += ["eval_learner/return", "eval_learner/score", "eval_learner/success"]
KEYS += ["online/stage", "online/guide_share"]
KEYS += ["online/gate_estimate", "online/gate_lower", "online/gate_upper"]
KEYS += ["online/gate_threshold", "online/gate_verdict"]


def mlp(in_dim: int, out_dim: int, hidden: int = 256) -> nn.Sequential:
    """Two hidden layers of ReLU units; orthogonal weights with gain sqrt(2), zero biases."""
    layers = []
    for fan_in, fan_out in ((in_dim, hidden), (hidden, hidden), (hidden, out_dim)):
        linear = nn.Linear(fan_in, fan_out)
        nn.init.orthogonal_(linear.weight, math.sqrt(2))
        nn.init.zeros_(linear.bias)
        layers += [linear, nn.ReLU()]
    return nn.Sequential(*layers[:-1])


class Actor(nn.Module):
    """Diagonal Gaussian: a mean in the action box; each entry has one std in all states."""

    def __init__(self, obs_dim: int, act_dim: int):
        super().__init__()
        self.mean = mlp(obs_dim, act_dim)
        self.log_std = nn.Parameter(torch.zeros(act_dim))

    def forward(self, obs: torch.Tensor, dropout: float = 0.0) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean (B, act_dim) and log standard deviation (act_dim,)."""
        x = obs
        for layer in self.mean:
            x = layer(x)
            if isinstance(layer, nn.ReLU):
                x = F.dropout(x, dropout)  # also when acting, but then the rate is 0
        return torch.tanh(x), self.log_std.clamp(-5.0, 2.0)

    def log_prob(self, obs: torch.Tensor, actions: torch.Tensor, dropout: float) -> torch.Tensor:
        """Log-density of actions (B, act_dim): (B,). Only the mean is squashed, not the sample."""
        mean, log_std = self(obs, dropout)
        z = (actions - mean) * torch.exp(-log_std)
        return (-0.5 * z.square() - log_std - 0.5 * math.log(2 * math.pi)).sum(-1)


class Critic(nn.Module):
    """E Q-functions, each with the layers of mlp(); one batched matmul per layer serves all."""

    def __init__(self, num_critics: int, obs_dim: int, act_dim: int):
        super().__init__()
        members = [mlp(obs_dim + act_dim, 1) for _ in range(num_critics)]
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        for index in range(0, len(members[0]), 2):  # where the linear layers stand in mlp()
            weights = [member[index].weight.detach().T for member in members]
            biases = [member[index].bias.detach()[None] for member in members]
            self.weights.append(torch.stack(weights))  # (E, fan_in, fan_out)
            self.biases.append(torch.stack(biases))  # (E, 1, fan_out)

    def forward(self, obs: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
        """Q (E, B) of obs (B, obs_dim) and actions (B, act_dim)."""
        x = torch.cat([obs, actions], -1)
        x = x.expand(len(self.weights[0]), -1, -1)  # (E, B, obs_dim + act_dim)
        for index, (weight, bias) in enumerate(zip(self.weights, self.biases)):
            if index > 0:
                x = F.relu(x)
            x = torch.baddbmm(bias, x, weight)
        return x.squeeze(-1)


# ---- replay buffer: the same in every script ----
class ReplayBuffer:
    """Transitions, a row of a table each: first the data set, then up to `capacity` online."""

    def __init__(self, columns: dict[str, np.ndarray], capacity: int, device: torch.device):
        self.shapes = {name: column.shape[1:] for name, column in columns.items()}
        self.widths = [math.prod(shape) for shape in self.shapes.values()]
        self.size = self.offline_size = len(columns["rewards"])
        self.rows = torch.empty(self.size + capacity, sum(self.widths), device=device)
        for part, column in zip(self.rows[: self.size].split(self.widths, dim=1), columns.values()):
            part.copy_(torch.from_numpy(column).reshape(part.shape))

    def add(self, **transition) -> None:
        """Append one transition, given by the names of the columns."""
        parts = [np.ravel(transition[name]) for name in self.shapes]
        self.rows[self.size] = torch.from_numpy(np.concatenate(parts))
        self.size += 1

    def sample(
        self, batch_size: int, offline_ratio: float | None = None, newest: int = sys.maxsize
    ) -> Tensors:
        """A random batch with replacement, uniform over all that is held. With an offline_ratio:
        that share from the data set (it comes first), the rest from the `newest` online rows."""
        device = self.rows.device
        if offline_ratio is None:
            index = torch.randint(self.size, (batch_size,), device=device)
        else:
            oldest = max(self.offline_size, self.size - newest)
            index = torch.randint(oldest, self.size, (batch_size,), device=device)
            offline = round(offline_ratio * batch_size)
            index[:offline] = torch.randint(self.offline_size, (offline,), device=device)
        parts = self.rows[index].split(self.widths, dim=1)
        batch = {}
        for part, (name, shape) in zip(parts, self.shapes.items()):
            batch[name] = part.reshape(batch_size, *shape)
        return batch


# ---- end of replay buffer ----


def wilson(share: float, number: int, z: float) -> tuple[float, float]:
    """Wilson's bounds of a share seen in `number` trials, z standard errors to each side."""
    center = share + z**2 / (2 * number)
    width = z * math.sqrt(share * (1 - share) / number + (z / (2 * number)) ** 2)
    scale = 1 + z**2 / number
    return (center - width) / scale, (center + width) / scale


def newcombe(first: list[float], second: list[float], z: float) -> tuple[float, float]:
    """Newcombe's bounds of the difference of two means of 0s and 1s: the errors of both count."""
    p, q = np.mean(first), np.mean(second)
    p_low, p_high = wilson(p, len(first), z)
    q_low, q_high = wilson(q, len(second), z)
    lower = p - q - math.hypot(p - p_low, q_high - q)
    upper = p - q + math.hypot(p_high - p, q - q_low)
    return lower, upper


@dataclasses.dataclass
class Gate:
    """Decides for how many steps of an episode the guide acts. Returns are raw, undiscounted."""

    args: Args
    stage: int = 0  # k: 0 the guide alone ... n the learner alone
    random_return: float = 0.0  # J_r, where the data set tells it
    guide_returns: list = dataclasses.field(default_factory=list)  # of its own episodes
    guide_lengths: list = dataclasses.field(default_factory=list)  # of these, in steps
    solved_lengths: list = dataclasses.field(default_factory=list)  # steps until they were solved
    returns: list = dataclasses.field(default_factory=list)  # of this stage, the newest --window
    learner_episodes: int = 0  # episodes of this stage in which the learner acted
    evaluations: list = dataclasses.field(default_factory=list)  # curriculum: returns, the last 5
    best: float = 0.0  # curriculum: the best mean of 5 evaluations so far, at first the guide's

    def calibrated(self) -> bool:
        """Whether enough is known of the guide: from then on the learner's policy trains."""
        needed = max(self.args.calibration_episodes, self.args.min_episodes)
        return len(self.guide_returns) >= needed or self.args.schedule == "direct"

    def horizon(self, stage: int) -> float:
        """h, the number of steps that the guide acts at a stage."""
        if stage == 0:
            return math.inf
        lengths = self.solved_lengths or self.guide_lengths
        if not lengths:  # direct: the guide has no episodes
            return 0
        mean = np.mean(lengths)
        h = round(mean * (1 - stage / self.args.stages))
        return min(h, math.ceil(mean) - 1)  # below the mean with any number of stages

    def horizons(self) -> list[float]:
        """What h may be in an episode of this stage."""
        if self.args.schedule == "random" and self.stage > 0:
            return [self.horizon(stage) for stage in range(1, self.args.stages + 1)]
        return [self.horizon(self.stage)]

    def draw(self, number: int) -> tuple[int, float]:
        """Stage and h of a training episode; its seed, `number`, chooses if there are several."""
        horizons = self.horizons()
        return self.stage, horizons[number % len(horizons)]

    def move(self, stage: int) -> None:
        """Enter a stage: training returns that were seen at another one no longer count."""
        self.stage = stage
        self.returns = []
        self.learner_episodes = 0

    def bounds(self) -> tuple[float, float, float]:
        """Lower and upper bound of this stage's mean return, and the threshold for both.

        The guide's mean is an estimate, too: its error is in both bounds."""
        args = self.args
        guide_mean = np.mean(self.guide_returns)
        if set(self.guide_returns + self.returns) <= {0.0, 1.0}:  # every return is 0 or 1
            low, _ = newcombe(self.returns, self.guide_returns, args.z_advance)
            _, high = newcombe(self.returns, self.guide_returns, args.z_retreat)
            return guide_mean + low, guide_mean + high, guide_mean - args.tolerance
        mean = np.mean(self.returns)
        guide_std = np.std(self.guide_returns, ddof=1)
        std = max(np.std(self.returns, ddof=1), 0.25 * guide_std)  # equal returns are not certain
        error = math.sqrt(std**2 / len(self.returns) + guide_std**2 / len(self.guide_returns))
        lower = mean - args.z_advance * error
        upper = mean + args.z_retreat * error
        return lower, upper, guide_mean - args.tolerance * abs(guide_mean - self.random_return)

    def log_row(self, estimate: float, threshold: float, verdict: int) -> dict[str, float]:
        """The row to log of a decision. verdict 1: advance (if not at n), 0: hold, -1: retreat."""
        row = {"online/gate_estimate": estimate, "online/gate_threshold": threshold}
        return row | {"online/gate_verdict": verdict}

    def after_episode(self, stats: dict, solved_at: float, guide_share: float) -> dict[str, float]:
        """Take in a finished training episode, decide, and return what is to be logged.

        solved_at: the step of its first success, infinite if there was none."""
        args = self.args
        self.returns.append(float(stats["r"]))
        self.returns = self.returns[-args.window :]
        if self.stage == 0:
            self.guide_returns.append(float(stats["r"]))
            self.guide_lengths.append(int(stats["l"]))
            if solved_at < math.inf:
                self.solved_lengths.append(solved_at)
            if self.calibrated() and len(self.returns) >= args.min_episodes:
                self.best = float(np.mean(self.guide_returns))
                self.move(1)
            return {}
        if guide_share < 1:
            self.learner_episodes += 1
        if args.schedule != "automatic" or self.learner_episodes < args.min_episodes:
            return {}
        estimate = np.mean(self.returns)
        lower, upper, threshold = self.bounds()
        verdict = 0
        if lower >= threshold:
            verdict = 1
        elif upper < threshold:
            verdict = -1
        if verdict != 0 and self.stage + verdict <= args.stages:
            self.move(self.stage + verdict)
        bounds = {"online/gate_lower": lower, "online/gate_upper": upper}
        return bounds | self.log_row(estimate, threshold, verdict)

    def after_evaluation(self, mean_return: float) -> dict[str, float]:
        """curriculum: take in an evaluation's mean return, decide, and return what is to be logged.

        The last 5 may be of several stages. At stage 0 an evaluation is of the guide alone."""
        if self.args.schedule != "curriculum" or self.stage == 0:
            return {}
        self.evaluations.append(mean_return)
        self.evaluations = self.evaluations[-5:]
        if len(self.evaluations) < 5:
            return {}
        estimate = float(np.mean(self.evaluations))
        threshold = self.best - self.args.tolerance * abs(self.best)
        self.best = max(self.best, estimate)
        if estimate < threshold:
            return self.log_row(estimate, threshold, 0)
        self.move(min(self.stage + 1, self.args.stages))
        return self.log_row(estimate, threshold, 1)


class Agent(nn.Module):
    """The networks (what a checkpoint holds), their optimizer and their update."""

    def __init__(self, obs_dim: int, act_dim: int, args: Args, device: torch.device):
        super().__init__()
        self.args = args
        self.actor = Actor(obs_dim, act_dim)
        self.guide = copy.deepcopy(self.actor).requires_grad_(False)  # filled by jump_start()
        self.value = mlp(obs_dim, 1)
        self.critic = Critic(args.num_critics, obs_dim, act_dim)
        self.critic_target = copy.deepcopy(self.critic).requires_grad_(False)
        self.to(device)
        actor = {"params": [*self.actor.parameters()]}
        others = {"params": [*self.value.parameters(), *self.critic.parameters()]}
        self.optimizer = torch.optim.Adam([actor, others], lr=args.learning_rate, fused=True)
        self.compiled_loss = compiled(self.loss, args, device)
        self.gate = Gate(args)

    def get_extra_state(self) -> dict:
        """What a checkpoint holds of the gate (state_dict() asks for it)."""
        return {name: value for name, value in vars(self.gate).items() if name != "args"}

    def set_extra_state(self, state: dict) -> None:
        """The gate of a checkpoint (load_state_dict() hands it over)."""
        if not 0 <= state["stage"] <= self.args.stages:
            raise ValueError(f"the gate is at stage {state['stage']} of {self.args.stages}")
        vars(self.gate).update(state)

    def jump_start(self, random_return: float) -> None:
        """The switch: the policy becomes the guide; the learner goes on from it or starts anew."""
        self.guide.load_state_dict(self.actor.state_dict())
        self.gate = Gate(self.args, random_return=random_return)
        if self.args.schedule == "direct":
            self.gate.stage = self.args.stages
        if self.args.init == "cold":
            obs_dim, act_dim = self.actor.mean[0].in_features, len(self.actor.log_std)
            self.actor.load_state_dict(Actor(obs_dim, act_dim).state_dict())
            self.value.load_state_dict(mlp(obs_dim, 1).state_dict())
            new_critic = Critic(self.args.num_critics, obs_dim, act_dim)
            self.critic.load_state_dict(new_critic.state_dict())
            self.critic_target.load_state_dict(self.critic.state_dict())
            self.optimizer.state.clear()

    @torch.no_grad()
    def act(self, obs: torch.Tensor, deterministic: bool, guided: bool = False) -> torch.Tensor:
        """Action in [-1, 1]: the guide's mean if guided, else the policy's mean or a sample."""
        if guided:
            return self.guide(obs)[0]  # its mean, always
        mean, log_std = self.actor(obs)
        if deterministic:
            return mean
        return (mean + log_std.exp() * torch.randn_like(mean)).clamp(-1.0, 1.0)

    def loss(self, batch: Tensors) -> tuple[torch.Tensor, Tensors]:
        """Sum of the losses, each with gradients to its own network; and what to log."""
        args = self.args
        obs, actions = batch["obs"], batch["actions"]
        with torch.no_grad():
            min_q = self.critic_target(obs, actions).amin(0)  # (E, B) -> (B,)
            next_v = self.value(batch["next_obs"]).squeeze(-1)
            td_target = batch["rewards"] + args.gamma * (1 - batch["terminations"]) * next_v

        v = self.value(obs).squeeze(-1)
        u = min_q - v  # the advantage of the batch's action
        asymmetry = torch.where(u > 0, args.expectile, 1 - args.expectile)
        value_loss = (asymmetry * u.square()).mean()
        weight = torch.exp(args.beta * u.detach()).clamp(max=100.0)  # no action may dominate
        actor_loss = -(weight * self.actor.log_prob(obs, actions, args.dropout)).mean()
        q = self.critic(obs, actions)  # (E, B)
        critic_loss = (q - td_target).square().mean(1).sum()

        metrics = {"value_loss": value_loss, "critic_loss": critic_loss, "actor_loss": actor_loss}
        metrics |= {"q": q.mean(), "v": v.mean(), "advantage": u.mean(), "weight": weight.mean()}
        loss = value_loss + actor_loss + critic_loss  # each has its own networks
        return loss, {name: metric.detach() for name, metric in metrics.items()}

    def set_actor_lr(self, learning_rate: float) -> None:
        """Learning rate of the policy, which is the optimizer's first group of parameters."""
        self.optimizer.param_groups[0]["lr"] = learning_rate

    def update(self, batch: Tensors, train_actor: bool = True) -> Tensors:
        """One gradient step (if not train_actor, not of the policy), then the target follows."""
        self.optimizer.zero_grad()
        loss, metrics = self.compiled_loss(batch)
        loss.backward()
        if not train_actor:
            self.actor.zero_grad()  # no gradient at all: Adam leaves the learner's policy alone
        self.optimizer.step()
        critic = [parameter.detach() for parameter in self.critic.parameters()]
        torch._foreach_lerp_(list(self.critic_target.parameters()), critic, self.args.tau)
        return metrics


def return_scale(rewards: np.ndarray, ends: np.ndarray) -> float:
    """1000 / (highest - lowest episode return) of rewards (N,); ends: see read_episodes."""
    returns = np.add.reduceat(rewards, np.r_[0, ends[:-1]], dtype=np.float64)
    if returns.min() == returns.max():
        fail("all episodes have the same return: give --no-normalize-returns")
    return float(1000 / (returns.max() - returns.min()))


def mixture(agent: Agent, env: gym.Env, horizons: list[float]):
    """Guide and learner together, for Run.evaluate: its episodes take the horizons in turn."""
    first = env.episode_count

    def act(obs: torch.Tensor, deterministic: bool) -> torch.Tensor:
        horizon = horizons[(env.episode_count - first) % len(horizons)]
        return agent.act(obs, deterministic, guided=env.episode_lengths < horizon)

    return act


def main(args: Args) -> None:
    device = set_up(args)
    if args.window < args.min_episodes:
        fail("--window must be at least --min-episodes")
    columns, ends, task, references = load_data(args)
    env, eval_env = make_env(task), make_env(task)
    scale = args.reward_scale
    if args.normalize_returns:
        scale *= return_scale(columns["rewards"], ends)
    columns["rewards"] = scale * columns["rewards"] + args.reward_bias
    buffer = ReplayBuffer(columns, args.online_steps, device)
    agent = Agent(columns["obs"].shape[1], columns["actions"].shape[1], args, device)
    run = Run(args, agent, buffer, references)

    # ---- offline: gradient steps -offline_steps + 1, ..., 0
    for step in run.steps("offline"):
        if args.actor_lr_decay:  # from 1 to 0, as step - 1 goes from -offline_steps to -1
            decay = 0.5 * (1 - math.cos(math.pi * (step - 1) / args.offline_steps))
            agent.set_actor_lr(args.learning_rate * decay)
        batch = buffer.sample(args.batch_size)
        metrics = agent.update(batch)
        run.report(metrics)
        if step % args.eval_every == 0 and step < 0:
            run.evaluate(agent.act, eval_env)
        run.checkpoint()

    # ---- the switch: the policy becomes the guide; learner and gate begin
    if run.phase == "offline":
        agent.set_actor_lr(args.learning_rate)
        run.evaluate(agent.act, eval_env)
        run.end_offline()
    if run.step == 0:  # also if it is resumed there: guide and gate begin with step 1
        random_return = references[0] if references else 0.0
        agent.jump_start(random_return)
    gate = agent.gate

    # ---- online: environment steps 1, ..., online_steps
    obs, _ = env.reset(seed=run.seed("training", run.episode))
    for step in run.steps("online"):
        length = env.episode_lengths  # so far
        if length == 0:  # an episode begins: its h is chosen
            solved_at = math.inf
            stage, horizon = gate.draw(run.seed("horizon", run.episode))
        current = torch.from_numpy(obs).to(device)
        action = agent.act(current, deterministic=False, guided=length < horizon).cpu().numpy()
        next_obs, reward, terminated, truncated, info = env.step(action)
        reward = scale * float(reward) + args.reward_bias
        if info.get("success", False):
            solved_at = min(solved_at, length + 1)
        buffer.add(
            obs=obs, actions=action, rewards=reward, next_obs=next_obs, terminations=terminated
        )
        obs = next_obs
        if buffer.size - buffer.offline_size >= args.batch_size:
            batch = buffer.sample(args.batch_size, args.offline_ratio, args.online_window)
            metrics = agent.update(batch, train_actor=gate.calibrated())
            run.report(metrics)
        if step % args.eval_every == 0 or step == args.online_steps:
            deployed = run.evaluate(mixture(agent, eval_env, gate.horizons()), eval_env)
            run.evaluate(agent.act, eval_env, "eval_learner", "learner")
            decision = gate.after_evaluation(deployed["return"])
            if decision:
                run.log(decision)
        if terminated or truncated:
            share = min(horizon / (length + 1), 1.0)
            decision = gate.after_episode(info["episode"], solved_at, share)
            run.log({"online/stage": stage, "online/guide_share": share} | decision)
            run.end_episode(info["episode"])
            obs, _ = env.reset(seed=run.seed("training", run.episode))
    run.finish()


# ==== below this line: the same in every script (tests/test_shared_blocks.py) ====

EnvSpec = gym.envs.registration.EnvSpec
SCRIPT = Path(__file__)
BUNDLED = SCRIPT.resolve().parent / "datasets"
LOG_EVERY = 500  # steps between two readings of the losses: a GPU has to wait for each
PACKAGES = ["torch", "numpy", "gymnasium", "gymnasium-robotics", "mujoco", "minari"]
SEED_PURPOSES = ["training", "evaluation offline", "evaluation online", "horizon"]  # h in JSRL
EVAL_COLUMNS = ["step", "phase", "policy", "episode", "seed", "return", "length", "success"]
# D4RL v2's mean returns of a random policy and of an expert (gym's v2), if the data name none.
REFERENCE_SCORES = {
    "hopper": (-20.272305, 3234.3),
    "halfcheetah": (-280.178953, 12135.0),
    "walker2d": (1.629008, 4592.3),
    "ant": (-325.6, 3879.7),
}


def fail(message: str, status: int = 2) -> typing.NoReturn:
    """End the run with one sentence; status 2: bad input, 3: the run diverged."""
    printable = [char if char.isprintable() else " " for char in message]
    plain = "".join(printable)
    with contextlib.suppress(OSError):  # the disk that stderr goes to may be full, too
        print(f"{SCRIPT.name}: {' '.join(plain.split())}"[:1500], file=sys.stderr, flush=True)
    raise SystemExit(status)


def check_ranges(args) -> None:
    """Every argument must be of its type and in its range, from a command line or a checkpoint."""
    for name, hint in typing.get_type_hints(type(args), include_extras=True).items():
        value = getattr(args, name)
        flag = f"--{name.replace('_', '-')}"
        kind, *bounds = typing.get_args(hint) or [hint]
        if typing.get_origin(hint) is Annotated:
            if type(value) is not kind or not bounds[0] <= value <= bounds[1]:
                fail(f"{flag} must be between {bounds[0]} and {bounds[1]}, not {value}")
        elif typing.get_origin(hint) is Literal:
            if value not in [kind, *bounds]:
                fail(f"{flag} must be one of {kind}, {', '.join(bounds)}, not {value}")
        elif not isinstance(value, hint):
            fail(f"{flag} must be of the type {hint}, not {value!r}")


def device_of(args: Args) -> torch.device:
    """Where networks and data live."""
    if torch.cuda.is_available() and args.device != "cpu":
        return torch.device("cuda")
    return torch.device("cpu")


def check_memory(size: float, purpose: str, args: Args) -> None:
    """Refuse `size` bytes for a purpose if the machine, or the GPU, has less memory in total."""
    device = device_of(args)
    if device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
    else:
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if size > total:
        fail(f"{purpose} would need {size / 1e9:,.1f} GB; there are {total / 1e9:,.1f} GB")


# ---- data and environment


def flatten(space: gym.Space, x) -> np.ndarray:
    """One observation -> (dim,), T of them -> (T, dim), float32, as gymnasium.spaces.flatten."""
    if isinstance(space, gym.spaces.Dict):
        return np.concatenate([flatten(sub, x[key]) for key, sub in space.items()], axis=-1)
    if not isinstance(space, gym.spaces.Box) or len(space.shape) > 2:
        fail(f"observations must be vectors, not {space}")
    if len(space.shape) == 2 and space.dtype == np.uint8:
        fail(f"observations must be vectors, not a picture, {space}")
    x = np.asarray(x)
    leading = x.shape[: x.ndim - len(space.shape)]
    if x.dtype.kind not in "fiub" or x.shape != leading + space.shape or len(leading) > 1:
        fail(f"observations of {space} cannot be an array of {x.dtype} with the shape {x.shape}")
    # A copy: some tasks change the observation that they returned.
    return np.array(x, np.float32).reshape(*leading, -1)


def check_files(folder: Path) -> None:
    """Refuse a data set that leads elsewhere (to code, to other files) or counts wrongly."""
    metadata = json.loads((folder / "metadata.json").read_text())
    if not {"observation_space", "action_space"} <= metadata.keys():  # Minari would build the task
        fail(f"{folder} does not tell its observation and action space")
    with h5py.File(folder / "main_data.hdf5", "r") as file:
        links, items = [], []  # h5py's visitors cannot raise
        file.visititems_links(lambda name, link: links.append((name, link)))
        file.visititems(lambda name, item: items.append((name, item)))
        outside = [name for name, link in links if not isinstance(link, h5py.HardLink)]
        arrays = [(name, item) for name, item in items if isinstance(item, h5py.Dataset)]
        outside += [name for name, array in arrays if array.external or array.is_virtual]
        if outside:
            fail(f"{folder}: {outside[0]} leads out of the file, which is not followed")
        steps = sum(len(episode["rewards"]) for episode in file.values())
        counted = {"total_episodes": len(file), "total_steps": steps}
    for name, count in counted.items():
        if metadata.get(name) != count:
            fail(f"{folder} says {name} = {metadata.get(name)}, but holds {count}")


def find_dataset(dataset_id: str) -> minari.MinariDataset:
    """The bundled copy, else the local Minari copy, else a download."""
    if not re.fullmatch(r"[\w-]+(/[\w-]+)*", dataset_id):  # it must not lead out of the folder
        fail(f"--dataset-id {dataset_id!r} is no Minari id, such as D4RL/hopper/medium-v2")
    folder = BUNDLED / dataset_id / "data"
    if not folder.is_dir():
        roots = [BUNDLED, minari.storage.get_dataset_path()]
        folder = roots[1] / dataset_id / "data"
    if not folder.is_dir():
        try:
            minari.download_dataset(dataset_id)
        except Exception as error:
            found = [(root, path) for root in roots for path in root.glob("**/data/metadata.json")]
            have = sorted(str(path.parent.parent.relative_to(root)) for root, path in found)
            why = f"{type(error).__name__}: {error}".splitlines()[0]
            fail(
                f"no data set {dataset_id} (bundled or local: {', '.join(have) or 'none'}), "
                f"and `minari download {dataset_id}` fails: {why}"
            )
    check_files(folder)
    return minari.MinariDataset(folder)


def check_episode(episode: minari.EpisodeData, obs: np.ndarray, act_shape: tuple) -> None:
    """An episode of T steps has T + 1 observations, T of the rest, and ends at its last step."""
    steps = len(episode.rewards)
    which = f"episode {episode.id}"
    columns = {
        "observations": (obs, (steps + 1, *obs.shape[1:])),
        "actions": (episode.actions, (steps, *act_shape)),
        "rewards": (episode.rewards, (steps,)),
        "terminations": (episode.terminations, (steps,)),
    }
    for name, (column, shape) in columns.items():
        if column.dtype.kind not in "fiub" or column.shape != shape:
            fail(f"{which}: {column.dtype} {name} of shape {column.shape}, not numbers of {shape}")
    if not np.isin(episode.terminations, (0, 1)).all():
        fail(f"{which}: terminations must be 0 or 1")
    if episode.terminations[:-1].any():
        fail(f"{which} goes on after it has terminated")


def read_episodes(
    dataset: minari.MinariDataset, success_ends_episode: bool
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """All transitions as float32 columns, and one past the last row of each episode.

    Rewards are raw, actions rescaled to [-1, 1]. An episode of T steps has T + 1 observations, so
    the last transition is kept even where a time limit cut the episode."""
    box = dataset.action_space
    parts = {"obs": [], "actions": [], "rewards": [], "next_obs": [], "terminations": []}
    ends = [0]
    farthest = 0.0  # of an action's entries from the middle of the box, in half-widths
    for episode in dataset.iterate_episodes():
        obs = flatten(dataset.observation_space, episode.observations)
        check_episode(episode, obs, box.shape)
        length = len(episode.rewards)
        terminations = episode.terminations.astype(bool)
        if length == 0:
            continue
        if success_ends_episode:
            success = np.asarray((episode.infos or {}).get("success", episode.rewards > 0))
            if (
                success.shape not in ((length,), (length + 1,))
                or not np.isin(success, (0, 1)).all()
            ):
                fail(f"episode {episode.id}: success must be 0 or 1 at each step")
            success = success[-length:].astype(bool)  # the reset may have an entry, too
            terminations = terminations | success
            if success.any():
                length = int(success.argmax()) + 1
        actions = 2 * (episode.actions[:length] - box.low) / (box.high - box.low) - 1
        farthest = max(farthest, np.abs(actions).max())
        parts["obs"].append(obs[:length])
        # A policy that is squashed by a tanh has no density at the ends of the box.
        parts["actions"].append(actions.clip(-1 + 1e-5, 1 - 1e-5))
        parts["rewards"].append(episode.rewards[:length])
        parts["next_obs"].append(obs[1 : length + 1])
        parts["terminations"].append(terminations[:length])
        ends.append(ends[-1] + length)
    if ends[-1] == 0:
        fail("the data set holds no transition")
    if farthest > 3.0:
        fail(
            f"actions lie up to {farthest:.3g} half-widths of the action box {box} from its middle"
        )
    if farthest > 1.001:
        print(f"note: actions outside their box (up to {farthest:.3g} half-widths) are clipped")
    columns = {name: np.concatenate(part, dtype=np.float32) for name, part in parts.items()}
    return columns, np.array(ends[1:])


def is_plain(x) -> bool:
    """Is it made of short lists, small integers and strings that cannot name a file or a module?"""
    if isinstance(x, dict | list):
        entries = list(x.values()) if isinstance(x, dict) else x
        return len(entries) <= 100 and all(is_plain(entry) for entry in entries)
    if isinstance(x, str):
        return not any(mark in x for mark in "/\\:.~")
    return not isinstance(x, int) or abs(x) <= 1000


def registered(spec: str) -> EnvSpec:
    """The task that a data set names (JSON of an EnvSpec), as it is registered on this machine.

    A file must not choose what code runs: of its specification only the id, plain arguments and the
    time limit count; entry points and wrappers in it are ignored."""
    named = json.loads(spec)
    env_id = named["id"]
    kwargs = named.get("kwargs") or {}
    if env_id not in gym.registry:  # imported only here, without its notice about Adroit
        noise = io.StringIO()
        with contextlib.redirect_stdout(noise), contextlib.redirect_stderr(noise):
            gym.register_envs(importlib.import_module("gymnasium_robotics"))
    if env_id not in gym.registry:
        fail(f"no environment {env_id} is registered: name the module that does it, --env-module")
    kwargs.pop("render_mode", None)
    if not is_plain(kwargs):
        fail(f"the arguments of {env_id} in the data set are huge or name a file: {kwargs}")
    task = copy.deepcopy(gym.registry[env_id])
    task.kwargs |= kwargs
    limit = named.get("max_episode_steps")
    if type(limit) is int and 0 < limit <= 10_000:  # pointmaze data name a million steps
        task.max_episode_steps = limit
    if task.max_episode_steps is None:
        fail(f"{env_id} has no time limit: register it with max_episode_steps=...")
    return task


def task_of(metadata: dict, success_ends_episode: bool) -> EnvSpec:
    """The task of the data: the evaluation variant where there is one (a maze's start and goal).

    In Minari's umaze its walls are the mirror image of the data's: then it is mirrored back."""
    specs = [metadata[key] for key in ("env_spec", "eval_env_spec") if metadata.get(key)]
    if not specs:
        fail("the data set names no environment: create it with the argument env=...")
    train, task = registered(specs[0]), registered(specs[-1])
    if "adroit" in str(task.entry_point):
        print("note: gymnasium-robotics 1.2.1 changed Adroit's dense rewards: tools/check_data.py")
    walls = []
    for spec in (train, task):
        walls.append([[cell == 1 for cell in row] for row in spec.kwargs.get("maze_map", [])])
    if walls[0] != walls[1]:
        if walls[0] != [row[::-1] for row in walls[1]]:
            fail("the evaluation maze has other walls than the data's")
        task.kwargs["maze_map"] = [row[::-1] for row in task.kwargs["maze_map"]]
    constructor = task.entry_point
    if isinstance(constructor, str):
        constructor = gym.envs.registration.load_env_creator(constructor)
    if success_ends_episode and "continuing_task" in inspect.signature(constructor).parameters:
        task.kwargs["continuing_task"] = False
    return task


def make_env(task: EnvSpec) -> gym.Env:
    """The task with flat float32 observations, actions in [-1, 1], info["episode"] at the end."""
    try:
        env = gym.make(task, disable_env_checker=True)
    except Exception as error:
        fail(f"cannot build {task.id} {task.kwargs}: {type(error).__name__}: {error}")
    space = env.observation_space
    flat_space = gym.spaces.Box(-np.inf, np.inf, (gym.spaces.flatdim(space),), np.float32)
    env = gym.wrappers.TransformObservation(env, lambda obs: flatten(space, obs), flat_space)
    if (env.action_space.low != -1).any() or (env.action_space.high != 1).any():
        env = gym.wrappers.RescaleAction(env, np.float32(-1), np.float32(1))
    return gym.wrappers.RecordEpisodeStatistics(env)


def references_of(dataset_id: str, metadata: dict) -> tuple[float, float] | None:
    """The returns that score 0 and 100; None if nothing tells them."""
    low, high = metadata.get("ref_min_score"), metadata.get("ref_max_score")
    source = metadata.get("o2o_reference_source", "the data set")
    if low is None and high is None:
        low, high = REFERENCE_SCORES.get(dataset_id.split("/")[-2:][0], (None, None))
        source = "D4RL v2"
    if low is None and high is None:
        print("score: none")
        return None
    if any(type(score) not in (int, float) or not abs(score) < 1e300 for score in (low, high)):
        fail(f"ref_min_score {low!r} and ref_max_score {high!r} must be two finite numbers")
    if low >= high:
        fail(f"ref_min_score {low!r} must be less than ref_max_score {high!r}")
    print(f"score: 0 = return {low:g}, 100 = return {high:g}; {ascii(source)[1:-1][:200]}")
    return float(low), float(high)


def load_data(args: Args) -> tuple[dict[str, np.ndarray], np.ndarray, EnvSpec, tuple | None]:
    """The data set, checked: columns, episode ends, its task, the returns that score 0 and 100."""
    try:
        with np.errstate(all="ignore"):  # what is not finite then is refused below
            dataset = find_dataset(args.dataset_id)
            metadata = dataset.storage.metadata
            box = dataset.action_space
            if not isinstance(box, gym.spaces.Box) or len(box.shape) != 1 or not box.is_bounded():
                fail(f"actions must be vectors in a bounded Box, not {box}")
            # A row: two observations, action, reward, end; the data are in columns and buffer.
            width = 2 * gym.spaces.flatdim(dataset.observation_space) + box.shape[0] + 2
            need = 4.0 * width * (2 * int(dataset.total_steps) + args.online_steps)
            check_memory(need, f"the data set and --online-steps {args.online_steps}", args)
            columns, ends = read_episodes(dataset, args.success_ends_episode)
        task = task_of(metadata, args.success_ends_episode)
        env = make_env(task)
        env.reset(seed=0)
        env.step(np.zeros(env.action_space.shape, np.float32))  # some arguments fail only now
    except Exception as error:  # a damaged file fails in h5py, JSON or Minari, in many ways
        fail(f"cannot read the data set {args.dataset_id}: {type(error).__name__}: {error}")
    for name, column in columns.items():
        if not np.isfinite(column).all():
            fail(f"the data set {args.dataset_id} holds NaN or infinity in its {name}")
    obs_dim = env.observation_space.shape[0]
    its_box = env.unwrapped.action_space
    if columns["obs"].shape[1] != obs_dim or its_box.shape != box.shape:
        fail(
            f"{task.id} has {obs_dim} observation and {its_box.shape} action entries, "
            f"the data have {columns['obs'].shape[1]} and {box.shape}"
        )
    if not np.allclose(its_box.low, box.low) or not np.allclose(its_box.high, box.high):
        fail(f"actions of {task.id} lie in {its_box}, those of the data in {box}")
    env.close()
    print(f"data: {args.dataset_id}, {len(ends)} episodes, {ends[-1]} transitions, task {task.id}")
    if args.batch_size > ends[-1]:
        fail(f"--batch-size {args.batch_size} is more than the {ends[-1]} transitions of the data")
    return columns, ends, task, references_of(args.dataset_id, metadata)


# ---- the run: logs, checkpoints, command line


def write(path: Path, write_to) -> None:
    """Replace a file at once: a crash leaves the previous one or the new one, never a torn one."""
    temporary = path.with_suffix(".tmp")
    try:
        temporary.unlink(missing_ok=True)
        with open(temporary, "xb") as file:  # x: never through a link to another file
            write_to(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError
        with contextlib.suppress(OSError):
            temporary.unlink()
        fail(f"cannot write {path} (what it held before stays); is the disk full? {error}")


def write_json(path: Path, values: dict) -> None:
    write(path, lambda file: file.write(json.dumps(values, indent=2).encode()))


def load_checkpoint(path: str) -> dict:
    """Read a checkpoint: plain tensors, numbers and strings. Nothing in it is run as code."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        if type(state) is not dict:
            raise TypeError(f"holds a {type(state).__name__}")
        kinds = {"script": str, "networks": str, "dataset_id": str, "data": str, "code": str}
        kinds |= {"obs_dim": int, "act_dim": int, "args": dict, "agent": dict, "optimizer": dict}
        wrong = [name for name, kind in kinds.items() if type(state[name]) is not kind]
        for name, value in state["args"].items():
            if not isinstance(value, int | float | str | None):
                wrong.append(name)
        if wrong:
            raise TypeError(f"wrong type of {wrong}")
    except Exception as error:  # a missing, truncated or foreign file fails in many ways
        fail(f"{path} is missing, damaged or no checkpoint of these scripts: {error!r}"[:300])
    return state


def check_like(saved, own, name: str, status: int = 2) -> None:
    """Refuse an entry of a checkpoint that is not what this run would write in its place.

    That is: the same keys, types, shapes, finite numbers. `name` says where the entry stands. Where
    this run has an empty list, nothing is known but that it will hold finite numbers."""
    if type(saved) is not type(own):
        fail(f"{name} is a {type(saved).__name__}, not a {type(own).__name__}", status)
    if isinstance(own, list) and not own:
        if not all(isinstance(x, (int, float)) and abs(x) < math.inf for x in saved):
            fail(f"{name} holds something else than finite numbers", status)
    elif isinstance(own, dict):
        strange = sorted(map(str, saved.keys() ^ own.keys()))
        if strange:
            fail(f"{name} has missing or superfluous entries: {', '.join(strange[:5])}", status)
        for key in own:
            check_like(saved[key], own[key], f"{name}: {key}", status)
    elif isinstance(own, (list, tuple)):
        if len(saved) != len(own):
            fail(f"{name} has {len(saved)} entries, not {len(own)}", status)
        for saved_entry, own_entry in zip(saved, own):
            check_like(saved_entry, own_entry, name, status)
    elif torch.is_tensor(own):
        kinds = [(x.layout, x.is_meta, x.dtype, tuple(x.shape), x.stride()) for x in (saved, own)]
        if kinds[0] != kinds[1]:
            fail(f"{name} is {saved.dtype} {kinds[0][3]}, not {own.dtype} {kinds[1][3]}", status)
        if not saved.isfinite().all():
            fail(f"{name} is not finite", status)
    elif isinstance(own, float) and not math.isfinite(saved):
        fail(f"{name} is {saved}", status)


class Run:
    """One run: its directory and logs, its clock, its counters, and all that makes it resumable."""

    def __init__(self, args: Args, agent: Agent, buffer: ReplayBuffer, references: tuple | None):
        self.args = args
        self.agent = agent
        self.buffer = buffer
        self.references = references
        self.dir = Path(args.run_dir, args.run_name)
        self.phase = "offline"
        self.step = -args.offline_steps
        self.episode = 0
        self.seconds = {"offline": 0.0, "online": 0.0}
        self.tick = time.perf_counter()
        data = buffer.rows[: buffer.size].cpu().numpy()
        self.identity = {
            "script": SCRIPT.name,
            "networks": NETWORKS,
            "dataset_id": args.dataset_id,
            "obs_dim": buffer.shapes["obs"][0],
            "act_dim": buffer.shapes["actions"][0],
            "data": hashlib.sha256(data).hexdigest(),
            "code": hashlib.sha256(SCRIPT.read_bytes()).hexdigest(),
        }
        commit = git_commit()  # before signals have to wait
        self.pending_signal = 0
        self.writing = True  # signals wait for the first latest.pt
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self.interrupt)
        self.files = {}
        self.is_new_directory = False
        if args.resume is None and args.offline_checkpoint is not None:
            self.load(self.load_offline, args.offline_checkpoint)
        try:
            self.open_directory()
            if args.resume is not None:
                self.load(self.load_latest, args.resume)
            versions = {}
            for name in PACKAGES:
                with contextlib.suppress(importlib.metadata.PackageNotFoundError):
                    versions[name] = importlib.metadata.version(name)
            size = {"transitions": buffer.offline_size, "commit": commit}
            write_json(self.dir / "config.json", self.identity | vars(args) | versions | size)
            self.tick = time.perf_counter()  # the clock of a phase leaves out what came before it
            self.snapshot = self.state()
            self.write_latest(self.snapshot)
        except (SystemExit, OSError):  # refused, or the disk is full: leave nothing behind
            if self.is_new_directory:
                shutil.rmtree(self.dir, ignore_errors=True)
            raise
        if args.track:
            wandb = importlib.import_module("wandb")
            wandb.init(id=args.run_name, resume="allow", config=vars(args), sync_tensorboard=True)
        purge = None if args.resume is None else self.step + 1
        self.tensorboard = SummaryWriter(str(self.dir), purge_step=purge, flush_secs=10)
        print(f"run: {self.dir}")

    def open_directory(self) -> None:
        """Make the run's directory, or lock that of the run to resume, and open its logs."""
        resumed = self.args.resume is not None
        columns = {"metrics.csv": ["step", *KEYS], "eval.csv": EVAL_COLUMNS}
        try:
            self.dir.mkdir(parents=True, exist_ok=resumed)
            self.is_new_directory = not resumed
            self.lock = filelock.FileLock(self.dir / ".lock")
            self.lock.acquire(timeout=0)
            for path in [self.dir / name for name in columns]:
                if resumed and (path.is_symlink() or not path.is_file()):
                    fail(f"{path} is missing, or a link to another file")
            mode = "r+" if resumed else "x"
            self.files = {name: open(self.dir / name, mode, 1, newline="") for name in columns}
        except filelock.Timeout:
            fail(f"another process is writing to {self.dir}")
        except FileExistsError:
            fail(f"{self.dir} exists: choose another --run-name")
        except OSError as error:
            fail(f"cannot write to {self.dir}: {error.strerror}: {error.filename}")
        self.tables = {}
        for name, file in self.files.items():
            self.tables[name] = csv.DictWriter(file, columns[name], lineterminator="\n")
            if not resumed:
                self.tables[name].writeheader()

    def steps(self, phase: str) -> typing.Iterator[int]:
        """The steps of a phase that are still to do, behind a progress bar."""
        if phase != self.phase:
            return
        last = self.args.online_steps if phase == "online" else 0
        todo = range(self.step + 1, last + 1)
        self.tick = time.perf_counter()
        self.bar = tqdm(todo, desc=phase, disable=not sys.stderr.isatty())
        for step in self.bar:
            self.step = step
            yield step

    def lap(self) -> None:
        """Add the time since the last lap to the phase's clock."""
        self.seconds[self.phase] += time.perf_counter() - self.tick
        self.tick = time.perf_counter()

    def seed(self, purpose: str, *numbers: int) -> int:
        """A seed for each purpose and numbers, the same in every run with this --seed."""
        key = [self.args.seed, SEED_PURPOSES.index(purpose), *numbers]
        return int(np.random.SeedSequence(key).generate_state(1)[0])

    def log(self, values: dict[str, float]) -> None:
        """Scalars to TensorBoard, and all that do not depend on the clock to metrics.csv."""
        row = {key: value for key, value in values.items() if not key.startswith("time/")}
        self.tables["metrics.csv"].writerow({"step": self.step} | row)
        for key, value in values.items():
            self.tensorboard.add_scalar(key, value, self.step)

    def report(self, metrics: Tensors) -> None:
        """Log what an update returned, every LOG_EVERY steps; stop if a loss is not finite."""
        if self.step % LOG_EVERY:
            return
        numbers = torch.stack(list(metrics.values())).tolist()
        values = dict(zip(metrics, numbers, strict=True))
        for name, value in values.items():
            if not math.isfinite(value):
                latest = self.dir / "latest.pt"
                where = f"{self.phase} step {self.step}, the last good checkpoint is {latest}"
                fail(f"diverged: {name} is {value} at {where}", status=3)
        self.lap()
        done = self.step if self.phase == "online" else self.step + self.args.offline_steps
        logged = {f"{self.phase}/{name}": value for name, value in values.items()}
        logged["time/updates_per_second"] = done / self.seconds[self.phase]
        if self.phase == "online":
            logged["time/env_steps_per_second"] = done / self.seconds[self.phase]
        self.log(logged)
        losses = {name: f"{value:.3g}" for name, value in values.items() if "loss" in name}
        self.bar.set_postfix(losses)

    def evaluate(self, act, env: gym.Env, prefix="eval", policy="actor") -> dict[str, float]:
        """--eval-episodes deterministic episodes: a row each in eval.csv, means as `prefix`/..."""
        self.lap()
        device = self.buffer.rows.device
        returns, successes = [], []  # one entry per episode; no successes if the task tells none
        for episode in range(self.args.eval_episodes):
            seed = self.seed(f"evaluation {self.phase}", abs(self.step), episode)
            success = None
            obs, info = env.reset(seed=seed)
            while "episode" not in info:
                action = act(torch.from_numpy(obs).to(device), deterministic=True).cpu().numpy()
                obs, _, _, _, info = env.step(action)
                if "success" in info:
                    success = int(success or info["success"])
            returns.append(float(info["episode"]["r"]))
            if success is not None:
                successes.append(success)
            row = {"step": self.step, "phase": self.phase, "policy": policy, "episode": episode}
            row |= {"seed": seed, "return": returns[-1], "length": int(info["episode"]["l"])}
            self.tables["eval.csv"].writerow(row | {"success": success})
        values = {"return": float(np.mean(returns))}
        if self.references:
            values["score"] = self.score(values["return"])
        if successes:
            values["success"] = float(np.mean(successes))
        self.log({f"{prefix}/{name}": value for name, value in values.items()})
        words = ", ".join(f"{name} {value:.4g}" for name, value in values.items())
        tqdm.write(f"{self.phase} {self.step:8d}  {prefix}: {words}")
        latest = values.get("score", values["return"])
        self.bar.set_description(f"{self.phase}, {prefix} {latest:.4g}")
        self.tick = time.perf_counter()
        return values

    def score(self, value: float) -> float:
        low, high = self.references
        return 100 * (value - low) / (high - low)

    def end_episode(self, stats: dict) -> None:
        """Log an online episode; between it and the next, the run can be resumed."""
        length = float(stats["l"])
        self.log({"online/episode_return": float(stats["r"]), "online/episode_length": length})
        self.episode += 1
        self.checkpoint()

    def end_offline(self) -> None:
        """Write offline.pt; from here on a step is an environment step."""
        state = self.identity | {"args": vars(self.args)} | self.networks()
        for name in list(state["agent"]):
            if name.startswith(ONLINE_ONLY):
                del state["agent"][name]
        write(self.dir / "offline.pt", lambda file: torch.save(state, file))
        self.phase = "online"
        self.step = 0
        self.snapshot = self.state()
        self.write_latest(self.snapshot)

    def checkpoint(self) -> None:
        """Call where a run can go on: keeps a snapshot, and writes it every --checkpoint-every."""
        due = self.step - self.saved >= self.args.checkpoint_every
        if due or self.phase == "online" or self.step % LOG_EVERY == 0:
            self.snapshot = self.state()
        if due:
            self.write_latest(self.snapshot)

    def log_digests(self, sizes: dict[str, int]) -> dict[str, str]:
        """Check sums of so many first bytes of the logs."""
        logs = {name: (self.dir / name).read_bytes() for name in sizes}
        return {name: hashlib.sha256(logs[name][:size]).hexdigest() for name, size in sizes.items()}

    def networks(self) -> dict:
        """What a checkpoint holds of the agent. Adam's moments are 0 before its first step."""
        optimizer = self.agent.optimizer
        for parameter in [p for group in optimizer.param_groups for p in group["params"]]:
            if not optimizer.state[parameter]:
                moments = {"step": torch.zeros((), device=parameter.device)}
                moments |= {name: torch.zeros_like(parameter) for name in ("exp_avg", "exp_avg_sq")}
                optimizer.state[parameter] = moments
        return {"agent": dict(self.agent.state_dict()), "optimizer": optimizer.state_dict()}

    def state(self) -> dict:
        """A copy of all that a resumed run needs, except the online transitions."""
        self.lap()
        state = self.identity | {"args": vars(self.args), "phase": self.phase, "step": self.step}
        state |= {"episode": self.episode, "seconds": self.seconds, "rng": [torch.get_rng_state()]}
        if self.buffer.rows.is_cuda:
            state["rng"].append(torch.cuda.get_rng_state())
        state["offsets"] = {name: file.tell() for name, file in self.files.items()}
        state["logs"] = dict.fromkeys(self.files, "")  # check sums, once they are on the disk
        state["online_size"] = self.buffer.size - self.buffer.offline_size
        return copy.deepcopy(state | self.networks())

    def write_latest(self, state: dict) -> None:
        """Replace latest.pt, if all is finite; the logs that it counts on are synced first."""
        for name in ("agent", "optimizer"):
            where = f"diverged at {state['phase']} step {state['step']}: {name}"
            check_like(state[name], state[name], where, status=3)
        self.writing = True
        for file in self.files.values():
            os.fsync(file.fileno())
        state["logs"] = self.log_digests(state["offsets"])
        start = self.buffer.offline_size
        # A clone: of a slice, torch would save the whole table.
        online = self.buffer.rows[start : start + state["online_size"]].clone()
        write(self.dir / "latest.pt", lambda file: torch.save(state | {"online": online}, file))
        self.saved = state["step"]
        self.writing = False
        if self.pending_signal:
            self.interrupt(self.pending_signal, None)

    def interrupt(self, number: int, _) -> None:
        """Signal handler: keep the last snapshot and end at once, whatever the run is doing."""
        self.pending_signal = number
        if self.writing:  # write_latest comes back here
            return
        self.pending_signal = 0
        status = 128 + number
        try:
            self.write_latest(self.snapshot)
            latest = self.dir / "latest.pt"
            print(f"{SCRIPT.name}: interrupted; go on with --resume {latest}", file=sys.stderr)
        except SystemExit as refusal:
            status = refusal.code
        os._exit(status)

    def load(self, load_it, path: str) -> None:
        """Load a checkpoint; what its own checks do not foresee gets a sentence, too."""
        try:
            load_it(path)
        except Exception as error:
            fail(f"{path} is damaged: {type(error).__name__}: {error}")

    def load_offline(self, path: str) -> None:
        """Begin with the networks of an offline.pt, or of a latest.pt taken at the switch."""
        state = load_checkpoint(path)
        taken_at = state.get("phase", "online"), state.get("step", 0)
        if taken_at != ("online", 0):
            fail(f"{path} is no offline.pt: it was taken at {taken_at[0]} step {taken_at[1]}")
        before, now = state["args"] | state, vars(self.args) | self.identity
        same = ["networks", "dataset_id", "gamma", "reward_scale", "reward_bias", "layer_norm"]
        same += ["normalize_returns", "infinite_horizon", "success_ends_episode", "max_latent"]
        for key in [*same, "data"]:  # a flag that this script lacks is None on both sides
            if before.get(key) != now.get(key):
                fail(f"{path} does not fit: its {key} is {before.get(key)}, not {now.get(key)}")
        own = self.state()
        expected = {*self.identity, "args", "agent", "optimizer"}
        if "phase" in state:
            expected = own.keys() | {"online"}
        if state.keys() != expected:
            fail(f"{path} has missing or superfluous entries: {sorted(state.keys() ^ expected)}")
        for name in own["agent"]:
            if name.startswith(ONLINE_ONLY):
                state["agent"][name] = own["agent"][name]
        self.load_networks(state, own, path)

    def load_latest(self, path: str) -> None:
        """Go on where a latest.pt was taken; rows that were logged later are cut off."""
        state = load_checkpoint(path)
        online = state.pop("online", None)
        if state.get("phase") == "done":  # a larger --online-steps: go on after its last episode
            state = state.get("last_episode")
        own = self.state()
        if isinstance(state, dict):  # what two runs of one script may differ in
            own |= {name: state[name] for name in ("args", "rng") if name in state}
        check_like(state, own, path)
        if state["data"] != own["data"]:
            fail(f"the data set {self.args.dataset_id} is not the one that {path} was trained on")
        if state["code"] != own["code"]:
            print(f"note: {SCRIPT.name} has changed since {path} was written")
        for name in self.identity.keys() - {"data", "code"}:
            if state[name] != own[name]:
                fail(f"{path} does not fit: its {name} is {state[name]}, not {own[name]}")
        self.load_networks(state, own, path)
        size = state["online_size"]
        step = state["step"]
        ranges = {"offline": (-self.args.offline_steps, 0), "online": (0, self.args.online_steps)}
        first, last = ranges.get(state["phase"], (1, 0))
        done = max(step, 0)
        if not first <= step <= last or size != done or not 0 <= state["episode"] <= done:
            fail(f"{path}: this run has no {state['phase']} step {step} with {size} transitions")
        if len(online) < size:
            fail(f"{path} does not hold its {size} online transitions")
        rows = torch.zeros(size, self.buffer.rows.shape[1])
        check_like(online[:size].contiguous(), rows, f"{path}: online")
        start = self.buffer.offline_size
        self.buffer.rows[start : start + size] = online[:size].to(self.buffer.rows.device)
        self.buffer.size += size
        for name, digest in self.log_digests(state["offsets"]).items():
            if digest != state["logs"][name]:
                fail(f"{self.dir / name} is not the log of {path}: rows are lost or changed")
        torch.set_rng_state(state["rng"][0])
        if self.buffer.rows.is_cuda and len(state["rng"]) > 1:  # else the device has changed
            torch.cuda.set_rng_state(state["rng"][1])
        self.phase = state["phase"]
        self.step = step
        self.episode = state["episode"]
        self.seconds = state["seconds"]
        for name, offset in state["offsets"].items():
            self.files[name].truncate(offset)
            self.files[name].seek(offset)
        (self.dir / "summary.json").unlink(missing_ok=True)

    def load_networks(self, state: dict, own: dict, path: str) -> None:
        """Networks and moments of a checkpoint; learning rates are those of this run."""
        for name in ("agent", "optimizer"):
            check_like(state[name], own[name], f"{path}: {name}")
        for moments in state["optimizer"]["state"].values():
            if moments["step"] < 0 or (moments["exp_avg_sq"] < 0).any():
                fail(f"{path}: optimizer: a count or a square is negative")
        self.agent.load_state_dict(state["agent"])
        moments = {"state": state["optimizer"]["state"]}
        self.agent.optimizer.load_state_dict(own["optimizer"] | moments)

    def finish(self) -> None:
        """Write the final latest.pt and summary.json, and print the summary."""
        last_episode = self.snapshot | {"logs": self.log_digests(self.snapshot["offsets"])}
        state = self.state() if self.args.online_steps > 0 else self.snapshot  # as at the switch
        self.snapshot = state | {"phase": "done", "last_episode": last_episode}
        self.write_latest(self.snapshot)
        with open(self.dir / "eval.csv", newline="") as file:
            rows = [row for row in csv.DictReader(file) if row["policy"] == "actor"]
        summary = {}
        for name, step in (("offline", 0), ("final", self.args.online_steps)):
            returns = [float(row["return"]) for row in rows if int(row["step"]) == step]
            mean = float(np.mean(returns))
            summary[f"{name}_score"] = self.score(mean) if self.references else None
            summary[f"{name}_return"] = mean
        offline, online = self.seconds["offline"], self.seconds["online"]
        summary["updates_per_second"] = self.args.offline_steps / offline or None
        summary["env_steps_per_second"] = self.args.online_steps / online or None
        summary |= {"seconds_offline": offline, "seconds_online": online}
        summary["seconds_total"] = offline + online
        write_json(self.dir / "summary.json", summary)
        known = {name: value for name, value in summary.items() if value is not None}
        print("\n".join(f"{name:21} {value:.6g}" for name, value in known.items()))
        self.tensorboard.close()
        self.lock.release()


def git_commit() -> str | None:
    """The commit of the repository that the script lies in, if there are one and git."""
    command = ["git", "-C", str(SCRIPT.resolve().parent), "rev-parse", "HEAD"]
    if shutil.which("git") is None:
        return None
    done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    return done.stdout.strip() or None


def set_up(args: Args) -> torch.device:
    """Check what the arguments ask of this machine, seed torch, choose the device."""
    if args.reward_scale == 0:
        fail("--reward-scale must not be 0")
    if args.device == "cuda" and not torch.cuda.is_available():
        fail("--device cuda: torch finds no CUDA device")
    if args.track and importlib.util.find_spec("wandb") is None:
        fail("--track needs wandb: pip install wandb")
    torch.manual_seed(args.seed)
    torch.set_float32_matmul_precision(args.matmul_precision)
    torch.set_flush_denormal(True)  # moments of dead ReLUs decay to numbers that slow a CPU down
    gym.logger.min_level = gym.logger.ERROR  # v4 tasks announce their age each time they are built
    logging.disable(logging.WARNING)  # the hub's client without a network, torch without a GPU
    device = device_of(args)
    if args.compile:
        try:
            torch.compile(torch.square)(torch.ones(1, device=device))
        except Exception:  # no C++ compiler, no Python headers, ...
            print("note: torch.compile does not work on this machine; the loss runs without it")
            args.compile = False
    if args.env_module is not None:
        sys.path.append(os.getcwd())
        try:
            importlib.import_module(args.env_module)
        except Exception as error:
            fail(f"--env-module {args.env_module}: {type(error).__name__}: {error}")
    return device


def compiled(loss, args: Args, device: torch.device):
    """A loss function, compiled unless --no-compile."""
    if not args.compile:
        return loss
    if device.type == "cuda":
        return torch.compile(loss, mode="reduce-overhead")
    return torch.compile(loss)


def read_flags(kind, **options):
    """What the command line says, read by tyro; its frame around a mistake becomes one sentence."""
    heard = io.StringIO()
    try:
        with contextlib.redirect_stderr(heard):
            return tyro.cli(kind, **options)
    except SystemExit as ended:
        if ended.code:
            fail(re.sub("[─│╭╮╰╯]", " ", heard.getvalue()))
        raise


def resumed_args(argv: list[str], path: str) -> Args:
    """The arguments of the run to resume; what the command line says must not contradict them."""
    saved = load_checkpoint(path)
    if saved["script"] != SCRIPT.name:
        fail(f"{path} belongs to {saved['script']}, not to {SCRIPT.name}")
    if "phase" not in saved:
        fail(f"{path}: only the latest.pt of a run can be resumed")
    strange = saved["args"].keys() ^ {field.name for field in dataclasses.fields(Args)}
    if strange:
        fail(f"{path} is of another version of {SCRIPT.name}: {sorted(map(str, strange))}")
    before = Args(**saved["args"])
    check_ranges(before)
    # A module that a file names is imported only if the command line names it, too.
    args = read_flags(Args, args=argv, default=dataclasses.replace(before, env_module=None))
    check_ranges(args)
    free = {"resume", "run_dir", "device", "track", "online_steps"}
    for name in vars(before).keys() - free:
        old, new = getattr(before, name), getattr(args, name)
        if new != old:
            fail(f"--{name.replace('_', '-')} {new}: the run to resume has {old}")
    if args.online_steps < before.online_steps:
        fail(f"--online-steps {args.online_steps}: the run to resume has {before.online_steps}")
    folder = Path(path).resolve().parent
    if args.run_dir != before.run_dir and Path(args.run_dir).resolve() != folder.parent:
        fail(f"--run-dir {args.run_dir}: a run goes on where its latest.pt is, in {folder.parent}")
    finished = saved["phase"] == "done" and (folder / "summary.json").exists()
    if finished and args.online_steps == before.online_steps:
        fail(f"{path} is of a finished run, which only a larger --online-steps can extend")
    return dataclasses.replace(args, run_dir=str(folder.parent), run_name=folder.name)


def parse_args(argv: list[str]) -> Args:
    """Flags win over the family's PAPER_SETTINGS, and these over the defaults."""
    args = read_flags(Args, args=argv, description=f"{__doc__}\nDefaults without PAPER_SETTINGS:")
    if args.resume is not None:
        return resumed_args(argv, args.resume)
    family, *name = args.dataset_id.split("/")[-2:]
    settings = PAPER_SETTINGS.get(family, {})
    args = read_flags(Args, args=argv, default=dataclasses.replace(Args(), **settings))
    check_ranges(args)
    if args.offline_checkpoint is not None:
        args.offline_steps = 0
    if args.run_name is None:
        when = time.strftime("%Y%m%d-%H%M%S")
        args.run_name = "__".join([family, *name, SCRIPT.stem, str(args.seed), when])
    elif not re.fullmatch(r"\w[\w.,=+-]{0,199}", args.run_name):
        fail(f"--run-name {args.run_name!r} must be a plain name of a folder")
    folder = Path(args.run_dir, args.run_name)
    if folder.exists():
        fail(f"{folder} exists: choose another --run-name, or --resume {folder / 'latest.pt'}")
    print(SCRIPT.name, *(f"{name}={value}" for name, value in vars(args).items()))
    in_force = [f"{name}={value}" for name, value in settings.items() if vars(args)[name] == value]
    print(f"settings of {family}:", *(in_force or ["none"]))
    return args


def cli(argv: list[str]) -> None:
    """The whole program. Trouble with files or memory that nobody expected gets a sentence, too."""
    sys.stdout = sys.stdout or open(os.devnull, "w")  # None, where a shell has closed it
    sys.stdout.reconfigure(line_buffering=True, errors="backslashreplace")
    try:
        main(parse_args(argv))
    except (OSError, MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "memory" not in str(error):
            raise
        with contextlib.suppress(OSError):
            sys.stdout.close()  # else Python fails again at its exit, if nothing can be printed
        fail(f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    cli(sys.argv[1:])
