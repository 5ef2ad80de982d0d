"""Copy the blocks that every script shares from iql.py into the other scripts.

    python tools/sync_shared.py           # write
    python tools/sync_shared.py --check   # only tell which scripts differ (exit status 1)

A shared block stands between two fence lines, or below the last one to the end of the file. A file
without any fence is a user's own, and left alone.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import tyro

ROOT = Path(__file__).resolve().parent.parent
FENCES = [
    ("# ---- imports: the same in every script ----\n", "# ---- end of imports ----\n"),
    (
        "    # ---- shared arguments: the same in every script ----\n",
        "    # ---- end of shared arguments ----\n",
    ),
    ("# ---- replay buffer: the same in every script ----\n", "# ---- end of replay buffer ----\n"),
    ("# ==== below this line: the same in every script (tests/test_shared_blocks.py) ====\n", None),
]


@dataclass
class Args:
    check: bool = False
    """only tell which scripts differ"""


def block(text: str, start: str, end: str | None) -> slice:
    """Where the block stands in `text`, fences left out.

    ValueError if a fence is missing or doubled.
    """
    if text.count(start) != 1 or (end and text.count(end) != 1):
        raise ValueError(f"the fence {start.strip()!r} must stand exactly once")
    first = text.index(start) + len(start)
    return slice(first, text.index(end) if end else len(text))


def synced(text: str, source: str) -> str:
    """`text` with the shared blocks of `source`."""
    for start, end in FENCES:
        where = block(text, start, end)
        text = text[: where.start] + source[block(source, start, end)] + text[where.stop :]
    return text


def main(args: Args) -> int:
    """The exit status: 1 if scripts differ (--check), or if one lacks a fence; else 0."""
    source, stale = (ROOT / "iql.py").read_text(), {}
    for path in sorted(ROOT.glob("*.py")):
        text = path.read_text()
        if not any(fence in text for pair in FENCES for fence in pair if fence):
            continue
        try:
            new = synced(text, source)
        except ValueError as error:
            print(f"{path.name}: {error}; nothing was written")
            return 1
        if new != text:
            stale[path] = new
    for path, new in stale.items():
        if not args.check:
            path.write_text(new)
        print(f"{path.name}: shared blocks {'differ' if args.check else 'copied'}")
    if not stale:
        print("all the same")
    return int(bool(stale) and args.check)


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Args)))
