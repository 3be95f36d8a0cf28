"""SD-AANet a second time, as plainly as it can be written: what the tests compare the package with.

Nothing here is fast or clever: every concatenation is made, every prototype spread, every grid resized before its
convolution, the gradient step done by hand. Tensors go by the names of the published checkpoints.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

DEPTHS = {"resnet50": (3, 4, 6, 3), "resnet101": (3, 4, 23, 3)}
VGG_STAGES = ((0, 3), (0, 3), (0, 3, 6), (0, 3, 6), (0, 3, 6))
"""Where the convolutions stand in each published stage of VGG-16; each has its batch norm behind it."""
VGG_WIDTHS = (64, 128, 256, 512, 512)


def layout(backbone: str) -> dict[str, list[int]]:
    """{name: shape} of a published checkpoint."""
    shapes: dict[str, list[int]] = {}

    def norm(name: str, channels: int) -> None:
        for tensor in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{name}.{tensor}"] = [channels]
        shapes[f"{name}.num_batches_tracked"] = []

    def conv(name: str, outputs: int, inputs: int, side: int, bias: bool = False) -> None:
        shapes[f"{name}.weight"] = [outputs, inputs, side, side]
        if bias:
            shapes[f"{name}.bias"] = [outputs]

    if backbone == "vgg16_bn":
        inputs = 3
        for stage, places in enumerate(VGG_STAGES):
            # A published stage begins with what follows the pool of the one before.
            for place in places:
                conv(f"layer{stage}.{place}", VGG_WIDTHS[stage], inputs, 3, bias=True)
                norm(f"layer{stage}.{place + 1}", VGG_WIDTHS[stage])
                inputs = VGG_WIDTHS[stage]
        mid = 512 + 256
    else:
        conv("layer0.0", 64, 3, 7)
        norm("layer0.1", 64)
        inputs = 64
        for stage, depth in enumerate(DEPTHS[backbone], start=1):
            width = 32 * 2**stage
            for block in range(depth):
                name = f"layer{stage}.{block}"
                for i, (outputs, ins, side) in enumerate(
                    ((width, inputs, 1), (width, width, 3), (4 * width, width, 1))
                ):
                    conv(f"{name}.conv{i + 1}", outputs, ins, side)
                    norm(f"{name}.bn{i + 1}", outputs)
                if block == 0:
                    conv(f"{name}.downsample.0", 4 * width, inputs, 1)
                    norm(f"{name}.downsample.1", 4 * width)
                inputs = 4 * width
        mid = 1024 + 512
    conv("down_query.0", 256, mid, 1)
    conv("down_supp.0", 256, mid, 1)
    conv("se_supp.0", 64, 256, 1, bias=True)
    conv("se_supp.2", 256, 64, 1, bias=True)
    conv("simple_mask.0", 1024, 512, 3, bias=True)
    for i in range(4):
        conv(f"simple_mask.2.stages.{i}.1", 256, 1024, 1)
        norm(f"simple_mask.2.stages.{i}.2", 256)
        conv(f"init_merge.{i}.0", 256, 514, 1)
        conv(f"beta_conv.{i}.0", 256, 256, 3)
        conv(f"beta_conv.{i}.2", 256, 256, 3)
        conv(f"inner_cls.{i}.0", 256, 256, 3)
        conv(f"inner_cls.{i}.3", 2, 256, 1, bias=True)
        if i < 3:
            conv(f"alpha_conv.{i}.0", 256, 512, 1)
    conv("simple_mask.2.bottleneck.0", 256, 2048, 3)
    norm("simple_mask.2.bottleneck.1", 256)
    conv("s_cls", 2, 256, 1, bias=True)
    conv("q_maskgeneration", 1, 256, 1, bias=True)
    conv("res1.0", 256, 1024, 1)
    conv("res2.0", 256, 256, 3)
    conv("res2.2", 256, 256, 3)
    conv("cls.0", 256, 256, 3)
    conv("cls.3", 2, 256, 1, bias=True)
    return shapes


def resized(x: Tensor, size: Sequence[int]) -> Tensor:
    """Bilinear with aligned corners, as one matrix a side."""

    def matrix(inputs: int, outputs: int) -> Tensor:
        weights = torch.zeros(outputs, inputs, dtype=x.dtype)
        for row in range(outputs):
            place = row * (inputs - 1) / (outputs - 1) if outputs > 1 else 0.0
            low = min(int(place), inputs - 1)
            weights[row, low] += 1 - (place - low)
            weights[row, min(low + 1, inputs - 1)] += place - low
        return weights

    return matrix(x.shape[-2], size[0]) @ x @ matrix(x.shape[-1], size[1]).T


def pooled(x: Tensor, mask: Tensor) -> Tensor:
    """Masked average of (N, C, h, w) under (N, 1, h, w): (N, C)."""
    return (x * mask).sum((2, 3)) / (mask.sum((2, 3)) + 0.0005)


def spread(vector: Tensor, like: Tensor) -> Tensor:
    """(N, C) as a constant map of the size of `like`."""
    return vector[:, :, None, None].repeat(1, 1, *like.shape[-2:])


def cross_entropy(logits: Tensor, mask: Tensor) -> Tensor:
    """Mean over the pixels that are not 255 of (N, 2, H, W)."""
    counted = mask != 255
    log_p = logits - logits.logsumexp(1, keepdim=True)
    chosen = torch.where(mask == 1, log_p[:, 1], log_p[:, 0])
    return -chosen[counted].mean()


def prior(query: Tensor, support: Tensor, mask: Tensor) -> Tensor:
    """One shot's prior mask: (B, C, h, w) twice and (B, 1, h, w) -> (B, 1, h, w)."""
    maps = []
    for q, s in zip(query.flatten(2), (support * mask).flatten(2), strict=True):  # (C, hw) each
        products = s.T @ q  # (hw of s, hw of q)
        norms = s.pow(2).sum(0).sqrt()[:, None] * q.pow(2).sum(0).sqrt()[None, :]
        best = (products / (norms + 1e-7)).max(0).values
        maps.append((best - best.min()) / (best.max() - best.min() + 1e-7))
    return torch.stack(maps).reshape(len(query), 1, *query.shape[-2:])


