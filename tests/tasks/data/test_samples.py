import collections
import logging

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils.data import (
    DataLoader,
    IterableDataset,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from quantenv.core.errors import QuantenvError, UnsupportedLayerError
from quantenv.tasks import Split, Task, task_from_datasets

INPUTS = torch.randn(24, 6, generator=torch.Generator().manual_seed(0)).half().float()
LABELS = torch.arange(24) % 4


def linear(outputs=4):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, outputs))


def samples(change_input=lambda x: x, change_label=lambda y: y, part=slice(0, 12)):
    return [(change_input(x), change_label(y)) for x, y in zip(INPUTS[part], LABELS[part].tolist(), strict=True)]


def task(network=None, **changes):
    return task_from_datasets(network or linear(), samples(**changes), samples(part=slice(12, 24)))


def contents(task):
    return {name: (split.inputs.tolist(), split.labels.tolist()) for name, split in task.splits.items()}


EXPECTED = contents(task())


@pytest.mark.parametrize(
    "change",
    [
        *(np.int64, np.uint8, np.int16, np.array, torch.tensor, float, np.float32),
        lambda y: torch.tensor([y], dtype=torch.int16),
        lambda y: np.array([[y]]),
        lambda y: torch.tensor(float(y), requires_grad=True),
    ],
)
def test_a_class_in_any_form_is_the_same_task(change):
    assert contents(task(change_label=change)) == EXPECTED


def test_whole_numbers_in_floats_are_said(caplog):
    with caplog.at_level(logging.WARNING):
        task(change_label=float)
    assert caplog.messages == ["Labels of the data set train are whole numbers in floats: taken for classes."]


def test_two_classes_may_be_bools():
    data = [(x, bool(y % 2)) for x, y in samples()]
    assert contents(task_from_datasets(linear(), data, samples(part=slice(12, 24))))["train"][1] == [
        y % 2 for y in EXPECTED["train"][1]
    ]


@pytest.mark.parametrize(
    ("label", "sentence"),
    [
        (4, "has the label 4, but the network has 4 outputs, for the classes 0 to 3"),
        (-1, "has the label -1, but the network has 4 outputs"),
        (255, "has the label 255"),
        (10**30, "has the label 1000"),
        (np.uint64(2**64 - 1), "has the label 1844"),
        (0.35, r"has the label 0\.35; .* Targets of a regression"),
        (float("nan"), r"has the label nan"),
        (np.float64("inf"), r"has the label inf"),
        ("cat", "has the label 'cat'; .* Number the classes"),
        (None, "has the label None"),
        ({"class": 1}, "has the label a dict"),
        ([1], "has the label a list"),
        (1j, "has the label a complex"),
        (torch.tensor(1j), "has the label a complex"),
        (torch.tensor([0, 1, 0, 0]), r"has a label of shape \(4,\); .* by argmax"),
        (np.array([0.5, 0.5, 0, 0]), r"has a label of shape \(4,\)"),
        (torch.tensor([], dtype=torch.int64), r"has a label of shape \(0,\)"),
        (torch.tensor(1, device="meta"), r"has a label of shape \(\)"),
    ],
)
def test_other_labels_are_named(label, sentence):
    data = samples()
    data[5] = (data[5][0], label)
    with pytest.raises(QuantenvError, match=f"^Sample 5 of the data set train {sentence}"):
        task_from_datasets(linear(), data, samples(part=slice(12, 24)))


@pytest.mark.parametrize(
    "change",
    [
        torch.Tensor.double,
        torch.Tensor.half,
        torch.Tensor.numpy,
        lambda x: x.double().numpy(),
        lambda x: x.numpy().astype(">f4"),
        nn.Parameter,
        lambda x: x.clone().requires_grad_(),
    ],
)
def test_an_input_in_any_form_is_the_same_task(change):
    assert contents(task(change_input=change)) == EXPECTED


def test_a_data_set_may_give_one_buffer_again_and_again():
    class Buffered(list):
        buffer = torch.zeros(6)

        def __getitem__(self, index):
            value, label = super().__getitem__(index)
            return self.buffer.copy_(value), label

    made = task_from_datasets(linear(), Buffered(samples()), samples(part=slice(12, 24)))
    assert contents(made) == EXPECTED


