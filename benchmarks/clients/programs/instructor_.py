"""A pydantic model, by tools (its default), by JSON schema, and in parts as it is written."""

import instructor
import openai
from common import KEY, MODEL, TEXT, URL, Animal, say

ASKED = {"model": MODEL, "messages": [{"role": "user", "content": TEXT}], "max_tokens": 128}
for mode in (instructor.Mode.TOOLS, instructor.Mode.JSON_SCHEMA):
    client = instructor.from_openai(openai.OpenAI(base_url=URL, api_key=KEY), mode=mode)
    say(mode.name, client.chat.completions.create(response_model=Animal, max_retries=1, **ASKED))
parts = list(client.chat.completions.create_partial(response_model=Animal, **ASKED))
say("in parts", Animal.model_validate(parts[-1].model_dump()))
