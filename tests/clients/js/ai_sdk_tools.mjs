// A loop with one tool, streamed and whole, and an object, with each of the AI SDK's models.

import { createAnthropic } from '@ai-sdk/anthropic'
import { createOpenAI } from '@ai-sdk/openai'
import { Output, generateText, stepCountIs, jsonSchema, streamText, tool } from 'ai'

const name = 'claude-sonnet-5-5'
const properties = { city: { type: 'string' } }
const schema = jsonSchema({ type: 'object', properties, required: ['city'], additionalProperties: false })
const execute = async ({ city }) => `sunny in ${city}, rate=0 tokens=20`
const tools = { weather: tool({ description: 'Report the weather.', inputSchema: schema, execute }) }
const asked = { prompt: 'What is the weather? rate=0', maxRetries: 0, maxOutputTokens: 500 }

async function complete(model) {
  const loop = { model, tools, stopWhen: stepCountIs(3), ...asked }
  const whole = await generateText(loop)
  let text = ''
  for await (const part of streamText(loop).textStream) text += part
  const { output } = await generateText({ model, ...asked, output: Output.object({ schema }) })
  return { steps: whole.steps.length, same: text === whole.text && text.includes('sunny in city'), output }
}

export default {
  async all(url) {
    const connection = { baseURL: `${url}/v1`, apiKey: 'any' }
    const openai = createOpenAI(connection)
    const models = [openai(name), openai.chat(name), createAnthropic(connection)(name)]
    return Promise.all(models.map(complete))
  },
}
