// The web page: sends prompts, shows each answer as it arrives and its outcome, and keeps the conversation.

import { answer, curlCommand, isBuffered, keyMessage } from "./api.js";
import { copy } from "./clipboard.js";
import * as conversations from "./conversations.js";
import { $, announce } from "./dom.js";
import { connectHistory } from "./history.js";
import { loadModels, readOptions, writeOptions } from "./options.js";
import { textOf } from "./plain_text.js";
import { followEnd } from "./scrolling.js";
import { session } from "./storage.js";
import { t, translate } from "./strings.js";
import { Turn } from "./turn.js";

const touch = matchMedia("(hover: none) and (pointer: coarse)");

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
  return { messages: [...messages, { role: "user", content: prompt }], ...readOptions() };
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
  if (running) $("live").textContent = turns.at(-1).statistics();
}, 250);

async function checkBuffering() {
  if (await isBuffered()) $("buffering").textContent = t("A proxy buffers the answers: each arrives all at once.");
}

// Turns

function addTurn(prompt) {
  const turn = new Turn(prompt, isPlain);
  const at = turns.push(turn) - 1;
  const on = (name, action) => (turn.part(name).onclick = action);
  on("retry", () => !running && ask(prompt, { at: turns.indexOf(turn) }));
  on("edit", () => setEditing(turn));
  on("copy-text", ({ target }) => copyFrom(target, textOf(turn.part("answer")).trim()));
  on("copy-markdown", ({ target }) => copyFrom(target, turn.text));
  on("copy-curl", ({ target }) => copyFrom(target, turn.part("command").textContent));
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
  const label = (button.dataset.label ??= button.textContent);
  button.textContent = t("Copied.");
  announce(t("Copied."));
  setTimeout(() => (button.textContent = label), 2000);
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
  Object.assign(conversation, { turns: saved, options: readOptions() });
  if (turns.length) conversations.save(conversation);
  session.rillConversation = conversation.id;
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
      const message = t("Interrupted: the page was closed.");
      turn.add(saved.text);
      turn.end(saved.outcome ?? { kind: "truncated", message, statistics: "" });
    }
  }
  writeOptions(opened.options);
  markLast();
  scrollToEnd();
  session.rillConversation = conversation.id;
}

function startNew() {
  open(conversations.create());
  $("prompt").focus();
  announce(t("New conversation."));
}

// API keys

async function connect() {
  if (await loadModels()) askForKey();
}

function askForKey() {
  const message = keyMessage();
  $("key-message").textContent = t("{0} It is stored for this tab only.", message);
  delete session.rillApiKey;
  $("key-form").hidden = false;
  $("key").focus();
  announce(message);
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
  session.rillApiKey = $("key").value.trim();
  $("key").value = "";
  $("key-form").hidden = true;
  $("prompt").focus();
  await connect();
  if (!session.rillApiKey || !retryWithKey) return;
  retryWithKey = false;
  $("prompt-form").requestSubmit();
};

$("examples").onclick = ({ target }) => {
  if (target.localName === "button") ask(target.textContent);
};
$("new").onclick = startNew;
connectHistory({ isShown: (id) => id === conversation.id, open, startNew });
addEventListener("pagehide", () => {
  if (running) save();
  leaving = true;
});
addEventListener("pageshow", () => (leaving = false));

translate(document);
$("fields").disabled = false;
connect();
const kept = conversations.load(session.rillConversation);
if (kept) open(kept);
