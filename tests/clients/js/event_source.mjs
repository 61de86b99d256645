import { EventSource } from 'eventsource'
import { question, report } from './report.mjs'

// The page never closes it: it ends when the server responds with 204.
const listen = (url) =>
  new Promise((end) => {
    const source = new EventSource(`${url}/chat/stream?${new URLSearchParams({ message: question })}`)
    source.onmessage = (event) => report({ text: event.data })
    source.addEventListener('done', (event) => report({ done: JSON.parse(event.data) }))
    source.addEventListener('error', (event) => {
      if (event.data) report({ failed: JSON.parse(event.data) })
      if (source.readyState === EventSource.CLOSED) end({ code: event.code })
    })
  })

export default { listen }
