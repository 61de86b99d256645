// Markdown that arrives in pieces: `write` appends text to a node as DOM nodes, at a constant cost for each piece.
// Blocks before the last one are final. The last line is shown as what it is so far, and undone by the next piece.
// The common subset of https://github.github.com/gfm/: without HTML, images (shown as links), references, setext
// headings and indented code. Line breaks are kept.

import { directed, element } from "./dom.js";
import { finalLength, inline } from "./inline.js";
import { t } from "./strings.js";
import { cellsOf, row, table } from "./table.js";

// Characters of a paragraph or line that may still change: this bounds the cost of a piece.
const MOST_OPEN = 2000;
const MOST_NESTED = 12;

const FENCE = /^( *)(`{3,}|~{3,}) *([^`]*)$/;
const FENCE_END = /^ *(`{3,}|~{3,})\s*$/;
const HEADING = /^ *(#{1,6})(?:\s(.*))?$/;
const RULE = /^ *([-*_])(?: *\1){2,} *$/;
const QUOTE = /^ {0,3}> ?/;
const ITEM = /^( *)([-*+]|\d{1,9}[.)])( +|$)(?=(.*))/;
const DELIMITERS = /^ *\|?(?: *:?-+:? *\|)* *:?-+:? *\|? *$/;
// The beginning of a line that does not show yet what the line is.
const UNDECIDED = /^(?:[-*_+#`~|:>\s]*|[>\s]*\d{1,9}[.)]?)$/;

export class Markdown {
  #root;
  #stack = []; // the open quotes and list items
  #leaf = null; // the open paragraph, table or code block
  #level = 2; // of the last heading: the page's own headings are h1 and h2
  #rest = ""; // the line that has no end yet
  #within = false; // whether the beginning of that line is final already
  #undo = null;

  constructor(root) {
    this.#root = root;
  }

  // Append a piece of text.
  write(text) {
    this.#undoTentative();
    const lines = (this.#rest + text).split("\n");
    this.#rest = lines.pop();
    for (const line of lines) {
      this.#commit(line);
      this.#within = false;
    }
    if (this.#isFinal(this.#rest)) {
      this.#commit(this.#rest);
      this.#within = true;
      this.#rest = "";
    } else if (!UNDECIDED.test(this.#rest.trim())) {
      return this.#showTentatively();
    }
    return this.#show(true);
  }

  // Show the last line as it is, and what has no end as text.
  end() {
    this.#undoTentative();
    this.#commit(this.#rest);
    this.#rest = "";
    this.#close(0);
  }

  // Return whether more text does not change how the beginning of a line is shown.
  #isFinal(line) {
    if (this.#within || line.length > MOST_OPEN) return line !== "";
    const code = this.#leaf?.type === "code" ? this.#enter(line) : null;
    return code?.depth === this.#stack.length && !/^\s*[`~]*\s*$/.test(code.rest);
  }

  #showTentatively() {
    const before = { stack: [...this.#stack], leaf: this.#leaf && { ...this.#leaf }, level: this.#level };
    this.#undo = [];
    this.#line(this.#rest);
    this.#show(true);
    this.#undo.push(() => {
      [this.#stack, this.#leaf, this.#level] = [before.stack, before.leaf, before.level];
    });
  }

  #undoTentative() {
    for (const undo of this.#undo?.reverse() ?? []) undo();
    this.#undo = null;
  }

  #append(node, parent = this.#stack.at(-1)?.node ?? this.#root) {
    parent.append(node);
    this.#undo?.push(() => node.remove());
    return node;
  }

  #commit(line) {
    if (!this.#within) this.#line(line);
    else if (this.#leaf?.type === "code") this.#leaf.node.appendData(line);
    else this.#addText(line, "");
  }

  // Return what a line has after the marks of the open quotes and items, and how many of these it continues.
  #enter(line) {
    let rest = line.replace(/\r$/, "").replace(/^\s+/, (space) => space.replaceAll("\t", "    "));
    let depth = 0;
    for (; depth < this.#stack.length; depth += 1) {
      const inside = this.#stack[depth].enter(rest);
      if (inside === null) break;
      rest = inside;
    }
    return { rest, depth };
  }

  #line(line) {
    let { rest, depth } = this.#enter(line);
    const leaf = this.#leaf;
    const continues = depth === this.#stack.length;
    if (leaf?.type === "code" && continues) return this.#addCode(rest);
    if (!rest.trim()) return this.#close(depth);
    const begins = this.#begins(rest, depth);
    if (leaf?.type === "paragraph" && !begins) {
      if (continues && leaf.isRow && DELIMITERS.test(rest.slice(0, MOST_OPEN))) return this.#openTable(rest);
      return this.#addText(rest.trimStart(), "\n");
    }
    if (leaf?.type === "table" && continues && !begins && rest.includes("|")) return this.#addRow(rest);
    let list = this.#stack[depth]?.list;
    this.#close(depth);
    for (let inner; this.#stack.length < MOST_NESTED; rest = inner) {
      inner = this.#openQuote(rest) ?? this.#openItem(rest, list);
      if (inner === null) break;
      list = null;
    }
    return rest.trim() ? this.#openLeaf(rest) : undefined;
  }

