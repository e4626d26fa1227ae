"""The errata list of docs/paper.md: where paper, slides and published files disagree, each shown by computation."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise

from scaledyolo.arch import specimens
from scaledyolo.arch.blocks import LayerBuilder, csp_stage
from scaledyolo.arch.calculus import (
    CSP_TRANSITIONS,
    CSP_TRANSITIONS_PUBLISHED,
    DOWNSAMPLING,
    DOWNSAMPLING_PAPER,
    LAYERS,
    NECK_STAGE,
    cio,
    scaled_flops,
    tiny_layers,
)
from scaledyolo.arch.cost import cost, receptive_fields
from scaledyolo.arch.graph import Graph
from scaledyolo.arch.lower import lower
from scaledyolo.arch.scaling import csp_to_p5, csp_to_small, csp_to_x, deepened, scaled, with_stages
from scaledyolo.arch.spec import Stage
from scaledyolo.arch.subnet import without_head
from scaledyolo.arch.zoo import ANCHORS_P5, ANCHORS_P6, ANCHORS_P7, CSP_DARKNET53, find

COCO_TRAIN_IMAGES = 118_287


def errata() -> str:
    """The list as Markdown."""
    shown = [_headers(), _csp_saves(), _csp_darknet(), _tiny_k(), _pcb(), _receptive_field(), _depths(), _neck()]
    shown += [_whole_models(), _first_stage(), _tiny_3l(), _unpublished_blocks(), _epochs(), _once_for_all(), _rules()]
    stated = (" ".join(paragraph.split()) for paragraph in STATED.strip().split("\n\n"))
    lines = "\n".join(f"{number}. {text}" for number, text in enumerate((*shown, *stated), start=1))
    return f"## Errata and open points\n\n{lines}"


# What no computation decides.
STATED = """
**Table 6** names backbone depth and number of stages a second time in the row of the neck; the neck's own are
meant.

**Table 8** prints PANSP and CPANSP for PANSPP and CPANSPP: the pyramid pooling is there in all four.

**Versions.** Fine-tuned P5, P6, P7 on val2017: 51.2, 53.9, 55.0 in version 1, 51.7, 54.4, 55.3 later; test-dev P7
55.4 and 55.5. YOLOv4-CSP: 47.5 test-dev, 47.8 val, 48.7 val after the code was rewritten in 2021. Say which.

**YOLOv4-tiny** has 22.0 AP in the abstract and Table 9, 21.7 in Table 13; AP50 is 42.0 and 42.1.

**P5 with test-time augmentation** has APm 52.4 in the read-me, below 55.4 without: most likely a typing error.

**Speeds** of 30 (P6) and 15 (P7) frames a second include suppression.

**Ignore threshold** is given as 0.5 and as 0.7. The appendix with hyper-parameters is missing from the preprint.

**Anchors.** Slides that call the networks anchor-free are contradicted by the paper and every cfg.

**Pooling** 'in the middle of the first group' is: 1x1, 3x3, 1x1, pools, 1x1, 3x3 on the main path.

**Neck normalisation.** The paper is silent. The published P5-P7 checkpoints normalise over the concatenation, the
cfg files every convolution on its own; the two are not equivalent, so both forms exist here.

**Normalisation's epsilon** is 1e-3 (P5-P7), 1e-4 (the csp code) or 1e-5 (Darknet): it follows the weights.

**Decoding of yolov4-csp.** Its first cfg says scale 1.05 and linear; its code decodes sigmoid-squared, as we do.

**Anchors of yolov4-tiny.** The stride-16 head uses anchors 1, 2, 3, so anchor 0 is unused and 3 is used twice;
kept.

