"""Networks as people write them: each computes what float torch does, or is refused for the true reason, by name."""

import importlib
import types

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

from quantenv.backends.integer import IntegerNetwork
from quantenv.backends.quantized import QuantizedNetwork
from quantenv.core.allocation import Allocation
from quantenv.core.errors import UnsupportedLayerError
from quantenv.quantization.calibrating import calibrate
from quantenv.training.qat.network import trainable_network

IMAGES = torch.randn(32, 1, 8, 8, generator=torch.Generator().manual_seed(0))
TOKENS = IMAGES[:, 0]  # (B, 8 tokens, 8)


@pytest.fixture(autouse=True)
def coarse_ranges(monkeypatch):
    """Ranges by largest value: how they are searched is tested elsewhere, and takes minutes here."""
    ranges = importlib.import_module("quantenv.quantization.ranges")
    monkeypatch.setattr(ranges, "RATIOS", torch.tensor([1.0]))
    monkeypatch.setattr(ranges, "END_RATIOS", ranges.END_RATIOS[-13:])  # both ends whole, or one of them clipped
    monkeypatch.setattr(ranges, "COARSE_RATIOS", torch.tensor([1.0]))
    monkeypatch.setattr(ranges, "REFINEMENTS", torch.zeros(0))


def net(forward, **parts):
    """A network of some parts and a forward()."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            for name, part in parts.items():
                setattr(self, name, part)

    Net.forward = forward
    return Net()


def cnn(*middle):
    first, last = nn.Conv2d(1, 8, 3, padding=1), nn.Linear(8, 4)
    return nn.Sequential(first, nn.ReLU(), *middle, nn.AdaptiveAvgPool2d(1), nn.Flatten(), last)


def mlp(first, last, between=torch.relu):
    return net(lambda self, x: self.last(between(self.first(x.flatten(1)))), first=first, last=last)


def weight(*shape):
    return nn.Parameter(torch.randn(shape) / shape[-1] ** 0.5)


def with_buffer(network, name, value, persistent=True):
    network.register_buffer(name, value, persistent=persistent)
    return network


class Own(nn.Conv2d):
    """A convolution under another name."""


class OwnNorm(nn.BatchNorm2d):
    """A norm under another name."""


class OwnReLU(nn.ReLU):
    """A ReLU under another name."""


class Same(nn.Conv2d):
    """Pads as timm's Conv2dSame."""

    def forward(self, x):
        total = self.kernel_size[0] - 1
        x = F.pad(x, [total // 2, total - total // 2] * 2)
        return F.conv2d(x, self.weight, self.bias, self.stride, (0, 0), self.dilation, self.groups)


class Standardised(nn.Conv2d):
    """Standardises its weights."""

    def forward(self, x):
        kernel = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return self._conv_forward(x, kernel / kernel.std((1, 2, 3), keepdim=True), self.bias)


class LoRA(nn.Linear):
    """Adds a product of low rank, and calls what it inherits."""

    def __init__(self, inputs, outputs):
        super().__init__(inputs, outputs)
        self.down, self.up = weight(2, inputs), weight(outputs, 2)

    def forward(self, x):
        return super().forward(x) + (x @ self.down.T) @ self.up.T


class Symmetric(nn.Module):
    """A parametrization."""

    def forward(self, matrix):
        return matrix.triu() + matrix.triu(1).T


def pruned():
    network = cnn(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
    prune.l1_unstructured(network[0], "weight", 0.3)
    prune.ln_structured(network[2], "weight", 0.3, n=2, dim=0)
    prune.random_unstructured(network[2], "bias", 0.3)
    return network


def shared():
    network = cnn(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1))
    network[5].weight = network[2].weight
    return network


def views_of_a_vector():
    network = cnn(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8))
    nn.utils.vector_to_parameters(nn.utils.parameters_to_vector(network.parameters()).detach(), network.parameters())
    return network


def used_twice():
    layer = nn.Conv2d(8, 8, 3, padding=1)
    return cnn(layer, nn.ReLU(), layer)


def hooked(place, register, hook, **settings):
    network = cnn(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
    module = network if place is None else network[place]
    getattr(module, register)(hook, **settings)
    return network


def changing_in_place(module, arguments, output):
    output.mul_(0.5)


def of_numpy(module, arguments, output):
    return torch.from_numpy(output.detach().numpy() * 0.5)


def looking(module, arguments, output):
    float(output.mean())
    output.detach().numpy()


def weight_by_hook():
    network = cnn(nn.Conv2d(8, 8, 3, padding=1))
    layer = network[2]
    layer.register_parameter("raw", layer._parameters.pop("weight"))

    def make(module, arguments):
        module.weight = module.raw / module.raw.flatten(1).norm(dim=1).view(-1, 1, 1, 1)

    layer.register_forward_pre_hook(make)
    with torch.no_grad():
        network(IMAGES)
    return network


def forward_of_instance():
    network = cnn(nn.Conv2d(8, 8, 3, padding=1))
    layer = network[2]
    layer.forward = lambda x: F.conv2d(x, layer.weight * 2, layer.bias, padding=1)  # of the network, not of a copy
    return network


def forward_of_the_network():
    network = cnn()
    network.forward = types.MethodType(lambda self, x: type(self).forward(self, x) * 2 + 1, network)
    return network


def attention(mask):
    def forward(self, x):
        scores = mask(self.query(x) @ self.key(x).transpose(-2, -1) / 4, x)
        return self.head((scores.softmax(-1) @ self.value(x)).mean(1))

    layers = {name: nn.Linear(8, 16) for name in ("query", "key", "value")}
    return net(forward, **layers, head=nn.Linear(16, 4))


def encoder(kind=nn.TransformerEncoderLayer, mask=None, **settings):
    layer = kind(8, 2, 16, **settings)
    return net(
        lambda self, x: self.head(self.encoder(x, mask).mean(1)),
        encoder=nn.TransformerEncoder(layer, 2, norm=nn.LayerNorm(8), enable_nested_tensor=False),
        head=nn.Linear(8, 4),
    )


class OwnEncoderLayer(nn.TransformerEncoderLayer):
    """An encoder's layer under another name."""


def on_tokens(between, features=16):
    """Two layers with something between, of tokens: (B, 8, 16) to (B, features)."""
    return net(lambda self, x: self.head(between(self.point(x))), point=nn.Linear(8, 16), head=nn.Linear(features, 4))


def assigned(self, x):
    x = self.conv(x).clone()
    x[:, 0] = 0
    x[:, 1, :2] += 1
    return self.head(x.mean((2, 3)))


def listed(self, x):
    x = x.flatten(1)
    for index, layer in enumerate(self.layers):
        x = torch.relu(layer(x)) + (x if index else 0)
    return self.more[:2](x)


def spectrum(self, x):
    x = torch.fft.rfft(self.point(x), dim=1) * torch.view_as_complex(self.gain)
    return self.head(torch.fft.irfft(x, n=8, dim=1).mean(1) + x.abs().mean(1))


def by_sizes(self, x):
    x = self.conv(x)
    batch, channels, *sizes = x.shape
    x = x.view(batch, 2, channels // 2, *sizes).transpose(1, 2).flatten(1, 2)
    assert x.dim() == 4
    if x.shape[-1] > 4:
        x = F.avg_pool2d(x, 2)
    for row in x.unbind(2):
        x = x + row[:, :, None]
    return self.head(x.mean((2, 3)))


#: A builder, and the inputs, by what is special. Each has two or more layers.
WORK = {
    "subclasses": (lambda: cnn(Own(8, 8, 3, padding=1), OwnNorm(8), OwnReLU()), IMAGES),
    "a subclass that pads": (lambda: cnn(Same(8, 8, 4), nn.BatchNorm2d(8), nn.ReLU()), IMAGES),
    "standardised weights": (lambda: cnn(Standardised(8, 8, 3, padding=1), nn.BatchNorm2d(8)), IMAGES),
    "lora": (lambda: mlp(LoRA(64, 16), LoRA(16, 4)), IMAGES),
    "same padding": (lambda: cnn(nn.Conv2d(8, 8, 3, padding="same", dilation=2)), IMAGES),
    "same padding, even": (lambda: cnn(nn.Conv2d(8, 8, (4, 3), padding="same"), nn.BatchNorm2d(8)), IMAGES),
    "valid padding": (lambda: cnn(nn.Conv2d(8, 8, 3, padding="valid")), IMAGES),
    "reflected padding": (lambda: cnn(nn.Conv2d(8, 8, 3, padding=(2, 1), padding_mode="reflect")), IMAGES),
    "circular padding": (lambda: cnn(nn.Conv2d(8, 8, 3, padding="same", padding_mode="circular")), IMAGES),
    "weight norm": (lambda: cnn(nn.utils.weight_norm(nn.Conv2d(8, 8, 3))), IMAGES),
    "spectral norm": (lambda: cnn(nn.utils.spectral_norm(nn.Conv2d(8, 8, 3)), nn.BatchNorm2d(8)), IMAGES),
    "parametrized weight norm": (lambda: cnn(parametrizations.weight_norm(Own(8, 8, 3))), IMAGES),
    "parametrized spectral norm": (lambda: cnn(parametrizations.spectral_norm(nn.Conv2d(8, 8, 3))), IMAGES),
    "a parametrization": (
        lambda: mlp(parametrize.register_parametrization(nn.Linear(64, 64), "weight", Symmetric()), nn.Linear(64, 4)),
        IMAGES,
    ),
    "pruned": (pruned, IMAGES),
    "a weight made by a hook": (weight_by_hook, IMAGES),
    "shared weights": (shared, IMAGES),
    "views of a vector": (views_of_a_vector, IMAGES),
    "a normalised weight": (
        lambda: net(
            lambda self, x: 10 * F.linear(F.normalize(torch.relu(self.body(x.flatten(1)))), F.normalize(self.weight)),
            body=nn.Linear(64, 32),
            weight=weight(4, 32),
        ),
        IMAGES,
    ),
    "a scaled layer": (
        lambda: net(
            lambda self, x: F.linear(self.body(x.flatten(1)).relu(), self.head.weight * self.scale, self.head.bias),
            body=nn.Linear(64, 32),
            head=nn.Linear(32, 4),
            scale=nn.Parameter(torch.tensor(2.0)),
        ),
        IMAGES,
    ),
    "addmm": (
        lambda: net(
            lambda self, x: torch.addmm(self.shift, self.body(x.flatten(1)), self.weight),
            body=nn.Linear(64, 32),
            weight=weight(32, 4),
            shift=weight(4),
        ),
        IMAGES,
    ),
    "mixed tokens": (
        lambda: net(
            lambda self, x: self.head((self.mix @ self.point(x)).mean(1)) + (x @ self.last)[:, :4],
            point=nn.Linear(8, 16),
            mix=weight(6, 8),
            last=weight(8),
            head=nn.Linear(16, 4),
        ),
        TOKENS,
    ),
    "einsum with weights": (
        lambda: net(
            lambda self, x: self.head(
                torch.einsum("bni,ihd->bhnd", torch.einsum("mn,bni->bmi", self.mix, self.point(x)), self.weight).sum(
                    (1, 2)
                )
            ),
            point=nn.Linear(8, 16),
            mix=weight(6, 8),
            weight=weight(16, 2, 8),
            head=nn.Linear(8, 4),
        ),
        TOKENS,
    ),
    "products of activations": (
        lambda: net(
            lambda self, x: self.head(torch.einsum("bni,bmi->bnm", self.a(x).relu(), self.b(x).relu()).mean(1)),
            a=nn.Linear(8, 16),
            b=nn.Linear(8, 16),
            head=nn.Linear(8, 4),
        ),
        TOKENS,
    ),
    "a hook on a convolution": (
        lambda: hooked(2, "register_forward_pre_hook", lambda module, arguments: (arguments[0] * 0.5,)),
        IMAGES,
    ),
    "a hook on a norm": (lambda: hooked(3, "register_forward_hook", lambda module, x, y: y * 0.5 + 1), IMAGES),
    "a hook on a relu": (lambda: hooked(4, "register_forward_hook", changing_in_place), IMAGES),
    "a hook on the network": (lambda: hooked(None, "register_forward_hook", lambda module, x, y: y * 2 - 1), IMAGES),
    "a hook with keywords": (
        lambda: hooked(
            None,
            "register_forward_pre_hook",
            lambda module, arguments, keywords: ((arguments[0] * 3,), keywords),
            with_kwargs=True,
        ),
        IMAGES,
    ),
    "a hook that looks": (lambda: hooked(2, "register_forward_hook", looking), IMAGES),
    "a forward of an instance": (forward_of_instance, IMAGES),
    "a forward of the network": (forward_of_the_network, IMAGES),
    "compiled": (lambda: torch.compile(cnn(), backend="eager"), IMAGES),
    "norms of tokens": (
        lambda: net(
            lambda self, x: self.head(self.norm(self.point(x)).relu()).mean(1),
            point=nn.Linear(8, 8),
            norm=nn.BatchNorm1d(8),
            head=nn.Linear(8, 4),
        ),
        TOKENS,
    ),
    "a norm first": (lambda: nn.Sequential(nn.BatchNorm2d(1), *cnn()), IMAGES),
    "squeeze": (
        lambda: net(
            lambda self, x: self.head(F.adaptive_avg_pool2d(self.conv(x).relu(), 1).squeeze()),
            conv=nn.Conv2d(1, 8, 3),
            head=nn.Linear(8, 4),
        ),
        IMAGES,
    ),
    "double precision": (lambda: cnn(nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8)).double(), IMAGES),
    "bfloat16": (lambda: cnn(nn.Conv2d(8, 8, 3)).bfloat16(), IMAGES),
    "casts": (
        lambda: net(
            lambda self, x: self.head(self.body(x.flatten(1)).relu().double().to(self.head.weight.dtype)).float(),
            body=nn.Linear(64, 16),
            head=nn.Linear(16, 4).double(),
        ),
        IMAGES,
    ),
    "the largest token": (lambda: on_tokens(lambda x: x.relu().max(1)[0]), TOKENS),
    "the smallest and middle values": (
        lambda: on_tokens(lambda x: torch.cat([x.min(dim=1).values, x.median(1)[0], x.amax(1)], 1), 48),
        TOKENS,
    ),
    "sorted tokens": (lambda: on_tokens(lambda x: x.sort(dim=1)[0][:, -3:].flatten(1), 48), TOKENS),
    "top tokens": (lambda: on_tokens(lambda x: torch.topk(x, 3, dim=1).values.mean(1)), TOKENS),
    "variance and mean": (lambda: on_tokens(lambda x: torch.cat(torch.var_mean(x, dim=1), 1), 32), TOKENS),
    "the larger of two": (lambda: on_tokens(lambda x: torch.max(x, x.flip(1)).mean(1)), TOKENS),
    "a spectrum": (
        lambda: net(spectrum, point=nn.Linear(8, 16), gain=weight(5, 16, 2), head=nn.Linear(16, 4)),
        TOKENS,
    ),
    "real parts": (lambda: on_tokens(lambda x: torch.fft.fft(torch.fft.fft(x), dim=1).real.mean(1)), TOKENS),
    "a causal mask": (
        lambda: attention(lambda scores, x: scores.masked_fill(torch.ones(8, 8).triu(1).bool(), float("-inf"))),
        TOKENS,
    ),
    "a mask of the input": (
        lambda: attention(lambda scores, x: torch.where((x.sum(-1) < -2)[:, None], float("-inf"), scores)),
        TOKENS,
    ),
    "a mask made of sizes": (
        lambda: attention(
            lambda scores, x: scores.masked_fill(torch.triu(torch.ones(x.shape[1], len(x[0])), 1) == 1, -1e9)
        ),
        TOKENS,
    ),
    "an encoder": (lambda: encoder(batch_first=True), TOKENS),
    "an encoder, norms first": (lambda: encoder(batch_first=True, norm_first=True, activation="gelu"), TOKENS),
    "an encoder, tokens first": (lambda: encoder(), TOKENS),
    "an encoder, masked": (
        lambda: encoder(OwnEncoderLayer, nn.Transformer.generate_square_subsequent_mask(8), batch_first=True),
        TOKENS,
    ),
    "a learned query": (
        lambda: net(
            lambda self, x: self.head(self.attention(self.query.expand(x.shape[0], -1, -1), x, x)[0][:, 0]),
            attention=nn.MultiheadAttention(8, 2, batch_first=True),
            query=weight(1, 1, 8),
            head=nn.Linear(8, 4),
        ),
        TOKENS,
    ),
    "positions": (
        lambda: on_tokens(
            lambda x: (x + torch.sin(torch.arange(x.size(1), device=x.device).float()[:, None] * 0.3)).mean(1)
        ),
        TOKENS,
    ),
    "assigned values": (lambda: net(assigned, conv=nn.Conv2d(1, 8, 3), head=nn.Linear(8, 4)), IMAGES),
    "zeros beside": (
        lambda: mlp(nn.Linear(64, 16), nn.Linear(20, 4), lambda x: torch.cat([x, torch.zeros(x.shape[0], 4)], 1)),
        IMAGES,
    ),
    "lengths and views": (
        lambda: net(
            lambda self, x: self.head(self.body(x.view(len(x), -1)).relu()),
            body=nn.Linear(64, 16),
            head=nn.Linear(16, 4),
        ),
        IMAGES,
    ),
    "branches on sizes": (lambda: net(by_sizes, conv=nn.Conv2d(1, 8, 3), head=nn.Linear(8, 4)), IMAGES),
    "lists and slices": (
        lambda: net(
            listed,
            layers=nn.ModuleList([nn.Linear(64, 16), nn.Linear(16, 16)]),
            more=nn.Sequential(nn.Linear(16, 4), nn.Tanh(), nn.Linear(4, 9)),
        ),
        IMAGES,
    ),
    "loose parameters": (
        lambda: net(
            lambda self, x: self.head(self.body(x.flatten(1)).relu() * self.loose[0] + self.loose[1]),
            body=nn.Linear(64, 16),
            loose=nn.ParameterList([torch.rand(16), torch.rand(16)]),
            head=nn.Linear(16, 4),
        ),
        IMAGES,
    ),
    "buffers": (
        lambda: with_buffer(
            net(
                lambda self, x: self.head((self.table @ self.point(x)).mean(1)),
                point=nn.Linear(8, 16),
                head=nn.Linear(16, 4),
            ),
            "table",
            torch.rand(8, 8),
            persistent=False,
        ),
        TOKENS,
    ),
    "dropout": (lambda: cnn(nn.Dropout2d(), nn.Conv2d(8, 8, 3), nn.Dropout()), IMAGES),
    "a transposed convolution": (lambda: cnn(nn.ConvTranspose2d(8, 8, 2)), IMAGES),
    "a one-dimensional convolution": (
        lambda: net(lambda self, x: self.conv(x).mean(2), conv=nn.Conv1d(8, 4, 3)),
        TOKENS,
    ),
    "a one-dimensional convolution by a function": (
        lambda: net(
            lambda self, x: self.head(F.conv1d(x, self.weight).mean(2)), weight=weight(16, 8, 3), head=nn.Linear(16, 4)
        ),
        TOKENS,
    ),
    "a convolution's weights, transposed again": (
        lambda: net(
            lambda self, x: self.head(F.conv_transpose2d(self.conv(x).relu(), self.conv.weight).flatten(1)),
            conv=nn.Conv2d(1, 8, 3),
            head=nn.Linear(64, 4),
        ),
        IMAGES,
    ),
}


def without_its_weight():
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 4))
    network[1].forward = lambda x: x[:, :4] * 2
    return network


