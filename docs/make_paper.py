"""Write docs/paper.md: the tables of the Scaled-YOLOv4 paper computed by this package, beside what is printed there.

Run ``python docs/make_paper.py``; ``--check`` only says whether the file is up to date.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path

from paper_errata import errata

from scaledyolo.arch import specimens
from scaledyolo.arch.calculus import (
    LAYERS,
    OSA_VARIANTS,
    SCALING_FACTORS,
    channel_table,
    cio,
    dense_flops,
    memory_access_cost,
    minimum_memory_access,
    osa_flops,
    partition_width,
    scaled_flops,
)
from scaledyolo.arch.cost import Cost, cost, receptive_fields
from scaledyolo.arch.lower import lower
from scaledyolo.arch.scaling import activation_cost, scaled, with_stages
from scaledyolo.arch.subnet import without_head, without_stage
from scaledyolo.arch.zoo import find

PAGE = Path(__file__).with_name("paper.md")

INTRODUCTION = """# The paper's tables, computed

Every figure in a column without "printed" comes out of this package's code when `python docs/make_paper.py` runs; a
test fails when this page is not what the code says. "Printed" is what Scaled-YOLOv4 (arXiv 2011.08036, version 1)
prints. Tables 10 to 12 hold accuracies and speeds only and are not here.

