import OpenAI from 'openai'
import { asked, report } from './report.mjs'

const connect = (url) => new OpenAI({ baseURL: `${url}/v1`, apiKey: 'sk-of-the-client', maxRetries: 0 })
const streamed = { ...asked, stream: true, stream_options: { include_usage: true } }

export default {
  async stream(url) {
    let end = {}
    for await (const chunk of await connect(url).chat.completions.create(streamed)) {
      const [choice] = chunk.choices
      if (choice?.delta.content) report({ text: choice.delta.content })
      end = { ...end, ...(choice?.finish_reason && { finish_reason: choice.finish_reason }), usage: chunk.usage }
    }
    return end
  },
  async whole(url) {
    const completion = await connect(url).chat.completions.create(asked)
    return { text: completion.choices[0].message.content, finish_reason: completion.choices[0].finish_reason }
  },
}
