"""Text, a stream, and typed output by its default way (a tool) and natively."""

import asyncio

from common import KEY, MODEL, TEXT, URL, Animal, say
from pydantic_ai import Agent, NativeOutput
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider

model = OpenAIChatModel(MODEL, provider=OpenAIProvider(base_url=URL, api_key=KEY))
settings = {"max_tokens": 128}
say("chat", Agent(model, model_settings=settings).run_sync(TEXT).output)
say("typed", Agent(model, output_type=Animal, model_settings=settings).run_sync(TEXT).output)
native = Agent(model, output_type=NativeOutput(Animal), model_settings=settings)
say("native", native.run_sync(TEXT).output)


async def stream() -> None:
    async with Agent(model, model_settings=settings).run_stream(TEXT) as run:
        say("stream", await run.get_output())


asyncio.run(stream())