#: The same with a pattern of what is said.
REFUSED = {
    "TorchScript": (lambda: torch.jit.script(cnn()), IMAGES, "is TorchScript.*give the nn.Module"),
    "a lazy layer": (lambda: nn.Sequential(nn.Flatten(), nn.LazyLinear(4)), IMAGES, "LazyLinear '1' is lazy"),
    "complex weights": (
        lambda: net(
            lambda self, x: (x.flatten(1).to(torch.complex64) @ self.weight).abs(),
            weight=nn.Parameter(torch.ones(64, 4, dtype=torch.complex64)),
        ),
        IMAGES,
        "parameter 'weight' of .* is complex",
    ),
    "a layer whose forward was replaced": (without_its_weight, IMAGES, "ran no layer that can be quantized"),
    "a layer used twice": (used_twice, IMAGES, r"Layer '2' runs 2 times"),
    "a bilinear layer": (
        lambda: net(lambda self, x: self.pair(x, x).mean(1), pair=nn.Bilinear(8, 8, 4)),
        TOKENS,
        "'pair' is a Bilinear",
    ),
    "a recurrent layer": (
        lambda: net(lambda self, x: self.cell(x)[0][:, -1], cell=nn.GRU(8, 4, batch_first=True)),
        TOKENS,
        "'cell' is a GRU",
    ),
    "a decoder": (
        lambda: net(lambda self, x: self.decoder(x, x).mean(1), decoder=nn.TransformerDecoderLayer(8, 2, 16)),
        TOKENS,
        "'decoder' is a TransformerDecoderLayer, which hides its layers",
    ),
    "a branch on values": (
        lambda: net(lambda self, x: self.body(x.flatten(1)) * (2 if x.sum() > 0 else 1), body=nn.Linear(64, 4)),
        IMAGES,
        "Cannot trace Net.*Control flow on tensor values",
    ),
    "a branch on the batch": (
        lambda: net(lambda self, x: self.body(x.flatten(1)) * (2 if len(x) > 1 else 1), body=nn.Linear(64, 4)),
        IMAGES,
        "Cannot trace Net.*Control flow on tensor values",
    ),
    "a hook of numpy": (
        lambda: hooked(2, "register_forward_hook", of_numpy),
        IMAGES,
        r"The hook of_numpy of Conv2d '2' changes values in a way that cannot be traced",
    ),
    "a norm without statistics": (
        lambda: cnn(nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8, track_running_stats=False)),
        IMAGES,
        "'3' is a BatchNorm2d without running statistics",
    ),
    "weights of no layer": (
        lambda: net(
            lambda self, x: self.head(F.bilinear(x, x, self.weight).mean(1)),
            weight=weight(16, 8, 8),
            head=nn.Linear(16, 4),
        ),
        TOKENS,
        r"A weight of 'the network itself' \(Net\) is multiplied by in bilinear",
    ),
    "a layer's weight in another operation": (
        lambda: net(
            lambda self, x: torch.tensordot(self.head(x), self.head.weight, dims=([2], [0])).mean(1),
            head=nn.Linear(8, 4),
        ),
        TOKENS,
        r"The weight of layer 'head' \(Linear\) is used a second time, in tensordot, .* tied weights are",
    ),
    "an embedding with its head's weight": (
        lambda: tied_embedding(nn.Embedding(4, 8), nn.Linear(8, 4, bias=False)),
        TOKENS,
        r"'embedding' is an Embedding .* That its parameters are tied to 'head' is no obstacle",
    ),
}


