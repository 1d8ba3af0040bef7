"""What README and docs/ name exists: modules, targets of make, files, tests."""

from __future__ import annotations

import re

import pages
import pytest

from sftn_fast import transfer

README = (pages.ROOT / "README.md").read_text()
MAKEFILE = (pages.ROOT / "Makefile").read_text()


@pytest.mark.parametrize(("place", "argv"), pages.module_commands("sftn_fast.transfer"), ids=str)
def test_transfer_command_is_understood(place, argv):
    assert transfer.parse(argv).network == argv[0], place


def test_commands_are_found():
    assert len(pages.module_commands("sftn_fast.train")) >= 20
    for module in ("sftn_fast.transfer", "sftn_fast.report", "sftn_fast.data.verify", "sftn_fast.info"):
        assert pages.module_commands(module), module
    for target in re.findall(r"`make (\w+)`|^make (\w+)", README, flags=re.MULTILINE):
        assert f"\n{''.join(target)}:" in MAKEFILE


@pytest.mark.parametrize("page", pages.page_names())
def test_links_lead_to_files(page):
    text = re.sub(pages.FENCE, "", (pages.ROOT / page).read_text())
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[\w-]+)?\)", text):
        if "://" not in target:
            assert (pages.ROOT / page).parent.joinpath(target).exists(), target
