"""A data set that is not what it says it is gets one sentence, and nothing is trained on it."""

import json
import shutil
from pathlib import Path

import gymnasium as gym
import minari
import numpy as np
import pytest
from common import DATA, arrays, data, describe, read_json, replace, stops
from conftest import TASK, TINY, refused, run

import iql

SHORT = [*DATA, *TINY, "--offline-steps", "0", "--online-steps", "0"]


@pytest.fixture
def folder():
    return data()


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """A download fails at once."""

    def fails(dataset_id, *args, **kwargs):
        raise ConnectionError("Name or service not known")

    monkeypatch.setattr(minari, "download_dataset", fails)
    monkeypatch.setattr(minari.storage.hosting, "download_dataset", fails)


def train(capsys) -> str:
    line = stops(capsys, run, *DATA, *TINY, "--run-name", "victim")
    assert not Path("runs").exists()
    return line


def test_the_data_set_that_is_spoiled_below_is_good(folder):
    space = json.loads(read_json(folder / "metadata.json")["action_space"])
    assert space == BOX
    run(*SHORT, "--run-name", "victim")


# ---- metadata

NAN, INF = float("nan"), float("inf")
REFERENCES = [(None, 1000.0), (5.0, None), ("5", 1000.0), (5.0, "expert"), (5.0, 5.0)]
REFERENCES += [(1000.0, 5.0), (NAN, 1000.0), (5.0, NAN), (5.0, INF), (-INF, 5.0), ([5.0], 1000.0)]
REFERENCES += [({}, {}), (5.0, ...), (..., 1000.0), (0, 10**400)]


@pytest.mark.parametrize(("low", "high"), REFERENCES)
def test_references(capsys, folder, low, high):
    describe(folder, ref_min_score=low, ref_max_score=high)
    line = train(capsys)
    assert "ref_m" in line


def test_no_references(capsys, folder):
    describe(folder, ref_min_score=None, ref_max_score=None)
    run(*SHORT, "--run-name", "one")
    describe(folder, ref_min_score=..., ref_max_score=...)
    run(*SHORT, "--run-name", "two")
    assert capsys.readouterr().out.count("score: none") == 2


COUNTS = [10**9, 10**18, 5, 7, 0, -1, "6", 6.5, None, [6], True, ...]


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("name", ["total_episodes", "total_steps"])
def test_counts(capsys, folder, name, count):
    describe(folder, **{name: count})
    assert name in train(capsys)


BOX = {"type": "Box", "dtype": "float32", "shape": [1], "low": [-3.0], "high": [3.0]}
SPACES = {
    "smaller box": BOX | {"low": [-1.0], "high": [1.0]},
    "shifted box": BOX | {"low": [0.0], "high": [6.0]},
    "empty box": BOX | {"low": [3.0], "high": [3.0]},
    "box upside down": BOX | {"low": [3.0], "high": [-3.0]},
    "unbounded box": BOX | {"low": [-INF], "high": [INF]},
    "bound beyond float32": BOX | {"high": [1e39]},
    "nan in the box": BOX | {"low": [NAN]},
    "two actions": BOX | {"shape": [2], "low": [-3.0] * 2, "high": [3.0] * 2},
    "no action": BOX | {"shape": [0], "low": [], "high": []},
    "matrix": BOX | {"shape": [1, 1], "low": [[-3.0]], "high": [[3.0]]},
    "discrete": {"type": "Discrete", "dtype": "int64", "start": 0, "n": 3},
    "text": {"type": "Text", "max_length": 3, "min_length": 0, "charset": "ab"},
    "unknown type": {"type": "Torus"},
    "no type": {},
    "a list": [BOX],
    "a thousand layers": "layers",
}


@pytest.mark.parametrize("what", SPACES)
def test_action_space(capsys, folder, what):
    space = json.dumps(SPACES[what])
    if SPACES[what] == "layers":
        layers = '{"type": "Dict", "subspaces": {"a": '
        space = layers * 1000 + json.dumps(BOX) + "}}" * 1000
    describe(folder, action_space=space)
    train(capsys)


def test_observation_space(capsys, folder, subtests):
    fits = json.loads(read_json(folder / "metadata.json")["observation_space"])
    spaces = SPACES | {"three entries": fits | {"shape": [3], "low": [0.0] * 3, "high": [1.0] * 3}}
    for name, space in spaces.items():
        with subtests.test(name):
            describe(folder, observation_space=json.dumps(space))
            train(capsys)


