import dataclasses
import json

import numpy as np
import pytest
import torch

import quantenv.sensitivity
from quantenv.core.errors import QuantenvError
from quantenv.evaluation.post_training import PTQEvaluator
from quantenv.quantization.schemes import STEPS
from quantenv.sensitivity import DEFAULT, Settings, kinds, measure
from quantenv.sensitivity import network as measuring_network
from quantenv.sensitivity.curvature import Curvature
from quantenv.sensitivity.deviations import Outputs, deviations, in_blocks
from quantenv.tasks import Split
from tests.networks import branched
from tests.sensitivity.conftest import small_task

LAYERS = 6
BLOCKS = 6  # of 14 deviations each, those of one layer
FAST = Settings(gradient_images=4, probes=2)
#: Weights of 2 and 4 bits, for tests of when something is measured: twelve deviations in two blocks.
FEW = np.zeros((2, LAYERS, 8), dtype=bool)
FEW[0, :, [1, 3, 7]] = True
FEW_BLOCKS = 2


@pytest.fixture
def calls(monkeypatch):
    """Counts what is measured; `stop` after so many layers kills the process, so to say."""
    counted = {"measure": 0, "trace": 0, "stop": 10**9}

    def counting(cls, name):
        original = getattr(cls, name)

        def counted_call(self, *arguments):
            if counted["measure"] + counted["trace"] >= counted["stop"]:
                raise KeyboardInterrupt
            counted[name] += 1
            return original(self, *arguments)

        monkeypatch.setattr(cls, name, counted_call)

    counting(Outputs, "measure")
    counting(Curvature, "trace")
    return counted


def file_of(cache):
    [path] = (cache / "sensitivity").glob("*.json")
    return path


@pytest.mark.parametrize("kind", kinds())
def test_every_kind_has_the_promised_form(task, kind):
    found = measure(task, kind, FAST)
    assert found.kind == kind
    for harms in (found.weights, found.activations):
        assert harms.shape == (LAYERS, 8)
        assert harms.dtype == np.float64
        assert np.isfinite(harms).all()
        assert (harms[:, 7] == 0).all()
        assert not harms.flags.writeable
        assert (harms[:, 0] != 0).any()
    assert found.evaluations > 0


def test_the_default_is_the_first_kind(task):
    assert kinds()[0] == DEFAULT
    assert measure(task, settings=FAST).kind == DEFAULT
    assert set(kinds()) == {"accuracy", "loss", "kl", "sqnr", "fisher", "fisher-output", "hessian"}


def test_harm_is_the_difference_to_8_bits_everywhere(task):
    outputs = Outputs(PTQEvaluator(task), None)
    wanted = [each for each in everything(task) if each.layers == (2,) and each.part == "activations"]
    base, rows = outputs.base(), outputs.measure(wanted)
    for position, kind in enumerate(("accuracy", "loss", "kl", "sqnr")):
        found = measure(task, kind)
        assert found.activations[2, :7].tolist() == [row[position] - base[position] for row in rows]


def everything(task):
    return deviations(task.layers, np.ones((2, len(task.layers), 8), dtype=bool))


def test_what_is_on_offer_is_measured_and_no_more(task, calls, cache):
    offered = FEW.copy()
    found = measure(task, offered=offered)
    whole = deviations(task.layers, offered)
    assert len(whole) == 2 * LAYERS
    assert calls["measure"] == len(in_blocks(whole)) == 2
    assert found.evaluations == len(whole) + 2
    np.testing.assert_array_equal(np.isfinite(found.weights), offered[0])
    assert np.isnan(found.activations[:, :7]).all()
    assert (found.activations[:, 7] == 0).all()


def test_other_bits_read_those_that_were_measured(task, calls):
    offered = FEW.copy()
    few = measure(task, offered=offered)
    offered[0, 2, 4] = True
    before = calls["measure"]
    more = measure(task, offered=offered)
    assert calls["measure"] == before + 1
    np.testing.assert_array_equal(more.weights[:, [1, 3]], few.weights[:, [1, 3]])
    assert np.isfinite(more.weights[2, 4])
    np.testing.assert_array_equal(measure(task).weights[:, [1, 3]], few.weights[:, [1, 3]])


