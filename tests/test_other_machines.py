"""What must be equal on every machine, and that other machines are played at all.

Not portable, and not asked here: float networks and what is trained, so agents that learn by float arithmetic.
"""

import ctypes
import hashlib
import os
import signal
import tempfile
from fractions import Fraction

import gymnasium
import numpy as np
import pytest
import torch

from quantenv.core.files import content_hash
from quantenv.evaluation.table.shipped import get_table
from quantenv.graph.identity import network_content
from quantenv.quantization.formats import Codebook, Grid, GroupedGrid, activation_bounds, quantize, weight_bounds
from quantenv.tasks import Task
from quantenv.tasks.digits import SOURCE, DigitsNet, digits_splits
from quantenv.training.qat.base import LinearQuantizer, LSQQuantizer
from tests.agents.searches import search
from tests.graph import test_identity
from tests.networks import branched
from tests.other_machines import FEW, MACHINES, Machine, answers, same_everywhere

TABLES = ("DigitsTable-v0", "ResNet20Table-v0", "DigitsTableSweep-v0", "MODigitsTable-v0")
#: Agents whose choices come from random numbers, comparisons and sums in a fixed order alone.
EXACT_AGENTS = ("random", "uniform", "annealing", "greedy-down", "greedy-up", "nsga2")


def digest(*arrays) -> str:
    """Of the bytes, types and shapes of arrays or tensors."""
    known = hashlib.sha256()
    for array in map(np.asarray, arrays):
        known.update(f"{array.dtype}{array.shape}".encode() + np.ascontiguousarray(array).tobytes())
    return known.hexdigest()[:16]


def kernels():
    """The instruction set that oneDNN says it goes up to: it says so when first used, so a fork uses it."""
    with tempfile.TemporaryFile() as said:
        if os.fork() == 0:
            os.dup2(said.fileno(), 1)
            os.environ["ONEDNN_VERBOSE"] = "1"
            torch.nn.functional.conv2d(torch.ones(8, 16, 32, 32), torch.ones(16, 16, 3, 3))
            ctypes.CDLL(None).fflush(None)  # what C has not written yet
            os._exit(0)
        os.wait()
        said.seek(0)
        (line,) = [line for line in said.read().decode().splitlines() if ",info,cpu,isa:" in line]
    return line.split("isa:")[1]


def loops():
    return torch.backends.cpu.get_cpu_capability()


def floats():
    """A float convolution, float elementwise functions of torch and NumPy: what other machines do otherwise."""
    rng = np.random.default_rng(0)
    images = torch.tensor(rng.uniform(-3, 3, (8, 16, 12, 12)), dtype=torch.float32)
    weights = torch.tensor(rng.uniform(-1, 1, (16, 16, 3, 3)), dtype=torch.float32)
    tanh = np.tanh(np.linspace(0, 1, 10_000))
    return [digest(torch.nn.functional.conv2d(images, weights)), digest(images.exp(), images.softmax(1)), digest(tanh)]


def threads():
    return torch.get_num_threads()


def identities():
    """Of small networks, of a task, and of the task that the shipped table of digits was made from."""
    rng, small, other, digits = np.random.default_rng(0), branched(), test_identity.net(), DigitsNet()
    for tensor in (*small.state_dict().values(), *other.state_dict().values()):
        tensor.copy_(torch.tensor(rng.uniform(0.5, 2, tensor.shape)))  # torch's own draws differ between machines
    images = torch.tensor(rng.uniform(-1, 1, (20, 3, 16, 16)), dtype=torch.float32)
    digits.load_state_dict({key: torch.tensor(array) for key, array in get_table("digits_table").weights.items()})
    task = Task("digits", digits, digits_splits(), source=SOURCE)
    contents = network_content(small, images), network_content(other, images[:, :1])
    return [*map(content_hash, contents), task.identity]


def episodes():
    """Everything that environments over tables return in 20 episodes of random actions."""
    found = {}
    for name in TABLES:
        env, rng = gymnasium.make(f"quantenv/{name}"), np.random.default_rng(0)
        seen = []
        for episode in range(20):
            observation, info = env.reset(seed=episode)
            seen += [observation, *info.values()]
            ended = False
            while not ended:
                action = int(rng.choice(np.flatnonzero(info["action_mask"])))
                observation, reward, ended, _, info = env.step(action)
                seen += [observation, reward, *info.values()]
        found[name] = [len(seen), digest(*seen)]
    return found


def searches():
    """What agents that compute with no float functions evaluate, in order."""
    return {name: digest(search(name, 40).bits) for name in EXACT_AGENTS}


