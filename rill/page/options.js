// The options of a request: its model, system prompt, and most tokens.

import { listModels } from "./api.js";
import { $ } from "./dom.js";

// The model that was selected, perhaps before the server listed it.
let selected = "";

// Return the options that are set, as fields of a request.
export function readOptions() {
  return {
    model: $("model").value || undefined,
    system: $("system").value.trim() ? $("system").value : undefined,
    max_tokens: Number($("max-tokens").value) || undefined,
  };
}

// A new conversation keeps the model.
export function writeOptions({ model = selected, system = "", max_tokens = "" } = {}) {
  selected = model;
  $("system").value = system;
  $("max-tokens").value = max_tokens;
  showModel();
}

// Show the models of the server, and return whether it requires an API key.
export async function loadModels() {
  const { models, unauthorized } = await listModels();
  $("model").replaceChildren(...models.map(({ id }) => new Option(id)));
  $("models").hidden = models.length < 2;
  $("offline").hidden = models[0]?.owned_by !== "offline";
  showModel();
  return unauthorized;
}

function showModel() {
  $("model").value = selected;
  if (!$("model").value) $("model").selectedIndex = 0;
  $("model-name").textContent = $("model").value;
}

$("model").onchange = () => {
  selected = $("model").value;
  showModel();
};
