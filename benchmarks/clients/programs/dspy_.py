"""Chat, and a typed prediction, whose form the server is asked to hold to."""

import dspy
from common import KEY, MODEL, TEXT, URL, say

ANSWER = {
    "type": "object",
    "properties": {"legs": {"type": "integer"}, "tame": {"type": "boolean"}},
    "required": ["legs", "tame"],
    "additionalProperties": False,
}
FORM = {"type": "json_schema", "json_schema": {"name": "answer", "schema": ANSWER, "strict": True}}


class Ask(dspy.Signature):
    """Answers a question."""

    question: str = dspy.InputField()
    legs: int = dspy.OutputField()
    tame: bool = dspy.OutputField()


settings = {"api_base": URL, "api_key": KEY, "max_tokens": 128, "cache": False}
say("chat", dspy.LM(f"openai/{MODEL}", **settings)(TEXT)[0])
# dspy itself sends a schema to models that it knows alone.
model = dspy.LM(f"openai/{MODEL}", **settings, response_format=FORM)
dspy.configure(lm=model, adapter=dspy.JSONAdapter())
say("prediction", dspy.Predict(Ask)(question=TEXT).legs)