class Plain:
    """The network: eval mode, or training with every dropout off.

    Args:
        state: tensors by their published names. In training, running statistics are replaced in it.
        bins: scales of the decoder.
        training: batch norms of the attention see their batch; auxiliary and support logits are made.
        backbone_batch: batch norms of the backbone see their batch, too.
        reweighting: of the query: "product" (published) or "mean" (paper).
        prior_stage: whose features make the prior mask; None for none.
        bounded: a sigmoid on the attention.
    """

    def __init__(
        self,
        state: dict[str, Tensor],
        bins: Sequence[float],
        training: bool = False,
        backbone_batch: bool = False,
        reweighting: str = "product",
        prior_stage: int | None = 4,
        bounded: bool = False,
    ) -> None:
        self.state, self.bins, self.training, self.backbone_batch = state, bins, training, backbone_batch
        self.reweighting, self.prior_stage, self.bounded = reweighting, prior_stage, bounded
        self.is_vgg = state["layer0.0.weight"].shape[-1] == 3

    def conv(self, name: str, x: Tensor, stride: int = 1, dilation: int = 1) -> Tensor:
        weight = self.state[f"{name}.weight"]
        weight = weight.reshape(*weight.shape[:2], 1, 1) if weight.ndim == 2 else weight
        padding = (weight.shape[-1] - 1) // 2 * dilation
        return F.conv2d(x, weight, self.state.get(f"{name}.bias"), stride, padding, dilation)

    def norm(self, name: str, x: Tensor, batch: bool) -> Tensor:
        mean, var = self.state[f"{name}.running_mean"], self.state[f"{name}.running_var"]
        if batch:
            count = x.numel() / x.shape[1]
            now = x.mean((0, 2, 3))
            squares = (x - now[:, None, None]).pow(2).sum((0, 2, 3))
            self.state[f"{name}.running_mean"] = 0.9 * mean + 0.1 * now.detach()
            self.state[f"{name}.running_var"] = 0.9 * var + 0.1 * squares.detach() / (count - 1)
            mean, var = now, squares / count
        x = (x - mean[:, None, None]) / (var[:, None, None] + 1e-5).sqrt()
        return x * self.state[f"{name}.weight"][:, None, None] + self.state[f"{name}.bias"][:, None, None]

    def backbone_norm(self, name: str, x: Tensor) -> Tensor:
        return self.norm(name, x, self.training and self.backbone_batch)

    def stage(self, number: int, x: Tensor) -> Tensor:
        """A stage of a ResNet; any block that the names tell of."""
        dilation = {3: 2, 4: 4}.get(number, 1)
        block = 0
        while f"layer{number}.{block}.conv1.weight" in self.state:
            name = f"layer{number}.{block}"
            stride = 2 if number == 2 and block == 0 else 1
            shortcut = x
            if f"{name}.downsample.0.weight" in self.state:
                shortcut = self.backbone_norm(f"{name}.downsample.1", self.conv(f"{name}.downsample.0", x, stride))
            if f"{name}.conv3.weight" in self.state:
                x = self.backbone_norm(f"{name}.bn1", self.conv(f"{name}.conv1", x)).relu()
                x = self.backbone_norm(f"{name}.bn2", self.conv(f"{name}.conv2", x, stride, dilation)).relu()
                x = self.backbone_norm(f"{name}.bn3", self.conv(f"{name}.conv3", x))
            else:
                x = self.backbone_norm(f"{name}.bn1", self.conv(f"{name}.conv1", x, stride, dilation)).relu()
                x = self.backbone_norm(f"{name}.bn2", self.conv(f"{name}.conv2", x, 1, dilation))
            x = (x + shortcut).relu()
            block += 1
        return x

    def vgg_stage(self, number: int, x: Tensor) -> Tensor:
        for place in VGG_STAGES[number]:
            x = self.backbone_norm(f"layer{number}.{place + 1}", self.conv(f"layer{number}.{place}", x)).relu()
        return x if number == 4 else F.max_pool2d(x, 2, 2, ceil_mode=True)

    def stages23(self, image: Tensor) -> tuple[Tensor, Tensor]:
        if self.is_vgg:
            f2 = self.vgg_stage(2, self.vgg_stage(1, self.vgg_stage(0, image)))
            f3 = self.vgg_stage(3, f2)
            return resized(f2, f3.shape[-2:]), f3
        x = self.backbone_norm("layer0.1", self.conv("layer0.0", image, stride=2)).relu()
        f2 = self.stage(2, self.stage(1, F.max_pool2d(x, 3, 2, 1)))
        return f2, self.stage(3, f2)

    def stage4(self, f3: Tensor) -> Tensor:
        return self.vgg_stage(4, f3) if self.is_vgg else self.stage(4, f3)

    def high(self, f2: Tensor, f3: Tensor, mask: Tensor) -> Tensor | None:
        """What the prior compares."""
        return self.stage4(f3 * mask) if self.prior_stage == 4 else {None: None, 2: f2, 3: f3}[self.prior_stage]

    def extractor(self, feature: Tensor, prototype: Tensor) -> Tensor:
        x = self.conv("simple_mask.0", torch.cat([feature, spread(prototype, feature)], 1)).relu()
        maps = [x]
        for i, side in enumerate((1, 2, 3, 6)):
            cells = self.conv(f"simple_mask.2.stages.{i}.1", F.adaptive_avg_pool2d(x, side))
            cells = self.norm(f"simple_mask.2.stages.{i}.2", cells, self.training).relu()
            maps.append(resized(cells, x.shape[-2:]))
        x = self.conv("simple_mask.2.bottleneck.0", torch.cat(maps, 1))
        return self.norm("simple_mask.2.bottleneck.1", x, self.training).relu()

    def residual(self, name: str, x: Tensor) -> Tensor:
        return x + self.conv(f"{name}.2", self.conv(f"{name}.0", x).relu()).relu()

    def classify(self, name: str, x: Tensor) -> Tensor:
        return self.conv(f"{name}.3", self.conv(f"{name}.0", x).relu())

    def decode(
        self, query: Tensor, prototype: Tensor, guides: Sequence[Tensor], size: Sequence[int]
    ) -> tuple[Tensor, list[Tensor]]:
        grid = query.shape[-2:]
        scales: list[Tensor] = []
        auxiliary: list[Tensor] = []
        for i, b in enumerate(self.bins):
            side = (int(grid[0] * b), int(grid[1] * b)) if b <= 1 else (int(b), int(b))
            small = F.adaptive_avg_pool2d(query, side)
            x = torch.cat([spread(prototype, small), small, *(resized(guide, side) for guide in guides)], 1)
            x = self.conv(f"init_merge.{i}.0", x).relu()
            if i > 0:
                x = x + self.conv(f"alpha_conv.{i - 1}.0", torch.cat([x, resized(scales[-1], side)], 1)).relu()
            x = self.residual(f"beta_conv.{i}", x)
            auxiliary.append(resized(self.classify(f"inner_cls.{i}", x), size))
            scales.append(resized(x, grid))
        x = self.residual("res2", self.conv("res1.0", torch.cat(scales, 1)).relu())
        return resized(self.classify("cls", x), size), auxiliary

    def __call__(self, query: Tensor, support: Tensor, support_mask: Tensor) -> dict[str, Any]:
        """Everything by name: (B, 3, S, S), (B, K, 3, S, S), (B, K, S, S)."""
        shots, size = support.shape[1], query.shape[-2:]
        f2, f3 = self.stages23(query)
        high = self.high(f2, f3, torch.ones_like(f3[:, :1]))
        q = self.conv("down_query.0", torch.cat([f3, f2], 1)).relu()
        out: dict[str, Any] = {"q": q, "support_logits": []}
        features, prototypes, priors = [], [], []
        for k in range(shots):
            f2, f3 = self.stages23(support[:, k])
            mask = resized((support_mask[:, k] == 1).to(query.dtype)[:, None], f3.shape[-2:])
            if high is not None:
                priors.append(prior(high, self.high(f2, f3, mask), mask))
            features.append(self.conv("down_supp.0", torch.cat([f3, f2], 1)).relu())
            prototypes.append(pooled(features[-1], mask))
        guides = [sum(priors) / shots] if priors else []
        out["prior"] = guides[0] if priors else None

        if "simple_mask.0.weight" in self.state:
            if self.training:
                for s, p in zip(features, prototypes, strict=True):
                    out["support_logits"].append(resized(self.conv("s_cls", self.extractor(s, p)), size))
            out["attention"] = self.conv("q_maskgeneration", self.extractor(q, sum(prototypes) / shots))
            if self.bounded:
                out["attention"] = out["attention"].sigmoid()
            guides.append(out["attention"])

        out["u"], decoded = [], q
        if "se_supp.0.weight" in self.state:
            weights = []
            for p in prototypes:
                v = self.conv("se_supp.2", self.conv("se_supp.0", p[:, :, None, None]).relu()).sigmoid()[:, :, 0, 0]
                weights.append((v + 1) / 2)
            if self.reweighting == "product":
                for u in weights:
                    decoded = decoded * u[:, :, None, None]
                decoded = decoded * ((sum(weights) / shots + 1) / 2)[:, :, None, None]
            else:
                decoded = decoded * (sum(weights) / shots)[:, :, None, None]
            # The supports' maps are reweighted, and pooled again.
            masks = [resized((support_mask[:, k] == 1).to(q.dtype)[:, None], q.shape[-2:]) for k in range(shots)]
            prototypes = [pooled(s * u[:, :, None, None], m) for s, u, m in zip(features, weights, masks, strict=True)]
            out["u"] = weights
        out["prototypes"] = prototypes
        out["prototype"] = sum(prototypes) / shots
        out["logits"], out["auxiliary"] = self.decode(decoded, out["prototype"], guides, size)
        return out

    def losses(self, out: dict[str, Any], query_mask: Tensor, support_mask: Tensor) -> dict[str, Tensor]:
        """The published terms and their sum."""
        main = cross_entropy(out["logits"], query_mask)
        auxiliary = sum(cross_entropy(x, query_mask) for x in out["auxiliary"]) / len(out["auxiliary"])
        support = sum(cross_entropy(x, support_mask[:, k]) for k, x in enumerate(out["support_logits"]))
        support = support / len(out["support_logits"])
        height, width = out["q"].shape[-2:]
        rows = torch.arange(height) * query_mask.shape[-2] // height
        columns = torch.arange(width) * query_mask.shape[-1] // width
        small = (query_mask == 1).to(out["q"].dtype)[:, None, rows][:, :, :, columns]
        p_q = pooled(out["q"], small)
        distillation = torch.zeros((), dtype=p_q.dtype)
        for p in out["prototypes"]:
            teacher = ((p_q + p) / 2 / 5).softmax(1)
            student = (p / 5).log_softmax(1)
            distillation = distillation + 0.9 * 25 * (teacher * (teacher.log() - student)).mean()
        distillation = distillation / len(out["prototypes"])
        total = main + auxiliary + 50 * distillation + 0.5 * support
        return {
            "main": main,
            "auxiliary": auxiliary,
            "distillation": distillation,
            "support": support,
            "total": total,
        }


