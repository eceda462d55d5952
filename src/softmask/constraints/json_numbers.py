"""Numbers between bounds, digit by digit and exactly.

A number with a bound is written without an exponent, and with as few digits that no two texts
round to the same float: else a text below an exclusive bound could be read as the bound itself.
"""

from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal

from .forms import (
    EMPTY,
    NOTHING,
    Form,
    alternatives,
    both,
    chars,
    literal,
    optional,
    repeat,
    sequence,
)
from .json_values import DIGIT, DIGITS, INTEGER, MINUS, NATURAL, NONZERO, NUMBER

# Decimals of so many digits are different floats.
_FLOAT_DIGITS = 15
# Digits of a bound.
_MOST_DIGITS = 40

# A bound and whether it is excluded.
Bound = tuple[Decimal, bool]


def integer(low: Bound | None, high: Bound | None) -> Form:
    """The integers between two bounds.

    Raises:
        ValueError: A bound has more than 40 digits.
    """
    result = INTEGER
    if low is not None:
        least = _whole(low, ROUND_CEILING, 1)
        result = _integer_from(least)
    if high is not None:
        # At most n is at least -n, mirrored.
        most = _whole(high, ROUND_FLOOR, -1)
        upper = _mirrored_integer_from(-most)
        result = upper if low is None else both(result, upper)
    return result


def number(low: Bound | None, high: Bound | None) -> Form:
    """The numbers between two bounds.

    Raises:
        ValueError: A bound has more than 40 digits.
    """
    if low is None and high is None:
        return NUMBER
    result: Form | None = None
    whole_digits = 1
    for bound, sign in ((low, 1), (high, -1)):
        if bound is None:
            continue
        _check(bound[0])
        whole_digits = max(whole_digits, len(str(abs(int(bound[0])))))
        side = _number_from(bound[0] * sign, bound[1], mirrored=sign < 0)
        result = side if result is None else both(result, side)
    assert result is not None
    places = max(0, _FLOAT_DIGITS - whole_digits)
    fraction = optional(sequence(literal("."), repeat(DIGIT, 1, places))) if places else EMPTY
    return both(result, sequence(optional(MINUS), DIGITS, fraction))


def _check(bound: Decimal) -> None:
    digits = f"{abs(bound):f}"
    if len(digits) > _MOST_DIGITS:
        raise ValueError(
            f"a bound of {len(digits)} digits is too long, the limit is {_MOST_DIGITS}"
        )


def _whole(bound: Bound, rounding: str, step: int) -> int:
    value, excluded = bound
    _check(value)
    whole = value.to_integral_value(rounding)
    return int(whole) + (step if excluded and whole == value else 0)


def _integer_from(least: int) -> Form:
    if least > 0:
        return _natural_from(least)
    return alternatives(NATURAL, _negative_to(-least))


def _mirrored_integer_from(least: int) -> Form:
    """The integers whose negatives are at least this."""
    if least > 0:
        return sequence(MINUS, _natural_from(least))
    negative = sequence(MINUS, NONZERO, DIGITS)
    return alternatives(negative, literal("0"), _positive_to(-least))


def _negative_to(most: int) -> Form:
    return sequence(MINUS, _positive_to(most))


def _positive_to(most: int) -> Form:
    """The integers from 1 to `most`."""
    if most < 1:
        return NOTHING
    text = str(most)
    length = len(text)
    options = [_below(text[:at], text[at], at == 0, length) for at in range(length)]
    if length > 1:
        options.append(sequence(NONZERO, repeat(DIGIT, 0, length - 2)))
    return alternatives(literal(text), *options)


def _natural_from(least: int) -> Form:
    """The integers from `least`, which is above zero."""
    text = str(least)
    options = [_above(text[:place], text[place], len(text)) for place in range(len(text))]
    longer = sequence(NONZERO, repeat(DIGIT, len(text), len(text)), DIGITS)
    return alternatives(literal(text), longer, *options)


def _above(prefix: str, digit: str, length: int) -> Form:
    rest = length - len(prefix) - 1
    return sequence(literal(prefix), _digits(int(digit) + 1, 9), repeat(DIGIT, rest, rest))


def _below(prefix: str, digit: str, leading: bool, length: int) -> Form:
    rest = length - len(prefix) - 1
    return sequence(
        literal(prefix), _digits(int(leading), int(digit) - 1), repeat(DIGIT, rest, rest)
    )


def _digits(low: int, high: int) -> Form:
    return chars([(0x30 + low, 0x30 + high)] if low <= high else [])


def _number_from(least: Decimal, excluded: bool, mirrored: bool) -> Form:
    """The numbers that are at least this, or whose negatives are."""
    positive, negative = (MINUS, EMPTY) if mirrored else (EMPTY, MINUS)
    if least > 0 or (least == 0 and excluded):
        return sequence(positive, _magnitude_from(least, excluded))
    every = sequence(NATURAL, _any_fraction())
    # Zero has no sign among numbers that are at least zero.
    zero = sequence(literal("0"), optional(sequence(literal("."), repeat(literal("0"), 1))))
    return alternatives(
        sequence(positive, every) if not mirrored else alternatives(sequence(MINUS, every), zero),
        sequence(negative, _magnitude_to(-least, excluded)) if least < 0 else NOTHING,
    )


def _any_fraction() -> Form:
    return optional(sequence(literal("."), repeat(DIGIT, 1)))


def _parts(value: Decimal) -> tuple[int, str]:
    whole, _, places = f"{value:f}".partition(".")
    return int(whole), places.rstrip("0")


def _magnitude_from(least: Decimal, excluded: bool) -> Form:
    """Numbers without a sign from `least`, which is not below zero."""
    whole, places = _parts(least)
    larger = sequence(_natural_from(whole + 1), _any_fraction())
    after = [
        sequence(literal(places[:at]), _digits(int(places[at]) + 1, 9), DIGITS)
        for at in range(len(places))
    ]
    # The same places, and then zeros alone only where the bound is allowed.
    same = sequence(DIGITS, NONZERO, DIGITS) if excluded else DIGITS
    if places or excluded:
        same = sequence(literal(places), same)
        fraction = sequence(literal("."), alternatives(*after, same))
    else:
        fraction = _any_fraction()
    return alternatives(larger, sequence(literal(str(whole)), fraction))


def _magnitude_to(most: Decimal, excluded: bool) -> Form:
    """Numbers without a sign up to `most`, which is above zero."""
    whole, places = _parts(most)
    below = alternatives(literal("0"), _positive_to(whole - 1)) if whole else NOTHING
    smaller = sequence(below, _any_fraction())
    options = [
        sequence(literal(places[:at]), _digits(0, int(places[at]) - 1), DIGITS)
        for at in range(len(places))
    ]
    # A part of its places alone is less than the bound, all of them are the bound.
    options += [literal(places[:at]) for at in range(1, len(places))]
    if not excluded:
        options.append(sequence(literal(places), repeat(literal("0"), 0 if places else 1)))
    fraction = sequence(literal("."), alternatives(*options))
    if places or not excluded:
        fraction = optional(fraction)
    return alternatives(smaller, sequence(literal(str(whole)), fraction))
