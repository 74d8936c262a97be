"""Print docs/settings.md from the one table of settings: `scripts/settings_page.py > docs/settings.md`."""

from __future__ import annotations

from greenq.settings import TABLE, Setting, Status

_HEADS = {
    Status.HONOURED: (
        "Honoured",
        "They do what they do in Celery, under Celery's names; greenq's own are marked.",
    ),
    Status.MEANINGLESS: ("Without meaning here", "Accepted with a warning: what they steer does not exist."),
    Status.UNSUPPORTED: ("Not in this version", "Accepted with a warning that says what happens instead."),
}


def _default(row: Setting) -> str:
    return f"`{row.default!r}`".replace("|", "\\|")


def page() -> str:
    """The whole page as Markdown."""
    made = "Made from the table in `greenq/settings.py` by `scripts/settings_page.py`. "
    made += "Where to say them: [configuration.md](configuration.md)."
    lines = ["# Settings", "", made]
    for status, (title, words) in _HEADS.items():
        rows = sorted((row for row in TABLE.values() if row.status is status), key=lambda row: row.name)
        last = "meaning" if status is Status.HONOURED else "why"
        lines += ["", f"## {title}", "", words, "", f"| setting | default | {last} |", "|---|---|---|"]
        for row in rows:
            text = (row.doc or row.reason) + (" (greenq's own)" if row.own else "")
            lines.append(f"| `{row.name}` | {_default(row)} | {text} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(page(), end="")
