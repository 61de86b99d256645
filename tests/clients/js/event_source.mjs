import { EventSource } from 'eventsource'
import { question, run, report } from './report.mjs'

// The page never closes it: it ends when the server responds with 204. Its pause before a reconnect would not keep Node
// running, as an open page does.
const open = setInterval(() => {}, 60_000)
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

await run({ listen })
clearInterval(open)
