"""Suppression in one kernel does what suppression by rank does; in Triton's interpreter, where Triton is installed."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

SCRIPT = """
import torch
from scaledyolo.engines.greedy_triton import greedy_in_one_kernel
from scaledyolo.postprocess import NMS
from scaledyolo.postprocess.fixed import greedy_by_rank

random = torch.Generator().manual_seed(0)
for batch, slots, iou, agnostic in ((3, 20, 0.4, False), (2, 50, 0.2, True), (1, 16, 0.4, False), (2, 1, 0.0, False)):
    corners, sides = (40 * torch.rand(batch, slots, 2, generator=random) for _ in range(2))
    boxes_xyxy = torch.cat((corners, corners + sides), dim=2)
    scores = torch.rand(batch, slots, generator=random).sort(1, descending=True).values
    scores[0, 3 * slots // 4 :] = 0
    boxes_xyxy[0, 3 * slots // 4 :] = float("nan")
    class_ids = torch.randint(0, 3, (batch, slots), generator=random)
    nms = NMS(iou=iou, class_agnostic=agnostic)
    with torch.inference_mode():
        found = greedy_in_one_kernel(boxes_xyxy, scores, class_ids, nms)
    expected = greedy_by_rank(boxes_xyxy, scores, class_ids, nms)
    assert torch.equal(found, expected), (found, expected)
    print(int(expected.sum()), "of", batch * slots)
"""


def test_the_kernel_keeps_what_is_kept_by_rank() -> None:
    pytest.importorskip("triton")
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    kept = int(done.stdout.split()[0])
    assert 10 < kept < 60  # of sixty: some were suppressed


COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from scaledyolo.engines.greedy_triton import MAX_SLOTS, _suppress

kinds = dict(boxes="*fp32", scores="*fp32", class_ids="*i32", kept="*i32", iou="fp32", tiny="fp32", slots="i32")
constants = {"side": MAX_SLOTS, "agnostic": False}
source = ASTSource(fn=_suppress, signature=kinds | dict.fromkeys(constants, "constexpr"), constexprs=constants)
options = {"num_warps": 4, "enable_fp_fusion": False}
assembly = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options).asm["ptx"]
assert "div.rn.f32" in assembly and "fma.rn.f32" not in assembly  # rounded as torch rounds
"""


def test_the_kernel_compiles_for_a_gpu_that_is_not_here() -> None:
    """Triton's compiler refuses what its interpreter does not mind."""
    pytest.importorskip("triton")
    done = subprocess.run([sys.executable, "-c", COMPILE], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
