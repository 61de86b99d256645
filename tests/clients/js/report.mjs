// Print a JSON line for each thing that a client receives, so that a test can react while the client continues.

export const question = 'What is a rill?'
export const asked = { model: 'claude-sonnet-5-5', max_tokens: 99, messages: [{ role: 'user', content: question }] }

export const report = (line) => console.log(JSON.stringify(line))

// Run the function that the command line names against the server that it names, and report its result.
export async function run(ways) {
  const [way, url] = process.argv.slice(2)
  try {
    report({ end: (await ways[way](url)) ?? null })
  } catch (error) {
    const { name, message, status, statusCode, headers, responseHeaders, error: body } = error
    const retryAfter = headers?.get?.('retry-after') ?? responseHeaders?.['retry-after']
    report({ error: { kind: error.constructor.name, name, message, status: status ?? statusCode, retryAfter, body } })
  }
}
