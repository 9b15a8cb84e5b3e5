import { readFileSync } from 'node:fs'

/** The version in package.json, the only place it stands in. */
export const version: string = JSON.parse(
  readFileSync(new URL('../package.json', import.meta.url), 'utf8')
).version

/** How the gateway names itself in `Server` and `Via`. */
export const product = `postern/${version}`
