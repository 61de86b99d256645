// The parts of the AI SDK behind useCompletion and useChat, with their state in plain fields.

import { AbstractChat, TextStreamChatTransport, callCompletionApi } from 'ai'
import { question, report } from './report.mjs'

class Chat extends AbstractChat {
  constructor(api) {
    const state = {
      status: 'ready',
      error: undefined,
      messages: [],
      pushMessage: (message) => state.messages.push(message),
      popMessage: () => state.messages.pop(),
      replaceMessage(index, message) {
        state.messages[index] = message
        const text = message.parts.findLast((part) => part.type === 'text')?.text
        if (message.role === 'assistant' && text) report({ shown: text })
      },
      snapshot: (thing) => structuredClone(thing),
    }
    super({ transport: new TextStreamChatTransport({ api }), state })
  }
}

export default {
  async completion(url) {
    let failure
    const text = await callCompletionApi({
      api: `${url}/stream`,
      prompt: question,
      body: {},
      streamProtocol: 'text',
      setCompletion: (shown) => shown && report({ shown }),
      setLoading() {},
      setError() {},
      setAbortController() {},
      onError: (error) => (failure = error),
    })
    if (failure) throw failure
    return { text }
  },
  async chat(url) {
    const chat = new Chat(`${url}/stream`)
    await chat.sendMessage({ text: question })
    if (chat.error) throw chat.error
    return { status: chat.status, roles: chat.messages.map((message) => message.role) }
  },
}