class TakesIds(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(7, 4)

    def forward(self, x):
        return self.head(nn.functional.one_hot(x.long().clamp(0, 6), 7).float().mean(1))


def test_whole_numbers_are_for_networks_that_take_them():
    ids = torch.arange(24 * 3).view(24, 3)
    train, held_out = TensorDataset(ids[:12], LABELS[:12]), TensorDataset(ids[12:], LABELS[12:])
    assert task_from_datasets(TakesIds(), train, held_out).splits["train"].inputs.dtype == torch.float32
    with pytest.raises(QuantenvError, match=r"input of sample \d+ of the data set held_out is int64, which Sequential"):
        task_from_datasets(nn.Sequential(nn.Linear(3, 4)), train, held_out)
    pixels = (torch.rand(12, 6) * 255).to(torch.uint8)
    with pytest.raises(QuantenvError, match=r"is uint8, which Sequential does not take.*scaled to \[0, 1\]"):
        task_from_datasets(linear(), samples(), TensorDataset(pixels, LABELS[:12]))
    large = torch.full((12, 3), 2**24 + 1) + torch.arange(12)[:, None] * 2
    with pytest.raises(QuantenvError, match=r"whole numbers above 2\*\*24"):
        task_from_datasets(TakesIds(), train, TensorDataset(large, LABELS[:12]))


def nan_at_2(x):
    return x.index_fill(0, torch.tensor(2), torch.nan)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (nan_at_2, "input of sample 5 of the data set train holds NaN, infinity"),
        (lambda x: x.double() * 1e300, "holds NaN, infinity or a number beyond float32"),
        (lambda x: x + 1j, "input of sample 5 .* holds complex numbers"),
        (lambda x: x.to_sparse(), "input of sample 5 .* is a sparse"),
        (lambda x: x.to("meta"), "input of sample 5 .* is on device meta"),
        (lambda x: x[:0], "input of sample 5 .* is empty"),
        (lambda x: x[:3], r"differ in shape: \(6,\) and, of sample 5, \(3,\)"),
        (lambda x: None, "input of sample 5 .* is a NoneType, not a tensor"),
        (lambda x: Image.new("L", (2, 3)), r"input of sample 5 .* is a Image, not a tensor.*ToTensor"),
        (lambda x: np.array(["a"]), "is a ndarray, not a tensor"),
    ],
)
def test_other_inputs_are_named(change, sentence):
    data = samples()
    data[5] = (change(data[5][0]), data[5][1])
    with pytest.raises(QuantenvError, match=sentence):
        task_from_datasets(linear(), data, samples(part=slice(12, 24)))


class Failing(list):
    def __getitem__(self, index):
        return super().__getitem__(index) if index != 5 else {}["image 5"]


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        ([*samples()[:5], {"x": 1, "y": 2}, *samples()[6:]], "Sample 5 .* is no pair .* but a dict"),
        ([*samples()[:5], (INPUTS[0], 1, 2), *samples()[6:]], "Sample 5 .* but 3 things"),
        ([*samples()[:5], None, *samples()[6:]], "Sample 5 .* but a NoneType"),
        ((INPUTS[:12], LABELS[:12]), "torch.utils.data.TensorDataset"),
        (Failing(samples()), "Sample 5 of the data set train cannot be read: KeyError: 'image 5'"),
        (None, "train .* no index"),
        (iter(samples()), "train .* no index"),
        (torch.tensor(1.0), "has no length"),
    ],
)
def test_other_data_sets_are_named(data, sentence):
    with pytest.raises(QuantenvError, match=sentence):
        task_from_datasets(linear(), data, samples(part=slice(12, 24)))


class Endless(list):
    def __len__(self):
        return 2**40


class Lengthless(list):
    def __len__(self):
        raise RuntimeError("unknown")


class Stream(IterableDataset):
    def __iter__(self):
        return iter(samples())

    def __len__(self):
        return 12


def test_a_data_loader_stands_for_its_data_set():
    for options in ({"batch_size": 5}, {"shuffle": True, "drop_last": True}, {"batch_size": None}):
        made = task_from_datasets(linear(), DataLoader(samples(), **options), samples(part=slice(12, 24)))
        assert contents(made) == EXPECTED


