import { parseArgs } from 'node:util'
import { fuzzers } from './index.ts'

const USAGE = `npm run fuzz -- [NAME…] [--seconds N] [--seed N] [--path P]
  NAME       of ${Object.keys(fuzzers).join(', ')}; all when left out
  --seconds  for each, or FUZZ_SECONDS; 60
  --seed     begins where a run with this seed began, or FUZZ_SEED; random
  --path     goes at once to a failure, as its report says
`

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    seconds: { type: 'string', default: process.env.FUZZ_SECONDS ?? '60' },
    seed: { type: 'string', default: process.env.FUZZ_SEED ?? String(Date.now() % 0x7fff_ffff) },
    path: { type: 'string' }
  }
})
const seconds = Number(values.seconds)
const seed = Number(values.seed)
const names = positionals.length > 0 ? positionals : Object.keys(fuzzers)
if (
  names.some(name => !Object.hasOwn(fuzzers, name)) ||
  !(seconds > 0) ||
  !Number.isInteger(seed)
) {
  process.stderr.write(USAGE)
  process.exit(2)
}

let failed = false
for (const name of names) {
  process.stdout.write(`${name}: ${seconds} s, --seed ${seed}\n`)
  try {
    const runs = await fuzzers[name]!({
      seed,
      milliseconds: seconds * 1000,
      ...(values.path === undefined ? {} : { path: values.path })
    })
    process.stdout.write(`${name}: ${runs} inputs, nothing found\n`)
  } catch (error) {
    failed = true
    process.stdout.write(`${name}: FOUND\n${error instanceof Error ? error.message : error}\n`)
  }
}
process.exit(failed ? 1 : 0)
