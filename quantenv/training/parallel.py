"""Data-parallel training by several processes of this machine, through Hugging Face Accelerate (an extra).

Each process takes its rows of every batch, and gradients are averaged; Accelerate finds each one's device and the
backend (gloo on CPUs, NCCL on GPUs) and wraps the network. The process that started them trains nothing: it takes what
the first of them reports, evaluates and writes.

Accelerate's own launchers do not fit: `notebook_launcher` and `debug_launcher` fork, which torch's threads and CUDA do
not survive, and `accelerate launch` starts scripts. Like them, this one starts processes of `multiprocessing`.
"""

import importlib.util
import io
import os
import pickle
import signal
import sys
import tempfile
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from quantenv.core.errors import QuantenvError
from quantenv.core.processes import handed_on, process_context, take
from quantenv.core.signals import ENDING, blocked
from quantenv.training.compute import DEVICES

if TYPE_CHECKING:
    from accelerate import Accelerator

#: Seconds between two looks at whether to stop.
POLL = 0.1
#: Seconds in which processes that fail because of another one's failure do so, too.
GRACE = 2.0


class Share:
    """What one process does of every batch: all of it, where it is the only one."""

    rank, processes = 0, 1

    def __init__(self, compute: str = "cpu") -> None:
        """Trains on a device, cpu or cuda."""
        self.device = torch.device(compute)

    def rows(self, batch: int) -> slice:
        """Returns which samples of a batch of this many are this process's; all have equally many."""
        size = batch // self.processes
        return slice(self.rank * size, (self.rank + 1) * size)

    def prepare(self, network: nn.Module) -> nn.Module:
        """Returns what to call in training instead of a network, so that gradients are those of the whole batch."""
        return network

    def mean(self, value: torch.Tensor) -> torch.Tensor:
        """Returns the mean over all processes of a tensor that each has."""
        return value


class Stopped(Exception):
    """The process that started this one asked it to stop."""


class ProcessShare(Share):
    """The rows of one of several processes, in that process."""

    def __init__(self, accelerator: "Accelerator", connection: Connection, stop: threading.Event) -> None:
        """Takes a place in the group.

        Args:
            accelerator: Knows the place and the device.
            connection: Leads to the parent.
            stop: Set when the parent asks this process to stop.
        """
        super().__init__(str(accelerator.device))
        self.rank, self.processes = accelerator.process_index, accelerator.num_processes
        self._accelerator, self._connection, self._stop = accelerator, connection, stop

    def prepare(self, network: nn.Module) -> nn.Module:
        """Wraps a network for training; both have the same parameters."""
        prepared: nn.Module = self._accelerator.prepare(network)
        return prepared

    def mean(self, value: torch.Tensor) -> torch.Tensor:
        """Returns the mean over all processes of a tensor that each has."""
        mean: torch.Tensor = self._accelerator.reduce(value, "mean")
        return mean

    def check(self) -> None:
        """Raises Stopped if this process was asked to stop; only the first one ever is."""
        if self._stop.is_set():
            raise Stopped

    def report(self, content: Any) -> None:
        """Sends plain values and tensors to the parent, if this is the first process."""
        if self.rank == 0:
            file = io.BytesIO()
            torch.save(content, file)
            self._connection.send_bytes(file.getbuffer())


