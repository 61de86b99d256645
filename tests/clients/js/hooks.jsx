// A React page with the AI SDK's three hooks as their documentation uses them; a test mounts one with its options.

import { useChat, useCompletion, experimental_useObject as useObject } from '@ai-sdk/react'
import { DefaultChatTransport, lastAssistantMessageIsCompleteWithToolCalls } from 'ai'
import { createRoot } from 'react-dom/client'
import { z } from 'zod'

function Part({ part }) {
  if (part.type === 'text') return <span>{part.text}</span>
  if (part.type === 'tool-weather') {
    return <b>{`[weather of ${part.input?.city}: ${part.state === 'output-available' ? part.output : '...'}]`}</b>
  }
  return null
}

function Chat({ question, body, ...options }) {
  const chat = useChat({
    ...options,
    ...(body && { transport: new DefaultChatTransport({ body }) }),
    sendAutomaticallyWhen: lastAssistantMessageIsCompleteWithToolCalls,
    onToolCall: ({ toolCall: { toolName: tool, toolCallId } }) => {
      chat.addToolOutput({ tool, toolCallId, output: 'sunny' })
    },
  })
  return (
    <View send={() => chat.sendMessage({ text: question })} {...chat}>
      {chat.messages.map(({ id, role, parts }) => (
        <p key={id}>{[`${role}: `, ...parts.map((part, index) => <Part key={index} part={part} />)]}</p>
      ))}
    </View>
  )
}

function Completion({ question, ...options }) {
  const { completion, complete, isLoading, ...rest } = useCompletion(options)
  return (
    <View send={() => complete(question)} status={isLoading ? 'streaming' : 'ready'} {...rest}>
      {completion}
    </View>
  )
}

function StructuredObject({ question }) {
  const schema = z.object({ city: z.string(), sights: z.array(z.string()) })
  const { object, submit, isLoading, ...rest } = useObject({ api: '/stream', schema })
  const output_config = { format: { type: 'json_schema', schema: z.toJSONSchema(schema) } }
  return (
    <View send={() => submit({ q: question, output_config })} status={isLoading ? 'streaming' : 'ready'} {...rest}>
      {object && `${object.city}: ${(object.sights ?? []).join(', ')}`}
    </View>
  )
}

function View({ children, send, stop, status, error }) {
  return (
    <main>
      <div id="shown">{children}</div>
      <button id="send" onClick={send} />
      <button id="stop" onClick={() => stop()} />
      <output id="status">{status}</output>
      <output id="error">{error?.message}</output>
    </main>
  )
}

let root

window.mount = (name, options) => {
  root?.unmount()
  document.body.innerHTML = '<div id="root"></div>'
  root = createRoot(document.getElementById('root'))
  const Hook = { Chat, Completion, StructuredObject }[name]
  root.render(<Hook {...options} />)
}
