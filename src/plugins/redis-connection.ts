import { isIP } from 'node:net'
import type { createClient, ErrorReply } from '@redis/client'
import { RedisAway, RedisDenied } from '../errors.ts'
import type { Logger } from './plugin.ts'

/** How to reach a Redis server. */
export interface RedisOptions {
  readonly host: string
  readonly port: number
  readonly username: string | undefined
  readonly password: string | undefined
  readonly database: number
  /** Undefined for a plain connection. `serverName` is sent as SNI and verified instead of `host`. */
  readonly tls: { readonly verify: boolean; readonly serverName: string | undefined } | undefined
  /** Milliseconds, for connecting with all that belongs to it and for each command. */
  readonly timeout: number
}

/** A Lua script; Redis runs it as a whole, with nothing in between. */
export interface RedisScript {
  readonly source: string
  /** SHA-1 of the source, hexadecimal: what Redis knows it by. */
  readonly sha: string
}

/** A value Redis answers with. */
export type Reply = string | number | null | readonly Reply[]

type Client = ReturnType<typeof createClient>

/** Replies of a server that does not accept the credentials, or not for this. */
const DENIED =
  /^(NOAUTH|WRONGPASS|NOPERM)\b|^ERR (invalid password|AUTH |Client sent AUTH)|ACL failure in script/
/** Commands that may wait for an answer; more are refused at once. */
const MAX_WAITING = 10_000
const FIRST_PAUSE = 100
/** Longest pause between attempts to connect, in milliseconds. */
const LONGEST_PAUSE = 5000

/**
 * One connection to a Redis server that carries the commands of a whole thread, opened by the first
 * of them and again after it was lost. While the server is away commands fail at once, and an
 * attempt to connect is made after growing pauses.
 *
 * What rejects is POSTERN_REDIS_DENIED when the server refuses the credentials, POSTERN_REDIS_AWAY
 * for everything else that has no answer, and the client's own error for an answer that is one.
 */
export class RedisConnection {
  readonly #options: RedisOptions
  readonly #log: Logger
  /** What may stand in log lines. */
  readonly #peer: string
  /** Of the client's library, once it is loaded. */
  #ErrorReply: typeof ErrorReply | undefined
  #client: Client | undefined
  #connecting: Promise<Client> | undefined
  #closed = false
  /** Why the last attempt failed, and when the next may be made. */
  #failure: Error | undefined
  #failures = 0
  #nextAttempt = 0

  constructor(options: RedisOptions, log: Logger) {
    this.#options = options
    this.#log = log
    this.#peer = `${options.host}:${options.port}`
  }

  /** Sends one command. */
  run(words: readonly string[]): Promise<Reply> {
    const client = this.#client
    if (client === undefined) return this.#connected().then(opened => this.#send(opened, words))
    return this.#send(client, words)
  }

