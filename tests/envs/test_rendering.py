import numpy as np

from quantenv.envs.figures import allocation_figure, figure_pixels
from quantenv.envs.rendering import allocation_text
from tests.envs.synthetic_env import make_env
from tests.synthetic import synthetic_layers


def test_text_is_a_bar_per_layer():
    text = allocation_text(synthetic_layers(2), np.array([[3, 8], [0, 0]]))
    assert text.splitlines() == ["layer0  W ███····· 3  A ████████ 8", "layer1  W ········ ?  A ········ ?"]


def test_figure_bars_are_as_high_as_the_bits():
    figure = allocation_figure(synthetic_layers(3), np.array([[3, 8], [2, 4], [0, 6]]), title="found")
    axes = figure.axes[0]
    weights, activations = axes.containers
    assert [bar.get_height() for bar in weights] == [3, 2, 0]
    assert [bar.get_height() for bar in activations] == [8, 4, 6]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["layer0", "layer1", "layer2"]
    assert axes.get_title() == "found"


def test_pixels_are_an_image_with_both_colours():
    pixels = figure_pixels(allocation_figure(synthetic_layers(3), np.full((3, 2), 4)))
    assert pixels.dtype == np.uint8
    assert pixels.ndim == 3
    assert pixels.shape[2] == 3
    colours = set(map(tuple, pixels.reshape(-1, 3).tolist()))
    assert {(0, 0x72, 0xB2), (0xE6, 0x9F, 0)} <= colours


def test_an_environment_draws_what_is_settled_so_far():
    env = make_env(3, render_mode="ansi", bits=(2, 4), budget=0.9, pinned={"layer2": 8})
    env.reset()
    assert env.render().splitlines()[0] == "layer0  W ········ ?  A ████████ 8"
    env.step(1)
    assert [line.split()[3] for line in env.render().splitlines()] == ["4", "?", "8"]


def test_rgb_array_changes_with_the_bits():
    env = make_env(3, render_mode="rgb_array")
    env.reset()
    before = env.render()
    env.step(0)
    after = env.render()
    assert before.shape == after.shape
    assert (before != after).any()
