"""`sd-aanet export`: a method as graphs, for ONNX Runtime or torch.export, that are of use without this package.

A picture takes part in many comparisons, so there are two graphs: the picture side makes of pictures what both roles
need; the compare side makes of a query's features, its examples' features and their masks the object's probability. Of
a method that fits to its support sets (`adapts`) the fit is a third graph, for it serves many queries.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sd_aanet import __version__
from sd_aanet.backbones.base import folded
from sd_aanet.comparing import Comparer
from sd_aanet.data.transforms import Preprocess
from sd_aanet.errors import ConfigError, SDAANetError
from sd_aanet.files import short, written_out
from sd_aanet.models.base import Method
from sd_aanet.segmenting.given import segmenter_of

SUFFIXES = (".onnx", ".pt2")
PACKAGES = ("onnx", "onnxscript")
SIDES = {"N": 2, "B": 2, "K": 3}
"""The open sides of graphs, and how long they are while one is drawn: anything but 0 and 1, which would stay."""
Named = dict[str, Tensor]


@dataclass(frozen=True)
class Graph:
    """One of a method's graphs.

    Attributes:
        method: whose weights it takes.
        function: of named tensors; it gives such.
        inputs: an example of each, with one row.
        sides: of each input the open sides, which are its first ones: "BK".
        outputs: examples.
        out_sides: the open sides of all outputs.
    """

    method: Method
    function: Callable[[Named], Named]
    inputs: Named
    sides: Mapping[str, str]
    outputs: Named
    out_sides: str

    def shapes(self) -> dict[str, dict[str, str]]:
        """Inputs and outputs by name, each as "float32 (N, 3, 641, 641)"."""

        def told(x: Tensor, opened: str) -> str:
            sides = [*opened, *map(str, x.shape[len(opened) :])]
            return f"{str(x.dtype).removeprefix('torch.')} ({', '.join(sides)})"

        return {
            "inputs": {name: told(x, self.sides[name]) for name, x in self.inputs.items()},
            "outputs": {name: told(x, self.out_sides) for name, x in self.outputs.items()},
        }

    @cached_property
    def program(self) -> torch.export.ExportedProgram:
        """The graph for the CPU."""
        examples, opened = [], []
        dims = {side: torch.export.Dim(side) for side in SIDES}
        for name, x in self.inputs.items():
            sides = self.sides[name]
            examples.append(x.new_zeros(*(SIDES[side] for side in sides), *x.shape[len(sides) :]))
            opened.append({i: dims[side] for i, side in enumerate(sides)})
        module = _Module(self.method, self.function, tuple(self.inputs))
        with torch.no_grad(), _in_one_line(self.method.name):
            return torch.export.export(module, tuple(examples), dynamic_shapes=(tuple(opened),), strict=False)

    def used(self) -> Graph:
        """The same without those inputs that nothing is made of."""
        nodes = {node.name: node for node in self.program.graph.nodes}
        names = zip(self.inputs, self.program.graph_signature.user_inputs, strict=True)
        sizes = torch.ops.aten.sym_size.int  # others tell the open sides as well
        used = {
            name: self.inputs[name]
            for name, node in names
            if any(user.target is not sizes for user in nodes[str(node)].users)
        }
        return self if len(used) == len(self.inputs) else replace(self, inputs=used)

    def save(self, path: Path) -> None:
        """Write it as what the path's suffix says."""
        with _in_one_line(self.method.name):
            if path.suffix == ".pt2":
                torch.export.save(self.program, path)
                return
            names = {"input_names": [*self.inputs], "output_names": [*self.outputs]}
            made = torch.onnx.export(self.program, **names, verbose=False)  # type: ignore[arg-type]
            assert made is not None
            made.save(path, external_data=False)


class _Module(nn.Module):
    """A function of named tensors as a module."""

    def __init__(self, method: Method, function: Callable[[Named], Named], names: tuple[str, ...]) -> None:
        super().__init__()
        self.method, self.function, self.names = method, function, names

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.function(dict(zip(self.names, tensors, strict=True))).values())


