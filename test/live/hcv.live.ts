import t from 'tap'
import { startOpenBao } from './openbao.ts'
import { missing } from './server.ts'

await t.test('OpenBao answers', { skip: missing('bao') }, async t => {
  await using bao = await startOpenBao()
  await bao.call('POST', 'secret/data/app', { data: { user: 'ada' } })
  t.match(await bao.call('GET', 'secret/data/app'), { data: { data: { user: 'ada' } } })
})
