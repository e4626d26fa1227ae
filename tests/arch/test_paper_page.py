"""docs/paper.md is what the code says today, and what it prints agrees with the paper's rounded figures."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import pytest

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture
def make_paper(monkeypatch) -> ModuleType:
    if not DOCS.is_dir():
        pytest.skip("the documentation is not beside the tests")
    monkeypatch.syspath_prepend(str(DOCS))
    return importlib.import_module("make_paper")


def test_the_page_is_up_to_date(make_paper):
    committed = (DOCS / "paper.md").read_text(encoding="utf-8")
    assert make_paper.page() == committed, "run: python docs/make_paper.py"


def test_the_printed_sizes_are_the_computed_ones_rounded(make_paper):
    for _, name, params, flops in make_paper.TABLE8:
        one = make_paper.figures(f"table8-{name}")
        assert f"{one.params / 1e6:.0f}M" == params
        assert f"{one.darknet_flops / 1e9:.0f}B" == flops
    for _, name, flops in make_paper.TABLE9:
        assert f"{make_paper.figures(name, 416).gflops:.1f}B" == flops