  // Return whether a line begins a block, even after a paragraph.
  #begins(line, depth) {
    const rest = line.slice(0, MOST_OPEN);
    const [, , mark, , text] = itemOf(rest);
    const inList = this.#stack[depth]?.list;
    if (mark && (inList || (text.trim() && (!/\d/.test(mark) || parseInt(mark, 10) === 1)))) return true;
    return RULE.test(rest) || QUOTE.test(rest) || FENCE.test(rest) || HEADING.test(rest);
  }

  #openQuote(rest) {
    if (!QUOTE.test(rest)) return null;
    const node = this.#append(element("blockquote"));
    this.#stack.push({ node, enter: (line) => (QUOTE.test(line) ? line.replace(QUOTE, "") : null) });
    return rest.replace(QUOTE, "");
  }

  #openItem(rest, sibling) {
    const [whole, space, mark, gap] = itemOf(rest);
    if (whole === undefined) return null;
    const name = /\d/.test(mark) ? "ol" : "ul";
    let list = sibling?.localName === name ? sibling : null;
    if (!list) {
      list = this.#append(directed(element(name), rest));
      if (name === "ol" && parseInt(mark, 10) !== 1) list.start = parseInt(mark, 10);
    }
    const node = this.#append(directed(element("li"), rest), list);
    const width = space.length + mark.length + (gap.length > 4 ? 1 : gap.length || 1);
    // Two spaces are enough: models often indent by fewer than the standard requires.
    const enter = (line) => {
      const indent = line.search(/\S|$/);
      if (indent === line.length) return "";
      return indent < space.length + 2 ? null : line.slice(Math.min(indent, width));
    };
    this.#stack.push({ node, list, enter });
    const text = rest.slice(Math.min(width, rest.length));
    return text.replace(/^\[( |x)\] /i, (_, done) => (done === " " ? "☐ " : "☑ "));
  }

  #openLeaf(rest) {
    const beginning = rest.slice(0, MOST_OPEN);
    const fence = FENCE.exec(beginning);
    const heading = HEADING.exec(rest);
    if (fence) this.#openCode(...fence.slice(1));
    else if (heading) this.#addHeading(heading[1].length, (heading[2] ?? "").trim().replace(/(?:^| )#+$/, ""));
    else if (RULE.test(beginning)) this.#append(element("hr"));
    else this.#openParagraph(rest.trimStart());
  }

  #addHeading(marks, text) {
    // A level that is skipped would confuse screen readers.
    this.#level = Math.min(marks + 2, this.#level + 1, 6);
    const node = element(`h${this.#level}`, `size-${marks}`, ...inline(text, this.#undo !== null));
    this.#append(directed(node, text));
  }

  #openParagraph(text) {
    const node = this.#append(element("p"));
    this.#leaf = { type: "paragraph", node, text: "", kept: null, isRow: text.includes("|") };
    this.#addText(text, "");
  }

  // Add text to the open paragraph, and make its beginning final once it is long.
  #addText(text, separator) {
    if (this.#leaf?.type !== "paragraph") return text.trim() ? this.#openParagraph(text) : undefined;
    const leaf = this.#leaf;
    leaf.isRow &&= !leaf.text || separator === "";
    leaf.text += separator + text;
    while (!this.#undo && leaf.text.length > MOST_OPEN) {
      const length = finalLength(leaf.text.slice(0, MOST_OPEN));
      this.#replaceEnd(leaf, inline(leaf.text.slice(0, length)));
      leaf.kept = leaf.node.lastChild;
      leaf.text = leaf.text.slice(length);
    }
    return undefined;
  }

  #show(open) {
    const leaf = this.#leaf;
    if (leaf?.type !== "paragraph") return;
    // What looks like the header of a table is shown as one.
    const isHeader = open && leaf.text[0] === "|" && leaf.isRow && !leaf.kept;
    if (!leaf.kept) directed(leaf.node, leaf.text);
    this.#replaceEnd(leaf, isHeader ? [table(leaf.text, "th").node] : inline(leaf.text, open));
  }

  #replaceEnd({ node, kept }, nodes) {
    while (node.lastChild !== kept) node.lastChild.remove();
    node.append(...nodes);
  }

  #openTable(delimiters) {
    const { node: paragraph, text } = this.#leaf;
    const aligned = cellsOf(delimiters).map((cell) => (/:$/.test(cell) ? (cell[0] === ":" ? "center" : "right") : ""));
    const { node, body } = table(text, "th", aligned);
    paragraph.replaceWith(node);
    this.#undo?.push(() => node.replaceWith(paragraph));
    this.#leaf = { type: "table", node: body, aligned };
  }

  #addRow(rest) {
    this.#append(row(rest, "td", this.#leaf.aligned, this.#undo !== null), this.#leaf.node);
  }

  #openCode(space, fence, info) {
    const node = document.createTextNode("");
    const copy = element("button", "copy-code", t("Copy"));
    const code = element("pre", "", element("code", "", node));
    code.tabIndex = 0;
    code.dir = "ltr";
    this.#append(element("div", "code", element("div", "bar", element("span", "", info.trim()), copy), code));
    this.#leaf = { type: "code", node, fence, indent: space.length, isEmpty: true };
  }

  #addCode(rest) {
    const leaf = this.#leaf;
    const [, end] = FENCE_END.exec(rest) ?? [];
    if (end?.startsWith(leaf.fence)) {
      this.#leaf = null;
      return;
    }
    leaf.node.appendData((leaf.isEmpty ? "" : "\n") + rest.slice(Math.min(leaf.indent, rest.search(/\S|$/))));
    leaf.isEmpty = false;
  }

  // Close the open leaf, and the quotes and items from this depth on.
  #close(depth) {
    this.#show(false);
    this.#leaf = null;
    this.#stack.length = Math.min(depth, this.#stack.length);
  }
}

function itemOf(line) {
  return RULE.test(line) ? [] : (ITEM.exec(line) ?? []);
}
