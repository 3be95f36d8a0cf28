"""Train what sharpens a probe's answer (`models/parts/refiner.py`), and score it on classes that it has not seen.

python -m benchmarks.refiner VOC --classes odd --out odd.safetensors
python -m benchmarks.refiner VOC --score odd.safetensors --classes even

VOC is a folder with JPEGImages, SegmentationClassAug and ImageSets/Segmentation. Each step draws tasks: a class (30
%), a class of pictures with one object (25 %), a part of such an object cut off by a line (30 %), or one object again
(15 %), in views that are moved, scaled, turned and coloured at random. One probe is fitted to one or three supports
of a task, and the refiner learns to bring what the probe says of the queries to the truth.
"""

from __future__ import annotations

import argparse
import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from sd_aanet.building import ready_made
from sd_aanet.data.transforms import Preprocess
from sd_aanet.images import read_image, read_label
from sd_aanet.models.parts.functional import resize
from sd_aanet.models.parts.refiner import Refiner
from sd_aanet.models.refined_probe import Pyramid, RefinedProbe

SHOTS, QUERIES, TASKS = 3, 4, 5
KINDS = {"class": 0.3, "object": 0.25, "part": 0.3, "again": 0.15}
LEAST = 2048
"""Pixels of a class in a picture that shows it."""
RATE = 1.5e-3


@dataclass(frozen=True)
class Pictures:
    """All pictures at the working size: images (N, 3, S, S) uint8, labels (N, S, S) uint8; which show a class."""

    images: Tensor
    labels: Tensor
    shown: dict[int, list[int]]
    alone: dict[int, list[int]]


def read(root: Path, splits: Sequence[str], wanted: Callable[[int], bool], size: int) -> Pictures:
    lists = [(root / f"ImageSets/Segmentation/{split}.txt").read_text().split() for split in splits]
    images, labels = [], []
    shown: dict[int, list[int]] = {}
    alone: dict[int, list[int]] = {}
    for i, name in enumerate(name for names in lists for name in names):
        image = read_image(root / f"JPEGImages/{name}.jpg")
        label = read_label(root / f"SegmentationClassAug/{name}.png")
        for c in sorted({*np.unique(label).tolist()} - {0, 255}):
            inside = label == c
            if inside.sum() < LEAST or not wanted(c):
                continue
            shown.setdefault(c, []).append(i)
            others = ((label > 0) & (label != 255) & ~inside).sum()
            _, _, stats, _ = cv2.connectedComponentsWithStats(inside.astype(np.uint8))
            one = stats[1:, cv2.CC_STAT_AREA].max() > 0.9 * inside.sum() and others < 0.15 * inside.sum()
            if one and 0.08 < inside.mean() < 0.7:
                alone.setdefault(c, []).append(i)
        images.append(torch.from_numpy(cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA)).permute(2, 0, 1))
        labels.append(torch.from_numpy(cv2.resize(label, (size, size), interpolation=cv2.INTER_NEAREST)))
    enough = SHOTS + 1
    shown = {c: some for c, some in shown.items() if len(some) >= enough}
    alone = {c: some for c, some in alone.items() if len(some) >= enough + 2}
    return Pictures(torch.stack(images), torch.stack(labels), shown, alone)


