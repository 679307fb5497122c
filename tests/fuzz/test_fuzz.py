"""A sample of `make fuzz`, the same everywhere; and that the harness would notice what it is there for."""

import random

import pytest

from quantenv.core.errors import QuantenvError
from tests.fuzz.mutate import mutate_bytes, mutate_plain
from tests.fuzz.readers import READERS
from tests.fuzz.running import run, samples
from tests.fuzz.structures import FORMS, mutate
from tests.fuzz.worker import _outcome, fingerprint

SEED, MUTANTS = 1, 12


def test_no_mutant_is_accepted_or_ends_in_another_error_than_ours():
    with samples(READERS) as root:
        tallies = run(READERS, root, SEED, MUTANTS, workers=1)
    assert [(tally.reader.name, *finding) for tally in tallies for finding in tally.findings] == []
    assert all(tally.counts.total() for tally in tallies)
    assert all(tally.peak < 200e6 for tally in tallies)


def test_names_and_forms_of_readers():
    assert len({reader.name for reader in READERS}) == len(READERS) > 40
    assert {reader.form for reader in READERS} <= set(FORMS)


def test_a_mutant_is_known_by_its_number():
    content = b'{"a": [1, 2.5, null], "checksum": "x"}'
    for number in range(100):
        one, other = (mutate("json", content, random.Random(f"{number}")) for _ in range(2))
        assert one == other
    drawn = [mutate_bytes(content, random.Random(number)) for number in range(100)]
    assert len(set(drawn)) > 60
    assert sum(each == content for each in drawn) < 10
    plain = {"a": [1, 2]}
    assert mutate_plain(plain, random.Random(0)) != {"a": [1, 2]}
    assert plain == {"a": [1, 2]}


@pytest.mark.parametrize(
    ("read", "forged", "outcome"),
    [
        (lambda path: "sound", False, "equal"),
        (lambda path: "changed", False, "accepted change"),
        (lambda path: "changed", True, "accepted"),
        (lambda path: [][1], False, "raw error"),
        (lambda path: (_ for _ in ()).throw(QuantenvError("A sentence that says it.")), False, "refused"),
        (lambda path: (_ for _ in ()).throw(QuantenvError("Lines\nand \x1b[31mmore")), False, "raw error"),
        (lambda path: (_ for _ in ()).throw(SystemExit(3)), False, "raw error"),
    ],
)
def test_what_must_not_be_is_noticed(tmp_path, read, forged, outcome):
    reader = READERS[0].__class__("x", "json", True, lambda folder, parts: folder, read)
    assert _outcome(reader, tmp_path, fingerprint("sound"), forged)[0] == outcome
