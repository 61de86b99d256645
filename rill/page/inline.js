// The inline part of Markdown: text in, DOM nodes out. Text becomes text nodes only, never markup.
// The rules are those of https://spec.commonmark.org/0.31.2/#inlines, without HTML, entities and references.

import { element } from "./dom.js";

const NEXT = /[\\`*_~[\]!<]|https?:\/\//gi;
const ESCAPE = /\\([!-/:-@[-`{-~\n])/y;
const BREAK = /<br\s*\/?>/iy;
const URL_TEXT = /https?:\/\/[^\s<>`*]+/iy;
const RUN = /\*+|_+|~+/y;
const TARGET =
  /\(\s*(?:<([^<>\n]*)>|((?:[^\s()\\]|\\.|\((?:[^\s()\\]|\\.)*\))*))(?:\s+(?:"[^"]*"|'[^']*'|\([^()]*\)))?\s*\)/y;
// ASCII only: emphasis often ends after a Chinese full stop, with text right behind it.
const PUNCTUATION = /[!-/:-@[-`{-~]/;
// The cost of a text can be quadratic in its length.
const LONGEST = 5000;

// Return the nodes of a text. If it is `open`, more will follow: emphasis that has no end yet is shown.
export function inline(text, open = false) {
  if (text.length > LONGEST) return [text];
  // The next character decides what the last one means.
  return toNodes(parse(open ? text.replace(/[*_~`\\[\]]+$/, "") : text, open));
}

// Return the longest beginning of a text that can be shown finally, because no construct spans its end.
export function finalLength(text) {
  const parts = parse(text, false);
  const opener = parts.findIndex(({ run }) => run?.opens);
  const safe = opener < 0 ? parts : parts.slice(0, opener);
  for (const { text: own, start } of safe.reverse()) {
    const space = own ? own.search(/\s\S*$/) : -1;
    if (space > 0) return start + space + 1;
  }
  return text.length;
}

// Return the parts of a text, each with its offset: a piece of text, a node, or an unmatched run of delimiters.
function parse(text, open) {
  let parts = [];
  const brackets = [];
  let at = 0;
  const match = (pattern) => {
    pattern.lastIndex = at;
    return pattern.exec(text);
  };
  const add = (part, length) => {
    parts.push({ ...part, start: at });
    at += length;
  };
  while (at < text.length) {
    NEXT.lastIndex = at;
    const next = NEXT.exec(text)?.index ?? text.length;
    if (next > at) add({ text: text.slice(at, next) }, next - at);
    if (at === text.length) break;
    const first = text[at];
    let found;
    if (first === "\\" && (found = match(ESCAPE))) add({ text: found[1] }, 2);
    else if (first === "`") addCode();
    else if (first === "<" && (found = match(BREAK))) add({ node: element("br") }, found[0].length);
    else if (/h/i.test(first)) addURL();
    else if ("*_~".includes(first)) addRun(match(RUN)[0]);
    else if (first === "[" || text.startsWith("![", at)) {
      const mark = first === "[" ? "[" : "![";
      brackets.push(parts.length);
      add({ text: mark }, mark.length);
    } else if (first === "]" && brackets.length) closeBracket();
    else add({ text: first }, 1);
  }
  return emphasize(parts, open);

  function addCode() {
    const [ticks] = match(/`+/y);
    const begin = at + ticks.length;
    const mark = new RegExp(`(?<!\`)${ticks}(?!\`)`, "g");
    mark.lastIndex = begin;
    const end = mark.exec(text)?.index;
    if (!end && (!open || begin === text.length)) return add({ text: ticks }, ticks.length);
    const code = text.slice(begin, end);
    const node = element("code", "", end ? code.replace(/^ (.*\S.*) $/s, "$1") : code);
    return add({ node }, (end ? end + ticks.length : text.length) - at);
  }

  function addURL() {
    let url = match(URL_TEXT)?.[0] ?? text[at];
    // Inside of brackets it is the text of a link.
    if (brackets.length) return add({ text: text[at] }, 1);
    url = url.replace(/[?!.,:;'"\]_~]+$/, "");
    while (url.endsWith(")") && url.split("(").length < url.split(")").length) url = url.slice(0, -1);
    return add(isSafe(url) ? { node: link(url, [url]) } : { text: url }, url.length);
  }

  function addRun(mark) {
    const [before, after] = [text[at - 1] ?? " ", text[at + mark.length] ?? " "];
    const [spaced, ends] = [/\s/.test(before), /\s/.test(after)];
    const left = !ends && (!PUNCTUATION.test(after) || spaced || PUNCTUATION.test(before));
    const right = !spaced && (!PUNCTUATION.test(before) || ends || PUNCTUATION.test(after));
    const within = mark[0] === "_" && left && right;
    const opens = left && (!within || PUNCTUATION.test(before));
    const closes = right && (!within || PUNCTUATION.test(after));
    add({ run: { mark: mark[0], count: mark.length, opens, closes } }, mark.length);
  }

  function closeBracket() {
    const begin = brackets.pop();
    at += 1;
    const found = match(TARGET);
    const url = found?.[1] ?? found?.[2]?.replace(/\\(.)/g, "$1") ?? "";
    // While its address arrives, a link shows its text only.
    const arriving = open && !found && /^\([^\s()]*$/.test(text.slice(at));
    at -= 1;
    if (!arriving && !isSafe(url)) return add({ text: "]" }, 1);
    const [{ text: mark, start }, ...inside] = parts.splice(begin);
    const content = toNodes(emphasize(inside, false));
    if (mark === "![" && !content.length) content.push(url);
    const length = 1 + (found ? found[0].length : text.length - at - 1);
    const node = arriving || (mark === "![" && brackets.length) ? element("span", "", ...content) : link(url, content);
    parts.push({ node, start });
    // A link contains no other link.
    if (mark === "[") brackets.length = 0;
    at += length;
    return undefined;
  }
}

// Replace matched runs of delimiters by elements: https://spec.commonmark.org/0.31.2/#phase-2-inline-structure
function emphasize(parts, open) {
  const done = [];
  for (const part of parts) {
    if (part.run?.closes) closeRun(part.run, done);
    if (!part.run || part.run.count) done.push(part);
  }
  // The last run may still get its end.
  const index = open ? done.findLastIndex(({ run }) => run?.opens) : -1;
  const { run, start } = done[index] ?? {};
  if (run && run.count < 4 && (run.mark !== "~" || run.count === 2) && index < done.length - 1) {
    let node = element(nameOf(run.mark, Math.min(2, run.count)), "", ...toNodes(done.splice(index + 1)));
    if (run.count === 3) node = element("em", "", node);
    done.splice(index, 1, { node, start });
  }
  return done;
}

function closeRun(run, done) {
  while (run.count) {
    const index = done.findLastIndex(({ run: other }) => other && matches(other, run));
    if (index < 0) return;
    const { run: opener, start } = done[index];
    const count = Math.min(2, opener.count, run.count);
    const inside = toNodes(done.splice(index + 1));
    opener.count -= count;
    run.count -= count;
    if (!opener.count) done.pop();
    done.push({ node: element(nameOf(run.mark, count), "", ...inside), start });
  }
}

function matches(opener, closer) {
  const fits = opener.mark !== "~" || (opener.count === 2 && closer.count === 2);
  return opener.opens && opener.mark === closer.mark && fits;
}

function nameOf(mark, count) {
  return mark === "~" ? "del" : count === 2 ? "strong" : "em";
}

function toNodes(parts) {
  return parts.map(({ node, text, run }) => node ?? text ?? run.mark.repeat(run.count));
}

function isSafe(url) {
  return /^(?:https?:\/\/|mailto:)/i.test(url) && URL.canParse(url);
}

function link(url, content) {
  const node = element("a", "", ...content);
  node.href = url;
  node.rel = "noopener noreferrer";
  node.target = "_blank";
  return node;
}
