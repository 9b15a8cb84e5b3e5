import http from 'node:http'
import t from 'tap'
import { networkFailure } from '../../../src/vault/backends/network-failure.ts'
import { freePort } from '../../ports.ts'
import { opener } from '../hcv/scenarios.ts'

const failure = (url: string): Promise<string> =>
  new Promise(resolve => http.get(url).on('error', error => resolve(networkFailure(error))))

await t.test('what could not be reached is named', async t => {
  const port = await freePort()
  t.equal(
    await failure(`http://127.0.0.1:${port}`),
    `nothing listens there (ECONNREFUSED 127.0.0.1:${port})`
  )
  t.match(
    await failure(`http://localhost:${port}`),
    new RegExp(`\\(ECONNREFUSED \\S+:${port}\\)`),
    'of a name with several addresses, too'
  )
  const vault = await opener(t).open({ port, token: 'canary' })
  await t.rejects(vault.fetch('app'), {
    code: 'POSTERN_VAULT_UNREACHABLE',
    message: new RegExp(`nothing listens there \\(ECONNREFUSED 127.0.0.1:${port}\\)`)
  })
})

await t.test('texts of others are not passed on', async t => {
  t.equal(networkFailure(new Error('canary')), 'Error')
  t.equal(networkFailure(Object.assign(new Error('canary'), { code: 'E_ODD' })), 'E_ODD')
  t.equal(networkFailure(new SyntaxError('canary')), 'its answer cannot be read')
})
