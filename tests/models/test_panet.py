"""PANet as plainly as it can be written: maps made as large as the masks, and one picture after another."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from networks import rough
from sd_aanet.comparing import Comparer
from sd_aanet.episode import Episode
from sd_aanet.errors import ConfigError
from sd_aanet.models import build_method
from sd_aanet.models.panet import PANet, PANetPrediction, Prototypes, cosines, pool
from sd_aanet.models.parts.features import Maps

SIZE = 41


def network(training: bool = False, **arguments: object) -> PANet:
    """On a ResNet-18, with norms that do something."""
    torch.manual_seed(0)
    method = build_method("panet", {"name": "resnet18"}, **{"channels": 24, **arguments}).double()
    rough(method)
    assert isinstance(method, PANet)
    return method.train(training)


def episodes(batch: int = 2, ways: int = 1, shots: int = 1, seed: int = 0) -> Episode:
    """Noise with boxes in it, each class of a brightness of its own, with borders that are ignored."""
    rng = np.random.default_rng(seed)
    query_mask = np.zeros((batch, SIZE, SIZE), np.int64)
    support_mask = np.zeros((batch, ways, shots, SIZE, SIZE), np.int64)

    def draw(mask: np.ndarray, value: int) -> None:
        y, x = rng.integers(2, SIZE // 2, 2)
        h, w = rng.integers(8, SIZE // 2, 2)
        mask[y - 2 : y + h + 2, x - 2 : x + w + 2] = 255
        mask[y : y + h, x : x + w] = value

    for b in range(batch):
        for n in range(ways):
            draw(query_mask[b], n + 1)
            for k in range(shots):
                draw(support_mask[b, n, k], 1)
    shade = np.arange(1, ways + 1)[None, :, None, None, None] * (support_mask == 1)
    support = rng.normal(0, 1, (batch, ways, shots, 3, SIZE, SIZE)) + 2.0 * shade[:, :, :, None]
    query = rng.normal(0, 1, (batch, 3, SIZE, SIZE)) + 2.0 * np.where(query_mask == 255, 0, query_mask)[:, None]
    return Episode(
        query=torch.from_numpy(query),
        query_mask=torch.from_numpy(query_mask),
        support=torch.from_numpy(support),
        support_mask=torch.from_numpy(support_mask),
        class_id=torch.arange(1, ways + 1).expand(batch, -1),
        index=torch.arange(batch),
        query_key=("",) * batch,
        support_key=(("",) * (ways * shots),) * batch,
    )


def up(x: Tensor) -> Tensor:
    """(C, h, w) to the picture's side."""
    return F.interpolate(x[None], (SIZE, SIZE), mode="bilinear", align_corners=True)[0]


def mean(maps: Tensor, mask: Tensor) -> Tensor:
    """(C,) of maps (C, H, W) where a mask (H, W) is."""
    return (maps * mask).sum((1, 2)) / (mask.sum() + 1e-5)


def segment(maps: Tensor, prototypes: list[Tensor]) -> Tensor:
    """(M, h, w) logits."""
    return torch.stack([20 * F.cosine_similarity(maps, p[:, None, None], dim=0) for p in prototypes])


def plain(method: PANet, episode: Episode, b: int) -> tuple[Tensor, Tensor, Tensor]:
    """Logits (N + 1, S, S), main loss and alignment of an episode."""

    def features(image: Tensor) -> Tensor:
        outputs = method.backbone(image[None], method.features)
        return method.project(torch.cat([outputs[name] for name in method.features], 1))[0]  # type: ignore[no-any-return]

    ways, shots = episode.ways, episode.shots
    q, query_mask, masks = features(episode.query[b]), episode.query_mask[b], episode.support_mask[b]
    maps = [[features(episode.support[b, n, k]) for k in range(shots)] for n in range(ways)]
    of_class, of_background = [], []
    for n in range(ways):
        of_class.append(sum(mean(up(maps[n][k]), (masks[n, k] == 1).double()) for k in range(shots)) / shots)
        of_background.append(sum(mean(up(maps[n][k]), (masks[n, k] == 0).double()) for k in range(shots)) / shots)
    logits = segment(q, [sum(of_background) / ways, *of_class])
    main = F.cross_entropy(up(logits)[None], query_mask[None], ignore_index=255)
    predicted, alignment = logits.argmax(0), torch.zeros(())
    for n in range(ways):
        if not (predicted == n + 1).any():
            continue
        prototypes = [mean(q, (predicted == 0).double()), mean(q, (predicted == n + 1).double())]
        for k in range(shots):
            other = F.cross_entropy(up(segment(maps[n][k], prototypes))[None], masks[n, k][None], ignore_index=255)
            alignment = alignment + other / (ways * shots)
    return up(logits), main, alignment


