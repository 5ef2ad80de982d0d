"""Where do a policy's episodes in the maze end, and what does its critic say there?

    python benchmark/inspect_maze.py runs/NAME/offline.pt --episodes 8

One line per episode of the policy's mean action: steps, first and last position, Q at both (minimum
of the ensemble), how many transitions of the data lie within 0.2 of the end, and for how long the
episode had stood still there. Last, what Q should be where a policy stays for ever without reaching
the goal. For pointmaze data, whose observations begin with the position, and checkpoints of
cal_ql.py or wsrl.py.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import tyro

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import cal_ql


@dataclass
class Args:
    checkpoint: tyro.conf.Positional[str]
    """an offline.pt or latest.pt"""
    episodes: int = 8
    """seeds 0, 1, ... of the environment"""


def main(options: Args) -> None:
    state = cal_ql.load_checkpoint(options.checkpoint)
    known = {name: value for name, value in state["args"].items() if hasattr(cal_ql.Args, name)}
    args = cal_ql.Args(**known | {"compile": False})
    columns, _, task, _ = cal_ql.load_data(args)
    env = cal_ql.make_env(task)
    agent = cal_ql.Agent(
        columns["obs"].shape[1], columns["actions"].shape[1], args, torch.device("cpu")
    )
    agent.load_state_dict(state["agent"], strict=False)
    for seed in range(options.episodes):
        (obs, info), path, values = env.reset(seed=seed), [], []
        while "episode" not in info:
            path.append(obs[:2])
            row = torch.from_numpy(obs)
            action = agent.act(row, deterministic=True)
            with torch.no_grad():
                values.append(agent.critic(row[None], action[None, None]).min().item())
            obs, _, terminated, _, info = env.step(action.numpy())
        near = (np.linalg.norm(columns["obs"][:, :2] - path[-1], axis=1) < 0.2).sum()
        moved = np.flatnonzero(np.linalg.norm(np.array(path) - path[-1], axis=1) > 0.05)
        still = len(path) - 1 - moved.max(initial=-1)
        (x, y), (to_x, to_y), outcome = path[0], path[-1], "goal" if terminated else "failed"
        print(
            f"{outcome} after {len(path)}: ({x:.1f}, {y:.1f}) to ({to_x:.1f}, {to_y:.1f}), ", end=""
        )
        print(
            f"Q {values[0]:.0f} to {values[-1]:.0f}, data near the end {near},"
            f" stood still for {still}"
        )
    print(f"Q of never reaching the goal: {args.reward_bias / (1 - args.gamma):.0f}")


if __name__ == "__main__":
    cal_ql.SCRIPT = Path(__file__)  # error messages start with its name
    main(cal_ql.read_flags(Args))
