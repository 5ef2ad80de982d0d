"""The limits that keep a script readable at once (and copyable): sizes, nesting, imports, nothing unused."""

import ast
import dataclasses
import difflib
import importlib
import io
import re
import tokenize
import typing

import pytest
from conftest import ROOT

import iql

SCRIPTS = sorted(ROOT.glob("*.py"))
ALLOWED = {"filelock", "gymnasium", "h5py", "minari", "numpy", "torch", "tqdm", "tyro"}
STANDARD = {
    "contextlib",
    "copy",
    "csv",
    "dataclasses",
    "importlib",
    "json",
    "logging",
    "math",
    "os",
    "pathlib",
    "signal",
}
STANDARD |= {"hashlib", "inspect", "io", "re", "shutil", "subprocess", "sys", "time", "typing"}


def loops(node):
    return [n for n in ast.walk(node) if isinstance(n, (ast.For, ast.While))]


def depth(node):
    """Levels of nested statements inside a loop's body."""
    inner = [n for n in ast.iter_child_nodes(node) if not isinstance(n, ast.expr)]
    nests = isinstance(node, (ast.For, ast.While, ast.If, ast.With, ast.Try))
    return int(nests) + max((depth(child) for child in inner), default=0)


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_sizes(path):
    text = path.read_text()
    above, _, below = text.partition("\n# ==== below this line")
    assert len(text.splitlines()) <= (650 if path.name == "iql.py" else 800)
    assert len(above.splitlines()) <= 400  # what a reader reads
    assert len(below.splitlines()) <= 400  # what is the same in every script
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno < 90, node.name
    for loop in loops(tree):
        assert loop.end_lineno - loop.body[0].lineno < 30, f"loop at line {loop.lineno}"
        assert depth(loop) - 1 <= 3, f"loop at line {loop.lineno}"


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_share_of_comments(path):
    text, lines = path.read_text(), set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            lines.add(token.start[0])
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(
            node
        ):
            lines |= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    assert 0.15 <= len(lines) / len(text.splitlines()) <= 0.30


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_imports(path):
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            names.add(node.module.split(".")[0])
    assert names <= ALLOWED | STANDARD


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_nothing_is_unused(path):
    text = path.read_text()
    tree = ast.parse(text)
    for node in tree.body:
        names = [node.name] if isinstance(node, (ast.FunctionDef, ast.ClassDef)) else []
        if isinstance(node, ast.Assign):
            names = [
                n.id for target in node.targets for n in ast.walk(target) if isinstance(n, ast.Name)
            ]
        for name in names:
            assert len(re.findall(rf"\b{name}\b", text)) > 1, f"{name} is not used"
    settings = next(
        node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "Args"
    )
    for field in settings.body:
        assert re.search(rf"args\.{field.target.id}\b", text), f"--{field.target.id} is never read"


def test_defaults_match_their_annotations():
    hints = typing.get_type_hints(iql.Args)
    for field in dataclasses.fields(iql.Args):
        hint = hints[field.name]
        allowed = typing.get_args(hint) or (hint,)
        assert field.default in allowed or type(field.default) in allowed, field.name


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_every_argument_has_its_help(path):
    text = path.read_text()
    tree = ast.parse(text)
    settings = next(
        node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "Args"
    )
    lines = text.splitlines()
    for field in settings.body:
        assert re.search(r"# \S", lines[field.lineno - 1]), field.target.id


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_every_number_has_its_range(path):
    hints = typing.get_type_hints(importlib.import_module(path.stem).Args, include_extras=True)
    for name, hint in hints.items():
        assert hint not in (int, float), f"--{name} has no range beside it"
        if typing.get_origin(hint) is typing.Annotated:
            kind, lowest, highest = typing.get_args(hint)
            assert type(lowest) is type(highest) is kind, name
            assert lowest < highest, name


# outside docstring, Args and PAPER_SETTINGS
CHANGED_LINES = {
    "o3f.py": ("iql.py", 60),
    "pex.py": ("iql.py", 150),
    "jsrl_finetune.py": ("iql.py", 230),
    "wsrl.py": ("cal_ql.py", 220),
}


def core(path):
    """The lines that count in a diff to the parent."""
    text = path.read_text()
    text = text[text.index('"""\n\n# ---- imports') :]
    text = re.sub(r"# ---- end of shared arguments ----\n.*?\n\n\n", "", text, count=1, flags=re.S)
    settings = r"(# [^\n]*\n)*(DECAY|FINE_TUNE|ANTMAZE|ONLINE|PAPER_SETTINGS) = .*?\nNETWORKS"
    text = re.sub(settings, "NETWORKS", text, count=1, flags=re.S)
    return text.splitlines()


@pytest.mark.parametrize("name", CHANGED_LINES)
def test_the_diff_to_the_parent_is_short(name):
    parent, limit = CHANGED_LINES[name]
    assert f"\nParent: {parent}" in (ROOT / name).read_text()
    diff = difflib.unified_diff(core(ROOT / parent), core(ROOT / name), n=0, lineterm="")
    changed = [line for line in diff if re.match(r"[+-](?![+-]{2} )", line)]
    assert 0 < len(changed) <= limit


def test_every_script_has_its_page_and_its_rows():
    for path in SCRIPTS:
        keys = importlib.import_module(path.stem).KEYS
        page = (ROOT / "docs" / f"{path.stem}.md").read_text()
        documented = set(re.findall(r"`((?:offline|online|eval|eval_learner|time)/[a-z_]+)`", page))
        assert documented == {*keys, "time/updates_per_second", "time/env_steps_per_second"}, (
            path.name
        )
        for table in ("README.md", "docs/family.md"):
            assert f"{path.name}`" in (ROOT / table).read_text(), table


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_order_of_sections(path):
    text = path.read_text()
    marks = [
        '"""',
        "import contextlib",
        "class Args",
        "PAPER_SETTINGS = ",
        "class Actor",
        "class Agent",
        "def main",
        "# ====",
    ]
    places = [text.index(mark) for mark in marks]
    assert places == sorted(places)
