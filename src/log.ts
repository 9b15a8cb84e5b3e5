import { createRequire } from 'node:module'
import { isatty } from 'node:tty'
import { type DestinationStream, destination, type Logger, pino, stdTimeFunctions } from 'pino'
import { redactor } from './redaction.ts'

/** What is logged at least. */
export type LogLevel = 'trace' | 'debug' | 'info' | 'warn' | 'error' | 'fatal' | 'silent'

/** The levels a setting may name, Kong's included, and the level each stands for. */
export const logLevels: Readonly<Record<string, LogLevel>> = {
  trace: 'trace',
  debug: 'debug',
  info: 'info',
  notice: 'info',
  warn: 'warn',
  error: 'error',
  crit: 'fatal',
  alert: 'fatal',
  emerg: 'fatal',
  fatal: 'fatal',
  silent: 'silent'
}

/** `auto` is for people on a terminal and JSON lines everywhere else. */
export type LogFormat = 'auto' | 'json' | 'pretty'

export interface LogOptions {
  readonly level: LogLevel
  readonly format: LogFormat
  /** 0 is the control thread, the others are data-plane threads. */
  readonly thread: number
}

/** What a log line tells of an error. */
export interface LoggedError {
  readonly type: string
  readonly code?: string
  readonly message: string
  readonly stack?: string
  readonly cause?: LoggedError
  readonly errors?: readonly LoggedError[]
}

/** Longest chain of causes that is logged; a longer one is cut. */
const MAX_CAUSES = 4
/** Most parts of an AggregateError that are logged. */
const MAX_PARTS = 5

/**
 * Opens the log of one thread on standard output: JSON lines with ISO time, or lines for people.
 * Writes are synchronous, so the last words of a dying thread are kept and threads never mix lines.
 */
export function createLogger({ level, format, thread }: LogOptions): Logger {
  const terminal = isatty(1)
  const pretty = format === 'pretty' || (format === 'auto' && terminal)
  const options = {
    level,
    base: { thread },
    timestamp: stdTimeFunctions.isoTime,
    formatters: { level: (label: string) => ({ level: label }) },
    serializers: { err: serializeError, error: serializeError }
  }
  return pino(options, masked(pretty ? prettyStream(terminal) : jsonStream()))
}

/** Characters of lines that wait for room on a full disk; later ones are dropped. */
const MAX_BACKLOG = 1_048_576

/** Lines that cannot be written now leave with a later one: no request fails for want of a log. */
function jsonStream(): DestinationStream {
  const stream = destination({ fd: 1, sync: true, maxLength: MAX_BACKLOG })
  stream.on('error', () => {})
  return stream
}

/** Whatever ended up in a line, a resolved secret does not leave with it. */
function masked(stream: DestinationStream): DestinationStream {
  return { write: line => stream.write(redactor.json(line)) }
}

/** Has this thread's log tell Node's warnings, instead of Node writing them unmasked. */
export function logWarnings(log: Logger): void {
  process.removeAllListeners('warning')
  process.on('warning', ({ name, message, code }: Error & { code?: string }) =>
    log.warn({ type: name, code }, message)
  )
}

/**
 * Keeps what ends or dumps this process from showing memory: an error nobody caught becomes a line
 * of the log and exit code 1, and Node's diagnostic reports and debugger are off, whatever
 * NODE_OPTIONS say.
 */
export function guardProcess(log: Logger): void {
  logWarnings(log)
  process.on('uncaughtException', error => {
    log.fatal({ err: error }, 'an error nobody caught ended this process')
    process.exit(1)
  })
  // With a listener the signal does not open the debugger.
  process.on('SIGUSR1', () => log.warn({}, 'SIGUSR1 is ignored'))
  Object.assign(process.report, {
    reportOnFatalError: false,
    reportOnSignal: false,
    reportOnUncaughtException: false,
    excludeEnv: true
  })
}

/** Only the chosen members: libraries hang requests, headers and options on their errors. */
function serializeError(error: unknown): unknown {
  return error instanceof Error ? describe(error, MAX_CAUSES) : error
}

function describe(error: Error, depth: number): LoggedError {
  const { code, cause } = error as { code?: unknown; cause?: unknown }
  const parts: readonly unknown[] = error instanceof AggregateError ? error.errors : []
  const deeper = (inner: Error): LoggedError => describe(inner, depth - 1)
  return {
    type: error.name,
    ...(typeof code === 'string' ? { code } : {}),
    message: error.message,
    ...(error.stack === undefined ? {} : { stack: error.stack }),
    ...(cause instanceof Error && depth > 1 ? { cause: deeper(cause) } : {}),
    ...(parts.length > 0 && depth > 1
      ? {
          errors: parts
            .filter(part => part instanceof Error)
            .slice(0, MAX_PARTS)
            .map(deeper)
        }
      : {})
  }
}

function prettyStream(terminal: boolean): DestinationStream {
  // Loaded on demand: a gateway that writes JSON never needs it, and a logger is made synchronously.
  const open = createRequire(import.meta.url)('pino-pretty') as (
    options: object
  ) => DestinationStream
  return open({
    destination: 1,
    sync: true,
    colorize: terminal && !process.env.NO_COLOR,
    translateTime: 'SYS:HH:MM:ss.l',
    ignore: 'pid,hostname,thread',
    singleLine: true
  })
}
