"""Does the search of O3F find better actions? Ask the simulator, without any update.

    python benchmark/inspect_search.py runs/NAME/offline.pt --sigma 0.2

The critics are those of a checkpoint of iql.py, o3f.py or o3f_lapo.py, the actions are the policy's
own (plain; a sample, as in a run, or with --center its mean; of o3f_lapo.py there is only one), the
same with noise of size --sigma (noise), or the best of 100 such actions by the critics (o3f).
Printed are:

 - the success, in mazes, or else the return of whole episodes in which every action is chosen so;
 - with --states, the advantage of one such action: from states that the policy visits, it is
   executed once, and the policy's own follow for --horizon steps. Predicted is
   Q(s, action) - Q(s, plain), measured the difference of the discounted, scaled rewards. (Only for
   tasks of MuJoCo whose state is a position and a velocity, such as Hopper.)
"""

import dataclasses
import json
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import gymnasium as gym
import numpy as np
import torch
import tyro

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import o3f
import o3f_lapo

Agent = o3f.Agent | o3f_lapo.Agent


@dataclass
class Args:
    checkpoint: tyro.conf.Positional[str]
    """an offline.pt"""
    sigma: tuple[float, ...] = (0.2,)
    """standard deviations of the perturbations"""
    center: Literal["sample", "mean"] = "sample"
    """what is perturbed, of the policy"""
    episodes: int = 10
    """whole episodes for each way to choose"""
    states: int = 0
    """states for the single actions"""
    horizon: int = 100
    """steps after a single action"""
    out: Path | None = None
    """JSON file that receives the numbers"""


def play(agent: Agent, env: gym.Env, episodes: int) -> tuple[list[float], list[tuple]]:
    """Successes or returns of episodes, and the simulator's states that were visited."""
    values, visited = [], []
    for episode in range(episodes):
        obs, info = env.reset(seed=episode)
        success = None
        while "episode" not in info:
            physics = getattr(env.unwrapped, "data", None)
            if physics is not None:
                visited.append((obs, physics.qpos.copy(), physics.qvel.copy()))
            obs, _, _, _, info = env.step(agent.explore(torch.from_numpy(obs)).numpy())
            if "success" in info:
                success = max(success or 0.0, float(info["success"]))
        values.append(info["episode"]["r"] if success is None else success)
    return values, visited


def discounted(agent, env: gym.Env, scale: float, start: tuple, action, horizon: int) -> float:
    """Sum of discounted, scaled rewards of one action and `horizon` steps of the policy."""
    _, position, velocity = start
    env.reset(seed=0)
    env.unwrapped.set_state(position, velocity)
    obs, reward, terminated, _, _ = env.step(action.numpy())
    total, factor = scale * reward, 1.0
    agent.args.exploration = "plain"
    for _ in range(horizon):
        if terminated:
            break
        factor *= agent.args.gamma
        action = agent.explore(torch.from_numpy(obs))
        obs, reward, terminated, _, _ = env.step(action.numpy())
        total += factor * scale * reward
    return total


def single_actions(agent, env: gym.Env, scale: float, states: list, options: Args) -> dict:
    """Predicted and measured advantages of one action: means over the states."""
    numbers = {}
    plain = {}
    for arm in ("plain", "noise", "o3f"):
        gains = []
        for number, start in enumerate(states):
            agent.args.exploration = arm
            action = agent.explore(torch.from_numpy(start[0]))
            value = discounted(agent, env, scale, start, action, options.horizon)
            if arm == "plain":
                plain[number] = action, value
                continue
            usual, base = plain[number]
            obs = torch.from_numpy(start[0]).expand(2, -1)
            with torch.no_grad():
                q = agent.critic(obs, torch.stack([usual, action])).mean(0)
            gains.append(((q[1] - q[0]).item(), value - base))
        if gains:
            predicted, measured = np.array(gains).T
            error = measured.std(ddof=1) / len(measured) ** 0.5
            correlation = np.corrcoef(predicted, measured)[0, 1]
            print(
                f"{arm:5}  advantage predicted {predicted.mean():.3f},"
                f" measured {measured.mean():.3f} (standard error {error:.3f}),"
                f" correlation {correlation:.2f}"
            )
            numbers[f"{arm} predicted"] = predicted.mean()
            numbers[f"{arm} measured"] = measured.mean()
    return numbers


def main(options: Args) -> None:
    state = o3f.load_checkpoint(options.checkpoint)
    script = o3f_lapo if state["script"] == "o3f_lapo.py" else o3f
    settings = state["args"] | {"center": options.center, "compile": False}
    known = {field.name for field in dataclasses.fields(script.Args)}
    args = script.Args(**{name: value for name, value in settings.items() if name in known})
    columns, ends, task, _ = script.load_data(args)
    scale = args.reward_scale
    if script is o3f and args.normalize_returns:
        scale *= o3f.return_scale(columns["rewards"], ends)
    if script is o3f_lapo and args.normalize_rewards:
        scale /= float(columns["rewards"].max())
    env = script.make_env(task)
    agent = script.Agent(state["obs_dim"], state["act_dim"], args, torch.device("cpu"))
    own = {name: getattr(agent, name) for name in script.ONLINE_ONLY}  # not in an offline.pt
    agent.load_state_dict(own | state["agent"])
    torch.manual_seed(0)
    arms = [("plain", 0.0)]
    arms += [(arm, sigma) for sigma in options.sigma for arm in ("noise", "o3f")]
    numbers, visited = {}, []
    for arm, sigma in arms:
        args.exploration, args.sigma = arm, sigma
        values, states = play(agent, env, options.episodes)
        visited = visited or states
        name = "plain" if arm == "plain" else f"{arm} {sigma:g}"
        numbers[name] = statistics.fmean(values)
        error = np.std(values, ddof=1) / len(values) ** 0.5
        print(f"{name:10}  {numbers[name]:.4g} (standard error {error:.2g})")
    if options.states:
        picked = np.random.default_rng(0).choice(len(visited), options.states)
        states = [visited[index] for index in picked]
        for sigma in options.sigma:
            args.sigma = sigma
            numbers |= {
                f"{name} {sigma:g}": value
                for name, value in single_actions(agent, env, scale, states, options).items()
            }
    if options.out:
        options.out.write_text(json.dumps(numbers))


if __name__ == "__main__":
    o3f.SCRIPT = o3f_lapo.SCRIPT = Path(__file__)  # error messages start with its name
    main(o3f.read_flags(Args, description=__doc__))
