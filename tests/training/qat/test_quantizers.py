import numpy as np
import pytest
import torch

from quantenv.core.errors import QuantenvError
from quantenv.quantization.formats import Codebook, Grid, activation_bounds, quantize, weight_bounds
from quantenv.quantization.kmeans import codebooks
from quantenv.training.qat.base import LinearQuantizer, LSQQuantizer
from quantenv.training.qat.quantizers import (
    DoReFaQuantizer,
    KMeansQuantizer,
    LSQPlusQuantizer,
    MidRiseQuantizer,
    PACTQuantizer,
    activation_quantizer,
    weight_quantizer,
)

X = torch.linspace(-3, 3, 61, dtype=torch.float64) + 0.013  # on no edge and no tie


def grid(bits, zero_point=0, scale=0.25):
    return Grid(bits, torch.tensor(scale, dtype=torch.float64), *activation_bounds(bits, zero_point))


@pytest.mark.parametrize("kind", [LinearQuantizer, LSQQuantizer, PACTQuantizer, LSQPlusQuantizer])
@pytest.mark.parametrize(("bits", "zero_point"), [(1, 0), (2, 0), (4, 0), (2, 1), (4, 5), (8, 128)])
def test_before_training_it_is_the_calibrated_grid(kind, bits, zero_point):
    start = grid(bits, zero_point, 0.37)
    torch.testing.assert_close(kind(start, 9)(X).detach(), quantize(X, start))


def test_pact_clips_rounds_and_learns_where_it_clips():
    # Choi et al. 2018, eq. 1 to 3, with k = 2 bits and alpha = 1.5.
    quantizer = PACTQuantizer(grid(2, scale=0.5), 4)
    assert quantizer.alpha.item() == 1.5
    x = torch.tensor([-1.0, 0.2, 0.8, 1.2, 1.6, 4.0], dtype=torch.float64, requires_grad=True)
    y = 0.5 * (x.abs() - (x - 1.5).abs() + 1.5)
    expected = (y * 3 / 1.5).round() * 1.5 / 3
    torch.testing.assert_close(quantizer(x), expected)
    quantizer(x).sum().backward()
    assert float(quantizer.alpha.grad) == 2
    assert x.grad.tolist() == [0, 1, 1, 1, 0, 0]


@pytest.mark.parametrize(("bits", "error"), [(1, 0.3634), (2, 0.1188), (3, 0.03744), (4, 0.01154)])
def test_mid_rise_steps_are_the_best_even_ones_of_a_normal_distribution(bits, error):
    # Max 1960, "Quantizing for minimum distortion", table II.
    weight = torch.special.ndtri((torch.arange(40_000, dtype=torch.float64) + 0.5) / 40_000).expand(2, -1)
    quantizer = MidRiseQuantizer(Grid(bits, torch.ones(2, 1, dtype=torch.float64), *weight_bounds(bits)), 40_000)
    adopted = quantizer.adopt(weight)
    assert torch.equal(adopted, weight)
    assert float((quantizer(adopted).detach() - weight).square().mean()) == pytest.approx(error, rel=0.02)
    assert quantizer.levels().shape == (2, 2**bits)


def test_mid_rise_gradient_of_the_step_is_lsq_s():
    start = Grid(2, torch.full((1, 1), 0.5, dtype=torch.float64), *weight_bounds(2))
    quantizer = MidRiseQuantizer(start, 6)
    x = torch.tensor([[-2.0, -0.6, -0.1, 0.1, 0.3, 0.9]], dtype=torch.float64, requires_grad=True)
    expected = torch.tensor([[-0.75, -0.75, -0.25, 0.25, 0.25, 0.75]], dtype=torch.float64)
    torch.testing.assert_close(quantizer(x), expected)
    quantizer(x).sum().backward()
    inside = [-0.6, -0.1, 0.1, 0.3]  # of the outer levels; outside, the gradient is the level
    wanted = -1.5 + 1.5 + sum(float(y) / 0.5 - v / 0.5 for y, v in zip(expected[0, 1:5], inside, strict=True))
    assert quantizer.scale.grad.item() == pytest.approx(wanted / 6**0.5)
    assert x.grad.tolist() == [[0, 1, 1, 1, 1, 0]]


