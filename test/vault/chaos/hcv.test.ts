import t from 'tap'
import { chaos } from './chaos.ts'
import { credentials } from './credentials.ts'
import { hcv } from './subjects.ts'

await chaos(t, 'hcv', hcv, credentials)
