// The conversations that this browser keeps, each under its own name in localStorage. Without it, nothing is kept.

const PREFIX = "rill:";
let storage = {};
try {
  storage = localStorage;
} catch {
  // The conversation lasts as long as the page.
}

export function create() {
  return { id: crypto.getRandomValues(new Uint32Array(2)).join("-"), turns: [] };
}

// Return the conversations, the latest first.
export function list() {
  const ids = Object.keys(storage).flatMap((name) => (name.startsWith(PREFIX) ? [name.slice(PREFIX.length)] : []));
  return ids.map(load).filter(Boolean).sort((a, b) => b.updated - a.updated);
}

// Return a conversation, null if it is not kept or cannot be read.
export function load(id) {
  try {
    const found = JSON.parse(storage[PREFIX + id] ?? "null");
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
      storage[PREFIX + conversation.id] = text;
      return;
    } catch {
      if (oldest && oldest.id !== conversation.id) remove(oldest.id);
    }
  }
}

export function remove(id) {
  delete storage[PREFIX + id];
}
