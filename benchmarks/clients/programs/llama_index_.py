"""Chat, stream, complete, and a function of its own."""

from common import KEY, MODEL, TEXT, URL, legs_of, say
from llama_index.core.llms import ChatMessage
from llama_index.core.tools import FunctionTool
from llama_index.llms.openai_like import OpenAILike

model = OpenAILike(
    model=MODEL,
    api_base=URL,
    api_key=KEY,
    is_chat_model=True,
    is_function_calling_model=True,
    max_tokens=128,
    max_retries=0,
)
turns = [ChatMessage(role="user", content=TEXT)]
say("chat", model.chat(turns).message.content)
say("stream", "".join(part.delta or "" for part in model.stream_chat(turns)))
say("complete", model.complete(TEXT).text)
tool = FunctionTool.from_defaults(legs_of)
answer = model.chat_with_tools([tool], user_msg=TEXT, tool_required=True)
say("tools", model.get_tool_calls_from_response(answer)[0].tool_kwargs)
