"""SD-AANet: few-shot semantic segmentation from one to five labelled pictures (arXiv 2108.06600)."""

__version__ = "0.1.0"
