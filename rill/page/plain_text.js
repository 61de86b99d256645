// The text of rendered Markdown, as a reader copies it.

const BLOCKS = /^(?:p|h\d|pre|table|ul|ol|blockquote)$/;

// Return the text of rendered Markdown without its marks.
export function textOf(node) {
  if (node.nodeType === Node.TEXT_NODE) return node.data;
  const name = node.localName;
  if (name === "br") return "\n";
  if (node.className === "bar") return "";
  const texts = [...node.childNodes].map(textOf);
  if (name === "tr") return `${texts.join("\t")}\n`;
  const text = texts.join("");
  if (name === "li") return `${markOf(node)} ${text.trim().replace(/\n+/g, "\n  ")}\n`;
  return BLOCKS.test(name) ? `${text.trimEnd()}\n\n` : text;
}

function markOf(item) {
  const { parentNode: list } = item;
  return list.localName === "ol" ? `${list.start + [...list.children].indexOf(item)}.` : "•";
}
