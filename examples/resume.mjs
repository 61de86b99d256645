// Ask Rill over connections that fail, in Node 18 or newer: node examples/resume.mjs 'What is a rill?'
// The server needs RILL_RESUME_SECONDS=60 or more. ASK_URL and ASK_API_KEY come from the environment.
// Exit code: 0 complete, 1 no answer, 2 truncated.

const { ASK_URL = "http://127.0.0.1:8000", ASK_API_KEY } = process.env;
const body = new URLSearchParams({ q: process.argv[2] ?? "What is a rill?", resume: "60" });
const headers = { "Idempotency-Key": crypto.randomUUID() };
if (ASK_API_KEY) headers.Authorization = `Bearer ${ASK_API_KEY}`;
const decoder = new TextDecoder();
let received = 0;

process.exitCode = await ask();

// The same request with the same key is the same answer, however often it is sent; Range names its next byte.
async function ask() {
  for (let failures = 0; failures < 60; failures += 1) {
    if (failures) await new Promise((resolve) => setTimeout(resolve, 1000));
    try {
      if (received) headers.Range = `bytes=${received}-`;
      const response = await fetch(`${ASK_URL}/stream`, { method: "POST", headers, body });
      if (!response.ok) {
        console.error(`No answer (${response.status}): ${await response.text()}`);
        return received ? 2 : 1;
      }
      for await (const bytes of response.body ?? []) {
        process.stdout.write(decoder.decode(bytes, { stream: true }));
        [received, failures] = [received + bytes.length, 0];
      }
      return 0;
    } catch {
      // The connection failed: continue the answer.
    }
  }
  console.error("\nTruncated: the answer is incomplete.");
  return received ? 2 : 1;
}
