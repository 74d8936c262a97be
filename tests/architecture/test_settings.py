"""Every setting says what it is for, and the page of settings is the table's."""

from __future__ import annotations

import pytest

from greenq.settings import TABLE, Setting, Status
from tests.architecture.made import assert_made


@pytest.mark.parametrize("row", TABLE.values(), ids=lambda row: row.name)
def test_a_setting_says_what_it_does_or_why_not(row: Setting) -> None:
    if row.status is Status.HONOURED:
        assert row.doc.endswith("."), "what it does, as a sentence"
    else:
        assert row.reason, "why it has no meaning, or what happens instead"


def test_the_page_of_settings_is_made_from_the_table() -> None:
    assert_made("docs/settings.md", "scripts/settings_page.py")
