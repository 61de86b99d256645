// The nodes of index.html, and those of rendered Markdown.

const RIGHT_TO_LEFT = /^\P{L}*[\u0590-\u08ff\ufb1d-\ufdff\ufe70-\ufefc]/u;

export const $ = (id) => document.getElementById(id);

// Have screen readers read a message.
export function announce(message) {
  $("status").textContent = message;
}

export function element(name, className, ...children) {
  const node = document.createElement(name);
  if (className) node.className = className;
  node.append(...children);
  return node;
}

// Set the direction of a block by its first letter. With dir=auto, the browser would search all of it for each change.
export function directed(node, text) {
  if (RIGHT_TO_LEFT.test(text)) node.dir = "rtl";
  else node.removeAttribute("dir");
  return node;
}
