"""The matrix of the pools, measured anew on every run; the page in the docs says nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.pool_matrix import PAGE, POOLS, ROWS, Matrix, measure
from tests.support.pool_scene import Finding, answered, said_no


@pytest.mark.alone
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_each_pool_keeps_what_the_page_of_the_matrix_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    matrix = measure(tmp_path)
    with capsys.disabled():
        print(f"\n{matrix.overview()}")
    print(matrix.details())
    assert not matrix.faults(), "accepted and ignored, or broken"
    assert PAGE.read_text() == matrix.page(), "if this is what is meant: scripts/pool-matrix"


def filled(finding: Finding) -> Matrix:
    return Matrix({(row.experiment, pool): finding for row in ROWS for pool in POOLS}, seconds=0)


def test_one_cell_that_changes_changes_the_page_and_a_no_is_a_fault() -> None:
    all_well = filled(Finding("yes"))
    assert not all_well.faults()
    for row in ROWS:
        for pool in POOLS:
            changed = filled(Finding("yes"))
            changed.cells[row.experiment, pool] = Finding("no", "nothing happened")
            assert changed.faults() == [f"{row.title}, {pool}: nothing happened"]
            assert changed.page() != all_well.page()


def test_what_was_seen_is_not_on_the_page_and_what_was_said_is() -> None:
    assert filled(Finding("yes", "after 1.03 s")).page() == filled(Finding("yes", "after 1.04 s")).page()
    assert "use -P prefork" in filled(Finding("refused", said="not here: use -P prefork")).page()


def test_a_refusal_has_to_name_the_cure() -> None:
    assert said_no("PoolCannot('it has one slot: run more workers')").said == "it has one slot: run more workers"
    assert said_no("UnknownCommand(\"no command 'x'\")").verdict == "later"
    assert answered({"ok": "pool will grow"}) is None
    with pytest.raises(AssertionError, match="not what to do instead"):
        said_no("ValueError('impossible')")
