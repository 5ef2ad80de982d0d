"""Copy the blocks that every script shares from iql.py into the other scripts.

    python tools/sync_shared.py           # write
    python tools/sync_shared.py --check   # only tell which scripts differ (exit status 1)

A shared block stands between two fence lines, or below the last one to the end of the file.
"""

import sys
from pathlib import Path

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


def main(argv: list[str]) -> int:
    source, stale = (ROOT / "iql.py").read_text(), []
    for path in sorted(ROOT.glob("*.py")):
        text = path.read_text()
        if FENCES[-1][0] not in text:
            continue  # a file of a user's own
        if synced(text, source) != text:
            stale.append(path.name)
            if "--check" not in argv:
                path.write_text(synced(text, source))
    print(
        "\n".join(
            f"{name}: shared blocks {'differ' if '--check' in argv else 'copied'}" for name in stale
        )
        or "all the same"
    )
    return int(bool(stale) and "--check" in argv)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
