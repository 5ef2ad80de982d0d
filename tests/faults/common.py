"""What tests of faults share: a data set and a stopped run to spoil, and programs that may fail."""

import atexit
import contextlib
import functools
import importlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path

import h5py
import pytest
import torch
from conftest import SCRIPTS as PATHS
from conftest import SMALL, TINY, pendulum, run

DATASET = "test/pendulum/random-v0"
DATA = ["--dataset-id", DATASET]
SCRIPTS = [path.stem for path in PATHS]
CACHE = Path(tempfile.mkdtemp())  # a data set and stopped runs are made once and copied
OWNER = os.getpid()


@atexit.register
def clear():
    """The cache goes with the process that made it, not with one of its children."""
    if os.getpid() == OWNER:
        shutil.rmtree(CACHE, ignore_errors=True)


def flags_of(name: str, *flags) -> list[str]:
    """A tiny run of a script on the data set of data()."""
    return [*DATA, *TINY, *SMALL.get(name, []), *map(str, flags)]


def start(name: str, *flags) -> Path:
    """Run a script in this process; returns the run's directory."""
    return run(*flags, script=importlib.import_module(name))


def shown(warned: list) -> list[str]:
    """Which recorded warnings Python would print between our lines."""
    silent = (DeprecationWarning, ResourceWarning)
    return [str(warning.message) for warning in warned if not issubclass(warning.category, silent)]


def stops(capsys, function, *args, status: int = 2) -> str:
    """The only line on stderr, warnings included, of a call that must end with this exit status."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop, warnings.catch_warnings(record=True) as warned:
        function(*args)
    lines = capsys.readouterr().err.strip().splitlines()
    assert stop.value.code == status, lines
    assert len(lines) == 1, lines
    assert not shown(warned), shown(warned)
    return lines[0]


# ---- a data set to spoil


@functools.cache
def template() -> Path:
    """Made once, in the Minari folder of the first test that asks for it, and moved away."""
    pendulum("test/template/random-v0", episodes=6)
    made = Path(os.environ["MINARI_DATASETS_PATH"], "test/template")
    return Path(shutil.move(made / "random-v0", CACHE))


def data(dataset_id: str = DATASET) -> Path:
    """A small valid data set in this test's Minari folder; returns the folder of its files."""
    source = template()
    target = Path(os.environ["MINARI_DATASETS_PATH"], dataset_id)
    shutil.copytree(source, target)
    describe(target / "data", dataset_id=dataset_id)
    return target / "data"


def read_json(path: Path) -> dict:
    return json.loads(path.read_text())


def describe(folder: Path, **changes) -> None:
    """Other metadata; a key with the value `...` is dropped."""
    metadata = read_json(folder / "metadata.json") | changes
    kept = {key: value for key, value in metadata.items() if value is not ...}
    (folder / "metadata.json").write_text(json.dumps(kept))


def arrays(folder: Path) -> h5py.File:
    """The file with the episodes, to be changed."""
    return h5py.File(folder / "main_data.hdf5", "r+")


def replace(group: h5py.Group, name: str, value) -> None:
    """Another array under the same name."""
    del group[name]
    group[name] = value


# ---- a stopped run to spoil


def interrupt(name: str, step: int, *flags) -> None:
    """Run a script in this process; SIGTERM comes after this many steps with an update."""
    module = importlib.import_module(name)
    report, count = module.Run.report, [0]

    def counting(self, metrics):
        count[0] += 1
        if count[0] == step:
            os.kill(os.getpid(), signal.SIGTERM)
        report(self, metrics)

    module.Run.report = counting
    try:
        with pytest.raises(SystemExit) as stop:
            start(name, *flags)
    finally:
        module.Run.report = report
    assert stop.value.code == 143


@functools.cache
def halves(phase: str) -> Path:
    step = {"offline": 40, "online": 100}[phase]
    interrupt("iql", step, *flags_of("iql", "--run-dir", "halves", "--run-name", "stopped"))
    return Path(shutil.move("halves/stopped", CACHE / phase))


def stopped(phase: str = "online") -> Path:
    """A run of iql.py on data() that was stopped in this phase, in this test's folder `runs`."""
    return Path(shutil.copytree(halves(phase), "runs/stopped"))


def load(path: Path) -> dict:
    return torch.load(path, weights_only=True)


def edit(path: Path, change) -> Path:
    """Apply a function to the content of a checkpoint."""
    state = load(path)
    change(state)
    torch.save(state, path)
    return path


# ---- programs that may hang, crash or need a limit


def program(*command, **kwargs) -> subprocess.Popen:
    """A real `python ...` in the current directory."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, *map(str, command)], **(pipes | kwargs))


def child(name: str, *flags, memory=None, file_size=None, seconds=30) -> int:
    """The process id of a fork of this one that runs a script; it writes `stdout` and `stderr`."""
    sys.stdout.flush()
    logs = [open(path, "w", buffering=1) for path in ("stdout", "stderr")]
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        sys.stdout, sys.stderr = logs
        for number, log in enumerate(logs, 1):
            os.dup2(log.fileno(), number)
        module = importlib.import_module(name)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, module.stop_at_once)
        signal.alarm(seconds)
        if memory:
            resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
        if file_size:
            resource.setrlimit(resource.RLIMIT_FSIZE, (file_size, file_size))
        module.cli([str(flag) for flag in flags])
        status = 0
    except SystemExit as stop:
        status = stop.code
    except BaseException:
        traceback.print_exc()
    finally:  # whatever happens, a child never goes on with the tests
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
        os._exit(status)


def wait_for(condition, seconds: float = 60) -> None:
    """Look every 10 ms until the condition holds."""
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.01)


def begun() -> bool:
    """Has the child said where its run is?"""
    return "run:" in Path("stdout").read_text()


def ended(pid: int) -> tuple[int, list[str]]:
    """Exit status of a child (-9: killed by signal 9) and the lines of its stderr."""
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status), Path("stderr").read_text().strip().splitlines()