@pytest.mark.parametrize(
    ("data", "sentence"),
    [(Endless(samples()), "has 1,099,511,627,776 samples"), (Lengthless(samples()), "has no length")],
)
def test_lengths_are_those_of_data_sets(data, sentence):
    with pytest.raises(QuantenvError, match=sentence):
        task_from_datasets(linear(), data, samples(part=slice(12, 24)))


def broken():
    network = linear()
    nn.init.constant_(network[0].bias, torch.nan)
    return network


@pytest.mark.parametrize(
    ("loader", "sentence"),
    [
        (DataLoader(Stream()), "train .Stream. can only be iterated over.* list"),
        (DataLoader(samples(), sampler=SubsetRandomSampler([1, 2])), "sampler of its own .SubsetRandomSampler.*Subset"),
        (DataLoader(samples(), sampler=WeightedRandomSampler([1.0] * 12, 12)), "WeightedRandomSampler"),
        (DataLoader(samples(), sampler=[1, 2, 3]), "sampler of its own"),
        (DataLoader(samples(), batch_sampler=[[1, 2], [3]]), "sampler of its own"),
        (DataLoader(samples(), collate_fn=list), "collate_fn of its own"),
    ],
)
def test_a_data_loader_that_chooses_or_changes_samples_is_refused(loader, sentence):
    with pytest.raises(QuantenvError, match=sentence):
        task_from_datasets(linear(), loader, samples(part=slice(12, 24)))


def test_a_subset_is_a_data_set():
    made = task_from_datasets(linear(), Subset(samples() * 2, range(12)), samples(part=slice(12, 24)))
    assert contents(made) == EXPECTED


Pair = collections.namedtuple("Pair", "logits features")


class Head(nn.Module):
    def __init__(self, end, outputs=4):
        super().__init__()
        self.linear, self.end = nn.Linear(6, outputs), end

    def forward(self, x):
        return self.end(self.linear(x))


class InPlace(Head):
    def forward(self, x):
        return self.linear(x.mul_(2))


@pytest.mark.parametrize(
    ("network", "sentence"),
    [
        (Head(lambda y: {"logits": y}), r"Head puts out a dict of logits; .* Wrap it .*\['logits'\]"),
        (Head(lambda y: Pair(y, y)), "puts out a Pair of logits, features"),
        (Head(lambda y: (y, y)), "puts out a tuple"),
        (Head(torch.mean), r"Of 3 samples Head makes an output of shape \(\)"),
        (Head(lambda y: y.mean(0)), r"output of shape \(4,\); .* first dimension must stay"),
        (Head(lambda y: y.mean(0, keepdim=True)), r"output of shape \(1, 4\)"),
        (Head(lambda y: y[:, 0]), r"output of shape \(3,\); .* One logit z"),
        (linear(1), r"output of shape \(3, 1\); .* torch\.cat\(\[torch\.zeros_like\(z\), z\], 1\)"),
        (Head(lambda y: y[:, :, None, None].expand(-1, -1, 5, 5)), r"\(3, 4, 5, 5\); .* not of pixels"),
        (Head(lambda y: y.argmax(1, keepdim=True).expand(-1, 4)), "puts out torch.int64"),
        (Head(lambda y: y / 0), "puts out NaN or infinity"),
        (Head(lambda y: y - y.mean(0)), "depends on the other samples"),
        (Head(lambda y: nn.functional.dropout(y, 0.5, True)), "or is random"),
        (nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4, track_running_stats=False)), "statistics .here: '1'."),
        (InPlace(None), "changes its inputs in place"),
        (broken(), "NaN or infinity for finite inputs. '0.bias' hold NaN"),
        (linear(3), "has the label 3, but the network has 3 outputs"),
        (linear().to("meta"), "weights are on meta"),
        (nn.Sequential(nn.Linear(5, 4)), "does not run on an input of shape 6"),
        ("network", "The network is a str"),
    ],
)
def test_what_is_no_classifier_is_refused_at_construction(network, sentence):
    with pytest.raises(QuantenvError, match=sentence):
        task_from_datasets(network, samples(), samples(part=slice(12, 24)))


def splits(inputs=INPUTS, labels=LABELS):
    parts = {"train": slice(0, 8), "calibration": slice(0, 4), "search": slice(8, 16), "test": slice(16, 24)}
    return {name: Split(inputs[part], labels[part]) for name, part in parts.items()}


