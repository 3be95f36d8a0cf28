"""What a result holds, made of counts."""

import torch

from sd_aanet.evaluation.results import confusion_table


def test_the_confusion_names_the_classes_that_are_there() -> None:
    pixels = torch.tensor([[3, 0, 0, 1], [1, 1, 0, 0], [0, 0, 0, 0], [0, 2, 0, 6]])
    assert confusion_table(pixels, ("ant", "bee", "cat")) == {
        "classes": ["background", "ant", "cat"],
        "shares": [[0.75, 0.0, 0.25], [0.5, 0.5, 0.0], [0.0, 0.25, 0.75]],
    }
    assert confusion_table(None, ("ant", "bee", "cat")) is None
