import pytest

from quantenv.core.allocation import Allocation
from quantenv.core.errors import QuantenvError
from quantenv.evaluation import make_evaluator
from quantenv.evaluation.post_training import PTQEvaluator
from quantenv.evaluation.preparing import calibrate_task
from quantenv.quantization.schemes import LEARNED, SCHEMES, STEPS, Scheme, parse_scheme
from quantenv.sensitivity import Settings, measure
from quantenv.tasks import get_task
from quantenv.training import FinetuneEvaluator
from tests.digits import digits_under


def test_schemes_are_read():
    assert parse_scheme("linear") == Scheme()
    assert parse_scheme("k-means+batch-norm+bias") == Scheme("k-means", bias=True, batch_norm=True)
    assert parse_scheme("linear+adaround+bias") == Scheme(adaround=True, bias=True)
    assert parse_scheme("linear+equalisation+absorption") == Scheme(equalisation=True, absorption=True)


def test_the_default_has_the_version_that_stores_know():
    assert parse_scheme("linear").version == "linear-mse-folded-4"


def test_every_scheme_has_a_version_of_its_own_whatever_the_order_of_its_steps():
    shared = [step for step in STEPS if step not in LEARNED]
    steps = [[], *([step] for step in shared), shared]
    texts = ["+".join([weights, *each]) for weights in SCHEMES for each in steps]
    texts += ["+".join(["linear", *each, learned]) for learned in LEARNED for each in steps]
    assert len({parse_scheme(text).version for text in texts}) == len(texts)
    assert parse_scheme("linear+bias+batch-norm").version == parse_scheme("linear+batch-norm+bias").version


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("kmeans", "Unknown quantization scheme 'kmeans'. Did you mean 'k-means'"),
        ("linear+bais", "post-training step .*'bais'. Did you mean 'bias'"),
        ("linear+bias+bias", "names a step twice"),
        ("bias", "Unknown quantization scheme 'bias'"),
        ("", "Unknown quantization scheme ''"),
        ("linear+brecq+bias+adaround", "rounds weights in two ways, 'brecq' and 'adaround': give one"),
        ("k-means+adaround", "has codebooks, to which 'adaround' does not round"),
        ("linear+adaruond", "post-training step .*'adaruond'. Did you mean 'adaround'"),
    ],
)
def test_mistakes_are_explained(text, message):
    with pytest.raises(QuantenvError, match=message):
        parse_scheme(text)


def test_evaluators_under_different_schemes_have_different_identities():
    tasks = [digits_under(scheme) for scheme in ("linear", "linear+bias", "k-means")]
    assert len({PTQEvaluator(each, "float").identity for each in tasks}) == 3
    assert len({FinetuneEvaluator(each).identity for each in tasks}) == 3


def test_integers_take_corrected_biases_and_refuse_what_they_cannot_compute():
    task = get_task("digits")
    other = digits_under("k-means")
    assert make_evaluator("ptq", other, "off").backend == "float"
    with pytest.raises(QuantenvError, match=r"no integer arithmetic: codebooks.* Use backend 'float'"):
        PTQEvaluator(other, "integer")
    allocations = [Allocation.make(task.layers, bits) for bits in (3, 5, 8)]
    for scheme in ("linear+equalisation+bias", "linear+bias+batch-norm"):
        corrected = digits_under(scheme)
        floats, automatic = PTQEvaluator(corrected, "float"), PTQEvaluator(corrected, "auto")
        for one, other in zip(floats.evaluate(allocations), automatic.evaluate(allocations), strict=True):
            assert abs(one.correct - other.correct) <= 4


def test_codebooks_are_fitted_once():
    calibration = calibrate_task(digits_under("k-means"))
    assert calibration.weight_grids is calibration.weight_grids
    first, second = (PTQEvaluator(digits_under("k-means"), "float") for _ in range(2))
    assert first.network.calibration.codebooks is second.network.calibration.codebooks


def test_sensitivities_are_measured_under_the_scheme():
    settings = Settings(images=64)
    tasks = [digits_under(scheme) for scheme in ("linear", "k-means")]
    linear, codebooks = (measure(task, "sqnr", settings).weights for task in tasks)
    assert (codebooks[:, 1] < linear[:, 1]).mean() > 0.5  # two bits: four centroids do less harm than three steps
