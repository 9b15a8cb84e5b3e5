import type { Socket } from 'node:net'
import { buildConnector } from 'undici'

/** Bytes of one read at most: as many as a socket's buffer of its own would take. */
export const READ_SIZE = 65_536

/**
 * What connections to upstreams are read into, all of a thread into the same memory: a read is over
 * before the next begins. With new memory for every read, and written through node's response object
 * (see `client-body.ts`), a response of 1 MB took 2.5 times the CPU time.
 */
const memory = Buffer.allocUnsafeSlow(READ_SIZE)

/** Takes bytes of a connection; false stops the reading until its socket is resumed. */
type Reader = (chunk: Buffer) => boolean

interface Reading {
  socket: Socket | undefined
  reader: Reader | undefined
}

const readings = new WeakMap<Socket, Reading>()

/**
 * A connector of sockets that are read into shared memory; the options are those of undici's. Whoever
 * takes such a socket calls {@link readBy}, in the callback it got it by.
 */
export function sharedReadConnector(
  options: buildConnector.BuildOptions
): buildConnector.connector {
  return (target, callback) => {
    const reading: Reading = { socket: undefined, reader: undefined }
    const onread = {
      buffer: memory,
      callback(bytes: number): boolean {
        // RFC 9112 §9.2: what comes before anybody asked is no response to anything.
        if (reading.reader === undefined) reading.socket?.destroy()
        return reading.reader?.(memory.subarray(0, bytes)) ?? false
      }
    }
    buildConnector({ ...options, onread } as buildConnector.BuildOptions)(target, (...result) => {
      const [error, socket] = result
      if (error === null) {
        reading.socket = socket
        readings.set(socket, reading)
      }
      callback(...result)
    })
  }
}

/** Has `onData` take what comes over a socket of any connector: see {@link isBorrowed}. */
export function readBy(socket: Socket, onData: (chunk: Buffer) => void): void {
  const reading = readings.get(socket)
  if (reading === undefined) {
    socket.on('data', onData)
    return
  }
  reading.reader = chunk => {
    onData(chunk)
    return !socket.isPaused()
  }
}

/** Ends {@link readBy}: the socket is an ordinary stream from here on. */
export function readAsStream(socket: Socket, onData: (chunk: Buffer) => void): void {
  const reading = readings.get(socket)
  if (reading === undefined) socket.off('data', onData)
  else reading.reader = chunk => socket.push(Buffer.from(chunk))
}

/** Whether the bytes are in shared memory: the next read, of any connection, overwrites them. */
export function isBorrowed(chunk: Buffer): boolean {
  return chunk.buffer === memory.buffer
}

/** The bytes, in memory of their own if they were borrowed. */
export function owned(chunk: Buffer): Buffer {
  return isBorrowed(chunk) ? Buffer.from(chunk) : chunk
}
