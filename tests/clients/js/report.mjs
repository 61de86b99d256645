// Print a JSON line for each thing that a client receives, so that a test can react while the client continues.

export const question = 'What is a rill?'
export const asked = { model: 'claude-sonnet-5-5', max_tokens: 99, messages: [{ role: 'user', content: question }] }

export const report = (line) => console.log(JSON.stringify(line))
