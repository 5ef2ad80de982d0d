"""Compare a run's critic with its data: is Q near the returns, and what does the policy imitate?

    python benchmark/inspect_critic.py runs/NAME/offline.pt

Prints, over all transitions of the data set: means of Q, V and of the discounted return-to-go that
the data recorded (a time limit cuts the latter, not the former), their correlation, and what the
advantage weights do: the effective sample size (sum w)^2 / (N sum w^2), the share of weights at the
clip, and the share below 0.1. Last, in how many states of the data the critic (minimum of the
ensemble) ranks an action drawn uniformly from the box above the policy's own, which tells how far
exploration by its values can be trusted. For checkpoints of iql.py, pex.py and jsrl_finetune.py.
"""

import dataclasses
import json
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import tyro

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import iql


@dataclass
class Args:
    checkpoint: tyro.conf.Positional[str]
    """an offline.pt"""
    out: Path | None = None
    """JSON file that receives the numbers"""


def returns_to_go(
    rewards: np.ndarray, terminations: np.ndarray, ends: np.ndarray, gamma: float
) -> np.ndarray:
    """Discounted return from each transition to the end of its episode, (N,) -> (N,)."""
    returns = np.zeros(len(rewards))
    last = set(ends - 1)
    for t in reversed(range(len(rewards))):
        returns[t] = rewards[t]
        if t not in last and not terminations[t]:
            returns[t] += gamma * returns[t + 1]
    return returns


def main(options: Args) -> None:
    state = iql.load_checkpoint(options.checkpoint)
    known = {field.name for field in dataclasses.fields(iql.Args)}
    trained = {name: value for name, value in state["args"].items() if name in known}
    args = iql.Args(**trained | {"compile": False})
    columns, ends, _, _ = iql.load_data(args)
    scale = args.reward_scale
    if args.normalize_returns:
        scale *= iql.return_scale(columns["rewards"], ends)
    rewards = scale * columns["rewards"] + args.reward_bias
    agent = iql.Agent(state["obs_dim"], state["act_dim"], args, torch.device("cpu"))
    own = agent.state_dict()
    agent.load_state_dict({name: x for name, x in state["agent"].items() if name in own})
    obs = torch.from_numpy(columns["obs"].copy())
    actions = torch.from_numpy(columns["actions"].copy())
    uniform = 2 * torch.rand(actions.shape, generator=torch.Generator().manual_seed(0)) - 1
    with torch.no_grad():
        q = agent.critic_target(obs, actions).amin(0).double().numpy()
        v = agent.value(obs)[:, 0].double().numpy()
        policy, _ = agent.actor(obs)
        better = agent.critic(obs, uniform).amin(0) > agent.critic(obs, policy).amin(0)
    recorded = returns_to_go(rewards, columns["terminations"], ends, args.gamma)
    weights = np.exp(np.minimum(args.beta * (q - v), np.log(100.0)))
    numbers = {
        "mean q": q.mean(),
        "mean v": v.mean(),
        "recorded return": recorded.mean(),
        "correlation of v and the recorded return": np.corrcoef(v, recorded)[0, 1],
        "effective sample size": weights.sum() ** 2 / (weights**2).sum() / len(weights),
        "weights at the clip": (weights > 99.9).mean(),
        "weights below 0.1": (weights < 0.1).mean(),
        "random above the policy": better.double().mean().item(),
    }
    print(f"mean Q {q.mean():.4g}, V {v.mean():.4g}, recorded return {recorded.mean():.4g}")
    for name, value in list(numbers.items())[3:]:
        print(f"{name}: {value:.2f}" if "correlation" in name else f"{name}: {value:.1%}")
    if options.out:
        options.out.write_text(json.dumps(numbers))


if __name__ == "__main__":
    iql.SCRIPT = Path(__file__)  # error messages start with its name
    main(iql.read_flags(Args, description=__doc__))
