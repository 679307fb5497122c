from hypothesis import given
from hypothesis import strategies as st

from experiments.runs.top_k import TopK
from quantenv.core.allocation import Allocation
from quantenv.hardware import Budget
from tests.experiments.runs.test_episodes import make_episode
from tests.synthetic import synthetic_layers

BUDGETS = (Budget("size", 200.0),)

episodes = st.lists(
    st.tuples(st.integers(2, 4), st.integers(2, 4), st.integers(0, 5), st.sampled_from([0.1, 0.2]), st.integers(1, 3)),
    max_size=30,
)


def build(rows):
    """Episodes of two layers; the same bits always have the same result, as with any evaluator."""
    seen = {}
    built = []
    for number, (one, two, correct, loss, cost) in enumerate(rows, start=1):
        bits = ((one, 8), (two, 8))
        result = seen.setdefault(bits, (correct, loss, cost))
        feasible = (one + two) % 3 > 0
        built.append(make_episode(number, bits, result[0], result[1], float(result[2]), feasible))
    return built


@given(rows=episodes, k=st.integers(1, 5))
def test_keeps_what_sorting_everything_would(rows, k):
    built = build(rows)
    top = TopK(k, BUDGETS)
    for episode in built:
        top(episode)
    first = {}
    for episode in built:
        if episode.feasible:
            first.setdefault(episode.bits, episode)
    expected = sorted(first.values(), key=lambda e: (-e.correct, e.loss, e.costs["size"], e.evaluation))[:k]
    assert top.episodes == expected
    assert top.best == (expected[0] if expected else None)


def test_content_carries_allocations_that_load():
    layers = synthetic_layers(2)
    top = TopK(2, BUDGETS)
    top(make_episode(1))
    content = top.to_dict(layers, "toy", "linear")
    (entry,) = content["entries"]
    allocation = Allocation.from_dict(entry["allocation"])
    assert allocation.bits == make_episode(1).bits
    assert (allocation.task, allocation.scheme) == ("toy", "linear")
    assert (entry["rank"], entry["accuracy"]) == (1, 0.9)
