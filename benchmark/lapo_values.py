"""Why the critics of o3f_lapo.py overestimate: a short offline phase, as it is and clipped.

    python benchmark/lapo_values.py --seeds 0 1 2

LAPO's decoder has no bounds, so a policy of codes may lead out of the action box, where critics
have no data. The environment clips such an action, the losses do not. The variant "clipped" does:
critics see what the target decoder says as the environment would execute it. Of each run are
measured, in the learner's units of reward,

 - over the data: Q of the data's actions and of the policy's, as decoded and clipped to the box;
   the share of their entries that lie outside; the discounted return that was recorded;
 - over episodes of the policy: V, and the discounted return that followed, without the last 100
   steps before a time limit; and their return, raw and undiscounted.

Runs lie below --run-dir; what is there is not run again.
"""

import csv
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path

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


class Clipped(o3f_lapo.Agent):
    """The critics see only actions in the box: all that they see of the decoder is the target's."""

    def __init__(self, *args):
        super().__init__(*args)
        decode = self.vae_target.decode

        def clipped(obs: torch.Tensor, latent: torch.Tensor) -> torch.Tensor:
            actions = self.unnormalize_actions(decode(obs, latent)).clamp(-1.0, 1.0)
            return self.normalize_actions(actions)

        self.vae_target.decode = clipped


VARIANTS = {"as it is": o3f_lapo.Agent, "clipped": Clipped}


def train(options: Args, variant: str, seed: int) -> Path:
    """The offline.pt of a run, which is made if it is not there."""
    name = f"{options.dataset_id.replace('/', '-')}__{seed}__{variant.replace(' ', '-')}"
    checkpoint = Path(options.run_dir, name, "offline.pt")
    if not checkpoint.exists():
        flags = f"--dataset-id {options.dataset_id} --seed {seed} --gamma 0.9 --tau 0.02"
        flags += f" --batch-size 128 --offline-steps {options.offline_steps} --online-steps 0"
        flags += f" --run-dir {options.run_dir} --run-name {name}"
        flags += "" if options.compile else " --no-compile"
        o3f_lapo.Agent = VARIANTS[variant]
        o3f_lapo.main(o3f_lapo.parse_args(flags.split()))
        o3f_lapo.Agent = VARIANTS["as it is"]
    return checkpoint


@torch.no_grad()
def measure(options: Args, checkpoint: Path) -> dict[str, float]:
    """The numbers of one run, without any clipping but the environment's."""
    state = o3f_lapo.load_checkpoint(str(checkpoint))
    args = o3f_lapo.Args(**state["args"] | {"compile": False, "device": "cpu"})
    o3f_lapo.set_up(args)  # the arithmetic of the run
    columns, ends, task, _ = o3f_lapo.load_data(args)
    scale = 1 / columns["rewards"].max() if args.normalize_rewards else 1.0
    agent = VARIANTS["as it is"](state["obs_dim"], state["act_dim"], args, torch.device("cpu"))
    agent.load_state_dict(
        state["agent"], strict=False
    )  # without the bounds of V, which main() sets
    rewards = scale * columns["rewards"]
    recorded = returns_to_go(rewards, columns["terminations"], ends, args.gamma)
    obs = torch.from_numpy(columns["obs"].copy())
    z = agent.normalize_obs(obs)
    decoded = agent.unnormalize_actions(agent.vae_target.decode(z, agent.actor(z)))
    numbers = {
        "recorded return": recorded.mean(),
        "Q of the data's actions": agent.critic(obs, torch.from_numpy(columns["actions"])).mean(),
        "Q of the policy's actions, decoded": agent.critic(obs, decoded).mean(),
        "Q of the policy's actions, clipped": agent.critic(obs, decoded.clamp(-1.0, 1.0)).mean(),
        "share of entries outside of the box": (decoded.abs() > 1).float().mean(),
    }
    values, returns, totals = [], [], []
    env = o3f_lapo.make_env(task)
    for episode in range(options.episodes):
        visited, rewards, info = [], [], {}
        obs, _ = env.reset(seed=episode)
        while "episode" not in info:
            visited.append(obs)
            action = agent.act(torch.from_numpy(obs), deterministic=True).numpy()
            obs, reward, terminated, _, info = env.step(action)
            rewards.append(scale * reward)
        ended = np.zeros(len(rewards))
        ended[-1] = terminated
        followed = returns_to_go(np.array(rewards), ended, np.array([len(rewards)]), args.gamma)
        v = agent.value(agent.normalize_obs(torch.from_numpy(np.stack(visited))))[:, 0].numpy()
        counted = len(v) if terminated else len(v) - 100  # more follows a time limit
        values += [*v[:counted]]
        returns += [*followed[:counted]]
        totals.append(info["episode"]["r"])
    numbers["V, in the policy's episodes"] = np.mean(values)
    numbers["return that followed"] = np.mean(returns)
    numbers["return of an episode"] = statistics.fmean(totals)
    return {name: float(number) for name, number in numbers.items()}


def main(options: Args) -> None:
    rows = []
    for seed in options.seeds:
        for variant in VARIANTS:
            numbers = measure(options, train(options, variant, seed))
            print(f"seed {seed}, {variant}:")
            for name, number in numbers.items():
                print(f"  {name:36} {number:.3g}")
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
