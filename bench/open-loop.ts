import { once } from 'node:events'
import { connect, type Socket } from 'node:net'
import { isMainThread, parentPort, Worker } from 'node:worker_threads'

// A load at a constant rate, whatever the server does: `node bench/open-loop.ts PORT RATE SECONDS [PATH]`
// prints an OpenLoop as JSON. Latency counts from when a request was due, not from when a connection
// was free to send it. So a server that stands still is charged with all requests it kept waiting,
// of which a closed loop like wrk sends only one for each connection (coordinated omission).

/** What the load saw. Latencies in milliseconds. */
export interface OpenLoop {
  readonly sent: number
  readonly failed: number
  readonly p50: number
  readonly p99: number
  /** How late the load itself looked at 99 % of the requests: what it adds to their latency at most. */
  readonly late99: number
}

const CONNECTIONS = 64
/** Milliseconds between two looks at what is due. */
const BEAT = 0.2
/** Milliseconds that answers are waited for after the last request. */
const LAST_ANSWERS = 5000

const [port, rate, seconds, path = '/'] = process.argv.slice(2)
const REQUEST = `GET ${path} HTTP/1.1\r\nHost: bench\r\n\r\n`

/** A timer of fractions of a millisecond: those of an event loop have whole ones. */
function beat(): never {
  const cell = new Int32Array(new SharedArrayBuffer(4))
  for (;;) {
    Atomics.wait(cell, 0, 0, BEAT)
    parentPort!.postMessage(undefined)
  }
}

/** One connection and the request that it carries. */
class Line {
  readonly #socket: Socket
  readonly #answered: (line: Line, latency: number, ok: boolean) => void
  #due = 0
  #text = ''

  constructor(socket: Socket, answered: (line: Line, latency: number, ok: boolean) => void) {
    this.#socket = socket
    this.#answered = answered
    socket.setEncoding('latin1').on('data', (chunk: string) => this.#read(chunk))
    socket.on('error', error => {
      throw error
    })
  }

  ask(due: number): void {
    this.#due = due
    this.#socket.write(REQUEST)
  }

  #read(chunk: string): void {
    this.#text += chunk
    const end = this.#text.indexOf('\r\n\r\n')
    if (end === -1) return
    const [, length] = /\r\ncontent-length: *(\d+)/i.exec(this.#text)!
    if (this.#text.length < end + 4 + Number(length)) return
    const ok = this.#text.startsWith('HTTP/1.1 200')
    this.#text = ''
    this.#answered(this, performance.now() - this.#due, ok)
  }
}

async function measure(port: number, rate: number, seconds: number): Promise<OpenLoop> {
  const idle: Line[] = []
  const latencies: number[] = []
  const lateness: number[] = []
  let failed = 0
  /** Requests that are due and those sent, both since the beginning: one waits while they differ. */
  let due = 0
  let sent = 0
  const total = Math.round(rate * seconds)
  const interval = 1000 / rate
  let began = 0

  const send = (): void => {
    while (sent < due && idle.length > 0) idle.shift()!.ask(began + sent++ * interval)
  }
  const answered = (line: Line, latency: number, ok: boolean): void => {
    latencies.push(latency)
    if (!ok) failed++
    idle.push(line)
    send()
  }
  for (let i = 0; i < CONNECTIONS; i++) {
    const socket = connect({ port, host: '127.0.0.1', noDelay: true })
    await once(socket, 'connect')
    idle.push(new Line(socket, answered))
  }
  const metronome = new Worker(new URL(import.meta.url))
  await once(metronome, 'message')
  began = performance.now() + 100
  await new Promise<void>(resolve => {
    metronome.on('message', () => {
      const now = performance.now()
      while (due < total && began + due * interval <= now) {
        lateness.push(now - (began + due * interval))
        due++
      }
      send()
      if (due === total) resolve()
    })
  })
  await metronome.terminate()
  const end = performance.now() + LAST_ANSWERS
  while (latencies.length < total && performance.now() < end) {
    await new Promise(resolve => setTimeout(resolve, 10))
  }
  const unanswered = total - latencies.length
  // As long as they were waited for at least.
  latencies.push(...Array.from({ length: unanswered }, () => LAST_ANSWERS))
  const at = (values: readonly number[], part: number): number =>
    values.toSorted((a, b) => a - b)[Math.floor(values.length * part)] ?? 0
  return {
    sent,
    failed: failed + unanswered,
    p50: at(latencies, 0.5),
    p99: at(latencies, 0.99),
    late99: at(lateness, 0.99)
  }
}

if (isMainThread) {
  const measured = await measure(Number(port), Number(rate), Number(seconds))
  process.stdout.write(JSON.stringify(measured))
  process.exit(0)
}
beat()
