import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { existsSync } from 'node:fs'
import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import http from 'node:http'
import net, { type AddressInfo } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import type { Duplex } from 'node:stream'
import t, { type Test } from 'tap'
import { corpus } from './corpus.ts'
import { startGateway, until } from './harness.ts'
import { freePort } from './ports.ts'
import { raw, statuses } from './raw.ts'

// Threads start slowly on a busy machine.
t.setTimeout(200_000)

/** What one upstream connection carried. */
interface Carried {
  bytes: Buffer
  /** Requests as an independent parser counted them. */
  requests: number
  /** Whether the gateway cut it within a request. */
  cut: boolean
}

/** An upstream that keeps every byte of each connection. */
async function recorder() {
  const connections: Carried[] = []
  const byPort = new Map<number, Carried>()
  // Asked for while it stands: of a connection that was reset there is none.
  const ports = new Map<Duplex, number | undefined>()
  const carriedBy = (socket: Duplex): Carried | undefined => byPort.get(ports.get(socket) ?? -1)
  const server = http.createServer({ keepAliveTimeout: 60_000 }, (request, response) => {
    const carried = carriedBy(request.socket)!
    request.resume()
    request.once('end', () => {
      carried.requests++
      response.end('ok')
    })
    request.once('error', () => {
      carried.cut = true
    })
  })
  const front = net.createServer(socket => {
    const carried: Carried = { bytes: Buffer.alloc(0), requests: 0, cut: false }
    connections.push(carried)
    const back = net.connect((server.address() as AddressInfo).port, '127.0.0.1')
    back.once('connect', () => byPort.set(back.localPort!, carried))
    back.on('error', () => {})
    socket.on('error', () => {})
    // One that is reset has no end that the pipes pass on.
    back.on('close', () => socket.end())
    socket.on('close', () => back.end())
    socket.on('data', chunk => {
      carried.bytes = Buffer.concat([carried.bytes, chunk])
    })
    socket.pipe(back).pipe(socket)
  })
  server.on('connection', socket => {
    ports.set(socket, socket.remotePort)
    socket.on('close', () => ports.delete(socket))
  })
  server.on('clientError', (_error, socket) => {
    const carried = carriedBy(socket)
    if (carried !== undefined) carried.cut = true
    socket.destroy()
  })
  server.listen(0, '127.0.0.1')
  front.listen(0, '127.0.0.1')
  await Promise.all([once(server, 'listening'), once(front, 'listening')])
  return {
    connections,
    port: (front.address() as AddressInfo).port,
    close() {
      server.closeAllConnections()
      server.close()
      front.close()
    }
  }
}

/** What the gateway logged of each request it sent upstream, by the id it was sent with. */
const logged = new Map<string, { readonly answered: boolean }>()
const log = http.createServer(async (request, response) => {
  let text = ''
  for await (const chunk of request.setEncoding('utf8')) text += chunk
  response.end()
  const { request: asked, upstream_status, tries } = JSON.parse(text)
  if (tries?.length > 0) logged.set(asked.id, { answered: upstream_status === '200' })
})
log.listen(0, '127.0.0.1')
await once(log, 'listening')

const idsOf = ({ bytes }: Carried): readonly string[] =>
  [...bytes.toString('latin1').matchAll(/^X-Postern-Request-Id: (\w{32})\r$/gim)].map(
    ([, id]) => id!
  )

/** The log's word on one connection: how many requests it carried, and how many of them for certain whole. */
function accountOf(carried: Carried): { readonly sent: number; readonly answered: number } {
  const entries = idsOf(carried).flatMap(id => logged.get(id) ?? [])
  return { sent: entries.length, answered: entries.filter(({ answered }) => answered).length }
}

await using gateway = await startGateway('{ "_format_version": "3.0" }', {
  env: { POSTERN_REQUEST_BODY_TIMEOUT: '0.3', POSTERN_REQUEST_HEADER_TIMEOUT: '1' }
})
const upstream = await recorder()
t.teardown(() => {
  upstream.close()
  log.closeAllConnections()
  log.close()
})
await gateway.reload({
  services: [
    {
      name: 'up',
      url: `http://127.0.0.1:${upstream.port}`,
      retries: 0,
      routes: [{ name: 'all', paths: ['/'], request_buffering: false }]
    }
  ],
  plugins: [
    {
      name: 'http-log',
      config: {
        http_endpoint: `http://127.0.0.1:${(log.address() as AddressInfo).port}/`,
        queue: { concurrency_limit: -1 }
      }
    }
  ]
})

/** Milliseconds without more of an answer after which a connection has said what it says. */
const SETTLED = 300

/** Sends the bytes of one connection, and gives what came back by its end or until it has settled. */
async function exchange(bytes: string): Promise<string> {
  const socket = net.connect(gateway.port, '127.0.0.1')
  socket.on('error', () => {})
  let answer = ''
  let closed = false
  let last = 0
  socket.setEncoding('latin1').on('data', chunk => {
    answer += chunk
    last = Date.now()
  })
  socket.once('close', () => {
    closed = true
  })
  socket.write(Buffer.from(bytes, 'latin1'))
  await until(
    () => closed || (answer !== '' && Date.now() - last > SETTLED),
    'an answer or the end'
  )
  socket.destroy()
  return answer
}