In Tables 1 to 3 the paper counts one multiply-accumulate as one FLOP; from Table 8 on it counts two. "Counted" columns
are convolutions of a graph built from the same blocks as the networks (`scaledyolo.arch.specimens`), "formula" columns
come from `scaledyolo.arch.calculus`.
"""


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def figures(name: str, size: int | None = None) -> Cost:
    """Cost of a network of the zoo."""
    return cost(lower(find(name)), size, size)


def table1() -> str:
    def counted(kind: str, size: int, depth: int, width: int) -> Fraction:
        base = specimens.count_macs(specimens.layers(kind, 64, 2, 4))
        return Fraction(specimens.count_macs(specimens.layers(kind, 64 * width, 2 * depth, 4 * size)), base)

    rows = [
        [
            layer.name,
            f"{_times_k(layer.cost)} whb²",
            *(f"{scaled_flops(**{what: 2})} = {counted(kind, **{**ONES, what: 2})}" for what in ONES),
        ]
        for kind, layer in LAYERS.items()
    ]
    head = ["layer", "cost of k layers", *(f"{what} x 2: formula = counted" for what in ONES)]
    return (
        "## Table 1. What scaling by size, depth and width costs\n\n"
        "Size α multiplies the cost by α², depth β by β, width γ by γ² "
        "(the printed headers of depth and width are exchanged).\n\n" + table(head, rows)
    )


ONES = {"size": 1, "depth": 1, "width": 1}


def _times_k(value: Fraction) -> str:
    return f"{value.numerator}k" + (f"/{value.denominator}" if value.denominator > 1 else "")


def table2() -> str:
    formulas = [
        [
            layer.name,
            _times_k(layer.cost),
            f"3/4 + {_times_k(layer.csp_cost)}",
            layer.break_even(),
            f"{100 * float(layer.reduction_limit):.3f} %",
            printed,
        ]
        for layer, printed in zip(LAYERS.values(), ("23.5 %", "46.7 %", "50.0 %"), strict=True)
    ]
    ks = (1, 2, 3, 4, 8)
    saved = []
    for kind, layer in LAYERS.items():
        cells: list[object] = [layer.name]
        for k in ks:
            plain, partial = (
                specimens.count_macs(build(kind, 64, k)) for build in (specimens.layers, specimens.csp_layers)
            )
            assert Fraction(partial, plain) == 1 - layer.reduction(k)
            cells.append(f"{100 * float(layer.reduction(k)):.3f} %")
        saved.append(cells)
    head = ["layer", "plain / whb²", "CSP / whb²", "saves from k above", "saves as k grows", "printed"]
    return (
        "## Table 2. What CSP saves\n\n"
        + table(head, formulas)
        + "\n\nShare saved with k layers, formula and counted graph being equal:\n\n"
        + table(["layer", *(f"k = {k}" for k in ks)], saved)
    )


def table3() -> str:
    rows = []
    for k in (3, 4):
        dense = dense_flops(64, 32, k), specimens.count_macs(specimens.dense(64, 32, k, 1))
        osa = osa_flops(64, 32, k), specimens.count_macs(specimens.one_shot_aggregation(64, 32, k, 1))
        rows.append([k, *dense, *osa])
    head = ["k", "Dense: gbk + g²k(k-1)/2", "counted", "OSA: bg + g²(k-1)", "counted"]
    return (
        "## Table 3. Dense and one-shot aggregation\n\nPer position and cell of the kernel, b = 64, g = 32.\n\n"
        + table(head, rows)
    )


NAMES = {"osa": "OSANet", "csp": "CSPOSANet", "pcb": "CSPOSANet + PCB"}


def table4() -> str:
    b, g, k = 64, 32, 3
    columns = {variant: channel_table(variant, b, g, k) for variant in OSA_VARIANTS}
    rows = [
        [layer, *(f"{columns[variant][index].inputs}→{columns[variant][index].outputs}" for variant in OSA_VARIANTS)]
        for index, layer in enumerate(("1", "2", "3", "transition"))
    ]
    ends = [f"{float(one[-1].inputs / b):g}b→{float(one[-1].outputs / b):g}b" for one in columns.values()]
    rows.append(["transition / b", *ends])
    widths = [[tau, partition_width(b, g, k, tau)] for tau in (8, 16, 32, 64)]
    return (
        "## Table 4. Channels of the tiny blocks\n\n"
        "b = 64, g = b/2, k = 3: the k for which b/2 + kg = 2b (section 3.2).\n\n"
        + table(["layer", *NAMES.values()], rows)
        + "\n\nA partition aligned to hardware that works on τ channels at once, ⌈(b + kg)/2τ⌉·τ:\n\n"
        + table(["τ", "channels"], widths)
    )


def table5() -> str:
    rows = []
    for g in (16, 21, 22, 32):
        values = [cio(variant, 64, g, 3) for variant in OSA_VARIANTS]
        best = NAMES[OSA_VARIANTS[values.index(min(values))]]
        rows.append([g, 3 * g, *(f"{float(value):,g}" for value in values), best])
    units = [f"{float(cio(variant, 64, 32, 3) / 64**2):g} b²" for variant in OSA_VARIANTS]
    rows.append(["b/2", "1.5b", *units, NAMES["pcb"]])
    formulas = ["bg + (k-1)g² + (b+kg)²/2", "kg² + (kg)²", "kg² + (b+kg)²/4"]
    head = ["g", "kg", *(f"{name}: {text}" for name, text in zip(NAMES.values(), formulas, strict=True)), "least"]
    return "## Table 5. Convolutional input/output\n\nb = 64, k = 3.\n\n" + table(head, rows)


def equation1() -> str:
    macs = 56 * 56 * 9 * 64 * 64
    rows = [[f"{a}→{b}", f"{memory_access_cost(56, 56, 3, a, b):,}"] for a, b in ((64, 64), (32, 128), (16, 256))]
    return (
        "## Equation 1. Memory access cost\n\n"
        "hw(Cin + Cout) + K·Cin·Cout for a 3x3 convolution at 56x56. All three do the same "
        f"{macs:,} multiply-accumulates; the least possible, 2√(hwB/K) + B/hw, is "
        f"{minimum_memory_access(56, 56, 3, macs):,.0f}, where Cin = Cout.\n\n"
        + table(["channels", "values moved"], rows)
    )


def tables6and7() -> str:
    parts = [[part, ", ".join(factors)] for part, factors in SCALING_FACTORS.items()]
    rows = []
    base = find("yolov4-csp")
    deeper = scaled(base, depth=Fraction(5, 4))
    for what, spec in (
        ("yolov4-csp", base),
        ("size x 1.2", scaled(base, size=768)),
        ("width x 1.25", scaled(base, width=Fraction(5, 4))),
        ("depth x 1.25", deeper),
        ("6 stages", with_stages(base, 6)),
        ("7 stages", with_stages(base, 7)),
    ):
        graph = lower(spec)
        backbone = [node for node in graph if node.name.startswith("backbone.")]
        field = receptive_fields(graph)[backbone[-1].name]
        rows.append([what, field.size, field.stride])
    return (
        "## Table 6. What can be scaled\n\n"
        + table(["part", "factors"], parts)
        + "\n\n## Table 7. What it does to the receptive field\n\n"
        "Printed: size and width nothing; one more k x k layer k - 1 (at stride s it is (k - 1)s); one more stage "
        "doubles it. The stride doubles exactly; the field gains the windows of the new stage and comes near twice.\n\n"
        + table(["backbone", "receptive field", "stride"], rows)
    )


TABLE8 = (
    ("D53-FPNSPP", "d53-fpnspp", "63M", "142B"),
    ("CD53s-CFPNSPP", "cd53s-cfpnspp", "43M", "97B"),
    ("D53-PANSPP", "d53-panspp", "78M", "160B"),
    ("CD53s-CPANSPP", "cd53s-cpanspp", "53M", "109B"),
)


def table8() -> str:
    rows, macs = [], {}
    for title, name, params, flops in TABLE8:
        one = figures(f"table8-{name}")
        macs[name] = one
        billions = one.darknet_flops / 1e9
        work = [activation_cost(lower(find(f"table8-{name}-{act}"))).transcendental / 1e9 for act in ("leaky", "mish")]
        rows.append(
            [title, f"{one.params:,}", params, f"{one.gflops:.3f}", f"{billions:.2f}", flops]
            + [f"{value:.3f}" for value in work]
        )
    saved = []
    for plain, partial in (("d53-fpnspp", "cd53s-cfpnspp"), ("d53-panspp", "cd53s-cpanspp")):
        params, flops = (1 - getattr(macs[partial], key) / getattr(macs[plain], key) for key in ("params", "macs"))
        saved.append([plain, partial, f"{100 * params:.1f} %", f"{100 * flops:.1f} %", "32 %"])
    head = ["network at 608", "parameters", "printed", "GFLOP", "as Darknet counts", "printed"]
    head += ["Leaky: G exp, log, tanh", "Mish: the same"]
    return (
        "## Table 8. CSP in backbone and neck\n\n"
        "Leaky and Mish have the same convolutions; what they differ in stands in the last two columns.\n\n"
        + table(head, rows)
        + "\n\n"
        + table(["from", "to", "parameters saved", "operations saved", "printed"], saved)
    )


TABLE9 = (
    ("tinyCD53s", "table9-tinycd53s", "7.0B"),
    ("COSA-1x3x", "table9-cosa-1x3x", "7.6B"),
    ("COSA-2x2x", "yolov4-tiny", "6.9B"),
    ("COSA-3x1x", "table9-cosa-3x1x", "6.3B"),
)


def table9() -> str:
    rows = []
    for title, name, printed in TABLE9:
        one = figures(name, 416)
        rows.append([title, f"{one.params:,}", f"{one.gflops:.3f}", printed, f"{one.cio:,}", f"{one.memory_access:,}"])
    head = ["backbone", "parameters", "GFLOP at 416", "printed", "CIO", "values moved"]
    return (
        "## Table 9. Partition of the tiny blocks\n\n"
        "Only COSA-2x2x (yolov4-tiny) was published as a file; the others are reconstructed.\n\n" + table(head, rows)
    )


def tables13and14() -> str:
    rows = []
    for title, name, size, printed in (
        ("YOLOv4-tiny", "yolov4-tiny", 416, "21.7 AP"),
        ("YOLOv4-tiny (3l), as Darknet's file", "yolov4-tiny-3l", 320, "28.7 AP, 252 fps"),
        ("YOLOv4-tiny (3l), as yolov4-csp-s", "yolov4-csp-s-leaky", 320, "28.7 AP, 252 fps"),
        ("YOLOv3-tiny", "yolov3-tiny", 416, ""),
    ):
        one = figures(name, size)
        row = [title, size, f"{one.params:,}", f"{one.gflops:.3f}", f"{one.boxes:,}"]
        rows.append([*row, f"{4 * one.memory_access / 1e6:.1f}", f"{one.intensity:.2f}", printed])
    head = ["network", "size", "parameters", "GFLOP", "boxes", "MB moved", "FLOP per byte", "printed"]
    one = figures("yolov4-tiny", 416)
    devices = (("AGX", 120, 290), ("NX", 75, 118), ("TX2", 42, 100), ("Nano", 16, 39))
    speeds = [
        [device, *(f"{fps} fps = {fps * one.gflops:,.0f} GFLOP/s" for fps in pair), f"{pair[1] / pair[0]:.2f}"]
        for device, *pair in devices
    ]
    return (
        "## Table 13. Tiny networks\n\n"
        "Darknet's file named tiny-3l is not the network of the table: at 320 it has 6.3M parameters and 4.9 GFLOP "
        "where a later paper of the same authors says 8.7M and 5.2; yolov4-csp-s comes near. FLOP per byte takes "
        "every node for itself in float32.\n\n"
        + table(head, rows)
        + "\n\n## Table 14. YOLOv4-tiny on embedded devices\n\n"
        "The operations per second that the printed speeds mean:\n\n"
        + table(["device", "plain", "TensorRT, FP16", "gain"], speeds)
    )


def figure5() -> str:
    whole = lower(find("yolov4-p7"))
    rows = []
    for title, graph in (
        ("P7", whole),
        ("without head P7", without_head(whole, 7).graph),
        ("without heads P7, P6", without_head(whole, 6).graph),
        ("without stage P7", without_stage(whole, 7).graph),
        ("without stages P7, P6", without_stage(whole, 6).graph),
    ):
        sizes = [cost(graph, size, size) for size in (1536, 1280, 896, 640)]
        rows.append([title, f"{sizes[0].params:,}", *(f"{one.gflops:.2f}" for one in sizes), f"{sizes[0].boxes:,}"])
    head = ["network", "parameters", *(f"GFLOP at {size}" for size in (1536, 1280, 896, 640)), "boxes at 1536"]
    return (
        "## Figure 5. The networks inside P7\n\n"
        "Without heads: the kept outputs are bit-identical. Without stages: an approximation, the top-down path "
        "starts lower. The paper does not say which of the two its figure used.\n\n" + table(head, rows)
    )


def page() -> str:
    """The whole page as Markdown."""
    parts = [INTRODUCTION.strip(), table1(), table2(), table3(), table4(), table5(), equation1(), tables6and7()]
    parts += [table8(), table9(), tables13and14(), figure5(), errata()]
    return "\n\n".join(parts) + "\n"


def main() -> int:
    """Write the page, or with ``--check`` compare it."""
    text = page()
    if sys.argv[1:] == ["--check"]:
        return int(PAGE.read_text(encoding="utf-8") != text)
    PAGE.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