def run(config: Mapping[str, Any]) -> Path:
    """Write a method's graphs, and beside them what to do with them.

    Args:
        config: `out`, a file's name that ends in .onnx or .pt2: `model.onnx` gives `model_picture.onnx`,
            `model_compare.onnx`, of a method that adapts `model_support.onnx`, and `model.json`; and, as
            `sd-aanet predict` takes them, `checkpoint`, or where that is None `backbone`, `model` and so on.

    Returns:
        The path of the JSON file.

    Raises:
        ConfigError: a setting that cannot work, a missing package, or a method of which no graph can be drawn.
        CheckpointError: see `FewShotSegmenter.from_checkpoint`.
    """
    out = Path(str(config["out"]))
    if out.suffix not in SUFFIXES:
        raise ConfigError(f"out='{out}', expected a file that ends in {' or '.join(SUFFIXES)}: set out=model.onnx")
    told = out.with_suffix(".json")
    if out.suffix == ".onnx":
        _require_packages()
    segmenter = segmenter_of({**config, "device": "cpu"})
    method, preprocess = segmenter.method, segmenter.preprocess
    with contextlib.ExitStack() as stack:  # all files get their names, or none
        graphs = draw(method, preprocess.size)
        files = {name: out.with_name(f"{out.stem}_{name}{out.suffix}") for name in graphs}
        for name, graph in graphs.items():
            graph.save(stack.enter_context(written_out(files[name])))
        about = _about(method, preprocess) | {
            "graphs": {name: {"file": files[name].name, **graph.shapes()} for name, graph in graphs.items()}
        }
        stack.enter_context(written_out(told)).write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
    print(f"written: {', '.join(short(path.absolute()) for path in files.values())}; {told.name} says how to use them")
    return told


