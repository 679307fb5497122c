import random

import pytest
import yaml

from quantenv.core.plain_yaml import MAX_DEPTH, YamlError, dump_plain, load_plain

#: What is refused, and words of the sentence that says so.
REFUSED = {
    "[" * 5000: "line 1, column 65: .* more than 64 deep",
    "{a: " * 5000: "more than 64 deep",
    "- " * 3000 + "a": "more than 64 deep",
    "".join(" " * depth + "a:\n" for depth in range(200)): "line 65, column 65: .* more than 64 deep",
    "a: 9999-99-99": "line 1, column 4: .*'9999-99-99' differently",
    "a: 2020-01-01 10:00:00": "differently",
    "!!timestamp 'x'": "the tag 'tag:yaml.org,2002:timestamp' is not read",
    "!!bool 'x'": "the tag",
    "!!int 'abc'": "the tag",
    "a: !!binary aGVsbG8=": "line 1, column 4: the tag",
    "--- !!set {a}": "the tag",
    "!!python/object/apply:os.system [ls]": "the tag .*os.system",
    "! a": "the tag '!'",
    "a: " + "9" * 5000: "has 5000 digits; expected at most 20",
    "a: -" + "9" * 20: "has 21 digits",
    "a: 1\nb: 2\na: 3": "line 3, column 1: the key 'a' stands twice",
    "{a: 1, 'a': 2}": "the key 'a' stands twice",
    "a: &x [1]\nb: *x": "anchors and aliases",
    "b: *x": "anchors and aliases",
    "? [1]\n: 2": "a key is a list or a mapping",
    "null: 1": "a key is None",
    "1.5: 1": "a key is 1.5",
    "<<: {a: 1}": "'<<' differently",
    "a: yes": "'yes' differently",
    "a: Off": "'Off' differently",
    "a: 1:30": "'1:30' differently",
    "a: 017": "'017' differently",
    "a: 0x1F": "'0x1F' differently",
    "a: 1_000": "'1_000' differently",
    "a: .inf": "no finite number",
    "a: .NaN": "no finite number",
    "a: 1e400": "no finite number",
    "a: '\x01'": "special characters",
    'a: "\\0"': "control character",
    'a: "\\e[31m"': "control character",
    '"\\ud800"': "half a character",
    '"\\UFFFFFFFF"': "an escape or a version that stands for nothing",
    f"%YAML {'9' * 5000}.1\n---\na": "an escape or a version that stands for nothing",
    "a\n---\nb": "a second document",
    "a: [": "line 1, column 5",
    "a: b: c": "line 1, column 5",
    "a: 'x": "unexpected end of stream",
}


@pytest.mark.parametrize(("text", "said"), REFUSED.items(), ids=lambda text: text[:12])
def test_what_is_not_plain_is_one_sentence(text, said):
    with pytest.raises(YamlError, match=said) as error:
        load_plain(text)
    assert len(str(error.value)) < 250


def test_values_mean_what_yaml_1_2_says():
    text = "{a: 1, b: -2.5, c: 1e-3, d: .5, e: true, f: ~, g: , h: x y, i: '1', 8: 1.e+2, 'no': +3, j: null}"
    expected = {"a": 1, "b": -2.5, "c": 1e-3, "d": 0.5, "e": True, "f": None, "g": None, "h": "x y", "i": "1"}
    assert load_plain(text) == {**expected, 8: 100.0, "no": 3, "j": None}
    assert load_plain("") is None
    assert load_plain("# nothing") is None
    assert load_plain("[" * MAX_DEPTH + "]" * MAX_DEPTH) is not None


def _draw(rng: random.Random, depth: int = 0):
    """Draws plain data, texts among it that look like something else."""
    words = [
        "yes",
        "1e-3",
        "0o17",
        "null",
        "",
        "a: b",
        "- c",
        "# d",
        "é😀",
        "1:30",
        ".inf",
        "~",
        "'",
        '"',
        "x\ny",
        "=",
        "&a",
    ]
    kinds = [
        rng.randint(-(10**9), 10**9),
        rng.gauss(0, 1e-6),
        10.0 ** rng.randint(-30, 30),
        True,
        None,
        rng.choice(words),
    ]
    if depth > 3 or rng.random() < 0.5:
        return rng.choice(kinds)
    if rng.random() < 0.5:
        return [_draw(rng, depth + 1) for _ in range(rng.randint(0, 4))]
    return {rng.choice([*words, rng.randint(0, 9)]): _draw(rng, depth + 1) for _ in range(rng.randint(0, 4))}


def test_what_is_written_is_read_back_by_us_and_by_pyyaml():
    rng = random.Random(0)
    for _ in range(300):
        content = _draw(rng)
        text = dump_plain(content)
        assert load_plain(text) == content
        assert yaml.safe_load(text) == content  # an independent reader


def test_an_object_that_stands_twice_is_written_twice():
    shared = [1, 2]
    assert load_plain(dump_plain({"a": shared, "b": shared})) == {"a": [1, 2], "b": [1, 2]}
