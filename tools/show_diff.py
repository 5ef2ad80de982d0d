"""Show what a script adds to its parent: the code-only diff, which is the paper's idea.

    python tools/show_diff.py o3f.py                    # in colour on a terminal
    python tools/show_diff.py o3f.py --html o3f.html    # side by side, for a browser
    python tools/show_diff.py o3f.py --docs             # into docs/o3f.md, where it stands now

The parent is the one that the script's docstring names. Left out, because they differ for other
reasons: the docstring, `Args`, the settings by family, and the blocks that all scripts share.
"""

import difflib
import html
import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path

import tyro
from sync_shared import FENCES, ROOT, block

RED, GREEN, CYAN, END = "\033[31m", "\033[32m", "\033[36m", "\033[0m"


@dataclass
class Args:
    script: tyro.conf.Positional[str]
    """a script at the top level of the repository, such as o3f.py"""
    html: Path | None = None
    """file to write: the two scripts side by side"""
    docs: bool = False
    """write the diff into the script's page in docs/"""


def stop(message: str) -> None:
    """End with one sentence and exit status 2."""
    print(f"show_diff.py: {message}", file=sys.stderr)
    raise SystemExit(2)


def parent_of(text: str) -> str | None:
    """The script that a docstring names as the parent, if it names one."""
    found = re.search(r"^Parent: (\w+\.py)", text, re.M)
    return found[1] if found else None


def code(text: str) -> list[str]:
    """The lines of a script that count in the diff to its parent."""
    for start, end in reversed(FENCES):
        where = block(text, start, end)
        text = text[: where.start - len(start)] + text[where.stop + len(end or "") :]
    text = text[text.index('"""\n', 3) + 4 :]  # behind the docstring
    text = re.sub(r"@dataclasses\.dataclass\nclass Args:\n.*?\n\n\n", "", text, count=1, flags=re.S)
    text = re.sub(r"\A.*?\n(?=NETWORKS = )", "", text, count=1, flags=re.S)  # settings by family
    return text.strip().splitlines()


def changed_lines(parent: list[str], child: list[str]) -> int:
    """How many lines of code were removed or added."""
    diff = difflib.unified_diff(parent, child, n=0, lineterm="")
    return sum(line[0] in "+-" and line[:4] not in ("--- ", "+++ ") for line in diff)


def coloured(line: str) -> str:
    """A line of a unified diff as a terminal shows it."""
    colour = {"-": RED, "+": GREEN, "@": CYAN}.get(line[:1])
    return f"{colour}{line}{END}" if colour else line


def page_with_diff(page: str, script: str, diff: list[str], count: str) -> str:
    """The text of a docs page, with the diff in the place of the one that it shows."""
    start, end = "<!-- tools/show_diff.py --docs -->\n", "<!-- end of diff -->\n"
    if page.count(start) != 1 or page.count(end) != 1:
        stop(f"the page of {script} needs the lines {start.strip()} and {end.strip()} once each")
    fold = (
        f"<details><summary>{count}, by <code>python tools/show_diff.py {script}</code></summary>"
    )
    text = "\n".join(diff)
    block = f"{fold}\n\n```diff\n{text}\n```\n\n</details>\n"
    before, rest = page.split(start)
    return before + start + block + end + rest.split(end)[1]


def main(args: Args) -> None:
    """Print the diff, or write it as HTML or into the page."""
    path = ROOT / Path(args.script).name
    if not path.is_file():
        stop(f"there is no script {path.name}")
    if args.html and args.docs:
        stop("--html and --docs: one at a time")
    text = path.read_text()
    parent = parent_of(text)
    if parent is None:
        stop(f"{path.name} has no parent")
    before, after = code((ROOT / parent).read_text()), code(text)
    count = f"{changed_lines(before, after)} changed lines of code"
    if args.html:
        page = difflib.HtmlDiff(wrapcolumn=100).make_file(
            before, after, parent, path.name, context=True
        )
        title = f"{html.escape(path.name)} against {html.escape(parent)}: {count}"
        try:
            args.html.write_text(page.replace("<title></title>", f"<title>{title}</title>"))
        except OSError as error:
            stop(f"cannot write {args.html}: {error.strerror}")
        print(f"{args.html}: {count}")
        return
    diff = list(difflib.unified_diff(before, after, parent, path.name, lineterm=""))
    if args.docs:
        page = ROOT / "docs" / f"{path.stem}.md"
        if not page.is_file():
            stop(f"there is no page docs/{page.name}")
        page.write_text(page_with_diff(page.read_text(), path.name, diff, count))
        print(f"{page}: {count}")
        return
    terminal = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    for line in diff:
        print(coloured(line) if terminal else line)
    print(f"# {count}")


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
