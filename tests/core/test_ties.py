import pytest

from quantenv.core.errors import QuantenvError
from quantenv.core.ties import resolve_groups
from tests.synthetic import synthetic_layers

LAYERS = synthetic_layers(5)


def test_layers_that_are_not_tied_are_groups_of_one():
    assert resolve_groups(None, LAYERS) == ((0,), (1,), (2,), (3,), (4,))
    assert resolve_groups([], LAYERS) == resolve_groups(None, LAYERS)


def test_groups_stand_where_their_first_layer_does():
    assert resolve_groups([["layer4", "layer2"], ["layer3", "layer0"]], LAYERS) == ((0, 3), (1,), (2, 4))


@pytest.mark.parametrize(
    ("tied", "message"),
    [
        ([["layer0", "layr1"]], "Unknown tied layer 'layr1'. Did you mean 'layer1'"),
        ([["layer0", "layer1"], ["layer1"]], "'layer1' is tied more than once"),
        ([["layer0", "layer0"]], "'layer0' is tied more than once"),
        ([[]], "an empty group: it takes groups of layer names"),
        (["layer0"], "A group of tied is 'layer0': expected a list of layer names"),
    ],
)
def test_bad_groups_are_named(tied, message):
    with pytest.raises(QuantenvError, match=message):
        resolve_groups(tied, LAYERS)
