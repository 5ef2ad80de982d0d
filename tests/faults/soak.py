"""Kill runs of every script again and again, and compare what comes out with an undisturbed run.

    python tests/faults/soak.py                     # about half an hour on 2 cores
    python tests/faults/soak.py --kills 200 --seed 1

A life is a run that is stopped several times and restarted each time: with --resume if there is a
latest.pt, from the beginning otherwise. At its end every byte of eval.csv and metrics.csv and every
tensor of the agent and the optimizer in latest.pt must be that of the undisturbed run. Processes
are stopped at a random time, at a random line of the script, inside the write of latest.pt (half
of the bytes written, or before or after a rename), and while they import.

Everything is imported once; a run is a fork of this process. Writes a row per script and fault to
benchmark/results/soak.csv. Exit status: 0 nothing was lost, 1 something was.
"""

import argparse
import contextlib
import csv
import functools
import importlib
import io
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import numpy as np
import torch
from common import SCRIPTS, flags_of, load, program
from conftest import ROOT, pendulum, run
from tqdm import tqdm

RESULTS = ROOT / "benchmark/results/soak.csv"
COLUMNS = ["script", "fault", "trials", "lost", "bytes_different", "slowest_answer"]
COLUMNS += ["anew", "offline", "online", "done"]  # what the restarts began with
MOMENTS = ["at a random time", "at a random line", "in a write"]
STOPS = 5  # in a life
PATIENCE = 60.0  # seconds: a run takes one


# ---- a fork that runs a script, and stops as planned


def stop_at_line(module, number: int, line: int) -> None:
    """Send a signal to this process when it executes the n-th line of the script."""
    left = [line]

    def local(frame, event, arg):
        left[0] -= event == "line"
        if left[0] == 0:
            sys.settrace(None)
            os.kill(os.getpid(), number)
        return local

    def trace(frame, event, arg):
        return local if frame.f_code.co_filename == module.__file__ else None

    sys.settrace(trace)


def stop_in_write(number: int, where: str, count: int) -> None:
    """Send a signal to this process in the n-th write of latest.pt, or of another file."""
    save, rename, left = torch.save, os.replace, [count]

    def due() -> bool:
        left[0] -= 1
        return left[0] == 0

    def torn(state, file):
        if due():
            whole = io.BytesIO()
            save(state, whole)
            file.write(whole.getvalue()[: whole.tell() // 2])
            file.flush()
            os.kill(os.getpid(), number)
        save(state, file)

    def renamed(source, target):
        hit = due()
        if hit and where == "before":
            os.kill(os.getpid(), number)
        rename(source, target)
        if hit and where == "after":
            os.kill(os.getpid(), number)

    if where == "half":
        torch.save = torn
    else:
        os.replace = renamed


def fork(name: str, flags: list, prepare=lambda module: None, log: str = "log") -> int:
    """The process id of `python NAME.py FLAGS`; what it says goes into a file."""
    numbers = signal.SIGINT, signal.SIGTERM
    signal.pthread_sigmask(signal.SIG_BLOCK, numbers)  # they wait until the fork has its handlers
    pid = os.fork()
    if pid:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, numbers)
        return pid
    status = 1
    try:
        output = open(log, "w", buffering=1)
        sys.stdout = open(os.devnull, "w")
        sys.stderr = output
        os.dup2(output.fileno(), 2)
        module = importlib.import_module(name)
        for number in numbers:
            signal.signal(number, module.stop_at_once)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, numbers)
        prepare(module)
        module.cli([str(flag) for flag in flags])
        status = 0
    except SystemExit as stop:
        status = stop.code
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def wait(pid: int) -> int:
    """Exit status; a process that does not come back is killed and counts as killed."""
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return -99


# ---- the undisturbed run, and the comparison with it


