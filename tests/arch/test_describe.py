"""`scaledyolo describe`: text, JSON and page say the same."""

from __future__ import annotations

import json
from html.parser import HTMLParser

import pytest

from scaledyolo.cli import main

KEYS = ["name", "height", "width", "num_classes", "params", "params_folded", "macs", "gflops", "boxes"]


def test_json_has_totals_stages_and_on_request_layers(capsys):
    assert main(["describe", "yolov4-csp", "--json", "--size", "512"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert values.keys() >= set(KEYS)
    assert (values["params"], values["macs"]) == (52_921_437, 38_476_709_888)
    assert "layers" not in values
    assert sum(stage["params"] for stage in values["stages"]) == values["params"]
    assert values["stages"][-1]["receptive_field"] == max(values["receptive_fields"])

    assert main(["describe", "yolov4-csp", "--json", "--layers"]) == 0
    layers = json.loads(capsys.readouterr().out)["layers"]
    last = [layer for layer in layers if layer["name"].startswith("backbone.")][-1]
    assert (last["receptive_field"], last["stride"]) == (725, 32)
    assert {"memory_access", "cio", "intensity"} <= last.keys()


def test_text_lists_stages_and_on_request_nodes(capsys):
    assert main(["describe", "yolov4-tiny"]) == 0
    short = capsys.readouterr().out
    assert "6,056,606" in short
    assert "backbone.stage3" in short
    assert "backbone.stage3.conv1" not in short
    assert main(["describe", "yolov4-tiny", "--layers"]) == 0
    assert "backbone.stage3.conv1" in capsys.readouterr().out


class _Tables(HTMLParser):
    """The rows of every table of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.tables: list[list[list[str]]] = []
        self.external: list[str] = []

    def handle_starttag(self, tag, attributes):
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
        self.external += [value for key, value in attributes if key in ("src", "href")]

    def handle_data(self, data):
        if self.tables and self.tables[-1] and self.tables[-1][-1]:
            self.tables[-1][-1][-1] += data


@pytest.mark.parametrize("name", ["yolov4-tiny", "yolov4-p5"])
def test_the_page_holds_every_stage_and_node_and_loads_nothing(name, tmp_path, capsys):
    page = tmp_path / "page.html"
    assert main(["describe", name, "--html", str(page), "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    reader = _Tables()
    reader.feed(page.read_text(encoding="utf-8"))
    stages, nodes = reader.tables
    assert [row[0] for row in stages[1:-1]] == [stage["name"] for stage in values["stages"]]
    assert stages[-1][0] == "all"
    assert f"{values['params']:,}" in stages[-1]
    assert len(nodes) - 1 == values["nodes"]
    assert len({len(row) for row in nodes}) == 1
    assert reader.external == []


def test_a_page_that_cannot_be_written_is_one_sentence(tmp_path, capsys):
    assert main(["describe", "yolov4-tiny", "--html", str(tmp_path / "missing" / "page.html")]) == 2
    assert "No such file or directory" in capsys.readouterr().err
