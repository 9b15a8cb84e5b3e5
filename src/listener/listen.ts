import { once } from 'node:events'
import net from 'node:net'

/** What keeps an address from being listened at, by the code of the system, and what to do. */
const REASONS: Readonly<Record<string, readonly [reason: string, fix: string]>> = {
  EADDRINUSE: ['is in use by another process', 'Stop that one, or choose another address'],
  EACCES: [
    'may not be used by this user',
    'Choose a port from 1024 on, or give the capability NET_BIND_SERVICE'
  ],
  EADDRNOTAVAIL: ['is no address of this machine', 'Choose one it has, or 0.0.0.0 for all'],
  EAFNOSUPPORT: ['is of a kind that this machine does not have', 'Choose an IPv4 address'],
  ENOTFOUND: ['has a host name that does not resolve', 'Write an IP address']
}
/** Node tells both of a path as EACCES. */
const PATH_REFUSED = [
  'cannot be made: its directory does not exist, or this user may not write there',
  'Choose another path, or make the directory'
] as const

/**
 * Listens at the address of a setting. Rejects with the code of the system and a message that says
 * what to do.
 */
export async function listenAt(
  server: net.Server,
  address: net.ListenOptions,
  setting: string
): Promise<void> {
  try {
    server.listen(address)
    await once(server, 'listening')
  } catch (error) {
    const { code = '', message } = error as NodeJS.ErrnoException
    const { host = '', port, path } = address
    const known = path !== undefined && code === 'EACCES' ? PATH_REFUSED : REASONS[code]
    const [reason, fix] = known ?? [`cannot be listened at: ${message}`, 'Choose another']
    const where = path ?? (host.includes(':') ? `[${host}]:${port}` : `${host}:${port}`)
    throw Object.assign(new Error(`${setting}: ${where} ${reason}. ${fix}.`, { cause: error }), {
      code
    })
  }
}

/**
 * Rejects like {@link listenAt} when anything listens at the address. Who shares a port among its
 * threads (SO_REUSEPORT) would otherwise share it with another gateway of the same user, too, each
 * getting a part of the connections.
 */
export async function claim(
  address: net.ListenOptions & { readonly port?: number },
  setting: string
): Promise<void> {
  if (address.port === 0) return
  const server = net.createServer(socket => socket.destroy())
  await listenAt(server, address, setting)
  server.close()
  await once(server, 'close')
}
