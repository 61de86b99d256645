// Requests to Rill, and what their responses mean.

import { session } from "./storage.js";
import { t } from "./strings.js";

const STOP_REASONS = {
  end_turn: "Complete.",
  max_tokens: "Complete: max_tokens was reached.",
  model_context_window_exceeded: "Complete: the model's context is full.",
  refusal: "Complete: the model refused. The next prompt omits this answer.",
};
// How often a lost connection is tried again, once a second.
const ATTEMPTS = 60;
// The seconds for which an answer outlives its connection, if the server offers that.
const resumeSeconds = request("stream", { method: "HEAD", signal: AbortSignal.timeout(5000) }).then(
  ({ headers }) => Number(headers.get("Resume-Seconds")) || undefined,
  () => undefined,
);

// Send a request, or continue the answer at `path`; pass its text to `add`, the path at which it continues to `keep`,
// and return the outcome.
export async function answer(asked, { add, keep, signal, path = "" }) {
  const headers = { Accept: "text/event-stream", "Content-Type": "application/json" };
  const body = JSON.stringify({ ...asked, resume: await resumeSeconds });
  let [outcome, lastId, begun] = [];
  let failure = { kind: "rejected", message: t("No answer: the server is unreachable.") };
  for (let attempts = 0; attempts < (path ? ATTEMPTS : 1) && !outcome && !signal.aborted; attempts += 1) {
    if (attempts) await new Promise((resolve) => setTimeout(resolve, 1000));
    if (lastId) headers["Last-Event-ID"] = lastId;
    try {
      const response = await request(path || "stream", { ...(!path && { method: "POST", body }), headers, signal });
      if (!response.ok || !hasType(response, "text/event-stream")) {
        if (!begun) failure = await describeRejection(response);
        break;
      }
      path = response.headers.get("Content-Location")?.slice(1) ?? "";
      keep(path);
      failure = describeTruncated("The connection failed.");
      for await (const { type, data, id } of readEvents(response.body)) {
        [lastId, attempts] = [id, 0];
        if (outcome) continue;
        if (type === "message") {
          add(data);
          begun = true;
        }
        if (type === "done") outcome = describeComplete(JSON.parse(data));
        if (type === "error") outcome = describeTruncated(JSON.parse(data).detail);
      }
      failure = describeTruncated("The connection closed early.");
    } catch {
      // The connection failed, or the answer was stopped.
    }
  }
  if (outcome || !signal.aborted) return outcome ?? failure;
  if (path) request(path, { method: "DELETE", keepalive: true }).catch(() => {});
  return { kind: "stopped", message: t("Stopped.") };
}

function describeComplete({ stop_reason, usage }) {
  const message = t(STOP_REASONS[stop_reason] ?? "Complete: {0}.", stop_reason);
  return { kind: "complete", message, usage, refusal: stop_reason === "refusal" };
}

function describeTruncated(reason) {
  return { kind: "truncated", message: t("Truncated: {0}", t(reason)) };
}

async function describeRejection(response) {
  if (response.status === 401) return { kind: "unauthorized", message: keyMessage() };
  // Rill rejects with plain text; any other type comes from a proxy.
  const isRill = hasType(response, "text/plain");
  const reason = isRill ? (await response.text()).trim() : t("The response does not come from Rill.");
  return { kind: "rejected", message: t("Rejected ({0}): {1}", response.status, reason) };
}

function hasType(response, type) {
  return response.headers.get("Content-Type")?.startsWith(type);
}

// Yield the events of a body, each as soon as it is complete. Rill ends each line with LF, one of the line ends of
// https://html.spec.whatwg.org/multipage/server-sent-events.html#event-stream-interpretation
export async function* readEvents(body) {
  const decoder = new TextDecoder();
  let [rest, type, data, id] = ["", "", [], ""];
  for await (const bytes of readChunks(body)) {
    const lines = (rest + decoder.decode(bytes, { stream: true })).split("\n");
    rest = lines.pop();
    for (const line of lines) {
      const [, field, value] = /^([^:]*):? ?(.*)$/s.exec(line);
      if (field === "event") type = value;
      if (field === "data") data.push(value);
      if (field === "id") id = value;
      if (line) continue;
      if (data.length) yield { type: type || "message", data: data.join("\n"), id };
      [type, data] = ["", []];
    }
  }
}

async function* readChunks(body) {
  const reader = body.getReader();
  for (let read = await reader.read(); !read.done; read = await reader.read()) yield read.value;
}

// Return whether a proxy buffers responses: the first and the last chunk of /drip are sent 900 ms apart.
export async function isBuffered() {
  const arrivals = [];
  try {
    const { ok, body } = await request("drip");
    if (ok) for await (const _ of readChunks(body)) arrivals.push(performance.now());
  } catch {
    return false;
  }
  return arrivals.at(-1) - arrivals[0] < 450;
}

// Return the models, and whether an API key is missing.
export async function listModels() {
  const response = await request("v1/models").catch(() => ({}));
  const body = response.ok && (await response.json().catch(() => null));
  return { models: body?.data ?? [], unauthorized: response.status === 401 };
}

function request(path, options = {}) {
  const bearer = session.rillApiKey && { Authorization: `Bearer ${session.rillApiKey}` };
  // With credentials, a 401 may open the browser's own dialog instead of our form.
  return fetch(path, { ...options, headers: { ...bearer, ...options.headers }, credentials: "omit" });
}

export function keyMessage() {
  return t(session.rillApiKey ? "The server rejected this API key." : "The server requires an API key.");
}

// Return the command that sends the same request.
export function curlCommand(asked) {
  const [{ content }, ...more] = asked.messages;
  const { messages, ...options } = asked;
  const body = JSON.stringify(more.length ? asked : { q: content, ...options }).replaceAll("'", "'\\''");
  const bearer = session.rillApiKey ? ` -H "Authorization: Bearer $RILL_API_KEY"` : "";
  return `curl -N${bearer} '${new URL("stream", location)}' --json '${body}'`;
}
