"""The repository speaks of the program only: no paths of a machine, nothing left for later, no dead links."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.architecture.source import ROOT

_TEXT = {".py", ".pyx", ".pxi", ".pyi", ".md", ".toml", ".cfg", ".sh", ""}
_SKIPPED = {"__pycache__", "out"}
_MACHINE = re.compile(r"/(work|root|farm|home/\w+)/|file:///\w|\b[\w.-]+\.internal\b")
_LATER = re.compile(r"\b(TODO|FIXME|XXX|HACK)\b")


def _files() -> list[Path]:
    """The text files of the repository, by what stands in the source, not in build or cache directories."""
    rooms = [ROOT / name for name in ("greenq", "tests", "bench", "scripts", "docs", ".ci")]
    found = [path for room in rooms for path in room.rglob("*") if not _SKIPPED & set(path.parts)]
    found += [path for path in ROOT.iterdir() if path.suffix in {".md", ".toml", ".py"}]
    return [path for path in found if path.suffix in _TEXT and path.is_file() and path != Path(__file__)]


def _lines_with(pattern: re.Pattern[str]) -> list[str]:
    return [
        f"{path.relative_to(ROOT)}:{number} {line.strip()[:100]}"
        for path in _files()
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1)
        if pattern.search(line)
    ]


def test_no_path_of_a_machine_stands_in_the_repository() -> None:
    assert _lines_with(_MACHINE) == []


def test_nothing_is_left_for_later_in_a_comment() -> None:
    assert _lines_with(_LATER) == []


@pytest.mark.parametrize(
    "name", ["README.md", "CHANGELOG.md", "CONTRIBUTING.md", "ARCHITECTURE.md", "bench/README.md"]
)
def test_the_links_of_a_page_lead_to_files(name: str) -> None:
    page = ROOT / name
    targets = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text())
    assert [target for target in targets if not (page.parent / target).exists()] == []
