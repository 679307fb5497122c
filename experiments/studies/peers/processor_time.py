"""Processor time of a process and of those it started, phase by phase."""

import resource


def processor_seconds() -> float:
    """Returns the seconds, user and system, of all threads of this process and of its processes that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


class Phases:
    """What each phase of a process took; the first one begins with the process."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        """Processor seconds by phase."""
        self._until = 0.0

    def end(self, phase: str) -> None:
        """Ends a phase; the next one begins. Parts of one phase add up."""
        now = processor_seconds()
        self.seconds[phase] = self.seconds.get(phase, 0.0) + now - self._until
        self._until = now
