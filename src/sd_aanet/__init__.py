"""SD-AANet: few-shot semantic segmentation from one to five labelled pictures (arXiv 2108.06600)."""

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sd_aanet.segmenting.marks import Box, Points
    from sd_aanet.segmenting.result import Segmentation
    from sd_aanet.segmenting.segmenter import FewShotSegmenter

# Read by OpenMP when torch is loaded: threads that wait soon sleep. Those that spin for long take the cores from
# whatever else runs there, and from the thread that they wait for (benchmarks/busy.py); those that sleep at once make
# a training on an idle machine a third longer, for most waits end within microseconds.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    os.environ.setdefault("GOMP_SPINCOUNT", "5000")

__version__ = "0.1.0"
__all__ = ["Box", "FewShotSegmenter", "Points", "Segmentation"]
_HOMES = {
    "Box": "sd_aanet.segmenting.marks",
    "FewShotSegmenter": "sd_aanet.segmenting.segmenter",
    "Points": "sd_aanet.segmenting.marks",
    "Segmentation": "sd_aanet.segmenting.result",
}


def __getattr__(name: str) -> Any:
    """Import the public names when they are asked for: torch takes seconds that `sd-aanet --help` does not need."""
    if name in __all__:
        from importlib import import_module

        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'sd_aanet' has no attribute '{name}'")
