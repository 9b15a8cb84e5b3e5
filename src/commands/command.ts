import { redactor } from '../redaction.ts'
import type { Environment } from '../settings.ts'

/** What the command line gave besides the words. */
export interface Options {
  readonly resolve?: boolean | undefined
  readonly json?: boolean | undefined
  readonly reveal?: boolean | undefined
}

/** A wrong call: its message, then where to read how it is done. Exit code 2. */
export class UsageError extends Error {}

interface Stream {
  readonly isTTY?: boolean | undefined
  write(text: string): unknown
}

/** Where a command writes to: standard output and error. Resolved secrets are masked in both. */
export class Output {
  readonly #stdout: Stream
  readonly #stderr: Stream
  readonly #colored: boolean | undefined

  /** `colored` decides over colour, whatever is written to; undefined is: on terminals. */
  constructor(stdout: Stream, stderr: Stream, colored: boolean | undefined) {
    this.#stdout = stdout
    this.#stderr = stderr
    this.#colored = colored
  }

  /** Writes a result. */
  out(text: string): void {
    this.#stdout.write(lines(redactor.text(text)))
  }

  /** Writes a secret that was asked for, as it is. */
  outSecret(value: string): void {
    this.#stdout.write(lines(value))
  }

  /** Writes a result for programs. */
  outJson(value: object): void {
    this.#stdout.write(lines(JSON.stringify(redactor.value(value), null, 2)))
  }

  /** Writes what is wrong, or what a person should know. */
  tell(text: string): void {
    this.#stderr.write(lines(redactor.text(text)))
  }

  /** Whether results take colour. */
  get color(): boolean {
    return this.#colored ?? this.#stdout.isTTY === true
  }

  /** The same of what {@link tell} writes. */
  get tellColor(): boolean {
    return this.#colored ?? this.#stderr.isTTY === true
  }
}

/**
 * What variables say of colour: NO_COLOR takes it away, FORCE_COLOR gives it where there is no
 * terminal (logs of build machines show it), a dumb terminal has none.
 */
export function coloredBy(env: Environment): boolean | undefined {
  if (env.NO_COLOR) return false
  const forced = env.FORCE_COLOR
  if (forced !== undefined && forced !== '') return forced !== '0' && forced !== 'false'
  return env.TERM === 'dumb' ? false : undefined
}

function lines(text: string): string {
  return text.endsWith('\n') ? text : `${text}\n`
}

/** One call of a command. */
export interface Call {
  readonly env: Environment
  /** What follows the command's name. */
  readonly words: readonly string[]
  readonly options: Options
  readonly output: Output
}

const SOURCES = [
  'POSTERN_CONFIG',
  'POSTERN_CONFIG_STRING',
  'KONG_DECLARATIVE_CONFIG',
  'KONG_DECLARATIVE_CONFIG_STRING'
]

/** The environment in which `file` is the configuration, whatever variables say; the same without one. */
export function withFile(env: Environment, file: string | undefined): Environment {
  if (file === undefined) return env
  const others = Object.entries(env).filter(([name]) => !SOURCES.includes(name))
  return { ...Object.fromEntries(others), POSTERN_CONFIG: file }
}

/** Refuses more words than a command takes. */
export function atMost(words: readonly string[], count: number): void {
  if (words.length > count) throw new UsageError(`"${words[count]}" is one word too many.`)
}
