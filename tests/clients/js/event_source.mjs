import { EventSource } from 'eventsource'
import { question, run, report } from './report.mjs'

// Never closed by the page: it ends when the server tells it not to come again. Its wait before it comes again would not
// keep Node running; a page stays open.
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
