"""Chat, stream, a pydantic model, tools."""

import litellm
from common import KEY, MODEL, TEXT, TOOL, URL, Animal, say

asked = {
    "model": f"openai/{MODEL}",
    "api_base": URL,
    "api_key": KEY,
    "max_tokens": 128,
    "messages": [{"role": "user", "content": TEXT}],
    "num_retries": 0,
}
say("chat", litellm.completion(**asked).choices[0].message.content)
say(
    "stream",
    "".join(c.choices[0].delta.content or "" for c in litellm.completion(**asked, stream=True)),
)
answer = litellm.completion(**asked, response_format=Animal)
say("structured", Animal.model_validate_json(answer.choices[0].message.content))
answer = litellm.completion(**asked, tools=[TOOL], tool_choice="required")
say("tools", answer.choices[0].message.tool_calls[0].function.arguments)
