"""Whether a candidate agrees with a reference solution: the rules of EvalPlus 0.3.1.

The text of this file becomes part of the tests that judge a program (see evalplus.py), so it
needs the standard library only and runs where this package cannot be imported. The rules, with
their special cases, are those of evalplus/eval/__init__.py (Apache-2.0).
"""

from __future__ import annotations

import cmath
import copy
import math
import signal
import time
from collections.abc import Callable, Sequence
from typing import Any

# The original data set asks these only for some result or None.
NOT_NONE = {"check_str", "text_match_three", "text_starta_endb"}
# The order of the result is left open by these.
AS_SETS = {
    *("similar_elements", "find_char_long", "common_in_nested_lists", "extract_singly"),
    *("larg_nnum", "intersection_array", "find_dissimilar", "Diff"),
}


# How much longer than the reference a call may take: enough for a machine that gets busy between
# the two, an import inside the function and the way of a long result (EvalPlus: 4 times, at
# least 1 s).
SLOWER, AT_LEAST = 10.0, 10.0


def compare(
    candidate: Callable, reference_code: str, name: str, inputs: Sequence, atol: float
) -> None:
    """Call both with every input.

    Raises AssertionError where the candidate is wrong, TimeoutError where it takes too long, and
    what the candidate raises.
    """
    space: dict = {"__name__": "reference"}
    exec(reference_code, space)
    reference = space[name]
    for arguments in inputs:
        start = time.perf_counter()
        expected = reference(*copy.deepcopy(arguments))
        seconds = max(AT_LEAST, SLOWER * (time.perf_counter() - start))
        output = _within(seconds, candidate, copy.deepcopy(arguments))
        assert agrees(name, arguments, output, expected, atol), (
            f"{name}{tuple(arguments)!r:.300} returned {output!r:.300}, not {expected!r:.300}"
        )


def _within(seconds: float, function: Callable, arguments: Sequence) -> Any:
    def stop(_number: int, _frame: object) -> None:
        raise TimeoutError(f"no result within {seconds:.1f} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        return function(*arguments)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def agrees(name: str, arguments: Sequence, output: Any, expected: Any, atol: float) -> bool:
    """Whether an output is right, with the special cases of EvalPlus."""
    if name == "find_zero":  # HumanEval/32: any root of the polynomial
        (coefficients,) = arguments
        return abs(sum(c * math.pow(output, i) for i, c in enumerate(coefficients))) <= atol
    if name == "are_equivalent":  # Mbpp/164: its statement does not define the result
        return True
    if name in AS_SETS:
        return set(output) == set(expected)
    if name in NOT_NONE:
        found = expected is not None
        return output == found if isinstance(output, bool) else found == (output is not None)
    if name == "sum_div" and output == 0:  # Mbpp/295
        return True
    if name == "surface_Area":  # Mbpp/581: the height may be the slant or the perpendicular
        base, height = arguments
        slant = math.sqrt((base / 2) ** 2 + height**2)
        if abs(output - round(base**2 + 2 * base * slant)) <= atol:
            return True
    if name == "digit_distance_nums":  # Mbpp/558: also with the shorter number padded
        width = max(len(str(number)) for number in arguments)
        first, second = (str(number).zfill(width) for number in arguments)
        if output == sum(abs(int(a) - int(b)) for a, b in zip(first, second, strict=True)):
            return True
    return same(output, expected, atol)


def same(output: Any, expected: Any, atol: float) -> bool:
    """Equality, but floats may differ by atol (1e-6 where the data set says 0)."""
    if output == expected:
        return True
    tolerance = atol or (1e-6 if _is_floats(expected) else 0)
    return bool(tolerance) and type(output) is type(expected) and close(output, expected, tolerance)


def _is_floats(value: object) -> bool:
    if isinstance(value, (list, tuple)) and value:
        return all(isinstance(item, float) for item in value)
    return isinstance(value, float)


def close(output: Any, expected: Any, atol: float) -> bool:
    """numpy.allclose(rtol=1e-7) for numbers in lists and tuples of one shape."""
    if isinstance(expected, (list, tuple)):
        return len(output) == len(expected) and all(
            close(o, e, atol) for o, e in zip(output, expected, strict=True)
        )
    if output == expected:
        return True
    # To infinity all is near.
    return cmath.isfinite(expected) and abs(output - expected) <= atol + 1e-7 * abs(expected)
