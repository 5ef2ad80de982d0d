"""Why do the critics of o3f_lapo.py overestimate? A short offline phase in four variants.

    python benchmark/lapo_values.py --seeds 0 1 2

LAPO's decoder has no bounds, so a code may become an action outside of the action box, where no
data are. The environment clips it, the losses do not. The variants:

    as it is          the script
    clipped targets   the policy's actions are clipped in the targets of V and in the advantages
    clipped           they are clipped in the policy's own loss, too
    no choice         --max-latent 0: the decoder's action for the code 0

It measures for each run, in the learner's units of reward and with its discount:

 - over the data: the return that was recorded, V, and Q (mean of the critics) of the data's actions
   and of the policy's, as decoded and clipped; how often and how far their entries lie outside of
   the box; how often V's target lies above V's upper bound;
 - over episodes of the policy: V, and the return that followed.

The last 100 steps before a time limit are left out: too little of their return is known. The last
number is the mean return of these episodes, raw and undiscounted. A finished run is not made again.
"""

import csv
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import gymnasium as gym
import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from inspect_critic import returns_to_go

import o3f_lapo

COLUMNS = ["dataset", "variant", "seed", "name", "value"]


@dataclass
class Args:
    dataset_id: str = "o2o/halfcheetah/medium-v0"
    """Minari id"""
    seeds: tuple[int, ...] = (0,)
    """a run of each variant per seed"""
    offline_steps: int = 3000
    """updates; with gamma = 0.9 and tau = 0.02 values settle in 500"""
    episodes: int = 20
    """episodes of the policy"""
    compile: bool = True
    """as of the script"""
    run_dir: str = "runs/lapo_values"
    """folder of the runs"""
    out: Path | None = None
    """a CSV that receives the numbers, in place of all that it holds"""


def in_box(agent: o3f_lapo.Agent, actions: torch.Tensor) -> torch.Tensor:
    """Actions (B, act_dim), in z-scores before and after, as the environment would execute them."""
    return agent.normalize_actions(agent.unnormalize_actions(actions).clamp(-1.0, 1.0))


class ClippedTargets(o3f_lapo.Agent):
    """The target critics see the policy's actions clipped to the box."""

    def policy_q(self, obs: torch.Tensor, latent: torch.Tensor) -> torch.Tensor:
        actions = in_box(self, self.vae_target.decode(obs, latent))
        q = self.q_target(obs, actions, members=self.some_critics())
        return self.args.min_weight * q.amin(0) + (1 - self.args.min_weight) * q.amax(0)


class Clipped(o3f_lapo.Agent):
    """All critics do: they get these actions from the target decoder alone."""

    def __init__(self, *args):
        super().__init__(*args)
        decode = self.vae_target.decode
        self.vae_target.decode = lambda obs, latent: in_box(self, decode(obs, latent))


Agent = o3f_lapo.Agent  # the script's own
VARIANTS = {
    "as it is": (Agent, ""),
    "clipped targets": (ClippedTargets, ""),
    "clipped": (Clipped, ""),
    "no choice": (Agent, "--max-latent 0"),
}


def train(options: Args, variant: str, seed: int) -> Path:
    """The offline.pt of a run, which is made if it is not there."""
    words = [options.dataset_id.replace("/", "-"), variant.replace(" ", "-")]
    name = "__".join([*words, str(options.offline_steps), str(seed)])
    folder = Path(options.run_dir, name)
    if not (folder / "offline.pt").exists():
        shutil.rmtree(folder, ignore_errors=True)  # it was interrupted
        agent, own = VARIANTS[variant]
        flags = f"--dataset-id {options.dataset_id} --seed {seed} --gamma 0.9 --tau 0.02"
        flags += f" --batch-size 128 --offline-steps {options.offline_steps} --online-steps 0"
        flags += f" --run-dir {options.run_dir} --run-name {name} {own}"
        flags += "" if options.compile else " --no-compile"
        o3f_lapo.Agent = agent
        o3f_lapo.main(o3f_lapo.parse_args(flags.split()))
    return folder / "offline.pt"


def counted(length: int, terminated: bool) -> int:
    """How many steps of an episode have nearly their whole return in it."""
    return length if terminated else max(length - 100, 0)


