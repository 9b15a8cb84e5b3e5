import { constants } from 'node:os'
import { ConfigError } from '../errors.ts'
import type { Gateway } from '../gateway.ts'
import { createLogger, guardProcess } from '../log.ts'
import { firstWorker, yieldToServing } from '../threads.ts'
import { atMost, type Call, withFile } from './command.ts'

/** `postern start [FILE]`: serves until it is told to stop; gives 0 once it has drained. */
export async function start({ env, words }: Call): Promise<number> {
  atMost(words, 1)
  guardProcess(createLogger({ level: 'info', format: 'auto', thread: 0 }))
  const ended = Promise.withResolvers<number>()
  let gateway: Gateway | undefined
  let reloadsOnceUp = false
  // Listened to from the first moment: the first process of a container is not even ended by a signal
  // it has no ear for, and would serve on after a stop that came while a vault was slow.
  const stop = (signal: NodeJS.Signals): void => {
    if (gateway === undefined) process.exit(128 + constants.signals[signal])
    gateway.close().then(
      () => ended.resolve(0),
      error => ended.reject(error)
    )
  }
  process.once('SIGTERM', stop)
  process.once('SIGINT', stop)
  process.on('SIGHUP', () => {
    if (gateway === undefined) reloadsOnceUp = true
    else reload(gateway)
  })
  // Both threads load their code at once; together they are most of a start.
  const worker = firstWorker()
  const { startGateway } = await import('../gateway.ts')
  const source = withFile(env, words[0])
  try {
    gateway = await startGateway(source, worker)
  } catch (error) {
    if (!(error instanceof ConfigError)) throw error
    const { withFileProblems } = await import('../resolve.ts')
    throw await withFileProblems(error, source)
  }
  yieldToServing()
  if (reloadsOnceUp) reload(gateway)
  return ended.promise
}

// What is wrong with the file is logged by the gateway, and its old configuration stays.
function reload(gateway: Gateway): void {
  void gateway.reload().catch(() => {})
}
