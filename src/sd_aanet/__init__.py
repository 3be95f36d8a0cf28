"""SD-AANet: few-shot semantic segmentation from one to five labelled pictures (arXiv 2108.06600)."""

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sd_aanet.segmenter import FewShotSegmenter, Segmentation

# Read by OpenMP when torch is loaded: threads that wait sleep. Those that spin take the cores from whatever else runs
# there, be it another training, and the thread that they wait for; see benchmarks/busy.py.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

__version__ = "0.1.0"
__all__ = ["FewShotSegmenter", "Segmentation"]


def __getattr__(name: str) -> Any:
    """Import the public names when they are asked for: torch takes seconds that `sd-aanet --help` does not need."""
    if name in __all__:
        from sd_aanet import segmenter

        return getattr(segmenter, name)
    raise AttributeError(f"module 'sd_aanet' has no attribute '{name}'")
