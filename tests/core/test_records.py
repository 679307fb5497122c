import random

import pytest

from quantenv.core.errors import QuantenvError
from quantenv.core.reading import Schema
from quantenv.core.records import check_comment, checksum, open_record, read_record, sealed, with_comment, write_record


class Content(Schema, frozen=True):
    name: str
    losses: list[float]
    count: int | None = None


def test_what_is_written_is_read_back(tmp_path):
    path = tmp_path / "x.json"
    write_record(path, {"name": "é", "losses": [0.1, 1e-300, 2.0], "count": None})
    assert read_record(path, Content) == Content(name="é", losses=[0.1, 1e-300, 2.0])


def test_every_change_of_a_byte_is_found_or_changes_nothing(tmp_path):
    path = tmp_path / "x.json"
    write_record(path, {"name": "task", "losses": [0.125, 3.5e-7], "count": 12})
    sound, content = path.read_bytes(), read_record(path, Content)
    rng, refused = random.Random(0), 0
    for place in range(len(sound)):
        for byte in (sound[place] ^ 1 << rng.randrange(8), rng.choice(b'0123456789e.,"')):
            path.write_bytes(sound[:place] + bytes([byte]) + sound[place + 1 :])
            try:
                assert read_record(path, Content) == content
            except QuantenvError:
                refused += 1
    assert refused > len(sound)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"a": 1}, "has no 'checksum'"),
        ([], "its content is"),
        ({"a": 1, "checksum": 5}, r"does not match its checksum \(5\)"),
        ({**sealed({"a": 1}), "a": 1.0}, "does not match its checksum"),
        ({**sealed({"a": 1}), "b": None}, "does not match its checksum"),
    ],
)
def test_a_missing_or_wrong_checksum_is_refused(content, said):
    with pytest.raises(QuantenvError, match=said):
        open_record(content, dict, "The file x")


def test_records_of_a_chain_depend_on_those_before_them():
    first, second = sealed({"n": 1}), sealed({"n": 1}, checksum({"n": 1}))
    assert first != second
    assert open_record(second, dict, "x", before=checksum({"n": 1})) == {"n": 1}
    with pytest.raises(QuantenvError, match="does not match"):
        open_record(second, dict, "x")


def test_numbers_that_are_not_finite_are_not_written(tmp_path):
    with pytest.raises(QuantenvError, match="a number that is not finite"):
        write_record(tmp_path / "x.json", {"loss": float("nan")})
    assert list(tmp_path.iterdir()) == []


def test_a_text_carries_its_checksum_as_a_comment():
    text = with_comment("a: 1\nb: é\n")
    check_comment(text.encode(), "The file x")
    for damaged in (
        text.replace("1", "2", 1),
        text[:-1] + "0\n",
        text.replace("# ", "#", 1),
        "a: 1\n",
        f"{text}c: 3\n",
    ):
        with pytest.raises(QuantenvError, match=r"The file x .* give a copy of it to --config"):
            check_comment(damaged.encode(), "The file x")
