import type { MessagePort, Worker } from 'node:worker_threads'

type Methods = { [name: string]: (...args: never[]) => unknown }

/** The other side's methods, each answering with a promise. */
export type Remote<T> = {
  [K in keyof T]: T[K] extends (...args: infer A) => infer R
    ? (...args: A) => Promise<Awaited<R>>
    : never
}

interface CallMessage {
  readonly call: number
  readonly method: string
  readonly args: readonly unknown[]
}

interface ReplyMessage {
  readonly reply: number
  readonly value?: unknown
  readonly error?: { readonly message: string; readonly code?: string }
}

/**
 * Lets two threads call each other's methods over one port. Arguments and results are structured
 * clones; an error crosses as its message and code. Calls pending when the port closes reject.
 */
export function serveCalls<Local, Far>(port: MessagePort | Worker, local: Local): Remote<Far> {
  const pending = new Map<number, PromiseWithResolvers<unknown>>()
  let next = 0

  const answer = async ({ call, method, args }: CallMessage): Promise<void> => {
    let reply: ReplyMessage
    try {
      const value = await (local as Methods)[method]!(...(args as never[]))
      reply = { reply: call, value }
    } catch (error) {
      const { message, code } = error as Error & { code?: string }
      reply = { reply: call, error: code === undefined ? { message } : { message, code } }
    }
    port.postMessage(reply)
  }

  port.on('message', (message: CallMessage | ReplyMessage) => {
    if ('call' in message) {
      void answer(message)
      return
    }
    const waiting = pending.get(message.reply)
    pending.delete(message.reply)
    if (message.error === undefined) waiting?.resolve(message.value)
    else
      waiting?.reject(Object.assign(new Error(message.error.message), { code: message.error.code }))
  })
  const gone = (): void => {
    for (const { reject } of pending.values()) reject(new Error('the thread ended'))
    pending.clear()
  }
  port.on('close', gone)
  port.on('exit', gone)

  return new Proxy({} as Remote<Far>, {
    get: (_target, method: string) =>
      method === 'then'
        ? undefined
        : (...args: unknown[]) => {
            const call = next++
            const waiting = Promise.withResolvers<unknown>()
            pending.set(call, waiting)
            port.postMessage({ call, method, args } satisfies CallMessage)
            return waiting.promise
          }
  })
}
