import { once } from 'node:events'
import { parentPort } from 'node:worker_threads'
import { serveCalls } from './calls.ts'
import {
  fromColumns,
  type ListenerTls,
  maskSecrets,
  overlay,
  type SecretColumns,
  type SecretState,
  type Secrets,
  valuesOf
} from './generation.ts'
import { createLogger, logWarnings } from './log.ts'
import { type LoopDelay, LoopDelayMonitor } from './loop-delay.ts'
import { keepTickShape, releaseLoadGarbage } from './memory.ts'
import { inSlices } from './pace.ts'
import { type SentGeneration, unpack } from './packing.ts'
import { plugins } from './plugins/index.ts'
import { Kept } from './plugins/instance.ts'
import type { Store } from './plugins/plugin.ts'
import type { RequestCounts } from './proxy/counts.ts'
import { type Answer, RemoteResolver } from './proxy/dns.ts'
import { Handler } from './proxy/handler.ts'
import { HealthTable } from './proxy/health.ts'
import { WebSockets } from './proxy/websocket.ts'
import { redactor } from './redaction.ts'
import { type Listening, openServer } from './server.ts'
import { type Settings, trustedPeers } from './settings.ts'
import { buildSnapshot, type Snapshot, type SnapshotEnvironment } from './snapshot.ts'
import type { Touched } from './uses.ts'

/** The first message to a data-plane thread, which has loaded its code by then. */
export interface WorkerData {
  readonly thread: number
  readonly settings: Settings
  readonly product: string
  readonly generation: SentGeneration
  /** Ports to use instead of 0, by listener; known once the first thread listens. */
  readonly ports: readonly number[]
  readonly reusePort: boolean
  readonly shared: Readonly<Record<string, SharedArrayBuffer>>
  readonly counts: RequestCounts
  /** Health of upstream addresses. */
  readonly health: SharedArrayBuffer
  /** What is known of host names. */
  readonly names: ReadonlyMap<string, Answer>
  /** Serves what only one thread can. */
  readonly first: boolean
  /** Key of TLS session tickets, the same in all threads. */
  readonly ticketKeys: Uint8Array
}

/** What a data-plane thread tells of itself. */
export interface ThreadStats {
  readonly inFlight: number
  readonly webSockets: number
  readonly delay: LoopDelay
}

/** What the control thread asks of a data-plane thread. */
export interface WorkerCalls {
  /** Opens the listeners; gives their ports. */
  listen(): Promise<readonly number[]>
  /** Builds what a new generation needs, or what changed secrets touch, beside what serves. */
  prepare(update: Update): Promise<void>
  /** Serves new requests with what was prepared. Synchronous, so nothing is seen half changed. */
  commit(): void
  /** Drops what was prepared. */
  abort(): Promise<void>
  /** The addresses of a host name changed. */
  nameChanged(host: string, answer: Answer): void
  stats(): ThreadStats
  /** Stops accepting, waits for requests in flight up to `timeout` milliseconds, then closes. */
  close(timeout: number): Promise<void>
}

/** What the control thread does for its data-plane threads. */
export interface ControlCalls extends Store {
  /** Re-reads the references of a plugin entity; gives whether anything changed. */
  refresh(entityId: string): Promise<boolean>
  /** The addresses of a host name; never rejects for what DNS does. */
  resolve(host: string): Answer | Promise<Answer>
}

/** A whole new generation, or new states of references and settings under the same configuration. */
export type Update =
  | { readonly generation: SentGeneration }
  | {
      readonly secrets: SecretColumns
      /** The entities that use them. */
      readonly touched: Touched
      readonly tls?: ListenerTls
    }

/** Name the key of the default certificate is masked by; no reference is called so. */
const LISTENER_KEY = 'listener key'

keepTickShape()
const [data] = (await once(parentPort!, 'message')) as [WorkerData]
const { settings } = data
const log = createLogger({
  level: settings.logLevel,
  format: settings.logFormat,
  thread: data.thread
})
logWarnings(log)
let secrets = fromColumns(data.generation.secrets)
maskGeneration(secrets, data.generation.tls)

const control = serveCalls<WorkerCalls, ControlCalls>(parentPort!, {
  listen,
  prepare,
  commit,
  abort,
  nameChanged: (host, answer) => resolver.update(host, answer),
  stats: () => ({
    inFlight: handler.inFlight,
    webSockets: webSockets.open,
    delay: loopDelay.read()
  }),
  close
})

const resolver = new RemoteResolver(host => control.resolve(host), data.names)
const tlsPolicy = {
  minVersion: settings.sslProtocols.min,
  maxVersion: settings.sslProtocols.max,
  ...(settings.sslCiphers === undefined ? {} : { ciphers: settings.sslCiphers })
}
const environment: SnapshotEnvironment = {
  plugins,
  tlsPolicy,
  instances: {
    log,
    shared: data.shared,
    kept: new Kept(),
    store: {
      get: key => control.get(key),
      set: (key, value, ttl) => control.set(key, value, ttl),
      expire: (key, ttl) => control.expire(key, ttl),
      delete: key => control.delete(key)
    },
    async refresh(entityId, config) {
      await control.refresh(entityId)
      // Whoever had them read again: a request may have begun before that.
      const instance = current.chains.instances.find(({ scope }) => scope.id === entityId)
      return instance?.config === config ? undefined : instance?.config
    }
  },
  upstreams: {
    resolver,
    health: new HealthTable(data.health),
    kept: new Kept(),
    log,
    pools: new Kept(),
    options: {
      connections: settings.upstreamKeepalivePoolSize,
      idleTimeout: settings.upstreamKeepaliveIdleTimeout * 1000,
      tlsVerify: settings.upstreamTlsVerify,
      http2: settings.upstreamHttp2
    }
  }
}

