"""An agent with typed output and one with a tool, by the Responses API (its default)."""

from agents import (
    Agent,
    ModelSettings,
    Runner,
    function_tool,
    set_default_openai_client,
    set_tracing_disabled,
)
from common import KEY, MODEL, TEXT, URL, Animal, legs_of, say
from openai import AsyncOpenAI

set_default_openai_client(AsyncOpenAI(base_url=URL, api_key=KEY, max_retries=0))
set_tracing_disabled(True)


def run(**more) -> object:
    agent = Agent(name="helper", instructions="Be short.", model=MODEL, **more)
    return Runner.run_sync(agent, TEXT, max_turns=2).final_output


# A plain text would be cut off at its length, which this client takes for a failure: a model of
# random weights writes no end.
say("typed", run(output_type=Animal, model_settings=ModelSettings(max_tokens=128)))
forced = ModelSettings(max_tokens=128, tool_choice="required")
tools = [function_tool(legs_of)]
say("tool", run(tools=tools, model_settings=forced, tool_use_behavior="stop_on_first_tool"))