def over_data(agent: Agent, columns: dict, ends: np.ndarray) -> dict[str, float]:
    """What the critics say of the data's states. The rewards are those of the learner."""
    rows, start = [], 0
    for end in ends:
        terminated = columns["terminations"][end - 1] == 1
        rows += range(start, start + counted(end - start, terminated))
        start = end
    gamma = agent.args.gamma
    recorded = returns_to_go(columns["rewards"], columns["terminations"], ends, gamma)[rows]
    obs = torch.from_numpy(columns["obs"][rows])
    actions = torch.from_numpy(columns["actions"][rows])
    normalized = agent.normalize_obs(obs)
    decoded = agent.vae_target.decode(normalized, agent.actor(normalized))
    decoded = agent.unnormalize_actions(decoded)
    outside = decoded.abs() > 1
    target = agent.policy_q(normalized, agent.actor_target(normalized))
    return {
        "data: recorded return": recorded.mean(),
        "data: V": agent.value(normalized).mean(),
        "data: Q of its actions": agent.critic(obs, actions).mean(),
        "data: Q of the policy's actions, decoded": agent.critic(obs, decoded).mean(),
        "data: Q of the policy's actions, clipped": agent.critic(obs, decoded.clamp(-1, 1)).mean(),
        "data: share of their entries outside": outside.float().mean(),
        "data: how far outside, in half-widths": (decoded.abs() - 1)[outside].mean(),
        "data: share of targets above V's bound": (target > agent.value_high).float().mean(),
    }


def over_episodes(agent: Agent, env: gym.Env, scale: float, episodes: int) -> dict[str, float]:
    """What V says of the states that the policy visits, and what followed there."""
    values, returns, totals = [], [], []
    for episode in range(episodes):
        visited, rewards, info = [], [], {}
        obs, _ = env.reset(seed=episode)
        while "episode" not in info:
            visited.append(obs)
            action = agent.act(torch.from_numpy(obs), deterministic=True).numpy()
            obs, reward, terminated, _, info = env.step(action)
            rewards.append(scale * reward + agent.args.reward_bias)
        length = len(rewards)
        ended = np.zeros(length)
        ended[-1] = terminated
        followed = returns_to_go(np.array(rewards), ended, np.array([length]), agent.args.gamma)
        v = agent.value(agent.normalize_obs(torch.from_numpy(np.stack(visited))))[:, 0].numpy()
        values += [*v[: counted(length, terminated)]]
        returns += [*followed[: counted(length, terminated)]]
        totals.append(info["episode"]["r"])
    return {
        "episodes: V": np.mean(values),
        "episodes: return that followed": np.mean(returns),
        "episodes: return in all": np.mean(totals),
    }


@torch.no_grad()
def measure(options: Args, checkpoint: Path) -> dict[str, float]:
    """The numbers of one run; its networks are put into the script's own agent."""
    state = o3f_lapo.load_checkpoint(str(checkpoint))
    args = o3f_lapo.Args(**state["args"] | {"compile": False, "device": "cpu"})
    o3f_lapo.set_up(args)  # the arithmetic of the run
    columns, ends, task, _ = o3f_lapo.load_data(args)
    scale = args.reward_scale
    if args.normalize_rewards:
        scale /= float(columns["rewards"].max())
    columns["rewards"] = scale * columns["rewards"] + args.reward_bias
    agent = Agent(state["obs_dim"], state["act_dim"], args, torch.device("cpu"))
    agent.load_state_dict(agent.state_dict() | state["agent"])
    agent.widen_bounds(float(columns["rewards"].min()), float(columns["rewards"].max()))
    numbers = over_data(agent, columns, ends)
    numbers |= over_episodes(agent, o3f_lapo.make_env(task), scale, options.episodes)
    return {name: float(number) for name, number in numbers.items()}


def main(options: Args) -> None:
    rows = []
    for variant in VARIANTS:
        for seed in options.seeds:
            numbers = measure(options, train(options, variant, seed))
            print(f"{variant}, seed {seed}:", flush=True)
            for name, number in numbers.items():
                print(f"  {name:41} {number:.3g}", flush=True)
                run = [options.dataset_id, variant, seed]
                rows.append(dict(zip(COLUMNS, [*run, name, f"{number:.4g}"])))
    if options.out:
        with open(options.out, "w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    o3f_lapo.SCRIPT = Path(__file__)  # error messages start with its name
    main(o3f_lapo.read_flags(Args, description=__doc__))
