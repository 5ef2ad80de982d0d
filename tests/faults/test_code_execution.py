"""Somebody's data set, checkpoint or folder name never runs their code.

A canary that would sing stays silent.
"""

import json
import os
import shutil
import sys
from pathlib import Path

import check_data
import gymnasium as gym
import h5py
import numpy as np
import pytest
import torch
from common import (
    DATA,
    DATASET,
    arrays,
    data,
    describe,
    edit,
    load,
    read_json,
    stopped,
    stops,
    template,
)
from conftest import ROOT, TASK, TINY, refused, run

import iql

SING = "touch PWNED"


@pytest.fixture(autouse=True)
def canary(tmp_path, monkeypatch):
    """A module whose import, and a command whose call, leaves a file: at the end there is none."""
    module = tmp_path / "canary.py"
    module.write_text("open('PWNED', 'w').close()\n\n\ndef touch(*args, **kwargs): ...\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(iql, "SCRIPT", iql.SCRIPT)  # check_data.py puts its own there
    yield
    sys.modules.pop("canary", None)
    assert not (tmp_path / "PWNED").exists()


def train(dataset_id=DATASET, env_module=None):
    module = [] if env_module is None else ["--env-module", env_module]
    run("--dataset-id", dataset_id, *TINY, "--online-steps", 0, "--run-name", "victim", *module)


def look(dataset_id=DATASET, env_module=None):
    check_data.main(check_data.Args(dataset_id, replay_episodes=1, env_module=env_module))


READERS = pytest.mark.parametrize("read", [train, look])
WHERE = pytest.mark.parametrize("key", ["env_spec", "eval_env_spec"])
CALL = {"entry_point": "os:system", "kwargs": {"command": SING}}
WRAPPER = {"name": "Canary", "entry_point": "canary:touch", "kwargs": {}}
REFUSED = {
    "command": {"id": "Evil-v0"} | CALL,
    "command under a registered id": CALL,
    "callable as the id": {"id": "os:system"} | CALL,
    "callable with a version as the id": {"id": "os:system-v0"} | CALL,
    "module in the id": {"id": "canary:Evil-v0", "entry_point": "canary:touch"},
    "module before a registered id": {"id": f"canary:{TASK}"},
    "unregistered id": {"id": "Evil-v0", "entry_point": "canary:touch"},
    "path in an argument": {"kwargs": {"xml_file": "/etc/hostname"}},
    "path without a slash in front": {"kwargs": {"xml_file": "../hostname"}},
    "path with backslashes": {"kwargs": {"xml_file": "..\\hostname"}},
    "file in the current folder": {"kwargs": {"xml_file": ".evil.xml"}},
    "file in a home": {"kwargs": {"xml_file": "~root"}},
    "a step that does not end": {"kwargs": {"frame_skip": 10**9}},
    "a list that does not end": {"kwargs": {"default_camera_config": {"a": [0] * 1000}}},
    "path deep inside an argument": {"kwargs": {"default_camera_config": {"a": [["C:hostname"]]}}},
}
IGNORED = {
    "entry point": {"entry_point": "canary:touch"},
    "vector entry point": {"vector_entry_point": "canary:touch"},
    "wrapper": {"additional_wrappers": [WRAPPER]},
    "a window": {"kwargs": {"render_mode": "human"}},
}


def spec(changes: dict) -> str:
    return json.dumps(json.loads(gym.spec(TASK).to_json()) | changes)


@READERS
@WHERE
@pytest.mark.parametrize("what", REFUSED)
def test_an_environment_that_a_data_set_may_not_name(capsys, read, key, what):
    describe(data(), **{key: spec(REFUSED[what])})
    stops(capsys, read)


@READERS
@WHERE
@pytest.mark.parametrize("what", IGNORED)
def test_code_that_a_data_set_names_is_ignored(read, key, what):
    describe(data(), **{key: spec(IGNORED[what])})
    read()


@READERS
@pytest.mark.parametrize("dropped", ["observation_space", "action_space"])
@pytest.mark.parametrize("what", ["command", "wrapper"])
def test_metadata_without_spaces(capsys, read, dropped, what):
    """Minari makes the environment itself to ask it for the missing space."""
    env_spec = spec((REFUSED | IGNORED)[what])
    describe(data(), env_spec=env_spec, **{dropped: ...})
    stops(capsys, read)


def evil(folder: Path) -> None:
    """A data set with a command, in any folder."""
    shutil.copytree(template(), folder)
    describe(folder / "data", env_spec=spec(REFUSED["command"]), dataset_id="evil-v0")


def outside(tmp_path: Path) -> list[str]:
    """Ids that lead out of the folders of data sets."""
    up = [
        "..",
        "../evil-v0",
        "test/../../evil-v0",
        "../../../../../../.." + str(tmp_path / "evil-v0"),
    ]
    return [*up, str(tmp_path / "evil-v0"), f"/{tmp_path / 'evil-v0'}", "a\0b-v0", "", "."]


@READERS
def test_ids_that_are_paths(capsys, tmp_path, read, subtests):
    evil(tmp_path / "evil-v0")
    evil(tmp_path / "data")  # `..` from the Minari folder is the folder that holds this one
    for dataset_id in outside(tmp_path):
        with subtests.test(dataset_id=dataset_id):
            stops(capsys, read, dataset_id)
            assert not Path("runs").exists()


def test_ids_that_are_paths_in_a_checkpoint(capsys, tmp_path, subtests):
    data()
    latest = stopped() / "latest.pt"
    evil(tmp_path / "evil-v0")
    evil(tmp_path / "runs/stopped/evil-v0")
    original = load(latest)
    for dataset_id in [*outside(tmp_path), "../../runs/stopped/evil-v0"]:
        with subtests.test(dataset_id=dataset_id):
            args = original["args"] | {"dataset_id": dataset_id}
            torch.save(original | {"dataset_id": dataset_id, "args": args}, latest)
            refused(capsys, "--resume", latest)


def test_a_module_is_imported_only_if_the_user_names_it(capsys, tmp_path):
    data()
    latest = stopped() / "latest.pt"
    edit(latest, lambda state: state["args"].update(env_module="canary"))
    assert "--env-module" in refused(capsys, "--resume", latest)
    assert not Path("PWNED").exists()
    run("--resume", latest, "--env-module", "canary")
    Path("PWNED").unlink()  # the canary can sing


OWN_TASK = """
import gymnasium as gym
from gymnasium.envs.mujoco.inverted_pendulum_v5 import InvertedPendulumEnv

gym.register("Own-v0", {entry_point}, max_episode_steps=20)
"""


@READERS
@pytest.mark.parametrize("entry_point", ["InvertedPendulumEnv", "'own_tasks:InvertedPendulumEnv'"])
def test_a_module_of_the_users_own(tmp_path, monkeypatch, read, entry_point):
    """It may register a class or the name of a class."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "own_tasks.py").write_text(OWN_TASK.format(entry_point=entry_point))
    describe(data(), env_spec=spec({"id": "Own-v0", "entry_point": "canary:touch"}))
    try:
        read(env_module="own_tasks")
    finally:
        gym.registry.pop("Own-v0", None)
        sys.modules.pop("own_tasks", None)


class Evil:
    def __reduce__(self):
        return os.system, (SING,)


@pytest.mark.parametrize("flag", ["--resume", "--offline-checkpoint"])
@pytest.mark.parametrize("legacy", [False, True])
def test_pickles_in_a_checkpoint(capsys, flag, legacy, subtests):
    data()
    latest = stopped() / "latest.pt"
    start = [flag, latest] if flag == "--resume" else [*DATA, *TINY, flag, latest]
    state = load(latest)
    contents = {
        "whole": Evil(),
        "added": state | {"evil": Evil()},
        "args": state | {"args": Evil()},
    }
    contents["agent"] = state | {"agent": {"actor.log_std": Evil()}}
    for name, content in contents.items():
        with subtests.test(name):
            torch.save(content, latest, _use_new_zipfile_serialization=not legacy)
            refused(capsys, *start)


@pytest.mark.parametrize("name", ["q'; touch PWNED; echo '", "$(touch PWNED)", "q\ntouch PWNED"])
def test_the_name_of_the_scripts_folder(tmp_path, monkeypatch, name):
    data()
    (tmp_path / name).mkdir()
    shutil.copy(ROOT / "iql.py", tmp_path / name)
    monkeypatch.setattr(iql, "SCRIPT", tmp_path / name / "iql.py")
    folder = run(*DATA, *TINY, "--online-steps", 0, "--run-name", "here")
    assert read_json(folder / "config.json")["commit"] is None


def test_the_name_of_the_run(capsys):
    data()
    flags = ["--online-steps", 0, "--run-name", "q'; touch PWNED; echo '"]
    assert "--run-name" in refused(capsys, *DATA, *TINY, *flags)


# ---- HDF5 can read any file that the user can


def external_link(file, other):
    del file["episode_0/rewards"]
    file["episode_0/rewards"] = h5py.ExternalLink(other, "/rewards")


def external_link_to_an_episode(file, other):
    del file["episode_0"]
    file["episode_0"] = h5py.ExternalLink(other, "/")


def external_link_in_infos(file, other):
    file["episode_0"].require_group("infos")["success"] = h5py.ExternalLink(other, "/rewards")


def soft_link(file, other):
    del file["episode_0/rewards"]
    file["episode_0/rewards"] = h5py.SoftLink("/episode_1/rewards")


def soft_link_to_nothing(file, other):
    del file["episode_0/rewards"]
    file["episode_0/rewards"] = h5py.SoftLink("/nothing")


def external_storage(file, other):
    steps = len(file["episode_0/rewards"])
    del file["episode_0/rewards"]
    where = [(str(other), 0, 8 * steps)]
    file["episode_0"].create_dataset("rewards", (steps,), "f8", external=where)


def virtual(file, other):
    steps = len(file["episode_0/rewards"])
    del file["episode_0/rewards"]
    layout = h5py.VirtualLayout((steps,), "f8")
    layout[:] = h5py.VirtualSource(other, "rewards", (steps,))
    file["episode_0"].create_virtual_dataset("rewards", layout)


LINKS = [external_link, external_link_to_an_episode, external_link_in_infos, external_storage]
LINKS += [soft_link, soft_link_to_nothing, virtual]


@READERS
@pytest.mark.parametrize("link", LINKS, ids=lambda link: link.__name__)
def test_data_in_other_files(capsys, tmp_path, read, link):
    folder = data()
    shutil.copy(folder / "main_data.hdf5", tmp_path / "other")
    with h5py.File(tmp_path / "other", "r+") as other, arrays(folder) as file:
        steps = len(file["episode_0/rewards"])
        for name in ("rewards", "actions", "observations", "terminations", "truncations"):
            other[name] = np.asarray(other[f"episode_0/{name}"])
        assert steps > 1
    with arrays(folder) as file:
        link(file, tmp_path / "other")
    assert "episode_0" in stops(capsys, read)


@READERS
def test_a_group_that_holds_itself(capsys, read):
    with arrays(data()) as file:
        file["episode_0"].require_group("infos")["loop"] = file["episode_0"]
    stops(capsys, read)
