import numpy as np
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from experiments.report import Report
from experiments.tensorboard import EVALUATIONS_BETWEEN, TensorBoard, bits_figure
from experiments.top_k import TopK
from quantenv.env.figures import figure_pixels
from quantenv.hardware import Budget
from tests.experiments.test_episodes import make_episode
from tests.experiments.test_report import make_report
from tests.synthetic import synthetic_layers

LAYERS = synthetic_layers(2)
BUDGETS = (Budget("size", 241.0),)


def episodes(count):
    for number in range(1, count + 1):
        yield make_episode(
            number, bits=((2 + number % 3, 8), (3, 8)), correct=min(99, 50 + number), reward=number / 100
        )


def write(folder, count, report: Report | None = None):
    top = TopK(2, BUDGETS)
    board = TensorBoard(folder, LAYERS, BUDGETS, count, top)
    for episode in episodes(count):
        top(episode)
        board(episode)
        board.log({"train/entropy": 1.0})
    board.fine_tuning("found")(1, {"qat/search_accuracy": 0.5})
    board.finish({"seed": 0, "bits": [2, 3], "pinned": None}, report or make_report())


def load(folder):
    events = EventAccumulator(str(folder), size_guidance={"images": 0, "scalars": 0, "tensors": 0})
    return events.Reload()


def test_every_episode_is_a_point_at_its_evaluation(tmp_path):
    write(tmp_path, 20)
    events = load(tmp_path)
    rewards = events.Scalars("rollout/reward")
    assert [event.step for event in rewards] == list(range(1, 21))
    np.testing.assert_allclose([event.value for event in rewards], np.arange(1, 21) / 100, rtol=1e-6)
    shares = [event.value for event in events.Scalars("rollout/cost_over_budget_size")]
    np.testing.assert_allclose(shares, 120.5 / 241, rtol=1e-6)
    best = [event.value for event in events.Scalars("rollout/best_accuracy")]
    assert best == sorted(best)
    for tag in ("rollout/accuracy", "rollout/loss", "time/evaluations_per_second", "train/entropy"):
        assert len(events.Scalars(tag)) == 20
    assert [event.step for event in events.Scalars("qat/found_search_accuracy")] == [1]
    assert "test/found_post-training" in events.Tags()["scalars"]


def test_no_curve_has_two_values_at_one_step(tmp_path):
    top = TopK(2, BUDGETS)
    board = TensorBoard(tmp_path, LAYERS, BUDGETS, 3, top)
    board.log({"train/loss": 9.0})
    for episode in episodes(3):
        top(episode)
        board(episode)
        for value in (1.0, 2.0):
            board.log({"train/loss": value + episode.evaluation})
    board.finish({"seed": 0}, make_report())
    assert [(event.step, event.value) for event in load(tmp_path).Scalars("train/loss")] == [
        *((0, 9.0), (1, 3.0), (2, 4.0), (3, 5.0))
    ]


def test_heat_maps_best_allocation_and_hyper_parameters(tmp_path):
    write(tmp_path, 20)
    events = load(tmp_path)
    assert [image.step for image in events.Images("allocation/weight_bits")] == [20]
    assert events.Images("allocation/best")
    assert "allocation/activation_bits" not in events.Tags()["images"]  # they never changed
    text = events.Tensors("allocation/best/text_summary")[-1].tensor_proto.string_val[0].decode()
    assert "70.00%" in text
    assert LAYERS[0].name in text
    assert "_hparams_/experiment" in events.summary_metadata


def test_heat_maps_come_now_and_then_and_at_the_end(tmp_path):
    write(tmp_path, 45 + EVALUATIONS_BETWEEN)
    steps = [image.step for image in load(tmp_path).Images("allocation/weight_bits")]
    assert steps == [EVALUATIONS_BETWEEN, 45 + EVALUATIONS_BETWEEN]


def test_a_resumed_run_does_not_double_its_curves(tmp_path):
    write(tmp_path, 7)
    write(tmp_path, 20)
    assert len(list(tmp_path.glob("events.*"))) == 1
    assert len(load(tmp_path).Scalars("rollout/reward")) == 20


def test_the_heat_map_shows_the_bits():
    bits = np.array([[1, 8]] * 50)
    pixels = figure_pixels(bits_figure(LAYERS, bits, "weight bits")).reshape(-1, 3).astype(int)
    purple, yellow = (68, 1, 84), (253, 231, 37)  # viridis at both ends
    for colour in (purple, yellow):
        assert (np.abs(pixels - colour) <= 1).all(axis=1).sum() > 1000
