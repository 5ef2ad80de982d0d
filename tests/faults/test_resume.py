"""A run goes on from exactly what it left, or not at all."""

import importlib.util
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from common import (
    DATA,
    DATASET,
    SCRIPTS,
    arrays,
    data,
    edit,
    flags_of,
    interrupt,
    load,
    read_json,
    replace,
    start,
    stopped,
    stops,
)
from conftest import ROOT, TINY, pendulum, refused, run

import iql

LOGS = ("eval.csv", "metrics.csv")


def same_tensors(one, other) -> bool:
    if torch.is_tensor(one):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same_tensors(one[key], other[key]) for key in one)
    return one == other


def assert_same_run(one: Path, other: Path) -> None:
    for name in LOGS:
        assert (one / name).read_bytes() == (other / name).read_bytes(), name
    for name in ("agent", "optimizer"):
        assert same_tensors(load(one / "latest.pt")[name], load(other / "latest.pt")[name]), name


@pytest.fixture
def latest():
    data()
    return stopped() / "latest.pt"


@pytest.fixture
def offline(latest):
    """The same run's offline.pt."""
    return latest.with_name("offline.pt")


def tune(path) -> list:
    return [*DATA, *TINY, "--offline-checkpoint", path]


# ---- other data, another script, other logs


def another_reward():
    with arrays(Path(os.environ["MINARI_DATASETS_PATH"], DATASET, "data")) as file:
        rewards = np.asarray(file["episode_0/rewards"])
        rewards[0] += 1e-3
        replace(file["episode_0"], "rewards", rewards)


def fewer_episodes():
    shutil.rmtree(Path(os.environ["MINARI_DATASETS_PATH"], DATASET))
    pendulum(DATASET, episodes=4)


@pytest.mark.parametrize("change", [another_reward, fewer_episodes])
def test_other_data_under_the_same_id(capsys, latest, offline, change):
    change()
    assert "data" in refused(capsys, "--resume", latest)
    assert "data" in refused(capsys, *tune(offline))


@pytest.mark.parametrize("what", ["data", "log", "networks", "flag"])
def test_a_refused_resume_changes_nothing(capsys, latest, what):
    folder, flags = latest.parent, []
    if what == "data":
        fewer_episodes()
    elif what == "log":
        (folder / "eval.csv").write_text("step\n")
    elif what == "networks":
        edit(latest, lambda state: state["agent"].popitem())
    else:
        flags = ["--gamma", "0.5"]
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    refused(capsys, "--resume", latest, *flags)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_changed_script_is_said(capsys, monkeypatch, tmp_path, latest):
    script = tmp_path / "iql.py"
    script.write_text((ROOT / "iql.py").read_text() + "# another loss\n")
    described = importlib.util.spec_from_file_location("changed_iql", script)
    changed = importlib.util.module_from_spec(described)
    monkeypatch.setitem(sys.modules, "changed_iql", changed)
    described.loader.exec_module(changed)
    capsys.readouterr()
    run("--resume", latest, script=changed)
    notes = [line for line in capsys.readouterr().out.splitlines() if line.startswith("note: ")]
    assert any("iql.py has changed" in note for note in notes), notes
    assert load(latest)["phase"] == "done"


def test_an_unchanged_script_is_not_mentioned(capsys, latest):
    start("iql", "--resume", latest)
    assert "has changed" not in capsys.readouterr().out


@pytest.mark.parametrize("name", LOGS)
@pytest.mark.parametrize("left", [None, 0, 0.5])
def test_logs_shorter_than_the_checkpoint_says(capsys, latest, name, left):
    log = latest.with_name(name)
    content = log.read_bytes()
    log.unlink()
    if left is not None:
        log.write_bytes(content[: int(left * len(content))])
    assert name in refused(capsys, "--resume", latest)
    assert left is None or log.read_bytes() == content[: int(left * len(content))]
    log.write_bytes(content)
    run("--resume", latest)  # with the log back, it goes on


