"""From search to fine-tuning: one allocation file travels through all of it."""

from pathlib import Path
from tempfile import TemporaryDirectory

import quantenv
from quantenv.core.allocation import Allocation
from quantenv.tasks import get_task
from quantenv.training import FinetuneConfig, finetune

task = get_task("digits")
found = quantenv.search(task, agent="annealing", budget=0.4, evaluations=30)
with TemporaryDirectory() as folder:
    path = Path(folder) / "allocation.json"
    found.best.save(path)
    allocation = Allocation.load(path)
result = finetune(task, allocation, FinetuneConfig(epochs=2))
print(f"weight bits {allocation.weight_bits}")
print(f"test accuracy after fine-tuning: {result.test.accuracy:.2%}")
