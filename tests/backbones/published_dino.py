"""Random weights in the names and shapes of the published ones, and what DINO computes from them, written once more."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

VITS = {"s": (384, 12, 6), "b": (768, 12, 12), "l": (1024, 24, 16)}
CONVNEXTS = {
    "t": ((3, 3, 9, 3), (96, 192, 384, 768)),
    "s": ((3, 3, 27, 3), (96, 192, 384, 768)),
    "b": ((3, 3, 27, 3), (128, 256, 512, 1024)),
    "l": ((3, 3, 27, 3), (192, 384, 768, 1536)),
}


def some(*shape: int, around: float = 0.0, by: float = 0.05) -> Tensor:
    return around + by * torch.randn(*shape)


def norm(name: str, channels: int) -> dict[str, Tensor]:
    return {f"{name}.weight": some(channels, around=1, by=0.2), f"{name}.bias": some(channels)}


def linear(name: str, outputs: int, *inputs: int) -> dict[str, Tensor]:
    return {f"{name}.weight": some(outputs, *inputs), f"{name}.bias": some(outputs)}


def hub_vit(version: int, size: str, registers: bool = False, blocks: int | None = None) -> dict[str, Tensor]:
    """A state dict of DINOv2 or DINOv3 as torch.hub has it."""
    c, depth, heads = VITS[size]
    state = {"cls_token": some(1, 1, c), "mask_token": some(1, c)}
    if version == 2:
        state["pos_embed"] = some(1, 1370, c, by=0.5)
    else:
        state["rope_embed.periods"] = periods(c // heads)
    if registers:
        state["register_tokens" if version == 2 else "storage_tokens"] = some(1, 4, c)
    state |= linear("patch_embed.proj", c, 3, *((14, 14) if version == 2 else (16, 16)))
    for block in range(depth if blocks is None else blocks):
        at = f"blocks.{block}"
        state |= norm(f"{at}.norm1", c) | linear(f"{at}.attn.qkv", 3 * c, c) | linear(f"{at}.attn.proj", c, c)
        state |= {f"{at}.ls1.gamma": some(c, by=0.5), f"{at}.ls2.gamma": some(c, by=0.5)}
        state |= norm(f"{at}.norm2", c) | linear(f"{at}.mlp.fc1", 4 * c, c) | linear(f"{at}.mlp.fc2", c, 4 * c)
        if version == 3:
            mask = torch.ones(3 * c)
            mask[c : 2 * c] = 0
            state[f"{at}.attn.qkv.bias_mask"] = mask
    return state | norm("norm", c)


def hub_convnext(size: str, blocks: int | None = None) -> dict[str, Tensor]:
    depths, widths = CONVNEXTS[size]
    state: dict[str, Tensor] = {}
    for stage, (depth, c) in enumerate(zip(depths, widths, strict=True)):
        if stage == 0:
            state |= linear("downsample_layers.0.0", c, 3, 4, 4) | norm("downsample_layers.0.1", c)
        else:
            before = widths[stage - 1]
            state |= norm(f"downsample_layers.{stage}.0", before)
            state |= linear(f"downsample_layers.{stage}.1", c, before, 2, 2)
        for block in range(depth if blocks is None else min(blocks, depth)):
            at = f"stages.{stage}.{block}"
            state |= linear(f"{at}.dwconv", c, 1, 7, 7) | norm(f"{at}.norm", c)
            state |= linear(f"{at}.pwconv1", 4 * c, c) | linear(f"{at}.pwconv2", c, 4 * c)
            state[f"{at}.gamma"] = some(c, by=0.5)
    last = norm("norm", widths[-1])
    return state | last | {name.replace("norm", "norms.3"): value for name, value in last.items()}


def library_vit(hub: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same weights as the library's published files name them."""
    three = "rope_embed.periods" in hub
    patches = "embeddings.patch_embeddings" + ("" if three else ".projection")
    state = {"embeddings.cls_token": hub["cls_token"]}
    state["embeddings.mask_token"] = hub["mask_token"][None] if three else hub["mask_token"]
    for name in ("register_tokens", "storage_tokens"):
        if name in hub:
            state["embeddings.register_tokens"] = hub[name]
    if not three:
        state["embeddings.position_embeddings"] = hub["pos_embed"]
    for part in ("weight", "bias"):
        state[f"{patches}.{part}"] = hub[f"patch_embed.proj.{part}"]
        state[f"{'norm' if three else 'layernorm'}.{part}"] = hub[f"norm.{part}"]
    for block in range(sum(name.endswith(".ls1.gamma") for name in hub)):
        old, new = f"blocks.{block}", f"layer.{block}" if three else f"encoder.layer.{block}"
        for part in ("weight", "bias"):
            q, k, v = hub[f"{old}.attn.qkv.{part}"].chunk(3)
            if three:
                state |= {f"{new}.attention.q_proj.{part}": q, f"{new}.attention.v_proj.{part}": v}
                state |= {f"{new}.attention.k_proj.weight": k} if part == "weight" else {}
            else:
                for name, value in (("query", q), ("key", k), ("value", v)):
                    state[f"{new}.attention.attention.{name}.{part}"] = value
            out = "attention.o_proj" if three else "attention.output.dense"
            state[f"{new}.{out}.{part}"] = hub[f"{old}.attn.proj.{part}"]
            for first, second in (("fc1", "up_proj"), ("fc2", "down_proj")):
                state[f"{new}.mlp.{second if three else first}.{part}"] = hub[f"{old}.mlp.{first}.{part}"]
            for name in ("norm1", "norm2"):
                state[f"{new}.{name}.{part}"] = hub[f"{old}.{name}.{part}"]
        for number in (1, 2):
            state[f"{new}.layer_scale{number}.lambda1"] = hub[f"{old}.ls{number}.gamma"]
    return {name: value.contiguous() for name, value in state.items()}


