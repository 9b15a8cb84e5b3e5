import { stripVTControlCharacters, styleText } from 'node:util'
import type { Problem } from './errors.ts'
import { redactor } from './redaction.ts'
import { parseReference } from './vault/reference.ts'

export interface ReportOptions {
  readonly color: boolean
  /** The text the problems' places are in, or a function that gives it by file; its lines are shown. */
  readonly source?: string | ((file: string) => string | undefined)
  /** What is counted at the end. Default `problem`. */
  readonly noun?: string
}

type Style = Parameters<typeof styleText>[0]

/** Longest part of a source line that is shown, around the place. */
const MAX_WIDTH = 120
/** References without a value that are shown one by one; more fill several screens. */
const MAX_BLOCKS = 4
/** Keys whose literal values are not shown: a build log is no place for them. */
const SENSITIVE =
  /^(\s*(?:- )?["']?[\w.-]*(?:pass|secret|token|key|credential|cert|authorization)[\w.-]*["']?\s*:\s*)(.+)$/i
/** The same within a line, and what a url signs in with. */
const SENSITIVE_PARTS =
  /((?<=[{,]\s*)["']?[\w.-]*(?:pass|secret|token|key|credential|cert|authorization)[\w.-]*["']?\s*:\s*|:\/\/(?=[^\s/@{}]+@))("[^"]*"|'[^']*'|[^\s,{}[\]@]+)/gi

/**
 * Problems for a person: place and message, the source line with a caret, what to do. Many references
 * without a value are a line each under what they have in common: an outage concerns all of a vault.
 */
export function renderProblems(problems: readonly Problem[], options: ReportOptions): string {
  const paint = painter(options.color)
  const missing = problems.filter(isMissing)
  const together = missing.length > MAX_BLOCKS ? missing : []
  const blocks = [
    ...problems
      .filter(problem => !together.includes(problem))
      .map(problem => renderProblem(problem, options, paint)),
    ...renderMissing(together, paint)
  ]
  const count = `${problems.length} ${options.noun ?? 'problem'}${problems.length === 1 ? '' : 's'}`
  return `${[...blocks, count].join('\n\n')}\n`
}

type Paint = (style: Style, text: string) => string

/** Whether a problem is that a vault gave no value for a reference. */
function isMissing({ code, reference }: Problem): boolean {
  return reference !== undefined && code.startsWith('POSTERN_VAULT_')
}

function renderProblem(problem: Problem, options: ReportOptions, paint: Paint): string {
  const { code, message, fix, place } = problem
  const { file, line, column, path } = place
  const where = placeOf(place)
  const shown = [
    `${paint('bold', path === '' ? where : `${where} ${path}`)}: ${paint('red', visible(message))}`
  ]
  const source = sourceOf(file, options.source)?.split(/\r?\n/)[line - 1]
  if (source !== undefined && source.trim() !== '')
    shown.push(...excerpt(source, line, column, paint))
  shown.push(`  ${visible(fix)} ${paint('dim', `[${code}]`)}`)
  return shown.join('\n')
}

/** Every reference at every place, by the vault and the cause. */
function renderMissing(problems: readonly Problem[], paint: Paint): readonly string[] {
  const groups = Map.groupBy(problems, problem => `${vaultOf(problem)}: ${causeOf(problem)}`)
  return [...groups].map(([cause, some]) => {
    const { code, fix } = some[0]!
    const places = some.map(({ place }) => visible(`${placeOf(place)} ${place.path}`))
    const width = Math.max(...places.map(({ length }) => length))
    const noun = some.length === 1 ? 'reference' : 'references'
    return [
      `${paint('bold', `${some.length} ${noun} without a value`)}, vault ${paint('red', visible(cause))}`,
      ...some.map(({ reference }, at) => `  ${places[at]!.padEnd(width)}  ${visible(reference!)}`),
      `  ${visible(fix)} ${paint('dim', `[${code}]`)}`
    ].join('\n')
  })
}

/** A setting has a name, and no line. */
function placeOf({ file, line, column }: Problem['place']): string {
  return file === 'environment' ? file : `${file}:${line}:${column}`
}

function vaultOf({ reference }: Problem): string {
  return parseReference(reference!).vault
}

/** The message without what differs from one reference to the next. */
function causeOf({ message, reference }: Problem): string {
  const { resource } = parseReference(reference!)
  return message
    .replace(`${reference} has no value: `, '')
    .replace(reference!, 'it')
    .replace(` ${resource}: `, ' it: ')
    .replace(` at ${resource} `, ' there ')
}

/** Rows under a header, columns aligned. */
export function renderTable(
  columns: readonly string[],
  rows: readonly (readonly string[])[],
  options: { readonly color: boolean } = { color: false }
): string {
  const paint = painter(options.color)
  const widths = columns.map((column, index) =>
    Math.max(column.length, ...rows.map(row => visible(row[index] ?? '').length))
  )
  const line = (cells: readonly string[]): string =>
    widths
      .map((width, index) => visible(cells[index] ?? '').padEnd(width))
      .join('  ')
      .trimEnd()
  return `${[paint('bold', line(columns)), ...rows.map(line)].join('\n')}\n`
}

function painter(color: boolean): Paint {
  return (style, text) => (color ? styleText(style, text, { validateStream: false }) : text)
}

function sourceOf(file: string, source: ReportOptions['source']): string | undefined {
  if (file === 'environment') return undefined
  return typeof source === 'function' ? source(file) : source
}

function excerpt(source: string, line: number, column: number, paint: Paint): string[] {
  const masked = visible(source)
    .replace(SENSITIVE, (whole, key: string, value: string) =>
      /^["'|>&*[{]*\{vault:\/\/[^}]*\}["']?\s*$/.test(value) ? whole : `${key}…`
    )
    .replace(SENSITIVE_PARTS, (whole, before: string, value: string) =>
      // As long as it was, so that the caret stays under its place.
      value.includes('{vault://') ? whole : `${before}${'…'.padEnd(value.length)}`
    )
  const from = Math.max(0, Math.min(column - MAX_WIDTH / 2, masked.length - MAX_WIDTH))
  const margin = `${line} | `
  const caret = Math.min(column - 1, masked.length) - from
  return [
    `  ${paint('dim', margin)}${masked.slice(from, from + MAX_WIDTH)}`,
    `  ${' '.repeat(margin.length + Math.max(0, caret))}${paint('yellow', '^')}`
  ]
}

/**
 * Text of a file as it may go to a terminal: one cell a character, and no control sequences. Secrets
 * are masked before, since without its line ends one is not known again.
 */
function visible(text: string): string {
  return stripVTControlCharacters(redactor.text(text)).replace(/\p{Cc}/gu, ' ')
}