def spec(**changes) -> str:
    return json.dumps(json.loads(gym.spec(TASK).to_json()) | changes)


SPECS = {
    "another task": spec(id="Hopper-v5"),
    "no such version": spec(id="InvertedPendulum-v99"),
    "no id": json.dumps({"kwargs": {}}),
    "id is a number": spec(id=3),
    "id is a list": spec(id=["a"]),
    "id is empty": spec(id=""),
    "arguments are a list": spec(kwargs=["a"]),
    "arguments are a number": spec(kwargs=3),
    "unknown argument": spec(kwargs={"gravity_of_the_moon": 1}),
    "argument of a wrong type": spec(kwargs={"frame_skip": "x"}),
    "argument without a value": spec(kwargs={"reset_noise_scale": None}),
    "no JSON": "{",
    "JSON list": "[]",
    "JSON null": "null",
    "a dictionary": {"id": TASK},
    "a number": 3,
    "null": None,
    "empty": "",
}


@pytest.mark.parametrize("what", SPECS)
def test_environment(capsys, folder, what):
    describe(folder, env_spec=SPECS[what])
    train(capsys)


OTHERS = {"data_format": ["arrow", "x", None, 3, ["hdf5"]], "minari_version": ["99.0", None, 3]}
OTHERS |= {"dataset_id": [None, 3, "../x", "a b"], "jpeg_encoding": [[]]}


@pytest.mark.parametrize("name", OTHERS)
def test_other_metadata(capsys, folder, subtests, name):
    """Minari reads them; what it cannot use must not end in a traceback. Ids and flags may do."""
    whole = (folder / "metadata.json").read_text()
    for value in [*OTHERS[name], ...]:
        with subtests.test(value=str(value)):
            (folder / "metadata.json").write_text(whole)
            describe(folder, **{name: value})
            if name in ("data_format", "minari_version"):
                train(capsys)
            else:
                run_or_refused(capsys)


def run_or_refused(capsys) -> None:
    capsys.readouterr()
    shutil.rmtree("runs", ignore_errors=True)
    try:
        run(*SHORT, "--run-name", "victim")
    except SystemExit as stop:
        assert stop.code == 2
        assert len(capsys.readouterr().err.strip().splitlines()) == 1


@pytest.mark.parametrize("content", ["", "{", "[]", "null", "3", '"x"', "\0", "[" * 100_000])
def test_metadata_that_is_no_dictionary(capsys, folder, content):
    (folder / "metadata.json").write_text(content)
    train(capsys)


# ---- episodes


def old(file, name) -> np.ndarray:
    return np.asarray(file[f"episode_0/{name}"])


def spoil(file, name, value) -> None:
    replace(file["episode_0"], name, value)


def changed(name, change):
    """A change of one column of the first episode."""

    def apply(file):
        spoil(file, name, change(old(file, name)))

    return apply


def row(value):
    """Another value in the second row."""

    def change(x):
        x = x.copy()
        with np.errstate(over="ignore"):
            x[1] = value
        return x

    return change


def longer(x):
    return np.concatenate([x, x[-1:]])


def text(x):
    return np.full(x.shape, b"abc", dtype="S3")


COLUMNS = {}
for column in ("observations", "actions", "rewards", "terminations"):
    COLUMNS |= {
        f"{column}: one more": changed(column, longer),
        f"{column}: one less": changed(column, lambda x: x[:-1]),
        f"{column}: one row": changed(column, lambda x: x[:1]),
        f"{column}: none": changed(column, lambda x: x[:0]),
        f"{column}: one more dimension": changed(column, lambda x: x[..., None]),
        f"{column}: flat": changed(column, lambda x: x.reshape(-1, 1, 1)),
        f"{column}: scalar": changed(column, lambda x: x.ravel()[0]),
        f"{column}: text": changed(column, text),
        f"{column}: complex": changed(column, lambda x: x.astype(np.complex128)),
        f"{column}: group": lambda file, column=column: spoil_with_a_group(file, column),
        f"{column}: missing": lambda file, column=column: file.pop(f"episode_0/{column}"),
    }
for column in ("observations", "actions", "rewards"):
    COLUMNS |= {f"{column}: {x}": changed(column, row(x)) for x in (NAN, INF, -INF, 1e300)}
