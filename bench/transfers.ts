import { once } from 'node:events'
import http from 'node:http'
import { Readable } from 'node:stream'
import { answering, closeLab, need, PROXY_CORE, portOf, resident, start, stop } from './lab.ts'
import { postern } from './peers/index.ts'
import { conclude, outcome } from './targets.ts'

// A large download and a large upload at once, each with one slow side: how much memory they take.

const BYTES = Number(process.env.BENCH_TRANSFER_BYTES ?? 2 * 1024 ** 3)
const CHUNK = Buffer.alloc(65_536, 'x')

need('taskset')

/** As many bytes as asked for, never faster than they are taken. */
function endless(bytes: number): Readable {
  let left = bytes
  return new Readable({
    read() {
      if (left <= 0) this.push(null)
      else {
        this.push(left < CHUNK.length ? CHUNK.subarray(0, left) : CHUNK)
        left -= CHUNK.length
      }
    }
  })
}

/** Reads all of a stream, resting often, so that it is the slower side. */
async function readSlowly(stream: Readable): Promise<number> {
  let total = 0
  let rest = 0
  for await (const chunk of stream) {
    total += (chunk as Buffer).length
    if (total - rest > 32 * 1024 ** 2) {
      rest = total
      await new Promise(resolve => setTimeout(resolve, 50))
    }
  }
  return total
}

const upstream = http.createServer((request, response) => {
  if (request.method === 'GET') {
    if (request.url === '/') response.end('ok')
    else endless(BYTES).pipe(response)
  } else {
    void readSlowly(request).then(total => response.end(String(total)))
  }
})
upstream.listen(portOf(120), '127.0.0.1')
await once(upstream, 'listening')
try {
  const peer = postern(
    'transfers',
    portOf(301),
    `_format_version: "3.0"
services: [{ name: a, url: "http://127.0.0.1:${portOf(120)}", routes: [{ name: all, paths: [/] }] }]
`
  )
  const child = start(PROXY_CORE, peer.command, peer.env)
  await answering(`http://127.0.0.1:${peer.port}/`)
  // The first megabytes fill what every transfer needs once.
  await new Promise(resolve => setTimeout(resolve, 2000))
  const before = resident(child)
  let most = before
  const watching = setInterval(() => {
    most = Math.max(most, resident(child))
  }, 100)
  const began = performance.now()
  const down = new Promise<number>((resolve, reject) => {
    http
      .get({ port: peer.port, path: '/large' }, response => resolve(readSlowly(response)))
      .on('error', reject)
  })
  const up = new Promise<number>((resolve, reject) => {
    const request = http.request({ port: peer.port, method: 'POST', path: '/' }, async response => {
      let text = ''
      for await (const chunk of response) text += chunk
      resolve(Number(text))
    })
    request.on('error', reject)
    endless(BYTES).pipe(request)
  })
  const [downloaded, uploaded] = await Promise.all([down, up])
  clearInterval(watching)
  if (downloaded !== BYTES || uploaded !== BYTES) {
    throw new Error(`${downloaded} and ${uploaded} bytes arrived instead of ${BYTES}`)
  }
  const size = `${(BYTES / 1024 ** 3).toFixed(1)} GiB`
  console.log(
    `${size} both ways in ${((performance.now() - began) / 1000).toFixed(0)} s, from ${before.toFixed(0)} to at most ${most.toFixed(0)} MiB`
  )
  conclude('transfers', [
    outcome(`memory growth while ${size} go down and ${size} up, slow readers on both`, {
      measured: most - before,
      atMost: 48,
      unit: ' MiB',
      digits: 0
    })
  ])
  await stop(child)
} finally {
  upstream.closeAllConnections()
  upstream.close()
  await closeLab()
}
