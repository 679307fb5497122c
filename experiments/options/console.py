"""Where commands speak: what is going on to stderr, results to stdout."""

import sys

from rich.console import Console

#: Columns of a result that is piped or redirected: enough for the final table.
PIPED_WIDTH = 130


def announcements() -> Console:
    """Returns the console for progress and remarks."""
    return Console(stderr=True, highlight=False, soft_wrap=True)


def results() -> Console:
    """Returns the console for tables and answers."""
    return Console(highlight=False, width=None if sys.stdout.isatty() else PIPED_WIDTH)
