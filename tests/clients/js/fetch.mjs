import { question, report } from './report.mjs'

const ask = (url, options) => fetch(`${url}/stream`, { method: 'POST', body: question, ...options })

async function read(response, seen = () => {}) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader()
  for (let { done, value } = await reader.read(); !done; { done, value } = await reader.read()) {
    report({ text: value })
    seen()
  }
}

export default {
  async stream(url) {
    await read(await ask(url))
  },
  async abort(url) {
    const controller = new AbortController()
    await read(await ask(url, { signal: controller.signal }), () => controller.abort())
  },
  async rejected(url) {
    const response = await ask(url)
    return { status: response.status, retryAfter: response.headers.get('retry-after'), body: await response.text() }
  },
}
