"""SD-AANet: few-shot semantic segmentation from one to five labelled pictures (arXiv 2108.06600)."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sd_aanet.segmenter import FewShotSegmenter, Segmentation

__version__ = "0.1.0"
__all__ = ["FewShotSegmenter", "Segmentation"]


def __getattr__(name: str) -> Any:
    """Import the public names when they are asked for: torch takes seconds that `sd-aanet --help` does not need."""
    if name in __all__:
        from sd_aanet import segmenter

        return getattr(segmenter, name)
    raise AttributeError(f"module 'sd_aanet' has no attribute '{name}'")
