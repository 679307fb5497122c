"""One thread in every test: tests run beside each other, and threads that wait for each other take all the time."""

import torch

torch.set_num_threads(1)
