import { once } from 'node:events'
import { mkdtemp, rename, rm, writeFile } from 'node:fs/promises'
import http, { type IncomingMessage, type ServerResponse } from 'node:http'
import { createRequire } from 'node:module'
import type { AddressInfo } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import { type WebSocket as Client, WebSocketServer } from 'ws'
import { startGateway, type TestGateway, until } from './harness.ts'

const { WebSocket } = createRequire(import.meta.url)('ws') as { WebSocket: typeof Client }

t.setTimeout(120_000)

/** Something open through the gateway for the length of a test. */
interface Lasting {
  readonly name: string
  /** Passes one message through; resolves when the other end has it. */
  pass(message: string): Promise<void>
  /** Ends it in order, and proves that the end arrives. */
  end(): Promise<void>
}

/** An upstream that holds what it is asked for open, and says or hears what a test wants. */
async function startHolding(t: Test) {
  const events: ServerResponse[] = []
  const uploads: { text: string; done: boolean; response: ServerResponse }[] = []
  const server = http.createServer((request, response) => {
    if (request.url === '/events') {
      response.writeHead(200, { 'Content-Type': 'text/event-stream' }).flushHeaders()
      events.push(response)
    } else if (request.url === '/upload') {
      const upload = { text: '', done: false, response }
      uploads.push(upload)
      request.setEncoding('latin1')
      request.on('data', chunk => {
        upload.text += chunk
      })
      request.on('end', () => {
        upload.done = true
        response.end('taken')
      })
    } else {
      response.end('ok')
    }
  })
  const sockets = new WebSocketServer({ server })
  sockets.on('connection', socket => {
    socket.on('message', data => socket.send(data.toString()))
  })
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  t.teardown(() => {
    for (const client of sockets.clients) client.terminate()
    server.closeAllConnections()
    server.close()
  })
  return { url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`, events, uploads }
}

type Holding = Awaited<ReturnType<typeof startHolding>>

async function openWebSocket(gateway: TestGateway, headers: object): Promise<Lasting> {
  const client = new WebSocket(`${gateway.url.replace('http', 'ws')}/kept/socket`, {
    headers: { ...headers }
  })
  await once(client, 'open')
  return {
    name: 'a WebSocket',
    async pass(message) {
      client.send(message)
      const [data] = (await once(client, 'message')) as [Buffer]
      if (data.toString() !== message) throw new Error('another message came back')
    },
    async end() {
      client.close(1000)
      const [code] = await once(client, 'close')
      if (code !== 1000) throw new Error(`it ended with ${code}`)
    }
  }
}

async function openEvents(
  gateway: TestGateway,
  headers: http.OutgoingHttpHeaders,
  { events }: Holding
): Promise<Lasting> {
  const request = http.get(`${gateway.url}/kept/events`, { headers, agent: false })
  const [response] = (await once(request, 'response')) as [IncomingMessage]
  const server = events.at(-1)!
  let text = ''
  response.setEncoding('latin1')
  response.on('data', chunk => {
    text += chunk
  })
  const ended = once(response, 'end')
  return {
    name: 'a stream of events',
    async pass(message) {
      server.write(`data: ${message}\n\n`)
      await until(() => text.endsWith(`data: ${message}\n\n`), 'an event')
    },
    async end() {
      server.end()
      await ended
    }
  }
}

async function openUpload(
  gateway: TestGateway,
  headers: http.OutgoingHttpHeaders,
  { uploads }: Holding
): Promise<Lasting> {
  const request = http.request(`${gateway.url}/kept/upload`, {
    method: 'POST',
    headers,
    agent: false
  })
  const answered = once(request, 'response')
  request.write('begin')
  const before = uploads.length
  await until(() => uploads.length > before, 'the upload to begin')
  const upload = uploads.at(-1)!
  return {
    name: 'an upload',
    async pass(message) {
      request.write(message)
      await until(() => upload.text.endsWith(message), 'a part of the upload')
    },
    async end() {
      request.end()
      const [response] = (await answered) as [IncomingMessage]
      if (response.statusCode !== 200) throw new Error(`it was answered ${response.statusCode}`)
      response.resume()
      await once(response, 'end')
      if (!upload.done) throw new Error('it is not whole')
    }
  }
}

const passAll = (lasting: readonly Lasting[], message: string): Promise<unknown> =>
  Promise.all(lasting.map(each => each.pass(message)))

/** A configuration whose route `kept` stays as it is while everything beside it changes. */
const configuration = (url: string, round: number) => ({
  services: [
    {
      name: 'kept',
      url,
      // Far below what the test takes: none of it may be cut for being quiet.
      read_timeout: 1000,
      write_timeout: 1000,
      routes: [{ name: 'kept', paths: ['/kept'], request_buffering: false }],
      plugins: [
        { name: 'key-auth' },
        {
          name: 'http-log',
          config: { http_endpoint: url, headers: { Authorization: '{vault://fs/token}' } }
        }
      ]
    },
    {
      name: 'other',
      url,
      routes: [{ name: 'other', paths: [`/other-${round}`] }],
      plugins: [
        { name: 'correlation-id', config: { header_name: `X-Round-${round}` } },
        { name: 'http-log', config: { http_endpoint: `${url}/log-${round}` } }
      ]
    },
    ...(round % 2 === 0 ? [{ name: 'sometimes', url, routes: [{ name: 's', paths: ['/s'] }] }] : [])
  ],
  consumers: [{ username: 'anna', keyauth_credentials: [{ key: '{vault://fs/key}' }] }]
})

async function secretsFolder(t: Test) {
  const root = await mkdtemp(join(tmpdir(), 'postern-secrets-'))
  t.teardown(() => rm(root, { recursive: true, force: true }))
  const write = async (name: string, value: string): Promise<void> => {
    await writeFile(join(root, `.${name}`), value)
    await rename(join(root, `.${name}`), join(root, name))
  }
  await write('token', 'token-0')
  await write('key', 'key-0')
  return { root, write }
}

await t.test('reloads and rotations leave what is open on an unchanged route alone', async t => {
  const upstream = await startHolding(t)
  const secrets = await secretsFolder(t)
  await using gateway = await startGateway(configuration(upstream.url, 0), {
    env: {
      POSTERN_VAULT_FS_PREFIX: secrets.root,
      POSTERN_REQUEST_BODY_TIMEOUT: '60',
      POSTERN_SECRET_GRACE: '0'
    },
    workers: 2
  })
  const open = async (key: string): Promise<Lasting[]> => [
    await openWebSocket(gateway, { apikey: key }),
    await openEvents(gateway, { apikey: key }, upstream),
    await openUpload(gateway, { apikey: key }, upstream)
  ]
  const inFlight = async (): Promise<number> => (await gateway.status('/status')).json().inFlight
  const first = await open('key-0')
  await passAll(first, 'before')

  for (let round = 1; round <= 4; round++) {
    await gateway.reload(configuration(upstream.url, round))
    t.equal((await gateway.fetch(`/other-${round}`)).status, 200, 'the reload is in force')
    await passAll(first, `reload ${round}`)
  }

  for (let round = 1; round <= 4; round++) {
    await secrets.write('token', `token-${round}`)
    await secrets.write('key', `key-${round}`)
    await gateway.gateway.refresh('fs')
    await until(
      async () =>
        (await gateway.fetch('/kept/', { headers: { apikey: `key-${round}` } })).status === 200,
      'the rotation to be in force'
    )
    await passAll(first, `rotation ${round}`)
  }
  t.equal((await gateway.fetch('/kept/', { headers: { apikey: 'key-0' } })).status, 401)

  const second = await open('key-4')
  await gateway.reload(configuration(upstream.url, 9))
  await passAll([...first, ...second], 'both')
  t.equal(await inFlight(), 6)
  for (const lasting of [...first, ...second]) {
    await t.resolves(lasting.end(), `${lasting.name} ends in order`)
  }
  await until(async () => (await inFlight()) === 0, 'everything to be let go')
})
