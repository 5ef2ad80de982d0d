"""Every flag has its range, and whatever lies outside gets one sentence."""

import dataclasses
import functools
import importlib
import math
import os
import shutil
import subprocess
import typing
from pathlib import Path

import pytest
from common import (
    DATA,
    SCRIPTS,
    child,
    data,
    ended,
    flags_of,
    load,
    program,
    start,
    stopped,
    stops,
)
from conftest import ROOT, TINY, refused


def flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def ranges(script: str) -> dict[str, tuple]:
    """Type, lowest and highest value of each number among the arguments."""
    hints = typing.get_type_hints(importlib.import_module(script).Args, include_extras=True)
    bounded = {name: hint for name, hint in hints.items() if hasattr(hint, "__metadata__")}
    return {name: (hint.__origin__, *hint.__metadata__) for name, hint in bounded.items()}


def outside(kind: type, low, high) -> list[str]:
    """Just below, just above, and no number at all."""
    if kind is int:
        return [str(low - 1), str(high + 1), str(10**30)]
    below, above = math.nextafter(low, -math.inf), math.nextafter(high, math.inf)
    return [repr(below), repr(above), "nan", "inf", "-inf"]


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_number_has_a_range(script):
    args = importlib.import_module(script).Args
    numbers = {
        field.name for field in dataclasses.fields(args) if type(field.default) in (int, float)
    }
    assert numbers == set(ranges(script))
    for name, (kind, low, high) in ranges(script).items():
        assert type(low) is type(high) is kind, name
        assert low <= getattr(args(), name) <= high, name


@pytest.mark.parametrize("script", SCRIPTS)
def test_values_outside_of_their_range(capsys, subtests, script):
    for name, (kind, low, high) in ranges(script).items():
        for value in outside(kind, low, high):
            with subtests.test(flag(name), value=value):
                line = stops(capsys, start, script, *DATA, f"{flag(name)}={value}")
                assert line.startswith(f"{script}.py: {flag(name)} ")
                assert not Path("runs").exists()


@pytest.mark.parametrize("script", SCRIPTS)
def test_values_at_the_ends_of_their_range(monkeypatch, subtests, script):
    """They are accepted as far as the ranges go: what they ask for is looked at later."""
    for name, (_, low, high) in ranges(script).items():
        for value in (low, high):
            with subtests.test(flag(name), value=value):
                args = importlib.import_module(script).parse_args([*DATA, f"{flag(name)}={value}"])
                assert getattr(args, name) == value


NAMES = ["..", ".", "a/b", "/a", "a\0b", "a\nb", "", " ", "x" * 300, "-", "..\\x", "~", "*"]


@pytest.mark.parametrize("name", NAMES)
def test_names_of_a_run(capsys, tmp_path, name):
    data()
    before = sorted(tmp_path.rglob("*"))
    line = refused(capsys, *DATA, *TINY, f"--run-name={name}")
    assert "--run-name" in line
    assert "\0" not in line
    assert sorted(tmp_path.rglob("*")) == before


def test_combinations(capsys, subtests):
    """What is wrong only together with the data, the machine or another flag."""
    data()
    cases = {
        "reward scale 0": ("iql", ["--reward-scale", 0]),
        "batch larger than the data": ("iql", ["--batch-size", 100_000]),
        "module that is not there": ("iql", ["--env-module", "no_such_module"]),
        "module that is a path": ("iql", ["--env-module", "../x"]),
        "module without a name": ("iql", ["--env-module", ""]),
        "no data set": ("iql", ["--dataset-id", ""]),
        "empty path to resume": ("iql", ["--resume", ""]),
        "folder to resume": ("iql", ["--resume", "."]),
        "empty path to begin with": ("iql", ["--offline-checkpoint", ""]),
    }
    for name, (script, flags) in cases.items():
        with subtests.test(name):
            shutil.rmtree("runs", ignore_errors=True)
            line = stops(capsys, start, script, *flags_of(script, *flags))
            assert line.startswith(f"{script}.py: ")
            assert not Path("runs").exists()


