import { once } from 'node:events'
import http2 from 'node:http2'
import type { AddressInfo } from 'node:net'
import grpc from '@grpc/grpc-js'
import t from 'tap'
import { certificateFor } from '../certificates.ts'
import { startGateway, until } from '../harness.ts'

const text = {
  serialize: (value: string) => Buffer.from(value),
  deserialize: (bytes: Buffer) => bytes.toString()
}
const method = (path: string, requestStream: boolean, responseStream: boolean) => ({
  path,
  requestStream,
  responseStream,
  requestSerialize: text.serialize,
  requestDeserialize: text.deserialize,
  responseSerialize: text.serialize,
  responseDeserialize: text.deserialize
})
const definition = {
  unary: method('/test.Echo/Unary', false, false),
  fail: method('/test.Echo/Fail', false, false),
  collect: method('/test.Echo/Collect', true, false),
  count: method('/test.Echo/Count', false, true),
  chat: method('/test.Echo/Chat', true, true)
}

async function startGrpc(credentials = grpc.ServerCredentials.createInsecure()) {
  const server = new grpc.Server()
  const seen: grpc.Metadata[] = []
  server.addService(
    definition as never,
    {
      unary(call: grpc.ServerUnaryCall<string, string>, done: grpc.sendUnaryData<string>) {
        seen.push(call.metadata)
        const trailers = new grpc.Metadata()
        trailers.set('x-trailer', 'end')
        done(null, `echo ${call.request}`, trailers)
      },
      fail(_call: unknown, done: grpc.sendUnaryData<string>) {
        const metadata = new grpc.Metadata()
        metadata.set('x-reason', 'closed')
        metadata.set('grpc-status-details-bin', Buffer.from('why'))
        done({ code: grpc.status.FAILED_PRECONDITION, details: 'not now: ü', metadata })
      },
      collect(call: grpc.ServerReadableStream<string, string>, done: grpc.sendUnaryData<string>) {
        let all = ''
        call.on('data', (part: string) => {
          all += part
        })
        call.on('end', () => done(null, all))
      },
      count(call: grpc.ServerWritableStream<string, string>) {
        for (let i = 1; i <= Number(call.request); i++) call.write(String(i))
        call.end()
      },
      chat(call: grpc.ServerDuplexStream<string, string>) {
        call.on('data', (part: string) => call.write(`re: ${part}`))
        call.on('end', () => call.end())
      }
    } as never
  )
  const port = await new Promise<number>((resolve, reject) =>
    server.bindAsync('127.0.0.1:0', credentials, (error, bound) =>
      error === null ? resolve(bound) : reject(error)
    )
  )
  return { port, seen, close: () => server.forceShutdown() }
}

const upstream = await startGrpc()
const gateway = await startGateway(
  {
    services: [
      {
        name: 'grpc',
        url: `grpc://127.0.0.1:${upstream.port}`,
        retries: 0,
        read_timeout: 10_000,
        routes: [
          { name: 'echo', protocols: ['grpc', 'grpcs'], paths: ['/test.Echo'] },
          {
            name: 'locked',
            protocols: ['grpc', 'grpcs'],
            paths: ['/locked.Echo'],
            plugins: [{ name: 'key-auth' }]
          }
        ]
      },
      {
        name: 'gone',
        url: 'grpc://127.0.0.1:1',
        retries: 0,
        routes: [{ name: 'gone', protocols: ['grpc', 'grpcs'], paths: ['/gone.Echo'] }]
      }
    ]
  },
  { env: { POSTERN_PROXY_LISTEN: '127.0.0.1:0 http2 ssl' } }
)
const Client = grpc.makeGenericClientConstructor(definition as never, 'Echo')
const port = new URL(gateway.tlsUrl!).port
// The gateway's certificate is its own and made for this start: the connection takes it as it is.
const credentials = grpc.credentials.createSsl(null, null, null, {
  rejectUnauthorized: false
})
const client = new Client(`127.0.0.1:${port}`, credentials)
t.teardown(async () => {
  client.close()
  upstream.close()
  await gateway.close()
})

type Unary = (
  request: string,
  metadata: grpc.Metadata,
  done: (error: grpc.ServiceError | null, value?: string) => void
) => grpc.ClientUnaryCall
const unary = (name: string, request: string) =>
  new Promise<{
    value?: string | undefined
    error: grpc.ServiceError | null
    status: grpc.StatusObject
  }>(resolve => {
    const metadata = new grpc.Metadata()
    metadata.set('x-user', 'ann')
    const call = (client[name] as unknown as Unary).call(
      client,
      request,
      metadata,
      (error, value) => {
        call.on('status', status => resolve({ error, value, status }))
      }
    )
  })

await t.test('unary calls with metadata and trailers', async t => {
  const { value, error, status } = await unary('unary', 'hello')
  t.equal(error, null)
  t.equal(value, 'echo hello')
  t.same(status.metadata.get('x-trailer'), ['end'])
  t.same(upstream.seen[0]!.get('x-user'), ['ann'])
  t.match(upstream.seen[0]!.get('via'), [/^2 postern/])
  for (let i = 0; i < 20; i++) t.equal((await unary('unary', `${i}`)).value, `echo ${i}`)
})

await t.test('an error of the upstream, which ends with its head', async t => {
  const { error } = await unary('fail', 'x')
  t.equal(error?.code, grpc.status.FAILED_PRECONDITION)
  t.equal(error?.details, 'not now: ü')
  t.same(error?.metadata.get('x-reason'), ['closed'], 'metadata of the error')
  t.same(error?.metadata.get('grpc-status-details-bin'), [Buffer.from('why')])
})

