"""Messages with parts: files become content blocks, and a part that cannot be sent is rejected by its path."""

import json
from base64 import b64encode
from typing import Any

import pytest

from rill.dialects.text import read_json
from rill.problems import Problem
from rill.settings import Settings

SETTINGS = Settings(ANTHROPIC_API_KEY="sk-test")  # type: ignore[call-arg]
PNG = b64encode(b"a picture").decode()
LINK = "https://example.com/a.png"


def read(*parts: object, role: str = "user", **fields: Any) -> Any:
    """Return the content of a message with these parts."""
    messages = [{"role": role, "parts": list(parts), **fields}]
    if role != "user":
        messages.append({"role": "user", "parts": [{"type": "text", "text": "and?"}]})
    prompt = read_json(json.dumps({"messages": messages}).encode(), SETTINGS)
    return prompt.options["system"] if role == "system" else prompt.messages[0]["content"]


def rejection(*parts: object, role: str = "user", **fields: Any) -> str:
    with pytest.raises(Problem) as rejected:
        read(*parts, role=role, **fields)
    assert rejected.value.name == "bad_request"
    return rejected.value.detail


def file(url: object = LINK, media_type: object = "image/png", **more: object) -> dict[str, Any]:
    return {"type": "file", "url": url, "mediaType": media_type, **more}


def image(**source: str) -> list[dict[str, Any]]:
    return [{"type": "image", "source": source}]


def document(title: str | None = None, **source: str) -> list[dict[str, Any]]:
    return [{"type": "document", "source": source, **({"title": title} if title else {})}]


FILES: dict[str, tuple[dict[str, Any], list[dict[str, Any]]]] = {
    "a link": (file(), image(type="url", url=LINK)),
    "a linked PDF": (file(LINK, "application/pdf"), document(type="url", url=LINK)),
    "base64": (file(f"data:image/png;base64,{PNG}"), image(type="base64", media_type="image/png", data=PNG)),
    "a type of the URL": (
        file(f"data:image/png;base64,{PNG}", ""),
        image(type="base64", media_type="image/png", data=PNG),
    ),
    "a wildcard": (
        file(f"data:image/gif;base64,{PNG}", "image/*"),
        image(type="base64", media_type="image/gif", data=PNG),
    ),
    "bare base64": (
        {"type": "file", "data": PNG, "mediaType": "image/png"},
        image(type="base64", media_type="image/png", data=PNG),
    ),
    "a percent-encoded image": (
        file("data:image/svg+xml,%3Csvg/%3E", "image/svg+xml"),
        image(type="base64", media_type="image/svg+xml", data=b64encode(b"<svg/>").decode()),
    ),
    "text": (
        file("data:text/plain,a%20rill", "text/plain", filename="rill.txt"),
        document("rill.txt", type="text", media_type="text/plain", data="a rill"),
    ),
    "text in base64": (
        file("data:text/csv;charset=utf-8;base64,YSxi", "text/csv"),
        document(type="text", media_type="text/plain", data="a,b"),
    ),
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_is_a_block_beside_the_text(name: str) -> None:
    part, blocks = FILES[name]
    text = {"type": "text", "text": "What is this?"}
    assert read(text, part) == [text, *blocks]
    assert read({"type": "text", "text": ""}, part) == blocks


REJECTED: dict[str, tuple[dict[str, Any], str]] = {
    "a linked text": (file(LINK, "text/plain"), ".url: a text file should be a data: URL"),
    "a video": (file(LINK, "video/mp4"), ".mediaType: should be image/*, application/pdf or text/*, not video/mp4."),
    "no type": (file(LINK, ""), ".mediaType: should be image/*, application/pdf or text/*."),
    "a type of no kind": (file(LINK, "image"), ".mediaType: should be"),
    "another scheme": (file("ftp://example.com/a.png"), ".url: should be an http(s) URL or a data: URL."),
    "broken base64": (file("data:image/png;base64,???"), ".url: the data should be base64"),
    "text that is not UTF-8": (file("data:text/plain,%ff", "text/plain"), ".url: the text should be UTF-8."),
    "no URL": (file(None), ".url: should be an http(s) URL or a data: URL."),
    "an empty URL": (file(""), ".url: should be an http(s) URL or a data: URL."),
    "a type that is a number": (file(LINK, 7), ": mediaType and filename should be strings."),
    "a name that is a number": (file(filename=7), ": mediaType and filename should be strings."),
    "a text that is a number": ({"type": "text", "text": 7}, ".text: should be a string."),
    "a tool": (
        {"type": "tool-weather"},
        ".type: tools are not supported here; use POST /api/chat, with AI SDK 5 or newer.",
    ),
    "an old tool": (
        {"type": "tool-invocation"},
        ".type: tools are not supported here; use POST /api/chat, with AI SDK 5 or newer.",
    ),
    "an unknown part": ({"type": "video"}, ".type: should be text or file."),
    "a part without a type": ({}, ".type: should be text or file."),
}


@pytest.mark.parametrize("name", REJECTED)
def test_a_part_that_cannot_be_sent_is_rejected_by_its_name(name: str) -> None:
    part, message = REJECTED[name]
    assert rejection({"type": "text", "text": "hi"}, part).startswith(f"messages.0.parts.1{message}")


def test_parts_that_only_a_page_shows_are_omitted() -> None:
    shown = [{"type": kind} for kind in ("step-start", "reasoning", "reasoning-file", "source-url", "source-document")]
    assert (
        read(*shown, {"type": "text", "text": "An answer."}, {"type": "data-weather"}, role="assistant") == "An answer."
    )


def test_a_file_of_the_assistant_is_rejected() -> None:
    assert rejection(file(), role="assistant").endswith("a file should be in a message of the role user.")


def test_attachments_of_older_versions_are_rejected() -> None:
    message = rejection({"type": "text", "text": "hi"}, experimental_attachments=[{"url": LINK}])
    assert message == "messages.0.experimental_attachments: send files as parts of the type file."


def test_content_beside_parts_must_be_the_same() -> None:
    text = {"type": "text", "text": "hi"}
    assert read(text, content="hi") == "hi"
    assert read(text, file(), content="hi") == [text, *image(type="url", url=LINK)]
    assert rejection(text, content="ho") == "messages.0: should have content or parts, not two different ones."


def test_a_system_message_is_text() -> None:
    blocks = [{"type": "text", "text": "Be "}, {"type": "text", "text": "brief."}]
    assert read(*blocks, role="system") == "Be brief."
    messages = [{"role": "system", "content": blocks}, {"role": "user", "content": "hi"}]
    assert read_json(json.dumps({"messages": messages}).encode(), SETTINGS).options["system"] == "Be brief."
    messages[0]["content"] = image(type="url", url=LINK)
    with pytest.raises(Problem, match="a system message should be text"):
        read_json(json.dumps({"messages": messages}).encode(), SETTINGS)


def test_an_answer_that_was_stopped_before_its_first_text_is_omitted() -> None:
    messages = [
        {"role": "user", "parts": [{"type": "text", "text": "hi"}]},
        {"role": "assistant", "parts": [{"type": "step-start"}]},
        {"role": "user", "parts": [{"type": "text", "text": "ho"}]},
    ]
    prompt = read_json(json.dumps({"messages": messages}).encode(), SETTINGS)
    assert [message["content"] for message in prompt.messages] == ["hi", "ho"]
