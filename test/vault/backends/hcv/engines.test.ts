import t from 'tap'
import { hcvScenarios } from '../../hcv/scenarios.ts'
import { startFakeVault } from '../../hcv-server.ts'

await t.test('what holds of every server', async t => {
  await hcvScenarios(t, startFakeVault, async (_, server, { ttl, maxTtl }) => {
    await server.call('POST', 'sys/mounts/database', { type: 'database' })
    await server.call('POST', 'database/roles/app', { default_ttl: ttl, max_ttl: maxTtl })
  })
})
