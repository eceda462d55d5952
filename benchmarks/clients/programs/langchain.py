"""Chat, stream, tools, and structured output by its default way."""

from common import KEY, MODEL, TEXT, TOOL, URL, Animal, say
from langchain_openai import ChatOpenAI, OpenAI

model = ChatOpenAI(base_url=URL, api_key=KEY, model=MODEL, max_tokens=128, max_retries=0)
say("chat", model.invoke(TEXT).content)
say("stream", "".join(str(chunk.content) for chunk in model.stream(TEXT)))
say("structured", model.with_structured_output(Animal).invoke(TEXT))
say("by tool", model.with_structured_output(Animal, method="function_calling").invoke(TEXT))
say("tools", model.bind_tools([TOOL], tool_choice="required").invoke(TEXT).tool_calls[0])
say("completions", OpenAI(base_url=URL, api_key=KEY, model=MODEL, max_tokens=16).invoke(TEXT))
