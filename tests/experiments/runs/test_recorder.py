import numpy as np

from agents import make_agent
from experiments.runs.recorder import EpisodeRecorder
from quantenv.envs.environment import QuantizationEnv
from tests.synthetic import AdditiveEvaluator


def make(constraint="mask", **options):
    evaluator = AdditiveEvaluator()
    env = QuantizationEnv(
        None, evaluator=evaluator, sensitivity=evaluator.sensitivity, constraint=constraint, budget=0.5, **options
    )
    return evaluator, EpisodeRecorder(env, evaluator.samples)


def test_every_finished_episode_is_shown_once_and_as_it_was_evaluated():
    evaluator, recorder = make()
    episodes = []
    recorder.listeners = [episodes.append]
    make_agent("random", recorder, 3).learn(25, lambda metrics: None)
    assert [episode.evaluation for episode in episodes] == list(range(1, 26))
    assert recorder.evaluations == evaluator.calls == 25
    tables = recorder.unwrapped.tables
    for episode in episodes:
        allocation = episode.allocation(evaluator.layers)
        (again,) = evaluator.evaluate([allocation])
        assert (episode.correct, episode.samples, episode.loss) == (again.correct, again.samples, again.loss)
        assert episode.reward == again.accuracy - evaluator.reference.accuracy
        assert episode.feasible
        assert episode.penalty_lambda is None
        for metric, table in tables.items():
            if metric == "memory":  # each layer's input and the next one's, which it writes
                assert episode.costs[metric] == table.cost(*zip(*episode.bits, strict=True))
                continue
            expected = sum(table.values[i, w - 1, a - 1] for i, (w, a) in enumerate(episode.bits))
            np.testing.assert_allclose(episode.costs[metric], expected, rtol=1e-12)


def test_lambda_is_recorded_under_the_lagrangian():
    _, recorder = make("lagrangian", constraint_options={"initial": 2.0, "learning_rate": 0.0})
    episodes = []
    recorder.listeners = [episodes.append]
    make_agent("random", recorder, 0).learn(5, lambda metrics: None)
    assert [episode.penalty_lambda for episode in episodes] == [2.0] * 5
    assert not all(episode.feasible for episode in episodes)


def test_an_abandoned_episode_is_not_counted():
    _, recorder = make()
    episodes = []
    recorder.listeners = [episodes.append]
    recorder.reset()
    recorder.step(0)
    make_agent("random", recorder, 0).learn(1, lambda metrics: None)
    assert [episode.evaluation for episode in episodes] == [1]


def test_masks_pass_through():
    _, recorder = make()
    _, info = recorder.reset()
    np.testing.assert_array_equal(recorder.action_masks(), info["action_mask"].astype(bool))


def test_episodes_of_copies_are_shown_as_those_of_the_environment():
    _, recorder = make("lagrangian", constraint_options={"learning_rate": 0.3})
    _, side_by_side = make("lagrangian", constraint_options={"learning_rate": 0.3})
    expected, shown = [], []
    recorder.listeners, side_by_side.listeners = [expected.append], [shown.append]
    copies = side_by_side.vectorize(3)
    actions = np.random.default_rng(0).integers(7, size=(2, recorder.unwrapped.n_decisions, 3))
    copies.reset(seed=0)
    recorder.reset(seed=0)
    for batch in actions:
        for chosen in batch:
            copies.step(chosen)
        for copy in range(3):
            recorder.reset()
            for chosen in batch:
                recorder.step(int(chosen[copy]))
    assert shown == expected
    assert [episode.evaluation for episode in shown] == [1, 2, 3, 4, 5, 6]
