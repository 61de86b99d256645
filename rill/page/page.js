// The web page: sends prompts to POST /stream, shows each answer as it arrives, and reports its outcome.

const $ = (id) => document.getElementById(id);

const STOP_REASONS = {
  end_turn: "Complete.",
  max_tokens: "Complete: the limit of max_tokens was reached.",
  model_context_window_exceeded: "Complete: the model's context is full.",
  stop_sequence: "Complete: a stop sequence was reached.",
  refusal: "Complete: the model refused to continue. The next prompt omits this answer.",
};

// How often a lost connection is tried again, once a second, before the answer counts as truncated.
const ATTEMPTS = 60;

let conversation = [];
let running = null;
let retryWithKey = false;
let bufferingCheck = null;
let following = false;
let resume;
let storage = {};
try {
  storage = sessionStorage;
} catch {
  // The browser stores nothing: the key lasts as long as the page.
}

// One prompt and its answer on the page.
class Turn {
  text = "";
  pending = "";
  characters = 0;
  startedAt = performance.now();

  constructor(prompt) {
    this.node = $("turn").content.cloneNode(true).firstElementChild;
    this.part("prompt").textContent = prompt;
    this.part("copy").onclick = () => this.copy();
    // Updated with each chunk, the statistics would flicker.
    this.timer = setInterval(() => this.showStatistics(), 250);
    $("conversation").append(this.node);
    scrollToEnd();
  }

  part(name) {
    return this.node.querySelector(`.${name}`);
  }

  add(text) {
    this.lastAt = performance.now();
    this.firstAt ??= this.lastAt;
    // The first chunk starts the clock and is not counted.
    if (this.text) this.characters += [...text].length;
    else announce("Receiving the answer.");
    if (!this.pending) requestAnimationFrame(() => this.draw());
    this.pending += text;
    this.text += text;
  }

  draw() {
    this.part("answer").append(this.pending);
    this.pending = "";
  }

  showStatistics(usage) {
    const statistics = [];
    const seconds = (this.lastAt - this.firstAt) / 1000;
    if (this.text) statistics.push(`${((this.firstAt - this.startedAt) / 1000).toFixed(2)} s to the first text`);
    // Over a shorter time the rate is meaningless.
    if (seconds > 0.1) statistics.push(`${Math.round(this.characters / seconds)} characters/s`);
    if (usage?.input_tokens) statistics.push(`${usage.input_tokens} input tokens, ${usage.output_tokens} output tokens`);
    this.part("statistics").textContent = statistics.join(" · ");
  }

  end({ kind, message, usage }) {
    clearInterval(this.timer);
    this.node.className = kind;
    this.part("outcome").textContent = message;
    this.part("answer").ariaBusy = null;
    this.part("copy").hidden = !this.text;
    this.showStatistics(usage);
    this.draw();
    announce(message);
  }

  async copy() {
    try {
      await navigator.clipboard.writeText(this.text);
    } catch {
      // Over plain HTTP, a page of another machine has no clipboard.
      getSelection().selectAllChildren(this.part("answer"));
      document.execCommand("copy");
    }
    this.part("copy").textContent = "Copied";
    announce("Copied.");
  }
}

async function ask(prompt, path) {
  const messages = conversation;
  const turn = new Turn(prompt);
  const controller = new AbortController();
  setRunning(controller);
  $("prompt").value = "";
  $("prompt").focus();
  announce("Waiting for the answer.");
  const outcome = await answer([...messages, { role: "user", content: prompt }], turn, controller.signal, path);
  setRunning(null);
  turn.end(outcome);
  // The Messages API rejects an empty message, and after a refusal it refuses every later prompt.
  if (turn.text.trim() && !outcome.refusal) {
    messages.push({ role: "user", content: prompt }, { role: "assistant", content: turn.text });
  } else if (messages === conversation) {
    $("prompt").value ||= prompt;
  }
  if (outcome.kind === "unauthorized") {
    turn.node.remove();
    retryWithKey = true;
    askForKey();
  }
  if (turn.text) bufferingCheck ??= checkBuffering();
}

function setRunning(controller) {
  if (!controller && document.activeElement === $("stop")) $("prompt").focus();
  running = controller;
  $("send").hidden = !!running;
  $("stop").hidden = !running;
}

// Send the messages, or continue the answer at `path`; add it to the turn, and return the outcome.
async function answer(messages, turn, signal, path = "") {
  const headers = { Accept: "text/event-stream", "Content-Type": "application/json" };
  const body = JSON.stringify({ messages, model: $("model").value || undefined, resume });
  let [outcome, lastId] = [];
  let failure = { kind: "rejected", message: "No answer: the server is unreachable." };
  for (let attempts = 0; attempts < (path ? ATTEMPTS : 1) && !outcome && !signal.aborted; attempts += 1) {
    if (attempts) await new Promise((resolve) => setTimeout(resolve, 1000));
    if (lastId) headers["Last-Event-ID"] = lastId;
    try {
      const response = await request(path || "stream", { ...(!path && { method: "POST", body }), headers, signal });
      if (!response.ok || !hasType(response, "text/event-stream")) {
        if (!turn.text) failure = await describeRejection(response);
        break;
      }
      path = keepPath(response, messages);
      failure = describeTruncated("The connection failed.");
      for await (const { type, data, id } of readEvents(response.body)) {
        [lastId, attempts] = [id, 0];
        if (outcome) continue;
        if (type === "message") turn.add(data);
        if (type === "done") outcome = describeComplete(JSON.parse(data));
        if (type === "error") outcome = describeTruncated(JSON.parse(data).detail);
      }
      failure = describeTruncated("The connection closed before the answer was complete.");
    } catch {
      // The connection failed, or the answer was stopped.
    }
  }
  delete storage.rillAnswer;
  if (outcome || !signal.aborted) return outcome ?? failure;
  if (path) request(path, { method: "DELETE", keepalive: true }).catch(() => {});
  return { kind: "stopped", message: "Stopped." };
}