**P7 in Darknet.** cspx-p7-mish.cfg is an older, different network; ours is that of the PyTorch file.
"""


def _headers() -> str:
    b, k = 64, 2
    base = specimens.count_macs(specimens.layers("dark", b, k))
    wide, deep = (specimens.count_macs(specimens.layers("dark", *to)) / base for to in ((2 * b, k), (b, 2 * k)))
    return (
        "**Table 1's headers** of width and depth are exchanged. Counted on Dark layers: twice the width costs "
        f"{wide:g} times as much (γ² = {scaled_flops(width=2)}), twice the depth {deep:g} times (β = "
        f"{scaled_flops(depth=2)})."
    )


def _csp_saves() -> str:
    parts = []
    for kind, layer in LAYERS.items():
        least = next(k for k in range(1, 99) if _counted(kind, k) > 0)
        one = 100 * float(_counted(kind, 1))
        parts.append(f"{layer.name} from k = {least} (k = 1: {one:+.1f} %, break-even {layer.break_even()})")
    return (
        "**CSP saves** 23.5, 46.7 and 50.0 % only as k grows without bound. Counted on graphs it saves at all for "
        + ", ".join(parts)
        + "."
    )


def _counted(kind: str, k: int) -> Fraction:
    plain, partial = (specimens.count_macs(build(kind, 64, k)) for build in (specimens.layers, specimens.csp_layers))
    return 1 - Fraction(partial, plain)


def _csp_darknet() -> str:
    b = LayerBuilder("linear", channels=64)
    csp_stage(b, Graph.INPUT, Stage("csp", 64, 1))
    real = Fraction(specimens.count_macs(Graph("stage", tuple(b.nodes), 1, 1, channels=64)), 64**2)
    dark = LAYERS["dark"]
    return (
        f"**A CSPDarknet stage** is counted as {DOWNSAMPLING_PAPER} + {CSP_TRANSITIONS} + 5k/2 = "
        f"{DOWNSAMPLING_PAPER + CSP_TRANSITIONS} + 5k/2 against 5k, cheaper from k > "
        f"{float(dark.break_even(DOWNSAMPLING_PAPER + CSP_TRANSITIONS)):g}. The published networks have "
        f"{DOWNSAMPLING} for the strided convolution on both sides and {real - Fraction(5, 2)} + 5k/2 against 5k "
        f"behind it (k = 1, counted: {float(real):g}), cheaper from k > "
        f"{float(dark.break_even(CSP_TRANSITIONS_PUBLISHED)):g}."
    )


def _tiny_k() -> str:
    return (
        f'**k of YOLOv4-tiny**: with g = b/2, b/2 + kg = 2b gives k = {tiny_layers()}. The slides\' "g = b = 2" is '
        "g = b/2 with a lost stroke. In the file the three layers are the half of the base convolution and the two "
        "that follow."
    )


def _pcb() -> str:
    b, k = 64, 3
    rows = [f"kg = {k * g}: {float(cio('pcb', b, g, k)):g} against {cio('csp', b, g, k)}" for g in (16, 21, 22)]
    first = next(g for g in range(1, b) if cio("pcb", b, g, k) < cio("csp", b, g, k))
    return (
        f"**PCB beats CSP on CIO** when kg > b, not b/2. b = {b}, k = {k}: {'; '.join(rows)}. The first growth rate "
        f"at which it does is {first}. At the tiny setting kg = 1.5b, so the choice stands."
    )


def _receptive_field() -> str:
    fields = [_backbone_field(count) for count in (5, 6, 7)]
    gains = ", ".join(f"{after / before:.2f}" for before, after in pairwise(fields))
    return (
        "**Table 7**: one more k x k layer adds (k - 1) times its stride, not k - 1; one more stage doubles the "
        f"stride, but the field of CSPDarknet53 goes {', '.join(map(str, fields))} (times {gains})."
    )


def _backbone_field(count: int) -> int:
    graph = lower(with_stages(find("yolov4-csp"), count))
    last = [node.name for node in graph if node.name.startswith("backbone.")][-1]
    return receptive_fields(graph)[last].size


def _depths() -> str:
    ours = [stage.depth for stage in find("yolov4-p7").stages]
    csp = [stage.depth for stage in deepened(find("yolov4-csp")).stages]
    params = cost(lower(find("yolov4-p7"))).params
    return (
        f'**"Depth 2^d, d = {ours}"**: taken literally a stage would have 2^15 residuals. The numbers are the block '
        f"counts themselves; with them P7 has the published {params:,} parameters. They are twice the depths of "
        f"CSPDarknet53 less one: {csp}."
    )


def _neck() -> str:
    dark, csp = (specimens.count_macs(specimens.neck_stage(64, csp=form)) // 64**2 for form in (False, True))
    return (
        f'**"40 %" of the neck** holds for one stage, of whc²: {dark} for the reversed Dark stage, {csp} for the '
        f"CSP one, {-100 * float(NECK_STAGE.reduction):.3f} %. Whole networks save 31 to 33 %."
    )


def _whole_models() -> str:
    pairs = (("d53-fpnspp", "cd53s-cfpnspp"), ("d53-panspp", "cd53s-cpanspp"))
    parts = []
    for pair in pairs:
        plain, partial = (cost(lower(find(f"table8-{name}"))) for name in pair)
        params, macs = 1 - partial.params / plain.params, 1 - partial.macs / plain.macs
        parts.append(f"{100 * params:.1f} and {100 * macs:.1f} %")
    return (
        f'**"32 %" of Table 8** is computed from rounded entries (20/63, 45/142, 25/78, 51/160). From whole counts, '
        f"parameters and operations: FPN {parts[0]}, PAN {parts[1]}."
    )


def _first_stage() -> str:
    b = LayerBuilder("linear", channels=64)
    csp_stage(b, Graph.INPUT, CSP_DARKNET53[0])
    wide = specimens.count_macs(Graph("stage", tuple(b.nodes), 1, 1, channels=64)) / 64**2
    plain = specimens.count_macs(specimens.layers("dark", 64, 1)) / 64**2
    return (
        f"**The first stage** of CSPDarknet53 splits at full width and costs {wide:g} whb² against {plain:g} for a "
        'Dark layer: why YOLOv4-CSP turns it back into one. P5 to P7 keep CSP in all stages, as "fully CSP-ized" says.'
    )


def _tiny_3l() -> str:
    rows = []
    for name in ("yolov4-tiny-3l", "yolov4-csp-s-leaky"):
        one = cost(lower(find(name)), 320, 320)
        rows.append(f"{name} {one.params / 1e6:.2f}M, {one.gflops:.2f} GFLOP")
    return (
        "**YOLOv4-tiny (3l)** of Table 13 has no file. A later table gives it 8.7M and 5.2 GFLOP at 320: "
        f"{'; '.join(rows)}. Most likely it is the latter; both are offered."
    )


def _unpublished_blocks() -> str:
    names = ("cosa-1x3x", "cosa-2x2x", "cosa-3x1x", "tinycd53s")
    parts = ", ".join(f"{name} {cost(lower(find(name)), 416, 416).gflops:.2f}" for name in names)
    return (
        "**Table 9's names** are not defined. Read as a slices straight on and b through the transition, and the "
        f"small CSP backbone under the tiny pyramid, the printed 7.6, 6.9, 6.3 and 7.0 B come out: {parts}."
    )


def _epochs() -> str:
    epochs = 2_000_200 * 64 / COCO_TRAIN_IMAGES
    return f"**600 epochs of tiny**: the cfg's 2,000,200 batches of 64 are {epochs:,.0f} epochs of train2017."


def _once_for_all() -> str:
    whole = lower(find("yolov4-p7"))
    exact = without_head(whole, 7).graph
    saved = 1 - cost(exact).macs / cost(whole).macs
    return (
        "**Section 5.5** does not say how a stage is removed. Dropping heads and their bottom-up nodes is exact and "
        f"saves {100 * saved:.2f} % of P7's operations; dropping backbone stages as well is an approximation. Both "
        "are offered."
    )


def _rules() -> str:
    p5, csp = find("yolov4-p5"), find("yolov4-csp")
    p7 = with_stages(scaled(p5, width=Fraction(5, 4)), 7, size=1536, anchors=ANCHORS_P7)
    p6 = with_stages(p5, 6, size=1280, anchors=ANCHORS_P6)
    equal = [
        lower(p6).signature() == lower(find("yolov4-p6")).signature(),
        lower(p7).signature() == lower(find("yolov4-p7")).signature(),
        csp_to_p5(csp, ANCHORS_P5) == p5,
        csp_to_x(csp) == find("yolov4x-mish"),
        csp_to_small(csp) == find("yolov4-csp-s"),
    ]
    assert all(equal)
    return (
        "**How far rules reach.** P6 is P5 with a sixth stage and P7 is P5 at width 1.25 with seven: exactly, but "
        "for the anchors, which are data. P5 is YOLOv4-CSP at depths 2n - 1 with CSP in the first stage too. "
        "yolov4x-mish is CSP at 1.25 times width and depth, except that the stem stays 32 and a second pair follows "
        "the pooling. yolov4-csp-s is CSP at half width and depth 1/8, except that the stem stays 32, the first "
        "residual does not narrow, the pooling has no leading pair and the heads come last."
    )
