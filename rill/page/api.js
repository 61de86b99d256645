// Requests to Rill: an answer as it arrives with its outcome, the models, and whether a proxy buffers.

import { t } from "./strings.js";

const STOP_REASONS = {
  end_turn: "Complete.",
  max_tokens: "Complete: the limit of max_tokens was reached.",
  model_context_window_exceeded: "Complete: the model's context is full.",
  stop_sequence: "Complete: a stop sequence was reached.",
  refusal: "Complete: the model refused to continue. The next prompt omits this answer.",
};
// How often a lost connection is tried again, once a second, before the answer counts as truncated.
const ATTEMPTS = 60;
// Seconds for which an answer outlives its connection, if the server offers that.
let resume;

let storage = {};
try {
  storage = sessionStorage;
} catch {
  // The browser stores nothing: the API key lasts as long as the page.
}

export function setKey(value) {
  if (value) storage.rillApiKey = value;
  else delete storage.rillApiKey;
}

export function hasKey() {
  return Boolean(storage.rillApiKey);
}

// Send a request, or continue the answer at `path`; pass its text to `add`, a path at which a reload continues it to
// `keep`, and return the outcome.
export async function answer(asked, { add, keep, signal, path = "" }) {
  const headers = { Accept: "text/event-stream", "Content-Type": "application/json" };
  const body = JSON.stringify({ ...asked, resume });
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
      failure = describeTruncated(t("The connection failed."));
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
      failure = describeTruncated(t("The connection closed before the answer was complete."));
    } catch {
      // The connection failed, or the answer was stopped.
    }
  }
  if (outcome || !signal.aborted) return outcome ?? failure;
  if (path) request(path, { method: "DELETE", keepalive: true }).catch(() => {});
  return { kind: "stopped", message: t("Stopped.") };
}

function describeComplete({ stop_reason, usage }) {
  const message = t(STOP_REASONS[stop_reason] ?? "Complete: {0}.", stop_reason ?? t("no stop reason"));
  return { kind: "complete", message, usage, refusal: stop_reason === "refusal" };
}

function describeTruncated(reason) {
  return { kind: "truncated", message: t("Truncated: the answer is incomplete. {0}", reason) };
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

// Yield the events of a body, each as soon as it is complete:
// https://html.spec.whatwg.org/multipage/server-sent-events.html#event-stream-interpretation
export async function* readEvents(body) {
  const decoder = new TextDecoder();
  let [rest, type, data, id, afterCR] = ["", "", [], "", false];
  for await (const bytes of readChunks(body)) {
    let text = decoder.decode(bytes, { stream: true });
    if (!text) continue;
    // A CR ends its line at once; an LF in the next chunk does not end another one.
    if (afterCR && text[0] === "\n") text = text.slice(1);
    afterCR = text.endsWith("\r");
    const lines = (rest + text).split(/\r\n|\r|\n/);
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
  return arrivals.length > 0 && arrivals.at(-1) - arrivals[0] < 450;
}

// Return the models, and whether an API key is missing.
export async function listModels() {
  const response = await request("v1/models").catch(() => null);
  const body = response?.ok ? await response.json().catch(() => null) : null;
  return { models: body?.data ?? [], unauthorized: response?.status === 401 };
}

// Learn whether answers can be resumed.
export async function checkResume() {
  const response = await request("stream", { method: "HEAD" }).catch(() => null);
  resume = Number(response?.headers.get("Resume-Seconds")) || undefined;
}

function request(path, options = {}) {
  const bearer = storage.rillApiKey && { Authorization: `Bearer ${storage.rillApiKey}` };
  // With credentials, a 401 may open the browser's own dialog instead of our form.
  return fetch(path, { ...options, headers: { ...bearer, ...options.headers }, credentials: "omit" });
}

export function keyMessage() {
  return t(hasKey() ? "The server rejected this API key." : "The server requires an API key.");
}

// Return the command that sends the same request.
export function curlCommand(asked) {
  const [{ content }, ...more] = asked.messages;
  const { messages, ...options } = asked;
  const body = JSON.stringify(more.length ? asked : { q: content, ...options }).replaceAll("'", "'\\''");
  const bearer = hasKey() ? ` -H "Authorization: Bearer $RILL_API_KEY"` : "";
  return `curl -N${bearer} '${new URL("stream", location)}' --json '${body}'`;
}
