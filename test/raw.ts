import net, { type NetConnectOpts } from 'node:net'

/** Sends bytes on one connection and gives what comes back until it closes, or until `end` shows up. */
export async function raw(
  to: number | NetConnectOpts,
  bytes: string | Buffer,
  end?: string
): Promise<string> {
  const socket = net.connect(typeof to === 'number' ? { port: to, host: '127.0.0.1' } : to)
  let answer = ''
  socket.setEncoding('latin1')
  socket.write(typeof bytes === 'string' ? Buffer.from(bytes, 'latin1') : bytes)
  try {
    for await (const chunk of socket) {
      answer += chunk
      if (end !== undefined && answer.includes(end)) break
    }
  } catch (error) {
    answer += `[${(error as NodeJS.ErrnoException).code}]`
  }
  socket.destroy()
  return answer
}

/** The statuses of the answers in what a connection gave, in order. */
export function statuses(answer: string): number[] {
  return [...answer.matchAll(/HTTP\/1\.1 (\d{3}) /g)].map(([, status]) => Number(status))
}
