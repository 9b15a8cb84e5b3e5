import { spawnSync } from 'node:child_process'
import { join } from 'node:path'

// Runs the programs that measure one target each, the longest last; those named as arguments only.
// One that fails is told and the others still run. With BENCH_WRITE=1 their verdicts go into
// docs/performance.md.

const PROGRAMS = ['start', 'latency', 'routes', 'transfers', 'connections', 'vaults', 'soak']

const chosen = process.argv.slice(2)
for (const name of chosen.length === 0 ? PROGRAMS : chosen) {
  const began = performance.now()
  console.log(`\n## ${name}`)
  const { status } = spawnSync(process.execPath, [join(import.meta.dirname, `${name}.ts`)], {
    stdio: 'inherit'
  })
  if (status !== 0) {
    console.error(`${name} failed`)
    process.exitCode = 1
  }
  console.log(`(${((performance.now() - began) / 1000).toFixed(0)} s)`)
}
