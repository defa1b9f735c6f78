"""YAML as presets are read: YAML 1.2 scalars, line numbers, duplicates, and nothing but plain data."""

import math

import pytest

from fismo_cli.preset.document import DocumentError, parse_document, parse_scalar


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("1E+2", 100.0),
        (".5", 0.5),
        ("-3.", -3.0),
        ("12", 12),
        ("-7", -7),
        ("0x1F", 31),
        ("0o17", 15),
        ("010", 10),
        ("true", True),
        ("False", False),
        ("null", None),
        ("~", None),
        ("", None),
        (".inf", math.inf),
        ("-.inf", -math.inf),
        ("on", "on"),
        ("off", "off"),
        ("yes", "yes"),
        ("no", "no"),
        ("1_000", "1_000"),
        ("12:30", "12:30"),
        ("2026-01-01", "2026-01-01"),
        ("'1'", "1"),
        ("!!str 1", "1"),
        ("!!float 1", 1.0),
        ("[0.9, 1e-2, x]", [0.9, 0.01, "x"]),
        ("{a: 1, b: [true]}", {"a": 1, "b": [True]}),
    ],
)
def test_scalars_are_those_of_yaml_1_2(text, value):
    found = parse_scalar(text)
    assert found == value
    assert type(found) is type(value)


def test_nan_is_a_number():
    assert math.isnan(parse_scalar(".nan"))


def test_keys_are_always_text():
    assert parse_document("on: 1\n0: 2\nnull: 3\n").values == {"on": 1, "0": 2, "null": 3}


def test_every_key_and_list_item_has_its_line():
    document = parse_document("# comment\na:\n  b: 1\n\n  c:\n    - x\n    - y\nd: {e: 2}\n")
    expected = {("a",): 2, ("a", "b"): 3, ("a", "c"): 5, ("a", "c", 0): 6, ("a", "c", 1): 7, ("d",): 8, ("d", "e"): 8}
    assert expected.items() <= document.lines.items()


def test_all_duplicate_keys_are_refused_with_both_lines():
    with pytest.raises(DocumentError) as caught:
        parse_document("a: 1\nb:\n  c: 1\n  c: 2\na: 3\n")
    assert [line for line, _ in caught.value.problems] == [4, 5]
    messages = [message for _, message in caught.value.problems]
    assert "b.c" in messages[0]
    assert "line 3" in messages[0]
    assert "line 1" in messages[1]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a: 1\nb: [1, 2\n", 3),
        ("a: 1\n  b: 2\n", 2),
        ("a: 1\nb: \x07\n", 2),
        ("a: 1\n---\nb: 2\n", 2),
        ("a: 1\nb: *nowhere\n", 2),
        ("a: 1\nb: !!python/object/apply:os.system [ls]\n", 2),
        ("a: 1\nb: &x [*x]\n", 2),
        ("a: 1\n? [b, c]\n: 2\n", 2),
        ("a: 1\nb: !!int many\n", 2),
        ("a: 1\nb: " + "9" * 5000 + "\n", 2),
    ],
)
def test_what_is_no_plain_yaml_is_refused_with_its_line(text, line):
    with pytest.raises(DocumentError) as caught:
        parse_document(text)
    assert caught.value.problems[0][0] == line


def test_deep_nesting_is_an_error_and_not_a_crash():
    with pytest.raises(DocumentError, match="nested too deeply"):
        parse_document("[" * 20_000)


def test_an_alias_repeats_a_part():
    assert parse_document("a: &x {b: 1}\nc: *x\n").values == {"a": {"b": 1}, "c": {"b": 1}}
