import { createAnthropic } from '@ai-sdk/anthropic'
import { createOpenAI } from '@ai-sdk/openai'
import { generateText, streamText } from 'ai'
import { question, report } from './report.mjs'

const name = 'claude-sonnet-5-5'
const asked = { prompt: question, maxOutputTokens: 99, maxRetries: 0 }
const connection = (url) => ({ baseURL: `${url}/v1`, apiKey: 'sk-of-the-client' })
const anthropic = (url) => createAnthropic(connection(url))(name)
const openai = (url) => createOpenAI(connection(url)).chat(name)

async function stream(model) {
  const result = streamText({ model, ...asked, onError() {} })
  for await (const part of result.fullStream) {
    if (part.type === 'text-delta') report({ text: part.text })
    if (part.type === 'error') throw part.error instanceof Error ? part.error : Object.assign(new Error(), part.error)
  }
  const { outputTokens } = await result.usage
  return { finishReason: await result.finishReason, outputTokens }
}

async function whole(model) {
  const { text, finishReason } = await generateText({ model, ...asked })
  return { text, finishReason }
}

export default {
  'anthropic-stream': (url) => stream(anthropic(url)),
  'openai-stream': (url) => stream(openai(url)),
  'anthropic-whole': (url) => whole(anthropic(url)),
  'openai-whole': (url) => whole(openai(url)),
}
