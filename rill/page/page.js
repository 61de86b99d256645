// Rill's page: asks POST /stream, shows the answer as it arrives, and says truly how it ended.

const $ = (id) => document.getElementById(id);

const STOP_REASONS = {
  end_turn: "the model had said all",
  max_tokens: "it reached max_tokens, and may have had more to say",
  model_context_window_exceeded: "its context is full",
  stop_sequence: "it reached a stop sequence",
  refusal: "the model refused to go on, and what is asked next leaves this out",
};

let conversation = [];
let running = null;
let waitsForToken = false;
let drip = null;
let storage = {};
try {
  storage = sessionStorage;
} catch {
  // This browser stores nothing: a token goes with the page.
}

// One question and its answer on the page.
class Turn {
  text = "";
  pending = "";
  counted = 0;
  askedAt = performance.now();

  constructor(question) {
    this.node = $("turn").content.cloneNode(true).firstElementChild;
    this.part("question").textContent = question;
    this.part("copy").onclick = () => this.copy();
    // With every piece they would flicker.
    this.ticking = setInterval(() => this.showFigures(), 250);
    $("turns").append(this.node);
    scrollToEnd();
  }

  part(name) {
    return this.node.querySelector(`.${name}`);
  }

  add(piece) {
    this.lastAt = performance.now();
    this.firstAt ??= this.lastAt;
    // The first piece starts the clock, and is not counted.
    if (this.text) this.counted += [...piece].length;
    else say("Answering.");
    if (!this.pending) requestAnimationFrame(() => this.draw());
    this.pending += piece;
    this.text += piece;
  }

  draw() {
    // Who is at the end of the page wants to stay there.
    const following = innerHeight + scrollY + 40 > document.body.scrollHeight;
    this.part("answer").append(this.pending);
    this.pending = "";
    if (following) scrollToEnd();
  }

  showFigures(usage) {
    const figures = [];
    const seconds = (this.lastAt - this.firstAt) / 1000;
    if (this.text) figures.push(`${((this.firstAt - this.askedAt) / 1000).toFixed(2)} s to the first text`);
    // Over a mere moment a rate is chance.
    if (seconds > 0.1) figures.push(`${Math.round(this.counted / seconds)} characters a second`);
    if (usage?.input_tokens) figures.push(`${usage.input_tokens} tokens in, ${usage.output_tokens} out`);
    this.part("figures").textContent = figures.join(" · ");
  }

  end({ kind, words, usage }) {
    clearInterval(this.ticking);
    this.node.className = kind;
    this.part("outcome").textContent = words;
    this.part("answer").ariaBusy = null;
    this.part("copy").hidden = !this.text;
    this.showFigures(usage);
    this.draw();
    say(words);
  }

  async copy() {
    try {
      await navigator.clipboard.writeText(this.text);
    } catch {
      // Without TLS, a page from another machine has no clipboard.
      getSelection().selectAllChildren(this.part("answer"));
      document.execCommand("copy");
    }
    this.part("copy").textContent = "Copied";
    say("Copied.");
  }
}

async function ask(question) {
  const messages = conversation;
  const turn = new Turn(question);
  const controller = new AbortController();
  setRunning(controller);
  $("question").value = "";
  $("question").focus();
  say("Asking.");
  const outcome = await answer([...messages, { role: "user", content: question }], turn, controller.signal);
  setRunning(null);
  turn.end(outcome);
  // The Messages API takes no empty message, and after a refusal refuses all that follows.
  if (turn.text.trim() && !outcome.refusal) {
    messages.push({ role: "user", content: question }, { role: "assistant", content: turn.text });
  } else if (messages === conversation) {
    $("question").value ||= question;
  }
  if (outcome.kind === "locked") {
    turn.node.remove();
    waitsForToken = true;
    askForToken();
  }
  if (turn.text) drip ??= checkBuffers();
}

function setRunning(controller) {
  if (!controller && document.activeElement === $("stop")) $("question").focus();
  running = controller;
  $("send").hidden = !!running;
  $("stop").hidden = !running;
}

// Asks, fills the turn, and returns how it ended.
async function answer(messages, turn, signal) {
  const headers = { Accept: "text/event-stream", "Content-Type": "application/json" };
  const body = JSON.stringify({ messages, model: $("model").value || undefined });
  let outcome;
  let failure = { kind: "refused", words: "No answer: the server cannot be reached." };
  try {
    const response = await request("stream", { method: "POST", headers, body, signal });
    if (!response.ok || !isOfType(response, "text/event-stream")) return await describeRefusal(response);
    failure = describeCut("The connection broke.");
    for await (const { type, data } of readEvents(response.body)) {
      if (outcome) continue;
      if (type === "message") turn.add(data);
      if (type === "done") outcome = describeEnd(JSON.parse(data));
      if (type === "error") outcome = describeCut(JSON.parse(data).detail);
    }
    return outcome ?? describeCut("The connection ended before the answer did.");
  } catch {
    return outcome ?? (signal.aborted ? { kind: "stopped", words: "Stopped by you." } : failure);
  }
}