class Reference:
    """An undisturbed run, how long it took, and how many lines of the script it executed."""

    def __init__(self, name: str):
        self.name, self.flags = name, flags_of(name, "--run-name")
        self.folder = Path("runs", f"{name}-undisturbed")
        begin = time.monotonic()
        if wait(fork(name, [*self.flags, self.folder.name])):
            raise SystemExit(f"{name}.py does not run:\n{Path('log').read_text()}")
        self.seconds = time.monotonic() - begin
        self.lines = self.count_lines()

    def count_lines(self) -> int:
        def prepare(module):
            count = [0]

            def local(frame, event, arg):
                count[0] += event == "line"
                return local

            def trace(frame, event, arg):
                return local if frame.f_code.co_filename == module.__file__ else None

            cli = module.cli

            def traced(argv):
                sys.settrace(trace)
                cli(argv)
                sys.settrace(None)
                Path("lines").write_text(str(count[0]))

            module.cli = traced

        wait(fork(self.name, [*self.flags, f"{self.name}-lines"], prepare))
        return int(Path("lines").read_text())


def different(one: bytes, other: bytes) -> int:
    """How many bytes differ."""
    size = min(len(one), len(other))
    views = [np.frombuffer(content, np.uint8, size) for content in (one, other)]
    return int((views[0] != views[1]).sum()) + abs(len(one) - len(other))


def tensors(state, name: str = "") -> dict[str, bytes]:
    """Every tensor and number of nested dictionaries and lists, as bytes."""
    if torch.is_tensor(state):
        return {name: state.contiguous().numpy().tobytes()}
    if isinstance(state, dict | list | tuple):
        entries = state.items() if isinstance(state, dict) else enumerate(state)
        return {
            key: value
            for place, entry in entries
            for key, value in tensors(entry, f"{name}/{place}").items()
        }
    return {name: repr(state).encode()}


def compare(folder: Path, reference: Path) -> dict[str, int]:
    """Bytes that differ between two finished runs; an entry or a file that is missing is one."""
    bad = {}
    for log in ("eval.csv", "metrics.csv"):
        bad[log] = different((folder / log).read_bytes(), (reference / log).read_bytes())
    names = [{path.name for path in run.iterdir()} for run in (folder, reference)]
    bad |= {name: int("tfevents" not in name) for name in names[0] ^ names[1]}
    for checkpoint in {"latest.pt", "offline.pt"} & names[0]:
        states = [load(run / checkpoint) for run in (folder, reference)]
        one, other = ({key: state[key] for key in ("agent", "optimizer")} for state in states)
        one, other = tensors(one), tensors(other)
        bad[checkpoint] = len(one.keys() ^ other.keys())
        bad[checkpoint] += sum(different(one[key], other[key]) for key in one.keys() & other.keys())
    return {name: count for name, count in bad.items() if count}


# ---- lives


class Row(dict):
    """Counts of one script and fault; prints what was lost."""

    def __init__(self, name: str, fault: str):
        super().__init__(dict.fromkeys(COLUMNS, 0), script=f"{name}.py", fault=fault)

    def lose(self, why: str) -> None:
        self["lost"] += 1
        print(f"LOST: {self['script']}, {self['fault']}: {why}", flush=True)


def is_finished(folder: Path) -> bool:
    latest = folder / "latest.pt"
    return (folder / "summary.json").exists() and load(latest)["phase"] == "done"


def begin(reference: Reference, folder: Path, row: Row) -> list:
    """The flags of the next start: the run goes on, or begins anew."""
    latest = folder / "latest.pt"
    if latest.exists():
        row[load(latest)["phase"]] += 1
        return ["--resume", latest]
    row["anew"] += 1
    shutil.rmtree(folder, ignore_errors=True)
    return [*reference.flags, folder.name]


def end(reference: Reference, folder: Path, row: Row) -> None:
    """Let the run finish and compare it."""
    if not is_finished(folder):
        status = wait(fork(reference.name, begin(reference, folder, row)))
        if status != 0:
            row.lose(f"exit status {status}: {Path('log').read_text().strip()}")
            return
    bad = compare(folder, reference.folder)
    row["bytes_different"] += sum(bad.values())
    if bad:
        row.lose(f"differences in {bad}")
    else:
        shutil.rmtree(folder)


