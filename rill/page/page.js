// The web page: sends prompts to POST /stream, shows each answer as it arrives, reports its outcome, and keeps the
// conversation in this browser.

import { answer, checkResume, curlCommand, hasKey, isBuffered, keyMessage, listModels, setKey } from "./api.js";
import { copy } from "./clipboard.js";
import * as conversations from "./conversations.js";
import { followEnd } from "./scrolling.js";
import { t, translate } from "./strings.js";
import { Turn } from "./turn.js";

const $ = (id) => document.getElementById(id);
const touch = matchMedia("(hover: none) and (pointer: coarse)");
const INTERRUPTED = "Interrupted: the page was closed before the answer was complete.";

let conversation = conversations.create();
let turns = [];
let running = null;
let editing = null;
let retryWithKey = false;
let bufferingCheck = null;
let isPlain = false;
let leaving = false;
const scrollToEnd = followEnd($("conversation"), $("to-end"));

// Sending

async function ask(prompt, { at = turns.length, path, saved = "" } = {}) {
  for (const { node } of turns.splice(at)) node.remove();
  const asked = request(prompt, turns);
  const here = conversation;
  const turn = addTurn(prompt);
  setRunning(new AbortController());
  $("prompt").value = "";
  setEditing(null);
  // A focused box keeps the keyboard of a phone open, in front of the answer.
  if (touch.matches) $("prompt").blur();
  else $("prompt").focus();
  scrollToEnd();
  announce(t("Waiting for the answer."));
  const outcome = await answer(asked, {
    add: (text) => {
      if (!turn.text) announce(t("Receiving the answer."));
      turn.add(text);
    },
    keep: (resumePath) => {
      turn.path = resumePath;
      save();
    },
    signal: running.signal,
    path,
  });
  if (here === conversation) setRunning(null);
  // An answer that cannot be continued any more is shown as far as it was received.
  if (path && !turn.text) turn.add(saved);
  finish(turn, outcome, here);
}

function finish(turn, outcome, here) {
  // The browser ends the request of a page that is closed.
  if (leaving) return;
  turn.path = "";
  turn.end(outcome);
  turn.refusal = outcome.refusal;
  if (here !== conversation) return;
  announce(outcome.message);
  // The Messages API rejects an empty message, and after a refusal it refuses every later prompt.
  if (!isPart(turn)) $("prompt").value ||= turn.prompt;
  if (outcome.kind === "unauthorized") {
    turns.splice(turns.indexOf(turn)).forEach(({ node }) => node.remove());
    retryWithKey = true;
    askForKey();
  }
  markLast();
  save();
  if (turn.text) bufferingCheck ??= checkBuffering();
}

// Return whether later requests contain a turn.
function isPart({ text, refusal }) {
  return text.trim() && !refusal;
}

function request(prompt, earlier) {
  const messages = earlier.filter(isPart).flatMap((turn) => [
    { role: "user", content: turn.prompt },
    { role: "assistant", content: turn.text },
  ]);
  return {
    messages: [...messages, { role: "user", content: prompt }],
    model: $("model").value || undefined,
    system: $("system").value.trim() ? $("system").value : undefined,
    max_tokens: Number($("max-tokens").value) || undefined,
  };
}

function setRunning(controller) {
  if (!controller && document.activeElement === $("stop")) $("prompt").focus();
  running = controller;
  $("send").hidden = !!running;
  $("stop").hidden = !running;
  document.body.classList.toggle("running", !!running);
  $("live").textContent = "";
}

// Updated with each chunk, the statistics would flicker.
setInterval(() => {
  if (running) $("live").textContent = turns.at(-1)?.statistics() ?? "";
}, 250);

async function checkBuffering() {
  if (await isBuffered()) {
    $("buffering").textContent = t("A proxy buffers the response: text does not appear as it is written.");
  }
}

// Turns

function addTurn(prompt) {
  const turn = new Turn(prompt, isPlain);
  const at = turns.push(turn) - 1;
  const on = (name, action) => (turn.part(name).onclick = action);
  on("retry", () => !running && ask(prompt, { at: turns.indexOf(turn) }));
  on("edit", () => setEditing(turn));
  on("copy-text", (event) => copyFrom(event.target, turn.renderedText));
  on("copy-markdown", (event) => copyFrom(event.target, turn.text));
  on("show-plain", () => {
    isPlain = !turn.isPlain;
    turn.showPlain(isPlain);
  });
  on("answer", ({ target }) => {
    if (target.className === "copy-code") copyFrom(target, target.closest(".code").querySelector("code").textContent);
  });
  turn.part("curl").ontoggle = () => {
    turn.part("command").textContent = curlCommand(request(prompt, turns.slice(0, at)));
  };
  on("copy-curl", (event) => copyFrom(event.target, turn.part("command").textContent));
  $("turns").append(turn.node);
  markLast();
  return turn;
}

// Only the last answer can be retried: the later ones depend on it.
function markLast() {
  turns.forEach((turn, index) => (turn.part("retry").hidden = index < turns.length - 1));
  $("welcome").hidden = turns.length > 0;
  $("conversation").hidden = !turns.length;
}

async function copyFrom(button, text) {
  await copy(text);
  button.textContent = t("Copied.");
  announce(t("Copied."));
}

function setEditing(turn) {
  editing = turn;
  $("editing").hidden = !turn;
  if (!turn) return;
  $("prompt").value = turn.prompt;
  $("prompt").focus();
}

// Conversations

