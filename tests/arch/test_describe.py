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
    stages, parts, nodes = reader.tables
    assert [row[0] for row in parts[1:]] == ["the whole network", *values["subnets"]]
    assert [row[1] for row in parts[1:]] == ["exact" if "stage" not in row[0] else "approximate" for row in parts[1:]]
    assert [row[0] for row in stages[1:-1]] == [stage["name"] for stage in values["stages"]]
    assert stages[-1][0] == "all"
    assert f"{values['params']:,}" in stages[-1]
    assert len(nodes) - 1 == values["nodes"]
    assert len({len(row) for row in nodes}) == 1
    assert reader.external == []


def test_a_page_that_cannot_be_written_is_one_sentence(tmp_path, capsys):
    assert main(["describe", "yolov4-tiny", "--html", str(tmp_path / "missing" / "page.html")]) == 2
    assert "No such file or directory" in capsys.readouterr().err


def test_parts_are_named_and_can_be_described(capsys):
    assert main(["describe", "yolov4-p7", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["subnets"][:2] == ["without-head-p7", "without-head-p6"]
    assert main(["describe", "yolov4-p7", "--subnet", "without-head-p7", "--size", "1280", "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert (values["params"], round(values["gflops"], 2)) == (261_728_200, 1131.43)
    assert main(["describe", "yolov4-p6", "--subnet", "without-heads-p6"]) == 2
    assert "Did you mean 'without-head-p6'?" in capsys.readouterr().err


def test_every_figure_stands_in_the_text_of_stages_and_nodes(capsys):
    assert main(["describe", "yolov4-csp", "--size", "608", "--nodes"]) == 0
    told = capsys.readouterr().out
    headings = ["out", "stride", "field", "parameters", "GFLOP", "output", "MiB", "moved", "MiB", "CIO", "FLOP/byte"]
    assert told.count(" ".join(headings)) == 0  # they are columns
    for line in (line for line in told.splitlines() if line.lstrip().startswith(("stage ", "node "))):
        assert line.split()[1:] == headings
    row = next(line for line in told.splitlines() if line.startswith("  backbone.stage5 "))
    # name, output, stride, receptive field: 725 (paper Table 7)
    assert row.split()[1:4] == ["1024x19x19", "32", "725"]


def _bench_row(precision: str = "float32", **changes: object) -> dict[str, object]:
    """A row of `scaledyolo bench --layers --json`, by its own code."""
    from scaledyolo.arch.roofline import Roof
    from scaledyolo.bench.rows import Row

    roof = Roof(flops_per_s=100e9, bytes_per_s=10e9)
    row = Row(model="yolov4-tiny", size=(416, 416), batch=2, engine="openvino", precision=precision, roof=roof)
    return {**row.to_dict(), **changes}


def test_a_roofline_from_a_file_is_in_text_json_and_page(tmp_path, capsys):
    file, page = tmp_path / "bench.json", tmp_path / "page.html"
    file.write_text(json.dumps([_bench_row(roof=None), _bench_row()]))
    words = ["describe", "yolov4-tiny", "--roofline", str(file)]
    assert main([*words, "--html", str(page), "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["roofline"]["ridge"] == 10
    for stage in values["stages"]:
        flops, moved = 2 * stage["macs"], 4 * stage["memory_access"]
        assert stage["least_ms"] == pytest.approx(max(flops / 1e8, moved / 1e7), abs=1e-4)
        assert stage["bound"] == ("memory" if moved / 10 > flops / 100 else "arithmetic")
        assert "measured_ms" not in stage
    assert values["roofline"]["least_ms"] == pytest.approx(sum(s["least_ms"] for s in values["stages"]), abs=1e-2)
    assert 'class="roofline"' in page.read_text(encoding="utf-8")
    assert main(words) == 0
    assert "ridge at 10.0 FLOP for each byte (1 thread of a cpu, float32, openvino)" in capsys.readouterr().out


def test_half_precision_moves_half_the_bytes(tmp_path, capsys):
    file = tmp_path / "bench.json"
    file.write_text(json.dumps([_bench_row("bfloat16")]))
    assert main(["describe", "yolov4-tiny", "--roofline", str(file), "--json"]) == 0
    for stage in json.loads(capsys.readouterr().out)["stages"]:
        least = max(2 * stage["macs"] / 1e8, 2 * stage["memory_access"] / 1e7)
        assert stage["least_ms"] == pytest.approx(least, abs=1e-4)


def test_layers_that_were_measured_stand_below_the_roof(tmp_path, capsys):
    file, page = tmp_path / "bench.json", tmp_path / "page.html"
    layers = [{"name": "backbone.stage3.conv1", "ms": 6.0}, {"name": "backbone.stage3.transition", "ms": 2.0}]
    layers.append({"name": "(conversions of the runtime)", "ms": 9.0})
    file.write_text(json.dumps([_bench_row(layers=layers)]))
    for size, measured in (((), 4.0), (("--size", "320"), None)):
        words = ["describe", "yolov4-tiny", "--roofline", str(file), "--json", "--html", str(page), *size]
        assert main(words) == 0
        stages = {stage["name"]: stage for stage in json.loads(capsys.readouterr().out)["stages"]}
        assert stages["backbone.stage3"].get("measured_ms") == measured  # 8 ms, for two images
        text = page.read_text(encoding="utf-8")
        assert ("Points are what was measured" in text) == ("measured ms" in text) == (measured is not None)
    assert main(["describe", "yolov4-tiny", "--roofline", str(file)]) == 0
    table = capsys.readouterr().out.splitlines()
    row = next(line for line in table if line.startswith("  backbone.stage3 "))
    assert row.split()[-2:] == ["arithmetic", "4.000"]
    assert main(["describe", "yolov4-p5", "--roofline", str(file)]) == 0
    assert "measured ms" not in capsys.readouterr().out


@pytest.mark.parametrize("text", ["", "[]", "{}", "[1]", '[{"roof": {"flops_per_s": 0}}]', '[{"roof": 3}]'])
def test_a_roofline_from_a_broken_file_is_one_sentence(text, tmp_path, capsys):
    file = tmp_path / "bench.json"
    file.write_text(text)
    assert main(["describe", "yolov4-tiny", "--roofline", str(file)]) == 2
    told = capsys.readouterr().err
    assert str(file) in told
    assert told.count("\n") == 1
    assert main(["describe", "yolov4-tiny", "--roofline", "later"]) == 2
    assert "--roofline takes 'now' or a JSON file" in capsys.readouterr().err
