"""Evaluate or film a trained agent: a checkpoint of any of the scripts.

    python tools/play.py runs/NAME                                  # the run's latest.pt
    python tools/play.py runs/NAME/offline.pt --episodes 100
    python tools/play.py runs/NAME --episodes 1 --video agent.mp4   # no screen: MUJOCO_GL=egl

What plays is what the script itself evaluates under eval/: the policy; after the switch, with
pex.py, the composite of both policies, and with jsrl_finetune.py guide and learner together, by the
gate's horizons. Printed are a line per episode and the means.

Writes nothing but the video. Exit status: 0 played; 2 bad input, one sentence; 130 / 143
interrupted.
"""

import contextlib
import dataclasses
import importlib.util
import os
import signal
import sys
import warnings
from pathlib import Path
from typing import Annotated, Literal


def stop(number: int, _) -> None:
    """Signal handler: one line, whatever goes on."""
    os.write(2, f"{Path(__file__).name}: interrupted\n".encode())
    os._exit(128 + number)


if __name__ == "__main__":  # the imports below take seconds
    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGTERM, stop)

import gymnasium as gym
import imageio.v2 as imageio
import numpy as np
import torch
import tyro

sys.dont_write_bytecode = True
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
import iql


@dataclasses.dataclass
class Args:
    """Evaluate or film a trained agent."""

    checkpoint: str  # a run's folder (its latest.pt, else its offline.pt), or a checkpoint
    episodes: Annotated[int, 1, 10**6] = 10  # episodes to play
    stochastic: bool = False  # draw actions; default: the policy's mode
    video: str | None = None  # film all episodes: an MP4 file to write
    seed: Annotated[int, 0, 2**32] = 0  # of the first episode; the others count up
    device: Literal["auto", "cpu", "cuda"] = "auto"  # for networks; auto: cuda if possible
    env_module: str | None = None  # import this module first: it registers the environment


def load(path: str) -> tuple[Path, dict]:
    """The checkpoint that a run's folder or a file stands for."""
    file = Path(path)
    if len(path) < 4000 and file.is_dir():
        there = [name for name in ("latest.pt", "offline.pt") if (file / name).exists()]
        if not there:
            iql.fail(f"{path} holds neither latest.pt nor offline.pt")
        file = file / there[0]
    return file, iql.load_checkpoint(str(file))


def script_of(state: dict):
    """The module of the script that wrote a checkpoint. The file chooses among ours, no other."""
    scripts = {}
    for path in ROOT.glob("*.py"):
        if "\n# ==== below this line" in path.read_text(errors="replace"):
            scripts[path.name] = path.stem
    if state["script"] not in scripts:
        iql.fail(f"{state['script']!r} is none of the scripts {', '.join(sorted(scripts))}")
    return importlib.import_module(scripts[state["script"]])


def arguments(script, state: dict, path: Path):
    """The arguments that the agent was trained with."""
    known = {field.name for field in dataclasses.fields(script.Args)}
    strange = known ^ state["args"].keys()
    if strange:
        iql.fail(f"{path} is of another version of {state['script']}: {sorted(strange, key=str)}")
    args = script.Args(**state["args"])
    iql.check_ranges(args)
    return args


def agent_of(script, args, state: dict, device: torch.device, path: Path):
    """The agent of a checkpoint. What begins at the switch is not in an offline.pt."""
    agent = script.Agent(state["obs_dim"], state["act_dim"], args, device)
    own, saved = dict(agent.state_dict()), state["agent"]
    if "phase" not in state:
        late = {name: x for name, x in own.items() if name.startswith(script.ONLINE_ONLY)}
        saved.update(late)
    iql.check_like(saved, own, f"{path}: agent")
    try:
        agent.load_state_dict(saved)
    except ValueError as error:  # a gate that cannot be
        iql.fail(f"{path}: {error}")
    return agent


def deployed(script, agent, state: dict, env: gym.Env):
    """The policy that the script evaluates under eval/, and what it is."""
    switched = state.get("phase") in ("online", "done") and state.get("step") != 0
    if switched and getattr(agent.args, "baseline", None) == "pex":
        return agent.act_composite, "the composite of offline and new policy"
    if switched and hasattr(script, "mixture"):
        horizons = agent.gate.horizons()
        return script.mixture(agent, env, horizons), f"guide and learner, guide steps {horizons}"
    return agent.act, "the policy"