def tied_embedding(embedding, head):
    head.weight = embedding.weight
    return net(
        lambda self, x: self.head(self.embedding(x[:, :, 0].long().clamp(0, 3)).mean(1)), embedding=embedding, head=head
    )


def made(build, inputs):
    """A network with batch norms that matter, in eval mode, and what it puts out."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = build()
        for module in network.modules():
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d) and module.running_mean is not None:
                module.running_mean.normal_(0, 0.3)
                module.running_var.uniform_(0.5, 2.0)
    kinds = {parameter.dtype for parameter in network.parameters()}
    with torch.no_grad():
        return network.eval(), network.eval()(inputs.to(kinds.pop()) if len(kinds) == 1 else inputs).float()


@pytest.mark.parametrize("kind", WORK)
def test_eight_bits_compute_what_float_does(kind):
    build, inputs = WORK[kind]
    network, expected = made(build, inputs)
    state = {key: value.clone() for key, value in network.state_dict().items()}
    calibration = calibrate(network, inputs)
    allocation = Allocation.make(calibration.layers, 8, 8)
    for backend in (QuantizedNetwork, IntegerNetwork):
        quantized = backend(calibration)
        quantized.select(allocation)
        assert 0 < (quantized(inputs) - expected).norm() < 0.05 * expected.norm()
        assert quantized(inputs[:1]).shape == (1, expected.shape[1])  # a batch of one
    with torch.no_grad():
        trained = trainable_network(calibration, allocation).eval()(inputs)
    assert (trained - expected).norm() < 0.05 * expected.norm()
    assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_computed_is_refused_by_name(kind):
    build, inputs, pattern = REFUSED[kind]
    with pytest.raises(UnsupportedLayerError, match=pattern):
        calibrate(build().eval(), inputs)


def test_all_weights_that_are_multiplied_by_are_counted():
    for kind in ("standardised weights", "a normalised weight", "a scaled layer", "addmm", "einsum with weights"):
        build, inputs = WORK[kind]
        network, _ = made(build, inputs)
        matrices = [parameter for parameter in network.parameters() if parameter.dim() > 1]
        layers = calibrate(network, inputs).layers
        assert sum(layer.params for layer in layers) == sum(matrix.numel() for matrix in matrices)
