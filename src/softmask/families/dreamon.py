"""DreamOn (DreamLM/DreamOn): Dream-Coder trained on to fill a hole whose length it finds itself.

It writes `<|expand|>` where two tokens should stand, and the end of a text where none should. The
sampling settings are those of its published evaluation.
"""

from dataclasses import replace

from .dream import DREAM

DREAMON = replace(
    DREAM,
    name="dreamon",
    title="DreamOn",
    mark="expand_token_id",
    bos=True,
    eos=True,
    sampling={"alg": "entropy", "temperature": 0.2, "top_p": 0.9},
)