COLUMNS |= {
    "actions: far outside": changed("actions", row(300.0)),
    "actions: all far outside": changed("actions", lambda x: x * 100),
    "observations: another width": changed("observations", lambda x: x[:, :3]),
    "terminations: 7": changed("terminations", lambda x: x.astype(np.int64) * 7),
    "terminations: 0.5": changed("terminations", lambda x: x * 0.5),
    "terminations: nan": changed("terminations", lambda x: x * NAN),
    "terminations: -1": changed("terminations", lambda x: -x.astype(np.int8)),
    "terminations: everywhere": changed("terminations", np.ones_like),
    "terminations: at the first step too": changed("terminations", row(True)),
}


def spoil_with_a_group(file, column):
    del file[f"episode_0/{column}"]
    file.create_group(f"episode_0/{column}")


def an_episode_more(file):
    file.copy("episode_0", "episode_6")


def an_episode_less(file):
    del file["episode_5"]


def an_episode_with_another_number(file):
    file.move("episode_5", "episode_7")


def something_else(file):
    file["notes"] = np.zeros(3)


def an_array_for_an_episode(file):
    del file["episode_5"]
    file["episode_5"] = np.zeros(3)


GROUPS = [an_episode_more, an_episode_less, an_episode_with_another_number, something_else]
COLUMNS |= {change.__name__: change for change in [*GROUPS, an_array_for_an_episode]}


@pytest.mark.parametrize("what", COLUMNS)
def test_episodes(capsys, folder, what):
    with arrays(folder) as file:
        COLUMNS[what](file)
    train(capsys)


@pytest.mark.parametrize("what", ["nan", "text", "one", "too many", "half"])
def test_successes(capsys, folder, what):
    """Infos may tell at which steps the task was solved: with 0 or 1, once per step."""
    with arrays(folder) as file:
        steps = len(old(file, "rewards"))
        values = {"nan": [NAN] * steps, "text": [b"False"] * steps, "one": [1.0]}
        values |= {"too many": [0.0] * (steps + 5), "half": [0.5] * steps}
        file["episode_0/infos/success"] = np.array(values[what])
    line = stops(capsys, run, *DATA, *TINY, "--success-ends-episode", "--run-name", "victim")
    assert "success" in line


def test_actions_a_little_outside_are_said(capsys, folder):
    with arrays(folder) as file:
        spoil(file, "actions", row(3.3)(old(file, "actions")))
    run(*SHORT, "--run-name", "victim")
    assert "note: actions outside" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["observations", "actions", "rewards"])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "int32"])
def test_kinds_of_numbers(folder, name, dtype):
    """Any real numbers will do; one column at a time, as in real data."""
    with arrays(folder) as file:
        spoil(file, name, old(file, name).astype(dtype))
    args = iql.parse_args([*DATA, *TINY])
    columns, *_ = iql.load_data(args)
    assert {column.dtype for column in columns.values()} == {np.dtype(np.float32)}


@pytest.mark.parametrize("keep", [0, 1, 100, 0.5, -1])
def test_a_file_that_is_cut_off(capsys, folder, keep):
    path = folder / "main_data.hdf5"
    content = path.read_bytes()
    size = int(keep * len(content)) if isinstance(keep, float) else keep
    path.write_bytes(content[:size])
    train(capsys)


@pytest.mark.parametrize("name", ["main_data.hdf5", "metadata.json"])
def test_files_that_are_not_there_or_folders(capsys, folder, name):
    (folder / name).unlink()
    train(capsys)
    (folder / name).mkdir()
    train(capsys)


# ---- other data sets


@pytest.mark.parametrize("content", [None, "", "{", "[]", '{"dataset_id": 3}'])
@pytest.mark.parametrize("name", ["broken/a-v0", "no version", "b-v0/c", "x!"])
def test_a_malformed_neighbour_of_an_unknown_id(capsys, folder, content, name):
    neighbour = Path(folder.parents[3], name, "data")
    neighbour.mkdir(parents=True)
    if content is not None:
        (neighbour / "metadata.json").write_text(content)
    line = refused(capsys, "--dataset-id", "test/pendulm/random-v0", *TINY)
    assert "no data set test/pendulm/random-v0" in line
    assert "test/pendulum/random-v0" in line
    assert "Name or service not known" in line


def test_a_malformed_neighbour_of_a_known_id(folder):
    Path(folder.parents[3], "x!", "data").mkdir(parents=True)
    run(*SHORT, "--run-name", "victim")
