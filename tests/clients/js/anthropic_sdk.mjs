import Anthropic from '@anthropic-ai/sdk'
import { asked, report } from './report.mjs'

const connect = (baseURL) => new Anthropic({ baseURL, apiKey: 'sk-of-the-client', maxRetries: 0 })

export default {
  async stream(url) {
    const stream = connect(url).messages.stream(asked).on('text', (text) => report({ text }))
    const { stop_reason, usage } = await stream.finalMessage()
    return { stop_reason, output_tokens: usage.output_tokens, request_id: stream.request_id }
  },
  async events(url) {
    for await (const event of await connect(url).messages.create({ ...asked, stream: true })) {
      if (event.delta?.text) report({ text: event.delta.text })
    }
  },
  async whole(url) {
    return await connect(url).messages.create(asked)
  },
  async tool(url) {
    const message = await connect(url).messages.stream(asked).finalMessage()
    return message.content.find((block) => block.type === 'tool_use')
  },
}
