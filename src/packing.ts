import { deserialize, serialize } from 'node:v8'
import type { ListenerTls, SecretColumns, ServedConfig } from './generation.ts'
import { inSlices } from './pace.ts'

/** Entities in one block: reading it takes about as long as a slice of work may. */
const BLOCK = 200

/**
 * A configuration as bytes, some entities to a block. A thread that serves takes thousands of entities
 * over block by block; as objects of one message they would hold it until the last is read.
 */
export interface PackedConfig {
  readonly blocks: readonly { readonly kind: string; readonly bytes: Uint8Array }[]
  /** Whatever is no list of entities. */
  readonly rest: object
}

/** A generation as it crosses threads. */
export interface SentGeneration {
  readonly config: PackedConfig
  readonly secrets: SecretColumns
  readonly tls: ListenerTls
}

/** Packs a configuration, which is plain data. */
export function pack(config: ServedConfig): PackedConfig {
  const blocks: { kind: string; bytes: Uint8Array }[] = []
  const rest: Record<string, unknown> = {}
  for (const [kind, members] of Object.entries(config)) {
    if (!Array.isArray(members)) {
      rest[kind] = members
      continue
    }
    for (let at = 0; at === 0 || at < members.length; at += BLOCK) {
      blocks.push({ kind, bytes: serialize(members.slice(at, at + BLOCK)) })
    }
  }
  return { blocks, rest }
}

/** The opposite of {@link pack}, in slices. */
export async function unpack({ blocks, rest }: PackedConfig): Promise<ServedConfig> {
  const lists: Record<string, unknown[]> = {}
  await inSlices(blocks, ({ kind, bytes }) => {
    lists[kind] ??= []
    lists[kind].push(...(deserialize(bytes) as unknown[]))
  })
  return { ...rest, ...lists } as unknown as ServedConfig
}