@torch.no_grad()
def draw(method: Method, size: int) -> dict[str, Graph]:
    """A method's graphs by name: "picture", of one that adapts "support", and "compare".

    Args:
        method: in eval mode on the CPU, in float32; its batch norms are folded, and it trains no more.
        size: S, the side of its input.

    Raises:
        ConfigError: the method compares in a way that no graph has.
    """
    method.backbone = folded(method.backbone)
    method.requires_grad_(False)
    images, masks = torch.zeros(1, 3, size, size), torch.zeros(1, 1, size, size, dtype=torch.uint8)
    masks[..., size // 4 : size // 2, size // 4 : size // 2] = 1
    features = method.image_features(images)
    kind = type(features)

    def rows(given: Named, prefix: str) -> Any:
        return kind(**{name: given.get(f"{prefix}{name}") for name in vars(features)})

    def answer(queries: Any, sets: Any, pairs: Any) -> Named:
        prediction = method.compare(method.encode_query(queries, None), sets, pairs, (size, size))
        return {
            "probability": Comparer(method).scores(prediction, 1)[:, 1],
            "presence": method.presence(prediction),
        }

    def picture(given: Named) -> Named:
        return _named(method.image_features(given["images"]))

    def compare(given: Named) -> Named:
        masks = given["masks"].long()
        flat = {name: x.flatten(0, 1) for name, x in given.items() if name.startswith("support_")}
        of_support = rows(flat, "support_"), masks.flatten(0, 1), masks.shape[1]
        queries = rows(given, "query_")
        return answer(queries, method.graph_set(*of_support), method.graph_pairs(queries, *of_support))

    def support(given: Named) -> Named:
        return _named(method.graph_set(rows(given, "support_"), given["masks"].long(), given["masks"].shape[0]))

    def compare_set(given: Named) -> Named:
        return answer(rows(given, "query_"), fitted(**{name: given[name] for name in vars(made)}), None)

    def graph(function: Callable[[Named], Named], inputs: Named, sides: Mapping[str, str], out_sides: str) -> Graph:
        # What is run once has kept what it keeps by size, and not when it is drawn, where it would be no numbers.
        return Graph(method, function, inputs, sides, function(inputs), out_sides).used()

    found = _named(features)
    queries = {f"query_{name}": x for name, x in found.items()}
    graphs = {"picture": graph(picture, {"images": images}, {"images": "N"}, "N")}
    if not method.adapts:
        supports = {f"support_{name}": x[:, None] for name, x in found.items()}
        sides = dict.fromkeys(queries, "B") | dict.fromkeys((*supports, "masks"), "BK")
        graphs["compare"] = graph(compare, queries | supports | {"masks": masks}, sides, "B")
        return graphs
    made = method.graph_set(features, masks[0].long(), 1)
    fitted, of_set = type(made), _named(made)
    supports = {f"support_{name}": x for name, x in found.items()} | {"masks": masks[0]}
    graphs["support"] = graph(support, supports, dict.fromkeys(supports, "K"), "")
    both = queries | of_set
    graphs["compare"] = graph(compare_set, both, dict.fromkeys(both, "B"), "B")
    return graphs


def _named(rows: Any) -> Named:
    return {name: x for name, x in vars(rows).items() if x is not None}


def _about(method: Method, preprocess: Preprocess) -> dict[str, Any]:
    """What a stranger has to know, in words and numbers."""
    size = preprocess.size
    between = "bilinearly between pixel centres"
    how = f"{between}, or where that is less than a third on both sides, each pixel the mean of those that it covers"
    if preprocess.resize == "squash":
        way, back = f"both sides to {size}, {how}", f"resize it to the picture's size, {between}"
    else:
        way = (
            f"the longer side to {size} and the other one in proportion, rounded, {how}; what is missing of {size} x "
            f"{size} on the right or below is filled with RGB {preprocess.colour}"
        )
        back = f"cut off what was filled, and resize the rest to the picture's size, {between}"
    filled = "" if preprocess.resize == "squash" else "; what was filled there is 255"
    steps = {
        "images": f"RGB, {way}; divided by 255, minus mean, divided by std; channels first, float32",
        "masks": f"uint8, 1 for the object, 0 for all else, 255 for what counts as neither; resized as its picture, "
        f"but to the nearest pixel{filled}",
        "picture": "of N pictures, queries or examples, the features that are inputs of the other graphs",
    }
    if method.adapts:
        steps["support"] = "of K examples of one thing, their features and masks, what is fitted to them: once a thing"
        steps["compare"] = (
            "of B queries, their features, and for each what was fitted (repeat or join it along its first axis)"
        )
    else:
        steps["compare"] = "of B queries, their features, and for each the features and masks of its K examples"
    steps["probability"] = f"of the object, in [0, 1]: {back}; over 0.5 is the object"
    least = method.least_presence([])
    steps["presence"] = f"how sure it is that the query shows the object, in [0, 1]: as a rule it does from {least} on"
    return {
        "sd_aanet": __version__,
        "method": method.label,
        "backbone": method.backbone.label,
        **vars(preprocess),
        "steps": steps,
    }


def _require_packages() -> None:
    for package in PACKAGES:
        try:
            import_module(package)
        except ModuleNotFoundError as error:
            raise ConfigError(
                f"package {error.name} is missing, out=*.onnx needs it: pip install 'sd-aanet[onnx]', or set out=*.pt2"
            ) from None


@contextlib.contextmanager
def _in_one_line(method: str) -> Iterator[None]:
    """What torch cannot draw is an error of ours, and what it tells of its own work is told to nobody."""
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
            warnings.simplefilter("ignore")
            yield
    except (SDAANetError, OSError):
        raise
    except Exception as error:  # of what a backbone does nearly anything
        first: BaseException = error
        while first.__cause__ is not None:  # it knows best
            first = first.__cause__
        line = "".join(filter(str.isprintable, " ".join(str(first).split())))[:200]
        raise ConfigError(
            f"model={method} over this backbone cannot be drawn as a graph ({line}): choose another"
        ) from error
    finally:
        log.setLevel(level)
