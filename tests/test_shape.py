"""What keeps a script readable at once (and copyable): sizes, nesting, imports, nothing unused."""

import ast
import dataclasses
import difflib
import importlib
import io
import re
import sys
import tokenize
import typing

import pytest
import show_diff
from conftest import ROOT, SCRIPTS

ALLOWED = {"filelock", "gymnasium", "h5py", "minari", "numpy", "torch", "tqdm", "tyro"}
ABOVE = {"iql.py": 360, "jsrl_finetune.py": 612}  # lines above the line, where it is not 560
BELOW = 901  # lines that are the same in every script
LONGEST = {"main": 75}  # lines of a function, where it is not 60: both phases at once


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
    assert len(above.splitlines()) <= ABOVE.get(path.name, 560)  # what a reader reads
    assert len(below.splitlines()) <= BELOW
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno < LONGEST.get(node.name, 60), node.name
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
    assert names <= ALLOWED | sys.stdlib_module_names


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_nothing_is_unused(path):
    """Every top-level name and every flag is read somewhere in the code; a comment is no reader."""
    tree = ast.parse(path.read_text())
    names, flags = set(), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
            names.add(node.id)
        if isinstance(node, ast.Attribute) and ast.unparse(node.value).endswith("args"):
            flags.add(node.attr)
    defined = set()
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            defined.add(node.name)
        if isinstance(node, ast.Assign):
            targets = [n for target in node.targets for n in ast.walk(target)]
            defined |= {n.id for n in targets if isinstance(n, ast.Name)}
    assert defined <= names
    settings = next(
        node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "Args"
    )
    assert {field.target.id for field in settings.body} <= flags


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_defaults_match_their_annotations(path):
    module = importlib.import_module(path.stem)
    hints = typing.get_type_hints(module.Args)
    for field in dataclasses.fields(module.Args):
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


# Lines of code that a script may change of its parent's (tools/show_diff.py).
CHANGED_LINES = {
    "o3f.py": 16,
    "pex.py": 94,
    "jsrl_finetune.py": 229,
    "wsrl.py": 75,
    "awac.py": 85,
    "porl.py": 172,
}


@pytest.mark.parametrize("name", CHANGED_LINES)
def test_the_diff_to_the_parent_is_short(name):
    text = (ROOT / name).read_text()
    parent = (ROOT / show_diff.parent_of(text)).read_text()
    changed = show_diff.changed_lines(show_diff.code(parent), show_diff.code(text))
    assert 0 < changed <= CHANGED_LINES[name]


@pytest.mark.parametrize("name", CHANGED_LINES)
def test_the_page_shows_the_diff_to_the_parent(name):
    """As it is now; else: python tools/show_diff.py NAME --docs."""
    text = (ROOT / name).read_text()
    parent = show_diff.parent_of(text)
    before, after = show_diff.code((ROOT / parent).read_text()), show_diff.code(text)
    page = (ROOT / "docs" / name).with_suffix(".md").read_text()
    shown = re.search(r"```diff\n(.*?)\n```\n", page, re.S)[1].split("\n")
    assert shown == list(difflib.unified_diff(before, after, parent, name, lineterm=""))
    assert f"{show_diff.changed_lines(before, after)} changed lines of code" in page


def test_the_diff_counts_every_line_of_code():
    parent = (ROOT / "iql.py").read_text()
    loss = "        value_loss = (asymmetry"
    child = parent.replace(loss, f"        extra = 1\n{loss}").replace("IQL: implicit", "Other")
    assert child.count("extra = 1") == 1
    assert show_diff.changed_lines(show_diff.code(parent), show_diff.code(child)) == 1
    assert "class Agent(nn.Module):" in show_diff.code(parent)
    assert "def fail(message" not in "\n".join(show_diff.code(parent))


def test_every_script_has_its_page_and_its_rows():
    for path in SCRIPTS:
        keys = importlib.import_module(path.stem).KEYS
        assert (ROOT / "docs" / f"{path.stem}.md").exists(), (
            f"{path.name} needs docs/{path.stem}.md"
        )
        page = (ROOT / "docs" / f"{path.stem}.md").read_text()
        documented = set(re.findall(r"`((?:offline|online|eval|eval_learner|time)/[a-z_]+)`", page))
        assert documented == {*keys, "time/updates_per_second", "time/env_steps_per_second"}, (
            path.name
        )
        for table in ("README.md", "docs/family.md"):
            assert f"{path.name}`" in (ROOT / table).read_text(), table
    linked = re.findall(r"^\| \[`(\w+\.py)`\]", (ROOT / "README.md").read_text(), re.M)
    assert sorted(linked) == [path.name for path in SCRIPTS]  # none has lost its line


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


def test_show_diff_refuses_what_it_cannot_write(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(show_diff, "ROOT", tmp_path)
    for name in ("iql.py", "o3f.py"):
        (tmp_path / name).write_text((ROOT / name).read_text())
    for flags, sentence in (
        ({"docs": True}, "there is no page docs/o3f.md"),
        ({"docs": True, "html": tmp_path / "x.html"}, "--html and --docs: one at a time"),
    ):
        with pytest.raises(SystemExit) as end:
            show_diff.main(show_diff.Args("o3f.py", **flags))
        assert end.value.code == 2
        assert sentence in capsys.readouterr().err
    assert not (tmp_path / "x.html").exists()
