"""Agent frameworks against Rill's offline model: prints a JSON line with what each case returned or raised.

Arguments: the URL of Rill. The case `wrong_key` of each framework uses a key that Rill does not accept.
"""

import json
import os
import sys
from collections.abc import Callable
from typing import Any

URL = sys.argv[1]
os.environ.update(OPENAI_BASE_URL=f"{URL}/v1", OPENAI_API_KEY="right", OPENAI_AGENTS_DISABLE_TRACING="1")

import instructor  # noqa: E402  They read the environment when they are imported.
import llm  # noqa: E402
import openai  # noqa: E402
from agents import Agent, OpenAIChatCompletionsModel, Runner, function_tool  # noqa: E402
from langchain.agents import create_agent  # noqa: E402
from langchain_openai import ChatOpenAI  # noqa: E402
from llm.default_plugins.openai_models import Chat  # noqa: E402
from pydantic import BaseModel, Field  # noqa: E402
from pydantic_ai import Agent as PydanticAgent  # noqa: E402
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel  # noqa: E402
from pydantic_ai.providers.openai import OpenAIProvider  # noqa: E402

MODEL, QUESTION = "claude-sonnet-5-5", "What is the weather? rate=0"


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


def report(case: Callable[[], Any]) -> None:
    try:
        answer = case()
        line = {"answer": answer.model_dump() if isinstance(answer, BaseModel) else answer}
    except Exception as error:
        line = {"error": type(error).__name__, "message": str(error)}
    print(json.dumps({"case": case.__name__, **line}), flush=True)


for each in (
    *(langchain_agent, langchain_stream, langchain_structured, langchain_functions, langchain_wrong_key),
    *(pydantic_ai_agent, pydantic_ai_responses, pydantic_ai_structured, pydantic_ai_wrong_key),
    *(instructor_structured, instructor_wrong_key),
    *(agents_responses, agents_chat, agents_structured, agents_wrong_key),
    *(llm_tools, llm_schema, llm_wrong_key),
):
    report(each)
