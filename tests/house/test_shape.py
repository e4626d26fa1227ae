"""The shape of the code, tested like behaviour: sizes, layers, the facade, and what an import costs."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import scaledyolo
from scaledyolo import errors
from scaledyolo.cli import VERBS

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "scaledyolo"
FILES = sorted(SOURCE.rglob("*.py"))

MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 70
# What may be longer, and why.
LONG_FUNCTIONS = {"detector.py:Detector.__init__": "one documented option of the product a line"}


def functions_in(path: Path) -> Iterator[tuple[str, int]]:
    """Qualified name and number of lines of every function of a file."""

    def walk(node: ast.AST, prefix: str) -> Iterator[tuple[str, int]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)):
                yield f"{prefix}{child.name}", (child.end_lineno or child.lineno) - child.lineno + 1
            named = isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef))
            yield from walk(child, f"{prefix}{child.name}." if named else prefix)

    yield from walk(ast.parse(path.read_text(encoding="utf-8")), f"{path.relative_to(SOURCE).as_posix()}:")


def imported_by(code: str) -> set[str]:
    """Top-level packages that a fresh interpreter holds after running ``code``."""
    script = f"{code}\nimport sys; print('\\n'.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    return {line.split(".")[0] for line in done.stdout.splitlines()}


def test_no_file_is_longer_than_a_head_can_hold():
    lengths = {path.relative_to(SOURCE).as_posix(): len(path.read_text("utf-8").splitlines()) for path in FILES}
    too_long = {name: lines for name, lines in lengths.items() if lines > MAX_FILE_LINES}
    assert not too_long


def test_no_function_is_longer_than_a_screen():
    too_long = {name: lines for path in FILES for name, lines in functions_in(path) if lines > MAX_FUNCTION_LINES}
    assert too_long.keys() <= LONG_FUNCTIONS.keys(), too_long


def test_the_tree_of_errors_is_drawn_whole():
    drawn: dict[str, str] = {}
    above: dict[int, str] = {}
    for line in (errors.__doc__ or "").splitlines():
        if found := re.match(r"([│ ]*[├└]── )?(\w+Error)\b", line):
            depth = len(found[1] or "") // 4
            above[depth] = found[2]
            drawn[found[2]] = above.get(depth - 1, "Exception")
    classes = {name: vars(errors)[name].__base__.__name__ for name in vars(errors) if name.endswith("Error")}
    assert drawn == classes


def test_every_signature_is_annotated():
    bare = []
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.FunctionDef):
                arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
                complete = all(a.annotation or a.arg in ("self", "cls") for a in arguments)
                if not complete or node.returns is None:
                    bare.append(f"{path.relative_to(SOURCE)}:{node.lineno} {node.name}")
    assert not bare


def test_there_is_no_drawer_for_leftovers():
    assert not [path for path in FILES if path.stem in ("utils", "util", "helpers", "misc", "common")]


def test_the_facade_is_what_exists_and_nothing_else():
    assert sorted(scaledyolo.__all__) == sorted(scaledyolo._HOMES) == sorted(dir(scaledyolo))
    for name in scaledyolo.__all__:
        assert getattr(scaledyolo, name).__class__ is not type(None)
    with pytest.raises(AttributeError, match="no attribute 'Detectr'"):
        _ = scaledyolo.Detectr  # type: ignore[attr-defined]


def test_type_checkers_see_the_facade_too():
    tree = ast.parse((SOURCE / "__init__.py").read_text("utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    seen = {alias.name for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert seen == set(scaledyolo.__all__)


HEAVY = {"numpy", "torch", "cv2", "supervision", "onnx", "onnxruntime", "openvino", "scipy", "matplotlib", "PIL"}


@pytest.mark.parametrize(
    ("code", "forbidden"),
    [
        ("import scaledyolo", HEAVY | {"tyro", "rich", "yaml"}),
        ("from scaledyolo.cli import main; main(['--help'])", HEAVY | {"tyro", "rich", "yaml"}),
        ("import scaledyolo.arch.zoo, scaledyolo.arch.lower, scaledyolo.arch.cost, scaledyolo.arch.scaling", HEAVY),
        ("from scaledyolo.cli import main; main(['describe', 'yolov4-p7', '--json'])", HEAVY),
        ("from scaledyolo.cli import main; main(['zoo'])", HEAVY),
        ("import scaledyolo.checkpoint, scaledyolo.model", {"torch", "cv2", "supervision", "onnx", "onnxruntime"}),
        ("import scaledyolo.postprocess, scaledyolo.boxes", {"torch", "cv2", "supervision"}),
        ("from scaledyolo import Detector; import scaledyolo.engines.onnxruntime", {"torch", "matplotlib"}),
    ],
)
def test_nothing_heavy_is_imported_before_it_is_used(code, forbidden):
    assert not imported_by(code) & forbidden


def test_import_layers_hold():
    program = shutil.which("lint-imports", path=str(Path(sys.executable).parent))
    if program is None:
        pytest.skip("import-linter is not installed")
    done = subprocess.run([program, "--no-cache"], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout[-3000:]


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_itself(verb, capsys):
    from scaledyolo.cli import main

    with pytest.raises(SystemExit) as ended:
        main([verb, "--help"])
    assert ended.value.code in (0, None)
    told = capsys.readouterr()
    assert f"scaledyolo {verb}" in told.out
    assert told.err == ""
    assert "STR" not in told.out.split("options")[0], "a positional argument without a name of its own"


def test_the_overview_names_every_verb_once(capsys):
    from scaledyolo.cli import main

    assert main(["--help"]) == 0
    told = capsys.readouterr().out
    for verb in VERBS:
        assert told.count(f"\n  {verb} ") == 1
