import { fingerprinter } from '../fingerprint.ts'
import { redactor } from '../redaction.ts'
import { renderTable } from '../report.ts'
import { collect, openVaults, prepareSettings, readConfig, resolvedSource } from '../resolve.ts'
import { parseReference } from '../vault/reference.ts'
import { ask } from './ask.ts'
import { resolve } from './check.ts'
import { atMost, type Call, UsageError } from './command.ts'
import { referenceRows, showReferences } from './references.ts'

/** `postern vault get|list|refresh`. */
export async function vault(call: Call): Promise<number> {
  const [action, ...words] = call.words
  switch (action) {
    case 'get':
      atMost(words, 1)
      if (words[0] === undefined)
        throw new UsageError('vault get needs a reference, such as {vault://env/name}.')
      return get(call, words[0])
    case 'list':
      atMost(words, 0)
      return list(call)
    case 'refresh': {
      atMost(words, 1)
      const query = words[0] === undefined ? '' : `?prefix=${encodeURIComponent(words[0])}`
      return ask(call, 'POST', `/vaults/refresh${query}`)
    }
    default:
      throw new UsageError('vault needs one of get, list, refresh.')
  }
}

async function get({ env, options, output }: Call, word: string): Promise<number> {
  const reference = parseReference(
    word.startsWith('{') ? word : `{vault://${word.replace(/^vault:\/\//, '')}}`
  )
  const { settings, vaults } = await prepareSettings(env)
  // A default vault needs no file; a prefix of the file's own vaults does.
  const set = vaults.backendTypes.some(type => type.name === reference.vault)
    ? vaults.prepare([])
    : (await readConfig(settings, vaults)).set
  try {
    const complaint = set.check(reference)
    if (complaint !== undefined) {
      output.tell(`${reference.text}: ${complaint.message}. ${complaint.fix}`)
      return 1
    }
    const outcome = (await set.load([reference])).get(reference.text)!
    if (outcome.state !== 'ok') {
      if (options.json)
        output.outJson({ reference: reference.text, vault: reference.vault, ...outcome })
      else output.tell(`${reference.text}: ${outcome.state}: ${outcome.message} [${outcome.code}]`)
      return 1
    }
    const { value, version } = outcome
    redactor.hold(reference.text, [value])
    if (options.reveal) {
      output.outSecret(value)
      return 0
    }
    // Under a random key the fingerprint of a single value compares with nothing.
    const { fingerprintKey } = settings
    const fingerprint = fingerprintKey === undefined ? null : fingerprinter(fingerprintKey)(value)
    const row = { vault: reference.vault, version: version ?? '', length: value.length }
    if (options.json) {
      output.outJson({
        reference: reference.text,
        state: outcome.state,
        ...row,
        fingerprint
      })
      return 0
    }
    const shown = fingerprint === null ? row : { ...row, fingerprint }
    output.out(
      renderTable(Object.keys(shown), [Object.values(shown).map(String)], { color: output.color })
    )
    if (fingerprint === null)
      output.tell('Under POSTERN_FINGERPRINT_KEY a fingerprint tells it from other values.')
    return 0
  } finally {
    set.close()
    await vaults.close()
  }
}

async function list({ env, options, output }: Call): Promise<number> {
  const collected = await collect(env)
  const vaults = openVaults(env, collected)
  const loaded = await readConfig(await resolvedSource(collected, vaults), vaults)
  try {
    const resolution = await resolve(collected, loaded)
    const rows = referenceRows(loaded, [...collected.references, ...loaded.config.uses], resolution)
    if (options.json) output.outJson(rows)
    else {
      showReferences(rows, resolution, output)
      for (const [reference, message] of new Map(rows.map(row => [row.reference, row.message])))
        if (message !== undefined) output.tell(`${reference}: ${message}`)
    }
    return rows.every(({ state }) => state === 'ok') ? 0 : 1
  } finally {
    loaded.set.close()
    await vaults.close()
  }
}
