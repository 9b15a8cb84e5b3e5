import { readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { root } from './lab.ts'

/** A figure to reach, and what a run measured. */
export interface Outcome {
  readonly what: string
  /** The bound as a person reads it. */
  readonly target: string
  readonly measured: string
  readonly met: boolean
}

interface Bound {
  readonly measured: number
  readonly atLeast?: number
  readonly atMost?: number
  /** What follows both figures, with a blank if it wants one. */
  readonly unit?: string
  readonly digits?: number
}

/** Holds a measured figure against its bound. It is the figure that counts, not its rounded text. */
export function outcome(
  what: string,
  { measured, atLeast, atMost, unit = '', digits = 2 }: Bound
): Outcome {
  const bound = atLeast ?? atMost!
  return {
    what,
    target: `${atLeast === undefined ? '≤' : '≥'} ${Number(bound.toFixed(digits))}${unit}`,
    measured: `${measured.toFixed(digits)}${unit}`,
    met: atLeast === undefined ? measured <= bound : measured >= bound
  }
}

/** The programs, in the order in which docs/performance.md shows what they measured. */
const PROGRAMS = [
  'run',
  'latency',
  'routes',
  'transfers',
  'connections',
  'start',
  'vaults',
  'soak'
] as const
type Program = (typeof PROGRAMS)[number]

interface Published {
  readonly date: string
  readonly outcomes: readonly Outcome[]
}

const REPORT = join(root, 'docs/bench.json')
const PAGE = join(root, 'docs/performance.md')
const BEGIN = '<!-- targets: written by the programs of bench/ -->\n'
const END = '<!-- /targets -->'

/** Writes members of docs/bench.json; the others stay. */
export function writeReport(members: object): void {
  const report = JSON.parse(readFileSync(REPORT, 'utf8')) as object
  writeFileSync(REPORT, `${JSON.stringify({ ...report, ...members }, null, 2)}\n`)
}

/**
 * Prints target, figure and verdict of each. With BENCH_WRITE, or `write`, they also go into
 * docs/bench.json and the table of docs/performance.md.
 */
export function conclude(
  program: Program,
  outcomes: readonly Outcome[],
  write = Boolean(process.env.BENCH_WRITE)
): void {
  console.log(`\n${table(outcomes.map(each => ({ ...each, program })))}`)
  if (!write) return
  const { targets = {} } = JSON.parse(readFileSync(REPORT, 'utf8')) as {
    targets?: Partial<Record<Program, Published>>
  }
  targets[program] = { date: new Date().toISOString().slice(0, 10), outcomes }
  writeReport({ targets })
  const all = PROGRAMS.flatMap(name =>
    (targets[name]?.outcomes ?? []).map(each => ({ ...each, program: name }))
  )
  const page = readFileSync(PAGE, 'utf8')
  const begin = page.indexOf(BEGIN) + BEGIN.length
  writeFileSync(PAGE, `${page.slice(0, begin)}\n${table(all)}\n\n${page.slice(page.indexOf(END))}`)
}

function table(outcomes: readonly (Outcome & { readonly program: Program })[]): string {
  return [
    '| what | target | measured | | program |',
    '| --- | ---: | ---: | --- | --- |',
    ...outcomes.map(
      ({ what, target, measured, met, program }) =>
        `| ${what} | ${target} | ${measured} | ${met ? 'met' : '**missed**'} | \`${program}\` |`
    )
  ].join('\n')
}