@pytest.mark.parametrize(("ways", "shots"), [(1, 1), (1, 3), (2, 2)])
@pytest.mark.parametrize("project", [True, False])
def test_it_is_the_plain_version(ways: int, shots: int, project: bool) -> None:
    method, batch = network(training=True, project=project), episodes(3, ways, shots)
    prediction = Comparer(method)(batch)
    terms = method.losses(prediction, batch)
    expected = [plain(method, batch, b) for b in range(3)]
    torch.testing.assert_close(prediction.logits, torch.stack([e[0] for e in expected]), rtol=1e-10, atol=1e-10)
    valid = [(batch.query_mask[b] != 255).sum() for b in range(3)]  # the main term is a mean over all pixels
    main = sum(e[1] * v for e, v in zip(expected, valid, strict=True)) / sum(valid)
    torch.testing.assert_close(terms["main"], main, rtol=1e-10, atol=1e-10)
    alignment = torch.stack([e[2] for e in expected]).mean()
    assert alignment > 0
    torch.testing.assert_close(terms["alignment"], alignment, rtol=1e-10, atol=1e-10)
    with torch.no_grad():
        evaluated = Comparer(method.eval())(batch)
    torch.testing.assert_close(evaluated.logits, prediction.logits.detach(), rtol=1e-10, atol=1e-10)
    assert isinstance(evaluated, PANetPrediction)
    assert evaluated.support_logits is None


def test_it_looked_at_what_is_nearer_to_any_class_than_to_the_background() -> None:
    torch.manual_seed(0)
    queries, sets = Maps(torch.randn(2, 24, 5, 7)), Prototypes(torch.randn(6, 2, 24), None)  # of three classes each
    found = network().compare(queries, sets, None, (5, 7))
    classes = torch.stack([found.logits[:, n] for n in (1, 2, 3)]).amax(0)
    torch.testing.assert_close(found.maps["similarity"], (classes - found.logits[:, 0])[:, None] / 20)


def test_the_gradient_is_the_plain_versions() -> None:
    method, batch = network(training=True), episodes(2, 1, 2)
    weight = method.get_parameter("project.weight")
    terms = method.losses(Comparer(method)(batch), batch)
    ours = torch.autograd.grad(terms["alignment"], weight)[0]
    expected = torch.autograd.grad(sum(plain(method, batch, b)[2] for b in range(2)) / 2, weight)[0]
    torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-10)
    assert all(p.grad is None and not p.requires_grad for p in method.backbone.parameters())