def test_dorefa_is_equation_9_of_its_training_weight():
    weight = torch.randn(3, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    quantizer = DoReFaQuantizer(Grid(3, torch.ones(3, 1, dtype=torch.float64), *weight_bounds(3)), 20)
    trained = quantizer.adopt(weight)
    for channel, latent, rounded in zip(weight, trained, quantizer(trained), strict=True):
        size = channel.abs().max()
        t = np.tanh((latent / size).numpy())
        unit = t / (2 * np.abs(t).max()) + 0.5
        expected = size.numpy() * (2 * np.round(7 * unit) / 7 - 1)
        np.testing.assert_allclose(rounded.numpy(), expected, atol=1e-12)
        # what is trained starts as the pretrained weight: half a step is the furthest that rounding moves it
        assert (rounded - channel).abs().max() <= size / 7 * (1 + 1e-9)


def test_dorefa_s_one_bit_is_the_sign_times_the_mean():
    weight = torch.tensor([[1.0, -2.0, 4.0, -5.0]])
    quantizer = DoReFaQuantizer(Grid(1, torch.ones(1, 1), *weight_bounds(1)), 4)
    torch.testing.assert_close(quantizer(quantizer.adopt(weight)), torch.tensor([[3.0, -3.0, 3.0, -3.0]]))


def test_lsq_plus_gradients_against_finite_differences():
    start = grid(3, 3, 0.4)
    quantizer = LSQPlusQuantizer(start, 6)
    upstream = torch.randn(X.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    (quantizer(X) * upstream).sum().backward()
    v = ((X + 1.2) / 0.4).clamp(0, 7)
    residual = v.round() - v

    def value(scale, offset):
        return ((((X - offset) / scale).clamp(0, 7) + residual) * scale + offset) @ upstream

    step, factor = 1e-6, 1 / (6 * 7) ** 0.5
    by_scale = (value(0.4 + step, -1.2) - value(0.4 - step, -1.2)) / (2 * step)
    by_offset = (value(0.4, -1.2 + step) - value(0.4, -1.2 - step)) / (2 * step)
    torch.testing.assert_close(quantizer.scale.grad, factor * by_scale, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(quantizer.offset.grad, factor * by_offset, rtol=1e-5, atol=1e-6)


def test_lsq_plus_on_data_without_negative_values_stands_in_for_their_relu():
    quantizer = LSQPlusQuantizer(grid(4), 6)
    with torch.no_grad():
        quantizer.offset.fill_(-0.1)
    rounded = quantizer(X).detach()
    assert len(rounded[X <= 0].unique()) == 1
    assert len(rounded.unique()) > 5


def test_a_centroid_s_gradient_is_the_mean_of_its_weights():
    weight = torch.tensor([[0.0, 0.1, 1.0, 1.1, 1.2, 5.0]])
    start = Codebook(2, torch.ones(1, 1), torch.tensor([0.05, 1.1, 5.0, 9.0]))
    quantizer = KMeansQuantizer(start, 6)
    upstream = torch.tensor([[1.0, 2.0, 3.0, 6.0, 9.0, 4.0]])
    weight.requires_grad_()
    (quantizer(weight) * upstream).sum().backward()
    torch.testing.assert_close(quantizer.values.grad, torch.tensor([1.5, 6.0, 4.0, 0.0]))
    assert torch.equal(weight.grad, upstream)  # straight-through, so that a weight may change its centroid


def test_centroids_that_overtake_each_other_stay_a_codebook():
    weight = torch.randn(2, 30, generator=torch.Generator().manual_seed(0))
    quantizer = KMeansQuantizer(codebooks(weight)[2], 30)
    with torch.no_grad():
        quantizer.values.copy_(quantizer.values.flip(0))
    torch.testing.assert_close(quantizer(weight).detach(), quantize(weight, codebooks(weight)[2]))


def test_mistakes_are_explained():
    book, linear = codebooks(torch.randn(2, 30))[2], Grid(2, torch.ones(2, 1), *weight_bounds(2))
    with pytest.raises(QuantenvError, match=r"starts from a grid.*use 'k-means'"):
        LSQQuantizer(book, 30)
    with pytest.raises(QuantenvError, match="starts from a codebook"):
        KMeansQuantizer(linear, 30)
    with pytest.raises(QuantenvError, match=r"starts from a grid.*use 'k-means'"):
        MidRiseQuantizer(book, 30)
    with pytest.raises(QuantenvError, match="starts from a grid"):
        LSQPlusQuantizer(book, 30)
    with pytest.raises(QuantenvError, match="Did you mean 'k-means'"):
        weight_quantizer("kmeans")
    with pytest.raises(QuantenvError, match="Did you mean 'pact'"):
        activation_quantizer("pac")
