import { MessageChannel, receiveMessageOnPort } from 'node:worker_threads'
import t from 'tap'
import { type PackedRoutes, packRoutes, unpackRoute } from '../../src/proxy/packed-routes.ts'
import { compileRoutes, type RouteTable } from '../../src/proxy/route-table.ts'
import { Router } from '../../src/proxy/router.ts'
import type { Route } from '../../src/schema/entities.ts'

const routes = Array.from(
  { length: 300 },
  (_, i) =>
    ({
      id: `r${i}`,
      name: `ü${'🙂'.repeat(i % 3)}${i}`,
      protocols: ['http', 'https'],
      hosts: i % 2 === 0 ? undefined : [`h${i}.example`],
      paths: [`/p${i}/`, `~/x${i}/\\d+$`],
      headers: i % 5 === 0 ? { 'x-tenant': [`t${i}`] } : undefined,
      strip_path: true
    }) as unknown as Route
)

const otherThread = <T>(message: T): T => {
  const { port1, port2 } = new MessageChannel()
  port1.postMessage(message)
  const received = receiveMessageOnPort(port2) as { message: T }
  port1.close()
  return received.message
}

await t.test('each route comes out as it was', async t => {
  const packed = await packRoutes(routes)
  for (const [place, route] of routes.entries()) {
    t.same(unpackRoute(packed, place), JSON.parse(JSON.stringify(route)))
  }
  t.same((await packRoutes([])).bytes.length, 0)
})

await t.test('threads share the memory of routes and their table, and find the same', async t => {
  const sent = { table: await compileRoutes(routes, new Map()), packed: await packRoutes(routes) }
  const { table, packed }: { table: RouteTable; packed: PackedRoutes } = otherThread(sent)
  for (const [mine, theirs] of [
    [sent.table.words, table.words],
    [sent.table.text, table.text],
    [sent.packed.bytes, packed.bytes],
    [sent.packed.starts, packed.starts]
  ] as const) {
    t.ok(mine.buffer instanceof SharedArrayBuffer)
    mine[0]! ^= 1
    t.equal(theirs[0], mine[0], 'no copy')
    mine[0]! ^= 1
  }
  const read: number[] = []
  const routeAt = (place: number): Route => {
    read.push(place)
    return unpackRoute(packed, place)
  }
  const router = new Router(table, routeAt, new Map())
  for (const [place, { name }] of routes.entries()) {
    const host = place % 2 === 0 ? 'any.example' : `h${place}.example`
    const rawHeaders = place % 5 === 0 ? ['X-Tenant', `T${place}`] : []
    const facts = { method: 'GET', host, port: 80, rawHeaders, sni: undefined }
    for (const path of [`/p${place}/a`, `/x${place}/42`]) {
      t.equal(router.match({ ...facts, path })?.route.name, name)
    }
    t.equal(router.match({ ...facts, path: `/p${place}` }), undefined)
  }
  t.same(read, [...routes.keys()], 'each is read once, with the first request for it')
})

await t.test(
  'routes that agree in their traits share them, and are not read for a match',
  async t => {
    const plain = Array.from({ length: 90 }, (_, i) => ({
      ...routes[0]!,
      id: `r${i}`,
      hosts: undefined,
      headers: undefined,
      paths: [`/p${i}/`],
      strip_path: i % 3 === 0,
      protocols: i % 3 === 1 ? ['https'] : ['http', 'https']
    })) as unknown as Route[]
    const table = await compileRoutes(plain, new Map())
    t.equal(table.traits.length, 3)
    const router = new Router(
      table,
      place => {
        throw new Error(`route ${place} was read`)
      },
      new Map()
    )
    const facts = { method: 'GET', host: 'h', port: 80, rawHeaders: [], sni: undefined }
    const found = plain.map((_, i) => router.match({ ...facts, path: `/p${i}/a` })!)
    for (const [i, { place, traits, prefix }] of found.entries()) {
      t.equal(place, i)
      t.equal(prefix, `/p${i}/`)
      t.equal(traits, found[i % 3]!.traits)
      t.equal(traits.stripPath, i % 3 === 0)
      t.equal(traits.tlsOnly, i % 3 === 1)
    }
    t.throws(() => found[0]!.route, { message: 'route 0 was read' })
  }
)
