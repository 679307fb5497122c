"""Who beats whom, on searches made up for it."""

import numpy as np
import pytest

from experiments.reports.groups import Group, group, looks_of, shown_at_first
from experiments.reports.known import CaseKnown, Known
from experiments.reports.searches import Case, Point, Search, Setting, Sources
from experiments.reports.verdicts import in_short, learners_against_baselines, mixed_against_uniform

CASE = Case(Setting("t", ("size",), "generic", "weights", None, None, "ptq", "0"), ("0.5",))
UNIFORM = Point(((4, 8), (4, 8)), 700, 0.5, {"size": 1.0})


def search(agent, found, seed=0, samples=1000, benchmark="b"):
    best = None if found[-1] < 0 else Point(((2, 8), (6, 8)), found[-1], 0.4, {"size": 1.0})
    return Search(CASE, "f", benchmark, agent, seed, samples, np.array(found), best, {"size": ()}, asked=len(found))


def groups(**found):
    """Groups of agents whose searches find this many of 1000 in the end, best first."""
    sources = Sources(
        [search(agent, [500, count], seed) for agent, counts in found.items() for seed, count in enumerate(counts)]
    )
    return group(sources)[CASE]


def known(uniform=UNIFORM):
    return CaseKnown({"size": 1.0}, uniform, None, None, 4.0)


@pytest.mark.parametrize(
    ("counts", "outcome"),
    [
        ([800, 810, 805], "beats"),
        ([600, 610, 605], "loses to"),
        ([699, 700, 701], "is not told apart from"),  # the interval holds 0
        ([715, 716, 717], "is not told apart from"),  # 1.6 points are within the sampling error of 1,000 images
        ([800], "beats"),
        ([715], "is not told apart from"),
    ],
)
def test_mixed_precision_against_uniform(counts, outcome):
    verdict = mixed_against_uniform(groups(ppo=counts), Known(), known())
    assert verdict.outcome == outcome
    assert f"Mixed precision {outcome} the best uniform allocation (4/8 bits)" in verdict.sentence
    assert ("too few for an interval" in verdict.sentence) == (len(counts) < 3)


def test_the_uniform_agent_is_no_mixed_precision():
    verdict = mixed_against_uniform(groups(uniform=[990, 990, 990], ppo=[800, 810, 805]), Known(), known())
    assert "80.50% by ppo against 70.00%" in verdict.sentence


def test_what_cannot_be_compared_is_said():
    assert "no search found a feasible" in mixed_against_uniform(groups(ppo=[-1]), Known(), known()).sentence
    assert "could not be evaluated" in mixed_against_uniform(groups(ppo=[700]), Known(), None).sentence
    verdict = mixed_against_uniform(groups(ppo=[700]), Known(), known(None))
    assert verdict.outcome == "beats"
    assert "Only mixed precision meets this budget" in verdict.sentence
    assert learners_against_baselines(groups(random=[700])) is None
    assert "no baseline searched here" in learners_against_baselines(groups(ppo=[700])).sentence


@pytest.mark.parametrize(
    ("learner", "baseline", "outcome"),
    [
        ([800, 801, 802], [700, 701, 702], "beats"),
        ([700, 701, 702], [800, 801, 802], "loses to"),
        ([700, 800, 750], [710, 790, 760], "is not told apart from"),
        ([900], [100], "is not told apart from"),  # one search each tells nothing
    ],
)
def test_learners_against_baselines(learner, baseline, outcome):
    verdict = learners_against_baselines(groups(ppo=learner, annealing=baseline))
    assert verdict.outcome == outcome
    assert verdict.sentence.startswith(f"After 2 evaluations RL {outcome} the baselines on the search split: ppo (")


def test_the_best_of_each_side_with_enough_searches_is_compared():
    found = groups(
        ppo=[700, 701, 702], reinforce=[600, 601, 602], ddpg=[999], random=[100, 100, 100], tpe=[650, 651, 652]
    )
    verdict = learners_against_baselines(found)
    assert "ppo (70.10%) against tpe (65.10%), +5.00 points" in verdict.sentence


def test_warm_started_learners_are_judged_apart():
    found = groups(**{"ppo-warm": [900, 901, 902], "ppo": [500, 501, 502], "random": [700, 701, 702]})
    assert learners_against_baselines(found).outcome == "loses to"
    assert learners_against_baselines(found, "RL started from the proxy").outcome == "beats"


def test_in_short_counts_outcomes():
    one = mixed_against_uniform(groups(ppo=[800, 810, 805]), Known(), known())
    other = mixed_against_uniform(groups(ppo=[600, 610, 605]), Known(), known())
    (sentence,) = in_short([one, other, one])
    assert sentence.endswith("3 cases: beats it in 2, loses to it in 1.")


def test_searches_of_several_sources_are_told_apart_and_look_so():
    sources = Sources([search("ppo", [1]), search("ppo", [2], benchmark=None), search("tpe", [3])])
    found = group(sources)
    assert sorted(each.label for each in found[CASE]) == ["ppo · b", "ppo · runs", "tpe · b"]
    looks = looks_of(found)
    assert looks["ppo · b"].colour == looks["ppo · runs"].colour != looks["tpe · b"].colour
    assert looks["ppo · b"].symbol != looks["ppo · runs"].symbol


def test_a_crowded_figure_begins_with_the_best_of_each_kind():
    agents = {name: [700 + number] for number, name in enumerate(("ppo", "a2c", "sac", "td3", "tpe", "gp", "random"))}
    assert shown_at_first(groups(**agents)) == {"a2c", "sac", "td3", "tpe", "gp", "random"}
    assert shown_at_first(groups(ppo=[1], a2c=[2], sac=[3], td3=[4])) == {"ppo", "a2c", "sac", "td3"}


def test_kinds_of_agents():
    assert [Group(CASE, name, name, ()).family for name in ("ppo (reject)", "ilp", "differentiable", "mine")] == [
        "RL",
        "baseline",
        "baseline",
        "third party",
    ]
