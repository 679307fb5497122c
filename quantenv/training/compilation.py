"""What of a fine-tuning is compiled: nothing, its quantizers or its network."""

import logging

from quantenv.core.errors import QuantenvError
from quantenv.quantization.calibration import Calibration
from quantenv.training.config import AUTO, NETWORK, NEVER, QUANTIZERS, FinetuneConfig
from quantenv.training.qat.fused import compiler_obstacle
from quantenv.training.qat.network import OF_SCHEME

logger = logging.getLogger(__name__)

#: Seconds that compiling takes, and that a compiled training step saves for each activation value that is rounded, on
#: two cores with AVX-512 and torch 2.13 (`python -m experiments.studies.bench_qat`), on the careful side. They are
#: constants, not measured anew on each machine, because the choice is part of what the same seed gives.
COSTS = {QUANTIZERS: (12.0, 8e-9), NETWORK: (60.0, 10e-9)}


def resolve(config: FinetuneConfig, calibration: Calibration, steps: int) -> str:
    """Says what to compile, and says so in the log unless the recipe is never to.

    Args:
        config: The recipe.
        calibration: What is fine-tuned.
        steps: Training steps of one fine-tuning.

    Returns:
        ``never``, ``quantizers`` or ``network``.

    Raises:
        QuantenvError: If the recipe says what to compile, and it cannot be.
    """
    if config.compile == NEVER:
        return NEVER
    kinds = (config.weight_quantizer or OF_SCHEME[calibration.scheme.weights], config.activation_quantizer)
    if "lsq" not in kinds:
        return _refuse(config, f"only lsq is compiled, and the quantizers are {' and '.join(kinds)}")
    if config.compute != "cpu":
        return _refuse(config, f"that is for CPUs, and compute is {config.compute}")
    choice = config.compile
    if choice == AUTO:
        values = steps * config.batch_size // config.processes * sum(site.features for site in calibration.sites)
        gains = {name: values * saved - seconds for name, (seconds, saved) in COSTS.items()}
        choice = max(gains, key=gains.__getitem__)
        seconds, saved = COSTS[choice]
        if gains[choice] <= 0:
            return _refuse(
                config, f"{steps} steps would save about {values * saved:.1f} s, compiling takes {seconds:.0f}"
            )
        logger.info("Compiling the %s: %d steps save about %.0f s.", choice, steps, values * saved)
    obstacle = compiler_obstacle()
    return choice if obstacle is None else _refuse(config, obstacle, logging.WARNING)


def _refuse(config: FinetuneConfig, reason: str, level: int = logging.INFO) -> str:
    if config.compile != AUTO:
        raise QuantenvError(f"Fine-tuning cannot be compiled: {reason}. Use compile 'auto' or 'never'.")
    logger.log(level, "Compiling nothing: %s.", reason)
    return NEVER
