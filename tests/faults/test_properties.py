"""Change anything in a data set or checkpoint: it loads and is right, or one sentence says why not.

With SOAK=1 in the environment more examples are tried, and others each time."""

import contextlib
import functools
import io
import json
import os
import shutil
import warnings
from pathlib import Path

import h5py
import numpy as np
import torch
from common import DATA, arrays, data, describe, load, read_json, replace, shown, stopped
from conftest import TINY, run
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

import iql

SOAK = os.environ.get("SOAK") == "1"
CHECKS = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large]


def examples(number: int):
    """So many examples, or with SOAK=1 so many more."""
    number = 50 * number if SOAK else number
    plain = {"deadline": None, "database": None, "derandomize": not SOAK}
    return settings(max_examples=number, suppress_health_check=CHECKS, **plain)


def outcome(function):
    """What a function returns, or the one line on stderr with which it ends the program."""
    stderr = io.StringIO()
    with (
        contextlib.redirect_stderr(stderr),
        contextlib.redirect_stdout(io.StringIO()),
        warnings.catch_warnings(record=True) as warned,
    ):
        warnings.simplefilter("always")
        try:
            return function()
        except SystemExit as stop:
            lines = stderr.getvalue().strip().splitlines()
            assert stop.code == 2
            assert len(lines) == 1, lines
            assert lines[0].startswith("iql.py: ")
            assert not shown(warned)
            return lines[0]


# ---- data sets

BIG = [2**31, 2**63, 10**18, -(2**63)]
numbers = st.integers(-10, 1000) | st.sampled_from(BIG) | st.floats()
words = st.text(max_size=5) | st.sampled_from(["Hopper-v5", "os:system", "hdf5", "float64", "Box"])
leaves = st.none() | st.booleans() | numbers | words
values = st.recursive(
    leaves,
    lambda x: st.lists(x, max_size=3) | st.dictionaries(words, x, max_size=3),
    max_leaves=4,
)
NESTED = ["env_spec", "observation_space", "action_space"]  # JSON inside the JSON


def change_entry(folder: Path, where: str, key: str, value) -> str:
    """One entry of the metadata, or of one of its nested texts; `...` drops it."""
    metadata = read_json(folder / "metadata.json")
    if where == "metadata":
        describe(folder, **{key: value})
    else:
        nested = json.loads(metadata[where]) | {key: value}
        kept = {name: entry for name, entry in nested.items() if entry is not ...}
        describe(folder, **{where: json.dumps(kept)})
    return f"{where}: {key}"


SHAPES = {
    "one less": lambda x: x[:-1],
    "one more": lambda x: np.concatenate([x, x[-1:]]),
    "one row": lambda x: x[:1],
    "empty": lambda x: x[:0],
    "backwards": lambda x: x[::-1],
    "deeper": lambda x: x[..., None],
    "flat": lambda x: x.ravel(),
    "transposed": lambda x: x.T,
    "scalar": lambda x: x.ravel()[0],
    "wider": lambda x: np.stack([x, x], -1),
}
KINDS = ["bool", "int8", "uint8", "int64", "uint64", "float16", "float32", "float64", "complex64"]
KINDS += ["S5", "O"]
SPECIAL = [np.nan, np.inf, -np.inf, 1e300, -1e300, 7, -1, 0.5, 0, 1]
COLUMNS = ["observations", "actions", "rewards", "terminations", "truncations"]


def cast(x: np.ndarray, kind: str) -> np.ndarray:
    if kind == "O":  # text of any length
        return np.array([str(entry) for entry in x.ravel()], dtype=h5py.string_dtype())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return x.astype(kind)


def change_column(folder: Path, episode: int, column: str, what) -> str:
    """Another shape, another kind of number, or another value at one place."""
    with arrays(folder) as file:
        group = file[f"episode_{episode}"]
        x = np.asarray(group[column])
        if what in SHAPES:
            x = SHAPES[what](x)
        elif what in KINDS:
            x = cast(x, what)
        else:
            value, place = what
            x = x.astype(np.float64)
            x.ravel()[place % x.size] = value
        replace(group, column, x)
    return f"{column}: {what}"


def change_group(folder: Path, path: str, what: str) -> str:
    """A group or an array that is missing, doubled, renamed, or in another's place."""
    with arrays(folder) as file:
        if what == "missing":
            del file[path]
        elif what == "doubled":
            file.copy(path, f"{path}_0")
        elif what == "renamed":
            file.move(path, f"{path}_x")
        elif what == "another":
            replace(file, path, np.zeros(3))
        elif what == "a group":
            del file[path]
            file.create_group(path)
        else:
            file[f"{path}_more"] = np.zeros(3)
    return f"group: {what}"


