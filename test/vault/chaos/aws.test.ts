import t from 'tap'
import { chaos } from './chaos.ts'
import { credentials } from './credentials.ts'
import { aws } from './subjects.ts'

await chaos(t, 'aws', aws, credentials)
