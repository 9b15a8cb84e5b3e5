import t from 'tap'
import { compileHashInput } from '../../src/proxy/affinity.ts'
import type { Upstream } from '../../src/schema/entities.ts'
import { balanced } from './balancers/contract.ts'

const input = (fields: Partial<Upstream>) =>
  compileHashInput({
    hash_on: 'none',
    hash_fallback: 'none',
    hash_on_cookie_path: '/',
    ...fields
  } as Upstream)

await t.test('every input', async t => {
  const request = balanced({
    clientIp: '10.0.0.9',
    path: '/a/b',
    query: 'x=2&y=0&x=1%20',
    headers: { 'x-user': 'ann', cookie: 'a=1; sid=abc=; b=2' },
    captures: { 1: 'one', name: 'two' },
    consumer: { id: 'consumer' },
    credential: { id: 'credential' }
  })
  for (const [fields, expected] of [
    [{ hash_on: 'consumer' }, 'consumer'],
    [{ hash_on: 'ip' }, '10.0.0.9'],
    [{ hash_on: 'path' }, '/a/b'],
    [{ hash_on: 'header', hash_on_header: 'X-User' }, 'ann'],
    [{ hash_on: 'cookie', hash_on_cookie: 'sid' }, 'abc='],
    [{ hash_on: 'query_arg', hash_on_query_arg: 'x' }, '1 ,2'],
    [{ hash_on: 'query_arg', hash_on_query_arg: 'y' }, '0'],
    [{ hash_on: 'uri_capture', hash_on_uri_capture: '1' }, 'one'],
    [{ hash_on: 'uri_capture', hash_on_uri_capture: 'name' }, 'two'],
    [{ hash_on: 'none' }, '']
  ] as const) {
    t.equal(input(fields)(request), expected, JSON.stringify(fields))
    t.equal(request.affinityCookie, undefined)
  }
})

await t.test('the fallback, when the request has none of the first', async t => {
  const request = balanced({ query: 'q=1', headers: { b: '2' }, captures: { c: '3' } })
  for (const [fields, expected] of [
    [{ hash_on: 'consumer', hash_fallback: 'ip' }, '127.0.0.1'],
    [{ hash_on: 'header', hash_on_header: 'a', hash_fallback: 'path' }, '/'],
    [
      {
        hash_on: 'header',
        hash_on_header: 'a',
        hash_fallback: 'header',
        hash_fallback_header: 'B'
      },
      '2'
    ],
    [
      {
        hash_on: 'query_arg',
        hash_on_query_arg: 'none',
        hash_fallback: 'query_arg',
        hash_fallback_query_arg: 'q'
      },
      '1'
    ],
    [
      {
        hash_on: 'uri_capture',
        hash_on_uri_capture: 'none',
        hash_fallback: 'uri_capture',
        hash_fallback_uri_capture: 'c'
      },
      '3'
    ],
    [{ hash_on: 'header', hash_on_header: 'a', hash_fallback: 'consumer' }, ''],
    [{ hash_on: 'query_arg', hash_on_query_arg: 'none' }, ''],
    [{ hash_on: 'uri_capture', hash_on_uri_capture: 'x' }, '']
  ] as const) {
    t.equal(input(fields)(request), expected, JSON.stringify(fields))
  }
  t.equal(input({ hash_on: 'consumer' })(balanced({ credential: { id: 'c' } })), 'c')
})

await t.test('a client without the cookie is given one, also as a fallback', async t => {
  const hash = input({ hash_on: 'cookie', hash_on_cookie: 'sid', hash_on_cookie_path: '/p' })
  const request = balanced({ headers: { cookie: 'sid=' } })
  const value = hash(request)
  t.match(value, /^[0-9a-f-]{36}$/)
  t.equal(request.affinityCookie, `sid=${value}; Path=/p; Same-Site=Lax; HttpOnly`)
  const second = balanced()
  const fallback = input({ hash_on: 'consumer', hash_fallback: 'cookie', hash_on_cookie: 'sid' })
  t.match(fallback(second), /^[0-9a-f-]{36}$/)
  t.ok(second.affinityCookie)
})
