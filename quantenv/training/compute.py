"""Where networks are trained, and by how many processes: names and checks that need no torch."""

from quantenv.core.errors import QuantenvError

#: Where networks are trained.
DEVICES = ("cpu", "cuda")


def check_divides(processes: int, batch_size: int) -> None:
    """Checks that processes can have equally many samples of a batch.

    Raises:
        QuantenvError: If they cannot.
    """
    if batch_size % processes:
        raise QuantenvError(
            f"batch_size is {batch_size}, which {processes} processes cannot share equally: choose a multiple of "
            f"{processes}."
        )
