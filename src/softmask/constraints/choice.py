"""One of several texts."""

import json

from .forms import Form, alternatives, literal


def choice_form(source: str) -> Form:
    """The texts of a JSON list of texts.

    Raises:
        ValueError: It is no JSON list of texts, or is empty.
    """
    try:
        texts = json.loads(source)
    except ValueError as error:  # also a number of 5,000 digits, which Python does not read
        raise ValueError(f"choices are a JSON list of texts, this is no JSON: {error}") from None
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise ValueError('choices are a JSON list of texts, as ["yes", "no"]')
    if not texts:
        raise ValueError("the list of choices is empty, name at least one text")
    return alternatives(*(literal(text) for text in dict.fromkeys(texts)))
