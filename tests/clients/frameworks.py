"""Agent frameworks against Rill: prints a JSON line with what each case returned or raised.

Arguments: the URL of a Rill with the offline model, and of one with a scripted upstream. The case `wrong_key` of each
framework uses a key that Rill does not accept. At the second, which has a key for each case, `truncated` reads
a truncated answer, and `rate_limited` asks twice where once is allowed; both leave the retries as they are by default.
"""

import asyncio
import json
import os
import sys
from collections.abc import Callable
from typing import Any

URL, SCRIPTED = sys.argv[1:]
os.environ.update(OPENAI_BASE_URL=f"{URL}/v1", OPENAI_API_KEY="right", OPENAI_AGENTS_DISABLE_TRACING="1")

import instructor  # noqa: E402  They read the environment when they are imported.
import llm  # noqa: E402
import openai  # noqa: E402
from agents import Agent, OpenAIChatCompletionsModel, Runner, function_tool  # noqa: E402
from agents import OpenAIResponsesModel as AgentsResponsesModel  # noqa: E402
from langchain.agents import create_agent  # noqa: E402
from langchain_openai import ChatOpenAI  # noqa: E402
from llm.default_plugins.openai_models import Chat  # noqa: E402
from pydantic import BaseModel, Field  # noqa: E402
from pydantic_ai import Agent as PydanticAgent  # noqa: E402
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel  # noqa: E402
from pydantic_ai.providers.openai import OpenAIProvider  # noqa: E402

MODEL, QUESTION, TRUNCATE = "claude-sonnet-5-5", "What is the weather? rate=0", "Truncate this."


class Person(BaseModel):
    """A structured answer."""

    name: str
    age: int = Field(ge=0)


def weather(city: str) -> str:
    """Report the weather of a city."""
    return f"sunny in {city}, rate=0"


def langchain_agent() -> str:
    answer = create_agent(ChatOpenAI(model=MODEL), [weather]).invoke({"messages": [("user", QUESTION)]})
    return str(answer["messages"][-1].content)


def langchain_stream() -> Any:
    return "".join(str(chunk.content) for chunk in ChatOpenAI(model=MODEL).stream(QUESTION))


def langchain_structured() -> Any:
    return ChatOpenAI(model=MODEL).with_structured_output(Person).invoke(QUESTION)


def langchain_functions() -> Any:
    return ChatOpenAI(model=MODEL).with_structured_output(Person, method="function_calling").invoke(QUESTION)


def langchain_wrong_key() -> Any:
    return ChatOpenAI(model=MODEL, api_key="wrong").invoke(QUESTION)


def pydantic_ai_agent() -> str:
    return PydanticAgent(OpenAIChatModel(MODEL), tools=[weather]).run_sync(QUESTION).output


def pydantic_ai_responses() -> str:
    return PydanticAgent(OpenAIResponsesModel(MODEL), tools=[weather]).run_sync(QUESTION).output


def pydantic_ai_structured() -> Any:
    return PydanticAgent(OpenAIChatModel(MODEL), output_type=Person).run_sync(QUESTION).output


def pydantic_ai_wrong_key() -> Any:
    model = OpenAIChatModel(MODEL, provider=OpenAIProvider(base_url=f"{URL}/v1", api_key="wrong"))
    return PydanticAgent(model).run_sync(QUESTION)


def instructor_structured() -> Any:
    return ask_instructor("right")


def instructor_wrong_key() -> Any:
    return ask_instructor("wrong")


def ask_instructor(key: str) -> Any:
    client = instructor.from_openai(openai.OpenAI(api_key=key))
    messages = [{"role": "user", "content": QUESTION}]
    return client.chat.completions.create(model=MODEL, response_model=Person, messages=messages, max_retries=1)


def agents_responses() -> str:
    agent = Agent(name="agent", model=MODEL, tools=[function_tool(weather)])
    return str(Runner.run_sync(agent, QUESTION).final_output)


def agents_chat() -> str:
    return ask_agents("right")


def agents_wrong_key() -> str:
    return ask_agents("wrong")


def ask_agents(key: str) -> str:
    model = OpenAIChatCompletionsModel(MODEL, openai.AsyncOpenAI(api_key=key))
    return str(Runner.run_sync(Agent(name="agent", model=model, tools=[function_tool(weather)]), QUESTION).final_output)


def agents_structured() -> Any:
    return Runner.run_sync(Agent(name="agent", model=MODEL, output_type=Person), QUESTION).final_output


def llm_tools() -> str:
    return llm_model("right").chain(QUESTION, tools=[weather]).text()


def llm_schema() -> Any:
    return Person.model_validate_json(llm_model("right").prompt(QUESTION, schema=Person).text())


def llm_wrong_key() -> str:
    return llm_model("wrong").prompt(QUESTION).text()


def llm_model(key: str) -> llm.Model:
    options: dict[str, Any] = {"supports_tools": True, "supports_schema": True}
    return Chat("rill", key=key, model_name=MODEL, api_base=f"{URL}/v1", **options)


