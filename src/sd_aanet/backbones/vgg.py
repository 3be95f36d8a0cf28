"""VGG-16 with batch norm, in torchvision's layout of names."""

from __future__ import annotations

from collections.abc import Collection

from torch import Tensor, nn

from sd_aanet.backbones.base import Backbone, Grid, Output, stage_of


class VGG(Backbone):
    """VGG-16 with batch norm, without its last pool: stage 2 at stride 8, stages 3 and 4 at stride 16.

    `features` holds torchvision's layers in torchvision's order, so its weights load unchanged.
    """

    STAGES = (0, 7, 14, 24, 34, 43)
    """Where each stage begins in `features`; stages 0 to 3 end with their pool."""
    label = "VGG-16"
    mid = ("stage3", "stage2")
    high = "stage4"
    before_high = "stage3"
    grid = Grid(8, 1, 17)

    def __init__(self) -> None:
        super().__init__()
        self.outputs = {"stage2": Output(256, 8), "stage3": Output(512, 16), "stage4": Output(512, 16)}
        self.features = nn.Sequential()
        inputs = 3
        for index, (width, depth) in enumerate(((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))):
            for _ in range(depth):
                self.features += nn.Sequential(
                    nn.Conv2d(inputs, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(inplace=True)
                )
                inputs = width
            if index < 4:
                self.features.append(nn.MaxPool2d(2, 2, ceil_mode=True))
        self.draw().freeze()

    def run(self, images: Tensor, wanted: Collection[str]) -> dict[str, Tensor]:
        return self._stages(0, images, wanted)

    def run_on(self, after: str, x: Tensor, wanted: Collection[str]) -> dict[str, Tensor]:
        return self._stages(stage_of(after) + 1, x, wanted)

    def keep(self, wanted: Collection[str]) -> None:
        last = max(map(stage_of, wanted), default=0)
        del self.features[self.STAGES[last + 1] :]
        self.outputs = {name: output for name, output in self.outputs.items() if stage_of(name) <= last}

    def _stages(self, first: int, x: Tensor, wanted: Collection[str]) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for stage in range(first, 1 + max(map(stage_of, wanted), default=0)):
            x = self.features[self.STAGES[stage] : self.STAGES[stage + 1]](x)  # (N, C, h, w)
            if f"stage{stage}" in wanted:
                # The next stage begins with a convolution: nothing in place touches what is handed out.
                found[f"stage{stage}"] = x
        return found
