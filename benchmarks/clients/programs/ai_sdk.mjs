// Text, stream, an object and tools: by the default provider (Responses API), by the same
// one's chat, and by the compatible provider.
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateObject, generateText, streamText, tool } from "ai";
import { z } from "zod";

const { URL: baseURL, MODEL: model, PROVIDER } = process.env;
const say = (what, value) => {
  if (value === null || value === undefined) throw new Error(`${what}: nothing came back`);
  console.log(`${what}: ${JSON.stringify(value).slice(0, 60)}`);
};
const chosen =
  PROVIDER === "compatible"
    ? createOpenAICompatible({
        name: "softmask", baseURL, supportsStructuredOutputs: true, includeUsage: true,
      })(model)
    : createOpenAI({ baseURL, apiKey: "none" })(model);
const asked = { model: chosen, prompt: "Name an animal.", maxOutputTokens: 128, maxRetries: 0 };
say("text", (await generateText(asked)).text);
const stream = streamText({ ...asked, onError: ({ error }) => { throw error; } });
let text = "";
for await (const part of stream.textStream) text += part;
say("stream", text);
const schema = z.object({ name: z.enum(["dog", "hen"]), legs: z.number().int().min(0).max(8) });
say("object", (await generateObject({ ...asked, schema })).object);
const legs = tool({
  description: "Legs of an animal.",
  inputSchema: z.object({ animal: z.enum(["dog", "hen"]) }),
  execute: async ({ animal }) => (animal === "dog" ? 4 : 2),
});
const called = await generateText({ ...asked, tools: { legs }, toolChoice: "required" });
say("tools", called.toolResults[0].output);
