// Run a client for each line of stdin, such as ["fetch.mjs", "stream", "http://127.0.0.1:8000"], and report its result.

import { createInterface } from 'node:readline'
import { report } from './report.mjs'

for await (const line of createInterface({ input: process.stdin })) {
  const [script, way, url] = JSON.parse(line)
  try {
    const { default: ways } = await import(`./${script}`)
    report({ end: (await ways[way](url)) ?? null })
  } catch (error) {
    const { name, message, status, statusCode, headers, responseHeaders, error: body } = error
    const retryAfter = headers?.get?.('retry-after') ?? responseHeaders?.['retry-after']
    report({ error: { kind: error.constructor.name, name, message, status: status ?? statusCode, retryAfter, body } })
  }
  report(null)
}