def record_eval(state: dict[str, Tensor], case: dict[str, Any], arrays: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    """What a recorded eval case holds, and the case's `foreground_pixels` set."""
    query, _, support, support_mask = (torch.from_numpy(array) for array in arrays)
    with torch.no_grad():
        out = Plain(state, case["scales"])(query, support, support_mask)
    case["foreground_pixels"] = int((out["logits"][:, 1] > out["logits"][:, 0]).sum())
    b = case["scales"][0]
    grid = out["prior"].shape[-2:]
    side = (int(b * grid[0]), int(b * grid[1])) if b <= 1 else (b, b)
    tensors = {name: out[name] for name in ("logits", "attention", "prototype")}
    tensors["prior_bin0"] = resized(out["prior"], side)[:, 0]
    return {name: tensor.numpy().astype(np.float32) for name, tensor in tensors.items()}


def record_train(
    state: dict[str, Tensor], case: dict[str, Any], episodes: Sequence[Sequence[np.ndarray]]
) -> dict[str, np.ndarray]:
    """What a recorded training case holds; one episode batch a step. Replaces tensors of `state`."""
    names = case["grad_norm_names"]
    for name in names:
        state[name] = state[name].clone().requires_grad_()
    net = Plain(state, case["scales"], training=True, backbone_batch=case["backbone_bn"] == "train")
    speed = {name: torch.zeros_like(state[name]) for name in names}
    rows, norms = [], []
    for step, arrays in enumerate(episodes):
        query, query_mask, support, support_mask = (torch.from_numpy(array) for array in arrays)
        terms = net.losses(net(query, support, support_mask), query_mask, support_mask)
        gradients = torch.autograd.grad(terms["total"], [state[name] for name in names])
        rows.append([terms[column].item() for column in case["columns"]])
        norms = norms or [float(gradient.pow(2).sum().sqrt()) for gradient in gradients]
        rate = case["base_lr"] * (1 - (step + 1) / 200) ** 0.9
        for name, gradient in zip(names, gradients, strict=True):
            old = state[name].detach()
            speed[name] = case["momentum"] * speed[name] + gradient + case["weight_decay"] * old
            state[name] = (old - rate * speed[name]).requires_grad_()
    buffers = {f"buffer:{name}": state[name].numpy() for name in case["buffers"]}
    return {"losses": np.array(rows), "grad_norms": np.array(norms), **buffers}
