"""SD-AANet for several classes at once."""

import pytest
import torch

from sd_aanet.backbones import build_backbone
from sd_aanet.comparing import Comparer
from sd_aanet.episode import Episode
from sd_aanet.errors import ConfigError
from sd_aanet.models.sd_aanet import SDAANet, SDAANetMulti

SIZE, CHANNELS = 33, 16


def network(ways: int = 2, **arguments: object) -> SDAANetMulti:
    torch.manual_seed(0)
    return SDAANetMulti(build_backbone("resnet18"), CHANNELS, ways, dropout=0, **arguments).double()


def episodes(ways: int = 2, shots: int = 1, batch: int = 2, seed: int = 0) -> Episode:
    generator = torch.Generator().manual_seed(seed)
    pictures = torch.randn(batch, 1 + ways * shots, 3, SIZE, SIZE, generator=generator, dtype=torch.float64)
    masks = torch.randint(0, 2, (batch, ways, shots, SIZE, SIZE), generator=generator)
    masks[..., :4, :] = 255
    query_mask = torch.randint(0, ways + 1, (batch, SIZE, SIZE), generator=generator)
    query_mask[:, :3] = 255
    return Episode(
        query=pictures[:, 0],
        query_mask=query_mask,
        support=pictures[:, 1:].unflatten(1, (ways, shots)),
        support_mask=masks,
        class_id=torch.arange(1, ways + 1).expand(batch, -1),
        index=torch.arange(batch),
        query_key=("",) * batch,
        support_key=(("",) * (ways * shots),) * batch,
    )


@pytest.mark.parametrize(("ways", "shots"), [(2, 1), (3, 2)])
def test_an_output_for_each_class_and_one_for_the_background(ways: int, shots: int) -> None:
    method = network(ways).eval()
    comparer = Comparer(method)
    with torch.no_grad():
        prediction = comparer(episodes(ways, shots))
        scores = comparer.scores(prediction, ways)
    assert prediction.logits.shape == scores.shape == (2, ways + 1, SIZE, SIZE)
    torch.testing.assert_close(scores.sum(1), torch.ones(2, SIZE, SIZE))
    assert prediction.maps["attention"].shape[:2] == prediction.maps["prior"].shape[:2] == (2, ways)


def test_each_class_goes_through_the_modules_on_its_own() -> None:
    method, both = network().eval(), episodes(shots=2)
    single = SDAANet(build_backbone("resnet18"), CHANNELS, dropout=0).double().eval()
    state = single.state_dict()
    shared = {name: value for name, value in method.state_dict().items() if name in state}
    single.load_state_dict({n: v for n, v in shared.items() if v.shape == state[n].shape}, strict=False)
    with torch.no_grad():
        together, alone = Comparer(method)(both), Comparer(single)(both.one_way())
    for name in ("prior", "attention"):
        expected = alone.maps[name].unflatten(0, (2, 2))[:, :, 0]  # (B, N, h, w)
        torch.testing.assert_close(together.maps[name], expected)


def test_examples_of_one_class_move_no_other_class_s_attention() -> None:
    method, before = network().eval(), episodes()
    changed = before.support.clone()
    changed[:, 1] += 1
    with torch.no_grad():
        old = Comparer(method)(before).maps["attention"]
        new = Comparer(method)(type(before)(**(vars(before) | {"support": changed}))).maps["attention"]
    torch.testing.assert_close(old[:, 0], new[:, 0])
    assert not torch.allclose(old[:, 1], new[:, 1])


def test_the_same_by_names_as_in_a_batch() -> None:
    method, batch = network(3).eval(), episodes(3, 2)
    comparer = Comparer(method)
    with torch.no_grad():
        expected = comparer(batch).logits
        images, masks = batch.support.flatten(0, 2), batch.support_mask.flatten(0, 2)
        comparer.add_supports(range(len(images)), images, masks)
        encoded = comparer.encode_queries(batch.query)
        named = [(b, [[6 * b + 2 * n, 6 * b + 2 * n + 1] for n in range(3)]) for b in range(2)]
        found = comparer.compare(encoded, named, (SIZE, SIZE)).logits
    torch.testing.assert_close(found, expected)


def test_every_parameter_of_the_head_learns() -> None:
    method, batch = network().train(), episodes()
    terms = method.losses(Comparer(method)(batch), batch)
    assert set(terms) == {"main", "auxiliary", "distillation", "support"}
    sum(terms.values()).backward()
    still = [n for n, p in method.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
    assert not still


def test_another_number_of_classes_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"way=3, but this network was made for 2 classes: set way=2"):
        Comparer(network(2))(episodes(3))


def test_its_label_says_how_many_classes() -> None:
    assert network(3, saam=False).label == "without SAAM (published), 3 classes at once"