def library_convnext(hub: dict[str, Tensor]) -> dict[str, Tensor]:
    names = {"dwconv": "depthwise_conv", "norm": "layer_norm"}
    names |= {"pwconv1": "pointwise_conv1", "pwconv2": "pointwise_conv2", "gamma": "gamma"}
    state = {}
    for name, value in hub.items():
        match name.split("."):
            case ["norm", part]:
                state[f"layer_norm.{part}"] = value
            case ["downsample_layers", stage, layer, part]:
                state[f"stages.{stage}.downsample_layers.{layer}.{part}"] = value
            case ["stages", stage, block, kind, *part]:
                state[".".join(["stages", stage, "layers", block, names[kind], *part])] = value
    return state


def periods(head_dim: int) -> Tensor:
    return torch.tensor([100 ** (4 * i / head_dim) for i in range(head_dim // 4)]).bfloat16().float()


def rotated(x: Tensor, h: int, w: int, first: int, period: Tensor) -> Tensor:
    """Queries or keys (N, heads, tokens, d), the ones of patches turned by the angles of their centres."""
    angles = []
    for row in range(h):
        for column in range(w):
            place = (2 * (row + 0.5) / h - 1, 2 * (column + 0.5) / w - 1)
            half = torch.cat([2 * math.pi * coordinate / period for coordinate in place])
            angles.append(torch.cat((half, half)))
    angle = torch.stack(angles)  # (h w, d)
    patches = x[:, :, first:]
    one, other = patches.chunk(2, -1)
    turned = patches * angle.cos() + torch.cat((-other, one), -1) * angle.sin()
    return torch.cat((x[:, :, :first], turned), 2)


def positions(state: dict[str, Tensor], h: int, w: int) -> Tensor:
    """(1 + h w, C), resized by a product with each side's weights."""
    embedding = state["pos_embed"][0]
    rows, columns = (cubic(n, antialias="register_tokens" in state) for n in (h, w))
    resized = torch.einsum("ip,jq,pqc->ijc", rows, columns, embedding[1:].view(37, 37, -1).double())
    return torch.cat((embedding[:1], resized.flatten(0, 1).float()))


def cubic(n: int, antialias: bool) -> Tensor:
    """(n, 37): how much of each of 37 positions is in each of n."""
    a = -0.5 if antialias else -0.75

    def kernel(x: float) -> float:
        x = abs(x)
        if x <= 1:
            return (a + 2) * x**3 - (a + 3) * x**2 + 1
        return a * (x**3 - 5 * x**2 + 8 * x - 4) if x < 2 else 0.0

    weights = torch.zeros(n, 37, dtype=torch.float64)
    if n == 37:
        return torch.eye(37, dtype=torch.float64)
    for i in range(n):
        if antialias:
            scale = 37 / n
            width = max(scale, 1.0)
            for p in range(37):  # beyond the border there is nothing
                weights[i, p] = kernel((p + 0.5 - (i + 0.5) * scale) / width)
            weights[i] /= weights[i].sum()
        else:
            centre = (i + 0.5) * 37 / (n + 0.1) - 0.5
            for p in range(math.floor(centre) - 1, math.floor(centre) + 3):  # beyond it the last one again
                weights[i, min(max(p, 0), 36)] += kernel(p - centre)
    return weights


def vit(state: dict[str, Tensor], images: Tensor, heads: int) -> list[Tensor]:
    """Patches (N, C, h, w) behind each block, and behind the final norm."""
    three = "rope_embed.periods" in state
    eps = 1e-5 if three else 1e-6
    kernel = state["patch_embed.proj.weight"]
    maps = F.conv2d(images, kernel, state["patch_embed.proj.bias"], stride=kernel.shape[-1])
    n, c, h, w = maps.shape
    x = torch.cat((state["cls_token"].expand(n, 1, c), maps.flatten(2).mT), 1)
    if not three:
        x = x + positions(state, h, w)
    registers = state.get("storage_tokens", state.get("register_tokens"))
    if registers is not None:
        x = torch.cat((x[:, :1], registers.expand(n, 4, c), x[:, 1:]), 1)
    first = x.shape[1] - h * w

    def normed(name: str, x: Tensor) -> Tensor:
        return F.layer_norm(x, (c,), state[f"{name}.weight"], state[f"{name}.bias"], eps)

    def line(name: str, x: Tensor) -> Tensor:
        bias = state[f"{name}.bias"]
        return x @ state[f"{name}.weight"].T + bias * state.get(f"{name}.bias_mask", torch.ones_like(bias))

    def patches(x: Tensor) -> Tensor:
        return x[:, first:].mT.reshape(n, c, h, w)

    outputs = []
    for block in range(sum(name.endswith(".ls1.gamma") for name in state)):
        at = f"blocks.{block}"
        qkv = line(f"{at}.attn.qkv", normed(f"{at}.norm1", x)).view(n, -1, 3, heads, c // heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # (N, heads, tokens, d) each
        if three:
            q, k = (rotated(part, h, w, first, state["rope_embed.periods"]) for part in (q, k))
        attended = (q @ k.mT / math.sqrt(c // heads)).softmax(-1) @ v
        attended = line(f"{at}.attn.proj", attended.transpose(1, 2).reshape(n, -1, c))
        x = x + state[f"{at}.ls1.gamma"] * attended
        hidden = F.gelu(line(f"{at}.mlp.fc1", normed(f"{at}.norm2", x)))
        x = x + state[f"{at}.ls2.gamma"] * line(f"{at}.mlp.fc2", hidden)
        outputs.append(patches(x))
    return [*outputs, patches(normed("norm", x))]


def convnext(state: dict[str, Tensor], images: Tensor) -> list[Tensor]:
    """Stages 1 to 4, and the last one behind the final norm."""

    def normed(name: str, x: Tensor) -> Tensor:
        weight = state[f"{name}.weight"]
        x = F.layer_norm(x.permute(0, 2, 3, 1), weight.shape, weight, state[f"{name}.bias"], 1e-6)
        return x.permute(0, 3, 1, 2)

    def conv(name: str, x: Tensor, **how: int) -> Tensor:
        weight = state[f"{name}.weight"]
        return F.conv2d(x, weight if weight.ndim == 4 else weight[..., None, None], state[f"{name}.bias"], **how)

    x, outputs = images, []
    for stage in range(4):
        down = f"downsample_layers.{stage}"
        if stage == 0:
            x = normed(f"{down}.1", conv(f"{down}.0", x, stride=4))
        else:
            x = conv(f"{down}.1", normed(f"{down}.0", x), stride=2)
        block = 0
        while (at := f"stages.{stage}.{block}") + ".gamma" in state:
            y = normed(f"{at}.norm", conv(f"{at}.dwconv", x, padding=3, groups=x.shape[1]))
            y = conv(f"{at}.pwconv2", F.gelu(conv(f"{at}.pwconv1", y)))
            x = x + state[f"{at}.gamma"][:, None, None] * y
            block += 1
        outputs.append(x)
    return [*outputs, normed("norm", x)]
