// Chat, stream, tools, the Responses API.
import OpenAI from "openai";

const { URL: baseURL, MODEL: model } = process.env;
const client = new OpenAI({ baseURL, apiKey: "none", maxRetries: 0 });
const messages = [{ role: "user", content: "Name an animal." }];
const schema = {
  type: "object",
  properties: { animal: { type: "string", enum: ["dog", "hen"] } },
  required: ["animal"],
  additionalProperties: false,
};
const say = (what, value) => {
  if (value === null || value === undefined) throw new Error(`${what}: nothing came back`);
  console.log(`${what}: ${JSON.stringify(value).slice(0, 60)}`);
};
const asked = { model, messages, max_tokens: 128 };
say("chat", (await client.chat.completions.create(asked)).choices[0].message.content);
let text = "";
for await (const chunk of await client.chat.completions.create({ ...asked, stream: true }))
  text += chunk.choices[0]?.delta?.content ?? "";
say("stream", text);
const fn = { name: "legs_of", description: "Legs of an animal.", parameters: schema };
const stream = client.chat.completions.stream({
  ...asked, tools: [{ type: "function", function: fn }], tool_choice: "required",
});
say("tools, streamed", (await stream.finalChatCompletion()).choices[0].message.tool_calls[0]);
const format = { type: "json_schema", json_schema: { name: "animal", schema, strict: true } };
const parsed = await client.chat.completions.parse({ ...asked, response_format: format });
say("structured", JSON.parse(parsed.choices[0].message.content));
const given = { model, input: "Name an animal.", max_output_tokens: 32 };
say("responses", (await client.responses.create(given)).output_text);
text = "";
for await (const event of await client.responses.create({ ...given, stream: true }))
  if (event.type === "response.output_text.delta") text += event.delta;
say("responses, streamed", text);
