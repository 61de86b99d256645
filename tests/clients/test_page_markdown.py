"""The page's Markdown, in Chromium: what each construct becomes, what never becomes markup, and what a piece costs."""

import json
import random
from typing import Any

import pytest
from selenium import webdriver

# Render texts, each whole and in pieces of `size`; return the HTML of both, and the text without marks.
RENDER = """
const [texts, size, done] = arguments
Promise.all([import('/page/markdown.js'), import('/page/plain_text.js')]).then(([{ Markdown }, { textOf }]) => {
  const render = (pieces) => {
    const node = document.createElement('div')
    const markdown = new Markdown(node)
    for (const piece of pieces) markdown.write(piece)
    markdown.end()
    return node
  }
  done(texts.map((text) => {
    const pieces = []
    for (let at = 0; at < text.length; at += size) pieces.push(text.slice(at, at + size))
    const whole = render([text])
    return [whole.innerHTML, render(pieces).innerHTML, textOf(whole).trim()]
  }))
}, (error) => done(String(error)))
"""
# Render generated texts in pieces, in the document, and return everything in them that must not be there.
FUZZ = """
const [texts, sizes, done] = arguments
const ALLOWED = new Set(('a b blockquote br button code del div em h3 h4 h5 h6 hr li ol p pre span strong table ' +
  'tbody td th thead tr ul').split(' '))
const ATTRIBUTES = { a: ['href', 'rel', 'target'], pre: ['tabindex', 'dir'], button: ['class'], ol: ['start'] }
import('/page/markdown.js').then(({ Markdown }) => {
  const wrong = []
  const host = document.body.appendChild(document.createElement('div'))
  texts.forEach((text, index) => {
    const size = sizes[index]
    host.replaceChildren()
    const markdown = new Markdown(host)
    try {
      for (let at = 0; at < text.length; at += size) markdown.write(text.slice(at, at + size))
      markdown.end()
    } catch (error) {
      wrong.push([text, String(error.stack)])
    }
    for (const node of host.querySelectorAll('*')) {
      const allowed = [...(ATTRIBUTES[node.localName] ?? []), 'class', 'dir']
      if (node.className === 'table') allowed.push('tabindex')
      if (!ALLOWED.has(node.localName)) wrong.push([text, node.localName])
      for (const { name, value } of node.attributes) {
        if (!allowed.includes(name)) wrong.push([text, `${node.localName} ${name}`])
        if (name === 'href' && !/^(https?:\\/\\/|mailto:)/i.test(value)) wrong.push([text, value])
      }
      if (node.localName === 'a' && (node.rel !== 'noopener noreferrer' || node.querySelector('a'))) {
        wrong.push([text, 'a'])
      }
    }
    const letters = (each) => each.replace(/[^\\p{L}\\p{N}]/gu, '')
    const shown = host.textContent.replaceAll('Copy', '')
    if (index % 2 && letters(shown) !== letters(text)) wrong.push([text, shown])
  })
  host.remove()
  done([wrong.slice(0, 3), window.ran ?? null])
}, (error) => done(String(error)))
"""
# Write a text piece by piece, and return for each tenth of it the most nodes and characters made for one piece.
COST = """
const [texts, size, done] = arguments
import('/page/markdown.js').then(({ Markdown }) => {
  const made = { nodes: 0, characters: 0 }
  const counted = (name, length) => {
    const original = document[name]
    document[name] = (...given) => {
      made.nodes += 1
      made.characters += length(...given)
      return original.apply(document, given)
    }
    return () => delete document[name]
  }
  const restore = [counted('createElement', () => 0), counted('createTextNode', (text) => text.length)]
  const append = Element.prototype.append
  Element.prototype.append = function (...given) {
    for (const each of given) if (typeof each === 'string') made.characters += each.length
    return append.apply(this, given)
  }
  const found = texts.map((text) => {
    const markdown = new Markdown(document.createElement('div'))
    const most = []
    for (let at = 0; at < text.length; at += size) {
      made.nodes = made.characters = 0
      markdown.write(text.slice(at, at + size))
      const tenth = Math.floor((10 * at) / text.length)
      most[tenth] ??= [0, 0]
      most[tenth] = [Math.max(most[tenth][0], made.nodes), Math.max(most[tenth][1], made.characters)]
    }
    markdown.end()
    return most
  })
  restore.forEach((each) => each())
  Element.prototype.append = append
  done(found)
}, (error) => done(String(error)))
"""

