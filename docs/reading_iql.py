"""The numbers and the picture of docs/reading_iql.md: one transition on its way through iql.py.

python iql.py --offline-steps 10000 --online-steps 0 --no-compile --run-name reading
python docs/reading_iql.py runs/reading/offline.pt
"""

import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch

DOCS = Path(__file__).resolve().parent
sys.path.insert(0, str(DOCS.parent))
import iql

plt.style.use("petroff10")


def show(**values) -> None:
    """A line for each name, with its numbers."""
    for name, numbers in values.items():
        numbers = torch.as_tensor(numbers).detach().flatten().tolist()
        print(f"{name:13}" + "".join(f"{number:10.5f}" for number in numbers))


def show_one(agent: iql.Agent, one: iql.Tensors) -> None:
    """What the agent says about a batch of one transition."""
    obs, actions = one["obs"], one["actions"]
    show(next_v=agent.value(one["next_obs"]), log_prob=agent.actor.log_prob(obs, actions, 0.0))
    show(critic=agent.critic(obs, actions), critic_target=agent.critic_target(obs, actions))
    show(**agent.loss(one)[1])


def draw(u: float, data_u: np.ndarray) -> None:
    """Value loss and weight over u, with our transition, and how often each u is in the data."""
    fig, (loss, weight, count) = plt.subplots(3, figsize=(6, 7), sharex=True, layout="constrained")
    x = np.linspace(-2, 2, 401)
    for style, e, beta in zip(("C0--", "C1-", "C3:"), (0.5, 0.7, 0.9), (1, 3, 10)):
        loss.plot(x, np.where(x > 0, e, 1 - e) * x**2, style, lw=2, label=f"expectile {e}")
        weight.plot(x, np.exp(beta * x).clip(max=100), style, lw=2, label=f"beta {beta}")
    count.hist(data_u, bins=80, range=(-2, 2), color="0.6")
    loss.set(ylabel="value loss")
    weight.set(ylabel="weight", yscale="log", ylim=(1e-3, 300))
    count.set(ylabel="rows of the data", xlabel="u = Qt(s, a) - V(s)")
    for axes in (loss, weight, count):
        axes.axvline(u, color="black", lw=1, label="our transition")
        axes.legend()
    fig.savefig(DOCS / "reading_iql.png", dpi=80)


def main(path: str) -> None:
    state, cpu = iql.load_checkpoint(path), torch.device("cpu")
    args = iql.Args(**state["args"])
    agent = iql.Agent(state["obs_dim"], state["act_dim"], args, cpu)
    agent.load_state_dict(state["agent"])
    agent.optimizer.load_state_dict(state["optimizer"])
    columns, ends, task, _ = iql.load_data(args)
    scale = iql.return_scale(columns["rewards"], ends)
    columns["rewards"] = scale * columns["rewards"]
    buffer = iql.ReplayBuffer(columns, 1, cpu)
    torch.manual_seed(0)
    env = iql.make_env(task)
    obs, _ = env.reset(seed=0)
    mean, log_std = agent.actor(torch.from_numpy(obs))
    action = agent.act(torch.from_numpy(obs), deterministic=False).numpy()
    next_obs, reward, done, _, _ = env.step(action)
    show(mean=mean, std=log_std.exp(), action=action)
    show(raw_reward=reward, scale=scale, reward=scale * reward, terminated=done)
    transition = {"obs": obs, "actions": action, "rewards": scale * reward}
    buffer.add(**transition, next_obs=next_obs, terminations=done)
    one = buffer.sample(1, offline_ratio=0.0)  # only one row is not from the data set
    rest = buffer.sample(args.batch_size - 1)
    show_one(agent, one)
    sample = buffer.sample(100_000)
    data_q = agent.critic_target(sample["obs"], sample["actions"]).amin(0)
    data_u = (data_q - agent.value(sample["obs"]).squeeze(-1)).detach().numpy()
    draw(agent.loss(one)[1]["advantage"].item(), data_u)
    show(positive=(data_u > 0).mean(), clipped=(np.exp(args.beta * data_u) > 100).mean())
    print("after the update:")
    agent.update({name: torch.cat([one[name], rest[name]]) for name in one})
    show_one(agent, one)


if __name__ == "__main__":
    main(sys.argv[1])
