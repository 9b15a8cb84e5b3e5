import t from 'tap'
import { hcvContract } from '../hcv/contract.ts'
import { startFakeVault } from '../hcv-server.ts'

await hcvContract(t, startFakeVault)