@pytest.mark.parametrize("name", LOGS)
def test_logs_of_another_run(capsys, latest, name):
    log = latest.with_name(name)
    content = log.read_bytes()
    log.write_bytes(content[:-2] + b"7\n" + b"more")
    assert name in refused(capsys, "--resume", latest)
    log.write_bytes(content)
    run("--resume", latest)


@pytest.mark.parametrize("name", [*LOGS, "latest.tmp", "config.tmp", "summary.tmp"])
def test_links_in_a_strangers_run_are_not_followed(capsys, tmp_path, latest, name):
    victim = tmp_path / "victim"
    victim.write_text("mine\n")
    link = latest.with_name(name)
    if name in LOGS:
        victim.write_bytes(link.read_bytes())
        link.unlink()
    link.symlink_to(victim)
    before = victim.read_bytes()
    if name in LOGS:
        assert name in refused(capsys, "--resume", latest)
    else:
        run("--resume", latest)
    assert victim.read_bytes() == before


@pytest.mark.parametrize(
    ("name", "value"),
    [("stage", -1), ("stage", 10**400), ("guide_lengths", [[1, 2], [3]]), ("returns", 3)]
    + [("returns", [10**400, "x"]), ("solved_lengths", [float("nan")]), ("best", None)],
)
def test_the_gate_of_a_checkpoint(capsys, name, value):
    data()
    interrupt("jsrl_finetune", 100, *flags_of("jsrl_finetune", "--run-name", "stopped"))
    latest = Path("runs/stopped/latest.pt")
    spoil(latest, "agent", "_extra_state", name, value=value)
    stops(capsys, start, "jsrl_finetune", "--resume", latest)


# ---- a checkpoint with one thing changed

OTHERS = [None, "x", torch.zeros(2)]


def of_another_kind(value) -> list:
    return [other for other in OTHERS if type(other) is not type(value)]


def spoil(path: Path, *keys, value=...) -> None:
    """Set an entry of nested dicts and lists; `...` drops it."""

    def change(state):
        for key in keys[:-1]:
            state = state[key]
        if value is ...:
            del state[keys[-1]]
        else:
            state[keys[-1]] = value

    edit(path, change)


@pytest.fixture
def no_steps(monkeypatch):
    """A run that should have been refused fails at once; call it once the stopped run is there."""

    def accepted(self, phase):
        raise AssertionError("accepted: the run begins")

    return lambda: monkeypatch.setattr(iql.Run, "steps", accepted)


def each(subtests, path: Path, cases: dict, attempt) -> None:
    """Spoil a fresh copy of the checkpoint per case {name: (keys, value)}: it must be refused."""
    whole = path.read_bytes()
    for name, (keys, value) in cases.items():
        with subtests.test(name):
            spoil(path, *keys, value=value)
            attempt()
        path.write_bytes(whole)


def test_the_entries_of_a_checkpoint():
    """What the tests below spoil is there."""
    data()
    folder = stopped()
    offline = "script networks dataset_id obs_dim act_dim data code args agent optimizer"
    latest = "phase step episode seconds offsets logs rng online_size online"
    assert set(load(folder / "offline.pt")) == set(offline.split())
    assert set(load(folder / "latest.pt")) == {*offline.split(), *latest.split()}


def test_entries_of_latest(capsys, subtests, no_steps, latest):
    cases = {"more": (["more"], 1)}
    for key, value in load(latest).items():
        cases[f"{key} missing"] = ([key], ...)
        for other in of_another_kind(value):
            cases[f"{key} {other}"] = ([key], other)
    no_steps()
    each(subtests, latest, cases, lambda: refused(capsys, "--resume", latest))


def test_entries_of_offline(capsys, subtests, no_steps, offline):
    cases = {"more": (["more"], 1), "gamma a tensor": (["args", "gamma"], torch.zeros(2))}
    for key, value in load(offline).items():
        cases[f"{key} missing"] = ([key], ...)
        for other in of_another_kind(value):
            cases[f"{key} {other}"] = ([key], other)
    no_steps()
    each(subtests, offline, cases, lambda: refused(capsys, *tune(offline)))


