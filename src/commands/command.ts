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

/** Writes a result, resolved secrets masked. */
export function out(text: string): void {
  process.stdout.write(lines(redactor.text(text)))
}

/** Writes a secret that was asked for, as it is. */
export function outSecret(value: string): void {
  process.stdout.write(lines(value))
}

/** Writes a result for programs. */
export function outJson(value: object): void {
  process.stdout.write(lines(JSON.stringify(redactor.value(value), null, 2)))
}

/** Writes what is wrong, or what a person should know, resolved secrets masked. */
export function tell(text: string): void {
  process.stderr.write(lines(redactor.text(text)))
}

function lines(text: string): string {
  return text.endsWith('\n') ? text : `${text}\n`
}

/** Whether a stream takes colour: a terminal, unless NO_COLOR is set. */
export function colorOf(stream: NodeJS.WriteStream): boolean {
  return stream.isTTY === true && !process.env.NO_COLOR
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
