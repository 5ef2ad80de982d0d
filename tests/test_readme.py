"""What the README shows works as it is written."""

import os
import re
import shlex
import subprocess
import sys

from conftest import ROOT, TINY

README = (ROOT / "README.md").read_text()


def test_own_environment_and_logs(tmp_path):
    (tmp_path / "make_mine.py").write_text(
        re.search(r"```python\n(# make_mine.py\n.*?)```", README, re.S)[1]
    )
    commands = re.search(r"```bash\n(python make_mine.py\n.*?)```", README, re.S)[1].splitlines()
    assert len(commands) == 2
    for command in commands:
        program, script, *flags = shlex.split(command)
        assert program == "python"
        path = script if script == "make_mine.py" else str(ROOT / script)
        tiny = [] if script == "make_mine.py" else TINY
        command = [sys.executable, path, *flags, *tiny]
        done = subprocess.run(command, cwd=tmp_path, env=os.environ, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "runs").glob("*/summary.json"))) == 1


def test_commands_name_existing_files_and_flags():
    import iql

    for script in re.findall(r"python (\S+\.py)", README):
        assert (ROOT / script).exists() or script == "make_mine.py"
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
    for flag in ("--expectile", "--offline-checkpoint", "of Q that V estimates"):
        assert flag in done.stdout


def test_equations_quote_lines_of_the_script():
    page, script = (ROOT / "docs/iql.md").read_text(), (ROOT / "iql.py").read_text()
    table = page.split("| | equation |")[1].split("\n\n")[0]
    lines = re.findall(r"\| `([^`]+)` \|$", table, re.M)
    assert len(lines) == 6
    for line in lines:
        assert line in script, line


def test_settings_of_the_page_are_those_of_the_script():
    import iql

    default = iql.Args()
    table = (ROOT / "docs/iql.md").read_text().split("| family |")[1].split("\n\n")[0]
    seen = set()
    for row in table.splitlines()[2:]:
        families, *values = [cell.strip() for cell in row.split("|")[1:5]]
        for family in families.split(", "):
            settings = iql.PAPER_SETTINGS[family]
            in_force = [
                settings.get(name, getattr(default, name))
                for name in ("expectile", "beta", "dropout")
            ]
            assert in_force == [float(value) for value in values]
            seen.add(family)
    assert seen == set(iql.PAPER_SETTINGS)
