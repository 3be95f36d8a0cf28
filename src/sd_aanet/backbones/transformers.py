"""DINOv2 and DINOv3: vision transformers, and the ConvNeXts distilled from them, of the library transformers.

The library has the layers; here are the tokens that go in, the maps that come out, and the names of published weights.
It is imported when such a backbone is made.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sd_aanet.backbones.base import Grid, Output
from sd_aanet.backbones.dino import Dino
from sd_aanet.backbones.huggingface import require
from sd_aanet.errors import ConfigError
from sd_aanet.rules import SWITCH

REGISTERS = 4
"""Tokens of a DINOv3, or of a DINOv2 with registers, that stand for no place of the picture."""


class ViT(Dino):
    """A vision transformer (method: Backbone): `block0`, `block1`, ... are patches behind a block, without final norm.

    Args:
        embeddings, blocks, norm: of a model of the library.
        norm_mid: the final norm is on the blocks' outputs, too.
        options: see `Dino`.
    """

    SIZES: ClassVar = {"s": (384, 12, 6), "b": (768, 12, 12), "l": (1024, 24, 16)}
    """Channels, blocks, heads."""
    patch: ClassVar[int]
    embeddings: Any
    high = "final"

    rules: ClassVar = {**Dino.rules, "norm_mid": SWITCH}

    def __init__(
        self, embeddings: Any, blocks: nn.ModuleList, norm: nn.LayerNorm, norm_mid: bool = False, **options: Any
    ) -> None:
        depth = len(blocks)
        output = Output(norm.normalized_shape[0], self.patch)
        outputs = {f"block{block}": output for block in range(depth)}
        # At a third and two thirds of the depth.
        mid = [f"block{max(0, depth * thirds // 3 - 1)}" for thirds in (1, 2)]
        super().__init__(blocks, norm, outputs, mid, **options)
        self.norm_mid = norm_mid
        embeddings.mask_token = None  # of the pretraining's task
        self.embeddings = embeddings

    def as_map(self, name: str, x: Tensor, size: torch.Size) -> Tensor:
        h, w = (side // self.patch for side in size)
        x = x[:, -h * w :]  # (N, h w, C): class and register tokens come first
        if self.normed(name):
            x = self.norm(x)
        maps: Tensor = x.transpose(1, 2).unflatten(2, (h, w)).contiguous()  # (N, C, h, w)
        return maps

    def normed(self, name: str) -> bool:
        return self.norm_mid or super().normed(name)

    def foreign(self, names: Iterable[str]) -> list[str]:
        return super().foreign(name for name in names if not name.startswith("layers."))  # another width, if deeper

    @classmethod
    def settings(cls, size: str, blocks: int | None) -> dict[str, Any]:
        """Of the library's configuration."""
        channels, depth, heads = cls.SIZES[size]
        return {
            "hidden_size": channels,
            "num_hidden_layers": depth if blocks is None else min(blocks, depth),
            "num_attention_heads": heads,
            "patch_size": cls.patch,
            "attn_implementation": "sdpa",
        }


