import t from 'tap'
import { chaos } from './chaos.ts'
import { credentials } from './credentials.ts'
import { gcp } from './subjects.ts'

await chaos(t, 'gcp', gcp, credentials)
