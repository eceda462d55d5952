"""A prediction, by its JSON adapter, whose form the server holds to."""

import dspy
import litellm
from common import KEY, MODEL, TEXT, URL, say

# dspy asks litellm whether a model takes a schema; of one it does not know it takes any object.
litellm.register_model(
    {
        f"openai/{MODEL}": {
            "litellm_provider": "openai",
            "mode": "chat",
            "supports_response_schema": True,
            "supports_function_calling": True,
        }
    }
)


class Ask(dspy.Signature):
    """Answers a question."""

    question: str = dspy.InputField()
    legs: int = dspy.OutputField()
    tame: bool = dspy.OutputField()


model = dspy.LM(f"openai/{MODEL}", api_base=URL, api_key=KEY, max_tokens=128, cache=False)
say("chat", model(TEXT)[0])
dspy.configure(lm=model, adapter=dspy.JSONAdapter())
say("prediction", dspy.Predict(Ask)(question=TEXT).legs)
