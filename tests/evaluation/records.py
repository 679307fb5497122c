"""Records to put into stores."""

from quantenv.evaluation.base import Evaluation
from quantenv.evaluation.store.store import Record

BITS = ((4, 8), (2, 8), (8, 8))


def record(identity="a", split="search", bits=BITS, correct=7, loss=0.5, **rest):
    return Record(identity, split, bits, Evaluation(correct, 10, loss), **rest)


def many(count, identity="a"):
    """Makes up to 512 records of different bits."""
    return [
        record(identity, bits=((1 + i // 64 % 8, 1 + i // 8 % 8), (1 + i % 8, 8)), correct=i % 10) for i in range(count)
    ]
