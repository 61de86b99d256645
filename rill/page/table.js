// Tables of Markdown: rows of text in, DOM nodes out.

import { directed, element } from "./dom.js";
import { inline } from "./inline.js";

export function table(text, kind, aligned = []) {
  const body = element("tbody");
  const head = element("thead", "", row(text, kind, aligned));
  const node = directed(element("div", "table", element("table", "", head, body)), text);
  node.tabIndex = 0;
  return { node, body };
}

export function row(text, kind, aligned, open = false) {
  const cells = cellsOf(text).map((cell, index) => {
    // An empty header is no header: https://dequeuniversity.com/rules/axe/4.11/empty-table-header
    return directed(element(cell ? kind : "td", aligned[index], ...inline(cell, open)), cell);
  });
  return element("tr", "", ...cells);
}

// Split a row at each "|" that is neither escaped nor in code.
export function cellsOf(text) {
  const inside = text.trim().replace(/^\|/, "").replace(/(?<!\\)\|$/, "");
  const cells = [""];
  for (const [piece] of inside.matchAll(/\\.|`+[^`]*`+|[^|\\`]+|[|\\`]/gs)) {
    if (piece === "|") cells.push("");
    else cells[cells.length - 1] += piece === "\\|" ? "|" : piece;
  }
  return cells.map((cell) => cell.trim());
}
