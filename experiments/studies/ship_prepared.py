"""Makes the prepared networks that ship with quantenv, with their sensitivities.

They are those of digits and, where $QUANTENV_DATA is, ResNet-20, under their own schemes. To make them again::

    ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2 python -m experiments.studies.ship_prepared
"""

import dataclasses
from pathlib import Path

import torch

from experiments.cli.prepare import with_sensitivities
from experiments.options.console import results
from experiments.studies.bench_tasks import tasks_at_hand
from quantenv.evaluation.preparing import SHIPPED, file_name, make_prepared
from quantenv.quantization.prepared import write_prepared

TASKS = ("digits", "resnet20")


def main() -> None:
    """Makes them anew and writes them in place of what shipped before."""
    torch.set_num_threads(1)
    tasks, _ = tasks_at_hand(TASKS)
    for task in tasks:
        prepared = with_sensitivities(task, make_prepared(dataclasses.replace(task, prepared=None)))
        path = SHIPPED / file_name(task)
        write_prepared(prepared, path)
        for old in set(SHIPPED.glob(f"{task.name}-*.safetensors")) - {path}:
            Path(old).unlink()
        results().print(f"{path}: {prepared.content_hash}", soft_wrap=True, highlight=False)


if __name__ == "__main__":
    main()
