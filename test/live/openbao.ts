import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { Agent, request as httpsRequest } from 'node:https'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { until } from '../harness.ts'
import { freePort } from '../ports.ts'
import { type Answer, type HcvServer, ROOT_TOKEN } from '../vault/hcv-server.ts'
import { type LiveServer, startServer } from './server.ts'

/** A real OpenBao in development mode: unsealed, in memory, with the same root token as the fake. */
export interface OpenBao extends LiveServer, HcvServer {}

/** Starts `bao server -dev` on a free port. */
export async function startOpenBao(): Promise<OpenBao> {
  const port = await freePort()
  const url = `http://127.0.0.1:${port}`
  const server = await startServer({
    command: 'bao',
    args: [
      'server',
      '-dev',
      '-dev-no-store-token',
      `-dev-root-token-id=${ROOT_TOKEN}`,
      `-dev-listen-address=127.0.0.1:${port}`
    ],
    ready: async () => (await fetch(`${url}/v1/sys/health`)).status === 200
  })
  return { ...server, port, url, call: caller(url, ROOT_TOKEN) }
}

/** One that keeps what it stores, so that it can be sealed, killed and started again. */
export interface LastingOpenBao extends OpenBao {
  readonly token: string
  /** What unseals it. */
  readonly keys: readonly string[]
  seal(): Promise<void>
  unseal(): Promise<void>
  /** Starts it again on the same port, sealed, after it was killed. */
  start(): Promise<void>
}

export interface LastingOptions {
  /** Serves https with this certificate and asks clients for theirs; `ca` is what to trust it by. */
  readonly tls?: { readonly cert: string; readonly key: string }
  /** Joins the cluster of this one, as a standby. */
  readonly joins?: LastingOpenBao
}

/**
 * Starts an OpenBao on a folder of its own, unsealed: initialised with key-value v2 at `secret`, or
 * as a standby of the one it joins.
 */
export async function startLastingOpenBao({
  tls,
  joins
}: LastingOptions = {}): Promise<LastingOpenBao> {
  const directory = await mkdtemp(join(tmpdir(), 'postern-openbao-'))
  const port = await freePort()
  const clusterPort = await freePort()
  const url = `${tls === undefined ? 'http' : 'https'}://127.0.0.1:${port}`
  const write = async (name: string, text: string) => {
    await writeFile(join(directory, name), text)
    return JSON.stringify(join(directory, name))
  }
  const listener =
    tls === undefined
      ? 'tls_disable = true'
      : `tls_cert_file = ${await write('tls.crt', tls.cert)}
  tls_key_file = ${await write('tls.key', tls.key)}`
  await write(
    'config.hcl',
    `storage "raft" {
  path = ${JSON.stringify(directory)}
  node_id = "node-${port}"
}
listener "tcp" {
  address = "127.0.0.1:${port}"
  cluster_address = "127.0.0.1:${clusterPort}"
  ${listener}
}
api_addr = ${JSON.stringify(url)}
cluster_addr = "https://127.0.0.1:${clusterPort}"
`
  )
  const ask = caller(url, undefined, tls?.cert)
  let server: LiveServer
  const start = async (): Promise<void> => {
    server = await startServer({
      command: 'bao',
      args: ['server', `-config=${join(directory, 'config.hcl')}`],
      ready: async () => (await ask('GET', 'sys/seal-status')) !== undefined
    })
  }
  await start()
  const { keys, token } = joins ?? (await initialised(ask))
  const call = caller(url, token, tls?.cert)
  const unseal = async (): Promise<void> => {
    const health = joins === undefined ? 'sys/health' : 'sys/health?standbyok=true'
    await ask('POST', 'sys/unseal', { key: keys[0] })
    await until(() => ask('GET', health).catch(() => false), 'it serves', 60_000)
  }
  const setUp = async (): Promise<void> => {
    if (joins !== undefined) {
      await ask('POST', 'sys/storage/raft/join', { leader_api_addr: joins.url })
      return unseal()
    }
    await unseal()
    await call('POST', 'sys/mounts/secret', { type: 'kv', options: { version: '2' } })
    // A new engine of version 2 answers 400 for a moment.
    const ready = () => call('POST', 'secret/data/ready', { data: {} }).catch(() => false)
    await until(ready, 'the key-value engine is ready')
  }
  await setUp().catch(async error => {
    await server.kill()
    throw error
  })
  return {
    port,
    url,
    token,
    keys,
    call,
    start,
    unseal,
    seal: () => call('POST', 'sys/seal'),
    kill: () => server.kill(),
    async [Symbol.asyncDispose]() {
      await server.kill()
      await rm(directory, { recursive: true, force: true })
    }
  }
}

async function initialised(ask: HcvServer['call']) {
  const { keys, root_token: token } = await ask('POST', 'sys/init', {
    secret_shares: 1,
    secret_threshold: 1
  })
  return { keys, token } as Pick<LastingOpenBao, 'keys' | 'token'>
}

/** Calls the API with a token; gives the parsed answer, rejects unless it is 2xx. */
function caller(url: string, token?: string, ca?: string): HcvServer['call'] {
  return async (method, path, body, headers = {}) => {
    const { status, text } = await exchange(new URL(`${url}/v1/${path}`), ca, {
      method,
      headers: { ...(token === undefined ? {} : { 'x-vault-token': token }), ...headers },
      body: body === undefined ? undefined : JSON.stringify(body)
    })
    if (status > 299) throw new Error(`${method} ${path}: ${status} ${text}`)
    return text === '' ? undefined : (JSON.parse(text) as Answer)
  }
}

interface Sent {
  readonly method: string
  readonly headers: Record<string, string>
  readonly body: string | undefined
}

async function exchange(
  url: URL,
  ca: string | undefined,
  { method, headers, body }: Sent
): Promise<{ readonly status: number; readonly text: string }> {
  if (ca === undefined) {
    const response = await fetch(url, { method, headers, ...(body === undefined ? {} : { body }) })
    return { status: response.status, text: await response.text() }
  }
  return new Promise((resolve, reject) => {
    const sent = httpsRequest(url, { method, headers, agent: new Agent({ ca }) }, response => {
      let text = ''
      response.on('data', chunk => {
        text += chunk
      })
      response.on('end', () => resolve({ status: response.statusCode!, text }))
    })
    sent.on('error', reject)
    sent.end(body)
  })
}