await t.test('nothing an attacker sends becomes two requests', async t => {
  const entries = Object.entries(corpus)
  const replayOne = async (name: string, bytes: string): Promise<void> => {
    const answered = statuses(await exchange(bytes))
    const refused = answered.findIndex(status => status >= 400)
    if (refused !== -1) {
      t.equal(answered.length, refused + 1, `${name}: nothing is served after a refusal`)
    } else {
      t.ok(answered.length <= 3, `${name}: ${answered}`)
    }
  }
  for (let i = 0; i < entries.length; i += 16) {
    await Promise.all(entries.slice(i, i + 16).map(([name, bytes]) => replayOne(name, bytes)))
  }
  await until(
    async () => (await gateway.status('/status')).json().inFlight === 0,
    'nothing in flight'
  )
  const forwarded = upstream.connections.reduce((sum, { requests }) => sum + requests, 0)
  t.ok(forwarded > 20)
  const heads = () => upstream.connections.flatMap(idsOf)
  await until(
    () => heads().length >= forwarded && heads().every(id => logged.has(id)),
    'the log of every request'
  )
  // One whose client left before it was sent is logged and was carried by none.
  const carried = new Set(heads())
  const answered = [...logged].filter(([, entry]) => entry.answered)
  t.ok(answered.length > 20)
  for (const [id] of answered) t.ok(carried.has(id), 'an answer is that of a request')
  // That a connection was cut is seen some turns later than the log of what was cut.
  const isAccounted = (each: Carried): boolean => {
    const { sent, answered } = accountOf(each)
    return each.cut ? each.requests >= answered : each.requests === sent
  }
  await until(() => upstream.connections.every(isAccounted), 'as many requests as were logged')
})

/** A real server on a free port that answers every request. */
interface Oracle {
  readonly name: string
  readonly binary: string
  configure(directory: string, port: number): Promise<readonly string[]>
}

const oracles: readonly Oracle[] = [
  {
    name: 'nginx',
    binary: '/usr/sbin/nginx',
    async configure(directory, port) {
      const file = join(directory, 'nginx.conf')
      await writeFile(
        file,
        `daemon off; worker_processes 1; pid ${directory}/nginx.pid; error_log ${directory}/nginx.log;
events {} http { access_log off; client_body_temp_path ${directory}; proxy_temp_path ${directory};
fastcgi_temp_path ${directory}; uwsgi_temp_path ${directory}; scgi_temp_path ${directory};
server { listen 127.0.0.1:${port}; location / { return 200 "ok"; } } }`
      )
      return ['-c', file, '-p', directory, '-e', `${directory}/nginx.log`]
    }
  },
  {
    name: 'HAProxy',
    binary: '/usr/sbin/haproxy',
    async configure(directory, port) {
      const file = join(directory, 'haproxy.cfg')
      await writeFile(
        file,
        `defaults
  mode http
  timeout client 5s
  timeout server 5s
  timeout connect 5s
frontend f
  bind 127.0.0.1:${port}
  http-request wait-for-body time 2s
  http-request return status 200 content-type text/plain string ok
`
      )
      return ['-db', '-f', file]
    }
  },
  {
    name: 'Apache',
    binary: '/usr/sbin/apache2',
    async configure(directory, port) {
      const file = join(directory, 'apache.conf')
      await writeFile(join(directory, 'page'), 'ok')
      await writeFile(
        file,
        `ServerRoot ${directory}
ServerName a.example
PidFile ${directory}/apache.pid
ErrorLog ${directory}/apache.log
Listen 127.0.0.1:${port}
LoadModule mpm_event_module /usr/lib/apache2/modules/mod_mpm_event.so
LoadModule authz_core_module /usr/lib/apache2/modules/mod_authz_core.so
LoadModule alias_module /usr/lib/apache2/modules/mod_alias.so
AllowEncodedSlashes NoDecode
AliasMatch ^ ${directory}/page
DocumentRoot ${directory}
`
      )
      return ['-DFOREGROUND', '-f', file]
    }
  }
]

async function replay(t: Test, { name, binary, configure }: Oracle): Promise<void> {
  const directory = await mkdtemp(join(tmpdir(), 'postern-oracle-'))
  const port = await freePort()
  const child: ChildProcess = spawn(binary, await configure(directory, port), { stdio: 'ignore' })
  try {
    await until(
      async () => (await raw(port, 'GET / HTTP/1.0\r\n\r\n')).startsWith('HTTP/1.1 '),
      `${name} to listen`
    )
    let total = 0
    for (const carried of upstream.connections) {
      const { bytes, cut } = carried
      // Opened for a client that had gone by then: nothing was sent over it.
      if (bytes.length === 0) continue
      const { sent, answered } = accountOf(carried)
      const socket = net.connect(port, '127.0.0.1')
      socket.on('error', () => {})
      let answer = ''
      socket.setEncoding('latin1').on('data', chunk => {
        answer += chunk
      })
      let closed = false
      socket.once('close', () => {
        closed = true
      })
      socket.write(bytes)
      // Its end comes after the answers: some servers drop what they have not answered by then.
      const due = cut ? answered : sent
      await until(() => closed || statuses(answer).length >= due, `${due} answers of ${name}`)
      socket.end()
      await until(() => closed, 'the end')
      const seen = statuses(answer).filter(status => status >= 200)
      const whole = cut ? seen.filter(status => status === 200) : seen
      t.ok(
        cut ? whole.length >= answered && whole.length <= sent : whole.length === sent,
        `${sent} requests were logged, ${answered} as answered; ${name} saw ${seen}`
      )
      total += whole.length
    }
    t.ok(total > 20)
  } finally {
    child.kill()
    if (child.exitCode === null) await once(child, 'exit')
    await rm(directory, { recursive: true, force: true })
  }
}

for (const oracle of oracles) {
  const lacks = existsSync(oracle.binary) ? false : `${oracle.name} is not installed`
  if (lacks !== false) process.stdout.write(`# ${lacks}: its replay is skipped\n`)
  await t.test(
    `${oracle.name} reads what went upstream as the gateway meant it`,
    { skip: lacks },
    t => replay(t, oracle)
  )
}
