"""What a few-shot segmentation method is: the steps from pictures and masks to a prediction, each with its own types.

A picture takes part in many episodes, and a support set serves many queries. So the way is cut where results can be
kept: by image, by image and class, by support set, by query and example. `comparing.py` walks it; nobody else does.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence, Set
from typing import Any, ClassVar, Generic, TypeVar

import torch
from torch import Tensor, nn

from sd_aanet.backbones.base import Backbone
from sd_aanet.episode import Episode, Prediction, Rows
from sd_aanet.errors import ConfigError
from sd_aanet.rules import Rule

F = TypeVar("F", bound=Rows)
M = TypeVar("M", bound=Rows)
Q = TypeVar("Q", bound=Rows)
S = TypeVar("S", bound=Rows)
T = TypeVar("T", bound=Rows)
P = TypeVar("P", bound=Rows)


class FewShotMethod(nn.Module, ABC, Generic[F, M, Q, S, T, P]):
    """A backbone, and what a method makes of its outputs; pure torch, and no query mask is needed to predict.

    The six types are the method's own frozen dataclasses of `Rows`: of images (F), of images under a mask (M), of
    queries (Q), of single examples (S), of support sets (T), of a query beside an example (P). Masks hold 1 for the
    class, 0 for everything else and 255 for what counts nowhere.

    A subclass that gives a `name` is a method that `model=` can choose.

    Attributes:
        name: of the method, in configurations and checkpoints.
        trains: whether there is anything to learn before it is used.
        adapts: whether it fits something to each support set at test time. Such sets are kept, and it gets tensors that
            gradients can be taken from.
        joint: whether `compare` takes all classes of an episode together. Otherwise N classes are N comparisons, which
            `merge_ways` brings together.
        least_batch: episodes on a device that a training step needs.
        masks_features: whether it has `masked_features`.
        loss_weights: the weight of each of the `losses` in their sum; 1 for those that are not named.
        takes: which of the backbone's choices it takes, "mid" and "high".
        ways: the number of classes that it is made for; None where it takes any.
        output_stride: of the backbone; without effect on those that have but one.
        shipped: the classes that weights which come with the package have learnt from, by data set.
        rules: of its own settings, the arguments beside `backbone`; `loss.alpha` is a value of one that is a mapping.
    """

    name: ClassVar[str]
    trains: bool = True
    adapts: ClassVar[bool] = False
    joint: ClassVar[bool] = False
    takes: ClassVar[Set[str]] = frozenset({"mid"})
    ways: int | None = None
    output_stride: ClassVar[int] = 8
    shipped: ClassVar[Mapping[str, Sequence[str]]] = {}
    rules: ClassVar[Mapping[str, Rule]] = {}
    least_batch: int = 1
    masks_features: bool = False
    loss_weights: Mapping[str, float] = {}

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone
        self.train()  # a new module is in train mode without anybody having called `train`, which freezes the norms

    def check_batch(self, episodes: int) -> None:
        """Raise `ConfigError` where a training step on a device has too few episodes for the method's batch norms."""
        if episodes < self.least_batch:
            raise ConfigError(
                f"batch_size={episodes}, expected at least {self.least_batch} episodes on a device: a batch norm of "
                f"{self.label} sees one value an episode; set batch_size={self.least_batch} or more"
            )

    @property
    @abstractmethod
    def label(self) -> str:
        """What a table calls the method, its variant and its ablations in it; an attribute where that is constant."""

    @property
    def finest(self) -> str:
        """The output of the backbone between whose cells an object must not fall."""
        return self.backbone.mid[0]

    @abstractmethod
    def image_features(self, images: Tensor) -> F:
        """What depends on the picture alone, of N images (N, 3, S, S); kept by image."""

    def masked_features(self, features: F, mask: Tensor | None) -> M | None:
        """Further features of N images, which for an example depend on its mask; kept by image and class.

        Args:
            features: of N images.
            mask: (N, S, S) int64 of 0, 1 and 255; None for queries.

        Returns:
            None where the method has no such features.
        """
        return None

    @abstractmethod
    def encode_query(self, features: F, masked: M | None) -> Q:
        """What the head makes of N queries, before it sees any example."""

    @abstractmethod
    def encode_support(self, features: F, masked: M | None, mask: Tensor) -> S:
        """What the head makes of N examples, each on its own; `mask` (N, S, S) int64 of 0, 1 and 255."""

    def thinned(self, supports: S, shots: int) -> S:
        """Of N examples what a support set of so many shots will read of them, in memory of its own or as they are."""
        return supports

    @abstractmethod
    def support_set(self, supports: S, shots: int) -> T:
        """What the shots of a support set make together: a mean prototype, a mixture, a fitted classifier.

        Args:
            supports: B * K examples, shots innermost.
            shots: K.

        Returns:
            B support sets.
        """

    def pair(self, queries: Q, rows: Sequence[int], supports: S) -> P | None:
        """What a query and a single example make together, of N such pairs: the prior mask, a dense correlation.

        Args:
            queries: any number.
            rows: for each of N examples, its query.
            supports: N examples.

        Returns:
            N pairs; None where the method has none.
        """
        return None

    @abstractmethod
    def compare(self, queries: Q, sets: T, pairs: P | None, size: tuple[int, int]) -> Prediction:
        """Segment B queries, each by its support set.

        Args:
            queries: B.
            sets: B; of a `joint` method B * N, classes innermost.
            pairs: B * K of them, shots innermost; of a `joint` method B * N * K.
            size: (H, W) of the logits.
        """

    def graph_set(self, supports: F, mask: Tensor, shots: int) -> T:
        """`encode_support` and `support_set` without a loop over rows, for a graph in which their number is open.

        Args:
            supports: B * K examples, shots innermost; of a method that adapts K, of one support set.
            mask: (BK, S, S) int64 of 0, 1 and 255.
            shots: K.
        """
        return self.support_set(self.encode_support(supports, None, mask), shots)

    def graph_pairs(self, queries: F, supports: F, mask: Tensor, shots: int) -> P | None:
        """`masked_features` and `pair` without a loop over rows, of B queries with K examples each; see `graph_set`.

        Raises:
            ConfigError: the method has such a loop.
        """
        return None

    def presence(self, prediction: Prediction) -> Tensor:
        """How sure it is that queries show the class at all, of one-way predictions: (B,) float32 in [0, 1].

        The mean probability of the surest hundredth of the picture, unless a method has something better.
        """
        return surest(prediction.logits.float().softmax(1)[:, 1], 0.01)

    def least_presence(self, left_out: Sequence[float]) -> float:
        """The `presence` from which on a class counts as there.

        Args:
            left_out: for examples of it, the `presence` that the others of their set give them; empty where there is
                but one.
        """
        return 0.5

    def losses(self, prediction: Prediction, episode: Episode) -> dict[str, Tensor]:
        """Terms of the training loss by name, each a scalar before its weight.

        Args:
            prediction: of `compare` in train mode.
            episode: of B one-way episodes; of a `joint` method of B N-way ones.
        """
        return {}

    def merge_ways(self, logits: Tensor) -> Tensor:
        """N one-way comparisons as one answer.

        Args:
            logits: (B, N, 2, H, W).

        Returns:
            (B, N + 1, H, W) in [0, 1], the scores of the background and of each class; the largest is the answer. For
            N = 1 the two sum to one.
        """
        foreground = logits.float().softmax(2)[:, :, 1]  # (B, N, H, W)
        return torch.cat([1 - foreground.amax(1, keepdim=True), foreground], 1)  # (B, N + 1, H, W)


def surest(probability: Tensor, share: float) -> Tensor:
    """The mean of the highest of each of B maps (B, ..., H, W), of such a share of them: (B,)."""
    flat = probability.flatten(1)
    return flat.topk(max(1, int(flat.shape[1] * share)), dim=1).values.mean(1)


Method = FewShotMethod[Any, Any, Any, Any, Any, Any]
"""Any method, for those who hand its types on without looking into them."""
