"""FastAPI over the asynchronous SDK's text_stream; served by one uvicorn process."""

from anthropic import AsyncAnthropic
from fastapi import FastAPI
from fastapi.responses import StreamingResponse

app = FastAPI()
client = AsyncAnthropic()


@app.get("/stream")
async def stream(q: str) -> StreamingResponse:
    async def generate():
        async with client.messages.stream(
            model="bench", max_tokens=4096, messages=[{"role": "user", "content": q}]
        ) as answer:
            async for text in answer.text_stream:
                yield text

    return StreamingResponse(generate(), media_type="text/plain")