function describeEnd({ stop_reason, usage }) {
  const words = `Arrived whole: ${STOP_REASONS[stop_reason] ?? stop_reason ?? "no reason given"}.`;
  return { kind: "whole", words, usage, refusal: stop_reason === "refusal" };
}

function describeCut(why) {
  return { kind: "cut", words: `Cut: this is not the whole answer. ${why}` };
}

async function describeRefusal(response) {
  if (response.status === 401) return { kind: "locked", words: tokenWords() };
  // Rill says in plain text why, and when to try again; anything else comes from something on the way.
  const why = isOfType(response, "text/plain") ? await response.text() : "Something on the way answered, not Rill.";
  return { kind: "refused", words: `Refused (${response.status}): ${why.trim()}` };
}

function isOfType(response, type) {
  return response.headers.get("Content-Type")?.startsWith(type);
}

// The events of a body, each as soon as it is whole:
// https://html.spec.whatwg.org/multipage/server-sent-events.html#event-stream-interpretation
export async function* readEvents(body) {
  const decoder = new TextDecoder();
  let [rest, type, data, afterCR] = ["", "", [], false];
  for await (const bytes of readPieces(body)) {
    let text = decoder.decode(bytes, { stream: true });
    if (!text) continue;
    // A CR ends its line at once; the LF that may come with the next read ends no other.
    if (afterCR && text[0] === "\n") text = text.slice(1);
    afterCR = text.endsWith("\r");
    const lines = (rest + text).split(/\r\n|\r|\n/);
    rest = lines.pop();
    for (const line of lines) {
      const [, field, value] = /^([^:]*):? ?(.*)$/s.exec(line);
      if (field === "event") type = value;
      if (field === "data") data.push(value);
      if (line) continue;
      if (data.length) yield { type: type || "message", data: data.join("\n") };
      [type, data] = ["", []];
    }
  }
}

async function* readPieces(body) {
  const reader = body.getReader();
  for (let read = await reader.read(); !read.done; read = await reader.read()) yield read.value;
}

// Tells whether something on the way holds pieces back.
async function checkBuffers() {
  const arrivals = [];
  try {
    const { ok, body } = await request("drip");
    if (!ok) return;
    for await (const _ of readPieces(body)) arrivals.push(performance.now());
  } catch {
    return;
  }
  // Nine pauses of 100 ms lie between the first piece and the last.
  const flows = arrivals.at(-1) - arrivals[0] > 450;
  const warning = "A proxy on the way is buffering: text will not appear piece by piece.";
  $("drip").textContent = flows ? "Text arrives piece by piece." : warning;
}

async function listModels() {
  const response = await request("v1/models").catch(() => null);
  if (response?.status === 401) askForToken();
  if (!response?.ok) return;
  const { data } = await response.json().catch(() => ({ data: [] }));
  $("model").replaceChildren(...data.map(({ id }) => new Option(id)));
  $("models").hidden = data.length < 2;
}

function request(path, options = {}) {
  const bearer = storage.rillToken && { Authorization: `Bearer ${storage.rillToken}` };
  // With credentials, a 401 may open the browser's own dialog in place of our field.
  return fetch(path, { ...options, headers: { ...bearer, ...options.headers }, credentials: "omit" });
}

function tokenWords() {
  return storage.rillToken ? "The server did not accept this token." : "This server asks for a token.";
}

function askForToken() {
  const words = tokenWords();
  $("gate-words").textContent = `${words} It is kept in this tab alone, and no longer.`;
  delete storage.rillToken;
  $("gate").hidden = false;
  $("token").focus();
  say(words);
}

function say(words) {
  $("status").textContent = words;
}

function scrollToEnd() {
  scrollTo(0, document.body.scrollHeight);
}

$("composer").onsubmit = (event) => {
  event.preventDefault();
  const question = $("question").value;
  if (question.trim() && !running) ask(question);
};

$("question").onkeydown = (event) => {
  // While a character is being composed, Enter only chooses it.
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  $("composer").requestSubmit();
};

window.onkeydown = (event) => {
  if (event.key === "Escape" && !event.isComposing) running?.abort();
};

$("stop").onclick = (event) => {
  // The second click of a double click on Send lands here.
  if (event.detail < 2) running?.abort();
};

$("gate").onsubmit = async (event) => {
  event.preventDefault();
  storage.rillToken = $("token").value.trim();
  $("token").value = "";
  $("gate").hidden = true;
  $("question").focus();
  await listModels();
  if (!storage.rillToken || !waitsForToken) return;
  waitsForToken = false;
  $("composer").requestSubmit();
};

$("renew").onclick = () => {
  running?.abort();
  conversation = [];
  $("turns").replaceChildren();
  $("question").focus();
  say("A new conversation.");
};

listModels();
