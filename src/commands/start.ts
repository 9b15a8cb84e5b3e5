import { createLogger, guardProcess } from '../log.ts'
import { firstWorker } from '../threads.ts'
import { atMost, type Call, withFile } from './command.ts'

/** `postern start [FILE]`: serves until it is told to stop; gives 0 once it has drained. */
export async function start({ env, words }: Call): Promise<number> {
  atMost(words, 1)
  guardProcess(createLogger({ level: 'info', format: 'auto', thread: 0 }))
  // Both threads load their code at once; together they are most of a start.
  const worker = firstWorker()
  const { startGateway } = await import('../gateway.ts')
  const gateway = await startGateway(withFile(env, words[0]), worker)
  const ended = Promise.withResolvers<number>()
  const stop = (): void => {
    gateway.close().then(
      () => ended.resolve(0),
      error => ended.reject(error)
    )
  }
  process.once('SIGTERM', stop)
  process.once('SIGINT', stop)
  // What is wrong with the file is logged by the gateway, and its old configuration stays.
  process.on('SIGHUP', () => void gateway.reload().catch(() => {}))
  return ended.promise
}