@pytest.mark.parametrize(("grid", "size"), [((6, 6), (41, 41)), ((5, 7), (33, 20)), ((1, 3), (9, 9)), ((9, 9), (9, 9))])
def test_pooling_makes_the_masks_small_instead_of_the_maps_large(grid: tuple[int, int], size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    maps, masks = torch.randn(2, 4, *grid, dtype=torch.float64), torch.rand(2, 3, *size, dtype=torch.float64)
    masks[0, 0] = 0
    large = F.interpolate(maps, size, mode="bilinear", align_corners=True)
    expected = [[mean(large[n], masks[n, m]) for m in range(3)] for n in range(2)]
    torch.testing.assert_close(pool(maps, masks), torch.stack([torch.stack(row) for row in expected]))


def test_a_class_that_is_predicted_nowhere_is_skipped() -> None:
    method, batch = network(training=True), episodes(2)
    nothing = torch.where(batch.support_mask == 1, 255, batch.support_mask)
    nothing[1] = batch.support_mask[1]
    batch = Episode(**{**vars(batch), "support_mask": nothing})  # the first one's prototype is zero, as are its cosines
    prediction = Comparer(method)(batch)
    assert isinstance(prediction, PANetPrediction)
    assert prediction.found is not None
    assert prediction.found.tolist() == [[False], [True]]
    terms = method.losses(prediction, batch)
    torch.testing.assert_close(terms["alignment"], plain(method, batch, 1)[2] / 2, rtol=1e-10, atol=1e-10)
    sum(terms.values()).backward()  # type: ignore[union-attr]
    grad = method.get_parameter("project.weight").grad
    assert grad is not None
    assert grad.isfinite().all()


@torch.no_grad()
def test_ignored_pixels_are_in_neither_prototype() -> None:
    method, batch = network(project=False), episodes(1)
    comparer = Comparer(method)
    background = torch.where(batch.support_mask == 255, 0, batch.support_mask)
    object_ = torch.where(batch.support_mask == 255, 1, batch.support_mask)
    prototypes = [
        method.encode_support(method.image_features(batch.support[:, 0, 0]), None, mask[:, 0, 0]).both[0]
        for mask in (batch.support_mask, background, object_)
    ]
    same = [[torch.allclose(prototypes[0][i], other[i]) for i in range(2)] for other in prototypes[1:]]
    assert same == [[False, True], [True, False]]
    everything = Episode(**{**vars(batch), "support_mask": torch.full_like(background, 255)})
    assert comparer(everything).logits.isfinite().all()


@torch.no_grad()
@pytest.mark.parametrize("ways", [1, 2])
def test_examples_that_were_added_give_the_same_answer(ways: int) -> None:
    batch, comparer = episodes(2, ways, 2), Comparer(network())
    names = [[[f"{b}.{n}.{k}" for k in range(2)] for n in range(ways)] for b in range(2)]
    for b in range(2):
        for n in range(ways):
            comparer.add_supports(names[b][n], batch.support[b, n], batch.support_mask[b, n])
    encoded = comparer.encode_queries(batch.query)
    ours = comparer.compare(encoded, [(1, names[1]), (0, names[0])], (SIZE, SIZE))
    torch.testing.assert_close(ours.logits.flip(0), comparer(batch).logits, rtol=1e-10, atol=1e-10)
    assert comparer.scores(ours, ways).shape == (2, ways + 1, SIZE, SIZE)


@torch.no_grad()
def test_the_order_of_the_shots_does_not_matter() -> None:
    comparer, batch = Comparer(network()), episodes(2, 1, 3)
    turned = Episode(**{**vars(batch), "support": batch.support.flip(2), "support_mask": batch.support_mask.flip(2)})
    torch.testing.assert_close(comparer(batch).logits, comparer(turned).logits, rtol=1e-10, atol=1e-10)


def test_what_trains() -> None:
    method = network()
    assert sum(p.numel() for p in method.parameters() if p.requires_grad) == 24 * (256 + 128)
    assert method.trains
    assert method.label == "PANet"
    assert not network(project=False).trains
    assert network(project=False).label == "PANet, not projected"
    whole = build_method("panet", {"name": "resnet18", "trainable": True}, project=False)
    assert whole.trains


def test_the_weight_of_the_alignment_is_a_setting() -> None:
    assert network().loss_weights == {"alignment": 1.0}
    assert network(loss={"alignment": 0.25}).loss_weights == {"alignment": 0.25}
    with pytest.raises(ConfigError, match=r"^method panet has no setting loss\.beta: leave it out"):
        network(loss={"beta": 1.0})


def test_means_and_cosines_keep_their_bits_in_half_precision() -> None:
    torch.manual_seed(0)
    maps, masks, prototypes = torch.randn(2, 32, 5, 5).bfloat16(), torch.rand(2, 3, 33, 33), torch.randn(2, 3, 32)
    with torch.autocast("cpu", torch.bfloat16):
        means, similarity = pool(maps, masks), cosines(maps, prototypes)
    close = {"rtol": 0, "atol": 1e-6}
    torch.testing.assert_close(means.double(), pool(maps.double(), masks.double()), **close)
    torch.testing.assert_close(similarity.double(), cosines(maps.double(), prototypes.double()), **close)
