// The AI SDK's streamText over its Anthropic provider, behind node:http.
import http from "node:http";
import { createAnthropic } from "@ai-sdk/anthropic";
import { streamText } from "ai";

const anthropic = createAnthropic({
  apiKey: process.env.ANTHROPIC_API_KEY,
  baseURL: `${process.env.ANTHROPIC_BASE_URL}/v1`,
});

async function answer(request, response) {
  const prompt = new URL(request.url, "http://localhost").searchParams.get("q");
  const { textStream } = streamText({ model: anthropic("bench"), maxOutputTokens: 4096, prompt });
  response.writeHead(200, { "Content-Type": "text/plain; charset=utf-8" });
  for await (const text of textStream) {
    response.write(text);
  }
  response.end();
}

http
  .createServer((request, response) => answer(request, response).catch((error) => response.destroy(error)))
  .listen({ port: Number(process.env.PORT), host: "127.0.0.1", backlog: 4096 });