class Processes:
    """Processes that train together; entering it starts them, leaving it ends them."""

    def __init__(self, function: Callable[..., None], payload: Sequence[Any], processes: int, compute: str) -> None:
        """Says what to do; starts nothing yet.

        Args:
            function: A module's function of a `ProcessShare` and what `payload` holds, run by every process.
            payload: Networks, tensors and plain values.
            processes: How many; each has as many threads of torch as this process.
            compute: cpu, or cuda: one GPU for each.

        Raises:
            QuantenvError: If there are too few GPUs, or Accelerate is not installed.
        """
        check_processes(processes, compute)
        self._function, self._payload, self._count, self._compute = function, payload, processes, compute
        self._processes: list[Any] = []
        self._connections: list[Connection] = []

    def __enter__(self) -> "Processes":
        """Starts the processes.

        Raises:
            QuantenvError: If the payload cannot be sent to other processes.
        """
        self._temporary = tempfile.TemporaryDirectory(prefix="quantenv-")
        try:
            folder = Path(self._temporary.name)
            # A file that all map into memory: training images are there once, whatever the number of processes.
            try:
                torch.save((self._function, *self._payload), folder / "payload")
            except (pickle.PicklingError, AttributeError, TypeError) as error:
                raise QuantenvError(
                    f"The training cannot be sent to other processes: {error}. Its network must be of a class that a "
                    "module defines."
                ) from error
            context, variables = process_context(), handed_on()
            with blocked(*ENDING):
                for rank in range(self._count):
                    ours, theirs = context.Pipe()
                    setting = rank, self._count, self._compute, torch.get_num_threads(), str(folder), theirs, variables
                    process = context.Process(target=_run, args=setting, daemon=True)
                    process.start()
                    theirs.close()
                    self._processes.append(process)
                    self._connections.append(ours)
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def next(self, between: Callable[[], object], on_stop: Callable[[Any], object] | None = None) -> Any:
        """Waits for the first process's next report.

        Args:
            between: Called some ten times a second; what it raises ends the waiting.
            on_stop: Where given, the processes are then asked to stop first, and this is called with what the first
                one reports because of that, or reported before.

        Returns:
            The report, with tensors on the CPU.

        Raises:
            QuantenvError: If a process fails or dies.
        """
        while True:
            try:
                between()
            except BaseException:
                if on_stop is not None:
                    on_stop(self._stopped())
                raise
            received = self._receive()
            if received is not None:
                return received

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Ends the processes, whatever they are doing."""
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.join()
        for connection in self._connections:
            connection.close()
        self._temporary.cleanup()

    def _receive(self) -> Any:
        """Returns a report, or None if none came for a moment."""
        first = self._connections[0]
        running = [process.sentinel for process in self._processes if process.exitcode is None]
        if first in wait([first, *running], POLL):
            try:
                return torch.load(io.BytesIO(first.recv_bytes()), map_location="cpu", weights_only=True)
            except (EOFError, ConnectionResetError):
                self._processes[0].join()
        if any(process.exitcode for process in self._processes):
            self._fail()
        return None

    def _stopped(self) -> Any:
        with suppress(OSError):  # it has ended already: its last report is there to be read
            self._connections[0].send_bytes(b"stop")
        while (received := self._receive()) is None:
            pass
        return received

    def _fail(self) -> None:
        """Raises the failure that came first: the others are mostly its consequences."""
        wait_until = time.monotonic() + GRACE
        for process in self._processes:
            process.join(max(0.0, wait_until - time.monotonic()))
        for rank, process in enumerate(self._processes):
            if process.exitcode is not None and process.exitcode < 0:
                name = signal.Signals(-process.exitcode).name
                raise QuantenvError(f"Process {rank + 1} of {self._count} was ended by {name}: is there enough memory?")
        failures = [torch.load(path) for path in Path(self._temporary.name).glob("failure-*")]
        if not failures:
            raise QuantenvError(f"One of {self._count} processes ended before it had begun to train.")
        _, rank, sentence, trace = min(failures)
        raise QuantenvError(sentence or f"Process {rank + 1} of {self._count} failed: {trace.splitlines()[-1]}") from (
            None if sentence else RuntimeError(trace)
        )


def check_processes(processes: int, compute: str) -> None:
    """Checks that so many processes can train on a device here.

    Raises:
        QuantenvError: If the device is unknown or there are too few of it, or Accelerate is needed and not installed.
    """
    if compute not in DEVICES:
        raise QuantenvError(f"compute is {compute!r}; expected cpu or cuda.")
    if compute == "cuda" and not torch.cuda.is_available():
        raise QuantenvError("compute is cuda, but torch finds no GPU here: leave it out.")
    if compute == "cuda" and processes > torch.cuda.device_count():
        raise QuantenvError(f"processes is {processes}; there are only {torch.cuda.device_count()} GPUs here.")
    if processes > 1 and importlib.util.find_spec("accelerate") is None:
        raise QuantenvError(
            "Several processes need Hugging Face Accelerate: install quantenv[accelerate], or leave processes out."
        )


# In one of the processes -----------------------------------------------------------------------------------


def _run(
    rank: int,
    count: int,
    compute: str,
    threads: int,
    folder: str,
    connection: Connection,
    variables: Mapping[str, str],
) -> None:
    take(variables)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # where signals cannot be blocked from outside
    stop = threading.Event()
    threading.Thread(target=_listen, args=(connection, stop), daemon=True).start()
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
    os.environ["OMP_NUM_THREADS"] = str(threads)  # or Accelerate chooses
    if sys.platform == "linux":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # a machine's own name does not always lead to it
    warnings.filterwarnings("ignore", "Grad strides do not match")  # of 1x1 convolutions, to which both are the same
    try:
        from accelerate import Accelerator

        torch.distributed.init_process_group(
            "nccl" if compute == "cuda" else "gloo",
            store=torch.distributed.FileStore(str(Path(folder) / "store"), count),
            rank=rank,
            world_size=count,
        )
        accelerator = Accelerator(cpu=compute == "cpu", mixed_precision="no")
        torch.set_num_threads(threads)
        # From the process that started this one.
        function, *payload = torch.load(Path(folder) / "payload", mmap=True, weights_only=False)
        function(ProcessShare(accelerator, connection, stop), *payload)
    except BaseException as error:
        sentence = str(error) if isinstance(error, QuantenvError) else ""
        failure = time.monotonic(), rank, sentence, "".join(traceback.format_exception(error)).strip()
        partial = Path(folder) / f"partial-{rank}"
        torch.save(failure, partial)
        partial.rename(Path(folder) / f"failure-{rank}")
        os._exit(1)  # without waiting for what the others never will send


def _listen(connection: Connection, stop: threading.Event) -> None:
    """Waits for the request to stop; ends this process at once when the parent has ended or ends the connection."""
    try:
        connection.recv_bytes()
        stop.set()
        connection.recv_bytes()
    except (EOFError, OSError):
        os._exit(1)