def test_traces_are_of_what_is_on_offer(task, calls):
    offered = np.zeros((2, LAYERS, 8), dtype=bool)
    offered[0, 1:, [3, 7]] = True
    few = measure(task, "hessian", FAST, offered=offered)
    assert calls["trace"] == LAYERS - 1
    np.testing.assert_array_equal(few.weights[1:], measure(task, "hessian", FAST).weights[1:])
    assert calls["trace"] == 2 * LAYERS
    assert np.isnan(few.weights[0]).all()
    assert np.isnan(few.activations).all()


def test_an_evaluator_can_be_measured_through(task):
    through, default = PTQEvaluator(task, "float"), PTQEvaluator(task)
    found = measure(through)
    assert (found.identity == measure(task).identity) == (default.backend == "float")
    np.testing.assert_allclose(found.weights, measure(task).weights, rtol=0.05, atol=1e-3)


@pytest.mark.parametrize("kind", ["fisher", "hessian"])
def test_kinds_of_rounding_alone_say_so(task, kind):
    corrected = measure(dataclasses.replace(task, scheme="linear+bias"), kind, FAST)
    assert "It is of rounding alone" in corrected.notes[-1]


def test_hessian_is_the_trace_times_the_mean_squared_perturbation(task):
    curvature = Curvature(task, FAST)
    moved = np.array(curvature.perturbations()["weights"])
    found = measure(task, "hessian", FAST)
    for layer in range(LAYERS):
        trace = max(0.0, curvature.trace(layer, "weights").mean)
        np.testing.assert_allclose(found.weights[layer], trace * (moved[layer] - moved[layer, 7]), rtol=1e-12)


def test_traces_that_are_not_known_well_are_said(task):
    assert "Hessian traces have a standard error above 10% after 2 probes" in measure(task, "hessian", FAST).notes[0]
    assert measure(task, "fisher", FAST).notes == ()


def test_total_is_the_sum_over_layers(task):
    found = measure(task, "loss")
    bits = np.random.default_rng(0).integers(1, 9, (3, 4, LAYERS, 2))
    expected = sum(
        found.weights[layer, bits[1, 2, layer, 0] - 1] + found.activations[layer, bits[1, 2, layer, 1] - 1]
        for layer in range(LAYERS)
    )
    assert found.total(bits).shape == (3, 4)
    assert found.total(bits)[1, 2] == pytest.approx(expected)


def test_nothing_is_measured_twice(task, calls):
    first = measure(task, "kl")
    assert calls["measure"] == BLOCKS
    again = measure(small_task(), "kl")
    np.testing.assert_array_equal(again.weights, first.weights)
    assert again.identity == first.identity
    for kind in ("loss", "accuracy", "sqnr"):  # from the same outputs
        measure(task, kind)
    assert calls["measure"] == BLOCKS


def test_a_killed_measurement_goes_on_to_the_same_numbers(task, calls, tmp_path, monkeypatch):
    whole = {kind: measure(task, kind, FAST) for kind in ("kl", "hessian")}
    monkeypatch.setenv("QUANTENV_CACHE", str(tmp_path / "other"))
    for kind, most in (("kl", BLOCKS), ("hessian", 2 * LAYERS)):
        calls.update(measure=0, trace=0, stop=3)
        with pytest.raises(KeyboardInterrupt):
            measure(task, kind, FAST)
        calls.update(measure=0, trace=0, stop=10**9)
        resumed = measure(task, kind, FAST)
        assert calls["measure"] + calls["trace"] == most - 3
        np.testing.assert_array_equal(resumed.weights, whole[kind].weights)
        np.testing.assert_array_equal(resumed.activations, whole[kind].activations)