class DINOv2(ViT):
    """DINOv2, patches of 14 pixels (method: ViT; Oquab et al., 2024).

    Args:
        size: "s", "b" or "l".
        registers: the weights trained with register tokens (Darcet et al., 2024).
        blocks: only the first ones; None: all.
        options: of `ViT`, and so of `Dino`.
    """

    patch = 14
    grid = Grid(14, 0, 14)
    SIDE: ClassVar = 37
    """Positions a side in the weights, of pictures of 518 pixels."""
    renamed: ClassVar = {
        r"^(blocks|encoder\.layer)\.": "layers.",  # torch.hub's, the library's
        r"^layernorm\.": "norm.",
        r"^(cls_token|register_tokens)$": r"embeddings.\1",
        r"^pos_embed$": "embeddings.position_embeddings",
        r"^patch_embed\.proj\.": "embeddings.patch_embeddings.projection.",
        r"\.attn\.qkv\.": ".attention.qkv.",
        r"\.attention\.attention\.([qkv])[a-z]+\.": r".attention.\1_proj.",
        r"\.(attn\.proj|attention\.output\.dense)\.": ".attention.o_proj.",
        r"\.ls([12])\.gamma$": r".layer_scale\1.lambda1",
        r"^(embeddings\.)?mask_token$": "",
    }

    def __init__(self, size: str, registers: bool = False, blocks: int | None = None, **options: Any) -> None:
        library = require("transformers")
        kind = "Dinov2WithRegisters" if registers else "Dinov2"
        config = getattr(library, f"{kind}Config")(
            image_size=self.SIDE * self.patch, layer_norm_eps=1e-6, **self.settings(size, blocks)
        )
        model = getattr(library, f"{kind}Model")(config)
        self.label = f"DINOv2-{size.upper()}" + (" with registers" if registers else "")
        self.registers = registers
        super().__init__(model.embeddings, model.encoder.layer, model.layernorm, **options)

    def start(self, images: Tensor) -> tuple[Tensor, dict[str, Any]]:
        patches = self.embeddings.patch_embeddings(images)  # (N, h w, C)
        of_class, of_patches = self.positions(*(side // self.patch for side in images.shape[-2:]))
        tokens = [self.embeddings.cls_token + of_class]
        if self.registers:  # they have no position
            tokens.append(self.embeddings.register_tokens)
        first = torch.cat(tokens, 1).expand(images.shape[0], -1, -1)
        return torch.cat((first, patches + of_patches), 1), {}  # (N, 1 [+ 4] + h w, C)

    def positions(self, h: int, w: int) -> tuple[Tensor, Tensor]:
        """Of the class token (1, 1, C) and of h x w patches (1, h w, C).

        Resized as the published weights were meant, which the library does not: those without registers by a factor
        that is 0.1 patches too large.
        """
        of_class, x = self.embeddings.position_embeddings.split((1, self.SIDE**2), 1)
        if (h, w) != (self.SIDE, self.SIDE):
            x = x.float().transpose(1, 2).unflatten(2, (self.SIDE, self.SIDE))  # (1, C, 37, 37)
            if self.registers:
                x = F.interpolate(x, (h, w), mode="bicubic", antialias=True)
            else:
                x = F.interpolate(x, scale_factor=((h + 0.1) / self.SIDE, (w + 0.1) / self.SIDE), mode="bicubic")
            x = x.flatten(2).transpose(1, 2).to(of_class.dtype)
        return of_class, x


class DINOv3(ViT):
    """DINOv3, patches of 16 pixels, positions in the attention (method: ViT; Siméoni et al., 2025).

    Args:
        size: "s", "b" or "l".
        blocks: only the first ones; None: all.
        options: of `ViT`, and so of `Dino`.
    """

    patch = 16
    rope: Any
    grid = Grid(16, 0, 16)
    renamed: ClassVar = {
        r"^(blocks|layer|model\.layer)\.": "layers.",  # torch.hub's, the library's
        r"^cls_token$": r"embeddings.cls_token",
        r"^storage_tokens$": "embeddings.register_tokens",
        r"^patch_embed\.proj\.": "embeddings.patch_embeddings.",
        r"\.attn\.qkv\.": ".attention.qkv.",
        r"\.attn\.proj\.": ".attention.o_proj.",
        r"\.ls([12])\.gamma$": r".layer_scale\1.lambda1",
        r"\.mlp\.fc1\.": ".mlp.up_proj.",
        r"\.mlp\.fc2\.": ".mlp.down_proj.",
        # The keys' third of a published bias is masked to zero; the periods follow from the number of channels.
        r"^.*\.bias_mask$|^rope_embed\.periods$|^(embeddings\.)?mask_token$": "",
    }

    def __init__(self, size: str, blocks: int | None = None, **options: Any) -> None:
        library = require("transformers")
        settings = self.settings(size, blocks)
        config = library.DINOv3ViTConfig(
            intermediate_size=4 * settings["hidden_size"],
            num_register_tokens=REGISTERS,
            layer_norm_eps=1e-5,
            pos_embed_rescale=None,  # drawn in train mode
            **settings,
        )
        model = library.DINOv3ViTModel(config)
        self.label = f"DINOv3-{size.upper()}"
        super().__init__(model.embeddings, model.model.layer, model.norm, **options)
        self.rope = model.rope_embeddings
        periods = (1 / self.rope.inv_freq).bfloat16()  # as the published weights hold them
        self.rope.inv_freq.copy_(1 / periods.float())

    def start(self, images: Tensor) -> tuple[Tensor, dict[str, Any]]:
        return self.embeddings(images), {"position_embeddings": self.rope(images)}  # (N, 1 + 4 + h w, C)

    def own_names(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        named = super().own_names(state)
        return {name: value for name, value in named.items() if not name.endswith(".k_proj.bias")}


class ConvNeXt(Dino):
    """A ConvNeXt distilled from DINOv3 (method: Backbone): `stage1` to `stage4`, and `final`, stage 4 with its norm.

    Args:
        size: "t", "s", "b" or "l".
        blocks: only the first ones of each stage; None: all.
        options: of `Dino`.
    """

    SIZES: ClassVar = {"t": (96, 9), "s": (96, 27), "b": (128, 27), "l": (192, 27)}
    """Channels of stage 1, which double from stage to stage, and blocks of stage 3; the others have 3."""
    grid = Grid(32, 0, 32)
    high = "stage4"
    renamed: ClassVar = {
        r"^downsample_layers\.(\d)\.": r"layers.\1.downsample_layers.",
        r"^stages\.(\d)\.(\d+)\.": r"layers.\1.layers.\2.",  # torch.hub's
        r"^(model\.)?stages\.": "layers.",  # the library's
        r"\.dwconv\.": ".depthwise_conv.",
        r"^(layers.*)\.norm\.": r"\1.layer_norm.",
        r"\.pwconv([12])\.": r".pointwise_conv\1.",
        r"^layer_norm\.": "norm.",
        r"^norms\.3\..*": "",  # the final norm once more
    }

    def __init__(self, size: str, blocks: int | None = None, **options: Any) -> None:
        library = require("transformers")
        channels, third = self.SIZES[size]
        depths = [depth if blocks is None else min(blocks, depth) for depth in (3, 3, third, 3)]
        widths = [channels * 2**stage for stage in range(4)]
        model = library.DINOv3ConvNextModel(
            library.DINOv3ConvNextConfig(hidden_sizes=widths, depths=depths, layer_norm_eps=1e-6)
        )
        self.label = f"DINOv3-ConvNeXt-{size.upper()}"
        outputs = {f"stage{stage}": Output(width, 2 ** (stage + 1)) for stage, width in enumerate(widths, start=1)}
        super().__init__(model.model.stages, model.layer_norm, outputs, ("stage2", "stage3"), **options)
        self.before_high = None if self.l2 or self.debias else "stage3"
        self.shortened = blocks is not None

    def foreign(self, names: Iterable[str]) -> list[str]:
        return [] if self.shortened else super().foreign(names)

    def start(self, images: Tensor) -> tuple[Tensor, dict[str, Any]]:
        return images, {}

    def as_map(self, name: str, x: Tensor, size: torch.Size) -> Tensor:
        if self.normed(name):
            x = self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return x.contiguous()  # (N, C, h, w)

    def run_on(self, after: str, x: Tensor, wanted: Collection[str]) -> dict[str, Tensor]:
        if self.l2 or self.debias:
            raise ConfigError(f"{self.label} cannot go on from its {after}, which l2 or debias changed: leave them out")
        return self._go_on(self._place[after] + 1, x, wanted, x.shape[-2:], {})
