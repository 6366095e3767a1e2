// What users of openai-node rely on, against a started Kvant server.
//
// usage: openai_client.mjs http://127.0.0.1:PORT MODEL
// needs: the openai package of npm where node finds it. The exit code is 1 if any check failed.
import assert from "node:assert/strict";
import OpenAI from "openai";

const [address, model] = process.argv.slice(2);
const client = new OpenAI({ baseURL: `${address}/v1`, apiKey: "none", maxRetries: 0 });
const messages = [{ role: "user", content: "What is the capital of France?" }];
const options = { model, messages, max_tokens: 24, temperature: 0 };

const checks = {
  async plainChat() {
    const answer = await client.chat.completions.create(options);
    assert.equal(answer.object, "chat.completion");
    assert.ok(answer.choices[0].message.content.trim());
    assert.equal(answer.usage.total_tokens, answer.usage.prompt_tokens + answer.usage.completion_tokens);
  },
  async streamedChatSaysTheSame() {
    const whole = await client.chat.completions.create(options);
    let text = "";
    for await (const chunk of await client.chat.completions.create({ ...options, stream: true })) {
      text += chunk.choices[0]?.delta?.content ?? "";
    }
    assert.equal(text, whole.choices[0].message.content);
  },
  async streamHelper() {
    const final = await client.chat.completions.stream(options).finalChatCompletion();
    assert.ok(["stop", "length"].includes(final.choices[0].finish_reason));
  },
  async toolsAreStreamed() {
    const parameters = { type: "object", properties: { city: { type: "string", maxLength: 12 } }, required: ["city"] };
    const tools = [{ type: "function", function: { name: "get_weather", parameters } }];
    for (const tool_choice of ["auto", "required", { type: "function", function: { name: "get_weather" } }]) {
      const stream = client.chat.completions.stream({ ...options, tools, tool_choice, max_tokens: 64 });
      const message = (await stream.finalChatCompletion()).choices[0].message;
      if (tool_choice !== "auto") assert.equal(message.tool_calls[0].function.name, "get_weather");
    }
  },
  async jsonSchema() {
    const schema = { type: "object", properties: { big: { type: "boolean" } }, required: ["big"], additionalProperties: false };
    const response_format = { type: "json_schema", json_schema: { name: "answer", schema, strict: true } };
    const answer = await client.chat.completions.create({ ...options, response_format, max_tokens: 600 });
    assert.equal(typeof JSON.parse(answer.choices[0].message.content).big, "boolean");
  },
  async responses() {
    const asked = { model, input: "What is the capital of France?", max_output_tokens: 24, temperature: 0 };
    const whole = await client.responses.create(asked);
    let text = "", next = 0;
    for await (const event of await client.responses.create({ ...asked, stream: true })) {
      assert.equal(event.sequence_number, next++);
      if (event.type === "response.output_text.delta") text += event.delta;
    }
    assert.equal(text, whole.output_text);
  },
  async embeddings() {
    const answer = await client.embeddings.create({ model, input: ["the whale", "the sea"] });
    const [first, second] = answer.data.map((entry) => entry.embedding);
    assert.equal(first.length, second.length);
    assert.ok(Math.abs(first.reduce((sum, x) => sum + x * x, 0) - 1) < 1e-4);
  },
  async models() {
    assert.equal((await client.models.retrieve(model)).id, model);
  },
  async errors() {
    await assert.rejects(client.chat.completions.create({ ...options, temperature: 3 }), OpenAI.BadRequestError);
    await assert.rejects(client.chat.completions.create({ ...options, model: "no-such" }), OpenAI.NotFoundError);
  },
};

let failed = 0;
for (const [name, check] of Object.entries(checks)) {
  try {
    await check();
    console.log(`ok      ${name}`);
  } catch (error) {
    failed += 1;
    console.log(`FAILED  ${name}\n${error.stack}`);
  }
}
console.log(`${Object.keys(checks).length - failed} passed, ${failed} failed`);
process.exit(failed > 0 ? 1 : 0);
