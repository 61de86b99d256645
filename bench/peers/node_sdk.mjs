// The official SDK's event stream behind node:http.
import http from "node:http";
import Anthropic from "@anthropic-ai/sdk";

const client = new Anthropic();

async function answer(request, response) {
  const prompt = new URL(request.url, "http://localhost").searchParams.get("q");
  const events = await client.messages.create({
    model: "bench",
    max_tokens: 4096,
    messages: [{ role: "user", content: prompt }],
    stream: true,
  });
  response.writeHead(200, { "Content-Type": "text/plain; charset=utf-8" });
  for await (const event of events) {
    if (event.type === "content_block_delta" && event.delta.type === "text_delta") {
      response.write(event.delta.text);
    }
  }
  response.end();
}

http
  .createServer((request, response) => answer(request, response).catch((error) => response.destroy(error)))
  .listen({ port: Number(process.env.PORT), host: "127.0.0.1", backlog: 4096 });
