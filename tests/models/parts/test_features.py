"""Several outputs of a backbone as one map."""

import pytest
import torch
import torch.nn.functional as F

from sd_aanet.models.parts.features import Maps


@pytest.mark.parametrize("normalise", [False, True])
def test_outputs_are_joined_on_the_first_ones_grid(normalise: bool) -> None:
    torch.manual_seed(0)
    first, second = torch.randn(2, 3, 4, 7).double(), torch.randn(2, 5, 2, 3).double()
    larger = F.interpolate(second, (4, 7), mode="bilinear", align_corners=True)
    parts = [part / part.norm(dim=1, keepdim=True) if normalise else part for part in (first, larger)]
    torch.testing.assert_close(Maps.joined([first, second], normalise).maps, torch.cat(parts, 1))
