// Ask Rill with fetch, in Node 18 or newer: node examples/ask.mjs 'What is a rill?'
// ASK_URL and ASK_API_KEY come from the environment. Exit code: 0 complete, 1 no answer, 2 truncated.

const { ASK_URL = "http://127.0.0.1:8000", ASK_API_KEY } = process.env;
const prompt = process.argv[2] ?? "What is a rill?";

process.exitCode = await ask();

async function ask() {
  const headers = { "Content-Type": "text/plain; charset=utf-8" };
  if (ASK_API_KEY) headers.Authorization = `Bearer ${ASK_API_KEY}`;
  let response;
  try {
    response = await fetch(`${ASK_URL}/stream`, { method: "POST", headers, body: prompt });
  } catch (error) {
    console.error(`No answer: ${error.cause?.message ?? error.message}`);
    return 1;
  }
  if (!response.ok) {
    console.error(`No answer (${response.status}): ${await response.text()}`);
    return 1;
  }
  try {
    for await (const part of response.body.pipeThrough(new TextDecoderStream())) process.stdout.write(part);
    return 0;
  } catch {
    console.error("\nTruncated: the answer is incomplete.");
    return 2;
  }
}
