"""The reference of every ratio: what the published code does, on the weights of one of our networks.

Each episode alone, each picture of it alone through the backbone, nothing remembered or folded; every concatenation
made, every prototype spread, every grid resized before its convolution, every support position in the prior, and the
query's mask pooled whether or not anybody wants it. Plain PyTorch in float32, in its default memory layout.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from sd_aanet.episode import Episode
from sd_aanet.models.parts.functional import masked_average_pool, resize
from sd_aanet.models.sd_aanet import SDAANet
from sd_aanet.models.sd_aanet.saam import BINS, AffinityExtractor


def segment(network: SDAANet, episode: Episode) -> Tensor:
    """Logits (B, 2, S, S) of one-way episodes. Prior, SAAM and SDPM are on."""
    return _forward(network, episode)[0]


def loss(network: SDAANet, episode: Episode) -> Tensor:
    """The published training loss of a batch of one-way episodes, for a network in train mode."""
    logits, auxiliary, of_supports, students, p_q = _forward(network, episode)
    query_mask, support_mask, weights = episode.query_mask, episode.support_mask[:, 0], network.loss_weights
    cross_entropy = [F.cross_entropy(x, query_mask, ignore_index=255) for x in auxiliary]
    total = F.cross_entropy(logits, query_mask, ignore_index=255) + torch.stack(cross_entropy).mean()
    for k, (of_support, student) in enumerate(zip(of_supports, students, strict=True)):
        teacher = F.softmax((p_q + student) / 10, 1)
        distillation = F.kl_div(F.log_softmax(student / 5, 1), teacher, reduction="none").mean() * 0.9 * 25
        supervised = F.cross_entropy(of_support, support_mask[:, k], ignore_index=255)
        weighted = weights["distillation"] * distillation + weights["support"] * supervised
        total = total + weighted / len(students)
    return total


def _stages(network: SDAANet, images: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Stages 2, 3 and 4, the last one of a masked stage 3; nothing is folded, and no batch taken in parts."""
    with torch.no_grad():
        found = network.backbone.run(images, ("stage2", "stage3"))
        masked = found["stage3"] if mask is None else found["stage3"] * mask
        return found["stage2"], found["stage3"], network.backbone.run_on("stage3", masked, ["stage4"])["stage4"]


def _forward(network: SDAANet, episode: Episode) -> tuple[Tensor, list[Tensor], list[Tensor], list[Tensor], Tensor]:
    assert network.saam is not None
    assert network.sdpm is not None
    query, query_mask = episode.query, episode.query_mask
    support, support_mask = episode.support[:, 0], episode.support_mask[:, 0]  # (B, K, ...)
    size = query.shape[-1]
    stage2, stage3, high = _stages(network, query)
    q = network.dropout(F.relu(network.project_query(torch.cat([stage3, stage2], 1))))
    grid = (q.shape[-2], q.shape[-1])
    prototypes, priors, of_supports, reweightings = [], [], [], []
    for k in range(support.shape[1]):
        mask = resize((support_mask[:, k] == 1).to(q.dtype)[:, None], grid)
        stage2, stage3, of_support = _stages(network, support[:, k], mask)
        priors.append(_prior(high, of_support * mask))
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
