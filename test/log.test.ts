import { execFile } from 'node:child_process'
import { promisify } from 'node:util'
import t from 'tap'

/** Runs a script on a fresh process, with a logger called log and Secret at hand; gives its standard output. */
async function output(
  script: string,
  options = "level: 'info', format: 'json', thread: 0",
  env: Record<string, string> = {}
): Promise<string> {
  const source = `
    import { createLogger } from '${new URL('../src/log.ts', import.meta.url)}'
    import { Secret } from '${new URL('../src/vault/secret.ts', import.meta.url)}'
    const log = createLogger({ ${options} })
    ${script}`
  const { stdout } = await promisify(execFile)(
    process.execPath,
    ['--input-type=module', '-e', source],
    {
      env: { ...process.env, ...env }
    }
  )
  return stdout
}

await t.test('a line is JSON with ISO time, level name and thread', async t => {
  const line = JSON.parse(
    await output("log.info({ route: 'r' }, 'served')", "level: 'info', format: 'auto', thread: 3")
  )
  t.match(line, { level: 'info', thread: 3, route: 'r', msg: 'served' })
  t.equal(new Date(line.time).toISOString(), line.time)
})

await t.test('lower levels are left out', async t => {
  t.equal(
    await output(
      "log.debug({}, 'a'); log.info({}, 'b')",
      "level: 'warn', format: 'json', thread: 0"
    ),
    ''
  )
  t.equal(await output("log.fatal({}, 'a')", "level: 'silent', format: 'json', thread: 0"), '')
})

await t.test('what was logged before a thread dies is written', async t => {
  t.match(
    await output("log.error({}, 'last words'); process.kill(process.pid, 'SIGKILL')").catch(
      error => error.stdout
    ),
    /last words/
  )
})

await t.test('a secret never shows, wherever it stands', async t => {
  const script =
    // biome-ignore lint/suspicious/noTemplateCurlyInString: the script is the one that fills it in
    "const secret = new Secret('hunter2', 'hunter1'); log.info({ secret, deep: { list: [secret] } }, `with ${secret}`)"
  const json = await output(script)
  t.match(JSON.parse(json), {
    secret: '[secret]',
    deep: { list: ['[secret]'] },
    msg: 'with [secret]'
  })
  t.notMatch(json, /hunter/)
  const pretty = await output(script, "level: 'info', format: 'pretty', thread: 0")
  t.match(pretty, /\[secret\]/)
  t.notMatch(pretty, /hunter/)
})

await t.test(
  'an error shows its code, message, stack and causes, and nothing that hangs on it',
  async t => {
    const { err } = JSON.parse(
      await output(`
      const cause = Object.assign(new Error('refused'), { code: 'ECONNREFUSED', password: 'hunter2' })
      log.error({ err: Object.assign(new TypeError('failed', { cause }), { code: 'E1', headers: { authorization: 'hunter2' } }) }, 'x')`)
    )
    t.match(err, { type: 'TypeError', code: 'E1', message: 'failed', stack: /failed/ })
    t.same(Object.keys(err).sort(), ['cause', 'code', 'message', 'stack', 'type'])
    t.same(Object.keys(err.cause).sort(), ['code', 'message', 'stack', 'type'])
  }
)

await t.test('causes and parts of an error are bounded', async t => {
  const text = await output(`
    let err = new Error('deepest')
    for (let i = 0; i < 50; i++) err = new Error('level ' + i, { cause: err })
    const many = new AggregateError([...Array.from({ length: 50 }, (_, i) => new Error('part ' + i)), 'text'])
    const loop = new Error('loop')
    loop.cause = loop
    delete loop.stack
    log.error({ err }, 'a'); log.error({ err: many }, 'b'); log.error({ err: loop }, 'c'); log.error({ err: 'text', error: new Error('other') }, 'd')`)
  const [chain, parts, loop, plain] = text
    .trim()
    .split('\n')
    .map(line => JSON.parse(line))
  t.notMatch(JSON.stringify(chain), /deepest/)
  t.match(chain.err.cause.cause.cause, { message: 'level 46' })
  t.equal(parts.err.errors.length, 5)
  t.equal(loop.err.stack, undefined)
  t.match(plain, { err: 'text', error: { type: 'Error', message: 'other' } })
})

await t.test('the form for people is one readable line, without colour into a pipe', async t => {
  const line = await output(
    "log.warn({ code: 'C' }, 'careful')",
    "level: 'info', format: 'pretty', thread: 0"
  )
  t.match(line, /WARN.*careful.*"code":"C"/)
  t.equal(line.trim().split('\n').length, 1)
  t.notOk(line.includes('\u001b'))
})