/** States of references that {@link commit} brings into force. */
interface Prepared {
  readonly snapshot: Snapshot
  readonly secrets: Map<string, SecretState>
  /** Whether there are no others. */
  readonly whole: boolean
}

let current: Snapshot
const built = unpack(data.generation.config).then(async config => {
  const { tls } = data.generation
  current = await buildSnapshot({ config, secrets, tls }, environment)
})
// What refuses it is told by `listen`.
built.catch(() => {})
let prepared: Prepared | undefined
let listening: readonly Listening[] = []

const handler = new Handler(
  {
    product: data.product,
    ownHeaders: settings.ownHeaders,
    maxBodySize: settings.maxBodySize,
    requestBuffer: settings.requestBuffer,
    maxUriSize: settings.maxUriSize,
    maxHeaders: settings.maxHeaders,
    sendTimeout: settings.sendTimeout * 1000,
    clientCertificates: settings.sslVerifyClient,
    accessLog: settings.accessLog,
    counts: data.counts,
    log
  },
  () => current
)
const webSockets = new WebSockets(handler, settings.maxWebSocketMessage)
const loopDelay = new LoopDelayMonitor()

function maskGeneration(all: Secrets, { key }: ListenerTls): void {
  maskSecrets(all)
  redactor.hold(LISTENER_KEY, [key])
}

async function listen(): Promise<readonly number[]> {
  await built
  const opened: Listening[] = []
  for (const [index, listener] of settings.proxyListen.entries()) {
    // Threads cannot share a Unix socket, so the first serves it alone.
    if (listener.path !== undefined && !data.first) continue
    opened.push(
      await openServer({
        host: listener.host,
        port: data.ports[index] ?? listener.port,
        path: listener.path,
        ssl: listener.ssl,
        http2: listener.http2,
        proxyProtocol: listener.proxyProtocol,
        backlog: listener.backlog,
        reusePort: data.reusePort,
        first: data.ports.length === 0,
        limits: {
          headerTimeout: settings.requestHeaderTimeout * 1000,
          keepAliveTimeout: settings.clientKeepaliveTimeout * 1000,
          keepAliveRequests: settings.clientKeepaliveRequests,
          maxHeaderSize: settings.maxHeaderSize,
          maxHeaders: settings.maxHeaders,
          maxConnections: settings.maxConnections
        },
        tls: { requestCert: settings.sslVerifyClient !== 'off', ticketKeys: data.ticketKeys },
        handler,
        webSockets,
        log,
        certificates: () => current.certificates,
        exchange: {
          trusted: trustedPeers(settings.trustedIps),
          realIpHeader: settings.realIpHeader.toLowerCase(),
          realIpRecursive: settings.realIpRecursive,
          maxBufferedBody: settings.maxBufferedBody,
          bodyTimeout: settings.requestBodyTimeout * 1000,
          maxTrailers: settings.maxHeaders
        }
      })
    )
  }
  listening = opened
  releaseLoadGarbage()
  return opened.map(({ port }) => port)
}

async function prepare(update: Update): Promise<void> {
  await built
  await abort()
  if ('generation' in update) {
    const { tls } = update.generation
    const config = await unpack(update.generation.config)
    const all = fromColumns(update.generation.secrets)
    maskGeneration(all, tls)
    const snapshot = await buildSnapshot({ config, tls, secrets: all }, environment)
    prepared = { snapshot, secrets: all, whole: true }
    return
  }
  const changed = fromColumns(update.secrets)
  await inSlices(changed, ([text, state]) => redactor.hold(text, valuesOf(state)))
  if (update.tls !== undefined) redactor.hold(LISTENER_KEY, [update.tls.key])
  const { config, tls } = current
  const generation = { config, tls: update.tls ?? tls, secrets: overlay(secrets, changed) }
  const snapshot = await buildSnapshot(generation, environment, current, update.touched)
  prepared = { snapshot, secrets: changed, whole: false }
}

function commit(): void {
  if (prepared === undefined) return
  const old = current
  const { snapshot, secrets: changed, whole } = prepared
  current = snapshot
  prepared = undefined
  if (whole) {
    secrets = changed
    redactor.retain(name => name === LISTENER_KEY || secrets.has(name))
  } else for (const [text, state] of changed) secrets.set(text, state)
  if (current.certificates !== old.certificates) {
    for (const server of listening) server.renewCertificate()
  }
  old.release()
}

async function abort(): Promise<void> {
  prepared?.snapshot.release()
  prepared = undefined
}

async function close(timeout: number): Promise<void> {
  const closed = Promise.all(listening.map(server => server.close()))
  const deadline = new Promise<void>(resolve => setTimeout(resolve, timeout).unref())
  // Clients keep connections open after their last answer: those end as they become idle.
  const idle = setInterval(() => {
    for (const server of listening) server.closeIdle()
  }, 20)
  const drained = async () => {
    // A WebSocket has no end to wait for: it is told to go elsewhere once the others have ended.
    while (handler.inFlight > webSockets.open) await new Promise(resolve => setTimeout(resolve, 20))
  }
  await Promise.race([drained(), deadline])
  await webSockets.close()
  current.release()
  await Promise.race([Promise.all([closed, current.closed]), deadline])
  clearInterval(idle)
  // The reply to this call leaves before the port closes and with it the thread's last handle.
  setImmediate(() => process.exit(0))
}
