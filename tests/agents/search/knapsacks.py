"""Small knapsacks of many kinds, and all their feasible solutions by trying every one."""

import itertools

import numpy as np
from hypothesis import strategies as st

from agents.search.knapsack import Knapsack, Together


def random_knapsack(seed: int, budgets: int | None = None, together: bool = False) -> Knapsack:
    """Draws a problem: numbers over many scales, whole ones with ties, or all but equal; tied and pinned layers."""
    rng = np.random.default_rng(seed)
    layers, options = int(rng.integers(1, 6)), int(rng.integers(1, 5))
    budgets = int(rng.integers(0, 4)) if budgets is None else budgets
    shape, shapes = (layers, options), (budgets, layers, options)
    harms, costs = [
        (rng.random(shape), rng.random(shapes)),
        (rng.integers(-2, 4, shape).astype(float), rng.integers(0, 4, shapes).astype(float)),
        (rng.lognormal(0, 6, shape), rng.lognormal(0, 6, shapes)),
        (1e-9 * rng.normal(size=shape), 1e6 + rng.integers(0, 5, shapes)),
    ][int(rng.integers(4))]
    if options > 1 and rng.random() < 0.3:
        harms[int(rng.integers(layers)), int(rng.integers(options))] = np.inf
    tied = [sorted(rng.choice(layers, 2, replace=False).tolist())] if layers > 2 and rng.random() < 0.4 else []
    pinned = {}
    if rng.random() < 0.3:
        layer = int(rng.integers(layers))
        [group] = [group for group in tied if layer in group] or [[layer]]
        pinned = {layer: int(rng.choice(np.flatnonzero(np.isfinite(harms[group].sum(axis=0)))))}
    terms = random_terms(rng, layers, options, budgets) if together else ()
    every = Knapsack(harms, costs, np.full(budgets, np.inf), tied=tied, pinned=pinned, terms=terms)
    _, _, spent = enumerate_all(every)
    # Budgets that are some solution's costs, to the last digit or a little less than that.
    rank = rng.random()
    limits = np.array([np.sort(cost)[int(rank * (len(cost) - 1))] for cost in spent])
    if rng.random() < 0.3:
        limits -= 1e-9 * np.abs(limits)
    return Knapsack(harms, costs, limits, tied=tied, pinned=pinned, terms=terms)


def random_terms(rng: np.random.Generator, layers: int, options: int, budgets: int) -> tuple[Together, ...]:
    """Draws costs of several layers, overlapping ones and ones of tied layers too."""
    terms = []
    for _ in range(int(rng.integers(1, 3)) if layers > 1 else 0):
        members = rng.choice(layers, int(rng.integers(2, layers + 1)), replace=False)
        levels = rng.integers(0, 3, options)
        steps = rng.choice([0.0, 0.5, 1.0, 3.0], (budgets, 3))
        terms.append(Together(tuple(sorted(members.tolist())), levels, steps.cumsum(axis=1)))
    return tuple(terms)


def enumerate_all(problem: Knapsack) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns all choices (n, L) that keep ties and pins, their harms (n,) and costs (M, n), feasible or not."""
    layers, options = problem.harms.shape
    choices = np.array(list(itertools.product(range(options), repeat=layers)))
    kept = np.ones(len(choices), dtype=bool)
    for group in problem.tied:
        kept &= (choices[:, list(group)] == choices[:, [group[0]]]).all(axis=1)
    for layer, option in problem.pinned.items():
        kept &= choices[:, layer] == option
    harms = problem.harms[np.arange(layers), choices].sum(axis=1)
    kept &= np.isfinite(harms)
    costs = problem.costs[:, np.arange(layers), choices].sum(axis=-1)
    for term in problem.terms:
        highest = np.max([term.levels[choices[:, layer]] for layer in term.layers], axis=0)
        costs = costs + term.costs[:, highest]
    return choices[kept], harms[kept], costs[:, kept]


def feasible_harms(problem: Knapsack) -> np.ndarray:
    """Returns the harms of all feasible solutions, ascending."""
    _, harms, costs = enumerate_all(problem)
    limits = problem.limits[:, None]
    return np.sort(harms[(costs <= limits + 1e-12 * np.abs(limits)).all(axis=0)])


def scale(problem: Knapsack) -> float:
    """Returns the largest harm, to which rounding is relative."""
    return float(np.abs(problem.harms[np.isfinite(problem.harms)]).max())


def knapsacks(budgets: int | None = None, together: bool = False) -> st.SearchStrategy[Knapsack]:
    """Draws problems; with a number of budgets, or 0 to 3, and with costs of several layers together."""
    return st.integers(0, 10**9).map(lambda seed: random_knapsack(seed, budgets, together))
