// The parts of the AI SDK behind useCompletion and useChat, with their state in plain fields.

import { AbstractChat, DefaultChatTransport, TextStreamChatTransport, callCompletionApi } from 'ai'
import { question, report } from './report.mjs'

class Chat extends AbstractChat {
  constructor(transport) {
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
    super({ transport, state })
  }
}

async function ask(transport) {
  const chat = new Chat(transport)
  await chat.sendMessage({ text: question })
  if (chat.error) throw chat.error
  return { status: chat.status, roles: chat.messages.map((message) => message.role) }
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
  chat: (url) => ask(new TextStreamChatTransport({ api: `${url}/stream` })),
  'default-chat': (url) => ask(new DefaultChatTransport({ api: `${url}/api/chat` })),
}
