"""Parity: does the network give what the published one gave, from the same weights and inputs, in float64?

A folder of recorded cases holds `cases.json`, `official_keys_<backbone>.json` and one `<case>.npz` a case. Weights and
inputs are made again from seeds by `golden.py`; nothing of the folder is executed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sd_aanet.arguments import Parser
from sd_aanet.backbones import build_backbone
from sd_aanet.comparing import Comparer
from sd_aanet.episode import Episode, Prediction
from sd_aanet.errors import UNREADABLE, DataError
from sd_aanet.models.parts.functional import resize
from sd_aanet.models.sd_aanet.golden import Array, episode, official_state
from sd_aanet.models.sd_aanet.network import SDAANet
from sd_aanet.models.sd_aanet.published import from_published, our_name

TOLERANCE = {"eval": 1e-6, "train": 1e-8}


def main(argv: list[str]) -> int:
    """`sd-aanet parity`: 0 where every case holds, else 1."""
    parser = Parser("sd-aanet parity", description="Compare with recorded outputs, in float64.")
    parser.add_argument("folder", type=Path, help="holds cases.json, official_keys_*.json and one .npz a case")
    failed = total = 0
    for report in run_folder(parser.parse_args(argv).folder):
        print(report, flush=True)
        failed, total = failed + (not report.passed), total + 1
    print(f"{total - failed} of {total} cases hold")
    return int(failed > 0)


@dataclass(frozen=True)
class CaseReport:
    """What became of one case.

    Attributes:
        name: of the case.
        errors: {array: max |ours - recorded| / max |recorded|}; for `foreground_pixels` the difference in pixels.
        tolerance: the largest error that passes.
        problem: why the case could not run; None where it did.
    """

    name: str
    errors: Mapping[str, float]
    tolerance: float
    problem: str | None = None

    @property
    def passed(self) -> bool:
        """Whether every array is within the tolerance; NaN never is."""
        return self.problem is None and bool(self.errors) and all(e <= self.tolerance for e in self.errors.values())

    def __str__(self) -> str:
        arrays = self.problem or "  ".join(f"{name} {error:.1e}" for name, error in self.errors.items())
        return f"{'ok  ' if self.passed else 'FAIL'}  {self.name}  {arrays}"


def relative_error(ours: Array, recorded: Array) -> float:
    """Max |ours - recorded| / max |recorded|; infinite where the shapes differ."""
    if ours.shape != recorded.shape:
        return float("inf")
    scale = float(np.abs(recorded).max()) if recorded.size else 0.0
    return float(np.abs(ours - recorded).max() / scale) if scale else float(np.abs(ours).max())


def run_folder(folder: Path) -> Iterator[CaseReport]:
    """Run every case of a folder, in the order of `cases.json`.

    Raises:
        DataError: no folder, or no readable `cases.json` in it.
    """
    path = folder / "cases.json"
    try:
        cases = json.loads(path.read_text())
    except FileNotFoundError:
        raise DataError(f"'{path}' does not exist: expected a folder of recorded cases") from None
    except UNREADABLE as error:
        raise DataError(f"'{path}' is not readable JSON ({error})") from None
    if not isinstance(cases, dict) or not cases:
        raise DataError(f"'{path}' lists no cases: expected {{name: {{mode, backbone, shot, ...}}}}")

    @cache
    def published(backbone: str) -> dict[str, Array]:
        keys = folder / f"official_keys_{backbone.removesuffix('_bn')}.json"
        if not keys.is_file():
            keys = folder / f"official_keys_{backbone}.json"
        return official_state(json.loads(keys.read_text()))

    for name, case in cases.items():
        try:
            tolerance = TOLERANCE[case["mode"]]
            with np.load(folder / f"{name}.npz", allow_pickle=False) as recorded:
                run = _run_eval if case["mode"] == "eval" else _run_train
                yield CaseReport(name, run(case, published(case["backbone"]), dict(recorded)), tolerance)
        except Exception as error:  # whatever is wrong with one case is its verdict, and no reason to hide the others'
            problem = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
            yield CaseReport(name, {}, 0.0, problem)


def _network(case: Mapping[str, Any], published: Mapping[str, Array]) -> SDAANet:
    backbone, state = from_published({name: torch.from_numpy(array) for name, array in published.items()})
    norm = "batch" if case.get("backbone_bn") == "train" else "frozen"
    bins = tuple(case["scales"])
    # Random weights in float32 only to be replaced; loaded strictly, in float64.
    network = SDAANet(build_backbone(backbone, norm=norm), variant="published", bins=bins, dropout=0).double()
    network.load_state_dict(state)
    return network


def _inputs(case: Mapping[str, Any], step: int = 0) -> Episode:
    arrays = episode(case["batch"], case["shot"], case["size"], case["seed"] + step)
    query, query_mask, support, support_mask = (torch.from_numpy(array) for array in arrays)
    one = torch.ones(len(query), dtype=torch.int64)
    return Episode(query, query_mask, support[:, None], support_mask[:, None], one[:, None], one, (), ())


def _run_eval(case: Mapping[str, Any], published: Mapping[str, Array], recorded: dict[str, Array]) -> dict[str, float]:
    network = _network(case, published).eval()
    with torch.inference_mode():
        prediction = Comparer(network)(_inputs(case))
    arrays = _arrays(network, prediction)
    errors = {name: relative_error(arrays[name], array.astype(np.float64)) for name, array in recorded.items()}
    if "foreground_pixels" in case:
        count = int((prediction.logits[:, 1] > prediction.logits[:, 0]).sum())
        errors["foreground_pixels"] = float(abs(count - case["foreground_pixels"]))
    return errors


def _arrays(network: SDAANet, prediction: Prediction) -> dict[str, Array]:
    assert prediction.embedding is not None
    arrays = {"logits": prediction.logits, "prototype": prediction.embedding, **prediction.maps}
    if "prior" in arrays:
        prior = arrays.pop("prior")
        arrays["prior_bin0"] = resize(prior, network.decoder.sides(*prior.shape[-2:])[0])[:, 0]
    return {name: tensor.numpy() for name, tensor in arrays.items()}


def _run_train(case: Mapping[str, Any], published: Mapping[str, Array], recorded: dict[str, Array]) -> dict[str, float]:
    network = _network(case, published).train()
    comparer, weights = Comparer(network), {"main": 1.0, **network.loss_weights}
    head = {name: p for name, p in network.named_parameters() if p.requires_grad}
    settings = {"momentum": case["momentum"], "weight_decay": case["weight_decay"]}
    optimizer = torch.optim.SGD(head.values(), lr=case["base_lr"], **settings)
    rows, norms = [], []
    for step in range(case["steps"]):
        inputs = _inputs(case, step)
        for group in optimizer.param_groups:
            group["lr"] = case["base_lr"] * (1 - (step + 1) / 200) ** 0.9
        terms = network.losses(comparer(inputs), inputs)
        terms["total"] = torch.stack([weight * terms[name] for name, weight in weights.items()]).sum()
        optimizer.zero_grad()
        terms["total"].backward()
        if step == 0:
            ours = [our_name(name, case["backbone"]) for name in case["grad_norm_names"]]
            gradients = [head[name].grad if name in head else None for name in ours]
            norms = [float("nan") if gradient is None else float(gradient.norm()) for gradient in gradients]
        optimizer.step()
        rows.append([terms[column].item() for column in case["columns"]])
    arrays: dict[str, Array] = {"losses": np.array(rows), "grad_norms": np.array(norms)}
    state = network.state_dict()
    for name in recorded:
        if name.startswith("buffer:"):
            arrays[name] = state[str(our_name(name.removeprefix("buffer:"), case["backbone"]))].numpy()
    return {name: relative_error(arrays[name], array) for name, array in recorded.items()}
