"""Whether compiling a fine-tuning's quantizers pays."""

import logging

from quantenv.errors import QuantenvError
from quantenv.finetune.config import FinetuneConfig
from quantenv.quantize.calibration import Calibration
from quantenv.quantize.fused import compiler_obstacle
from quantenv.quantize.trainable import OF_SCHEME

logger = logging.getLogger(__name__)

#: Seconds that compiling takes, and that a compiled training step saves for each activation value that is rounded.
#: On an AVX-512 CPU with torch 2.13, compiling took some ten seconds and one core saved 15e-9 (`python -m
#: experiments.bench_qat --threads=1`), of which two cores are taken for half. They are constants, not measured anew on
#: each machine, because the choice is part of what the same seed gives.
COMPILE_SECONDS, SAVED_SECONDS = 12.0, 8e-9


def resolve(config: FinetuneConfig, calibration: Calibration, steps: int) -> bool:
    """Says whether to compile, and says so in the log unless the recipe is never to.

    Args:
        config: The recipe.
        calibration: What is fine-tuned.
        steps: Training steps of one fine-tuning.

    Returns:
        Whether LSQ is to be compiled.

    Raises:
        QuantenvError: If it is always to be and cannot be.
    """
    if config.compile == "never":
        return False
    kinds = (config.weight_quantizer or OF_SCHEME[calibration.scheme.weights], config.activation_quantizer)
    if "lsq" not in kinds:
        return _refuse(config, f"only lsq is compiled, and the quantizers are {' and '.join(kinds)}")
    if config.compile == "auto":
        values = config.batch_size * sum(site.features for site in calibration.sites)
        saved = steps * values * SAVED_SECONDS
        if saved <= COMPILE_SECONDS:
            return _refuse(
                config, f"{steps} steps would save about {saved:.1f} s, compiling takes {COMPILE_SECONDS:.0f}"
            )
        logger.info("Compiling the quantizers: %d steps save about %.0f s.", steps, saved)
    obstacle = compiler_obstacle()
    return True if obstacle is None else _refuse(config, obstacle, logging.WARNING)


def _refuse(config: FinetuneConfig, reason: str, level: int = logging.INFO) -> bool:
    if config.compile == "always":
        raise QuantenvError(f"Fine-tuning cannot be compiled: {reason}. Use compile 'auto' or 'never'.")
    logger.log(level, "Not compiling the quantizers: %s.", reason)
    return False
