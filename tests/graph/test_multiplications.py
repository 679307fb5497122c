import threading

import torch
from torch import nn

from quantenv.graph.multiplications import Multiplications


def test_a_layer_that_another_thread_is_within_is_not_counted():
    within, watched = threading.Event(), threading.Event()

    class Waiting(nn.Conv2d):
        def forward(self, x):
            if threading.current_thread() is other:
                within.set()
                assert watched.wait(60)
            return super().forward(x)

    layer, inputs = Waiting(1, 1, 1), torch.ones(1, 1, 2, 2)
    layer.register_forward_hook(lambda *_: None)  # with one, torch looks for others after the call, too
    other = threading.Thread(target=layer, args=(inputs,))
    other.start()
    assert within.wait(60)
    watch = Multiplications(layer)
    handles = list(watch.hooks(layer))
    watched.set()
    other.join()
    with watch:
        layer(inputs)
    for handle in handles:
        handle.remove()
