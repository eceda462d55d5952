"""The clients that are tried: what is installed, what is run, what of it is tried."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

PROGRAMS = Path(__file__).with_name("programs")
# Nothing is fetched on the way: models of the Hub, lists of prices.
OFFLINE = {"HF_HUB_OFFLINE": "1", "LITELLM_LOCAL_MODEL_COST_MAP": "True"}


@dataclass(frozen=True)
class Client:
    """A client and the program with the arguments `command`, or the command, that uses it.

    In `command` and `environment` the words {url}, {root}, {model} and {tokenizer} are filled in.
    """

    name: str
    packages: tuple[str, ...]
    tries: str
    program: str | None = None
    command: tuple[str, ...] = ()
    javascript: bool = False
    environment: tuple[tuple[str, str], ...] = ()

    @property
    def folder(self) -> str:
        """The environment's name: clients of the same packages share one."""
        return self.packages[0].split("[")[0].strip("@").replace("/", "-")

    @property
    def package(self) -> str:
        """The distribution whose version is the client's."""
        return self.packages[0].split("[")[0]


AI_SDK = ("ai", "@ai-sdk/openai", "@ai-sdk/openai-compatible", "zod")
AIDER = (
    "aider", "--model", "openai/{model}", "--message", "Name an animal.", "--no-git",
    "--yes-always", "--no-stream", "--no-show-model-warnings", "--no-check-update",
    "--analytics-disable", "--no-detect-urls", "--no-pretty", "--map-tokens", "0",
)  # fmt: skip
GPTME = (
    "gptme", "--non-interactive", "--no-confirm", "--name", "random", "--model", "local/{model}",
    "--tools", "none", "--system", "short", "Name an animal.",
)  # fmt: skip
# It needs torch: that without CUDA, or gigabytes would come.
CPU_TORCH = ("--extra-index-url", "https://download.pytorch.org/whl/cpu")
LM_EVAL = ("lm_eval[api]", "transformers", "datasets")
CLIENTS = (
    Client("openai (Python)", ("openai",), "chat, stream, pydantic model, tools, completions, "
           "Responses API", "openai_py.py"),
    Client("openai (JavaScript)", ("openai",), "chat, stream, tools, JSON schema, Responses API",
           "openai_js.mjs", javascript=True),
    Client("AI SDK, @ai-sdk/openai", AI_SDK, "text, stream, object, tools (Responses API)",
           "ai_sdk.mjs", javascript=True, environment=(("PROVIDER", "openai"),)),
    Client("AI SDK, @ai-sdk/openai-compatible", AI_SDK, "text, stream, object, tools",
           "ai_sdk.mjs", javascript=True, environment=(("PROVIDER", "compatible"),)),
    Client("langchain-openai", ("langchain-openai",), "chat, stream, structured output, tools, "
           "completions", "langchain.py"),
    Client("llama-index-llms-openai-like", ("llama-index-llms-openai-like",),
           "chat, stream, completion, tools", "llama_index_.py"),
    Client("litellm", ("litellm",), "chat, stream, pydantic model, tools", "litellm_.py"),
    Client("instructor", ("instructor",), "pydantic model by tools and JSON schema, streamed",
           "instructor_.py"),
    Client("pydantic-ai", ("pydantic-ai-slim[openai]",), "chat, stream, typed output",
           "pydantic_ai_.py"),
    Client("autogen", ("autogen-ext[openai]", "autogen-agentchat"),
           "agents, a tool, stream, pydantic model", "autogen.py"),
    Client("openai-agents", ("openai-agents",), "typed output, a tool (Responses API)",
           "openai_agents.py"),
    Client("dspy", ("dspy",), "chat, a typed prediction", "dspy_.py"),
    Client("smolagents", ("smolagents[openai]",), "chat, stream, an agent's tool call",
           "smolagents_.py"),
    Client("gptme", ("gptme",), "one turn of its command", command=GPTME,
           environment=(("OPENAI_BASE_URL", "{url}"), ("OPENAI_API_KEY", "none"))),
    Client("aider", ("aider-chat",), "one message of its command", command=AIDER,
           environment=(("OPENAI_API_BASE", "{url}"), ("OPENAI_API_KEY", "none"))),
    Client("lm_eval, local-completions", LM_EVAL, "a task by likelihood", "lm_eval_.py",
           ("local-completions",), environment=(("TOKENIZER", "{tokenizer}"),)),
    Client("lm_eval, local-chat-completions", LM_EVAL, "a task by generated text, six stops",
           "lm_eval_.py", ("local-chat-completions",),
           environment=(("OPENAI_API_KEY", "none"),)),
    Client("guidellm", ("guidellm", *CPU_TORCH), "a benchmark of 8 requests, 4 at once",
           "guidellm_.py"),
)  # fmt: skip