def ask_twice(shown: list[str], ask: Callable[[], str]) -> None:
    for _ in range(2):
        shown.append(ask())  # noqa: PERF401  An error would lose what a comprehension has collected.


def langchain_truncated(shown: list[str]) -> None:
    shown.extend(str(chunk.content) for chunk in scripted_langchain("key-of-langchain_truncated").stream(TRUNCATE))


def langchain_rate_limited(shown: list[str]) -> None:
    ask_twice(shown, lambda: str(scripted_langchain("key-of-langchain_rate_limited").invoke(QUESTION).content))


def scripted_langchain(key: str) -> ChatOpenAI:
    return ChatOpenAI(model=MODEL, base_url=f"{SCRIPTED}/v1", api_key=key)


def pydantic_ai_truncated(shown: list[str]) -> None:
    async def stream() -> None:
        async with scripted_pydantic_ai("key-of-pydantic_ai_truncated").run_stream(TRUNCATE) as answer:
            async for piece in answer.stream_text(delta=True, debounce_by=None):
                shown.append(piece)  # noqa: PERF401

    asyncio.run(stream())


def pydantic_ai_rate_limited(shown: list[str]) -> None:
    ask_twice(shown, lambda: scripted_pydantic_ai("key-of-pydantic_ai_rate_limited").run_sync(QUESTION).output)


def scripted_pydantic_ai(key: str) -> PydanticAgent:
    return PydanticAgent(OpenAIChatModel(MODEL, provider=OpenAIProvider(base_url=f"{SCRIPTED}/v1", api_key=key)))


def instructor_truncated(shown: list[str]) -> None:
    client = instructor.from_openai(openai.OpenAI(base_url=f"{SCRIPTED}/v1", api_key="key-of-instructor_truncated"))
    messages = [{"role": "user", "content": TRUNCATE}]
    for part in client.chat.completions.create_partial(model=MODEL, response_model=Person, messages=messages):
        shown[:] = [part.name or ""]


def instructor_rate_limited(shown: list[str]) -> None:
    client = openai.OpenAI(base_url=f"{SCRIPTED}/v1", api_key="key-of-instructor_rate_limited")
    for _ in range(2):
        messages = [{"role": "user", "content": QUESTION}]
        answer = instructor.from_openai(client).chat.completions.create(
            model=MODEL, response_model=Person, messages=messages
        )
        shown.append(answer.name)


def agents_truncated(shown: list[str]) -> None:
    async def stream() -> None:
        running = Runner.run_streamed(scripted_agent("key-of-agents_truncated"), TRUNCATE)
        async for event in running.stream_events():
            if event.type == "raw_response_event" and event.data.type == "response.output_text.delta":
                shown.append(event.data.delta)  # noqa: PERF401

    asyncio.run(stream())


def agents_rate_limited(shown: list[str]) -> None:
    agent = scripted_agent("key-of-agents_rate_limited")
    ask_twice(shown, lambda: str(Runner.run_sync(agent, QUESTION).final_output))


def scripted_agent(key: str) -> Agent:
    client = openai.AsyncOpenAI(base_url=f"{SCRIPTED}/v1", api_key=key)
    return Agent(name="agent", model=AgentsResponsesModel(MODEL, client))


def llm_truncated(shown: list[str]) -> None:
    shown.extend(scripted_llm("key-of-llm_truncated").prompt(TRUNCATE))


def llm_rate_limited(shown: list[str]) -> None:
    ask_twice(shown, lambda: scripted_llm("key-of-llm_rate_limited").prompt(QUESTION).text())


def scripted_llm(key: str) -> llm.Model:
    return Chat("rill", key=key, model_name=MODEL, api_base=f"{SCRIPTED}/v1")


def report(case: Callable[..., Any], *shown: list[str]) -> None:
    try:
        answer = case(*shown)
        line = {"answer": answer.model_dump() if isinstance(answer, BaseModel) else answer}
    except Exception as error:
        line = {"error": type(error).__name__, "message": str(error)}
    print(json.dumps({"case": case.__name__, "shown": "".join(map("".join, shown)), **line}), flush=True)


for each in (
    *(langchain_agent, langchain_stream, langchain_structured, langchain_functions, langchain_wrong_key),
    *(pydantic_ai_agent, pydantic_ai_responses, pydantic_ai_structured, pydantic_ai_wrong_key),
    *(instructor_structured, instructor_wrong_key),
    *(agents_responses, agents_chat, agents_structured, agents_wrong_key),
    *(llm_tools, llm_schema, llm_wrong_key),
):
    report(each)

for failing in (
    *(langchain_truncated, langchain_rate_limited, pydantic_ai_truncated, pydantic_ai_rate_limited),
    *(instructor_truncated, instructor_rate_limited, agents_truncated, agents_rate_limited),
    *(llm_truncated, llm_rate_limited),
):
    report(failing, [])
