"""Kept features are the computed ones, whatever is kept and forgotten, in memory or on disk."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from networks import CountingResNet, episode, small, tiny
from sd_aanet.backbones import build_backbone
from sd_aanet.comparing import Comparer
from sd_aanet.episode import Episode, Rows
from sd_aanet.errors import ConfigError
from sd_aanet.feature_cache import FeatureCache
from sd_aanet.models import methods
from sd_aanet.models.base import Method
from sd_aanet.models.parts.features import High, Mid
from sd_aanet.models.prototype import CosinePrototype

PICTURES = ["a", "b", "c", "d", "e"]
SIDE = 5  # of the features of 33 x 33 pixels
MID, HIGH = (128 + 256) * SIDE**2 * 8, 512 * SIDE**2 * 8  # bytes of a picture, float64


@pytest.fixture(scope="module")
def network() -> Method:
    return small().train()


def batch_of(rows: list[tuple[list[str], Any]], dtype: torch.dtype = torch.float64) -> Episode:
    return episode([names for names, _ in rows], [c for _, c in rows], dtype=dtype)


def features(cache: FeatureCache, batch: Episode) -> tuple[Mid, High | None, Mid, High | None]:
    """Of the queries and of the supports, as a batch asks for them."""
    names = [key for row in batch.support_key for key in row]
    images, masks = batch.support.flatten(0, 2), batch.support_mask.flatten(0, 2)
    pictures = [name.partition("/")[0] for name in names]
    both = cache.image([*batch.query_key, *pictures], torch.cat([batch.query, images]))
    query, support = both.select(range(len(batch))), both.select(range(len(batch), len(both)))
    if not cache.method.masks_features:
        return query, None, support, None  # type: ignore[return-value]
    of_queries = cache.masked(batch.query_key, query, None)
    return query, of_queries, support, cache.masked(names, support, masks)  # type: ignore[return-value]


def computed(method: Method, batch: Episode) -> tuple[Mid, High | None, Mid, High | None]:
    query, support = method.image_features(batch.query), method.image_features(batch.support.flatten(0, 2))
    masks = batch.support_mask.flatten(0, 2)
    return query, method.masked_features(query, None), support, method.masked_features(support, masks)


def close(ours: Any, expected: Any, tolerance: float = 1e-12) -> None:
    for mine, wanted in zip(ours, expected, strict=True):
        assert type(mine) is type(wanted)
        if isinstance(mine, Rows):
            torch.testing.assert_close(vars(mine), vars(wanted), rtol=tolerance, atol=tolerance)


def check(cache: FeatureCache, batch: Episode) -> None:
    with torch.no_grad():
        close(features(cache, batch), computed(cache.method, batch))


rows = st.tuples(st.lists(st.sampled_from(PICTURES), min_size=2, max_size=2), st.integers(1, 2))
batches = st.lists(rows, min_size=1, max_size=2)


@settings(max_examples=6)
@given(st.lists(batches, min_size=2, max_size=3), st.sampled_from([0, 1, 2.5, 1000]))
def test_kept_is_computed(network: Method, sequence: list[Any], pictures: float) -> None:
    """Pictures recur within a batch and between batches, as query and support, in two classes; some are forgotten."""
    cache = FeatureCache(network, budget=pictures * (MID + HIGH))
    for rows in sequence:
        check(cache, batch_of(rows))
        assert 0 <= cache.bytes <= cache.budget


@pytest.mark.parametrize("name", methods())
def test_every_method_compares_what_is_kept(name: str, tmp_path: Path) -> None:
    """Also of several classes and shots; in memory and on disk."""
    method = tiny(name)
    size = method.backbone.grid.nearest(33)
    names = [["a", "b", "c", "d", "a"], ["b", "c", "e", "a", "c"]]
    batch = episode(names, [(1, 2), (2, 3)], size, torch.float64)
    with torch.no_grad():
        expected = Comparer(method)(batch).logits
        for cache in (FeatureCache(method, 1e9), FeatureCache(method, 0), FeatureCache(method, 0, tmp_path)):
            for _ in range(2):
                found = Comparer(method, cache)(batch).logits
                torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("prior", [{"prior": False}, {"high": "stage2"}, {"high": "stage3"}, {"mid": ["stage2"]}])
def test_other_priors(prior: dict[str, Any]) -> None:
    cache = FeatureCache(small(**prior), budget=1e9)
    for _ in range(2):
        check(cache, batch_of([(["a", "b"], 1), (["b", "c"], 2)]))


def test_each_picture_is_computed_once() -> None:
    backbone = CountingResNet()
    cache = FeatureCache(small(backbone=backbone), budget=1e9)
    first = batch_of([(["a", "b", "b"], 1), (["b", "a", "c"], 1)])
    features(cache, first)
    assert backbone.seen == [1, 1, 1]  # a, b, c of six
    assert (cache.misses, cache.hits) == (3 + 2 + 3, 6 - 3 + 0 + 1)  # pictures, queries, masked supports
    features(cache, first)
    assert backbone.seen == [1, 1, 1]
    assert cache.misses == 8


def test_only_some_kinds_are_kept() -> None:
    cache = FeatureCache(small(), budget=1e9, kinds=("image",))
    batch = batch_of([(["a", "b", "b"], 1)])
    for _ in range(2):
        check(cache, batch)
    assert cache.misses == 2 + 2 * 2  # a and b once, and the masked ones each time
    assert cache.bytes == 2 * MID


def test_a_mask_belongs_to_its_class(network: Method) -> None:
    """The same support in an episode of another class has other masked features."""
    cache = FeatureCache(network, budget=1e9)
    both = batch_of([(["a", "b"], 1), (["a", "b"], 2)])
    check(cache, both)
    high = features(cache, both)[3]
    assert high is not None
    assert not torch.allclose(*high.high)


def test_the_least_recently_used_goes_first() -> None:
    cache = FeatureCache(small(prior=False), budget=3 * MID)
    for names in (["a", "b"], ["c", "a"], ["d", "d"]):  # d drives out b: a was used again
        features(cache, batch_of([(names, 1)]))
    assert cache.bytes == 3 * MID
    for names, missing in ((["a", "c"], 0), (["d", "d"], 0), (["a", "b"], 1)):
        misses = cache.misses
        features(cache, batch_of([(names, 1)]))
        assert cache.misses == misses + missing, names


def test_features_outlive_their_batch(network: Method) -> None:
    """Spoiling what was served spoils nothing kept."""
    cache = FeatureCache(network, budget=1e9)
    batch = batch_of([(["a", "b"], 1), (["c", "d"], 1)])
    query, _, support, _ = features(cache, batch)
    query.mid.zero_()
    support.mid.zero_()
    check(cache, batch)


def test_what_validation_keeps_serves_training() -> None:
    """Lightning validates in inference mode, whose tensors no gradient may pass."""
    network = small(dtype=torch.float32)
    comparer = Comparer(network, FeatureCache(network, budget=1e9))
    batch = episode([["a", "b"], ["b", "c"]], [1, 2])
    with torch.inference_mode():
        comparer(batch)
    network.train()
    comparer(batch).logits.sum().backward()
    assert network.project_query.weight.grad is not None
    assert comparer.cache is not None
    assert comparer.cache.hits >= 4 + 4


def test_training_learns_from_kept_features_what_it_learns_from_pictures() -> None:
    batch = episode([["a", "b"], ["b", "c"]], [1, 2], dtype=torch.float64)
    gradients = []
    for keeps in (False, True):
        network = small().train()
        comparer = Comparer(network, FeatureCache(network, 1e9) if keeps else None)
        terms = network.losses(comparer(batch), batch)
        torch.stack(list(terms.values())).sum().backward()
        gradients.append([p.grad for p in network.parameters() if p.requires_grad])
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-9, atol=1e-9)


def test_a_training_backbone_is_refused() -> None:
    for arguments in ({"trainable": True}, {"norm": "batch"}):
        network = small(high="stage3", **arguments).train()
        with pytest.raises(ConfigError, match=r"^features=cache needs a backbone that stands still: set [^\n]*$"):
            FeatureCache(network, 1e9)
        check(FeatureCache(network.eval(), 1e9), batch_of([(["a", "b"], 1)]))  # for evaluation it stands still


def test_views_without_a_key_are_refused(network: Method) -> None:
    comparer = Comparer(network, FeatureCache(network, budget=1e9))
    for names in (["", "b"], ["a", ""]):
        with pytest.raises(ConfigError, match=r"^features=cache needs pictures that recur: set augment=none[^\n]*$"):
            comparer(batch_of([(names, 1)]))


# On disk ---------------------------------------------------------------------------------------------------------


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def knows(method: Method, folder: Path, dtype: torch.dtype | None = None) -> bool:
    """Whether a folder holds what a batch wants: all of it, or nothing."""
    cache = FeatureCache(method, 0, folder)
    with torch.no_grad(), torch.autocast("cpu", dtype=dtype, enabled=dtype is not None):
        features(cache, batch_of([(["a", "b"], 1)], next(method.parameters()).dtype))
    assert 0 in (cache.misses, cache.hits)
    return cache.misses == 0


def test_a_folder_serves_other_runs(tmp_path: Path) -> None:
    cache = FeatureCache(small(), 0, tmp_path)
    batch = batch_of([(["a", "b"], 1), (["b", "b"], 2)])
    check(cache, batch)
    check(cache, batch)
    assert cache.bytes == 0  # nothing in memory
    assert not list(tmp_path.rglob(".*"))  # no half files
    assert {path.parent.name for path in files(tmp_path)} == {"image", "masked"}
    other = FeatureCache(small(), 0, tmp_path)
    check(other, batch)
    assert other.misses == 0
    for path in files(tmp_path):
        torch.load(path, weights_only=True)  # executes nothing


def test_products_rounded_to_tf32_are_kept_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    features(FeatureCache(small(), 0, tmp_path), batch_of([(["a", "b"], 1)]))
    before = {*files(tmp_path)}
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", not torch.backends.cudnn.allow_tf32)
    features(FeatureCache(small(), 0, tmp_path), batch_of([(["a", "b"], 1)]))
    assert len({*files(tmp_path)}) == 2 * len(before)


def test_what_a_folder_gives_back_is_what_was_computed(tmp_path: Path) -> None:
    """To the bit."""
    batch = batch_of([(["a", "b"], 1), (["c", "a"], 2)])
    with torch.no_grad():
        kept = features(FeatureCache(small(), 1e9), batch)
        written = features(FeatureCache(small(), 0, tmp_path), batch)
        read = features(FeatureCache(small(), 0, tmp_path), batch)
    close(written, kept, tolerance=0)
    close(read, kept, tolerance=0)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda _: b"garbage",
        lambda _: b"",
        lambda raw: raw[: len(raw) // 2],
        lambda raw: raw[: len(raw) // 2] + bytes(256) + raw[len(raw) // 2 + 256 :],  # a whole file, zeros in a tensor
    ],
)
def test_a_damaged_file_is_made_anew(spoil: Callable[[bytes], bytes], tmp_path: Path) -> None:
    batch = batch_of([(["a", "b"], 1)])
    check(FeatureCache(small(), 0, tmp_path), batch)
    whole = {path: path.read_bytes() for path in files(tmp_path)}
    assert len(whole) == 2 + 1 + 1
    for path, raw in whole.items():
        path.write_bytes(spoil(raw))
    cache = FeatureCache(small(), 0, tmp_path)
    check(cache, batch)
    assert (cache.misses, cache.hits) == (4, 0)
    assert files(tmp_path) == sorted(whole)
    assert knows(small(), tmp_path)


def test_a_file_of_something_else_is_made_anew(tmp_path: Path) -> None:
    batch = batch_of([(["a", "b"], 1)])
    check(FeatureCache(small(), 0, tmp_path), batch)
    for path in files(tmp_path):
        torch.save({"weights": torch.zeros(3)}, path)
    check(FeatureCache(small(), 0, tmp_path), batch)
    for path in files(tmp_path):
        name, checksum, values = torch.load(path, weights_only=True)
        longer = {key: value[None] if isinstance(value, Tensor) else value for key, value in values.items()}
        torch.save((name, checksum, longer), path)
    check(FeatureCache(small(), 0, tmp_path), batch)
    first, second, *_ = files(tmp_path)  # those of two pictures
    first.write_bytes(second.read_bytes())
    check(FeatureCache(small(), 0, tmp_path), batch)


def test_kept_features_do_not_depend_on_what_else_was_missing() -> None:
    """To the bit, in float32, so that a training that goes on after a break is the same one."""
    batch = episode([["a", "b"], ["c", "d"], ["e", "a"]], [1, 2, 1], size=65)
    cache = FeatureCache(small(dtype=torch.float32), budget=1e9)
    with torch.no_grad():
        features(cache, episode([["d", "c"]], [1], size=65))
        some = features(cache, batch)
        close(some, features(FeatureCache(small(dtype=torch.float32), budget=1e9), batch), tolerance=0)


def test_a_folder_keeps_apart_what_differs(tmp_path: Path) -> None:
    """Other weights, precision, strides or outputs: other features of the same picture."""

    def made(**settings: Any) -> Method:
        network = small(**{"backbone": "resnet50", "high": "stage3"} | settings)
        network.backbone.load_state_dict(first.backbone.state_dict())
        return network

    first = small(backbone="resnet50", high="stage3")
    assert not knows(first, tmp_path)
    assert knows(first, tmp_path)
    assert knows(made(), tmp_path)
    assert not knows(first, tmp_path, dtype=torch.bfloat16)
    others: dict[str, Any] = {"high": "stage2", "stride_on": "1x1", "output_stride": 16, "mid": ["stage2", "stage3"]}
    for name, value in others.items():
        assert not knows(made(**{name: value}), tmp_path), name
    with torch.no_grad():
        first.backbone.get_parameter("layer1.0.conv1.weight")[0, 0] += 1e-3
    assert not knows(first, tmp_path)


@pytest.mark.parametrize("option", [{"l2": True}, {"debias": 3}, {"norm_mid": True}])
def test_a_folder_keeps_apart_what_becomes_of_an_output(option: dict[str, Any], tmp_path: Path) -> None:
    """Nothing of it shows in weights or layers."""
    pytest.importorskip("transformers", reason="the extra `vit` is not installed")

    def feature(**options: Any) -> Tensor:
        torch.manual_seed(0)
        method = CosinePrototype(build_backbone("dinov2_s", blocks=2, **options)).eval()
        with torch.no_grad():
            made: Any = FeatureCache(method, 0, tmp_path).image(["a"], torch.ones(1, 3, 28, 28))
        return made.maps

    plain, other = feature(), feature(**option)
    assert not torch.equal(plain, other)
    torch.testing.assert_close(feature(), plain)


def test_a_folder_holds_bfloat16_as_it_is(tmp_path: Path) -> None:
    network = small(dtype=torch.float32)
    batch = episode([["a", "b"], ["c", "a"]], [1, 2])
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        kept = features(FeatureCache(network, 1e9), batch)
        features(FeatureCache(network, 0, tmp_path), batch)
        read = features(FeatureCache(network, 0, tmp_path), batch)
    assert read[0].mid.dtype == torch.bfloat16
    close(read, kept, tolerance=0)