def moment(rng: random.Random, reference: Reference, number: int, fault: str):
    """When to stop: seconds from now, and what the fork does to itself."""
    if "line" in fault:
        line = rng.randint(1, reference.lines)
        return None, functools.partial(stop_at_line, number=number, line=line)
    if "write" in fault:
        where, count = rng.choice(["half", "before", "after"]), rng.randint(1, 4)
        return None, lambda module: stop_in_write(number, where, count)
    return rng.uniform(0, reference.seconds), lambda module: None


def said(status: int, number: int) -> str | None:
    """What is wrong with the way in which a process ended."""
    lines = Path("log").read_text().strip().splitlines()
    if status == 0:  # it was faster
        return None
    if number == signal.SIGKILL:
        return None if status == -number else f"exit status {status}: {lines}"
    if status != 128 + number or len(lines) != 1:
        return f"exit status {status}: {lines}"
    return None


def live(rng: random.Random, reference: Reference, number: int, row: Row, life: int) -> None:
    """Start, stop, restart, stop, ..., and compare."""
    folder = Path("runs", f"{reference.name}-{life}")
    shutil.rmtree(folder, ignore_errors=True)
    for _ in range(STOPS):
        if folder.exists() and (folder / "latest.pt").exists() and is_finished(folder):
            break
        seconds, prepare = moment(rng, reference, number, row["fault"])
        pid = fork(reference.name, begin(reference, folder, row), prepare)
        sent = time.monotonic()
        if seconds is not None:
            time.sleep(seconds)
            os.kill(pid, number)
            sent = time.monotonic()
        status = wait(pid)
        row["trials"] += status != 0
        if seconds is not None and number != signal.SIGKILL:
            row["slowest_answer"] = max(row["slowest_answer"], time.monotonic() - sent)
        wrong = said(status, number)
        if wrong:
            row.lose(wrong)
            return
    end(reference, folder, row)


def lives(reference: Reference, seed: int, number: int, fault: str, stops: int) -> Row:
    """As many lives as are needed for so many stops."""
    name = f"{signal.Signals(number).name} {fault}"
    row, life = Row(reference.name, name), 0
    rng = random.Random(f"{seed} {reference.name} {name}")
    while row["trials"] < stops and life < 2 * stops:
        life += 1
        live(rng, reference, number, row, life)
    row["slowest_answer"] = round(row["slowest_answer"], 2)
    return row


def imports(reference: Reference, seed: int, number: int, stops: int) -> Row:
    """Real processes, stopped within the seconds that they need for their imports."""
    row = Row(reference.name, f"{signal.Signals(number).name} while importing")
    rng = random.Random(f"{seed} {reference.name} {number}")
    folder = Path("runs", f"{reference.name}-import")
    for _ in range(stops):
        process = program(ROOT / f"{reference.name}.py", *reference.flags, folder.name)
        time.sleep(rng.uniform(0.3, 1.5))
        sent = time.monotonic()
        process.send_signal(number)
        _, stderr = process.communicate()
        row["trials"] += 1
        row["slowest_answer"] = max(row["slowest_answer"], time.monotonic() - sent)
        expected = -number if number == signal.SIGKILL else 128 + number
        lines = stderr.strip().splitlines()
        if process.returncode != expected or len(lines) != (number != signal.SIGKILL):
            row.lose(f"exit status {process.returncode}: {lines}")
        shutil.rmtree(folder, ignore_errors=True)  # logged at other steps than the reference
    row["slowest_answer"] = round(row["slowest_answer"], 2)
    end(reference, folder, row)
    return row


