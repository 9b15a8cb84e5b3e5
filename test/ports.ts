import { randomInt } from 'node:crypto'
import { once } from 'node:events'
import { createServer } from 'node:net'

/** Below the ports that systems give to connections by themselves (Linux from 32768 on). */
const FIRST = 20_000
const COUNT = 12_000

/**
 * A TCP port nothing listened on a moment ago, for a program that cannot choose one itself. No
 * connection of another test takes it in between.
 */
export async function freePort(): Promise<number> {
  for (let i = 0; i < 100; i++) {
    const port = FIRST + randomInt(COUNT)
    const server = createServer().listen(port, '127.0.0.1')
    const isFree = await once(server, 'listening').then(
      () => true,
      () => false
    )
    if (!isFree) continue
    server.close()
    await once(server, 'close')
    return port
  }
  throw new Error('no port is free')
}
