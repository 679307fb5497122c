import pytest
import torch
from quantenv.quantize.coded import CodedSum, decode, encode

from quantenv.quantize import Grid, quantize
from quantenv.quantize.quantizers import activation_bounds
from quantenv.quantize.switched import SwitchedSite


@pytest.mark.parametrize(("bits", "zero_point"), [(8, 0), (8, 100), (4, 0), (3, 5), (2, 1), (1, 0), (1, 1)])
def test_codes_carry_exactly_the_quantized_values(bits, zero_point):
    x = torch.randn(500, generator=torch.Generator().manual_seed(bits))
    grid = Grid(bits, torch.tensor(0.037), *activation_bounds(bits, zero_point))
    codes = encode(x, grid)
    assert codes.dtype == torch.uint8
    assert len(codes.unique()) <= 2**bits
    torch.testing.assert_close(decode(codes, grid), quantize(x, grid), rtol=1e-6, atol=0)


@pytest.mark.parametrize("shape", [(7, 6, 5, 4), (1, 300), (7, 3, 1, 1), (1, 6, 5, 4)])
@pytest.mark.parametrize("coded", [(True, True), (True, False), (False, True)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_sum_in_blocks_is_the_sum_all_at_once(monkeypatch, shape, coded, layout):
    monkeypatch.setattr("quantenv.quantize.coded.BLOCK", 2 * 120)  # two or more samples of the first shape...
    monkeypatch.setattr("torch.get_num_threads", lambda: 1)  # ... and not all seven
    rng = torch.Generator().manual_seed(0)
    grids = [Grid(bits, torch.tensor(scale), low, low + 255) for bits, scale, low in [(8, 0.1, 0), (8, 0.03, -99)]]
    terms = [torch.randint(0, 256, size, generator=rng, dtype=torch.uint8) for size in [(7, *shape[1:]), shape]]
    if len(shape) == 4:
        terms = [term.to(memory_format=layout) for term in terms]
    values = [decode(term, grid) for term, grid in zip(terms, grids, strict=True)]
    target = Grid(4, torch.tensor(1.7), -3, 12)
    sites = [SwitchedSite(dict.fromkeys(range(1, 9), grid), [0], False) for grid in [*grids, target]]
    summed = CodedSum([site if is_coded else None for site, is_coded in zip(sites, coded, strict=False)], sites[2])
    summed.select(summed.setting(((8, 8),)))
    given = [term if is_coded else value for term, value, is_coded in zip(terms, values, coded, strict=True)]
    before = [each.clone() for each in given]
    assert torch.equal(summed(*given), encode(values[0] + values[1], target))
    assert all(map(torch.equal, given, before))
