"""The model alone, streamed, and an agent of one step that calls a tool."""

from common import KEY, MODEL, TEXT, URL, legs_of, say
from smolagents import ChatMessage, MessageRole, OpenAIModel, ToolCallingAgent, tool

model = OpenAIModel(MODEL, api_base=URL, api_key=KEY, max_tokens=128)
turns = [ChatMessage(role=MessageRole.USER, content=[{"type": "text", "text": TEXT}])]
say("chat", model.generate(turns).content)
say("stream", "".join(part.content or "" for part in model.generate_stream(turns)))
agent = ToolCallingAgent(tools=[tool(legs_of)], model=model, max_steps=1)
agent.run(TEXT)
call = agent.memory.steps[1].tool_calls
say("agent's call", call and call[0].name)
