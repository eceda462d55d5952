"""An agent with text, with typed output and with a tool, by the Responses API (its default)."""

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
settings = ModelSettings(max_tokens=128)


def agent(**more) -> Agent:
    return Agent(name="helper", instructions="Be short.", model=MODEL, **more)


def run(asked: Agent) -> object:
    return Runner.run_sync(asked, TEXT, max_turns=3).final_output


say("agent", run(agent(model_settings=settings)))
say("typed", run(agent(output_type=Animal, model_settings=settings)))
forced = ModelSettings(max_tokens=128, tool_choice="required")
say("tool", run(agent(tools=[function_tool(legs_of)], model_settings=forced)))
