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
  readonly #noColor: boolean

  constructor(stdout: Stream, stderr: Stream, noColor: boolean) {
    this.#stdout = stdout
    this.#stderr = stderr
    this.#noColor = noColor
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

  /** Whether results take colour: on a terminal, unless NO_COLOR is set. */
  get color(): boolean {
    return this.#stdout.isTTY === true && !this.#noColor
  }

  /** The same of what {@link tell} writes. */
  get tellColor(): boolean {
    return this.#stderr.isTTY === true && !this.#noColor
  }
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