await t.test('streams from the client, from the server, and both ways at once', async t => {
  const collected = await new Promise<string>((resolve, reject) => {
    const call = client.collect!((error: Error | null, value: string) =>
      error === null ? resolve(value) : reject(error)
    ) as unknown as grpc.ClientWritableStream<string>
    for (const part of ['a', 'b', 'x'.repeat(200_000)]) call.write(part)
    call.end()
  })
  t.equal(collected.length, 200_002)
  const counted: string[] = []
  const counting = client.count!('50') as unknown as grpc.ClientReadableStream<string>
  counting.on('data', (part: string) => counted.push(part))
  await once(counting, 'end')
  t.equal(counted.length, 50)
  t.equal(counted.at(-1), '50')
  const chat = client.chat!() as unknown as grpc.ClientDuplexStream<string, string>
  for (const part of ['one', 'two', 'three']) {
    chat.write(part)
    const [answer] = await once(chat, 'data')
    t.equal(answer, `re: ${part}`, 'answered before the request has ended')
  }
  chat.end()
  chat.resume()
  await once(chat, 'end')
})

await t.test("the gateway's own errors come as grpc-status", async t => {
  const call = (path: string) =>
    new Promise<grpc.ServiceError>(resolve => {
      client.makeUnaryRequest(path, text.serialize, text.deserialize, 'x', error =>
        resolve(error as grpc.ServiceError)
      )
    })
  t.match(await call('/none.Echo/Unary'), {
    code: grpc.status.NOT_FOUND,
    details: 'no Route matched with those values'
  })
  t.equal((await call('/locked.Echo/Unary')).code, grpc.status.UNAUTHENTICATED)
  t.equal((await call('/gone.Echo/Unary')).code, grpc.status.INTERNAL)
})

await t.test(
  'grpcs: with a client certificate, trailers included; verified unless told otherwise',
  async t => {
    const server = await certificateFor('grpc.test')
    const known = await certificateFor('gateway.test')
    const secure = await startGrpc(
      grpc.ServerCredentials.createSsl(
        Buffer.from(known.cert),
        [{ private_key: Buffer.from(server.key), cert_chain: Buffer.from(server.cert) }],
        true
      )
    )
    const plain = await startGrpc()
    t.teardown(() => {
      secure.close()
      plain.close()
    })
    const PAIR = '10000000-0000-0000-0000-000000000002'
    const ports = { mutual: secure.port, stranger: secure.port, insecure: plain.port }
    const config = {
      certificates: [{ id: PAIR, ...known }],
      upstreams: Object.entries(ports).map(([name, port]) => ({
        name,
        host_header: 'grpc.test',
        ...(name === 'mutual' ? { client_certificate: { id: PAIR } } : {}),
        targets: [{ target: `127.0.0.1:${port}` }]
      })),
      services: Object.keys(ports).map(name => ({
        name,
        protocol: 'grpcs',
        host: name,
        retries: 0,
        routes: [{ name, protocols: ['grpcs'], paths: ['/'], headers: { 'x-user': [name] } }]
      }))
    }
    const listen = { POSTERN_PROXY_LISTEN: '127.0.0.1:0 http2 ssl' }
    await using strict = await startGateway(config, { env: listen })
    await using lax = await startGateway(config, {
      env: { ...listen, POSTERN_UPSTREAM_TLS_VERIFY: 'off' }
    })
    const clientOf = ({ tlsUrl }: { readonly tlsUrl: string | undefined }) => {
      const client = new Client(`127.0.0.1:${new URL(tlsUrl!).port}`, credentials)
      t.teardown(() => client.close())
      return client
    }
    const ask = (client: InstanceType<typeof Client>, user: string) =>
      new Promise<{ error: grpc.ServiceError | null; value?: string; status: grpc.StatusObject }>(
        resolve => {
          const metadata = new grpc.Metadata()
          metadata.set('x-user', user)
          const call = (client.unary as unknown as Unary).call(
            client,
            'hi',
            metadata,
            (error, value) => {
              call.on('status', status =>
                resolve({ error, status, ...(value === undefined ? {} : { value }) })
              )
            }
          )
        }
      )
    const client = clientOf(lax)
    for (let i = 0; i < 3; i++) {
      const { error, value, status } = await ask(client, 'mutual')
      t.equal(error, null)
      t.equal(value, 'echo hi')
      t.same(status.metadata.get('x-trailer'), ['end'])
    }
    for (const user of ['stranger', 'insecure']) {
      t.equal((await ask(client, user)).error?.code, grpc.status.INTERNAL, user)
    }
    const refused = await ask(clientOf(strict), 'mutual')
    t.equal(refused.error?.code, grpc.status.INTERNAL, 'a certificate nobody vouches for')
  }
)

await t.test('a client that goes away ends the call upstream', async t => {
  const server = http2.createServer()
  let aborted = false
  server.on('stream', stream => {
    stream.respond({ ':status': 200, 'content-type': 'application/grpc' })
    stream.on('aborted', () => {
      aborted = true
    })
    stream.on('error', () => {})
  })
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  t.teardown(() => server.close())
  await gateway.reload({
    services: [
      {
        name: 'grpc',
        url: `grpc://127.0.0.1:${(server.address() as AddressInfo).port}`,
        routes: [{ name: 'echo', protocols: ['grpc', 'grpcs'], paths: ['/test.Echo'] }]
      }
    ]
  })
  const call = client.count!('1') as unknown as grpc.ClientReadableStream<string>
  call.on('error', () => {})
  await once(call, 'metadata')
  call.cancel()
  t.ok(await until(() => aborted, 'the call to end upstream'))
})