def test_a_split_converts_what_is_clear():
    expected = splits()["train"]
    for inputs, labels in (
        (INPUTS.half(), LABELS.to(torch.int16)),
        (INPUTS.clone().requires_grad_(), LABELS[:, None]),
        (INPUTS.numpy(), LABELS.numpy().astype(np.uint8)),
        (INPUTS, LABELS.double()),
        (INPUTS, LABELS[:, None, None]),
    ):
        split = splits(inputs, labels)["train"]
        assert torch.equal(split.inputs, expected.inputs)
        assert not split.inputs.requires_grad
        assert torch.equal(split.labels, expected.labels)
        assert split.labels.dtype == torch.int64


@pytest.mark.parametrize(
    ("inputs", "labels", "sentence"),
    [
        (INPUTS.to(torch.int32), LABELS, "inputs are torch.int32; expected float32"),
        (INPUTS + 1j, LABELS, "complex"),
        (INPUTS, LABELS + 0.5, r"Sample 0 of a split has the label 0\.5"),
        (INPUTS, torch.where(LABELS == 2, torch.nan, LABELS.float()), "Sample 2 of a split has the label nan"),
        (INPUTS, nn.functional.one_hot(LABELS), r"Sample 0 of a split has a label of shape \(4,\)"),
        (INPUTS, LABELS[:, None, None].expand(-1, 8, 8), r"label of shape \(8, 8\).*pixels or tokens are not measured"),
        (INPUTS, LABELS[:, None].expand(-1, 7), r"label of shape \(7,\).*pixels or tokens are not measured"),
        (INPUTS, torch.full((24,), 1e30), r"Sample 0 of a split has the label 1000000"),
        (INPUTS, LABELS.to(torch.complex64), "labels are torch.complex64"),
        (INPUTS, np.array(["a"] * 24), "labels are <U1"),
    ],
)
def test_a_split_refuses_the_rest(inputs, labels, sentence):
    with pytest.raises(QuantenvError, match=sentence):
        splits(inputs, labels)


def test_sparse_labels_are_refused():
    with pytest.raises(QuantenvError, match="labels are a sparse or nested tensor"):
        Split(INPUTS, LABELS.float().to_sparse())


def with_nan():
    inputs = INPUTS.clone()
    inputs[11, 2] = torch.inf
    return inputs


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"splits": splits(with_nan())}, "Sample 3 of the split 'search' of task 't' holds NaN or infinity"),
        ({"splits": splits(labels=LABELS + 1)}, "Sample 3 of the split 'train' of task 't' has the label 4"),
        ({"splits": splits() | {"validation": splits()["test"]}}, "Unknown split of task 't': 'validation'"),
        ({"splits": splits() | {"test": (INPUTS, LABELS)}}, "The split 'test' of task 't' is a tuple"),
        (
            {"splits": splits() | {"test": Split(INPUTS[:, :5], LABELS)}},
            r"differ in shape: \(6,\) in the split 'train'",
        ),
        ({"network": linear}, "network of task 't' is a function"),
        ({"name": ""}, "name is ''"),
    ],
)
def test_a_task_made_by_hand_is_checked_as_well(changes, sentence):
    with pytest.raises(QuantenvError, match=sentence):
        Task(**{"name": "t", "network": linear(), "splits": splits(), **changes})


def test_the_kind_of_error_says_what_is_wrong():
    with pytest.raises(UnsupportedLayerError):
        Task("t", Head(torch.mean), splits())


@pytest.mark.parametrize("number", [0, -1, 1.5, True, "3"])
@pytest.mark.parametrize("name", ["train_samples", "calibration_samples", "search_samples", "test_samples"])
def test_numbers_of_samples_are_whole(name, number):
    with pytest.raises(QuantenvError, match=f"{name} is"):
        task_from_datasets(linear(), samples(), samples(part=slice(12, 24)), **{name: number})


@pytest.mark.parametrize("seed", [-1, 1.5, None])
def test_seeds_are_whole(seed):
    with pytest.raises(QuantenvError, match="seed is"):
        task_from_datasets(linear(), samples(), samples(part=slice(12, 24)), seed=seed)