KEYS = {
    "metadata": "total_episodes total_steps dataset_id data_format env_spec observation_space "
    "action_space minari_version ref_min_score ref_max_score jpeg_encoding eval_env_spec more",
    "env_spec": "id entry_point kwargs max_episode_steps additional_wrappers reward_threshold "
    "nondeterministic order_enforce disable_env_checker vector_entry_point more",
    "observation_space": "type dtype shape low high more",
    "action_space": "type dtype shape low high more",
}
PATHS = ["episode_0", "episode_5", *(f"episode_1/{column}" for column in COLUMNS)]
WHATS = ["missing", "doubled", "renamed", "another", "a group", "more"]
entries = st.one_of(
    st.tuples(
        st.just(change_entry), st.just(where), st.sampled_from(keys.split()), values | st.just(...)
    )
    for where, keys in KEYS.items()
)
columns = st.tuples(
    st.just(change_column),
    st.integers(0, 5),
    st.sampled_from(COLUMNS),
    st.sampled_from([*SHAPES, *KINDS]) | st.tuples(st.sampled_from(SPECIAL), st.integers(0, 50)),
)
groups = st.tuples(st.just(change_group), st.sampled_from(PATHS), st.sampled_from(WHATS))


def loaded():
    """The data set as the script reads it; its environment has begun an episode."""
    args = iql.parse_args([*DATA, *TINY, "--run-name", "victim"])
    read = iql.load_data(args)
    iql.make_env(read[2]).reset(seed=0)
    return read


def assert_right(folder: Path, read) -> None:
    """What was read is what the file holds, and can be trained on."""
    got, ends, task, references = read
    with h5py.File(folder / "main_data.hdf5") as file:
        episodes = [file[f"episode_{number}"] for number in range(len(file))]
        lengths = [len(episode["rewards"]) for episode in episodes]
        rewards = np.concatenate([episode["rewards"][()] for episode in episodes])
        last = np.concatenate([episode["observations"][-1] for episode in episodes if lengths])
    assert ends.tolist() == [end for end in np.cumsum(lengths) if end]
    assert np.array_equal(got["rewards"], rewards.astype(np.float32))
    assert np.array_equal(got["next_obs"][ends - 1].ravel(), last.astype(np.float32))
    assert all(np.isfinite(column).all() for column in got.values())
    assert np.abs(got["actions"]).max() < 1
    inside = np.setdiff1d(np.arange(ends[-1]), ends - 1)
    assert not got["terminations"][inside].any()
    assert set(got["terminations"].tolist()) <= {0.0, 1.0}
    assert references is None or -np.inf < references[0] < references[1] < np.inf
    assert 0 < task.max_episode_steps <= 10_000


@examples(120)
@given(changes=st.lists(entries | columns | groups, min_size=1, max_size=2))
def test_data_sets(changes):
    shutil.rmtree(os.environ["MINARI_DATASETS_PATH"], ignore_errors=True)
    folder = data()
    names = []
    # The second change may find nothing to change.
    with contextlib.suppress(KeyError, OSError, RuntimeError, TypeError, ValueError):
        for change, *arguments in changes:
            names.append(change(folder, *arguments))
    result = outcome(loaded)
    if isinstance(result, str):
        event("refused")
    else:
        event("loaded")
        event(f"loaded although {names}")
        assert_right(folder, result)
    assert not Path("runs").exists()


@examples(20)
@given(cut=st.integers(0, 10**6))
def test_files_that_are_cut_off(cut):
    shutil.rmtree(os.environ["MINARI_DATASETS_PATH"], ignore_errors=True)
    path = data() / "main_data.hdf5"
    content = path.read_bytes()
    path.write_bytes(content[: cut % len(content)])
    assert isinstance(outcome(loaded), str)


# ---- checkpoints


class Accepted(Exception):
    """The run would begin now; holds the run."""


def accept(self, phase):
    raise Accepted(self)


def paths_of(state, path=()):
    """The way to each entry of nested dictionaries and lists."""
    yield path
    entries = []
    if isinstance(state, dict):
        entries = state.items()
    elif isinstance(state, list):
        entries = enumerate(state)
    for key, value in entries:
        yield from paths_of(value, (*path, key))


def of(state, path):
    for key in path:
        state = state[key]
    return state


