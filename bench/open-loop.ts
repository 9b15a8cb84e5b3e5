import { once } from 'node:events'
import { connect, type Socket } from 'node:net'
import { isMainThread, parentPort, Worker } from 'node:worker_threads'

// A load at a constant rate, whatever the server does: `node bench/open-loop.ts PORT RATE SECONDS [PATH]`
// prints an OpenLoop as JSON. Latency counts from when a request was due, not from when a connection
// was free to send it. So a server that stands still is charged with all requests it kept waiting,
// of which a closed loop like wrk sends only one for each connection (coordinated omission).

/** What the load saw. Latencies in milliseconds. */
export interface OpenLoop {
  /** Requests that count. */
  readonly sent: number
  /** Of all that were sent. */
  readonly failed: number
  readonly p50: number
  readonly p99: number
  /** How late the load itself looked at 99 % of the requests: what it adds to their latency at most. */
  readonly late99: number
}

const CONNECTIONS = 64
/** Milliseconds between two looks at what is due. */
const BEAT = 0.2
/**
 * Milliseconds of the same load before it counts: the program itself is compiled while it runs, and in
 * its first tenths of a second it is what is late. They are more than one in a hundred of a short run.
 */
const WARM_UP = 1000
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

/** Memory that all connections are read into; nothing of it is kept. */
const memory = Buffer.allocUnsafeSlow(65_536)
const HEAD_END = Buffer.from('\r\n\r\n')
/** The first digit of the status in `HTTP/1.1 200`. */
const STATUS_AT = 9

/** One connection and the request that it carries. Cheap, so that the load is no part of what it measures. */
class Line {
  readonly #socket: Socket
  readonly #answered: (line: Line, latency: number, ok: boolean) => void
  #due = 0
  /** How many requests were sent before the one it carries. */
  number = 0
  #ok = false
  /** Bytes of the answer still to come; -1 before its head. */
  #left = -1

  constructor(port: number, answered: (line: Line, latency: number, ok: boolean) => void) {
    this.#answered = answered
    const onread = { buffer: memory, callback: (length: number) => this.#read(length) }
    this.#socket = connect({ port, host: '127.0.0.1', noDelay: true, onread })
    this.#socket.on('error', error => {
      throw error
    })
  }

  async open(): Promise<void> {
    await once(this.#socket, 'connect')
  }

  ask(due: number, number: number): void {
    this.#due = due
    this.number = number
    this.#socket.write(REQUEST, 'latin1')
  }

  #read(length: number): boolean {
    if (this.#left === -1) {
      // Heads of the peers leave in one write.
      const head = memory.subarray(0, length).indexOf(HEAD_END)
      if (head === -1) throw new Error('An answer came in more pieces than this load reads.')
      this.#ok = memory[STATUS_AT] === 50 && memory[STATUS_AT + 1] === 48
      this.#left = head + HEAD_END.length + bodyLength(head)
    }
    this.#left -= length
    if (this.#left > 0) return true
    this.#left = -1
    this.#answered(this, performance.now() - this.#due, this.#ok)
    return true
  }
}

let known = { head: -1, length: 0 }

/** The Content-Length of the answer in memory. All answer one path, so heads of one length say the same. */
function bodyLength(head: number): number {
  if (known.head !== head) {
    const [, digits] = /\r\ncontent-length: *(\d+)/i.exec(memory.toString('latin1', 0, head + 2))!
    known = { head, length: Number(digits) }
  }
  return known.length
}

async function measure(port: number, rate: number, seconds: number): Promise<OpenLoop> {
  const idle: Line[] = []
  const latencies: number[] = []
  const lateness: number[] = []
  let failed = 0
  let answers = 0
  /** Requests that are due and those sent, both since the beginning: one waits while they differ. */
  let due = 0
  let sent = 0
  const interval = 1000 / rate
  const uncounted = Math.round(WARM_UP / interval)
  const counted = Math.round(rate * seconds)
  const total = uncounted + counted
  let began = 0

  const send = (): void => {
    while (sent < due && idle.length > 0) idle.shift()!.ask(began + sent * interval, sent++)
  }
  const answered = (line: Line, latency: number, ok: boolean): void => {
    answers++
    if (line.number >= uncounted) latencies.push(latency)
    if (!ok) failed++
    idle.push(line)
    send()
  }
  for (let i = 0; i < CONNECTIONS; i++) {
    const line = new Line(port, answered)
    await line.open()
    idle.push(line)
  }
  const metronome = new Worker(new URL(import.meta.url))
  await once(metronome, 'message')
  began = performance.now() + 100
  await new Promise<void>(resolve => {
    metronome.on('message', () => {
      const now = performance.now()
      while (due < total && began + due * interval <= now) {
        if (due >= uncounted) lateness.push(now - (began + due * interval))
        due++
      }
      send()
      if (due === total) resolve()
    })
  })
  await metronome.terminate()
  const end = performance.now() + LAST_ANSWERS
  while (answers < total && performance.now() < end) {
    await new Promise(resolve => setTimeout(resolve, 10))
  }
  const unanswered = total - answers
  // As long as they were waited for at least, whenever they were sent.
  latencies.push(...Array.from({ length: unanswered }, () => LAST_ANSWERS))
  const at = (values: readonly number[], part: number): number =>
    values.toSorted((a, b) => a - b)[Math.floor(values.length * part)] ?? 0
  return {
    sent: sent - uncounted,
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