// Return the path at which a reload continues an answer, "" if it cannot be resumed.
function keepPath(response, messages) {
  const path = response.headers.get("Content-Location")?.slice(1) ?? "";
  if (path) storage.rillAnswer = JSON.stringify({ path, messages });
  return path;
}

function describeComplete({ stop_reason, usage }) {
  const message = STOP_REASONS[stop_reason] ?? `Complete: ${stop_reason ?? "no stop reason"}.`;
  return { kind: "complete", message, usage, refusal: stop_reason === "refusal" };
}

function describeTruncated(reason) {
  return { kind: "truncated", message: `Truncated: the answer is incomplete. ${reason}` };
}

async function describeRejection(response) {
  if (response.status === 401) return { kind: "unauthorized", message: keyMessage() };
  // Rill rejects with plain text; any other type comes from a proxy.
  const reason = hasType(response, "text/plain") ? await response.text() : "The response does not come from Rill.";
  return { kind: "rejected", message: `Rejected (${response.status}): ${reason.trim()}` };
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

// Show whether a proxy buffers responses.
async function checkBuffering() {
  const arrivals = [];
  try {
    const { ok, body } = await request("drip");
    if (!ok) return;
    for await (const _ of readChunks(body)) arrivals.push(performance.now());
  } catch {
    return;
  }
  // The first and the last chunk are sent 900 ms apart.
  const streams = arrivals.at(-1) - arrivals[0] > 450;
  const warning = "A proxy buffers the response: text does not appear as it is written.";
  $("buffering").textContent = streams ? "Text is not buffered on the way." : warning;
}

// Learn whether answers can be resumed, and continue the one that a reload interrupted.
async function continueAnswer() {
  const response = await request("stream", { method: "HEAD" }).catch(() => null);
  resume = Number(response?.headers.get("Resume-Seconds")) || undefined;
  if (!storage.rillAnswer || running) return;
  const { path, messages } = JSON.parse(storage.rillAnswer);
  const { content } = messages.pop();
  conversation = messages;
  ask(content, path);
}

async function listModels() {
  const response = await request("v1/models").catch(() => null);
  if (response?.status === 401) askForKey();
  if (!response?.ok) return;
  const { data } = await response.json().catch(() => ({ data: [] }));
  $("model").replaceChildren(...data.map(({ id }) => new Option(id)));
  $("models").hidden = data.length < 2;
}

function request(path, options = {}) {
  const bearer = storage.rillApiKey && { Authorization: `Bearer ${storage.rillApiKey}` };
  // With credentials, a 401 may open the browser's own dialog instead of our form.
  return fetch(path, { ...options, headers: { ...bearer, ...options.headers }, credentials: "omit" });
}

function keyMessage() {
  return storage.rillApiKey ? "The server rejected this API key." : "The server requires an API key.";
}

function askForKey() {
  const message = keyMessage();
  $("key-message").textContent = `${message} It is stored for this tab only.`;
  delete storage.rillApiKey;
  $("key-form").hidden = false;
  $("key").focus();
  announce(message);
}

// Have screen readers read a message.
function announce(message) {
  $("status").textContent = message;
}

function scrollToEnd() {
  following = true;
  scrollTo(0, document.documentElement.scrollHeight);
}

// Follow the end of the page, whatever lengthens it, unless the reader scrolls away from it.
addEventListener("scroll", () => {
  following = innerHeight + scrollY + 40 > document.documentElement.scrollHeight;
});
new ResizeObserver(() => {
  if (following) scrollToEnd();
}).observe(document.body);

$("prompt-form").onsubmit = (event) => {
  event.preventDefault();
  const prompt = $("prompt").value;
  if (prompt.trim() && !running) ask(prompt);
};

$("prompt").onkeydown = (event) => {
  // While an input method composes a character, Enter only selects it.
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  $("prompt-form").requestSubmit();
};

window.onkeydown = (event) => {
  if (event.key === "Escape" && !event.isComposing) running?.abort();
};

$("stop").onclick = (event) => {
  // The second click of a double click on Send arrives here.
  if (event.detail < 2) running?.abort();
};

$("key-form").onsubmit = async (event) => {
  event.preventDefault();
  storage.rillApiKey = $("key").value.trim();
  $("key").value = "";
  $("key-form").hidden = true;
  $("prompt").focus();
  await listModels();
  if (!storage.rillApiKey || !retryWithKey) return;
  retryWithKey = false;
  $("prompt-form").requestSubmit();
};

$("new").onclick = () => {
  running?.abort();
  conversation = [];
  $("conversation").replaceChildren();
  $("prompt").focus();
  announce("New conversation.");
};

listModels();
continueAnswer();
