// Ask Rill with fetch, in Node 18 or newer: node examples/ask.mjs 'What is a rill?'
// RILL_URL and RILL_TOKEN come from the environment. Exit code: 0 the answer is whole, 1 there is none, 2 it was cut.

const { RILL_URL = "http://127.0.0.1:8000", RILL_TOKEN } = process.env;
const question = process.argv[2] ?? "What is a rill?";

process.exitCode = await ask();

async function ask() {
  const headers = { "Content-Type": "text/plain; charset=utf-8" };
  if (RILL_TOKEN) headers.Authorization = `Bearer ${RILL_TOKEN}`;
  let response;
  try {
    response = await fetch(`${RILL_URL}/stream`, { method: "POST", headers, body: question });
  } catch (error) {
    console.error(`No answer: ${error.cause?.message ?? error.message}`);
    return 1;
  }
  if (!response.ok) {
    console.error(`No answer (${response.status}): ${await response.text()}`);
    return 1;
  }
  try {
    for await (const piece of response.body.pipeThrough(new TextDecoderStream())) process.stdout.write(piece);
    return 0;
  } catch {
    console.error("\nCut: this is not the whole answer.");
    return 2;
  }
}
