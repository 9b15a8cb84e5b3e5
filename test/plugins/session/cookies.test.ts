import fc from 'fast-check'
import t from 'tap'
import {
  type CookieAttributes,
  type Cookies,
  deleteCookie,
  readCookie,
  writeCookie
} from '../../../src/plugins/session/cookies.ts'

const ATTRIBUTES: CookieAttributes = { path: '/', httpOnly: true, secure: true, sameSite: 'strict' }
const NONE: Cookies = {}

/** What a client sends after these lines. */
function accept(lines: readonly string[], before: Cookies = {}): Record<string, string> {
  const cookies = { ...before } as Record<string, string>
  for (const line of lines) {
    const [, name, value] = /^([^=]+)=([^;]*)/.exec(line)!
    if (line.includes('Max-Age=0')) delete cookies[name!]
    else cookies[name!] = value!
  }
  return cookies
}

const LENGTH = fc.integer({ min: 1, max: 11_500 })

t.test('a value comes back whole, in cookies no client refuses', async t => {
  fc.assert(
    fc.property(LENGTH, length => {
      const text = '1aZ_-'.repeat(length).slice(0, length)
      const lines = writeCookie('session', text, ATTRIBUTES, NONE)
      return (
        lines.every(line => line.length <= 4096) &&
        lines.length <= 1 + length / 4000 &&
        readCookie(accept(lines), 'session') === text
      )
    })
  )
  t.pass('held for every case')
})

t.test('a shorter value leaves nothing of a longer one', async t => {
  fc.assert(
    fc.property(LENGTH, LENGTH, (one, two) => {
      const [first, second] = ['1'.repeat(one), '2'.repeat(two)]
      const cookies = accept(writeCookie('s', first, ATTRIBUTES, NONE), { s2of: 'x', other: '1' })
      const lines = writeCookie('s', second, ATTRIBUTES, cookies)
      const now = accept(lines, cookies)
      const fresh = accept(writeCookie('s', second, ATTRIBUTES, NONE), { s2of: 'x', other: '1' })
      return (
        readCookie(now, 's') === second && Object.keys(now).length === Object.keys(fresh).length
      )
    })
  )
  t.pass('held for every case')
})

t.test('deleting takes every part, and nothing else', async t => {
  const lines = writeCookie('s', 'x'.repeat(10_000), ATTRIBUTES, NONE)
  t.equal(lines.length, 3)
  const cookies = accept(lines, { s4: 'not ours' })
  const deletions = deleteCookie('s', ATTRIBUTES, cookies)
  t.same(accept(deletions, cookies), { s4: 'not ours' })
  t.equal(
    deletions[0],
    's=; Max-Age=0; Path=/; Expires=Thu, 01 Jan 1970 00:00:01 GMT; HttpOnly; Secure; SameSite=Strict'
  )
  t.same(deleteCookie('s', ATTRIBUTES, NONE), [])
})

t.test('a value of missing or foreign parts is none', async t => {
  for (const cookies of [
    {},
    { s: '' },
    { s: 'x' },
    { s: '0abc' },
    { s: '4abc', s2: 'd', s3: 'e', s4: 'f' },
    { s: '2abc' },
    { s2: '1abc' }
  ] as Cookies[]) {
    t.equal(readCookie(cookies, 's'), undefined, JSON.stringify(cookies))
  }
  t.equal(readCookie({ s: '1abc', s2: 'left over' }, 's'), 'abc')
})

t.test('what does not fit is refused', async t => {
  t.throws(() => writeCookie('s', 'x'.repeat(13_000), ATTRIBUTES, NONE), {
    code: 'POSTERN_SESSION_TOO_LARGE'
  })
})
