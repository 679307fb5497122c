from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import KMeans

from quantenv.quantization.formats import quantize
from quantenv.quantization.kmeans import codebooks
from quantenv.quantization.ranges import weight_grids

TENSORS = st.tuples(
    st.integers(0, 2**31), st.sampled_from(["normal", "heavy", "few", "sparse", "zero channel", "zeros"])
)


def make(seed, kind, shape=(4, 50)):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    dead = x.clone()
    dead[0] = 0
    return {
        "normal": x,
        "heavy": x**5,
        "few": x.round(),
        "sparse": torch.where(x.abs() > 1.5, x, 0.0),
        "zero channel": dead,
        "zeros": torch.zeros_like(x),
    }[kind]


def scaled_error(x, book):
    scale = torch.where(book.scale > 0, book.scale, 1.0)
    return float(((quantize(x, book) - x) / scale).double().square().sum())


@settings(max_examples=60, deadline=None)
@given(TENSORS)
def test_codebooks_are_sound_and_finer_ones_never_worse(tensor):
    x = make(*tensor)
    books = codebooks(x)
    for bits, book in books.items():
        assert book.values.shape == (2**bits,)
        assert torch.isfinite(book.values).all()
        assert (book.values.diff() >= 0).all()
        assert torch.isfinite(quantize(x, book)).all()
    errors = [scaled_error(x, books[bits]) for bits in range(1, 9)]
    assert all(finer <= coarser * (1 + 1e-4) + 1e-8 for coarser, finer in pairwise(errors))
    assert errors[-1] < 1e-6 or len(x.unique()) > 256 or tensor[1] in ("normal", "heavy", "sparse", "zero channel")


@pytest.mark.parametrize("kind", ["normal", "heavy", "sparse"])
@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_the_error_is_near_that_of_scikit_learn_s_best_of_many(kind, bits):
    x = make(7, kind)
    book = codebooks(x)[bits]
    numbers = (x / book.scale).double().reshape(-1, 1).numpy()
    theirs = KMeans(2**bits, n_init=10, random_state=0).fit(numbers).inertia_
    assert scaled_error(x, book) <= 1.1 * theirs


@pytest.mark.parametrize("bits", [1, 3, 5])
def test_a_fit_is_a_fixed_point_of_lloyd_s_iteration(bits):
    x = make(3, "normal", (4, 400))
    book = codebooks(x)[bits]
    numbers = (x / book.scale).double().flatten()
    nearest = (numbers[:, None] - book.values.double()).abs().argmin(1)
    for index, value in enumerate(book.values):
        assert float(numbers[nearest == index].mean()) == pytest.approx(float(value), rel=1e-4, abs=1e-5)


def test_no_cluster_stays_empty_while_another_could_be_split():
    # Evenly spaced centroids leave most of a heavy tail's range without a weight.
    x = make(1, "heavy", (2, 500))
    for bits in (3, 4, 5):
        book = codebooks(x)[bits]
        assert len(book.indices(x).unique()) == 2**bits


def test_fewer_distinct_values_than_centroids_are_exact():
    x = torch.tensor([[1.0, 2.0, 2.0, 5.0, 1.0], [10.0, 20.0, 20.0, 50.0, 10.0]])
    for bits in (2, 5, 8):
        torch.testing.assert_close(quantize(x, codebooks(x)[bits]), x)


def test_zeros_stay_zero_and_do_not_disturb_their_neighbours():
    x = make(0, "zero channel")
    alone = codebooks(x[1:])
    for bits, book in codebooks(x).items():
        assert torch.equal(quantize(x, book)[0], torch.zeros(50))
        assert torch.equal(quantize(x, book)[1:], quantize(x[1:], alone[bits]))


def test_channels_may_have_scales_of_their_own():
    x = make(5, "normal", (1, 200))
    both = torch.cat([x, 1000 * x])
    for bits in (2, 4):
        relative = (quantize(both, codebooks(both)[bits]) - both).norm(dim=1) / both.norm(dim=1)
        assert relative[1] == pytest.approx(float(relative[0]), rel=1e-3)


def test_codebooks_beat_linear_grids_at_few_bits():
    x = make(2, "normal", (4, 500))
    books, grids = codebooks(x), weight_grids(x)
    for bits in (2, 3, 4):
        assert (quantize(x, books[bits]) - x).norm() < (quantize(x, grids[bits]) - x).norm()


def test_the_same_weights_have_the_same_codebooks_and_formats_are_kept():
    x = make(0, "normal", (4, 3, 5, 5)).contiguous(memory_format=torch.channels_last)
    first, second = codebooks(x), codebooks(x.clone())
    for bits in first:
        assert torch.equal(first[bits].values, second[bits].values)
    rounded = quantize(x, first[3])
    assert rounded.is_contiguous(memory_format=torch.channels_last)
    distance = (x / first[3].scale)[..., None] - first[3].values
    np.testing.assert_array_equal(first[3].indices(x), distance.abs().argmin(-1))
