"""Compare a run's critic with its data: is Q near the returns, and how many actions does the policy imitate?

    python benchmark/inspect_critic.py runs/NAME/offline.pt

Prints, over all transitions of the data set: means of Q, V and of the discounted return-to-go that the data recorded (a
time limit cuts the latter, not the former), their correlation, and what the advantage weights do: the effective sample
size (sum w)^2 / (N sum w^2), the share of weights at the clip, and the share below 0.1. Last, in how many states of the
data the critic (minimum of the ensemble) ranks an action drawn uniformly from the box above the policy's own, which tells
how far exploration by its values can be trusted. For checkpoints of iql.py.
"""

import sys
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import iql


def returns_to_go(
    rewards: np.ndarray, terminations: np.ndarray, ends: np.ndarray, gamma: float
) -> np.ndarray:
    """Discounted return from each transition to the end of its episode, (N,) -> (N,)."""
    returns, last = np.zeros(len(rewards)), set(ends - 1)
    for t in reversed(range(len(rewards))):
        returns[t] = rewards[t] + (0.0 if t in last or terminations[t] else gamma * returns[t + 1])
    return returns


def main(path: str) -> None:
    state = iql.load_checkpoint(path)
    args = iql.Args(**state["args"])
    columns, ends, _, _ = iql.load_data(args)
    scale = args.reward_scale * (
        iql.return_scale(columns["rewards"], ends) if args.normalize_returns else 1.0
    )
    rewards = scale * columns["rewards"] + args.reward_bias
    agent = iql.Agent(
        columns["obs"].shape[1], columns["actions"].shape[1], args, torch.device("cpu")
    )
    agent.load_state_dict(state["agent"])
    with torch.no_grad():
        obs, actions = (
            torch.from_numpy(columns["obs"].copy()),
            torch.from_numpy(columns["actions"].copy()),
        )
        q, v = (
            agent.critic_target(obs, actions).amin(0).double().numpy(),
            agent.value(obs)[:, 0].double().numpy(),
        )
        policy, uniform = (
            agent.actor(obs)[0],
            2 * torch.rand(actions.shape, generator=torch.Generator().manual_seed(0)) - 1,
        )
        fooled = (
            (agent.critic(obs, uniform).amin(0) > agent.critic(obs, policy).amin(0))
            .double()
            .mean()
            .item()
        )
    recorded = returns_to_go(rewards, columns["terminations"], ends, args.gamma)
    weights = np.exp(np.minimum(args.beta * (q - v), np.log(100.0)))
    print(f"mean Q {q.mean():.4g}, V {v.mean():.4g}, recorded return {recorded.mean():.4g}")
    print(f"correlation of V and the recorded return {np.corrcoef(v, recorded)[0, 1]:.2f}")
    print(
        f"effective sample size {weights.sum() ** 2 / (weights**2).sum() / len(weights):.1%} of the data"
    )
    print(
        f"weights at the clip {(weights > 99.9).mean():.1%}, below 0.1 {(weights < 0.1).mean():.1%}"
    )
    print(f"a random action is ranked above the policy's in {fooled:.1%} of the states")


if __name__ == "__main__":
    main(sys.argv[1])
