"""What the README shows works: its Python runs, its commands are understood, its table is the package's."""

from __future__ import annotations

import importlib
import re
import shlex
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
from PIL import Image

from scaledyolo.cli import VERBS, main
from scaledyolo.cli.parsing import parse
from scaledyolo.cli.zoo import markdown_table

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
CONSOLE = [line for block in re.findall(r"```console\n(.*?)```", TEXT, re.DOTALL) for line in block.splitlines()]
COMMANDS = sorted(
    {line.removeprefix("$ ").split(" #")[0].strip() for line in CONSOLE if line.startswith("$ ")}
    | set(re.findall(r"`(scaledyolo [^`]+)`", TEXT))
)
SNIPPETS = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)


def test_the_readme_has_what_is_tested_here():
    assert SNIPPETS
    assert any(command.startswith("scaledyolo") for command in COMMANDS)


@pytest.mark.parametrize("command", [command for command in COMMANDS if command.startswith("scaledyolo ")])
def test_commands_are_understood(command):
    _, verb, *arguments = shlex.split(command)
    if not arguments:  # a verb that is only mentioned
        assert verb in VERBS or verb.startswith("-")
        return
    module, name, summary = VERBS[verb]
    parse(getattr(importlib.import_module(f"scaledyolo.cli.{module}"), name), verb, summary, arguments)


@pytest.mark.parametrize("target", sorted({line.split()[1] for line in COMMANDS if line.startswith("make ")}))
def test_make_targets_exist(target):
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)


@pytest.fixture
def folder(tmp_path, colours, paint, monkeypatch):
    """A working folder where the names of the README exist: the colour model and painted photographs stand in."""
    for path in (colours.path, colours.cfg, colours.weights, colours.cfg.with_suffix(".names")):
        (tmp_path / f"my{path.suffix}").write_bytes(path.read_bytes())
    (tmp_path / "yolov4-tiny.safetensors").write_bytes(colours.path.read_bytes())
    (tmp_path / "photos").mkdir()
    for name in ("street.jpg", "photos/one.png"):
        Image.fromarray(paint(64, 64, (1, 2, 0), (5, 2, 1))).save(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("number", range(len(SNIPPETS)))
def test_python_runs(folder, number):
    # The snippets build on each other, as a reader reads them.
    code = "\n".join(SNIPPETS[: number + 1])
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout


@pytest.mark.parametrize(
    "command",
    [c for c in COMMANDS if re.match("scaledyolo (detect|describe|convert) ", c) and "--download" not in c],
)
def test_commands_run_where_their_files_exist(folder, command, capsys):
    words = shlex.split(command)[1:]
    inputs = words[:2] + [after for word, after in pairwise(words) if word == "--model"]
    suffixes = (".pt", ".jpg", ".mp4", ".safetensors")
    missing = [word for word in inputs if Path(word).suffix in suffixes and not Path(word).exists()]
    if missing or "..." in words:
        pytest.skip(f"needs {missing}")
    if words[0] == "convert":
        words.append("--force")
    assert main(words) == 0, capsys.readouterr().err


def test_the_table_of_the_zoo_is_the_packages():
    table = TEXT.split("<!-- zoo -->")[1].split("<!-- /zoo -->")[0].strip().splitlines()
    assert table == markdown_table(), "run `scaledyolo zoo --markdown` and paste it between the marks"
