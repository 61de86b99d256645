// One prompt and its answer on the page.

import { $, element } from "./dom.js";
import { Markdown } from "./markdown.js";
import { t, translate } from "./strings.js";

export class Turn {
  text = "";
  pending = "";
  characters = 0;
  startedAt = performance.now();

  constructor(prompt, isPlain) {
    this.prompt = prompt;
    this.node = $("turn").content.cloneNode(true).firstElementChild;
    translate(this.node);
    this.part("prompt").textContent = prompt;
    this.plain = this.part("plain");
    this.markdown = new Markdown(this.part("answer"));
    this.showPlain(isPlain);
  }

  part(name) {
    return this.node.querySelector(`.${name}`);
  }

  // Show the answer as it was received, or as Markdown.
  showPlain(isPlain) {
    this.isPlain = isPlain;
    this.plain.replaceChildren();
    if (isPlain) this.addPlain(this.text.slice(0, this.text.length - this.pending.length));
    this.plain.hidden = !isPlain;
    this.part("answer").hidden = isPlain;
    this.part("show-plain").ariaPressed = String(isPlain);
  }

  add(text) {
    this.lastAt = performance.now();
    this.firstAt ??= this.lastAt;
    // The first chunk starts the clock and is not counted.
    if (this.text) this.characters += [...text].length;
    if (!this.pending) requestAnimationFrame(() => this.draw());
    this.pending += text;
    this.text += text;
  }

  draw() {
    if (!this.pending) return;
    this.markdown.write(this.pending);
    if (this.isPlain) this.addPlain(this.pending);
    this.pending = "";
  }

  // Long texts are divided into blocks, because the browser lays out all of a block for each change.
  addPlain(text) {
    for (const line of text.split(/(?<=\n)/)) {
      const last = this.plain.lastChild?.firstChild;
      if (last && (last.length < 2000 || !last.data.endsWith("\n"))) last.appendData(line);
      else this.plain.append(element("div", "", line));
    }
  }

  statistics(usage) {
    const statistics = [];
    const seconds = (this.lastAt - this.firstAt) / 1000;
    if (this.firstAt) statistics.push(t("{0} s to first text", ((this.firstAt - this.startedAt) / 1000).toFixed(2)));
    // Over a shorter time the rate is meaningless.
    if (seconds > 0.1) statistics.push(t("{0} chars/s", Math.round(this.characters / seconds)));
    if (usage?.input_tokens) {
      statistics.push(t("{0} input tokens, {1} output tokens", usage.input_tokens, usage.output_tokens));
    }
    return statistics.join(" · ");
  }

  // Show the outcome and how long the answer took, measured now or when it was received.
  end({ kind, message, usage, statistics = this.statistics(usage) }) {
    this.draw();
    this.markdown.end();
    this.node.className = kind;
    this.part("outcome").textContent = message;
    this.part("statistics").textContent = statistics;
    this.part("answer").ariaBusy = this.plain.ariaBusy = null;
    for (const button of this.node.querySelectorAll(".of-text")) button.hidden = !this.text.trim();
    this.outcome = { kind, message, statistics };
  }
}
