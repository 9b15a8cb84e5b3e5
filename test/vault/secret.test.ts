import { format, inspect } from 'node:util'
import t from 'tap'
import { Secret } from '../../src/vault/secret.ts'

await t.test('a secret shows only when it is asked to', async t => {
  const secret = new Secret('canary-now', 'canary-before')
  t.equal(secret.reveal(), 'canary-now')
  t.equal(secret.revealPrevious(), 'canary-before')
  t.equal(new Secret('x').revealPrevious(), undefined)
  const shown = [
    String(secret),
    `${secret}`,
    JSON.stringify({ secret }),
    inspect(secret, { showHidden: true, depth: 9 }),
    inspect({ deep: [secret] }, { depth: 9 }),
    format('%s %o %j', secret, secret, secret),
    Object.keys(secret).join(),
    JSON.stringify(Object.getOwnPropertyDescriptors(secret))
  ]
  for (const text of shown) t.notMatch(text, /canary/)
  t.match(shown[0], '[secret]')
  t.throws(() => structuredClone(secret).reveal(), 'a copy holds nothing')
})
