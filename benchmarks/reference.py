"""The reference of every ratio: what the published code does, on the weights of one of our networks.

Each episode alone, each picture of it alone through the backbone, nothing remembered or folded; every concatenation
made, every prototype spread, every grid resized before its convolution, every support position in the prior, and the
query's mask pooled whether or not anybody wants it. Plain PyTorch in float32, in its default memory layout.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from sd_aanet.models.functional import masked_average_pool, resize
from sd_aanet.models.saam import BINS, AffinityExtractor
from sd_aanet.training.losses import SDAANetLoss
from torch import Tensor

from sd_aanet.models.sd_aanet import SDAANet


def segment(network: SDAANet, query: Tensor, query_mask: Tensor, support: Tensor, support_mask: Tensor) -> Tensor:
    """Logits (B, 2, S, S) of episodes; shapes as those of `FewShotNetwork.forward`. Prior, SAAM and SDPM are on."""
    return _forward(network, query, query_mask, support, support_mask)[0]


def loss(
    network: SDAANet, losses: SDAANetLoss, query: Tensor, query_mask: Tensor, support: Tensor, support_mask: Tensor
) -> Tensor:
    """The published training loss of a batch, for a network in train mode."""
    logits, auxiliary, of_supports, students, p_q = _forward(network, query, query_mask, support, support_mask)
    cross_entropy = [F.cross_entropy(x, query_mask, ignore_index=255) for x in auxiliary]
    total = F.cross_entropy(logits, query_mask, ignore_index=255) + torch.stack(cross_entropy).mean()
    for k, (of_support, student) in enumerate(zip(of_supports, students, strict=True)):
        teacher = F.softmax((p_q + student) / 10, 1)
        distillation = F.kl_div(F.log_softmax(student / 5, 1), teacher, reduction="none").mean() * 0.9 * 25
        supervised = F.cross_entropy(of_support, support_mask[:, k], ignore_index=255)
        total = total + (losses.alpha * distillation + losses.beta * supervised) / len(students)
    return total


def _forward(
    network: SDAANet, query: Tensor, query_mask: Tensor, support: Tensor, support_mask: Tensor
) -> tuple[Tensor, list[Tensor], list[Tensor], list[Tensor], Tensor]:
    assert network.saam is not None
    assert network.sdpm is not None
    size, backbone = query.shape[-1], network.backbone
    with torch.no_grad():
        stage2, stage3 = backbone.stages23(query)
        high = backbone.stage4(stage3)
    q = network.dropout(F.relu(network.project_query(torch.cat([stage3, stage2], 1))))
    grid = (q.shape[-2], q.shape[-1])
    prototypes, priors, of_supports, reweightings = [], [], [], []
    for k in range(support.shape[1]):
        mask = resize((support_mask[:, k] == 1).to(q.dtype)[:, None], grid)
        with torch.no_grad():
            stage2, stage3 = backbone.stages23(support[:, k])
            priors.append(_prior(high, backbone.stage4(stage3 * mask) * mask))
        s = network.dropout(F.relu(network.project_support(torch.cat([stage3, stage2], 1))))
        p = masked_average_pool(s, mask)
        u = network.sdpm.reweighting(p[:, None])[:, 0]
        prototypes.append(p)
        reweightings.append((u, masked_average_pool(s * u[:, :, None, None], mask)))
        if network.training:
            of_supports.append(resize(network.saam.support_classifier(_extract(network.saam.extractor, s, p)), size))
    mean = torch.stack(prototypes).mean(0)
    attention = network.saam.attention_classifier(_extract(network.saam.extractor, q, mean))
    decoded = q
    for u, _ in reweightings:
        decoded = decoded * u[:, :, None, None]
    decoded = decoded * ((torch.stack([u for u, _ in reweightings]).mean(0) + 1) / 2)[:, :, None, None]
    students = [student for _, student in reweightings]
    guides = [torch.stack(priors).mean(0), attention]
    logits, auxiliary = _decode(network, decoded, torch.stack(students).mean(0), guides, size)
    p_q = masked_average_pool(q, F.interpolate((query_mask == 1).to(q.dtype)[:, None], grid, mode="nearest"))
    return logits, auxiliary, of_supports, students, p_q


def _prior(query: Tensor, support: Tensor) -> Tensor:
    q, s = query.flatten(2), support.flatten(2)
    norms = s.norm(dim=1)[:, :, None] * q.norm(dim=1)[:, None]
    best = (s.transpose(1, 2) @ q / (norms + 1e-7)).amax(1)
    low, high = best.amin(1, keepdim=True), best.amax(1, keepdim=True)
    out: Tensor = ((best - low) / (high - low + 1e-7)).view(len(query), 1, *query.shape[-2:])
    return out


def _spread(vector: Tensor, side: tuple[int, int]) -> Tensor:
    return vector[:, :, None, None].expand(-1, -1, *side)


def _extract(extractor: AffinityExtractor, feature: Tensor, prototype: Tensor) -> Tensor:
    grid = (feature.shape[-2], feature.shape[-1])
    x = F.relu(extractor.conv(torch.cat([feature, _spread(prototype, grid)], 1)))
    maps = [x]
    for side, pool, norm in zip(BINS, extractor.pools, extractor.norms, strict=True):
        maps.append(resize(F.relu(norm(pool(F.adaptive_avg_pool2d(x, side)))), grid))
    out: Tensor = extractor.dropout(F.relu(extractor.norm(extractor.fuse(torch.cat(maps, 1)))))
    return out


def _decode(
    network: SDAANet, query: Tensor, prototype: Tensor, guides: list[Tensor], size: int
) -> tuple[Tensor, list[Tensor]]:
    decoder, grid = network.decoder, (query.shape[-2], query.shape[-1])
    scales: list[Tensor] = []
    auxiliary: list[Tensor] = []
    for i, side in enumerate(decoder.sides(*grid)):
        small = F.adaptive_avg_pool2d(query, side)
        x = torch.cat([_spread(prototype, side), small, *(resize(guide, side) for guide in guides)], 1)
        x = F.relu(decoder.merge[i](x))
        if i > 0:
            x = x + F.relu(decoder.flow[i - 1](torch.cat([x, resize(scales[-1], side)], 1)))
        x = decoder.refine[i](x)
        if network.training:
            auxiliary.append(resize(decoder.auxiliary[i](x), size))
        scales.append(resize(x, grid))
    x = decoder.residual(F.relu(decoder.join(torch.cat(scales, 1))))
    return resize(decoder.classifier(x), size), auxiliary
