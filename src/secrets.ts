import { redactor } from './redaction.ts'
import { parseTemplate } from './vault/reference.ts'

/** What a reference stands for now: its value, or why there is none. */
export type SecretState =
  | { readonly value: string; readonly previous?: string }
  | { readonly failure: string }

/** Every reference of a configuration, by its text, with its state. Crosses threads as plain data. */
export type Secrets = ReadonlyMap<string, SecretState>

/** Has this thread mask these values, the previous ones too, in whatever it writes about itself. */
export function maskSecrets(secrets: Secrets): void {
  for (const [text, state] of secrets) {
    if ('failure' in state) redactor.hold(text, [])
    else redactor.hold(text, [state.value, state.previous ?? ''])
  }
}

/** A reference of this use has no value, so what it belongs to cannot work. */
class MissingSecret extends Error {}

/**
 * The text of a referenceable field with its references replaced, and the same with their previous
 * values where there are any. Resolved values are never looked into for further references.
 */
export function resolveTemplate(
  template: string,
  secrets: Secrets
): { readonly value: string; readonly previous?: string } {
  const parts = parseTemplate(template)
  if (parts === undefined) return { value: template }
  let value = ''
  let previous = ''
  let rotated = false
  for (const part of parts) {
    if (typeof part === 'string') {
      value += part
      previous += part
      continue
    }
    const state = secrets.get(part.text)
    if (state === undefined || 'failure' in state)
      throw new MissingSecret(`no value for ${part.text}`)
    value += state.value
    previous += state.previous ?? state.value
    if (state.previous !== undefined) rotated = true
  }
  return rotated ? { value, previous } : { value }
}
