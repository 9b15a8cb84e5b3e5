import { MessageChannel, receiveMessageOnPort } from 'node:worker_threads'
import t from 'tap'
import type { ServedConfig } from '../src/generation.ts'
import { pack, unpack } from '../src/packing.ts'

const config = {
  transform: true,
  places: new Map([['p', 'file:1:2']]),
  services: [{ id: 's', tags: undefined }],
  consumers: Array.from({ length: 1001 }, (_, i) => ({ id: `c${i}`, tags: new Map([['a', i]]) })),
  acls: []
} as unknown as ServedConfig

await t.test('what is packed comes out as it was, in its order', async t => {
  const packed = pack(config)
  t.ok(packed.blocks.length > 3, 'the consumers take several blocks')
  t.same(await unpack(packed), config)
})

await t.test('it crosses threads', async t => {
  const { port1, port2 } = new MessageChannel()
  t.teardown(() => port1.close())
  port1.postMessage(pack(config))
  const { message } = receiveMessageOnPort(port2) as { message: ReturnType<typeof pack> }
  t.same(await unpack(message), config)
})

await t.test('other work has its turn while thousands are unpacked', async t => {
  const consumers = Array.from({ length: 50_000 }, (_, i) => ({ id: `c${i}`, tags: [`t${i}`] }))
  const packed = pack({ ...config, consumers } as unknown as ServedConfig)
  let turns = 0
  const counting = setInterval(() => turns++)
  t.teardown(() => clearInterval(counting))
  const { consumers: unpacked } = await unpack(packed)
  t.equal(unpacked.length, 50_000)
  t.ok(turns > 0)
})