def play(act, env: gym.Env, args: Args, device: torch.device, writer) -> dict[str, list[float]]:
    """Play and print the episodes; `writer` takes the pictures, if it is not None."""
    totals = {"return": [], "length": [], "success": []}
    for episode in range(args.episodes):
        obs, info = env.reset(seed=args.seed + episode)
        success = None
        while "episode" not in info:
            if writer is not None:
                writer.append_data(env.render())
            action = act(torch.from_numpy(obs).to(device), deterministic=not args.stochastic)
            obs, _, _, _, info = env.step(action.cpu().numpy())
            if "success" in info:
                success = int(success or info["success"])
        values = {"return": float(info["episode"]["r"]), "length": int(info["episode"]["l"])}
        if success is not None:
            values["success"] = success
        for name, value in values.items():
            totals[name].append(value)
        words = ", ".join(f"{name} {value:.6g}" for name, value in values.items())
        print(f"episode {episode}: {words}", flush=True)
    return totals


def open_video(path: str, env: gym.Env):
    """A writer of an MP4 file, once a first picture could be drawn."""
    if importlib.util.find_spec("imageio_ffmpeg") is None:
        iql.fail("--video needs ffmpeg for imageio: pip install imageio-ffmpeg")
    new = path.endswith(".mp4") and not os.path.lexists(path)
    if not new or not os.access(Path(path).absolute().parent, os.W_OK):
        iql.fail(f"--video {path!r} must be a new .mp4 file, in a folder that can be written to")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            env.reset(seed=0)
            picture = env.render()
    except Exception as error:
        iql.fail(f"cannot draw {env.spec.id}: {error!r}; without a screen try MUJOCO_GL=egl")
    if picture is None:
        iql.fail(f"{env.spec.id} draws no pictures: it has no render_mode rgb_array")
    return imageio.get_writer(path, fps=env.metadata.get("render_fps", 30))


def main(args: Args) -> None:
    """Rebuild the agent and its environment, and play."""
    iql.SCRIPT = Path(__file__)  # error messages start with its name
    iql.check_ranges(args)
    path, state = load(args.checkpoint)
    script = script_of(state)
    trained = arguments(script, state, path)
    here = {"seed": args.seed, "device": args.device, "env_module": args.env_module}
    trained = dataclasses.replace(trained, **here, compile=False, track=False)
    device = iql.set_up(trained)
    with contextlib.suppress(Exception):  # MuJoCo's warnings would go to a file, MUJOCO_LOG.TXT
        importlib.import_module("mujoco").set_mju_user_warning(lambda message: None)
    try:
        metadata = iql.find_dataset(state["dataset_id"]).storage.metadata
        task = iql.task_of(metadata, trained.success_ends_episode)
        references = iql.references_of(state["dataset_id"], metadata)
    except Exception as error:  # a damaged file fails in h5py, JSON or Minari, in many ways
        iql.fail(f"cannot read {state['dataset_id']}: {type(error).__name__}: {error}")
    if args.video is not None:
        task.kwargs["render_mode"] = "rgb_array"
    env = iql.make_env(task)
    dims = [env.observation_space.shape[0], env.action_space.shape[0]]
    if dims != [state["obs_dim"], state["act_dim"]]:
        iql.fail(f"{path} is of another environment: {task.id} has {dims} entries")
    act, what = deployed(script, agent_of(script, trained, state, device, path), state, env)
    writer = None if args.video is None else open_video(args.video, env)
    try:
        totals = play(act, env, args, device, writer)
    finally:
        if writer is not None:
            writer.close()
        env.close()
    means = {name: float(np.mean(values)) for name, values in totals.items() if values}
    if references:
        low, high = references
        means["score"] = 100 * (means["return"] - low) / (high - low)
    words = ", ".join(f"{name} {value:.6g}" for name, value in means.items())
    print(f"mean of {args.episodes}: {words}; {what} of {state['script']}, {path}")


if __name__ == "__main__":
    iql.SCRIPT = Path(__file__)  # error messages start with its name
    main(iql.read_flags(Args, config=(tyro.conf.PositionalRequiredArgs,)))
