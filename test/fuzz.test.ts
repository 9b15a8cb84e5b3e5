import t from 'tap'
import { fuzzers } from './fuzz/index.ts'

// A short look with the same inputs each time; `npm run fuzz` goes further, with others.
const RUNS: Readonly<Record<string, number>> = {
  requests: 15,
  router: 300,
  references: 500,
  config: 100
}

for (const [name, fuzz] of Object.entries(fuzzers)) {
  await t.test(name, async t => {
    t.ok((await fuzz({ seed: 20_260_101, milliseconds: 20_000, runs: RUNS[name]! })) > 0)
  })
}