def with_entry(state, path, change):
    """A copy in which one entry is changed; a change that returns `...` drops it."""
    if not path:
        return change(state)
    copy = state.copy()
    value = with_entry(state[path[0]], path[1:], change)
    if value is ...:
        copy.pop(path[0])
    else:
        copy[path[0]] = value
    return copy


def added(x):
    return x | {"more": 1} if isinstance(x, dict) else [*x, 1]


def first_entry(value):
    def change(x):
        x = x.clone()
        x.view(-1)[0] = value
        return x

    return change


TENSORS = {
    "nan": first_entry(float("nan")),
    "inf": first_entry(float("inf")),
    "double": lambda x: x.double(),
    "half": lambda x: x.half(),
    "integer": lambda x: x.long(),
    "complex": lambda x: x.to(torch.complex64),
    "deeper": lambda x: x[..., None],
    "empty": lambda x: x.new_zeros(0),
    "longer": lambda x: torch.cat([x.reshape(-1), x.reshape(-1)]),
    "sparse": lambda x: x.to_sparse(),
    "list": lambda x: x.tolist(),
    "array of one number": lambda x: x.reshape(-1)[:1].expand(x.numel() + 1),
}
OTHERS = [None, True, -7, 2.5, "x", [], [1], {}, {"a": 1}, (), torch.zeros(2), torch.tensor(0.0)]
OTHERS += [b"x", float("nan"), 10**30, {1, 2}, torch.zeros(0)]
# Entries in which another value may be as good; elsewhere any other kind of value is refused.
FREE = ("args", "rng")


def changes_of(path, x):
    """Names of what can be done to an entry, all of which spoil it."""
    kinds = [f"other {number}" for number, y in enumerate(OTHERS) if type(y) is not type(x)]
    if x is None:
        kinds = []
    if path:
        kinds.append("drop")
    if isinstance(x, dict | list):
        kinds.append("add")
    if torch.is_tensor(x) and path[0] != "rng":
        kinds += list(TENSORS)
    if isinstance(x, float):
        kinds += ["nan", "inf"]
    return kinds


def changed(x, what: str):
    if what.startswith("other"):
        return OTHERS[int(what.split()[1])]
    if what == "drop":
        return ...
    if what == "add":
        return added(x)
    if torch.is_tensor(x):
        return TENSORS[what](x)
    return float(what)


def files(folder: Path) -> dict[str, bytes]:
    """Logs and checkpoints of a run."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix != ".json"}


@functools.cache
def whole(name: str) -> tuple[dict, list]:
    """A checkpoint of the stopped run, and the ways to its entries that can be spoiled."""
    state = load(Path("runs/stopped", name))
    return state, [path for path in paths_of(state) if changes_of(path, of(state, path))]


def assert_refused(draw, name: str, flags, monkeypatch) -> None:
    """One entry, anywhere in a checkpoint, is spoiled: the run does not begin, its files stay."""
    for folder in ("runs", os.environ["MINARI_DATASETS_PATH"]):
        shutil.rmtree(folder, ignore_errors=True)
    data()
    folder = stopped()
    state, paths = whole(name)
    path = draw.draw(st.sampled_from(paths), label="path")
    what = draw.draw(st.sampled_from(changes_of(path, of(state, path))), label="what")
    torch.save(with_entry(state, path, lambda x: changed(x, what)), folder / name)
    spoiled = files(folder)
    try:
        with monkeypatch.context() as patch:
            patch.setattr(iql.Run, "steps", accept)
            result = outcome(lambda: run(*flags))
    except Accepted as accepted:
        agent = accepted.args[0].agent.state_dict()
        accepted.args[0].tensorboard.close()
        assert path and path[0] in FREE, f"accepted: {path} {what}"
        assert all(agent[key].equal(x) for key, x in state["agent"].items())
    else:
        assert isinstance(result, str)
        assert files(folder) == spoiled
        assert [path.name for path in Path("runs").iterdir()] == ["stopped"]


@examples(60)
@given(draw=st.data())
def test_checkpoints_to_resume(monkeypatch, draw):
    flags = ["--resume", "runs/stopped/latest.pt"]
    assert_refused(draw, "latest.pt", flags, monkeypatch)


@examples(50)
@given(draw=st.data())
def test_checkpoints_to_begin_with(monkeypatch, draw):
    flags = [*DATA, *TINY, "--run-name", "tuned", "--offline-checkpoint", "runs/stopped/offline.pt"]
    assert_refused(draw, "offline.pt", flags, monkeypatch)
