"""Chat, stream, a pydantic model, tools, completions, the Responses API."""

import openai
from common import KEY, MODEL, TEXT, TOOL, URL, Animal, say

client = openai.OpenAI(base_url=URL, api_key=KEY, max_retries=0)
asked = {"model": MODEL, "messages": [{"role": "user", "content": TEXT}], "max_tokens": 128}
say("chat", client.chat.completions.create(**asked).choices[0].message.content)
chunks = client.chat.completions.create(
    **asked, stream=True, stream_options={"include_usage": True}
)
say("stream", "".join(c.choices[0].delta.content or "" for c in chunks if c.choices))
say(
    "parse",
    client.chat.completions.parse(**asked, response_format=Animal).choices[0].message.parsed,
)
answer = client.chat.completions.create(**asked, tools=[TOOL], tool_choice="required")
say("tools", answer.choices[0].message.tool_calls[0].function.arguments)
say(
    "completions",
    client.completions.create(model=MODEL, prompt=TEXT, max_tokens=16).choices[0].text,
)
say("responses", client.responses.create(model=MODEL, input=TEXT, max_output_tokens=32).output_text)
with client.responses.stream(
    model=MODEL, input=TEXT, max_output_tokens=128, text_format=Animal
) as stream:
    say("responses, streamed and parsed", stream.get_final_response().output_parsed)
say("models", client.models.list().data[0].id)
