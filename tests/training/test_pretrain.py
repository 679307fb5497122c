import copy
import itertools
import math

import pytest
import torch
from torch import nn

from quantenv.core.errors import QuantenvError
from quantenv.tasks import Split
from quantenv.training.augmentation import augment
from quantenv.training.pretrain import PretrainConfig, Pretraining, cosine


def split(count=48):
    """Images of two classes, the second one brighter on the left."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(count, 2, 8, 8, generator=generator)
    images[1::2, :, :, :4] += 1.5
    return Split(images, torch.arange(count) % 2)


def network():
    """Batch norm has statistics and dropout draws: both must survive an interruption."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.2), nn.Flatten(), nn.Linear(144, 2)
        )


def training(**options):
    recipe = {"epochs": 4, "batch_size": 10, "learning_rate": 0.05, "crop_padding": 1, **options}
    return Pretraining(network(), split(), PretrainConfig(**recipe))


def same(one, other):
    return all(torch.equal(value, other.network.state_dict()[key]) for key, value in one.network.state_dict().items())


@pytest.mark.parametrize("options", [{}, {"flip": True, "bf16": True, "label_smoothing": 0.1}])
@pytest.mark.parametrize("stop", [1, 3])
def test_continuing_ends_with_the_same_weights_to_the_bit(options, stop):
    unbroken = training(**options)
    for _ in range(4):
        unbroken.run_epoch()
    first = training(**options)
    for _ in range(stop):
        first.run_epoch()
    second = training(**options)
    second.load(copy.deepcopy(first.state()))
    assert second.epoch == stop
    torch.manual_seed(123)  # what others draw changes nothing
    while second.epoch < 4:
        metrics = second.run_epoch()
    assert same(second, unbroken)
    assert not same(first, unbroken)
    assert 0 < metrics["pretrain/learning_rate"] < 0.05


def test_two_processes_go_on_as_one_does():
    whole = plain()
    expected = list(whole.epochs())
    first = plain()
    first.run_epoch()
    both = plain(processes=2)
    both.load(copy.deepcopy(first.state()))
    assert [*both.epochs()] == [pytest.approx(metrics, abs=1e-5) for metrics in expected[1:]]
    ours, theirs = both.network.state_dict(), whole.network.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.allclose(ours[key].double(), theirs[key].double(), atol=1e-5) for key in theirs)
    assert not torch.allclose(ours["0.weight"], first.network.state_dict()["0.weight"], atol=1e-3)


def plain(**options):
    """Without dropout, whose masks depend on the number of processes; batch norm's statistics do not."""
    recipe = {"epochs": 3, "batch_size": 10, "learning_rate": 0.05, "crop_padding": 1, "flip": True, **options}
    layers = [layer for layer in network() if not isinstance(layer, nn.Dropout)]
    return Pretraining(nn.Sequential(*layers), split(), PretrainConfig(**recipe))


def test_an_epoch_that_is_broken_off_is_lost_alone():
    unbroken, broken = training(), training()
    unbroken.run_epoch()
    broken.run_epoch()
    state = copy.deepcopy(broken.state())

    def stop():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        broken.run_epoch(stop)
    assert broken.epoch == 1
    broken.load(state)
    broken.run_epoch()
    unbroken.run_epoch()
    assert same(broken, unbroken)


def test_it_learns_and_seeds_matter():
    one, other = training(epochs=15), training(epochs=15, seed=1)
    losses = [one.run_epoch()["pretrain/train_loss"] for _ in range(15)]
    other.run_epoch()
    assert losses[-1] < 0.5 * losses[0]
    assert not same(one, other)
    data = split()
    assert (one.network(data.inputs).argmax(1) == data.labels).float().mean() > 0.9


def test_no_global_random_state_is_touched():
    before = torch.get_rng_state()
    training().run_epoch()
    assert torch.equal(torch.get_rng_state(), before)


def test_every_image_is_moved_and_mirrored_by_itself():
    images = torch.arange(1.0, 1 + 64 * 2 * 5 * 6).reshape(64, 2, 5, 6)
    moved = augment(images, 2, True, torch.Generator().manual_seed(0))
    seen = set()
    for image, result in zip(images, moved, strict=True):
        padded = nn.functional.pad(image, (2, 2, 2, 2))
        crops = {
            (top, left, flip): padded[:, top : top + 5, left : left + 6].flip(2 if flip else ())
            for top, left, flip in itertools.product(range(5), range(5), (False, True))
        }
        matches = [key for key, crop in crops.items() if torch.equal(result, crop)]
        assert len(matches) == 1
        seen.update(matches)
    assert {top for top, _, _ in seen} == {left for _, left, _ in seen} == set(range(5))
    assert {flip for _, _, flip in seen} == {False, True}


def test_without_padding_and_flip_images_stay():
    images = torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    assert torch.equal(augment(images, 0, False, torch.Generator()), images)


def test_the_learning_rate_is_half_a_cosine():
    assert cosine(0.1, 0, 10) == 0.1
    assert cosine(0.1, 5, 10) == pytest.approx(0.05)
    assert cosine(0.1, 10, 10) == pytest.approx(0)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 7)
    for step in range(7):
        assert cosine(0.3, step, 7) == pytest.approx(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()


def test_one_step_is_nesterovs():
    ours = training(epochs=1, batch_size=48, crop_padding=0, weight_decay=0.1, momentum=0.9)
    reference = network().train()
    order = torch.randperm(48, generator=torch.Generator().manual_seed(0))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        loss = nn.functional.cross_entropy(reference(split().inputs[order]), split().labels[order])
    loss.backward()
    ours.run_epoch()
    for mine, theirs in zip(ours.network.parameters(), reference.parameters(), strict=True):
        gradient = theirs.grad + (0.1 * theirs if theirs.dim() > 1 else 0)
        assert torch.allclose(mine, theirs - 0.05 * 1.9 * gradient, atol=1e-7)  # v = g; step by g + 0.9 v


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"epochs": 0}, "--epochs is 0"),
        ({"momentum": 1.5}, "--momentum is 1.5"),
        ({"learning_rate": math.nan}, "--learning_rate is nan"),
        ({"batch_size": 49}, "training split has only 48"),
        ({"compute": "abacus"}, "Known: cpu, cuda"),
        ({"processes": 3}, "batch_size is 10, which 3 processes cannot share"),
    ],
)
def test_mistakes_are_clear(options, sentence):
    with pytest.raises(QuantenvError, match=sentence):
        training(**options)


def test_divergence_is_a_clear_error():
    with pytest.raises(QuantenvError, match=r"diverged in epoch 1: .*Lower --learning_rate"):
        training(learning_rate=1e30).run_epoch()