def two_writers(reference: Reference, seed: int, trials: int) -> Row:
    """Two processes resume one run: one is refused, the other finishes it."""
    row = Row(reference.name, "two writers")
    rng = random.Random(f"{seed} {reference.name} two")
    for trial in range(trials):
        folder = Path("runs", f"{reference.name}-two-{trial}")
        line = rng.randint(reference.lines // 4, reference.lines)
        prepare = functools.partial(stop_at_line, number=signal.SIGTERM, line=line)
        wait(fork(reference.name, [*reference.flags, folder.name], prepare))
        if not (folder / "latest.pt").exists() or is_finished(folder):
            continue
        row["trials"] += 1
        flags = begin(reference, folder, row)
        pids = [fork(reference.name, flags, log=f"log{number}") for number in (0, 1)]
        statuses = sorted(wait(pid) for pid in pids)
        if statuses not in ([0, 2], [0, 0]):  # both: one after the other
            row.lose(f"exit statuses {statuses}: {Path('log0').read_text()}")
            continue
        end(reference, folder, row)
    return row


def full_disk(reference: Reference, seed: int, trials: int) -> Row:
    """No file may grow beyond a random size; in every other trial the run has begun before."""
    row = Row(reference.name, "full disk")
    rng = random.Random(f"{seed} {reference.name} full")
    largest = max(path.stat().st_size for path in reference.folder.iterdir())
    for trial in range(trials):
        folder = Path("runs", f"{reference.name}-full-{trial}")
        size = int(largest ** rng.uniform(0.2, 1.0))
        line = rng.randint(reference.lines // 4, reference.lines)
        stop = functools.partial(stop_at_line, number=signal.SIGTERM, line=line)
        if trial % 2:
            wait(fork(reference.name, [*reference.flags, folder.name], stop))

        def prepare(module, size=size):
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

        status = wait(fork(reference.name, begin(reference, folder, row), prepare, "runs/log"))
        row["trials"] += 1
        if status not in (0, 2) or list(folder.glob("*.tmp")):
            row.lose(f"exit status {status} with files of at most {size} bytes")
            continue
        end(reference, folder, row)
    return row


def warm_up(name: str) -> None:
    """A first run here, so that no fork has to load what is loaded late."""
    module = importlib.import_module(name)
    module.LOG_EVERY = 10
    with contextlib.redirect_stdout(io.StringIO()):
        run(*flags_of(name, "--run-name", f"{name}-warm"), script=module)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def soak(name: str, kills: int, seed: int) -> list[Row]:
    """All faults of one script."""
    warm_up(name)
    reference = Reference(name)
    rows = []
    for number, stops in (
        (signal.SIGKILL, kills),
        (signal.SIGTERM, kills // 2),
        (signal.SIGINT, kills // 2),
    ):
        rows += [lives(reference, seed, number, fault, stops // 3) for fault in MOMENTS]
        rows.append(imports(reference, seed, number, 2))
    rows.append(two_writers(reference, seed, 4))
    rows.append(full_disk(reference, seed, 4))
    for row in rows:
        print(",".join(str(value) for value in row.values()), flush=True)
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=36, help="SIGKILLs per script, at least")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--scripts", nargs="*", default=SCRIPTS, choices=SCRIPTS)
    parser.add_argument("--out", type=Path, default=RESULTS, help="CSV file to write")
    args = parser.parse_args()
    out = args.out.absolute()
    torch.set_num_threads(1)
    print(",".join(COLUMNS))
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        os.environ["MINARI_DATASETS_PATH"] = str(Path(folder, "minari"))
        pendulum()
        tqdm.monitor_interval = 0  # no thread in the process that forks
        for name in args.scripts:
            rows += soak(name, args.kills, args.seed)
        os.chdir(ROOT)
    with open(out, "w", newline="") as file:
        table = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        table.writeheader()
        table.writerows(rows)
    lost = sum(row["lost"] for row in rows)
    print(f"{sum(row['trials'] for row in rows)} trials, {lost} lost; {out}")
    return int(lost > 0)


if __name__ == "__main__":
    sys.exit(main())