def test_a_warm_up_without_an_update_is_said(capsys):
    data()
    start("pex", *flags_of("pex", "--warmup-steps", 90, "--run-name", "idle"))
    assert "note: --warmup-steps 90" in capsys.readouterr().out


def test_a_module_that_fails(capsys):
    data()
    Path("broken_module.py").write_text("1 / 0")
    line = refused(capsys, *DATA, *TINY, "--env-module", "broken_module")
    assert "division by zero" in line


SIZES = {
    "num_critics": ("iql", 10**9),
    "online_steps": ("iql", 10**9),
    "hidden": ("cal_ql", 10**9),
    "critic_subset": ("cal_ql", 10**9),
    "batch_size": ("wsrl", 10**9),
    "num_candidates": ("o3f", 10**9),
}


@pytest.mark.parametrize("name", SIZES)
def test_absurd_sizes(name, monkeypatch):
    """They are refused with their number before anything is allocated; this machine has 8 GB."""
    data()
    sizes = {"SC_PHYS_PAGES": 2 * 10**6, "SC_PAGE_SIZE": 4096}
    sysconf = os.sysconf
    monkeypatch.setattr(os, "sysconf", lambda key: sizes.get(key) or sysconf(key))
    script, value = SIZES[name]
    pid = child(script, *flags_of(script), flag(name), value, memory=10**10, seconds=10)
    status, lines = ended(pid)
    assert (status, len(lines)) == (2, 1), lines
    assert flag(name) in lines[0]
    assert str(value) in lines[0].replace(",", "").replace("_", "")


def test_a_data_set_that_is_too_large(capsys, monkeypatch):
    """It is refused before a row is read; this machine has 4 kB."""
    data()
    sizes = {"SC_PHYS_PAGES": 1, "SC_PAGE_SIZE": 4096}
    monkeypatch.setattr(os, "sysconf", sizes.get)
    monkeypatch.setattr(importlib.import_module("iql"), "read_episodes", None)
    assert "the data set and --online-steps" in stops(capsys, start, "iql", *flags_of("iql"))


# ---- what tyro cannot read: its frame of several lines becomes a sentence


@pytest.mark.parametrize("script", SCRIPTS)
def test_flags_that_cannot_be_read(capsys, subtests, script):
    module = importlib.import_module(script)
    for flags in (["--no-such-flag"], ["--seed", "one"], ["--gamma"], ["--device", "tpu"]):
        with subtests.test(" ".join(flags)):
            line = stops(capsys, module.parse_args, flags)
            assert line.startswith(f"{script}.py: ")
            assert flags[0] in line


def test_flags_that_a_tool_cannot_read(subtests):
    names = ["tools/play.py", "tools/check_data.py", "tools/make_dataset.py"]
    names += ["benchmark/sweep.py", "benchmark/plot.py", "benchmark/gate_table.py"]
    processes = {name: program(ROOT / name, "--no-such-flag", "x") for name in names}
    for name, process in processes.items():
        with subtests.test(name):
            _, stderr = process.communicate(timeout=60)
            lines = stderr.strip().splitlines()
            assert (process.returncode, len(lines)) == (2, 1), stderr
            assert lines[0].startswith(f"{Path(name).name}: ")


# ---- a full disk: the limits of the file system stand in for it


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("size", [100, 2000, 1_000_000])
def test_no_room_for_a_new_run(size):
    """The limits hit the logs' first rows, config.json, and latest.pt."""
    data()
    status, lines = ended(child("iql", *flags_of("iql", "--run-name", "full"), file_size=size))
    assert (status, len(lines)) == (2, 1), lines
    assert not list(Path("runs").rglob("*tmp"))