@pytest.mark.parametrize("content", [None, 3, "x", [1], {}, {1: 2}, torch.zeros(2)])
def test_checkpoints_of_something_else(capsys, latest, offline, content):
    torch.save(content, latest)
    torch.save(content, offline)
    assert "latest.pt" in stops(capsys, run, "--resume", latest)
    assert "offline.pt" in stops(capsys, run, *tune(offline))


def test_entries_with_wrong_values(capsys, subtests, no_steps, latest):
    nan = float("nan")
    values = {
        "script": ["pex.py", "../iql.py"],
        "networks": ["cql"],
        "dataset_id": ["test/pendulum/other-v0"],
        "obs_dim": [5],
        "act_dim": [2],
        "data": ["", "0" * 64],
        "phase": ["x", "offline"],
        "step": [-1, 91, 10**30],
        "episode": [-1, 10**30],
        "seconds": [{}, {"offline": 1.0}, {"offline": nan, "online": 1.0}],
        "offsets": [{}, {"metrics.csv": 100}, {"metrics.csv": -1, "eval.csv": 0}],
        "rng": [[], [None], [torch.zeros(3, dtype=torch.uint8)], [torch.zeros(5056)]],
        "online_size": [0, -1, 10**9],
        "online": [torch.tensor(0.0), torch.zeros(0, 11), torch.zeros(40, 3)],
    }
    cases = {f"{key} {value}": ([key], value) for key in values for value in values[key]}
    old = load(latest)
    cases["online double"] = (["online"], old["online"].double())
    cases["online sparse"] = (["online"], old["online"].to_sparse())
    cases["online nan"] = (["online"], old["online"] * nan)
    cases["online meta"] = (["online"], old["online"].to("meta"))
    cases["online without end"] = (["online"], torch.zeros(1, 1).expand(10**6, 11).double())
    cases["offsets float"] = (["offsets", "eval.csv"], 10.0)
    endless = []
    endless.append(endless)
    cases["rng without end"] = (["rng"], endless)
    cases["a number for a name"] = (["args", 1], 2)
    no_steps()
    each(subtests, latest, cases, lambda: refused(capsys, "--resume", latest))


def test_arguments_in_a_checkpoint(capsys, subtests, no_steps, latest):
    cases = {"more": (["args", "more"], 1)}
    for name in load(latest)["args"]:
        cases[f"{name} missing"] = (["args", name], ...)
    wrong = {"gamma": [2.0, "0.9", None], "seed": [-1, 2.5], "num_critics": [0, 10**9]}
    wrong |= {"batch_size": [0, "x"], "online_steps": [-1, 10], "device": ["tpu"], "compile": ["x"]}
    wrong |= {"run_name": [3], "dataset_id": [None]}
    cases |= {f"{name} {x}": (["args", name], x) for name in wrong for x in wrong[name]}
    no_steps()
    each(subtests, latest, cases, lambda: refused(capsys, "--resume", latest))


