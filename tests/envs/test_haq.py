"""HAQ's environment against a simulation of what its published code does, written from reading it."""

import numpy as np
import pytest

from quantenv.core.errors import InfeasibleBudgetError, QuantenvError
from quantenv.envs.haq import HAQEnv, HAQSwitches
from quantenv.envs.wrappers import ContinuousBits
from tests.envs.synthetic_env import highest, make_env, play, same
from tests.envs.test_environment import check_both
from tests.synthetic import AdditiveEvaluator

CODE = {
    "pins": "over_budget",
    "first_activation_priced_at_7": True,
    "stale_first_observation": True,
    "inverted_flag": True,
    "replay_proposed": True,
    "accuracy_in_points": True,
}
SIZE_CODE = {"pins": "never", "raw_previous_bits": True, "replay_proposed": True, "accuracy_in_points": True}


def make(switches=None, **options):
    return HAQEnv(None, evaluator=AdditiveEvaluator(), switches=switches, **options)


class PublishedLatencyMode:
    """Strategies, and the last two entries of the states, of `linear_quantize_env.py`; -1 bits included."""

    def __init__(self, costs, target, low=2, high=8):
        self.costs, self.target, self.low, self.high = costs, target, low, high
        self.previous, self.flag = np.ones(len(costs)), np.ones(len(costs))

    def episode(self, actions):
        strategy, states, layer, weights, radio = [], [(self.previous[0], self.flag[0])], 0, None, True
        for action in actions:
            bits = min(max(int(np.round((self.high - self.low + 1) * action + self.low - 0.5)), self.low), self.high)
            if radio:
                weights = bits
            else:
                strategy.append([weights, bits])
                layer += 1
            if layer == len(self.costs):
                break
            self.previous[layer], self.flag[layer] = bits / self.high, float(radio)
            states.append((self.previous[layer], self.flag[layer]))
            radio = not radio
        proposed = [list(pair) for pair in strategy]
        self.wall(strategy)
        return proposed, strategy, states

    def wall(self, strategy):
        while self.cost(strategy) > self.target:
            for pair in reversed(strategy):
                for column in (1, 0):
                    if pair[column] > self.low:
                        pair[column] -= 1
                    strategy[0][:], strategy[-1][:] = (8, -1), (8, 8)
                    if self.cost(strategy) <= self.target:
                        return

    def cost(self, strategy):
        return sum(self.costs[layer, w - 1, a - 1] for layer, (w, a) in enumerate(strategy))


@pytest.mark.parametrize("budget", [0.5, 0.6, 0.7])
def test_latency_mode_with_the_codes_switches_is_the_published_code(budget):
    env = make(CODE, budget=budget)
    continuous = ContinuousBits(env)
    table = env.tables["latency"]
    published = PublishedLatencyMode(table.values, budget * table.reference)
    columns = [env.feature_names.index(name) for name in ("previous_bits", "decides_weights")]
    rng = np.random.default_rng(0)
    kept = 0
    for episode in range(40):
        actions = rng.random((env.n_decisions, 1)).astype(np.float32)
        proposed, strategy, states = published.episode(actions[:, 0])
        observation, _ = continuous.reset(seed=None if episode else 0)
        for action, expected in zip(actions, states, strict=True):
            assert observation[columns] == pytest.approx(expected)
            observation, reward, _, _, info = continuous.step(action)
        bits = [[8 if bit == -1 else bit for bit in pair] for pair in strategy]
        assert info["bits"].tolist() == bits
        assert reward == pytest.approx(0.1 * 100 * (info["accuracy"] - 0.96))
        assert (info["executed_actions"] + 2).tolist() == [bit for pair in proposed for bit in pair]
        kept += proposed == strategy
    assert kept < 40
    assert budget < 0.7 or kept > 0  # where the budget is met, ends stay as they were decided