  /** Runs a script, which is sent whole only when the server does not know it. */
  script(
    { sha, source }: RedisScript,
    keys: readonly string[],
    values: readonly string[]
  ): Promise<Reply> {
    const rest = [String(keys.length), ...keys, ...values]
    return this.run(['EVALSHA', sha, ...rest]).catch(error => {
      if (!this.#isReply(error, /^NOSCRIPT\b/)) throw error
      return this.run(['EVAL', source, ...rest])
    })
  }

  /** Ends the connection; what waits for an answer is rejected. */
  async close(): Promise<void> {
    this.#closed = true
    this.#drop(this.#client)
  }

  #send(client: Client, words: readonly string[]): Promise<Reply> {
    const { timeout } = this.#options
    return new Promise((resolve, reject) => {
      const timer = setTimeout(() => {
        const error = new RedisAway(this.#peer, `no answer within ${timeout} ms`)
        reject(error)
        if (this.#client !== client) return
        this.#drop(client)
        this.#failed(error)
      }, timeout)
      client.sendCommand<Reply>(words).then(
        reply => {
          clearTimeout(timer)
          resolve(reply)
        },
        error => {
          clearTimeout(timer)
          reject(this.#named(error))
        }
      )
    })
  }

  #connected(): Promise<Client> {
    if (this.#connecting !== undefined) return this.#connecting
    if (this.#closed) return Promise.reject(new RedisAway(this.#peer, 'the connection is closed'))
    if (this.#failure !== undefined && performance.now() < this.#nextAttempt) {
      return Promise.reject(this.#failure)
    }
    this.#connecting = this.#connect().finally(() => {
      this.#connecting = undefined
    })
    return this.#connecting
  }

  async #connect(): Promise<Client> {
    const { timeout } = this.#options
    // Only threads that use Redis load its client.
    const { createClient, ErrorReply } = await import('@redis/client')
    this.#ErrorReply = ErrorReply
    const client: Client = createClient({
      ...this.#credentials(),
      database: this.#options.database,
      RESP: 2,
      disableClientInfo: true,
      maintNotifications: 'disabled',
      commandsQueueMaxLength: MAX_WAITING,
      // Each command has a timer here already.
      commandOptions: { timeout: 0 },
      socket: this.#socket()
    })
    let refused: Error | undefined
    client.on('error', (error: Error) => {
      refused = error
      if (this.#client === client) this.#drop(client)
    })
    const timer = setTimeout(() => {
      refused = new RedisAway(this.#peer, `no connection within ${timeout} ms`)
      client.destroy()
    }, timeout)
    try {
      await client.connect()
      if (this.#closed) throw new RedisAway(this.#peer, 'the connection is closed')
    } catch (error) {
      const cause = this.#named(refused ?? error)
      this.#drop(client)
      this.#failed(cause)
      throw cause
    } finally {
      clearTimeout(timer)
    }
    if (this.#failures > 0) this.#log.info({ redis: this.#peer }, 'Redis is back')
    this.#failures = 0
    this.#failure = undefined
    this.#client = client
    return client
  }

  #credentials(): { readonly username?: string; readonly password?: string } {
    const { username, password } = this.#options
    if (password === undefined || password === '') return {}
    return username === undefined || username === '' ? { password } : { username, password }
  }

  #socket() {
    const { host, port, timeout, tls } = this.#options
    const address = host.startsWith('[') ? host.slice(1, -1) : host
    const common = {
      host: address,
      port,
      connectTimeout: timeout,
      reconnectStrategy: false as const
    }
    if (tls === undefined) return common
    const servername = tls.serverName ?? (isIP(address) === 0 ? address : undefined)
    return {
      ...common,
      tls: true as const,
      rejectUnauthorized: tls.verify,
      ...(servername === undefined ? {} : { servername })
    }
  }

  #drop(client: Client | undefined): void {
    if (client === undefined) return
    if (this.#client === client) this.#client = undefined
    if (client.isOpen) client.destroy()
  }

  #failed(error: Error): void {
    if (this.#closed) return
    if (this.#failures === 0) this.#log.warn({ redis: this.#peer, err: error }, 'Redis is away')
    const pause = Math.min(FIRST_PAUSE * 2 ** this.#failures++, LONGEST_PAUSE)
    this.#nextAttempt = performance.now() + pause * (0.5 + Math.random() / 2)
    this.#failure = error
  }

  /** An error of the client as one of ours, unless it is the server's answer to the command itself. */
  #named(error: unknown): Error {
    if (error instanceof RedisAway || error instanceof RedisDenied) return error
    if (this.#isReply(error, DENIED)) {
      // The rest of the message names the user.
      return new RedisDenied(this.#peer, /^[A-Z]{4,}/.exec(error.message)?.[0] ?? 'ERR')
    }
    if (this.#isReply(error, /^/)) return error
    const { code, message } = error as NodeJS.ErrnoException
    return new RedisAway(this.#peer, code ?? message)
  }

  #isReply(error: unknown, pattern: RegExp): error is Error {
    const Reply = this.#ErrorReply
    return Reply !== undefined && error instanceof Reply && pattern.test(error.message)
  }
}
