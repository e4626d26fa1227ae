"""Optimiser, schedule and moving average against the printed goldens of the specification."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from scaledyolo.arch.lower import lower
from scaledyolo.arch.ops import Conv
from scaledyolo.arch.zoo import ZOO
from scaledyolo.errors import UsageError
from scaledyolo.net.initialise import initialise
from scaledyolo.net.network import Network
from scaledyolo.train.optim import (
    accumulation,
    apply_settings,
    cosine_factor,
    decay_factor,
    ema_decay,
    ema_updates,
    linear_factor,
    make_ema,
    make_optimizer,
    parameter_groups,
    scaled_weight_decay,
    step_settings,
    warmup_steps,
)
from scaledyolo.train.recipe import RECIPES, Ema, Optimiser, Recipe, Schedule

COCO_BATCHES = 1849  # batches of 64 in the 118,287 images of train2017


@pytest.mark.parametrize(
    ("batch", "accumulate", "decay"),
    [
        (8, 8, 5),
        (16, 4, 5),
        (24, 3, 5.625),
        (32, 2, 5),
        (40, 2, 6.25),
        (48, 1, 3.75),
        (64, 1, 5),
        (96, 1, 7.5),
        (128, 1, 10),
    ],
)
def test_accumulation_and_weight_decay_golden(batch: int, accumulate: int, decay: float) -> None:
    """spec/training.md 3.1."""
    assert accumulation(batch) == accumulate
    assert scaled_weight_decay(5e-4, batch) == pytest.approx(decay * 1e-4, rel=1e-12)


COSINE = {  # spec/training.md 3.2, 300 epochs
    0.2: (1, 0.999978, 0.882843, 0.600000, 0.317157, 0.200088, 0.200022),
    0.1: (1, 0.999975, 0.868198, 0.550000, 0.231802, 0.100099, 0.100025),
    0.01: (1, 0.999973, 0.855018, 0.505000, 0.154982, 0.010109, 0.010027),
}


@pytest.mark.parametrize("final_factor", COSINE)
def test_cosine_golden(final_factor: float) -> None:
    for epoch, factor in zip((0, 1, 75, 150, 225, 298, 299), COSINE[final_factor], strict=True):
        assert cosine_factor(epoch, 300, final_factor) == pytest.approx(factor, abs=5.1e-7)


def test_second_stage_golden() -> None:
    """spec/training.md 3.7: the cosine of 450 epochs after that of 300."""
    for epoch, factor in ((299, 0.402423), (300, 0.4), (375, 0.253590), (449, 0.200010)):
        assert cosine_factor(epoch, 450, 0.2) == pytest.approx(factor, abs=5.1e-7)
    finetune = RECIPES["large-finetune"]
    start = step_settings(finetune, finetune.schedule.first_epoch * COCO_BATCHES, COCO_BATCHES)
    assert start == pytest.approx((0.004, 0.004, 0.937, 1))  # no second warm-up


@pytest.mark.parametrize(
    ("step", "bias_rate", "rate", "momentum_09", "momentum_08", "accumulate_16"),
    [
        (0, 0.1, 0, 0.9, 0.8, 1),
        (1000, 0.083775, 0.00180278, 0.906670, 0.824698, 2),
        (2773, 0.055008, 0.00499899, 0.918497, 0.868488, 2),
        (5547, 0.009998, 0.009998, 0.937, 0.937, 4),
    ],
)
def test_warmup_golden(
    step: int, bias_rate: float, rate: float, momentum_09: float, momentum_08: float, accumulate_16: int
) -> None:
    """spec/training.md 3.3: 300 epochs, final factor 0.2."""
    recipe = Recipe("golden", schedule=Schedule(warmup_momentum=0.8))
    found = step_settings(recipe, step, COCO_BATCHES)
    assert warmup_steps(recipe.schedule, COCO_BATCHES) == 5547
    assert found.bias_learning_rate == pytest.approx(bias_rate, abs=5.1e-7)
    assert found.learning_rate == pytest.approx(rate, abs=5.1e-7 if step == 5547 else 5.1e-9)
    assert found.momentum == pytest.approx(momentum_08, abs=5.1e-7)
    assert step_settings(recipe.replace("schedule.warmup_momentum=0.9"), step, COCO_BATCHES).momentum == pytest.approx(
        momentum_09, abs=5.1e-7
    )
    assert step_settings(recipe.replace("batch=16"), step, COCO_BATCHES).accumulate == accumulate_16


def test_warmup_takes_at_least_a_thousand_batches() -> None:
    assert warmup_steps(Schedule(), batches_per_epoch=10) == 1000
    assert warmup_steps(RECIPES["custom"].schedule, batches_per_epoch=10) == 100


def test_schedule_is_continuous_at_the_end_of_warmup_and_ends_at_the_final_factor() -> None:
    recipe = Recipe("any", batch=16)
    length = warmup_steps(recipe.schedule, 500)
    before, after = (step_settings(recipe, step, 500) for step in (length - 1, length))
    assert before.learning_rate == pytest.approx(after.learning_rate, rel=2e-3)
    assert before.bias_learning_rate == pytest.approx(after.bias_learning_rate, rel=2e-2)
    assert before.momentum == pytest.approx(after.momentum, rel=2e-3)
    assert linear_factor(300, 300, 0.2) == pytest.approx(cosine_factor(300, 300, 0.2)) == pytest.approx(0.2)
    assert linear_factor(0, 300, 0.2) == 1


def test_darknet_schedule_golden() -> None:
    """spec/training.md 3.9: burn-in of 1000 batches with power 4, steps at 80 % and 90 %."""
    schedule = Schedule(epochs=100, decay="steps", warmup_power=4.0, warmup_epochs=0.0, warmup_bias_rate=0.0)
    recipe = Recipe("darknet", optimiser=Optimiser(learning_rate=0.00261, momentum=0.9), schedule=schedule)
    for step, rate in ((100, 2.61e-7), (500, 1.63e-4), (1000, 0.00261)):
        found = step_settings(recipe, step, batches_per_epoch=2000)
        assert found.learning_rate == pytest.approx(rate, rel=2e-3)
        assert found.bias_learning_rate == pytest.approx(rate, rel=2e-3)
    factors = [decay_factor(schedule, epoch) for epoch in (0, 79, 80, 89, 90, 99)]
    assert factors == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])


@pytest.mark.parametrize(
    ("updates", "decay"),
    [(1, 4.998e-4), (100, 0.048766), (1000, 0.393430), (2000, 0.632057), (5547, 0.937463), (10000, 0.993163)],
)
def test_ema_decay_golden(updates: int, decay: float) -> None:
    """spec/training.md 3.4."""
    assert ema_decay(updates, Ema()) == pytest.approx(decay, abs=5.1e-7)


class _Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.head = nn.Conv2d(4, 2, 1)
        self.implicit = nn.Parameter(torch.zeros(4))
        self.weights = nn.Parameter(torch.ones(2, 1))  # of a weighted addition: no convolution

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.conv(images)) + self.implicit.view(1, 4, 1, 1)) * self.weights.sum()


def test_parameter_groups() -> None:
    groups = parameter_groups(_Net())
    assert set(groups.convolution) == {"conv.weight", "head.weight"}
    assert set(groups.bias) == {"norm.bias", "head.bias"}
    assert set(groups.other) == {"norm.weight", "implicit", "weights"}


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
def test_optimizer_groups_and_settings(name: str) -> None:
    net = _Net()
    net.conv.weight.requires_grad_(False)  # a frozen stage
    recipe = Recipe("any", batch=24).replace(f"optimiser.name={name}")
    optimizer = make_optimizer(net, recipe)
    by_name = {group["name"]: group for group in optimizer.param_groups}
    assert {key: group["weight_decay"] for key, group in by_name.items()} == pytest.approx(
        {"convolution": 5.625e-4, "bias": 0.0, "other": 0.0}
    )
    assert [id(p) for p in by_name["convolution"]["params"]] == [id(net.head.weight)]
    settings = step_settings(recipe, 10, 100)
    apply_settings(optimizer, settings)
    assert by_name["bias"]["lr"] == settings.bias_learning_rate > by_name["other"]["lr"] == settings.learning_rate
    for group in by_name.values():
        assert (group["momentum"] if name == "sgd" else group["betas"][0]) == settings.momentum
    net(torch.randn(2, 3, 8, 8)).sum().backward()
    optimizer.step()


def test_nothing_to_train_is_an_error() -> None:
    with pytest.raises(UsageError, match="every parameter is frozen"):
        make_optimizer(_Net().requires_grad_(False), RECIPES["csp"])


def test_sgd_step_is_nesterov_momentum_with_decay_on_convolutions_only() -> None:
    """Two steps by hand in float64: v = m v + g, w -= lr (g + m v)."""
    net = _Net().double()
    recipe = Recipe("any")
    optimizer = make_optimizer(net, recipe)
    settings = step_settings(recipe, 3000, 1000)._replace(bias_learning_rate=0.02)
    apply_settings(optimizer, settings)
    expected = {name: parameter.detach().clone() for name, parameter in net.named_parameters()}
    velocity = {name: torch.zeros_like(value) for name, value in expected.items()}
    generator = torch.Generator().manual_seed(0)
    for _ in range(2):
        for name, parameter in net.named_parameters():
            gradient = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.grad = gradient.clone()
            decayed = gradient + (5e-4 * expected[name] if name in ("conv.weight", "head.weight") else 0)
            velocity[name] = 0.937 * velocity[name] + decayed
            step = 0.02 if name.endswith("bias") else settings.learning_rate
            expected[name] = expected[name] - step * (decayed + 0.937 * velocity[name])
        optimizer.step()
    for name, parameter in net.named_parameters():
        torch.testing.assert_close(parameter.detach(), expected[name])


def test_ema_equals_the_recurrence_on_parameters_and_running_statistics() -> None:
    torch.manual_seed(0)
    net = _Net()
    config = Ema(decay=0.9, ramp_updates=3.0)
    ema = make_ema(net, config)
    assert ema_updates(ema) == 0
    assert not ema.training
    assert not any(parameter.requires_grad for parameter in ema.parameters())
    expected = {key: value.double() for key, value in copy.deepcopy(net.state_dict()).items()}
    for update in range(1, 6):
        net(torch.randn(2, 3, 8, 8))  # moves the running statistics
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.add_(torch.randn_like(parameter))
        ema.update_parameters(net)
        decay = 0.9 * (1 - math.exp(-update / 3))
        for key, value in net.state_dict().items():
            expected[key] = decay * expected[key] + (1 - decay) * value.double()
    assert ema_updates(ema) == 5
    for key, value in ema.module.state_dict().items():
        if value.is_floating_point():
            torch.testing.assert_close(value.double(), expected[key], rtol=1e-5, atol=1e-6)
    assert ema.module.norm.num_batches_tracked == net.norm.num_batches_tracked == 5


def test_ema_count_travels_in_the_state_dict() -> None:
    torch.manual_seed(0)
    net = _Net()
    ema = make_ema(net, Ema())
    for _ in range(3):
        ema.update_parameters(net)
    other = make_ema(_Net(), Ema())
    other.load_state_dict(ema.state_dict())
    assert ema_updates(other) == 3
    with torch.no_grad():
        net.head.weight.add_(1)
    ema.update_parameters(net)
    other.update_parameters(net)
    for a, b in zip(ema.state_dict().values(), other.state_dict().values(), strict=True):
        assert torch.equal(a, b)


@pytest.fixture(scope="module")
def tiny_network() -> Network:
    network = Network(lower(ZOO["yolov4-tiny"]))
    initialise(network, torch.Generator().manual_seed(0))
    return network


def test_groups_of_a_real_network(tiny_network: Network) -> None:
    """Of 21 convolutions, 19 are normalised and 2 predict; every parameter stands in one group."""
    groups = parameter_groups(tiny_network)
    convolutions = [node for node in tiny_network.graph if isinstance(node.op, Conv)]
    normalised = [node for node in convolutions if node.op.norm]
    assert set(groups.convolution) == {f"{node.name}.weight" for node in convolutions}
    assert set(groups.other) == {f"{node.name}.norm.weight" for node in normalised}
    assert len(groups.bias) == len(convolutions) == 21
    count = sum(parameter.numel() for group in groups for parameter in group.values())
    assert count == sum(parameter.numel() for parameter in tiny_network.parameters()) == 6_056_606


def test_ema_of_a_real_network_runs_on_its_own_weights(tiny_network: Network) -> None:
    """The copy does not share modules with the original: training the one leaves the other's result alone."""
    network = copy.deepcopy(tiny_network).eval()
    images = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    ema = make_ema(network, Ema())
    with torch.no_grad():
        before = network(images)
        for parameter in network.parameters():
            parameter.mul_(1.5)
        changed, kept = network(images), ema.module(images)
    for a, b, c in zip(before, kept, changed, strict=True):
        assert torch.equal(a, b)
        assert not torch.equal(a, c)
