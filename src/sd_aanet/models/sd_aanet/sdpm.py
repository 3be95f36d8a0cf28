"""SDPM, the self-distillation guided prototype module: a channel reweighting learnt from the supports alone.

Reweighting is a product per channel, and masked average pooling is linear in each channel, so the pooled reweighted
support is the reweighted prototype: u * pool(s) = pool(u * s). No reweighted support map is ever made.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sd_aanet.errors import ConfigError

QUERY_REWEIGHTINGS = ("mean", "product")
VARIANTS = {"paper": "mean", "published": "product"}
"""How the query is reweighted in each variant of the method; their losses differ too (see `Distillation`)."""


class SDPM(nn.Module):
    """Squeeze-excitation on the supports' prototypes, for the supports and the query (method: Head, steps 3 and 6).

    Args:
        channels: C of the projected features.
        query_reweighting: "mean" multiplies the query by the mean of the u_k (the paper; its K > 1 case is ours),
            "product" by each u_k in turn and then by (mean u_k + 1) / 2 (the published network).

    Raises:
        ConfigError: an unknown `query_reweighting`.
    """

    def __init__(self, channels: int = 256, query_reweighting: str = "product") -> None:
        super().__init__()
        if query_reweighting not in QUERY_REWEIGHTINGS:
            raise ConfigError(
                f"query_reweighting '{query_reweighting}' is unknown: choose one of {', '.join(QUERY_REWEIGHTINGS)}"
            )
        self.squeeze = nn.Linear(channels, channels // 4)
        self.excite = nn.Linear(channels // 4, channels)
        self.query_reweighting = query_reweighting

    def reweighting(self, prototypes: Tensor) -> Tensor:
        """The weights u_k = (v_k + 1) / 2 in [0.5, 1]: prototypes (B, K, C) -> (B, K, C)."""
        with torch.autocast(prototypes.device.type, enabled=False):  # two small products, then a softmax: keep the bits
            v = torch.sigmoid(self.excite(torch.relu(self.squeeze(prototypes))))
        return (v + 1) / 2

    def of_query(self, reweighting: Tensor) -> Tensor:
        """The weights of the query's channels: u (B, K, C) -> (B, C)."""
        mean = reweighting.mean(1)
        if self.query_reweighting == "mean":
            return mean
        return reweighting.prod(1) * (mean + 1) / 2