def test_no_room_for_the_checkpoint_of_a_resumed_run():
    data()
    latest = stopped() / "latest.pt"
    before = latest.read_bytes()
    status, lines = ended(child("iql", "--resume", latest, file_size=1_000_000))
    assert (status, len(lines)) == (2, 1), lines
    assert "latest.pt" in lines[0]
    assert latest.read_bytes() == before
    assert not list(latest.parent.glob("*tmp"))
    start("iql", "--resume", latest)


def test_no_room_for_the_logs_of_a_resumed_run():
    """A real process: what Python does at its end must not add lines, nor its own exit status."""
    data()
    folder = stopped()
    limit = (folder / "metrics.csv").stat().st_size + 20
    command = f"ulimit -f 1; trap '' XFSZ; exec {os.sys.executable} {ROOT / 'iql.py'} --resume"
    assert limit > 1024  # bash counts blocks of 1024 bytes
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(["bash", "-c", f"{command} {folder / 'latest.pt'}"], **pipes)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 2, stderr
    assert len(stderr.strip().splitlines()) == 1, stderr
    assert not list(folder.glob("*tmp"))


def test_nothing_can_be_printed():
    """In order: a whole run, one that is refused late."""
    data()
    flags = flags_of("iql", "--run-name")
    late = [*flags_of("iql"), "--batch-size", "100000"]
    with open("/dev/full", "w") as full:
        processes = [
            program(ROOT / "iql.py", *flags, "full", stdout=full),
            program(ROOT / "iql.py", *late, stdout=full),
        ]
        for process in processes:
            _, stderr = process.communicate(timeout=60)
            assert process.returncode == 2, stderr
            assert len(stderr.strip().splitlines()) == 1, stderr


def test_a_shell_without_stdout_home_or_git(tmp_path):
    """stdout closed, no home folder, and a git that fails with bytes that are no text."""
    git = tmp_path / "git"
    git.write_text("#!/bin/sh\nprintf '\\377\\376' >&2\nprintf '\\377\\n'\nexit 1\n")
    git.chmod(0o755)
    environment = os.environ | {"HOME": "/dev/null", "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    data()
    command = [ROOT / "iql.py", *flags_of("iql", "--run-name", "bare")]
    process = program(*command, env=environment, preexec_fn=functools.partial(os.close, 1))
    _, stderr = process.communicate(timeout=60)
    assert (process.returncode, stderr) == (0, "")
    assert Path("runs/bare/summary.json").exists()


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_plot_that_cannot_be_printed(monkeypatch, unbuffered):
    monkeypatch.setenv("PYTHONUNBUFFERED", unbuffered)
    data()
    folder = stopped()
    command = [ROOT / "benchmark/plot.py", folder, "--out", "curve.png"]
    with open("/dev/full", "w") as full:
        process = program(*command, stdout=full)
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == 2, stderr
    assert len(stderr.strip().splitlines()) == 1, stderr


@pytest.fixture
def small_disk(tmp_path):
    """A file system that holds one checkpoint of iql.py (3.8 MB) but not two."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=6m", "none", str(folder)]
    if os.getuid() or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("only root can mount a small disk")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_disk_runs_full(small_disk):
    data()
    flags = flags_of("iql", "--run-dir", small_disk, "--run-name", "full", "--offline-steps", 30)
    status, lines = ended(child("iql", *flags))
    assert (status, len(lines)) == (2, 1), lines
    latest = small_disk / "full/latest.pt"
    assert load(latest)["phase"] == "offline"
    assert not list(latest.parent.glob("*tmp"))
    shutil.move(latest.parent, "runs")  # there is room elsewhere
    start("iql", "--resume", "runs/latest.pt")


def test_a_run_folder_that_cannot_be_written(capsys):
    data()
    Path("file").write_text("")
    flags = flags_of("iql", "--run-name", "x", "--run-dir")
    assert "file" in refused(capsys, *flags, "file")
    status, lines = ended(child("iql", *flags, "x" * 300))
    assert (status, len(lines)) == (2, 1), lines