@pytest.mark.parametrize("low", [1, 2])
def test_size_mode_with_the_codes_switches_is_the_published_code(low):
    env = make(SIZE_CODE, decisions="weights", metric="size", budget=0.4, bits=range(low, 9))
    continuous = ContinuousBits(env)
    sizes = np.array([layer.params for layer in env.layers])
    target = 0.4 * 8 * sizes.sum()
    column = env.feature_names.index("previous_bits")
    rng = np.random.default_rng(1)
    for _ in range(40):
        actions = rng.random((6, 1)).astype(np.float32)
        proposed = np.clip(np.round((9 - low) * actions[:, 0] + low - 0.5), low, 8).astype(int)
        observation, _ = continuous.reset()
        for action, previous in zip(actions, (4, *proposed[:-1]), strict=True):
            assert observation in env.observation_space
            assert observation[column] == previous
            observation, _, _, _, info = continuous.step(action)
        strategy = proposed.tolist()
        while np.dot(strategy, sizes) > target:
            for layer in reversed(range(6)):
                strategy[layer] -= strategy[layer] > low
                if np.dot(strategy, sizes) <= target:
                    break
        assert info["bits"][:, 0].tolist() == strategy
        assert (info["executed_actions"] + low).tolist() == proposed.tolist()


def test_the_papers_search_is_the_plain_environment():
    haq = make(budget=0.55)
    plain = make_env(
        metric="latency",
        budget=0.55,
        decisions="weights+activations",
        observation="haq",
        constraint="project",
        pinned="first_last",
        reward_scale=0.1,
    )
    assert haq.n_decisions == 8
    rng = np.random.default_rng(2)
    for _ in range(10):
        actions = rng.integers(7, size=8).tolist()
        assert same(play(haq, actions), play(plain, actions))


def test_seeding_forgets_the_episode_before():
    env = make(CODE)
    column = env.feature_names.index("previous_bits")
    play(env, [0] * env.n_decisions)
    assert env.reset()[0][column] == 2 / 8
    assert env.reset(seed=0)[0][column] == 1


@pytest.mark.parametrize(("switches", "decisions"), [(CODE, "weights+activations"), (SIZE_CODE, "weights")])
def test_it_passes_both_checkers(switches, decisions):
    check_both(make(switches, decisions=decisions))


def test_copies_play_what_the_environment_plays():
    env, other = make(CODE), make(CODE)
    copies = env.vectorize(2)
    _, infos = copies.reset(seed=0)
    for _ in range(env.n_decisions):
        _, rewards, _, _, infos = copies.step(np.array([6, 1]))
    for copy, action in enumerate((6, 1)):
        _, expected, ends = play(other, [action] * env.n_decisions)
        assert infos["final_info"]["bits"][copy].tolist() == ends[-1]["bits"].tolist()
        assert rewards[copy] == expected[-1]


def test_every_switch_is_off_in_the_paper():
    assert HAQSwitches() == HAQSwitches.of({"pins": "always", "inverted_flag": False})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"switches": {"pin": "never"}}, "Did you mean 'pins'"),
        ({"switches": {"pins": "allways"}}, "Did you mean 'always'"),
        ({"switches": {"inverted_flag": 1}}, "expected true or false"),
        ({"switches": {"first_activation_priced_at_7": True}}, "no effect without pins: over_budget"),
        ({"switches": {"inverted_flag": True}, "decisions": "weights"}, "is about decisions='weights\\+activations'"),
        (
            {"switches": {"inverted_flag": True}, "observation": "blog", "sensitivity": np.ones(6)},
            "no decides_weights",
        ),
        ({"switches": {"pins": "over_budget"}, "bits": (2, 4)}, "needs 8 bits on offer"),
        ({"constraint": "mask"}, "is not HAQ's search"),
        ({"pinned": {"layer1": 8}}, "is not HAQ's search"),
        ({"reward_scale": 1.0}, "reward_scale is 0.1"),
    ],
)
def test_mistakes_are_one_sentence(options, message):
    with pytest.raises(QuantenvError, match=message):
        make(**options)


def test_pins_count_when_budgets_are_checked():
    make({"pins": "never"}, metric="size", budget=0.26)
    with pytest.raises(InfeasibleBudgetError):
        make({"pins": "over_budget"}, metric="size", budget=0.26)


def test_a_full_budget_changes_nothing():
    env = make({"pins": "over_budget"}, budget=1.0)
    assert play(env, highest)[2][-1]["corrected"] == 0
    assert play(env, [0] * env.n_decisions)[2][-1]["bits"].tolist() == [[2, 2]] * 6
