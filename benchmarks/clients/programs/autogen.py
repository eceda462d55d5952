"""An agent that answers, one with a tool, and the client's stream and structured output."""

import asyncio

from autogen_agentchat.agents import AssistantAgent
from autogen_core.models import UserMessage
from autogen_ext.models.openai import OpenAIChatCompletionClient
from common import KEY, MODEL, TEXT, URL, Animal, legs_of, say

INFO = {
    "vision": False,
    "function_calling": True,
    "json_output": True,
    "family": "unknown",
    "structured_output": True,
}


async def main() -> None:
    client = OpenAIChatCompletionClient(
        model=MODEL, base_url=URL, api_key=KEY, model_info=INFO, max_tokens=128, max_retries=0
    )
    answer = await AssistantAgent("helper", client).run(task=TEXT)
    say("agent", answer.messages[-1].content)
    answer = await AssistantAgent("helper", client, tools=[legs_of]).run(task=TEXT)
    say("agent with a tool", answer.messages[-1].content)
    turns = [UserMessage(content=TEXT, source="user")]
    async for part in client.create_stream(turns):
        last = part
    say("stream", last.content)
    answer = await client.create(turns, json_output=Animal)
    say("structured", Animal.model_validate_json(answer.content))
    await client.close()


asyncio.run(main())
