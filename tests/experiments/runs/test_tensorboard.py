import dataclasses
import json

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from agents.rl.reinforce import ReinforceConfig
from experiments.options.runs import TrainOptions
from experiments.runs.final_table import Report
from experiments.runs.tensorboard import EVALUATIONS_BETWEEN, TensorBoard, bits_figure, hyper_parameters
from experiments.runs.top_k import TopK
from quantenv.envs.figures import figure_pixels
from quantenv.hardware import Budget
from tests.experiments.runs.test_episodes import make_episode
from tests.experiments.runs.test_final_table import make_report
from tests.synthetic import synthetic_layers

LAYERS = synthetic_layers(2)
BUDGETS = (Budget("size", 241.0),)


@pytest.fixture(autouse=True)
def no_pictures():
    """They are drawn here."""


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
    for name, accuracy in (("found", 0.5), ("best_uniform", 0.25)):
        board.fine_tuning(name)(1, {"qat/search_accuracy": accuracy})
    options = TrainOptions(seed=3, agent_options={"hidden": 7})
    board.finish(hyper_parameters(options, ReinforceConfig(hidden=7)), report or make_report(), regret=0.125)


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
    assert "test/found_post-training" in events.Tags()["scalars"]
    assert [event.value for event in events.Scalars("search/regret")] == [0.125]


def test_curves_of_fine_tunings_lie_over_each_other(tmp_path):
    write(tmp_path, 3)
    write(tmp_path, 4)  # as when resumed
    for name, accuracy in (("found", 0.5), ("best_uniform", 0.25)):
        curve = load(tmp_path / "qat" / name).Scalars("qat/search_accuracy")
        assert [(event.step, event.value) for event in curve] == [(1, accuracy)]


def test_hyper_parameters_begin_with_what_tells_runs_apart(tmp_path):
    write(tmp_path, 3)
    content = load(tmp_path).summary_metadata["_hparams_/experiment"].plugin_data.content
    experiment = HParamsPluginData.FromString(content).experiment
    # As tensorboard.plugins.hparams.backend_context sorts them.
    infos = sorted(experiment.hparam_infos, key=lambda info: (not info.differs, info.name))
    assert {info.name for info in infos[:5]} == {"seed", "task", "metric", "budget", "agent"}
    assert len({info.name for info in infos}) == len(infos)
    content = load(tmp_path).summary_metadata["_hparams_/session_start_info"].plugin_data.content
    values = HParamsPluginData.FromString(content).session_start_info.hparams
    assert json.loads(values["agent_options"].string_value) == dataclasses.asdict(ReinforceConfig(hidden=7))
    metrics = [info.name.tag for info in experiment.metric_infos]
    assert metrics[0] == "search/regret"
    assert "test/float" in metrics


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