@pytest.mark.parametrize("damage", ["truncated", "changed", "emptied", "other"])
def test_a_damaged_file_is_measured_again_with_a_message(task, calls, cache, caplog, damage):
    first = measure(task, "kl", offered=FEW)
    path = file_of(cache)
    text = path.read_text()
    digit = text.index("outputs at 8 bits") + 25
    path.write_text(
        {
            "truncated": text[: len(text) // 2],
            "changed": text[:digit] + str((int(text[digit]) + 1) % 10) + text[digit + 1 :],
            "emptied": "",
            "other": json.dumps([1, 2]),
        }[damage]
    )
    again = measure(task, "kl", offered=FEW)
    assert "are damaged" in caplog.text
    assert calls["measure"] == 2 * FEW_BLOCKS
    np.testing.assert_array_equal(again.weights, first.weights)
    assert path.with_suffix(".damaged").exists()
    caplog.clear()
    measure(task, "kl", offered=FEW)
    assert not caplog.text
    assert calls["measure"] == 2 * FEW_BLOCKS


def test_whatever_it_depends_on_makes_it_anew(task, calls, monkeypatch):
    seen = {measure(task, "kl", offered=FEW).identity}

    def is_new(other, settings=None):
        before = calls["measure"]
        seen.add(measure(other, "kl", settings, offered=FEW).identity)
        return calls["measure"] == before + FEW_BLOCKS

    assert is_new(small_task(branched(seed=1)))
    search = task.splits["search"]
    assert is_new(small_task(search=Split(search.inputs[:-1], search.labels[:-1])))
    assert is_new(task, Settings(images=30))
    assert is_new(dataclasses.replace(task, scheme="linear+bias"))
    monkeypatch.setitem(STEPS, "bias", "bias-1000")
    assert is_new(dataclasses.replace(task, scheme="linear+bias"))
    assert not is_new(task)
    monkeypatch.setattr(measuring_network, "VERSION", 1000)
    assert is_new(task)
    monkeypatch.setattr(torch, "__version__", "0.0")
    assert not is_new(task)  # integer arithmetic is the same on every machine
    assert is_new(dataclasses.replace(task, scheme="k-means"))
    monkeypatch.setattr(torch, "__version__", "0.1")
    assert is_new(dataclasses.replace(task, scheme="k-means"))  # simulated in float
    assert len(seen) == 9


def test_the_test_split_is_not_looked_at(task):
    test = task.splits["test"]
    other = small_task(test=Split(-test.inputs, test.labels))
    for kind in ("accuracy", "fisher"):
        np.testing.assert_array_equal(measure(task, kind, FAST).weights, measure(other, kind, FAST).weights)


def test_progress_is_told_to_the_end(task):
    told = []
    measure(task, "kl", FAST, lambda done, total, what: told.append((done, total)))
    assert told == [(done, BLOCKS + 1) for done in range(BLOCKS + 2)]
    told.clear()
    measure(task, "loss", FAST, lambda done, total, what: told.append((done, total)))
    assert told == []


def test_evaluations_are_passes_over_the_search_split(task):
    passes = 2 * 7 * LAYERS
    assert measure(task, "loss").evaluations == passes + 1
    assert measure(task, "kl").evaluations == passes + 2
    assert measure(task, "kl", Settings(images=10)).evaluations == (passes + 2) / 4
    assert measure(task, "fisher", FAST).evaluations == 4 * 4 / 40
    assert measure(task, "fisher-output", FAST).evaluations == pytest.approx((3 + 2 * 8) * 4 / 40)
    assert measure(task, "hessian", FAST).evaluations == pytest.approx((9 * 2 * 2 * LAYERS + 1) * 4 / 40)


def test_mistakes_are_said(task, tmp_path, monkeypatch):
    with pytest.raises(QuantenvError, match="Did you mean 'hessian'"):
        measure(task, "hesian")
    with pytest.raises(QuantenvError, match="expected a Task, a PTQEvaluator or an evaluation table"):
        measure("digits")
    with pytest.raises(QuantenvError, match="images is 0"):
        Settings(images=0)
    with pytest.raises(QuantenvError, match="relative_error is nan"):
        Settings(relative_error=float("nan"))
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("QUANTENV_CACHE", str(tmp_path / "file"))
    with pytest.raises(QuantenvError, match="Set QUANTENV_CACHE"):
        measure(task, "kl")


def test_names_are_found_when_they_are_asked_for():
    assert callable(quantenv.sensitivity.layer_sensitivity)
    with pytest.raises(AttributeError, match="no attribute 'layer_sensitivities'"):
        _ = quantenv.sensitivity.layer_sensitivities