def task(pictures: Pictures, r: random.Random, queries: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Supports, then queries: images (3, S, S) float 0..255 and masks (S, S) of 0, 1 and 255."""
    (kind,) = r.choices([*KINDS], [*KINDS.values()])
    pool = pictures.shown if kind == "class" else pictures.alone
    c = r.choice([*pool])
    if kind == "again":
        chosen = [r.choice(pool[c])] * (SHOTS + queries)
    else:
        chosen = r.sample(pool[c], SHOTS)
        rest = [i for i in pool[c] if i not in chosen]
        chosen += r.sample(rest, queries) if len(rest) >= queries else r.choices(rest, k=queries)
    cut = (r.choice("uudd" + "lr"), r.uniform(0.3, 0.7)) if kind == "part" or r.random() < 0.08 else None
    for i in chosen:
        label = pictures.labels[i]
        mask = torch.where(label == 255, 255, (label == c).to(torch.uint8)).to(torch.uint8)
        if cut:
            mask = part_of(mask, *cut)
        yield view(pictures.images[i], mask, r, strong=kind == "again", flips=cut is None or cut[0] in "ud")


def part_of(mask: Tensor, side: str, share: float) -> Tensor:
    """The upper, lower, left or right part of an object, by a straight line."""
    inside = mask == 1
    along = inside.any(1 if side in "ud" else 0).nonzero()
    if not len(along):
        return mask
    first, last = int(along[0]), int(along[-1]) + 1
    length = round(share * (last - first))
    away = torch.zeros_like(inside)
    if side == "u":
        away[first + length :] = True
    elif side == "d":
        away[: last - length] = True
    elif side == "l":
        away[:, first + length :] = True
    else:
        away[:, : last - length] = True
    return torch.where(inside & away, 0, mask)


def view(image: Tensor, mask: Tensor, r: random.Random, strong: bool, flips: bool) -> tuple[Tensor, Tensor]:
    """A random view; what comes in at the borders is a mirror of the picture, and ignored."""
    if r.random() < (0.05 if strong else 0.3):
        return image.float(), mask
    size = image.shape[-1]
    zoom, aspect = math.exp(r.uniform(-0.4, 0.45)), math.exp(r.uniform(-0.15, 0.15))
    angle = math.radians(r.uniform(-30, 30) if strong else r.gauss(0, 6))
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    flip = -1 if flips and r.random() < 0.5 else 1
    inside = (mask == 1).nonzero().float()
    centre = (inside.mean(0).flip(0) / (size - 1) * 2 - 1).tolist() if len(inside) else [0.0, 0.0]
    aim = np.array(centre) * min(1, r.random() * 1.3) + [r.uniform(-0.3, 0.3), r.uniform(-0.3, 0.3)]
    moved = aim[:, None] * (1 - 1 / zoom if zoom > 1 else 0.3)
    theta = np.concatenate([turn @ np.diag([aspect / zoom * flip, 1 / zoom / aspect]), moved], 1)
    grid = F.affine_grid(
        torch.tensor(theta[None], dtype=torch.float32, device=image.device), [1, 3, size, size], align_corners=True
    )
    seen = F.grid_sample(image[None].float(), grid, padding_mode="reflection", align_corners=True)[0]
    where = F.grid_sample(mask[None, None].float() + 1, grid, mode="nearest", align_corners=True)[0, 0]  # 0 is outside
    if r.random() < 0.7:
        seen = 255 * (seen.clamp(0, 255) / 255) ** math.exp(r.uniform(-0.25, 0.25)) * math.exp(r.uniform(-0.2, 0.2))
        grey = seen.mean(0, keepdim=True)
        tint = torch.tensor([math.exp(r.uniform(-0.08, 0.08)) for _ in range(3)], device=image.device)
        seen = (grey + (seen - grey) * r.uniform(0.6, 1.4)) * tint[:, None, None]
    return seen.clamp(0, 255), torch.where(where == 0, 255, where - 1).to(torch.uint8)


def with_norms(refiner: Refiner) -> Refiner:
    """A batch norm behind each convolution but those that give logits."""
    for name, module in list(refiner.named_modules()):
        if isinstance(module, nn.Conv2d) and not name.endswith("_logits"):
            parent, _, last = name.rpartition(".")
            module.bias = None
            setattr(refiner.get_submodule(parent), last, nn.Sequential(module, nn.BatchNorm2d(module.out_channels)))
    return refiner


def folded(refiner: Refiner) -> dict[str, Tensor]:
    """Weights of a `Refiner` as it is used, in half precision."""
    state = {name: value for name, value in refiner.state_dict().items() if "." not in name or "_logits" in name}
    state |= {f"context.{name}": value for name, value in refiner.context.state_dict().items()}
    for name, module in refiner.named_modules():
        if isinstance(module, nn.Sequential) and isinstance(module[-1], nn.BatchNorm2d):
            fused = fuse_conv_bn_eval(module[0].eval(), module[-1].eval())
            state |= {f"{name}.{key}": value for key, value in fused.state_dict().items()}
    return {name: value.detach().half().contiguous().cpu() for name, value in state.items()}


def fitted(
    method: RefinedProbe, pictures: Sequence[tuple[Tensor, Tensor]], shots: int, preprocess: Preprocess
) -> tuple[Tensor, Pyramid, Tensor]:
    """What a probe of the first pictures says of the others, (Q, 1, h, w), their features, their masks (Q, S, S)."""
    device = next(method.parameters()).device
    mean, std = (torch.tensor(x, device=device)[:, None, None] for x in (preprocess.mean, preprocess.std))
    images = torch.stack([(image.to(device) / 255 - mean) / std for image, _ in pictures])
    masks = torch.stack([mask.to(device) for _, mask in pictures]).long()
    with torch.no_grad(), torch.autocast(device.type, torch.bfloat16):
        features = method.image_features(images)
        cells = method.encode_support(features.select(range(shots)), None, masks[:shots])
        sets = method.support_set(cells, shots)
        queries = features.select(range(SHOTS, len(images)))
        z = method.similarity(queries, sets)
    assert isinstance(queries, Pyramid)
    return z, queries, masks[SHOTS:]


def loss_of(levels: Sequence[Tensor], masks: Tensor) -> Tensor:
    """Cross entropy and one minus the soft IoU of each query, at each level; (Q,)."""
    total = torch.zeros(len(masks), device=masks.device)
    for z, weight in zip(levels, (0.3, 0.4, 1.0), strict=True):
        at = F.interpolate(masks[:, None].float(), z.shape[-2:], mode="nearest")[:, 0]  # (Q, h, w)
        counted, true, z = (at != 255).float(), (at == 1).float(), z[:, 0].float()
        entropy = F.binary_cross_entropy_with_logits(z, true, reduction="none") * counted
        found = z.sigmoid() * counted
        both = (found * true).sum((1, 2))
        iou = (both + 1) / ((found + true).sum((1, 2)) - both + 1)
        total = total + weight * (entropy.sum((1, 2)) / counted.sum((1, 2)).clamp(min=1) + 1 - iou)
    return total


def train(method: RefinedProbe, preprocess: Preprocess, pictures: Pictures, seconds: float, steps: int) -> None:
    """Train the method's refiner, for so many steps or seconds, whichever ends first."""
    device = next(method.parameters()).device
    torch.manual_seed(0)
    refiner = with_norms(Refiner(*(getattr(method.refiner, name).in_channels for name in
                                   ("features", "quarter_features", "half_features")))).to(device).train()  # fmt: skip
    optimizer = torch.optim.AdamW(refiner.parameters(), lr=RATE, weight_decay=1e-2)
    start, step = time.perf_counter(), 0
    while (progress := max((time.perf_counter() - start) / seconds, step / steps)) < 1:
        r = random.Random(f"0 {step}")
        made = []
        for _ in range(TASKS):
            method.balance, method.l2 = r.choice((0.25, 0.5, 0.5, 0.75, 1.0)), math.exp(r.uniform(math.log(0.1), 0))
            made.append(fitted(method, list(task(pictures, r, QUERIES)), 1 if r.random() < 0.3 else SHOTS, preprocess))
        queries, masks = Pyramid.cat([some for _, some, _ in made]), torch.cat([some for _, _, some in made])
        z = torch.cat([some for some, _, _ in made])
        z = z * torch.exp(0.25 * torch.randn(len(z), 1, 1, 1, device=device))  # probes are sure of themselves or not
        z = z + 0.4 * torch.randn(len(z), 1, 1, 1, device=device)
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(1, (step + 1) / 50) * (0.5 * (1 + math.cos(math.pi * progress)) + 0.01)
        with torch.autocast(device.type, torch.bfloat16):
            levels = refiner.levels(z, queries.maps[:, : method.coarse], queries.quarter, queries.half)
        shown = (masks == 1).float().mean((1, 2)) > 0.003
        loss = (loss_of(levels, masks) * shown).sum() / shown.sum().clamp(min=1)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(refiner.parameters(), 1.0)
        optimizer.step()
        if step % 50 == 0:
            print(f"step {step}: loss {float(loss.detach()):.3f}, {time.perf_counter() - start:.0f} s", flush=True)
        step += 1
    print(f"{step} steps, {time.perf_counter() - start:.0f} s")
    method.refiner.load_state_dict({name: value.float() for name, value in folded(refiner).items()})


def score(method: RefinedProbe, preprocess: Preprocess, root: Path, wanted: Callable[[int], bool], seed: int) -> None:
    """IoU of whole objects, summed per class: three supports of the train list, eight queries of the val list."""
    train_list, val = (read(root, [split], wanted, preprocess.size) for split in ("train", "val"))
    rows = []
    for c in sorted(train_list.alone.keys() & val.alone.keys()):
        r = random.Random(f"{seed} {c}")
        chosen = r.sample(train_list.alone[c], SHOTS), r.sample(val.alone[c], min(8, len(val.alone[c])))
        pairs = [
            (some.images[i].float(), torch.where(some.labels[i] == 255, 255, (some.labels[i] == c).to(torch.uint8)))
            for some, places in zip((train_list, val), chosen, strict=True)
            for i in places
        ]
        sums = np.zeros((2, 2))
        for first in range(SHOTS, len(pairs), 4):
            z, queries, masks = fitted(method, pairs[:SHOTS] + pairs[first : first + 4], SHOTS, preprocess)
            with torch.inference_mode():
                maps = (queries.maps[:, : method.coarse], queries.quarter, queries.half)
                finer = method.refiner(z, *(one.float() for one in maps))
            for i, some in enumerate((z, finer)):
                found = resize(some, preprocess.size)[:, 0] > 0
                counted, true = masks != 255, masks == 1
                sums[i] += [int((found & true).sum()), int(((found | true) & counted).sum())]
        rows.append(sums[:, 0] / sums[:, 1])
        print(f"class {c}: probe {rows[-1][0]:.3f}, refined {rows[-1][1]:.3f}", flush=True)
    print(
        f"mean of {len(rows)}: probe {np.mean([a for a, _ in rows]):.3f}, refined {np.mean([b for _, b in rows]):.3f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("voc", type=Path)
    parser.add_argument("--classes", choices=("odd", "even", "all"), default="all")
    parser.add_argument("--splits", nargs="+", default=["train"])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--score", type=Path)
    parser.add_argument("--seconds", type=float, default=200)
    parser.add_argument("--steps", type=int, default=10**9)
    parser.add_argument("--seed", type=int, default=0, help="of the draw of supports and queries that are scored")
    arguments = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    method, preprocess = ready_made()
    assert isinstance(method, RefinedProbe)
    method.to(device)

    def wanted(c: int) -> bool:
        return arguments.classes == "all" or c % 2 == (arguments.classes == "odd")

    if arguments.score:
        method.refiner.load_state_dict({name: value.float() for name, value in load_file(arguments.score).items()})
        score(method, preprocess, arguments.voc, wanted, arguments.seed)
        return
    pictures = read(arguments.voc, arguments.splits, wanted, preprocess.size)
    train(method, preprocess, pictures, arguments.seconds, arguments.steps)
    save_file(
        {name: value.half().contiguous().cpu() for name, value in method.refiner.state_dict().items()}, arguments.out
    )


if __name__ == "__main__":
    main()
