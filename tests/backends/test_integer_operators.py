"""Integer sums, averages and concatenations against fractions, in both storages."""

from fractions import Fraction

import pytest
import torch

from quantenv.backends.integer_operators import IntegerAverage, IntegerConcatenation, IntegerSum, Moved, Target
from quantenv.quantization.formats import Grid, activation_bounds, quantize
from quantenv.quantization.requantization import dyadic, largest_number
from quantenv.quantization.storage import CodeStorage, FloatStorage, decode, encode
from quantenv.quantization.switched import SwitchedSite

STORAGES = [FloatStorage(), CodeStorage()]
LAYOUTS = [torch.contiguous_format, torch.channels_last]


def site(grid):
    return SwitchedSite(dict.fromkeys(range(1, 9), grid), [0], False)


def grid_of(scale, low, bits=8):
    return Grid(bits, torch.tensor(scale), low, low + 2**bits - 1)


def numbers_of(grid, shape, seed, layout=torch.contiguous_format):
    drawn = torch.randint(grid.low, grid.high + 1, shape, generator=torch.Generator().manual_seed(seed)).float()
    return drawn.contiguous(memory_format=layout) if drawn.dim() == 4 else drawn


def expected(values, target):
    return [min(max(round(value), target.grid.low), target.grid.high) for value in values]


def run(module, *terms):
    module.select(module.setting(((8, 8),)))
    return module(*terms)


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(7, 6, 5, 4), (1, 300), (7, 3, 1, 1), (1, 6, 5, 4)])
def test_a_sum_in_blocks_is_that_of_fractions(monkeypatch, storage, layout, shape):
    monkeypatch.setattr("quantenv.backends.integer_operators.BLOCK", 2 * 120)  # two or more samples, and not all seven
    monkeypatch.setattr("torch.get_num_threads", lambda: 1)
    grids, target = [grid_of(0.1, 0), grid_of(0.03, -99)], Target(site(grid_of(1.7, -3, 4)), storage)
    terms = [numbers_of(grid, shape, seed, layout) for seed, grid in enumerate(grids)]
    held = [storage.hold(term.clone(), grid) for term, grid in zip(terms, grids, strict=True)]
    before = [each.clone() for each in held]
    summed = IntegerSum([site(grid) for grid in grids], target, storage)
    found = run(summed, *held)
    factors = dyadic([float(grid.scale) for grid in grids], float(target.grid.scale), list(map(largest_number, grids)))
    pairs = zip(*(term.flatten().tolist() for term in terms), strict=True)
    exact = [Fraction(factors[0]) * int(a) + Fraction(factors[1]) * int(b) for a, b in pairs]
    assert storage.numbers(found, target.grid).flatten().int().tolist() == expected(exact, target)
    assert all(map(torch.equal, held, before))
    assert found.stride() == held[0].stride()


@pytest.mark.parametrize("storage", STORAGES)
def test_a_term_is_broadcast(storage):
    grid = grid_of(0.5, -100)
    first, second = numbers_of(grid, (4, 3, 2, 2), 0), numbers_of(grid, (4, 3, 1, 1), 1)
    summed = IntegerSum([site(grid)] * 2, Target(site(grid), storage), storage)
    found = run(summed, storage.hold(first.clone(), grid), storage.hold(second.clone(), grid))
    assert torch.equal(storage.numbers(found, grid), (first + second).clamp(grid.low, grid.high))


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_average_is_an_exact_sum_times_one_number(storage, layout):
    grid, target = grid_of(0.05, -40), Target(site(grid_of(0.021, 0)), storage)
    term = numbers_of(grid, (5, 6, 8, 8), 3, layout)
    averaged = IntegerAverage(lambda x: x.sum((2, 3)), 64, site(grid), target, storage)
    found = storage.numbers(run(averaged, storage.hold(term.clone(), grid)), target.grid)
    factor = torch.tensor(float(grid.scale) / (float(target.grid.scale) * 64))  # of single precision
    products = (int(total) * Fraction(float(factor)) for total in term.sum((2, 3)).flatten().tolist())
    near = torch.tensor([min(abs(each - round(each)), 1) <= 0.4999 for each in products])  # far from a tie
    products = [int(total) * Fraction(float(factor)) for total in term.sum((2, 3)).flatten().tolist()]
    assert (found.flatten().int() == torch.tensor(expected(products, target)))[near].all()


@pytest.mark.parametrize("storage", STORAGES)
def test_what_is_concatenated_is_brought_to_one_grid(storage):
    grids, target = [grid_of(0.1, 0), grid_of(0.03, -99)], Target(site(grid_of(0.1, -60)), storage)
    terms = [numbers_of(grid, (4, 3, 2, 2), seed) for seed, grid in enumerate(grids)]
    held = [storage.hold(term.clone(), grid) for term, grid in zip(terms, grids, strict=True)]
    beside = IntegerConcatenation(1, [site(grid) for grid in grids], target, storage)
    found = storage.numbers(run(beside, *held), target.grid)
    values = torch.cat([decode(term, grid) for term, grid in zip(terms, grids, strict=True)], 1)
    assert (found - values / 0.1).abs().max() <= 0.5 + 1e-4 or bool((found.abs() >= 195).any())
    assert torch.equal(found[:, :3], terms[0].clamp(max=195))  # of the same scale: as they were


@pytest.mark.parametrize(("positive", "most"), [(True, None), (True, 6.0), (False, None)])
def test_a_relu_in_front_of_a_stored_tensor_is_a_clamp(positive, most):
    target = Target(site(grid_of(0.05, -100)), FloatStorage(), positive, most)
    target.select(8)
    values = torch.linspace(-10, 10, 999)
    clamped = values.clamp(min=0.0 if positive else None, max=most if positive else 1e9)
    assert torch.equal(decode(target.store(values / 0.05), target.grid), quantize(clamped, target.grid))


def test_padding_of_codes_pads_with_zero():
    grid = grid_of(0.5, -7, 4)
    moved = Moved(lambda x: torch.nn.functional.pad(x, (1, 1)), site(grid), CodeStorage())
    held = CodeStorage().hold(numbers_of(grid, (2, 3), 0), grid)
    found = CodeStorage().numbers(run(moved, held), grid)
    assert (found[:, [0, -1]] == 0).all()


@pytest.mark.parametrize(("bits", "zero_point"), [(8, 0), (8, 100), (4, 0), (3, 5), (2, 1), (1, 0), (1, 1)])
def test_both_storages_hold_the_quantized_values(bits, zero_point):
    x = torch.randn(500, generator=torch.Generator().manual_seed(bits))
    grid = Grid(bits, torch.tensor(0.037), *activation_bounds(bits, zero_point))
    for storage in STORAGES:
        held = storage.hold(encode(x, grid), grid)
        assert held.element_size() == storage.value_bytes
        assert torch.equal(decode(storage.numbers(held, grid), grid), quantize(x, grid))
