import { fingerprinter } from './fingerprint.ts'
import type { Secrets } from './generation.ts'
import type { LiveSettings } from './live-settings.ts'
import type { Loaded } from './resolve.ts'
import type { ReferenceStatus } from './vault/vaults.ts'

/** What a running configuration lacks, one line each; empty when it has everything. */
export function lacks({ config, set }: Loaded, secrets: Secrets): readonly string[] {
  const failures = new Map<string, string>()
  for (const [text, state] of secrets) if ('failure' in state) failures.set(text, state.failure)
  if (failures.size === 0) return []
  const certificates = new Map<string, string>()
  for (const { kind, id, references } of config.uses) {
    const missing = references.find(text => failures.has(text))
    if (kind === 'certificates' && missing !== undefined) certificates.set(id, missing)
  }
  const names = config.snis.filter(({ certificate }) => certificates.has(certificate.id))
  return [
    ...[...failures].map(([text, failure]) => {
      // What was read since and refused says more than why there was nothing before.
      const refused = set.resourceOf(text)?.rejected
      return `${text} has no value (${refused === undefined ? failure : `invalid: ${refused}`})`
    }),
    ...names.map(({ name, certificate }) => {
      const reference = certificates.get(certificate.id)
      return `TLS for ${name} is refused: its certificate needs ${reference}`
    })
  ]
}

/** Every reference with its state, its places and, under a key, its fingerprint; never a value. */
export function referenceReport(
  { config, set }: Loaded,
  statuses: readonly ReferenceStatus[],
  secrets: Secrets,
  live: LiveSettings
): readonly object[] {
  const uses = [...config.uses, ...live.references]
  const used = Map.groupBy(
    uses.flatMap(use => use.references.map(text => ({ text, place: use.place }))),
    ({ text }) => text
  )
  const key = fingerprintKey(live, secrets)
  const fingerprint = key === undefined ? undefined : fingerprinter(key)
  return statuses.map(status => {
    const value = fingerprint && valueInForce(status.reference, secrets, set)
    return {
      ...status,
      ...(value === undefined ? {} : { fingerprint: fingerprint!(value) }),
      used: (used.get(status.reference) ?? []).map(({ place }) =>
        place.file === 'environment'
          ? place.path
          : `${place.file}:${place.line}:${place.column} ${place.path}`
      )
    }
  })
}

/** Undefined while it is not set, or has no value. */
function fingerprintKey(live: LiveSettings, secrets: Secrets): string | undefined {
  try {
    return live.text('fingerprintKey', secrets)?.value
  } catch {
    return undefined
  }
}

/** The value in force; for what only vaults use themselves the one they were given. */
function valueInForce(text: string, secrets: Secrets, set: Loaded['set']): string | undefined {
  const state = secrets.get(text)
  if (state !== undefined) return 'failure' in state ? undefined : state.value
  const outcome = set.outcome(text)
  return outcome.state === 'ok' ? outcome.value : undefined
}