def roundings():
    """Rounding to grids and codebooks with given scales: round, clamp, multiply and divide are exact by IEEE 754."""
    rng = np.random.default_rng(0)

    def drawn(low, high, *shape):
        return torch.tensor(rng.uniform(low, high, shape), dtype=torch.float32)

    values = drawn(-3, 3, 24, 5, 3, 3)
    values[0, 0] = 0.75 * torch.arange(-4, 5).view(3, 3)  # ties at scale 1.5 and 0.5
    layouts, found = (values, values.to(memory_format=torch.channels_last)), {}
    for bits in range(1, 9):
        scales = drawn(0.1, 4, 24, 1, 1, 1) / 2**bits
        channels = torch.arange(0, 24, 2), torch.arange(1, 24, 2)
        grids = {
            "weights": Grid(bits, scales, *weight_bounds(bits)),
            "tie": Grid(bits, torch.tensor(1.5), *weight_bounds(bits)),
            "activations": Grid(bits, torch.tensor(0.01 * 2 ** (8 - bits)), *activation_bounds(bits)),
            "affine": Grid(bits, torch.tensor(0.1), *activation_bounds(bits, min(3, 2**bits - 1))),
            "codebook": Codebook(bits, scales, drawn(-1, 1, 2**bits).sort().values),
            "grouped": GroupedGrid(
                channels,
                tuple(Grid(2 * i + 2, scales[part], *weight_bounds(2 * i + 2)) for i, part in enumerate(channels)),
            ),
        }
        for kind, grid in grids.items():
            found[f"{kind} {bits}"] = digest(*(quantize(layout, grid).contiguous() for layout in layouts))
        for kind in (LinearQuantizer, LSQQuantizer):
            found[f"{kind.__name__} {bits}"] = digest(kind(grids["weights"], 45)(values).detach())
    return found


@pytest.fixture(scope="module")
def said():
    quick = answers(kernels, loops, threads, floats, roundings)
    return quick | answers(identities, episodes, searches, machines=FEW)


def test_each_machine_is_the_one_that_it_is_asked_to_be(said):
    assert set(said["kernels"]) == set(MACHINES)
    for machine in MACHINES:
        assert said["threads"][machine] == machine.threads
        isa = said["kernels"][machine]
        assert machine.kernels is None or isa.endswith({"AVX2": "AVX2", "SSE41": "SSE4.1"}[machine.kernels])
        assert machine.loops != "default" or said["loops"][machine] == "DEFAULT"
        assert machine.loops != "avx2" or said["loops"][machine] in ("AVX2", "DEFAULT")


def test_machines_differ_in_float_arithmetic(said):
    """Or nothing else here would show anything. Any x86 CPU of today has AVX2, so the simplest machine is another."""
    by_loops = {tuple(said["floats"][Machine(loops, "SSE41", 1)][1:]) for loops in ("avx2", "default")}
    assert len(by_loops) == 2
    by_kernels = {said["floats"][Machine("avx2", kernels, 1)][0] for kernels in ("AVX2", "SSE41")}
    assert len(by_kernels) == 2


@pytest.mark.parametrize("question", [identities, episodes, searches, roundings])
def test_every_machine_gives_the_same_answer(said, question):
    assert same_everywhere(said[question.__name__]) == question()


def test_roundings_are_those_of_exact_fractions():
    """What all machines agree on is right, too: against rational arithmetic."""
    rng = np.random.default_rng(0)
    values = np.concatenate([rng.normal(size=200), 0.75 * np.arange(-4, 5)]).astype(np.float32)
    for bits in range(2, 9):
        scale = np.float32(rng.uniform(0.01, 1.5))
        low, high = weight_bounds(bits)
        expected = []
        for value in values:
            code = round(Fraction(float(np.float32(value / scale))))  # to even, as IEEE 754 does
            expected.append(float(Fraction(float(scale)) * min(max(code, low), high)))
        found = quantize(torch.tensor(values), Grid(bits, torch.tensor(scale), low, high))
        assert found.tolist() == np.array(expected, dtype=np.float32).tolist()


def fails():
    raise ValueError("no answer")


def dies():
    os.kill(os.getpid(), signal.SIGKILL)


def remembers():
    SEEN.append(1)
    return len(SEEN)


SEEN = []


def repeats(value):
    print("what is printed is no answer")
    return value


@pytest.mark.parametrize(("question", "said"), [(fails, "ValueError: no answer"), (dies, "signal 9")])
def test_a_question_that_fails_says_on_which_machine_and_others_are_answered_all_the_same(question, said):
    with pytest.raises(AssertionError, match=rf"(?s)On own loops, own kernels, 2 threads.*{said}"):
        answers(question, machines=FEW)
    value = [1, 0.1, float("inf"), "text"]
    assert same_everywhere(answers(repeats, machines=FEW, value=value)["repeats"]) == value


def test_questions_remember_nothing_of_those_before():
    for _ in range(2):
        assert same_everywhere(answers(remembers, machines=FEW)["remembers"]) == 1


def test_differing_answers_are_listed_by_machine():
    first, second, third = FEW
    assert same_everywhere({first: [0.1], second: [0.1]}) == [0.1]
    with pytest.raises(AssertionError, match=r"(?s)own loops.*; default loops.*\[0.1\].*avx2 loops.*\[0.1000000000000"):
        same_everywhere({first: [0.1], second: [np.nextafter(0.1, 1)], third: [0.1]})
