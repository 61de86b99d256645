// The conversations that this browser keeps, each under its own name.

import { local } from "./storage.js";

const PREFIX = "rill:";

export function create() {
  return { id: PREFIX + crypto.getRandomValues(new Uint32Array(2)).join("-"), turns: [] };
}

// Return the conversations, the latest first.
export function list() {
  const ids = Object.keys(local).filter((name) => name.startsWith(PREFIX));
  return ids.map(load).filter(Boolean).sort((a, b) => b.updated - a.updated);
}

// Return a conversation, null if it is not kept or cannot be read.
export function load(id) {
  try {
    const found = JSON.parse(local[id] ?? "null");
    return found?.turns.length ? found : null;
  } catch {
    return null;
  }
}

// Keep a conversation; while there is no space for it, delete the oldest other one.
export function save(conversation) {
  const text = JSON.stringify({ ...conversation, updated: Date.now() });
  for (const oldest of [...list().reverse(), null]) {
    try {
      local[conversation.id] = text;
      return;
    } catch {
      if (oldest && oldest.id !== conversation.id) remove(oldest.id);
    }
  }
}

export function remove(id) {
  delete local[id];
}
