from __future__ import annotations

import math
from typing import Any

import pytest

from rulequant.scalars import MAX_NUMBER_LENGTH, NumberTooLongError, quote, resolve


@pytest.mark.parametrize(
    ("text", "value"),
    [
        pytest.param("", None, id="empty"),
        pytest.param("~", None, id="tilde"),
        pytest.param("null", None, id="null"),
        pytest.param("NULL", None, id="null upper"),
        pytest.param("True", True, id="true"),
        pytest.param("FALSE", False, id="false"),
        pytest.param("10", 10, id="integer"),
        pytest.param("-7", -7, id="negative"),
        pytest.param("+7", 7, id="plus"),
        pytest.param("010", 10, id="leading zero is decimal"),
        pytest.param("0o17", 15, id="octal"),
        pytest.param("0xFF", 255, id="hexadecimal"),
        pytest.param("1.5", 1.5, id="float"),
        pytest.param("1e-3", 0.001, id="exponent without a dot"),
        pytest.param("1E+3", 1000.0, id="upper exponent"),
        pytest.param(".5", 0.5, id="no leading digit"),
        pytest.param("5.", 5.0, id="no decimals"),
        pytest.param("-.inf", -math.inf, id="minus infinity"),
        pytest.param("+.INF", math.inf, id="plus infinity"),
    ],
)
def test_an_unquoted_text_means_what_the_core_schema_says(text: str, value: Any) -> None:
    """Null, booleans, integers and floats of YAML 1.2."""
    found = resolve(text)
    assert found == value
    assert type(found) is type(value)


def test_nan() -> None:
    """`.nan` is a float that equals nothing."""
    found = resolve(".nan")
    assert isinstance(found, float)
    assert math.isnan(found)


@pytest.mark.parametrize(
    "text",
    ["no", "on", "y", "nULL", "tRUE", "1_000", "12:30", "2024-01-01", "2024-99-99", "0b11", "-0o17", "0o8", "0x", "1e",
     ".", "+", "-", "--1", ".infx", "1.2.3", "NaN", "inf", "١", "<<", "=", "a: b"],
)  # fmt: skip
def test_everything_else_is_a_string(text: str) -> None:
    """What YAML 1.1 took for booleans, dates, base 60 and grouped digits stays text."""
    assert resolve(text) == text


@pytest.mark.parametrize("prefix", ["", "-", "0x", "0o", "1.", "1e"])
def test_a_long_number_is_refused(prefix: str) -> None:
    """No number is converted that is longer than the limit, so no conversion is slow or fails."""
    with pytest.raises(NumberTooLongError, match=r"^.{32}$"):
        resolve(prefix + "1" * (MAX_NUMBER_LENGTH + 1 - len(prefix)))


def test_a_long_text_of_digits_that_is_no_number_is_a_string() -> None:
    """The limit is about numbers."""
    text = "1" * 100_000 + "x"
    assert resolve(text) == text


@pytest.mark.parametrize(
    ("text", "quoted"),
    [
        pytest.param("**.mlp", '"**.mlp"', id="plain"),
        pytest.param("it's", '"it\'s"', id="apostrophe"),
        pytest.param('a"b', "'a\"b'", id="double quote"),
        pytest.param("a\\b", "'a\\b'", id="backslash"),
        pytest.param('"it\'s"', "'\"it''s\"'", id="both"),
    ],
)
def test_quote(text: str, quoted: str) -> None:
    """Double quotes where no escape is needed, or else single ones."""
    assert quote(text) == quoted