def spoiled_agent(state: dict) -> dict:
    """Cases for the entries of the agent and the optimizer, both of a checkpoint with moments."""
    nan, inf = float("nan"), float("inf")
    weight, cases = state["agent"]["actor.mean.0.weight"], {}
    wrong = {
        "missing": ...,
        "transposed": weight.T.contiguous(),
        "one row": weight[:1],
        "scalar": torch.tensor(0.0),
        "double": weight.double(),
        "integer": weight.long(),
        "half": weight.half(),
        "complex": weight.to(torch.complex64),
        "nan": weight * nan,
        "inf": weight + inf,
        "sparse": weight.to_sparse(),
        "compressed": weight.to_sparse_csr(),
        "nested": torch.nested.nested_tensor(list(weight)),
        "meta": weight.to("meta"),
        "list": weight.tolist(),
        "none": None,
    }
    cases |= {f"weight {k}": (["agent", "actor.mean.0.weight"], wrong[k]) for k in wrong}
    cases |= {"log_std nan": (["agent", "actor.log_std"], state["agent"]["actor.log_std"] * nan)}
    cases |= {
        "superfluous": (["agent", "actor.extra"], torch.zeros(1)),
        "no agent": (["agent"], {}),
    }
    moments = state["optimizer"]["state"][1]
    assert moments["exp_avg"].ndim == 2
    for name in ("exp_avg", "exp_avg_sq"):
        moment = moments[name]
        wrong = {
            "missing": ...,
            "one": moment.flatten()[:1],
            "flat": moment.flatten()[None],
            "double": moment.double(),
            "nan": moment * nan,
            "inf": moment + inf,
            "list": moment.tolist(),
        }
        keys = ["optimizer", "state", 1, name]
        cases |= {f"{name} {k}": (keys, value) for k, value in wrong.items()}
    cases["square negative"] = (["optimizer", "state", 1, "exp_avg_sq"], -moments["exp_avg_sq"] - 1)
    cases["step negative"] = (["optimizer", "state", 1, "step"], torch.tensor(-1.0))
    for name, value in {"missing": ..., "nan": torch.tensor(nan), "text": "x"}.items():
        cases[f"step {name}"] = (["optimizer", "state", 1, "step"], value)
    cases["moments of one parameter missing"] = (["optimizer", "state", 1], ...)
    cases["superfluous moments"] = (["optimizer", "state", 99], moments)
    cases["superfluous moment"] = (["optimizer", "state", 1, "more"], torch.zeros(1))
    cases["no moments"] = (["optimizer", "state"], {})
    cases["no optimizer"] = (["optimizer"], {})
    cases["no groups"] = (["optimizer", "param_groups"], [])
    keys = ["optimizer", "param_groups", 0]
    for name in ("params", "lr", "betas", "eps"):
        cases[f"group without {name}"] = ([*keys, name], ...)
    wrong = {"lr": [nan, "x", None], "params": [[]], "betas": [[0.9], 3.0]}
    for name in wrong:
        cases |= {f"{name} {value}": ([*keys, name], value) for value in wrong[name]}
    return cases


def test_networks_and_moments_of_latest(capsys, subtests, no_steps, latest):
    cases = spoiled_agent(load(latest))
    no_steps()
    each(subtests, latest, cases, lambda: refused(capsys, "--resume", latest))


def test_networks_and_moments_of_offline(capsys, subtests, no_steps, offline):
    cases = spoiled_agent(load(offline))
    no_steps()
    each(subtests, offline, cases, lambda: refused(capsys, *tune(offline)))


@pytest.mark.parametrize("name", SCRIPTS)
def test_each_network_is_needed(capsys, name):
    """Also those that a script adds to its parent's: a resumed run needs them all."""
    data()
    interrupt(name, 70, *flags_of(name, "--run-name", "stopped"))
    latest = Path("runs/stopped/latest.pt")
    whole = latest.read_bytes()
    names = list(load(latest)["agent"])
    for key in {*names[::6], names[-1]}:
        spoil(latest, "agent", key)
        line = stops(capsys, start, name, "--resume", latest)
        assert line.startswith(f"{name}.py: "), line
        latest.write_bytes(whole)


# ---- a latest.pt as offline.pt


def test_latest_as_offline(capsys):
    data()
    for phase in ("offline", "online"):
        line = refused(capsys, *tune(stopped(phase) / "latest.pt"))
        assert "offline.pt" in line
        shutil.rmtree("runs")


def test_latest_taken_at_the_switch(monkeypatch):
    """It holds all that offline.pt holds, and nothing has been learnt since."""
    data()

    def power_cut(*args, **kwargs):
        raise RuntimeError("power cut")

    with monkeypatch.context() as patch:
        patch.setattr(iql.ReplayBuffer, "add", power_cut)
        with pytest.raises(RuntimeError):
            run(*flags_of("iql", "--run-name", "switch"))
    folder = Path("runs/switch")
    one = run(*tune(folder / "offline.pt"), "--run-name", "one")
    other = run(*tune(folder / "latest.pt"), "--run-name", "other")
    assert_same_run(one, other)


# ---- more steps for a finished run


