import { inSlices } from '../pace.ts'
import type { Route } from '../schema/entities.ts'

/**
 * Routes as JSON in memory that threads share: a thread that serves reads one when the first request
 * for it comes. As objects, with the trees they were looked up in, ten thousand of them cost each
 * thread 45 ms of CPU time a reload (now 3) and 17 MB, which its collector moved while requests waited.
 */
export interface PackedRoutes {
  readonly bytes: Uint8Array
  /** Where each begins, and where the last ends. */
  readonly starts: Uint32Array
}

/** Packs routes, which are plain data; in slices. */
export async function packRoutes(routes: readonly Route[]): Promise<PackedRoutes> {
  const texts: string[] = []
  const starts = new Uint32Array(new SharedArrayBuffer((routes.length + 1) * 4))
  let end = 0
  await inSlices(routes, route => {
    const text = JSON.stringify(route)
    texts.push(text)
    end += Buffer.byteLength(text)
    starts[texts.length] = end
  })
  const bytes = Buffer.from(new SharedArrayBuffer(end))
  await inSlices(texts.entries(), ([place, text]) => bytes.write(text, starts[place]!))
  return { bytes, starts }
}

/** The route at a place. */
export function unpackRoute({ bytes, starts }: PackedRoutes, place: number): Route {
  const { buffer, byteOffset } = bytes
  const start = starts[place]!
  const text = Buffer.from(buffer, byteOffset + start, starts[place + 1]! - start)
  return JSON.parse(text.toString()) as Route
}
