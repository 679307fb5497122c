"""Sony's Model Compression Toolkit (extra ``peers``) as its documentation uses it, with its own defaults.

Its default target platform, IMX500, offers 8, 4 and 2 bits for every convolution and linear layer, with a scale per
output channel, and 8-bit activations.
"""

from types import ModuleType
from typing import Any

import torch
from torch import nn

from experiments.studies.peers.job import Job
from experiments.studies.peers.networks import make_task
from experiments.studies.peers.processor_time import Phases
from quantenv.core.errors import QuantenvError
from quantenv.tasks import Split, Task
from quantenv.tasks.networks.vision import torchvision

#: Images of a batch: of calibration, and of the evaluation.
BATCH, EVALUATION_BATCH = 32, 64
WEIGHT = "kernel_attr"


def run(job: Job, phases: Phases) -> dict[str, Any]:
    """Quantizes a network and evaluates it.

    Args:
        job: What to do.
        phases: Receives what imports, data, quantization and evaluation took.

    Returns:
        ``weight_bits`` of the layers in order, the ``size`` of the weights in bytes, its ``ratio`` to 8 bits, and
        ``correct`` of ``samples`` on the test split.

    Raises:
        QuantenvError: If MCT is not installed.
    """
    mct = _mct()
    torch.set_num_threads(1)
    phases.end("imports")
    task = make_task(job)
    reference = sum(layer.params for layer in task.layers)
    phases.end("data")
    quantized = _quantized(mct, task, job, reference)
    phases.end("search")
    test = task.splits["test"]
    correct = _correct(quantized, test)
    phases.end("evaluation")
    layers = _layers(quantized)
    size = sum(count * bits for count, bits in layers) / 8
    return {
        "version": mct.__version__,
        "weight_bits": [bits for _, bits in layers],
        "size": size,
        "ratio": size / reference,
        "correct": correct,
        "samples": len(test),
    }


def _mct() -> ModuleType:
    torchvision()  # MCT imports it, too
    try:
        import model_compression_toolkit as mct
    except ImportError as error:
        raise QuantenvError(
            "Sony's Model Compression Toolkit is not installed here: run `make bench-peers`, which has an environment "
            "for it (extra 'peers')."
        ) from error
    return mct


def _quantized(mct: ModuleType, task: Task, job: Job, size: float) -> nn.Module:
    images = task.splits["calibration"].inputs

    def batches() -> Any:
        for batch in images.split(BATCH):
            yield [batch.numpy()]

    if job.action == "mixed":
        assert job.ratio is not None
        limit = mct.core.ResourceUtilization(weights_memory=job.ratio * size)
        return mct.ptq.pytorch_post_training_quantization(task.network, batches, limit)[0]
    assert job.bits is not None
    platform = _uniform(mct, job.bits)
    if job.action == "uniform":
        quantize = mct.ptq.pytorch_post_training_quantization
        return quantize(task.network, batches, target_platform_capabilities=platform)[0]
    config = mct.gptq.get_pytorch_gptq_config(
        job.epochs, use_hessian_based_weights=job.hessian, use_hessian_sample_attention=job.hessian
    )
    quantize = mct.gptq.pytorch_gradient_post_training_quantization
    return quantize(task.network, batches, gptq_config=config, target_platform_capabilities=platform)[0]


def _uniform(mct: ModuleType, bits: int) -> Any:
    """Returns the default platform with one bit-width of weights where it has a choice."""
    platform = mct.get_target_platform_capabilities()

    def narrowed(operators: Any) -> Any:
        options = operators.qc_options
        if options is None or len(options.quantization_configurations) == 1:
            return operators
        only = options.base_config.clone_and_edit(attr_to_edit={WEIGHT: {"weights_n_bits": bits}})
        replaced = type(options)(quantization_configurations=(only,), base_config=only)
        return operators.model_copy(update={"qc_options": replaced})

    return platform.model_copy(update={"operator_set": tuple(map(narrowed, platform.operator_set))})


def _correct(network: nn.Module, split: Split) -> int:
    network.eval()
    count = 0
    with torch.no_grad():
        batches = zip(split.inputs.split(EVALUATION_BATCH), split.labels.split(EVALUATION_BATCH), strict=True)
        for inputs, labels in batches:
            count += int((network(inputs).argmax(1) == labels).sum())
    return count


def _layers(quantized: nn.Module) -> list[tuple[int, int]]:
    """Returns (weights, bits) of each quantized layer in execution order.

    They are the task's layers, but where MCT has merged two convolutions with nothing between them into one.
    """
    found: list[tuple[int, int]] = []
    for module in quantized.modules():
        wrapped: Any = module
        quantizers = getattr(wrapped, "weights_quantizers", {})
        found += [(wrapped.layer.weight.numel(), int(quantizer.num_bits)) for quantizer in quantizers.values()]
    return found