LINK = 'rel="noopener noreferrer" target="_blank"'
P = "<p>"
LI = f"<li>{P}"
CONSTRUCTS: dict[str, tuple[str, str]] = {
    "paragraphs and lines": ("one\ntwo\n\nthree", f"{P}one\ntwo</p>{P}three</p>"),
    "emphasis": (
        "**bold** *em* _em_ ***both*** ~~gone~~ *a **b** c*",
        f"{P}<strong>bold</strong> <em>em</em> <em>em</em> <em><strong>both</strong></em> <del>gone</del> "
        "<em>a <strong>b</strong> c</em></p>",
    ),
    "no emphasis": ("2 * 3 * 4, snake_case_name, **open", f"{P}2 * 3 * 4, snake_case_name, **open</p>"),
    "emphasis before Chinese text": ("**中文。**后", f"{P}<strong>中文。</strong>后</p>"),
    "headings keep the order of levels": (
        "### One\n# Two #",
        '<h3 class="size-3">One</h3><h3 class="size-1">Two</h3>',
    ),
    "nested lists": (
        "- a\n- b\n  1. c\n  2. d\n- e",
        f"<ul>{LI}a</p></li>{LI}b</p><ol>{LI}c</p></li>{LI}d</p></li></ol></li>{LI}e</p></li></ul>",
    ),
    "a list that begins elsewhere": ("3. c\n4. d", f'<ol start="3">{LI}c</p></li>{LI}d</p></li></ol>'),
    "a list with too little indentation": (
        "1. a\n  - b\n2. c",
        f"<ol>{LI}a</p><ul>{LI}b</p></li></ul></li>{LI}c</p></li></ol>",
    ),
    "tasks": ("- [ ] todo\n- [x] done", f"<ul>{LI}☐ todo</p></li>{LI}☑ done</p></li></ul>"),
    "a year is not a list": ("in\n1986. A year", f"{P}in\n1986. A year</p>"),
    "text from right to left": (
        "- אבג\n\n1. שלום abc",
        '<ul dir="rtl"><li dir="rtl"><p dir="rtl">אבג</p></li></ul>'
        '<ol dir="rtl"><li dir="rtl"><p dir="rtl">שלום abc</p></li></ol>',
    ),
    "a quote": ("> a\nb\n\nc", f"<blockquote>{P}a\nb</p></blockquote>{P}c</p>"),
    "a rule": ("a\n\n---\nb", f"{P}a</p><hr>{P}b</p>"),
    "code": ("`` a`b `` <b>", f"{P}<code>a`b</code> &lt;b&gt;</p>"),
    "a table": (
        "| a | b |\n|---|--:|\n| `x|y` | 2 |\nend",
        '<div class="table" tabindex="0"><table><thead><tr><th>a</th><th class="right">b</th></tr>'
        '</thead><tbody><tr><td><code>x|y</code></td><td class="right">2</td></tr></tbody></table>'
        f"</div>{P}end</p>",
    ),
    "fenced code": (
        "```python title\nif x:\n\n  **y**\n```\nend",
        '<div class="code"><div class="bar"><span>python title</span>'
        '<button class="copy-code">Copy</button></div>'
        f'<pre tabindex="0" dir="ltr"><code>if x:\n\n  **y**</code></pre></div>{P}end</p>',
    ),
    "links": (
        "[a](https://x.test/a_(b) 'title') [c](mailto:a@x.test) https://x.test/b.",
        f'{P}<a href="https://x.test/a_(b)" {LINK}>a</a> <a href="mailto:a@x.test" {LINK}>c</a> '
        f'<a href="https://x.test/b" {LINK}>https://x.test/b</a>.</p>',
    ),
    "an image is a link": ("![a](https://x.test/a.png)", f'{P}<a href="https://x.test/a.png" {LINK}>a</a></p>'),
    "other addresses are text": (
        "[a](javascript:alert(1)) [b](/v1/models) [c](data:text/html,x)",
        f"{P}[a](javascript:alert(1)) [b](/v1/models) [c](data:text/html,x)</p>",
    ),
    "markup is text": (
        "<script>1</script> <img src=x onerror=ran=1> &amp; a<br>b",
        f"{P}&lt;script&gt;1&lt;/script&gt; &lt;img src=x onerror=ran=1&gt; &amp;amp; a<br>b</p>",
    ),
    "escapes": (r"\*a\* \[b\] c\d", f"{P}*a* [b] c\\d</p>"),
}
# Pieces of which generated texts are made.
PIECES = [
    *(
        "\n",
        "\n\n",
        "  ",
        "    ",
        "- ",
        "* ",
        "1. ",
        "2) ",
        "> ",
        "# ",
        "###### ",
        "---",
        "***",
        "|",
        "| a | b |\n",
        "|-|:-:|\n",
    ),
    *(
        "```",
        "````",
        "~~~js\n",
        "`",
        "``",
        "*",
        "**",
        "_",
        "__",
        "~~",
        "[",
        "]",
        "](",
        "![",
        "(",
        ")",
        "<",
        ">",
        "\\",
        "\r\n",
    ),
    *("[x](javascript:window.ran=1)", "[x](JaVaScRiPt:ran=1)", "](data:text/html,<script>ran=1</script>)", "\t", "\0"),
    *(
        "<script>window.ran=1</script>",
        "<img src=x onerror=window.ran=1>",
        "<svg onload=window.ran=1>",
        "&lt;b&gt;",
        "<br>",
    ),
    *(
        "<a href='javascript:window.ran=1'>",
        "![x](x onerror=window.ran=1)",
        "[x]( javascript:ran=1)",
        "<javascript:ran=1>",
    ),
    *(
        "https://x.test/",
        "http://[",
        "https://",
        "mailto:a",
        "<https://x.test>",
        "](https://x.test)",
        '"onmouseover="ran=1',
    ),
    *("a", "word ", "日本語。", "אבג", "🌊", "e\u0301", "\u202e", "\u2028", "-", "+ ", "[ ] ", "- [x] ", "==="),
]
PLAIN = [
    "\n",
    "\n\n",
    "- ",
    "> ",
    "*",
    "**",
    "_",
    "~~",
    "| ",
    "\n|-|-|\n",
    "\n\n```\n",
    "# ",
    "word",
    "日本 ",
    " b. ",
    "`",
]
TOKENS = 30_000
LONG = {
    "one line": "word " * TOKENS,
    "one word": "w" * 60_000,
    "lines": "some **words** of a line\n" * (TOKENS // 6),
    "paragraphs": "Some *words* of a paragraph.\n\n" * (TOKENS // 8),
    "a list": "- an item of `code`\n" * (TOKENS // 6),
    "nested quotes": "> - > an item\n" * (TOKENS // 6),
    "a table": "| a | b |\n|---|---|\n" + "| one | **two** |\n" * (TOKENS // 8),
    "code": "```python\n" + "print('a line')\n" * (TOKENS // 6),
    "one line of code": "```\n" + "x" * 60_000,
    "brackets": "[" * 30_000,
    "stars": "*a " * 4_000,
}


@pytest.fixture(scope="module")
def rendering(browser: webdriver.Chrome, servers: Any, shared_upstream: Any, share_rill: Any) -> Any:
    """Return a function that runs a script on a page of the server."""
    browser.get(share_rill().url)
    yield browser.execute_async_script
    browser.get("about:blank")


def test_each_construct_is_rendered_whole_and_piece_by_piece(rendering: Any) -> None:
    texts = [text for text, _ in CONSTRUCTS.values()]
    for size in (1, 3):
        for (name, (_, html)), (whole, pieces, _) in zip(
            CONSTRUCTS.items(), rendering(RENDER, texts, size), strict=True
        ):
            assert (name, whole) == (name, html)
            assert (name, pieces) == (name, html)


def test_the_text_of_an_answer_has_no_marks(rendering: Any) -> None:
    blocks = ["# Title", "A **b** [c](https://x.test)", "1. one\n   - two\n2. three", "| a | b |\n|--|--|\n| 1 | 2 |"]
    markdown = "\n\n".join([*blocks, "```js\nx\n\ny\n```"])
    ((_, _, text),) = rendering(RENDER, [markdown], 7)
    assert text == "Title\n\nA b c\n\n1. one\n  • two\n2. three\n\na\tb\n1\t2\n\nx\n\ny"


def test_no_text_becomes_markup_that_runs_or_loads(rendering: Any) -> None:
    draw = random.Random(20)
    texts = []
    for index in range(2000):
        pieces = PLAIN if index % 2 else PIECES
        texts.append("".join(draw.choices(pieces, k=draw.randint(1, 24))))
    sizes = [draw.choice((1, 2, 5, 1000)) for _ in texts]
    assert rendering(FUZZ, texts, sizes) == [[], None]


def test_a_piece_costs_the_same_at_the_end_of_a_long_answer(rendering: Any) -> None:
    found = rendering(COST, list(LONG.values()), 24)
    for name, tenths in zip(LONG, found, strict=True):
        # Nodes made, and characters put into the page, for the most expensive piece.
        assert max(nodes for nodes, _ in tenths) < 3000, (name, json.dumps(tenths))
        assert max(characters for _, characters in tenths) < 12_000, (name, json.dumps(tenths))
        assert tenths[9][0] <= 2 * max(nodes for nodes, _ in tenths[:3]) + 50, (name, json.dumps(tenths))