function save() {
  const saved = turns.map(({ prompt, text, outcome, refusal, path }) => ({ prompt, text, outcome, refusal, path }));
  Object.assign(conversation, {
    turns: saved,
    model: $("model").value,
    system: $("system").value,
    maxTokens: $("max-tokens").value,
  });
  if (saved.length) conversations.save(conversation);
  try {
    sessionStorage.rillConversation = conversation.id;
  } catch {
    // A reload begins a new conversation.
  }
}

function open(opened) {
  if (running) {
    running.abort();
    setRunning(null);
    Object.assign(turns.at(-1), { path: "", outcome: { kind: "stopped", message: t("Stopped."), statistics: "" } });
    save();
  }
  setEditing(null);
  conversation = opened;
  turns = [];
  $("turns").replaceChildren();
  for (const saved of opened.turns) {
    const isLast = saved === opened.turns.at(-1);
    if (isLast && saved.path && !saved.outcome) {
      ask(saved.prompt, { path: saved.path, saved: saved.text });
    } else {
      const turn = addTurn(saved.prompt);
      turn.refusal = saved.refusal;
      turn.restore(saved.text, saved.outcome ?? { kind: "truncated", message: t(INTERRUPTED), statistics: "" });
    }
  }
  if (opened.model && [...$("model").options].some(({ value }) => value === opened.model)) $("model").value = opened.model;
  $("system").value = opened.system ?? "";
  $("max-tokens").value = opened.maxTokens ?? "";
  showModel();
  markLast();
  scrollToEnd();
}

function startNew() {
  open(conversations.create());
  save();
  $("prompt").focus();
  announce(t("New conversation."));
}

function showHistory() {
  const found = conversations.list();
  $("history-list").replaceChildren(...found.map(historyItem));
  $("delete-all").hidden = !found.length;
  if (!$("history").open) $("history").showModal();
}

function historyItem(kept) {
  const item = $("kept").content.cloneNode(true).firstElementChild;
  const [load, remove] = item.querySelectorAll("button");
  const title = kept.turns[0].prompt.trim().slice(0, 80);
  load.querySelector("span").textContent = title;
  load.querySelector("time").textContent = new Date(kept.updated).toLocaleString();
  if (kept.id === conversation.id) load.ariaCurrent = "true";
  load.onclick = () => {
    $("history").close();
    if (kept.id !== conversation.id) open(kept);
    save();
  };
  remove.ariaLabel = `${t("Delete")}: ${title}`;
  remove.textContent = t("Delete");
  remove.onclick = () => forget([kept]);
  return item;
}

function forget(kept) {
  for (const { id } of kept) {
    if (id === conversation.id) startNew();
    conversations.remove(id);
  }
  showHistory();
  $("close-history").focus();
  announce(t("Deleted."));
}

// The server

async function showModels() {
  const { models, unauthorized } = await listModels();
  if (unauthorized) askForKey();
  const chosen = $("model").value || conversation.model;
  $("model").replaceChildren(...models.map(({ id }) => new Option(id)));
  if (models.some(({ id }) => id === chosen)) $("model").value = chosen;
  $("models").hidden = models.length < 2;
  $("offline").hidden = models[0]?.owned_by !== "offline";
  showModel();
}

function showModel() {
  $("model-name").textContent = $("model").value;
}

function askForKey() {
  const message = keyMessage();
  $("key-message").textContent = t("{0} It is stored for this tab only.", message);
  setKey();
  $("key-form").hidden = false;
  $("key").focus();
  announce(message);
}

// Have screen readers read a message.
function announce(message) {
  $("status").textContent = message;
}

// Controls

$("prompt-form").onsubmit = (event) => {
  event.preventDefault();
  const prompt = $("prompt").value;
  if (prompt.trim() && !running) ask(prompt, { at: editing ? turns.indexOf(editing) : turns.length });
};

$("prompt").onkeydown = (event) => {
  // On a touch keyboard, Enter is the only way to start a new line. While an input method composes a character, Enter
  // only selects it.
  if (event.key !== "Enter" || event.shiftKey || event.isComposing || touch.matches) return;
  event.preventDefault();
  $("prompt-form").requestSubmit();
};

window.onkeydown = (event) => {
  if (event.key !== "Escape" || event.isComposing || $("history").open) return;
  if (running) running.abort();
  else if (editing) cancelEdit();
};

function cancelEdit() {
  $("prompt").value = "";
  setEditing(null);
  $("prompt").focus();
}

$("cancel-edit").onclick = cancelEdit;
$("stop").onclick = (event) => {
  // The second click of a double click on Send arrives here.
  if (event.detail < 2) running?.abort();
};

$("key-form").onsubmit = async (event) => {
  event.preventDefault();
  setKey($("key").value.trim());
  $("key").value = "";
  $("key-form").hidden = true;
  $("prompt").focus();
  await showModels();
  if (!hasKey() || !retryWithKey) return;
  retryWithKey = false;
  $("prompt-form").requestSubmit();
};

$("examples").onclick = ({ target }) => {
  if (target.localName === "button") ask(target.textContent);
};
$("new").onclick = startNew;
$("show-history").onclick = showHistory;
$("close-history").onclick = () => $("history").close();
$("delete-all").onclick = () => forget(conversations.list());
$("model").onchange = showModel;
addEventListener("pagehide", () => {
  if (running) save();
  leaving = true;
});
addEventListener("pageshow", () => (leaving = false));

translate(document);
$("fields").disabled = false;
let kept = null;
try {
  kept = conversations.load(sessionStorage.rillConversation);
} catch {
  // The browser stores nothing.
}
showModels();
checkResume();
if (kept) open(kept);
