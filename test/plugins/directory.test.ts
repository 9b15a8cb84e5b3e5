import { createHash } from 'node:crypto'
import t from 'tap'
import { createDirectory, type DirectoryEntities } from '../../src/plugins/directory.ts'
import type { BasicAuthCredential, KeyAuthCredential } from '../../src/schema/entities.ts'
import { Secret } from '../../src/vault/secret.ts'

const alice = { id: 'c-alice', username: 'alice' }
const bob = { id: 'c-bob', username: 'bob', custom_id: 'B' }
const unnamed = { id: 'c-unnamed', custom_id: 'U' }

function directory(entities: Partial<DirectoryEntities> = {}) {
  return createDirectory({
    transform: true,
    consumers: [alice, bob, unnamed],
    keyauth_credentials: [],
    basicauth_credentials: [],
    acls: [],
    ...entities
  })
}

function key(id: string, value: string, previous?: string): KeyAuthCredential {
  return { id, consumer: { id: alice.id }, key: new Secret(value, previous) }
}

function user(
  id: string,
  username: Secret | string,
  password: Secret | string,
  consumer = alice.id
): BasicAuthCredential {
  const secret = (value: Secret | string) => (typeof value === 'string' ? new Secret(value) : value)
  return { id, consumer: { id: consumer }, username: secret(username), password: secret(password) }
}

const hex = (algorithm: string, text: string) => createHash(algorithm).update(text).digest('hex')

t.test('consumers are found by id, else by username', async t => {
  const shadow = { id: 'c-shadow', username: bob.id }
  const found = await directory({ consumers: [alice, bob, unnamed, shadow] })
  t.equal(found.consumer('c-alice'), alice)
  t.equal(found.consumer('alice'), alice)
  t.equal(found.consumer('c-bob'), bob, 'an id wins over a username that reads the same')
  t.equal(found.consumer('c-unnamed'), unnamed)
  t.equal(found.consumer('B'), undefined)
})

t.test('keys are found by their value, the former one too while it is known', async t => {
  const rotated = key('k1', 'new', 'old')
  const plain = key('k2', 'plain')
  const found = await directory({ keyauth_credentials: [rotated, plain] })
  t.equal(found.keyAuth('new'), rotated)
  t.equal(found.keyAuth('old'), rotated)
  t.equal(found.keyAuth('plain'), plain)
  t.equal(found.keyAuth(''), undefined)
  t.equal(found.keyAuth('[secret]'), undefined)
})

t.test('a current key wins over the former key of another', async t => {
  const taker = key('k1', 'shared')
  const giver = key('k2', 'other', 'shared')
  for (const keyauth_credentials of [
    [taker, giver],
    [giver, taker]
  ]) {
    t.equal((await directory({ keyauth_credentials })).keyAuth('shared'), taker)
  }
})

t.test('users are found by name, and hold by their current or former password', async t => {
  const rotated = user('u1', new Secret('ali', 'alice-old'), new Secret('new', 'old'))
  const other = user('u2', 'bob', 'p', bob.id)
  const taker = user('u3', 'alice-old', 'q')
  const found = await directory({ basicauth_credentials: [rotated, other, taker] })
  t.equal(found.basicAuth('ali'), rotated)
  t.equal(found.basicAuth('alice-old'), taker, 'a current name wins over a former one')
  t.equal(found.basicAuth('nobody'), undefined)
  t.ok(found.passwordHolds(rotated, 'ali', 'new'))
  t.notOk(found.passwordHolds(rotated, 'ali', 'p'))
  t.notOk(found.passwordHolds(rotated, 'ali', ''))
  t.notOk(found.passwordHolds(undefined, 'ali', 'new'))
  t.notOk(found.passwordHolds(user('foreign', 'x', 'new'), 'x', 'new'), 'of another directory')
  const former = await directory({ basicauth_credentials: [rotated] })
  t.equal(former.basicAuth('alice-old'), rotated)
})

t.test('only names and passwords that were in force together hold', async t => {
  /** Which pairs hold of a name and a password that changed at these times; undefined is never. */
  const holding = async (name: number | undefined, password: number | undefined) => {
    const secret = (value: string, at: number | undefined) =>
      at === undefined ? new Secret(`${value}-new`) : new Secret(`${value}-new`, `${value}-old`, at)
    const credential = user('u', secret('name', name), secret('password', password))
    const found = await directory({ basicauth_credentials: [credential] })
    return ['new new', 'new old', 'old new', 'old old'].filter(pair => {
      const [username, word] = pair.split(' ')
      const known = found.basicAuth(`name-${username}`)
      return found.passwordHolds(known, `name-${username}`, `password-${word}`)
    })
  }
  t.same(await holding(undefined, undefined), ['new new'])
  t.same(await holding(2, 2), ['new new', 'old old'], 'changed together')
  t.same(await holding(undefined, 2), ['new new', 'new old'], 'the password alone')
  t.same(await holding(2, undefined), ['new new', 'old new'], 'the name alone')
  t.same(await holding(2, 3), ['new new', 'new old', 'old old'], 'the name, then the password')
  t.same(await holding(3, 2), ['new new', 'old new', 'old old'], 'the password, then the name')
})

t.test('hashed passwords', async t => {
  const verifies = async (stored: Secret | string, given: string) => {
    const credential = user('u', 'ali', stored)
    const found = await directory({ transform: false, basicauth_credentials: [credential] })
    return found.passwordHolds(credential, 'ali', given)
  }
  const sha1 = hex('sha1', `p${alice.id}`)
  const sha256 = hex('sha256', `p${alice.id}`)
  t.ok(await verifies(sha1, 'p'))
  t.ok(await verifies(sha1.toUpperCase(), 'p'))
  t.ok(await verifies(sha256, 'p'))
  t.notOk(await verifies(sha1, 'q'))
  t.notOk(await verifies(hex('sha1', `p${bob.id}`), 'p'), 'salted by another consumer')
  t.ok(await verifies(hex('sha1', alice.id), ''), 'the hash of the salt alone is an empty password')
  t.notOk(await verifies('p', 'p'), 'plain text is no digest')
  t.notOk(await verifies('', ''))
  t.ok(await verifies(new Secret(hex('sha1', `n${alice.id}`), sha1, 1), 'p'), 'the former password')
  t.ok(await verifies(new Secret(hex('sha1', `n${alice.id}`), sha256), 'n'))
  const nobody = await directory({ transform: false })
  t.notOk(nobody.passwordHolds(undefined, 'ali', ''))
})

t.test('credentials by id and groups by consumer', async t => {
  const k = key('k', 'v')
  const u = user('u', 'n', 'p')
  const acl = (group: string) => ({ id: group, consumer: { id: alice.id }, group })
  const found = await directory({
    keyauth_credentials: [k],
    basicauth_credentials: [u],
    acls: [acl('a'), acl('b')]
  })
  t.equal(found.credential('k'), k)
  t.equal(found.credential('u'), u)
  t.equal(found.credential('x'), undefined)
  t.same(found.groups(alice.id), ['a', 'b'])
  t.same(found.groups(bob.id), [])
})
