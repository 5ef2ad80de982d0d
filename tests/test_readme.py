"""What the README shows works as it is written."""

import csv
import fractions
import importlib
import os
import re
import shlex
import subprocess
import sys

import pytest
from conftest import ROOT, SCRIPTS, TINY

README = (ROOT / "README.md").read_text()


def code(first_line: str) -> str:
    """The block of the README that begins with a line."""
    return re.search(rf"```\w+\n({re.escape(first_line)}\n.*?)```", README, re.S)[1]


def call(command: str, folder, *more: str) -> str:
    """Run `python SCRIPT FLAGS` in a folder that has no script of ours; what it printed."""
    program, script, *flags = shlex.split(command, comments=True)
    assert program == "python"
    path = ROOT / script
    if not path.exists():
        path = folder / script
    command = [sys.executable, str(path), *flags, *more]
    done = subprocess.run(command, cwd=folder, env=os.environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_own_logs(tmp_path):
    (tmp_path / "make_mine.py").write_text(code("# make_mine.py"))
    make, train = code("python make_mine.py").splitlines()
    call(make, tmp_path)
    call(make, tmp_path)  # once more, as after a first try that failed
    call(train, tmp_path, *TINY)
    assert len(list((tmp_path / "runs").glob("*/summary.json"))) == 1


def test_recipe_recovers_from_a_try_that_failed(tmp_path):
    recipe = code("# make_mine.py")
    broken = recipe.replace("np.array(observations)", "[{'x': x} for x in observations]")
    (tmp_path / "make_mine.py").write_text(broken)
    with pytest.raises(AssertionError):
        call("python make_mine.py", tmp_path)
    assert (tmp_path / "minari/mine/pendulum/random-v0").exists()  # what Minari has left
    (tmp_path / "make_mine.py").write_text(recipe)
    call("python make_mine.py", tmp_path)


def test_own_environment_with_a_goal(tmp_path):
    for name in ("my_envs.py", "make_reach.py"):
        (tmp_path / name).write_text(code(f"# {name}"))
    make, look, train = code("python make_reach.py").splitlines()
    call(make, tmp_path)
    out = call(look, tmp_path)
    assert "recorded in Reach-v0" in out
    assert "largest reward difference" not in out  # its state is not known: only kinds are compared
    call(train, tmp_path, *TINY)
    (run,) = (tmp_path / "runs").iterdir()
    assert (run / "summary.json").exists()
    rows = list(csv.DictReader(open(run / "eval.csv")))
    assert {row["success"] for row in rows} <= {"0", "1"}
    out = call(f"python tools/play.py {run} --env-module my_envs", tmp_path)
    assert out.count("success") == 11  # ten episodes and their mean


def test_a_trained_agent(tmp_path, monkeypatch):
    call("python iql.py --run-name NAME", tmp_path, *TINY)
    play, film = code("python tools/play.py runs/NAME").splitlines()
    assert "mean of 10: " in call(play, tmp_path)
    film = film.partition(" --video ")[0]  # that needs ffmpeg; tests/test_play.py has it
    played = call(film, tmp_path)
    assert "mean of 1: " in played
    loop = code("import gymnasium as gym\nimport torch")
    assert "runs/NAME/latest.pt" in loop
    (tmp_path / "loop.py").write_text(loop.replace("latest.pt", "offline.pt"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    alone = call("python loop.py", tmp_path)
    of_tool = float(re.search(r"episode 0: return (\S+),", played)[1])
    assert alone == f"return {of_tool:.1f}\n"
    (tmp_path / "loop.py").write_text(loop)
    assert re.fullmatch(r"return -?[0-9.]+\n", call("python loop.py", tmp_path))


def test_the_table_of_the_demo_comes_from_its_runs():
    page = (ROOT / "docs/demo.md").read_text()
    scores, controls = {}, {}  # seed -> step -> score; of the control, step 0 is the last
    for found, name in ((scores, "demo"), (controls, "demo_control")):
        for row in csv.DictReader(open(ROOT / f"benchmark/results/{name}.csv")):
            found.setdefault(row["seed"], {})[int(row["step"])] = float(row["score"])
    gains = []
    for seed, score in scores.items():
        gains.append(score[12_000] - score[0])
        cells = f"{score[0]:.1f} | {score[1000]:.1f} | {score[12_000]:.1f} | {gains[-1]:+.1f}"
        assert f"| {seed} | {cells} | {controls[seed][0]:.1f} |" in page
    means = [sum(score[step] for score in scores.values()) / 5 for step in (0, 1000, 12_000)]
    means.append(sum(control[0] for control in controls.values()) / 5)
    cells = f"{means[0]:.1f} | {means[1]:.1f} | {means[2]:.1f} | {means[2] - means[0]:+.1f}"
    assert f"| mean | {cells} | {means[3]:.1f} |" in page
    assert f"from {means[0]:.1f} % success on average to {means[2]:.1f} %" in page
    assert means[1] - means[0] > (means[2] - means[0]) / 2  # "most of the gain"
    assert f"end at {means[3]:.1f} %" in page.replace("\n  ", " ")
    assert len(gains) == 5
    assert sum(gain >= 20 for gain in gains) >= 4
    makefile = (ROOT / "Makefile").read_text()
    for flags in re.findall(r" -- (--offline-steps 3000.*)", page):
        assert f"umaze-tiny-v0 {flags} --run-name demo" in makefile


def test_commands_name_existing_files_and_flags():
    import iql

    for script in re.findall(r"python (\S+\.py)", README):
        assert (ROOT / script).exists() or script in ("make_mine.py", "make_reach.py")
    for flag in re.findall(r"python iql.py.*? --([a-z-]+)", README):
        assert flag == "help" or hasattr(iql.Args, flag.replace("-", "_")), flag


def test_links():
    for page in [ROOT / "README.md", *ROOT.glob("docs/*.md"), ROOT / "datasets/README.md"]:
        for link in re.findall(r"\]\((?!http)([^)#]+)\)", page.read_text()):
            assert (page.parent / link).exists(), f"{page.name}: {link}"


def test_help_shows_every_argument():
    done = subprocess.run(
        [sys.executable, str(ROOT / "iql.py"), "--help"], capture_output=True, text=True
    )
    assert done.returncode == 0
    for flag in ("--expectile", "--offline-checkpoint", "V estimates this expectile"):
        assert flag in done.stdout


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_equations_quote_lines_of_the_script(script):
    """In the last column: lines, or the functions that hold them."""
    path, code = ROOT / f"docs/{script.stem}.md", script.read_text()
    assert path.exists(), f"{script.name} needs docs/{script.stem}.md"
    page = path.read_text()
    table = re.search(r"lines that hold them\n(.*?)\n## ", page, re.S)[1]
    rows = re.findall(r"^\|(?! *\||---).*\|(.*)\|$", table, re.M)
    quoted = [words for row in rows for words in re.findall("`([^`]+)`", row)]
    assert len(quoted) >= 3
    for words in quoted:
        owner, _, name = words.partition(".")
        known = f"class {owner}" in code and f"def {name}(" in code
        assert known or words in code, words


def said(heading: str, cell: str) -> dict:
    """The arguments that a cell of a page's table of settings tells; {}: it tells none."""
    if named := re.search(r"`(\w+)`", heading):
        words = {"yes": True, "no": False}
        return {named[1]: words[cell] if cell in words else float(fractions.Fraction(cell))}
    if heading.startswith("rewards"):
        formula = re.match(r"(?:(\d+) )?r(?: − (\d+))?\b|as in", cell)
        scaled = {"reward_scale": float(formula[1] or 1), "reward_bias": -float(formula[2] or 0)}
        by_data = "highest" in cell or "`iql.py`" in cell
        return scaled | {"normalize_returns": by_data, "normalize_rewards": by_data}
    if heading.startswith(("budget", "offline + online")):
        numbers = re.match(r"(\d+)([kM]) \+ (\d+)([kM])", cell)
        offline, online = (
            int(number) * {"k": 1_000, "M": 1_000_000}[unit]
            for number, unit in (numbers.group(1, 2), numbers.group(3, 4))
        )
        return {"offline_steps": offline, "online_steps": online}
    if heading.startswith("networks"):
        numbers = re.match(r"(\d) × (\d+); (\d) × (\d+)", cell)
        policy, width, critics, same = (int(number) for number in numbers.groups())
        assert width == same
        return {"hidden": width, "actor_layers": policy, "critic_layers": critics}
    if heading == "multiplier":
        return {"lagrange": cell.startswith("yes")}
    if heading == "densities":
        return {"importance_sampling": cell == "yes"}
    return {}


PAGES = ["iql", "o3f", "pex", "awac", "cal_ql", "porl", "td3_c", "o3f_lapo"]


@pytest.mark.parametrize("script", PAGES)
def test_settings_of_the_page_are_those_of_the_script(script):
    module = importlib.import_module(script)
    table = (ROOT / f"docs/{script}.md").read_text().split("| family |")[1].split("\n\n")[0]
    first, _, *rows = table.splitlines()
    headings = [heading.strip() for heading in first.split("|")]
    seen = {}
    for row in rows:
        families, *cells = [cell.strip() for cell in row.split("|")[1:]]
        for family in families.split(", "):
            in_force = vars(module.parse_args(["--dataset-id", f"x/{family}/a-v0"]))
            seen[family] = {}
            for heading, cell in zip(headings, cells):
                told = said(heading, cell)
                seen[family] |= {name: told[name] for name in told if name in in_force}
            assert seen[family].items() <= in_force.items(), family
    assert seen.keys() >= module.PAPER_SETTINGS.keys() >= {"antmaze", "pointmaze", "kitchen"}
    assert all(seen.values())


def test_settings_in_mazes():
    """What the tables say in a remark, or of all mazes."""
    for path in SCRIPTS:
        module = importlib.import_module(path.stem)
        for family, decays in (("antmaze", path.stem == "pex"), ("pointmaze", True)):
            args = module.parse_args(["--dataset-id", f"x/{family}/a-v0"])
            assert args.success_ends_episode
            if hasattr(args, "expectile"):
                assert (args.expectile, args.beta, args.reward_bias) == (0.9, 10.0, -1.0)
                assert args.actor_lr_decay == decays