@pytest.mark.parametrize("name", SCRIPTS)
def test_an_extended_run_is_the_longer_run(monkeypatch, name):
    data()
    monkeypatch.setattr(importlib.import_module(name), "LOG_EVERY", 10)
    flags = flags_of(name, "--offline-steps", 20, "--run-name")
    start(name, *flags, "extended", "--online-steps", 30)
    start(name, "--resume", "runs/extended/latest.pt", "--online-steps", 60)
    start(name, *flags, "longer", "--online-steps", 60)
    assert_same_run(Path("runs/extended"), Path("runs/longer"))
    assert read_json(Path("runs/extended/config.json"))["online_steps"] == 60
    keys = ("final_score", "final_return")
    one, other = (read_json(Path("runs", run, "summary.json")) for run in ("extended", "longer"))
    assert [one[key] for key in keys] == [other[key] for key in keys]


def test_an_extension_can_be_interrupted_and_extended_again():
    data()
    flags = flags_of("iql", "--offline-steps", 20, "--run-name")
    extended = run(*flags, "extended", "--online-steps", 30)
    interrupt("iql", 20, "--resume", extended / "latest.pt", "--online-steps", 60)
    run("--resume", extended / "latest.pt")
    run("--resume", extended / "latest.pt", "--online-steps", 90)
    longer = run(*flags, "longer", "--online-steps", 90)
    assert_same_run(extended, longer)


@pytest.mark.parametrize(
    ("name", "begins_anew"),
    [
        ("iql", []),
        ("pex", []),
        ("jsrl_finetune", ["--init", "cold"]),
        ("td3_c", []),
        ("wsrl", ["--no-load-policy", "--no-load-critic"]),
    ],
)
def test_an_offline_run_is_extended_by_an_online_phase(name, begins_anew):
    """Until then its agent is the one at the switch: nothing has begun anew."""
    data()
    flags = flags_of(name, *begins_anew, "--offline-steps", 20, "--run-name")
    extended = start(name, *flags, "extended", "--online-steps", 0)
    offline, latest = (
        torch.load(extended / file, weights_only=True) for file in ("offline.pt", "latest.pt")
    )
    assert latest["phase"] == "done"
    assert all(torch.equal(x, latest["agent"][key]) for key, x in offline["agent"].items())
    assert str(offline["optimizer"]) == str(latest["optimizer"])
    start(name, "--resume", extended / "latest.pt", "--online-steps", 90)
    assert_same_run(extended, start(name, *flags, "longer"))


def test_steps_that_extend_nothing(capsys):
    data()
    finished = run(*flags_of("iql", "--run-name", "finished")) / "latest.pt"
    for flags in ([], ["--online-steps", 90], ["--online-steps", 60], ["--online-steps", 0]):
        assert "online-steps" in refused(capsys, "--resume", finished, *flags)
    refused(capsys, "--resume", finished, "--online-steps", 150, "--offline-steps", 90)


def test_a_stopped_run_does_not_get_fewer_steps(capsys, latest):
    assert "online-steps" in refused(capsys, "--resume", latest, "--online-steps", 60)


@pytest.mark.parametrize("flag", ["--resume", "--offline-checkpoint"])
def test_an_empty_path(capsys, flag):
    data()
    refused(capsys, *DATA, *TINY, flag, "")


# ---- small files are there or not, never in part


def test_no_temporary_file_stays(latest):
    folder = run("--resume", latest)
    assert not list(folder.glob("*tmp*"))
    names = {"config.json", "eval.csv", "latest.pt", "metrics.csv", "offline.pt", "summary.json"}
    found = {path.name for path in folder.iterdir()} - {".lock"}
    assert {name for name in found if "tfevents" not in name} == names


@pytest.mark.parametrize("name", ["config.json", "summary.json"])
def test_small_files_are_written_at_once(monkeypatch, name):
    """They appear under their name complete, by a rename: a crash before it leaves none."""
    data()
    replaced, rename = [], os.replace

    def watched(source, target):
        replaced.append(Path(target).name)
        if Path(target).name == name:
            assert not Path(target).exists()
            assert isinstance(read_json(Path(source)), dict)
        rename(source, target)

    monkeypatch.setattr(os, "replace", watched)
    folder = run(*flags_of("iql", "--run-name", "whole"))
    assert name in replaced
    assert isinstance(read_json(folder / name), dict)
