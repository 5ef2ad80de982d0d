"""One run directory belongs to one process."""

import csv
import os
import signal
from pathlib import Path

import pytest
from common import begun, child, data, ended, flags_of, load, program, stopped, stops, wait_for
from conftest import ROOT, run

import iql

LONG = ["--online-steps", "100000"]


def one_is_refused(processes):
    """One process ends with one line and status 2, the other can still be interrupted as always."""
    try:
        wait_for(lambda: any(process.poll() is not None for process in processes))
        refused, other = sorted(processes, key=lambda process: process.poll() is None)
        _, stderr = refused.communicate()
        assert refused.returncode == 2, stderr
        assert len(stderr.strip().splitlines()) == 1, stderr
        other.terminate()
        _, stderr = other.communicate(timeout=60)
        assert other.returncode == 143, stderr
        return stderr
    finally:
        for process in processes:
            process.kill()
            process.wait()


def assert_one_writer(folder: Path) -> None:
    """Steps in order, and no row twice: a step's rows differ in the columns that they fill."""
    rows = list(csv.DictReader(open(folder / "metrics.csv")))
    filled = [(int(row.pop("step")), *(name for name in row if row[name])) for row in rows]
    steps = [step for step, *_ in filled]
    assert steps == sorted(steps)
    assert len(filled) == len(set(filled))


def test_two_resumes_of_one_run():
    data()
    folder = stopped()
    longer = [folder / "latest.pt", *LONG]
    one_is_refused([program(ROOT / "iql.py", "--resume", *longer) for _ in range(2)])
    assert_one_writer(folder)


def test_two_starts_of_one_name():
    data()
    command = [ROOT / "iql.py", *flags_of("iql", *LONG, "--run-name", "twice")]
    one_is_refused([program(*command) for _ in range(2)])
    folder = Path("runs/twice")
    assert_one_writer(folder)
    assert load(folder / "latest.pt")["phase"] in ("offline", "online")


def test_a_run_that_is_going_on_is_not_resumed(capsys):
    data()
    latest = stopped() / "latest.pt"
    pid = child("iql", "--resume", latest, *LONG)
    try:
        wait_for(begun)
        line = stops(capsys, run, "--resume", latest)
        assert "runs/stopped" in line
        assert "process" in line
    finally:
        os.kill(pid, signal.SIGKILL)
        ended(pid)
    assert load(latest)["phase"] == "online"


@pytest.mark.parametrize("content", ["", "999999999"])
def test_the_lock_of_a_dead_process_does_not_block(content):
    data()
    folder = stopped()
    (folder / ".lock").write_text(content)
    run("--resume", folder / "latest.pt")
    assert load(folder / "latest.pt")["phase"] == "done"


def test_a_killed_run_can_be_resumed_at_once():
    data()
    latest = stopped() / "latest.pt"
    pid = child("iql", "--resume", latest)
    wait_for(begun)
    os.kill(pid, signal.SIGKILL)
    assert ended(pid)[0] == -signal.SIGKILL
    run("--resume", latest)
    assert load(latest)["phase"] == "done"


def test_the_lock_goes_with_the_run():
    """Two runs after another in one process, as in a notebook."""
    data()
    for name in ("one", "two"):
        iql.main(iql.parse_args(flags_of("iql", "--online-steps", 0, "--run-name", name)))
    assert iql.load_checkpoint("runs/two/latest.pt")["phase"] == "done"
