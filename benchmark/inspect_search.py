"""Does the search of o3f.py find better actions? Ask the simulator, with the critics of a checkpoint, without any update.

    python benchmark/inspect_search.py runs/NAME/offline.pt --sigma 0.2

Two answers, for the policy's mean action (plain), the same with noise of --sigma (noise), and the best of 100 such actions
by the critics (o3f):

 - return of whole episodes in which every action is chosen like that;
 - the advantage of one such action: from states that the policy visits, it is executed once and the policy's mean follows
   for --horizon steps. Predicted is Q(s, action) - Q(s, mean), measured the difference of the discounted, scaled rewards.

For MuJoCo locomotion data (the simulator's state must be a position and a velocity) and checkpoints of iql.py or o3f.py.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import tyro

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import o3f


@dataclass
class Args:
    checkpoint: tyro.conf.Positional[str]
    """an offline.pt"""
    sigma: float = 0.2
    """standard deviation of the perturbations"""
    episodes: int = 10
    """whole episodes per arm"""
    states: int = 200
    """states for the single actions"""
    horizon: int = 100
    """steps after a single action"""


def main(options: Args) -> None:
    state = o3f.load_checkpoint(options.checkpoint)
    known = {name: value for name, value in state["args"].items() if hasattr(o3f.Args, name)}
    args = o3f.Args(**known | {"sigma": options.sigma, "center": "mean", "compile": False})
    columns, ends, task, references = o3f.load_data(args)
    scale = args.reward_scale * (
        o3f.return_scale(columns["rewards"], ends) if args.normalize_returns else 1.0
    )
    env = o3f.make_env(task)
    agent = o3f.Agent(
        columns["obs"].shape[1], columns["actions"].shape[1], args, torch.device("cpu")
    )
    agent.load_state_dict(state["agent"], strict=False)
    torch.manual_seed(0)

    def choose(obs: torch.Tensor, arm: str) -> torch.Tensor:
        args.exploration = arm
        return agent.explore(obs)

    def discounted(choice: np.ndarray, position: np.ndarray, velocity: np.ndarray) -> float:
        """Sum of discounted, scaled rewards of one action and --horizon steps of the policy."""
        env.reset(seed=0)
        env.unwrapped.set_state(position, velocity)
        obs, reward, terminated, _, _ = env.step(choice)
        total, factor = scale * reward, args.gamma
        for _ in range(options.horizon):
            if terminated:
                break
            obs, reward, terminated, _, _ = env.step(choose(torch.from_numpy(obs), "plain").numpy())
            total, factor = total + factor * scale * reward, factor * args.gamma
        return total

    visited = []  # (observation, position, velocity)
    for arm in ("plain", "noise", "o3f"):
        returns = []
        for episode in range(options.episodes):
            (obs, info), steps = env.reset(seed=episode), 0
            while "episode" not in info:
                physics = env.unwrapped.data
                visited += (
                    [(obs, physics.qpos.copy(), physics.qvel.copy())] if arm == "plain" else []
                )
                obs, _, _, _, info = env.step(choose(torch.from_numpy(obs), arm).numpy())
                steps += 1
            returns.append(info["episode"]["r"])
        print(
            f"{arm:5}  return {np.mean(returns):.0f} (standard error {np.std(returns, ddof=1) / len(returns) ** 0.5:.0f})"
        )

    picked = np.random.default_rng(0).choice(len(visited), options.states)
    gains = {"noise": [], "o3f": []}
    for obs, position, velocity in (visited[i] for i in picked):
        observation = torch.from_numpy(obs)
        mean = choose(observation, "plain")
        base = discounted(mean.numpy(), position, velocity)
        for arm, pairs in gains.items():
            action = choose(observation, arm)
            with torch.no_grad():
                q = agent.critic(observation.expand(2, -1), torch.stack([mean, action])).mean(0)
            pairs.append(
                ((q[1] - q[0]).item(), discounted(action.numpy(), position, velocity) - base)
            )
    for arm, pairs in gains.items():
        predicted, measured = np.array(pairs).T
        error, correlation = (
            measured.std(ddof=1) / len(measured) ** 0.5,
            np.corrcoef(predicted, measured)[0, 1],
        )
        print(
            f"{arm:5}  advantage predicted {predicted.mean():.3f}, measured {measured.mean():.3f}",
            end="",
        )
        print(f" (standard error {error:.3f}), correlation {correlation:.2f}")


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
